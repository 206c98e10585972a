"""Finding FHIR resources: criteria, sort keys and pages as SQL over the indexes.

Nothing here knows FHIR: parameters are names, values are tokens, intervals and
references. Pages are cut by sort key and id, so the thousandth costs as much as
the first, and what is written in between neither shifts nor repeats anything.
"""

# Clauses are put together from constants; every value is a bound argument.
# ruff: noqa: S608

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from node.store import merges
from node.store.opened import OpenedBodies, load
from node.store.resources import NEVER, Stored, blind

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction
    from node.store.store import Store

LAST_UPDATED = "_lastUpdated"
# "happened", "updated", "id", or the name of a date that every resource of the type
# has in the index.
SortKey = str
# By these a resource is a woman's; others tell one row of hers from another.
_HERS = ("patient", "subject")
_PATIENT, _OF_PATIENTS = "Patient", (None, "Patient")
_NAME = re.compile(r"[A-Za-z_][A-Za-z_:-]{0,63}")
# How far one search looks for its number of matches before it estimates.
_COUNTED = 1000
# Up to how many resources it is quicker to sort than to try others in order.
_FEW = 2000
# The coarsest date is a year; nearly all are a day or a moment.
_LONGEST_DATE = timedelta(days=367)
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class TokenIs:
    """Has one of `values` (system or None for any, code or None for any)."""

    parameter: str
    values: tuple[tuple[str | None, str | None], ...]
    identifying: bool = False
    negated: bool = False


@dataclass(frozen=True)
class RefersTo:
    """Refers to one of `targets` (type or None for any, id)."""

    parameter: str
    targets: tuple[tuple[str | None, str], ...]


@dataclass(frozen=True)
class Chained:
    """Refers to a resource that itself meets `criterion` (one level of chaining)."""

    parameter: str
    target_type: str
    criterion: "Criterion"


@dataclass(frozen=True)
class ReferredBy:
    """Is referred to, through `parameter`, by one that meets `criterion` (_has)."""

    source_type: str
    parameter: str
    criterion: "Criterion"


@dataclass(frozen=True)
class Within:
    """Has a date that compares by `prefix` (FHIR R4 3.1.1.5.6) with an interval.

    The parameter `_lastUpdated` is the time of the newest version. `sorts` tells
    that the date is also the one that the type is sorted by; a resource has one of it.
    """

    parameter: str
    prefix: str
    earliest: datetime
    latest: datetime
    sorts: bool = False


@dataclass(frozen=True)
class IdIs:
    """Is one of `ids`."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class Has:
    """Has any value for a parameter, or none (modifier :missing)."""

    parameter: str
    kind: Literal["token", "reference", "date"]
    present: bool


@dataclass(frozen=True)
class AnyOf:
    """Meets all criteria of at least one alternative; none at all: is nothing."""

    alternatives: "tuple[tuple[Criterion, ...], ...]"


Criterion = TokenIs | RefersTo | Chained | ReferredBy | Within | IdIs | Has | AnyOf


@dataclass(frozen=True)
class Order:
    """One sort key, descending or not."""

    key: SortKey
    descending: bool = False


@dataclass(frozen=True)
class Position:
    """The sort keys of the resource beside which a page begins.

    `backward` asks for the page before it.
    """

    keys: tuple[datetime | str, ...]
    backward: bool = False


@dataclass(frozen=True)
class Query:
    """A search; `order` always ends with the id, which makes it total."""

    resource_type: str
    criteria: tuple[Criterion, ...] = ()
    order: tuple[Order, ...] = (Order("updated", descending=True),)
    count: int = 50
    beside: Position | None = None

    @property
    def total_order(self) -> tuple[Order, ...]:
        """Return the sort keys up to the one that no two resources share."""
        kept: list[Order] = []
        for one in (*self.order, Order("id", self.order[0].descending)):
            kept.append(one)
            if one.key == "id":
                break
        return tuple(kept)


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
    query = await _of_one_woman(tx, store, query)
    sql = await _planned(tx, store, query)
    where = sql.where(query)
    backward = query.beside is not None and query.beside.backward
    order = [Order(o.key, o.descending ^ backward) for o in query.total_order]
    if query.beside is not None:
        where += f" and {sql.beyond(order, query.beside.keys)}"
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
        f" and {name}.parameter = {_constant(key)}"
    )


def _column(key: SortKey) -> str:
    return _COLUMN.get(key) or f"{_alias(key)}.earliest"


def condition(store: "Store", criteria: Sequence[Criterion]) -> tuple[str, list[Any]]:
    """Return what is true of the rows `r` of resources that meet all criteria.

    With it come its arguments, the first of their statement.
    """
    sql = _Sql(store)
    clauses = [sql.clause(criterion, "r") for criterion in criteria]
    return " and ".join(clauses) or "true", sql.arguments


async def count(tx: "Transaction", store: "Store", query: Query) -> int:
    """Return how many resources meet the criteria of `query`."""
    query = await _of_one_woman(tx, store, query)
    sql = await _planned(tx, store, query)
    where = sql.where(query)
    number = await tx.fetchval(
        f"select count(*) from resources r where {where}",
        *sql.arguments,
    )
    return int(number)


async def estimate(tx: "Transaction", store: "Store", query: Query) -> int:
    """Return about how many resources meet the criteria; exact while they are few."""
    query = await _of_one_woman(tx, store, query)
    sql = await _planned(tx, store, query)
    where = sql.where(query)
    found = await tx.fetchval(
        "select count(*) from (select 1 from resources r"
        f" where {where} limit {sql.bind(_COUNTED + 1)}) as few",
        *sql.arguments,
    )
    if found <= _COUNTED:
        return int(found)
    sql = await _planned(tx, store, query)
    where = sql.where(query)
    plan = await tx.fetchval(
        f"explain (format json) select 1 from resources r where {where}",
        *sql.arguments,
    )
    return max(int(found), int(json.loads(plan)[0]["Plan"]["Plan Rows"]))


async def referred(
    tx: "Transaction",
    store: "Store",
    resource_type: str,
    ids: Sequence[str],
    parameter: str,
    target_type: str | None = None,
    *,
    limit: int,
    bodies: OpenedBodies | None = None,
) -> list[Stored]:
    """Return up to `limit` resources to which `ids` refer (_include)."""
    rows = await tx.fetch(
        "select r.resource_type, r.resource_id, r.version"
        " from (select distinct x.target_type, x.target_id from resource_references x"
        " where x.resource_type = $1 and x.resource_id = any($2) and x.parameter = $3"
        " and ($4::text is null or x.target_type = $4)) as x"
        " join resources r"
        " on r.resource_type = x.target_type and r.resource_id = x.target_id"
        " order by r.resource_type, r.resource_id limit $5",
        resource_type,
        list(ids),
        parameter,
        target_type,
        limit,
    )
    return await load(tx, store, rows, bodies)


async def referring(
    tx: "Transaction",
    store: "Store",
    resource_type: str,
    parameter: str,
    target_type: str,
    ids: Sequence[str],
    *,
    limit: int,
    bodies: OpenedBodies | None = None,
) -> list[Stored]:
    """Return up to `limit` resources that refer to one of `ids` (_revinclude)."""
    if target_type == _PATIENT and parameter in _HERS:
        rows_of = await merges.named_with(tx, ids)
        ids = [*ids, *(one for others in rows_of.values() for one in others)]
    rows = await tx.fetch(
        "select r.resource_type, r.resource_id, r.version"
        " from (select distinct x.resource_type, x.resource_id"
        " from resource_references x where x.resource_type = $1 and x.parameter = $2"
        " and x.target_type = $3 and x.target_id = any($4)) as x"
        " join resources r using (resource_type, resource_id)"
        " order by r.resource_id limit $5",
        resource_type,
        parameter,
        target_type,
        list(ids),
        limit,
    )
    return await load(tx, store, rows, bodies)


@dataclass(frozen=True)
class Belonging:
    """Which resources of a patient are wanted: by last update and clinical time.

    What has no clinical time belongs to all of them.
    """

    since: datetime
    start: datetime
    end: datetime


async def of_patient(
    tx: "Transaction",
    store: "Store",
    patient_ids: Sequence[UUID],
    wanted: Belonging,
    *,
    types: Sequence[str],
    after: tuple[str, str] | None,
    count: int,
    bodies: OpenedBodies | None = None,
) -> tuple[list[Stored], tuple[str, str] | None]:
    """Return a page of all that belongs to a patient, and after what the next begins.

    The Patient comes first, every row of her, then type by type.
    """
    rows = await tx.fetch(
        "select r.resource_type, r.resource_id, r.version from resources r"
        " where r.patient_id = any($1) and r.resource_type = any($2)"
        " and r.last_updated >= $3"
        " and (r.sort_date = $4 or r.sort_date >= $5 and r.sort_date < $6)"
        " and ($7::text is null or"
        " (r.resource_type <> 'Patient', r.resource_type, r.resource_id)"
        " > ($7 <> 'Patient', $7, $8::text))"
        " order by r.resource_type <> 'Patient', r.resource_type, r.resource_id"
        " limit $9",
        list(patient_ids),
        list(types),
        wanted.since,
        NEVER,
        wanted.start,
        wanted.end,
        *(after or (None, None)),
        count + 1,
    )
    following = None
    if len(rows) > count:
        last = rows[count - 1]
        following = (last["resource_type"], last["resource_id"])
    return await load(tx, store, rows[:count], bodies), following


async def shared(
    tx: "Transaction",
    store: "Store",
    sources: Sequence[Stored],
    *,
    types: Sequence[str],
    bodies: OpenedBodies | None = None,
) -> list[Stored]:
    """Return what `sources` refer to that is no patient's own: devices, people."""
    rows = await tx.fetch(
        "select r.resource_type, r.resource_id, r.version"
        " from (select distinct x.target_type, x.target_id"
        " from unnest($1::text[], $2::text[]) as source (type, id)"
        " join resource_references x"
        " on x.resource_type = source.type and x.resource_id = source.id"
        " where x.target_type = any($3)) as x"
        " join resources r"
        " on r.resource_type = x.target_type and r.resource_id = x.target_id"
        " where r.patient_id is null order by r.resource_type, r.resource_id",
        [one.resource_type for one in sources],
        [one.resource_id for one in sources],
        list(types),
    )
    return await load(tx, store, rows, bodies)


# --- criteria as SQL ----------------------------------------------------------

_COLUMN: dict[SortKey, str] = {
    "happened": "r.sort_date",
    "updated": "r.last_updated",
    "id": "r.resource_id",
}
# How an indexed interval i compares with the asked one q, as `earliest` and
# `latest` of both; FHIR R4 3.1.1.5.6 with half-open intervals.
_COMPARISONS = {
    # The middle term follows from the others and lets the planner know how few.
    "eq": "{i}.earliest >= {lo} and {i}.earliest < {hi} and {i}.latest <= {hi}",
    "ne": "not ({i}.earliest >= {lo} and {i}.latest <= {hi})",
    "gt": "{i}.latest > {hi}",
    "lt": "{i}.earliest < {lo}",
    "ge": "({i}.latest > {hi} or {i}.earliest >= {lo})",
    "le": "({i}.earliest < {lo} or {i}.earliest < {hi} and {i}.latest <= {hi})",
    "sa": "{i}.earliest >= {hi}",
    "eb": "{i}.latest <= {lo}",
}
_INSTANT_COMPARISONS = {
    "eq": "{i} >= {lo} and {i} < {hi}",
    "ne": "not ({i} >= {lo} and {i} < {hi})",
    "gt": "{i} >= {hi}",
    "lt": "{i} < {lo}",
    "ge": "{i} >= {lo}",
    "le": "{i} < {hi}",
    "sa": "{i} >= {hi}",
    "eb": "{i} < {lo}",
}
# The same of a date that is the sort key {s}, so that a walk along it begins and ends
# where something can be found and few rows have to be looked up. {inside} asks the
# index for the comparison itself; no date reaches beyond a moment from before {far}.
_SORTED_COMPARISONS = {
    "eq": "{s} >= {lo} and {s} < {hi} and {inside}",
    "ne": "{inside}",
    "gt": "{s} > {far} and ({s} >= {hi} or {inside})",
    "lt": "{s} < {lo} and {s} > {never}",
    "ge": "{s} > {far} and ({s} >= {lo} or {inside})",
    "le": "{s} < {hi} and {s} > {never} and ({s} < {lo} or {inside})",
    "sa": "{s} >= {hi}",
    "eb": "{s} < {lo} and {s} > {never} and {inside}",
}
PREFIXES = frozenset(_COMPARISONS)
_TABLES = {
    "token": "resource_tokens",
    "reference": "resource_references",
    "date": "resource_dates",
}


@dataclass
class _Sql:
    """Collects arguments while criteria become one WHERE clause."""

    store: "Store"
    resource_type: str = ""
    long_dates: Mapping[Within, datetime] = field(default_factory=dict)
    few: frozenset[AnyOf] = frozenset()
    arguments: list[Any] = field(default_factory=list)

    def bind(self, value: Any) -> str:
        self.arguments.append(value)
        return f"${len(self.arguments)}"

    def where(self, query: Query) -> str:
        clauses = [f"r.resource_type = {_constant(query.resource_type)}"]
        clauses += [self.clause(c, "r") for c in query.criteria]
        return " and ".join(clauses)

    def beyond(self, order: Sequence[Order], keys: Sequence[datetime | str]) -> str:
        """Return what is true of resources after `keys` in this order."""
        columns = [_column(one.key) for one in order]
        values = [self.bind(key) for key in keys]
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

    def clause(self, criterion: Criterion, row: str) -> str:
        """Return what is true of the rows `row` that meet a criterion."""
        match criterion:
            case IdIs(ids):
                return f"{row}.resource_id = any({self.bind(list(ids))})"
            case TokenIs():
                return self._token(criterion, row)
            case RefersTo():
                return self._refers(criterion, row)
            case Within():
                return self._within(criterion, row)
            case Has(parameter, kind, present):
                inside = self._exists(_TABLES[kind], row, parameter, "true")
                return inside if present else f"not {inside}"
            case AnyOf() if row == "r" and criterion in self.few:
                return f"r.resource_id in ({self.ids(criterion)})"
            case AnyOf(alternatives):
                parts = [
                    " and ".join(self.clause(one, row) for one in together) or "true"
                    for together in alternatives
                ]
                return f"({' or '.join(f'({p})' for p in parts) or 'false'})"
            case ReferredBy(source_type, parameter, inner):
                return (
                    "exists (select 1 from resource_references h join resources t"
                    f" on t.resource_type = {_constant(source_type)}"
                    " and t.resource_id = h.resource_id"
                    f" where h.resource_type = {_constant(source_type)}"
                    f" and h.parameter = {_constant(parameter)}"
                    f" and h.target_type = {row}.resource_type"
                    f" and h.target_id = {row}.resource_id"
                    f" and {self.clause(inner, 't')})"
                )
            case Chained(parameter, target_type, inner):
                its_type = _constant(target_type)
                condition = f"x.target_type = {its_type} and "
                if _listed(inner) and not isinstance(inner, Chained):
                    # What has a row in the index is there: nobody has to look.
                    condition += self.clause(inner, "x")
                else:
                    condition += (
                        f"exists (select 1 from resources t where {its_type}"
                        " = t.resource_type and t.resource_id = x.target_id"
                        f" and {self.clause(inner, 't')})"
                    )
                return self._exists("resource_references", row, parameter, condition)

    def _exists(self, table: str, row: str, parameter: str, condition: str) -> str:
        """Return that a resource has such a row in the index.

        The resource is a row of `resources`, or what the reference `x` refers to.
        Of no row in particular: return what lists the ids of all that have one.
        """
        x, of = _indexed(row), "target" if row == "x" else "resource"
        if not row:
            return (
                f"select {x}.resource_id from {table} {x}"
                f" where {x}.resource_type = {_constant(self.resource_type)}"
                f" and {x}.parameter = {_constant(parameter)} and ({condition})"
            )
        return (
            f"exists (select 1 from {table} {x}"
            f" where {x}.resource_type = {row}.{of}_type"
            f" and {x}.resource_id = {row}.{of}_id"
            f" and {x}.parameter = {_constant(parameter)} and ({condition}))"
        )

    def ids(self, asked: AnyOf) -> str:
        """Return what lists the ids of all that meet one of some alternatives."""
        return " union all ".join(self.clause(one, "") for (one,) in asked.alternatives)

    def _token(self, wanted: TokenIs, row: str) -> str:
        x = _indexed(row)
        alternatives = []
        for system, value in wanted.values:
            parts = []
            if value is not None:
                stored = blind(self.store, wanted.parameter, value, wanted.identifying)
                parts.append(f"{x}.value = {self.bind(stored)}")
            if system is not None:
                parts.append(f"{x}.system = {self.bind(system)}")
            alternatives.append(" and ".join(parts) or "true")
        condition = " or ".join(f"({a})" for a in alternatives) or "false"
        inside = self._exists("resource_tokens", row, wanted.parameter, condition)
        return f"not {inside}" if wanted.negated else inside

    def _refers(self, wanted: RefersTo, row: str) -> str:
        x = _indexed(row)
        by_type: dict[str | None, list[str]] = {}
        for target_type, target_id in wanted.targets:
            by_type.setdefault(target_type, []).append(target_id)
        alternatives = []
        for target_type, ids in by_type.items():
            if len(ids) == 1:
                part = f"{x}.target_id = {self.bind(ids[0])}"
            else:  # of a woman's rows, or of all whom a chain finds
                part = f"{x}.target_id = any({self.bind(ids)})"
            if target_type is not None:
                part += f" and {x}.target_type = {self.bind(target_type)}"
            alternatives.append(f"({part})")
        condition = " or ".join(alternatives) or "false"
        return self._exists("resource_references", row, wanted.parameter, condition)

    def _within(self, wanted: Within, row: str) -> str:
        if wanted.parameter == LAST_UPDATED:
            template = _INSTANT_COMPARISONS[wanted.prefix]
            return f"({self._compare(template, wanted, i=f'{row}.last_updated')})"
        x = _indexed(row)
        template = _COMPARISONS[wanted.prefix]
        if not wanted.sorts:
            condition = self._compare(template, wanted, i=x)
            return self._exists("resource_dates", row, wanted.parameter, condition)
        around = _SORTED_COMPARISONS[wanted.prefix]
        inside = ""
        if "{inside}" in around:
            condition = self._compare(template, wanted, i=x)
            inside = self._exists("resource_dates", row, wanted.parameter, condition)
        sort_date = f"{row}.sort_date"
        return f"({self._compare(around, wanted, s=sort_date, inside=inside)})"

    def _compare(self, template: str, wanted: Within, **names: str) -> str:
        """Fill in a comparison; PostgreSQL refuses an argument that is not used."""
        for name, value in (
            ("lo", wanted.earliest),
            ("hi", wanted.latest),
            ("never", NEVER),
            ("far", self.long_dates.get(wanted) or _before(wanted, _LONGEST_DATE)),
        ):
            if f"{{{name}}}" in template:
                names[name] = self.bind(value)
        return template.format(**names)


async def _of_one_woman(tx: "Transaction", store: "Store", query: Query) -> Query:
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
            of_hers = asked.parameter in _HERS
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
        case RefersTo(parameter, targets) if parameter in _HERS:
            ids = [one for kind, one in targets if kind in _OF_PATIENTS]
            others = await merges.named_with(tx, ids)
            more = [(kind, o) for kind, i in targets for o in others.get(i, ())]
            return RefersTo(parameter, tuple(dict.fromkeys((*targets, *more))))
        case Chained(parameter, target_type, inner):
            inner = await _widened(tx, store, inner, target_type)
            asked = Chained(parameter, target_type, inner)
            if target_type != _PATIENT or parameter not in _HERS:
                return asked
            hers = tuple((_PATIENT, one) for one in await _others(tx, store, inner))
            return _either(asked, RefersTo(parameter, hers)) if hers else asked
        case ReferredBy(source_type, parameter, inner):
            inner = await _widened(tx, store, inner, source_type)
            asked = ReferredBy(source_type, parameter, inner)
            if resource_type != _PATIENT or parameter not in _HERS:
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
    sql = _Sql(store, _PATIENT)
    rows = await tx.fetch(
        "select distinct h.other from patient_rows h join resources r"
        f" on r.resource_type = {_constant(_PATIENT)} and r.resource_id = h.patient_id"
        f" where {sql.clause(asked, 'r')} order by 1",
        *sql.arguments,
    )
    return tuple(row["other"] for row in rows)


async def _planned(tx: "Transaction", store: "Store", query: Query) -> _Sql:
    """Return what makes SQL of a query, knowing what the planner cannot guess."""
    few = {
        asked
        for asked in query.criteria
        if isinstance(asked, AnyOf) and await _are_few(tx, store, query, asked)
    }
    dates = await _long_dates(tx, query)
    return _Sql(store, query.resource_type, dates, frozenset(few))


async def _are_few(
    tx: "Transaction", store: "Store", query: Query, asked: AnyOf
) -> bool:
    """Tell whether so few meet one of several alternatives that a list of them helps.

    With a list a search for what is rare begins there; without one it tries the
    resources in their order, which soon finds what is frequent.
    """
    if len(asked.alternatives) < 2:
        return False
    if not all(len(one) == 1 and _listed(one[0]) for one in asked.alternatives):
        return False
    sql = _Sql(store, query.resource_type)
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
        latest_start = _before(asked, _DAY)
        first = await tx.fetchval(
            "select min(earliest) from resource_dates where resource_type = $1"
            " and parameter = $2 and latest - earliest > interval '1 day'"
            " and earliest > $3 and earliest <= $4 and latest > $5",
            query.resource_type,
            asked.parameter,
            _before(asked, _LONGEST_DATE),
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


def overlaps(asked: Within, earliest: datetime, latest: datetime) -> bool:
    """Tell whether an interval compares as asked, without the index."""
    lo, hi = asked.earliest, asked.latest
    if asked.parameter == LAST_UPDATED:
        return {
            "eq": lo <= earliest < hi,
            "ne": not lo <= earliest < hi,
            "gt": earliest >= hi,
            "lt": earliest < lo,
            "ge": earliest >= lo,
            "le": earliest < hi,
            "sa": earliest >= hi,
            "eb": earliest < lo,
        }[asked.prefix]
    return {
        "eq": lo <= earliest and latest <= hi,
        "ne": not (lo <= earliest and latest <= hi),
        "gt": latest > hi,
        "lt": earliest < lo,
        "ge": latest > hi or earliest >= lo,
        "le": earliest < lo or (earliest < hi and latest <= hi),
        "sa": earliest >= hi,
        "eb": latest <= lo,
    }[asked.prefix]


def _before(wanted: Within, reach: timedelta) -> datetime:
    """Return what the beginning of any date that reaches into `wanted` is after."""
    earliest = datetime.min.replace(tzinfo=wanted.earliest.tzinfo)
    enough = wanted.earliest - earliest > reach
    return wanted.earliest - reach if enough else earliest


def _indexed(row: str) -> str:
    """Return what the index of a row is called: `y` beside a reference `x`."""
    return "x" if row in ("r", "") else "y"


def _listed(criterion: Criterion) -> bool:
    """Tell whether rows of the index are what meets a criterion, and nothing else."""
    if isinstance(criterion, TokenIs):
        return not criterion.negated
    return isinstance(criterion, RefersTo | Chained)


def _constant(name: str) -> str:
    """Return a name of our own tables as an SQL literal, for the planner to see."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name of a type or parameter")
    return f"'{name}'"
