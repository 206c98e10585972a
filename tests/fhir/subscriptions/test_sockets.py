"""The websocket channel: bound by a token, in order, limited (Backport, Channels)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from fhir.encoding.wire import Json, parse
from fhir.subscriptions.sockets import Sockets
from node.domain.access import Role
from node.store import topic_events
from node.store.topic_events import Occurrence
from tests.conftest import FrozenClock
from tests.factories import make_findings, make_patient
from tests.fhir.content.test_life_cycle import because
from tests.fhir.rig import Rig, publish_draft, receive_study, running_fhir
from tests.fhir.subscriptions.rig import (
    event_numbers,
    make_subscription,
    parameter,
    running_hook,
)

ROLES = (Role.RADIOLOGIST, Role.EHR)
Socket = aiohttp.ClientWebSocketResponse


@pytest.fixture
async def screen(store: Any) -> AsyncIterator[Rig]:
    """A live node with a drafted report."""
    async with running_fhir(store, roles=ROLES) as rig:
        await receive_study(store, make_patient())
        rig.report = await publish_draft(
            store, rig.settings, findings=make_findings("2")
        )
        yield rig


async def subscribe(rig: Rig, **changes: Any) -> str:
    asked = make_subscription("", **changes)
    asked["channel"]["type"] = "websocket"
    for name in ("endpoint", "header"):
        del asked["channel"][name]
    posted = await rig.ask("POST", "/Subscription", asked, role=Role.EHR)
    assert posted.status == 201, posted.raw
    assert posted.body["status"] == "active"
    return str(posted.body["id"])


async def token_for(rig: Rig, *ids: str) -> dict[str, str]:
    query = "&".join(f"id={one}" for one in ids)
    path = f"/Subscription/$get-ws-binding-token?{query}"
    told = await rig.read(path, role=Role.EHR)
    return {
        one["name"]: str(next(v for k, v in one.items() if k.startswith("value")))
        for one in told["parameter"]
    }


async def bound(rig: Rig, *ids: str) -> Socket:
    token = await token_for(rig, *ids)
    socket = await rig.session.ws_connect(token["websocket-url"])
    await socket.send_str(f"bind-with-token {token['token']}")
    return socket


async def heard(socket: Socket) -> Json:
    message = await socket.receive(timeout=60)
    assert message.type is WSMsgType.TEXT, message
    return parse(message.data.encode())


async def closed_with(socket: Socket) -> int | None:
    message = await socket.receive(timeout=60)
    assert message.type is WSMsgType.CLOSE, message
    return socket.close_code


async def test_a_screen_hears_of_a_signed_report_as_it_is_signed(screen: Rig) -> None:
    rig = screen
    one = await subscribe(rig)
    socket = await bound(rig, one)
    hello = await heard(socket)
    assert parameter(hello, "type") == "handshake"
    assert parameter(hello, "events-since-subscription-start") == "0"
    assert (await rig.sign()).status == 200
    told = await heard(socket)
    assert (parameter(told, "type"), event_numbers(told)) == ("event-notification", [1])
    assert told["entry"][1]["resource"]["status"] == "final"
    await socket.close()


async def test_what_a_screen_missed_comes_when_it_binds_again(screen: Rig) -> None:
    rig = screen
    one = await subscribe(rig, content="id-only")
    assert (await rig.sign()).status == 200
    first = await bound(rig, one)
    assert parameter(await heard(first), "type") == "handshake"
    assert event_numbers(await heard(first)) == [1]
    await first.close()
    for status in ("amended", "corrected"):
        entry = await rig.edited(rig.report_path, status=status)
        assert (await rig.transact(entry, because(rig))).status == 200
    second = await bound(rig, one)
    hello = await heard(second)
    assert parameter(hello, "events-since-subscription-start") == "3"
    assert event_numbers(await heard(second)) == [2]
    assert event_numbers(await heard(second)) == [3]
    await second.close()


async def test_a_token_binds_several_subscriptions_and_tells_them_apart(
    screen: Rig,
) -> None:
    rig = screen
    both = sorted([await subscribe(rig), await subscribe(rig, content="empty")])
    socket = await bound(rig)  # of all that are one's own
    hellos = [parameter(await heard(socket), "subscription") for _ in both]
    pairs = zip(both, sorted(hellos), strict=True)
    assert all(f"/{one}" in hello for one, hello in pairs)
    await rig.sign()
    told = [await heard(socket), await heard(socket)]
    assert sorted(len(bundle["entry"]) > 1 for bundle in told) == [False, True]
    await socket.close()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("bind-with-token AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", 1008),
        ("hello", 1003),
        ("x" * 2000, 1009),
    ],
)
async def test_a_socket_without_a_token_is_closed(
    screen: Rig, words: str, code: int
) -> None:
    one = await subscribe(screen)
    token = await token_for(screen, one)
    socket = await screen.session.ws_connect(token["websocket-url"])
    await socket.send_str(words)
    assert await closed_with(socket) == code


async def test_a_binding_ends_with_its_token(screen: Rig, clock: FrozenClock) -> None:
    rig = screen
    one = await subscribe(rig)
    socket = await bound(rig, one)
    await heard(socket)
    late = await token_for(rig, one)
    clock.advance(seconds=16 * 60)
    assert await closed_with(socket) == 1008
    other = await rig.session.ws_connect(late["websocket-url"])
    await other.send_str(f"bind-with-token {late['token']}")
    assert await closed_with(other) == 1008


async def test_a_socket_stays_bound_by_a_newer_token(
    screen: Rig, clock: FrozenClock
) -> None:
    rig = screen
    one = await subscribe(rig)
    socket = await bound(rig, one)
    await heard(socket)
    clock.advance(seconds=10 * 60)
    token = await token_for(rig, one)
    await socket.send_str(f"bind-with-token {token['token']}")
    assert parameter(await heard(socket), "type") == "handshake"
    clock.advance(seconds=10 * 60)
    await rig.renew_sessions()
    assert (await rig.sign()).status == 200
    assert event_numbers(await heard(socket)) == [1]
    await socket.close()


async def test_a_subscription_that_is_switched_off_closes_its_socket(
    screen: Rig,
) -> None:
    rig = screen
    one = await subscribe(rig)
    socket = await bound(rig, one)
    await heard(socket)
    path = f"/Subscription/{one}"
    seen = await rig.read(path, role=Role.EHR)
    match = {"If-Match": f'W/"{seen["meta"]["versionId"]}"'}
    off = {**seen, "status": "off"}
    answer = await rig.ask("PUT", path, off, role=Role.EHR, headers=match)
    assert answer.status == 200
    assert await closed_with(socket) == 1008


async def test_heartbeats_come_over_the_socket_and_are_not_counted(
    screen: Rig, clock: FrozenClock
) -> None:
    beat = {
        "url": "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"
        "backport-heartbeat-period",
        "valueUnsignedInt": 60,
    }
    one = await subscribe(screen, channel={"extension": [beat]})
    socket = await bound(screen, one)
    await heard(socket)
    clock.advance(seconds=60)
    told = await heard(socket)
    assert parameter(told, "type") == "heartbeat"
    assert parameter(told, "events-since-subscription-start") == "0"
    await socket.close()


async def test_a_screen_that_does_not_read_is_closed_and_misses_nothing(
    store: Any, screen: Rig
) -> None:
    rig = screen
    one = await subscribe(rig)
    sockets, ended = Sockets(store, rig.settings, patience_s=0.3), asyncio.Event()

    async def serve(request: web.Request) -> web.StreamResponse:
        try:
            return await sockets.serve(request)
        finally:
            ended.set()

    async with running_hook("/unused", get=("/ws", serve)) as impatient:
        socket = await rig.session.ws_connect(f"{impatient.url}/ws", max_msg_size=0)
        token = (await token_for(rig, one))["token"]
        await socket.send_str(f"bind-with-token {token}")
        await heard(socket)
        assert socket._conn is not None
        transport = socket._conn.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        body = b'{"resourceType":"DiagnosticReport","x":"%s"}' % (b"x" * 4_000_000)
        async with store.db.transaction() as tx:
            told = Occurrence("DiagnosticReport/x", body, None)
            many = [(told, [UUID(one)])] * 4
            await topic_events.add_events(tx, store, many, at=store.clock())
        async with asyncio.timeout(60):
            await ended.wait()
        transport.abort()
    path = f"/Subscription/{one}/$events?content=id-only"
    assert event_numbers(await rig.read(path, role=Role.EHR)) == [1, 2, 3, 4]
    async with store.db.transaction() as tx:
        left = await topic_events.events(tx, store, UUID(one), undelivered=True)
    assert left[-1].number == 4
