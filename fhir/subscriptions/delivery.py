"""Deliveries to hooks: all subscribers at once, each in order, at least once.

One process of the installation delivers; another takes over when it is gone. What is
owed is read from the store, called without any transaction open, and what was
confirmed is noted together with what else was confirmed meanwhile. A subscriber that
does not answer holds up nobody: it is waited for beside the others.
"""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import aiohttp
import structlog

from fhir.content.publish import put
from fhir.encoding.wire import parse
from fhir.settings import FhirSettings
from fhir.subscriptions.endpoints import Tls, post
from fhir.subscriptions.entitlement import heard
from fhir.subscriptions.notification import (
    SIGNATURE_HEADER,
    notification,
    sign,
    written,
)
from fhir.subscriptions.relay import relay_signature
from fhir.subscriptions.requests import RELAY
from node.domain.audit import by_the_node
from node.domain.errors import NodeError
from node.store import audit, notifying, resources, subscriptions, topic_events
from node.store.notifying import Settlement
from node.store.subscriptions import CHANNEL, Subscription
from node.store.topic_events import Event

if TYPE_CHECKING:
    from node.store.store import Store

log = structlog.get_logger(__name__)

_HANDSHAKES = 3
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 300.0
_POLL_S = 1.0
_GRACE_S = 5.0


class Dispatcher:
    """Calls subscribers. `hooks` calls them by the site's list, `relay` the relay.

    `tls` is asked for each call of a hook: certificates are renewed meanwhile.
    """

    def __init__(
        self,
        store: "Store",
        settings: FhirSettings,
        hooks: aiohttp.ClientSession,
        relay: aiohttp.ClientSession,
        tls: Tls = lambda: None,
    ) -> None:
        self._store = store
        self._tls = tls
        self._settings = settings
        self._hooks = hooks
        self._relay = relay
        self._calls: dict[UUID, asyncio.Task[None]] = {}
        self._told = Settlement()
        self._ended: set[UUID] = set()  # calls that have ended and are not settled
        self._wake = asyncio.Event()
        self._stopping = False

    def stop(self) -> None:
        """Call nobody any more; `run` returns when the calls under way have ended."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Deliver until `stop`, whenever this process is the one that does."""
        await self._store.db.listen(CHANNEL, lambda _: self._wake.set())
        while not self._stopping:
            self._wake.clear()
            try:
                async with notifying.leading(self._store.db) as lead:
                    if lead is not None:
                        await self._lead(lead)
            except NodeError as error:
                # PostgreSQL is away: what is owed is safe there, we look again.
                log.warning("deliveries wait", error=error.message)
            except Exception:
                log.exception("deliveries failed unforeseen")
            await self._sleep(_POLL_S)

    async def deliver_due(self) -> int:
        """Make every call that is due and those that follow; return how many."""
        made = 0
        while True:
            await self._look()
            if not self._calls:
                return made
            made += len(self._calls)
            await asyncio.gather(*self._calls.values())
            await self._settle()

    async def _lead(self, lead: Any) -> None:
        try:
            while not self._stopping and not lead.is_closed():
                self._wake.clear()
                await self._settle()
                again_at = await self._look()
                await self._sleep(self._seconds_until(again_at))
            if self._stopping and self._calls:
                await asyncio.wait(self._calls.values(), timeout=_GRACE_S)
                await self._settle()
        finally:
            # Another process may lead by now: it makes these calls again.
            for call in self._calls.values():
                call.cancel()
            await asyncio.gather(*self._calls.values(), return_exceptions=True)
            self._calls.clear()
            self._ended.clear()
            self._told = Settlement()

    def _seconds_until(self, moment: datetime | None) -> float:
        if moment is None:
            return _POLL_S
        left = (moment - self._store.clock()).total_seconds()
        return min(max(left, 0.01), _POLL_S)

    async def _sleep(self, seconds: float) -> None:
        if not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()

    async def _look(self) -> datetime | None:
        """Begin every call that is due; return when the next one will be."""
        async with self._store.db.transaction(readonly=True) as tx:
            due = await notifying.due(
                tx, self._store, self._store.clock(), list(self._calls)
            )
        for subscription, events in due.calls:
            call = asyncio.create_task(self._call(subscription, events))
            self._calls[subscription.subscription_id] = call
        return due.again_at

    async def _settle(self) -> None:
        """Note what became of the calls that have ended."""
        told, ended = self._told, self._ended
        if not ended:
            return
        self._told, self._ended = Settlement(), set()
        async with self._store.db.transaction() as tx:
            await notifying.settle(tx, told, at=self._store.clock())
        for subscription_id in ended:
            del self._calls[subscription_id]

    async def _call(self, subscription: Subscription, events: Sequence[Event]) -> None:
        try:
            await self._act(subscription, events)
        except Exception:
            log.exception(
                "subscription.unforeseen",
                subscription=str(subscription.subscription_id),
            )
            self._plan_next(subscription)
        self._ended.add(subscription.subscription_id)
        self._wake.set()

    async def _act(self, subscription: Subscription, events: Sequence[Event]) -> None:
        owner, now = subscription.owner, self._store.clock()
        if owner is not None and owner.shut:
            await self._set_status(subscription, "off", "its owner may not come in")
        elif subscription.ends_at is not None and subscription.ends_at <= now:
            await self._set_status(subscription, "off", "its end has come")
        elif subscription.status == "requested":
            if await self._post(subscription, "handshake"):
                await self._set_status(subscription, "active")
            else:
                await self._note_failure(subscription)
        elif events:
            await self._notify(subscription, events)
        else:
            await self._beat(subscription)

    async def _notify(
        self, subscription: Subscription, events: Sequence[Event]
    ) -> None:
        topic = self._settings.topics.get(subscription.topic)
        told = heard(subscription.owner, topic, events)
        if told and not await self._post(subscription, "event-notification", told):
            await self._note_failure(subscription)
            return
        one = subscription.subscription_id
        self._told.delivered += [(one, event.number) for event in events]

    async def _beat(self, subscription: Subscription) -> None:
        due_at, period_s = (
            subscription.next_heartbeat_at,
            subscription.heartbeat_period_s,
        )
        if due_at is None or period_s is None:
            return
        await self._post(subscription, "heartbeat")
        # From when it was due, so that beats do not drift; none is made up for.
        period, now = timedelta(seconds=period_s), self._store.clock()
        following = due_at + period if due_at + period > now else now + period
        self._told.beaten.append((subscription.subscription_id, following))

    async def _note_failure(self, subscription: Subscription) -> None:
        """Plan the next attempt, or give the channel up after long failure."""
        now = self._store.clock()
        since = subscription.failing_since or now
        limit = timedelta(seconds=self._settings.give_up_after_s)
        relay = subscription.subscription_id == RELAY
        shaken = subscription.status == "requested" and not relay
        if now - since >= limit or (
            shaken and subscription.failures + 1 >= _HANDSHAKES
        ):
            await self._set_status(subscription, "error", "no-response")
        else:
            self._plan_next(subscription)

    def _plan_next(self, subscription: Subscription) -> None:
        pause = timedelta(seconds=_pause_s(subscription.failures))
        following = self._store.clock() + pause
        self._told.failed.append((subscription.subscription_id, following))

    async def _set_status(
        self, subscription: Subscription, status: str, reason: str = ""
    ) -> None:
        subscription_id = subscription.subscription_id
        name = str(subscription_id)
        async with self._store.db.transaction() as tx:
            # In the order in which a client's update takes them.
            if status != "active":
                entry = by_the_node(
                    self._store.clock(),
                    f"subscription-{status}",
                    f"Subscription/{name}",
                    {"reason": reason},
                )
                await audit.record(tx, entry)
            await resources.lock(tx, "Subscription", name)
            current = await subscriptions.read(tx, self._store, subscription_id)
            if current.status != subscription.status:
                return  # the client has changed it while we called
            stored = await resources.read(tx, self._store, "Subscription", name)
            error = reason if status == "error" else None
            await subscriptions.set_status(tx, subscription_id, status, error=error)
            await put(tx, self._store, {**parse(stored.body), "status": status})
        log.info("subscription.status", subscription=name, status=status, reason=reason)

    async def _post(
        self, subscription: Subscription, kind: str, events: Sequence[Event] = ()
    ) -> bool:
        relay = subscription.subscription_id == RELAY
        if not relay and not self._settings.endpoints.allow(subscription.endpoint):
            return False  # the site has taken the host off its list since
        bundle = notification(self._settings, subscription, kind, events)
        body = written(bundle, subscription.media_type)
        headers = {"Content-Type": subscription.media_type}
        for line in subscription.headers:
            name, _, value = line.partition(":")
            headers[name] = value.strip()
        status = await post(
            self._relay if relay else self._hooks,
            subscription.endpoint,
            body,
            headers | self._signature(subscription, body),
            subscription.timeout_s,
            None if relay else self._tls(),
        )
        if status is not None and 200 <= status < 300:
            return True
        log.warning(
            "subscription.failing",
            subscription=str(subscription.subscription_id),
            status=status,
        )
        return False

    def _signature(self, subscription: Subscription, body: bytes) -> dict[str, str]:
        if subscription.subscription_id == RELAY:
            return relay_signature(self._settings, body)
        site = self._settings.hook_secret
        secrets = subscription.secrets or ((site,) if site else ())
        if not secrets:
            return {}
        now = datetime.now(UTC)  # judged by another machine: never a test's clock
        return {SIGNATURE_HEADER: sign(secrets, body, now)}


def _pause_s(failures: int) -> float:
    """Return how long to wait after `failures` earlier ones: doubling, with jitter."""
    longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures, 20))
    return longest * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load only


async def forget_told(store: "Store") -> None:
    """Remove what happened so long ago that nobody asks for it any more."""
    async with store.db.transaction() as tx:
        await topic_events.forget(tx, store.clock() - topic_events.KEPT)
