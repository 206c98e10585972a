"""Records every access before its answer leaves, and cheaply.

Entries of requests that are answered at the same time are appended together, under
one hold of the chain. An access whose entry cannot be committed is refused. The
first of many equal denials is recorded at once; those that follow within a minute
are counted, and the count is recorded when the minute is over. So is what a page
asks again by itself and gets the same patients for.

`Access` is the middleware: it sees every request and its answer, knows the caller
and what was noted meanwhile (`node.domain.audit`), and needs no handler's help.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from http import HTTPStatus

import structlog
from aiohttp import hdrs, web

from node.domain.access import Identity
from node.domain.audit import AuditEntry, Noted, Outcome, noting
from node.domain.errors import ErrorKind, NodeError
from node.store import audit
from node.store.database import Transaction
from node.store.store import Store

MOST_AT_ONCE = 200
WAIT_S = 15.0
DENIED_AGAIN = timedelta(minutes=1)
# A page that refreshes itself shows the same again and again.
SHOWN_AGAIN = timedelta(minutes=10)
# What more is repeated at the same time is told as one.
MOST_TOLD = 1000
FLUSH_EVERY_S = 5.0
EVERYBODY = "many callers"

log = structlog.get_logger("audit")


@dataclass
class _Told:
    entry: AuditEntry
    until: datetime
    last: datetime
    repeated: int = 0


class Recorder:
    """Appends the entries of one process's requests; one event loop's."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[tuple[AuditEntry, asyncio.Future[None]]] = []
        self._working: asyncio.Task[None] | None = None
        self._told: dict[object, _Told] = {}

    async def record(self, entry: AuditEntry) -> None:
        """Return when `entry` is committed; UNAVAILABLE when it cannot be."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, done))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        try:
            async with asyncio.timeout(WAIT_S):
                # A caller that goes away takes its entry from nobody.
                await asyncio.shield(done)
        except TimeoutError:
            raise _unwritten("it takes too long") from None

    async def record_once(self, entry: AuditEntry, window: timedelta) -> None:
        """Record an entry, or count it where the same was told within `window`.

        Entries are the same when who, whence, what and the answer are the same.
        """
        now = self._store.clock()
        key = _same(entry)
        if key not in self._told and len(self._told) >= MOST_TOLD:
            await self.flush()
            if len(self._told) >= MOST_TOLD:
                entry = _of_everybody(entry)
                key = _same(entry)
        told = self._told.get(key)
        if told is not None and now < told.until:
            told.repeated += 1
            told.last = now
            return
        await self._close(key)
        self._told[key] = _Told(entry, now + window, now)
        try:
            await self.record(entry)
        except NodeError:
            self._told.pop(key, None)
            raise

    async def flush(self, *, all_of_them: bool = False) -> None:
        """Record the counts of what was repeated in windows that are over."""
        now = self._store.clock()
        for key, told in list(self._told.items()):
            if all_of_them or told.until <= now:
                await self._close(key)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Flush from time to time, and everything in the end."""
        flushing = asyncio.create_task(self._keep_flushing())
        try:
            yield
        finally:
            flushing.cancel()
            with suppress(asyncio.CancelledError):
                await flushing
            try:
                await self.flush(all_of_them=True)
            except NodeError as error:
                log.error("audit.counts_lost", error=error.message)

    async def _keep_flushing(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            try:
                await self.flush()
            except NodeError as error:
                log.warning("audit.counts_wait", error=error.message)

    async def _close(self, key: object) -> None:
        told = self._told.pop(key, None)
        if told is None or not told.repeated:
            return
        repeated = {"repeated": str(told.repeated), "since": told.entry.at.isoformat()}
        detail = {**told.entry.detail, **repeated}
        detail.pop("request", None)  # these were others
        try:
            await self.record(replace(told.entry, at=told.last, detail=detail))
        except NodeError:
            self._told.setdefault(key, told)
            raise

    async def _work(self) -> None:
        try:
            while self._waiting:
                try:
                    async with self._store.db.connection() as connection:
                        while self._waiting and await self._append(connection):
                            pass
                except Exception as error:
                    waiting, self._waiting = self._waiting, []
                    _fail([done for _, done in waiting], error)
        finally:
            self._working = None

    async def _append(self, connection: Transaction) -> bool:
        """Append what waits; tell whether the connection is still good for more."""
        batch = self._waiting[:MOST_AT_ONCE]
        del self._waiting[:MOST_AT_ONCE]
        waiting = [done for _, done in batch]
        try:
            async with asyncio.timeout(WAIT_S):
                await audit.append(connection, [entry for entry, _ in batch])
        except Exception as error:
            _fail(waiting, error)
            return False
        for done in waiting:
            if not done.done():
                done.set_result(None)
        return True


def _same(entry: AuditEntry) -> object:
    told = entry.detail
    names = ("status", "address", "client", "query", "patients")
    return (entry.actor, entry.action, entry.entity, *(told.get(n) for n in names))


def _of_everybody(entry: AuditEntry) -> AuditEntry:
    detail = {"status": entry.detail.get("status", "")}
    return AuditEntry(entry.at, EVERYBODY, "", "denied", "many", entry.outcome, detail)


def _unwritten(why: str) -> NodeError:
    return NodeError(
        f"the audit trail cannot be written ({why}), so nothing is shown",
        ErrorKind.UNAVAILABLE,
    )


def _fail(waiting: "list[asyncio.Future[None]]", error: Exception) -> None:
    log.error("audit.not_written", error=type(error).__name__, entries=len(waiting))
    told = error if isinstance(error, NodeError) else _unwritten("see the log")
    for done in waiting:
        if not done.done():
            done.set_exception(told)
            done.exception()  # whoever waited may have gone


# --- which access it was ----------------------------------------------------------

_VERBS = {
    hdrs.METH_GET: "read",
    hdrs.METH_HEAD: "read",
    hdrs.METH_POST: "create",
    hdrs.METH_PUT: "update",
    hdrs.METH_PATCH: "patch",
    hdrs.METH_DELETE: "delete",
}
# Ids of ours: UUIDs, and DICOM UIDs. Anything else may be a number of the patient.
_OURS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d+(\.\d+){2,}")
UNKNOWN_ID = "-"


@dataclass(frozen=True)
class Told:
    """What a request was about, in the words of its protocol and without names."""

    action: str
    entity: str
    detail: Mapping[str, str] = field(default_factory=dict)


Describe = Callable[[web.Request, int, Noted], Told]


@dataclass(frozen=True)
class Group:
    """How the routes of one prefix are told.

    `unrecorded` are route patterns that show nothing of anybody. Without `describe`
    a request is told by its route, and not at all where its handler recorded an act
    itself that names everybody whose data were opened.
    """

    prefix: str
    unrecorded: frozenset[str] = frozenset()
    describe: Describe | None = None


def safe_id(value: str, status: int) -> str:
    """Return an id from a path; a dash for one that is not ours and opened nothing."""
    known = status < HTTPStatus.BAD_REQUEST or _OURS.fullmatch(value)
    return value if known else UNKNOWN_ID


def _by_route(prefix: str, request: web.Request, status: int) -> Told:
    area = prefix.strip("/") or "page"
    verb = _VERBS.get(request.method, "other")
    resource = request.match_info.route.resource
    if resource is None:
        return Told(f"{area} unmatched", area)
    place = resource.canonical.strip("/")
    for key, value in request.match_info.items():
        place = place.replace(f"{{{key}}}", safe_id(value, status))
    return Told(f"{area} {verb}", place)


class Access:
    """Writes what each request was to the trail before its answer leaves."""

    def __init__(
        self,
        recorder: Recorder,
        groups: "list[Group]",
        clock: Callable[[], datetime],
        *,
        caller: Callable[[web.Request], Identity | None],
        request_id: Callable[[web.Request], str],
        in_background: Callable[[web.Request], bool],
    ) -> None:
        self._recorder = recorder
        self._groups = sorted(groups, key=lambda group: -len(group.prefix))
        self._unrecorded = frozenset().union(*(g.unrecorded for g in groups))
        self._clock = clock
        self._caller = caller
        self._request_id = request_id
        self._in_background = in_background

    async def answered(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Return the answer of `handler` when its entry is committed."""
        with noting() as noted:
            request[_NOTED] = noted
            try:
                response = await handler(request)
            except web.HTTPException as redirect:
                await self.record(request, redirect.status)
                raise
            await self.record(request, response.status)
            return response

    async def record(self, request: web.Request, status: int) -> None:
        """Record a request once: before its answer, or the first piece of it."""
        noted = request.pop(_NOTED, None)
        if noted is None:
            return
        resource = request.match_info.route.resource
        if resource is not None and resource.canonical in self._unrecorded:
            return
        group = self._group(request.path)
        denied = status >= HTTPStatus.BAD_REQUEST
        if group.describe is None:
            served = status < HTTPStatus.INTERNAL_SERVER_ERROR
            if served and (noted.told or (denied and noted.acts)):
                return
            told = _by_route(group.prefix, request, status)
        else:
            told = group.describe(request, status, noted)
        entry = self._entry(request, status, noted, told)
        if denied:
            await self._recorder.record_once(entry, DENIED_AGAIN)
        elif self._in_background(request):
            await self._recorder.record_once(entry, SHOWN_AGAIN)
        else:
            await self._recorder.record(entry)

    def _group(self, path: str) -> Group:
        for group in self._groups:
            if path == group.prefix or path.startswith(f"{group.prefix.rstrip('/')}/"):
                return group
        return Group("/")

    def _entry(
        self, request: web.Request, status: int, noted: Noted, told: Told
    ) -> AuditEntry:
        caller = self._caller(request)
        detail = {
            "request": self._request_id(request),
            "status": str(status),
            "address": request.remote or "",
            **told.detail,
        }
        if caller is not None and caller.client_id is not None:
            detail["client"] = caller.client_id
            detail["token"] = caller.token_id or ""
        if noted.patients and status < HTTPStatus.BAD_REQUEST:
            detail["patients"] = " ".join(map(str, noted.patients))
        return AuditEntry(
            self._clock(),
            "unknown" if caller is None else caller.user_id,
            "" if caller is None else ",".join(sorted(r.value for r in caller.roles)),
            told.action,
            told.entity,
            _outcome(status),
            detail,
        )


_NOTED: web.RequestKey[Noted] = web.RequestKey("noted", Noted)


def _outcome(status: int) -> Outcome:
    if status < HTTPStatus.BAD_REQUEST:
        return Outcome.SUCCESS
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return Outcome.REFUSED
    away = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.INSUFFICIENT_STORAGE)
    return Outcome.UNAVAILABLE if status in away else Outcome.FAILED
