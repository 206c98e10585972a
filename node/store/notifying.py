"""Who is to be called now with what, and what became of it: one process at a time."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from node.domain.audit import AuditEntry, by_the_node
from node.store import audit, subscriptions
from node.store.subscriptions import Subscription
from node.store.topic_events import Event, context_of, event_of

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Database, Transaction
    from node.store.store import Store

_LEAD = 20_529  # advisory lock: who delivers
# A worker whose machine is gone must not lead for the two hours of TCP's default.
_NOTICE_LOSS = (
    "set tcp_keepalives_idle = 5",
    "set tcp_keepalives_interval = 2",
    "set tcp_keepalives_count = 3",
)


@asynccontextmanager
async def leading(db: "Database") -> AsyncIterator["asyncpg.Connection[Any] | None"]:
    """Yield the connection that makes this process the one that delivers, or None.

    One process delivers for the installation, so that each subscriber hears in
    order. The server takes the lead back when the connection ends, however it does.
    """
    async with db.connection() as connection:
        if not await connection.fetchval("select pg_try_advisory_lock($1)", _LEAD):
            yield None
            return
        for statement in _NOTICE_LOSS:
            await connection.execute(statement)
        try:
            yield connection
        finally:
            if not connection.is_closed():
                await connection.execute("select pg_advisory_unlock($1)", _LEAD)


@dataclass(frozen=True)
class Due:
    """Whom to call now, each with the next events that it is owed.

    `again_at` is when there will be more to do, if nothing happens before.
    """

    calls: tuple[tuple[Subscription, tuple[Event, ...]], ...]
    again_at: datetime | None


async def due(
    tx: "Transaction", store: "Store", now: datetime, busy: Sequence[UUID]
) -> Due:
    """Return what is to be done for subscriptions now, without the busy ones."""
    found = await subscriptions.select(tx, store, _DUE, now, list(busy))
    owed = await _owed(tx, store, [one for one in found if _hears(one, now)])
    again_at = await tx.fetchval(_NEXT, now, list(busy))
    return Due(
        tuple((one, owed.get(one.subscription_id, ())) for one in found), again_at
    )


def _hears(subscription: Subscription, now: datetime) -> bool:
    due_at = subscription.next_attempt_at
    return subscription.status == "active" and (due_at is None or due_at <= now)


async def _owed(
    tx: "Transaction", store: "Store", called: Sequence[Subscription]
) -> Mapping[UUID, tuple[Event, ...]]:
    rows = await tx.fetch(
        "select w.subscription_id, e.number, t.* from unnest($1::uuid[], $2::integer[])"
        " as w (subscription_id, count) cross join lateral (select number, event_id"
        " from subscription_events where subscription_id = w.subscription_id"
        " and delivered_at is null order by number limit w.count) e"
        " join topic_events t using (event_id) order by w.subscription_id, e.number",
        [one.subscription_id for one in called],
        [one.max_count for one in called],
    )
    context = await context_of(tx, store, rows)
    bodies: dict[UUID, bytes] = {}  # one body for all who are owed it
    owed: dict[UUID, tuple[Event, ...]] = {}
    for row in rows:
        event = await event_of(tx, store, row, context, bodies)
        owed[row["subscription_id"]] = (*owed.get(row["subscription_id"], ()), event)
    return owed


_DUE = """
where s.subscription_id <> all($2) and s.status <> 'off' and (
    s.ends_at <= $1 or c.disabled_at is not null or p.disabled_at is not null
    or (s.channel = 'rest-hook' and s.status = 'active' and s.next_heartbeat_at <= $1)
    or (s.channel = 'rest-hook' and coalesce(s.next_attempt_at, $1) <= $1
        and (s.status = 'requested'
             or (s.status = 'active'
                 and exists (select from subscription_events e
                             where e.subscription_id = s.subscription_id
                               and e.delivered_at is null))))
)
order by s.subscription_id
"""
_NEXT = """
select min(at) from subscriptions s,
    lateral (values (s.ends_at), (s.next_attempt_at),
             (case when s.status = 'active' then s.next_heartbeat_at end)) as v (at)
where s.status <> 'off' and s.subscription_id <> all($2) and at > $1
"""


@dataclass
class Settlement:
    """What became of calls, to be noted at once; the moments are those after them."""

    delivered: list[tuple[UUID, int]] = field(default_factory=list)
    failed: list[tuple[UUID, datetime]] = field(default_factory=list)
    beaten: list[tuple[UUID, datetime]] = field(default_factory=list)


async def settle(tx: "Transaction", told: Settlement, *, at: datetime) -> None:
    """Note what subscribers have confirmed, which failed and when each is due again."""
    if told.delivered:
        ids, numbers = zip(*told.delivered, strict=True)
        disclosed = await tx.fetch(_DELIVERED, list(ids), list(numbers), at)
    else:
        disclosed = []
    everyone = {one for one, _ in (*told.delivered, *told.failed, *told.beaten)}
    # In the order of `add_events`: two that lock several rows never wait crosswise.
    await tx.execute(
        "select from subscriptions where subscription_id = any($1)"
        " and (failures > 0 or subscription_id = any($2))"
        " order by subscription_id for no key update",
        list(everyone),
        [one for one, _ in (*told.failed, *told.beaten)],
    )
    await tx.execute(
        "update subscriptions set failing_since = null, failures = 0,"
        " next_attempt_at = null where failures > 0 and subscription_id = any($1)",
        [one for one, _ in told.delivered],
    )
    for one, next_attempt_at in told.failed:
        await tx.execute(
            "update subscriptions set failures = failures + 1,"
            " failing_since = coalesce(failing_since, $2), next_attempt_at = $3"
            " where subscription_id = $1",
            one,
            at,
            next_attempt_at,
        )
    for one, next_heartbeat_at in told.beaten:
        await tx.execute(
            "update subscriptions set next_heartbeat_at = $2"
            " where subscription_id = $1",
            one,
            next_heartbeat_at,
        )
    await audit.record_all(tx, [_disclosure(row, at) for row in disclosed])


# Who was told of whom: an empty notification names nobody.
_DELIVERED = """
with settled as (
    update subscription_events e set delivered_at = $3
    from unnest($1::uuid[], $2::bigint[]) as d (subscription_id, number)
    where e.subscription_id = d.subscription_id and e.number = d.number
    returning e.subscription_id, e.event_id
)
select subscription_id, content, count(*) as events,
    array_agg(distinct t.patient_id::text) filter (where t.patient_id is not null)
        as patients
from settled join subscriptions s using (subscription_id)
    join topic_events t using (event_id)
group by subscription_id, content
order by subscription_id
"""


def _disclosure(row: "asyncpg.Record", at: datetime) -> AuditEntry:
    detail = {"events": str(row["events"]), "content": row["content"]}
    if row["content"] != "empty" and row["patients"]:
        detail["patients"] = " ".join(row["patients"])
    return by_the_node(at, "notify", f"Subscription/{row['subscription_id']}", detail)


@dataclass(frozen=True)
class Waiting:
    """What an engineer wants to know of one subscriber."""

    subscription: Subscription
    undelivered: int
    oldest: datetime | None


async def backlogs(tx: "Transaction", store: "Store") -> list[Waiting]:
    """Return every subscription and how much it is still owed, by topic."""
    rows = await tx.fetch(
        "select e.subscription_id, count(*) as n, min(t.at) as oldest"
        " from subscription_events e join topic_events t using (event_id)"
        " where e.delivered_at is null group by e.subscription_id"
    )
    owed = {row["subscription_id"]: row for row in rows}
    found = []
    for subscription in await subscriptions.find_all(tx, store):
        row = owed.get(subscription.subscription_id)
        found.append(
            Waiting(
                subscription, row["n"] if row else 0, row["oldest"] if row else None
            )
        )
    return found
