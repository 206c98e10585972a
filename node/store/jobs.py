"""Durable jobs: deferred in the transaction that causes them, done at least once.

An attempt is counted when a job is claimed, before any work: a job that kills its
worker ends among the dead letters after `MAX_CRASHES` instead of looping for ever.
A running job holds a lease that its worker renews; a killed worker's job is taken
over when the lease runs out. The number of the attempt fences off a worker that
lost its lease without noticing. Payloads are sealed; they hold UIDs and ids only.

A lane is a queue of its own: whoever works for one takes nothing of another. In a lane
the job whose turn came first is next; a head start moves the turn forward, so that what
is urgent overtakes what is not, by that much and no more: nothing waits for ever.

Leases are written and judged by the clocks of the machines that work, so these must
agree within a few seconds (NTP), as TLS and signed tokens demand anyway.
"""

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg

from node.domain.errors import ErrorKind, NodeError
from node.store.keys import KeyRing

if TYPE_CHECKING:
    from node.store.database import Database, Transaction

LEASE = timedelta(seconds=8)
MAX_CRASHES = 3
MAX_FAILURES = 8
BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 3600.0
POLL_S = 1.0
CHANNEL = "jobs"
_GROUP_RACES = 4

# How often an ordinary failure is tried again; 72 hours with the last pause of 1 h.
MAX_FAILURES_BY_KIND: Mapping[str, int] = {
    "send_instance": 85,
    "store_report": 85,
    "offer_binding": 40,
    "report_commitment": 85,
    "request_commitment": 85,
}


class Priority(Enum):
    """How long before its time a job comes to its turn."""

    HIGH = timedelta(hours=1)
    NORMAL = timedelta(0)
    LOW = timedelta(hours=-1)


class Postponed(Exception):
    """Raised by a handler whose work may not be done before `until`; no failure."""

    def __init__(self, until: datetime) -> None:
        super().__init__(until)
        self.until = until


@dataclass(frozen=True)
class Job:
    """A claimed job; `attempts` counts this one."""

    id: UUID
    kind: str
    payload: Mapping[str, Any]
    attempts: int
    failures: int
    worker: str


@dataclass(frozen=True)
class DeadLetter:
    """A job that ended without success, and why, in words for an engineer."""

    id: UUID
    kind: str
    payload: Mapping[str, Any]
    attempts: int
    error: str
    at: datetime


class Jobs:
    """The queue of an installation."""

    def __init__(
        self, database: "Database", ring: KeyRing, clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._ring = ring
        self._clock = clock
        self._wake: asyncio.Event | None = None

    async def defer(
        self,
        tx: "Transaction",
        kind: str,
        payload: Mapping[str, Any],
        *,
        key: str | None = None,
        order_key: str | None = None,
        not_before: datetime | None = None,
        patient_id: UUID | None = None,
        lane: str = "",
        priority: Priority = Priority.NORMAL,
    ) -> UUID:
        """Promise a job in the caller's transaction; return its id.

        While a job of the same `kind` and `key` waits or runs, that one is
        returned. It may have read its input already: a `key` must name the version
        of what is to be done. Jobs that share `order_key` run one at a time,
        oldest first; one that waits for its next try holds up those behind it.
        An urgent one lends its `priority` to those that it has to wait for.
        """
        job_id, now = uuid4(), self._clock()
        body = json.dumps(payload, ensure_ascii=False).encode()
        sealed = self._ring.node.seal(
            body, table="jobs", row=str(job_id), column="payload"
        )
        while True:
            inserted: UUID | None = await tx.fetchval(
                _DEFER,
                job_id,
                kind,
                key,
                order_key,
                patient_id,
                sealed,
                not_before or now,
                now,
                lane,
                priority.value,
            )
            if inserted is not None:
                if order_key is not None:
                    await tx.execute(_HURRY, order_key, priority.value)
                return inserted
            waiting: UUID | None = await tx.fetchval(
                "select job_id from jobs where kind = $1 and dedupe_key = $2"
                " and state in ('ready', 'running')",
                kind,
                key,
            )
            if waiting is not None:
                return waiting
            # It ended between the two statements: promise the work anew.

    async def claim(
        self,
        kinds: Sequence[str],
        worker: str,
        *,
        behind: Sequence[str] = (),
        lane: str = "",
    ) -> Job | None:
        """Take the next job of a lane that is due, or None; its attempt counts.

        None too while a job of a kind in `behind` is due or under way.
        """
        if self._wake is not None:
            self._wake.clear()  # what is deferred from here on is not seen below
        if behind and await self._any_due(behind):
            return None
        for _ in range(_GROUP_RACES):
            try:
                async with self._database.transaction() as tx:
                    row = await tx.fetchrow(
                        _CLAIM,
                        list(kinds),
                        self._clock(),
                        worker,
                        LEASE,
                        MAX_CRASHES,
                        lane,
                    )
            except asyncpg.UniqueViolationError:
                continue  # another worker took a job of the same group just now
            return None if row is None else self._job(row, worker)
        return None

    async def _any_due(self, kinds: Sequence[str]) -> bool:
        async with self._database.connection() as connection:
            found = await connection.fetchval(
                "select true from jobs where kind = any($1) and (state = 'running'"
                " or (state = 'ready' and not_before <= $2)) limit 1",
                list(kinds),
                self._clock(),
            )
        return bool(found)

    async def heartbeat(self, job: Job) -> bool:
        """Renew the lease; False when another worker has taken the job over."""
        async with self._database.connection() as connection:
            held = await connection.fetchval(
                "update jobs set lease_until = $4 where job_id = $1 and worker = $2"
                " and attempts = $3 and state = 'running' returning true",
                job.id,
                job.worker,
                job.attempts,
                self._clock() + LEASE,
            )
        return bool(held)

    async def done(self, job: Job, tx: "Transaction | None" = None) -> None:
        """Note, in `tx` if given, that the job is done; CONFLICT when it was lost.

        With the handler's own transaction its changes and the job's end are one.
        """
        if tx is None:
            async with self._database.transaction() as own:
                return await self.done(job, own)
        held = await tx.fetchval(
            "update jobs set state = 'done', payload = null, lease_until = null,"
            " finished_at = $4, error = null where job_id = $1 and worker = $2"
            " and attempts = $3 and state = 'running' returning true",
            job.id,
            job.worker,
            job.attempts,
            self._clock(),
        )
        if not held:
            raise NodeError("another worker has this job now", ErrorKind.CONFLICT)
        return None

    async def failed(self, job: Job, error: str, *, retry: bool = True) -> None:
        """Note a failure: try again later, or put the job among the dead letters."""
        failures = job.failures + 1
        allowed = MAX_FAILURES_BY_KIND.get(job.kind, MAX_FAILURES)
        again = retry and failures < allowed
        async with self._database.transaction() as tx:
            await tx.execute(
                "update jobs set state = $4, failures = $5, crashes = 0, error = $6,"
                " not_before = $7, turn_at = $7::timestamptz - head_start,"
                " worker = null, lease_until = null, finished_at = $8"
                " where job_id = $1 and worker = $2 and attempts = $3"
                " and state = 'running'",
                job.id,
                job.worker,
                job.attempts,
                "ready" if again else "dead",
                failures,
                error[:500],
                self._clock() + _backoff(failures),
                None if again else self._clock(),
            )

    async def release(self, job: Job) -> None:
        """Give a job back untouched, because its worker is stopping."""
        async with self._database.transaction() as tx:
            await tx.execute(
                "update jobs set state = 'ready', worker = null,"
                " lease_until = null where job_id = $1 and worker = $2"
                " and attempts = $3 and state = 'running'",
                job.id,
                job.worker,
                job.attempts,
            )

    async def postpone(self, job: Job, until: datetime) -> None:
        """Give a job back until its time comes; it was no failure."""
        async with self._database.transaction() as tx:
            await tx.execute(
                "update jobs set state = 'ready', worker = null, lease_until = null,"
                " not_before = $4, turn_at = $4::timestamptz - head_start"
                " where job_id = $1 and worker = $2 and attempts = $3"
                " and state = 'running'",
                job.id,
                job.worker,
                job.attempts,
                until,
            )

    async def bury_lanes(
        self, tx: "Transaction", kind: str, known: Sequence[str], error: str
    ) -> int:
        """Put waiting jobs of lanes that nobody works for among the dead letters."""
        buried = await tx.fetch(
            "update jobs set state = 'dead', finished_at = $4, error = $3"
            " where kind = $1 and state = 'ready' and lane <> all($2)"
            " returning job_id",
            kind,
            list(known),
            error[:500],
            self._clock(),
        )
        return len(buried)

    async def dead(self, tx: "Transaction", limit: int = 100) -> list[DeadLetter]:
        """Return the dead letters, newest first."""
        rows = await tx.fetch(
            "select * from jobs where state = 'dead'"
            " order by finished_at desc, sequence desc limit $1",
            limit,
        )
        return [
            DeadLetter(
                row["job_id"],
                row["kind"],
                self._payload(row),
                row["attempts"],
                row["error"] or "",
                row["finished_at"],
            )
            for row in rows
        ]

    async def replay(self, tx: "Transaction", job_id: UUID) -> None:
        """Try a dead letter again from the start.

        NOT_FOUND when it is none, CONFLICT when the same work waits already.
        """
        try:
            replayed = await tx.fetchval(
                "update jobs set state = 'ready', crashes = 0, failures = 0,"
                " not_before = $2, turn_at = $2::timestamptz - head_start,"
                " finished_at = null, error = null"
                " where job_id = $1 and state = 'dead' returning true",
                job_id,
                self._clock(),
            )
        except asyncpg.UniqueViolationError:
            raise NodeError(
                "the same work was deferred again and is waiting", ErrorKind.CONFLICT
            ) from None
        if not replayed:
            raise NodeError("there is no such failed job", ErrorKind.NOT_FOUND)

    async def counts(self, tx: "Transaction") -> dict[tuple[str, str], int]:
        """Return how many jobs there are by (kind, state), done ones left out."""
        rows = await tx.fetch(
            "select kind, state, count(*) as n from jobs where state <> 'done'"
            " group by kind, state"
        )
        return {(row["kind"], row["state"]): row["n"] for row in rows}

    async def forget_done(self, before: datetime) -> None:
        """Remove jobs that were done before `before`."""
        async with self._database.transaction() as tx:
            await tx.execute(
                "delete from jobs where state = 'done' and finished_at < $1", before
            )

    async def wait(self, kinds: Sequence[str]) -> None:
        """Return when a job may be due: on a notification, or after `POLL_S`.

        Retries and leases end silently; the poll finds them.
        """
        if self._wake is None:
            self._wake = asyncio.Event()
            wake = self._wake
            await self._database.listen(CHANNEL, lambda _kind: wake.set())
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._wake.wait()

    def _job(self, row: "asyncpg.Record", worker: str) -> Job:
        return Job(
            row["job_id"],
            row["kind"],
            self._payload(row),
            row["attempts"],
            row["failures"],
            worker,
        )

    def _payload(self, row: "asyncpg.Record") -> Mapping[str, Any]:
        opened = self._ring.node.open(
            row["payload"], table="jobs", row=str(row["job_id"]), column="payload"
        )
        payload: Mapping[str, Any] = json.loads(opened)
        return payload


_DEFER = """
insert into jobs (job_id, kind, state, dedupe_key, order_key, patient_id, payload,
                  not_before, deferred_at, lane, head_start, turn_at)
values ($1, $2, 'ready', $3, $4, $5, $6, $7, $8, $9, $10,
        $7::timestamptz - $10::interval)
on conflict (kind, dedupe_key)
    where dedupe_key is not null and state in ('ready', 'running')
    do nothing
returning job_id
"""

_HURRY = """
update jobs set head_start = $2::interval, turn_at = not_before - $2::interval
where order_key = $1 and state = 'ready' and head_start < $2::interval
"""

# A running job whose lease ran out has lost its process. The third loss buries it.
# Before that it is taken over first of all, as it still holds its ordered group. Any
# other job of a group is taken when none of it runs and no older one waits: a replayed
# one is older than those that went on without it.
_CLAIM = """
with buried as (
    update jobs set state = 'dead', crashes = crashes + 1, worker = null,
           lease_until = null, finished_at = $2,
           error = 'its process died ' || crashes + 1 || ' times; see the log'
    where kind = any($1) and lane = $6 and state = 'running' and lease_until < $2
      and crashes + 1 >= $5
)
update jobs set state = 'running', attempts = attempts + 1,
       crashes = crashes + (state = 'running')::integer,
       worker = $3, lease_until = $2::timestamptz + $4
where job_id = coalesce(
    (select job_id from jobs
     where kind = any($1) and lane = $6 and state = 'running' and lease_until < $2
       and crashes + 1 < $5
     order by lease_until limit 1 for update skip locked),
    (select job_id from jobs candidate
     where kind = any($1) and lane = $6 and state = 'ready' and not_before <= $2
       and (order_key is null or not exists (
           select from jobs other
           where other.order_key = candidate.order_key
             and (other.state = 'running'
                  or (other.state = 'ready' and other.sequence < candidate.sequence))))
     order by turn_at, sequence limit 1 for update skip locked))
returning *
"""


def _backoff(failures: int) -> timedelta:
    """Return the pause before the next try: doubling, with jitter, to one hour."""
    pause = min(BACKOFF_FIRST_S * 2 ** (failures - 1), BACKOFF_LAST_S)
    return timedelta(seconds=pause * random.uniform(0.75, 1.25))  # noqa: S311
