"""Orders are placed, changed and cancelled, and find the studies that answer them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import structlog

from node.domain.audit import AuditEntry, Outcome
from node.domain.errors import ErrorKind, NodeError
from node.domain.order import (
    Order,
    OrderSource,
    OrderStatus,
    Step,
    is_somebody_else,
)
from node.domain.report import SIGNED
from node.domain.study import Origin, PatientIdentity
from node.store import audit, identities, merges, moves, orders, reports, studies
from node.store.orders import ListedOrder, NamedBy, StudyOrder, Unmatched, Verdict

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

log = structlog.get_logger(__name__)

PUBLISH_LINKS = "publish_order_links"

_REQUEST_ATTRIBUTES = "00400275"
_ACCESSION, _PROCEDURE, _STEP = "00080050", "00401001", "00400009"
_PLACER = "00402016"


@dataclass(frozen=True)
class Placement:
    """What somebody orders, under a key that names it again when it is repeated."""

    key: str
    patient_id: UUID
    source: OrderSource
    step: Step = field(repr=False)
    source_id: str = ""


class Placed(Enum):
    """What became of an order that was sent, as the audit trail calls it."""

    NEW = "order-place"
    CHANGED = "order-change"
    SAME = "order-repeat"


@dataclass(frozen=True)
class By:
    """Who orders, as the audit trail names her."""

    actor: str
    role: str


@dataclass(frozen=True)
class RequestIds:
    """The ids by which an instance or a performed step names its order (PHI)."""

    accession_number: str = ""
    requested_procedure_id: str = ""
    step_id: str = ""
    placer_order_number: str = ""


async def patient_of_order(
    store: "Store", tx: "Transaction", told: PatientIdentity
) -> UUID:
    """Return the patient whom an order without FHIR names, made when she is new.

    What the order says replaces what is on file, as it comes from the hospital's
    system. CONFLICT when name and birth date both differ: the number is mistyped.
    """
    known = await identities.find_patient(
        tx, store, issuer=told.issuer, patient_id=told.patient_id
    )
    if known is not None:
        on_file = await identities.patient(tx, store, known)
        if is_somebody_else(on_file, told):
            raise NodeError(
                "patient.patient_id stands for a patient with another name and birth"
                " date",
                ErrorKind.CONFLICT,
                expression="patient.patient_id",
            )
        told = replace(
            told,
            birth_date=told.birth_date or on_file.birth_date,
            sex=told.sex or on_file.sex,
            id_number=told.id_number or on_file.id_number,
            phone=told.phone or on_file.phone,
        )
    return await identities.upsert_patient(
        tx, store, told, at=store.clock(), replace=True
    )


async def place_order(
    store: "Store", tx: "Transaction", placement: Placement, *, by: By | None
) -> tuple[Order, Placed]:
    """Write an order or its change; return it, and what became of it.

    The same placement twice is one order. A change keeps ids and Study Instance UID
    that the node gave, and goes to the row that it names where two are one woman.
    CONFLICT when it or its accession number is another patient's, and for a change
    after the examination has begun. Without `by` the caller audits.
    """
    number = placement.step.accession_number or placement.key
    await orders.take_turn(tx, store, number)
    await _require_own_accession(tx, store, placement)
    identity = await identities.patient(tx, store, placement.patient_id)
    known = await _find_placed(tx, store, placement)
    if known is None:
        order = Order(
            order_id=uuid4(),
            patient_id=placement.patient_id,
            status=OrderStatus.SCHEDULED,
            source=placement.source,
            source_id=placement.source_id,
            step=placement.step,
        )
        order = replace(order, step=await _completed(tx, store, order))
        await orders.insert(
            tx, store, order, identity, key=placement.key, at=store.clock()
        )
    else:
        hers = await merges.rows_of(tx, placement.patient_id)
        order = _changed(known.order, placement, hers)
        if order == known.order:
            return order, Placed.SAME
        await orders.update(tx, store, order, identity, at=store.clock())
    placed = Placed.NEW if known is None else Placed.CHANGED
    numbers = (order.step.accession_number, order.step.placer_order_number)
    for named in dict.fromkeys(filter(None, numbers)):
        await _match_waiting_studies(store, tx, named)
    if by is not None:
        await _record(store, tx, by, placed.value, order)
    return order, placed


async def _find_placed(
    tx: "Transaction", store: "Store", placement: Placement
) -> ListedOrder | None:
    """Return the order that is placed again, also by the step id that the node gave."""
    known = await orders.find_by_key(tx, store, placement.key)
    step = placement.step
    if known is not None or not (step.accession_number and step.step_id):
        return known
    for other in await orders.of_accession(tx, store, step.accession_number):
        same = (other.source, other.step.step_id) == (placement.source, step.step_id)
        if same and placement.source is OrderSource.REST:
            return await orders.find(tx, store, other.order_id, for_update=True)
    return None


def require_her_order(known: Order, hers: frozenset[UUID]) -> None:
    """Raise CONFLICT unless an order is of one of the rows of a woman."""
    if known.patient_id not in hers:
        raise NodeError(
            "an order stays with its patient: cancel it and place another",
            ErrorKind.CONFLICT,
            expression="patient",
        )


def _changed(known: Order, placement: Placement, hers: frozenset[UUID]) -> Order:
    """Return an order as it is placed now, under whichever number of hers."""
    require_her_order(known, hers)
    told, was = placement.step, known.step
    step = replace(
        told,
        requested_procedure_id=(
            told.requested_procedure_id or was.requested_procedure_id
        ),
        step_id=told.step_id or was.step_id,
        study_instance_uid=told.study_instance_uid or was.study_instance_uid,
    )
    if known.begun and step != was:
        raise NodeError(
            "the examination has begun: the order can no longer be changed",
            ErrorKind.CONFLICT,
        )
    if known.begun:
        return known
    return replace(
        known,
        patient_id=placement.patient_id,
        step=step,
        status=OrderStatus.SCHEDULED,
    )


async def _completed(tx: "Transaction", store: "Store", order: Order) -> Step:
    """Return the step with the ids that DICOM needs and nobody gave (PS3.4 K.6.1.2).

    Steps of one requested procedure share its Study Instance UID.
    """
    number, step = await orders.next_number(tx), order.step
    procedure = step.requested_procedure_id or step.accession_number or f"R{number}"
    uid = step.study_instance_uid
    if not uid and step.accession_number:
        for other in await orders.of_accession(tx, store, step.accession_number):
            if other.step.requested_procedure_id == procedure:
                uid = other.step.study_instance_uid
    return replace(
        step,
        requested_procedure_id=procedure,
        step_id=step.step_id or f"S{number}",
        study_instance_uid=uid or f"2.25.{order.order_id.int}",
    )


async def _require_own_accession(
    tx: "Transaction", store: "Store", placement: Placement
) -> None:
    number = placement.step.accession_number
    if not number:
        return
    hers = await merges.rows_of(tx, placement.patient_id)
    for other in await orders.of_accession(tx, store, number):
        taken = other.patient_id not in hers
        if other.status is OrderStatus.CANCELLED:
            continue
        if taken or other.source is not placement.source:
            whose = "patient" if taken else "system"
            raise NodeError(
                f"accession_number is that of another {whose}'s order",
                ErrorKind.CONFLICT,
                expression="accession_number",
            )


async def cancel_order(
    store: "Store", tx: "Transaction", order_id: UUID, *, by: By
) -> Order:
    """Take an order off the worklist; again without harm.

    NOT_FOUND without such an order, CONFLICT once its examination has begun.
    """
    listed = await orders.find(tx, store, order_id, for_update=True)
    if listed is None:
        raise NodeError("there is no such order", ErrorKind.NOT_FOUND)
    order = listed.order
    if order.status is OrderStatus.CANCELLED:
        return order
    if order.begun:
        raise NodeError(
            "the examination has begun: the order can no longer be cancelled",
            ErrorKind.CONFLICT,
        )
    order = replace(order, status=OrderStatus.CANCELLED)
    await orders.set_status(tx, order_id, order.status, at=store.clock())
    await _record(store, tx, by, "order-cancel", order)
    return order


# -- what becomes of an order ----------------------------------------------------------


async def find_named_orders(
    store: "Store",
    tx: "Transaction",
    *,
    study_instance_uid: str,
    named: Sequence[RequestIds],
) -> list[tuple[ListedOrder, NamedBy]]:
    """Return the orders that a study or a performed step names, of any patient.

    Strongest evidence first, each order once: the Study Instance UID that the
    worklist gave out, then procedure and step of a request, then accession numbers.
    """
    found: dict[UUID, tuple[ListedOrder, NamedBy]] = {}

    def keep(listed: Iterable[ListedOrder], how: NamedBy) -> None:
        for one in listed:
            found.setdefault(one.order.order_id, (one, how))

    every = frozenset(OrderStatus)
    query = orders.OrderQuery(statuses=every, study_instance_uids=(study_instance_uid,))
    keep(await orders.search(tx, store, query, limit=100), NamedBy.STUDY_UID)
    for ids in named:
        if ids.step_id:
            query = orders.OrderQuery(statuses=every, step_id=ids.step_id)
            listed = await orders.search(tx, store, query, limit=100)
            keep((o for o in listed if _is_request(o.order, ids)), NamedBy.REQUEST)
    for number in dict.fromkeys(ids.accession_number for ids in named):
        if number:
            query = orders.OrderQuery(statuses=every, accession_number=number)
            listed = await orders.search(tx, store, query, limit=100)
            own = (o for o in listed if o.order.step.accession_number == number)
            keep(own, NamedBy.ACCESSION)
    return list(found.values())


def _is_request(order: Order, ids: RequestIds) -> bool:
    """Tell whether the ids of a request are this order's; what is empty is not told."""
    step = order.step
    pairs = (
        (ids.step_id, step.step_id),
        (ids.requested_procedure_id, step.requested_procedure_id),
        (ids.accession_number, step.accession_number),
    )
    named = bool(ids.requested_procedure_id or ids.accession_number)
    return named and all(told in ("", known) for told, known in pairs)


async def match_study(
    store: "Store", tx: "Transaction", study_instance_uid: str
) -> list[StudyOrder]:
    """Link a study to the orders that it answers; return all that it names.

    An order of another patient is never taken for hers: it is noted as a conflict,
    in the audit trail too, and stays as it was. Hers are done once the report is
    signed, whichever came first. What a person has said of a study and
    an order counts more than what the headers name. Call it again whenever orders or
    instances may have come since.
    """
    study = await studies.study(tx, study_instance_uid)
    if study is None:
        return []
    if await moves.is_void(tx, study_instance_uid):
        await orders.unlink_others(tx, study_instance_uid, [])
        await orders.note_unmatched(tx, study_instance_uid, None)
        return []
    named = await _named_by_instances(tx, store, study_instance_uid)
    matches = await find_named_orders(
        store, tx, study_instance_uid=study_instance_uid, named=named
    )
    hers = await identities.patient(tx, store, study.patient_id)
    rows = await merges.rows_of(tx, study.patient_id)
    if not matches:
        matches = await _by_placer(store, tx, rows, hers, named)
    decided = await orders.decisions(tx, study_instance_uid)
    matches = await _as_decided(store, tx, matches, decided)
    known = [listed.order.order_id for listed, _ in matches]
    await orders.unlink_others(tx, study_instance_uid, known)
    signed = await reports.newest_status(tx, study_instance_uid) in SIGNED
    reached = OrderStatus.COMPLETED if signed else OrderStatus.IN_PROGRESS
    new = []
    for listed, how in matches:
        order = listed.order
        agrees = order.patient_id in rows or is_same_patient(listed.identity, hers)
        if await orders.link(
            tx,
            study_instance_uid,
            order.order_id,
            agrees=agrees,
            named_by=how,
            at=store.clock(),
        ):
            new.append((order, how, agrees))
        if agrees:
            await move_order(store, tx, order, reached)
    for order, how, agrees in new:
        await _record_link(store, tx, study_instance_uid, order, how, agrees)
    found = await orders.of_study(tx, store, study_instance_uid)
    why = _unmatched(found, decided, any(ids.accession_number for ids in named))
    await orders.note_unmatched(tx, study_instance_uid, why)
    return found


async def _by_placer(
    store: "Store",
    tx: "Transaction",
    rows: frozenset[UUID],
    hers: PatientIdentity,
    named: Sequence[RequestIds],
) -> list[tuple[ListedOrder, NamedBy]]:
    """Return her orders whose placer number a study names, where nothing else does.

    Also in the place of the accession number: who types it in reads it off the paper
    of the placer. Two systems may number alike, so it says nothing of another patient.
    """
    told = {one.placer_order_number for one in named}
    told |= {one.accession_number for one in named}
    told.discard("")
    if not told:
        return []
    found: dict[UUID, ListedOrder] = {}
    for number in sorted(await numbers_of(store, tx, rows)):
        query = orders.OrderQuery(statuses=frozenset(OrderStatus), patient_id=number)
        for listed in await orders.search(tx, store, query, limit=100):
            found[listed.order.order_id] = listed
    return [
        (listed, NamedBy.REQUEST)
        for listed in found.values()
        if listed.order.step.placer_order_number in told
        and (listed.order.patient_id in rows or is_same_patient(listed.identity, hers))
    ]


async def numbers_of(
    store: "Store", tx: "Transaction", rows: Iterable[UUID]
) -> set[str]:
    """Return the Patient IDs of rows; one without any is found by none."""
    told = [(await identities.patient(tx, store, row)).patient_id for row in rows]
    return {number for number in told if number.strip()}


async def _as_decided(
    store: "Store",
    tx: "Transaction",
    matches: list[tuple[ListedOrder, NamedBy]],
    decided: Mapping[UUID | None, Verdict],
) -> list[tuple[ListedOrder, NamedBy]]:
    """Return the matches without those that a person undid, with those she made."""
    kept = [
        (listed, how)
        for listed, how in matches
        if decided.get(listed.order.order_id) is not Verdict.UNLINKED
    ]
    known = {listed.order.order_id for listed, _ in kept}
    for order_id, verdict in decided.items():
        if order_id is None or order_id in known or verdict is not Verdict.LINKED:
            continue
        listed = await orders.find(tx, store, order_id)
        if listed is not None:
            kept.append((listed, NamedBy.PERSON))
    return kept


def _unmatched(
    found: Sequence[StudyOrder],
    decided: Mapping[UUID | None, Verdict],
    names_accession: bool,
) -> Unmatched | None:
    """Return why a study needs somebody's eyes; None when it has what it needs."""
    if any(not one.agrees for one in found):
        return Unmatched.OTHER_PATIENT
    if found or decided.get(None) is Verdict.NONE_EXPECTED:
        return None
    return Unmatched.UNKNOWN_ACCESSION if names_accession else Unmatched.NO_ORDER


async def _match_waiting_studies(
    store: "Store", tx: "Transaction", accession_number: str
) -> None:
    """Match the studies that came before their order, and let readers see it."""
    for uid in await studies.find_studies_by_accession(tx, store, accession_number):
        before = await orders.of_study(tx, store, uid)
        after = await match_study(store, tx, uid)
        if before != after:
            await publish_links_later(store, tx, uid)


async def publish_links_later(
    store: "Store",
    tx: "Transaction",
    study_instance_uid: str,
    decision: int | None = None,
) -> None:
    """Let the readers of a study and its report see which orders it answers now.

    `decision` is the number of what a person said, where it was one.
    """
    study = await studies.study(tx, study_instance_uid)
    if study is None:
        return
    await store.jobs.defer(
        tx,
        PUBLISH_LINKS,
        {"study_instance_uid": study_instance_uid, "decision": decision},
        key=f"{study_instance_uid}/{uuid4()}",
        order_key=f"{PUBLISH_LINKS}/{study_instance_uid}",
        patient_id=study.patient_id,
    )


def is_same_patient(one: PatientIdentity, other: PatientIdentity) -> bool:
    """Tell whether one number stands for one woman though only one side has an issuer.

    Many machines do not copy Issuer of Patient ID from the worklist.
    """
    return (
        one.patient_id.strip() == other.patient_id.strip() != ""
        and not (one.issuer and other.issuer)
        and not is_somebody_else(one, other)
    )


async def move_order(
    store: "Store", tx: "Transaction", order: Order, status: OrderStatus
) -> None:
    """Move an order forward as its examination goes on; never back."""
    moved = order.performed(status)
    if moved.status is not order.status:
        await orders.set_status(tx, order.order_id, moved.status, at=store.clock())


async def _named_by_instances(
    tx: "Transaction", store: "Store", study_instance_uid: str
) -> list[RequestIds]:
    """Return what the headers of a study and the study itself say of their request."""
    detail = await studies.study_detail(tx, store, study_instance_uid)
    named = [RequestIds(accession_number=detail.accession_number.strip())]
    for instance in await studies.instances_of(
        tx, store, study_instance_uid, Origin.RECEIVED
    ):
        header = json.loads(instance.metadata)
        own = _text(header, _ACCESSION)
        named.append(
            RequestIds(accession_number=own, placer_order_number=_text(header, _PLACER))
        )
        for item in header.get(_REQUEST_ATTRIBUTES, {}).get("Value", []):
            named.append(
                RequestIds(
                    _text(item, _ACCESSION) or own,
                    _text(item, _PROCEDURE),
                    _text(item, _STEP),
                    _text(item, _PLACER),
                )
            )
    return list(dict.fromkeys(named))


def _text(header: dict[str, Any], tag: str) -> str:
    values = header.get(tag, {}).get("Value") or [""]
    return str(values[0] or "").strip()


async def _record(
    store: "Store", tx: "Transaction", by: By, action: str, order: Order
) -> None:
    await audit.record(
        tx,
        AuditEntry(
            at=store.clock(),
            actor=by.actor,
            role=by.role,
            action=action,
            entity=f"order/{order.order_id}",
            detail={"patient": str(order.patient_id), "status": order.status.value},
        ),
    )


async def _record_link(
    store: "Store",
    tx: "Transaction",
    study_instance_uid: str,
    order: Order,
    how: NamedBy,
    agrees: bool,
) -> None:
    detail = {"order": str(order.order_id), "named_by": how.value}
    if not agrees:
        detail["reason"] = "the order is another patient's"
        log.warning(
            "orders.another_patient",
            study_instance_uid=study_instance_uid,
            order_id=str(order.order_id),
        )
    await audit.record(
        tx,
        AuditEntry(
            at=store.clock(),
            actor="sononode",
            role="device",
            action="order-match",
            entity=f"study/{study_instance_uid}",
            outcome=Outcome.SUCCESS if agrees else Outcome.REFUSED,
            detail=detail,
        ),
    )
