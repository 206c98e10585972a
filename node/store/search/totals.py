"""How many resources meet the criteria of a search: exactly, or about."""

# Clauses are put together from constants; every value is a bound argument.
# ruff: noqa: S608

from typing import TYPE_CHECKING

from node.store.search.candidates import exact, listed, listing, whole
from node.store.search.criteria import Criterion, Query
from node.store.search.planning import (
    Outlook,
    bounds,
    expected_of_type,
    look,
    plan_rows,
    same_date,
)
from node.store.search.predicates import Predicates, constant
from node.store.search.women import query_of_one_woman

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

# How many resources are looked at to tell which part of all meets the criteria, and how
# many of them have to, for that to be better than what the planner expects.
_SAMPLE = 2000
_ENOUGH = 10


async def count(tx: "Transaction", store: "Store", query: Query) -> int:
    """Return how many resources meet the criteria of `query`."""
    query = await query_of_one_woman(tx, store, query)
    return await _counted(tx, store, query, await look(tx, store, query))


async def estimate(tx: "Transaction", store: "Store", query: Query) -> int:
    """Return about how many resources meet the criteria; exact while they are few."""
    query = await query_of_one_woman(tx, store, query)
    outlook = await look(tx, store, query)
    if outlook.few is not None:
        return await _counted(tx, store, query, outlook)
    tried, met = await _sampled(tx, store, query, outlook)
    if tried < _SAMPLE:  # these were all
        return met
    if met >= _ENOUGH:
        return round(met / tried * await expected_of_type(tx, query.resource_type))
    sql = Predicates(store, outlook.long_dates)
    select = f"select 1 from resources r where {sql.where(query)}"
    return max(met, await plan_rows(tx, select, sql.arguments))


async def _counted(
    tx: "Transaction", store: "Store", query: Query, outlook: Outlook
) -> int:
    begun_with = outlook.few or _only(query)
    if begun_with is None:
        sql = Predicates(store, outlook.long_dates)
        found = f"select 1 from resources r where {sql.where(query)}"
    else:
        sql = Predicates(store, outlook.long_dates, one_by_one=True)
        same = same_date(query.criteria, begun_with)
        candidates = listing(sql, query.resource_type, begun_with, same)
        rest = [one for one in query.criteria if not _told(one, begun_with)]
        clauses = [sql.clause(one, "d") for one in rest]
        within = [sql.bound(one, "l") for one in bounds(query.criteria)]
        found = (
            f"select 1 from (select distinct on (l.resource_id)"
            f" {constant(query.resource_type)} as resource_type, l.*"
            f" from ({candidates}) l where {' and '.join(within) or 'true'}) d"
            f" where {' and '.join(clauses) or 'true'}"
        )
    return int(
        await tx.fetchval(f"select count(*) from ({found}) found", *sql.arguments)
    )


def _only(query: Query) -> Criterion | None:
    """Return what is asked if that is one thing, of which an index lists all."""
    if len(query.criteria) != 1:
        return None
    (asked,) = query.criteria
    return asked if listed(asked) and whole(asked) else None


def _told(asked: Criterion, begun_with: Criterion) -> bool:
    return asked == begun_with and exact(asked)


async def _sampled(
    tx: "Transaction", store: "Store", query: Query, outlook: Outlook
) -> tuple[int, int]:
    """Return how many of a type were looked at, and how many meet the criteria.

    Ids say nothing of what a resource is, so those that follow each other from
    somewhere on are a sample.
    """
    sql = Predicates(store, outlook.long_dates, one_by_one=True)
    clauses = [sql.clause(one, "d") for one in query.criteria]
    (row,) = await tx.fetch(
        "select count(*) as tried, count(*) filter"
        f" (where {' and '.join(clauses) or 'true'}) as met from (select resource_type,"
        " resource_id, sort_date, last_updated from resources"
        f" where resource_type = {constant(query.resource_type)}"
        f" order by resource_id limit {_SAMPLE}) d",
        *sql.arguments,
    )
    return row["tried"], row["met"]
