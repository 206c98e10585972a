"""Report versions as Structured Reports: TID 1500, the AI's and the physician's.

Pure builders. What OHIF needs so as not to stop (its SR class handler, read in
source) holds for every object here: title 126000, an Image Library with a group,
tracking identifier and UID in every measurement group, no NUM in a group without
SCOORD, and AI and verified documents in series of their own.

Objects are the same bytes whenever they are built: UIDs follow from the report
version, and every date in them is the version's own.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from io import BytesIO
from typing import Any, Final
from uuid import UUID, uuid5

from highdicom.sr import (
    AlgorithmIdentification,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    ObservationContext,
    ObserverContext,
    PersonObserverIdentifyingAttributes,
)
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
)

from dicom_scp.receiving.intake import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from dicom_scp.results.requests import referenced_requests
from dicom_scp.results.tid1500 import GroupWriter, build_content, coded, explanation_of
from node.charset import UTF8
from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import STUDY_INCOMPLETE
from node.domain.report import Author, AuthorKind, ReportVersion
from node.domain.uids import result_uid

MANUFACTURER: Final = "sononode project"
MODEL: Final = "sononode"

_INSTALLATIONS: Final = UUID("0b9d1c52-7c0e-4a86-9a3e-3f1c5a0d7e24")

AI_SR: Final = "ai-sr"
VERIFIED_SR: Final = "verified-sr"
SR_CLASSES: Final = (
    str(Comprehensive3DSRStorage),
    str(ComprehensiveSRStorage),
    str(EnhancedSRStorage),
)
"""What the content is legal in, richest first: no SCOORD3D, no by-reference items."""

_AI_SERIES_NUMBER, _VERIFIED_SERIES_NUMBER = 9000, 9500
_NOT_READ_SUMMARY: Final = {
    "zh-CN": "{read} 幅图像已判读，{not_read} 幅未判读",
    "en": "{read} images read by AI, {not_read} not read",
}
_INCOMPLETE: Final = {"zh-CN": "；检查不完整", "en": "; study incomplete"}
_FORMS: Final = {
    "DA": re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"),
    "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?"),
}
_TYPE_2: Final = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


@dataclass(frozen=True)
class Equipment:
    """Who writes the objects: this installation, at its site.

    `device_uid` names the installation as a device observer; `software_version`
    is the product's; `timezone_offset` is Timezone Offset From UTC as in `+0800`;
    `language` is a key of `lexicon.LANGUAGES`.
    """

    institution_name: str
    device_uid: str
    software_version: str
    language: str = "zh-CN"
    timezone_offset: str = "+0800"
    serial_number: str = "NODE-1"

    @classmethod
    def at_site(
        cls,
        institution_name: str,
        ae_title: str,
        language: str,
        timezone_offset: str,
        *,
        software_version: str,
    ) -> Equipment:
        """Return the installation with its AE title at a site, always the same one."""
        name = uuid5(_INSTALLATIONS, f"{institution_name}/{ae_title}")
        return cls(
            institution_name,
            f"2.25.{name.int}",
            software_version,
            language,
            timezone_offset,
        )

    def sign(self, dataset: Dataset) -> None:
        """Write who made the object (PS3.3 C.7.5.1, C.7.5.2), the same in every one."""
        dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, MODEL
        dataset.DeviceSerialNumber = self.serial_number
        dataset.SoftwareVersions = self.software_version
        dataset.InstitutionName = self.institution_name

    def local(self, moment: datetime) -> datetime:
        """Return `moment` on the site's clock, as DICOM dates are written."""
        sign = -1 if self.timezone_offset.startswith("-") else 1
        hours, minutes = (
            int(self.timezone_offset[1:3]),
            int(self.timezone_offset[3:5]),
        )
        offset = sign * timedelta(hours=hours, minutes=minutes)
        return moment.astimezone(timezone(offset))


@dataclass(frozen=True)
class Predecessor:
    """The document that a verified report replaces (Predecessor Documents Sequence)."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


def predecessor_of(
    study_instance_uid: str, report_id: UUID, version: int, kind: str
) -> Predecessor:
    """Return how the node itself keeps the SR of an earlier version."""
    return Predecessor(
        study_instance_uid=study_instance_uid,
        series_instance_uid=result_uid(report_id, version, f"{kind}/series"),
        sop_class_uid=SR_CLASSES[0],
        sop_instance_uid=result_uid(report_id, version, kind),
    )


def algorithm_of(author: Author) -> tuple[str, str]:
    """Return (name, version) of the algorithm that wrote a version.

    The display of its Device is `name version+sha256.<weights>`; without a
    version in it the Device id tells the weights apart.
    """
    name, _, version = author.display.rpartition(" ")
    if name and version[:1].isdigit():
        return name, version
    return author.display, author.id


# -- documents ----------------------------------------------------------------


def build_ai_sr(
    version: ReportVersion,
    sources: Sequence[Dataset],
    *,
    report_id: UUID,
    equipment: Equipment,
    heat_maps: Sequence[Dataset] = (),
    weights_sha256: str | None = None,
    predecessor: Predecessor | None = None,
) -> Dataset:
    """Return the algorithm's draft: UNVERIFIED, PRELIMINARY, COMPLETE or PARTIAL.

    `sources` are the Unicode headers of the study's images, `heat_maps` the
    Secondary Captures that explain its lesions. `weights_sha256` of the model goes
    into Algorithm Parameters (TID 4019): the version has its beginning only.
    `predecessor` is the draft that a reading with late images replaces.

    A draft that read nothing is still a document: silence would look like a study
    without findings.
    """
    if version.author.kind is not AuthorKind.ALGORITHM:
        raise NodeError("only the algorithm's draft becomes an AI SR", ErrorKind.RULE)
    findings = version.findings
    explained = {str(h.SOPInstanceUID): h for h in heat_maps}
    algorithm = AlgorithmIdentification(
        *algorithm_of(version.author),
        parameters=[f"weights SHA-256 {weights_sha256}"] if weights_sha256 else None,
        family=coded(lexicon.ARTIFICIAL_INTELLIGENCE),
        manufacturer=MANUFACTURER,
    )
    writer = GroupWriter(report_id, version, sources, equipment.language, algorithm)
    groups = [
        writer.lesion(n, lesion, explanation_of(findings, lesion, explained))
        for n, lesion in enumerate(findings.lesions, start=1)
    ]
    groups.append(writer.examination())
    groups.extend(writer.not_read(n, i) for n, i in enumerate(findings.not_read, 1))
    document = _document(
        version,
        sources,
        groups,
        report_id=report_id,
        equipment=equipment,
        kind=AI_SR,
        observer=ObservationContext(observer_device_context=device_observer(equipment)),
        evidence=[*sources, *heat_maps],
        is_complete=not findings.not_read,
        predecessor=predecessor,
    )
    if findings.not_read:
        images = {str(s.SOPInstanceUID) for s in sources}
        left = len({n.sop_instance_uid for n in findings.not_read} & images)
        told = _NOT_READ_SUMMARY[equipment.language].format(
            read=len(images) - left, not_read=left
        )
        if any(n.reason == STUDY_INCOMPLETE for n in findings.not_read):
            told += _INCOMPLETE[equipment.language]
        document.CompletionFlagDescription = told
    return document


def build_verified_sr(
    version: ReportVersion,
    predecessor: Predecessor,
    sources: Sequence[Dataset],
    *,
    report_id: UUID,
    equipment: Equipment,
) -> Dataset:
    """Return the signed report: COMPLETE, VERIFIED, FINAL, with its verifier.

    It replaces `predecessor`: the AI's document at first, the last verified one
    for a change after sign-off. The physician answers for all of it, so it holds
    no probability and no algorithm; those stay in the AI's document, and the
    Tracking UIDs tie the lesions together.
    """
    if not version.signed or version.author.kind is not AuthorKind.PHYSICIAN:
        raise NodeError("only a signed version becomes a verified SR", ErrorKind.RULE)
    writer = GroupWriter(report_id, version, sources, equipment.language, None)
    groups = [
        writer.lesion(n, lesion, None)
        for n, lesion in enumerate(version.findings.lesions, start=1)
    ]
    groups.append(writer.examination())
    verifier = person_name(version.author.display)
    return _document(
        version,
        sources,
        groups,
        report_id=report_id,
        equipment=equipment,
        kind=VERIFIED_SR,
        observer=ObservationContext(
            observer_person_context=person_observer(verifier, equipment)
        ),
        evidence=sources,
        is_complete=True,
        verifier=verifier,
        predecessor=predecessor,
    )


def as_sop_class(document: Dataset, sop_class_uid: str) -> Dataset:
    """Return the same document under a lesser SR class, for a PACS without the richest.

    It gets a UID of its own, as two classes cannot share one, and names its
    original in Identical Documents Sequence. Its predecessor went to the same
    PACS in the same way, so that reference follows.
    """
    if sop_class_uid not in SR_CLASSES:
        raise NodeError(
            f"{sop_class_uid} is not a class of our documents", ErrorKind.UNSUPPORTED
        )
    if str(document.SOPClassUID) == sop_class_uid:
        return document
    other = copy.deepcopy(document)
    other.SOPClassUID = UID(sop_class_uid)
    other.SOPInstanceUID = UID(_uid_under(document.SOPInstanceUID, sop_class_uid))
    for item in _named_documents(other):
        _rename(item, sop_class_uid)
    other.IdenticalDocumentsSequence = [
        _reference(
            Predecessor(
                str(document.StudyInstanceUID),
                str(document.SeriesInstanceUID),
                str(document.SOPClassUID),
                str(document.SOPInstanceUID),
            )
        )
    ]
    return other


def names_documents(dataset: Dataset) -> bool:
    """Tell whether an object, itself no document, refers to documents of ours."""
    return str(dataset.SOPClassUID) not in SR_CLASSES and any(
        True for _ in _named_documents(dataset)
    )


def naming_documents_as(dataset: Dataset, sop_class_uid: str) -> Dataset:
    """Return an object whose references name our documents under a lesser SR class.

    For a PACS that has them under that class (`as_sop_class`): a rejection that
    names another UID rejects nothing. The object gets a UID of its own.
    """
    if sop_class_uid == SR_CLASSES[0] or not names_documents(dataset):
        return dataset
    other = copy.deepcopy(dataset)
    other.SOPInstanceUID = UID(_uid_under(dataset.SOPInstanceUID, sop_class_uid))
    for item in _named_documents(other):
        _rename(item, sop_class_uid)
    return other


def _named_documents(dataset: Dataset) -> Iterator[Dataset]:
    """Yield every item, however deep, that refers to a document of ours."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                if item.get("ReferencedSOPClassUID") in SR_CLASSES:
                    yield item
                yield from _named_documents(item)


def _rename(item: Dataset, sop_class_uid: str) -> None:
    known_as = str(item.ReferencedSOPInstanceUID)
    item.ReferencedSOPInstanceUID = _uid_under(known_as, sop_class_uid)
    item.ReferencedSOPClassUID = sop_class_uid


def to_part10(dataset: Dataset) -> bytes:
    """Return `dataset` as a Part 10 file, Explicit VR Little Endian, with our meta."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    dataset.file_meta = meta
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def person_name(display: str) -> str:
    """Return `display` as a PN with at least one caret (PS3.5 6.2.1).

    A Chinese name goes whole into the first component, where every viewer shows
    it: where the family name ends (欧阳) is not ours to guess.
    """
    display = display.strip()
    return display if "^" in display else f"{display}^"


def complete_header(header: Dataset) -> Dataset:
    """Return a header from which patient and study can be copied.

    Type 2 attributes that a modality left out become empty, and values that are
    not what their VR says are left out: an unknown sex stays unknown.
    """
    kept = Dataset()
    for element in header:
        if element.VR != "UN" and _is_well_formed(element):
            kept.add(copy.deepcopy(element))
    for keyword in _TYPE_2:
        if kept.get(keyword) is None:
            setattr(kept, keyword, "")
    if kept.PatientSex not in ("M", "F", "O"):
        kept.PatientSex = ""
    kept.SpecificCharacterSet = UTF8
    return kept


def _is_well_formed(element: DataElement) -> bool:
    """Tell whether a date or time is one (PS3.5 6.2); other values are let pass."""
    form = _FORMS.get(element.VR)
    return form is None or not element.value or bool(form.fullmatch(str(element.value)))


def stamp(dataset: Dataset, version: ReportVersion, equipment: Equipment) -> None:
    """Write when the version was made into every date that highdicom takes from now."""
    local = equipment.local(version.at)
    dataset.ContentDate = dataset.InstanceCreationDate = f"{local:%Y%m%d}"
    dataset.ContentTime = dataset.InstanceCreationTime = f"{local:%H%M%S.%f}"
    dataset.SeriesDate, dataset.SeriesTime = dataset.ContentDate, dataset.ContentTime
    for item in dataset.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in item:
            item.ContributionDateTime = f"{local:%Y%m%d%H%M%S}"
    dataset.TimezoneOffsetFromUTC = equipment.timezone_offset


def _document(
    version: ReportVersion,
    sources: Sequence[Dataset],
    groups: Sequence[Any],
    *,
    report_id: UUID,
    equipment: Equipment,
    kind: str,
    observer: ObservationContext,
    evidence: Sequence[Dataset],
    is_complete: bool,
    verifier: str | None = None,
    predecessor: Predecessor | None = None,
) -> Dataset:
    if not sources:
        raise NodeError("a report without images refers to nothing", ErrorKind.INVALID)
    verified = verifier is not None
    first = complete_header(sources[0])
    series = _VERIFIED_SERIES_NUMBER if verified else _AI_SERIES_NUMBER
    document = Comprehensive3DSR(
        evidence=[first, *evidence[1:]],
        content=build_content(
            version,
            groups,
            sources,
            observer,
            language=equipment.language,
            verified=verified,
        ),
        series_instance_uid=result_uid(report_id, version.number, f"{kind}/series"),
        series_number=series + version.number,
        sop_instance_uid=result_uid(report_id, version.number, kind),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL,
        device_serial_number=equipment.serial_number,
        software_versions=equipment.software_version,
        institution_name=equipment.institution_name,
        series_description="Verified breast US report"
        if verified
        else "AI breast US result (unverified)",
        is_complete=is_complete,
        is_final=verified,
        is_verified=verified,
        verifying_observer_name=verifier,
        verifying_organization=equipment.institution_name if verified else None,
        performed_procedure_codes=[coded(lexicon.BREAST_ULTRASOUND)],
        requested_procedures=referenced_requests(sources) or None,
        specific_character_set=UTF8,
    )
    stamp(document, version, equipment)
    if verified:
        moment = equipment.local(version.at)
        document.VerifyingObserverSequence[
            0
        ].VerificationDateTime = f"{moment:%Y%m%d%H%M%S}{equipment.timezone_offset}"
    if predecessor is not None:
        document.PredecessorDocumentsSequence = [_reference(predecessor)]
    document.CodingSchemeIdentificationSequence = _coding_schemes()
    document.AuthorObserverSequence = [_author_observer(verifier, equipment)]
    if first.get("StudyDescription"):
        document.StudyDescription = first.StudyDescription
    return document


# -- context ------------------------------------------------------------------


def device_observer(equipment: Equipment) -> ObserverContext:
    """Return the installation as the one who observes (TID 1002)."""
    return ObserverContext(
        codes.DCM.Device,
        DeviceObserverIdentifyingAttributes(
            equipment.device_uid,
            name=MODEL,
            manufacturer_name=MANUFACTURER,
            model_name=MODEL,
            serial_number=equipment.serial_number,
        ),
    )


def person_observer(name: str, equipment: Equipment) -> ObserverContext:
    """Return the physician `name`, a PN, as the one who observes (TID 1002)."""
    return ObserverContext(
        codes.DCM.Person,
        PersonObserverIdentifyingAttributes(
            name, organization_name=equipment.institution_name
        ),
    )


def _author_observer(verifier: str | None, equipment: Equipment) -> Dataset:
    """Return who wrote it (PS3.3 10.38): the physician, else the node as a device."""
    author = Dataset()
    author.InstitutionName = equipment.institution_name
    author.InstitutionCodeSequence = []
    if verifier is not None:
        author.ObserverType, author.PersonName = "PSN", verifier
        author.PersonIdentificationCodeSequence = []
    else:
        author.ObserverType, author.StationName = "DEV", MODEL.upper()
        author.Manufacturer, author.ManufacturerModelName = MANUFACTURER, MODEL
        author.DeviceUID = equipment.device_uid
    return author


def _coding_schemes() -> list[Dataset]:
    """Return the schemes that a receiver cannot look up in PS3.16."""
    own, bi_rads = Dataset(), Dataset()
    own.CodingSchemeDesignator = lexicon.PRIVATE_SCHEME
    own.CodingSchemeUID = lexicon.PRIVATE_SCHEME_UID
    own.CodingSchemeName = lexicon.PRIVATE_SCHEME_NAME
    own.CodingSchemeResponsibleOrganization = MANUFACTURER
    bi_rads.CodingSchemeDesignator = "BI"
    bi_rads.CodingSchemeName = "ACR BI-RADS"
    bi_rads.CodingSchemeResponsibleOrganization = "American College of Radiology"
    return [own, bi_rads]


def _reference(document: Predecessor) -> Dataset:
    """Return one item of a Hierarchical SOP Instance Reference (PS3.3 C.17.2.1)."""
    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID = document.sop_class_uid
    instance.ReferencedSOPInstanceUID = document.sop_instance_uid
    series.SeriesInstanceUID = document.series_instance_uid
    series.ReferencedSOPSequence = [instance]
    study.StudyInstanceUID = document.study_instance_uid
    study.ReferencedSeriesSequence = [series]
    return study


def _uid_under(sop_instance_uid: str, sop_class_uid: str) -> str:
    number = int(sop_instance_uid.removeprefix("2.25."))
    return result_uid(UUID(int=number), 0, sop_class_uid)
