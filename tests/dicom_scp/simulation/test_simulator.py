"""The simulator sends valid ultrasound objects of invented women (PS3.3 A.6, A.7)."""

import asyncio
import csv
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from io import BytesIO
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.filewriter import dcmwrite
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.transport import ThreadedAssociationServer

from dicom_scp.receiving.scp import StorageScp
from dicom_scp.simulation.phantoms import PhantomLesion, build_phantom
from dicom_scp.simulation.scanner import invalid_id_number
from dicom_scp.simulation.simulator import (
    PATIENTS,
    Expectation,
    Sent,
    SimulatedStudy,
    plan_demo,
    read_studies,
    send,
)
from node.domain.errors import ErrorKind, NodeError
from node.imaging import BytesReader, StoredImage, ultrasound_regions
from node.store.store import Store
from node.store.studies import instances_of

StartScp = Callable[..., Awaitable[StorageScp]]

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
DCIODVFY = Path(sys.executable).parent / "dciodvfy"


def uid_source() -> Iterator[str]:
    return (f"2.25.{n}" for n in count(1000))


@pytest.fixture(scope="module")
def studies() -> list[SimulatedStudy]:
    uids = uid_source()
    return plan_demo(None, uid=lambda: next(uids), now=NOW)


def part10(dataset: object) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_demo_shows_every_kind_of_study(studies: list[SimulatedStudy]) -> None:
    instances = [i for study in studies for i in study.instances]
    assert len({str(i.PatientID) for i in instances}) >= 6
    assert {str(i.file_meta.TransferSyntaxUID) for i in instances} == {
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.4.50",
        "1.2.840.10008.1.2.5",
    }
    assert any(study.prior for study in studies)
    assert any(int(i.get("NumberOfFrames", 1)) > 10 for i in instances)
    assert any(study.expectation is Expectation.NOT_READ for study in studies)
    kinds = {str(i.get("PhotometricInterpretation", "")) for i in instances}
    assert {"MONOCHROME2", "RGB", "YBR_FULL_422"} <= kinds
    assert any(i.Modality == "SR" for i in instances)


@pytest.mark.skipif(not DCIODVFY.exists(), reason="dicom3tools is not installed")
def test_objects_have_no_error_for_dciodvfy(
    studies: list[SimulatedStudy], tmp_path: Path
) -> None:
    for study in studies:
        if "pydicom" in study.description:
            continue  # somebody else's object
        for instance in study.instances:
            path = tmp_path / f"{instance.SOPInstanceUID}.dcm"
            path.write_bytes(part10(instance))
            told = subprocess.run(
                [DCIODVFY, "-new", path], capture_output=True, text=True, check=False
            )
            lines = (told.stdout + told.stderr).splitlines()
            assert [line for line in lines if line.startswith("Error")] == []


def test_names_arrive_in_han_from_every_character_set(
    studies: list[SimulatedStudy],
) -> None:
    by_set = {}
    for study in studies:
        image = StoredImage.open(BytesReader(part10(study.instances[0])))
        label = str(study.instances[0].get("SpecificCharacterSet"))
        by_set[label] = str(image.header.PatientName)
    assert by_set["GB18030"] in {p.name for p in PATIENTS}
    assert "王^小东" in by_set["['', 'ISO 2022 IR 58']"]


def test_calibration_of_a_picture_measures_its_lesion(
    studies: list[SimulatedStudy],
) -> None:
    study = next(s for s in studies if s.description == "Breast US, follow-up")
    image = StoredImage.open(BytesReader(part10(study.instances[0])))
    (region,) = ultrasound_regions(image.header)
    scale = region.millimetres_per_pixel(image.picture.rows, image.picture.columns)
    assert scale is not None
    width_mm = (region.x1 - region.x0 + 1) * scale[0]
    assert width_mm == pytest.approx(760 * 0.065, rel=0.01)


def test_uncalibrated_picture_states_no_scale(studies: list[SimulatedStudy]) -> None:
    study = next(s for s in studies if "Smith" in str(s.instances[0].PatientName))
    image = StoredImage.open(BytesReader(part10(study.instances[0])))
    (region,) = ultrasound_regions(image.header)
    assert region.millimetres_per_pixel(768, 1024) is None


def test_simulated_is_said_in_the_header_and_outside_the_picture(
    studies: list[SimulatedStudy],
) -> None:
    instance = studies[0].instances[0]
    assert "SIMULATED" in instance.ImageComments
    assert instance.ContentQualification == "RESEARCH"
    image = StoredImage.open(BytesReader(part10(instance)))
    (region,) = ultrasound_regions(image.header)
    page = image.frame(0).copy()
    page[region.y0 : region.y1 + 1, region.x0 : region.x1 + 1] = 0
    assert page[region.y1 + 1 :].max() > 200


def test_identity_numbers_fail_their_check_digit() -> None:
    weights = [2 ** (17 - place) % 11 for place in range(17)]
    for serial in range(200):
        number = invalid_id_number("19800101", serial)
        assert len(number) == 18
        total = sum(int(d) * w for d, w in zip(number[:17], weights, strict=True))
        assert number[17] != "10X98765432"[total % 11]


def test_phantom_is_reproducible_and_its_boxes_hold_the_lesion() -> None:
    lesion = PhantomLesion(13, 12, 9, 6, echo_pattern="anechoic", shape="oval")
    first = build_phantom((lesion,), seed=5, rows=380, columns=400)
    second = build_phantom((lesion,), seed=5, rows=380, columns=400)
    assert np.array_equal(first.pixels, second.pixels)
    ((x0, y0, x1, y1),) = first.boxes
    assert (x1 - x0) * 0.065 == pytest.approx(9, abs=0.3)
    assert (y1 - y0) * 0.065 == pytest.approx(6, abs=0.3)
    middle = first.pixels[y0 + 30 : y1 - 30, x0 + 40 : x1 - 40]
    assert middle.mean() + 40 < first.pixels[y0:y1, x1 + 15 : x1 + 60].mean()


@pytest.mark.parametrize("feature", ["enhancement", "shadowing"])
def test_posterior_feature_changes_what_lies_behind(feature: str) -> None:
    plain = PhantomLesion(13, 10, 9, 6)
    marked = PhantomLesion(13, 10, 9, 6, posterior_features=feature)
    behind = []
    for lesion in (plain, marked):
        phantom = build_phantom((lesion,), seed=6, rows=380, columns=400)
        _, _, _, bottom = phantom.boxes[0]
        behind.append(phantom.pixels[bottom + 12 : bottom + 60, 180:220].mean())
    difference = float(behind[1] - behind[0])
    assert difference > 8 if feature == "enhancement" else difference < -8


def test_manifest_gives_pictures_of_the_test_split_only(tmp_path: Path) -> None:
    columns = ("id", "set", "file", "shipped", "label", "split", "pixel_mm", "view")
    rows = [
        ("a", "set1", "a.png", "1", "benign", "test", "0.1", ""),
        ("b", "set1", "b.png", "1", "malignant", "train", "0.1", ""),
        ("c", "set1", "../../etc/passwd", "1", "benign", "test", "", ""),
        ("d", "set1", "d.png", "1", "malignant", "test", "", "right"),
    ]
    for name in ("a", "b", "d"):
        Image.new("L", (120, 100), 90).save(tmp_path / f"{name}.png")
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    uids = uid_source()
    studies = plan_demo(tmp_path, uid=lambda: next(uids), now=NOW)
    real = [s for s in studies if "public set" in s.description]
    assert len(real) == 2
    regions = [ultrasound_regions(s.instances[0])[0] for s in real]
    scales = [r.millimetres_per_pixel(768, 1024) is not None for r in regions]
    assert scales == [True, False]
    assert any(s.expectation is Expectation.NOT_READ for s in studies)


def test_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NodeError) as caught:
        plan_demo(tmp_path, uid=lambda: "2.25.1", now=NOW)
    assert caught.value.kind is ErrorKind.SETTING


@pytest.fixture
def scp() -> Iterator[tuple[int, list[str]]]:
    """A storage SCP that takes everything but RLE; yields its port and what it got."""
    got: list[str] = []

    def take(event: Event) -> int:
        assert isinstance(event.request, C_STORE)
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    entity = AE(ae_title="SONONODE")
    for sop_class_uid in (
        "1.2.840.10008.5.1.4.1.1.6.1",
        "1.2.840.10008.5.1.4.1.1.3.1",
        "1.2.840.10008.5.1.4.1.1.88.33",
    ):
        entity.add_supported_context(
            sop_class_uid, ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"]
        )
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, take)]
    )
    assert isinstance(server, ThreadedAssociationServer)
    assert server.socket is not None
    yield server.socket.getsockname()[1], got
    server.shutdown()


def test_every_instance_is_answered_and_a_refused_syntax_is_told(
    studies: list[SimulatedStudy], scp: tuple[int, list[str]]
) -> None:
    port, got = scp
    seen: list[Sent] = []
    threads = set()

    def progress(answer: Sent) -> None:
        seen.append(answer)
        threads.add(threading.get_ident())

    answers = send(
        studies[:4],
        host="127.0.0.1",
        port=port,
        clock=lambda: NOW,
        associations=2,
        progress=progress,
    )
    instances = [i for study in studies[:4] for i in study.instances]
    assert len(answers) == len(seen) == len(instances)
    rle = {
        str(i.SOPInstanceUID)
        for i in instances
        if i.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.5"
    }
    assert rle
    assert {a.sop_instance_uid for a in answers if not a.stored} == rle
    assert {a.sop_instance_uid for a in answers if a.stored} == set(got)


async def test_node_stores_every_study_of_the_demo(
    studies: list[SimulatedStudy], start_scp: StartScp, store: Store
) -> None:
    scp = await start_scp()
    answers = await asyncio.to_thread(
        send, studies, host="127.0.0.1", port=scp.ports[0], clock=lambda: NOW
    )
    assert [answer for answer in answers if not answer.stored] == []
    async with store.db.transaction() as tx:
        for study in studies:
            found = await instances_of(tx, store, study.study_instance_uid)
            assert len(found) == len(study.instances)
            frames = [
                int(i.get("NumberOfFrames", None) or ("Rows" in i))
                for i in study.instances
            ]
            assert [len(one.frame_table) for one in found] == frames


def test_nobody_listening_is_named(studies: list[SimulatedStudy]) -> None:
    with pytest.raises(NodeError) as caught:
        send(studies[:1], host="127.0.0.1", port=1, clock=lambda: NOW)
    assert caught.value.kind is ErrorKind.UNAVAILABLE


def test_files_and_folders_are_read_as_they_are(
    studies: list[SimulatedStudy], tmp_path: Path
) -> None:
    for instance in studies[1].instances:
        (tmp_path / f"{instance.SOPInstanceUID}.dcm").write_bytes(part10(instance))
    (tmp_path / "readme.txt").write_text("not DICOM")
    (found,) = read_studies([tmp_path])
    assert found.study_instance_uid == studies[1].study_instance_uid
    assert len(found.instances) == len(studies[1].instances)
