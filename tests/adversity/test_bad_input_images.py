"""Images that are stored and cannot be read: kept, named in both languages, mended.

What the receiver refuses is `tests/dicom_scp/receiving/test_scp.py`; here the image
is taken, because it is a document of the examination (PS3.4 B.2.3), and the AI has to
say that it did not look at it. DESIGN §1: a late instance reopens the study.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

from dicom_scp.simulation.simulator import SimulatedStudy
from tests.adversity.modality import data_set, stored_data_set
from tests.journeys.rig import (
    Caller,
    Installation,
    invented,
    make_study,
    new_uid,
    until,
)

PATIENT = invented(71, "Wu^Ping=吴^萍")
NOT_READ = "https://fhir.sononode.org/StructureDefinition/not-read"


def with_a_broken_frame(instance: Dataset) -> None:
    """JPEG by its label, noise by its content."""
    instance.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    instance.PixelData = encapsulate([b"\xff\xd8" + bytes(200) + b"\xff\xd9"])
    instance["PixelData"].VR = "OB"
    instance["PixelData"].is_undefined_length = True
    instance.LossyImageCompression = "01"


def without_frames(instance: Dataset) -> None:
    instance.NumberOfFrames = 0
    del instance.PixelData


def of_the_thyroid(instance: Dataset) -> None:
    instance.BodyPartExamined = "THYROID"


def spoiled(spoil: Callable[[Dataset], None]) -> SimulatedStudy:
    """Return a study of one image with something wrong about it."""
    study = make_study(PATIENT)
    (instance,) = study.instances
    spoil(instance)
    return study


@pytest.fixture(scope="module")
def doctor(node: Installation) -> Caller:
    return node.caller("li")


@pytest.fixture(scope="module")
def ehr(node: Installation) -> Caller:
    return node.caller("his")


def why_not_read(report: dict[str, object]) -> list[tuple[str, str]]:
    """Return the reasons of a report for images that were not read: 中文, English."""
    found = []
    for extension in report.get("extension", []):  # type: ignore[attr-defined]
        if extension["url"] == NOT_READ:
            (translation,) = extension["_valueString"]["extension"]
            found.append((extension["valueString"], translation["extension"][1]))
    return [(zh, en["valueString"]) for zh, en in found]


@pytest.mark.parametrize(
    ("spoil", "zh", "en"),
    [
        (with_a_broken_frame, "无法解码", "cannot be decoded"),
        (without_frames, "不含像素", "no pixel data"),
        (of_the_thyroid, "不是乳腺", "not the breast"),
    ],
)
def test_an_image_that_cannot_be_read_is_kept_and_the_report_says_why(
    node: Installation,
    doctor: Caller,
    ehr: Caller,
    spoil: Callable[[Dataset], None],
    zh: str,
    en: str,
) -> None:
    study = spoiled(spoil)
    node.send([study])
    report = doctor.report_of(study.study_instance_uid)
    ((told_zh, told_en),) = why_not_read(report)
    assert zh in told_zh
    assert en in told_en
    assert report["status"] == "partial"
    category = doctor.read(f"Observation/{report['id']}-category")
    assert "valueCodeableConcept" not in category  # nothing seen is not "negative"

    held = {stored_data_set(file) for file in ehr.retrieve(study.study_instance_uid)}
    assert data_set(study.instances[0]) in held


def test_an_image_sent_again_whole_is_read_and_the_report_follows(
    node: Installation, doctor: Caller
) -> None:
    """The machine sends the picture again as a new instance of the same study."""
    study = spoiled(with_a_broken_frame)
    node.send([study])
    uid = study.study_instance_uid
    first = doctor.report_of(uid)
    assert "valueCodeableConcept" not in doctor.read(
        f"Observation/{first['id']}-category"
    )
    (whole,) = make_study(PATIENT).instances
    whole.StudyInstanceUID = uid
    whole.AccessionNumber = study.accession_number
    whole.SOPInstanceUID = whole.file_meta.MediaStorageSOPInstanceUID = new_uid()
    whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    node.send([replace(study, instances=(whole,))])

    def read() -> dict[str, object] | None:
        category = doctor.read(f"Observation/{first['id']}-category")
        return category if "valueCodeableConcept" in category else None

    until("the second reading", read)
    report = doctor.read(f"DiagnosticReport/{first['id']}")
    assert len(why_not_read(report)) == 1  # the broken one is still named
