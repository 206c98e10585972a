"""Notifications: numbered, in order, at least once, masked (Backport IG on R4)."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import aiohttp
import fhirkit
import pytest

from fhir.content import concepts
from fhir.subscriptions.notification import BACKPORT
from fhir.subscriptions.relay import ensure_relay_subscription, offer_binding
from fhir.subscriptions.requests import RELAY
from node.domain.access import Role
from node.domain.errors import NodeError
from node.store import people, topic_events
from node.store.erasure import shred
from tests.fhir.content.test_life_cycle import because, told_by
from tests.fhir.subscriptions.rig import (
    PHI,
    RELEASED,
    Channel,
    event_numbers,
    make_subscription,
    parameter,
    running_hook,
)
from wechat.relay.hook import read_offer, verify_hook


async def test_a_signed_report_reaches_the_relay_masked_and_numbered(
    channel: Channel,
) -> None:
    await channel.subscribe_relay()
    assert (await channel.rig.sign(conclusion="张三 benign")).status == 200
    await channel.deliver()
    assert channel.hook.kinds == ["handshake", "event-notification"]
    assert channel.hook.numbers == [1]
    number, report = channel.hook.masked[0].events[0]
    assert (number, report.category, report.text_zh) == (1, "2", "文2")
    assert report.trend == (("L", 2, "11.8"),)
    signature, body = channel.hook.got[-1]
    verify_hook(b"test secret", body, signature, datetime.now(UTC))
    for _, raw in channel.hook.got:
        assert not [str(i) for i in fhirkit.validate(raw)]
        assert not [secret for secret in PHI if secret in raw.decode()]


async def test_an_unsigned_edit_tells_nobody(channel: Channel) -> None:
    await channel.subscribe_relay()
    await channel.rig.put(channel.rig.report_path, status="preliminary")
    assert await channel.deliver() == 0


async def test_a_suspicious_report_shows_no_grade_until_the_patient_was_told(
    channel: Channel,
) -> None:
    rig = channel.rig
    await channel.subscribe_relay()
    category = {"coding": [{"system": concepts.PRIVATE, "code": "4B"}]}
    entry = await rig.edited(
        f"/Observation/{rig.report_id}-category", valueCodeableConcept=category
    )
    signed = await rig.transact(
        entry, await rig.edited(rig.report_path, status="final")
    )
    assert signed.status == 200, signed.raw
    await channel.deliver()
    report = channel.hook.masked[-1].events[0][1]
    assert (report.state, report.category, report.text_zh) == ("ready", None, "")
    assert b'"4B"' not in channel.hook.got[-1][1]
    told = await rig.ask("POST", "/Communication", told_by("phone", rig)["resource"])
    assert told.status == 201, told.raw
    await channel.deliver()
    number, report = channel.hook.masked[-1].events[0]
    assert (number, report.state, report.category) == (2, "released", "4B")


async def test_a_withdrawn_report_is_withdrawn_on_the_phone(channel: Channel) -> None:
    rig = channel.rig
    await channel.subscribe_relay()
    await rig.sign()
    entry = await rig.edited(rig.report_path, status="entered-in-error")
    assert (await rig.transact(entry, because(rig))).status == 200
    await channel.deliver()
    states = [n.events[0][1].state for n in channel.hook.masked]
    assert states == ["released", "withdrawn"]


async def test_a_failing_subscriber_gets_everything_later_in_order(
    channel: Channel,
) -> None:
    rig = channel.rig
    await channel.subscribe_relay()
    channel.hook.answers = [503, 500, 503]
    await rig.sign()
    for status in ("amended", "corrected"):
        entry = await rig.edited(rig.report_path, status=status)
        assert (await rig.transact(entry, because(rig))).status == 200
    await channel.deliver()
    assert channel.hook.numbers == []
    for _ in range(8):
        channel.clock.advance(seconds=5)
        await channel.deliver()
    assert channel.hook.numbers == [1, 2, 3]
    assert (await channel.relay_row()).failures == 0


async def test_a_dead_subscriber_is_given_up_and_its_counter_keeps_rising(
    channel: Channel,
) -> None:
    rig = channel.rig
    await channel.subscribe_relay()
    channel.hook.answers = [503] * 10_000
    await rig.sign()
    days = 0
    while (await channel.relay_row()).status == "active":
        await channel.deliver()
        channel.clock.advance(seconds=6 * 3600)
        days += 0.25
        assert days < 5
    assert days >= 3
    row = await channel.relay_row()
    assert row.error == "no-response"
    path = f"/Subscription/{row.subscription_id}"
    await rig.renew_sessions()
    assert (await rig.read(path, role=Role.EHR))["status"] == "error"
    entry = await rig.edited(rig.report_path, status="amended")
    assert (await rig.transact(entry, because(rig))).status == 200
    assert (await channel.relay_row()).events_count == 2
    status = await rig.read(f"{path}/$status", role=Role.EHR)
    said = status["entry"][0]["resource"]["parameter"]
    assert {"name": "status", "valueCode": "error"} in said
    assert {
        "name": "events-since-subscription-start",
        "valueString": "2",
    } in said
    channel.hook.answers = []
    await ensure_relay_subscription(rig.store, rig.settings)
    await channel.deliver()
    assert channel.hook.kinds[-3:] == [
        "handshake",
        "event-notification",
        "event-notification",
    ]
    assert channel.hook.numbers == [1, 2]


async def test_the_ehr_is_told_of_signed_reports_with_their_identity(
    channel: Channel,
) -> None:
    rig, hook = channel.rig, channel.hook
    posted = await rig.ask(
        "POST", "/Subscription", make_subscription(f"{hook.url}/hook"), role=Role.EHR
    )
    assert posted.status == 201, posted.raw
    assert posted.body["status"] == "requested"
    await channel.deliver()
    path = f"/Subscription/{posted.body['id']}"
    assert (await rig.read(path, role=Role.EHR))["status"] == "active"
    assert (await rig.sign()).status == 200
    disclosed = told_by("phone", rig)["resource"]
    assert (await rig.ask("POST", "/Communication", disclosed)).status == 201
    await channel.deliver()
    assert hook.headers[-1]["Authorization"] == "Bearer a:b"
    assert "X-Sononode-Signature" not in hook.headers[-1]
    assert hook.numbers == [1]
    report = hook.bundles[-1]["entry"][1]["resource"]
    assert (report["id"], report["status"]) == (str(rig.report_id), "final")
    events = await rig.read(f"{path}/$events?eventsSinceNumber=1", role=Role.EHR)
    assert event_numbers(events) == [1]
    assert [e["request"]["method"] for e in events["entry"][:3]] == [
        "GET",
        "PUT",
        "GET",
    ]
    ids = await rig.read(f"{path}/$events?content=id-only", role=Role.EHR)
    assert "resource" not in ids["entry"][1]
    none = await rig.read(f"{path}/$events?eventsSinceNumber=2", role=Role.EHR)
    assert event_numbers(none) == []


async def test_an_id_only_subscriber_gets_no_report(channel: Channel) -> None:
    rig, hook = channel.rig, channel.hook
    asked = make_subscription(f"{hook.url}/hook", content="id-only")
    posted = await rig.ask("POST", "/Subscription", asked, role=Role.EHR)
    assert posted.status == 201
    await rig.sign()
    await channel.deliver()
    focus = f"{rig.settings.base_url}{rig.report_path}"
    named = {"fullUrl": focus, "request": {"method": "PUT", "url": rig.report_path[1:]}}
    assert hook.bundles[-1]["entry"][1] == named | {"response": {"status": "200"}}
    assert str(rig.report_id).encode() in hook.got[-1][1]


async def test_a_hook_that_does_not_answer_the_handshake_is_in_error(
    channel: Channel,
) -> None:
    rig = channel.rig
    asked = make_subscription("http://localhost:9/nobody")
    posted = await rig.ask("POST", "/Subscription", asked, role=Role.EHR)
    path = f"/Subscription/{posted.body['id']}"
    for _ in range(4):
        await channel.deliver()
        channel.clock.advance(seconds=5)
    seen = await rig.read(path, role=Role.EHR)
    assert seen["status"] == "error"
    again = {**seen, "status": "requested"}
    again["channel"] = {**seen["channel"], "endpoint": f"{channel.hook.url}/hook"}
    match = {"If-Match": f'W/"{seen["meta"]["versionId"]}"'}
    answer = await rig.ask("PUT", path, again, role=Role.EHR, headers=match)
    assert answer.status == 200, answer.raw
    await channel.deliver()
    assert (await rig.read(path, role=Role.EHR))["status"] == "active"


async def test_a_hook_cannot_send_us_elsewhere(channel: Channel) -> None:
    rig, hook = channel.rig, channel.hook
    async with running_hook() as other:
        hook.redirect = f"{other.url}/hook"
        await channel.subscribe_relay()
        assert other.got == []
    assert (await channel.relay_row()).status == "requested"
    assert rig.settings.relay_url == hook.url


async def test_what_we_cannot_do_for_a_subscriber_is_refused_by_name(
    channel: Channel,
) -> None:
    rig, url = channel.rig, f"{channel.hook.url}/hook"
    beat = {"url": f"{BACKPORT}/backport-heartbeat-period", "valueUnsignedInt": 1}
    filtered = {"extension": [{"url": "https://example.org", "valueString": "x"}]}
    cases: list[tuple[dict[str, Any], str]] = [
        (make_subscription(url, criteria="Patient?x=1"), "Subscription.criteria"),
        (make_subscription(url, _criteria=filtered), "Subscription.criteria"),
        (make_subscription(url, status="active"), "Subscription.status"),
        (make_subscription(url, content="all"), "Subscription.channel.payload"),
        (
            make_subscription(url, channel={"type": "email"}),
            "Subscription.channel.type",
        ),
        (
            make_subscription(url, channel={"payload": "text/plain"}),
            "Subscription.channel.payload",
        ),
        (
            make_subscription(url, channel={"header": ["Host: evil"]}),
            "Subscription.channel.header",
        ),
        (
            make_subscription(url, channel={"extension": [beat]}),
            "Subscription.channel.extension",
        ),
        *(
            (make_subscription(endpoint), "Subscription.channel.endpoint")
            for endpoint in (
                "http://169.254.169.254/latest",
                "http://10.0.0.5/",
                "file:///etc/passwd",
                "http://user@localhost/",
                "http://localhost.evil.example/",
                "http://[::1]/",
            )
        ),
    ]
    for body, expression in cases:
        answer = await rig.ask("POST", "/Subscription", body, role=Role.EHR)
        assert answer.status == 422, (expression, answer.raw)
        assert expression in answer.expressions, body


async def test_nobody_moves_the_relays_own_subscription(channel: Channel) -> None:
    rig = channel.rig
    await channel.subscribe_relay()
    path = f"/Subscription/{RELAY}"
    for role in (Role.EHR, Role.ADMINISTRATOR):
        seen = await rig.read(path, role=role)
        moved = {**seen, "status": "requested"}
        moved["channel"] = {**seen["channel"], "endpoint": "http://127.0.0.1:1/x"}
        match = {"If-Match": f'W/"{seen["meta"]["versionId"]}"'}
        answer = await rig.ask("PUT", path, moved, role=role, headers=match)
        assert answer.status == 403
    assert (await channel.relay_row()).endpoint == f"{channel.hook.url}/hook"


async def test_an_administrator_cannot_subscribe_to_identities(
    channel: Channel,
) -> None:
    rig = channel.rig
    asked = make_subscription(f"{channel.hook.url}/hook")
    answer = await rig.ask("POST", "/Subscription", asked, role=Role.ADMINISTRATOR)
    assert answer.status == 403
    masked = {**asked, "criteria": RELEASED}
    answer = await rig.ask("POST", "/Subscription", masked, role=Role.ADMINISTRATOR)
    assert answer.status == 201


async def test_heartbeats_come_in_time_and_are_not_counted(channel: Channel) -> None:
    rig, hook = channel.rig, channel.hook
    beat = {"url": f"{BACKPORT}/backport-heartbeat-period", "valueUnsignedInt": 60}
    asked = make_subscription(f"{hook.url}/hook", channel={"extension": [beat]})
    posted = await rig.ask("POST", "/Subscription", asked, role=Role.EHR)
    assert posted.status == 201, posted.raw
    await channel.deliver()
    for _ in range(3):
        channel.clock.advance(seconds=60)
        await channel.deliver()
    assert hook.kinds == ["handshake", "heartbeat", "heartbeat", "heartbeat"]
    seen = await rig.read(f"/Subscription/{posted.body['id']}", role=Role.EHR)
    match = {"If-Match": f'W/"{seen["meta"]["versionId"]}"'}
    again = {**seen, "status": "requested"}
    path = f"/Subscription/{posted.body['id']}"
    answer = await rig.ask("PUT", path, again, role=Role.EHR, headers=match)
    assert answer.status == 200, answer.raw
    for _ in range(2):
        await channel.deliver()
        channel.clock.advance(seconds=60)
    await channel.deliver()
    assert hook.kinds[4:] == ["handshake", "heartbeat", "heartbeat"]
    assert parameter(hook.bundles[-1], "events-since-subscription-start") == "0"


async def test_an_erased_patients_events_leave_no_body_and_stop_nobody(
    channel: Channel,
) -> None:
    rig, hook = channel.rig, channel.hook
    await channel.subscribe_relay()
    await rig.sign()
    report = await rig.read(rig.report_path)
    patient = report["subject"]["reference"].partition("/")[2]
    async with rig.store.db.transaction() as tx:
        await shred(tx, rig.store.ring, UUID(patient))
    assert (await rig.get(rig.report_path)).status == 410
    assert "entry" not in await rig.read("/DiagnosticReport")
    await channel.deliver()
    assert hook.numbers == []
    async with rig.store.db.transaction() as tx:
        row = await channel.relay_row()
        left = await topic_events.events(
            tx, rig.store, row.subscription_id, undelivered=True
        )
    assert left == []


async def test_a_desk_code_is_offered_to_the_relay_without_identity(
    store: Any, channel: Channel
) -> None:
    rig = channel.rig
    report = await rig.read(rig.report_path)
    patient_id = UUID(report["subject"]["reference"].partition("/")[2])
    async with store.db.transaction() as tx:
        user = (await people.list_users(tx))[0]
        binding, token = await people.create_binding(
            tx,
            patient_id=patient_id,
            id_number="000000197903050000",
            created_by=user.user_id,
            now=store.clock(),
        )
    async with running_hook("/hook/binding") as hook:
        settings = replace(rig.settings, relay_url=hook.url)
        async with aiohttp.ClientSession() as session:
            payload = {"binding_id": str(binding.binding_id)}
            await offer_binding(store, settings, session, payload)
            hook.answers = [503]
            with pytest.raises(NodeError):
                await offer_binding(store, settings, session, payload)
    signature, body = hook.got[0]
    verify_hook(b"test secret", body, signature, datetime.now(UTC))
    offer = read_offer(body)
    assert offer.display == "张*"
    assert token.encode() not in body
    assert not [secret for secret in PHI if secret in body.decode()]
