"""FHIR resources on disk: every version sealed, found through blind indexes.

This module knows bytes, not FHIR: what a resource says and which of its
elements are searched comes in as `Index`. Bodies belong to a patient's key, so
that shredding the key erases them; resources of nobody belong to the node's.
"""

# Clauses are put together from constants; every value is a bound argument.
# ruff: noqa: S608

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from node.domain.errors import ErrorKind, NodeError

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

Method = Literal["POST", "PUT"]
Render = Callable[[int, datetime], bytes]

# Before every date that a resource can have; sorts to the end.
NEVER = datetime(1, 1, 1, tzinfo=UTC)


class StaleVersion(NodeError):
    """Somebody else has written the resource since the caller read it."""

    def __init__(self, resource_type: str, resource_id: str, current: int) -> None:
        super().__init__(
            f"{resource_type}/{resource_id} is at version {current} by now",
            ErrorKind.CONFLICT,
        )
        self.current = current


@dataclass(frozen=True)
class Token:
    """A searchable code; `identifying` ones are stored as an HMAC only."""

    parameter: str
    system: str
    value: str
    identifying: bool = False


@dataclass(frozen=True)
class Reference:
    """A searchable reference to another resource of this node."""

    parameter: str
    target_type: str
    target_id: str


@dataclass(frozen=True)
class DateRange:
    """The half-open interval that a date means in its own precision."""

    parameter: str
    earliest: datetime
    latest: datetime


@dataclass(frozen=True)
class Index:
    """All that a resource can be found by, besides its id and last update.

    `happened_at` sorts by clinical time; NEVER where the resource has none.
    """

    tokens: tuple[Token, ...] = ()
    references: tuple[Reference, ...] = ()
    dates: tuple[DateRange, ...] = ()
    happened_at: datetime = NEVER


@dataclass(frozen=True)
class Stored:
    """One version of a resource with its bytes as they go over the wire."""

    resource_type: str
    resource_id: str
    version: int
    last_updated: datetime
    patient_id: UUID | None
    method: str
    body: bytes


# --- what to look for ---------------------------------------------------------


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
class Within:
    """Has a date that compares by `prefix` (FHIR R4 3.1.1.5.6) with an interval.

    The parameter `_lastUpdated` is the time of the newest version.
    """

    parameter: str
    prefix: str
    earliest: datetime
    latest: datetime


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


Criterion = TokenIs | RefersTo | Chained | Within | IdIs | Has
LAST_UPDATED = "_lastUpdated"


@dataclass(frozen=True)
class Position:
    """Where a page ended: the sort key and id of its last resource."""

    at: datetime
    resource_id: str


@dataclass(frozen=True)
class Query:
    """A search, sorted by last update or by when it `happened` in the clinic."""

    resource_type: str
    criteria: tuple[Criterion, ...] = ()
    by_happening: bool = False
    descending: bool = True
    count: int = 50
    after: Position | None = None


@dataclass(frozen=True)
class Page:
    """The matches of one page; `next` is where to go on, None at the end."""

    matches: tuple[Stored, ...]
    next: Position | None


# --- writing ------------------------------------------------------------------


async def write(
    tx: "Transaction",
    store: "Store",
    resource_type: str,
    resource_id: str,
    render: Render,
    index: Index,
    *,
    patient_id: UUID | None = None,
    expected: int | None = None,
    method: Method = "PUT",
) -> Stored:
    """Store the next version of a resource and index it; return it.

    `render(version, last_updated)` gives the bytes. `expected` is the version
    that the caller has read, 0 for "none yet"; None takes whatever is there.
    Raises StaleVersion when the newest version is another one.
    """
    current = await lock(tx, resource_type, resource_id)
    if expected is not None and current != expected:
        raise StaleVersion(resource_type, resource_id, current)
    version, now = current + 1, _to_milliseconds(store.clock())
    body = render(version, now)
    sealer = store.ring.node
    if patient_id is not None:
        sealer = await store.ring.patient(tx, patient_id)
    written = await tx.fetchval(
        "insert into resources"
        " (resource_type, resource_id, version, last_updated, patient_id, sort_date)"
        " values ($1, $2, $3, $4, $5, $6) on conflict (resource_type, resource_id)"
        " do update set version = $3, last_updated = $4, patient_id = $5,"
        " sort_date = $6"
        " where resources.version = $3 - 1 returning version",
        resource_type,
        resource_id,
        version,
        now,
        patient_id,
        index.happened_at,
    )
    if written is None:  # created by somebody else between our two statements
        raise StaleVersion(resource_type, resource_id, version)
    sealed = sealer.seal(body, **_place(resource_type, resource_id, version))
    await tx.execute(
        "insert into resource_versions (resource_type, resource_id, version,"
        " last_updated, patient_id, method, body) values ($1, $2, $3, $4, $5, $6, $7)",
        resource_type,
        resource_id,
        version,
        now,
        patient_id,
        method,
        sealed,
    )
    await _reindex(tx, store, resource_type, resource_id, index, is_new=version == 1)
    return Stored(resource_type, resource_id, version, now, patient_id, method, body)


async def lock(tx: "Transaction", resource_type: str, resource_id: str) -> int:
    """Keep other writers off a resource until `tx` ends; return its version or 0."""
    version = await tx.fetchval(
        "select version from resources"
        " where resource_type = $1 and resource_id = $2 for update",
        resource_type,
        resource_id,
    )
    return int(version or 0)


def _place(resource_type: str, resource_id: str, version: int) -> dict[str, str]:
    return {
        "table": "resource_versions",
        "row": f"{resource_type}/{resource_id}/{version}",
        "column": "body",
    }


def _to_milliseconds(at: datetime) -> datetime:
    """Return `at` as the wire can say it, so that both always compare equal."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


async def _reindex(
    tx: "Transaction",
    store: "Store",
    resource_type: str,
    resource_id: str,
    index: Index,
    *,
    is_new: bool,
) -> None:
    key = (resource_type, resource_id)
    if not is_new:
        for table in ("resource_tokens", "resource_references", "resource_dates"):
            await tx.execute(
                f"delete from {table} where resource_type = $1 and resource_id = $2",
                *key,
            )
    tokens = [
        (
            *key,
            t.parameter,
            t.system,
            _value(store, t.parameter, t.value, t.identifying),
        )
        for t in index.tokens
    ]
    references = [
        (*key, r.parameter, r.target_type, r.target_id) for r in index.references
    ]
    dates = [(*key, d.parameter, d.earliest, d.latest) for d in index.dates]
    if tokens:
        await tx.executemany(
            "insert into resource_tokens values ($1, $2, $3, $4, $5)", tokens
        )
    if references:
        await tx.executemany(
            "insert into resource_references values ($1, $2, $3, $4, $5)", references
        )
    if dates:
        await tx.executemany(
            "insert into resource_dates values ($1, $2, $3, $4, $5)", dates
        )


def _value(store: "Store", parameter: str, value: str, identifying: bool) -> bytes:
    if identifying:
        return store.ring.blind(f"fhir.{parameter}", value)
    return value.encode()


# --- reading ------------------------------------------------------------------

_COLUMNS = (
    "v.resource_type, v.resource_id, v.version, v.last_updated, v.patient_id,"
    " v.method, v.body"
)
_JOINED = (
    "from resources r join resource_versions v using"
    " (resource_type, resource_id, version)"
)


async def read(
    tx: "Transaction", store: "Store", resource_type: str, resource_id: str
) -> Stored:
    """Return the newest version; NOT_FOUND, or GONE when its key was shredded."""
    found = await find(tx, store, resource_type, resource_id)
    if found is None:
        raise NodeError(
            f"{resource_type}/{resource_id} is not known", ErrorKind.NOT_FOUND
        )
    return found


async def find(
    tx: "Transaction", store: "Store", resource_type: str, resource_id: str
) -> Stored | None:
    """Return the newest version of a resource, or None."""
    row = await tx.fetchrow(
        f"select {_COLUMNS} {_JOINED}"
        " where r.resource_type = $1 and r.resource_id = $2",
        resource_type,
        resource_id,
    )
    return None if row is None else await _opened(tx, store, row)


async def read_version(
    tx: "Transaction",
    store: "Store",
    resource_type: str,
    resource_id: str,
    version: int,
) -> Stored:
    """Return one version of a resource; NOT_FOUND when it never existed."""
    row = await tx.fetchrow(
        f"select {_COLUMNS} from resource_versions v"
        " where resource_type = $1 and resource_id = $2 and version = $3",
        resource_type,
        resource_id,
        version,
    )
    if row is None:
        raise NodeError(
            f"{resource_type}/{resource_id} has no version {version}",
            ErrorKind.NOT_FOUND,
        )
    return await _opened(tx, store, row)


async def history(
    tx: "Transaction",
    store: "Store",
    resource_type: str,
    resource_id: str,
    *,
    before: int | None = None,
    count: int = 50,
) -> list[Stored]:
    """Return versions, newest first, of those older than number `before`."""
    rows = await tx.fetch(
        f"select {_COLUMNS} from resource_versions v"
        " where resource_type = $1 and resource_id = $2"
        " and ($3::integer is null or version < $3) order by version desc limit $4",
        resource_type,
        resource_id,
        before,
        count,
    )
    return [await _opened(tx, store, row) for row in rows]


async def search(tx: "Transaction", store: "Store", query: Query) -> Page:
    """Return one page of the newest versions that meet all criteria.

    Pages are cut by sort key and id, so the thousandth costs as much as the
    first. Resources of erased patients are left out.
    """
    sql = _Sql(store)
    where = sql.where(query)
    key = "r.sort_date" if query.by_happening else "r.last_updated"
    order = "desc" if query.descending else "asc"
    if query.after is not None:
        sign = "<" if query.descending else ">"
        at, last = sql.bind(query.after.at), sql.bind(query.after.resource_id)
        where += f" and ({key}, r.resource_id) {sign} ({at}, {last})"
    limit = sql.bind(query.count + 1)
    rows = await tx.fetch(
        f"select {_COLUMNS}, {key} as sort_key {_JOINED} where {where}"
        f" order by {key} {order}, r.resource_id {order} limit {limit}",
        *sql.arguments,
    )
    following = None
    if len(rows) > query.count:
        rows = rows[: query.count]
        following = Position(rows[-1]["sort_key"], rows[-1]["resource_id"])
    matches = await _readable(tx, store, rows)
    return Page(tuple(matches), following)


async def count(tx: "Transaction", store: "Store", query: Query) -> int:
    """Return how many resources meet the criteria of `query`."""
    sql = _Sql(store)
    where = sql.where(query)
    number = await tx.fetchval(
        f"select count(*) from resources r where {where}",
        *sql.arguments,
    )
    return int(number)


async def referred(
    tx: "Transaction",
    store: "Store",
    resource_type: str,
    ids: Sequence[str],
    parameter: str,
    target_type: str | None = None,
) -> list[Stored]:
    """Return the resources that `ids` refer to through `parameter` (_include)."""
    rows = await tx.fetch(
        f"select {_COLUMNS} {_JOINED} where (r.resource_type, r.resource_id) in"
        " (select x.target_type, x.target_id from resource_references x"
        " where x.resource_type = $1 and x.resource_id = any($2) and x.parameter = $3"
        " and ($4::text is null or x.target_type = $4))"
        " order by r.resource_type, r.resource_id",
        resource_type,
        list(ids),
        parameter,
        target_type,
    )
    return await _readable(tx, store, rows)


async def referring(
    tx: "Transaction",
    store: "Store",
    resource_type: str,
    parameter: str,
    target_type: str,
    ids: Sequence[str],
) -> list[Stored]:
    """Return the resources that refer to `ids` through `parameter` (_revinclude)."""
    rows = await tx.fetch(
        f"select {_COLUMNS} {_JOINED} where r.resource_type = $1"
        " and r.resource_id in (select x.resource_id from resource_references x"
        " where x.resource_type = $1 and x.parameter = $2 and x.target_type = $3"
        " and x.target_id = any($4)) order by r.resource_id limit 1000",
        resource_type,
        parameter,
        target_type,
        list(ids),
    )
    return await _readable(tx, store, rows)


async def _opened(tx: "Transaction", store: "Store", row: Any) -> Stored:
    sealer = store.ring.node
    if row["patient_id"] is not None:
        sealer = await store.ring.patient(tx, row["patient_id"])
    place = _place(row["resource_type"], row["resource_id"], row["version"])
    return Stored(
        row["resource_type"],
        row["resource_id"],
        row["version"],
        row["last_updated"],
        row["patient_id"],
        row["method"],
        sealer.open(row["body"], **place),
    )


async def _readable(
    tx: "Transaction", store: "Store", rows: Iterable[Any]
) -> list[Stored]:
    found = []
    for row in rows:
        try:
            found.append(await _opened(tx, store, row))
        except NodeError as error:
            if error.kind is not ErrorKind.GONE:
                raise
    return found


# --- criteria as SQL ----------------------------------------------------------

# How an indexed interval i compares with the asked one q, as `earliest` and
# `latest` of both; FHIR R4 3.1.1.5.6 with half-open intervals.
_COMPARISONS = {
    # The middle term follows from the others and lets the planner know how few.
    "eq": "{i}.earliest >= {lo} and {i}.earliest < {hi} and {i}.latest <= {hi}",
    "ne": "not ({i}.earliest >= {lo} and {i}.latest <= {hi})",
    "gt": "{i}.latest > {hi}",
    "lt": "{i}.earliest < {lo}",
    "ge": "{i}.latest > {lo}",
    "le": "{i}.earliest < {hi}",
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
    arguments: list[Any] = field(default_factory=list)

    def bind(self, value: Any) -> str:
        self.arguments.append(value)
        return f"${len(self.arguments)}"

    def where(self, query: Query) -> str:
        clauses = [f"r.resource_type = {self.bind(query.resource_type)}"]
        clauses += [self._clause(c, "r") for c in query.criteria]
        return " and ".join(clauses)

    def _clause(self, criterion: Criterion, row: str) -> str:
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
            case Chained(parameter, target_type, inner):
                target = (
                    "exists (select 1 from resources t where"
                    f" t.resource_type = {self.bind(target_type)}"
                    " and t.resource_type = x.target_type"
                    f" and t.resource_id = x.target_id and {self._clause(inner, 't')})"
                )
                return self._exists("resource_references", row, parameter, target)

    def _exists(self, table: str, row: str, parameter: str, condition: str) -> str:
        x = "x" if row == "r" else "y"
        return (
            f"exists (select 1 from {table} {x}"
            f" where {x}.resource_type = {row}.resource_type"
            f" and {x}.resource_id = {row}.resource_id"
            f" and {x}.parameter = {self.bind(parameter)} and ({condition}))"
        )

    def _token(self, wanted: TokenIs, row: str) -> str:
        x = "x" if row == "r" else "y"
        alternatives = []
        for system, value in wanted.values:
            parts = []
            if system is not None:
                parts.append(f"{x}.system = {self.bind(system)}")
            if value is not None:
                stored = _value(self.store, wanted.parameter, value, wanted.identifying)
                parts.append(f"{x}.value = {self.bind(stored)}")
            alternatives.append(" and ".join(parts) or "true")
        condition = " or ".join(f"({a})" for a in alternatives)
        inside = self._exists("resource_tokens", row, wanted.parameter, condition)
        return f"not {inside}" if wanted.negated else inside

    def _refers(self, wanted: RefersTo, row: str) -> str:
        x = "x" if row == "r" else "y"
        alternatives = []
        for target_type, target_id in wanted.targets:
            part = f"{x}.target_id = {self.bind(target_id)}"
            if target_type is not None:
                part += f" and {x}.target_type = {self.bind(target_type)}"
            alternatives.append(f"({part})")
        return self._exists(
            "resource_references", row, wanted.parameter, " or ".join(alternatives)
        )

    def _within(self, wanted: Within, row: str) -> str:
        if wanted.parameter == LAST_UPDATED:
            template = _INSTANT_COMPARISONS[wanted.prefix]
            return f"({self._compare(template, f'{row}.last_updated', wanted)})"
        x = "x" if row == "r" else "y"
        condition = self._compare(_COMPARISONS[wanted.prefix], x, wanted)
        return self._exists("resource_dates", row, wanted.parameter, condition)

    def _compare(self, template: str, indexed: str, wanted: Within) -> str:
        """Fill in a comparison; PostgreSQL refuses an argument that is not used."""
        lo = self.bind(wanted.earliest) if "{lo}" in template else ""
        hi = self.bind(wanted.latest) if "{hi}" in template else ""
        return template.format(i=indexed, lo=lo, hi=hi)
