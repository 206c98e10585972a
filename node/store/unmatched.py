"""The list of studies that wait for somebody to compare them with their orders."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from node.store.orders import Unmatched

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction

# Studies that are being received still find their order by themselves. Those of erased
# patients have nobody to be compared with.
_SELECT = """
select s.study_instance_uid, s.study_date, s.opened_at, s.unmatched, s.patient_id,
    not p.named_by_ehr as unknown_to_ehr
from studies s join patients p using (patient_id)
join data_keys k on k.domain = 'patient' and k.subject = s.patient_id
    and k.wrapped is not null
"""
_BEHIND = """
where s.unmatched is not null and s.status <> 'receiving'
    and ($1 = '' or (s.opened_at, s.study_instance_uid) <
        (select opened_at, study_instance_uid from studies
            where study_instance_uid = $1))
order by s.opened_at desc, s.study_instance_uid desc limit $2
"""
_NAMED = """
where s.study_instance_uid = any($1)
order by s.opened_at desc, s.study_instance_uid desc limit 50
"""


@dataclass(frozen=True)
class Row:
    """A study on the list; `unknown_to_ehr` when the EHR never named its patient."""

    study_instance_uid: str
    study_date: date | None
    opened_at: datetime
    why: Unmatched | None
    patient_id: UUID
    unknown_to_ehr: bool


async def page(tx: "Transaction", *, after: str, limit: int, ehr: bool) -> list[Row]:
    """Return studies behind the one named `after`, newest first.

    None where nobody has ever placed an order: nothing is missed there.
    """
    if not await orders_known(tx):
        return []
    rows = await tx.fetch(_SELECT + _BEHIND, after, limit)
    return [_row(row, ehr) for row in rows]


async def named(tx: "Transaction", uids: Sequence[str]) -> list[Row]:
    """Return these studies, on the list or not, newest first."""
    rows = await tx.fetch(
        _SELECT + _NAMED,
        list(uids),
    )
    return [_row(row, await ehr_names_patients(tx)) for row in rows]


def _row(row: "asyncpg.Record", ehr: bool) -> Row:
    told = row["unmatched"]
    return Row(
        row["study_instance_uid"],
        row["study_date"],
        row["opened_at"],
        None if told is None else Unmatched(told),
        row["patient_id"],
        ehr and row["unknown_to_ehr"],
    )


async def why(tx: "Transaction", study_instance_uid: str) -> Unmatched | None:
    """Return why a study stands on the list; None when it does not."""
    told = await tx.fetchval(
        "select unmatched from studies where study_instance_uid = $1",
        study_instance_uid,
    )
    return None if told is None else Unmatched(told)


async def orders_known(tx: "Transaction") -> bool:
    """Tell whether anybody has ever placed an order here."""
    return bool(await tx.fetchval("select exists (select from orders)"))


async def ehr_names_patients(tx: "Transaction") -> bool:
    """Tell whether a hospital system names patients here at all."""
    return bool(
        await tx.fetchval("select exists (select from patients where named_by_ehr)")
    )
