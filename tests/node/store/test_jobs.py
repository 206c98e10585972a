"""Jobs: none is lost, none loops for ever, those of one study keep their order."""

import asyncio
import json
import signal
import sys
from collections import Counter
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from node.domain.errors import ErrorKind, NodeError
from node.store import jobs as queue
from node.store.jobs import (
    BACKOFF_LAST_S,
    LEASE,
    MAX_CRASHES,
    MAX_FAILURES,
    Job,
    Priority,
)
from node.store.store import Store
from tests.conftest import FrozenClock

KIND = "assess_study"
ROOT = Path(__file__).parents[3]


async def defer(store: Store, number: int = 1, kind: str = KIND, **said: Any) -> UUID:
    async with store.db.transaction() as tx:
        return await store.jobs.defer(tx, kind, {"number": number}, **said)


async def claim(store: Store, worker: str = "w1") -> Job | None:
    return await store.jobs.claim([KIND], worker)


async def claimed(store: Store, worker: str = "w1") -> Job:
    job = await claim(store, worker)
    assert job is not None
    return job


async def dead(store: Store) -> list[queue.DeadLetter]:
    async with store.db.transaction() as tx:
        return await store.jobs.dead(tx)


async def counts(store: Store) -> dict[tuple[str, str], int]:
    async with store.db.transaction() as tx:
        return await store.jobs.counts(tx)


async def test_a_deferred_job_is_claimed_once_and_done(store: Store) -> None:
    job_id = await defer(store, 7, patient_id=uuid4())
    job = await claimed(store)
    assert (job.id, job.kind, job.payload) == (job_id, KIND, {"number": 7})
    assert (job.attempts, job.failures) == (1, 0)
    assert await claim(store, "w2") is None
    assert await counts(store) == {(KIND, "running"): 1}
    await store.jobs.done(job)
    assert await claim(store) is None
    assert await counts(store) == {}


async def test_a_job_of_a_rolled_back_transaction_was_never_promised(
    store: Store,
) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with store.db.transaction() as tx:
            await store.jobs.defer(tx, KIND, {"number": 1})
            raise ZeroDivisionError
    assert await claim(store) is None


async def test_a_job_ends_with_the_transaction_of_its_handler(store: Store) -> None:
    await defer(store)
    job = await claimed(store)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with store.db.transaction() as tx:
            await store.jobs.done(job, tx)
            raise ZeroDivisionError
    assert await counts(store) == {(KIND, "running"): 1}
    async with store.db.transaction() as tx:
        await store.jobs.done(job, tx)
    assert await counts(store) == {}


async def test_payloads_are_sealed(store: Store) -> None:
    async with store.db.transaction() as tx:
        await store.jobs.defer(tx, KIND, {"study_instance_uid": "1.2.3.CANARY"})
        row = await tx.fetchrow("select jobs::text as text, payload from jobs")
    assert "CANARY" not in row["text"]
    assert b"CANARY" not in row["payload"]


async def test_workers_ask_only_for_kinds_that_they_know(store: Store) -> None:
    await defer(store, kind="send_instance")
    assert await claim(store) is None
    assert await store.jobs.claim(["send_instance", KIND], "w1") is not None


async def test_a_job_waits_for_its_time(store: Store, clock: FrozenClock) -> None:
    await defer(store, not_before=clock() + timedelta(seconds=60))
    assert await claim(store) is None
    clock.advance(seconds=61)
    assert await claim(store) is not None


async def test_many_workers_share_the_work_and_do_each_job_once(store: Store) -> None:
    promised = [await defer(store, number) for number in range(60)]
    done: Counter[UUID] = Counter()

    async def work(name: str) -> None:
        while job := await claim(store, name):
            done[job.id] += 1
            await store.jobs.done(job)

    await asyncio.gather(*(work(f"w{n}") for n in range(8)))
    assert done == Counter(promised)


# --- the same work twice ----------------------------------------------------------


async def test_the_same_key_is_the_same_job_until_it_ends(store: Store) -> None:
    first = await defer(store, key="study-1")
    assert await defer(store, key="study-1") == first
    assert await defer(store, key="study-2") != first
    assert await defer(store, key="study-1", kind="send_instance") != first
    job = await claimed(store)
    assert await defer(store, key="study-1") == first
    await store.jobs.done(job)
    assert await defer(store, key="study-1") != first


async def test_the_same_key_from_many_transactions_is_one_job(store: Store) -> None:
    found = await asyncio.gather(*(defer(store, key="k") for _ in range(8)))
    assert len(set(found)) == 1


async def test_a_job_that_ends_while_the_same_is_deferred_does_not_swallow_it(
    store: Store,
) -> None:
    """Whoever defers gets the id of a job that is still to be done, or was then."""
    promised: set[UUID] = set()
    done: set[UUID] = set()
    all_promised = asyncio.Event()

    async def promise() -> None:
        for _ in range(40):
            promised.add(await defer(store, key="k"))

    async def work() -> None:
        while not all_promised.is_set() or await counts(store):
            if job := await claim(store):
                await store.jobs.done(job)
                done.add(job.id)
            await asyncio.sleep(0)

    working = asyncio.create_task(work())
    await asyncio.gather(promise(), promise())
    all_promised.set()
    await working
    assert promised == done


# --- order ------------------------------------------------------------------------


async def test_jobs_of_one_group_run_one_at_a_time_in_order(
    store: Store, clock: FrozenClock
) -> None:
    for number in range(3):
        await defer(store, number, order_key="subscription-1")
    await defer(store, 99)
    first = await claimed(store)
    assert first.payload["number"] == 0
    assert (await claimed(store)).payload["number"] == 99
    assert await claim(store) is None
    await store.jobs.failed(first, "away")
    assert await claim(store) is None  # waiting for its next try, it holds the others
    clock.advance(seconds=5)
    again = await claimed(store)
    assert again.payload["number"] == 0
    await store.jobs.done(again)
    assert (await claimed(store)).payload["number"] == 1


async def test_a_dead_letter_lets_the_rest_of_its_group_go_on(store: Store) -> None:
    for number in range(2):
        await defer(store, number, order_key="subscription-1")
    await store.jobs.failed(await claimed(store), "refused", retry=False)
    assert (await claimed(store)).payload["number"] == 1


async def test_claimers_in_a_crowd_never_run_two_jobs_of_a_group(store: Store) -> None:
    for number in range(30):
        await defer(store, number, order_key=f"group-{number % 2}")
    running: Counter[int] = Counter()
    seen: dict[int, list[int]] = {0: [], 1: []}

    async def work(name: str) -> None:
        while await counts(store):
            job = await claim(store, name)
            if job is None:
                continue
            number = job.payload["number"]
            running[number % 2] += 1
            assert running[number % 2] == 1
            await asyncio.sleep(0)
            seen[number % 2].append(number)
            running[number % 2] -= 1
            await store.jobs.done(job)

    await asyncio.gather(*(work(f"w{n}") for n in range(6)))
    assert seen == {0: list(range(0, 30, 2)), 1: list(range(1, 30, 2))}


async def test_a_replayed_job_goes_before_the_younger_ones_of_its_group(
    store: Store,
) -> None:
    """Also while a younger one runs: then it waits, and holds up no other group."""
    replayed = await defer(store, 0, order_key="study-1")
    await store.jobs.failed(await claimed(store), "refused", retry=False)
    for number in (1, 2):
        await defer(store, number, order_key="study-1")
    running = await claimed(store)
    async with store.db.transaction() as tx:
        await store.jobs.replay(tx, replayed)
    await defer(store, 99, order_key="study-2")
    assert (await claimed(store)).payload["number"] == 99
    await store.jobs.done(running)
    assert (await claimed(store)).payload["number"] == 0


async def test_a_lost_job_is_taken_over_although_an_older_one_was_replayed(
    store: Store, clock: FrozenClock
) -> None:
    replayed = await defer(store, 0, order_key="study-1")
    await store.jobs.failed(await claimed(store), "refused", retry=False)
    await defer(store, 1, order_key="study-1")
    await claimed(store, "killed")
    async with store.db.transaction() as tx:
        await store.jobs.replay(tx, replayed)
    clock.advance(seconds=LEASE.total_seconds() + 1)
    assert (await claimed(store, "w2")).payload["number"] == 1


# --- lanes and turns ----------------------------------------------------------------


async def test_a_lane_is_a_queue_of_its_own(store: Store) -> None:
    await defer(store, 1, lane="PACS")
    assert await claim(store) is None
    assert await store.jobs.claim([KIND], "w1", lane="OTHER") is None
    job = await store.jobs.claim([KIND], "w1", lane="PACS")
    assert job is not None
    assert job.payload["number"] == 1


async def test_what_is_urgent_overtakes_and_nothing_waits_for_ever(
    store: Store, clock: FrozenClock
) -> None:
    await defer(store, 1, priority=Priority.LOW)
    await defer(store, 2)
    await defer(store, 3, priority=Priority.HIGH)
    clock.advance(seconds=7201)
    await defer(store, 4, priority=Priority.HIGH)
    taken = [(await claimed(store)).payload["number"] for _ in range(4)]
    assert taken == [3, 2, 1, 4]


async def test_an_urgent_job_hurries_those_that_it_has_to_wait_for(
    store: Store, clock: FrozenClock
) -> None:
    await defer(store, 1, order_key="study-1", priority=Priority.LOW)
    await defer(store, 2, order_key="study-2")
    clock.advance(seconds=60)
    await defer(store, 3, order_key="study-1", priority=Priority.HIGH)
    assert (await claimed(store)).payload["number"] == 1


async def test_a_failure_keeps_the_head_start(store: Store, clock: FrozenClock) -> None:
    await defer(store, 1, priority=Priority.HIGH)
    await store.jobs.failed(await claimed(store), "away")
    await defer(store, 2)
    clock.advance(seconds=5)
    assert (await claimed(store)).payload["number"] == 1


async def test_a_postponed_job_waits_without_having_failed(
    store: Store, clock: FrozenClock
) -> None:
    await defer(store)
    await store.jobs.postpone(
        await claimed(store), clock() + timedelta(hours=MAX_FAILURES)
    )
    assert await claim(store) is None
    clock.advance(seconds=3600 * MAX_FAILURES)
    assert (await claimed(store)).failures == 0


async def test_work_for_a_lane_that_is_gone_is_not_forgotten(store: Store) -> None:
    await defer(store, 1, lane="GONE")
    await defer(store, 2, lane="PACS")
    async with store.db.transaction() as tx:
        assert await store.jobs.bury_lanes(tx, KIND, ["PACS"], "no GONE here") == 1
    assert [letter.error for letter in await dead(store)] == ["no GONE here"]


async def test_a_crowded_lane_does_not_make_others_slow(store: Store) -> None:
    """The claim reads the index of its lane in order: no sort, no other lane's rows."""
    async with store.db.transaction() as tx:
        await tx.execute(
            "insert into jobs (job_id, kind, state, not_before, deferred_at, turn_at,"
            " lane) select gen_random_uuid(), 'assess_study', 'ready', $1, $1, $1,"
            " 'away' from generate_series(1, 5000)",
            store.clock() - timedelta(hours=1),
        )
        await tx.execute("analyze jobs")
        plan = await tx.fetch(
            f"explain {queue._CLAIM}",
            [KIND],
            store.clock(),
            "w",
            LEASE,
            MAX_CRASHES,
            "PACS",
        )
    told = "\n".join(row[0] for row in plan)
    assert "Index Scan using jobs_ready" in told
    assert "Seq Scan" not in told
    assert "Sort" not in told.partition("jobs_ready")[0].rpartition("InitPlan")[2]


# --- failure ----------------------------------------------------------------------


async def test_failures_are_tried_again_with_growing_pauses_and_then_given_up(
    store: Store, clock: FrozenClock
) -> None:
    await defer(store)
    pauses = []
    for failure in range(1, MAX_FAILURES + 1):
        job = await claimed(store)
        assert job.attempts == failure
        failed_at = clock()
        await store.jobs.failed(job, f"away {failure}")
        if failure == MAX_FAILURES:
            break
        while await _next_due(store) > clock():
            clock.advance(seconds=0.05)
        pauses.append((clock() - failed_at).total_seconds())
    assert all(later > 1.1 * sooner for sooner, later in pairwise(pauses))
    (letter,) = await dead(store)
    assert (letter.error, letter.attempts) == (f"away {MAX_FAILURES}", MAX_FAILURES)
    assert letter.payload == {"number": 1}


async def _next_due(store: Store) -> Any:
    async with store.db.connection() as connection:
        return await connection.fetchval("select not_before from jobs")


def test_pauses_have_jitter_and_a_limit() -> None:
    pauses = [queue._backoff(40).total_seconds() for _ in range(50)]
    assert len(set(pauses)) > 40
    assert 0.7 * BACKOFF_LAST_S < min(pauses) <= max(pauses) < 1.3 * BACKOFF_LAST_S


async def test_hopeless_work_is_not_tried_again(store: Store) -> None:
    await defer(store)
    await store.jobs.failed(await claimed(store), "not DICOM", retry=False)
    assert await claim(store) is None
    assert [letter.error for letter in await dead(store)] == ["not DICOM"]


async def test_a_dead_letter_can_be_replayed_from_the_start(store: Store) -> None:
    job_id = await defer(store, key="k")
    await store.jobs.failed(await claimed(store), "refused", retry=False)
    async with store.db.transaction() as tx:
        await store.jobs.replay(tx, job_id)
    job = await claimed(store)
    assert (job.id, job.failures) == (job_id, 0)
    assert await dead(store) == []
    with pytest.raises(NodeError) as told:
        async with store.db.transaction() as tx:
            await store.jobs.replay(tx, job_id)
    assert told.value.kind is ErrorKind.NOT_FOUND


async def test_a_dead_letter_is_not_replayed_beside_the_same_work(
    store: Store,
) -> None:
    job_id = await defer(store, key="k")
    await store.jobs.failed(await claimed(store), "refused", retry=False)
    await defer(store, key="k")
    with pytest.raises(NodeError) as told:
        async with store.db.transaction() as tx:
            await store.jobs.replay(tx, job_id)
    assert told.value.kind is ErrorKind.CONFLICT


# --- crashes ----------------------------------------------------------------------


async def test_a_job_of_a_silent_worker_returns_when_its_lease_runs_out(
    store: Store, clock: FrozenClock
) -> None:
    assert timedelta(seconds=10) > LEASE
    await defer(store)
    lost = await claimed(store)
    clock.advance(seconds=LEASE.total_seconds() - 1)
    assert await claim(store, "w2") is None
    clock.advance(seconds=2)
    job = await claimed(store, "w2")
    assert (job.id, job.attempts) == (lost.id, 2)


async def test_a_heartbeat_keeps_the_job(store: Store, clock: FrozenClock) -> None:
    await defer(store)
    job = await claimed(store)
    for _ in range(5):
        clock.advance(seconds=LEASE.total_seconds() - 1)
        assert await store.jobs.heartbeat(job)
        assert await claim(store, "w2") is None


async def test_a_worker_that_lost_its_lease_can_change_nothing(
    store: Store, clock: FrozenClock
) -> None:
    """Also when the same process, under the same name, took the job again."""
    await defer(store)
    stale = await claimed(store)
    clock.advance(seconds=LEASE.total_seconds() + 1)
    job = await claimed(store)
    assert not await store.jobs.heartbeat(stale)
    await store.jobs.failed(stale, "late")
    await store.jobs.release(stale)
    with pytest.raises(NodeError) as told:
        await store.jobs.done(stale)
    assert told.value.kind is ErrorKind.CONFLICT
    await store.jobs.done(job)


async def test_a_job_that_kills_its_worker_is_buried_after_three_crashes(
    store: Store, clock: FrozenClock
) -> None:
    await defer(store)
    for attempt in range(1, MAX_CRASHES + 1):
        assert (await claimed(store)).attempts == attempt
        clock.advance(seconds=LEASE.total_seconds() + 1)
    assert await claim(store) is None
    (letter,) = await dead(store)
    assert letter.attempts == MAX_CRASHES
    assert letter.error == "its process died 3 times; see the log"


async def test_ordinary_failures_do_not_count_as_crashes(
    store: Store, clock: FrozenClock
) -> None:
    await defer(store)
    for _ in range(MAX_CRASHES + 1):
        await store.jobs.failed(await claimed(store), "away")
        clock.advance(seconds=BACKOFF_LAST_S)
    assert await dead(store) == []


async def test_a_worker_that_stops_gives_its_job_back_at_once(store: Store) -> None:
    await defer(store)
    for _ in range(MAX_CRASHES + 1):
        await store.jobs.release(await claimed(store))
    assert (await claimed(store)).failures == 0
    assert await dead(store) == []


_VICTIM = """
import asyncio, json, sys
from datetime import UTC, datetime
from pathlib import Path
from node.store.store import open_store

async def main() -> None:
    dsn, root_key, objects = sys.argv[1:]
    clock = lambda: datetime.fromisoformat("2026-11-21T08:00:00+00:00")
    store = await open_store(dsn, Path(root_key), Path(objects), clock)
    job = await store.jobs.claim(["assess_study"], "victim")
    print(json.dumps([str(job.id), job.attempts]), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_job_of_a_killed_process_is_done_by_another(
    store: Store, clock: FrozenClock, root_key: Path, tmp_path: Path
) -> None:
    job_id = await defer(store)
    victim = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _VICTIM,
        store.db._dsn,
        str(root_key),
        str(tmp_path / "objects"),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert victim.stdout is not None
    assert json.loads(await victim.stdout.readline()) == [str(job_id), 1]
    victim.send_signal(signal.SIGKILL)
    assert await victim.wait() == -signal.SIGKILL
    assert await claim(store, "w2") is None
    clock.advance(seconds=LEASE.total_seconds() + 0.1)
    job = await claimed(store, "w2")
    assert (job.id, job.attempts) == (job_id, 2)
    await store.jobs.done(job)


# --- waking up --------------------------------------------------------------------


async def test_a_waiting_worker_is_woken_by_a_commit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "POLL_S", 3600.0)
    await store.jobs.wait([KIND])  # the first call only starts to listen
    assert await claim(store) is None
    waiting = asyncio.create_task(store.jobs.wait([KIND]))
    await defer(store)
    async with asyncio.timeout(60):
        await waiting
    assert await claim(store) is not None


async def test_a_commit_between_claim_and_wait_is_not_slept_through(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "POLL_S", 3600.0)
    heard = asyncio.Event()
    await store.jobs.wait([KIND])
    await store.db.listen("jobs", lambda _: heard.set())
    assert await claim(store) is None
    await defer(store)
    async with asyncio.timeout(60):
        await heard.wait()
        await store.jobs.wait([KIND])


async def test_without_notifications_the_poll_finds_the_job(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "POLL_S", 0.01)
    await store.jobs.wait([KIND])
    async with asyncio.timeout(60):
        await store.jobs.wait([KIND])


async def test_jobs_that_were_done_long_ago_are_forgotten(
    store: Store, clock: FrozenClock
) -> None:
    await defer(store)
    await store.jobs.done(await claimed(store))
    await defer(store)
    clock.advance(seconds=1)
    await store.jobs.forget_done(clock())
    async with store.db.connection() as connection:
        assert await connection.fetchval("select count(*) from jobs") == 1
