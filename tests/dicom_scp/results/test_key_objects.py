"""Key images and rejection notes: PS3.3 C.17.6, TID 2010, IHE RAD IOCM."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from highdicom.ko import KeyObjectSelectionDocument
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_scp.results.key_objects import build_key_images, build_rejection
from dicom_scp.results.sr import (
    SR_CLASSES,
    as_sop_class,
    names_documents,
    naming_documents_as,
    to_part10,
)
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Findings, ImageReference
from node.domain.report import Report, ReportStatus, ReportVersion
from tests.conformance.judges import dciodvfy, dsrdump
from tests.conformance.test_result_objects import make_heat_map
from tests.dicom_scp.results.test_sr import (
    EQUIPMENT,
    REPORT,
    make_ai,
    make_signed,
    make_sources,
    make_verified,
    make_version,
    walk,
)
from tests.factories import DOCTOR, NOW, make_lesion

CINE = "1.2.840.10008.5.1.4.1.1.3.1"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def make_withdrawn() -> Report:
    report = make_signed()
    return report.revise(
        ReportStatus.ENTERED_IN_ERROR,
        report.current.findings,
        report.current.conclusions,
        author=DOCTOR,
        at=NOW,
        reason="错误的患者",
    )


def choose(version: ReportVersion) -> Dataset | None:
    return build_key_images(
        version, make_sources(), report_id=REPORT, equipment=EQUIPMENT
    )


def make_ai_choice() -> Dataset:
    frames = [
        make_lesion(
            tracking_uid=f"2.25.{frame}", image=ImageReference(CINE, "2.25.2002", frame)
        )
        for frame in (5, 3)
    ]
    chosen = choose(make_version(Findings(lesions=(make_lesion(), *frames))))
    assert chosen is not None
    return chosen


def make_doctors_choice() -> Dataset:
    chosen = choose(make_signed().current)
    assert chosen is not None
    return chosen


def make_rejection() -> Dataset:
    return build_rejection(
        make_withdrawn().current,
        [make_ai(), make_verified(), make_heat_map()],
        report_id=REPORT,
        equipment=EQUIPMENT,
    )


def title_of(document: Dataset) -> str:
    return str(document.ConceptNameCodeSequence[0].CodeValue)


def named(document: Dataset) -> list[str]:
    return [
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in walk(document)
        if "ReferencedSOPSequence" in item
    ]


@pytest.mark.parametrize("make", [make_ai_choice, make_doctors_choice, make_rejection])
def test_judges_accept_the_selection_and_highdicom_reads_it_back(
    make: Callable[[], Dataset], tmp_path: Path
) -> None:
    path = tmp_path / "object.dcm"
    path.write_bytes(to_part10(make()))
    assert dciodvfy(path) == []
    assert dsrdump(path) == []
    read = KeyObjectSelectionDocument.from_dataset(dcmread(path))
    for uid in named(read):
        assert read.resolve_reference(uid)[2] == uid
    assert to_part10(make()) == path.read_bytes()


def test_key_images_are_the_frames_that_lesions_were_drawn_on() -> None:
    document = make_ai_choice()
    assert title_of(document) == "113000"
    still, cine = (
        item.ReferencedSOPSequence[0]
        for item in document.ContentSequence
        if item.ValueType == "IMAGE"
    )
    assert "ReferencedFrameNumber" not in still
    assert list(cine.ReferencedFrameNumber) == [3, 5]


def test_whose_choice_it_is_stands_in_the_series_the_observer_and_the_words() -> None:
    ai, doctor = make_ai_choice(), make_doctors_choice()
    assert ai.SeriesInstanceUID != doctor.SeriesInstanceUID
    assert "AI" in ai.SeriesDescription
    assert "AI" not in doctor.SeriesDescription
    said = [str(i.get("TextValue", "")) for i in ai.ContentSequence]
    assert any("未经医师核实" in words for words in said)
    names = [str(i.PersonName) for i in doctor.ContentSequence if "PersonName" in i]
    assert names == ["Li^Ming=李^明"]
    assert not any("PersonName" in i for i in ai.ContentSequence)


@pytest.mark.parametrize(
    "findings",
    [
        Findings(),
        Findings(lesions=(make_lesion(image=None),)),
        Findings(lesions=(make_lesion(image=ImageReference(CINE, "2.25.9999")),)),
    ],
    ids=["no lesion", "lesion without image", "image elsewhere"],
)
def test_without_an_image_there_is_no_selection(findings: Findings) -> None:
    assert choose(make_version(findings)) is None


def test_a_rejection_names_every_result_and_why_but_no_image_of_the_machine() -> None:
    note = make_rejection()
    assert title_of(note) == "113037"
    assert named(note) == [
        str(make().SOPInstanceUID) for make in (make_ai, make_verified, make_heat_map)
    ]
    said = [str(i.get("TextValue", "")) for i in note.ContentSequence]
    assert any("错误的患者" in words for words in said)


def test_a_report_that_stands_is_not_rejected() -> None:
    with pytest.raises(NodeError) as caught:
        build_rejection(
            make_signed().current, [make_ai()], report_id=REPORT, equipment=EQUIPMENT
        )
    assert caught.value.kind is ErrorKind.RULE


@pytest.mark.parametrize("sop_class_uid", SR_CLASSES[1:])
def test_a_rejection_names_documents_as_the_archive_knows_them(
    sop_class_uid: str, tmp_path: Path
) -> None:
    note = make_rejection()
    assert names_documents(note)
    assert naming_documents_as(note, SR_CLASSES[0]) is note
    other = naming_documents_as(note, sop_class_uid)
    assert other.SOPInstanceUID != note.SOPInstanceUID
    assert named(other) == [
        str(as_sop_class(make_ai(), sop_class_uid).SOPInstanceUID),
        str(as_sop_class(make_verified(), sop_class_uid).SOPInstanceUID),
        str(make_heat_map().SOPInstanceUID),
    ]
    path = tmp_path / "object.dcm"
    path.write_bytes(to_part10(other))
    assert dciodvfy(path) == []
    read = KeyObjectSelectionDocument.from_dataset(dcmread(BytesIO(to_part10(other))))
    for uid in named(other):
        assert read.resolve_reference(uid)[2] == uid


def test_key_images_name_no_document() -> None:
    assert not names_documents(make_ai_choice())
