"""What every interaction below /fhir shares: who asks, and how it is answered."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from fhir.encoding.formats import prefers
from fhir.encoding.outcome import CONTENT_TYPE, STORED, Issue, Refused, outcome
from fhir.encoding.wire import Json, to_bytes
from fhir.search.views import View, read_subset
from fhir.security.access import PERMITS, Interaction, require
from fhir.security.scoping import sees
from fhir.settings import FhirSettings
from node.domain.access import Identity
from node.domain.audit import note_patient
from node.domain.errors import ErrorKind, NodeError
from node.http import identity
from node.store.resources import Stored

if TYPE_CHECKING:
    from node.store.store import Store

PREFIX = "/fhir"
TYPE = f"{PREFIX}/{{type:[A-Z][A-Za-z]{{1,63}}}}"
ONE = f"{TYPE}/{{id:[A-Za-z0-9.-]{{1,64}}}}"


class Answers:
    """Puts stored resources into responses, as their caller may see them."""

    def __init__(self, store: "Store", settings: FhirSettings) -> None:
        self._store = store
        self._settings = settings

    def show(self, caller: Identity) -> View:
        """Return how this caller sees a stored resource."""
        return View(self._store, caller)

    def read(
        self, request: web.Request, caller: Identity, stored: Stored
    ) -> web.Response:
        """Answer a resource, or as much of it as was asked for."""
        show = self.show(caller)
        asked = request.query
        if "_summary" in asked or "_elements" in asked:
            subset = read_subset(asked.get("_summary"), asked.get("_elements"))
            show = show.narrowed(subset)
        return web.Response(
            body=show(stored),
            content_type=CONTENT_TYPE,
            headers=version_headers(stored),
        )

    def written(
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
        headers = version_headers(stored) | {hdrs.LOCATION: location}
        if notes:
            headers["Warning"] = ", ".join(f'299 sononode "{note}"' for note in notes)
        wanted = prefers(request, "return")
        if wanted == "minimal" or not sees(caller, stored):
            return web.Response(status=status, headers=headers)
        if wanted == "OperationOutcome":
            more = [Issue("informational", n, severity="information") for n in notes]
            body = to_bytes(outcome([STORED, *more]))
        else:
            body = self.show(caller)(stored)
        return web.Response(
            status=status, body=body, content_type=CONTENT_TYPE, headers=headers
        )


def allowed(request: web.Request, interaction: Interaction) -> tuple[Identity, str]:
    """Return the caller and the resource type; refuse what is not permitted."""
    caller, kind = identity(request), request.match_info["type"]
    if kind in PERMITS and interaction not in PERMITS[kind]:
        issue = Issue("not-supported", f"{interaction.value} is not offered for {kind}")
        raise Refused(
            [issue], 405, ErrorKind.UNSUPPORTED, {hdrs.ALLOW: _allow(request, kind)}
        )
    require(caller, kind, interaction)
    return caller, kind


def require_seen(caller: Identity, stored: Stored) -> None:
    """Raise NOT_FOUND for a resource that the caller's token does not open.

    The same as for one that is not there: whether it is, is an answer too.
    """
    if not sees(caller, stored):
        address = f"{stored.resource_type}/{stored.resource_id}"
        raise NodeError(f"{address} is not known", ErrorKind.NOT_FOUND)
    note_patient(stored.patient_id)  # a 304 tells of her without showing anything


def answered(resource: Json) -> web.Response:
    """Answer a resource that was made for this request."""
    return web.Response(body=to_bytes(resource), content_type=CONTENT_TYPE)


def etag(stored: Stored) -> str:
    """Return the ETag of a version (FHIR R4 3.1.0.1.3)."""
    return f'W/"{stored.version}"'


def version_headers(stored: Stored) -> dict[str, str]:
    """Return the headers that tell which version a response holds."""
    modified = stored.last_updated.strftime("%a, %d %b %Y %H:%M:%S GMT")
    return {hdrs.ETAG: etag(stored), hdrs.LAST_MODIFIED: modified}


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


def number(
    request: web.Request, name: str, default: int, lowest: int, highest: int
) -> int:
    """Return a whole number of the query, brought between its bounds."""
    value = request.query.get(name)
    if value is None:
        return default
    if not value.isdecimal() or len(value) > 19:
        raise Refused([Issue("value", f"{name} is a number", name)], 400)
    return max(lowest, min(int(value), highest))
