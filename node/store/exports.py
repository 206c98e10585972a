"""Bulk exports on disk: what was asked for, how far each is, and its files.

A file is written whole by one job and noted, with the place where the next one goes
on, in the transaction that defers the next job: a killed process costs the file that
it was writing. Files belong to a data key of their export; who is erased takes every
export with her that holds anything of hers, and its key with it.
"""

# Clauses are put together from constants; every value is a bound argument.
# ruff: noqa: S608

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID, uuid4

from node.domain.errors import ErrorKind, NodeError
from node.store.search.criteria import Criterion
from node.store.search.predicates import condition

if TYPE_CHECKING:
    import asyncpg

    from node.store.blobs import BlobReader, BlobWriter
    from node.store.database import Transaction
    from node.store.keys import Sealer
    from node.store.store import Store

EXPORT_RESOURCES = "export_resources"
LANE = "export"
Output = Literal["output", "deleted", "error"]
State = Literal["running", "complete", "failed", "removed"]
# Who erases a patient and who notes a file with her data in it wait for each other.
_ERASING = 0x736F6E6F_00000003  # "sono", 3
# A transaction that has written nothing for so long only reads: a backup, say.
_SURELY_READING = timedelta(seconds=60)


@dataclass(frozen=True)
class Export:
    """One export; `asked` is the caller's business.

    `place` and `after_id` tell where the next file begins.
    """

    id: UUID
    client_id: UUID
    state: State
    asked: Mapping[str, Any]
    transaction_time: datetime
    place: int
    after_id: str
    files: int
    resources: int
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True)
class File:
    """One file of an export; `packed_size` is its size as gzip."""

    number: int
    output: Output
    resource_type: str
    resources: int
    size: int
    packed_size: int
    blob_name: str
    patients: frozenset[UUID] = frozenset()


@dataclass(frozen=True)
class Slice:
    """Which resources of one type an export goes through, and from where.

    `criteria` hold for all; `only_patients` leaves out what belongs to nobody,
    `patients` all but these.
    """

    resource_type: str
    transaction_time: datetime
    after_id: str = ""
    criteria: tuple[Criterion, ...] = ()
    since: datetime | None = None
    only_patients: bool = False
    patients: tuple[UUID, ...] | None = None


class TooManyExports(NodeError):
    """A client has as many exports under way as it may."""

    def __init__(self, allowed: int) -> None:
        super().__init__(
            f"{allowed} exports of this client are under way; wait for one to end",
            ErrorKind.CONFLICT,
        )


# --- from the request to the end ------------------------------------------------


async def begin(
    tx: "Transaction",
    store: "Store",
    client_id: UUID,
    asked: Mapping[str, Any],
    *,
    at_once: int,
) -> UUID:
    """Note an export and defer its first job; TooManyExports above `at_once`."""
    await tx.execute("select from clients where client_id = $1 for update", client_id)
    running = await tx.fetchval(
        "select count(*) from exports where client_id = $1 and state = 'running'",
        client_id,
    )
    if running >= at_once:
        raise TooManyExports(at_once)
    export_id, now = uuid4(), store.clock()
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)  # as it is told
    body = json.dumps(asked, ensure_ascii=False).encode()
    await tx.execute(
        "insert into exports (export_id, client_id, state, asked, transaction_time,"
        " created_at) values ($1, $2, 'running', $3, $4, $4)",
        export_id,
        client_id,
        store.ring.node.seal(body, **_asked_place(export_id)),
        now,
    )
    await key(tx, store, export_id)
    await _defer(tx, store, export_id, 0)
    return export_id


async def find(tx: "Transaction", store: "Store", export_id: UUID) -> Export | None:
    """Return an export; None when there is none, or none any more."""
    row = await tx.fetchrow(
        "select * from exports where export_id = $1 and state <> 'removed'", export_id
    )
    return None if row is None else _export(store, row)


async def settled(tx: "Transaction", export_id: UUID) -> bool:
    """Tell whether all that was written before the export was asked for is committed.

    A version has its time before it is committed. Nobody who began before the
    export did may still be under way, or what he wrote would be missed.
    """
    waiting = await tx.fetchval(
        "select exists (select from exports e, pg_stat_activity a"
        " where e.export_id = $1 and a.datname = current_database()"
        " and a.backend_type = 'client backend' and a.pid <> pg_backend_pid()"
        " and a.xact_start <= e.settles_at and (a.backend_xid is not null"
        " or a.xact_start > e.settles_at - $2::interval))",
        export_id,
        _SURELY_READING,
    )
    return not waiting


async def page(
    tx: "Transaction", store: "Store", wanted: Slice, count: int
) -> "list[asyncpg.Record]":
    """Return the next versions, as they were at the transaction time, by id.

    Those that were changed since have `changed`: the index knows only what they are
    now, so they come whether they meet the criteria or not. With `since` those come
    too whose patient was erased after it; they do not open.
    """
    met, arguments = condition(store, wanted.criteria)
    bind = _binder(arguments)
    moment = bind(wanted.transaction_time)
    where = [
        f"r.resource_type = {bind(wanted.resource_type)}",
        f"r.resource_id > {bind(wanted.after_id)}",
    ]
    if wanted.criteria:
        where.append(f"({met} or r.last_updated > {moment})")
    if wanted.since is not None:
        since = bind(wanted.since)
        # Who was erased since is to be forgotten elsewhere too.
        erased = (
            "r.patient_id in (select subject from data_keys"
            f" where domain = 'patient' and shredded_at > {since})"
        )
        where.append(
            f"(r.last_updated > {since} and v.last_updated > {since} or {erased})"
        )
    if wanted.only_patients:
        where.append("r.patient_id is not null")
    if wanted.patients is not None:
        where.append(f"r.patient_id = any({bind(list(wanted.patients))}::uuid[])")
    rows: list[asyncpg.Record] = await tx.fetch(
        "select v.*, r.version <> v.version as changed from resources r"
        " cross join lateral (select resource_type, resource_id, version, last_updated,"
        " patient_id, method, body from resource_versions v"
        " where v.resource_type = r.resource_type and v.resource_id = r.resource_id"
        f" and v.last_updated <= {moment} order by version desc limit 1) v"
        f" where {' and '.join(where)}"
        f" order by r.resource_id limit {bind(count)}",
        *arguments,
    )
    return rows


async def note(
    tx: "Transaction",
    store: "Store",
    export: Export,
    files: Sequence[File],
    place: int,
    after_id: str,
) -> bool:
    """Note the files of one job and where the next goes on; False: write them anew.

    That is when somebody in them was erased meanwhile, or the export has ended.
    """
    await tx.execute("select pg_advisory_xact_lock_shared($1)", _ERASING)
    patients = list(frozenset[UUID]().union(*(file.patients for file in files)))
    erased = await tx.fetchval(
        "select exists (select from data_keys where domain = 'patient'"
        " and subject = any($1) and wrapped is null)",
        patients,
    )
    if erased:
        return False
    moved = await tx.fetchval(
        "update exports set place = $3, after_id = $4, files = files + $5,"
        " resources = resources + $6 where export_id = $1 and files = $2"
        " and state = 'running' returning true",
        export.id,
        export.files,
        place,
        after_id,
        len(files),
        sum(file.resources for file in files if file.output == "output"),
    )
    if not moved:
        return False
    for file in files:
        await tx.execute(
            "insert into export_files (export_id, number, output, resource_type,"
            " resources, size, packed_size, blob_name, patients)"
            " values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            export.id,
            file.number,
            file.output,
            file.resource_type,
            file.resources,
            file.size,
            file.packed_size,
            file.blob_name,
            list(file.patients),
        )
    await _defer(tx, store, export.id, export.files + len(files))
    return True


async def complete(
    tx: "Transaction", store: "Store", export: Export, keep: timedelta
) -> None:
    """Note that nothing is left to write; the files are kept for a while."""
    now = store.clock()
    await tx.execute(
        "update exports set state = 'complete', ended_at = $2, expires_at = $3"
        " where export_id = $1 and state = 'running'",
        export.id,
        now,
        now + keep,
    )


async def fail(tx: "Transaction", store: "Store", export_id: UUID) -> None:
    """Note that an export will never be complete."""
    await tx.execute(
        "update exports set state = 'failed', ended_at = $2"
        " where export_id = $1 and state = 'running'",
        export_id,
        store.clock(),
    )


async def polled(
    tx: "Transaction", store: "Store", export_id: UUID, pause: timedelta
) -> bool:
    """Note that somebody asks how an export is; False when it is too soon again."""
    now = store.clock()
    noted = await tx.fetchval(
        "update exports set next_poll_at = $3 where export_id = $1"
        " and (next_poll_at is null or next_poll_at <= $2) returning true",
        export_id,
        now,
        now + pause,
    )
    return bool(noted)


async def remove(tx: "Transaction", store: "Store", export_id: UUID) -> None:
    """Take an export away: its files open no more. `sweep` removes what is left."""
    await _remove(tx, [export_id])


async def forget_patient(tx: "Transaction", patient_id: UUID) -> None:
    """Take away every export that holds anything of a patient who is erased."""
    await tx.execute("select pg_advisory_xact_lock($1)", _ERASING)
    rows = await tx.fetch(
        "select distinct export_id from export_files where $1 = any(patients)",
        patient_id,
    )
    await _remove(tx, [row["export_id"] for row in rows])


async def _remove(tx: "Transaction", export_ids: Sequence[UUID]) -> None:
    await tx.execute(
        "update exports set state = 'removed' where export_id = any($1)",
        list(export_ids),
    )
    await tx.execute(
        "update data_keys set wrapped = null, domain_key_id = null,"
        " shredded_at = coalesce(shredded_at, now())"
        " where domain = 'node' and subject = any($1)",
        list(export_ids),
    )


async def sweep(store: "Store", keep: timedelta) -> int:
    """Remove exports whose time is over and end those that cannot go on.

    Return how many are gone.
    """
    now = store.clock()
    async with store.db.transaction() as tx:
        rows = await tx.fetch(
            "select export_id from exports where state = 'complete' and expires_at < $1"
            " or state = 'failed' and ended_at < $2",
            now,
            now - keep,
        )
        await _remove(tx, [row["export_id"] for row in rows])
        await tx.execute(
            "update exports e set state = 'failed', ended_at = $1"
            f" where state = 'running' and not {_AT_WORK}",
            now,
        )
        ended = await tx.fetch(
            "select export_id, files from exports e"
            f" where state = 'removed' and not {_AT_WORK}"
        )
    for row in ended:
        # One more than is noted, and its companion: a killed job may have left them.
        for number in range(row["files"] + 2):
            store.blobs.delete(_blob_name(row["export_id"], number))
        async with store.db.transaction() as tx:
            await tx.execute("delete from exports where export_id = $1", row[0])
            await tx.execute(
                "delete from data_keys where domain = 'node' and subject = $1", row[0]
            )
    return len(ended)


_AT_WORK = (
    f"exists (select from jobs j where j.kind = '{EXPORT_RESOURCES}'"
    " and j.order_key = e.export_id::text and j.state in ('ready', 'running'))"
)


# --- files ------------------------------------------------------------------------


async def key(tx: "Transaction", store: "Store", export_id: UUID) -> "Sealer":
    """Return the data key of an export; GONE when it was taken away."""
    return await store.ring.own(tx, export_id)


def write_file(
    store: "Store", sealer: "Sealer", export_id: UUID, number: int
) -> "tuple[str, BlobWriter]":
    """Return the name of a file and what writes it."""
    name = _blob_name(export_id, number)
    writer = store.blobs.writer(
        name, key=sealer.blob_key, associated_data=_associated_data(export_id)
    )
    return name, writer


def read_file(
    store: "Store", sealer: "Sealer", export_id: UUID, file: File
) -> "BlobReader":
    """Return what reads a file, packed as it is stored."""
    return store.blobs.reader(
        file.blob_name,
        key=sealer.blob_key,
        associated_data=_associated_data(export_id),
    )


async def files(tx: "Transaction", export_id: UUID) -> list[File]:
    """Return the files of an export in their order, without who is in them."""
    rows = await tx.fetch(
        "select number, output, resource_type, resources, size, packed_size, blob_name"
        " from export_files where export_id = $1 order by number",
        export_id,
    )
    return [File(**dict(row)) for row in rows]


async def patients_in(
    tx: "Transaction", export_id: UUID, number: int, *, most: int
) -> list[UUID]:
    """Return who is in a file; nobody where it is more than `most`."""
    found: list[UUID] | None = await tx.fetchval(
        "select patients from export_files where export_id = $1 and number = $2"
        " and cardinality(patients) <= $3",
        export_id,
        number,
        most,
    )
    return found or []


# --- inside -----------------------------------------------------------------------


async def _defer(
    tx: "Transaction", store: "Store", export_id: UUID, number: int
) -> None:
    await store.jobs.defer(
        tx,
        EXPORT_RESOURCES,
        {"export_id": str(export_id), "number": number},
        key=f"{export_id}/{number}",
        order_key=str(export_id),
        lane=LANE,
    )


def _binder(arguments: list[Any]) -> Any:
    def bind(value: Any) -> str:
        arguments.append(value)
        return f"${len(arguments)}"

    return bind


def _asked_place(export_id: UUID) -> dict[str, str]:
    return {"table": "exports", "row": str(export_id), "column": "asked"}


def _blob_name(export_id: UUID, number: int) -> str:
    return f"exports/{export_id}/{number}"


def _associated_data(export_id: UUID) -> bytes:
    return f"exports/{export_id}".encode()


def _export(store: "Store", row: "asyncpg.Record") -> Export:
    opened = store.ring.node.open(row["asked"], **_asked_place(row["export_id"]))
    return Export(
        row["export_id"],
        row["client_id"],
        row["state"],
        json.loads(opened),
        row["transaction_time"],
        row["place"],
        row["after_id"],
        row["files"],
        row["resources"],
        row["created_at"],
        row["expires_at"],
    )
