"""Definitions over HTTP: read and searched as any resource (FHIR R4 3.1.0, 5.1)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from aiohttp import hdrs, web

from fhir.conformance.definitions import definitions, narrowed
from fhir.encoding.formats import FORM, form, prefers
from fhir.encoding.outcome import Issue, Refused, outcome
from fhir.encoding.wire import Json
from fhir.rest.exchange import PREFIX, allowed, answered
from fhir.search.bundles import MAX_COUNT
from fhir.search.parameters import UnknownParameter
from fhir.search.views import read_subset
from fhir.security.access import DEFINED, Interaction
from fhir.settings import FhirSettings
from node.domain.errors import ErrorKind, NodeError

if TYPE_CHECKING:
    from node.store.store import Store

_TYPE = f"{PREFIX}/{{type:{'|'.join(DEFINED)}}}"
_ONE = f"{_TYPE}/{{id:[A-Za-z0-9.-]{{1,64}}}}"


class Definitions:
    """The handlers; what they answer is the same for every caller."""

    def __init__(self, store: "Store", settings: FhirSettings, version: str) -> None:
        self._base_url = settings.base_url
        self._page_size = settings.page_size
        self._version = version
        self._all = definitions(version)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes; nothing writes."""
        return [
            web.get(_TYPE, self.search),
            web.post(f"{_TYPE}/_search", self.search),
            web.get(_ONE, self.read),
        ]

    async def read(self, request: web.Request) -> web.Response:
        """Answer one definition; 304 when the caller has it."""
        _, kind = allowed(request, Interaction.READ)
        found = self._all.get((kind, request.match_info["id"]))
        if found is None:
            address = f"{kind}/{request.match_info['id']}"
            raise NodeError(f"{address} is not known", ErrorKind.NOT_FOUND)
        etag = f'W/"{self._version}"'
        if request.headers.get(hdrs.IF_NONE_MATCH) == etag:
            return web.Response(status=304, headers={hdrs.ETAG: etag})
        asked = request.query
        subset = read_subset(asked.get("_summary"), asked.get("_elements"))
        response = answered(subset.of(found) if subset else found)
        response.headers[hdrs.ETAG] = etag
        return response

    async def search(self, request: web.Request) -> web.Response:
        """Answer a search by GET or by POST _search."""
        _, kind = allowed(request, Interaction.SEARCH)
        asked = list(request.query.items())
        if request.method == hdrs.METH_POST:
            if request.content_type != FORM:
                raise Refused([Issue("not-supported", f"_search takes {FORM}")], 415)
            asked += form(await request.read())
        strict = prefers(request, "handling") == "strict"
        found = [one for (of, _), one in self._all.items() if of == kind]
        used: list[tuple[str, str]] = []
        ignored: list[Issue] = []
        for name, value in asked:
            try:
                found = narrowed(kind, found, name, value)
            except UnknownParameter as error:
                if strict:
                    raise
                issue = Issue("not-supported", error.message, severity="warning")
                ignored.append(issue)
            else:
                used.append((name, value))
        return answered(self._bundle(kind, found, used, ignored))

    def _bundle(
        self,
        kind: str,
        found: Sequence[Json],
        used: Sequence[tuple[str, str]],
        ignored: Sequence[Issue],
    ) -> Json:
        told = dict(used)
        subset = read_subset(told.get("_summary"), told.get("_elements"))
        start = _whole(told, "_page", 0)
        count = min(_whole(told, "_count", self._page_size), MAX_COUNT)
        if told.get("_summary") == "count":
            count = 0
        address = f"{self._base_url}/{kind}"
        links = [{"relation": "self", "url": f"{address}?{urlencode(used)}"}]
        if count and start + count < len(found):
            kept = [(name, value) for name, value in used if name != "_page"]
            following = urlencode([*kept, ("_page", str(start + count))])
            links.append({"relation": "next", "url": f"{address}?{following}"})
        bundle: Json = {
            "resourceType": "Bundle",
            "type": "searchset",
            "total": len(found),
            "link": links,
        }
        entries: list[Json] = [
            {
                "fullUrl": f"{address}/{one['id']}",
                "resource": subset.of(one) if subset else one,
                "search": {"mode": "match"},
            }
            for one in found[start : start + count]
        ]
        if ignored:
            mode = {"mode": "outcome"}
            entries.append({"resource": outcome(ignored), "search": mode})
        return {**bundle, "entry": entries} if entries else bundle


def _whole(told: Mapping[str, str], name: str, default: int) -> int:
    value = told.get(name, str(default))
    if not value.isdecimal() or len(value) > 9:
        raise NodeError(f"{name} is a number", ErrorKind.INVALID, expression=name)
    return int(value)
