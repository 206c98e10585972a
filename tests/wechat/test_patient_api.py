"""What a phone may read: her own masked reports, and nothing about anybody else's."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fake_wechat import JSCODE, Fault
from tests.wechat.rig import (
    TEMPLATE,
    Masked,
    Rig,
    encode,
    handle,
    offer_body,
    running_rig,
)


async def test_a_login_code_works_once(rig: Rig) -> None:
    code = rig.wechat.issue_js_code("openid-1")
    phone = await rig.phone("openid-1")
    assert (await phone.call("POST", "/api/session", {"js_code": code}))[0] == 200
    assert (await phone.call("POST", "/api/session", {"js_code": code}))[0] == 401


async def test_a_login_code_expires_after_five_minutes(rig: Rig) -> None:
    code = rig.wechat.issue_js_code("openid-1")
    rig.clock.advance(300)
    phone = await rig.phone("openid-2")
    assert (await phone.call("POST", "/api/session", {"js_code": code}))[0] == 401


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("errcode", code=45011), 429),
        (Fault("errcode", code=40226), 401),
        (Fault("errcode", code=-1, times=2), 503),
        (Fault("errcode", code=-1), 200),
        (Fault("http", code=502), 503),
        (Fault("reset", times=3), 503),
        (Fault("errcode", code=40125), 503),
    ],
    ids=["limit", "risk", "busy-twice", "busy-once", "gateway", "reset", "secret"],
)
async def test_a_login_that_wechat_spoils_is_told_apart(
    rig: Rig, fault: Fault, expected: int
) -> None:
    phone = await rig.phone("openid-1")
    rig.wechat.fail(JSCODE, fault)
    code = rig.wechat.issue_js_code("openid-1")
    with capture_logs() as logs:
        status, answer = await phone.call("POST", "/api/session", {"js_code": code})
    assert status == expected
    told = f"{answer}{logs}"
    assert rig.settings.app_secret not in told
    assert code not in told
    assert "openid" not in told


async def test_no_route_answers_without_a_session(rig: Rig) -> None:
    phone = await rig.phone("openid-1")
    for token in ("", "made-up"):
        phone.token = token
        for method, path, body in (
            ("GET", "/api/reports", None),
            ("GET", f"/api/reports/{handle()}", None),
            ("POST", "/api/bind", {"token": handle(), "last4": "1234"}),
            ("POST", "/api/quota", {"template_ids": [TEMPLATE]}),
            ("DELETE", "/api/binding", None),
        ):
            answer = await phone.call(method, path, body)
            assert answer == (401, {"error": "log-in"})


async def test_a_session_ends_after_fifteen_idle_minutes(rig: Rig) -> None:
    phone = await rig.phone("openid-1")
    rig.clock.advance(14 * 60)
    assert (await phone.call("GET", "/api/reports"))[0] == 200
    rig.clock.advance(15 * 60)
    assert (await phone.call("GET", "/api/reports"))[0] == 401


async def test_the_desks_code_binds_once_with_the_right_last_four(rig: Rig) -> None:
    patient = handle()
    token = await rig.offer(patient)
    first, second = await rig.phone("openid-1"), await rig.phone("openid-2")
    wrong = {"token": token, "last4": "0000"}
    right = {"token": token, "last4": "123x"}
    assert await first.call("POST", "/api/bind", wrong) == (403, {"error": "not-bound"})
    assert await first.call("POST", "/api/bind", right) == (200, {"bound": True})
    assert await second.call("POST", "/api/bind", right) == (
        403,
        {"error": "not-bound"},
    )


async def test_a_patient_without_id_number_binds_with_the_code_alone(rig: Rig) -> None:
    token = await rig.offer(handle(), last4=None)
    phone = await rig.phone("openid-1")
    answer = await phone.call("POST", "/api/bind", {"token": token, "last4": ""})
    assert answer == (200, {"bound": True})


async def test_an_old_code_binds_nobody(rig: Rig) -> None:
    token = await rig.offer(handle(), hours=0.1)
    phone = await rig.phone("openid-1")
    rig.clock.advance(361)
    answer = await phone.call("POST", "/api/bind", {"token": token, "last4": "123X"})
    assert answer == (403, {"error": "not-bound"})


async def test_five_failures_block_an_openid_for_a_day_without_telling(
    rig: Rig,
) -> None:
    token = await rig.offer(handle(), hours=72)
    stolen = await rig.offer(handle(), hours=72)
    phone = await rig.phone("openid-1")
    answers: list[Any] = []
    for number in range(5):
        guess = {"token": stolen, "last4": f"{number:04}"}
        answers.append(await phone.call("POST", "/api/bind", guess))
    right = {"token": token, "last4": "123X"}
    answers.append(await phone.call("POST", "/api/bind", right))
    assert answers == [(403, {"error": "not-bound"})] * 6
    await phone.call("DELETE", "/api/binding")
    await phone.log_in()  # a new account of the same openid is blocked as well
    assert (await phone.call("POST", "/api/bind", right))[0] == 403
    rig.clock.advance(24 * 3600)
    await phone.log_in()
    assert (await phone.call("POST", "/api/bind", right))[0] == 200


async def test_a_code_may_be_tried_until_the_desks_offer_has_arrived(rig: Rig) -> None:
    patient, code = handle(), handle()
    phone = await rig.phone("openid-1")
    scanned = {"token": code, "last4": "123X"}
    for _ in range(8):
        assert (await phone.call("POST", "/api/bind", scanned))[0] == 403
    offer = offer_body(code, patient, "123X", rig.clock(), 24)
    assert (await rig.post("/hook/binding", encode(offer)))[0] == 200
    assert (await phone.call("POST", "/api/bind", scanned))[0] == 200


async def test_ten_failures_block_a_patient_for_every_openid(rig: Rig) -> None:
    token = await rig.offer(handle())
    for number in range(10):
        phone = await rig.phone(f"openid-{number}")
        await phone.call("POST", "/api/bind", {"token": token, "last4": "0000"})
    last = await rig.phone("openid-of-herself")
    assert (await last.call("POST", "/api/bind", {"token": token, "last4": "123X"}))[
        0
    ] == 403


async def test_parallel_guesses_do_not_get_past_the_limit(rig: Rig) -> None:
    token = await rig.offer(handle())
    phone = await rig.phone("openid-1")
    guesses = [{"token": token, "last4": f"{n:04}"} for n in range(20)]
    await asyncio.gather(*(phone.call("POST", "/api/bind", guess) for guess in guesses))
    assert (await phone.call("POST", "/api/bind", {"token": token, "last4": "123X"}))[
        0
    ] == 403


async def test_a_fourth_phone_cannot_bind_the_same_patient(rig: Rig) -> None:
    patient = handle()
    for number in range(3):
        await rig.bound_phone(f"openid-{number}", patient)
    token = await rig.offer(patient)
    fourth = await rig.phone("openid-4")
    assert (await fourth.call("POST", "/api/bind", {"token": token, "last4": "123X"}))[
        0
    ] == 403


async def test_success_and_failure_of_a_binding_take_equally_long(
    relay_dsn: str, tmp_path: Any
) -> None:
    async with running_rig(relay_dsn, tmp_path, bind_answer_s=0.5) as rig:
        token = await rig.offer(handle())
        phone = await rig.phone("openid-1")
        loop, took = asyncio.get_running_loop(), []
        for last4 in ("0000", "123X"):
            start = loop.time()
            await phone.call("POST", "/api/bind", {"token": token, "last4": last4})
            took.append(loop.time() - start)
        assert min(took) >= 0.5
        assert abs(took[0] - took[1]) < 0.4


async def test_a_foreign_an_unknown_and_a_malformed_handle_look_the_same(
    rig: Rig,
) -> None:
    mine, hers = handle(), handle()
    phone = await rig.bound_phone("openid-1", mine)
    await rig.bound_phone("openid-2", hers)
    foreign = Masked(handle(), hers)
    await rig.deliver(foreign)
    answers = []
    for asked in (foreign.handle, handle(), "1", "..%2f..", "0" * 22, "%00"):
        async with rig.http.get(
            f"{rig.relay.base_url}/api/reports/{asked}",
            headers={"Authorization": f"Bearer {phone.token}"},
        ) as response:
            headers = {k: v for k, v in response.headers.items() if k != "Date"}
            answers.append((response.status, headers, await response.read()))
    assert answers[0][0] == 404
    assert all(answer == answers[0] for answer in answers)


async def test_a_released_report_shows_text_advice_and_trend(rig: Rig) -> None:
    patient = handle()
    phone = await rig.bound_phone("openid-1", patient)
    earlier = Masked(
        handle(), patient, examined_on="2025-03-01", trend=(("L", 2, None),)
    )
    report = Masked(handle(), patient, category="3", trend=(("L", 2, 8.5),))
    await rig.deliver(earlier)
    await rig.deliver(report)
    status, found = await phone.call("GET", f"/api/reports/{report.handle}")
    assert status == 200
    assert found["state"] == "released"
    assert found["category"] == "3"
    assert found["name"] == "张*"
    assert found["text"]["zh"] == "良性可能性大，建议短期复查"
    assert found["trend"] == [
        {
            "examined_on": "2025-03-01",
            "category": "2",
            "lesions": [{"side": "L", "clock": 2, "size_mm": None}],
        },
        {
            "examined_on": "2026-03-01",
            "category": "3",
            "lesions": [{"side": "L", "clock": 2, "size_mm": 8.5}],
        },
    ]


async def test_a_report_that_waits_for_the_doctor_has_no_grade_and_no_text(
    rig: Rig,
) -> None:
    patient = handle()
    phone = await rig.bound_phone("openid-1", patient)
    report = Masked(handle(), patient, state="ready", category="4A")
    await rig.deliver(report)
    _, waiting = await phone.call("GET", f"/api/reports/{report.handle}")
    assert waiting["state"] == "ready"
    assert waiting["department_phone"] == "010-55550100"
    assert not {"category", "text", "advice", "summary", "trend"} & set(waiting)
    await rig.deliver(replace(report, state="released"))
    _, told = await phone.call("GET", f"/api/reports/{report.handle}")
    assert told["category"] == "4A"


async def test_an_amendment_that_raises_the_tier_hides_the_shown_text_at_once(
    rig: Rig,
) -> None:
    patient = handle()
    phone = await rig.bound_phone("openid-1", patient)
    report = Masked(handle(), patient, category="2")
    await rig.deliver(report)
    await rig.deliver(replace(report, version=2, status="amended", state="ready"))
    _, found = await phone.call("GET", f"/api/reports/{report.handle}")
    assert found["state"] == "ready"
    assert "category" not in found


async def test_a_withdrawn_report_says_so_and_nothing_else(rig: Rig) -> None:
    patient = handle()
    phone = await rig.bound_phone("openid-1", patient)
    report = Masked(handle(), patient)
    await rig.deliver(report)
    await rig.deliver(
        replace(report, version=2, state="withdrawn", status="entered-in-error")
    )
    _, found = await phone.call("GET", f"/api/reports/{report.handle}")
    assert found["state"] == "withdrawn"
    assert not {"category", "text", "advice", "summary", "trend"} & set(found)


async def test_reading_clears_the_mark_and_a_new_version_sets_it(rig: Rig) -> None:
    patient = handle()
    phone = await rig.bound_phone("openid-1", patient)
    report = Masked(handle(), patient)
    await rig.deliver(report)

    async def unread() -> bool:
        _, answer = await phone.call("GET", "/api/reports")
        return bool(answer["reports"][0]["unread"])

    assert await unread()
    await phone.call("GET", f"/api/reports/{report.handle}")
    assert not await unread()
    await rig.deliver(replace(report, version=2, status="amended"))
    assert await unread()


async def test_unbinding_takes_effect_at_once_and_forgets_the_phone(rig: Rig) -> None:
    patient = handle()
    phone = await rig.bound_phone("openid-1", patient)
    await phone.allow_message()
    report = Masked(handle(), patient)
    assert await phone.call("DELETE", "/api/binding") == (200, {"bound": False})
    assert (await phone.call("GET", "/api/reports"))[0] == 401
    await rig.deliver(report)
    await phone.log_in()
    assert (await phone.call("GET", f"/api/reports/{report.handle}"))[0] == 404
    assert rig.wechat.sent == []


async def test_only_the_relays_own_template_can_be_counted(rig: Rig) -> None:
    phone = await rig.bound_phone("openid-1", handle())
    for templates in (["another"], [TEMPLATE] * 4, "text", None):
        status, _ = await phone.call("POST", "/api/quota", {"template_ids": templates})
        assert status == 400


@pytest.mark.parametrize("body", [None, [], "text", {"js_code": 5}, {"js_code": ""}])
async def test_a_malformed_call_gets_400(rig: Rig, body: Any) -> None:
    phone = await rig.phone("openid-1")
    assert (await phone.call("POST", "/api/session", body))[0] == 400


async def test_wechat_receives_no_name_grade_organ_or_patient_handle(rig: Rig) -> None:
    patient = handle()
    phone = await rig.bound_phone("openid-1", patient)
    for state, category in (("released", "3"), ("ready", "4A")):
        await phone.allow_message()
        await rig.deliver(Masked(handle(), patient, state=state, category=category))
    await rig.wechat.wait_until_sent(2)
    octets = rig.wechat.received_octets()
    for canary in ("张", "良性", "乳", "breast", "BI-RADS", "010-5555", patient):
        assert canary.encode() not in octets, canary


async def test_health_and_readiness_show_the_state_of_the_messages(rig: Rig) -> None:
    patient = handle()
    await rig.bound_phone("openid-1", patient)
    await rig.deliver(Masked(handle(), patient))
    async with rig.http.get(f"{rig.relay.base_url}/healthz") as response:
        assert response.status == 200
    counts: dict[str, int] = {}
    while "no_quota" not in counts:
        async with rig.http.get(f"{rig.relay.base_url}/readyz") as response:
            assert response.status == 200
            counts = (await response.json())["pushes"]
    assert counts == {"no_quota": 1}
