"""How many resources meet the criteria of a search: exactly, or about."""

# Clauses are put together from constants; every value is a bound argument.
# ruff: noqa: S608

import json
from typing import TYPE_CHECKING

from node.store.search.criteria import Query
from node.store.search.planning import planned
from node.store.search.women import query_of_one_woman

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

# How far one search looks for its number of matches before it estimates.
_COUNTED = 1000


async def count(tx: "Transaction", store: "Store", query: Query) -> int:
    """Return how many resources meet the criteria of `query`."""
    query = await query_of_one_woman(tx, store, query)
    sql = await planned(tx, store, query)
    where = sql.where(query)
    number = await tx.fetchval(
        f"select count(*) from resources r where {where}",
        *sql.arguments,
    )
    return int(number)


async def estimate(tx: "Transaction", store: "Store", query: Query) -> int:
    """Return about how many resources meet the criteria; exact while they are few."""
    query = await query_of_one_woman(tx, store, query)
    sql = await planned(tx, store, query)
    where = sql.where(query)
    found = await tx.fetchval(
        "select count(*) from (select 1 from resources r"
        f" where {where} limit {sql.bind(_COUNTED + 1)}) as few",
        *sql.arguments,
    )
    if found <= _COUNTED:
        return int(found)
    sql = await planned(tx, store, query)
    where = sql.where(query)
    plan = await tx.fetchval(
        f"explain (format json) select 1 from resources r where {where}",
        *sql.arguments,
    )
    return max(int(found), int(json.loads(plan)[0]["Plan"]["Plan Rows"]))
