"""Reading: read, vread, histories and searches (FHIR R4 3.1.0.2-5, 3.1.1)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from aiohttp import web

from fhir.content.tasks import failed_task, failed_tasks, search_tasks
from fhir.encoding.formats import FORM, form
from fhir.encoding.outcome import CONTENT_TYPE, Issue, Refused
from fhir.encoding.wire import date_range
from fhir.rest import freshness
from fhir.rest.definitions import Definitions
from fhir.rest.exchange import (
    ONE,
    TYPE,
    Answers,
    Asked,
    Parameters,
    answered,
    etag,
    over_http,
    require_seen,
    version_headers,
)
from fhir.search.bundles import MAX_COUNT, Searcher, history_bundle
from fhir.search.cursors import sealed, unsealed
from fhir.security.access import DEFINED, Interaction, require_scope
from fhir.security.scoping import sees
from fhir.settings import FhirSettings
from node.domain.errors import ErrorKind, NodeError
from node.store import resources
from node.store.database import limited
from node.store.opened import NewestVersions
from node.store.resources import Place, Times

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_OF_HISTORIES = frozenset({"_count", "_since", "_at", "_page", "_format", "_pretty"})


class Reading:
    """All that only looks."""

    def __init__(
        self, store: "Store", settings: FhirSettings, definitions: Definitions
    ) -> None:
        self._store = store
        self._definitions = definitions
        self._settings = settings
        self._answers = Answers(store, settings)
        self._newest = NewestVersions(store)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the reading interactions."""
        return [
            web.get(TYPE, over_http(self.search)),
            web.post(f"{TYPE}/_search", over_http(self.search, read_form=_form)),
            web.get(f"{TYPE}/_history", over_http(self.type_history)),
            web.get(ONE, over_http(self.read)),
            web.get(f"{ONE}/_history", over_http(self.history)),
            web.get(f"{ONE}/_history/{{version}}", over_http(self.read_version)),
        ]

    async def read(self, asked: Asked) -> web.Response:
        """Answer the newest version of a resource; 304 when the caller has it."""
        asked.allowed(Interaction.READ)
        if asked.kind in DEFINED:
            return self._definitions.read(asked)
        if asked.kind == "Task":
            async with self._connection(asked) as tx:
                return answered(await failed_task(tx, self._store, asked.resource_id))
        if asked.tx is None:
            stored = await self._newest.read(asked.kind, asked.resource_id)
        else:
            stored = await resources.read(
                asked.tx, self._store, asked.kind, asked.resource_id
            )
        require_seen(asked.caller, stored)
        if await self._is_known(asked, stored):
            return web.Response(status=304, headers=version_headers(stored))
        return self._answers.read(asked, stored)

    async def _is_known(self, asked: Asked, stored: resources.Stored) -> bool:
        """Tell whether the caller has this newest version already."""
        named = freshness.matches(asked.headers, etag(stored))
        if named is not None:
            return named
        since = freshness.asked_since(asked.headers)
        second = stored.last_updated.replace(microsecond=0)
        if since is None or since < second:
            return False
        if since >= second + timedelta(seconds=1) or stored.version == 1:
            return True
        async with self._connection(asked) as tx:
            before = await resources.read_version(
                tx,
                self._store,
                asked.kind,
                asked.resource_id,
                stored.version - 1,
            )
        return before.last_updated < second

    async def read_version(self, asked: Asked) -> web.Response:
        """Answer one version of a resource."""
        asked.allowed(Interaction.VREAD)
        if not asked.version.isdecimal() or len(asked.version) > 9:
            raise NodeError("there is no such version", ErrorKind.NOT_FOUND)
        async with self._connection(asked) as tx:
            stored = await resources.read_version(
                tx, self._store, asked.kind, asked.resource_id, int(asked.version)
            )
        require_seen(asked.caller, stored)
        if freshness.matches(asked.headers, etag(stored)):
            return web.Response(status=304, headers=version_headers(stored))
        return self._answers.read(asked, stored)

    async def history(self, asked: Asked) -> web.Response:
        """Answer the versions of a resource, newest first, in pages."""
        asked.allowed(Interaction.HISTORY)
        _require_understood(asked)
        address = f"{asked.kind}/{asked.resource_id}"
        count, times, place = self._page(asked, f"{address}/_history")
        async with self._reading(asked) as tx:
            found = await resources.history(
                tx,
                self._store,
                asked.kind,
                asked.resource_id,
                times=times,
                before=place[2] if place else None,
                count=count + 1,
            )
            if not found:  # none of those times, or nothing at all
                newest = await resources.read(
                    tx, self._store, asked.kind, asked.resource_id
                )
                require_seen(asked.caller, newest)
        versions = found[:count]
        seen = [version for version in versions if sees(asked.caller, version)]
        if versions and not seen:
            raise NodeError(f"{address} is not known", ErrorKind.NOT_FOUND)
        following = None
        if len(found) > count:
            last = versions[-1]
            following = (last.last_updated, last.resource_id, last.version)
        return self._told(asked, f"{address}/_history", seen, following)

    async def type_history(self, asked: Asked) -> web.Response:
        """Answer the versions of all resources of a type, newest first, in pages.

        Needs a scope for the whole type: pages tell how much there is besides.
        """
        asked.allowed(Interaction.HISTORY_TYPE)
        require_scope(asked.caller, asked.kind, "s", whole=True)
        _require_understood(asked)
        address = f"{asked.kind}/_history"
        count, times, place = self._page(asked, address)
        async with self._reading(asked) as tx:
            versions, following = await resources.type_history(
                tx, self._store, asked.kind, times=times, after=place, count=count
            )
        return self._told(asked, address, versions, following)

    def _page(self, asked: Asked, address: str) -> tuple[int, Times, Place | None]:
        """Return how many versions are asked for, which, and where they begin."""
        cursor = asked.asked_for("_page")
        if cursor is None:
            count = asked.number("_count", self._settings.page_size, 1, MAX_COUNT)
            return count, _times(asked), None
        count, told, at, resource_id, version = unsealed(self._store, address, cursor)
        times = Times(*(datetime.fromisoformat(one) for one in told))
        return count, times, (datetime.fromisoformat(at), resource_id, version)

    def _told(
        self,
        asked: Asked,
        address: str,
        versions: list[resources.Stored],
        following: Place | None,
    ) -> web.Response:
        base_url, link = self._settings.base_url, None
        if following is not None:
            count, times, _ = self._page(asked, address)
            at, resource_id, version = following
            told = [t.isoformat() for t in (times.since, times.earliest, times.latest)]
            page = [count, told, at.isoformat(), resource_id, version]
            link = f"{base_url}/{address}?_page={sealed(self._store, address, page)}"
        show = self._answers.show(asked.caller)
        understood = [(n, v) for n, v in asked.query if n in _OF_HISTORIES]
        here = f"{address}?{urlencode(understood)}" if understood else address
        return answered(history_bundle(versions, base_url, show, here, link))

    async def search(self, asked: Asked) -> web.Response:
        """Answer a search by GET or by POST _search."""
        asked.allowed(Interaction.SEARCH)
        if asked.kind in DEFINED:
            return self._definitions.search(asked)
        if asked.kind == "Task":
            return await self._search_tasks(asked)
        searcher = Searcher(
            self._store,
            self._settings,
            asked.caller,
            self._settings.base_url,
            self._answers.show(asked.caller),
        )
        body = await searcher.search(
            asked.kind, asked.query, strict=asked.strict, within=asked.tx
        )
        return web.Response(body=body, content_type=CONTENT_TYPE)

    async def _search_tasks(self, asked: Asked) -> web.Response:
        async with self._connection(asked) as tx:
            tasks = await failed_tasks(tx, self._store)
        base_url = self._settings.base_url
        return answered(search_tasks(tasks, asked.query, base_url, strict=asked.strict))

    @asynccontextmanager
    async def _connection(self, asked: Asked) -> AsyncIterator["Transaction"]:
        """Yield what to read one thing with."""
        if asked.tx is not None:
            yield asked.tx
            return
        async with self._store.db.connection() as tx:
            yield tx

    @asynccontextmanager
    async def _reading(self, asked: Asked) -> AsyncIterator["Transaction"]:
        """Yield what to look through many things with; TooCostly when it takes long."""
        if asked.tx is not None:
            async with limited(asked.tx):
                yield asked.tx
            return
        async with self._store.db.reading() as tx:
            yield tx


async def _form(request: web.Request) -> Parameters:
    if request.content_type != FORM:
        raise Refused([Issue("not-supported", f"_search takes {FORM}")], 415)
    return form(await request.read())


def _require_understood(asked: Asked) -> None:
    """Refuse (400) what a history cannot be asked by, where that is asked for."""
    unknown = [name for name, _ in asked.query if name not in _OF_HISTORIES]
    if unknown and asked.strict:
        told = f"a history is asked for by {', '.join(sorted(_OF_HISTORIES))}"
        raise Refused([Issue("not-supported", told)], 400)


def _times(asked: Asked) -> Times:
    since, at = asked.asked_for("_since"), asked.asked_for("_at")
    times = Times()
    if since is not None:
        times = replace(times, since=_range("_since", since)[0])
    if at is not None:
        earliest, latest = _range("_at", at)
        times = replace(times, earliest=earliest, latest=latest)
    return times


def _range(name: str, value: str) -> tuple[datetime, datetime]:
    try:
        return date_range(value)
    except NodeError as error:
        raise Refused([Issue("value", error.message, name)], 400) from None
