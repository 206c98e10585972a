"""Every row of a woman: what is asked through one finds what refers to the others."""

# Clauses are put together from constants; every value is a bound argument.
# ruff: noqa: S608

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from node.store import merges
from node.store.search.criteria import (
    AnyOf,
    Chained,
    Criterion,
    IdIs,
    Query,
    ReferredBy,
    RefersTo,
)
from node.store.search.predicates import Predicates

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

PATIENT = "Patient"
# By these a resource is a woman's; others tell one row of hers from another.
HERS = ("patient", "subject")
_OF_PATIENTS = (None, PATIENT)


async def query_of_one_woman(tx: "Transaction", store: "Store", query: Query) -> Query:
    """Return a query that finds what belongs to any row of the women it asks for."""
    criteria = await of_one_woman(tx, store, query.criteria, query.resource_type)
    return query if criteria == query.criteria else replace(query, criteria=criteria)


async def of_one_woman(
    tx: "Transaction",
    store: "Store",
    criteria: tuple[Criterion, ...],
    resource_type: str = "",
) -> tuple[Criterion, ...]:
    """Return criteria that are met through every row of a woman who was merged.

    Who asks for what refers to one of her rows, by id or by what that row holds, finds
    what refers to the others. A Patient is found by what it says itself, and leads to
    the other rows by its links. Nothing changes while nobody was merged.
    """
    if not _through_patients(criteria):
        return criteria
    if not await tx.fetchval("select exists (select from patient_rows)"):
        return criteria
    return tuple([await _widened(tx, store, c, resource_type) for c in criteria])


def _through_patients(criteria: Sequence[Criterion]) -> bool:
    """Tell whether any criterion could ask for a patient."""
    for asked in criteria:
        if isinstance(asked, Chained | ReferredBy):
            return True
        if isinstance(asked, RefersTo):
            of_hers = asked.parameter in HERS
            if of_hers and any(kind in _OF_PATIENTS for kind, _ in asked.targets):
                return True
        elif isinstance(asked, AnyOf) and any(
            map(_through_patients, asked.alternatives)
        ):
            return True
    return False


async def _widened(
    tx: "Transaction", store: "Store", asked: Criterion, resource_type: str
) -> Criterion:
    match asked:
        case RefersTo(parameter, targets) if parameter in HERS:
            ids = [one for kind, one in targets if kind in _OF_PATIENTS]
            others = await merges.named_with(tx, ids)
            more = [(kind, o) for kind, i in targets for o in others.get(i, ())]
            return RefersTo(parameter, tuple(dict.fromkeys((*targets, *more))))
        case Chained(parameter, target_type, inner):
            inner = await _widened(tx, store, inner, target_type)
            asked = Chained(parameter, target_type, inner)
            if target_type != PATIENT or parameter not in HERS:
                return asked
            hers = tuple((PATIENT, one) for one in await _others(tx, store, inner))
            return _either(asked, RefersTo(parameter, hers)) if hers else asked
        case ReferredBy(source_type, parameter, inner):
            inner = await _widened(tx, store, inner, source_type)
            asked = ReferredBy(source_type, parameter, inner)
            if resource_type != PATIENT or parameter not in HERS:
                return asked
            found = await _others(tx, store, asked)
            return _either(asked, IdIs(found)) if found else asked
        case AnyOf(alternatives):
            told = [
                tuple([await _widened(tx, store, c, resource_type) for c in together])
                for together in alternatives
            ]
            return AnyOf(tuple(told))
    return asked


def _either(one: Criterion, other: Criterion) -> AnyOf:
    return AnyOf(((one,), (other,)))


async def _others(
    tx: "Transaction", store: "Store", asked: Criterion
) -> tuple[str, ...]:
    """Return the other rows of the women, among those merged, who meet a criterion."""
    sql = Predicates(store)
    rows = await tx.fetch(
        "select distinct h.other from patient_rows h join resources r"
        f" on r.resource_type = '{PATIENT}' and r.resource_id = h.patient_id"
        f" where {sql.clause(asked, 'r')} order by 1",
        *sql.arguments,
    )
    return tuple(row["other"] for row in rows)
