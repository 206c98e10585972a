"""The tables of the conformance statement about the objects that the node makes (IODs).

Each kind of object is built here by the same functions that build a patient's, once
from an image with a full header, once from one that says next to nothing, and once at
another site. What is always there, what may be missing and where a value comes from is
read off the three.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    EncapsulatedPDFStorage,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    UltrasoundImageStorage,
)

from dicom_scp.results.heatmap import build_heat_map
from dicom_scp.results.key_objects import build_key_images, build_rejection
from dicom_scp.results.report_pdf import encapsulate_report
from dicom_scp.results.requests import add_requests
from dicom_scp.results.segmentation import build_segmentations
from dicom_scp.results.sr import (
    AI_SR,
    SR_CLASSES,
    Equipment,
    build_ai_sr,
    build_verified_sr,
    predecessor_of,
)
from node.domain import lexicon
from node.domain.finding import Extent, Findings, ImageReference, Lesion, NotRead
from node.domain.order import Code, Order, OrderSource, OrderStatus, Step
from node.domain.report import Author, AuthorKind, Conclusions, Report, ReportStatus
from node.store.orders import NamedBy, StudyOrder

_AT: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_HERE: Final = Equipment("Hospital", "2.25.1", "1.0", "en", "+0800")
_THERE: Final = Equipment("Clinic", "2.25.2", "1.0", "en", "+0100")
_ALGORITHM: Final = Author(AuthorKind.ALGORITHM, "model", "algorithm 1.0")
_DOCTOR: Final = Author(AuthorKind.PHYSICIAN, "doctor", "Doctor^A")
_KINDS: Final = (
    ("AI SR", "every AI draft"),
    ("Heat map", "a lesion of a draft that has one"),
    ("SEG", "a frame on which the AI drew an outline; `results.segmentation`"),
    ("AI key images", "a draft with lesions; `results.key_images`"),
    ("Verified SR", "every signature"),
    ("Key images", "a signature with lesions; `results.key_images`"),
    ("PDF", "every signature; `results.pdf`"),
    ("Rejection", "a withdrawal"),
)


def object_tables() -> Mapping[str, str]:
    """Return the tables about result objects and their codes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's on empty headers
        samples = [
            _Sample(_full_header(), UUID(int=1), _HERE, full_order()),
            _Sample(_bare_header(), UUID(int=2), _HERE, None),
            _Sample(_full_header(), UUID(int=1), _THERE, full_order()),
        ]
        built = [dict(sample.objects()) for sample in samples]
    full, bare, elsewhere = built
    return {
        "objects": table(
            ("Object", "SOP Class", "Modality", "Series Number", "Series", "Made for"),
            (
                (
                    kind,
                    full[kind].SOPClassUID.name,
                    full[kind].Modality,
                    f"{int(full[kind].SeriesNumber) - _version_of(kind)} + version",
                    full[kind].SeriesDescription,
                    when,
                )
                for kind, when in _KINDS
            ),
        ),
        "attributes": _attributes(samples[0].header, full, bare, elsewhere),
        "codes": table(
            ("Concept name", "Values"),
            (
                (code(field.concept), _values(field))
                for field in lexicon.FIELDS.values()
            ),
        ),
        "categories": table(
            ("Assessment", "Code"),
            ((key, code(c.concept)) for key, c in lexicon.CATEGORIES.items()),
        ),
        "private-codes": table(
            ("Code Value", "Code Meaning"),
            ((c.value, c.meaning) for c in _private()),
        ),
    }


def sent_classes() -> Iterator[tuple[UID, str]]:
    """Yield the SOP Classes of the objects that the node makes, and which those are."""
    for rank, uid in enumerate(SR_CLASSES):
        when = "results" if rank == 0 else "results, when the classes above are refused"
        yield UID(uid), when
    yield SecondaryCaptureImageStorage, "AI heat maps"
    yield SegmentationStorage, "AI lesion outlines (`results.segmentation`)"
    yield KeyObjectSelectionDocumentStorage, "key images, rejections"
    yield EncapsulatedPDFStorage, "the signed report on paper (`results.pdf`)"


def full_order() -> Order:
    """Return an order with a value in every field."""
    step = Step(
        scheduled_on=date(2026, 1, 2),
        scheduled_time=time(9, 30),
        accession_number="A",
        requested_procedure_id="R",
        requested_procedure_description="D",
        requested_procedure_code=Code("C", "99X", "M"),
        step_id="S",
        step_description="D",
        step_location="L",
        station_titles=("AE",),
        referring_physician="N",
        requesting_physician="N",
        performing_physician="N",
        placer_order_number="P",
        filler_order_number="F",
        reason="R",
        priority="ROUTINE",
        study_instance_uid="2.25.10",
    )
    nobody = UUID(int=0)
    return Order(nobody, nobody, OrderStatus.SCHEDULED, OrderSource.FHIR, "", step)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(concept: lexicon.Concept) -> str:
    """Return a concept as DICOM's text writes one."""
    version = f" {concept.version}" if concept.version else ""
    return f'({concept.value}, {concept.scheme}{version}, "{concept.meaning}")'


# -- one of each kind ------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    """What one examination becomes: `header` is that of its image."""

    header: Dataset
    report_id: UUID
    equipment: Equipment
    order: Order | None

    def objects(self) -> Iterator[tuple[str, Dataset]]:
        """Yield every kind of object by its name in `_KINDS`."""
        named: dict[str, Any] = {
            "report_id": self.report_id,
            "equipment": self.equipment,
        }
        sources, drafted = [self.header], self._drafted()
        draft = drafted.current
        lesion = draft.findings.lesions[0]
        capture = build_heat_map(
            np.zeros((4, 6, 3), np.uint8), draft, lesion, self.header, number=1, **named
        )
        signed = self._signed(drafted)
        uid = str(self.header.StudyInstanceUID)
        before = predecessor_of(uid, self.report_id, draft.number, AI_SR)
        again = predecessor_of(uid, self.report_id, 0, AI_SR)
        verified = build_verified_sr(signed.current, before, sources, **named)
        withdrawn = signed.revise(
            ReportStatus.ENTERED_IN_ERROR,
            signed.current.findings,
            signed.current.conclusions,
            author=_DOCTOR,
            at=_AT,
            reason="reason",
        )
        made = {
            "AI SR": build_ai_sr(
                draft,
                sources,
                heat_maps=[capture],
                predecessor=again if self.order else None,
                **named,
            ),
            "Heat map": capture,
            "SEG": build_segmentations(draft, sources, **named)[0],
            "AI key images": build_key_images(draft, sources, **named),
            "Verified SR": verified,
            "Key images": build_key_images(signed.current, sources, **named),
            "PDF": encapsulate_report(
                b"%PDF", signed, signed.current, self.header, equipment=self.equipment
            ),
            "Rejection": build_rejection(withdrawn.current, [verified], **named),
        }
        orders = [StudyOrder(self.order, True, NamedBy.ACCESSION)] if self.order else []
        for kind, dataset in made.items():
            if dataset is not None:
                add_requests(dataset, sources, orders)
                yield kind, dataset

    def _drafted(self) -> Report:
        image = ImageReference(
            str(self.header.SOPClassUID), str(self.header.SOPInstanceUID)
        )
        outline = ((1.5, 1.5), (6.5, 1.5), (4.5, 6.5), (1.5, 1.5))
        lesion = Lesion(tracking_uid="2.25.20", image=image, outline=outline)
        findings = Findings((lesion,), "2")
        if self.order is not None:
            sized = Extent(Decimal(9), Decimal(8), Decimal(7))
            lesion = replace(lesion, extent=sized, laterality="L", category="2")
            left = NotRead("2.25.99", "doppler", "多普勒", "Doppler")
            findings = Findings((lesion,), "2", not_read=(left,))
        report = Report(self.report_id, str(self.header.StudyInstanceUID), UUID(int=3))
        return report.draft(findings, author=_ALGORITHM, at=_AT)

    def _signed(self, drafted: Report) -> Report:
        """Return the report as signed: read off and judged by a doctor."""
        return drafted.revise(
            ReportStatus.FINAL,
            replace(drafted.current.findings, not_read=()),
            Conclusions("impression") if self.order else Conclusions(),
            author=_DOCTOR,
            at=_AT + timedelta(hours=self.report_id.int),
        )


def _version_of(kind: str) -> int:
    """Return the version of the report that `_Sample` makes an object from."""
    if kind == "Rejection":
        return 3
    return 1 if kind in ("AI SR", "Heat map", "SEG", "AI key images") else 2


def _bare_header() -> Dataset:
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = UltrasoundImageStorage, "2.25.101"
    header.StudyInstanceUID, header.SeriesInstanceUID = "2.25.102", "2.25.103"
    header.Rows = header.Columns = 8
    return header


def _full_header() -> Dataset:
    header = _bare_header()
    for number, keyword in enumerate(
        ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"), start=11
    ):
        setattr(header, keyword, f"2.25.{number}")
    for keyword, value in {
        "PatientName": "Patient^A",
        "PatientID": "P",
        "IssuerOfPatientID": "I",
        "PatientBirthDate": "19800101",
        "PatientSex": "F",
        "PatientAge": "046Y",
        "PatientSize": "1.6",
        "PatientWeight": "60",
        "StudyID": "1",
        "StudyDate": "20260102",
        "StudyTime": "090000",
        "AccessionNumber": "A",
        "ReferringPhysicianName": "Doctor^B",
        "StudyDescription": "Breast",
        "Modality": "US",
        "BodyPartExamined": "BREAST",
        "Laterality": "L",
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": "10",
        "LossyImageCompressionMethod": "ISO_10918_1",
        "BurnedInAnnotation": "NO",
    }.items():
        setattr(header, keyword, value)
    return header


# -- what is read off them -------------------------------------------------------------


def _attributes(
    header: Dataset,
    full: Mapping[str, Dataset],
    bare: Mapping[str, Dataset],
    elsewhere: Mapping[str, Dataset],
) -> str:
    kinds = [kind for kind, _ in _KINDS]
    tags = sorted({tag for made in full.values() for tag in list(made.keys())})
    rows = []
    for tag in tags:
        among = [kind for kind in kinds if tag in full[kind]]
        element = full[among[0]][tag]
        rows.append(
            (
                f"({tag.group:04X},{tag.element:04X})",
                element.name,
                element.VR,
                _source(tag, among, header, full, elsewhere),
                *(
                    _presence(tag, full[kind], bare[kind]) if kind in among else ""
                    for kind in kinds
                ),
            )
        )
    return table(("Tag", "Attribute", "VR", "Source", *kinds), rows)


def _presence(tag: int, full: Dataset, bare: Dataset) -> str:
    """Return the code of PS3.2 for when an attribute is there."""
    if tag not in bare:
        return "ANAP"
    told, empty = _has_value(full, tag), not _has_value(bare, tag)
    if not told:
        return "EMPTY"
    return "VNAP" if empty else "ALWAYS"


def _has_value(dataset: Dataset, tag: int) -> bool:
    value = dataset[tag].value
    return value is not None and len(str(value)) > 0 and value != []


def _source(
    tag: int,
    among: Sequence[str],
    header: Dataset,
    full: Mapping[str, Dataset],
    elsewhere: Mapping[str, Dataset],
) -> str:
    """Return where a value comes from, in the abbreviations of the statement."""

    def all_of(same: Callable[[str], bool]) -> bool:
        return all(same(kind) for kind in among)

    if tag in header and all_of(
        lambda kind: str(full[kind][tag].value) == str(header[tag].value)
    ):
        return "COPY"
    # The moment of a version is told on the clock of the site.
    site = full[among[0]][tag].VR not in ("SQ", "TM", "DT") and not all_of(
        lambda kind: bool(full[kind][tag].value == elsewhere[kind][tag].value)
    )
    return "CONFIG" if site else "AUTO"


# -- codes -----------------------------------------------------------------------------


def _values(field: lexicon.Field) -> str:
    if field is lexicon.CALCIFICATIONS:
        return (
            f"as {code(lexicon.CALCIFICATION_TYPE)} and"
            f" {code(lexicon.CALCIFICATION_DISTRIBUTION)}: "
            + "; ".join(
                code(c)
                for c in (
                    lexicon.CALCIFICATIONS_NONE,
                    lexicon.MICROCALCIFICATIONS,
                    *(term.concept for term in field.terms),
                )
            )
        )
    return "; ".join(code(term.concept) for term in field.terms)


def _private() -> Iterable[lexicon.Concept]:
    duct = lexicon.CALCIFICATIONS.term("intraductal").concept
    return (duct, lexicon.CALCIFICATIONS_NONE, lexicon.NOT_READ)
