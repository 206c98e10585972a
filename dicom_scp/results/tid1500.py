"""The content tree of a report version: TID 1500 with its library and its groups.

Lesions become TID 1410 groups with their region, the examination and images that
were not read become TID 1501 groups. Only a group with SCOORD holds NUM: OHIF
stops at a number without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentSequence,
    FindingSite,
    GraphicTypeValues,
    ImageContentItem,
    ImageRegion,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    NumContentItem,
    ObservationContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Findings, ImageReference, Lesion, NotRead
from node.domain.lexicon import Concept, FieldKey
from node.domain.report import ReportVersion
from node.domain.uids import result_uid

ULTRASOUND: Final = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in ("3", "3.1", "6", "6.1", "6.2")
)

_CONTAINS = RelationshipTypeValues.CONTAINS
_ACQUISITION = RelationshipTypeValues.HAS_ACQ_CONTEXT
_PIXELS = CodedConcept("{pixels}", "UCUM", "Pixels")
_QUALITATIVE = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")

# CID 6063 has no "probably": 3 and 5 stay without a class rather than get a wrong one.
_MALIGNANCY_OF_CATEGORY: Final[Mapping[str, str]] = {
    "0": "indeterminate",
    "2": "benign",
    "4A": "indeterminate",
    "4B": "indeterminate",
    "4C": "indeterminate",
    "6": "malignant",
}


def coded(concept: Concept) -> CodedConcept:
    """Return a term of the lexicon as highdicom takes it."""
    return CodedConcept(concept.value, concept.scheme, concept.meaning, concept.version)


def lesion_name(number: int) -> str:
    """Return the Tracking Identifier of a lesion, the same in SR and SEG."""
    return f"Lesion {number}"


def build_content(
    version: ReportVersion,
    groups: Sequence[Any],
    sources: Sequence[Dataset],
    observer: ObservationContext,
    *,
    language: str,
    verified: bool,
) -> MeasurementReport:
    """Return the whole tree: library, `groups` and, when verified, the words."""
    content = MeasurementReport(
        observation_context=observer,
        procedure_reported=coded(lexicon.BREAST_ULTRASOUND),
        title=coded(lexicon.MEASUREMENT_REPORT),
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(
            coded(lexicon.LANGUAGES[language])
        ),
        imaging_measurements=groups,
    )
    items = content[0].ContentSequence
    items.insert(len(items) - 1, _image_library(sources))
    if verified:
        words = list(_words(version))
        if words:
            items.append(_container(_QUALITATIVE, words))
    return content


def _words(version: ReportVersion) -> Iterable[TextContentItem]:
    """Return the physician's free text, and why she changed a signed report."""
    conclusions = version.conclusions
    for name, text in (
        (codes.DCM.Impression, conclusions.impression),
        (codes.DCM.Recommendations, conclusions.advice),
        (codes.DCM.Comment, version.reason or ""),
    ):
        if text.strip():
            yield TextContentItem(name, text, _CONTAINS)


def _image_library(sources: Sequence[Dataset]) -> ContainerContentItem:
    """Return TID 1600 for the images of the study.

    Built here because highdicom refuses classes that it cannot name, such as
    the retired ultrasound ones that old machines still send.
    """
    entries: list[Any] = []
    for header in _images(sources):
        entry = ImageContentItem(
            CodedConcept("260753009", "SCT", "Source"),
            str(header.SOPClassUID),
            str(header.SOPInstanceUID),
            relationship_type=_CONTAINS,
        )
        ultrasound = str(header.SOPClassUID) in ULTRASOUND
        modality = codes.cid29.Ultrasound if ultrasound else codes.cid32.Other
        entry.ContentSequence = ContentSequence(
            [
                CodeContentItem(codes.DCM.Modality, modality, _ACQUISITION),
                *_pixel_counts(header),
            ]
        )
        entries.append(entry)
    # OHIF opens the group's content unasked, so without images it is not left empty.
    empty = [CodeContentItem(codes.DCM.Modality, codes.cid32.Other, _ACQUISITION)]
    group = _container(codes.DCM.ImageLibraryGroup, entries or empty)
    return _container(codes.DCM.ImageLibrary, [group])


def _images(sources: Sequence[Dataset]) -> list[Dataset]:
    return [header for header in sources if "Rows" in header]


def _pixel_counts(header: Dataset) -> Iterable[NumContentItem]:
    for name, value in (
        (codes.DCM.PixelDataRows, header.get("Rows")),
        (codes.DCM.PixelDataColumns, header.get("Columns")),
    ):
        if value:
            yield NumContentItem(
                name, int(value), unit=_PIXELS, relationship_type=_ACQUISITION
            )


def _container(name: Any, items: Sequence[Any]) -> ContainerContentItem:
    container = ContainerContentItem(name, relationship_type=_CONTAINS)
    container.ContentSequence = ContentSequence(items)
    return container


# -- measurement groups -------------------------------------------------------


@dataclass(frozen=True)
class GroupWriter:
    """Writes the measurement groups of one version; `algorithm` only for the AI's.

    `language` chooses the words for people where an item has no code.
    """

    report_id: UUID
    version: ReportVersion
    sources: Sequence[Dataset]
    language: str
    algorithm: AlgorithmIdentification | None

    def lesion(self, number: int, lesion: Lesion, heat_map: Dataset | None) -> Any:
        """Return TID 1410 with the lesion's region, TID 1501 where it has none."""
        common: dict[str, Any] = {
            "tracking_identifier": TrackingIdentifier(
                lesion.tracking_uid, lesion_name(number)
            ),
            "finding_category": coded(lexicon.ABNORMAL_STRUCTURE),
            "finding_type": coded(lexicon.MASS),
            "finding_sites": [_finding_site(lesion.laterality, lesion.clock)],
            "algorithm_id": self.algorithm,
            "qualitative_evaluations": list(_evaluations(lesion)),
        }
        numbers = list(_numbers(lesion, with_probability=self.algorithm is not None))
        header = self._source(lesion.image)
        points = _outline(lesion, header)
        group: Any
        if header is None or points is None:
            group = MeasurementsAndQualitativeEvaluations(
                **common, source_images=_whole_image(header, lesion.image)
            )
            if numbers:  # no NUM without SCOORD; the figures are kept as words
                words = ", ".join(f"{c.en} {v} {u.value}" for c, v, u in numbers)
                _append(group, TextContentItem(codes.DCM.Comment, words, _CONTAINS))
        else:
            group = PlanarROIMeasurementsAndQualitativeEvaluations(
                **common,
                referenced_region=ImageRegion(
                    GraphicTypeValues.POLYLINE, points, _region_source(header, lesion)
                ),
                measurements=[
                    Measurement(coded(c), float(v), coded(u)) for c, v, u in numbers
                ],
            )
        if heat_map is not None:
            _append(
                group,
                ImageContentItem(
                    coded(lexicon.VISUAL_EXPLANATION),
                    str(heat_map.SOPClassUID),
                    str(heat_map.SOPInstanceUID),
                    relationship_type=_CONTAINS,
                ),
            )
        return group

    def examination(self) -> MeasurementsAndQualitativeEvaluations:
        """Return TID 1501 for the examination: assessment and advice, no NUM."""
        findings = self.version.findings
        said = []
        category = findings.category or findings.worst_category
        if category is not None:
            said.append(_evaluation(lexicon.ASSESSMENT_CATEGORY, _category(category)))
        if (followup := self.version.conclusions.followup) is not None:
            said.append(
                _evaluation(lexicon.RECOMMENDED_FOLLOWUP, lexicon.FOLLOWUP[followup])
            )
        sides = {lesion.laterality for lesion in findings.lesions}
        side = sides.pop() if len(sides) == 1 else None
        finding = self._examination_finding(category)
        return MeasurementsAndQualitativeEvaluations(
            tracking_identifier=TrackingIdentifier(
                result_uid(self.report_id, 0, "examination"), "Examination"
            ),
            finding_type=None if finding is None else coded(finding),
            finding_sites=[_finding_site(side, None)],
            algorithm_id=self.algorithm,
            qualitative_evaluations=said,
        )

    def _examination_finding(self, category: str | None) -> Concept | None:
        findings = self.version.findings
        if findings.lesions:
            return lexicon.MASS
        if category == "1":
            return lexicon.NORMAL_ULTRASOUND
        not_read = {item.sop_instance_uid for item in findings.not_read}
        if not_read.issuperset(str(s.SOPInstanceUID) for s in self.sources):
            return lexicon.NOT_READ
        return None

    def not_read(
        self, number: int, item: NotRead
    ) -> MeasurementsAndQualitativeEvaluations:
        """Return TID 1501 that names an image which the algorithm did not read."""
        header = _find(self.sources, item.sop_instance_uid)
        name = f"not-read/{item.sop_instance_uid}"
        group = MeasurementsAndQualitativeEvaluations(
            tracking_identifier=TrackingIdentifier(
                result_uid(self.report_id, 0, name), f"Not read {number}"
            ),
            finding_type=coded(lexicon.NOT_READ),
            algorithm_id=self.algorithm,
            source_images=_whole_image(header, None),
        )
        words = item.zh if self.language == "zh-CN" else item.en
        _append(group, TextContentItem(codes.DCM.Comment, words, _CONTAINS))
        return group

    def _source(self, image: ImageReference | None) -> Dataset | None:
        if image is None:
            return None
        header = _find(self.sources, image.sop_instance_uid)
        if header is None:
            raise NodeError(
                f"the report refers to image {image.sop_instance_uid},"
                " which the study does not have",
                ErrorKind.INTEGRITY,
            )
        return header


def _find(sources: Sequence[Dataset], sop_instance_uid: str) -> Dataset | None:
    return next((s for s in sources if s.SOPInstanceUID == sop_instance_uid), None)


def _append(group: Any, item: Any) -> None:
    group[0].ContentSequence.append(item)


def _evaluation(name: Concept, value: Concept) -> QualitativeEvaluation:
    return QualitativeEvaluation(coded(name), coded(value))


def _category(key: str) -> Concept:
    return lexicon.category(key).concept


def _evaluations(lesion: Lesion) -> Iterable[QualitativeEvaluation]:
    """Return what was assessed, in the lexicon's order; the rest is left out."""
    for key, field in lexicon.FIELDS.items():
        values = lesion.descriptors.get(key)
        if values is None:
            continue
        if key is FieldKey.CALCIFICATIONS:
            yield from _calcifications(values)
        else:
            for value in values:
                yield _evaluation(field.concept, field.term(value).concept)
    if lesion.category is not None:
        yield _evaluation(lexicon.ASSESSMENT_CATEGORY, _category(lesion.category))
        malignancy = _MALIGNANCY_OF_CATEGORY.get(lesion.category)
        if malignancy is not None:
            yield _evaluation(lexicon.MALIGNANCY, lexicon.MALIGNANCY_VALUES[malignancy])


def _calcifications(values: tuple[str, ...]) -> Iterable[QualitativeEvaluation]:
    """Return calcification types, then where the microcalcifications are.

    Our four terms mix both questions of CID 6024 and 6025, which ask for type
    and distribution apart.
    """
    kind, place = lexicon.CALCIFICATION_TYPE, lexicon.CALCIFICATION_DISTRIBUTION
    if not values:
        yield _evaluation(kind, lexicon.CALCIFICATIONS_NONE)
    if "macro" in values:
        yield _evaluation(kind, lexicon.CALCIFICATIONS.term("macro").concept)
    micro = [value for value in values if value != "macro"]
    if micro:
        yield _evaluation(kind, lexicon.MICROCALCIFICATIONS)
    for value in micro:
        yield _evaluation(place, lexicon.CALCIFICATIONS.term(value).concept)


def _numbers(
    lesion: Lesion, *, with_probability: bool
) -> Iterable[tuple[Concept, Decimal, Concept]]:
    """Return (name, value, unit) of what was measured; the rest is left out."""
    millimetre, extent = lexicon.MILLIMETER, lesion.extent
    if extent is not None:
        yield lexicon.LONG_AXIS, extent.long_axis_mm, millimetre
        yield lexicon.WIDTH, extent.width_mm, millimetre
        yield lexicon.HEIGHT, extent.height_mm, millimetre
        if extent.length_mm is not None:
            yield lexicon.LENGTH, extent.length_mm, millimetre
    if lesion.distance_from_nipple_mm is not None:
        yield lexicon.DISTANCE_FROM_NIPPLE, lesion.distance_from_nipple_mm, millimetre
    if with_probability and lesion.probability is not None:
        percent = (100 * lesion.probability).normalize()
        yield lexicon.PROBABILITY_OF_CANCER, percent, lexicon.PERCENT


def _finding_site(laterality: str | None, clock: int | None) -> FindingSite:
    return FindingSite(
        coded(lexicon.BREAST),
        laterality=coded(lexicon.LATERALITY[laterality]) if laterality else None,
        topographical_modifier=coded(lexicon.CLOCK[clock]) if clock else None,
    )


def _outline(lesion: Lesion, header: Dataset | None) -> Any | None:
    """Return the closed outline, float64 (points, 2) of (column, row), or None.

    Image coordinates start at the outer corner of the first pixel (PS3.3
    C.18.6.1.1), so a half-open box of pixels is its own outline.
    """
    points = lesion.outline
    if not points and lesion.box is not None:
        box = lesion.box
        points = (
            (box.x0, box.y0),
            (box.x1, box.y0),
            (box.x1, box.y1),
            (box.x0, box.y1),
        )
    if not points or header is None:
        return None
    if points[0] != points[-1]:
        points = (*points, points[0])
    limit = [int(header.get("Columns") or 0), int(header.get("Rows") or 0)]
    return np.clip(np.asarray(points, float), 0, limit)


def _frames(header: Dataset, frame: int) -> list[int] | None:
    return [frame] if int(header.get("NumberOfFrames") or 1) > 1 else None


def _region_source(header: Dataset, lesion: Lesion) -> SourceImageForRegion:
    frame = 1 if lesion.image is None else lesion.image.frame
    return SourceImageForRegion(
        str(header.SOPClassUID), str(header.SOPInstanceUID), _frames(header, frame)
    )


def _whole_image(
    header: Dataset | None, image: ImageReference | None
) -> list[SourceImageForMeasurementGroup]:
    if header is None or not _images([header]):
        return []
    return [
        SourceImageForMeasurementGroup(
            str(header.SOPClassUID),
            str(header.SOPInstanceUID),
            None if image is None else _frames(header, image.frame),
        )
    ]


def explanation_of(
    findings: Findings, lesion: Lesion, heat_maps: Mapping[str, Dataset]
) -> Dataset | None:
    for item in findings.heat_maps:
        if item.tracking_uid == lesion.tracking_uid:
            return heat_maps.get(item.sop_instance_uid)
    return None
