"""A study with a lesion in each breast: read, encoded, published, read again."""

import json
from collections.abc import Sequence
from datetime import date
from io import BytesIO

import pytest
import torch
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_scp.results.encode_report import ResultSettings, encode_report
from dicom_scp.results.sr import Equipment, to_part10
from dicom_scp.simulation.phantoms import PhantomLesion, build_phantom
from fhir.content import mapping
from fhir.content.masked import to_masked_report
from inference.assess import Reader
from inference.network import LesionNet, TorchNetwork
from inference.reading import ReadingSettings, assess_study
from node.domain.disclosure import patient_report
from node.domain.finding import Findings, Lesion
from node.domain.report import Conclusions, Report, ReportStatus
from node.domain.study import Origin
from node.store import reports, studies
from node.store.store import Store
from node.workflow.reporting import revise_report
from tests.dicom_scp.ultrasound import STUDY, make_header
from tests.factories import DOCTOR, make_patient
from tests.fhir.rig import TEXTS
from tests.inference.records import RECORD
from tests.intake import receive_object

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

REPORT_ID = reports.report_id_for(STUDY)
EXAM = mapping.Exam(date(2026, 1, 2), "ACC0001")


def view(uid: str, words: str, seed: int) -> Dataset:
    mass = PhantomLesion(x_mm=12, depth_mm=9, width_mm=8, height_mm=6, shape="oval")
    phantom = build_phantom((mass,), seed=seed, rows=240, columns=320)
    image = make_header(uid)
    del image.Laterality
    image.ImageComments = f"SIMULATED {words}"
    image.Rows, image.Columns = 240, 320
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.PixelData = phantom.pixels.tobytes()
    image["PixelData"].VR = "OB"
    return image


@pytest.fixture(scope="module")
def reader() -> Reader:
    torch.manual_seed(3)
    return Reader(TorchNetwork(LesionNet()), RECORD, read_simulated=True)


async def read_study(store: Store, reader: Reader, *images: Dataset) -> Report:
    for image in images:
        await receive_object(store, image, to_part10(image))
    async with store.db.transaction() as tx:
        closed = await studies.close_study(tx, STUDY, at=store.clock(), evidence="")
    assert closed is not None
    payload = {"study_instance_uid": STUDY, "generation": closed.generation}
    await assess_study(store, payload, reader, ReadingSettings())
    async with store.db.transaction() as tx:
        return await reports.read(tx, store, REPORT_ID)


async def stored(store: Store, origin: Origin) -> Sequence[Dataset]:
    async with store.db.transaction() as tx:
        found = await studies.instances_of(tx, store, STUDY, origin)
    objects = []
    for instance in found:
        with studies.open_blob(store, instance) as blob:
            objects.append(dcmread(BytesIO(blob.read())))
    return objects


async def test_two_lesions_stay_apart_from_the_pixels_to_the_phone(
    store: Store, reader: Reader
) -> None:
    left, right = view("2.25.11", "左乳3点", 1), view("2.25.12", "R 9:00 2cm FN", 2)
    report = await read_study(store, reader, left, right)
    lesions = report.current.findings.lesions
    drawn = {
        (lesion.laterality, lesion.clock): lesion.image.sop_instance_uid
        for lesion in lesions
        if lesion.image is not None
    }
    assert drawn == {("L", 3): "2.25.11", ("R", 9): "2.25.12"}
    uids = [lesion.tracking_uid for lesion in lesions]

    await encode_report(
        store,
        {"report_id": str(REPORT_ID), "version": 1},
        ResultSettings(
            Equipment.at_site(
                "示范医院", "SONONODE", "zh-CN", "+0800", software_version="1.2.3"
            ),
        ),
    )
    (document,) = await stored(store, Origin.AI_SR)
    captures = {str(c.SOPInstanceUID) for c in await stored(store, Origin.HEAT_MAP)}
    assert captures == {m.sop_instance_uid for m in report.current.findings.heat_maps}
    assert len(captures) == 2
    text = json.dumps(document.to_json_dict())
    assert all(name in text for name in (*uids, *captures))

    observations = mapping.to_observations(report, EXAM)
    roots = {o["id"]: o for o in observations if o["id"][-3:] in ("-l1", "-l2")}
    assert len(roots) == 2
    shown = [json.dumps(root, default=str) for root in roots.values()]
    for uid, root in zip(uids, shown, strict=True):
        (own,) = (
            m.sop_instance_uid
            for m in report.current.findings.heat_maps
            if m.tracking_uid == uid
        )
        assert uid in root
        assert own in root
        assert not any(other in root for other in captures - {own})

    await check_late_image(store, reader, uids)


async def check_late_image(store: Store, reader: Reader, uids: list[str]) -> None:
    """A late image brings a third lesion; the two keep their names and numbers."""
    again = await read_study(store, reader, view("2.25.13", "左乳9点", 3))
    lesions = {one.tracking_uid: one for one in again.current.findings.lesions}
    assert len(lesions) == 3
    assert set(uids) < set(lesions)
    numbers = mapping.lesion_numbers(again)
    assert [numbers[uid] for uid in uids] == [1, 2]

    benign = Findings(
        lesions=tuple(
            Lesion(uid, laterality=one.laterality, clock=one.clock, category="2")
            for uid, one in lesions.items()
        ),
        category="2",
    )
    async with store.db.transaction() as tx:
        signed = await revise_report(
            store,
            tx,
            REPORT_ID,
            ReportStatus.FINAL,
            benign,
            Conclusions(impression="双乳良性结节"),
            author=DOCTOR,
        )
    masked = patient_report(
        signed,
        make_patient(),
        examined_on=date(2026, 1, 2),
        handle="A" * 22,
        patient_handle="B" * 22,
        department_phone="010-55551234",
        texts=TEXTS,
    )
    assert {(p.laterality, p.clock) for p in masked.trend} == {
        ("L", 3),
        ("R", 9),
        ("L", 9),
    }
    assert json.dumps(to_masked_report(masked), default=str).count("trend-point") == 3
