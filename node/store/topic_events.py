"""What happens, and the numbered events of it that each subscriber is owed.

An event is written once, in the transaction that causes it; each subscriber is owed
it under a number of its own, without a gap. Its body is what was true then, so that
a redelivery says the same, and is sealed with the patient's key.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from node.domain.audit import note_patient
from node.domain.errors import ErrorKind, NodeError
from node.store import resources
from node.store.resources import Stored
from node.store.subscriptions import wake

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

# How long what was told can be asked for again.
KEPT = timedelta(days=90)


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
    await wake(tx)


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
    context = await context_of(tx, store, rows)
    return [await event_of(tx, store, row, context, {}) for row in rows]


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
    await wake(tx)
    return len(again)


async def forget(tx: "Transaction", before: datetime) -> None:
    """Remove what happened before `before`; numbers go on where they were."""
    await tx.execute(
        "delete from subscription_events e using topic_events t"
        " where t.event_id = e.event_id and t.at < $1",
        before,
    )
    await tx.execute("delete from topic_events where at < $1", before)


async def context_of(
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


async def event_of(
    tx: "Transaction",
    store: "Store",
    row: Any,
    context: Mapping[UUID, tuple[Related, ...]],
    bodies: dict[UUID, bytes],
) -> Event:
    """Return the event of a row; `bodies` keeps what was opened, for those after it."""
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


def _event_place(row: str) -> dict[str, str]:
    # The table in which bodies were when the first of them were sealed.
    return {"table": "subscription_events", "row": row, "column": "body"}
