"""What the planner cannot guess of a search, looked up before it is planned."""

# Clauses are put together from constants; every value is a bound argument.
# ruff: noqa: S608

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from node.store.search.criteria import AnyOf, Criterion, Query, Within, listed
from node.store.search.predicates import LONGEST_DATE, Predicates, before

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

# Up to how many resources it is quicker to sort than to try others in order.
_FEW = 2000
_DAY = timedelta(days=1)


async def planned(tx: "Transaction", store: "Store", query: Query) -> Predicates:
    """Return what makes SQL of a query, knowing what the planner cannot guess."""
    few = {
        asked
        for asked in query.criteria
        if isinstance(asked, AnyOf) and await _are_few(tx, store, query, asked)
    }
    dates = await _long_dates(tx, query)
    return Predicates(store, query.resource_type, dates, frozenset(few))


async def _are_few(
    tx: "Transaction", store: "Store", query: Query, asked: AnyOf
) -> bool:
    """Tell whether so few meet one of several alternatives that a list of them helps.

    With a list a search for what is rare begins there; without one it tries the
    resources in their order, which soon finds what is frequent.
    """
    if len(asked.alternatives) < 2:
        return False
    if not all(len(one) == 1 and listed(one[0]) for one in asked.alternatives):
        return False
    sql = Predicates(store, query.resource_type)
    found = await tx.fetchval(
        f"select count(*) from (select 1 from ({sql.ids(asked)}) as listed"
        f" limit {sql.bind(_FEW + 1)}) as few",
        *sql.arguments,
    )
    return bool(found <= _FEW)


async def _long_dates(tx: "Transaction", query: Query) -> dict[Within, datetime]:
    """Return after what every date begins that can reach beyond those asked for.

    A month could begin long before and reach into a day. There are nearly none: to
    look once is cheaper than to allow for a year before each.
    """
    found = {}
    for asked in _sorting(query.criteria):
        if asked.prefix not in ("gt", "ge"):
            continue
        latest_start = before(asked, _DAY)
        first = await tx.fetchval(
            "select min(earliest) from resource_dates where resource_type = $1"
            " and parameter = $2 and latest - earliest > interval '1 day'"
            " and earliest > $3 and earliest <= $4 and latest > $5",
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


def _sorting(criteria: Sequence[Criterion]) -> Iterator[Within]:
    for asked in criteria:
        if isinstance(asked, Within) and asked.sorts:
            yield asked
        elif isinstance(asked, AnyOf):
            for together in asked.alternatives:
                yield from _sorting(together)
