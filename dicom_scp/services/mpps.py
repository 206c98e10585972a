"""Modality Performed Procedure Step as SCP (PS3.4 F.7): N-CREATE and N-SET.

A step is created IN PROGRESS, is changed by the machine that created it, and is fixed
once COMPLETED or DISCONTINUED. Demanded is what is of type 1, since studies and
conclusions hang on it; what is of type 2 may be left out altogether, as machines do,
and so may the end's date and the protocol's name. There is no N-GET: a step names the
patient, and a machine knows what it said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)
from pynetdicom import evt
from pynetdicom.dsutils import decode
from pynetdicom.presentation import build_context

from dicom_scp.receiving.encoding import check_whole
from dicom_scp.receiving.intake import json_header, patient_identity
from dicom_scp.receiving.peers import Peer, ServiceName
from dicom_scp.receiving.scp import contexts_for
from dicom_scp.services.service import Service, caller_of
from node.charset import unicode_header
from node.domain.completion import StepStatus
from node.domain.errors import ErrorKind, NodeError
from node.workflow import mpps
from node.workflow.mpps import Scheduled, ToldStep
from node.workflow.orders import RequestIds

if TYPE_CHECKING:
    from dicom_scp.receiving.intake import StoreThread
    from node.store.steps import JsonModel

log = structlog.get_logger(__name__)

PERFORMED_STEP: Final = UID("1.2.840.10008.3.1.2.3.3")
SUCCESS: Final = 0x0000
INVALID_VALUE, NO_SUCH_CLASS = 0x0106, 0x0118
MISSING, EMPTY = 0x0120, 0x0121
PROCESSING_FAILURE: Final = 0x0110
NO_LONGER_UPDATED: Final = 0xA506  # Error ID (0000,0903), PS3.4 Table F.7.2-2
MOST_IMAGES: Final = 20_000
MOST_STUDIES: Final = 64
_STORE_TIMEOUT_S: Final = 30.0
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
MPPS_STATUS: Final[Mapping[ErrorKind, int]] = {
    ErrorKind.CONFLICT: 0x0111,  # Duplicate SOP Instance
    ErrorKind.NOT_FOUND: 0x0112,  # No such SOP Instance
    ErrorKind.FORBIDDEN: 0x0124,  # Not authorized
    ErrorKind.EXHAUSTED: 0x0213,  # Resource limitation
    ErrorKind.UNAVAILABLE: 0x0213,
}

# Type 1 of an N-CREATE (PS3.4 Table F.7.2-1), the state apart.
DEMANDED: Final = (
    "ScheduledStepAttributesSequence",
    "PerformedProcedureStepID",
    "PerformedStationAETitle",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "Modality",
)
# Not allowed in an N-SET. Some machines repeat them all the same: unchanged they are
# let pass, a change is refused.
FIXED: Final = (
    *DEMANDED,
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PerformedStationName",
    "PerformedLocation",
    "StudyID",
)


class Refused(NodeError):
    """A message that is answered with `status`."""

    def __init__(self, message: str, status: int, keyword: str | None = None) -> None:
        super().__init__(message, ErrorKind.INVALID, expression=keyword)
        self.status = status


def mpps_service() -> Service:
    """Return the Modality Performed Procedure Step SCP."""
    syntaxes = [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
    ]
    return Service(
        ServiceName.MPPS,
        (build_context(PERFORMED_STEP, list(syntaxes)),),
        {evt.EVT_N_CREATE: _created, evt.EVT_N_SET: _set},
    )


def _created(
    event: evt.Event, thread: StoreThread
) -> tuple[int | Dataset, Dataset | None]:
    """Answer an N-CREATE; 0x0000 means that the step is on disk."""
    request: Any = event.request
    given = request.AffectedSOPInstanceUID
    uid = str(given) if given else str(generate_uid())
    peer = caller_of(event).peer

    def begin() -> None:
        _check_class(request.AffectedSOPClassUID)
        _check_uid(uid, "AffectedSOPInstanceUID")
        told = _begun(_dataset(request.AttributeList, event), peer)
        thread.call(
            mpps.begin_step(
                thread.store,
                sop_instance_uid=uid,
                calling_ae=peer.ae_title,
                told=told,
            ),
            timeout_s=_STORE_TIMEOUT_S,
        )

    status = _answered(event, thread, uid, "create", begin)
    if given or status != SUCCESS:
        return status, None
    answer = Dataset()  # PS3.7 10.1.5.1.4: it left the UID to us
    answer.AffectedSOPInstanceUID = uid
    return status, answer


def _set(event: evt.Event, thread: StoreThread) -> tuple[int | Dataset, Dataset | None]:
    """Answer an N-SET; 0x0000 means that the change is on disk."""
    request: Any = event.request
    uid = str(request.RequestedSOPInstanceUID)
    peer = caller_of(event).peer

    def change() -> None:
        _check_class(request.RequestedSOPClassUID)
        _check_uid(uid, "RequestedSOPInstanceUID")
        told = _dataset(request.ModificationList, event)
        thread.call(
            mpps.change_step(
                thread.store,
                sop_instance_uid=uid,
                calling_ae=peer.ae_title,
                change=lambda known: _changed(known, told, peer),
            ),
            timeout_s=_STORE_TIMEOUT_S,
        )

    return _answered(event, thread, uid, "update", change), None


def _answered(
    event: evt.Event,
    thread: StoreThread,
    uid: str,
    action: str,
    act: Callable[[], None],
) -> int | Dataset:
    """Return the status of what `act` did; what is refused is audited."""
    try:
        act()
    except Exception as error:
        caller = caller_of(event)
        named = error.message if isinstance(error, NodeError) else "unforeseen failure"
        shown = uid if _UID.fullmatch(uid) else ""
        log.warning(
            "mpps.refused",
            calling_ae=caller.calling_ae,
            sop_instance_uid=shown,
            reason=named,
            error=type(error).__name__,
        )
        thread.later(
            mpps.refuse_step(
                thread.store,
                sop_instance_uid=shown,
                calling_ae=caller.peer.ae_title,
                action=action,
                reason=named,
            )
        )
        return _failure(error)
    return SUCCESS


def _failure(error: Exception) -> Dataset:
    status = Dataset()
    status.Status = PROCESSING_FAILURE
    status.ErrorComment = "see the node's log"
    if isinstance(error, NodeError):
        status.ErrorComment = error.message[:64]
        status.Status = MPPS_STATUS.get(error.kind, PROCESSING_FAILURE)
        if isinstance(error, Refused):
            status.Status = error.status
        elif error.kind is ErrorKind.RULE:
            status.ErrorID = NO_LONGER_UPDATED
    return status


# -- what a step says ------------------------------------------------------------------


def _begun(step: Dataset, peer: Peer) -> ToldStep:
    """Return what an N-CREATE says; Refused when it breaks a rule."""
    if _state(step) is not StepStatus.IN_PROGRESS:
        raise Refused(
            "a step is created IN PROGRESS",
            INVALID_VALUE,
            "PerformedProcedureStepStatus",
        )
    for keyword in DEMANDED:
        _demand(step, keyword)
    return _told(step, peer)


def _changed(known: JsonModel, change: Dataset, peer: Peer) -> ToldStep:
    """Return what a step says after an N-SET; Refused when it breaks a rule."""
    told = orjson.loads(json_header(change))
    for keyword in FIXED:
        tag = f"{tag_for_keyword(keyword):08X}"
        if tag in told and told[tag] != known.get(tag):
            raise Refused(
                f"{keyword} is not changed by an N-SET", INVALID_VALUE, keyword
            )
    after = Dataset.from_json({**known, **told})
    if _state(after) is StepStatus.COMPLETED:
        _demand(after, "PerformedSeriesSequence")
    return _told(after, peer)


def _told(step: Dataset, peer: Peer) -> ToldStep:
    images, not_taken = _images(step, peer)
    return ToldStep(
        status=_state(step),
        patient=patient_identity(step),
        scheduled=tuple(_scheduled(step)),
        images=images,
        not_taken=not_taken,
        body=orjson.loads(json_header(step)),
    )


def _state(step: Dataset) -> StepStatus:
    keyword = "PerformedProcedureStepStatus"
    _demand(step, keyword)
    try:
        return StepStatus(_text(step, keyword))
    except ValueError:
        raise Refused(
            f"{keyword} is none of its terms", INVALID_VALUE, keyword
        ) from None


def _scheduled(step: Dataset) -> Iterator[Scheduled]:
    items = _items(step, "ScheduledStepAttributesSequence")
    if len(items) > MOST_STUDIES:
        raise Refused("too many scheduled steps", INVALID_VALUE)
    for item in items:
        _demand(item, "StudyInstanceUID")
        ids = RequestIds(
            accession_number=_text(item, "AccessionNumber"),
            requested_procedure_id=_text(item, "RequestedProcedureID"),
            step_id=_text(item, "ScheduledProcedureStepID"),
        )
        uid = _check_uid(_text(item, "StudyInstanceUID"), "StudyInstanceUID")
        yield Scheduled(uid, ids)


def _images(step: Dataset, peer: Peer) -> tuple[tuple[str, ...], int]:
    """Return what the step lists and we store, and how much it lists beside.

    Nobody waits for an object of a kind that this machine cannot send to us.
    """
    taken = {str(context.abstract_syntax) for context in contexts_for(peer)}
    if ServiceName.STORE not in peer.services:  # its images come under another title
        taken = {str(c.abstract_syntax) for c in contexts_for(Peer(peer.ae_title))}
    listed = dict(_references(step))
    if len(listed) > MOST_IMAGES:
        raise Refused("too many images in one step", INVALID_VALUE)
    images = tuple(uid for uid, sop_class in listed.items() if sop_class in taken)
    return images, len(listed) - len(images)


def _references(step: Dataset) -> Iterator[tuple[str, str]]:
    """Yield (SOP Instance UID, SOP Class UID) of all that the series list."""
    for series in _items(step, "PerformedSeriesSequence"):
        _demand(series, "SeriesInstanceUID")
        for keyword in (
            "ReferencedImageSequence",
            "ReferencedNonImageCompositeSOPInstanceSequence",
        ):
            for item in _items(series, keyword):
                _demand(item, "ReferencedSOPInstanceUID")
                told = _text(item, "ReferencedSOPInstanceUID")
                uid = _check_uid(told, "ReferencedSOPInstanceUID")
                yield uid, _text(item, "ReferencedSOPClassUID")


# -- attributes ------------------------------------------------------------------------


def _dataset(raw: BytesIO | None, event: evt.Event) -> Dataset:
    """Return an attribute list in Unicode; Refused when it cannot be read."""
    if raw is None:
        raise Refused("there is no attribute list", MISSING)
    syntax = UID(event.context.transfer_syntax)
    data = raw.getvalue()
    try:
        check_whole(memoryview(data), len(data), b"", str(syntax))
        raw.seek(0)
        decoded = decode(
            raw, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated
        )
        return unicode_header(decoded)
    except Exception:
        raise Refused("the attribute list cannot be read", PROCESSING_FAILURE) from None


def _demand(dataset: Dataset, keyword: str) -> None:
    if keyword not in dataset:
        raise Refused(f"{keyword} is missing", MISSING, keyword)
    is_sequence = dataset[keyword].VR == "SQ"
    if not (_items(dataset, keyword) if is_sequence else _text(dataset, keyword)):
        raise Refused(f"{keyword} is empty", EMPTY, keyword)


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    if keyword not in dataset:
        return []
    element = dataset[keyword]
    if element.VR != "SQ":
        raise Refused(f"{keyword} is no sequence", INVALID_VALUE, keyword)
    return list(element.value or ())


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def _check_class(told: object) -> None:
    if str(told) != PERFORMED_STEP:
        raise Refused("not the SOP Class of its presentation context", NO_SUCH_CLASS)


def _check_uid(value: str, keyword: str) -> str:
    if len(value) > 64 or _UID.fullmatch(value) is None:
        raise Refused(f"{keyword} is not a UID", INVALID_VALUE, keyword)
    return value
