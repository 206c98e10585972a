"""The RESTful API below /fhir (FHIR R4 4.0.1): requests in, resources out.

Who may do what is in `fhir.security.access`, what a search means in
`fhir.search.parameters`, what an edit of a report does in `fhir.content.editing`.
The rooms beside this module are HTTP: ETags, status codes. Here they come
together, and what they answer gets the form that was asked for.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, cast

from aiohttp import hdrs, web

from fhir.audit.access import describe
from fhir.audit.reading import AuditEvents
from fhir.conformance.capability import capability_statement
from fhir.encoding.formats import (
    LONG_BYTES,
    asked_in_form,
    negotiated,
    readable,
    shaped,
)
from fhir.encoding.outcome import CONTENT_TYPE, Refused, refusal, render_error
from fhir.encoding.wire import to_bytes
from fhir.export.operations import Exports
from fhir.rest.bundled import Bundled
from fhir.rest.definitions import Definitions
from fhir.rest.documents import Documents
from fhir.rest.everything import Everything
from fhir.rest.exchange import PREFIX
from fhir.rest.freshness import matches
from fhir.rest.reading import Reading
from fhir.rest.subscription_operations import SOCKET, SubscriptionOperations
from fhir.rest.terminology import Terminology
from fhir.rest.validating import Validation
from fhir.rest.writing import Writing
from fhir.settings import FhirSettings
from fhir.subscriptions.sockets import Sockets
from node.domain.errors import ErrorKind
from node.http import Failure, RouteGroup
from node.store.database import TooCostly
from node.store.resources import StaleVersion

if TYPE_CHECKING:
    from node.store.store import Store

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def route_group(store: "Store", settings: FhirSettings, version: str) -> RouteGroup:
    """Return all that is served below /fhir, for `node.http.make_app`.

    Everything that is no route of a room here is 404 or 405.
    """
    sockets = Sockets(store, settings)
    reading = Reading(store, settings, Definitions(settings, version))
    writing = Writing(store, settings)
    everything = Everything(store, settings)
    bundled = Bundled(store, settings, reading, writing, everything.everything)
    routes = [
        web.get(SOCKET, sockets.serve),
        *_Metadata(store, settings, version).routes(),
        *SubscriptionOperations(store, settings).routes(),
        *AuditEvents(store, settings).routes(),
        *Validation(store, settings, writing).routes(),
        *Terminology(version, store.clock).routes(),
        *everything.routes(),
        *reading.routes(),
        *writing.routes(),
        *bundled.routes(),
    ]
    return RouteGroup(
        prefix=PREFIX,
        routes=[
            *Exports(store, settings).routes(),
            *Documents(store).routes(),
            *(
                web.route(r.method, r.path, _told(cast("Handler", r.handler)))
                for r in routes
            ),
        ],
        public=frozenset({f"{PREFIX}/metadata", SOCKET}),
        on_shutdown=(sockets.close,),
        unrecorded=frozenset({f"{PREFIX}/metadata"}),
        describe=partial(describe, store),
        admits=lambda _: (
            True
        ),  # `fhir.security.access` holds every request against its scopes
        render_error=_render_error,
    )


class _Metadata:
    """Tells what this server can do; needs no caller."""

    def __init__(self, store: "Store", settings: FhirSettings, version: str) -> None:
        self._base_url = settings.base_url
        self._topics = settings.topics
        self._version = version
        self._sends_reports = bool(settings.repositories)
        self._started = store.clock()

    def routes(self) -> list[web.RouteDef]:
        return [web.get(f"{PREFIX}/metadata", self.metadata)]

    async def metadata(self, request: web.Request) -> web.Response:
        """Answer the CapabilityStatement, whatever `mode`; 304 when it is known."""
        statement = to_bytes(
            capability_statement(
                self._base_url,
                self._version,
                self._started,
                sorted(self._topics),
                sends_reports=self._sends_reports,
            )
        )
        headers = {hdrs.ETAG: f'W/"{sha256(statement).hexdigest()[:16]}"'}
        if matches(request.headers, headers[hdrs.ETAG]):
            return web.Response(status=304, headers=headers)
        return web.Response(body=statement, content_type=CONTENT_TYPE, headers=headers)


def _told(handler: Handler) -> Handler:
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
        except (Refused, StaleVersion, TooCostly) as error:
            response = refusal(error)
        if not isinstance(response, web.Response):
            return response  # sent piece by piece, in a form of its own
        body = response.body
        if how.rewrites and isinstance(body, bytes) and len(body) > LONG_BYTES:
            return await asyncio.to_thread(shaped, response, how)
        return shaped(response, how)

    return told


# What a client does in the place of an operation that other servers have.
_INSTEAD = {
    "$merge": "update the Patient that gives way with a link replaced-by to the one"
    " that stands",
    "$match": "search Patient by identifier, or by name and birthdate",
}
_OPERATION = re.compile(r"\$[a-z-]{1,64}")


def _render_error(failure: Failure) -> web.Response:
    request = failure.request
    if request is None:
        return render_error(failure)
    name, route = request.path.rpartition("/")[2], request.match_info.route
    if route.resource is None and _OPERATION.fullmatch(name) and failure.status == 404:
        told = _INSTEAD.get(name, "the CapabilityStatement lists those that there are")
        failure = replace(
            failure,
            kind=ErrorKind.UNSUPPORTED,
            message=f"there is no operation {name} here: {told}",
        )
    return shaped(render_error(failure), readable(request))
