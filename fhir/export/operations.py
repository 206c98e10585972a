"""`$export` over HTTP (Bulk Data Access 2.0): asked for, watched, fetched, removed.

Only the program that asked for an export gets to know that it exists. What is begun
stands in the audit trail with it; each request does anyway (`fhir.audit`).
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING
from uuid import UUID

from aiohttp import hdrs, web

from fhir.conformance.validation import read_resource
from fhir.encoding.formats import negotiated, prefers, read_body, readable, shaped
from fhir.encoding.outcome import Issue, Refused, refusal, respond
from fhir.encoding.wire import Json, instant, to_bytes
from fhir.export.requests import (
    NDJSON,
    ExportRequest,
    exporter,
    of_parameters,
    read_request,
    same_or_wider,
)
from fhir.rest.exchange import PREFIX
from fhir.settings import FhirSettings
from node.domain.access import Identity
from node.domain.audit import AuditEntry, note_patient
from node.domain.errors import ErrorKind, NodeError
from node.http import identity
from node.store import audit, exports
from node.store.exports import Export, File, TooManyExports

if TYPE_CHECKING:
    from node.store.blobs import BlobReader
    from node.store.store import Store

SYSTEM = f"{PREFIX}/$export"
PATIENTS = f"{PREFIX}/Patient/$export"
_ONE = f"{PREFIX}/exports/{{export_id:[0-9a-f-]{{36}}}}"
_FILE = f"{_ONE}/{{number:[0-9]{{1,6}}}}.ndjson"
_CHUNK = 1 << 20
_PATIENTS_NAMED = 200
_SOONEST_S, _LATEST_S = 2, 60

Handler = Callable[[web.Request, Identity], Awaitable[web.StreamResponse]]


class Exports:
    """The handlers of `$export`, of what it answers with, and of the files."""

    def __init__(self, store: "Store", settings: FhirSettings) -> None:
        self._store = store
        self._settings = settings

    def routes(self) -> list[web.RouteDef]:
        """Return the routes; their answers are in a form of their own."""
        told = self._told
        return [
            web.get(SYSTEM, told(self.kick_off), allow_head=False),
            web.post(SYSTEM, told(self.kick_off)),
            web.get(PATIENTS, told(self.kick_off), allow_head=False),
            web.post(PATIENTS, told(self.kick_off)),
            web.get(_ONE, told(self.status), allow_head=False),
            web.delete(_ONE, told(self.cancel)),
            web.get(_FILE, told(self.file), allow_head=False),
        ]

    async def kick_off(
        self, request: web.Request, caller: Identity
    ) -> web.StreamResponse:
        """Take an export in; 202 tells where to ask how it is."""
        negotiated(request)
        if not _respond_async(request):
            issue = Issue("required", "send Prefer: respond-async", "Prefer")
            raise Refused([issue], 400)
        asked = await self._read(request, caller)
        detail = {"step": "kick-off", "types": ",".join(asked.types)}
        async with self._store.db.transaction() as tx:
            try:
                export_id = await exports.begin(
                    tx,
                    self._store,
                    UUID(caller.user_id),
                    asked.to_json(),
                    at_once=self._settings.exports_at_once,
                )
            except TooManyExports as error:
                raise _too_often(error.message, _LATEST_S) from None
            await audit.record(
                tx,
                AuditEntry(
                    at=self._store.clock(),
                    actor=caller.user_id,
                    role=",".join(sorted(role.value for role in caller.roles)),
                    action="fhir operation $export",
                    entity=f"Export/{export_id}",
                    detail=detail,
                ),
            )
        place = f"{self._settings.base_url}/exports/{export_id}"
        told = Issue("informational", "the export is under way", severity="information")
        return respond([told], 202, {hdrs.CONTENT_LOCATION: place})

    async def _read(self, request: web.Request, caller: Identity) -> ExportRequest:
        asked, posted = list(request.query.items()), False
        if request.method == hdrs.METH_POST:
            if asked:
                raise Refused([Issue("invalid", "POST takes Parameters alone")], 400)
            body = read_resource(await read_body(request), "Parameters")
            asked, posted = list(of_parameters(body)), True
        root = self._settings.base_url.removesuffix(PREFIX)
        return read_request(
            caller,
            asked,
            f"{root}{request.rel_url}",
            of_patients=request.path == PATIENTS,
            posted=posted,
            lenient=prefers(request, "handling") == "lenient",
            base_url=self._settings.base_url,
        )

    async def status(
        self, request: web.Request, caller: Identity
    ) -> web.StreamResponse:
        """Answer how an export is: 202 under way, 200 with the manifest."""
        export = await self._export(request, caller)
        if export.state == "failed":
            words = "the export could not be completed; ask for it again"
            return respond([Issue("exception", words)], 500)
        if export.state == "running":
            return await self._progress(export)
        async with self._store.db.connection() as tx:
            written = await exports.files(tx, export.id)
        headers = {}
        if export.expires_at is not None:
            headers["Expires"] = format_datetime(export.expires_at, usegmt=True)
        body = manifest(self._settings.base_url, export, written)
        return web.Response(
            body=to_bytes(body), content_type="application/json", headers=headers
        )

    async def _progress(self, export: Export) -> web.Response:
        age = self._store.clock() - export.created_at
        pause = min(_LATEST_S, max(_SOONEST_S, int(age.total_seconds()) // 10))
        async with self._store.db.transaction() as tx:
            # Half of what was told: clocks and networks are not exact.
            due = await exports.polled(
                tx, self._store, export.id, timedelta(seconds=pause / 2)
            )
        if not due:
            raise _too_often("wait for Retry-After before asking again", pause)
        types = len(export.asked["types"])
        told = f"{export.resources} resources, {export.place} of {types} types"
        headers = {"X-Progress": told, hdrs.RETRY_AFTER: str(pause)}
        return web.Response(status=202, headers=headers)

    async def cancel(
        self, request: web.Request, caller: Identity
    ) -> web.StreamResponse:
        """End an export and take its files away (202); afterwards it is not known."""
        export = await self._export(request, caller)
        async with self._store.db.transaction() as tx:
            await exports.remove(tx, self._store, export.id)
        told = Issue("informational", "the export is removed", severity="information")
        return respond([told], 202)

    async def file(self, request: web.Request, caller: Identity) -> web.StreamResponse:
        """Send one file, as gzip to who takes that; the rest is never in memory."""
        export = await self._export(request, caller)
        async with self._store.db.transaction(readonly=True) as tx:
            written = {one.number: one for one in await exports.files(tx, export.id)}
            found = written.get(int(request.match_info["number"]))
            if found is None or export.state != "complete":
                raise _unknown()
            sealer = await exports.key(tx, self._store, export.id)
            # Who is among thousands is told by what was asked for.
            few = await exports.patients_in(
                tx, export.id, found.number, most=_PATIENTS_NAMED
            )
        scopes = str(export.asked["scopes"])
        kinds = {
            "output": [found.resource_type],
            "deleted": export.asked["types"],  # any of them may be named there
            "error": [],  # notes on the request hold no resource
        }[found.output]
        if not all(same_or_wider(caller, scopes, kind) for kind in kinds):
            raise NodeError(
                f"the token has no scope for this file of {found.resource_type}",
                ErrorKind.FORBIDDEN,
            )
        for patient_id in few:
            note_patient(patient_id)
        reader = await asyncio.to_thread(
            exports.read_file, self._store, sealer, export.id, found
        )
        with reader:
            return await _send(request, reader, found)

    # --- inside -------------------------------------------------------------------

    async def _export(self, request: web.Request, caller: Identity) -> Export:
        """Return the export that is meant; nobody else's is known to the caller."""
        try:
            export_id = UUID(request.match_info["export_id"])
        except ValueError:
            raise _unknown() from None
        async with self._store.db.transaction(readonly=True) as tx:
            export = await exports.find(tx, self._store, export_id)
        now = self._store.clock()
        if export is None or str(export.client_id) != caller.user_id:
            raise _unknown()
        if export.expires_at is not None and export.expires_at <= now:
            raise _unknown()
        return export

    def _told(
        self, handler: Handler
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Return `handler` for programs that may export, with its refusals worded."""

        async def told(request: web.Request) -> web.StreamResponse:
            try:
                return await handler(request, exporter(identity(request)))
            except Refused as error:
                return shaped(refusal(error), readable(request))

        return told


def manifest(base_url: str, export: Export, written: list[File]) -> Json:
    """Return what tells a client which files there are ("Response - Complete Status").

    Resources are withdrawn here, never deleted: `deleted` has those of patients who
    were erased after `_since`.
    """
    listed: dict[str, list[Json]] = {"output": [], "deleted": [], "error": []}
    for file in written:
        listed[file.output].append(
            {
                "type": file.resource_type,
                "url": f"{base_url}/exports/{export.id}/{file.number}.ndjson",
                "count": file.resources,
            }
        )
    return {
        "transactionTime": instant(export.transaction_time),
        "request": export.asked["url"],
        "requiresAccessToken": True,
        **listed,
    }


async def _send(
    request: web.Request, reader: "BlobReader", file: File
) -> web.StreamResponse:
    packed = _takes_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, ""))
    response = web.StreamResponse(headers={hdrs.VARY: hdrs.ACCEPT_ENCODING})
    response.content_type = NDJSON
    response.content_length = file.packed_size if packed else file.size
    if packed:
        response.headers[hdrs.CONTENT_ENCODING] = "gzip"
    pieces = reader.chunks() if packed else _unpacked(reader)
    # What is damaged on disk is told before the first byte: later there is no status.
    piece = await asyncio.to_thread(next, pieces, None)
    await response.prepare(request)
    while piece is not None:
        await response.write(piece)
        piece = await asyncio.to_thread(next, pieces, None)
    await response.write_eof()
    return response


def _unpacked(reader: "BlobReader") -> Iterator[bytes]:
    """Yield the lines of a file in pieces of bounded size."""
    unpack = zlib.decompressobj(16 + zlib.MAX_WBITS)
    for chunk in reader.chunks():
        piece = unpack.decompress(chunk, _CHUNK)
        while piece:
            yield piece
            piece = unpack.decompress(unpack.unconsumed_tail, _CHUNK)


def _takes_gzip(accepted: str) -> bool:
    """Tell whether Accept-Encoding lets gzip in (RFC 9110 12.5.3)."""
    weights: dict[str, str] = {}
    for part in accepted.lower().split(","):
        name, _, weight = part.strip().partition(";")
        weights[name.strip()] = weight.replace(" ", "")
    weight = weights.get("gzip", weights.get("*", "q=0"))
    return weight not in ("q=0", "q=0.0", "q=0.00", "q=0.000")


def _respond_async(request: web.Request) -> bool:
    headers = ",".join(request.headers.getall("Prefer", [])).replace(";", ",")
    return any(part.strip().lower() == "respond-async" for part in headers.split(","))


def _too_often(words: str, retry_after_s: int) -> Refused:
    return Refused(
        [Issue("throttled", words)],
        429,
        headers={hdrs.RETRY_AFTER: str(retry_after_s)},
    )


def _unknown() -> NodeError:
    return NodeError("this export is not known, or not any more", ErrorKind.NOT_FOUND)
