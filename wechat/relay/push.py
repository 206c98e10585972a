"""The worker that tells WeChat about changed reports: at most once per version.

A push is a row (`pending` first). The worker takes the row and its piece of
quota in one transaction, calls WeChat, and settles the row in another. A call
that ended without an answer is ambiguous: WeChat may have delivered. It is
tried again only when it spent the last message the patient had allowed, since
WeChat then refuses a second delivery (43101); otherwise the row waits as
`unconfirmed` for WeChat's own delivery event. Nothing is lost either way: the
Mini Program marks the report as unread.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import structlog

from node.domain.errors import NodeError
from wechat.relay.records import Records, Transaction
from wechat.relay.settings import RelaySettings
from wechat.relay.wechat_api import Outcome, SendResult, WeChatApi

log = structlog.get_logger(__name__)

BEIJING = timezone(timedelta(hours=8))
MAX_ATTEMPTS = 8
FIRST_DELAY = timedelta(seconds=2)
LONGEST_DELAY = timedelta(minutes=10)
ALARM_DELAY = timedelta(minutes=10)
IDLE_POLL_S = 5.0
PURGE_EVERY = timedelta(hours=1)
_CLAIM_LOCK = 0x736F6E6F_00000011


@dataclass(frozen=True, slots=True)
class Push:
    """One claimed row. `last_of_quota`: it spent the last message allowed."""

    push_id: UUID
    account_id: UUID
    handle: str
    attempts: int
    ambiguous: bool
    last_of_quota: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a push after an attempt."""

    state: str
    delay: timedelta | None = None
    give_quota_back: bool = False
    empty_quota: bool = False
    ambiguous: bool = False
    alarm: bool = False


class PushWorker:
    """Delivers due pushes one after the other. Several may run at once."""

    def __init__(
        self,
        records: Records,
        api: WeChatApi,
        settings: RelaySettings,
        clock: Callable[[], datetime],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._records = records
        self._api = api
        self._settings = settings
        self._clock = clock
        self._jitter = jitter
        self._woken = asyncio.Event()
        self._purged_at = datetime.min.replace(tzinfo=UTC)

    def wake(self) -> None:
        """Something may be due now."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver until cancelled; a database that is away is waited for."""
        while True:
            self._woken.clear()
            try:
                await self._purge_when_due()
                while await self.deliver_next():
                    pass
            except NodeError as error:
                log.warning("push.waiting", reason=error.message)
            # wait_for of Python 3.11 loses a cancellation that meets the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_POLL_S):
                    await self._woken.wait()

    async def deliver_next(self) -> bool:
        """Handle one due push. Returns False when none is due."""
        async with self._records.db.transaction() as tx:
            push = await self._claim(tx)
        if push is None:
            return False
        if isinstance(push, Push):
            await self._deliver(push)
        return True

    # ---- claim ------------------------------------------------------------------

    async def _claim(self, tx: Transaction) -> Push | bool | None:
        """Take one due row; True when a row was settled without a call.

        One claim at a time, and none for an openid with a call under way:
        WeChat refuses concurrent calls for one openid (43108).
        """
        now = self._clock()
        await tx.execute("select pg_advisory_xact_lock($1)", _CLAIM_LOCK)
        await self._end_lost_leases(tx, now)
        row = await tx.fetchrow(
            "select * from pushes p where state in ('pending', 'parked')"
            " and not_before <= $1 and not exists (select 1 from pushes o"
            "  where o.account_id = p.account_id and o.state = 'sending')"
            " order by created_at, version limit 1",
            now,
        )
        if row is None:
            return None
        remaining = await self._remaining(tx, row["account_id"])
        if row["ambiguous"]:
            if remaining > 0:  # a second delivery would be possible now
                return await self._end(tx, row["push_id"], "unconfirmed", now)
        elif remaining == 0:
            return await self._end(tx, row["push_id"], "no_quota", now)
        else:
            await self._change_quota(tx, row["account_id"], -1)
        last = row["last_of_quota"] if row["ambiguous"] else remaining == 1
        lease = timedelta(seconds=3 * self._settings.wechat_timeout_s + 30)
        await tx.execute(
            "update pushes set state = 'sending', attempts = attempts + 1,"
            " last_of_quota = $2, lease_until = $3,"
            " changed = nextval('push_changes'), changed_at = $4 where push_id = $1",
            row["push_id"],
            last,
            now + lease,
            now,
        )
        return Push(
            row["push_id"],
            row["account_id"],
            row["handle"],
            row["attempts"] + 1,
            row["ambiguous"],
            last,
        )

    async def _end_lost_leases(self, tx: Transaction, now: datetime) -> None:
        """Settle calls whose worker died as ambiguous."""
        rows = await tx.fetch(
            "select * from pushes where state = 'sending' and lease_until < $1", now
        )
        for row in rows:
            push = Push(
                row["push_id"],
                row["account_id"],
                row["handle"],
                row["attempts"],
                row["ambiguous"],
                row["last_of_quota"],
            )
            log.warning("push.worker_lost", push_id=str(push.push_id))
            await self._settle(tx, push, SendResult(Outcome.AMBIGUOUS))

    async def _remaining(self, tx: Transaction, account_id: UUID) -> int:
        value: int | None = await tx.fetchval(
            "select remaining from quotas where account_id = $1 and template_id = $2"
            " for update",
            account_id,
            self._settings.template_id,
        )
        return value or 0

    async def _change_quota(
        self, tx: Transaction, account_id: UUID, change: int
    ) -> None:
        await tx.execute(
            "update quotas set remaining = greatest(remaining + $3, 0)"
            " where account_id = $1 and template_id = $2",
            account_id,
            self._settings.template_id,
            change,
        )

    async def _end(
        self, tx: Transaction, push_id: UUID, state: str, now: datetime
    ) -> bool:
        await tx.execute(
            "update pushes set state = $2, changed = nextval('push_changes'),"
            " changed_at = $3 where push_id = $1",
            push_id,
            state,
            now,
        )
        log.info("push.ended", push_id=str(push_id), state=state)
        return True

    # ---- deliver ------------------------------------------------------------------

    async def _deliver(self, push: Push) -> None:
        async with self._records.db.connection() as connection:
            openid = await self._records.openid_of(connection, push.account_id)
        if openid is None:
            return  # unbound meanwhile: its rows are gone
        result = await self._api.send(
            openid,
            self._settings.template_id,
            f"{self._settings.page}?handle={push.handle}",
            self._fields(),
        )
        async with self._records.db.transaction() as tx:
            await self._settle(tx, push, result)

    def _fields(self) -> dict[str, str]:
        """Return the message: no name, no organ, no grade, whatever the report says."""
        today = self._clock().astimezone(BEIJING)
        title, day, note = self._settings.template_fields
        return {
            title: self._settings.push_title,
            day: f"{today.year}年{today.month}月{today.day}日",
            note: self._settings.push_note,
        }

    async def _settle(self, tx: Transaction, push: Push, result: SendResult) -> None:
        now = self._clock()
        verdict = judge(push, result, now, self._jitter())
        if verdict.give_quota_back:
            await self._change_quota(tx, push.account_id, 1)
        if verdict.empty_quota:
            await self._records.empty_quota(
                tx, push.account_id, self._settings.template_id, now
            )
        await tx.execute(
            "update pushes set state = $2, errcode = $3, not_before = $4,"
            " ambiguous = ambiguous or $5, lease_until = null,"
            " changed = nextval('push_changes'), changed_at = $6"
            " where push_id = $1 and state = 'sending'",
            push.push_id,
            verdict.state,
            result.errcode,
            now + (verdict.delay or timedelta()),
            verdict.ambiguous,
            now,
        )
        tell: Any = log.error if verdict.alarm else log.info
        tell(
            "push.settled",
            push_id=str(push.push_id),
            state=verdict.state,
            outcome=result.outcome.value,
            errcode=result.errcode,
            attempt=push.attempts,
            alarm=verdict.alarm,
        )

    async def _purge_when_due(self) -> None:
        now = self._clock()
        if now - self._purged_at < PURGE_EVERY:
            return
        async with self._records.db.transaction() as tx:
            gone = await self._records.purge(
                tx, now, timedelta(days=self._settings.retention_days)
            )
        self._purged_at = now
        if gone:
            log.info("relay.purged", reports=gone)


def judge(push: Push, result: SendResult, now: datetime, jitter: float) -> Verdict:
    """Return what becomes of `push` after `result`; `jitter` is 0 to 1.

    After an ambiguous attempt no failure is reported as one: the message may
    well have arrived, and 43101 then only says that the quota is spent.
    """
    outcome = result.outcome
    if outcome is Outcome.SENT:
        return Verdict("sent")
    if outcome is Outcome.AMBIGUOUS:
        if push.last_of_quota and not push.ambiguous:
            return Verdict("pending", _backoff(push.attempts, jitter), ambiguous=True)
        return Verdict("unconfirmed", ambiguous=True)
    waiting = {
        Outcome.BUSY: ("pending", _backoff(push.attempts, jitter)),
        Outcome.DAILY_LIMIT: ("parked", _until_midnight(now)),
        Outcome.TOKEN_REFUSED: ("parked", ALARM_DELAY),
    }
    if outcome in waiting and push.attempts < MAX_ATTEMPTS:
        state, delay = waiting[outcome]
        alarm = outcome is Outcome.TOKEN_REFUSED
        return Verdict(state, delay, give_quota_back=not push.ambiguous, alarm=alarm)
    if push.ambiguous:
        return Verdict("unconfirmed")
    if outcome is Outcome.NOT_SUBSCRIBED:
        return Verdict("refused", empty_quota=True)
    return Verdict("dead", give_quota_back=True, alarm=True)


def _backoff(attempts: int, jitter: float) -> timedelta:
    """Return a doubling delay, between half of it and all of it."""
    full: timedelta = min(FIRST_DELAY * 2 ** (attempts - 1), LONGEST_DELAY)
    return full * (0.5 + 0.5 * jitter)


def _until_midnight(now: datetime) -> timedelta:
    """Return the time until WeChat's daily counters start anew (00:00 UTC+8)."""
    local = now.astimezone(BEIJING)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + timedelta(days=1) - local
