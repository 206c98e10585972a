"""The job `file_anew`: images of a void study as new instances of the right woman's.

IHE RAD IOCM corrects a wrong worklist entry so: the old instances are rejected, new
ones with UIDs of their own carry the right patient. The stored objects stay as they
were acknowledged. Pixels are the same bytes; of the header all that belongs to a person
or an order is replaced or left out.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BufferedReader
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast
from uuid import uuid5

import structlog
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag

from dicom_scp.receiving.intake import describe, file_meta
from dicom_scp.receiving.traces import traces_of
from dicom_scp.receiving.upper_layer import StoreRequest
from node.charset import unicode_header
from node.domain.study import Origin, PatientIdentity
from node.imaging import AroundPixels, RandomAccess, ReaderFile, read_part10
from node.store import identities, moves, orders, reports, studies
from node.store.overlays import overlay_name
from node.workflow.intake import (
    Arrival,
    Received,
    keep_pieces,
    receive_instance,
)

if TYPE_CHECKING:
    from node.domain.order import Step
    from node.store.moves import Move
    from node.store.store import Store
    from node.store.studies import StoredInstance

log = structlog.get_logger(__name__)

_PATIENT_GROUP: Final = 0x0010
_PIXEL_GROUP: Final = 0x7FE0
_PIXEL_DATA: Final = 0x7FE00010
# What names a person, a visit or an order outside the patient's group.
_OF_THE_OTHER: Final = (
    "AccessionNumber",
    "AdmissionID",
    "CurrentPatientLocation",
    "FillerOrderNumberImagingServiceRequest",
    "ImageComments",
    "IssuerOfAccessionNumberSequence",
    "IssuerOfAdmissionIDSequence",
    "OrderFillerIdentifierSequence",
    "OrderPlacerIdentifierSequence",
    "PerformedProcedureStepID",
    "PlacerOrderNumberImagingServiceRequest",
    "ReasonForTheRequestedProcedure",
    "ReferencedPatientSequence",
    "ReferencedPerformedProcedureStepSequence",
    "ReferencedRequestSequence",
    "ReferencedStudySequence",
    "ReferringPhysicianName",
    "RequestAttributesSequence",
    "RequestedProcedureID",
    "RequestingPhysician",
    "ServiceEpisodeID",
    "StudyID",
    "VisitComments",
)
_EMPTY: Final = ("AccessionNumber", "ReferringPhysicianName", "StudyID")


@dataclass(frozen=True)
class _Right:
    """Whose the images are, and which order they answer."""

    move: Move
    patient: PatientIdentity
    step: Step | None


async def file_anew(store: Store, payload: Mapping[str, Any], *, system: str) -> None:
    """Store the images of the void study `payload` {study_instance_uid} anew.

    `system` is who changed them (Modifying System). Runs again without harm: UIDs and
    times follow from the move, what is here already stays.
    """
    async with store.db.transaction() as tx:
        move = await moves.of_study(tx, store, str(payload["study_instance_uid"]))
        if move is None:
            return
        patient = await identities.patient(tx, store, move.to_patient)
        listed = (
            await orders.find(tx, store, move.order_id)
            if move.order_id is not None
            else None
        )
        step = listed.order.step if listed is not None else None
        instances = await studies.instances_of(
            tx, store, move.study_instance_uid, Origin.RECEIVED
        )
        report = await reports.read(
            tx, store, reports.report_id_for(move.study_instance_uid)
        )
    right, uids = _Right(move, patient, step), _new_uids(move, instances)
    for instance in instances:
        await _file(store, instance, right, uids, system)
    # Pictures of the void reading lie under the key of the woman whom it names.
    pictures = {
        h.sop_instance_uid for v in report.versions for h in v.findings.heat_maps
    }
    for uid in sorted(pictures):
        await asyncio.to_thread(store.blobs.delete, overlay_name(uid))
    log.info("filing.done", filed_as=move.filed_as, instances=len(instances))


def _new_uids(move: Move, instances: Sequence[StoredInstance]) -> dict[str, str]:
    """Return the new UID of everything in the study: the same at every try."""
    uids = {move.study_instance_uid: move.filed_as}
    for instance in instances:
        for uid in (instance.series_instance_uid, instance.sop_instance_uid):
            uids[uid] = f"2.25.{uuid5(move.owner, uid).int}"
    return uids


async def _file(
    store: Store,
    instance: StoredInstance,
    right: _Right,
    uids: Mapping[str, str],
    system: str,
) -> None:
    arrival = await asyncio.to_thread(_rewrite, store, instance, right, uids, system)
    received = None
    try:
        received = await receive_instance(store, arrival)
    finally:
        if received is not Received.STORED:
            name = arrival.instance.blob_name
            await asyncio.to_thread(store.blobs.delete, name)


def _rewrite(
    store: Store,
    instance: StoredInstance,
    right: _Right,
    uids: Mapping[str, str],
    system: str,
) -> Arrival:
    """Return the new instance with its object durable. Blocks."""
    uid = uids[instance.sop_instance_uid]
    request = StoreRequest(
        message_id=0,
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=uid,
        abstract_syntax=instance.sop_class_uid,
        transfer_syntax_uid=instance.transfer_syntax_uid,
        calling_ae=instance.calling_ae,
        address="",
        association="",
    )
    with studies.open_blob(store, instance) as reader:
        pieces = corrected_pieces(
            reader, right.patient, right.step, uids, system=system, at=right.move.at
        )
        kept = keep_pieces(store, uid, file_meta(request), pieces)
    try:
        with store.blobs.reader(
            kept.blob_name, key=kept.key, associated_data=studies.associated_data(uid)
        ) as reader:
            header, frames = read_part10(
                cast(BinaryIO, BufferedReader(ReaderFile(reader)))
            )
        described = describe(
            header,
            request,
            frames=frames,
            blob_name=kept.blob_name,
            size=kept.size,
            sha256=kept.sha256,
        )
    except BaseException:
        store.blobs.delete(kept.blob_name)
        raise
    return Arrival(described, kept.key)


def corrected_pieces(
    reader: RandomAccess,
    patient: PatientIdentity,
    step: Step | None,
    uids: Mapping[str, str],
    *,
    system: str,
    at: datetime,
) -> Iterator[bytes]:
    """Yield a data set with the same pixels, of this patient, under new UIDs.

    It is encoded as the Part 10 file that `reader` reads; pixels go through as they
    are stored, a piece at a time. What was changed is named in Original Attributes
    Sequence (PS3.3 C.12.1.1.9), without its values: they are another woman's.
    """
    source = AroundPixels.open(reader)
    stored = source.data_set
    header = unicode_header(stored)
    _renumber(header, uids)
    traces = traces_of(header, uids)
    changed = [*_without_the_other(header), *traces.clear(header)]
    _name(header, patient, step)
    _say_what_changed(header, changed, system, at)
    for element in stored.group_dataset(_PIXEL_GROUP):
        header.add(element)
    implicit, little = stored.original_encoding
    before, after = (
        _encoded(part, bool(implicit), little is not False)
        for part in (header[:_PIXEL_DATA], header[_PIXEL_DATA:])
    )
    pieces = chain([before], source.chunks(), [after])
    syntax = stored.file_meta.TransferSyntaxUID
    yield from _deflated(pieces) if syntax.is_deflated else pieces


def _encoded(data_set: Dataset, implicit: bool, little: bool) -> bytes:
    file = DicomBytesIO()
    file.is_implicit_VR, file.is_little_endian = implicit, little
    write_dataset(file, data_set)
    return file.getvalue()


def _deflated(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces as one deflated stream of even length (PS3.5 A.5)."""
    packer, length = zlib.compressobj(wbits=-zlib.MAX_WBITS), 0
    for piece in chain(
        map(packer.compress, pieces), map(packer.flush, [zlib.Z_FINISH])
    ):
        length += len(piece)
        yield piece
    yield b"\0" * (length % 2)


def _renumber(dataset: Dataset, uids: Mapping[str, str]) -> None:
    for element in dataset:
        if element.VR == "UI" and element.VM:
            many = element.VM > 1
            told = [uids.get(str(uid), str(uid)) for uid in _listed(element.value)]
            element.value = told if many else told[0]
        elif element.VR == "SQ":
            for item in element.value:
                _renumber(item, uids)


def _listed(value: Any) -> Iterator[Any]:
    yield from (
        value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    )


def _without_the_other(header: Dataset) -> list[int]:
    """Take out all that belongs to the other woman; return the tags that had values."""
    of_person = [element.tag for element in header.group_dataset(_PATIENT_GROUP)]
    of_order = [header.data_element(k) for k in _OF_THE_OTHER if k in header]
    tags = [*of_person, *(e.tag for e in of_order if e is not None)]
    had = [int(tag) for tag in tags if header[tag].value not in (None, "", b"", [])]
    for tag in tags:
        del header[tag]
    for keyword in _EMPTY:
        setattr(header, keyword, "")
    return had


def _name(header: Dataset, patient: PatientIdentity, step: Step | None) -> None:
    header.PatientName = patient.name
    header.PatientID = patient.patient_id
    if patient.issuer:
        header.IssuerOfPatientID = patient.issuer
    born = patient.birth_date
    header.PatientBirthDate = "" if born is None else born.strftime("%Y%m%d")
    header.PatientSex = patient.sex or ""
    if step is not None:
        header.AccessionNumber = step.accession_number
        header.ReferringPhysicianName = step.referring_physician


def _say_what_changed(
    header: Dataset, changed: Sequence[int], system: str, at: datetime
) -> None:
    before = Dataset()
    for tag in changed:
        if not Tag(tag).is_private:  # would need its maker's block beside it
            before.add_new(tag, _vr(tag), None)
    item = Dataset()
    item.ModifiedAttributesSequence = [before]
    item.AttributeModificationDateTime = at.strftime("%Y%m%d%H%M%S.%f+0000")
    item.ModifyingSystem = system[:64]
    item.SourceOfPreviousValues = ""
    item.ReasonForTheAttributeModification = "CORRECT"
    known = list(header.get("OriginalAttributesSequence") or [])
    # Earlier items hold values of whoever was named before.
    for one in known:
        for old in one.get("ModifiedAttributesSequence") or []:
            for element in old:
                element.clear()
    header.OriginalAttributesSequence = [*known, item]


def _vr(tag: int) -> str:
    try:
        return str(dictionary_VR(tag)).partition(" or ")[0]
    except KeyError:
        return "UN"
