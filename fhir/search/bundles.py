"""Searches and histories as Bundles: what was asked, found, included and ignored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import orjson

from fhir.audit.access import told_query
from fhir.encoding.outcome import Issue, Refused, outcome
from fhir.encoding.wire import Json, instant, to_bytes
from fhir.search.cursors import sealed, unsealed
from fhir.search.parameters import (
    CONTROL,
    PARAMETERS,
    Include,
    UnknownParameter,
    criterion,
    includes,
    sort,
)
from fhir.search.views import Subset, View, read_subset
from fhir.security.access import may_read
from fhir.security.scoping import narrowing, require_criteria, sees
from fhir.settings import FhirSettings
from node.domain.access import Identity
from node.domain.audit import note_query
from node.domain.errors import ErrorKind, NodeError
from node.store.database import TooCostly, given_up_after, limited
from node.store.resources import Stored
from node.store.search import pages, related, totals
from node.store.search.criteria import Criterion, Order, Position, Query

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.opened import OpenedBodies
    from node.store.store import Store

MAX_COUNT = 200
MAX_INCLUDED = 1000
# How long a page may be kept waiting for its exact total.
COUNTING_LIMIT_S = 3.0
# How often _include:iterate goes on from what it has found (3.1.1.5.4).
MAX_ROUNDS = 4
Parameters = Sequence[tuple[str, str]]
Show = Callable[[Stored], bytes]
Named = dict[tuple[str, str], Stored]


@dataclass
class Request:
    """A search as asked: what is understood, and what is not (`ignored`).

    Includes go with whether they iterate.
    """

    resource_type: str
    criteria: list[Criterion] = field(default_factory=list)
    includes: list[tuple[Include, bool]] = field(default_factory=list)
    reverse_includes: list[tuple[Include, bool]] = field(default_factory=list)
    # What happened in the clinic does not change while somebody turns the pages.
    order: tuple[Order, ...] = (Order("happened", descending=True),)
    count: int = 50
    total: str = ""  # as it was asked for; without a wish where it costs nothing
    summary: str | None = None
    elements: str | None = None
    used: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def count_only(self) -> bool:
        """Tell whether only the number of matches was asked for."""
        return self.count == 0 or self.summary == "count"


def read_request(
    resource_type: str,
    parameters: Parameters,
    *,
    sees_identity: bool,
    strict: bool,
    page_size: int,
    base_url: str = "",
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
            elif value:  # an empty value asks for nothing (3.1.1.4)
                request.criteria.append(
                    criterion(
                        resource_type,
                        name,
                        value,
                        sees_identity=sees_identity,
                        base_url=base_url,
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
    match name.partition(":")[0]:
        case "_count":
            request.count = _count(value)
        case "_sort":
            request.order = sort(request.resource_type, value)
        case "_include":
            iterates = name.endswith(":iterate")
            wanted = includes(request.resource_type, value)
            request.includes += [(one, iterates) for one in wanted]
        case "_revinclude":
            if value == "*":  # whoever refers to it in any way
                raise UnknownParameter("_revinclude=*", request.resource_type)
            iterates = name.endswith(":iterate")
            wanted = includes(request.resource_type, value)
            request.reverse_includes += [(one, iterates) for one in wanted]
        case "_contained":
            if value != "false":
                raise NodeError(
                    "_contained is false: nothing contained is searched",
                    ErrorKind.INVALID,
                    expression="_contained",
                )
        case "_summary":
            request.summary = value
        case "_elements":
            request.elements = value
        case "_total":
            if value not in ("none", "estimate", "accurate"):
                raise NodeError(
                    "_total is none, estimate or accurate",
                    ErrorKind.INVALID,
                    expression="_total",
                )
            request.total = value


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
        view: View,
    ) -> None:
        self._store = store
        self._settings = settings
        self._identity = identity
        self._base_url = base_url
        self._view = view
        self._bodies: OpenedBodies | None = store.opened

    async def search(
        self,
        resource_type: str,
        parameters: Parameters,
        *,
        strict: bool,
        within: "Transaction | None" = None,
    ) -> bytes:
        """Return the searchset Bundle for query parameters or a page's cursor.

        `within` is a transaction whose own changes are to be found too.
        """
        asked_pages = [value for name, value in parameters if name == "_page"]
        beside = None
        if asked_pages:
            parameters, beside = self._open_page(resource_type, asked_pages[0])
        note_query(told_query(self._store, resource_type, parameters))
        request = read_request(
            resource_type,
            parameters,
            sees_identity=self._identity.sees_identity,
            strict=strict,
            page_size=self._settings.page_size,
            base_url=self._base_url,
        )
        subset = read_subset(request.summary, request.elements)
        require_criteria(self._identity, tuple(request.criteria))
        request.criteria += narrowing(self._identity, resource_type, "s")
        try:
            if within is not None:
                self._bodies = None  # what may be rolled back is not to be kept
                async with limited(within):
                    return await self._answer(within, request, subset, beside)
            async with self._store.db.reading() as tx:
                return await self._answer(tx, request, subset, beside)
        except TooCostly as error:
            told = f"{error.message}: {_narrower(request)}"
            raise Refused([Issue("too-costly", told)], 422) from None

    async def _answer(
        self,
        tx: "Transaction",
        request: Request,
        subset: Subset,
        beside: Position | None,
    ) -> bytes:
        query = Query(
            request.resource_type,
            tuple(request.criteria),
            order=request.order,
            count=request.count,
            beside=beside,
        )
        bundle: Json = {"resourceType": "Bundle", "type": "searchset"}
        costly = await self._count(tx, request, query, bundle)
        bundle["link"] = [{"relation": "self", "url": self._self_link(request)}]
        if beside is not None:
            first = {"relation": "first", "url": self._page_link(request, None)}
            bundle["link"].append(first)
        show = self._view.narrowed(subset) if subset else self._view
        entries: list[bytes] = []
        if not request.count_only:
            page = await pages.search(tx, self._store, query, self._bodies)
            if not request.total and beside is None and page.next is None:
                bundle["total"] = len(page.matches)
            base_url = self._base_url
            entries = [entry_of(base_url, show, m, b"match") for m in page.matches]
            included = await self._included(tx, request, page.matches)
            entries += [entry_of(base_url, show, i, b"include") for i in included]
            for relation, position in (
                ("previous", page.previous),
                ("next", page.next),
            ):
                if position is not None:
                    url = self._page_link(request, position)
                    bundle["link"].append({"relation": relation, "url": url})
        issues = [
            Issue("not-supported", text, severity="warning") for text in request.ignored
        ]
        if issues := issues + costly:
            told = {"resource": outcome(issues), "search": {"mode": "outcome"}}
            entries.append(to_bytes(told))
        return with_entries(bundle, entries)

    async def _count(
        self, tx: "Transaction", request: Request, query: Query, bundle: Json
    ) -> list[Issue]:
        """Put the number of matches into the Bundle as far as it was asked for.

        Where a page would wait too long for the exact one it comes without (R4
        Bundle.total is 0..1: better none than a guess), and is told about how many.
        """
        if request.total == "estimate":
            bundle["total"] = await totals.estimate(tx, self._store, query)
        elif request.count_only:
            bundle["total"] = await totals.count(tx, self._store, query)
        elif request.total == "accurate":
            try:
                async with given_up_after(tx, COUNTING_LIMIT_S):
                    bundle["total"] = await totals.count(tx, self._store, query)
            except TooCostly:
                about = await totals.estimate(tx, self._store, query)
                told = f"to count what matches takes too long: it is about {about}"
                return [Issue("too-costly", told, severity="warning")]
        return []

    async def _included(
        self, tx: "Transaction", request: Request, matches: Sequence[Stored]
    ) -> list[Stored]:
        """Return what the matches bring along; only what the caller may read.

        What iterates goes on from what was found, for MAX_ROUNDS and up to
        MAX_INCLUDED resources; when there would be more, the answer says so.
        """
        if not matches or not (request.includes or request.reverse_includes):
            return []
        known = _named(matches)
        brought: Named = {}
        sources: Sequence[Stored] = matches
        for round_ in range(MAX_ROUNDS + 1):
            fresh: Named = {}
            for wanted, iterates in request.includes:
                if iterates or round_ == 0:
                    fresh |= await self._brought(tx, wanted, sources, reverse=False)
            for wanted, iterates in request.reverse_includes:
                if iterates or round_ == 0:
                    fresh |= await self._brought(tx, wanted, sources, reverse=True)
            fresh = {k: v for k, v in fresh.items() if k not in known | brought}
            brought |= fresh
            sources = list(fresh.values())
            if not sources or len(brought) > MAX_INCLUDED:
                break
        if len(brought) > MAX_INCLUDED or (sources and _iterate(request)):
            request.ignored.append("more is referred to than is included here")
        return list(brought.values())[:MAX_INCLUDED]

    async def _brought(
        self,
        tx: "Transaction",
        wanted: Include,
        sources: Sequence[Stored],
        *,
        reverse: bool,
    ) -> Named:
        """Return what one _include or _revinclude brings, readable by the caller."""
        bodies, limit = self._bodies, MAX_INCLUDED + 1
        if not reverse:
            ids = [s.resource_id for s in sources if s.resource_type == wanted.source]
            if not ids:
                return {}
            more = await related.referred(
                tx,
                self._store,
                wanted.source,
                ids,
                wanted.parameter,
                wanted.target,
                limit=limit,
                bodies=bodies,
            )
            return self._opened(more)
        if not may_read(self._identity, wanted.source):
            return {}
        brought: Named = {}
        for target in {s.resource_type for s in sources}:
            if wanted.target not in (None, target):
                continue
            ids = [s.resource_id for s in sources if s.resource_type == target]
            more = await related.referring(
                tx,
                self._store,
                wanted.source,
                wanted.parameter,
                target,
                ids,
                limit=limit,
                bodies=bodies,
            )
            brought |= self._opened(more)
        return brought

    def _opened(self, stored: Sequence[Stored]) -> Named:
        """Return what the caller may read; nothing leads on from the rest."""
        return _named(
            [
                one
                for one in stored
                if may_read(self._identity, one.resource_type)
                and sees(self._identity, one)
            ]
        )

    def _self_link(self, request: Request) -> str:
        return f"{self._base_url}/{request.resource_type}?{urlencode(request.used)}"

    # --- pages: the query travels sealed, because it may name a patient ----------

    def _page_link(self, request: Request, position: Position | None) -> str:
        """Return where a page is had; the first one is beside no position."""
        used = [(name, value) for name, value in request.used if name != "_page"]
        beside = position or Position(())
        keys = [k.isoformat() if isinstance(k, datetime) else k for k in beside.keys]
        cursor = sealed(
            self._store, request.resource_type, [used, keys, beside.backward]
        )
        return f"{self._base_url}/{request.resource_type}?_page={cursor}"

    def _open_page(
        self, resource_type: str, cursor: str
    ) -> tuple[Parameters, Position | None]:
        used, told, backward = unsealed(self._store, resource_type, cursor)
        parameters = [(str(name), str(value)) for name, value in used]
        if not told:
            return parameters, None
        # The id is always the last key, and the only one that is no time.
        keys = [datetime.fromisoformat(key) for key in told[:-1]]
        return parameters, Position((*keys, told[-1]), backward)


def _narrower(request: Request) -> str:
    """Return what would make a search cheaper, in the words of its own type."""
    used = {name.partition(":")[0].partition(".")[0] for name, _ in request.used}
    known = PARAMETERS[request.resource_type]
    more = [p.name for p in known if p.kind != "token" or p.identifying]
    hints = [f"narrow it by {', '.join(more)}"] if not used & set(more) else []
    if request.total == "accurate" or request.count_only:
        hints.append("leave out the exact number (_total=estimate)")
    if request.includes or request.reverse_includes:
        hints.append("ask for fewer at a time (_count)")
    return "; ".join(hints or ["narrow it, by a date or a patient"])


def _named(stored: Sequence[Stored]) -> Named:
    return {(one.resource_type, one.resource_id): one for one in stored}


def _iterate(request: Request) -> bool:
    return any(i for _, i in (*request.includes, *request.reverse_includes))


def entry_of(base_url: str, show: Show, stored: Stored, mode: bytes) -> bytes:
    """Return an entry of a searchset, its resource as it is shown."""
    # Base URL, type and id hold nothing that JSON would have to escape.
    url = f"{base_url}/{stored.resource_type}/{stored.resource_id}"
    return b'{"fullUrl":"%b","resource":%b,"search":{"mode":"%b"}}' % (
        url.encode(),
        show(stored),
        mode,
    )


def with_entries(bundle: Json, entries: Sequence[bytes]) -> bytes:
    """Return a Bundle's bytes; its entries are put in as they are."""
    head = to_bytes(bundle)
    if not entries:
        return head
    return b'%b,"entry":[%b]}' % (head[:-1], b",".join(entries))


def history_bundle(
    versions: Sequence[Stored],
    base_url: str,
    show: Show,
    address: str,
    following: str | None,
) -> Json:
    """Return a history Bundle (FHIR R4 3.1.0.5), newest version first."""
    links = [{"relation": "self", "url": f"{base_url}/{address}"}]
    if following is not None:
        links.append({"relation": "next", "url": following})
    bundle: Json = {"resourceType": "Bundle", "type": "history", "link": links}
    if versions:
        bundle["entry"] = [_version_entry(v, base_url, show) for v in versions]
    return bundle


def _version_entry(stored: Stored, base_url: str, show: Show) -> Json:
    return {
        "fullUrl": f"{base_url}/{stored.resource_type}/{stored.resource_id}",
        "resource": orjson.Fragment(show(stored)),
        "request": {"method": stored.method, "url": _request_url(stored)},
        "response": {
            "status": "201" if stored.version == 1 else "200",
            "etag": f'W/"{stored.version}"',
            "lastModified": instant(stored.last_updated),
        },
    }


def _request_url(stored: Stored) -> str:
    if stored.method == "POST":
        return stored.resource_type
    return f"{stored.resource_type}/{stored.resource_id}"
