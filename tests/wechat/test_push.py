"""Messages to WeChat: at most one per report version, every refusal handled.

Covers the retry policy of WeChat's server API (errcodes, token renewal, daily
limit) and the ambiguous case: a request that went out and was never answered.
"""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from node.store.database import Database
from tests.fake_wechat import SEND, STABLE_TOKEN, Fault
from tests.wechat.rig import Bench, Clock, Masked, handle, push_bench
from wechat.relay.push import MAX_ATTEMPTS, PushWorker
from wechat.relay.sealing import RelaySealer
from wechat.relay.wechat_api import WeChatApi


async def receive_one(bench: Bench, *, quota: int = 1) -> Masked:
    report = Masked(handle(), bench.patient)
    if quota:
        await bench.allow(quota)
    await bench.receive(report)
    return report


async def test_a_new_report_is_announced_without_name_organ_or_grade(
    bench: Bench,
) -> None:
    report = await receive_one(bench)
    await bench.work()
    assert await bench.states() == ["sent"]
    (message,) = bench.wechat.sent
    assert dict(message.data) == {
        "thing1": "检查报告已更新",
        "date2": "2026年3月2日",
        "thing3": "点击查看，如有疑问请联系医院",
    }
    assert message.page == f"pages/report/index?handle={report.handle}"
    assert await bench.remaining() == 0


async def test_a_version_is_announced_once_and_the_next_version_once_more(
    bench: Bench,
) -> None:
    report = await receive_one(bench, quota=5)
    await bench.work()
    await bench.receive(report)
    await bench.receive(replace(report, state="ready"))
    await bench.work()
    assert len(bench.wechat.sent) == 1
    await bench.receive(replace(report, version=2, status="amended"))
    await bench.work()
    assert len(bench.wechat.sent) == 2


async def test_a_version_that_was_never_announced_gives_way_to_the_next(
    bench: Bench,
) -> None:
    report = await receive_one(bench)
    await bench.receive(replace(report, version=2, status="amended"))
    await bench.work()
    assert await bench.states() == ["superseded", "sent"]


async def test_a_withdrawn_report_is_not_announced(bench: Bench) -> None:
    report = await receive_one(bench)
    withdrawn = replace(report, version=2, state="withdrawn", status="entered-in-error")
    await bench.receive(withdrawn)
    await bench.work()
    assert await bench.states() == ["cancelled"]
    assert bench.wechat.sent == []


async def test_without_a_subscription_wechat_is_not_even_asked(bench: Bench) -> None:
    await receive_one(bench, quota=0)
    await bench.work()
    assert await bench.states() == ["no_quota"]
    assert bench.wechat.calls[SEND] == 0


async def test_43101_ends_the_push_and_empties_the_ledger(bench: Bench) -> None:
    await bench.allow(3)
    bench.wechat.refuse(bench.openid, bench.settings.template_id)
    await receive_one(bench, quota=0)
    await bench.work()
    assert await bench.states() == ["refused"]
    assert await bench.remaining() == 0
    assert bench.wechat.calls[SEND] == 1


@pytest.mark.parametrize("errcode", [47003, 40037, 41030, 40003])
async def test_a_message_that_is_wrong_becomes_a_visible_dead_letter(
    bench: Bench, errcode: int
) -> None:
    bench.wechat.fail(SEND, Fault("errcode", code=errcode))
    await receive_one(bench)
    with capture_logs() as logs:
        await bench.work()
    assert await bench.states() == ["dead"]
    assert await bench.remaining() == 1
    (line,) = [entry for entry in logs if entry["event"] == "push.settled"]
    assert (line["errcode"], line["alarm"], line["log_level"]) == (
        errcode,
        True,
        "error",
    )
    assert bench.openid not in str(logs)
    assert "张" not in str(logs)


@pytest.mark.parametrize("errcode", [-1, 45011, 43108])
async def test_a_busy_wechat_is_asked_again_later(bench: Bench, errcode: int) -> None:
    bench.wechat.fail(SEND, Fault("errcode", code=errcode, times=2))
    await receive_one(bench)
    await bench.work()
    assert await bench.states() == ["pending"]
    bench.clock.advance(2)
    await bench.work()
    assert bench.wechat.calls[SEND] == 2
    bench.clock.advance(3)
    await bench.work()
    assert bench.wechat.calls[SEND] == 2  # the delay doubles
    bench.clock.advance(1)
    await bench.work()
    assert await bench.states() == ["sent"]
    assert len(bench.wechat.sent) == 1


async def test_a_gateway_error_is_asked_again_later(bench: Bench) -> None:
    bench.wechat.fail(SEND, Fault("http", code=502))
    await receive_one(bench)
    await bench.work()
    assert await bench.states() == ["pending"]
    bench.clock.advance(2)
    await bench.work()
    assert await bench.states() == ["sent"]


async def test_a_wechat_that_stays_busy_ends_as_a_dead_letter(bench: Bench) -> None:
    bench.wechat.fail(SEND, Fault("errcode", code=-1, times=99))
    await receive_one(bench)
    for _ in range(MAX_ATTEMPTS + 2):
        await bench.work()
        bench.clock.advance(600)
    assert await bench.states() == ["dead"]
    assert bench.wechat.calls[SEND] == MAX_ATTEMPTS


async def test_the_daily_limit_parks_until_midnight_in_beijing(
    relay_dsn: str, tmp_path: Path
) -> None:
    before_midnight = Clock(datetime(2026, 3, 2, 15, 0, tzinfo=UTC))  # 23:00 UTC+8
    async with push_bench(relay_dsn, tmp_path, clock=before_midnight) as bench:
        bench.wechat.limits.per_day[SEND] = 0
        await receive_one(bench)
        await bench.work()
        assert await bench.states() == ["parked"]
        bench.wechat.limits.per_day.clear()
        bench.clock.advance(3599)
        await bench.work()
        assert await bench.states() == ["parked"]
        bench.clock.advance(1)
        await bench.work()
        assert await bench.states() == ["sent"]


@pytest.mark.parametrize("errcode", [40001, 40014, 42001])
async def test_a_refused_token_is_renewed_and_the_message_sent_once(
    bench: Bench, errcode: int
) -> None:
    bench.wechat.fail(SEND, Fault("errcode", code=errcode))
    await receive_one(bench)
    await bench.work()
    assert await bench.states() == ["sent"]
    assert bench.wechat.calls[SEND] == 2
    assert bench.wechat.calls[STABLE_TOKEN] == 2


async def test_a_token_refused_twice_raises_an_alarm_and_waits(bench: Bench) -> None:
    bench.wechat.fail(SEND, Fault("errcode", code=40001, times=2))
    await receive_one(bench)
    with capture_logs() as logs:
        await bench.work()
    assert await bench.states() == ["parked"]
    assert bench.wechat.calls[SEND] == 2
    alarms = [entry["event"] for entry in logs if entry.get("alarm")]
    assert alarms == ["wechat.token_refused_twice", "push.settled"]
    bench.clock.advance(600)
    await bench.work()
    assert await bench.states() == ["sent"]


async def test_a_wrong_app_secret_is_named_as_a_setting_and_not_logged(
    bench: Bench,
) -> None:
    bench.wechat.app_secret = "another"
    await receive_one(bench)
    with capture_logs() as logs:
        await bench.work()
    assert await bench.states() == ["parked"]
    assert any(entry["event"] == "wechat.account_refused" for entry in logs)
    assert bench.settings.app_secret not in str(logs)


async def test_an_unanswered_last_message_that_arrived_is_never_repeated(
    bench: Bench,
) -> None:
    bench.wechat.fail(SEND, Fault("reset", counted=True))
    await receive_one(bench, quota=1)
    await bench.work()
    assert await bench.states() == ["pending"]
    bench.clock.advance(2)
    await bench.work()  # WeChat answers 43101: its quota is spent
    assert await bench.states() == ["unconfirmed"]
    assert len(bench.wechat.sent) == 1


async def test_an_unanswered_last_message_that_was_lost_is_sent_again(
    hurried_bench: Bench,
) -> None:
    bench = hurried_bench
    bench.wechat.fail(SEND, Fault("hang", counted=False))
    await receive_one(bench, quota=1)
    await bench.work()
    bench.clock.advance(2)
    await bench.work()
    assert await bench.states() == ["sent"]
    assert len(bench.wechat.sent) == 1


@pytest.mark.parametrize("counted", [True, False])
async def test_an_unanswered_message_with_quota_left_waits_for_wechats_word(
    hurried_bench: Bench, counted: bool
) -> None:
    bench = hurried_bench
    bench.wechat.fail(SEND, Fault("hang", counted=counted))
    await receive_one(bench, quota=2)
    await bench.work()
    bench.clock.advance(3600)
    await bench.work()
    assert await bench.states() == ["unconfirmed"]
    assert len(bench.wechat.sent) == int(counted)
    assert bench.wechat.calls[SEND] == 1


async def test_new_quota_stops_the_second_try_of_an_unanswered_message(
    bench: Bench,
) -> None:
    bench.wechat.fail(SEND, Fault("reset", counted=True))
    await receive_one(bench, quota=1)
    await bench.work()
    await bench.allow(1)
    bench.clock.advance(2)
    await bench.work()
    assert await bench.states() == ["unconfirmed"]
    assert len(bench.wechat.sent) == 1


async def test_a_worker_killed_during_the_call_leaves_no_second_message(
    hurried_bench: Bench,
) -> None:
    bench = hurried_bench
    bench.wechat.fail(SEND, Fault("hang", counted=True))
    await receive_one(bench, quota=2)
    killed = asyncio.create_task(bench.worker.deliver_next())
    await bench.wechat.wait_until_sent(1)
    killed.cancel()
    await asyncio.gather(killed, return_exceptions=True)
    assert await bench.states() == ["sending"]
    bench.clock.advance(3600)
    await bench.work()
    assert await bench.states() == ["unconfirmed"]
    assert len(bench.wechat.sent) == 1


async def test_a_wechat_that_cannot_be_reached_costs_no_quota(bench: Bench) -> None:
    await receive_one(bench)
    await bench.api.token()
    await bench.wechat.stop()
    await bench.work()
    assert await bench.states() == ["pending"]
    assert await bench.remaining() == 1


async def test_one_openid_gets_one_call_at_a_time(bench: Bench) -> None:
    await bench.allow(4)
    for _ in range(4):
        await bench.receive(Masked(handle(), bench.patient))

    async def drain() -> None:
        while "pending" in await bench.states():
            await bench.worker.deliver_next()

    await asyncio.gather(*(drain() for _ in range(4)))
    assert await bench.states() == ["sent"] * 4
    assert bench.wechat.calls[SEND] == 4  # none was refused with 43108


async def test_twenty_workers_with_an_expired_token_ask_for_one(
    bench: Bench, relay_dsn: str
) -> None:
    await bench.api.token()
    bench.clock.advance(7200)
    calls = bench.wechat.calls[STABLE_TOKEN]
    sealer = RelaySealer.from_file(bench.settings.key_file)
    others = [await Database.connect(relay_dsn, max_size=3) for _ in range(4)]
    apis = [WeChatApi(bench.settings, db, sealer, bench.clock) for db in others]
    try:
        for api in apis:
            await api.open()
        tokens = await asyncio.gather(*(apis[n % 4].token() for n in range(20)))
        assert len(set(tokens)) == 1
        assert bench.wechat.calls[STABLE_TOKEN] == calls + 1
    finally:
        for api, db in zip(apis, others, strict=True):
            await api.close()
            await db.close()


async def test_twenty_messages_with_a_killed_token_renew_it_once(
    bench: Bench,
) -> None:
    token = await bench.api.token()
    bench.wechat.kill_token(token)
    results = await asyncio.gather(
        *(
            bench.api.send(bench.openid, bench.settings.template_id, "", {})
            for _ in range(20)
        )
    )
    assert {result.errcode for result in results} <= {40003, 43108}
    assert bench.wechat.calls[STABLE_TOKEN] == 2


async def test_a_token_is_renewed_before_wechat_calls_it_expired(
    bench: Bench,
) -> None:
    first = await bench.api.token()
    bench.clock.advance(7200 - 61)
    assert await bench.api.token() == first
    bench.clock.advance(2)
    assert await bench.api.token() != first


async def test_a_hanging_token_call_delays_the_push_only(hurried_bench: Bench) -> None:
    bench = hurried_bench
    bench.wechat.fail(STABLE_TOKEN, Fault("hang"))
    await receive_one(bench)
    await bench.work()
    assert await bench.states() == ["pending"]
    bench.clock.advance(2)
    await bench.work()
    assert await bench.states() == ["sent"]


async def test_old_reports_are_purged(bench: Bench) -> None:
    await receive_one(bench, quota=0)
    async with bench.records.db.transaction() as tx:
        now = bench.clock() + timedelta(days=91)
        assert await bench.records.purge(tx, now, timedelta(days=90)) == 1


async def test_the_worker_survives_a_database_that_goes_away(bench: Bench) -> None:
    worker = PushWorker(bench.records, bench.api, bench.settings, bench.clock)
    running = asyncio.create_task(worker.run())
    await bench.allow(1)
    async with bench.records.db.connection() as connection:
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
    await bench.receive(Masked(handle(), bench.patient))
    worker.wake()
    await bench.wechat.wait_until_sent(1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_worker_ends_when_told_in_the_moment_it_is_woken(
    bench: Bench,
) -> None:
    for ticks in range(5):
        worker = PushWorker(bench.records, bench.api, bench.settings, bench.clock)
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(60):
            while not worker._woken._waiters:
                await asyncio.sleep(0.001)
        worker.wake()
        for _ in range(ticks):
            await asyncio.sleep(0)
        running.cancel()
        done, _ = await asyncio.wait({running}, timeout=60)
        assert done, f"still running when cancelled {ticks} ticks after waking"
