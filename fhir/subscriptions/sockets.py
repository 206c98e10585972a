"""The websocket channel: what happens, on the screens of an EHR as it happens.

A screen asks for a binding token by REST (`$get-ws-binding-token`), opens a socket
and sends `bind-with-token TOKEN`; it gets a handshake for each subscription, then
what it has not been sent yet, then what happens. A token binds for a while; the same
socket may be bound again. Nobody signs in here but by such a token.

A screen that does not read is closed: what it has not read waits for its next socket,
and for `$events`.
"""

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import structlog
from aiohttp import WSCloseCode, WSMsgType, hdrs, web

from fhir.encoding.outcome import Issue, Refused
from fhir.settings import FhirSettings
from fhir.subscriptions.entitlement import heard
from fhir.subscriptions.notification import notification, written
from node.domain.errors import ErrorKind, NodeError
from node.store import bindings, notifying, subscriptions, topic_events
from node.store.notifying import Settlement
from node.store.subscriptions import CHANNEL, Subscription
from node.store.topic_events import Event

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

log = structlog.get_logger(__name__)

MOST_SOCKETS = 200  # of one process
MOST_BOUND = 50  # subscriptions of one socket
_BIND = re.compile(r"\s*bind-with-token:?\s+([A-Za-z0-9_-]{16,128})\s*")
_LONGEST_MESSAGE = 1024
_PING_S = 30.0
_POLL_S = 1.0
_CLOSING_S = 2.0


@dataclass
class _Binding:
    """One subscription on a socket; `sent` is the number of its newest event there."""

    expires_at: datetime
    sent: int
    next_heartbeat_at: datetime | None = None


class _Closed(Exception):
    """The socket is to be closed, and why."""

    def __init__(self, reason: str, code: int = WSCloseCode.POLICY_VIOLATION) -> None:
        super().__init__(reason)
        self.reason, self.code = reason, code


class Sockets:
    """All sockets of a process. `patience_s` is how long one may not read or bind."""

    def __init__(
        self, store: "Store", settings: FhirSettings, *, patience_s: float = 10.0
    ) -> None:
        self._store = store
        self._settings = settings
        self._patience_s = patience_s
        self._open: set[_Socket] = set()
        self._listening = asyncio.Lock()
        self._listens = False

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Serve one socket until either side closes it."""
        response = web.WebSocketResponse(
            heartbeat=_PING_S,
            timeout=_CLOSING_S,
            max_msg_size=_LONGEST_MESSAGE,
            compress=False,
        )
        if not response.can_prepare(request).ok:
            issue = Issue("not-supported", "this address speaks WebSocket only")
            raise Refused([issue], 426, headers={hdrs.UPGRADE: "websocket"})
        if len(self._open) >= MOST_SOCKETS:
            raise NodeError("too many sockets are open", ErrorKind.UNAVAILABLE)
        await self._listen()
        await response.prepare(request)
        socket = _Socket(self._store, self._settings, response, self._patience_s)
        self._open.add(socket)
        try:
            await socket.run()
        finally:
            self._open.discard(socket)
            if not response.closed and request.transport is not None:
                request.transport.abort()  # it does not read: no use in saying goodbye
        return response

    async def close(self, _: web.Application) -> None:
        """Close every socket, because the process ends."""
        for socket in list(self._open):
            socket.end("the node stops; come again", WSCloseCode.GOING_AWAY)

    async def _listen(self) -> None:
        async with self._listening:
            if not self._listens:
                await self._store.db.listen(CHANNEL, self._wake)
                self._listens = True

    def _wake(self, _: str) -> None:
        for socket in self._open:
            socket.wake.set()


class _Socket:
    """One socket: a reader of what the screen sends, and what is sent to it."""

    def __init__(
        self,
        store: "Store",
        settings: FhirSettings,
        response: web.WebSocketResponse,
        patience_s: float,
    ) -> None:
        self._store = store
        self._settings = settings
        self._response = response
        self._patience_s = patience_s
        self._bindings: dict[UUID, _Binding] = {}
        self._asked: list[str] = []  # tokens that are still to be looked at
        self._ending: _Closed | None = None
        self.wake = asyncio.Event()

    def end(self, reason: str, code: int) -> None:
        """Have the socket closed as soon as nothing is being sent."""
        self._ending = _Closed(reason, code)
        self.wake.set()

    async def run(self) -> None:
        """Serve until the screen goes, or is sent away."""
        reading = asyncio.create_task(self._read())
        sending = asyncio.create_task(self._send_until_closed(reading))
        try:
            await asyncio.wait({reading, sending}, return_when=asyncio.FIRST_COMPLETED)
            # What has gone out is noted, so that it does not come twice.
            self.end("the screen has gone", WSCloseCode.OK)
            await asyncio.wait({sending}, timeout=_CLOSING_S)
        finally:
            for task in (reading, sending):
                task.cancel()
            await asyncio.gather(reading, sending, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self._response:
            token = None
            if message.type is WSMsgType.TEXT:
                token = _BIND.fullmatch(message.data)
            if token is None:
                self.end("send: bind-with-token TOKEN", WSCloseCode.UNSUPPORTED_DATA)
                continue
            self._asked = [*self._asked[-MOST_BOUND:], token[1]]
            self.wake.set()

    async def _send_until_closed(self, reading: "asyncio.Task[None]") -> None:
        """Send what is due; say goodbye when the socket is to be closed."""
        goodbye: tuple[str, int] | None = None
        try:
            async with asyncio.timeout(self._patience_s):
                while not self._asked and self._ending is None:
                    await self._sleep()
            while True:
                if self._ending is not None:
                    raise self._ending
                while self._asked:
                    await self._bind(self._asked.pop(0))
                await self._send_due()
                await self._sleep()
        except _Closed as closed:
            log.info("socket.closed", reason=closed.reason)
            goodbye = (closed.reason, closed.code)
        except TimeoutError:
            if not self._bindings:
                goodbye = ("nobody bound it", WSCloseCode.POLICY_VIOLATION)
            log.info("socket.closed", reason="it did not bind or did not read")
        except ConnectionError:
            log.info("socket.closed", reason="the screen has gone")
        except NodeError as error:
            # PostgreSQL is away: the screen comes again, nothing is lost.
            log.warning("socket.closed", reason=error.message)
            goodbye = ("try again later", WSCloseCode.TRY_AGAIN_LATER)
        if goodbye is not None:
            # Beside a reader aiohttp would not wait for the screen's own goodbye.
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await self._say_goodbye(*goodbye)

    async def _sleep(self) -> None:
        self.wake.clear()
        if self._asked or self._ending is not None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S):
                await self.wake.wait()

    async def _say_goodbye(self, reason: str, code: int) -> None:
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_CLOSING_S):
                await self._response.close(code=code, message=reason.encode())

    async def _bind(self, token: str) -> None:
        now = self._store.clock()
        async with self._store.db.transaction(readonly=True) as tx:
            bound = await bindings.read_binding(tx, token, now=now)
            if bound is None:
                raise _Closed("the token is unknown or has ended")
            ids, expires_at = bound
            found = await subscriptions.find_all(tx, self._store, ids=ids)
            starts = {one.subscription_id: await self._start(tx, one) for one in found}
        if len({*self._bindings, *starts}) > MOST_BOUND:
            raise _Closed(f"no more than {MOST_BOUND} subscriptions on one socket")
        for one in found:
            binding = _Binding(expires_at, starts[one.subscription_id])
            if one.heartbeat_period_s is not None:
                period = timedelta(seconds=one.heartbeat_period_s)
                binding.next_heartbeat_at = now + period
            self._bindings[one.subscription_id] = binding
            await self._send(one, "handshake")

    async def _start(self, tx: "Transaction", one: Subscription) -> int:
        """Return the number of the newest event that was sent to a screen already."""
        known = self._bindings.get(one.subscription_id)
        if known is not None:
            return known.sent
        waiting = await topic_events.events(
            tx, self._store, one.subscription_id, undelivered=True, limit=1
        )
        return waiting[0].number - 1 if waiting else one.events_count

    async def _send_due(self) -> None:
        now = self._store.clock()
        self._bindings = {
            one: binding
            for one, binding in self._bindings.items()
            if binding.expires_at > now
        }
        more = True
        while more:
            async with self._store.db.transaction(readonly=True) as tx:
                found = await subscriptions.find_all(
                    tx, self._store, ids=list(self._bindings)
                )
                due = [await self._due(tx, one, now) for one in found]
            await self._send_all(
                [(one, told) for one, told in zip(found, due, strict=True) if told]
            )
            more = any(due)
        for one in found:
            await self._beat(one, now)
        if not self._bindings:
            raise _Closed("no subscription is bound any more; ask for a new token")

    async def _due(
        self, tx: "Transaction", one: Subscription, now: datetime
    ) -> list[Event]:
        ended = one.ends_at is not None and one.ends_at <= now
        shut = one.owner is not None and one.owner.shut
        if one.status != "active" or ended or shut:
            self._bindings.pop(one.subscription_id, None)
            return []
        binding = self._bindings[one.subscription_id]
        if one.events_count <= binding.sent:
            return []
        return await topic_events.events(
            tx,
            self._store,
            one.subscription_id,
            since=binding.sent + 1,
            limit=one.max_count,
        )

    async def _send_all(self, due: list[tuple[Subscription, list[Event]]]) -> None:
        sent = Settlement()
        for one, events in due:
            topic = self._settings.topics.get(one.topic)
            told = heard(one.owner, topic, events)
            if told:
                await self._send(one, "event-notification", told)
            self._bindings[one.subscription_id].sent = events[-1].number
            sent.delivered += [(one.subscription_id, e.number) for e in events]
        if sent.delivered:
            async with self._store.db.transaction() as tx:
                await notifying.settle(tx, sent, at=self._store.clock())

    async def _beat(self, one: Subscription, now: datetime) -> None:
        binding = self._bindings.get(one.subscription_id)
        if binding is None or binding.next_heartbeat_at is None:
            return
        if binding.next_heartbeat_at <= now and one.heartbeat_period_s is not None:
            await self._send(one, "heartbeat")
            binding.next_heartbeat_at = now + timedelta(seconds=one.heartbeat_period_s)

    async def _send(
        self, one: Subscription, kind: str, events: list[Event] | None = None
    ) -> None:
        bundle = notification(self._settings, one, kind, events or ())
        body = written(bundle, one.media_type).decode()
        async with asyncio.timeout(self._patience_s):
            await self._response.send_str(body)
