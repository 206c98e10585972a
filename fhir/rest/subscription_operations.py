"""Operations on Subscriptions: how they stand, what they missed, sending it again.

Subscriptions R5 Backport 1.2: `$status`, `$events`, `$resend`,
`$get-ws-binding-token`. A program sees its own subscriptions only.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from fhir.conformance.validation import read_resource
from fhir.encoding.formats import read_body
from fhir.encoding.outcome import Issue, Refused, outcome
from fhir.encoding.wire import Json, as_list, date_range, instant
from fhir.rest.exchange import PREFIX, answered
from fhir.security.access import Interaction, require
from fhir.settings import FhirSettings
from fhir.subscriptions.entitlement import (
    accompanied,
    opens,
    require_own,
    require_topic,
)
from fhir.subscriptions.notification import notification, status_parameters
from fhir.subscriptions.requests import CONTENTS, read_id, topic_of
from fhir.subscriptions.sockets import MOST_BOUND
from node.domain.access import Identity
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.http import identity
from node.store import audit, bindings, subscriptions, topic_events
from node.store.subscriptions import REST_HOOK, WEBSOCKET, Subscription

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

SOCKET = f"{PREFIX}/ws/subscriptions"
_TYPE = f"{PREFIX}/Subscription"
_ONE = f"{_TYPE}/{{id}}"
_TOKEN_LIFETIME = timedelta(minutes=15)
# Of one answer; who missed more asks again from the last number that it got.
_MOST_EVENTS = 500
_LAST = 2**62


class SubscriptionOperations:
    """The handlers of the operations; GET or POST, Parameters or a query."""

    def __init__(self, store: "Store", settings: FhirSettings) -> None:
        self._store = store
        self._settings = settings

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the operations on subscriptions."""
        offered = (
            (f"{_TYPE}/$status", self.statuses),
            (f"{_ONE}/$status", self.status),
            (f"{_ONE}/$events", self.events),
            (f"{_TYPE}/$get-ws-binding-token", self.bind_several),
            (f"{_ONE}/$get-ws-binding-token", self.bind_one),
        )
        return [
            *(web.get(path, handler) for path, handler in offered),
            *(web.post(path, handler) for path, handler in offered),
            web.post(f"{_ONE}/$resend", self.resend),
        ]

    async def status(self, request: web.Request) -> web.Response:
        """Answer Subscription/[id]/$status."""
        caller = _allowed(request)
        async with self._store.db.transaction(readonly=True) as tx:
            subscription = await self._own(tx, caller, request)
        return answered(self._statuses([subscription]))

    async def statuses(self, request: web.Request) -> web.Response:
        """Answer Subscription/$status: all of the caller, by `id` and `status`."""
        caller = _allowed(request)
        asked = await _parameters(request, "id", "status")
        found = await self._all(caller, asked["id"], asked["status"])
        return answered(self._statuses(found))

    def _statuses(self, found: Sequence[Subscription]) -> Json:
        entries = []
        for one in found:
            told = status_parameters(self._settings, one, "query-status")
            full_url = f"urn:uuid:{told['id']}"
            entry = {"fullUrl": full_url, "resource": told}
            entries.append(entry | {"search": {"mode": "match"}})
        bundle: Json = {
            "resourceType": "Bundle",
            "type": "searchset",
            "total": len(entries),
        }
        return bundle | ({"entry": entries} if entries else {})

    async def events(self, request: web.Request) -> web.Response:
        """Answer Subscription/[id]/$events: what a subscriber may have missed."""
        caller = _allowed(request)
        asked = await _parameters(
            request, "eventsSinceNumber", "eventsUntilNumber", "content"
        )
        content = next(iter(asked["content"]), None)
        if content not in (None, *CONTENTS):
            issue = Issue("value", ", ".join(CONTENTS), "content")
            raise Refused([issue], 400)
        async with self._store.db.transaction(readonly=True) as tx:
            subscription = await self._own(tx, caller, request)
            topic = topic_of(self._settings, subscription.topic)
            require_topic(caller, topic)
            found = await topic_events.events(
                tx,
                self._store,
                subscription.subscription_id,
                since=_number(asked, "eventsSinceNumber", 1),
                until=_number(asked, "eventsUntilNumber", _LAST),
                limit=_MOST_EVENTS,
            )
        seen = [
            accompanied(caller, topic, event)
            for event in found
            if not event.body or opens(caller, topic, event.focus, event.body)
        ]
        return answered(
            notification(
                self._settings, subscription, "query-event", seen, content=content
            )
        )

    async def resend(self, request: web.Request) -> web.Response:
        """Have events sent once more to their hook, under their numbers ($resend)."""
        caller = identity(request)
        require(caller, "Subscription", Interaction.UPDATE)
        asked = await _parameters(
            request,
            "eventsSinceNumber",
            "eventsUntilNumber",
            "eventsSinceInstant",
            "eventsUntilInstant",
        )
        if not any(asked.values()):
            issue = Issue("required", "which events? give a number or an instant")
            raise Refused([issue], 400)
        async with self._store.db.transaction() as tx:
            subscription = await self._own(tx, caller, request)
            require_topic(caller, topic_of(self._settings, subscription.topic))
            if subscription.channel != REST_HOOK:
                raise NodeError(
                    "a socket asks for what it missed by $events", ErrorKind.RULE
                )
            await self._record(tx, caller, "subscription-resend", subscription)
            count = await topic_events.owe_again(
                tx,
                subscription.subscription_id,
                since=_number(asked, "eventsSinceNumber", 1),
                until=_number(asked, "eventsUntilNumber", _LAST),
                earliest=_instant(asked, "eventsSinceInstant"),
                latest=_instant(asked, "eventsUntilInstant"),
            )
        words = f"{count} events will be sent again"
        if subscription.status != "active":
            words += f" once the subscription is active; it is {subscription.status}"
        issue = Issue("informational", words, severity="information")
        return answered(outcome([issue]))

    async def bind_one(self, request: web.Request) -> web.Response:
        """Answer a token that binds a socket to one subscription."""
        caller = _allowed(request)
        async with self._store.db.transaction(readonly=True) as tx:
            subscription = await self._own(tx, caller, request)
        return await self._bind(caller, [subscription])

    async def bind_several(self, request: web.Request) -> web.Response:
        """Answer a token for the named subscriptions of the caller, or all of them."""
        caller = _allowed(request)
        asked = await _parameters(request, "id")
        found = await self._all(caller, asked["id"], [])
        if asked["id"] and len(found) < len(set(asked["id"])):
            raise NodeError("there is no such subscription", ErrorKind.NOT_FOUND)
        if not asked["id"]:
            found = [
                one
                for one in found
                if one.channel == WEBSOCKET
                and one.owner is not None
                and one.owner.user_id == caller.user_id
            ]
        return await self._bind(caller, found)

    async def _bind(
        self, caller: Identity, found: Sequence[Subscription]
    ) -> web.Response:
        if not found or any(one.channel != WEBSOCKET for one in found):
            issue = Issue("business-rule", f"only of channel type {WEBSOCKET}", "id")
            raise Refused([issue], 422, ErrorKind.RULE)
        if len(found) > MOST_BOUND:
            issue = Issue("too-costly", f"no more than {MOST_BOUND} at once", "id")
            raise Refused([issue], 422, ErrorKind.RULE)
        for one in found:
            require_topic(caller, topic_of(self._settings, one.topic))
        now = self._store.clock()
        expires_at = now + _TOKEN_LIFETIME
        async with self._store.db.transaction() as tx:
            token = await bindings.open_binding(
                tx,
                [one.subscription_id for one in found],
                expires_at=expires_at,
                now=now,
            )
        told: list[Json] = [
            {"name": "token", "valueString": token},
            {"name": "expiration", "valueDateTime": instant(expires_at)},
        ]
        for one in found:
            told.append(
                {"name": "subscription", "valueString": str(one.subscription_id)}
            )
        root = self._settings.base_url.removesuffix(PREFIX)
        url = f"ws{root.removeprefix('http')}{SOCKET}"
        told.append({"name": "websocket-url", "valueUrl": url})
        return answered({"resourceType": "Parameters", "parameter": told})

    async def _own(
        self, tx: "Transaction", caller: Identity, request: web.Request
    ) -> Subscription:
        subscription_id = read_id(request.match_info["id"])
        found = await subscriptions.read(tx, self._store, subscription_id)
        require_own(caller, found.owner)
        return found

    async def _all(
        self, caller: Identity, ids: Sequence[str], statuses: Sequence[str]
    ) -> list[Subscription]:
        async with self._store.db.transaction(readonly=True) as tx:
            found = await subscriptions.find_all(
                tx,
                self._store,
                ids=[read_id(text) for text in ids] or None,
                statuses=statuses or None,
            )
        return [one for one in found if _is_own(caller, one)]

    async def _record(
        self, tx: "Transaction", caller: Identity, action: str, about: Subscription
    ) -> None:
        await audit.record(
            tx,
            AuditEntry(
                at=self._store.clock(),
                actor=caller.user_id,
                role=",".join(sorted(role.value for role in caller.roles)),
                action=action,
                entity=f"Subscription/{about.subscription_id}",
            ),
        )


def _allowed(request: web.Request) -> Identity:
    caller = identity(request)
    require(caller, "Subscription", Interaction.READ)
    return caller


def _is_own(caller: Identity, subscription: Subscription) -> bool:
    try:
        require_own(caller, subscription.owner)
    except NodeError:
        return False
    return True


async def _parameters(request: web.Request, *names: str) -> dict[str, list[str]]:
    """Return the values of an operation's parameters, from the query or the body."""
    found = {name: list(request.query.getall(name, [])) for name in names}
    if request.method == hdrs.METH_POST and request.can_read_body:
        told = read_resource(await read_body(request), "Parameters")
        for one in as_list(told.get("parameter")):
            if one["name"] in found:
                values = [v for k, v in one.items() if k.startswith("value")]
                found[one["name"]] += [str(value) for value in values]
    split = ("id", "status")
    return {
        name: [part for v in values for part in v.split(",") if part]
        if name in split
        else values
        for name, values in found.items()
    }


def _number(asked: dict[str, list[str]], name: str, default: int) -> int:
    if not asked[name]:
        return default
    value = asked[name][0]
    if not value.isascii() or not value.isdecimal() or len(value) > 18:
        raise Refused([Issue("value", f"{name} is a number", name)], 400)
    return int(value)


def _instant(asked: dict[str, list[str]], name: str) -> datetime | None:
    if not asked[name]:
        return None
    try:
        earliest, latest = date_range(asked[name][0])
    except NodeError:
        raise Refused([Issue("value", f"{name} is an instant", name)], 400) from None
    return latest if "Until" in name else earliest
