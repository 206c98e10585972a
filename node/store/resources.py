"""FHIR resources on disk: every version sealed, found through blind indexes.

This module knows bytes, not FHIR: what a resource says and which of its
elements are searched comes in as `Index`. Bodies belong to a patient's key, so
that shredding the key erases them; resources of nobody belong to the node's.
"""

# Clauses are put together from constants; every value is a bound argument.
# ruff: noqa: S608

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from node.domain.audit import note_written
from node.domain.errors import ErrorKind, NodeError

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

Method = Literal["POST", "PUT"]
Render = Callable[[int, datetime], bytes]

# Before every date that a resource can have; sorts to the end.
NEVER = datetime(1, 1, 1, tzinfo=UTC)
_ENDLESS = datetime(9999, 1, 1, tzinfo=UTC)


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
    `version` tells by which rules it was made: `behind` finds the older ones.
    """

    tokens: tuple[Token, ...] = ()
    references: tuple[Reference, ...] = ()
    dates: tuple[DateRange, ...] = ()
    happened_at: datetime = NEVER
    version: int = 0


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


# --- writing ------------------------------------------------------------------


@dataclass(frozen=True)
class Draft:
    """The next version of a resource, before it has a number.

    `render(version, last_updated)` gives the bytes. `expected` is the version that
    the caller has read, 0 for "none yet"; None takes whatever is there.
    """

    resource_type: str
    resource_id: str
    render: Render
    index: Index
    patient_id: UUID | None = None
    expected: int | None = None
    method: Method = "PUT"


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
    """Store the next version of a resource and index it; return it (`Draft`).

    Raises StaleVersion when the newest version is another one.
    """
    draft = Draft(
        resource_type, resource_id, render, index, patient_id, expected, method
    )
    return (await write_all(tx, store, [draft]))[0]


async def write_all(
    tx: "Transaction", store: "Store", drafts: Sequence[Draft]
) -> list[Stored]:
    """Store and index several resources in one go to the server; return them.

    A report is a dozen resources, and each answer that is waited for costs most
    where the processor is busy. Raises StaleVersion as `write` does.
    """
    if not drafts:
        return []
    stored = [await _numbered(tx, store, draft) for draft in drafts]
    rows = await tx.fetchmany(
        _WRITE,
        [
            await _row(tx, store, draft, one)
            for draft, one in zip(drafts, stored, strict=True)
        ],
    )
    written = {(row["resource_type"], row["resource_id"]) for row in rows}
    for one in stored:
        kind, resource_id = one.resource_type, one.resource_id
        if (kind, resource_id) not in written:
            raise StaleVersion(kind, resource_id, await lock(tx, kind, resource_id))
        note_written(f"{kind}/{resource_id}/_history/{one.version}", one.patient_id)
    return stored


async def _numbered(tx: "Transaction", store: "Store", draft: Draft) -> Stored:
    kind, resource_id = draft.resource_type, draft.resource_id
    current = draft.expected
    if current is None:
        current = await lock(tx, kind, resource_id)
    version, now = current + 1, _to_milliseconds(store.clock())
    body = draft.render(version, now)
    return Stored(kind, resource_id, version, now, draft.patient_id, draft.method, body)


async def _row(
    tx: "Transaction", store: "Store", draft: Draft, one: Stored
) -> tuple[object, ...]:
    sealer = store.ring.node
    if one.patient_id is not None:
        sealer = await store.ring.patient(tx, one.patient_id)
    place = _place(one.resource_type, one.resource_id, one.version)
    return (
        one.resource_type,
        one.resource_id,
        *_found_by(store, draft.index),
        draft.index.version,
        one.version,
        one.last_updated,
        one.patient_id,
        draft.index.happened_at,
        one.method,
        sealer.seal(one.body, **place),
    )


# Each row of an index says by what its resource is sorted: a search walks along it.
# Where `written` is empty nothing else is touched: somebody else was faster.
_INDEXED = """
no_tokens as (delete from resource_tokens t using written
    where t.resource_type = $1 and t.resource_id = $2),
no_references as (delete from resource_references r using written
    where r.resource_type = $1 and r.resource_id = $2),
no_dates as (delete from resource_dates d using written
    where d.resource_type = $1 and d.resource_id = $2),
tokens as (insert into resource_tokens
    select $1, $2, one.*, sort_date, last_updated
    from written, unnest($3::text[], $4::text[], $5::bytea[]) one),
refs as (insert into resource_references
    select $1, $2, one.*, sort_date, last_updated
    from written, unnest($6::text[], $7::text[], $8::text[]) one),
dates as (insert into resource_dates
    select $1, $2, one.*, sort_date, last_updated
    from written, unnest($9::text[], $10::timestamptz[], $11::timestamptz[]) one)
select resource_type, resource_id from written
"""
_WRITE = f"""
with written as (
    insert into resources (resource_type, resource_id, version, last_updated,
        patient_id, sort_date, index_version)
    values ($1, $2, $13, $14, $15, $16, $12)
    on conflict (resource_type, resource_id) do update set version = $13,
        last_updated = $14, patient_id = $15, sort_date = $16, index_version = $12
        where resources.version = $13 - 1
    returning resource_type, resource_id, sort_date, last_updated
), kept as (
    insert into resource_versions (resource_type, resource_id, version,
        last_updated, patient_id, method, body)
    select $1, $2, $13, $14, $15, $17, $18::bytea from written
), {_INDEXED}"""
_INDEX_ANEW = f"""
with written as (
    update resources set index_version = $12, sort_date = $13
    where resource_type = $1 and resource_id = $2
    returning resource_type, resource_id, sort_date, last_updated
), {_INDEXED}"""


def _found_by(store: "Store", index: Index) -> tuple[list[object], ...]:
    """Return what a resource is found by, as the columns of its three tables."""
    return (
        [one.parameter for one in index.tokens],
        [one.system for one in index.tokens],
        [
            blind(store, one.parameter, one.value, one.identifying)
            for one in index.tokens
        ],
        [one.parameter for one in index.references],
        [one.target_type for one in index.references],
        [one.target_id for one in index.references],
        [one.parameter for one in index.dates],
        [one.earliest for one in index.dates],
        [one.latest for one in index.dates],
    )


async def ids_from(tx: "Transaction", resource_type: str, beginning: str) -> list[str]:
    """Return the ids of a type that begin so: the resources of one report."""
    rows = await tx.fetch(
        "select resource_id from resources where resource_type = $1"
        # As a range the primary key answers it, whatever the collation.
        ' and resource_id collate "C" >= $2 and starts_with(resource_id, $2)'
        " order by resource_id",
        resource_type,
        beginning,
    )
    return [row["resource_id"] for row in rows]


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


async def behind(
    tx: "Transaction", store: "Store", index_version: int, count: int
) -> list[Stored]:
    """Return up to `count` resources whose index is older, and keep others off them.

    Those of erased patients have no index to bring forward and are passed over.
    """
    rows = await tx.fetch(
        f"select {COLUMNS} {_JOINED} where r.index_version < $1"
        " limit $2 for update of r skip locked",
        index_version,
        count,
    )
    found = []
    for row in rows:
        try:
            found.append(await opened(tx, store, row))
        except NodeError as error:
            if error.kind is not ErrorKind.GONE:
                raise
            await _set_index_version(
                tx, row["resource_type"], row["resource_id"], index_version
            )
    return found


async def index_anew(
    tx: "Transaction", store: "Store", stored: Stored, index: Index
) -> None:
    """Replace what a newest version is found by; the version itself stays."""
    await tx.execute(
        _INDEX_ANEW,
        stored.resource_type,
        stored.resource_id,
        *_found_by(store, index),
        index.version,
        index.happened_at,
    )


async def _set_index_version(
    tx: "Transaction", resource_type: str, resource_id: str, index_version: int
) -> None:
    await tx.execute(
        "update resources set index_version = $3"
        " where resource_type = $1 and resource_id = $2",
        resource_type,
        resource_id,
        index_version,
    )


def blind(store: "Store", parameter: str, value: str, identifying: bool) -> bytes:
    """Return a token's value as it is stored: as it is, or an HMAC of it."""
    if identifying:
        return store.ring.blind(f"fhir.{parameter}", value)
    return value.encode()


# --- reading ------------------------------------------------------------------

COLUMNS = (
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
        f"select {COLUMNS} {_JOINED} where r.resource_type = $1 and r.resource_id = $2",
        resource_type,
        resource_id,
    )
    return None if row is None else await opened(tx, store, row)


async def find_all(
    tx: "Transaction", store: "Store", wanted: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Stored]:
    """Return the newest versions of those (type, id) that are there, as asked."""
    keys = list(dict.fromkeys(wanted))
    rows = await tx.fetch(
        f"select {COLUMNS} from unnest($1::text[], $2::text[])"
        " with ordinality as w (resource_type, resource_id, place)"
        " join resources r using (resource_type, resource_id)"
        " join resource_versions v using (resource_type, resource_id, version)"
        " order by w.place",
        [kind for kind, _ in keys],
        [resource_id for _, resource_id in keys],
    )
    found = [await opened(tx, store, row) for row in rows]
    return {(one.resource_type, one.resource_id): one for one in found}


async def newest(
    tx: "Transaction", wanted: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], tuple[int, UUID | None]]:
    """Return version and patient of those (type, id) that are there, unopened."""
    keys = list(dict.fromkeys(wanted))
    rows = await tx.fetch(
        "select r.resource_type, r.resource_id, r.version, r.patient_id"
        " from unnest($1::text[], $2::text[]) as w (resource_type, resource_id)"
        " join resources r using (resource_type, resource_id)",
        [kind for kind, _ in keys],
        [resource_id for _, resource_id in keys],
    )
    return {
        (row["resource_type"], row["resource_id"]): (row["version"], row["patient_id"])
        for row in rows
    }


async def find_versions(
    tx: "Transaction", store: "Store", wanted: Iterable[tuple[str, str, int]]
) -> dict[tuple[str, str, int], Stored]:
    """Return those versions (type, id, number) that are there and not erased."""
    keys = list(dict.fromkeys(wanted))
    if not keys:
        return {}
    kinds, ids, numbers = zip(*keys, strict=True)
    rows = await tx.fetch(
        f"select {COLUMNS} from unnest($1::text[], $2::text[], $3::integer[])"
        " as w (resource_type, resource_id, version)"
        " join resource_versions v using (resource_type, resource_id, version)",
        kinds,
        ids,
        numbers,
    )
    found = {}
    for row in rows:
        try:
            one = await opened(tx, store, row)
        except NodeError as error:
            if error.kind is not ErrorKind.GONE:
                raise
            continue
        found[one.resource_type, one.resource_id, one.version] = one
    return found


async def read_version(
    tx: "Transaction",
    store: "Store",
    resource_type: str,
    resource_id: str,
    version: int,
) -> Stored:
    """Return one version of a resource; NOT_FOUND when it never existed."""
    row = await tx.fetchrow(
        f"select {COLUMNS} from resource_versions v"
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
    return await opened(tx, store, row)


@dataclass(frozen=True)
class Times:
    """Which versions of a history are wanted (FHIR R4 3.1.0.5.1).

    Those made at `since` or later, and those that were current at some time
    between `earliest` and `latest`.
    """

    since: datetime = NEVER
    earliest: datetime = NEVER
    latest: datetime = _ENDLESS


_TIMES = """
    and v.last_updated >= $2 and v.last_updated < $4
    and not exists (select 1 from resource_versions n
        where n.resource_type = v.resource_type and n.resource_id = v.resource_id
          and n.version = v.version + 1 and n.last_updated <= $3)
"""
_ALL_TIMES = Times()
# Where a page of the history of a type begins: after this time, id and version.
Place = tuple[datetime, str, int]


async def history(
    tx: "Transaction",
    store: "Store",
    resource_type: str,
    resource_id: str,
    *,
    times: Times = _ALL_TIMES,
    before: int | None = None,
    count: int = 50,
) -> list[Stored]:
    """Return versions, newest first, of those older than number `before`."""
    rows = await tx.fetch(
        f"select {COLUMNS} from resource_versions v"
        f" where v.resource_type = $1 {_TIMES} and v.resource_id = $5"
        " and ($6::integer is null or v.version < $6) order by v.version desc limit $7",
        resource_type,
        times.since,
        times.earliest,
        times.latest,
        resource_id,
        before,
        count,
    )
    return [await opened(tx, store, row) for row in rows]


async def type_history(
    tx: "Transaction",
    store: "Store",
    resource_type: str,
    *,
    times: Times = _ALL_TIMES,
    after: Place | None = None,
    count: int = 50,
) -> tuple[list[Stored], Place | None]:
    """Return a page of all versions of a type, newest first, and where the next is.

    Those of erased patients are left out: a page may hold fewer than `count`.
    """
    beyond, latest = "", times.latest
    if after is not None:
        beyond = "and (v.last_updated, v.resource_id, v.version) < ($6, $7, $8)"
        # The same once more, as the index can use it: a walk begins there.
        latest = min(latest, after[0] + timedelta(milliseconds=1))
    rows = await tx.fetch(
        f"select {COLUMNS} from resource_versions v"
        f" where v.resource_type = $1 {_TIMES} {beyond}"
        " order by v.last_updated desc, v.resource_id desc, v.version desc limit $5",
        resource_type,
        times.since,
        times.earliest,
        latest,
        count + 1,
        *(after or ()),
    )
    found = []
    for row in rows[:count]:
        try:
            found.append(await opened(tx, store, row))
        except NodeError as error:
            if error.kind is not ErrorKind.GONE:
                raise
    if len(rows) <= count:
        return found, None
    last = rows[count - 1]
    return found, (last["last_updated"], last["resource_id"], last["version"])


async def opened(tx: "Transaction", store: "Store", row: Any) -> Stored:
    """Return a row of `COLUMNS` with its body opened; GONE when it was erased."""
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
