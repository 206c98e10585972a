"""Storage Commitment Push Model, both roles (PS3.4 Annex J), and its jobs.

As SCP: the N-ACTION is answered when it is on disk, the N-EVENT-REPORT follows from
the job `report_commitment` on an association of its own with reversed roles, tried
again for days. As SCU: the job `request_commitment` asks an archive to keep what was
sent there; its report comes to our port, or on the association that asked.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_role, evt
from pynetdicom.presentation import PresentationContext, build_context

from dicom_scp.receiving.peers import ServiceName
from dicom_scp.sending.scu import associate
from dicom_scp.services.service import Service, caller_of
from node.domain.errors import ErrorKind, NodeError
from node.store.commitments import Reference
from node.store.jobs import Postponed
from node.workflow import commitment

if TYPE_CHECKING:
    from pynetdicom.association import Association

    from dicom_scp.receiving.intake import StoreThread
    from dicom_scp.sending.scu import Destination
    from node.store.commitments import Asking, CommitmentRequest
    from node.store.store import Store
    from node.workflow.commitment import FailureReason

log = structlog.get_logger(__name__)
T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

PUSH_MODEL: Final = UID("1.2.840.10008.1.20.1")
PUSH_MODEL_INSTANCE: Final = UID("1.2.840.10008.1.20.1.1")
REQUEST_STORAGE_COMMITMENT: Final = 1  # Action Type ID
ALL_KEPT, SOME_FAILED = 1, 2  # Event Type ID
SAME_ASSOCIATION_S: Final = 10.0
_STORE_TIMEOUT_S: Final = 30.0
_UID: Final = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")

# What we answer (PS3.7 10.1.4.1.10, Annex C); the kinds of what the store may say.
# The conformance statement is generated from these.
NO_SUCH_EVENT, NO_SUCH_INSTANCE, NO_SUCH_CLASS = 0x0113, 0x0112, 0x0118
INVALID_ARGUMENT, MISSING, EMPTY = 0x0115, 0x0120, 0x0121
NO_SUCH_ACTION, PROCESSING_FAILURE = 0x0123, 0x0110
COMMITMENT_STATUS: Final = {
    ErrorKind.CONFLICT: INVALID_ARGUMENT,
    ErrorKind.NOT_FOUND: INVALID_ARGUMENT,
    ErrorKind.EXHAUSTED: 0x0213,
}

# What archives answer to an N-ACTION: (status, what becomes of the job, words).
ASK_OUTCOMES: Final[Mapping[int, tuple[ErrorKind | None, str]]] = {
    0x0000: (None, "accepted"),
    0x0131: (None, "has this request already"),
    0x0210: (None, "has this request already"),
    0x0118: (ErrorKind.UNSUPPORTED, "does not commit itself to storage"),
    0x0122: (ErrorKind.UNSUPPORTED, "does not commit itself to storage"),
    0x0123: (ErrorKind.UNSUPPORTED, "does not know the action"),
    0x0124: (ErrorKind.FORBIDDEN, "does not allow us to ask"),
    0x0211: (ErrorKind.UNSUPPORTED, "does not know the operation"),
}


@dataclass(frozen=True)
class CommitmentSettings:
    """Who reports, and for how many seconds something may still be on its way.

    `ae_title` is ours: from there a machine retrieves what we keep.
    """

    ae_title: str = "SONONODE"
    grace_s: float = 60.0


class Refused(NodeError):
    """A message that is answered with `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, ErrorKind.INVALID)
        self.status = status


def commitment_service(settings: CommitmentSettings) -> Service:
    """Return the service: requests of machines, and reports of archives to us.

    The roles are both ways open: an archive calls us as the SCP of the class.
    """
    context = build_context(
        PUSH_MODEL, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    )
    context.scu_role = context.scp_role = True
    return Service(
        ServiceName.COMMITMENT,
        (context,),
        {
            evt.EVT_N_ACTION: lambda event, thread: _requested(event, thread, settings),
            evt.EVT_N_EVENT_REPORT: _reported,
        },
    )


# -- SCP: what a machine asks ----------------------------------------------------------


def _requested(
    event: evt.Event, thread: StoreThread, settings: CommitmentSettings
) -> tuple[Dataset, None]:
    """Answer an N-ACTION; 0x0000 means that the request is on disk."""
    caller, transaction_uid = caller_of(event), ""
    here = caller.peer.commitment_reply == "same"
    try:
        _check_action(event.request)
        information = _decoded(lambda: event.action_information)
        transaction_uid = _transaction_uid(information)
        references = _references(information, "ReferencedSOPSequence")
        if not caller.peer.host and not here:
            raise Refused(
                "no address to report to: dicom.peers host", PROCESSING_FAILURE
            )
        asked = thread.call(
            commitment.receive_request(
                thread.store,
                calling_ae=caller.peer.ae_title,
                transaction_uid=transaction_uid,
                references=references,
                report_after_s=SAME_ASSOCIATION_S if here else 0.0,
            ),
            timeout_s=_STORE_TIMEOUT_S,
        )
    except NodeError as error:
        log.warning(
            "commitment.refused", calling_ae=caller.calling_ae, reason=error.message
        )
        thread.later(
            commitment.refuse_request(
                thread.store,
                calling_ae=caller.calling_ae,
                transaction_uid=transaction_uid,
                reason=error.message,
            )
        )
        return _answer(error), None
    if here:
        _report_here(event.assoc, thread, asked, references, settings)
    return _status(0x0000), None


def _check_action(request: Any) -> None:
    if str(request.RequestedSOPClassUID) != PUSH_MODEL:
        raise Refused("Requested SOP Class is another one", NO_SUCH_CLASS)
    if str(request.RequestedSOPInstanceUID) != PUSH_MODEL_INSTANCE:
        raise Refused("Requested SOP Instance is not known", NO_SUCH_INSTANCE)
    if request.ActionTypeID != REQUEST_STORAGE_COMMITMENT:
        raise Refused("Action Type ID is not 1", NO_SUCH_ACTION)


def _transaction_uid(information: Dataset) -> str:
    return _uid_of(information, "TransactionUID")


def _references(information: Dataset, keyword: str) -> list[Reference]:
    """Return the items of a sequence (PS3.3 C.14); Refused when one is not whole."""
    if keyword not in information:
        raise Refused(f"{keyword} is missing", MISSING)
    items = _decoded(lambda: list(information[keyword].value or ()))
    if not items:
        raise Refused(f"{keyword} has no item", EMPTY)
    return [
        Reference(
            _uid_of(item, "ReferencedSOPClassUID"),
            _uid_of(item, "ReferencedSOPInstanceUID"),
        )
        for item in items
    ]


def _uid_of(dataset: Dataset, keyword: str) -> str:
    if keyword not in dataset:
        raise Refused(f"{keyword} is missing", MISSING)
    value = _decoded(lambda: dataset[keyword].value)
    if value in (None, ""):
        raise Refused(f"{keyword} has no value", EMPTY)
    if not isinstance(value, str) or len(value) > 64 or not _UID.fullmatch(value):
        raise Refused(f"{keyword} is no UID", INVALID_ARGUMENT)
    return str(value)


def _decoded(read: Callable[[], T]) -> T:
    """Return what `read` decodes: pydicom fails in many ways, and late."""
    try:
        return read()
    except Exception:
        raise Refused("the data set cannot be decoded", INVALID_ARGUMENT) from None


def _answer(error: NodeError) -> Dataset:
    if isinstance(error, Refused):
        return _status(error.status, error.message)
    return _status(COMMITMENT_STATUS.get(error.kind, PROCESSING_FAILURE), error.message)


def _status(code: int, comment: str = "") -> Dataset:
    status = Dataset()
    status.Status = code
    if comment:
        status.ErrorComment = comment[:64]
    return status


# -- SCP: the report -------------------------------------------------------------------


async def report_commitment(
    store: Store,
    payload: Mapping[str, Any],
    settings: CommitmentSettings,
    addresses: Mapping[str, Destination],
) -> None:
    """Tell a machine, on a new association, what of its list is kept (PS3.4 J.3.3).

    `addresses` are the machines by AE title. Every attempt looks anew: what came
    late is kept by now. All failures are worth another try: the machine may be off,
    or wrongly set up, and somebody may mend it in the days that we try.
    """
    due = await commitment.due_request(store, payload)
    if due is None:
        return
    asked, references = due
    address = addresses.get(asked.calling_ae)
    if address is None:
        raise NodeError(
            f"dicom.peers: no host is set for {asked.calling_ae}", ErrorKind.SETTING
        )
    failures = await commitment.check_instances(
        store, asked, references, grace_s=settings.grace_s
    )
    report = _report(asked, references, failures, settings.ae_title)
    await asyncio.to_thread(_deliver, address, report, failed=bool(failures))
    await commitment.note_report_taken(store, asked, failures)


def _report(
    asked: CommitmentRequest,
    references: list[Reference],
    failures: Mapping[Reference, FailureReason],
    ae_title: str,
) -> Dataset:
    """Return the Event Information (PS3.4 Table J.3-2)."""
    report = Dataset()
    report.TransactionUID = asked.transaction_uid
    report.RetrieveAETitle = ae_title
    kept = [_item(reference) for reference in references if reference not in failures]
    if kept:
        report.ReferencedSOPSequence = kept
    if failures:
        report.FailedSOPSequence = [
            _item(reference, reason) for reference, reason in failures.items()
        ]
    return report


def _item(reference: Reference, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    if reason is not None:
        item.FailureReason = int(reason)
    return item


def _deliver(address: Destination, report: Dataset, *, failed: bool) -> None:
    """Send a report on an association of its own, as SCP of the class. Blocks."""
    roles = [build_role(PUSH_MODEL, scu_role=False, scp_role=True)]
    try:
        association = associate(address, [proposed_context()], roles=roles)
    except NodeError as error:
        raise NodeError(error.message, ErrorKind.UNAVAILABLE) from error
    try:
        _send_report(association, report, str(address), failed=failed)
    finally:
        if association.is_established:
            association.release()


def proposed_context() -> PresentationContext:
    """Return what we propose, whichever role we take."""
    return build_context(PUSH_MODEL, [ImplicitVRLittleEndian, ExplicitVRLittleEndian])


def _send_report(
    association: Association, report: Dataset, machine: str, *, failed: bool
) -> None:
    event_type = SOME_FAILED if failed else ALL_KEPT
    try:
        answer, _ = association.send_n_event_report(
            report, event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE
        )
    except (ValueError, RuntimeError) as error:
        raise NodeError(
            f"{machine} left before the report", ErrorKind.UNAVAILABLE
        ) from error
    if "Status" not in answer:
        raise NodeError(f"{machine} did not confirm the report", ErrorKind.UNAVAILABLE)
    if answer.Status != 0x0000:
        raise NodeError(
            f"{machine} does not take the report ({answer.Status:04X})",
            ErrorKind.UNAVAILABLE,
        )


def _report_here(
    association: Association,
    thread: StoreThread,
    asked: CommitmentRequest,
    references: list[Reference],
    settings: CommitmentSettings,
) -> None:
    """Report on the association that asked, if the machine keeps it open for that.

    What does not work is left to the job, which reports on a new association.
    """
    answered = threading.Event()
    association.bind(evt.EVT_DIMSE_SENT, lambda _event: answered.set())

    def report() -> None:
        if not answered.wait(SAME_ASSOCIATION_S):
            return
        try:
            failures = thread.call(
                commitment.check_instances(
                    thread.store, asked, references, grace_s=settings.grace_s
                ),
                timeout_s=SAME_ASSOCIATION_S,
            )
            association.dimse_timeout = SAME_ASSOCIATION_S
            told = _report(asked, references, failures, settings.ae_title)
            _send_report(association, told, asked.calling_ae, failed=bool(failures))
            thread.call(commitment.note_report_taken(thread.store, asked, failures))
        except Postponed:
            return
        except NodeError as error:
            log.info("commitment.not_reported_here", reason=error.message)

    threading.Thread(target=report, name="commitment-report", daemon=True).start()


# -- SCU: what we ask of an archive ----------------------------------------------------


async def request_commitment(
    store: Store,
    payload: Mapping[str, Any],
    destinations: Mapping[str, Destination],
    new_uid: Callable[[], str] = lambda: f"2.25.{uuid4().int}",
) -> None:
    """Ask an archive to commit itself to what was sent there (PS3.4 J.3.2).

    Raises NodeError: UNSUPPORTED and FORBIDDEN are final, the archive does not do it.
    """
    destination = destinations.get(payload["destination"])
    if destination is None:
        raise NodeError(
            f"there is no destination {payload['destination']} in the settings",
            ErrorKind.SETTING,
        )
    asking = await commitment.open_asking(store, payload, new_uid())
    if asking is None:
        return
    loop = asyncio.get_running_loop()

    def run(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(_STORE_TIMEOUT_S)

    await asyncio.to_thread(_ask, store, asking, destination, run)


def _ask(store: Store, asking: Asking, destination: Destination, run: Run[Any]) -> None:
    """Send an N-ACTION and wait a little for the report. Blocks."""
    watched = _Watched()
    association = associate(
        destination,
        [proposed_context()],
        handlers=[
            (
                evt.EVT_N_EVENT_REPORT,
                lambda event: (
                    take_report(event, store, destination.ae_title, run),
                    None,
                ),
            ),
            (evt.EVT_DIMSE_SENT, watched.sent),
        ],
    )
    try:
        information = Dataset()
        information.TransactionUID = asking.transaction_uid
        information.ReferencedSOPSequence = [_item(r) for r in asking.references]
        answer, _ = association.send_n_action(
            information, REQUEST_STORAGE_COMMITMENT, PUSH_MODEL, PUSH_MODEL_INSTANCE
        )
        _judge(answer, destination)
        run(commitment.note_request_accepted(store, asking))
        watched.wait(association, destination.commitment_wait_s)
    except (ValueError, RuntimeError) as error:
        raise NodeError(
            f"{destination} broke the association", ErrorKind.UNAVAILABLE
        ) from error
    finally:
        if association.is_established:
            association.release()


def _judge(answer: Dataset, destination: Destination) -> None:
    if "Status" not in answer:
        raise NodeError(f"{destination} did not answer", ErrorKind.UNAVAILABLE)
    kind, words = ASK_OUTCOMES.get(
        int(answer.Status), (ErrorKind.UNAVAILABLE, "does not take the request")
    )
    if kind is not None:
        raise NodeError(f"{destination} {words} ({answer.Status:04X})", kind)


@dataclass(frozen=True)
class _Watched:
    """Notes when our answer to a report has gone out on the association that asked."""

    answered: threading.Event = field(default_factory=threading.Event)

    def sent(self, event: evt.Event) -> None:
        if type(event.message).__name__ == "N_EVENT_REPORT_RSP":
            self.answered.set()

    def wait(self, association: Association, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while association.is_established and time.monotonic() < end:
            if self.answered.wait(0.05):
                return


# -- SCU: what an archive reports ------------------------------------------------------


def _reported(event: evt.Event, thread: StoreThread) -> tuple[Dataset, None]:
    """Answer an N-EVENT-REPORT that came to our port."""

    def run(work: Coroutine[Any, Any, T]) -> T:
        return thread.call(work, timeout_s=_STORE_TIMEOUT_S)

    return take_report(event, thread.store, caller_of(event).calling_ae, run), None


def take_report(event: evt.Event, store: Store, sender: str, run: Run[None]) -> Dataset:
    """Note what an archive reports; return our answer, 0x0000 when it is on disk."""
    try:
        request: Any = event.request
        if str(request.AffectedSOPInstanceUID) != PUSH_MODEL_INSTANCE:
            raise Refused("Affected SOP Instance is not known", NO_SUCH_INSTANCE)
        if request.EventTypeID not in (ALL_KEPT, SOME_FAILED):
            raise Refused("Event Type ID is neither 1 nor 2", NO_SUCH_EVENT)
        information = _decoded(lambda: event.event_information)
        transaction_uid = _transaction_uid(information)
        kept = _named(information, "ReferencedSOPSequence")
        failed = _named(information, "FailedSOPSequence")
        run(
            commitment.receive_report(
                store,
                sender=sender,
                transaction_uid=transaction_uid,
                committed=kept,
                failed=failed,
            )
        )
    except NodeError as error:
        log.warning("commitment.report_refused", sender=sender, reason=error.message)
        return _answer(error)
    return _status(0x0000)


def _named(information: Dataset, keyword: str) -> dict[str, int]:
    """Return the UIDs that a sequence names, with their Failure Reason."""
    if keyword not in information:
        return {}
    items = _decoded(lambda: list(information[keyword].value or ()))
    return {
        _uid_of(item, "ReferencedSOPInstanceUID"): _reason_of(item) for item in items
    }


def _reason_of(item: Dataset) -> int:
    reason = _decoded(lambda: item.get("FailureReason"))
    return reason if isinstance(reason, int) else PROCESSING_FAILURE
