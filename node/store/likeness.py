"""Rows of patients that may stand for one woman: found by blind traits, not merged.

Two systems that number their patients apart make two rows of one woman. What they share
is a trait: the number, whoever gave it, or the name with the birth date. Pairs are kept
as identities are written, so that listing them never compares everybody with everybody.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.order import bare_names
from node.domain.study import PatientIdentity

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.keys import KeyRing
    from node.store.store import Store

# More rows than this with one trait are a default of some machine, not one woman.
MOST_ALIKE = 20
_RULES = 1


@dataclass(frozen=True)
class Pair:
    """Two patients and what they share: `number`, `person` (name and birth date)."""

    one: UUID
    other: UUID
    kinds: tuple[str, ...]


def traits_of(ring: "KeyRing", identity: PatientIdentity) -> list[tuple[str, bytes]]:
    """Return (kind, blind index) of all by which a patient may be met again."""
    traits = []
    number = identity.patient_id.strip()
    if number:
        traits.append(("number", ring.blind("patient_number", number)))
    if identity.birth_date is not None:
        born = identity.birth_date.isoformat()
        for name in sorted(bare_names(identity.name)):
            traits.append(("person", ring.blind("patient_person", f"{name} {born}")))
    return traits


async def note(
    tx: "Transaction",
    store: "Store",
    patient_id: UUID,
    identity: PatientIdentity | None,
) -> None:
    """Keep by what a patient is met again, and with whom she shares it now.

    Of an erased one nothing is known any more, and nobody is like her.
    """
    await tx.execute("delete from patient_traits where patient_id = $1", patient_id)
    await tx.execute(
        "delete from patient_pairs where one = $1 or other = $1", patient_id
    )
    known = () if identity is None else traits_of(store.ring, identity)
    for kind, trait in known:
        await tx.execute(
            "insert into patient_traits (patient_id, kind, trait) values ($1, $2, $3)",
            patient_id,
            kind,
            trait,
        )
        await tx.execute(
            "insert into patient_pairs (one, other, kind)"
            " select least($1, patient_id), greatest($1, patient_id), $2"
            " from (select patient_id from patient_traits where kind = $2"
            "  and trait = $3 and patient_id <> $1 limit $4) alike"
            " where (select count(*) from (select from patient_traits where kind = $2"
            "  and trait = $3 limit $4 + 1) every) <= $4"
            " on conflict do nothing",
            patient_id,
            kind,
            trait,
            MOST_ALIKE,
        )
    await tx.execute(
        "update patients set traits = $2 where patient_id = $1", patient_id, _RULES
    )


async def pairs(tx: "Transaction", *, limit: int) -> list[Pair]:
    """Return patients who may be one, those who share most first; no erased ones.

    Left out is of whom somebody has said that they are one, or are not.
    """
    rows = await tx.fetch(
        "select one, other, array_agg(p.kind order by p.kind) as kinds"
        " from patient_pairs p"
        " join data_keys k on k.domain = 'patient' and k.subject = p.one"
        "  and k.wrapped is not null"
        " join data_keys o on o.domain = 'patient' and o.subject = p.other"
        "  and o.wrapped is not null"
        " where not exists (select from patient_rows r"
        "  where r.patient_id = p.one::text and r.other = p.other::text)"
        " and coalesce((select verdict from patient_decisions d"
        "  where least(d.lost, d.kept) = p.one and greatest(d.lost, d.kept) = p.other"
        "  order by d.sequence desc limit 1), '') <> 'different'"
        " group by one, other order by count(*) desc, one, other limit $1",
        limit,
    )
    return [Pair(row["one"], row["other"], tuple(row["kinds"])) for row in rows]
