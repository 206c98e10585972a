"""Who is told of what: subscribers, their rights, and the state of their channels.

What they are owed is in `topic_events`, who is called with it in `notifying`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from node.domain.access import Role
from node.domain.errors import ErrorKind, NodeError

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

CHANNEL = "subscriptions"  # of NOTIFY: somebody is owed something
REST_HOOK, WEBSOCKET = "rest-hook", "websocket"


@dataclass(frozen=True)
class Owner:
    """Who subscribed: what the token opened, and what is left of its rights now.

    `scopes` is None for a session; `registered` are the scopes of the program today.
    `shut` tells that program or person may not come in any more, `also` which other
    rows are its patient today. The node's own subscription has no owner.
    """

    user_id: str
    client_id: UUID | None = None
    scopes: str | None = None
    patient_id: str | None = None
    roles: frozenset[Role] = frozenset()
    registered: str | None = None
    shut: bool = False
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subscription:
    """One subscriber with the state of its channel.

    `events_count` is the number of its newest event, delivered or not; it only
    ever rises. `headers` are lines "Name: value" for every request to it, `filters`
    search parameters "name=value" that must all hold. `secrets` sign its calls now,
    the newest first; without any of its own the site's does.
    """

    subscription_id: UUID
    topic: str
    status: str
    endpoint: str
    headers: tuple[str, ...]
    content: str
    timeout_s: int
    heartbeat_period_s: int | None
    channel: str = REST_HOOK
    media_type: str = "application/fhir+json"
    max_count: int = 1
    filters: tuple[str, ...] = ()
    ends_at: datetime | None = None
    owner: Owner | None = None
    events_count: int = 0
    failing_since: datetime | None = None
    failures: int = 0
    next_attempt_at: datetime | None = None
    next_heartbeat_at: datetime | None = None
    error: str | None = None
    secrets: tuple[bytes, ...] = field(default=(), repr=False)


_SELECT = """
select s.*, c.scopes as registered, c.roles as client_roles, p.roles as person_roles,
       (c.disabled_at is not null or p.disabled_at is not null) as shut,
       (select array_agg(other) from patient_rows r
        where r.patient_id = s.scope_patient_id) as also
from subscriptions s left join clients c using (client_id)
left join people p on p.user_id::text = s.owner
"""


async def create(tx: "Transaction", store: "Store", subscription: Subscription) -> None:
    """Store a new subscription, or the new settings of one that is there."""
    place = _place(subscription.subscription_id, "headers")
    headers = "\n".join(subscription.headers).encode()
    owner = subscription.owner
    await tx.execute(
        "insert into subscriptions (subscription_id, topic, status, endpoint, headers,"
        " content, timeout_s, heartbeat_period_s, next_heartbeat_at, channel,"
        " media_type, max_count, filters, ends_at, owner, client_id, scopes,"
        " scope_patient_id) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,"
        " $13, $14, $15, $16, $17, $18)"
        " on conflict (subscription_id) do update set topic = $2, status = $3,"
        " endpoint = $4, headers = $5, content = $6, timeout_s = $7,"
        " heartbeat_period_s = $8, next_heartbeat_at = $9, channel = $10,"
        " media_type = $11, max_count = $12, filters = $13, ends_at = $14,"
        " owner = $15, client_id = $16, scopes = $17, scope_patient_id = $18,"
        " failing_since = null, failures = 0, next_attempt_at = null, error = null",
        subscription.subscription_id,
        subscription.topic,
        subscription.status,
        subscription.endpoint,
        store.ring.node.seal(headers, **place),
        subscription.content,
        subscription.timeout_s,
        subscription.heartbeat_period_s,
        subscription.next_heartbeat_at,
        subscription.channel,
        subscription.media_type,
        subscription.max_count,
        list(subscription.filters),
        subscription.ends_at,
        None if owner is None else owner.user_id,
        None if owner is None else owner.client_id,
        None if owner is None else owner.scopes,
        None if owner is None else owner.patient_id,
    )
    await wake(tx)


async def read(
    tx: "Transaction", store: "Store", subscription_id: UUID
) -> Subscription:
    """Return a subscription; NOT_FOUND when there is none."""
    row = await tx.fetchrow(f"{_SELECT} where s.subscription_id = $1", subscription_id)
    if row is None:
        raise NodeError("there is no such subscription", ErrorKind.NOT_FOUND)
    return _subscription(store, row)


async def find_all(
    tx: "Transaction",
    store: "Store",
    *,
    ids: Sequence[UUID] | None = None,
    topics: Sequence[str] | None = None,
    statuses: Sequence[str] | None = None,
) -> list[Subscription]:
    """Return the subscriptions that are all of what is given, by id."""
    where = (
        "where ($1::uuid[] is null or s.subscription_id = any($1))"
        " and ($2::text[] is null or s.topic = any($2))"
        " and ($3::text[] is null or s.status = any($3)) order by s.subscription_id"
    )
    return await select(
        tx,
        store,
        where,
        None if ids is None else list(ids),
        None if topics is None else list(topics),
        None if statuses is None else list(statuses),
    )


async def select(
    tx: "Transaction", store: "Store", where: str, *arguments: object
) -> list[Subscription]:
    """Return the subscriptions `s` of a clause, with program `c` and person `p`."""
    rows = await tx.fetch(f"{_SELECT} {where}", *arguments)
    return [_subscription(store, row) for row in rows]


async def set_secret(
    tx: "Transaction",
    store: "Store",
    subscription_id: UUID,
    secret: bytes | None,
    *,
    overlap: timedelta,
) -> None:
    """Sign the calls of a subscriber with `secret` from now on; NOT_FOUND.

    The one before signs too until `overlap` is over. None: neither does any more. The
    same one again changes nothing.
    """
    row = await tx.fetchrow(
        "select subscription_id, secret from subscriptions where subscription_id = $1"
        " for no key update",
        subscription_id,
    )
    if row is None:
        raise NodeError("there is no such subscription", ErrorKind.NOT_FOUND)
    before = _opened(store, row, "secret")
    if secret is not None and secret == before:
        return
    both = secret is not None and before is not None and overlap > timedelta(0)
    await tx.execute(
        "update subscriptions set secret = $2, earlier_secret = $3,"
        " earlier_secret_until = $4 where subscription_id = $1",
        subscription_id,
        _sealed(store, subscription_id, "secret", secret),
        _sealed(store, subscription_id, "earlier_secret", before if both else None),
        store.clock() + overlap if both else None,
    )


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
    await wake(tx)


async def wake(tx: "Transaction") -> None:
    """Tell who delivers that something is owed, once `tx` is committed."""
    await tx.execute("select pg_notify($1, '')", CHANNEL)


def _secrets(store: "Store", row: Any) -> tuple[bytes, ...]:
    until = row["earlier_secret_until"]
    names = ["secret"]
    if until is not None and until > store.clock():
        names.append("earlier_secret")
    found = (_opened(store, row, name) for name in names)
    return tuple(one for one in found if one is not None)


def _opened(store: "Store", row: Any, column: str) -> bytes | None:
    if row[column] is None:
        return None
    return store.ring.node.open(row[column], **_place(row["subscription_id"], column))


def _sealed(
    store: "Store", subscription_id: UUID, column: str, value: bytes | None
) -> bytes | None:
    if value is None:
        return None
    return store.ring.node.seal(value, **_place(subscription_id, column))


def _subscription(store: "Store", row: Any) -> Subscription:
    place = _place(row["subscription_id"], "headers")
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
        channel=row["channel"],
        media_type=row["media_type"],
        max_count=row["max_count"],
        filters=tuple(row["filters"]),
        ends_at=row["ends_at"],
        owner=_owner(row),
        events_count=row["events_count"],
        failing_since=row["failing_since"],
        failures=row["failures"],
        next_attempt_at=row["next_attempt_at"],
        next_heartbeat_at=row["next_heartbeat_at"],
        error=row["error"],
        secrets=_secrets(store, row),
    )


def _owner(row: Any) -> Owner | None:
    if row["owner"] is None:
        return None
    roles = row["person_roles"]
    if roles is None:  # a program for itself
        roles = row["client_roles"] or ()
    return Owner(
        row["owner"],
        row["client_id"],
        row["scopes"],
        row["scope_patient_id"],
        frozenset(Role(role) for role in roles),
        row["registered"],
        bool(row["shut"]),
        tuple(row["also"] or ()),
    )


def _place(subscription_id: UUID, column: str) -> dict[str, str]:
    return {"table": "subscriptions", "row": str(subscription_id), "column": column}
