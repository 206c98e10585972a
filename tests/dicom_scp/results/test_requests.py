"""Results name the order that they answer (PS3.3 C.17.2, C.7.3.1), and no other's."""

from dataclasses import replace
from datetime import date
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_scp.results.encode_report import encode_report
from dicom_scp.results.requests import add_requests, referenced_requests
from node.domain.order import Code, Order, OrderSource, OrderStatus, Step
from node.domain.study import Origin, PatientIdentity
from node.store.orders import NamedBy, StudyOrder
from node.store.store import Store
from node.workflow.orders import Placement, patient_of_order, place_order
from tests.conformance.judges import dciodvfy, dsrdump
from tests.dicom_scp.results.test_results import (
    SETTINGS,
    draft,
    make_image,
    results,
    sign,
    stored_bytes,
)
from tests.dicom_scp.ultrasound import STUDY, make_header

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

STEP = Step(
    scheduled_on=date(2026, 11, 21),
    accession_number="ACC-NEW",
    requested_procedure_description="乳腺超声",
    requested_procedure_code=Code("47079000", "SCT", "Ultrasonography of breast"),
    step_description="Breast US",
    placer_order_number="P-77",
    reason="触及肿块",
    study_instance_uid=STUDY,
)
OTHER = PatientIdentity("MRN-7", "Liu^Yan=刘^燕", birth_date=date(1990, 1, 2), sex="F")


async def order(store: Store, identity: PatientIdentity | None = None) -> Order:
    header = make_image()
    own = PatientIdentity(str(header.PatientID), str(header.PatientName))
    async with store.db.transaction() as tx:
        patient_id = await patient_of_order(store, tx, identity or own)
        placement = Placement("1", patient_id, OrderSource.REST, STEP)
        placed, _ = await place_order(store, tx, placement, by=None)
    return placed


async def encoded(store: Store) -> dict[Origin, Dataset]:
    """Draft and sign a report; return one object of each kind that came of it."""
    settings = replace(SETTINGS, key_images=True, segmentation=True)
    report = await draft(store)
    for version in (report, await sign(store, report)):
        payload = {"report_id": str(version.id), "version": version.current.number}
        await encode_report(store, payload, settings)
    found = await results(store)
    del found[Origin.RECEIVED]
    return {
        origin: dcmread(BytesIO(stored_bytes(store, made[0])))
        for origin, made in found.items()
    }


async def test_every_result_names_its_order_and_satisfies_dciodvfy(
    store: Store, tmp_path: Path
) -> None:
    placed = await order(store)
    made = await encoded(store)
    assert set(made) >= {
        *(Origin.AI_SR, Origin.VERIFIED_SR, Origin.HEAT_MAP, Origin.KEY_IMAGES),
        Origin.SEGMENTATION,
    }
    for origin, result in made.items():
        document = result.Modality in ("SR", "KO")
        keyword = (
            "ReferencedRequestSequence" if document else "RequestAttributesSequence"
        )
        (item,) = result[keyword].value
        assert item.AccessionNumber == "ACC-NEW", origin
        assert item.RequestedProcedureID == placed.step.requested_procedure_id
        assert item.StudyInstanceUID == STUDY
        assert item.RequestedProcedureDescription == "乳腺超声"
        if document:
            assert item.PlacerOrderNumberImagingServiceRequest == "P-77"
            assert item.FillerOrderNumberImagingServiceRequest == ""
        else:
            assert item.ScheduledProcedureStepID == placed.step.step_id
        path = tmp_path / f"{origin.value}.dcm"
        result.save_as(path)
        assert dciodvfy(path) == [], origin
        if result.Modality == "SR":
            assert dsrdump(path) == []


async def test_a_result_does_not_name_the_order_of_another_patient(
    store: Store,
) -> None:
    await order(store, OTHER)
    for origin, result in (await encoded(store)).items():
        assert "ReferencedRequestSequence" not in result, origin
        assert "RequestAttributesSequence" not in result, origin


def told(accession: str, procedure: str) -> Dataset:
    item = Dataset()
    item.AccessionNumber, item.RequestedProcedureID = accession, procedure
    return item


def named(*, agrees: bool) -> StudyOrder:
    step = replace(STEP, requested_procedure_id="RP", step_id="S")
    patient = uuid4()
    kept = Order(uuid4(), patient, OrderStatus.SCHEDULED, OrderSource.REST, "", step)
    return StudyOrder(kept, agrees, NamedBy.STUDY_UID)


def test_what_the_images_name_is_repeated_once_beside_the_known_order() -> None:
    items = [told("ACC-NEW", "RP"), told("ACC-OLD", "RP-9"), told("ACC-OLD", "RP-9")]
    sources = [make_header("2.25.2001", RequestAttributesSequence=items)]
    result = Dataset()
    result.Modality = "OT"
    add_requests(result, sources, [named(agrees=True)])
    numbers = [i.AccessionNumber for i in result.RequestAttributesSequence]
    assert numbers == ["ACC-NEW", "ACC-OLD"]
    assert len(referenced_requests(sources)) == 2


def test_nothing_of_the_images_is_repeated_once_they_name_another_patient() -> None:
    items = [told("ACC-NEW", "RP")]
    sources = [make_header("2.25.2001", RequestAttributesSequence=items)]
    result = Dataset()
    result.Modality = "SR"
    result.ReferencedRequestSequence = referenced_requests(sources)
    add_requests(result, sources, [named(agrees=False)])
    assert "ReferencedRequestSequence" not in result
