"""Reading over HTTP: read, vread, history and searches (FHIR R4 3.1.0.2-3.1.1)."""

from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from fhir.content.tasks import failed_task, failed_tasks, search_tasks
from fhir.encoding.formats import FORM, form, prefers
from fhir.encoding.outcome import CONTENT_TYPE, Issue, Refused
from fhir.rest.exchange import (
    ONE,
    TYPE,
    Answers,
    allowed,
    answered,
    etag,
    number,
    require_seen,
    version_headers,
)
from fhir.search.bundles import MAX_COUNT, Searcher, history_bundle
from fhir.security.access import Interaction
from fhir.security.scoping import sees
from fhir.settings import FhirSettings
from node.domain.errors import ErrorKind, NodeError
from node.store import resources
from node.store.opened import NewestVersions

if TYPE_CHECKING:
    from node.store.store import Store


class Reading:
    """The handlers of all that only looks."""

    def __init__(self, store: "Store", settings: FhirSettings) -> None:
        self._store = store
        self._settings = settings
        self._answers = Answers(store, settings)
        self._newest = NewestVersions(store)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the reading interactions."""
        return [
            web.get(TYPE, self.search),
            web.post(f"{TYPE}/_search", self.search),
            web.get(ONE, self.read),
            web.get(f"{ONE}/_history", self.history),
            web.get(f"{ONE}/_history/{{version}}", self.read_version),
        ]

    async def read(self, request: web.Request) -> web.Response:
        """Answer the newest version of a resource; 304 when the caller has it."""
        caller, kind = allowed(request, Interaction.READ)
        resource_id = request.match_info["id"]
        if kind == "Task":
            async with self._store.db.connection() as tx:
                return answered(await failed_task(tx, self._store, resource_id))
        stored = await self._newest.read(kind, resource_id)
        require_seen(caller, stored)
        if request.headers.get(hdrs.IF_NONE_MATCH) == etag(stored):
            return web.Response(status=304, headers=version_headers(stored))
        return self._answers.read(request, caller, stored)

    async def read_version(self, request: web.Request) -> web.Response:
        """Answer one version of a resource."""
        caller, kind = allowed(request, Interaction.VREAD)
        told = request.match_info["version"]
        if not told.isdecimal() or len(told) > 9:
            raise NodeError("there is no such version", ErrorKind.NOT_FOUND)
        async with self._store.db.connection() as tx:
            stored = await resources.read_version(
                tx, self._store, kind, request.match_info["id"], int(told)
            )
        require_seen(caller, stored)
        return self._answers.read(request, caller, stored)

    async def history(self, request: web.Request) -> web.Response:
        """Answer the versions of a resource, newest first, in pages."""
        caller, kind = allowed(request, Interaction.HISTORY)
        resource_id = request.match_info["id"]
        count = number(request, "_count", self._settings.page_size, 1, MAX_COUNT)
        before = number(request, "_before", 0, 0, 2**31 - 1) or None
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
        return answered(
            history_bundle(seen, base_url, self._answers.show(caller), following)
        )

    async def search(self, request: web.Request) -> web.Response:
        """Answer a search by GET or by POST _search."""
        caller, kind = allowed(request, Interaction.SEARCH)
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
            self._answers.show(caller),
        )
        body = await searcher.search(kind, parameters, strict=strict)
        return web.Response(body=body, content_type=CONTENT_TYPE)

    async def _search_tasks(
        self, parameters: list[tuple[str, str]], *, strict: bool
    ) -> web.Response:
        async with self._store.db.transaction(readonly=True) as tx:
            tasks = await failed_tasks(tx, self._store)
        base_url = self._settings.base_url
        return answered(search_tasks(tasks, parameters, base_url, strict=strict))
