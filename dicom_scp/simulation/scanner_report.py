"""The Structured Report that a simulated scanner writes of what was measured on it.

A Comprehensive SR (PS3.3 A.35.3) with a container for each lesion, the older SNOMED
codes that machines in the field still write, and the calliper lines as SCOORD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian

Term = tuple[str, str, str]

_SIDES: Final[dict[str, Term]] = {
    "L": ("T-04030", "SRT", "Left breast"),
    "R": ("T-04020", "SRT", "Right breast"),
}
_LONG_AXIS: Final[Term] = ("G-A185", "SRT", "Long Axis")
_SHORT_AXIS: Final[Term] = ("G-A186", "SRT", "Short Axis")
_TYPE_2: Final = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "Manufacturer",
)
_WHEN_KNOWN: Final = (
    "IssuerOfPatientID",
    "OtherPatientIDsSequence",
    "StudyInstanceUID",
    "StudyDescription",
    "ManufacturerModelName",
    "StationName",
    "InstitutionName",
)


@dataclass(frozen=True)
class Calliper:
    """A distance that somebody measured in `image`: pixels (x, y) and millimetres.

    `millimetres` None is a measurement that was begun and left empty.
    """

    name: str
    image: Dataset
    points: tuple[tuple[float, float], tuple[float, float]]
    millimetres: str | None
    frame: int | None = None


@dataclass(frozen=True)
class MeasuredLesion:
    """What was measured of one lesion, by the machine's name for it."""

    name: str
    callipers: tuple[Calliper, ...]


def with_callipers(
    image: Dataset,
    name: str,
    *,
    centre_mm: tuple[float, float],
    width_mm: float,
    height_mm: float,
) -> MeasuredLesion:
    """Return what somebody measures who sets callipers across and down a lesion.

    `centre_mm`: from the left edge of the calibrated region, and below the skin. In a
    cine the first frame is measured.
    """
    region = image.SequenceOfUltrasoundRegions[0]
    x = region.RegionLocationMinX0 + centre_mm[0] / 10 / region.PhysicalDeltaX
    y = region.RegionLocationMinY0 + centre_mm[1] / 10 / region.PhysicalDeltaY
    half_x = width_mm / 20 / region.PhysicalDeltaX
    half_y = height_mm / 20 / region.PhysicalDeltaY
    across = ((x - half_x, y), (x + half_x, y))
    down = ((x, y - half_y), (x, y + half_y))
    lines = sorted(((width_mm, across), (height_mm, down)), reverse=True)
    frame = 1 if int(image.get("NumberOfFrames", None) or 1) > 1 else None
    return MeasuredLesion(
        name,
        tuple(
            Calliper(which, image, points, f"{millimetres:.1f}", frame)
            for which, (millimetres, points) in zip(
                ("long", "short"), lines, strict=True
            )
        ),
    )


def build_scanner_report(
    images: Sequence[Dataset],
    lesions: Sequence[MeasuredLesion],
    *,
    at: datetime,
    uids: tuple[str, str],
) -> Dataset:
    """Return the report of a study; `uids` are its series and its instance."""
    first = images[0]
    report = Dataset()
    report.SpecificCharacterSet = first.SpecificCharacterSet
    for keyword in (*_TYPE_2, *_WHEN_KNOWN):
        if keyword in first:
            report[keyword] = first[keyword]
        elif keyword in _TYPE_2:
            setattr(report, keyword, "")
    report.SOPClassUID, report.Modality = ComprehensiveSRStorage, "SR"
    report.SeriesInstanceUID, report.SOPInstanceUID = uids
    report.SeriesNumber, report.InstanceNumber = 90, 1
    report.ReferencedPerformedProcedureStepSequence = []
    report.ContentDate, report.ContentTime = f"{at:%Y%m%d}", f"{at:%H%M%S}"
    report.CompletionFlag, report.VerificationFlag = "PARTIAL", "UNVERIFIED"
    report.PerformedProcedureCodeSequence = []
    report.CurrentRequestedProcedureEvidenceSequence = [_evidence(images)]
    report.ValueType, report.ContinuityOfContent = "CONTAINER", "SEPARATE"
    report.ConceptNameCodeSequence = [
        _code(("126000", "DCM", "Imaging Measurement Report"))
    ]
    report.ContentSequence = [_lesion(first, lesion) for lesion in lesions]
    report.file_meta = FileMetaDataset()
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID
    report.file_meta.MediaStorageSOPInstanceUID = report.SOPInstanceUID
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return report


def _lesion(image: Dataset, lesion: MeasuredLesion) -> Dataset:
    group = _item("CONTAINS", "CONTAINER", ("125007", "DCM", "Measurement Group"))
    group.ContinuityOfContent = "SEPARATE"
    named = _item("HAS OBS CONTEXT", "TEXT", ("112039", "DCM", "Tracking Identifier"))
    named.TextValue = lesion.name
    group.ContentSequence = [named]
    if side := _SIDES.get(str(image.get("Laterality", ""))):
        site = _item("HAS CONCEPT MOD", "CODE", ("G-C0E3", "SRT", "Finding Site"))
        site.ConceptCodeSequence = [_code(side)]
        group.ContentSequence.append(site)
    group.ContentSequence.extend(_distance(one) for one in lesion.callipers)
    return group


def _distance(calliper: Calliper) -> Dataset:
    name = _LONG_AXIS if calliper.name == "long" else _SHORT_AXIS
    item = _item("CONTAINS", "NUM", name)
    item.MeasuredValueSequence = []
    if calliper.millimetres is not None:
        value = Dataset()
        value.NumericValue = calliper.millimetres
        value.MeasurementUnitsCodeSequence = [_code(("mm", "UCUM", "millimeter"))]
        item.MeasuredValueSequence = [value]
    drawn = _item("INFERRED FROM", "SCOORD", None)
    drawn.GraphicType = "POLYLINE"
    drawn.GraphicData = [x for point in calliper.points for x in point]
    picture = _item("SELECTED FROM", "IMAGE", None)
    picture.ReferencedSOPSequence = [_reference(calliper.image)]
    if calliper.frame is not None:
        picture.ReferencedSOPSequence[0].ReferencedFrameNumber = calliper.frame
    drawn.ContentSequence = [picture]
    item.ContentSequence = [drawn]
    return item


def _evidence(images: Sequence[Dataset]) -> Dataset:
    study = Dataset()
    study.StudyInstanceUID = images[0].StudyInstanceUID
    study.ReferencedSeriesSequence = []
    for series_uid in dict.fromkeys(image.SeriesInstanceUID for image in images):
        series = Dataset()
        series.SeriesInstanceUID = series_uid
        series.ReferencedSOPSequence = [
            _reference(image)
            for image in images
            if image.SeriesInstanceUID == series_uid
        ]
        study.ReferencedSeriesSequence.append(series)
    return study


def _reference(image: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.SOPClassUID
    reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
    return reference


def _item(relationship: str, value_type: str, name: Term | None) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = relationship, value_type
    if name is not None:
        item.ConceptNameCodeSequence = [_code(name)]
    return item


def _code(term: Term) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = term
    return code
