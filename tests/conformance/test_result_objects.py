"""Result objects before judges that are not ours: dicom3tools, DCMTK, Orthanc.

Accepted: no error, and no warning but that our private coding scheme is private.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import JPEGBaseline8Bit

from dicom_scp.results.heatmap import build_heat_map
from dicom_scp.results.key_objects import build_key_images, build_rejection
from dicom_scp.results.report_pdf import build_report_pdf, encapsulate_report
from dicom_scp.results.segmentation import build_segmentations
from dicom_scp.results.sr import SR_CLASSES, as_sop_class, build_ai_sr, to_part10
from dicom_scp.sending.scu import Destination, send_part10
from node.domain.finding import Findings, HeatMap
from node.domain.report import ReportStatus
from tests.conformance.judges import dciodvfy, dsrdump
from tests.conformance.orthanc import Orthanc
from tests.dicom_scp.results.test_sr import (
    EQUIPMENT,
    NOT_READ,
    REPORT,
    make_ai,
    make_signed,
    make_sources,
    make_verified,
    make_version,
)
from tests.dicom_scp.ultrasound import make_header
from tests.factories import DOCTOR, NOW, make_findings, make_lesion

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def make_heat_map(**source: object) -> Dataset:
    lesion = make_lesion(**({"laterality": None} if "Laterality" in source else {}))
    version = make_version(Findings(lesions=(lesion,)))
    header = make_header("2.25.2001", **source)
    if source.get("LossyImageCompression") == "01":
        header.file_meta = Dataset()
        header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return build_heat_map(
        np.full((31, 41, 3), 90, np.uint8),
        version,
        lesion,
        header,
        report_id=REPORT,
        equipment=EQUIPMENT,
        number=1,
    )


def make_explained() -> Dataset:
    version, capture = make_version(), make_heat_map()
    shown = (HeatMap("2.25.1001", str(capture.SOPInstanceUID)),)
    findings = replace(version.findings, heat_maps=shown, not_read=(NOT_READ,))
    return build_ai_sr(
        replace(version, findings=findings),
        make_sources(),
        report_id=REPORT,
        equipment=EQUIPMENT,
        heat_maps=[capture],
    )


def make_bare_lesions() -> Dataset:
    bare = make_lesion(
        box=None, outline=(), laterality=None, clock=None, descriptors={}, category=None
    )
    nowhere = make_lesion(tracking_uid="2.25.1003", image=None)
    return make_ai(Findings(lesions=(bare, nowhere)))


def make_nothing_read() -> Dataset:
    uids = [str(source.SOPInstanceUID) for source in make_sources()]
    return make_ai(
        Findings(not_read=tuple(replace(NOT_READ, sop_instance_uid=u) for u in uids))
    )


DOCUMENTS: dict[str, Callable[[], Dataset]] = {
    "ai": make_ai,
    "ai with heat map and unread image": make_explained,
    "ai without regions": make_bare_lesions,
    "ai without lesions": lambda: make_ai(Findings()),
    "ai with a normal study": lambda: make_ai(Findings(category="1")),
    "ai that read nothing": make_nothing_read,
    **{
        f"ai {category}": lambda category=category: make_ai(make_findings(category))  # type: ignore[misc]
        for category in ("0", "2", "3", "4A", "5", "6")
    },
    "verified": make_verified,
    "amended": lambda: make_verified(make_signed(ReportStatus.AMENDED)),
    **{
        f"verified as {sop_class_uid}": lambda u=sop_class_uid: as_sop_class(  # type: ignore[misc]
            make_verified(), u
        )
        for sop_class_uid in SR_CLASSES[1:]
    },
}
CAPTURES: dict[str, Callable[[], Dataset]] = {
    "heat map": make_heat_map,
    "heat map of an image without a side": lambda: make_heat_map(
        Laterality="", BodyPartExamined=""
    ),
    "heat map of a heart": lambda: make_heat_map(BodyPartExamined="HEART"),
    "heat map of a lossy image": lambda: make_heat_map(
        LossyImageCompression="01",
        LossyImageCompressionRatio=12.5,
        LossyImageCompressionMethod="ISO_10918_1",
    ),
    "heat map of a cine": lambda: make_heat_map(NumberOfFrames=5),
}


def keep(dataset: Dataset, folder: Path) -> Path:
    path = folder / "object.dcm"
    path.write_bytes(to_part10(dataset))
    return path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_dciodvfy_and_dsrdump_accept_the_document(name: str, tmp_path: Path) -> None:
    path = keep(DOCUMENTS[name](), tmp_path)
    assert dciodvfy(path) == []
    assert dsrdump(path) == []


@pytest.mark.parametrize("name", CAPTURES)
def test_dciodvfy_accepts_the_secondary_capture(name: str, tmp_path: Path) -> None:
    assert dciodvfy(keep(CAPTURES[name](), tmp_path)) == []


def test_dciodvfy_does_object_to_a_document_that_breaks_a_rule(tmp_path: Path) -> None:
    document = make_verified()
    del document.VerifyingObserverSequence
    assert dciodvfy(keep(document, tmp_path)) != []


# -- Orthanc ------------------------------------------------------------------


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    server = Orthanc(tmp_path_factory.mktemp("orthanc"))
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def make_segmentation() -> Dataset:
    (made,) = build_segmentations(
        make_version(), make_sources(), report_id=REPORT, equipment=EQUIPMENT
    )
    return made


def make_key_images() -> Dataset:
    made = build_key_images(
        make_version(), make_sources(), report_id=REPORT, equipment=EQUIPMENT
    )
    assert made is not None
    return made


def make_rejection() -> Dataset:
    report = make_signed()
    withdrawn = report.revise(
        ReportStatus.ENTERED_IN_ERROR,
        report.current.findings,
        report.current.conclusions,
        author=DOCTOR,
        at=NOW,
        reason="错误的患者",
    )
    return build_rejection(
        withdrawn.current,
        [make_ai(), make_verified()],
        report_id=REPORT,
        equipment=EQUIPMENT,
    )


def make_pdf() -> Dataset:
    report, header = make_signed(), make_sources()[0]
    pdf = build_report_pdf(report, report.current, header, {}, equipment=EQUIPMENT)
    return encapsulate_report(pdf, report, report.current, header, equipment=EQUIPMENT)


@pytest.mark.parametrize(
    "make",
    [
        make_explained,
        make_verified,
        make_heat_map,
        make_segmentation,
        make_key_images,
        make_rejection,
        make_pdf,
    ],
)
def test_orthanc_takes_the_object_and_gives_it_back_identical(
    make: Callable[[], Dataset], orthanc: Orthanc
) -> None:
    part10 = to_part10(make())
    destination = Destination("ORTHANC", "127.0.0.1", orthanc.dicom)
    uid = send_part10(part10, destination)
    assert send_part10(part10, destination) == uid  # a retry is the same instance
    returned = dcmread(BytesIO(orthanc.file(uid)))
    assert returned == dcmread(BytesIO(part10))


def test_orthanc_shows_the_name_and_the_flags_of_the_verified_report(
    orthanc: Orthanc,
) -> None:
    document = make_verified()
    destination = Destination("ORTHANC", "127.0.0.1", orthanc.dicom)
    returned = dcmread(
        BytesIO(orthanc.file(send_part10(to_part10(document), destination)))
    )
    assert str(returned.PatientName) == "Wang^XiaoDong=王^小东"
    assert returned.VerificationFlag == "VERIFIED"
    assert str(returned.VerifyingObserverSequence[0].VerifyingObserverName) == (
        "Li^Ming=李^明"
    )
