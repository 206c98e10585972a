"""The job `send_instance`: one stored instance to one destination, and its record.

A sending is noted before its first byte leaves and after it was confirmed. What was
confirmed is not sent again unless somebody asks for it; what may have arrived without
a confirmation is sent again under the same UIDs, and the audit trail says so.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from dicom_scp.results.sr import SR_CLASSES
from node.domain.audit import by_the_node
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, commitments, routes, studies
from node.store.jobs import Postponed
from node.store.routes import DeliveryState
from node.workflow.commitment import instance_sent

if TYPE_CHECKING:
    from dicom_scp.sending.routing import RoutingTable
    from node.store.routes import Delivery
    from node.store.store import Store
    from node.store.studies import StoredInstance

log = structlog.get_logger(__name__)

BELIEVED: Final = timedelta(minutes=10)
_BURST_S: Final = 1.0


class Unconfirmed(NodeError):
    """The destination fell silent after something was sent: it may have arrived."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorKind.UNAVAILABLE)


@dataclass(frozen=True)
class Sent:
    """What a destination has confirmed, under the UIDs that it has it by."""

    sop_class_uid: str
    sop_instance_uid: str


class Sender(Protocol):
    """Brings instances to one destination."""

    @property
    def commitment(self) -> bool:
        """Tell whether the destination is asked to commit itself (PS3.4 J)."""

    async def send(
        self,
        part10: bytes,
        *,
        instance: StoredInstance | None = None,
        before: str | None = None,
    ) -> Sent:
        """Send a Part 10 file; return when the destination has confirmed it.

        `instance` is what the store knows of it, so that it can go in another
        transfer syntax. `before` is the SOP Instance UID under which it went the
        last time, so that it does not arrive under a second one. Raises NodeError:
        EXHAUSTED and UNAVAILABLE are worth another try, the other kinds are final.
        """

    async def close(self) -> None:
        """Let go of what is kept for the next instance."""


class Pace:
    """Says how long to wait so that no more than so many kbit leave in a second.

    A pause of the line is not made up for beyond a second's worth. Several threads
    may share one.
    """

    def __init__(
        self, kbit_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.bytes_per_s = kbit_s * 125
        self._clock = clock
        self._free_at = clock() - _BURST_S
        self._lock = threading.Lock()

    def wait_s(self, size: int) -> float:
        """Return how many seconds to wait after `size` bytes have left."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - _BURST_S) + size / self.bytes_per_s
            return max(0.0, self._free_at - now)


async def send_instance(
    store: Store,
    payload: Mapping[str, Any],
    senders: Mapping[str, Sender],
    table: RoutingTable,
) -> None:
    """Send one stored instance to the destination that the payload names.

    Raises NodeError as `Sender.send` does, and Postponed outside the destination's
    hours.
    """
    uid, name = payload["sop_instance_uid"], payload["destination"]
    sender = senders.get(name)
    if sender is None:
        raise NodeError(
            f"there is no destination {name} in the settings", ErrorKind.SETTING
        )
    if name in table.outlets:
        now = store.clock()
        opens = table.outlets[name].hours.next_open(now)
        if opens > now:
            raise Postponed(opens)
    instance = await _read_row(store, uid)
    if refusal := await _known_refusal(store, name, instance.sop_class_uid):
        raise NodeError(refusal, ErrorKind.UNSUPPORTED)
    known = await _begin(store, instance, name)
    if known.state is DeliveryState.SENT:
        log.info("delivery.there_already", sop_instance_uid=uid, destination=name)
        return
    try:
        part10 = await asyncio.to_thread(_read, store, instance)
        sent = await sender.send(part10, instance=instance, before=known.sent_as)
    except NodeError as error:
        await _note_failure(store, known, error)
        raise
    await _note_arrival(store, known, sent, commitment=sender.commitment)


def _read(store: Store, instance: StoredInstance) -> bytes:
    with studies.open_blob(store, instance) as reader:
        return reader.read()


async def _read_row(store: Store, uid: str) -> StoredInstance:
    async with store.db.connection() as connection:
        instance = await studies.instance(connection, store, uid)
    if instance is None:
        raise NodeError(f"there is no instance {uid}", ErrorKind.NOT_FOUND)
    return instance


async def _known_refusal(store: Store, name: str, sop_class_uid: str) -> str | None:
    """Return why it is in vain, when the destination has just said so itself."""
    async with store.db.connection() as connection:
        answer = await routes.probe_answer(connection, name)
    if answer is None or answer.stale or store.clock() - answer.at > BELIEVED:
        return None
    document = sop_class_uid in SR_CLASSES
    asked = [
        answer.accepted[uid]
        for uid in (SR_CLASSES if document else (sop_class_uid,))
        if uid in answer.accepted
    ]
    if not asked or any(asked):
        return None
    return (
        f"{answer.target} takes no objects of this class, as it said at"
        f" {answer.at:%H:%M} UTC; see `doctor pacs {name}`"
    )


async def _begin(store: Store, instance: StoredInstance, name: str) -> Delivery:
    """Return how the delivery stood before this sending begins."""
    uid = instance.sop_instance_uid
    async with store.db.transaction() as tx:
        await routes.queue(
            tx,
            uid,
            name,
            study_instance_uid=instance.study_instance_uid,
            rule="",
            at=store.clock(),
        )
        known = await routes.delivery(tx, uid, name)
        if known is None:
            raise NodeError(f"there is no instance {uid}", ErrorKind.NOT_FOUND)
        if known.state is not DeliveryState.SENT:
            await routes.begin(tx, uid, name, at=store.clock())
    return known


async def _note_failure(store: Store, known: Delivery, error: NodeError) -> None:
    """Note why it failed. What may have arrived earlier may still have arrived."""
    uid, name = known.sop_instance_uid, known.destination
    earlier = known.state is DeliveryState.SENDING
    async with store.db.transaction() as tx:
        await routes.fail(
            tx,
            uid,
            name,
            at=store.clock(),
            error=error.message,
            surely=not earlier and not isinstance(error, Unconfirmed),
        )
        if error.kind in (ErrorKind.UNSUPPORTED, ErrorKind.FORBIDDEN):
            await routes.doubt_probe(tx, name)


async def _note_arrival(
    store: Store, known: Delivery, sent: Sent, *, commitment: bool
) -> None:
    """Note that it has arrived; say in the audit trail when it may be there twice."""
    uid, name = known.sop_instance_uid, known.destination
    detail = {"destination": name, "sent_as": sent.sop_instance_uid}
    if known.state is DeliveryState.SENDING:
        detail["again"] = "an earlier sending was not confirmed"
    elif known.sent_as is not None:
        detail["again"] = "it was sent before"
    if known.sent_as not in (None, sent.sop_instance_uid):
        detail["sent_before_as"] = str(known.sent_as)
    async with store.db.transaction() as tx:
        await routes.end(tx, uid, name, at=store.clock(), sent_as=sent.sop_instance_uid)
        await instance_sent(
            store,
            tx,
            sop_instance_uid=uid,
            destination=name,
            sent=commitments.Reference(sent.sop_class_uid, sent.sop_instance_uid),
            commitment=commitment,
        )
        await audit.record(
            tx,
            by_the_node(store.clock(), "export", f"instance/{uid}", detail),
        )
    log.info(
        "delivery.arrived",
        sop_instance_uid=uid,
        destination=name,
        sent_as=sent.sop_instance_uid,
        again=detail.get("again"),
    )
