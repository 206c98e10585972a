"""The signed report on paper: PS3.3 A.45.1 and C.24.2, ISO 19005-2, ISO 14289-1.

Another program (pypdf) reads back what was printed.
"""

import sys
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pypdf import PdfReader

from dicom_scp.results import report_pdf
from dicom_scp.results.figures import Figure, outlined, plain
from dicom_scp.results.report_pdf import (
    build_report_pdf,
    encapsulate_report,
)
from dicom_scp.results.report_words import shown_name
from dicom_scp.results.sr import VERIFIED_SR, to_part10
from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Findings, Lesion, PixelBox
from node.domain.lexicon import FieldKey
from node.domain.report import Conclusions, Report, ReportStatus
from node.domain.study import UltrasoundRegion
from node.domain.uids import result_uid
from node.imaging import Pixels
from tests.conformance.judges import dciodvfy
from tests.dicom_scp.results.test_sr import EQUIPMENT, REPORT, make_signed
from tests.dicom_scp.ultrasound import make_header
from tests.factories import DOCTOR, NOW, make_draft, make_lesion

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

REGION = UltrasoundRegion(40, 60, 759, 539, 1, 1, 3, 3, 0.01, 0.01)
WORDS = "左乳2点肿块。\n#panic() $x$ *不是命令* [b] \\ <a> @b"


def make_frame() -> Pixels:
    grey = np.random.default_rng(7).integers(0, 255, (600, 800, 1), dtype=np.uint8)
    return np.repeat(grey, 3, axis=2)


def make_figure(lesion: Lesion | None = None) -> Figure:
    svg, bar = outlined(make_frame(), lesion or make_lesion(), [REGION])
    return Figure(svg, bar, plain(make_frame()[:31, :41]), "3", 12)


def sign(
    *lesions: Lesion,
    category: str = "4B",
    impression: str = WORDS,
    status: ReportStatus = ReportStatus.FINAL,
) -> Report:
    findings = Findings(lesions=lesions, category=category)
    said = Conclusions(impression, "core_biopsy", "建议活检", "给患者的话")
    report = make_draft(report_id=REPORT).revise(
        ReportStatus.FINAL, findings, said, author=DOCTOR, at=NOW
    )
    if status is ReportStatus.FINAL:
        return report
    later = NOW + timedelta(hours=1)
    return report.revise(
        status, findings, said, author=DOCTOR, at=later, reason="左右侧更正"
    )


def print_report(
    report: Report, language: str = "zh-CN", *, both: bool = False, **header: object
) -> bytes:
    figures = {
        lesion.tracking_uid: make_figure(lesion)
        for lesion in report.current.findings.lesions
    }
    return build_report_pdf(
        report,
        report.current,
        make_header("2.25.2001", **header),
        figures,
        equipment=replace(EQUIPMENT, language=language),
        both_languages=both,
    )


def text_of(pdf: bytes) -> str:
    """Return the text of all pages; typesetting spaces between 汉字 and figures."""
    return "\n".join(page.extract_text() for page in PdfReader(BytesIO(pdf)).pages)


def test_the_page_says_whose_report_it_is_what_was_found_and_who_signed() -> None:
    text = text_of(print_report(sign(make_lesion(category="4B"))))
    for expected in (
        "示范医院",
        "乳腺超声检查报告",
        "王小东 (Wang XiaoDong)",
        "BUS-0001",
        "1980-02-14",
        "45 岁",
        "ACC0001",
        "2026-01-02 09:00",
        "4B Moderate suspicion",
        "空芯针活检",
        "建议活检",
        "左乳",
        "11.8 mm",
        "11.2 × 7.1 × — mm",
        "成角、毛刺",
        "李明 (Li Ming)",
        "2026-11-21 16:00 (UTC+08:00)",
        result_uid(REPORT, 2, VERIFIED_SR),
        "sononode breast ResNet50",
        "AI 热力图",
    ):
        assert expected in text
    assert "给患者的话" not in text
    assert "0.873" not in text  # the physician answers for it, the machine does not
    assert "87" not in text


def test_what_a_person_typed_is_printed_and_never_obeyed() -> None:
    text = text_of(print_report(sign()))
    for line in WORDS.split("\n")[1:]:
        assert line in text


def test_both_languages_stand_on_a_page_when_asked_for() -> None:
    zh, en, both = (
        text_of(print_report(sign(make_lesion()), language, both=also))
        for language, also in (("zh-CN", False), ("en", False), ("zh-CN", True))
    )
    assert "Irregular" not in zh
    assert "不规则形" not in en
    assert "不规则形 Irregular" in both
    for text in (zh, en, both):  # the assessment in both, whatever the page is in
        concept = lexicon.category("4B").concept
        assert concept.en in text
        assert concept.zh.split()[-1] in text


def test_every_term_of_the_lexicon_can_be_printed() -> None:
    for language in lexicon.LANGUAGES:
        for key, field in lexicon.FIELDS.items():
            for term in field.terms:
                lesion = make_lesion(descriptors={key: (term.key,)})
                words = term.concept.zh if language == "zh-CN" else term.concept.en
                page = text_of(print_report(sign(lesion), language)).replace("\n", " ")
                assert words in page


def test_what_nobody_measured_or_assessed_is_a_dash_and_never_zero() -> None:
    bare = make_lesion(
        extent=None, descriptors={}, clock=None, laterality=None, category=None,
        distance_from_nipple_mm=None,
    )  # fmt: skip
    text = text_of(print_report(sign(bare), StudyTime="", PatientBirthDate=""))
    for label in ("最大径", "边缘", "部位", "出生日期", "宽 × 高 × 第三径"):
        assert f"{label} —" in text
    assert " mm" not in text.replace("标尺 10 mm", "")


def test_calcifications_that_were_looked_for_and_not_seen_are_told() -> None:
    seen = text_of(print_report(sign(make_lesion())))
    assert "钙化 未见钙化" in seen


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (ReportStatus.AMENDED, "修订报告"),
        (ReportStatus.CORRECTED, "更正报告"),
        (ReportStatus.APPENDED, "补充报告"),
    ],
)
def test_a_changed_report_says_what_it_replaces_and_why(
    status: ReportStatus, words: str
) -> None:
    text = text_of(print_report(sign(make_lesion(), status=status)))
    assert words in text
    assert "替代 2026-11-21 16:00 (UTC+08:00) 签发的第 2 版" in text
    assert "左右侧更正" in text
    assert "2026-11-21 17:00" in text


def test_loose_pages_find_together() -> None:
    lesions = [make_lesion(tracking_uid=f"2.25.{n}") for n in range(1, 6)]
    pages = PdfReader(BytesIO(print_report(sign(*lesions)))).pages
    assert len(pages) > 2
    for number, page in enumerate(pages, start=1):
        text = page.extract_text()
        assert f"第 {number} 页，共 {len(pages)} 页" in text
        assert "王小东" in text
        assert str(REPORT) in text
        assert [float(side) for side in page.mediabox[2:]] == pytest.approx(
            [595.28, 841.89], abs=0.1
        )


def test_a_very_long_report_still_fits() -> None:
    report = sign(make_lesion(), impression="左乳低回声结节，" * 1500)
    assert text_of(print_report(report)).count("结") == 1500


def test_the_file_is_archivable_tagged_and_does_not_name_the_patient_outside() -> None:
    reader = PdfReader(BytesIO(print_report(sign(make_lesion()))))
    root = reader.trailer["/Root"]
    xmp = root["/Metadata"].get_data().decode()
    assert "<pdfaid:part>2</pdfaid:part>" in xmp
    assert "<pdfaid:conformance>A</pdfaid:conformance>" in xmp
    assert "<pdfuaid:part>1</pdfuaid:part>" in xmp
    assert root["/MarkInfo"]["/Marked"]
    assert root["/Lang"] == "zh"
    assert reader.metadata is not None
    outside = xmp + " ".join(map(str, reader.metadata.values()))
    assert "王" not in outside
    assert "Wang" not in outside
    assert "BUS-0001" not in outside
    fonts = reader.pages[0]["/Resources"]["/Font"]
    for font in fonts.values():
        inner = font["/DescendantFonts"][0]["/FontDescriptor"]
        assert "/FontFile3" in inner  # embedded ...
        assert "+" in inner["/FontName"]  # ... and only the signs that are used


def test_a_retry_prints_the_same_bytes_quickly() -> None:
    report = sign(make_lesion())
    first = print_report(report)
    started = process_time()
    assert print_report(report) == first
    assert process_time() - started < 1


@pytest.mark.parametrize("name", ["Li^Ming=李^\ue0a3", "Li^Ming=李^🙂"])
def test_a_name_with_a_sign_that_the_font_lacks_is_not_printed(name: str) -> None:
    with pytest.raises(NodeError) as caught:
        print_report(sign(), PatientName=name)
    assert caught.value.kind is ErrorKind.UNSUPPORTED
    assert "李" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_font_is_told_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "noto_cjk_sans_otc", None)
    report_pdf._fonts.cache_clear()
    try:
        with pytest.raises(NodeError, match="make setup") as caught:
            print_report(sign())
    finally:
        report_pdf._fonts.cache_clear()
    assert caught.value.kind is ErrorKind.SETTING


def test_rare_signs_of_names_are_printed() -> None:
    name = "Xing^=邢^䶮𬤊㛃龑"
    assert "邢䶮𬤊㛃龑" in text_of(print_report(sign(), PatientName=name))


def test_control_characters_do_not_reach_the_page() -> None:
    text = text_of(print_report(sign(impression="a\x00b\x1b$)A\r\nc")))
    assert "a b $)A" in text


def test_an_unsigned_version_is_not_printed() -> None:
    draft = make_draft(report_id=REPORT)
    with pytest.raises(NodeError) as caught:
        print_report(draft)
    assert caught.value.kind is ErrorKind.RULE


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Wang^XiaoDong=王^小东", "王小东 (Wang XiaoDong)"),
        ("王^小东", "王小东"),
        ("王小东", "王小东"),
        ("Li^Ming", "Li Ming"),
        ("Li^Ming==", "Li Ming"),
        ("", ""),
    ],
)
def test_names_are_shown_as_people_read_them(name: str, shown: str) -> None:
    assert shown_name(name) == shown


# -- figures ------------------------------------------------------------------


def test_a_figure_is_cut_to_the_region_and_the_outline_moves_with_it() -> None:
    svg, bar = outlined(make_frame(), make_lesion(), [REGION])
    assert 'viewBox="0 0 720 480"' in svg
    assert 'points="60.5,60.5 139.5,60.5 100.5,109.5 60.5,60.5"' in svg
    assert bar == 10
    assert 'width="100.0"' in svg  # 10 mm at 0.1 mm a pixel


def test_a_box_is_drawn_dashed_and_never_as_a_contour() -> None:
    svg, _ = outlined(make_frame(), make_lesion(outline=()), [REGION])
    assert 'points="60.0,60.0 140.0,60.0 140.0,110.0 60.0,110.0"' in svg
    assert "stroke-dasharray" in svg
    figure = Figure(svg)
    report = sign(make_lesion(outline=()))
    pdf = build_report_pdf(
        report,
        report.current,
        make_header(),
        {"2.25.1001": figure},
        equipment=EQUIPMENT,
    )
    assert "虚线" in text_of(pdf)


@pytest.mark.parametrize(
    "regions",
    [[], [replace(REGION, x1=5000)], [replace(REGION, x0=300)]],
    ids=["none", "beyond the image", "elsewhere"],
)
def test_without_a_fitting_region_the_frame_stays_whole_and_has_no_scale(
    regions: list[UltrasoundRegion],
) -> None:
    svg, bar = outlined(make_frame(), make_lesion(), regions)
    assert 'viewBox="0 0 800 600"' in svg
    assert bar is None


def test_an_uncalibrated_region_has_no_scale_bar() -> None:
    region = replace(REGION, physical_units_x=0)
    assert outlined(make_frame(), make_lesion(), [region])[1] is None


def test_a_lesion_without_a_picture_says_so() -> None:
    report = sign(make_lesion())
    pdf = build_report_pdf(
        report, report.current, make_header(), {}, equipment=EQUIPMENT
    )
    assert "无可显示的图像" in text_of(pdf)


def test_a_lesion_without_a_place_has_no_outline() -> None:
    svg, _ = outlined(make_frame(), make_lesion(outline=(), box=None), [REGION])
    assert "polygon" not in svg


# -- the instance -------------------------------------------------------------


def encapsulate(report: Report, pdf: bytes, **header: object) -> Dataset:
    return encapsulate_report(
        pdf,
        report,
        report.current,
        make_header("2.25.2001", **header),
        equipment=EQUIPMENT,
    )


@pytest.mark.parametrize("extra", [b"", b"\n"], ids=["one length", "the other"])
def test_the_instance_holds_the_pdf_and_points_to_the_verified_document(
    extra: bytes, tmp_path: Path
) -> None:
    report = make_signed()
    pdf = print_report(report) + extra
    path = tmp_path / "object.dcm"
    path.write_bytes(to_part10(encapsulate(report, pdf)))
    assert dciodvfy(path) == []
    stored = dcmread(path)
    assert len(stored.EncapsulatedDocument) % 2 == 0
    assert stored.EncapsulatedDocumentLength == len(pdf)
    assert stored.EncapsulatedDocument.startswith(pdf)
    (source,) = stored.SourceInstanceSequence
    assert source.ReferencedSOPInstanceUID == result_uid(REPORT, 2, VERIFIED_SR)
    assert stored.ConceptNameCodeSequence[0].CodeValue == "18748-4"
    assert str(stored.PatientName) == "Wang^XiaoDong=王^小东"
    assert stored.StudyInstanceUID == make_header().StudyInstanceUID
    assert stored.SoftwareVersions == "1.2.3"


def test_dciodvfy_accepts_the_instance_of_a_study_with_gaps(tmp_path: Path) -> None:
    report = make_signed()
    document = encapsulate(
        report, b"%PDF-1.7 ", PatientSex="unknown", AccessionNumber="", StudyTime=""
    )
    path = tmp_path / "object.dcm"
    path.write_bytes(to_part10(document))
    assert [line for line in dciodvfy(path) if "DICOMDIR" not in line] == []


def test_sizes_are_printed_as_they_were_measured() -> None:
    lesion = make_lesion(
        box=PixelBox(100, 120, 180, 170),
        extent=replace(
            make_lesion().extent,  # type: ignore[type-var]
            long_axis_mm=Decimal("20"),
            length_mm=Decimal("9.50"),
        ),
        descriptors={FieldKey.CALCIFICATIONS: ("macro", "in_mass")},
    )
    text = text_of(print_report(sign(lesion)))
    assert "20 mm" in text
    assert "11.2 × 7.1 × 9.5 mm" in text
    assert "大钙化灶、病变内微小钙化" in text
