"""Report versions as SR documents: PS3.3 C.17, PS3.16 TID 1500, 1410, 1501, 1600, 4019.

The rules marked OHIF are those whose breach makes its SR viewer stop (read in the
source of its SR class handler); the flags are DESIGN's life cycle.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from io import BytesIO
from uuid import UUID

import numpy as np
import pytest
from highdicom.sr import MeasurementReport, srread
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sr._concepts_dict import concepts as standard

from dicom_scp.results.heatmap import build_heat_map
from dicom_scp.results.sr import (
    AI_SR,
    SR_CLASSES,
    VERIFIED_SR,
    Equipment,
    as_sop_class,
    build_ai_sr,
    build_verified_sr,
    person_name,
    predecessor_of,
    to_part10,
)
from node.domain import lexicon
from node.domain.errors import NodeError
from node.domain.finding import (
    STUDY_INCOMPLETE,
    Findings,
    HeatMap,
    Lesion,
    NotRead,
)
from node.domain.lexicon import FIELDS, Concept, FieldKey
from node.domain.report import (
    Author,
    AuthorKind,
    Conclusions,
    Report,
    ReportStatus,
    ReportVersion,
)
from tests.dicom_scp.ultrasound import STUDY, make_header
from tests.factories import (
    ALGORITHM,
    DOCTOR,
    NOW,
    make_draft,
    make_findings,
    make_lesion,
)

EQUIPMENT = Equipment("示范医院", "2.25.555", "1.2.3")
REPORT = UUID("6a3d8c1e-0000-5000-8000-000000000001")
NOT_READ = NotRead("2.25.2002", "doppler", "彩色多普勒", "Colour Doppler")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def make_sources() -> list[Dataset]:
    return [make_header("2.25.2001"), make_header("2.25.2002", NumberOfFrames=5)]


def make_version(findings: Findings | None = None, **changes: object) -> ReportVersion:
    draft = make_draft(report_id=REPORT).current
    return replace(draft, findings=findings or draft.findings, **changes)  # type: ignore[arg-type]


def make_ai(findings: Findings | None = None, **changes: object) -> Dataset:
    version = make_version(findings, **changes)
    return build_ai_sr(version, make_sources(), report_id=REPORT, equipment=EQUIPMENT)


def make_signed(status: ReportStatus = ReportStatus.FINAL) -> Report:
    report = make_draft(report_id=REPORT).revise(
        ReportStatus.FINAL,
        make_findings("4B"),
        Conclusions("左乳肿块", "core_biopsy", "建议活检", "请复诊"),
        author=DOCTOR,
        at=NOW,
    )
    if status is ReportStatus.FINAL:
        return report
    return report.revise(
        status,
        make_findings("4C"),
        Conclusions(followup="strong_biopsy"),
        author=DOCTOR,
        at=NOW + timedelta(hours=1),
        reason="边缘重新评估",
    )


def make_verified(report: Report | None = None) -> Dataset:
    report = report or make_signed()
    version = report.current
    before = report.last_signed(before=version.number)
    kind, number = (AI_SR, 1) if before is None else (VERIFIED_SR, before.number)
    return build_verified_sr(
        version,
        predecessor_of(STUDY, REPORT, number, kind),
        make_sources(),
        report_id=REPORT,
        equipment=EQUIPMENT,
    )


def read_back(document: Dataset) -> MeasurementReport:
    return srread(BytesIO(to_part10(document))).content


def walk(item: Dataset) -> Iterator[Dataset]:
    yield item
    for child in item.get("ContentSequence", ()):
        yield from walk(child)


def name_of(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def value_of(item: Dataset) -> str:
    return str(item.ConceptCodeSequence[0].CodeMeaning)


def groups_of(document: Dataset) -> list[Dataset]:
    return [i for i in walk(document) if name_of(i) == "Measurement Group"]


def codes_in(group: Dataset) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in group.ContentSequence:
        if item.ValueType == "CODE":
            found.setdefault(name_of(item), []).append(value_of(item))
    return found


def numbers_in(group: Dataset) -> dict[str, float]:
    return {
        name_of(item): float(item.MeasuredValueSequence[0].NumericValue)
        for item in group.ContentSequence
        if item.ValueType == "NUM"
    }


# -- flags --------------------------------------------------------------------


def test_the_algorithms_draft_is_never_verified() -> None:
    document = make_ai()
    assert document.VerificationFlag == "UNVERIFIED"
    assert document.PreliminaryFlag == "PRELIMINARY"
    assert document.CompletionFlag == "COMPLETE"
    assert "VerifyingObserverSequence" not in document
    assert "AI" in document.SeriesDescription
    assert document.AuthorObserverSequence[0].ObserverType == "DEV"


def test_images_that_were_not_read_make_the_draft_partial_and_are_named() -> None:
    document = make_ai(make_findings(not_read=(NOT_READ,)))
    assert document.CompletionFlag == "PARTIAL"
    assert document.CompletionFlagDescription == "1 幅图像已判读，1 幅未判读"
    group = groups_of(document)[-1]
    assert codes_in(group)["Finding"] == ["Not read by the algorithm"]
    comment = next(i for i in group.ContentSequence if name_of(i) == "Comment")
    assert comment.TextValue == "彩色多普勒"
    image = next(i for i in group.ContentSequence if i.ValueType == "IMAGE")
    assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "2.25.2002"


def test_draft_of_a_study_that_is_not_whole_is_partial_and_says_why() -> None:
    words = "incomplete: association aborted, 2 images"
    note = NotRead("", STUDY_INCOMPLETE, "不完整：传输中断", words)
    document = make_ai(make_findings(not_read=(note,)))
    assert document.CompletionFlag == "PARTIAL"
    assert document.CompletionFlagDescription == (
        "2 幅图像已判读，0 幅未判读；检查不完整"
    )
    group = groups_of(document)[-1]
    comment = next(i for i in group.ContentSequence if name_of(i) == "Comment")
    assert comment.TextValue == "不完整：传输中断"


def test_a_study_of_which_nothing_was_read_still_gets_a_document() -> None:
    nothing = tuple(
        replace(NOT_READ, sop_instance_uid=uid) for uid in ("2.25.2001", "2.25.2002")
    )
    document = make_ai(Findings(not_read=nothing))
    examination = groups_of(document)[0]
    assert codes_in(examination)["Finding"] == ["Not read by the algorithm"]
    assert "Assessment Category" not in codes_in(examination)


def test_a_study_read_without_a_finding_claims_no_normality() -> None:
    assert "Finding" not in codes_in(groups_of(make_ai(Findings()))[0])


def test_verified_means_complete_final_with_observer_organisation_predecessor() -> None:
    document = make_verified()
    assert document.VerificationFlag == "VERIFIED"
    assert document.CompletionFlag == "COMPLETE"
    assert document.PreliminaryFlag == "FINAL"
    observer = document.VerifyingObserverSequence[0]
    assert str(observer.VerifyingObserverName) == "Li^Ming=李^明"
    assert observer.VerifyingOrganization == "示范医院"
    assert observer.VerificationDateTime == "20261121160000+0800"
    study = document.PredecessorDocumentsSequence[0]
    series = study.ReferencedSeriesSequence[0]
    ai = make_ai()
    assert study.StudyInstanceUID == STUDY
    assert series.SeriesInstanceUID == ai.SeriesInstanceUID
    reference = series.ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == ai.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == ai.SOPClassUID


def test_an_amendment_replaces_the_last_verified_document_and_says_why() -> None:
    document = make_verified(make_signed(ReportStatus.AMENDED))
    series = document.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert (
        series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        == make_verified().SOPInstanceUID
    )
    words = [i.TextValue for i in walk(document) if name_of(i) == "Comment"]
    assert words == ["边缘重新评估"]


def test_the_algorithm_cannot_sign_and_a_physician_drafts_no_ai_sr() -> None:
    forged = replace(make_signed().current, author=ALGORITHM)
    predecessor = predecessor_of(STUDY, REPORT, 1, AI_SR)
    with pytest.raises(NodeError, match="signed"):
        build_verified_sr(
            forged, predecessor, make_sources(), report_id=REPORT, equipment=EQUIPMENT
        )
    unsigned = replace(forged, author=DOCTOR, status=ReportStatus.PRELIMINARY)
    with pytest.raises(NodeError, match="signed"):
        build_verified_sr(
            unsigned, predecessor, make_sources(), report_id=REPORT, equipment=EQUIPMENT
        )
    with pytest.raises(NodeError, match="algorithm"):
        make_ai(author=DOCTOR)


def test_the_physicians_words_stand_in_the_document_but_not_those_for_the_patient() -> (
    None
):
    texts = [i.TextValue for i in walk(make_verified()) if i.ValueType == "TEXT"]
    assert "左乳肿块" in texts
    assert "建议活检" in texts
    assert "请复诊" not in texts


# -- OHIF ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_ai, make_verified])
def test_ohif_a_the_document_has_title_126000_and_an_image_library_with_a_group(
    make: Callable[[], Dataset],
) -> None:
    document = make()
    assert document.ConceptNameCodeSequence[0].CodeValue == "126000"
    library = next(i for i in walk(document) if name_of(i) == "Image Library")
    group = library.ContentSequence[0]
    assert name_of(group) == "Image Library Group"
    assert [i.ValueType for i in group.ContentSequence] == ["IMAGE", "IMAGE"]


@pytest.mark.parametrize("make", [make_ai, make_verified])
def test_ohif_b_every_group_starts_with_tracking_identifier_and_uid(
    make: Callable[[], Dataset],
) -> None:
    for group in groups_of(make()):
        kinds = [i.ValueType for i in group.ContentSequence]
        first = group.ContentSequence[kinds.index("UIDREF")]
        assert name_of(first) == "Tracking Unique Identifier"
        assert "Tracking Identifier" in [name_of(i) for i in group.ContentSequence]


def test_ohif_c_a_group_without_a_region_holds_no_number() -> None:
    findings = Findings(
        lesions=(
            make_lesion(),
            make_lesion(tracking_uid="2.25.1002", box=None, outline=()),
            make_lesion(tracking_uid="2.25.1003", image=None),
        ),
        category="4C",
        not_read=(NOT_READ,),
    )
    groups = groups_of(make_ai(findings))
    assert len(groups) == 5
    for group in groups:
        kinds = {i.ValueType for i in group.ContentSequence}
        assert "SCOORD" in kinds or "NUM" not in kinds
    words = [i.TextValue for i in groups[1].ContentSequence if name_of(i) == "Comment"]
    assert "11.8 mm" in words[0]  # the figures are not lost


def test_ohif_d_ai_and_verified_documents_lie_in_series_of_their_own() -> None:
    documents = [
        make_ai(),
        make_verified(),
        make_verified(make_signed(ReportStatus.AMENDED)),
    ]
    assert len({d.SeriesInstanceUID for d in documents}) == 3
    assert len({d.SOPInstanceUID for d in documents}) == 3


# -- content ------------------------------------------------------------------


def test_highdicom_reads_back_every_value_of_a_lesion() -> None:
    content = read_back(make_ai())
    group = content.get_planar_roi_measurement_groups(tracking_uid="2.25.1001")[0]
    measured = {m.name.meaning: float(m.value) for m in group.get_measurements()}
    assert measured == {
        "Long axis": 11.8,
        "Width": 11.2,
        "Height": 7.1,
        "Distance from nipple": 30.0,
        "Probability of cancer": 87.3,
    }
    said = [
        (q.name.meaning, q.value.meaning) for q in group.get_qualitative_evaluations()
    ]
    assert ("Margin", "Angular margins") in said
    assert ("Margin", "Spiculated lesion") in said
    assert ("Assessment Category", "4C - Moderate suspicion") in said
    site = group.finding_sites[0]
    assert site.laterality.meaning == "Left"
    assert site.topographical_modifier.meaning == "2 o'clock position"
    outline = [list(point) for point in group.roi.value]
    assert outline[0] == outline[-1] == [100.5, 120.5]
    observer = content.get_observer_contexts()[0]
    assert observer.observer_identifying_attributes.uid == "2.25.555"


def test_highdicom_reads_back_the_verifier_as_the_observer() -> None:
    observer = read_back(make_verified()).get_observer_contexts()[0]
    assert str(observer.observer_identifying_attributes.name) == "Li^Ming=李^明"


@pytest.mark.parametrize("key", list(FIELDS))
def test_every_term_of_every_field_is_written_as_the_lexicon_has_it(
    key: FieldKey,
) -> None:
    for term in FIELDS[key].terms:
        lesion = Lesion("2.25.9", descriptors={key: (term.key,)})
        said = codes_in(groups_of(make_ai(Findings(lesions=(lesion,))))[0])
        values = [value for values in said.values() for value in values]
        assert term.concept.meaning in values
        if key is not FieldKey.CALCIFICATIONS:
            assert said[FIELDS[key].concept.meaning] == [term.concept.meaning]


@pytest.mark.parametrize(
    ("values", "types", "distributions"),
    [
        ((), ["No calcifications"], []),
        (("macro",), ["Macrocalcifications"], []),
        (
            ("in_mass",),
            ["Microcalcifications of the breast"],
            ["Calcifications within a mass"],
        ),
        (
            ("macro", "outside_mass", "intraductal"),
            ["Macrocalcifications", "Microcalcifications of the breast"],
            ["Calcifications outside of a mass", "Intraductal microcalcifications"],
        ),
    ],
)
def test_calcifications_are_told_as_type_and_distribution(
    values: tuple[str, ...], types: list[str], distributions: list[str]
) -> None:
    lesion = Lesion("2.25.9", descriptors={FieldKey.CALCIFICATIONS: values})
    said = codes_in(groups_of(make_ai(Findings(lesions=(lesion,))))[0])
    assert said.get("Calcification Type", []) == types
    assert said.get("Calcification Distribution", []) == distributions


def test_what_nobody_assessed_or_measured_is_absent_not_zero() -> None:
    lesion = make_lesion(
        descriptors={},
        extent=None,
        probability=None,
        category=None,
        distance_from_nipple_mm=None,
        clock=None,
        laterality=None,
    )
    group = groups_of(make_ai(Findings(lesions=(lesion,))))[0]
    assert numbers_in(group) == {}
    assert set(codes_in(group)) == {
        "Finding category",
        "Finding",
        "Finding Site",
        "Algorithm Family",
    }


def test_a_probability_of_zero_is_a_probability() -> None:
    findings = Findings(lesions=(make_lesion(probability=Decimal(0)),))
    assert numbers_in(groups_of(make_ai(findings))[0])["Probability of cancer"] == 0


def test_the_verified_document_holds_no_trace_of_a_machine_opinion() -> None:
    names = {name_of(item) for item in walk(make_verified())}
    assert not names & {
        "Probability of cancer",
        "Algorithm Name",
        "Algorithm Version",
        "Visual explanation",
    }


def test_lesions_keep_their_tracking_uid_through_all_documents() -> None:
    def tracked(document: Dataset) -> set[str]:
        return {
            str(item.UID)
            for group in groups_of(document)
            for item in group.ContentSequence
            if name_of(item) == "Tracking Unique Identifier"
        }

    assert tracked(make_ai()) == tracked(make_verified())


def test_the_algorithm_is_named_with_version_and_weights() -> None:
    author = Author(
        AuthorKind.ALGORITHM, "model-1", "sononode-breast-resnet50 1.0.0+sha256.0123ab"
    )
    group = groups_of(make_ai(author=author))[0]
    told = {
        name_of(i): i.TextValue for i in group.ContentSequence if i.ValueType == "TEXT"
    }
    assert told["Algorithm Name"] == "sononode-breast-resnet50"
    assert told["Algorithm Version"] == "1.0.0+sha256.0123ab"


def test_a_box_without_outline_becomes_a_closed_polyline_of_the_whole_frame() -> None:
    findings = Findings(lesions=(make_lesion(outline=()),))
    group = read_back(make_ai(findings)).get_planar_roi_measurement_groups()[0]
    assert [list(point) for point in group.roi.value] == [
        [100, 120],
        [180, 120],
        [180, 170],
        [100, 170],
        [100, 120],
    ]


def test_a_cine_frame_is_referenced_by_its_number() -> None:
    lesion = make_lesion()
    assert lesion.image is not None
    image = replace(lesion.image, sop_instance_uid="2.25.2002", frame=4)
    document = make_ai(Findings(lesions=(replace(lesion, image=image),)))
    region = next(i for i in walk(document) if i.ValueType == "SCOORD")
    reference = region.ContentSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedFrameNumber == 4
    assert reference.ReferencedSOPInstanceUID == "2.25.2002"


def test_an_image_that_the_study_lacks_is_refused() -> None:
    with pytest.raises(NodeError, match="does not have"):
        build_ai_sr(
            make_version(),
            [make_header("2.25.2002")],
            report_id=REPORT,
            equipment=EQUIPMENT,
        )


def test_the_heat_map_explains_its_lesion() -> None:
    version = make_version()
    lesion = version.findings.lesions[0]
    overlay = np.zeros((31, 41, 3), np.uint8)
    capture = build_heat_map(
        overlay,
        version,
        lesion,
        make_sources()[0],
        report_id=REPORT,
        equipment=EQUIPMENT,
        number=1,
    )
    shown = (HeatMap(lesion.tracking_uid, str(capture.SOPInstanceUID)),)
    document = build_ai_sr(
        replace(version, findings=replace(version.findings, heat_maps=shown)),
        make_sources(),
        report_id=REPORT,
        equipment=EQUIPMENT,
        heat_maps=[capture],
    )
    item = next(i for i in walk(document) if name_of(i) == "Visual explanation")
    reference = item.ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == capture.SOPInstanceUID
    assert list(capture.ImageType) == ["DERIVED", "SECONDARY"]
    assert capture.DerivationCodeSequence[0].CodeValue == "130403"
    assert capture.BurnedInAnnotation == "YES"
    assert "AI" in capture.SeriesDescription
    assert "AI" in capture.ImageComments
    assert capture.pixel_array.shape == (31, 41, 3)


def test_the_order_is_referenced_when_the_machine_worked_from_a_worklist() -> None:
    request = Dataset()
    request.RequestedProcedureID, request.AccessionNumber = "RP-7", "ACC0001"
    sources = [make_header("2.25.2001", RequestAttributesSequence=[request])]
    document = build_ai_sr(
        make_version(), sources, report_id=REPORT, equipment=EQUIPMENT
    )
    item = document.ReferencedRequestSequence[0]
    assert (item.RequestedProcedureID, item.AccessionNumber) == ("RP-7", "ACC0001")
    assert item.StudyInstanceUID == STUDY


def test_a_header_with_gaps_and_nonsense_still_makes_a_document() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = make_header("2.25.2001", PatientSex="女")
    for keyword in ("StudyID", "AccessionNumber", "PatientBirthDate", "StudyTime"):
        delattr(source, keyword)
    document = build_ai_sr(
        make_version(), [source], report_id=REPORT, equipment=EQUIPMENT
    )
    assert document.PatientSex == ""
    assert document.StudyID == ""


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientBirthDate", "1980"),
        ("PatientBirthDate", "19800000"),
        ("StudyDate", "2026.01.02"),
        ("StudyTime", "9:00"),
        ("StudyTime", "999999"),
    ],
)
def test_a_date_or_time_that_is_none_stays_empty(keyword: str, value: str) -> None:
    source = make_header("2.25.2001")
    told = source.to_json_dict()
    tag = f"{tag_for_keyword(keyword):08X}"
    told[tag]["Value"] = [value]
    document = build_ai_sr(
        make_version(),
        [Dataset.from_json(told)],
        report_id=REPORT,
        equipment=EQUIPMENT,
    )
    assert not document.get(keyword)
    assert to_part10(document)


def test_a_chinese_name_without_structure_is_shown_whole() -> None:
    assert person_name("欧阳明") == "欧阳明^"
    assert person_name("Li^Ming=李^明") == "Li^Ming=李^明"


# -- identity -----------------------------------------------------------------


def test_a_retry_builds_the_same_bytes() -> None:
    assert to_part10(make_ai()) == to_part10(make_ai())
    assert to_part10(make_verified()) == to_part10(make_verified())


def test_text_survives_as_utf_8() -> None:
    document = dcmread(BytesIO(to_part10(make_verified())))
    assert document.SpecificCharacterSet == "ISO_IR 192"
    assert str(document.PatientName) == "Wang^XiaoDong=王^小东"
    assert document.InstitutionName == "示范医院"


@pytest.mark.parametrize("sop_class_uid", SR_CLASSES[1:])
def test_a_lesser_class_has_a_uid_of_its_own_and_names_its_original(
    sop_class_uid: str,
) -> None:
    original = make_verified()
    other = as_sop_class(original, sop_class_uid)
    assert other.SOPClassUID == sop_class_uid
    assert other.SOPInstanceUID == as_sop_class(original, sop_class_uid).SOPInstanceUID
    assert other.SOPInstanceUID != original.SOPInstanceUID
    named = other.IdenticalDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert (
        named.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        == original.SOPInstanceUID
    )
    before = other.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert (
        before.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        == as_sop_class(make_ai(), sop_class_uid).SOPInstanceUID
    )
    assert original.SOPClassUID == SR_CLASSES[0]


# -- vocabulary ---------------------------------------------------------------

# Not in pydicom's dictionary, each for a reason that reference reading confirmed:
# BI has no dictionary there, RID36042 comes from HL7's dicom-sr guide, C0034375 and
# RFC 5646 tags are cited by PS3.16 without a row, 99SONONODE is ours.
NOT_IN_DICTIONARY = {
    ("BI", "MA.II.A.5.4A"),
    ("BI", "MA.II.A.5.4B"),
    ("BI", "MA.II.A.5.4C"),
    ("BI", "MA.II.A.5.6"),
    ("RADLEX", "RID36042"),
    ("RFC5646", "zh-CN"),
    ("RFC5646", "en"),
    (lexicon.PRIVATE_SCHEME, "CALC-DUCT"),
    (lexicon.PRIVATE_SCHEME, "CALC-NONE"),
    (lexicon.PRIVATE_SCHEME, "CALCIFICATIONS"),
    (lexicon.PRIVATE_SCHEME, "NOT-READ"),
}


def lexicon_concepts() -> Iterator[Concept]:
    for value in vars(lexicon).values():
        if isinstance(value, Concept):
            yield value
        elif isinstance(value, lexicon.Field):
            yield value.concept
            yield from (term.concept for term in value.terms)
    yield from (category.concept for category in lexicon.CATEGORIES.values())
    for table in (
        lexicon.LATERALITY,
        lexicon.BREAST_SIDE,
        lexicon.CLOCK,
        lexicon.MALIGNANCY_VALUES,
        lexicon.FOLLOWUP,
        lexicon.LANGUAGES,
    ):
        yield from table.values()


def in_dictionary(scheme: str, value: str) -> list[str]:
    return [
        entry[value][0] for entry in standard.get(scheme, {}).values() if value in entry
    ]


def test_every_concept_is_in_the_standard_or_on_the_list_of_exceptions() -> None:
    missing = {
        (concept.scheme, concept.value)
        for concept in lexicon_concepts()
        if not in_dictionary(concept.scheme, concept.value)
    }
    assert missing == NOT_IN_DICTIONARY


# SNOMED CT keeps renaming these; DICOM keeps its own words in the context groups.
WORDED_OTHERWISE = {
    ("SCT", "107644003"),
    ("SCT", "112233002"),
    ("SCT", "397138000"),
    ("SCT", "397140005"),
    ("SCT", "397141009"),
    ("SCT", "397143007"),
    ("SCT", "397144001"),
    ("SCT", "397145000"),
    ("UCUM", "mm"),
}


def test_every_meaning_is_worded_as_the_dictionary_has_it() -> None:
    different = {
        (concept.scheme, concept.value)
        for concept in lexicon_concepts()
        if (found := in_dictionary(concept.scheme, concept.value))
        and concept.meaning not in found
    }
    assert different == WORDED_OTHERWISE


def test_meanings_and_values_fit_their_value_representations() -> None:
    for concept in lexicon_concepts():
        assert len(concept.meaning) <= 64
        assert len(concept.value) <= 16
        assert (concept.version is None) == (concept.scheme != "BI")
