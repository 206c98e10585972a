"""Definitions are read and searched as any resource (FHIR R4 3.1.0.2, 3.1.1)."""

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from aiohttp import hdrs, web

from fhir.conformance.definitions import definitions, narrowed
from fhir.encoding.outcome import Issue, outcome
from fhir.encoding.wire import Json
from fhir.rest.exchange import Asked, answered
from fhir.rest.freshness import matches
from fhir.search.bundles import MAX_COUNT
from fhir.search.parameters import UnknownParameter
from fhir.search.views import read_subset
from fhir.settings import FhirSettings
from node.domain.errors import ErrorKind, NodeError


class Definitions:
    """Reads and searches of them; what they answer is the same for every caller."""

    def __init__(self, settings: FhirSettings, version: str) -> None:
        self._base_url = settings.base_url
        self._page_size = settings.page_size
        self._version = version
        self._all = definitions(version)

    def read(self, asked: Asked) -> web.Response:
        """Answer one definition; 304 when the caller has it."""
        found = self._all.get((asked.kind, asked.resource_id))
        if found is None:
            address = f"{asked.kind}/{asked.resource_id}"
            raise NodeError(f"{address} is not known", ErrorKind.NOT_FOUND)
        etag = {hdrs.ETAG: f'W/"{self._version}"'}
        if matches(asked.headers, etag[hdrs.ETAG]):
            return web.Response(status=304, headers=etag)
        elements = asked.asked_for("_elements")
        subset = read_subset(asked.asked_for("_summary"), elements)
        response = answered(subset.of(found) if subset else found)
        response.headers.update(etag)
        return response

    def search(self, asked: Asked) -> web.Response:
        """Answer a search of one type."""
        found = [one for (kind, _), one in self._all.items() if kind == asked.kind]
        used: list[tuple[str, str]] = []
        ignored: list[Issue] = []
        for name, value in asked.query:
            try:
                found = narrowed(asked.kind, found, name, value)
            except UnknownParameter as error:
                if asked.strict:
                    raise
                issue = Issue("not-supported", error.message, severity="warning")
                ignored.append(issue)
            else:
                used.append((name, value))
        return answered(self._bundle(asked.kind, found, used, ignored))

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
