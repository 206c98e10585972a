"""Who is told of signed reports, and the numbered events that each is still owed.

An event is written in the transaction that causes it, its number without a gap
for each subscriber; its body is what was true then, so that a redelivery says
the same. Bodies are sealed with the patient's key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from node.domain.errors import ErrorKind, NodeError

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store


@dataclass(frozen=True)
class Subscription:
    """One subscriber with the state of its channel.

    `events_count` is the number of its newest event, delivered or not; it only
    ever rises. `headers` are lines "Name: value" for every request to it.
    """

    subscription_id: UUID
    topic: str
    status: str
    endpoint: str
    headers: tuple[str, ...]
    content: str
    timeout_s: int
    heartbeat_period_s: int | None
    events_count: int = 0
    failing_since: datetime | None = None
    failures: int = 0
    next_attempt_at: datetime | None = None
    next_heartbeat_at: datetime | None = None
    error: str | None = None


@dataclass(frozen=True)
class Event:
    """One event of one subscriber; `focus` is the reference that it is about."""

    subscription_id: UUID
    number: int
    at: datetime
    patient_id: UUID
    focus: str
    body: bytes


async def create(tx: "Transaction", store: "Store", subscription: Subscription) -> None:
    """Store a new subscription, or the new settings of one that is there."""
    place = _headers_place(subscription.subscription_id)
    headers = "\n".join(subscription.headers).encode()
    await tx.execute(
        "insert into subscriptions (subscription_id, topic, status, endpoint, headers,"
        " content, timeout_s, heartbeat_period_s, next_heartbeat_at)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        " on conflict (subscription_id) do update set topic = $2, status = $3,"
        " endpoint = $4, headers = $5, content = $6, timeout_s = $7,"
        " heartbeat_period_s = $8, next_heartbeat_at = $9, failing_since = null,"
        " failures = 0, next_attempt_at = null, error = null",
        subscription.subscription_id,
        subscription.topic,
        subscription.status,
        subscription.endpoint,
        store.ring.node.seal(headers, **place),
        subscription.content,
        subscription.timeout_s,
        subscription.heartbeat_period_s,
        subscription.next_heartbeat_at,
    )


async def read(
    tx: "Transaction", store: "Store", subscription_id: UUID
) -> Subscription:
    """Return a subscription; NOT_FOUND when there is none."""
    row = await tx.fetchrow(
        "select * from subscriptions where subscription_id = $1", subscription_id
    )
    if row is None:
        raise NodeError("there is no such subscription", ErrorKind.NOT_FOUND)
    return _subscription(store, row)


async def of_topic(tx: "Transaction", store: "Store", topic: str) -> list[Subscription]:
    """Return the subscriptions of a topic."""
    rows = await tx.fetch(
        "select * from subscriptions where topic = $1 order by subscription_id", topic
    )
    return [_subscription(store, row) for row in rows]


async def set_status(
    tx: "Transaction", subscription_id: UUID, status: str, *, error: str | None = None
) -> None:
    """Set where the channel stands, and why when it stands still."""
    await tx.execute(
        "update subscriptions set status = $2, error = $3, failing_since = null,"
        " failures = 0, next_attempt_at = null where subscription_id = $1",
        subscription_id,
        status,
        error,
    )


async def set_failing(
    tx: "Transaction", subscription_id: UUID, *, at: datetime, next_attempt_at: datetime
) -> None:
    """Note a failed request and when the next one is due."""
    await tx.execute(
        "update subscriptions set failures = failures + 1,"
        " failing_since = coalesce(failing_since, $2), next_attempt_at = $3"
        " where subscription_id = $1",
        subscription_id,
        at,
        next_attempt_at,
    )


async def set_heartbeat(
    tx: "Transaction", subscription_id: UUID, next_heartbeat_at: datetime
) -> None:
    """Note when the next heartbeat is due."""
    await tx.execute(
        "update subscriptions set next_heartbeat_at = $2 where subscription_id = $1",
        subscription_id,
        next_heartbeat_at,
    )


async def add_event(
    tx: "Transaction",
    store: "Store",
    subscription_id: UUID,
    *,
    at: datetime,
    patient_id: UUID,
    focus: str,
    body: bytes,
) -> int:
    """Write the next event of a subscriber; return its number.

    The subscriber's row stays locked until `tx` ends: numbers rise in the order
    in which the causes are committed, and none is left out.
    """
    number = await tx.fetchval(
        "update subscriptions set events_count = events_count + 1"
        " where subscription_id = $1 returning events_count",
        subscription_id,
    )
    sealer = await store.ring.patient(tx, patient_id)
    await tx.execute(
        "insert into subscription_events"
        " (subscription_id, number, at, patient_id, focus, body)"
        " values ($1, $2, $3, $4, $5, $6)",
        subscription_id,
        number,
        at,
        patient_id,
        focus,
        sealer.seal(body, **_event_place(subscription_id, number)),
    )
    return int(number)


async def events(
    tx: "Transaction",
    store: "Store",
    subscription_id: UUID,
    *,
    since: int = 1,
    until: int | None = None,
    undelivered: bool = False,
    limit: int = 100,
) -> list[Event]:
    """Return events in order, from number `since` to `until`.

    An event of an erased patient has an empty body; its number stays.
    """
    rows = await tx.fetch(
        "select * from subscription_events where subscription_id = $1"
        " and number >= $2 and ($3::bigint is null or number <= $3)"
        " and (not $4::boolean or delivered_at is null) order by number limit $5",
        subscription_id,
        since,
        until,
        undelivered,
        limit,
    )
    return [await _event(tx, store, row) for row in rows]


async def mark_delivered(
    tx: "Transaction", subscription_id: UUID, numbers: Sequence[int], *, at: datetime
) -> None:
    """Note that the subscriber has confirmed events; its channel works."""
    await tx.execute(
        "update subscription_events set delivered_at = $3"
        " where subscription_id = $1 and number = any($2)",
        subscription_id,
        list(numbers),
        at,
    )
    await tx.execute(
        "update subscriptions set failing_since = null, failures = 0,"
        " next_attempt_at = null where subscription_id = $1 and failures > 0",
        subscription_id,
    )


async def _event(tx: "Transaction", store: "Store", row: Any) -> Event:
    place = _event_place(row["subscription_id"], row["number"])
    try:
        sealer = await store.ring.patient(tx, row["patient_id"])
        body = sealer.open(row["body"], **place)
    except NodeError as error:
        if error.kind is not ErrorKind.GONE:
            raise
        body = b""
    return Event(
        row["subscription_id"],
        row["number"],
        row["at"],
        row["patient_id"],
        row["focus"],
        body,
    )


def _subscription(store: "Store", row: Any) -> Subscription:
    place = _headers_place(row["subscription_id"])
    headers = store.ring.node.open(row["headers"], **place).decode()
    return Subscription(
        subscription_id=row["subscription_id"],
        topic=row["topic"],
        status=row["status"],
        endpoint=row["endpoint"],
        headers=tuple(headers.splitlines()),
        content=row["content"],
        timeout_s=row["timeout_s"],
        heartbeat_period_s=row["heartbeat_period_s"],
        events_count=row["events_count"],
        failing_since=row["failing_since"],
        failures=row["failures"],
        next_attempt_at=row["next_attempt_at"],
        next_heartbeat_at=row["next_heartbeat_at"],
        error=row["error"],
    )


def _headers_place(subscription_id: UUID) -> dict[str, str]:
    return {"table": "subscriptions", "row": str(subscription_id), "column": "headers"}


def _event_place(subscription_id: UUID, number: int) -> dict[str, str]:
    return {
        "table": "subscription_events",
        "row": f"{subscription_id}/{number}",
        "column": "body",
    }
