"""Who is told of what, and the numbered events that each subscriber is still owed.

An event is written once, in the transaction that causes it; each subscriber is owed
it under a number of its own, without a gap. Its body is what was true then, so that
a redelivery says the same, and is sealed with the patient's key.
"""

import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from node.domain.access import Role
from node.domain.audit import AuditEntry, by_the_node, note_patient
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, resources
from node.store.resources import Stored

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Database, Transaction
    from node.store.store import Store

CHANNEL = "subscriptions"  # of NOTIFY: somebody is owed something
REST_HOOK, WEBSOCKET = "rest-hook", "websocket"
# How long what was told can be asked for again.
KEPT = timedelta(days=90)
_LEAD = 20_529  # advisory lock: who delivers
# A worker whose machine is gone must not lead for the two hours of TCP's default.
_NOTICE_LOSS = (
    "set tcp_keepalives_idle = 5",
    "set tcp_keepalives_interval = 2",
    "set tcp_keepalives_count = 3",
)


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


@dataclass(frozen=True)
class Occurrence:
    """Something that happened, before anybody is told: what about, and its body."""

    focus: str
    body: bytes
    patient_id: UUID | None
    created: bool = False
    context: tuple["Beside", ...] = ()


@dataclass(frozen=True)
class Beside:
    """A version of another resource that belongs to what happened, and by what path.

    `path` is as a topic has it: `include=DiagnosticReport:result`.
    """

    path: str
    resource_type: str
    resource_id: str
    version: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Return type, id and version."""
        return self.resource_type, self.resource_id, self.version


@dataclass(frozen=True)
class Related:
    """Such a version as it is told: of the same patient, or of nobody."""

    path: str
    stored: Stored


@dataclass(frozen=True)
class Event:
    """One event of one subscriber; `focus` is the reference that it is about.

    Of an erased patient the body is empty; the number stays. `context` is what may
    go along; whether it does is a matter of topic and subscriber.
    """

    number: int
    at: datetime
    focus: str
    body: bytes
    created: bool = False
    context: tuple[Related, ...] = ()


@dataclass(frozen=True)
class Waiting:
    """What an engineer wants to know of one subscriber."""

    subscription: Subscription
    undelivered: int
    oldest: datetime | None


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
    await _wake(tx)


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
    rows = await tx.fetch(
        f"{_SELECT} where ($1::uuid[] is null or s.subscription_id = any($1))"
        " and ($2::text[] is null or s.topic = any($2))"
        " and ($3::text[] is null or s.status = any($3)) order by s.subscription_id",
        None if ids is None else list(ids),
        None if topics is None else list(topics),
        None if statuses is None else list(statuses),
    )
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
    if before == secret is not None:
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
    await _wake(tx)


async def backlogs(tx: "Transaction", store: "Store") -> list[Waiting]:
    """Return every subscription and how much it is still owed, by topic."""
    rows = await tx.fetch(
        "select e.subscription_id, count(*) as n, min(t.at) as oldest"
        " from subscription_events e join topic_events t using (event_id)"
        " where e.delivered_at is null group by e.subscription_id"
    )
    owed = {row["subscription_id"]: row for row in rows}
    found = []
    for subscription in await find_all(tx, store):
        row = owed.get(subscription.subscription_id)
        found.append(
            Waiting(
                subscription, row["n"] if row else 0, row["oldest"] if row else None
            )
        )
    return found


# --- what happens -------------------------------------------------------------------


async def add_events(
    tx: "Transaction",
    store: "Store",
    owed: Sequence[tuple[Occurrence, Sequence[UUID]]],
    *,
    at: datetime,
) -> None:
    """Write what happened, and that subscribers are owed it, each under its number.

    Their rows stay locked until `tx` ends: numbers rise in the order in which the
    causes are committed, and none is left out. All are locked at once and in one
    order, so that two causes never wait for each other.
    """
    everyone = sorted({one for _, subscribers in owed for one in subscribers})
    if not everyone:
        return
    await tx.execute(
        "select from subscriptions where subscription_id = any($1)"
        " order by subscription_id for no key update",
        everyone,
    )
    for occurrence, subscribers in owed:
        if not subscribers:
            continue
        event_id = await _add_occurrence(tx, store, occurrence, at)
        await tx.execute(
            "with counted as (update subscriptions set events_count = events_count + 1"
            " where subscription_id = any($1) returning subscription_id, events_count)"
            " insert into subscription_events (subscription_id, number, event_id)"
            " select subscription_id, events_count, $2 from counted",
            list(subscribers),
            event_id,
        )
    await _wake(tx)


async def _add_occurrence(
    tx: "Transaction", store: "Store", occurrence: Occurrence, at: datetime
) -> UUID:
    event_id = uuid4()
    sealer = store.ring.node
    if occurrence.patient_id is not None:
        sealer = await store.ring.patient(tx, occurrence.patient_id)
    await tx.execute(
        "insert into topic_events"
        " (event_id, at, patient_id, focus, created, body, sealed_as, context)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8)",
        event_id,
        at,
        occurrence.patient_id,
        occurrence.focus,
        occurrence.created,
        sealer.seal(occurrence.body, **_event_place(str(event_id))),
        str(event_id),
        [f"{one.path} {'/'.join(map(str, one.key))}" for one in occurrence.context],
    )
    return event_id


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
    """Return events in order, from number `since` to `until`."""
    rows = await tx.fetch(
        "select e.number, t.* from subscription_events e"
        " join topic_events t using (event_id) where e.subscription_id = $1"
        " and e.number >= $2 and ($3::bigint is null or e.number <= $3)"
        " and (not $4::boolean or e.delivered_at is null) order by e.number limit $5",
        subscription_id,
        since,
        until,
        undelivered,
        limit,
    )
    context = await _context(tx, store, rows)
    return [await _event(tx, store, row, context, {}) for row in rows]


async def owe_again(
    tx: "Transaction",
    subscription_id: UUID,
    *,
    since: int,
    until: int,
    earliest: datetime | None,
    latest: datetime | None,
) -> int:
    """Have events delivered once more, under their numbers; return how many."""
    again = await tx.fetch(
        "update subscription_events e set delivered_at = null from topic_events t"
        " where t.event_id = e.event_id and e.subscription_id = $1"
        " and e.number between $2 and $3 and ($4::timestamptz is null or t.at >= $4)"
        " and ($5::timestamptz is null or t.at <= $5) returning e.number",
        subscription_id,
        since,
        until,
        earliest,
        latest,
    )
    await _wake(tx)
    return len(again)


async def forget(tx: "Transaction", before: datetime) -> None:
    """Remove what happened before `before`; numbers go on where they were."""
    await tx.execute(
        "delete from subscription_events e using topic_events t"
        " where t.event_id = e.event_id and t.at < $1",
        before,
    )
    await tx.execute("delete from topic_events where at < $1", before)


# --- delivering -----------------------------------------------------------------------


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
    rows = await tx.fetch(f"{_SELECT} {_DUE}", now, list(busy))
    found = [_subscription(store, row) for row in rows]
    owed = await _owed(tx, store, [one for one in found if _hears(one, now)])
    again_at = await tx.fetchval(_NEXT, now, list(busy))
    return Due(
        tuple((one, owed.get(one.subscription_id, ())) for one in found), again_at
    )


def _hears(subscription: Subscription, now: datetime) -> bool:
    due_at = subscription.next_attempt_at
    return subscription.status == "active" and (due_at is None or due_at <= now)


async def _owed(
    tx: "Transaction", store: "Store", subscriptions: Sequence[Subscription]
) -> Mapping[UUID, tuple[Event, ...]]:
    rows = await tx.fetch(
        "select w.subscription_id, e.number, t.* from unnest($1::uuid[], $2::integer[])"
        " as w (subscription_id, count) cross join lateral (select number, event_id"
        " from subscription_events where subscription_id = w.subscription_id"
        " and delivered_at is null order by number limit w.count) e"
        " join topic_events t using (event_id) order by w.subscription_id, e.number",
        [one.subscription_id for one in subscriptions],
        [one.max_count for one in subscriptions],
    )
    context = await _context(tx, store, rows)
    bodies: dict[UUID, bytes] = {}  # one body for all who are owed it
    owed: dict[UUID, tuple[Event, ...]] = {}
    for row in rows:
        event = await _event(tx, store, row, context, bodies)
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


# --- sockets --------------------------------------------------------------------------


async def open_binding(
    tx: "Transaction",
    subscription_ids: Sequence[UUID],
    *,
    expires_at: datetime,
    now: datetime,
) -> str:
    """Return a token that binds a socket to subscriptions until `expires_at`."""
    token = secrets.token_urlsafe(32)
    await tx.execute("delete from subscription_bindings where expires_at <= $1", now)
    await tx.execute(
        "insert into subscription_bindings (token_hash, subscription_ids, expires_at)"
        " values ($1, $2, $3)",
        _hash(token),
        list(subscription_ids),
        expires_at,
    )
    return token


async def read_binding(
    tx: "Transaction", token: str, *, now: datetime
) -> tuple[list[UUID], datetime] | None:
    """Return what a token binds to and until when; None when it is none."""
    row = await tx.fetchrow(
        "select * from subscription_bindings where token_hash = $1 and expires_at > $2",
        _hash(token),
        now,
    )
    return None if row is None else (list(row["subscription_ids"]), row["expires_at"])


# --- rows -----------------------------------------------------------------------------


async def _wake(tx: "Transaction") -> None:
    await tx.execute("select pg_notify($1, '')", CHANNEL)


async def _context(
    tx: "Transaction", store: "Store", rows: Sequence[Any]
) -> dict[UUID, tuple[Related, ...]]:
    """Return what goes along with events, by event: versions of the same patient.

    A report that turned out to be another woman's has left hers behind.
    """
    told = {row["event_id"]: row for row in rows if row["context"]}
    beside = {
        event_id: [_beside(text) for text in row["context"]]
        for event_id, row in told.items()
    }
    wanted = {one.key for some in beside.values() for one in some}
    known = await resources.find_versions(tx, store, wanted)
    return {
        event_id: tuple(
            Related(one.path, known[one.key])
            for one in some
            if one.key in known
            and known[one.key].patient_id in (None, told[event_id]["patient_id"])
        )
        for event_id, some in beside.items()
    }


def _beside(text: str) -> Beside:
    path, _, key = text.partition(" ")
    kind, resource_id, version = key.split("/")
    return Beside(path, kind, resource_id, int(version))


async def _event(
    tx: "Transaction",
    store: "Store",
    row: Any,
    context: Mapping[UUID, tuple[Related, ...]],
    bodies: dict[UUID, bytes],
) -> Event:
    body = bodies.get(row["event_id"])
    if body is None:
        try:
            sealer = store.ring.node
            if row["patient_id"] is not None:
                note_patient(row["patient_id"])
                sealer = await store.ring.patient(tx, row["patient_id"])
            body = sealer.open(row["body"], **_event_place(row["sealed_as"]))
        except NodeError as error:
            if error.kind is not ErrorKind.GONE:
                raise
            body = b""
        bodies[row["event_id"]] = body
    return Event(
        row["number"],
        row["at"],
        row["focus"],
        body,
        row["created"],
        context.get(row["event_id"], ()) if body else (),
    )


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


def _event_place(row: str) -> dict[str, str]:
    # The table in which bodies were when the first of them were sealed.
    return {"table": "subscription_events", "row": row, "column": "body"}


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
