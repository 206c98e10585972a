"""Results for every study of the simulator, with the headers as the store keeps them.

Three header styles: UTF-8, GB18030 and `\\ISO 2022 IR 58`; stills and cines.
"""

import itertools
import json
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_scp.receiving.intake import json_header
from dicom_scp.results.heatmap import build_heat_map
from dicom_scp.results.key_objects import build_key_images
from dicom_scp.results.report_pdf import build_report_pdf, encapsulate_report
from dicom_scp.results.segmentation import build_segmentations
from dicom_scp.results.sr import build_ai_sr, to_part10
from dicom_scp.simulation.simulator import SimulatedStudy, plan_demo
from node.domain.finding import Findings, HeatMap, ImageReference
from node.domain.report import Conclusions, Report, ReportStatus
from node.imaging import read_header
from tests.conformance.judges import dciodvfy, dsrdump
from tests.dicom_scp.results.test_sr import EQUIPMENT, REPORT, make_version
from tests.factories import ALGORITHM, DOCTOR, NOW, make_lesion

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


# By name, because drawing them takes seconds that every process would wait for.
ACCESSION_NUMBERS = (
    "SIM25111501",
    *(f"SIM261120{number:02}" for number in range(2, 11)),
    "SIM26112199",
)


@pytest.fixture(scope="module")
def studies() -> dict[str, SimulatedStudy]:
    numbers = itertools.count(1)
    made = plan_demo(
        None,
        uid=lambda: f"2.25.77{next(numbers)}",
        now=datetime(2026, 11, 21, tzinfo=UTC),
    )
    return {study.accession_number: study for study in made}


def as_stored(instance: Dataset) -> Dataset:
    """Return the header after its way through the store."""
    file = BytesIO()
    instance.save_as(file, enforce_file_format=True)
    header = read_header(file)
    stored = Dataset.from_json(json.loads(json_header(header)))
    stored.file_meta = header.file_meta
    return stored


def test_every_simulated_study_is_judged(studies: dict[str, SimulatedStudy]) -> None:
    assert tuple(studies) == ACCESSION_NUMBERS


@pytest.mark.parametrize("accession_number", ACCESSION_NUMBERS)
def test_the_result_of_a_simulated_study_is_accepted(
    accession_number: str, studies: dict[str, SimulatedStudy], tmp_path: Path
) -> None:
    study = studies[accession_number]
    headers = [as_stored(instance) for instance in pictures_of(study)]
    image = headers[-1]
    frames = int(image.get("NumberOfFrames") or 1)
    lesion = make_lesion(
        image=ImageReference(str(image.SOPClassUID), str(image.SOPInstanceUID), frames)
    )
    version = make_version(Findings(lesions=(lesion,), category="4C"))
    capture = build_heat_map(
        np.full((30, 40, 3), 90, np.uint8),
        version,
        lesion,
        image,
        report_id=REPORT,
        equipment=EQUIPMENT,
        number=1,
    )
    shown = (HeatMap(lesion.tracking_uid, str(capture.SOPInstanceUID)),)
    version = make_version(Findings(lesions=(lesion,), category="4C", heat_maps=shown))
    document = build_ai_sr(
        version, headers, report_id=REPORT, equipment=EQUIPMENT, heat_maps=[capture]
    )
    path = tmp_path / "object.dcm"
    path.write_bytes(to_part10(capture))
    assert dciodvfy(path) == []
    path.write_bytes(to_part10(document))
    assert dciodvfy(path) == []
    assert dsrdump(path) == []
    assert dcmread(path).PatientName == headers[0].PatientName


def pictures_of(study: SimulatedStudy) -> list[Dataset]:
    """Return the images of a study, without what its machine measured."""
    return [instance for instance in study.instances if "Rows" in instance]


def test_what_goes_beside_the_report_of_a_simulated_study_is_accepted(
    studies: dict[str, SimulatedStudy], tmp_path: Path
) -> None:
    """One study for each character set, with stills and with cines."""
    kinds = {
        (str(last.get("SpecificCharacterSet")), "NumberOfFrames" in last): study
        for study in studies.values()
        for last in pictures_of(study)[-1:]
    }
    assert len(kinds) == 5
    for study in kinds.values():
        assert_what_goes_beside_it_is_accepted(study, tmp_path / "object.dcm")


def assert_what_goes_beside_it_is_accepted(study: SimulatedStudy, path: Path) -> None:
    headers = [as_stored(instance) for instance in pictures_of(study)]
    image = headers[-1]
    frames = int(image.get("NumberOfFrames") or 1)
    shown = ImageReference(str(image.SOPClassUID), str(image.SOPInstanceUID), frames)
    findings = Findings(lesions=(make_lesion(image=shown),), category="4C")
    report = Report(REPORT, str(image.StudyInstanceUID), REPORT)
    drafted = report.draft(findings, author=ALGORITHM, at=NOW)
    signed = drafted.revise(
        ReportStatus.FINAL, findings, Conclusions("左乳肿块"), author=DOCTOR, at=NOW
    )
    known_as = {"report_id": REPORT, "equipment": EQUIPMENT}
    pdf = build_report_pdf(signed, signed.current, headers[0], {}, equipment=EQUIPMENT)
    made = [
        *build_segmentations(drafted.current, headers, **known_as),
        build_key_images(drafted.current, headers, **known_as),
        build_key_images(signed.current, headers, **known_as),
        encapsulate_report(
            pdf, signed, signed.current, headers[0], equipment=EQUIPMENT
        ),
    ]
    for dataset in made:
        assert dataset is not None
        path.write_bytes(to_part10(dataset))
        assert dciodvfy(path) == [], study.accession_number
        stored = dcmread(path)
        assert stored.PatientName == headers[0].PatientName
        assert stored.StudyInstanceUID == headers[0].StudyInstanceUID
    assert len(made) == 4
