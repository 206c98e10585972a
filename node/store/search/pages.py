"""Pages of a search, cut by sort key and id.

The thousandth costs as much as the first, and what is written in between neither
shifts nor repeats anything.
"""

# Clauses are put together from constants; every value is a bound argument.
# ruff: noqa: S608

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from node.store.opened import OpenedBodies, load
from node.store.resources import Stored
from node.store.search.criteria import Order, Position, Query, SortKey
from node.store.search.planning import planned
from node.store.search.predicates import Predicates, constant
from node.store.search.women import query_of_one_woman

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction
    from node.store.store import Store

_COLUMN: dict[SortKey, str] = {
    "happened": "r.sort_date",
    "updated": "r.last_updated",
    "id": "r.resource_id",
}


@dataclass(frozen=True)
class Page:
    """The matches of one page, and where the ones before and after it begin."""

    matches: tuple[Stored, ...]
    previous: Position | None
    next: Position | None


async def search(
    tx: "Transaction",
    store: "Store",
    query: Query,
    bodies: OpenedBodies | None = None,
) -> Page:
    """Return one page of the newest versions that meet all criteria.

    Resources of erased patients are left out. `bodies` saves opening what was
    opened before; never give it within a transaction that writes.
    """
    query = await query_of_one_woman(tx, store, query)
    sql = await planned(tx, store, query)
    where = sql.where(query)
    backward = query.beside is not None and query.beside.backward
    order = [Order(o.key, o.descending ^ backward) for o in query.total_order]
    if query.beside is not None:
        where += f" and {_beyond(sql, order, query.beside.keys)}"
    sorted_by = ", ".join(
        f"{_column(o.key)} {'desc' if o.descending else 'asc'}" for o in order
    )
    others = [o.key for o in order if o.key not in _COLUMN]
    joined = "".join(f" {_sort_table(key)}" for key in others)
    keys = "".join(f", {_column(key)} as {_alias(key)}" for key in others)
    rows = await tx.fetch(
        "select r.resource_type, r.resource_id, r.version, r.last_updated,"
        f" r.sort_date{keys} from resources r{joined} where {where}"
        f" order by {sorted_by} limit {sql.bind(query.count + 1)}",
        *sql.arguments,
    )
    more, rows = len(rows) > query.count, rows[: query.count]
    if backward:
        rows.reverse()
    previous = following = None
    if rows and (more if backward else query.beside is not None):
        previous = Position(_keys(rows[0], order), backward=True)
    if rows and (more or backward):
        following = Position(_keys(rows[-1], order))
    matches = await load(tx, store, rows, bodies)
    return Page(tuple(matches), previous, following)


def _keys(row: "asyncpg.Record", order: Sequence[Order]) -> tuple[datetime | str, ...]:
    names = {"happened": "sort_date", "updated": "last_updated", "id": "resource_id"}
    return tuple(row[names.get(one.key) or _alias(one.key)] for one in order)


def _alias(key: SortKey) -> str:
    """Return what the table that holds a date to sort by is called in a statement."""
    return "by_" + re.sub("[^a-z]", "_", key)


def _sort_table(key: SortKey) -> str:
    name = _alias(key)
    return (
        f"join resource_dates {name} on {name}.resource_type = r.resource_type"
        f" and {name}.resource_id = r.resource_id"
        f" and {name}.parameter = {constant(key)}"
    )


def _column(key: SortKey) -> str:
    return _COLUMN.get(key) or f"{_alias(key)}.earliest"


def _beyond(
    sql: Predicates, order: Sequence[Order], keys: Sequence[datetime | str]
) -> str:
    """Return what is true of resources after `keys` in this order."""
    columns = [_column(one.key) for one in order]
    values = [sql.bind(key) for key in keys]
    signs = ["<" if one.descending else ">" for one in order]
    # Of two tables the planner would compare the row after reading them all.
    of_one = all(one.key in _COLUMN for one in order)
    if of_one and len(set(signs)) == 1:
        return f"({', '.join(columns)}) {signs[0]} ({', '.join(values)})"
    steps = []
    for end in range(len(order)):
        same = [f"{columns[i]} = {values[i]}" for i in range(end)]
        step = f"{columns[end]} {signs[end]} {values[end]}"
        steps.append(f"({' and '.join([*same, step])})")
    # The first term follows from the others and says where to begin.
    return f"{columns[0]} {signs[0]}= {values[0]} and ({' or '.join(steps)})"
