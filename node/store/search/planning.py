"""With which candidates a search begins: what the planner cannot guess is looked up.

It takes criteria for independent of each other and of the order, and knows little of
where references lead. A page that it plans by that may read everything.
"""

# Clauses are put together from constants; every value is a bound argument.
# ruff: noqa: S608

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from node.store.search.candidates import (
    FEW,
    everything,
    listed,
    listing,
    number,
    points,
)
from node.store.search.criteria import (
    LAST_UPDATED,
    AnyOf,
    Criterion,
    Query,
    Within,
)
from node.store.search.predicates import LONGEST_DATE, Predicates, before

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Outlook:
    """What is known of a search before it is made.

    `few` is a criterion for which there are so few candidates that they are soon
    sorted, None when there is none; `long_dates` says where dates have to be looked
    for that reach into those asked for.
    """

    few: Criterion | None
    long_dates: Mapping[Within, datetime]


async def look(tx: "Transaction", store: "Store", query: Query) -> Outlook:
    """Return what is known of a search before it is made."""
    dates = await _long_dates(tx, query)
    able = [one for one in query.criteria if _counts(query.criteria, one)]
    # Who asks for somebody's is mostly answered by that: the rest is not counted.
    for together in (
        [one for one in able if points(one)],
        [one for one in able if not points(one)],
    ):
        found = await _numbers(tx, store, query, together, dates)
        if found and min(found) <= FEW:
            return Outlook(together[found.index(min(found))], dates)
    return Outlook(None, dates)


def _counts(criteria: Sequence[Criterion], asked: Criterion) -> bool:
    """Tell whether candidates are to be counted: once for all asked of one date."""
    same = same_date(criteria, asked)
    return listed(asked) and (not same or same[0] == asked)


async def _numbers(
    tx: "Transaction",
    store: "Store",
    query: Query,
    asked: Sequence[Criterion],
    dates: Mapping[Within, datetime],
) -> list[int]:
    """Return how many candidates there are for each criterion, as far as few."""
    if not asked:
        return []
    sql = Predicates(store, dates)
    numbers = [
        number(sql, query.resource_type, one, _bounds_with(query.criteria, one))
        for one in asked
    ]
    (row,) = await tx.fetch(f"select {', '.join(numbers)}", *sql.arguments)
    return [int(one) for one in row]


async def rarest(
    tx: "Transaction",
    store: "Store",
    query: Query,
    among: Sequence[Criterion],
    dates: Mapping[Within, datetime],
) -> Criterion | None:
    """Return the criterion with the fewest candidates by the planner's statistics."""
    if len(among) < 2:
        return among[0] if among else None
    expected = []
    for one in among:
        sql = Predicates(store, dates)
        select = listing(sql, query.resource_type, one, same_date(query.criteria, one))
        within = [sql.bound(b, "l") for b in bounds(query.criteria) if b != one]
        clause = " and ".join(within) or "true"
        expected.append(
            await plan_rows(
                tx, f"select 1 from ({select}) l where {clause}", sql.arguments
            )
        )
    return among[expected.index(min(expected))]


async def plan_rows(tx: "Transaction", select: str, arguments: Sequence[object]) -> int:
    """Return how many rows the planner expects of a statement."""
    plan = await tx.fetchval(f"explain (format json) {select}", *arguments)
    return int(json.loads(plan)[0]["Plan"]["Plan Rows"])


async def expected_of_type(tx: "Transaction", resource_type: str) -> int:
    """Return about how many resources of a type there are."""
    return await plan_rows(tx, everything(resource_type), ())


def bounds(criteria: Sequence[Criterion]) -> list[Within]:
    """Return the criteria that the sort keys of a resource answer, or narrow down."""
    return [
        one
        for one in criteria
        if isinstance(one, Within) and (one.sorts or one.parameter == LAST_UPDATED)
    ]


def _bounds_with(criteria: Sequence[Criterion], asked: Criterion) -> list[Within]:
    """Return the bounds by which an index is entered together with a criterion."""
    if isinstance(asked, Within):
        return same_date(criteria, asked)
    return [one for one in bounds(criteria) if one.sorts]


def same_date(criteria: Sequence[Criterion], asked: Criterion) -> list[Within]:
    """Return all that is asked of the date of a criterion.

    A resource has one of each: what one comparison leaves, the others narrow down.
    """
    return [
        one
        for one in criteria
        if isinstance(one, Within)
        and isinstance(asked, Within)
        and one.parameter == asked.parameter
        and listed(one)
    ]


async def _long_dates(tx: "Transaction", query: Query) -> dict[Within, datetime]:
    """Return after what every date begins that can reach beyond those asked for.

    A month could begin long before and reach into a day. There are nearly none: to
    look once is cheaper than to allow for a year before each.
    """
    found = {}
    for asked in _dates_of(query.criteria):
        if asked.prefix not in ("gt", "ge"):
            continue
        latest_start = before(asked, _DAY)
        first = await tx.fetchval(
            # Fenced: nothing but the short index of long dates is worth reading.
            "select min(earliest) from (select earliest from resource_dates"
            " where resource_type = $1 and parameter = $2"
            " and latest - earliest > interval '1 day'"
            " and earliest > $3 and earliest <= $4 and latest > $5 offset 0) d",
            query.resource_type,
            asked.parameter,
            before(asked, LONGEST_DATE),
            latest_start,
            asked.earliest,
        )
        if first is None:
            found[asked] = latest_start
        else:  # after which, not from which on
            found[asked] = first - timedelta(microseconds=1)
    return found


def _dates_of(criteria: Sequence[Criterion]) -> Iterator[Within]:
    for asked in criteria:
        if isinstance(asked, Within) and asked.parameter != LAST_UPDATED:
            yield asked
        elif isinstance(asked, AnyOf):
            for together in asked.alternatives:
                yield from _dates_of(together)
