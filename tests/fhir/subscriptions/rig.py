"""Subscribers for tests: hooks that answer as told, and a node that calls them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from fhir.encoding.wire import Json, parse
from fhir.subscriptions.delivery import Dispatcher
from fhir.subscriptions.notification import BACKPORT
from fhir.subscriptions.relay import ensure_relay_subscription
from fhir.subscriptions.requests import RELAY
from node.domain.access import Role
from node.store import subscriptions as rows
from tests.conftest import FrozenClock
from tests.fhir.judges import HEARD
from tests.fhir.rig import Rig
from wechat.relay.masked import Notification, read_notification

ROLES = (Role.RADIOLOGIST, Role.EHR, Role.ADMINISTRATOR)
SIGNED = "https://fhir.sononode.org/SubscriptionTopic/report-signed"
RELEASED = "https://fhir.sononode.org/SubscriptionTopic/report-released"
PHI = ("三", "Zhang", "MRN-0042", "13800008000", "197903050000", "2.25.3001", "ACC-")


@dataclass
class Hook:
    """A subscriber that answers as told and keeps what it got."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    got: list[tuple[str, bytes]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    redirect: str | None = None

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        HEARD.hear(body)
        status = self.answers.pop(0) if self.answers else 200
        self.headers.append(dict(request.headers))
        if self.redirect is not None:
            return web.Response(status=307, headers={"Location": self.redirect})
        if status == 200:
            self.got.append((request.headers.get("X-Sononode-Signature", ""), body))
        return web.Response(status=status)

    @property
    def kinds(self) -> list[str]:
        return [parameter(b, "type") for b in self.bundles]

    @property
    def bundles(self) -> list[Json]:
        return [parse(body) for _, body in self.got]

    @property
    def numbers(self) -> list[int]:
        return [n for b in self.bundles for n in event_numbers(b)]

    @property
    def masked(self) -> list[Notification]:
        """What the relay itself understands of the events."""
        read = [read_notification(body) for _, body in self.got]
        return [n for n in read if n.events]


def parameter(bundle: Json, name: str) -> str:
    for item in bundle["entry"][0]["resource"]["parameter"]:
        if item["name"] == name:
            return str(next(v for k, v in item.items() if k.startswith("value")))
    raise AssertionError(name)


def event_numbers(bundle: Json) -> list[int]:
    return [
        int(part["valueString"])
        for item in bundle["entry"][0]["resource"]["parameter"]
        if item["name"] == "notification-event"
        for part in item["part"]
        if part["name"] == "event-number"
    ]


@dataclass
class Channel:
    """A live node, a subscriber, and the jobs between them run by hand."""

    rig: Rig
    hook: Hook
    clock: FrozenClock
    dispatcher: Dispatcher

    async def deliver(self) -> int:
        """Make every call that is due; return how many there were."""
        return await self.dispatcher.deliver_due()

    async def subscribe_relay(self) -> None:
        await ensure_relay_subscription(self.rig.store, self.rig.settings)
        await self.deliver()

    async def relay_row(self) -> rows.Subscription:
        async with self.rig.store.db.transaction() as tx:
            return await rows.read(tx, self.rig.store, RELAY)


@asynccontextmanager
async def running_hook(
    path: str = "/hook",
    receive: Any = None,
    get: tuple[str, Any] | None = None,
) -> AsyncIterator[Hook]:
    hook = Hook()
    app = web.Application()
    app.router.add_post(path, receive or hook.receive)
    if get is not None:
        app.router.add_get(*get)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    hook.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    try:
        yield hook
    finally:
        await runner.cleanup()


def make_subscription(endpoint: str, **changes: Any) -> dict[str, Any]:
    content = changes.pop("content", "full-resource")
    channel = {
        "type": "rest-hook",
        "endpoint": endpoint,
        "payload": "application/fhir+json",
        "header": ["Authorization: Bearer a:b"],
        "_payload": {
            "extension": [
                {"url": f"{BACKPORT}/backport-payload-content", "valueCode": content}
            ]
        },
    }
    subscription = {
        "resourceType": "Subscription",
        "status": "requested",
        "reason": "test",
        "criteria": SIGNED,
        "channel": {**channel, **changes.pop("channel", {})},
    }
    return {**subscription, **changes}
