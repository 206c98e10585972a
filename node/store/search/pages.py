"""Pages of a search, cut by sort key and id.

The thousandth costs as much as the first, and what is written in between neither
shifts nor repeats anything.
"""

# Clauses are put together from constants; every value is a bound argument.
# ruff: noqa: S608

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from node.store.opened import OpenedBodies, load
from node.store.resources import Stored
from node.store.search.candidates import (
    everything,
    exact,
    in_order,
    listed,
    listing,
    walkable,
    whole,
)
from node.store.search.criteria import (
    LAST_UPDATED,
    Criterion,
    Order,
    Position,
    Query,
    SortKey,
    Within,
)
from node.store.search.planning import bounds, look, rarest, same_date
from node.store.search.predicates import Predicates, constant
from node.store.search.women import query_of_one_woman

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction
    from node.store.store import Store

# How many are tried in their order before a search begins where there are fewer.
_TRIED = 1000
_COLUMN: dict[SortKey, str] = {
    "happened": "sort_date",
    "updated": "last_updated",
    "id": "resource_id",
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
    rows = await _heads(tx, store, query)
    backward = query.beside is not None and query.beside.backward
    more, rows = len(rows) > query.count, rows[: query.count]
    if backward:
        rows.reverse()
    order = query.total_order
    previous = following = None
    if rows and (more if backward else query.beside is not None):
        previous = Position(_keys(rows[0], order), backward=True)
    if rows and (more or backward):
        following = Position(_keys(rows[-1], order))
    matches = await load(tx, store, rows, bodies)
    return Page(tuple(matches), previous, following)


async def _heads(
    tx: "Transaction", store: "Store", query: Query
) -> "list[asyncpg.Record]":
    """Return the rows of one page and one more, in the order that they are read.

    Few candidates are sorted and tried one after the other. Where there are many,
    some are tried in their order, which soon fills a page with what is frequent. Only
    what stands far away in that order, and is not rare, is searched for longer.
    """
    outlook = await look(tx, store, query)
    dates = outlook.long_dates
    if outlook.few is not None:
        return await _tried(tx, store, query, outlook.few, dates)
    first = query.total_order[0].key
    walked = [one for one in query.criteria if walkable(one, first)]
    walk = await rarest(tx, store, query, walked, dates)
    rows = await _tried(tx, store, query, walk, dates, at_most=_TRIED)
    if len(rows) <= query.count and query.criteria:
        able = [one for one in query.criteria if listed(one) and whole(one)]
        walk = await rarest(tx, store, query, able, dates)
        rows = await _tried(tx, store, query, walk, dates)
    return rows


async def _tried(
    tx: "Transaction",
    store: "Store",
    query: Query,
    begun_with: Criterion | None,
    dates: Mapping[Within, datetime],
    at_most: int | None = None,
) -> "list[asyncpg.Record]":
    """Return the first of the candidates for a criterion that meet the others too.

    Of none: of all resources of the type. `at_most` so many are tried.
    """
    sql = Predicates(store, dates, one_by_one=True)
    backward = query.beside is not None and query.beside.backward
    order = [Order(o.key, o.descending ^ backward) for o in query.total_order]
    candidates = _candidates(sql, query, begun_with, order)
    clauses, rest = _bounded(sql, query, begun_with, order, at_most)
    if query.beside is not None:
        clauses.append(_beyond(sql, order, query.beside.keys))
    keys = ", ".join(f"l.{_column(one.key)}" for one in order)
    # What is listed in another order is listed whole: for twenty the planner would walk
    # along the order that is asked for, and past whatever does not belong to it.
    fence = ""
    if begun_with is not None and at_most is None:
        along = [begun_with, *bounds(query.criteria)]
        walked = all(in_order(one, order[0].key) for one in along)
        fence = "" if walked else "offset 0"
    enough = "offset 0" if at_most is None else f"limit {sql.bind(at_most)}"
    others = "".join(f", d.{_alias(o.key)}" for o in order if o.key not in _COLUMN)
    return await tx.fetch(
        "select r.resource_type, r.resource_id, r.version, r.last_updated,"
        f" r.sort_date{others} from (select d.* from (select distinct on ({keys})"
        f" {constant(query.resource_type)} as resource_type, l.*"
        f" from (select l.* from ({candidates}) l"
        f" where {' and '.join(clauses) or 'true'} {fence}) l"
        f" order by {_sorted_by(order, 'l')} {enough}) d"
        f" where {' and '.join(rest) or 'true'} limit {sql.bind(query.count + 1)}) d"
        f" join resources r on r.resource_type = {constant(query.resource_type)}"
        f" and r.resource_id = d.resource_id order by {_sorted_by(order, 'd')}",
        *sql.arguments,
    )


def _candidates(
    sql: Predicates,
    query: Query,
    begun_with: Criterion | None,
    order: Sequence[Order],
) -> str:
    """Return what lists candidates with all that they are sorted by."""
    others = [one.key for one in order if one.key not in _COLUMN]
    if begun_with is not None:
        same = same_date(query.criteria, begun_with)
        select = listing(sql, query.resource_type, begun_with, same)
    elif others and others[0] == order[0].key:
        key = others.pop(0)
        select = (
            "select resource_id, sort_date, last_updated,"
            f" earliest as {_alias(key)} from resource_dates where resource_type ="
            f" {constant(query.resource_type)} and parameter = {constant(key)}"
        )
    else:
        select = everything(query.resource_type)
    for key in others:
        name = _alias(key)
        select = (
            f"select b.*, {name}.earliest as {name} from ({select}) b"
            f" join resource_dates {name} on {name}.resource_type ="
            f" {constant(query.resource_type)} and {name}.resource_id = b.resource_id"
            f" and {name}.parameter = {constant(key)}"
        )
    return select


def _bounded(
    sql: Predicates,
    query: Query,
    begun_with: Criterion | None,
    order: Sequence[Order],
    at_most: int | None,
) -> tuple[list[str], list[str]]:
    """Return what is true of candidates, and what to ask of each of them.

    Where only some are to be tried, what is not the beginning or the end of a walk
    in their order has to count as a try.
    """
    clauses, rest = [], []
    for one in bounds(query.criteria):
        along = "happened" if one.sorts else "updated"
        if at_most is None or along == order[0].key:
            clauses.append(sql.bound(one, "l"))
        else:
            rest.append(sql.bound(one, "d"))
    for asked in query.criteria:
        if asked == begun_with and exact(asked):
            continue
        if isinstance(asked, Within) and _is_bound(asked):
            continue
        rest.append(sql.clause(asked, "d"))
    return clauses, rest


def _is_bound(asked: Within) -> bool:
    """Tell whether the bound of a comparison is all of it."""
    if asked.sorts:
        return asked.prefix in ("lt", "sa")
    return asked.parameter == LAST_UPDATED


def _sorted_by(order: Sequence[Order], row: str) -> str:
    return ", ".join(
        f"{row}.{_column(o.key)} {'desc' if o.descending else 'asc'}" for o in order
    )


def _keys(row: "asyncpg.Record", order: Sequence[Order]) -> tuple[datetime | str, ...]:
    return tuple(row[_column(one.key)] for one in order)


def _alias(key: SortKey) -> str:
    """Return what a date to sort by is called in a statement."""
    return "by_" + re.sub("[^a-z]", "_", key)


def _column(key: SortKey) -> str:
    return _COLUMN.get(key) or _alias(key)


def _beyond(
    sql: Predicates, order: Sequence[Order], keys: Sequence[datetime | str]
) -> str:
    """Return what is true of resources after `keys` in this order."""
    columns = [f"l.{_column(one.key)}" for one in order]
    values = [sql.bind(key) for key in keys]
    signs = ["<" if one.descending else ">" for one in order]
    if len(set(signs)) == 1:
        return f"({', '.join(columns)}) {signs[0]} ({', '.join(values)})"
    steps = []
    for end in range(len(order)):
        same = [f"{columns[i]} = {values[i]}" for i in range(end)]
        step = f"{columns[end]} {signs[end]} {values[end]}"
        steps.append(f"({' and '.join([*same, step])})")
    # The first term follows from the others and says where to begin.
    return f"{columns[0]} {signs[0]}= {values[0]} and ({' or '.join(steps)})"
