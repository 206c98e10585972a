"""A report version becomes instances of its study, once, and goes to the archive."""

import json
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt

from dicom_scp.results.encode_report import ResultSettings, encode_report
from dicom_scp.results.sr import AI_SR, SR_CLASSES, VERIFIED_SR, Equipment, to_part10
from dicom_scp.sending.delivery import send_instance
from dicom_scp.sending.routing import results_to
from dicom_scp.sending.scu import Destination, DimseSender
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Findings, HeatMap, ImageReference
from node.domain.report import Conclusions, Report, ReportStatus
from node.domain.study import Origin
from node.domain.uids import heat_map_uid, result_uid
from node.store import audit, identities, models, studies
from node.store.models import KnownModel
from node.store.models import Origin as ModelOrigin
from node.store.overlays import write_overlay
from node.store.reports import report_id_for
from node.store.store import Store
from node.store.studies import StoredInstance
from node.workflow.reporting import draft_report, revise_report
from tests.dicom_scp.ultrasound import STUDY, make_header
from tests.factories import ALGORITHM, DOCTOR, make_lesion
from tests.intake import receive_object

SETTINGS = ResultSettings(
    Equipment.at_site(
        "示范医院", "SONONODE", "zh-CN", "+0800", software_version="1.2.3"
    ),
    results_to("ARCHIVE"),
    key_images=False,
    pdf="none",
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def make_image() -> Dataset:
    image = make_header("2.25.2001")
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.PixelData = bytes(600 * 800)
    image["PixelData"].VR = "OB"
    return image


async def receive(store: Store, dataset: Dataset) -> None:
    await receive_object(store, dataset, to_part10(dataset))


def make_png() -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((31, 41, 3), 90, np.uint8)).save(file, "PNG")
    return file.getvalue()


async def draft(store: Store, *, overlay: bool = True) -> Report:
    """Receive a study and let the algorithm draft its report, as the reading does."""
    await receive(store, make_image())
    report_id = report_id_for(STUDY)
    lesion = make_lesion()
    uid = heat_map_uid(report_id, 1, lesion.tracking_uid)
    async with store.db.transaction() as tx:
        study = await studies.study(tx, STUDY)
        assert study is not None
        sealer = await store.ring.patient(tx, study.patient_id)
        if overlay:
            write_overlay(store, sealer, uid, make_png())
        return await draft_report(
            store,
            tx,
            STUDY,
            Findings(
                lesions=(lesion,),
                category="4C",
                heat_maps=(HeatMap(lesion.tracking_uid, uid),),
            ),
            author=ALGORITHM,
        )


async def sign(store: Store, report: Report, category: str = "4B") -> Report:
    signed = report.current.signed
    findings = Findings(lesions=(make_lesion(category=category),), category=category)
    async with store.db.transaction() as tx:
        return await revise_report(
            store,
            tx,
            report.id,
            ReportStatus.AMENDED if signed else ReportStatus.FINAL,
            findings,
            Conclusions(impression="左乳肿块"),
            author=DOCTOR,
            reason="重新评估" if signed else None,
        )


async def encode(store: Store, report: Report) -> None:
    payload = {"report_id": str(report.id), "version": report.current.number}
    await encode_report(store, payload, SETTINGS)


async def results(store: Store) -> dict[Origin, list[StoredInstance]]:
    async with store.db.transaction() as tx:
        found = await studies.instances_of(tx, store, STUDY)
    by_origin: dict[Origin, list[StoredInstance]] = {}
    for instance in found:
        by_origin.setdefault(instance.origin, []).append(instance)
    return by_origin


def stored_bytes(store: Store, instance: StoredInstance) -> bytes:
    with studies.open_blob(store, instance) as reader:
        return reader.read()


async def jobs_waiting(store: Store, kind: str) -> list[dict[str, Any]]:
    payloads = []
    while (job := await store.jobs.claim([kind], "test", lane="ARCHIVE")) is not None:
        payloads.append(dict(job.payload))
        await store.jobs.done(job)
    return payloads


def blob_count(store: Store) -> int:
    return sum(1 for path in store.blobs._root.rglob("*") if path.is_file())


async def test_a_draft_becomes_a_heat_map_and_an_ai_sr_of_the_study(
    store: Store,
) -> None:
    report = await draft(store)
    await encode(store, report)
    found = await results(store)
    (document,), (capture,) = found[Origin.AI_SR], found[Origin.HEAT_MAP]
    assert document.sop_instance_uid == result_uid(report.id, 1, AI_SR)
    assert capture.sop_instance_uid == heat_map_uid(report.id, 1, "2.25.1001")
    assert document.modality == "SR"
    stored = dcmread(BytesIO(stored_bytes(store, document)))
    assert stored.VerificationFlag == "UNVERIFIED"
    assert str(stored.PatientName) == "Wang^XiaoDong=王^小东"
    assert capture.sop_instance_uid in stored.to_json()
    picture = dcmread(BytesIO(stored_bytes(store, capture)))
    assert picture.pixel_array.shape == (31, 41, 3)
    assert capture.frame_table


async def test_the_sr_names_the_model_with_the_whole_hash_of_its_weights(
    store: Store,
) -> None:
    model = KnownModel(
        ALGORITHM.id,
        "breast",
        "1.0",
        "ab" * 32,
        "cd" * 32,
        ModelOrigin.ADDED,
        store.clock(),
        "me",
    )
    async with store.db.transaction() as tx:
        await models.register(tx, model)
    await encode(store, await draft(store))
    (document,) = (await results(store))[Origin.AI_SR]
    stored = dcmread(BytesIO(stored_bytes(store, document)))
    assert f"weights SHA-256 {'ab' * 32}" in stored.to_json()


async def test_a_report_whose_overlay_is_gone_goes_without_it(store: Store) -> None:
    await encode(store, await draft(store, overlay=False))
    found = await results(store)
    assert Origin.HEAT_MAP not in found
    assert len(found[Origin.AI_SR]) == 1


async def test_signing_and_amending_each_add_a_successor(store: Store) -> None:
    drafted = await draft(store)
    signed = await sign(store, drafted)
    amended = await sign(store, signed, "4C")
    for report in (drafted, signed, amended):
        await encode(store, report)
    documents = [
        dcmread(BytesIO(stored_bytes(store, i)))
        for i in (await results(store))[Origin.VERIFIED_SR]
    ]
    replaced = [
        d.PredecessorDocumentsSequence[0]
        .ReferencedSeriesSequence[0]
        .ReferencedSOPSequence[0]
        .ReferencedSOPInstanceUID
        for d in documents
    ]
    assert replaced == [
        result_uid(drafted.id, 1, AI_SR),
        result_uid(drafted.id, 2, VERIFIED_SR),
    ]


async def test_a_physicians_draft_and_a_withdrawal_make_no_object(
    store: Store,
) -> None:
    report = await draft(store)
    async with store.db.transaction() as tx:
        report = await revise_report(
            store,
            tx,
            report.id,
            ReportStatus.PRELIMINARY,
            report.current.findings,
            Conclusions(),
            author=DOCTOR,
        )
    await encode(store, report)
    report = await sign(store, report)
    async with store.db.transaction() as tx:
        report = await revise_report(
            store,
            tx,
            report.id,
            ReportStatus.ENTERED_IN_ERROR,
            report.current.findings,
            report.current.conclusions,
            author=DOCTOR,
            reason="错误的患者",
        )
    await encode(store, report)
    assert set(await results(store)) == {Origin.RECEIVED}


async def test_a_retry_adds_nothing_and_leaves_nothing_behind(store: Store) -> None:
    report = await draft(store)
    await encode(store, report)
    before, blobs = await results(store), blob_count(store)
    assert len(await jobs_waiting(store, "send_instance")) == 2
    await encode(store, report)
    assert await results(store) == before
    assert blob_count(store) == blobs
    assert await jobs_waiting(store, "send_instance") == []


async def test_every_result_is_to_be_sent_to_every_destination(store: Store) -> None:
    await encode(store, await draft(store))
    found = await results(store)
    expected = [
        {
            "sop_instance_uid": i.sop_instance_uid,
            "study_instance_uid": STUDY,
            "destination": "ARCHIVE",
        }
        for i in (*found[Origin.HEAT_MAP], *found[Origin.AI_SR])
    ]
    waiting = await jobs_waiting(store, "send_instance")
    assert sorted(waiting, key=json.dumps) == sorted(expected, key=json.dumps)


async def test_a_report_on_an_image_that_is_not_stored_is_a_dead_letter(
    store: Store,
) -> None:
    await receive(store, make_image())
    elsewhere = make_lesion(
        image=ImageReference("1.2.840.10008.5.1.4.1.1.6.1", "2.25.9999")
    )
    async with store.db.transaction() as tx:
        report = await draft_report(
            store, tx, STUDY, Findings(lesions=(elsewhere,)), author=ALGORITHM
        )
    with pytest.raises(NodeError) as caught:
        await encode(store, report)
    assert caught.value.kind is ErrorKind.INTEGRITY


@pytest.fixture
def archive() -> Iterator[tuple[Destination, list[bytes]]]:
    received: list[bytes] = []

    def keep(event: evt.Event) -> int:
        received.append(event.request.DataSet.getvalue())
        return 0x0000

    ae = AE(ae_title="ARCHIVE")
    for sop_class_uid in (*SR_CLASSES, "1.2.840.10008.5.1.4.1.1.7"):
        ae.add_supported_context(sop_class_uid, ExplicitVRLittleEndian)
    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)]
    )
    assert server is not None
    yield Destination("ARCHIVE", "127.0.0.1", server.server_address[1]), received
    server.shutdown()


async def test_stored_results_reach_the_archive_and_the_audit_trail(
    store: Store, archive: tuple[Destination, list[bytes]]
) -> None:
    destination, received = archive
    await encode(store, await draft(store))
    for payload in await jobs_waiting(store, "send_instance"):
        await send_instance(
            store,
            payload,
            {"ARCHIVE": DimseSender(destination, keep_s=0)},
            SETTINGS.routing,
        )
    assert len(received) == 2
    (document,) = (await results(store))[Origin.AI_SR]
    assert any(stored_bytes(store, document).endswith(body) for body in received)
    entity = f"instance/{document.sop_instance_uid}"
    async with store.db.transaction() as tx:
        entries: list[AuditEntry] = await audit.entries(tx, entity=entity)
    assert [entry.action for entry in entries] == ["create", "export"]


async def test_a_destination_that_is_not_configured_is_named(store: Store) -> None:
    with pytest.raises(NodeError, match="no destination NOWHERE"):
        await send_instance(
            store,
            {"sop_instance_uid": "2.25.1", "destination": "NOWHERE"},
            {},
            SETTINGS.routing,
        )


def test_an_installation_is_the_same_device_after_every_start() -> None:
    again = Equipment.at_site(
        "示范医院", "SONONODE", "zh-CN", "+0800", software_version="1.2.3"
    )
    assert again == SETTINGS.equipment
    assert again != Equipment.at_site(
        "示范医院", "SECOND", "zh-CN", "+0800", software_version="1.2.3"
    )
    assert UUID(int=int(again.device_uid.removeprefix("2.25.")))


async def test_a_name_that_the_hospital_has_corrected_stands_in_what_is_written_then(
    store: Store,
) -> None:
    drafted = await draft(store)
    await encode(store, drafted)
    async with store.db.transaction() as tx:
        told = await identities.patient(tx, store, drafted.patient_id)
        right = replace(told, name="Wang^XiaoDan=王^小丹", birth_date=None)
        await identities.upsert_patient(
            tx, store, right, at=store.clock(), replace=True
        )
    signed = await sign(store, drafted)
    await encode(store, signed)
    found = await results(store)
    before, after = found[Origin.AI_SR][0], found[Origin.VERIFIED_SR][0]
    names = [
        str(dcmread(BytesIO(stored_bytes(store, one))).PatientName)
        for one in (before, after)
    ]
    assert names == ["Wang^XiaoDong=王^小东", "Wang^XiaoDan=王^小丹"]
