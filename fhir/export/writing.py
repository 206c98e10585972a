"""The files of a bulk export: handler of the job `export_resources`.

A job writes one file and promises the next; a killed one is done again from the
same place. Resources are shown as they were at the transaction time, so it does not
matter how long the whole takes: nothing is missing and nothing is torn. A page of
them is in memory at a time, packed aside; the event loop goes on.
"""

import asyncio
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog

from fhir.encoding.outcome import Issue, outcome
from fhir.encoding.wire import Json, parse, to_bytes
from fhir.export.requests import ExportRequest, criteria_of, exporter, opens
from fhir.search.matching import meets
from fhir.search.parameters import index_of
from fhir.search.views import View
from fhir.security.scoping import narrowing, sees
from fhir.settings import FhirSettings
from node.domain.access import Identity
from node.domain.errors import ErrorKind, NodeError
from node.domain.scopes import Scopes, read_scopes
from node.store import clients, exports, merges, resources
from node.store.exports import Export, File, Output, Slice
from node.store.jobs import Postponed
from node.store.resources import Stored
from node.store.search import women
from node.store.search.criteria import AnyOf, Criterion

if TYPE_CHECKING:
    from asyncpg import Record

    from node.store.blobs import BlobWriter
    from node.store.database import Transaction
    from node.store.keys import Sealer
    from node.store.store import Store

PAGE = 200
RESOURCES_A_FILE = 20_000
BYTES_A_FILE = 128 << 20
_AGAIN = timedelta(seconds=1)
_GZIP = 16 + zlib.MAX_WBITS
_LEVEL = 5

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Size:
    """How large files become."""

    resources: int = RESOURCES_A_FILE
    size: int = BYTES_A_FILE
    page: int = PAGE


async def export_resources(
    store: "Store",
    settings: FhirSettings,
    payload: Mapping[str, Any],
    size: Size | None = None,
) -> None:
    """Write file number `payload` {export_id, number} of an export, or complete it.

    Does nothing when that file is written, or the export has ended.
    """
    export_id = UUID(str(payload["export_id"]))
    async with store.db.transaction(readonly=True) as tx:
        export = await exports.find(tx, store, export_id)
        if export is None or export.state != "running":
            return
        if export.files != payload["number"]:
            return
        if not export.files and not await exports.settled(tx, export_id):
            raise Postponed(store.clock() + _AGAIN)
        caller = await _caller(tx, export)
        sealer = await exports.key(tx, store, export_id)
    if caller is None:
        async with store.db.transaction() as tx:
            await exports.fail(tx, store, export_id)
        log.warning("export.ended", export=str(export_id), why="client may no longer")
        return
    writing = _Writing(store, settings, export, caller, sealer, size or Size())
    await writing.go_on()


async def _caller(tx: "Transaction", export: Export) -> Identity | None:
    """Return who asked, with the scopes of then; None when it may no longer."""
    client = await clients.find(tx, str(export.client_id))
    if client is None:
        return None
    granted = Scopes(read_scopes(str(export.asked["scopes"])))
    identity = Identity(
        str(client.client_id), client.roles, client.name, scopes=granted
    )
    try:
        return exporter(identity)
    except NodeError:
        return None


@dataclass
class _Lines:
    """One file under way: lines go in, gzip comes out; nothing is made without any."""

    store: "Store"
    sealer: "Sealer"
    export_id: UUID
    number: int
    output: Output
    kind: str
    count: int = 0
    size: int = 0
    patients: set[UUID] = field(default_factory=set)
    packed: int = 0
    _name: str = ""
    _writer: "BlobWriter | None" = None
    _pack: Any = None

    def add(self, lines: list[bytes]) -> None:
        """Append lines. Blocks: call it aside."""
        if not lines:
            return
        if self._writer is None:
            self._name, self._writer = exports.write_file(
                self.store, self.sealer, self.export_id, self.number
            )
            self._pack = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        text = b"\n".join(lines) + b"\n"
        self.count += len(lines)
        self.size += len(text)
        self._put(self._pack.compress(text))

    def end(self) -> File | None:
        """Make the file durable; None when there are no lines. Blocks."""
        if self._writer is None:
            return None
        self._put(self._pack.flush())
        self._writer.commit()
        return File(
            self.number,
            self.output,
            self.kind,
            self.count,
            self.size,
            self.packed,
            self._name,
            frozenset(self.patients),
        )

    def drop(self) -> None:
        """Remove what was written."""
        if self._writer is not None:
            self._writer.abort()
            self.store.blobs.delete(self._name)

    def _put(self, packed: bytes) -> None:
        self.packed += len(packed)
        if self._writer is not None and packed:
            self._writer.write(packed)


class _Writing:
    """One job of an export."""

    def __init__(
        self,
        store: "Store",
        settings: FhirSettings,
        export: Export,
        caller: Identity,
        sealer: "Sealer",
        size: Size,
    ) -> None:
        self._store = store
        self._settings = settings
        self._export = export
        self._caller = caller
        self._sealer = sealer
        self._size = size
        self._request = ExportRequest.of_json(export.asked)
        self._show = View(store, caller)
        self._erased: list[str] = []

    async def go_on(self) -> None:
        """Write the next file and promise the one after it, or complete the export."""
        place, after_id = self._export.place, self._export.after_id
        types = self._request.types
        while place < len(types):
            lines = self._lines("output", types[place])
            try:
                after_id, more = await self._fill(lines, types[place], after_id)
                if not more:
                    place, after_id = place + 1, ""
                if await self._noted(lines, place, after_id):
                    return
            except BaseException:
                await asyncio.to_thread(lines.drop)
                raise
        if place == len(types) and self._request.notes:
            notes = self._lines("error", "OperationOutcome")
            told = [to_bytes(_left_out(note)) for note in self._request.notes]
            await asyncio.to_thread(notes.add, told)
            if await self._noted(notes, place + 1, ""):
                return
        async with self._store.db.transaction() as tx:
            keep = self._settings.export_keep
            await exports.complete(tx, self._store, self._export, keep)
        log.info(
            "export.complete",
            export=str(self._export.id),
            resources=self._export.resources,
            files=self._export.files,
        )

    def _lines(self, output: Output, kind: str) -> _Lines:
        return _Lines(
            self._store,
            self._sealer,
            self._export.id,
            self._export.files,
            output,
            kind,
        )

    async def _noted(self, lines: _Lines, place: int, after_id: str) -> bool:
        """Note a file and promise the next job; False when nothing was written.

        Beside it goes what was erased since the client's last export.
        """
        written = [lines]
        if self._erased:
            gone = self._lines("deleted", "Bundle")
            gone.number += bool(lines.count)
            told, self._erased = [to_bytes(_erasure(n)) for n in self._erased], []
            await asyncio.to_thread(gone.add, told)
            written.append(gone)
        files = [file for one in written if (file := await asyncio.to_thread(one.end))]
        if not files:
            return False
        async with self._store.db.transaction() as tx:
            noted = await exports.note(
                tx, self._store, self._export, files, place, after_id
            )
        if not noted:
            for one in written:
                await asyncio.to_thread(one.drop)
            raise Postponed(self._store.clock())
        return True

    async def _fill(self, lines: _Lines, kind: str, after_id: str) -> tuple[str, bool]:
        """Write what is left of a type, or as much as a file takes.

        Return the last id that was looked at, and whether there may be more.
        """
        if not opens(self._caller, kind):
            return after_id, False
        filters = [
            criteria_of(kind, query, self._settings.base_url)
            for name, query in self._request.filters
            if name == kind
        ]
        criteria = _criteria(self._caller, kind, filters)
        async with self._store.db.connection() as tx:
            criteria = await women.of_one_woman(tx, self._store, criteria, kind)
            patients = await _ids(tx, self._request.patients)
        while self._has_room(lines):
            wanted = Slice(
                kind,
                self._export.transaction_time,
                after_id,
                criteria,
                self._request.since,
                self._request.of_patients,
                patients,
            )
            async with self._store.db.connection() as tx:
                rows = await exports.page(tx, self._store, wanted, self._size.page)
                if not rows:
                    return after_id, False
                await self._add(tx, lines, rows, criteria)
            after_id = rows[-1]["resource_id"]
        return after_id, True

    def _has_room(self, lines: _Lines) -> bool:
        most = self._size
        written = max(lines.count, len(self._erased))
        return written < most.resources and lines.size < most.size

    async def _add(
        self,
        tx: "Transaction",
        lines: _Lines,
        rows: "list[Record]",
        criteria: tuple[Criterion, ...],
    ) -> None:
        patients = {row["patient_id"] for row in rows} - {None}
        await self._store.ring.have_at_hand(tx, list(patients))
        # What cannot be opened cannot be held against scopes and filters.
        tells_erased = self._request.since is not None and not criteria
        found: list[Stored] = []
        for row in rows:
            try:
                stored = await resources.opened(tx, self._store, row)
            except NodeError as error:
                if error.kind is not ErrorKind.GONE:
                    raise
                if tells_erased:
                    self._erased.append(f"{lines.kind}/{row['resource_id']}")
                continue
            # The index speaks of what is newest; this is what was.
            changed = row["changed"] and criteria
            if changed and not meets(stored, index_of(parse(stored.body)), criteria):
                continue
            found.append(stored)
        told = await asyncio.to_thread(self._told, found)
        lines.patients.update(one.patient_id for one in found if one.patient_id)
        await asyncio.to_thread(lines.add, told)

    def _told(self, found: list[Stored]) -> list[bytes]:
        """Return the lines of what the caller may see (NDJSON: no line breaks)."""
        bodies = [
            self._show(stored)
            for stored in found
            if sees(self._caller, stored, "r") and sees(self._caller, stored, "s")
        ]
        return [to_bytes(parse(b)) if b"\n" in b else b for b in bodies]


def _criteria(
    caller: Identity, kind: str, filters: list[tuple[Criterion, ...]]
) -> tuple[Criterion, ...]:
    """Return what resources of a type must meet: scopes, and one of the filters."""
    opened = (*narrowing(caller, kind, "r"), *narrowing(caller, kind, "s"))
    return (*opened, AnyOf(tuple(filters))) if filters else opened


async def _ids(
    tx: "Transaction", patients: tuple[str, ...] | None
) -> tuple[UUID, ...] | None:
    """Return every row of some patients; ids that none can have are nobody here."""
    if patients is None:
        return None
    others = await merges.named_with(tx, patients)
    found = []
    for one in (*patients, *(other for rows in others.values() for other in rows)):
        try:
            found.append(UUID(one))
        except ValueError:
            continue
    return tuple(dict.fromkeys(found))


def _erasure(name: str) -> Json:
    """Return how a client is told to forget a resource ("deleted" of the manifest)."""
    entry = {"request": {"method": "DELETE", "url": name}}
    return {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}


def _left_out(note: str) -> Json:
    return outcome([Issue("not-supported", note, severity="warning")])
