"""Operations on one Subscription: how it stands, and what it has missed."""

from typing import TYPE_CHECKING

from aiohttp import web

from fhir.encoding.outcome import Issue, Refused
from fhir.encoding.wire import Json
from fhir.rest.exchange import PREFIX, answered, number
from fhir.security.access import Interaction, require
from fhir.settings import FhirSettings
from fhir.subscriptions import hooks
from fhir.subscriptions.notification import notification, status_parameters
from node.http import identity
from node.store import subscriptions as stored_subscriptions

if TYPE_CHECKING:
    from node.store.store import Store

_SUBSCRIPTION = f"{PREFIX}/Subscription/{{id}}"


class SubscriptionOperations:
    """The handlers of `$status` and `$events` (Subscriptions Backport)."""

    def __init__(self, store: "Store", settings: FhirSettings) -> None:
        self._store = store
        self._settings = settings

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the operations on subscriptions."""
        return [
            web.get(f"{_SUBSCRIPTION}/$status", self.status),
            web.get(f"{_SUBSCRIPTION}/$events", self.events),
        ]

    async def status(self, request: web.Request) -> web.Response:
        """Answer Subscription/[id]/$status."""
        subscription, _ = await self._subscription(request, 0, 0)
        parameters = status_parameters(self._settings, subscription, "query-status")
        bundle: Json = {
            "resourceType": "Bundle",
            "type": "searchset",
            "total": 1,
            "entry": [{"resource": parameters, "search": {"mode": "match"}}],
        }
        return answered(bundle)

    async def events(self, request: web.Request) -> web.Response:
        """Answer Subscription/[id]/$events: what a subscriber may have missed."""
        since = number(request, "eventsSinceNumber", 1, 0, 2**62)
        until = number(request, "eventsUntilNumber", 2**62, 0, 2**62)
        content = request.query.get("content")
        if content not in (None, "empty", "id-only", "full-resource"):
            issue = Issue("value", "empty, id-only or full-resource", "content")
            raise Refused([issue], 400)
        subscription, events = await self._subscription(request, since, until)
        return answered(
            notification(
                self._settings, subscription, "query-event", events, content=content
            )
        )

    async def _subscription(
        self, request: web.Request, since: int, until: int
    ) -> tuple[stored_subscriptions.Subscription, list[stored_subscriptions.Event]]:
        caller = identity(request)
        require(caller, "Subscription", Interaction.READ)
        subscription_id = hooks.read_id(request.match_info["id"])
        async with self._store.db.transaction(readonly=True) as tx:
            subscription = await stored_subscriptions.read(
                tx, self._store, subscription_id
            )
            hooks.require_topic(caller, {"criteria": subscription.topic})
            found = await stored_subscriptions.events(
                tx, self._store, subscription_id, since=since, until=until
            )
        return subscription, found
