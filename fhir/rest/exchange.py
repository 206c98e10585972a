"""What every interaction below /fhir shares: who asks what, and how it is answered."""

from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from multidict import CIMultiDict

from fhir.conformance.validation import read_resource
from fhir.encoding.formats import prefers, read_body
from fhir.encoding.outcome import CONTENT_TYPE, STORED, Issue, Refused, outcome
from fhir.encoding.patch import Patch
from fhir.encoding.wire import Json, to_bytes
from fhir.rest.creation import Clerk
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
    from multidict import MultiMapping

    from node.store.database import Transaction
    from node.store.store import Store

PREFIX = "/fhir"
TYPE = f"{PREFIX}/{{type:[A-Z][A-Za-z]{{1,63}}}}"
ONE = f"{TYPE}/{{id:[A-Za-z0-9.-]{{1,64}}}}"

Parameters = Sequence[tuple[str, str]]
Body = Callable[[str], Awaitable[Json]]
PatchBody = Callable[[], Awaitable[Patch]]


async def _no_body(kind: str) -> Json:
    raise Refused([Issue("required", f"a {kind} is needed")], 400)


async def _no_patch() -> Patch:
    raise Refused([Issue("required", "a patch is needed")], 400)


@dataclass(frozen=True)
class Asked:
    """One interaction, asked by a request of its own or by an entry of a Bundle.

    `resource` reads what was sent, of a given type, and `patch` what is to be
    changed: permissions come first. `clerk` takes in what belongs to the same
    transaction, None when the interaction stands alone.
    """

    caller: Identity
    method: str
    kind: str
    resource_id: str = ""
    version: str = ""
    query: Parameters = ()
    headers: "MultiMapping[str]" = field(default_factory=CIMultiDict)
    resource: Body = _no_body
    patch: PatchBody = _no_patch
    clerk: Clerk | None = None

    @property
    def tx(self) -> "Transaction | None":
        """Return the transaction that it is a part of."""
        return self.clerk.tx if self.clerk else None

    def allowed(self, interaction: Interaction) -> None:
        """Refuse what is not offered for the type (405) or not to the caller."""
        kind = self.kind
        if kind in PERMITS and interaction not in PERMITS[kind]:
            told = f"{interaction.value} is not offered for {kind}"
            raise not_offered(told, kind, one=bool(self.resource_id))
        require(self.caller, kind, interaction)

    def asked_for(self, name: str) -> str | None:
        """Return the first value of a query parameter."""
        return next((value for told, value in self.query if told == name), None)

    def number(self, name: str, default: int, lowest: int, highest: int) -> int:
        """Return a whole number of the query, brought between its bounds."""
        return bounded(self.asked_for(name), name, default, lowest, highest)

    @property
    def strict(self) -> bool:
        """Tell whether what is not understood is to be refused (3.1.1.3)."""
        return prefers(self, "handling") == "strict"


Verb = Callable[[Asked], Awaitable[web.Response]]


def over_http(
    verb: Verb,
    *,
    read_form: Callable[[web.Request], Awaitable[Parameters]] | None = None,
    read_patch: Callable[[web.Request], Awaitable[Patch]] | None = None,
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return the handler of an interaction that a request of its own asks for."""

    async def handled(request: web.Request) -> web.Response:
        async def resource(kind: str) -> Json:
            return read_resource(await read_body(request), kind)

        named = request.match_info
        asked = Asked(
            caller=identity(request),
            method=request.method,
            kind=named["type"],
            resource_id=named.get("id", ""),
            version=named.get("version", ""),
            query=tuple(request.query.items()),
            headers=request.headers,
            resource=resource,
        )
        if read_form is not None:
            asked = replace(asked, query=(*asked.query, *await read_form(request)))
        if read_patch is not None:
            asked = replace(asked, patch=lambda: read_patch(request))
        return await verb(asked)

    return handled


# When the version in a response was made: more exact than its headers can say.
LAST_UPDATED: web.ResponseKey[datetime] = web.ResponseKey("last_updated", datetime)
# What the caller should know of what was stored.
NOTES: web.ResponseKey[tuple[str, ...]] = web.ResponseKey("notes", tuple)


class Answers:
    """Puts stored resources into responses, as their caller may see them."""

    def __init__(self, store: "Store", settings: FhirSettings) -> None:
        self._store = store
        self._settings = settings

    def show(self, caller: Identity) -> View:
        """Return how this caller sees a stored resource."""
        return View(self._store, caller)

    def read(self, asked: Asked, stored: Stored) -> web.Response:
        """Answer a resource, or as much of it as was asked for."""
        show = self.show(asked.caller)
        if asked.query:
            summary, elements = (
                asked.asked_for("_summary"),
                asked.asked_for("_elements"),
            )
            if summary is not None or elements is not None:
                show = show.narrowed(read_subset(summary, elements))
        return _about(stored, 200, version_headers(stored), show(stored))

    def written(
        self, asked: Asked, stored: Stored, status: int, notes: Iterable[str] = ()
    ) -> web.Response:
        """Answer what was stored; `notes` go along as warnings (RFC 7234 5.5)."""
        address = f"{stored.resource_type}/{stored.resource_id}"
        location = f"{self._settings.base_url}/{address}/_history/{stored.version}"
        headers = version_headers(stored) | {hdrs.LOCATION: location}
        notes = tuple(notes)
        if notes:
            headers["Warning"] = ", ".join(f'299 sononode "{note}"' for note in notes)
        wanted = prefers(asked, "return")
        if wanted == "minimal" or not sees(asked.caller, stored):
            return _about(stored, status, headers, None, notes)
        if wanted == "OperationOutcome":
            more = [Issue("informational", n, severity="information") for n in notes]
            body = to_bytes(outcome([STORED, *more]))
        else:
            body = self.show(asked.caller)(stored)
        return _about(stored, status, headers, body, notes)


def _about(
    stored: Stored,
    status: int,
    headers: Mapping[str, str],
    body: bytes | None,
    notes: tuple[str, ...] = (),
) -> web.Response:
    content_type = CONTENT_TYPE if body is not None else None
    response = web.Response(
        status=status, body=body, content_type=content_type, headers=headers
    )
    response[LAST_UPDATED], response[NOTES] = stored.last_updated, notes
    return response


def not_offered(told: str, kind: str, *, one: bool) -> Refused:
    """Return the refusal (405) of an interaction that nobody has, with its Allow."""
    issue = Issue("not-supported", told)
    allow = {"Allow": _allow(kind, one=one)}
    return Refused([issue], 405, ErrorKind.UNSUPPORTED, allow)


def _allow(kind: str, *, one: bool) -> str:
    methods: Mapping[Interaction, str]
    if one:
        methods = {
            Interaction.READ: "GET",
            Interaction.UPDATE: "PUT",
            Interaction.PATCH: "PATCH",
        }
    else:
        methods = {Interaction.SEARCH: "GET", Interaction.CREATE: "POST"}
    return ", ".join(m for i, m in methods.items() if i in PERMITS[kind])


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


def bounded(
    told: str | None, name: str, default: int, lowest: int, highest: int
) -> int:
    """Return a whole number that was sent, brought between its bounds."""
    if told is None:
        return default
    if not told.isdecimal() or len(told) > 19:
        raise Refused([Issue("value", f"{name} is a number", name)], 400)
    return max(lowest, min(int(told), highest))


def number(
    request: web.Request, name: str, default: int, lowest: int, highest: int
) -> int:
    """Return a whole number of a request's query, brought between its bounds."""
    return bounded(request.query.get(name), name, default, lowest, highest)
