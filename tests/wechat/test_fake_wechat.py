"""The fake must behave like WeChat, or every test that uses it proves nothing."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.fake_wechat import (
    DEMO_TEMPLATE,
    FIELD_RULES,
    JSCODE,
    LEGACY_TOKEN,
    PHONE,
    SEND,
    STABLE_TOKEN,
    FakeWeChat,
    Fault,
    sign,
)
from tests.wechat.rig import Clock

GOOD_DATA = {
    "thing1": {"value": "检查报告已更新"},
    "date2": {"value": "2026年3月2日"},
    "thing3": {"value": "点击查看"},
}


class Hospital:
    """A server of a hospital, calling WeChat in the plainest way."""

    def __init__(self, wechat: FakeWeChat, http: aiohttp.ClientSession) -> None:
        self.wechat = wechat
        self.http = http

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        async with self.http.get(self.wechat.base_url + path, params=query) as response:
            assert response.status == 200
            answer: dict[str, Any] = await response.json()
            return answer

    async def post(self, path: str, body: object, **query: str) -> dict[str, Any]:
        url = self.wechat.base_url + path
        async with self.http.post(url, json=body, params=query) as response:
            assert response.status == 200
            answer: dict[str, Any] = await response.json()
            return answer

    async def token(self, *, force: bool = False, **changed: object) -> dict[str, Any]:
        asked = {
            "grant_type": "client_credential",
            "appid": self.wechat.app_id,
            "secret": self.wechat.app_secret,
            "force_refresh": force,
        }
        return await self.post(STABLE_TOKEN, asked | changed)

    async def send(self, token: str, **changed: object) -> dict[str, Any]:
        message: dict[str, object] = {
            "touser": "openid-1",
            "template_id": DEMO_TEMPLATE,
            "page": "pages/report/index?handle=x",
            "data": GOOD_DATA,
        }
        return await self.post(SEND, message | changed, access_token=token)


@pytest.fixture
async def hospital() -> AsyncIterator[Hospital]:
    wechat = FakeWeChat(clock=Clock())
    await wechat.start()
    async with aiohttp.ClientSession() as http:
        yield Hospital(wechat, http)
    await wechat.stop()


def clock_of(hospital: Hospital) -> Clock:
    clock = hospital.wechat.clock
    assert isinstance(clock, Clock)
    return clock


def test_events_are_signed_as_in_wechats_documentation() -> None:
    assert (
        sign("AAAAA", "1714036504", "1514711492")
        == "f464b24fc39322e44b38aa78f5edd27bd1441696"
    )


async def test_the_stable_token_stays_until_five_minutes_before_its_end(
    hospital: Hospital,
) -> None:
    first = await hospital.token()
    assert first["expires_in"] == 7200
    clock_of(hospital).advance(6899)
    assert (await hospital.token())["access_token"] == first["access_token"]
    clock_of(hospital).advance(1)
    second = await hospital.token()
    assert second["access_token"] != first["access_token"]
    assert (await hospital.send(first["access_token"]))["errcode"] == 40003  # valid
    clock_of(hospital).advance(300)
    assert (await hospital.send(first["access_token"]))["errcode"] == 42001


async def test_force_kills_the_token_in_use_and_is_limited(hospital: Hospital) -> None:
    first = await hospital.token()
    second = await hospital.token(force=True)
    assert (await hospital.send(first["access_token"]))["errcode"] == 40001
    assert (await hospital.token(force=True))["errcode"] == 45011
    for _ in range(19):
        clock_of(hospital).advance(30)
        assert "access_token" in await hospital.token(force=True)
    clock_of(hospital).advance(30)
    assert (await hospital.token(force=True))["errcode"] == 45009
    assert (await hospital.send(second["access_token"]))["errcode"] == 40001


async def test_a_legacy_token_kills_its_predecessor_and_no_stable_one(
    hospital: Hospital,
) -> None:
    stable = (await hospital.token())["access_token"]
    app = {"appid": hospital.wechat.app_id, "secret": hospital.wechat.app_secret}
    legacy = (await hospital.get(LEGACY_TOKEN, **app))["access_token"]
    await hospital.get(LEGACY_TOKEN, **app)
    assert (await hospital.send(legacy))["errcode"] == 40001
    assert (await hospital.send(stable))["errcode"] == 40003


async def test_wrong_accounts_and_tokens_are_told_apart(hospital: Hospital) -> None:
    assert (await hospital.token(appid="wx0"))["errcode"] == 40013
    assert (await hospital.token(secret="no"))["errcode"] == 40125
    answer = await hospital.send("garbage")
    assert answer["errcode"] == 40001
    assert " rid: " in answer["errmsg"]


@pytest.mark.parametrize("age", [0, 299, 300])
async def test_codes_are_single_use_and_last_five_minutes(
    hospital: Hospital, age: int
) -> None:
    query = {
        "appid": hospital.wechat.app_id,
        "secret": hospital.wechat.app_secret,
        "js_code": hospital.wechat.issue_js_code("openid-1"),
        "grant_type": "authorization_code",
    }
    token = (await hospital.token())["access_token"]
    phone = {"code": hospital.wechat.issue_phone_code("13800138000")}
    clock_of(hospital).advance(age)
    answer = await hospital.get(JSCODE, **query)
    number = await hospital.post(PHONE, phone, access_token=token)
    if age < 300:
        assert answer["openid"] == "openid-1"
        assert number["phone_info"]["purePhoneNumber"] == "13800138000"
        number = await hospital.post(PHONE, phone, access_token=token)
        answer = await hospital.get(JSCODE, **query)
    assert answer["errcode"] == 40029
    assert number["errcode"] == 40029


async def test_every_tap_buys_one_message(hospital: Hospital) -> None:
    token = (await hospital.token())["access_token"]
    hospital.wechat.grant("openid-1", DEMO_TEMPLATE, 2)
    assert [(await hospital.send(token))["errcode"] for _ in range(3)] == [0, 0, 43101]
    hospital.wechat.grant("openid-1", DEMO_TEMPLATE)
    hospital.wechat.refuse("openid-1", DEMO_TEMPLATE)
    assert (await hospital.send(token))["errcode"] == 43101
    assert hospital.wechat.events[-1]["Event"] == "subscribe_msg_change_event"


@pytest.mark.parametrize(
    ("changed", "errcode"),
    [
        ({"touser": "nobody"}, 40003),
        ({"template_id": "none"}, 40037),
        ({"page": "pages/none/index"}, 41030),
        ({"data": {**GOOD_DATA, "thing3": {"value": "长" * 21}}}, 47003),
        ({"data": {**GOOD_DATA, "date2": {"value": "2026-03-02"}}}, 47003),
        ({"data": {"thing1": {"value": "一"}}}, 47003),
    ],
)
async def test_wrong_messages_get_wechats_errcodes(
    hospital: Hospital, changed: dict[str, object], errcode: int
) -> None:
    token = (await hospital.token())["access_token"]
    hospital.wechat.grant("openid-1", DEMO_TEMPLATE)
    answer = await hospital.send(token, **changed)
    assert answer["errcode"] == errcode
    assert hospital.wechat.quota("openid-1", DEMO_TEMPLATE) == 1
    if errcode == 47003:
        assert answer["errmsg"].startswith("argument invalid! data.")


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("name", "张三", "张*"),
        ("name", "Zhang San", "张San"),
        ("phrase", "已更新", "已更新了一次"),
        ("date", "2026年3月2日 15:01", "03/02"),
        ("time", "15:01", "three"),
        ("number", "17", "x"),
        ("letter", "abc", "a1"),
        ("symbol", "!?", "abc"),
        ("character_string", "AB-12", "报告"),
        ("amount", "￥12.50", "many"),
        ("phone_number", "+86-13800138000", "1" * 18),
        ("car_number", "京A12345", "京A1234567"),
    ],
)
def test_field_types_have_wechats_limits(kind: str, good: str, bad: str) -> None:
    assert FIELD_RULES[kind].fullmatch(good)
    assert not FIELD_RULES[kind].fullmatch(bad)


async def test_minute_and_day_limits_start_anew(hospital: Hospital) -> None:
    hospital.wechat.limits.per_minute[STABLE_TOKEN] = 1
    hospital.wechat.limits.per_day[STABLE_TOKEN] = 2
    assert "access_token" in await hospital.token()
    assert (await hospital.token())["errcode"] == 45011
    clock_of(hospital).advance(60)
    assert "access_token" in await hospital.token()
    clock_of(hospital).advance(60)
    assert (await hospital.token())["errcode"] == 45009
    clock_of(hospital).advance(24 * 3600)
    assert "access_token" in await hospital.token()


async def test_a_connection_can_break_after_the_message_went_out(
    hospital: Hospital,
) -> None:
    token = (await hospital.token())["access_token"]
    hospital.wechat.grant("openid-1", DEMO_TEMPLATE, 2)
    hospital.wechat.fail(SEND, Fault("reset", counted=True))
    with pytest.raises(aiohttp.ClientError):
        await hospital.send(token)
    assert len(hospital.wechat.sent) == 1
    hospital.wechat.fail(SEND, Fault("slow", delay_s=0.01))
    assert (await hospital.send(token))["errcode"] == 0


async def test_the_demo_controls_it_over_http(hospital: Hospital) -> None:
    code = await hospital.post("/_control/js-codes", {"openid": "openid-1"})
    assert code["js_code"]
    asked = {"openid": "openid-1", "template_id": DEMO_TEMPLATE}
    assert (await hospital.post("/_control/quota", asked))["quota"] == 1
    await hospital.post("/_control/faults", {"path": SEND, "kind": "errcode"})
    token = (await hospital.token())["access_token"]
    assert (await hospital.send(token))["errcode"] == -1
    assert (await hospital.send(token))["errcode"] == 0
    (message,) = (await hospital.get("/_control/sent"))["sent"]
    assert message["openid"] == "openid-1"
    assert b"pages/report/index?handle=x" in hospital.wechat.received_octets()
