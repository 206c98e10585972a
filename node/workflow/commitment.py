"""Storage commitment (PS3.4 Annex J): our promises to machines, and those of archives.

A machine deletes its images when we commit ourselves, so nothing is promised that was
not looked at on disk. A result counts as delivered when the archive has promised the
same; until then it is sent again, asked for again, and in the end shown as failed work.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import structlog

from node.domain.audit import AuditEntry, Outcome
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, commitments, completion, routes, studies
from node.store.commitments import Delivery, DeliveryState, Reference
from node.store.jobs import Postponed

if TYPE_CHECKING:
    from node.store.commitments import Asking, CommitmentRequest, KeptInstance
    from node.store.database import Transaction
    from node.store.store import Store

log = structlog.get_logger(__name__)

REPORT_COMMITMENT: Final = "report_commitment"
REQUEST_COMMITMENT: Final = "request_commitment"
REDELIVER_INSTANCE: Final = "redeliver_instance"
# A queue of its own: a machine that is switched off holds up nothing else.
LANE: Final = "commitment"

MAX_SENDS: Final = 3
MAX_REQUESTS: Final = 3
MAX_REFERENCES: Final = 500  # in one request; devices choke on more
GATHER_S: Final = 5.0  # results of one report come one after the other
SEND_AGAIN_AFTER_S: Final = 60.0
_MODALITY, _DEVICE, _NODE = "modality", "device", "sononode"


class FailureReason(IntEnum):
    """Failure Reason (0008,1197), PS3.3 C.14.1.1."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    CLASS_NOT_SUPPORTED = 0x0122
    DUPLICATE_TRANSACTION = 0x0131
    RESOURCE_LIMITATION = 0x0213


_WORDS: Final = {
    FailureReason.PROCESSING_FAILURE: "processing failure",
    FailureReason.NO_SUCH_INSTANCE: "no such object instance",
    FailureReason.CLASS_INSTANCE_CONFLICT: "class and instance do not fit",
    FailureReason.CLASS_NOT_SUPPORTED: "class not supported",
    FailureReason.DUPLICATE_TRANSACTION: "duplicate Transaction UID",
    FailureReason.RESOURCE_LIMITATION: "out of resources",
}
_SEND_AGAIN: Final = frozenset(
    {
        FailureReason.PROCESSING_FAILURE,
        FailureReason.NO_SUCH_INSTANCE,
        FailureReason.RESOURCE_LIMITATION,
    }
)


# -- what machines ask of us -----------------------------------------------------------


async def receive_request(
    store: "Store",
    *,
    calling_ae: str,
    transaction_uid: str,
    references: Sequence[Reference],
    report_after_s: float = 0.0,
) -> "CommitmentRequest":
    """Keep what a machine asks for and promise it a report.

    The list is also evidence that its studies are complete. CONFLICT when the
    Transaction UID was used for another list; the same list again is answered anew.
    """
    at = store.clock()
    async with store.db.transaction() as tx:
        asked = await commitments.open_request(
            tx,
            calling_ae=calling_ae,
            transaction_uid=transaction_uid,
            references=references,
            at=at,
        )
        await completion.announce_instances(
            tx,
            store,
            source="commitment",
            reference=transaction_uid,
            calling_ae=calling_ae,
            sop_instance_uids=sorted({r.sop_instance_uid for r in references}),
        )
        await store.jobs.defer(
            tx,
            REPORT_COMMITMENT,
            {"request_id": str(asked.id), "round": asked.round},
            key=f"{asked.id}/{asked.round}",
            not_before=at + timedelta(seconds=report_after_s),
            lane=LANE,
        )
        await _audit(
            tx,
            store,
            calling_ae,
            _MODALITY,
            "commitment-request",
            transaction_uid,
            {"instances": str(len(set(references))), "round": str(asked.round)},
        )
    return asked


async def refuse_request(
    store: "Store", *, calling_ae: str, transaction_uid: str, reason: str
) -> None:
    """Record that a request was not taken; `transaction_uid` may be empty."""
    async with store.db.transaction() as tx:
        await _audit(
            tx,
            store,
            calling_ae,
            _MODALITY,
            "commitment-request",
            transaction_uid or "unknown",
            {"reason": reason},
            Outcome.REFUSED,
        )


async def due_request(
    store: "Store", payload: Mapping[str, Any]
) -> "tuple[CommitmentRequest, list[Reference]] | None":
    """Return the request that a job is to report on; None when nothing is owed."""
    async with store.db.transaction() as tx:
        asked, references = await commitments.request(tx, UUID(payload["request_id"]))
    if asked.round != int(payload["round"]) or asked.reported_at is not None:
        return None
    return asked, references


async def check_instances(
    store: "Store",
    asked: "CommitmentRequest",
    references: Sequence[Reference],
    *,
    grace_s: float,
) -> dict[Reference, FailureReason]:
    """Return which of `references` are not kept, and why; the others are.

    An instance is kept when its row names the class that was asked for and its
    object opens: key, first and last encrypted segment and length are proved. The
    segments between are not read here: they were digested when they came.

    Raises Postponed while something may still be on its way: a machine may ask
    before its last association has stored everything.
    """
    async with store.db.transaction() as tx:
        kept = await commitments.kept_instances(
            tx, store, [reference.sop_instance_uid for reference in references]
        )
    failures = await asyncio.to_thread(_failures, store, references, kept)
    now = store.clock()
    conflict = FailureReason.CLASS_INSTANCE_CONFLICT
    if any(reason is not conflict for reason in failures.values()):
        passed = now - asked.asked_at
        grace = timedelta(seconds=grace_s)
        if passed < grace:
            pause = max(passed, timedelta(seconds=1))
            raise Postponed(min(now + pause, asked.asked_at + grace))
    async with store.db.transaction() as tx:
        await commitments.note_check(tx, asked.id, failures, at=now)
    return failures


async def note_report_taken(
    store: "Store",
    asked: "CommitmentRequest",
    failures: Mapping[Reference, FailureReason],
) -> None:
    """Note that the machine has confirmed our report; noting it twice is one note."""
    async with store.db.transaction() as tx:
        if not await commitments.note_reported(tx, asked, at=store.clock()):
            return
        counted = _counted(failures.values())
        await _audit(
            tx,
            store,
            _NODE,
            _DEVICE,
            "commitment-report",
            asked.transaction_uid,
            {"to": asked.calling_ae, "failed": counted or "none"},
        )


def _failures(
    store: "Store",
    references: Iterable[Reference],
    kept: "Mapping[str, KeptInstance]",
) -> dict[Reference, FailureReason]:
    """Return what is wrong with each reference that is not kept. Blocks."""
    found = {}
    for reference in references:
        reason = _failure(store, reference, kept.get(reference.sop_instance_uid))
        if reason is not None:
            found[reference] = reason
    return found


def _failure(
    store: "Store", reference: Reference, kept: "KeptInstance | None"
) -> FailureReason | None:
    if kept is None:
        return FailureReason.NO_SUCH_INSTANCE
    if kept.sop_class_uid != reference.sop_class_uid:
        return FailureReason.CLASS_INSTANCE_CONFLICT
    try:
        with kept.open(store) as reader:
            reader.read(0, 1)
            whole = reader.size == kept.size
    except NodeError as error:
        if error.kind not in (ErrorKind.NOT_FOUND, ErrorKind.INTEGRITY):
            raise  # the disk is away: nothing is known of the instance
        whole = False
    if whole:
        return None
    log.error("commitment.object_damaged", sop_instance_uid=kept.sop_instance_uid)
    return FailureReason.PROCESSING_FAILURE


# -- what we ask of archives -----------------------------------------------------------


async def instance_sent(
    store: "Store",
    tx: "Transaction",
    *,
    sop_instance_uid: str,
    destination: str,
    sent: Reference,
    commitment: bool,
) -> None:
    """Note in the sender's transaction that an archive has answered with success.

    `sent` is what the archive has now: a document may have gone under a lesser
    class and so under another UID. With `commitment` it counts as delivered only
    when the archive has committed itself. Call it before anything is audited.
    """
    noted = await commitments.note_sent(
        tx,
        sop_instance_uid=sop_instance_uid,
        destination=destination,
        sent=sent,
        awaited=commitment,
        at=store.clock(),
    )
    if commitment:
        await _defer_request(store, tx, noted, after_s=GATHER_S)


async def open_asking(
    store: "Store", payload: Mapping[str, Any], new_uid: str
) -> "Asking | None":
    """Return what to ask an archive for; None when that is done or has no purpose.

    Everything of the study that waits there is named in one request.
    """
    async with store.db.transaction() as tx:
        mine = await commitments.delivery(
            tx, payload["sop_instance_uid"], payload["destination"]
        )
        if mine is None or mine.state is not DeliveryState.SENT or not mine.awaited:
            return None
        return await commitments.open_transaction(
            tx, mine, transaction_uid=new_uid, limit=MAX_REFERENCES, at=store.clock()
        )


async def note_request_accepted(store: "Store", asking: "Asking") -> None:
    """Note that the archive took our request: it owes a report."""
    async with store.db.transaction() as tx:
        await commitments.note_accepted(tx, asking.transaction_uid, at=store.clock())
        await _audit(
            tx,
            store,
            _NODE,
            _DEVICE,
            "commitment-ask",
            asking.transaction_uid,
            {"to": asking.destination, "instances": str(len(asking.references))},
        )


async def receive_report(
    store: "Store",
    *,
    sender: str,
    transaction_uid: str,
    committed: Iterable[str],
    failed: Mapping[str, int],
) -> None:
    """Note what an archive says of our results; a repeated report changes nothing.

    What it does not have is sent again, what it does not mention is asked for
    again, both a few times; then people are told. A promise counts whenever it
    comes, a failure only while nothing newer was asked. NOT_FOUND when we never
    asked under this Transaction UID.
    """
    kept, alarms = set(committed), []
    async with store.db.transaction() as tx:
        destination = await commitments.note_answered(
            tx, transaction_uid, at=store.clock()
        )
        if destination is None:
            raise NodeError(
                "nothing was asked under this Transaction UID", ErrorKind.NOT_FOUND
            )
        for asked in await commitments.deliveries_asked(tx, transaction_uid):
            uid = asked.sent.sop_instance_uid
            if uid in kept and uid not in failed:
                await commitments.settle(
                    tx, asked, DeliveryState.COMMITTED, at=store.clock()
                )
            elif asked.waits_for(transaction_uid):
                alarms += await _not_kept(store, tx, asked, failed.get(uid))
        await _audit(
            tx,
            store,
            sender,
            _DEVICE,
            "commitment-answer",
            transaction_uid,
            {"destination": destination, "failed": _counted(failed.values()) or "none"},
        )
        await _audit_alarms(tx, store, alarms)


async def ask_for_missing_reports(store: "Store", patience_s: float) -> int:
    """Ask again where an archive owes a report for so long; return for how many.

    Archives that promise and never report are told apart from those that are
    away: there the request itself is tried again.
    """
    now, alarms = store.clock(), []
    async with store.db.transaction() as tx:
        silent = await commitments.give_up_unanswered(
            tx, now - timedelta(seconds=patience_s), at=now
        )
        for waiting in silent:
            alarms += await _ask_again(store, tx, waiting, "was never reported on")
        await _audit_alarms(tx, store, alarms)
    if silent:
        log.error(
            "commitment.no_report",
            destinations=sorted({waiting.destination for waiting in silent}),
            instances=len(silent),
        )
    return len(silent)


async def redeliver_instance(store: "Store", payload: Mapping[str, Any]) -> None:
    """Show a failed delivery as failed work; when that is tried again, send it.

    RULE the first time, so that it stands among the dead letters at once.
    """
    async with store.db.transaction() as tx:
        failed = await commitments.delivery(
            tx, payload["sop_instance_uid"], payload["destination"]
        )
        if failed is None or failed.state is not DeliveryState.FAILED:
            return
        first = await commitments.note_told(tx, failed)
        if not first:
            await commitments.forget_tries(tx, failed)
            await commitments.reopen(tx, failed)
            await _defer_send(store, tx, failed, key="by hand")
    if first:
        raise NodeError(
            f"archive {failed.destination} does not keep it: {failed.reason}",
            ErrorKind.RULE,
        )


async def _not_kept(
    store: "Store", tx: "Transaction", asked: Delivery, reason: int | None
) -> list[Delivery]:
    """Send or ask again where that may help, otherwise fail; return what failed.

    Without a reason the report did not mention the instance.
    """
    if reason is None:
        return await _ask_again(store, tx, asked, "was not mentioned in the report")
    if reason == FailureReason.DUPLICATE_TRANSACTION:
        return await _ask_again(store, tx, asked, _words(reason))
    if reason in _SEND_AGAIN and asked.sends < MAX_SENDS:
        await commitments.reopen(tx, asked)
        await _defer_send(
            store, tx, asked, key=f"{asked.sends + 1}", after_s=SEND_AGAIN_AFTER_S
        )
        return []
    return [await _fail(store, tx, asked, f"{_words(reason)} ({reason:04X})")]


async def _ask_again(
    store: "Store", tx: "Transaction", waiting: Delivery, words: str
) -> list[Delivery]:
    """Ask for it under a new Transaction UID, or fail; return what failed."""
    if waiting.requests < MAX_REQUESTS:
        await commitments.reopen(tx, waiting)
        await _defer_request(store, tx, waiting)
        return []
    return [await _fail(store, tx, waiting, f"{words}, asked {MAX_REQUESTS} times")]


async def _fail(
    store: "Store", tx: "Transaction", failed: Delivery, reason: str
) -> Delivery:
    await commitments.settle(
        tx, failed, DeliveryState.FAILED, at=store.clock(), reason=reason
    )
    await store.jobs.defer(
        tx,
        REDELIVER_INSTANCE,
        _payload(failed),
        key=f"{failed.sop_instance_uid}/{failed.destination}",
        patient_id=await _patient_of(tx, failed),
        lane=LANE,
    )
    log.error(
        "commitment.not_delivered",
        sop_instance_uid=failed.sop_instance_uid,
        destination=failed.destination,
        reason=reason,
    )
    return failed


async def _defer_request(
    store: "Store", tx: "Transaction", asked: Delivery, *, after_s: float = 0.0
) -> None:
    number = f"{asked.sends}.{asked.requests}"
    await store.jobs.defer(
        tx,
        REQUEST_COMMITMENT,
        _payload(asked),
        key=f"{asked.sop_instance_uid}/{asked.destination}/{number}",
        not_before=store.clock() + timedelta(seconds=after_s),
        patient_id=await _patient_of(tx, asked),
        lane=LANE,
    )


async def _defer_send(
    store: "Store",
    tx: "Transaction",
    again: Delivery,
    *,
    key: str,
    after_s: float = 0.0,
) -> None:
    uid, destination = again.sop_instance_uid, again.destination
    job_id = await store.jobs.defer(
        tx,
        "send_instance",
        _payload(again),
        key=f"{uid}/{destination}/{key}",
        not_before=store.clock() + timedelta(seconds=after_s),
        patient_id=await _patient_of(tx, again),
        lane=destination,
    )
    await routes.reopen(tx, uid, destination, job_id=job_id, at=store.clock())


def _payload(delivery: Delivery) -> dict[str, str]:
    return {
        "sop_instance_uid": delivery.sop_instance_uid,
        "destination": delivery.destination,
        "study_instance_uid": delivery.study_instance_uid,
    }


async def _patient_of(tx: "Transaction", delivery: Delivery) -> UUID | None:
    study = await studies.study(tx, delivery.study_instance_uid)
    return None if study is None else study.patient_id


async def _audit_alarms(
    tx: "Transaction", store: "Store", alarms: Iterable[Delivery]
) -> None:
    for failed in alarms:
        await audit.record(
            tx,
            AuditEntry(
                at=store.clock(),
                actor=_NODE,
                role=_DEVICE,
                action="export",
                entity=f"instance/{failed.sop_instance_uid}",
                outcome=Outcome.FAILED,
                detail={"destination": failed.destination, "reason": "not committed"},
            ),
        )


async def _audit(
    tx: "Transaction",
    store: "Store",
    actor: str,
    role: str,
    action: str,
    transaction_uid: str,
    detail: Mapping[str, str],
    outcome: Outcome = Outcome.SUCCESS,
) -> None:
    await audit.record(
        tx,
        AuditEntry(
            at=store.clock(),
            actor=actor,
            role=role,
            action=action,
            entity=f"commitment/{transaction_uid}",
            outcome=outcome,
            detail=detail,
        ),
    )


def _counted(reasons: Iterable[int]) -> str:
    """Return how often each failure reason occurs, as in `0112: 3, 0119: 1`."""
    told = list(reasons)
    return ", ".join(f"{r:04X}: {told.count(r)}" for r in sorted(set(told)))


def _words(reason: int) -> str:
    known = {int(r): words for r, words in _WORDS.items()}
    return known.get(reason, "failure")
