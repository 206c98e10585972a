"""Rows of patients that are one woman: linked, never moved, and taken apart again.

Her studies, reports and orders stay with the row under whose number they came, sealed
with its key; what is linked is only that the rows are hers. `patient_rows` holds every
row beside every other of the same woman, so that a search asks one index.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.errors import ErrorKind, NodeError
from node.domain.study import PatientIdentity
from node.store import identities

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction
    from node.store.store import Store

_TURN = 0x736F6E6F_00000003  # "sono", 3: who says that rows are one woman


class Verdict(Enum):
    """What was said of two rows: one woman, no longer, or two women for ever."""

    SAME = "same"
    APART = "apart"
    DIFFERENT = "different"


@dataclass(frozen=True)
class Decision:
    """What was said of two rows, by whom; `kept` is the one that stands for both."""

    number: int
    lost: UUID
    kept: UUID
    verdict: Verdict
    at: datetime
    by: str
    reason: str = field(repr=False)


@dataclass(frozen=True)
class Links:
    """What a row is linked to: the one that stands for it, those it stands for."""

    merged_into: UUID | None
    merged: tuple[UUID, ...] = ()


@dataclass(frozen=True)
class Woman:
    """Who one woman is by each of her rows; that which `stands` for all comes first."""

    stands: PatientIdentity
    others: tuple[PatientIdentity, ...]


async def take_turn(tx: "Transaction") -> None:
    """Let one act after the other say who is one woman, until `tx` ends."""
    await tx.execute("select pg_advisory_xact_lock($1)", _TURN)


async def rows_of(tx: "Transaction", patient_id: UUID) -> frozenset[UUID]:
    """Return all rows of the woman for whom a row stands, that one among them."""
    rows = await tx.fetch(
        "select other from patient_rows where patient_id = $1", str(patient_id)
    )
    return frozenset({patient_id, *(UUID(row["other"]) for row in rows)})


async def all_rows_of(
    tx: "Transaction", patient_ids: Collection[UUID]
) -> tuple[UUID, ...]:
    """Return these rows, and after them the other rows of the same women."""
    others = {row for one in patient_ids for row in await rows_of(tx, one)}
    return (*patient_ids, *sorted(others - set(patient_ids)))


async def named_with(
    tx: "Transaction", patient_ids: Collection[str]
) -> dict[str, list[str]]:
    """Return the other rows of each of some women, by the ids that FHIR knows."""
    if not patient_ids:
        return {}
    rows = await tx.fetch(
        "select patient_id, other from patient_rows where patient_id = any($1)"
        " order by other",
        list(patient_ids),
    )
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["patient_id"], []).append(row["other"])
    return found


async def survivor(tx: "Transaction", patient_id: UUID) -> UUID:
    """Return the row that stands for all rows of a woman."""
    while (into := (await links_of(tx, patient_id)).merged_into) is not None:
        patient_id = into
    return patient_id


async def women(
    tx: "Transaction", store: "Store", patient_ids: Collection[UUID]
) -> dict[UUID, Woman]:
    """Return who is meant by those of some rows that are merged with others."""
    found: dict[UUID, Woman] = {}
    named = await named_with(tx, [str(one) for one in patient_ids])
    for row, others in named.items():
        stands = await survivor(tx, UUID(row))
        rows = [UUID(one) for one in (row, *others) if UUID(one) != stands]
        found[UUID(row)] = Woman(
            await identities.patient(tx, store, stands),
            tuple([await identities.patient(tx, store, one) for one in rows]),
        )
    return found


async def links_of(tx: "Transaction", patient_id: UUID) -> Links:
    """Return what a row is linked to directly; NOT_FOUND without such a row."""
    row = await tx.fetchrow(
        "select merged_into from patients where patient_id = $1", patient_id
    )
    if row is None:
        raise NodeError(f"there is no patient {patient_id}", ErrorKind.NOT_FOUND)
    merged = await tx.fetch(
        "select patient_id from patients where merged_into = $1 order by patient_id",
        patient_id,
    )
    return Links(row["merged_into"], tuple(one["patient_id"] for one in merged))


async def link(tx: "Transaction", lost: UUID, kept: UUID | None) -> None:
    """Let `kept` stand for `lost`; None: each stands for itself again."""
    before = await rows_of(tx, lost)
    await tx.execute(
        "update patients set merged_into = $2 where patient_id = $1", lost, kept
    )
    touched = before if kept is None else before | await rows_of(tx, kept)
    # What hangs together is found anew along the links; it is a handful of rows.
    await tx.execute(
        "delete from patient_rows where patient_id = any($1)",
        [str(one) for one in touched],
    )
    await tx.execute(
        "with recursive apart (patient_id, other) as ("
        " select patient_id, patient_id from patients where patient_id = any($1)"
        " union select a.patient_id, case when p.patient_id = a.other"
        "  then p.merged_into else p.patient_id end"
        " from apart a join patients p on p.merged_into is not null"
        "  and (p.patient_id = a.other or p.merged_into = a.other))"
        " insert into patient_rows (patient_id, other)"
        " select patient_id::text, other::text from apart where patient_id <> other",
        list(touched),
    )


async def decide(
    tx: "Transaction",
    store: "Store",
    lost: UUID,
    kept: UUID,
    verdict: Verdict,
    *,
    by: str,
    reason: str,
) -> int:
    """Keep what was said of two rows; return its number. The newest of both counts."""
    body = reason.encode()
    for one in (lost, kept):  # it may name either: it goes with the key of either
        sealer = await store.ring.patient(tx, one)
        body = sealer.seal(body, **_place(lost, kept))
    number: int = await tx.fetchval(
        "insert into patient_decisions (lost, kept, verdict, at, by, reason)"
        " values ($1, $2, $3, $4, $5, $6) returning sequence",
        lost,
        kept,
        verdict.value,
        store.clock(),
        by,
        body,
    )
    return number


async def decision(tx: "Transaction", store: "Store", number: int) -> Decision:
    """Return what was said under a number; GONE when either woman was erased."""
    row = await tx.fetchrow(
        "select * from patient_decisions where sequence = $1", number
    )
    if row is None:
        raise NodeError("there is no such decision", ErrorKind.NOT_FOUND)
    return await _opened(tx, store, row)


async def standing(
    tx: "Transaction", store: "Store", *, limit: int
) -> Sequence[Decision]:
    """Return what counts of two rows, newest first: one woman, or two for ever.

    What was taken apart again is nothing any more, and of erased women nothing is left.
    """
    rows = await tx.fetch(
        "select * from (select distinct on (least(lost, kept), greatest(lost, kept)) *"
        " from patient_decisions"
        " order by least(lost, kept), greatest(lost, kept), sequence desc) newest"
        " where verdict <> 'apart' and not exists (select from data_keys"
        "  where domain = 'patient' and subject in (lost, kept) and wrapped is null)"
        " order by sequence desc limit $1",
        limit,
    )
    return [await _opened(tx, store, row) for row in rows]


async def verdict_on(tx: "Transaction", one: UUID, other: UUID) -> Verdict | None:
    """Return what counts of what was said of two rows; None: nobody said anything."""
    told = await tx.fetchval(
        "select verdict from patient_decisions where least(lost, kept) = $1"
        " and greatest(lost, kept) = $2 order by sequence desc limit 1",
        min(one, other),
        max(one, other),
    )
    return None if told is None else Verdict(told)


async def studies_of(tx: "Transaction", patient_ids: Collection[UUID]) -> list[str]:
    """Return the studies of some rows, held until `tx` ends, always in one order."""
    rows = await tx.fetch(
        "select study_instance_uid from studies where patient_id = any($1)"
        " order by study_instance_uid for update",
        list(patient_ids),
    )
    return [row["study_instance_uid"] for row in rows]


async def weight_of(tx: "Transaction", patient_id: UUID) -> tuple[int, bool]:
    """Return how many studies a row has, and whether the hospital's system knows it."""
    row = await tx.fetchrow(
        "select named_by_ehr, (select count(*) from studies s"
        " where s.patient_id = p.patient_id) as count from patients p"
        " where patient_id = $1",
        patient_id,
    )
    return (0, False) if row is None else (int(row["count"]), row["named_by_ehr"])


async def is_nobody(tx: "Transaction", patient_id: UUID) -> bool:
    """Tell whether a row only holds the key of a study that is void."""
    return bool(
        await tx.fetchval(
            "select exists (select from study_moves where owner = $1)", patient_id
        )
    )


async def _opened(tx: "Transaction", store: "Store", row: "asyncpg.Record") -> Decision:
    lost, kept, body = row["lost"], row["kept"], row["reason"]
    for one in (kept, lost):
        sealer = await store.ring.patient(tx, one)
        body = sealer.open(body, **_place(lost, kept))
    return Decision(
        row["sequence"],
        lost,
        kept,
        Verdict(row["verdict"]),
        row["at"],
        row["by"],
        body.decode(),
    )


def _place(lost: UUID, kept: UUID) -> dict[str, str]:
    row = f"{lost}/{kept}"
    return {"table": "patient_decisions", "row": row, "column": "reason"}
