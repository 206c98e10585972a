"""Key Object Selections (PS3.3 C.17.6, TID 2010): what counts, what is withdrawn.

A rejection follows IHE IOCM: the title tells archives to show the objects that it
names no more; nothing is deleted, here or there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset

from dicom_scp.results.sr import (
    MANUFACTURER,
    Equipment,
    complete_header,
    device_observer,
    person_name,
    person_observer,
    stamp,
)
from dicom_scp.results.tid1500 import coded
from node.charset import UTF8
from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import ImageReference
from node.domain.report import AuthorKind, ReportStatus, ReportVersion
from node.domain.uids import result_uid

KEY_IMAGES: Final = "key-images"
REJECTION: Final = "rejection"
WRONG_PATIENT: Final = "wrong-patient"

_SERIES_NUMBER: Final = {AuthorKind.ALGORITHM: 9300, AuthorKind.PHYSICIAN: 9600}
_REJECTION_SERIES_NUMBER: Final = 9900
_WRONG_PATIENT_SERIES_NUMBER: Final = 9950
_SERIES: Final = {
    AuthorKind.ALGORITHM: "AI key images (unverified)",
    AuthorKind.PHYSICIAN: "Key images of the verified report",
}
_WHOSE: Final = {
    (AuthorKind.ALGORITHM, "zh-CN"): "AI 选取的图像，未经医师核实",
    (AuthorKind.ALGORITHM, "en"): "Chosen by AI, not verified by a physician",
    (AuthorKind.PHYSICIAN, "zh-CN"): "医师签发报告所引用的图像",
    (AuthorKind.PHYSICIAN, "en"): "Images that the signed report refers to",
}
_WITHDRAWN: Final = {
    "zh-CN": "报告已撤销，请勿使用。原因：{reason}",
    "en": "The report is withdrawn, do not use it. Reason: {reason}",
}
_OTHER_PATIENT: Final = {
    "zh-CN": "图像归入了错误的患者，请勿使用，已重新归档",
    "en": "The images were filed under the wrong patient, do not use them.",
}


def build_key_images(
    version: ReportVersion,
    sources: Sequence[Dataset],
    *,
    report_id: UUID,
    equipment: Equipment,
) -> Dataset | None:
    """Return the frames that the lesions of a version were drawn on, or None if none.

    `sources` are the Unicode headers of the study's images. The algorithm's choice
    and the physician's lie in series of their own, and say whose they are.
    """
    by_uid = {str(source.SOPInstanceUID): source for source in sources}
    frames: dict[str, set[int]] = {}
    for image in _images(version):
        if "Rows" in by_uid.get(image.sop_instance_uid, ()):
            frames.setdefault(image.sop_instance_uid, set()).add(image.frame)
    if not frames:
        return None
    kind = version.author.kind
    document = _document(
        version,
        [by_uid[uid] for uid in frames],
        coded(lexicon.OF_INTEREST),
        _WHOSE[kind, equipment.language],
        report_id=report_id,
        equipment=equipment,
        name=KEY_IMAGES,
        series=(_SERIES_NUMBER[kind], _SERIES[kind]),
    )
    for item in document.ContentSequence:
        if item.ValueType == "IMAGE":
            reference = item.ReferencedSOPSequence[0]
            source = by_uid[str(reference.ReferencedSOPInstanceUID)]
            if int(source.get("NumberOfFrames") or 1) > 1:
                shown = sorted(frames[str(source.SOPInstanceUID)])
                reference.ReferencedFrameNumber = shown
    return document


def build_rejection(
    version: ReportVersion,
    withdrawn: Sequence[Dataset],
    *,
    report_id: UUID,
    equipment: Equipment,
) -> Dataset:
    """Return the note that rejects `withdrawn` for patient safety (DCM 113037).

    `withdrawn` are the Unicode headers of everything that the node made of the
    report. The images of the machine are not rejected: they show what they show.
    """
    if version.status is not ReportStatus.ENTERED_IN_ERROR:
        raise NodeError("only a withdrawn report is rejected", ErrorKind.RULE)
    return _document(
        version,
        withdrawn,
        coded(lexicon.REJECTED_FOR_PATIENT_SAFETY),
        _WITHDRAWN[equipment.language].format(reason=version.reason),
        report_id=report_id,
        equipment=equipment,
        name=REJECTION,
        series=(_REJECTION_SERIES_NUMBER, "Rejected for patient safety"),
    )


def build_wrong_patient(
    version: ReportVersion,
    images: Sequence[Dataset],
    *,
    report_id: UUID,
    equipment: Equipment,
) -> Dataset:
    """Return the note that rejects `images` as filed under the wrong patient.

    DCM 113038: they came by a wrong worklist entry, and come again as instances of
    another study (IHE RAD IOCM). The note names whom they name, to be filed with them.
    """
    return _document(
        version,
        images,
        coded(lexicon.INCORRECT_WORKLIST_ENTRY),
        _OTHER_PATIENT[equipment.language],
        report_id=report_id,
        equipment=equipment,
        name=WRONG_PATIENT,
        series=(_WRONG_PATIENT_SERIES_NUMBER, "Incorrect worklist entry"),
    )


def _images(version: ReportVersion) -> list[ImageReference]:
    return [
        lesion.image for lesion in version.findings.lesions if lesion.image is not None
    ]


def _document(
    version: ReportVersion,
    objects: Sequence[Dataset],
    title: CodedConcept,
    description: str,
    *,
    report_id: UUID,
    equipment: Equipment,
    name: str,
    series: tuple[int, str],
) -> Dataset:
    number, series_description = series
    first = complete_header(objects[0])
    document: Dataset = KeyObjectSelectionDocument(
        evidence=[first, *objects[1:]],
        content=KeyObjectSelection(
            document_title=title,
            referenced_objects=objects,
            description=description,
            **_observer(version, equipment),
        ),
        series_instance_uid=result_uid(report_id, version.number, f"{name}/series"),
        series_number=number + version.number,
        sop_instance_uid=result_uid(report_id, version.number, name),
        instance_number=1,
        manufacturer=MANUFACTURER,
        series_description=series_description,
        specific_character_set=UTF8,
    )
    stamp(document, version, equipment)
    equipment.sign(document)
    if first.get("StudyDescription"):
        document.StudyDescription = first.StudyDescription
    return document


def _observer(version: ReportVersion, equipment: Equipment) -> dict[str, Any]:
    if version.author.kind is AuthorKind.ALGORITHM:
        return {"observer_device_context": device_observer(equipment)}
    name = person_name(version.author.display)
    return {"observer_person_context": person_observer(name, equipment)}
