"""Deliveries: as asked for, in order, beside each other, and only while allowed."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import aiohttp
import fhirkit
import pytest
from aiohttp import web

from fhir.encoding.wire import Json, instant, to_bytes
from fhir.encoding.xml import from_xml
from fhir.subscriptions.delivery import Dispatcher
from fhir.subscriptions.notification import BACKPORT
from node.domain.access import Role
from node.store import audit, clients, notifying, topic_events
from node.store import subscriptions as rows
from node.store.store import Store
from node.store.topic_events import Occurrence
from tests.conftest import FrozenClock
from tests.factories import make_findings, make_patient
from tests.fhir.content.test_life_cycle import because
from tests.fhir.rig import STUDY_UID, publish_draft, receive_study
from tests.fhir.smart_rig import SmartRig, running_smart
from tests.fhir.subscriptions.rig import (
    RELEASED,
    SIGNED,
    Channel,
    Hook,
    event_numbers,
    make_subscription,
    parameter,
    running_hook,
)
from wechat.relay.hook import verify_hook

BASE = "https://fhir.sononode.org/SubscriptionTopic"


def extended(name: str, **value: Any) -> dict[str, Any]:
    return {"extension": [{"url": f"{BACKPORT}/{name}", **value}]}


async def subscribed(to: Channel, **changes: Any) -> str:
    """Subscribe as the EHR does and shake hands; return the id."""
    asked = make_subscription(f"{to.hook.url}/hook", **changes)
    posted = await to.rig.ask("POST", "/Subscription", asked, role=Role.EHR)
    assert posted.status == 201, posted.raw
    await to.deliver()
    return str(posted.body["id"])


async def happened(store: Store, times: int, *subscription_ids: str) -> None:
    """Write events of nobody in particular."""
    body = b'{"resourceType":"DiagnosticReport","status":"final","code":{"text":"x"}}'
    told = Occurrence("DiagnosticReport/x", body, None)
    ids = [UUID(one) for one in subscription_ids]
    async with store.db.transaction() as tx:
        await topic_events.add_events(
            tx, store, [(told, ids)] * times, at=store.clock()
        )


async def state(store: Store, subscription_id: str) -> rows.Subscription:
    async with store.db.transaction() as tx:
        return await rows.read(tx, store, UUID(subscription_id))


# --- in which form ------------------------------------------------------------------


async def test_a_subscriber_gets_xml_where_it_asks_for_it(channel: Channel) -> None:
    media_type = "application/fhir+xml; fhirVersion=4.0"
    await subscribed(channel, channel={"payload": media_type})
    assert (await channel.rig.sign()).status == 200
    await channel.deliver()
    assert channel.hook.headers[-1]["Content-Type"] == media_type
    told = from_xml(channel.hook.got[-1][1])
    assert [str(i) for i in fhirkit.validate(to_bytes(told))] == []
    assert event_numbers(told) == [1]
    assert told["entry"][1]["resource"]["status"] == "final"


async def test_events_come_together_as_far_as_max_count_allows(
    channel: Channel,
) -> None:
    counted = extended("backport-max-count", valuePositiveInt=2)
    one = await subscribed(channel, channel=counted)
    await happened(channel.rig.store, 5, one)
    await channel.deliver()
    got = [event_numbers(bundle) for bundle in channel.hook.bundles[1:]]
    assert got == [[1, 2], [3, 4], [5]]
    assert [len(bundle["entry"]) for bundle in channel.hook.bundles[1:]] == [3, 3, 2]


async def test_an_empty_notification_tells_nothing_but_its_number(
    channel: Channel,
) -> None:
    await subscribed(channel, content="empty")
    await channel.rig.sign()
    await channel.deliver()
    told = channel.hook.bundles[-1]
    assert event_numbers(told) == [1]
    assert len(told["entry"]) == 1
    for secret in ("DiagnosticReport", str(channel.rig.report_id), "report-signed"):
        assert secret.encode() not in channel.hook.got[-1][1]


async def test_calls_are_signed_where_the_site_has_set_a_secret(
    channel: Channel,
) -> None:
    object.__setattr__(channel.rig.settings, "hook_secret", b"for the hooks")
    await subscribed(channel)
    signature, body = channel.hook.got[-1]
    verify_hook(b"for the hooks", body, signature, datetime.now(UTC))


async def test_a_subscriber_has_a_secret_of_its_own_that_nobody_reads_back(
    channel: Channel, clock: FrozenClock
) -> None:
    rig, first, second = channel.rig, "1" * 32, "2" * 40
    object.__setattr__(rig.settings, "hook_secret", b"for the hooks")
    stars = ["Authorization: ***", "X-Sononode-Secret: ***"]

    def told(*secrets: str) -> list[str]:
        return ["Authorization: b", *(f"x-sononode-secret: {one}" for one in secrets)]

    def judged(*secrets: str) -> bool:
        """Tell whether each of these has signed the last call, and nothing else."""
        signature, body = channel.hook.got[-1]
        time, *digests = signature.split(",")
        for secret, digest in zip(secrets, digests, strict=True):
            now = datetime.now(UTC)
            verify_hook(secret.encode(), body, f"{time},{digest}", now)
        return first not in str((body, channel.hook.headers[-1]))

    one = await subscribed(channel, channel={"header": told(first)})
    assert judged(first)
    await subscribed(channel)
    assert judged("for the hooks")
    seen = await rig.ask("GET", f"/Subscription/{one}/_history", role=Role.EHR)
    assert first.encode() not in seen.raw
    assert seen.body["entry"][0]["resource"]["channel"]["header"] == stars

    async def change(headers: list[str], status: int = 200) -> Json:
        body = await rig.read(f"/Subscription/{one}", role=Role.EHR)
        tag = {"If-Match": f'W/"{body["meta"]["versionId"]}"'}
        body = {**body, "status": "requested"}
        body["channel"] = {**body["channel"], "header": headers}
        put = await rig.ask(
            "PUT", f"/Subscription/{one}", body, role=Role.EHR, headers=tag
        )
        assert put.status == status, put.raw
        await channel.deliver()
        return put.body

    for headers in (stars, told()):  # it goes with no update that does not name it
        assert (await change(headers))["channel"]["header"] == stars
        assert judged(first)
    for wrong in (told("short"), told(second, second)):
        await change(wrong, 422)
    await change(told(second))
    assert judged(second, first)
    clock.advance(seconds=86400)
    await rig.renew_sessions()
    await change(stars)
    assert judged(second)
    async with rig.store.db.transaction() as tx:
        row = await tx.fetchrow(
            "select * from subscriptions where subscription_id = $1", UUID(one)
        )
        assert second not in str(row)
        assert second.encode() not in bytes(row["secret"])


async def test_stars_are_no_secret_of_a_new_subscription(channel: Channel) -> None:
    asked = make_subscription(
        f"{channel.hook.url}/hook", channel={"header": ["X-Sononode-Secret: ***"]}
    )
    refused = await channel.rig.ask("POST", "/Subscription", asked, role=Role.EHR)
    assert refused.status == 422
    assert refused.expressions == ["Subscription.channel.header"]


# --- what is told of ----------------------------------------------------------------


async def test_only_what_a_filter_asks_for_is_told_and_counted(
    channel: Channel,
) -> None:
    rig = channel.rig
    patient = (await rig.read(rig.report_path))["subject"]["reference"]
    asked = {
        f"DiagnosticReport?patient={patient}": 2,
        f"patient={patient}&status=corrected": 1,
        "DiagnosticReport?patient=Patient/other": 0,
        "status=amended": 0,
        "DiagnosticReport.status:not=corrected": 1,
    }
    made = {}
    for criteria in asked:
        url = f"{BACKPORT}/backport-filter-criteria"
        extension = {"extension": [{"url": url, "valueString": criteria}]}
        made[criteria] = await subscribed(channel, _criteria=extension)
    assert (await rig.sign()).status == 200
    entry = await rig.edited(rig.report_path, status="corrected")
    assert (await rig.transact(entry, because(rig))).status == 200
    counts = {c: (await state(rig.store, one)).events_count for c, one in made.items()}
    assert counts == asked


@pytest.mark.parametrize(
    ("criteria", "topic"),
    [
        ("DiagnosticReport?colour=red", SIGNED),
        ("DiagnosticReport?identifier=1", SIGNED),
        ("DiagnosticReport?patient:missing=true", SIGNED),
        ("Observation?status=final", SIGNED),
        ("DiagnosticReport?status", SIGNED),
        ("status=final", RELEASED),
    ],
)
async def test_a_filter_that_the_topic_does_not_offer_is_refused_with_its_place(
    channel: Channel, criteria: str, topic: str
) -> None:
    url = f"{BACKPORT}/backport-filter-criteria"
    good = {"url": url, "valueString": "status=final"}
    bad = {"url": url, "valueString": criteria}
    asked = make_subscription(
        f"{channel.hook.url}/hook",
        criteria=topic,
        _criteria={"extension": [good, bad] if topic == SIGNED else [bad]},
    )
    answer = await channel.rig.ask("POST", "/Subscription", asked, role=Role.EHR)
    assert answer.status == 422
    place = 1 if topic == SIGNED else 0
    assert f"Subscription.criteria.extension[{place}].value" in answer.expressions


async def test_drafts_studies_and_orders_are_told_to_who_asks_for_them(
    channel: Channel,
) -> None:
    rig, store = channel.rig, channel.rig.store
    told = {
        name: await subscribed(channel, criteria=f"{BASE}/{name}")
        for name in ("report-drafted", "imaging-study-available", "order-changed")
    }
    assert (await rig.put(rig.report_path, status="preliminary")).status == 200
    report = await rig.read(rig.report_path)
    order = {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": report["subject"],
    }
    placed = await rig.ask("POST", "/ServiceRequest", order, role=Role.EHR)
    assert placed.status == 201, placed.raw
    await receive_study(store, make_patient(), study_uid="2.25.9001", accession="A-9")
    await publish_draft(store, rig.settings, study_uid="2.25.9001")
    await channel.deliver()
    focuses = [
        (parameter(b, "topic").rpartition("/")[2], e["request"]["method"])
        for b in channel.hook.bundles
        for e in b["entry"][1:2]
    ]
    assert sorted(focuses) == [
        ("imaging-study-available", "POST"),
        ("order-changed", "POST"),
        ("report-drafted", "POST"),
        ("report-drafted", "PUT"),
    ]
    assert {(await state(store, one)).error for one in told.values()} == {None}


def beside(bundle: Json) -> tuple[list[str], list[str]]:
    """Return what goes along: as additional-context, and as entries with a body."""
    (event,) = [
        item["part"]
        for item in bundle["entry"][0]["resource"]["parameter"]
        if item["name"] == "notification-event"
    ]
    named = [
        part["valueReference"]["reference"].rpartition("/fhir/")[2]
        for part in event
        if part["name"] == "additional-context"
    ]
    entries = [one for one in bundle["entry"][2:] if one["request"]["method"] == "GET"]
    assert [one["fullUrl"].rpartition("/fhir/")[2] for one in entries] == named
    return named, [one["resource"]["id"] for one in entries if "resource" in one]


async def test_what_a_report_names_goes_along_as_it_was(channel: Channel) -> None:
    rig = channel.rig
    one = await subscribed(channel)
    await subscribed(channel, content="id-only")
    assert (await rig.sign()).status == 200
    report = await rig.read(rig.report_path)
    names = [report["subject"], *report["imagingStudy"], *report["result"]]
    wanted = [one["reference"] for one in names]
    assert {name.partition("/")[0] for name in wanted} == {
        "Patient",
        "ImagingStudy",
        "Observation",
    }
    entry = await rig.edited(rig.report_path, status="amended")
    assert (await rig.transact(entry, because(rig))).status == 200
    await channel.deliver()
    heard = [b for b in channel.hook.bundles if event_numbers(b)]
    whole = [b for b in heard if "resource" in b["entry"][-1]]
    (first,) = [b for b in whole if event_numbers(b) == [1]]
    assert beside(first) == (wanted, [name.partition("/")[2] for name in wanted])
    assert "final" in {e["resource"].get("status") for e in first["entry"][2:]}
    assert [str(i) for i in fhirkit.validate(to_bytes(first))] == []
    assert [beside(b) for b in heard if b not in whole] == [(wanted, [])] * 2
    again = await rig.get(f"/Subscription/{one}/$events", role=Role.EHR)
    bodies = [e["resource"] for e in again.body["entry"] if "resource" in e]
    assert first["entry"][-1]["resource"] in bodies


# --- when ---------------------------------------------------------------------------


async def test_heartbeats_keep_their_period_within_a_tenth(
    channel: Channel, clock: FrozenClock
) -> None:
    beat = extended("backport-heartbeat-period", valueUnsignedInt=60)
    await subscribed(channel, channel=beat)
    beats: list[datetime] = [clock.now]
    for _ in range(110):
        clock.advance(seconds=3.7)
        before = len(channel.hook.got)
        await channel.deliver()
        beats += [clock.now] * (len(channel.hook.got) - before)
    assert len(beats) == 7
    for earlier, later in pairwise(beats):
        assert abs((later - earlier).total_seconds() - 60) <= 6


async def test_a_subscription_ends_when_it_said(
    channel: Channel, clock: FrozenClock
) -> None:
    rig = channel.rig
    asked = make_subscription(f"{channel.hook.url}/hook", end=instant(clock.now))
    refused = await rig.ask("POST", "/Subscription", asked, role=Role.EHR)
    assert (refused.status, refused.expressions) == (422, ["Subscription.end"])
    end = instant(clock.now + timedelta(hours=1))
    one = await subscribed(channel, end=end)
    clock.advance(seconds=3600)
    await rig.renew_sessions()
    await rig.sign()
    await channel.deliver()
    assert channel.hook.kinds == ["handshake"]
    assert (await state(rig.store, one)).status == "off"
    assert (await rig.read(f"/Subscription/{one}", role=Role.EHR))["status"] == "off"
    async with rig.store.db.transaction() as tx:
        entries = await audit.entries(tx, entity=f"Subscription/{one}")
    assert "subscription-off" in [entry.action for entry in entries]


async def test_a_black_hole_costs_the_others_nothing(channel: Channel) -> None:
    store, reached, over = channel.rig.store, asyncio.Event(), asyncio.Event()

    async def swallow(_: web.Request) -> web.Response:
        reached.set()
        await over.wait()
        return web.Response()

    longest = extended("backport-timeout", valueUnsignedInt=60)
    async with running_hook("/hole", receive=swallow) as hole:
        live = [await subscribed(channel) for _ in range(12)]
        asked = make_subscription(f"{hole.url}/hole", channel=longest)
        posted = await channel.rig.ask("POST", "/Subscription", asked, role=Role.EHR)
        dead = str(posted.body["id"])
        async with store.db.transaction() as tx:
            await rows.set_status(tx, UUID(dead), "active")
        await happened(store, 1, dead)
        dispatcher = channel.dispatcher
        running = asyncio.create_task(dispatcher.run())
        try:
            async with asyncio.timeout(60):
                await reached.wait()
                for number in range(1, 4):
                    await happened(store, 1, *live, dead)
                    while channel.hook.numbers.count(number) < len(live):
                        await asyncio.sleep(0.01)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            over.set()
    assert (await state(store, dead)).events_count == 4
    by_subscriber: dict[str, list[int]] = {}
    for bundle in channel.hook.bundles:
        name = parameter(bundle, "subscription")
        by_subscriber.setdefault(name, []).extend(event_numbers(bundle))
    assert sorted(by_subscriber.values()) == [[1, 2, 3]] * len(live)


async def test_one_process_delivers_and_the_next_takes_over(channel: Channel) -> None:
    store = channel.rig.store
    one = await subscribed(channel)
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        second = Dispatcher(store, channel.rig.settings, session, session)
        async with notifying.leading(store.db) as lead:
            assert lead is not None
            async with notifying.leading(store.db) as other:
                assert other is None
            running = asyncio.create_task(second.run())
            await happened(store, 1, one)
            for _ in range(20):
                await asyncio.sleep(0)
            assert channel.hook.numbers == []
        while channel.hook.numbers != [1]:
            await asyncio.sleep(0.01)
        second.stop()
        await running


# --- who may be told ----------------------------------------------------------------


@pytest.fixture
async def smart(store: Store) -> Any:
    async with running_smart(store, roles=(Role.RADIOLOGIST,)) as rig:
        await receive_study(store, make_patient())
        rig.report = await publish_draft(
            store, rig.settings, findings=make_findings("2")
        )
        yield rig


async def subscribed_by(
    smart: SmartRig, hook: Hook, scopes: str
) -> tuple[str, str, Dispatcher]:
    """Return a program's subscription that shook hands, its id, and the deliverer."""
    client = await smart.register()
    token = await smart.token(client, scopes)
    asked = make_subscription(f"{hook.url}/hook")
    posted = await smart.with_token(token, "POST", "/Subscription", asked)
    assert posted.status == 201, posted.raw
    dispatcher = Dispatcher(smart.store, smart.settings, smart.session, smart.session)
    await dispatcher.deliver_due()
    return str(posted.body["id"]), str(client.client_id), dispatcher


async def test_a_token_limits_what_its_subscription_tells(smart: SmartRig) -> None:
    scopes = "system/Subscription.cruds system/DiagnosticReport.rs?status=corrected"
    async with running_hook() as hook:
        one, _, dispatcher = await subscribed_by(smart, hook, scopes)
        assert (await smart.sign()).status == 200
        for status in ("amended", "corrected"):
            entry = await smart.edited(smart.report_path, status=status)
            assert (await smart.transact(entry, because(smart))).status == 200
        await dispatcher.deliver_due()
        assert hook.numbers == [1]
        assert hook.bundles[-1]["entry"][1]["resource"]["status"] == "corrected"
    assert (await state(smart.store, one)).events_count == 1


async def test_what_goes_along_is_held_against_the_token_for_itself(
    smart: SmartRig,
) -> None:
    scopes = "system/Subscription.cruds system/DiagnosticReport.rs"
    opened = f"{scopes} system/ImagingStudy.r system/Observation.rs?status=amended"
    async with running_hook() as hook:
        for asked in (scopes, opened):
            _, _, dispatcher = await subscribed_by(smart, hook, asked)
        assert (await smart.sign()).status == 200
        await dispatcher.deliver_due()
        heard = [beside(one)[0] for one in hook.bundles if event_numbers(one)]
    assert sorted(heard) == [[], [f"ImagingStudy/{STUDY_UID}"]]
    assert not any(b"MRN-0042" in body for _, body in hook.got)


async def test_a_program_whose_scopes_were_narrowed_hears_no_more_than_these(
    smart: SmartRig,
) -> None:
    scopes = "system/Subscription.cruds system/DiagnosticReport.rs"
    async with running_hook() as hook:
        one, client_id, dispatcher = await subscribed_by(smart, hook, scopes)
        assert (await smart.sign()).status == 200  # owed while it was open
        async with smart.store.db.transaction() as tx:
            await tx.execute(
                "update clients set scopes = $2 where client_id = $1",
                UUID(client_id),
                "system/Subscription.cruds system/DiagnosticReport.rs?status=amended",
            )
        await dispatcher.deliver_due()
        assert hook.kinds == ["handshake"]
        entry = await smart.edited(smart.report_path, status="amended")
        assert (await smart.transact(entry, because(smart))).status == 200
        await dispatcher.deliver_due()
        assert hook.numbers == [2]
    assert (await state(smart.store, one)).status == "active"


async def test_a_disabled_programs_subscription_is_switched_off_and_stays_off(
    smart: SmartRig,
) -> None:
    scopes = "system/Subscription.cruds system/DiagnosticReport.rs"
    async with running_hook() as hook:
        one, client_id, dispatcher = await subscribed_by(smart, hook, scopes)
        assert (await smart.sign()).status == 200
        async with smart.store.db.transaction() as tx:
            await clients.disable(tx, client_id, now=smart.store.clock())
        await dispatcher.deliver_due()
        assert hook.kinds == ["handshake"]
        assert (await state(smart.store, one)).status == "off"
        async with smart.store.db.transaction() as tx:
            entries = await audit.entries(tx, entity=f"Subscription/{one}")
            await tx.execute("update clients set disabled_at = null")
        (off,) = [one for one in entries if one.action == "subscription-off"]
        assert off.detail["reason"] == "its owner may not come in"
        entry = await smart.edited(smart.report_path, status="amended")
        assert (await smart.transact(entry, because(smart))).status == 200
        await dispatcher.deliver_due()
        assert hook.kinds == ["handshake"]


async def test_a_program_handles_its_own_subscriptions_only(smart: SmartRig) -> None:
    scopes = "system/Subscription.cruds system/DiagnosticReport.rs"
    async with running_hook() as hook:
        one, _, _ = await subscribed_by(smart, hook, scopes)
        stranger = await smart.token(await smart.register(), scopes)
        for path in ("$status", "$events", "$get-ws-binding-token"):
            found = await smart.with_token(
                stranger, "GET", f"/Subscription/{one}/{path}"
            )
            assert found.status == 404, path
        all_of_it = await smart.with_token(stranger, "GET", "/Subscription/$status")
        assert all_of_it.body["total"] == 0
        again = await smart.ask(
            "POST",
            f"/Subscription/{one}/$resend?eventsSinceNumber=1",
            role=None,
            headers={"Authorization": f"Bearer {stranger}"},
        )
        assert again.status == 404


# --- asking -------------------------------------------------------------------------


async def test_the_status_of_all_subscriptions_is_found_by_id_and_status(
    channel: Channel,
) -> None:
    rig = channel.rig
    both = sorted([await subscribed(channel), await subscribed(channel)])
    found = await rig.read("/Subscription/$status", role=Role.EHR)
    assert found["total"] == 2
    by_id = await rig.read(f"/Subscription/$status?id={both[0]}", role=Role.EHR)
    assert by_id["total"] == 1
    active = f"/Subscription/$status?status=active,error&id={both[0]},{both[1]}"
    assert (await rig.read(active, role=Role.EHR))["total"] == 2
    off = await rig.read("/Subscription/$status?status=off", role=Role.EHR)
    assert off["total"] == 0
    asked = {
        "resourceType": "Parameters",
        "parameter": [{"name": "id", "valueId": both[1]}],
    }
    posted = await rig.ask("POST", "/Subscription/$status", asked, role=Role.EHR)
    assert (posted.status, posted.body["total"]) == (200, 1)


async def test_events_are_sent_again_under_their_numbers(
    channel: Channel, clock: FrozenClock
) -> None:
    rig = channel.rig
    one = await subscribed(channel)
    await happened(rig.store, 3, one)
    clock.advance(seconds=60)
    await happened(rig.store, 2, one)
    await channel.deliver()
    assert channel.hook.numbers == [1, 2, 3, 4, 5]
    path = f"/Subscription/{one}/$resend"
    for query, expected in (
        ("eventsSinceNumber=2&eventsUntilNumber=3", [2, 3]),
        (f"eventsSinceInstant={instant(clock.now)}", [4, 5]),
        ("eventsSinceNumber=9", []),
    ):
        channel.hook.got.clear()
        answer = await rig.ask("POST", f"{path}?{query}", role=Role.EHR)
        assert answer.status == 200, answer.raw
        assert answer.body["resourceType"] == "OperationOutcome"
        await channel.deliver()
        assert channel.hook.numbers == expected, query
    assert (await state(rig.store, one)).events_count == 5
    assert (await rig.ask("POST", path, role=Role.EHR)).status == 400
    wrong = await rig.ask("POST", f"{path}?eventsSinceNumber=x", role=Role.EHR)
    assert wrong.status == 400


async def test_nobody_reads_the_credentials_of_a_hook(channel: Channel) -> None:
    rig = channel.rig
    one = await subscribed(channel, channel={"header": ["X-Key: 1", "X-Key: 2"]})
    path = f"/Subscription/{one}"
    for asked in (path, f"{path}/_history/1", f"{path}/_history"):
        assert b"X-Key: ***" in (await rig.get(asked, role=Role.EHR)).raw
    seen = await rig.read(path, role=Role.EHR)
    assert seen["channel"]["header"] == ["X-Key: ***", "X-Key: ***"]
    seen["channel"]["header"].append("X-Other: 3")
    match = {"If-Match": f'W/"{seen["meta"]["versionId"]}"'}
    changed = {**seen, "status": "requested"}
    put = await rig.ask("PUT", path, changed, role=Role.EHR, headers=match)
    assert put.status == 200, put.raw
    assert (await state(rig.store, one)).headers == (
        "X-Key: 1",
        "X-Key: 2",
        "X-Other: 3",
    )


async def test_whoever_manages_subscriptions_may_switch_one_off(
    channel: Channel,
) -> None:
    rig = channel.rig
    one = await subscribed(channel)
    path = f"/Subscription/{one}"
    seen = await rig.read(path, role=Role.ADMINISTRATOR)
    match = {"If-Match": f'W/"{seen["meta"]["versionId"]}"'}
    for status, answer in (("requested", 403), ("off", 200)):
        changed = {**seen, "status": status}
        found = await rig.ask(
            "PUT", path, changed, role=Role.ADMINISTRATOR, headers=match
        )
        assert found.status == answer, found.raw
    await rig.sign()
    assert await channel.deliver() == 0
