"""Writing over HTTP: create, update, patch and transaction (FHIR R4 3.1.0.4-11)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from fhir.conformance.validation import check, read_resource
from fhir.content.editing import Change, Edit, edit_report, reason_of
from fhir.content.tasks import failed_task, retry_task
from fhir.encoding.formats import (
    JSON_PATCH,
    PATCH_TYPES,
    check_content_type,
    prefers,
    read_body,
)
from fhir.encoding.outcome import STORED, Issue, Refused, outcome
from fhir.encoding.patch import Patch, read_fhirpath_patch, read_json_patch
from fhir.encoding.wire import Json, parse
from fhir.rest.creation import Clerk
from fhir.rest.exchange import ONE, PREFIX, TYPE, Answers, allowed, answered
from fhir.rest.transaction import (
    read_transaction,
    resolve_patches,
    to_response,
    version_of_etag,
)
from fhir.security.access import Interaction, require, require_scope
from fhir.settings import FhirSettings
from node.domain.access import Action, Identity
from node.domain.errors import ErrorKind, NodeError
from node.http import identity
from node.store import resources
from node.store.resources import StaleVersion, Stored

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_EDITED = frozenset({"DiagnosticReport", "Observation"})


class Writing:
    """The handlers of all that changes something."""

    def __init__(self, store: "Store", settings: FhirSettings) -> None:
        self._store = store
        self._settings = settings
        self._answers = Answers(store, settings)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the writing interactions."""
        return [
            web.post(PREFIX, self.transaction),
            web.post(f"{PREFIX}/", self.transaction),
            web.post(TYPE, self.create),
            web.put(ONE, self.update),
            web.patch(ONE, self.patch),
        ]

    async def create(self, request: web.Request) -> web.Response:
        """Store a new resource; 200 with the old one when If-None-Exist finds it."""
        caller, kind = allowed(request, Interaction.CREATE)
        notes: list[str] = []
        resource = read_resource(await read_body(request), kind)
        async with self._store.db.transaction() as tx:
            if kind == "Communication":
                edit = Edit(communication=resource)
                done = await edit_report(tx, self._store, self._settings, caller, edit)
                stored = done.communication
            elif kind == "Provenance":
                raise NodeError(
                    "a Provenance is sent in the transaction whose reason it gives",
                    ErrorKind.RULE,
                )
            else:
                clerk = Clerk(tx, self._store, self._settings, caller)
                condition = request.headers.get("If-None-Exist")
                if condition is not None:
                    require_scope(caller, kind, "s", whole=True)
                    known = await clerk.find_existing(kind, condition)
                    if known is not None:
                        return self._answers.written(request, caller, known, 200)
                stored = await clerk.create(resource)
                notes = clerk.notes
        if stored is None:
            raise NodeError("nothing was written", ErrorKind.INTEGRITY)
        return self._answers.written(request, caller, stored, 201, notes)

    async def update(self, request: web.Request) -> web.Response:
        """Store the next version of a resource; needs If-Match (428, 412)."""
        caller, kind = allowed(request, Interaction.UPDATE)
        resource = read_resource(await read_body(request), kind)
        if resource.get("id") != request.match_info["id"]:
            issue = Issue("invalid", "id and address differ", f"{kind}.id")
            raise Refused([issue], 400)
        if kind == "Task":
            return await self._retry(request, caller, resource)
        expected = version_of_etag(request.headers.get(hdrs.IF_MATCH))
        async with self._store.db.transaction() as tx:
            change = Change(resource, expected)
            stored, notes = await self._replace(tx, request, caller, change)
        return self._answers.written(request, caller, stored, 200, notes)

    async def patch(self, request: web.Request) -> web.Response:
        """Store what a patch makes of a resource; the rest is as for a PUT of that."""
        caller, kind = allowed(request, Interaction.PATCH)
        require(caller, kind, Interaction.READ)  # a patch can try what is there
        resource_id, patched = request.match_info["id"], await _read_patch(request)
        if kind == "Task":
            async with self._store.db.connection() as tx:
                task = await failed_task(tx, self._store, resource_id)
            return await self._retry(request, caller, _valid(patched(task)))
        expected = version_of_etag(request.headers.get(hdrs.IF_MATCH))
        async with self._store.db.transaction() as tx:
            seen = await self._seen(tx, caller, kind, resource_id, expected)
            change = Change(_valid(patched(seen)), expected)
            stored, notes = await self._replace(tx, request, caller, change)
        return self._answers.written(request, caller, stored, 200, notes)

    async def _seen(
        self,
        tx: "Transaction",
        caller: Identity,
        kind: str,
        resource_id: str,
        expected: int,
    ) -> Json:
        """Return the version that a patch is for, as its sender sees it.

        A patch of what is masked would tell by its success what is behind.
        """
        stored = await resources.read(tx, self._store, kind, resource_id)
        seen = parse(self._answers.show(caller)(stored))
        if stored.version != expected:
            raise StaleVersion(kind, resource_id, stored.version)
        return seen

    async def _replace(
        self, tx: "Transaction", request: web.Request, caller: Identity, change: Change
    ) -> tuple[Stored, Sequence[str]]:
        """Store the next version of a resource: the one way for PUT and PATCH."""
        kind = str(change.resource["resourceType"])
        if kind in _EDITED:
            edit = _edit_of(request, kind, change)
            done = await edit_report(tx, self._store, self._settings, caller, edit)
            return done.resources[kind, change.resource["id"]], ()
        clerk = Clerk(tx, self._store, self._settings, caller)
        stored = await clerk.update(change.resource, change.expected)
        return stored, clerk.notes

    async def _retry(
        self, request: web.Request, caller: Identity, task: Json
    ) -> web.Response:
        async with self._store.db.transaction() as tx:
            done = await retry_task(tx, self._store, caller, task["id"], task)
        wanted = prefers(request, "return")
        if wanted == "OperationOutcome":
            return answered(outcome([STORED]))
        return web.Response() if wanted == "minimal" else answered(done)

    async def transaction(self, request: web.Request) -> web.Response:
        """Carry out a transaction Bundle that edits one report, all or nothing."""
        caller = identity(request)
        caller.require(Action.EDIT_REPORT)
        bundle = read_resource(await read_body(request), "Bundle")
        wanted = prefers(request, "return")
        shown = wanted == "representation"
        async with self._store.db.transaction() as tx:

            async def seen(kind: str, resource_id: str, expected: int) -> Json:
                require(caller, kind, Interaction.PATCH)
                require(caller, kind, Interaction.READ)
                return await self._seen(tx, caller, kind, resource_id, expected)

            edit, entries = read_transaction(await resolve_patches(bundle, seen))
            for entry in entries:
                written = entry.method == hdrs.METH_POST
                interaction = Interaction.CREATE if written else Interaction.UPDATE
                kind = str(entry.resource["resourceType"])
                require(caller, kind, interaction)
                if shown:
                    require_scope(caller, kind, "r", whole=True)
            done = await edit_report(tx, self._store, self._settings, caller, edit)
        show = self._answers.show(caller) if shown else None
        told = wanted == "OperationOutcome"
        return answered(
            to_response(entries, done, self._settings.base_url, show, told=told)
        )


async def _read_patch(request: web.Request) -> Patch:
    check_content_type(request, PATCH_TYPES)
    if request.content_type == JSON_PATCH:
        return read_json_patch(await request.read())
    return read_fhirpath_patch(read_resource(await read_body(request), "Parameters"))


def _valid(resource: Json) -> Json:
    check(resource)
    return resource


def _edit_of(request: web.Request, kind: str, change: Change) -> Edit:
    header = request.headers.get("X-Provenance")
    reason = reason_of(parse(header.encode())) if header else None
    if kind == "DiagnosticReport":
        return Edit(report=change, reason=reason)
    return Edit(observations=(change,), reason=reason)
