"""WeChat's message push: signed or sealed, twice, out of order, in both shapes."""

import base64
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.fake_wechat import SEND, Fault
from tests.wechat.rig import TEMPLATE, Masked, Phone, Rig, handle, running_rig

AES_KEY = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")


@pytest.fixture(params=["", AES_KEY], ids=["signed", "sealed"])
async def rig(
    relay_dsn: str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Rig]:
    async with running_rig(
        relay_dsn,
        tmp_path,
        push_token="AAAAA",
        push_aes_key=request.param,
    ) as made:
        yield made


def url(rig: Rig) -> str:
    return f"{rig.relay.base_url}/wechat/events"


async def value(rig: Rig, query: str) -> Any:
    connection = await asyncpg.connect(rig.settings.dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def push_state(rig: Rig, wanted: str) -> str:
    """Return the push's state as soon as the worker settled it."""
    state = ""
    while state != wanted and state not in {"sent", "dead", "refused", "no_quota"}:
        state = await value(rig, "select state from pushes")
    return state


async def unanswered_push(rig: Rig) -> Phone:
    patient = handle()
    phone = await rig.bound_phone("openid-1", patient)
    await phone.allow_message()
    await phone.allow_message()
    rig.wechat.fail(SEND, Fault("reset", counted=True))
    await rig.deliver(Masked(handle(), patient))
    assert await push_state(rig, "unconfirmed") == "unconfirmed"
    return phone


@pytest.mark.parametrize("as_array", [False, True])
async def test_the_delivery_event_settles_an_unanswered_push(
    rig: Rig, as_array: bool
) -> None:
    await unanswered_push(rig)
    event = rig.wechat.events[-1]
    assert event["Event"] == "subscribe_msg_sent_event"
    for _ in range(2):
        assert (
            await rig.wechat.push_event(event, url=url(rig), as_array=as_array) == 200
        )
    assert await value(rig, "select state from pushes") == "sent"


async def test_a_forged_event_changes_nothing(rig: Rig) -> None:
    await unanswered_push(rig)
    event = rig.wechat.events[-1]
    assert await rig.wechat.push_event(event, url=url(rig), forged=True) == 401
    assert await value(rig, "select state from pushes") == "unconfirmed"


async def test_switching_messages_off_empties_the_ledger(rig: Rig) -> None:
    phone = await rig.bound_phone("openid-1", handle())
    await phone.allow_message()
    rig.wechat.refuse("openid-1", TEMPLATE)
    assert await rig.wechat.push_event(rig.wechat.events[-1], url=url(rig)) == 200
    assert await value(rig, "select remaining from quotas") == 0


async def test_old_news_about_a_refusal_is_ignored(rig: Rig) -> None:
    phone = await rig.bound_phone("openid-1", handle())
    rig.wechat.refuse("openid-1", TEMPLATE)
    refusal = rig.wechat.events[-1]
    rig.clock.advance(60)
    await phone.allow_message()
    assert await rig.wechat.push_event(refusal, url=url(rig)) == 200
    assert await value(rig, "select remaining from quotas") == 1


async def test_events_of_strangers_and_other_kinds_are_taken_and_ignored(
    rig: Rig,
) -> None:
    rig.wechat.refuse("openid-of-a-stranger", TEMPLATE)
    event = rig.wechat.events[-1]
    assert await rig.wechat.push_event(event, url=url(rig)) == 200
    other = {**event, "Event": "user_enter_tempsession"}
    assert await rig.wechat.push_event(other, url=url(rig)) == 200


async def test_the_address_check_needs_wechats_signature(rig: Rig) -> None:
    query = {"timestamp": "1714036504", "nonce": "1514711492", "echostr": "hello"}
    signature = "f464b24fc39322e44b38aa78f5edd27bd1441696"
    for given, status in ((signature, 200), ("0" * 40, 401)):
        async with rig.http.get(
            url(rig), params={**query, "signature": given}
        ) as response:
            assert response.status == status
