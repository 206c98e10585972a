"""What the node may put into the relay, and what the relay refuses to take.

Wire format: Subscriptions R5 Backport IG for R4 (history Bundle, numbered
events). 200 only after commit; 422 for anything outside the masked allow-list.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from fhir.subscriptions.notification import sign
from tests.wechat.rig import (
    SECRET,
    SUBSCRIPTION,
    Masked,
    Rig,
    encode,
    handle,
    notification,
    offer_body,
)

UNMASKED = "张三丰"
ID_NUMBER = "11010519491231002X"


async def rows(rig: Rig, query: str) -> list[Any]:
    connection = await asyncpg.connect(rig.settings.dsn)
    try:
        found: list[Any] = await connection.fetch(query)
        return found
    finally:
        await connection.close()


async def test_handshake_and_heartbeat_are_answered_and_store_nothing(rig: Rig) -> None:
    for kind in ("handshake", "heartbeat"):
        status, answer = await rig.post("/hook", encode(notification(kind=kind)))
        assert (status, answer) == (200, {"received": 0})
    assert await rows(rig, "select * from hook_events") == []


async def test_a_delivery_is_kept_once_however_often_it_comes(rig: Rig) -> None:
    body = encode(notification((1, Masked(handle(), handle()))))
    for _ in range(3):
        assert (await rig.post("/hook", body))[0] == 200
    assert len(await rows(rig, "select * from hook_events")) == 1
    assert len(await rows(rig, "select * from reports")) == 1


async def test_events_of_one_delivery_apply_in_order_of_their_numbers(rig: Rig) -> None:
    first = Masked(handle(), handle(), version=1)
    other = Masked(handle(), handle())
    second = replace(first, version=2, status="amended")
    assert (await rig.post("/hook", encode(notification((7, other), (6, first)))))[
        0
    ] == 200
    assert (await rig.post("/hook", encode(notification((9, second)))))[0] == 200
    late = replace(first, version=1, state="released")
    assert (await rig.post("/hook", encode(notification((8, late)))))[0] == 200
    (row,) = await rows(
        rig, f"select version from reports where handle = '{first.handle}'"
    )
    assert row["version"] == 2


async def test_a_new_subscription_counts_from_one_again(rig: Rig) -> None:
    report = Masked(handle(), handle())
    assert (await rig.post("/hook", encode(notification((9, report)))))[0] == 200
    amended = replace(report, version=2, status="corrected")
    body = encode(notification((1, amended), subscription="another"))
    assert (await rig.post("/hook", body))[0] == 200
    (row,) = await rows(rig, "select version, subscription from reports")
    assert (row["version"], row["subscription"]) == (2, "another")


@pytest.mark.parametrize(
    "make",
    [
        lambda body, now: "",
        lambda body, now: "t=1,v1=00",
        lambda body, now: sign([b"another secret, 16+"], body, now),
        lambda body, now: sign([SECRET], body + b" ", now),
        lambda body, now: sign([SECRET], body, now - timedelta(seconds=301)),
        lambda body, now: sign([SECRET], body, now + timedelta(seconds=301)),
    ],
    ids=["none", "malformed", "other-secret", "other-body", "old", "future"],
)
async def test_an_unsigned_forged_or_replayed_call_is_refused(
    rig: Rig, make: Callable[..., str]
) -> None:
    body = encode(notification((1, Masked(handle(), handle()))))
    status, _ = await rig.post("/hook", body, signature=make(body, rig.clock()) or "-")
    assert status == 401
    assert await rows(rig, "select * from reports") == []


def _report(bundle: dict[str, Any]) -> dict[str, Any]:
    resource: dict[str, Any] = bundle["entry"][1]["resource"]
    return resource


def _leak_name(bundle: dict[str, Any]) -> None:
    _report(bundle)["subject"]["display"] = UNMASKED


def _leak_reference(bundle: dict[str, Any]) -> None:
    _report(bundle)["subject"]["reference"] = "Patient/17"


def _leak_contained(bundle: dict[str, Any]) -> None:
    _report(bundle)["contained"] = [{"resourceType": "Patient", "name": [UNMASKED]}]


def _leak_identifier(bundle: dict[str, Any]) -> None:
    _report(bundle)["identifier"] = [{"value": "ACC-2026-0001"}]


def _leak_conclusion(bundle: dict[str, Any]) -> None:
    _report(bundle)["conclusion"] = "suspicious"


def _leak_birth_time(bundle: dict[str, Any]) -> None:
    _report(bundle)["effectiveDateTime"] = "2026-03-01T10:11:12+08:00"


def _leak_extension(bundle: dict[str, Any]) -> None:
    _report(bundle)["extension"].append(
        {
            "url": "https://fhir.sononode.org/StructureDefinition/id-number",
            "valueString": ID_NUMBER,
        }
    )


def _leak_summary(bundle: dict[str, Any]) -> None:
    for extension in _report(bundle)["extension"]:
        if extension["url"].endswith("patient-summary"):
            extension["valueString"] = f"患者 {ID_NUMBER}"


def _leak_full_url(bundle: dict[str, Any]) -> None:
    bundle["entry"][1]["fullUrl"] = "https://node/fhir/Patient/17"


def _leak_second_resource(bundle: dict[str, Any]) -> None:
    bundle["entry"].append({"resource": {"resourceType": "Patient", "id": "17"}})


def _leak_status_entry(bundle: dict[str, Any]) -> None:
    bundle["entry"][0]["resource"]["parameter"].append(
        {"name": "note", "valueString": UNMASKED}
    )


def _unsigned(bundle: dict[str, Any]) -> None:
    _report(bundle)["status"] = "preliminary"


def _not_labelled(bundle: dict[str, Any]) -> None:
    _report(bundle)["meta"]["security"] = []


def _gated_with_grade(bundle: dict[str, Any]) -> None:
    for extension in _report(bundle)["extension"]:
        if extension["url"].endswith("release-state"):
            extension["valueCode"] = "ready"


def _short_handle(bundle: dict[str, Any]) -> None:
    _report(bundle)["id"] = "17"


@pytest.mark.parametrize(
    "spoil",
    [
        _leak_name,
        _leak_reference,
        _leak_contained,
        _leak_identifier,
        _leak_conclusion,
        _leak_birth_time,
        _leak_extension,
        _leak_summary,
        _leak_full_url,
        _leak_second_resource,
        _leak_status_entry,
        _unsigned,
        _not_labelled,
        _gated_with_grade,
        _short_handle,
    ],
)
async def test_a_notification_outside_the_masked_allow_list_is_refused_whole(
    rig: Rig, spoil: Callable[[dict[str, Any]], None]
) -> None:
    bundle = copy.deepcopy(notification((1, Masked(handle(), handle()))))
    spoil(bundle)
    with capture_logs() as logs:
        status, answer = await rig.post("/hook", encode(bundle))
    assert status == 422, answer
    assert await rows(rig, "select * from reports") == []
    assert await rows(rig, "select * from hook_events") == []
    told = json.dumps([answer, logs], ensure_ascii=False, default=str)
    assert UNMASKED not in told
    assert ID_NUMBER not in told


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'{"resourceType":"Bundle","entry":[]}',
        b'{"resourceType":"Bundle","type":"history","entry":[{"resource":'
        b'{"resourceType":"Parameters","parameter":[]}}]}',
        encode(
            {
                **notification((1, Masked(handle(), handle()))),
                "entry": [7],
            }
        ),
    ],
)
async def test_a_malformed_notification_gets_a_plain_answer(
    rig: Rig, body: bytes
) -> None:
    status, answer = await rig.post("/hook", body)
    assert status == 400
    assert answer["reason"]


async def test_objects_where_lists_belong_are_malformed_not_a_crash(rig: Rig) -> None:
    bundle = notification((1, Masked(handle(), handle())))
    _report(bundle)["meta"]["security"] = {"code": "REDACTED"}
    assert (await rig.post("/hook", encode(bundle)))[0] == 400


async def test_the_subscription_status_may_use_other_number_types(rig: Rig) -> None:
    bundle = notification((1, Masked(handle(), handle())))
    for parameter in bundle["entry"][0]["resource"]["parameter"]:
        for part in parameter.get("part", []):
            if part["name"] == "event-number":
                part["valueInteger"] = int(part.pop("valueString"))
    assert (await rig.post("/hook", encode(bundle)))[0] == 200


async def test_a_gated_row_differs_from_any_other_only_by_handle_and_time(
    rig: Rig,
) -> None:
    patient = handle()
    await rig.deliver(Masked(handle(), patient, state="ready", category="2"))
    await rig.deliver(Masked(handle(), patient, state="ready", category="4A"))
    first, second = await rows(rig, "select * from reports order by event_number")
    own = {"handle", "content", "event_number", "first_received_at", "changed_at"}
    for column in set(first.keys()) - own:
        assert first[column] == second[column]
    assert len(first["content"]) == len(second["content"])


async def test_nothing_readable_about_a_person_is_in_the_relays_database(
    rig: Rig,
) -> None:
    patient = handle()
    phone = await rig.bound_phone("openid-canary-0001", patient)
    await phone.allow_message()
    report = Masked(handle(), patient, display="欧*", summary="给患者的一句话")
    await rig.deliver(report)
    await rig.wechat.wait_until_sent(1)
    dump = ""
    tables = await rows(
        rig, "select tablename from pg_tables where schemaname='public'"
    )
    for table in tables:
        for row in await rows(rig, f"select t::text from {table['tablename']} t"):
            dump += row["t"]
    for canary in ("openid-canary", "欧*", "张*", "给患者", "良性", phone.token):
        assert canary not in dump
        assert canary.encode().hex() not in dump


async def test_a_binding_offer_may_hold_nothing_but_its_six_values(rig: Rig) -> None:
    good = offer_body(handle(), handle(), "123X", rig.clock(), 24)
    assert (await rig.post("/hook/binding", encode(good)))[0] == 200
    assert (await rig.post("/hook/binding", encode(good)))[0] == 200
    for spoiled, expected in (
        ({**good, "id_number": ID_NUMBER}, 422),
        ({**good, "display": UNMASKED}, 422),
        ({**good, "token_hash": "17"}, 400),
        ({**good, "expires": "2026-03-02"}, 400),
        ({key: good[key] for key in good if key != "check"} | {"check": 5}, 400),
    ):
        status, answer = await rig.post("/hook/binding", encode(spoiled))
        assert status == expected, answer
    assert len(await rows(rig, "select * from binding_offers")) == 1


async def test_the_node_can_ask_what_became_of_the_messages(rig: Rig) -> None:
    patient = handle()
    phone = await rig.bound_phone("openid-1", patient)
    await phone.allow_message()
    report = Masked(handle(), patient)
    await rig.deliver(report)
    await rig.wechat.wait_until_sent(1)
    found: list[dict[str, Any]] = []
    while not found or found[-1]["state"] != "sent":
        async with rig.http.get(
            f"{rig.relay.base_url}/hook/deliveries?after=0",
            headers={"X-Sononode-Signature": sign([SECRET], b"", rig.clock())},
        ) as response:
            assert response.status == 200
            found = (await response.json())["deliveries"]
    (delivery,) = found
    assert delivery["report_handle"] == report.handle
    assert delivery["report_version"] == 1
    status, answer = await rig.post("/hook/deliveries", b"")
    assert status == 405, answer


async def test_a_relay_restarted_in_between_loses_and_repeats_nothing(rig: Rig) -> None:
    patient = handle()
    phone = await rig.bound_phone("openid-1", patient)
    await phone.allow_message()
    await phone.allow_message()
    report = Masked(handle(), patient)
    body = encode(notification((1, report), subscription=SUBSCRIPTION))
    assert (await rig.post("/hook", body))[0] == 200
    await rig.relay.stop()
    await rig.relay.start()
    assert (await rig.post("/hook", body))[0] == 200
    await rig.wechat.wait_until_sent(1)
    assert (await phone.call("GET", f"/api/reports/{report.handle}"))[0] == 200
    assert len(rig.wechat.sent) == 1
