"""The RESTful API below /fhir (FHIR R4 4.0.1): requests in, resources out.

Who may do what is in `fhir.security.access`, what a search means in
`fhir.search.parameters`, what an edit of a report does in `fhir.content.editing`.
Here is HTTP: negotiation, ETags, status codes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from fhir.conformance.capability import capability_statement
from fhir.conformance.validation import check, read_resource
from fhir.content.editing import Change, Edit, edit_report, reason_of
from fhir.content.tasks import failed_task, failed_tasks, retry_task, search_tasks
from fhir.encoding.formats import (
    FORM,
    JSON_PATCH,
    LONG_BYTES,
    PATCH_TYPES,
    asked_in_form,
    check_content_type,
    form,
    negotiated,
    prefers,
    read_body,
    readable,
    shaped,
)
from fhir.encoding.outcome import (
    CONTENT_TYPE,
    STORED,
    Issue,
    Refused,
    outcome,
    refusal,
    render_error,
)
from fhir.encoding.patch import Patch, read_fhirpath_patch, read_json_patch
from fhir.encoding.wire import Json, parse, to_bytes
from fhir.rest.creation import Clerk
from fhir.rest.transaction import (
    read_transaction,
    resolve_patches,
    to_response,
    version_of_etag,
)
from fhir.search.bundles import MAX_COUNT, Searcher, history_bundle
from fhir.search.views import View, read_subset
from fhir.security.access import PERMITS, Interaction, require, require_scope
from fhir.security.scoping import sees
from fhir.settings import FhirSettings
from fhir.subscriptions import hooks
from fhir.subscriptions.notification import notification, status_parameters
from node.domain.access import Action, Identity
from node.domain.errors import ErrorKind, NodeError
from node.http import Failure, RouteGroup, identity
from node.store import resources
from node.store import subscriptions as stored_subscriptions
from node.store.opened import NewestVersions
from node.store.resources import StaleVersion, Stored

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

PREFIX = "/fhir"
_TYPE = "{type:[A-Z][A-Za-z]{1,63}}"
_ONE = f"{PREFIX}/{_TYPE}/{{id:[A-Za-z0-9.-]{{1,64}}}}"
_EDITED = frozenset({"DiagnosticReport", "Observation"})

Handler = Callable[[web.Request], Awaitable[web.Response]]
Told = Callable[[web.Request], Awaitable[web.StreamResponse]]


def route_group(store: "Store", settings: FhirSettings, version: str) -> RouteGroup:
    """Return all that is served below /fhir, for `node.http.make_app`."""
    rest = Rest(store, settings, version)
    return RouteGroup(
        prefix=PREFIX,
        routes=rest.routes(),
        public=frozenset({f"{PREFIX}/metadata"}),
        admits=lambda _: (
            True
        ),  # `fhir.security.access` holds every request against its scopes
        render_error=_render_error,
    )


class Rest:
    """The handlers; one instance serves all requests of a process."""

    def __init__(self, store: "Store", settings: FhirSettings, version: str) -> None:
        self._store = store
        self._settings = settings
        self._version = version
        self._started = store.clock()
        self._newest = NewestVersions(store)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes; everything else below /fhir is 404 or 405."""
        return [
            web.get(f"{PREFIX}/metadata", _told(self.metadata)),
            web.post(PREFIX, _told(self.transaction)),
            web.post(f"{PREFIX}/", _told(self.transaction)),
            web.get(f"{PREFIX}/{_TYPE}", _told(self.search)),
            web.post(f"{PREFIX}/{_TYPE}", _told(self.create)),
            web.post(f"{PREFIX}/{_TYPE}/_search", _told(self.search)),
            web.get(_ONE, _told(self.read)),
            web.put(_ONE, _told(self.update)),
            web.patch(_ONE, _told(self.patch)),
            web.get(f"{_ONE}/_history", _told(self.history)),
            web.get(f"{_ONE}/_history/{{version}}", _told(self.read_version)),
            web.get(f"{PREFIX}/Subscription/{{id}}/$status", _told(self.status)),
            web.get(f"{PREFIX}/Subscription/{{id}}/$events", _told(self.events)),
        ]

    # --- reading ------------------------------------------------------------------

    async def metadata(self, request: web.Request) -> web.Response:
        """Answer what this server can do; needs no caller."""
        base_url = self._settings.base_url
        return _json(capability_statement(base_url, self._version, self._started))

    async def read(self, request: web.Request) -> web.Response:
        """Answer the newest version of a resource; 304 when the caller has it."""
        caller, kind = self._allowed(request, Interaction.READ)
        resource_id = request.match_info["id"]
        if kind == "Task":
            async with self._store.db.connection() as tx:
                return _json(await failed_task(tx, self._store, resource_id))
        stored = await self._newest.read(kind, resource_id)
        _require_seen(caller, stored)
        if request.headers.get(hdrs.IF_NONE_MATCH) == _etag(stored):
            return web.Response(status=304, headers=_version_headers(stored))
        return self._answer(request, caller, stored)

    async def read_version(self, request: web.Request) -> web.Response:
        """Answer one version of a resource."""
        caller, kind = self._allowed(request, Interaction.VREAD)
        number = request.match_info["version"]
        if not number.isdecimal() or len(number) > 9:
            raise NodeError("there is no such version", ErrorKind.NOT_FOUND)
        async with self._store.db.connection() as tx:
            stored = await resources.read_version(
                tx, self._store, kind, request.match_info["id"], int(number)
            )
        _require_seen(caller, stored)
        return self._answer(request, caller, stored)

    async def history(self, request: web.Request) -> web.Response:
        """Answer the versions of a resource, newest first, in pages."""
        caller, kind = self._allowed(request, Interaction.HISTORY)
        resource_id = request.match_info["id"]
        count = _number(request, "_count", self._settings.page_size, 1, MAX_COUNT)
        before = _number(request, "_before", 0, 0, 2**31 - 1) or None
        async with self._store.db.connection() as tx:
            versions = await resources.history(
                tx, self._store, kind, resource_id, before=before, count=count
            )
        seen = [version for version in versions if sees(caller, version)]
        if not seen:
            raise NodeError(f"{kind}/{resource_id} is not known", ErrorKind.NOT_FOUND)
        base_url, oldest = self._settings.base_url, versions[-1].version
        following = (
            f"{base_url}/{kind}/{resource_id}/_history?_count={count}&_before={oldest}"
            if oldest > 1
            else None
        )
        return _json(history_bundle(seen, base_url, self._show(caller), following))

    async def search(self, request: web.Request) -> web.Response:
        """Answer a search by GET or by POST _search."""
        caller, kind = self._allowed(request, Interaction.SEARCH)
        parameters = list(request.query.items())
        if request.method == hdrs.METH_POST:
            if request.content_type != FORM:
                raise Refused([Issue("not-supported", f"_search takes {FORM}")], 415)
            parameters += form(await request.read())
        strict = prefers(request, "handling") == "strict"
        if kind == "Task":
            return await self._search_tasks(parameters, strict=strict)
        searcher = Searcher(
            self._store,
            self._settings,
            caller,
            self._settings.base_url,
            self._show(caller),
        )
        body = await searcher.search(kind, parameters, strict=strict)
        return web.Response(body=body, content_type=CONTENT_TYPE)

    async def _search_tasks(
        self, parameters: list[tuple[str, str]], *, strict: bool
    ) -> web.Response:
        async with self._store.db.transaction(readonly=True) as tx:
            tasks = await failed_tasks(tx, self._store)
        base_url = self._settings.base_url
        return _json(search_tasks(tasks, parameters, base_url, strict=strict))

    # --- writing ------------------------------------------------------------------

    async def create(self, request: web.Request) -> web.Response:
        """Store a new resource; 200 with the old one when If-None-Exist finds it."""
        caller, kind = self._allowed(request, Interaction.CREATE)
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
                        return self._written(request, caller, known, 200)
                stored = await clerk.create(resource)
                notes = clerk.notes
        if stored is None:
            raise NodeError("nothing was written", ErrorKind.INTEGRITY)
        return self._written(request, caller, stored, 201, notes)

    async def update(self, request: web.Request) -> web.Response:
        """Store the next version of a resource; needs If-Match (428, 412)."""
        caller, kind = self._allowed(request, Interaction.UPDATE)
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
        return self._written(request, caller, stored, 200, notes)

    async def patch(self, request: web.Request) -> web.Response:
        """Store what a patch makes of a resource; the rest is as for a PUT of that."""
        caller, kind = self._allowed(request, Interaction.PATCH)
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
        return self._written(request, caller, stored, 200, notes)

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
        seen = parse(self._show(caller)(stored))
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
            return _json(outcome([STORED]))
        return web.Response() if wanted == "minimal" else _json(done)

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
        show = self._show(caller) if shown else None
        told = wanted == "OperationOutcome"
        return _json(
            to_response(entries, done, self._settings.base_url, show, told=told)
        )

    # --- operations on subscriptions --------------------------------------------------

    async def status(self, request: web.Request) -> web.Response:
        """Answer Subscription/[id]/$status."""
        subscription, _ = await self._subscription(request, 0, 0)
        parameters = status_parameters(self._settings, subscription, "query-status")
        bundle: Json = {
            "resourceType": "Bundle",
            "type": "searchset",
            "total": 1,
            "entry": [{"resource": parameters, "search": {"mode": "match"}}],
        }
        return _json(bundle)

    async def events(self, request: web.Request) -> web.Response:
        """Answer Subscription/[id]/$events: what a subscriber may have missed."""
        since = _number(request, "eventsSinceNumber", 1, 0, 2**62)
        until = _number(request, "eventsUntilNumber", 2**62, 0, 2**62)
        content = request.query.get("content")
        if content not in (None, "empty", "id-only", "full-resource"):
            issue = Issue("value", "empty, id-only or full-resource", "content")
            raise Refused([issue], 400)
        subscription, events = await self._subscription(request, since, until)
        return _json(
            notification(
                self._settings, subscription, "query-event", events, content=content
            )
        )

    async def _subscription(
        self, request: web.Request, since: int, until: int
    ) -> tuple[stored_subscriptions.Subscription, list[stored_subscriptions.Event]]:
        caller = identity(request)
        require(caller, "Subscription", Interaction.READ)
        subscription_id = hooks.read_id(request.match_info["id"])
        async with self._store.db.transaction(readonly=True) as tx:
            subscription = await stored_subscriptions.read(
                tx, self._store, subscription_id
            )
            hooks.require_topic(caller, {"criteria": subscription.topic})
            found = await stored_subscriptions.events(
                tx, self._store, subscription_id, since=since, until=until
            )
        return subscription, found

    # --- answering ------------------------------------------------------------------

    def _allowed(
        self, request: web.Request, interaction: Interaction
    ) -> tuple[Identity, str]:
        """Return the caller and the resource type; refuse what is not permitted."""
        caller, kind = identity(request), request.match_info["type"]
        if kind in PERMITS and interaction not in PERMITS[kind]:
            issue = Issue(
                "not-supported", f"{interaction.value} is not offered for {kind}"
            )
            raise Refused(
                [issue], 405, ErrorKind.UNSUPPORTED, {hdrs.ALLOW: _allow(request, kind)}
            )
        require(caller, kind, interaction)
        return caller, kind

    def _show(self, caller: Identity) -> View:
        """Return how this caller sees a stored resource."""
        return View(self._store, caller)

    def _answer(
        self, request: web.Request, caller: Identity, stored: Stored
    ) -> web.Response:
        show = self._show(caller)
        asked = request.query
        if "_summary" in asked or "_elements" in asked:
            subset = read_subset(asked.get("_summary"), asked.get("_elements"))
            show = show.narrowed(subset)
        return web.Response(
            body=show(stored),
            content_type=CONTENT_TYPE,
            headers=_version_headers(stored),
        )

    def _written(
        self,
        request: web.Request,
        caller: Identity,
        stored: Stored,
        status: int,
        notes: Sequence[str] = (),
    ) -> web.Response:
        """Answer what was stored; `notes` go along as warnings (RFC 7234 5.5)."""
        address = f"{stored.resource_type}/{stored.resource_id}"
        location = f"{self._settings.base_url}/{address}/_history/{stored.version}"
        headers = _version_headers(stored) | {hdrs.LOCATION: location}
        if notes:
            headers["Warning"] = ", ".join(f'299 sononode "{note}"' for note in notes)
        wanted = prefers(request, "return")
        if wanted == "minimal" or not sees(caller, stored):
            return web.Response(status=status, headers=headers)
        if wanted == "OperationOutcome":
            more = [Issue("informational", n, severity="information") for n in notes]
            body = to_bytes(outcome([STORED, *more]))
        else:
            body = self._show(caller)(stored)
        return web.Response(
            status=status, body=body, content_type=CONTENT_TYPE, headers=headers
        )


def _told(handler: Handler) -> Told:
    """Return `handler` with its answers, named refusals too, in the form asked for.

    What it does not name travels on: `node.http` counts and words it.
    """

    async def told(request: web.Request) -> web.StreamResponse:
        try:
            how = negotiated(request, await asked_in_form(request))
        except Refused as error:
            return shaped(refusal(error), readable(request))
        try:
            response = await handler(request)
        except (Refused, StaleVersion) as error:
            response = refusal(error)
        body = response.body
        if how.rewrites and isinstance(body, bytes) and len(body) > LONG_BYTES:
            return await asyncio.to_thread(shaped, response, how)
        return shaped(response, how)

    return told


def _render_error(failure: Failure) -> web.Response:
    response = render_error(failure)
    if failure.request is None:
        return response
    return shaped(response, readable(failure.request))


def _require_seen(caller: Identity, stored: Stored) -> None:
    """Raise NOT_FOUND for a resource that the caller's token does not open.

    The same as for one that is not there: whether it is, is an answer too.
    """
    if not sees(caller, stored):
        address = f"{stored.resource_type}/{stored.resource_id}"
        raise NodeError(f"{address} is not known", ErrorKind.NOT_FOUND)


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


def _json(resource: Json) -> web.Response:
    return web.Response(body=to_bytes(resource), content_type=CONTENT_TYPE)


def _etag(stored: Stored) -> str:
    return f'W/"{stored.version}"'


def _version_headers(stored: Stored) -> dict[str, str]:
    modified = stored.last_updated.strftime("%a, %d %b %Y %H:%M:%S GMT")
    return {hdrs.ETAG: _etag(stored), hdrs.LAST_MODIFIED: modified}


def _allow(request: web.Request, kind: str) -> str:
    methods: Mapping[Interaction, str]
    if "id" in request.match_info:
        methods = {
            Interaction.READ: "GET",
            Interaction.UPDATE: "PUT",
            Interaction.PATCH: "PATCH",
        }
    else:
        methods = {Interaction.SEARCH: "GET", Interaction.CREATE: "POST"}
    return ", ".join(m for i, m in methods.items() if i in PERMITS[kind])


def _number(
    request: web.Request, name: str, default: int, lowest: int, highest: int
) -> int:
    value = request.query.get(name)
    if value is None:
        return default
    if not value.isdecimal() or len(value) > 19:
        raise Refused([Issue("value", f"{name} is a number", name)], 400)
    return max(lowest, min(int(value), highest))
