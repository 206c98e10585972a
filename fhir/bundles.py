"""Searches and histories as Bundles: what was asked, found, included and ignored."""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import orjson

from fhir import search
from fhir.access import may_read
from fhir.outcome import Issue, outcome
from fhir.search import CONTROL, Include, UnknownParameter
from fhir.settings import FhirSettings
from fhir.wire import Json, instant
from node.domain.access import Identity
from node.domain.errors import ErrorKind, NodeError
from node.store import resources
from node.store.resources import Criterion, Position, Query, Stored

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

MAX_COUNT = 200
Parameters = Sequence[tuple[str, str]]
Show = Callable[[Stored], bytes]


@dataclass
class Request:
    """A search as asked: what is understood, and what is not (`ignored`)."""

    resource_type: str
    criteria: list[Criterion] = field(default_factory=list)
    includes: list[tuple[Include, bool]] = field(default_factory=list)
    reverse_includes: list[Include] = field(default_factory=list)
    sort: tuple[bool, bool] = (False, True)
    count: int = 50
    count_only: bool = False
    total: bool = False
    used: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def read_request(
    resource_type: str,
    parameters: Parameters,
    *,
    sees_identity: bool,
    strict: bool,
    page_size: int,
) -> Request:
    """Return the search that query parameters ask for.

    A parameter that we do not know is put down as ignored, or with `strict`
    (Prefer: handling=strict) raises UnknownParameter. INVALID for bad values.
    """
    request = Request(resource_type, count=page_size)
    for name, value in parameters:
        try:
            if name in CONTROL:
                _control(request, name, value)
            else:
                request.criteria.append(
                    search.criterion(
                        resource_type, name, value, sees_identity=sees_identity
                    )
                )
        except UnknownParameter as error:
            if strict:
                raise
            request.ignored.append(error.message)
        else:
            request.used.append((name, value))
    return request


def _control(request: Request, name: str, value: str) -> None:
    match name:
        case "_count":
            request.count = _count(value)
            request.count_only = request.count_only or request.count == 0
        case "_sort":
            request.sort = search.sort(request.resource_type, value)
        case "_include" | "_include:iterate":
            iterate = name.endswith(":iterate")
            request.includes.append((search.include(value), iterate))
        case "_revinclude":
            request.reverse_includes.append(search.include(value))
        case "_summary" if value == "count":
            request.count_only = True
        case "_summary" if value != "false":
            raise UnknownParameter("_summary", request.resource_type)
        case "_total":
            request.total = value == "accurate"


def _count(value: str) -> int:
    if not value.isdecimal() or len(value) > 9:
        raise NodeError("_count is a number", ErrorKind.INVALID, expression="_count")
    return min(int(value), MAX_COUNT)


class Searcher:
    """Answers searches for one caller."""

    def __init__(
        self,
        store: "Store",
        settings: FhirSettings,
        identity: Identity,
        base_url: str,
        show: Show,
    ) -> None:
        self._store = store
        self._settings = settings
        self._identity = identity
        self._base_url = base_url
        self._show = show

    async def search(
        self, resource_type: str, parameters: Parameters, *, strict: bool
    ) -> Json:
        """Return the searchset Bundle for query parameters or a page's cursor."""
        pages = [value for name, value in parameters if name == "_page"]
        after = None
        if pages:
            parameters, after = self._open_page(resource_type, pages[0])
        request = read_request(
            resource_type,
            parameters,
            sees_identity=self._identity.sees_identity,
            strict=strict,
            page_size=self._settings.page_size,
        )
        async with self._store.db.transaction(readonly=True) as tx:
            return await self._answer(tx, request, after)

    async def _answer(
        self, tx: "Transaction", request: Request, after: Position | None
    ) -> Json:
        by_happening, descending = request.sort
        query = Query(
            request.resource_type,
            tuple(request.criteria),
            by_happening=by_happening,
            descending=descending,
            count=request.count,
            after=after,
        )
        bundle: Json = {"resourceType": "Bundle", "type": "searchset"}
        if request.total or request.count_only:
            bundle["total"] = await resources.count(tx, self._store, query)
        bundle["link"] = [{"relation": "self", "url": self._self_link(request)}]
        entries: list[Json] = []
        if not request.count_only:
            page = await resources.search(tx, self._store, query)
            entries = [self._entry(match, "match") for match in page.matches]
            included = await self._included(tx, request, page.matches)
            entries += [self._entry(other, "include") for other in included]
            if page.next is not None:
                url = self._next_link(request, page.next)
                bundle["link"].append({"relation": "next", "url": url})
        if request.ignored:
            issues = [
                Issue("not-supported", text, severity="warning")
                for text in request.ignored
            ]
            entries.append({"resource": outcome(issues), "search": {"mode": "outcome"}})
        if entries:
            bundle["entry"] = entries
        return bundle

    def _entry(self, stored: Stored, mode: str) -> Json:
        return {
            "fullUrl": f"{self._base_url}/{stored.resource_type}/{stored.resource_id}",
            "resource": orjson.Fragment(self._show(stored)),
            "search": {"mode": mode},
        }

    async def _included(
        self, tx: "Transaction", request: Request, matches: Sequence[Stored]
    ) -> list[Stored]:
        """Return what the matches bring along; only what the caller may read."""
        known = {(m.resource_type, m.resource_id): m for m in matches}
        found: dict[tuple[str, str], Stored] = {}
        for wanted, iterate in request.includes:
            sources = [*known.values(), *found.values()] if iterate else matches
            ids = [s.resource_id for s in sources if s.resource_type == wanted.source]
            if ids:
                more = await resources.referred(
                    tx,
                    self._store,
                    wanted.source,
                    ids,
                    wanted.parameter,
                    wanted.target,
                )
                found |= {(m.resource_type, m.resource_id): m for m in more}
        ids = [m.resource_id for m in matches]
        for wanted in request.reverse_includes:
            if may_read(self._identity, wanted.source) and ids:
                more = await resources.referring(
                    tx,
                    self._store,
                    wanted.source,
                    wanted.parameter,
                    request.resource_type,
                    ids,
                )
                found |= {(m.resource_type, m.resource_id): m for m in more}
        return [
            stored
            for key, stored in found.items()
            if key not in known and may_read(self._identity, key[0])
        ]

    def _self_link(self, request: Request) -> str:
        return f"{self._base_url}/{request.resource_type}?{urlencode(request.used)}"

    # --- pages: the query travels sealed, because it may name a patient ----------

    def _next_link(self, request: Request, position: Position) -> str:
        used = [(name, value) for name, value in request.used if name != "_page"]
        text = json.dumps([used, position.at.isoformat(), position.resource_id])
        sealed = self._store.ring.node.seal(
            text.encode(), **_page_place(request.resource_type)
        )
        cursor = base64.urlsafe_b64encode(sealed).decode().rstrip("=")
        return f"{self._base_url}/{request.resource_type}?_page={cursor}"

    def _open_page(
        self, resource_type: str, cursor: str
    ) -> tuple[Parameters, Position]:
        fault = NodeError(
            "this page link is not one of ours", ErrorKind.INVALID, expression="_page"
        )
        try:
            sealed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
            text = self._store.ring.node.open(sealed, **_page_place(resource_type))
        except (NodeError, binascii.Error, ValueError):
            raise fault from None
        used, at, resource_id = json.loads(text)
        parameters = [(str(name), str(value)) for name, value in used]
        return parameters, Position(datetime.fromisoformat(at), resource_id)


def _page_place(resource_type: str) -> dict[str, str]:
    return {"table": "search", "row": resource_type, "column": "page"}


def history_bundle(
    versions: Sequence[Stored], base_url: str, show: Show, following: str | None
) -> Json:
    """Return the history Bundle of one resource, newest version first."""
    first = versions[0]
    address = f"{first.resource_type}/{first.resource_id}"
    links = [{"relation": "self", "url": f"{base_url}/{address}/_history"}]
    if following is not None:
        links.append({"relation": "next", "url": following})
    return {
        "resourceType": "Bundle",
        "type": "history",
        "link": links,
        "entry": [
            {
                "fullUrl": f"{base_url}/{address}",
                "resource": orjson.Fragment(show(stored)),
                "request": {"method": stored.method, "url": _request_url(stored)},
                "response": {
                    "status": "201" if stored.version == 1 else "200",
                    "etag": f'W/"{stored.version}"',
                    "lastModified": instant(stored.last_updated),
                },
            }
            for stored in versions
        ],
    }


def _request_url(stored: Stored) -> str:
    if stored.method == "POST":
        return stored.resource_type
    return f"{stored.resource_type}/{stored.resource_id}"
