"""Orders on disk: scheduled steps, and which studies answer them.

Descriptions, numbers and names are sealed with the patient's key; a query narrows by
dates, stations and blind indexes, then opens what is left. Functions take the open
transaction first, so that a verb of `node.workflow` is one commit.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from node.domain.errors import ErrorKind, NodeError
from node.domain.order import OPEN, Code, Order, OrderSource, OrderStatus, Step
from node.domain.study import PatientIdentity
from node.store import identities

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction
    from node.store.store import Store

_COLUMNS = frozenset({"scheduled_on", "scheduled_time", "modality", "station_titles"})
_IN_BODY = tuple(f.name for f in fields(Step) if f.name not in _COLUMNS)
_SELECT = """
select o.*, p.body as identity from orders o join patients p using (patient_id)
join data_keys k on k.domain = 'patient' and k.subject = o.patient_id
    and k.wrapped is not null
"""

# A woman of several rows is found by the number and the name of any of them.
_SEARCH = f"""{_SELECT} where o.status = any($1)
and ($2::date is null or o.scheduled_on >= $2)
and ($3::date is null or o.scheduled_on <= $3)
and ($4::text[] is null or o.station_titles && $4
    or ($5 and o.station_titles = '{{}}'))
and ($6 = '' or o.modality = $6)
and ($7::bytea is null or o.patient_blind = $7 or o.patient_id = any(
    array(select r.other::uuid from patients q join patient_rows r
        on r.patient_id = q.patient_id::text where q.number_blind = $13)))
and ($8::bytea is null or o.accession_blind = $8)
and ($9::bytea is null or o.procedure_blind = $9)
and ($10::bytea is null or o.step_blind = $10)
and (cardinality($11::text[]) = 0 or o.study_instance_uid = any($11))
and ($12::bytea is null or p.name_blinds @> array[$12::bytea]
    or exists (select from patient_rows r
        join patients q on q.patient_id = r.other::uuid
        where r.patient_id = o.patient_id::text
        and q.name_blinds @> array[$12::bytea]))
order by o.scheduled_on, o.scheduled_time nulls first, o.sequence limit $14
"""  # noqa: S608


class NamedBy(StrEnum):
    """By what a study names its order, the strongest first."""

    STUDY_UID = "study uid"  # the one that the worklist gave out
    REQUEST = "request"  # Request Attributes Sequence
    ACCESSION = "accession"
    PERSON = "person"  # who has compared both said so


class Verdict(StrEnum):
    """What a person said about a study and an order, or about having one at all."""

    LINKED = "linked"
    UNLINKED = "unlinked"
    NONE_EXPECTED = "none-expected"
    EXPECTED = "expected"


class Unmatched(StrEnum):
    """Why a study stands on the list of those to be reconciled."""

    NO_ORDER = "no-order"
    UNKNOWN_ACCESSION = "unknown-accession"
    OTHER_PATIENT = "other-patient"


@dataclass(frozen=True)
class Decision:
    """What a person said about a study and an order, and why; `by` is her account."""

    order_id: UUID | None
    verdict: Verdict
    at: datetime
    by: str
    reason: str = field(repr=False)


@dataclass(frozen=True)
class OrderQuery:
    """What to look for; None and empty match everything.

    `stations` with `unassigned` also finds steps that any machine may take.
    `patient_id` and `name_prefix` may be those of any row of the same woman.
    `name_prefix` is the beginning of a name component (`studies.name_prefixes`).
    Ids find candidates without regard to case: compare what comes back.
    """

    statuses: frozenset[OrderStatus] = OPEN
    first_day: date | None = None
    last_day: date | None = None
    stations: frozenset[str] | None = None
    unassigned: bool = True
    modality: str = ""
    patient_id: str = ""
    accession_number: str = ""
    requested_procedure_id: str = ""
    step_id: str = ""
    study_instance_uids: tuple[str, ...] = ()
    name_prefix: str = ""


@dataclass(frozen=True)
class ListedOrder:
    """An order with the patient as she is on file now."""

    order: Order
    identity: PatientIdentity


@dataclass(frozen=True)
class StudyOrder:
    """An order that a study names; `agrees` when it is of the same patient."""

    order: Order
    agrees: bool
    named_by: NamedBy


async def take_turn(tx: "Transaction", store: "Store", number: str) -> None:
    """Let orders with one accession number, or key, be placed one after the other."""
    turn = int.from_bytes(store.ring.blind("order_turn", number)[:8], signed=True)
    await tx.execute("select pg_advisory_xact_lock($1)", turn)


async def next_number(tx: "Transaction") -> int:
    """Return a number that no other order has, for the ids that nobody gave."""
    return int(
        await tx.fetchval(
            "select nextval(pg_get_serial_sequence('orders', 'sequence'))"
        )
    )


async def insert(
    tx: "Transaction",
    store: "Store",
    order: Order,
    identity: PatientIdentity,
    *,
    key: str,
    at: datetime,
) -> None:
    """Write a new order; CONFLICT when `key` was taken in this instant."""
    written = await tx.fetchval(
        "insert into orders (order_id, patient_id, status, source, source_id,"
        " key_blind, study_instance_uid, modality, station_titles, scheduled_on,"
        " scheduled_time, patient_blind, accession_blind, procedure_blind, step_blind,"
        " body, created_at, updated_at)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,"
        " $16, $17, $17) on conflict do nothing returning 1",
        order.order_id,
        order.patient_id,
        order.status.value,
        order.source.value,
        order.source_id,
        key_blind(store, key),
        *await _searched(tx, store, order, identity),
        at,
    )
    if written is None:
        raise NodeError("the order was placed in this moment", ErrorKind.CONFLICT)


async def update(
    tx: "Transaction",
    store: "Store",
    order: Order,
    identity: PatientIdentity,
    *,
    at: datetime,
) -> None:
    """Write the order over what is there, sealed with the key of its patient now."""
    await tx.execute(
        "update orders set patient_id = $2, status = $3, study_instance_uid = $4,"
        " modality = $5, station_titles = $6, scheduled_on = $7, scheduled_time = $8,"
        " patient_blind = $9, accession_blind = $10, procedure_blind = $11,"
        " step_blind = $12, body = $13, updated_at = $14 where order_id = $1",
        order.order_id,
        order.patient_id,
        order.status.value,
        *await _searched(tx, store, order, identity),
        at,
    )


async def set_status(
    tx: "Transaction", order_id: UUID, status: OrderStatus, *, at: datetime
) -> None:
    """Note where an order stands now."""
    await tx.execute(
        "update orders set status = $2, updated_at = $3 where order_id = $1",
        order_id,
        status.value,
        at,
    )


async def find_by_key(
    tx: "Transaction", store: "Store", key: str
) -> ListedOrder | None:
    """Return the order that was placed under `key`, locked, or None."""
    rows = await tx.fetch(
        f"{_SELECT} where key_blind = $1 for update of o", key_blind(store, key)
    )
    return (await _listed(tx, store, rows))[0] if rows else None


async def find(
    tx: "Transaction", store: "Store", order_id: UUID, *, for_update: bool = False
) -> ListedOrder | None:
    """Return an order, or None when there is none or its patient was erased."""
    lock = " for update of o" if for_update else ""
    rows = await tx.fetch(f"{_SELECT} where order_id = $1{lock}", order_id)
    return (await _listed(tx, store, rows))[0] if rows else None


async def search(
    tx: "Transaction", store: "Store", query: OrderQuery, *, limit: int
) -> list[ListedOrder]:
    """Return at most `limit` orders by time; erased patients have none."""
    ring = store.ring
    prefix = query.name_prefix[: identities.NAME_PREFIX_LENGTH]
    rows = await tx.fetch(
        _SEARCH,
        [status.value for status in query.statuses],
        query.first_day,
        query.last_day,
        None if query.stations is None else sorted(query.stations),
        query.unassigned,
        query.modality,
        _blind(store, "order_patient", query.patient_id),
        _blind(store, "order_accession", query.accession_number),
        _blind(store, "order_procedure", query.requested_procedure_id),
        _blind(store, "order_step", query.step_id),
        list(query.study_instance_uids),
        ring.blind("name_prefix", prefix) if prefix else None,
        identities.number_blind(ring, query.patient_id),
        limit,
    )
    return await _listed(tx, store, rows)


async def of_accession(
    tx: "Transaction", store: "Store", accession_number: str
) -> list[Order]:
    """Return every order with this accession number, whatever became of it."""
    query = OrderQuery(
        statuses=frozenset(OrderStatus), accession_number=accession_number
    )
    found = await search(tx, store, query, limit=100)
    wanted = accession_number.strip()
    return [o.order for o in found if o.order.step.accession_number == wanted]


# -- which studies answer which orders -------------------------------------------------


async def link(
    tx: "Transaction",
    study_instance_uid: str,
    order_id: UUID,
    *,
    agrees: bool,
    named_by: NamedBy,
    at: datetime,
) -> bool:
    """Note that a study names an order; False when that is known already."""
    written = await tx.fetchval(
        "insert into study_orders (study_instance_uid, order_id, agrees, named_by, at)"
        " values ($1, $2, $3, $4, $5) on conflict (study_instance_uid, order_id)"
        " do update set agrees = excluded.agrees, named_by = excluded.named_by,"
        "  at = excluded.at"
        "  where study_orders.agrees is distinct from excluded.agrees returning 1",
        study_instance_uid,
        order_id,
        agrees,
        named_by.value,
        at,
    )
    return written is not None


async def unlink_others(
    tx: "Transaction", study_instance_uid: str, order_ids: Sequence[UUID]
) -> None:
    """Forget the orders that a study names no more, as one of both was corrected."""
    await tx.execute(
        "delete from study_orders where study_instance_uid = $1"
        " and order_id <> all($2::uuid[])",
        study_instance_uid,
        list(order_ids),
    )


async def studies_of(tx: "Transaction", order_id: UUID) -> list[str]:
    """Return the studies that answer an order."""
    rows = await tx.fetch(
        "select study_instance_uid from study_orders where order_id = $1 and agrees",
        order_id,
    )
    return [row["study_instance_uid"] for row in rows]


async def decide(
    tx: "Transaction",
    store: "Store",
    study_instance_uid: str,
    order_id: UUID | None,
    verdict: Verdict,
    *,
    by: str,
    reason: str,
) -> int:
    """Keep what a person said; return its number. The newest of both counts."""
    patient_id = await tx.fetchval(
        "select patient_id from studies where study_instance_uid = $1",
        study_instance_uid,
    )
    sealer = await store.ring.patient(tx, patient_id)
    number: int = await tx.fetchval(
        "insert into order_decisions"
        " (study_instance_uid, order_id, verdict, at, by, reason)"
        " values ($1, $2, $3, $4, $5, $6) returning sequence",
        study_instance_uid,
        order_id,
        verdict.value,
        store.clock(),
        by,
        sealer.seal(
            reason.encode(),
            table="order_decisions",
            row=study_instance_uid,
            column="reason",
        ),
    )
    return number


async def decision(tx: "Transaction", store: "Store", number: int) -> Decision:
    """Return what a person said under this number; NOT_FOUND when nobody did."""
    row = await tx.fetchrow(
        "select d.*, s.patient_id from order_decisions d"
        " join studies s using (study_instance_uid) where sequence = $1",
        number,
    )
    if row is None:
        raise NodeError("there is no such decision", ErrorKind.NOT_FOUND)
    sealer = await store.ring.patient(tx, row["patient_id"])
    reason = sealer.open(
        row["reason"],
        table="order_decisions",
        row=row["study_instance_uid"],
        column="reason",
    )
    return Decision(
        row["order_id"], Verdict(row["verdict"]), row["at"], row["by"], reason.decode()
    )


async def decisions(
    tx: "Transaction", study_instance_uid: str
) -> dict[UUID | None, Verdict]:
    """Return what counts of what people said, by order; None: about having one."""
    rows = await tx.fetch(
        "select distinct on (order_id) order_id, verdict from order_decisions"
        " where study_instance_uid = $1 order by order_id, sequence desc",
        study_instance_uid,
    )
    return {row["order_id"]: Verdict(row["verdict"]) for row in rows}


async def is_refuted(
    tx: "Transaction", store: "Store", study_instance_uid: str, number: str
) -> bool:
    """Tell whether a person took from a study the order with this accession number."""
    for order_id, verdict in (await decisions(tx, study_instance_uid)).items():
        if order_id is None or verdict is not Verdict.UNLINKED:
            continue
        listed = await find(tx, store, order_id)
        if listed is not None and listed.order.step.accession_number == number.strip():
            return True
    return False


async def note_unmatched(
    tx: "Transaction", study_instance_uid: str, why: Unmatched | None
) -> None:
    """Put a study on the list of those to be reconciled, or take it off."""
    await tx.execute(
        "update studies set unmatched = $2"
        " where study_instance_uid = $1 and unmatched is distinct from $2",
        study_instance_uid,
        None if why is None else why.value,
    )


async def of_study(
    tx: "Transaction", store: "Store", study_instance_uid: str
) -> list[StudyOrder]:
    """Return the orders that a study names, as they were scheduled."""
    rows = await tx.fetch(
        f"{_SELECT} join study_orders s using (order_id)"
        " where s.study_instance_uid = $1 order by o.sequence",
        study_instance_uid,
    )
    links = await tx.fetch(
        "select order_id, agrees, named_by from study_orders"
        " where study_instance_uid = $1",
        study_instance_uid,
    )
    by_id = {row["order_id"]: row for row in links}
    return [
        StudyOrder(
            listed.order,
            by_id[listed.order.order_id]["agrees"],
            NamedBy(by_id[listed.order.order_id]["named_by"]),
        )
        for listed in await _listed(tx, store, rows)
    ]


async def conflicts(tx: "Transaction", *, limit: int = 100) -> list[tuple[str, UUID]]:
    """Return (study UID, order id) where a study names another patient's order.

    Only orders that still wait for their end: the others have found their own study,
    or were cancelled.
    """
    rows = await tx.fetch(
        "select s.study_instance_uid, order_id from study_orders s"
        " join orders o using (order_id) where not agrees and o.status = any($2)"
        " order by at desc limit $1",
        limit,
        [status.value for status in OPEN],
    )
    return [(row["study_instance_uid"], row["order_id"]) for row in rows]


# -- rows ------------------------------------------------------------------------------


def key_blind(store: "Store", key: str) -> bytes:
    """Return the blind index of what makes an order the same; hex, so case counts."""
    return store.ring.blind("order_key", key.encode().hex())


def _blind(store: "Store", field: str, value: str) -> bytes | None:
    return store.ring.blind(field, value) if value.strip() else None


async def _searched(
    tx: "Transaction", store: "Store", order: Order, identity: PatientIdentity
) -> tuple[Any, ...]:
    """Return the columns that follow an order's status in its row."""
    step = order.step
    body = {name: getattr(step, name) for name in _IN_BODY}
    code = step.requested_procedure_code
    body["requested_procedure_code"] = None if code is None else asdict(code)
    sealer = await store.ring.patient(tx, order.patient_id)
    return (
        step.study_instance_uid,
        step.modality,
        list(step.station_titles),
        step.scheduled_on,
        step.scheduled_time,
        store.ring.blind("order_patient", identity.patient_id),
        _blind(store, "order_accession", step.accession_number),
        store.ring.blind("order_procedure", step.requested_procedure_id),
        store.ring.blind("order_step", step.step_id),
        sealer.seal(
            json.dumps(body, ensure_ascii=False).encode(),
            table="orders",
            row=str(order.order_id),
            column="body",
        ),
    )


async def _listed(
    tx: "Transaction", store: "Store", rows: "Sequence[asyncpg.Record]"
) -> list[ListedOrder]:
    found = []
    for row in rows:
        patient_id = row["patient_id"]
        sealer = await store.ring.patient(tx, patient_id)
        identity = identities.open_identity(sealer, patient_id, row["identity"])
        text = sealer.open(
            row["body"], table="orders", row=str(row["order_id"]), column="body"
        )
        found.append(ListedOrder(_order(row, json.loads(text)), identity))
    return found


def _order(row: "asyncpg.Record", body: dict[str, Any]) -> Order:
    code = body.pop("requested_procedure_code")
    step = Step(
        **body,
        requested_procedure_code=None if code is None else Code(**code),
        scheduled_on=row["scheduled_on"],
        scheduled_time=row["scheduled_time"],
        modality=row["modality"],
        station_titles=tuple(row["station_titles"]),
    )
    return Order(
        order_id=row["order_id"],
        patient_id=row["patient_id"],
        status=OrderStatus(row["status"]),
        source=OrderSource(row["source"]),
        source_id=row["source_id"],
        step=step,
    )
