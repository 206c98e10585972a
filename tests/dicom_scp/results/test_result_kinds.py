"""Which objects a version of a report becomes, in which order, and how they tie up.

DESIGN's life cycle; IHE RAD IOCM for what is withdrawn.
"""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID

from config.settings import SettingsError, load_settings
from dicom_scp.results.encode_report import ResultSettings, encode_report
from dicom_scp.results.sr import AI_SR, Equipment, to_part10
from dicom_scp.sending.routing import RoutingTable, results_to
from fhir.content.mapping import Exam, to_observations
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Findings, HeatMap
from node.domain.report import Conclusions, Report, ReportStatus
from node.domain.study import Origin
from node.domain.uids import heat_map_uid, pdf_uid, result_uid
from node.imaging import StoredImage
from node.parts import product_version, results_of
from node.store import pages, studies
from node.store.overlays import write_overlay
from node.store.reports import report_id_for
from node.store.store import Store
from node.store.studies import StoredInstance
from node.workflow.reporting import draft_report, revise_report
from tests.conformance.judges import dciodvfy
from tests.dicom_scp.results.test_results import make_image, make_png
from tests.dicom_scp.results.test_sr import groups_of, walk
from tests.dicom_scp.ultrasound import STUDY
from tests.factories import ALGORITHM, DOCTOR, make_lesion
from tests.intake import receive_object

SETTINGS = ResultSettings(
    Equipment.at_site(
        "示范医院", "SONONODE", "zh-CN", "+0800", software_version="1.2.3"
    ),
    results_to("ARCHIVE"),
    segmentation=True,
)
OTHER_LESION = make_lesion(
    tracking_uid="2.25.1002",
    outline=((300.5, 300.5), (360.5, 300.5), (330.5, 350.5)),
    category="2",
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


async def draft(store: Store) -> Report:
    """Let the algorithm read the study, which is received when it is not here yet."""
    image = make_image()
    await receive_object(store, image, to_part10(image))
    report_id, lesion = report_id_for(STUDY), make_lesion()
    async with store.db.transaction() as tx:
        study = await studies.study(tx, STUDY)
        assert study is not None
        sealer = await store.ring.patient(tx, study.patient_id)
        uid = heat_map_uid(report_id, 1, lesion.tracking_uid)
        write_overlay(store, sealer, uid, make_png())
        findings = Findings(
            lesions=(lesion, OTHER_LESION),
            category="4C",
            heat_maps=(HeatMap(lesion.tracking_uid, uid),),
        )
        return await draft_report(store, tx, STUDY, findings, author=ALGORITHM)


async def revise(
    store: Store, report: Report, status: ReportStatus, impression: str = "左乳肿块"
) -> Report:
    async with store.db.transaction() as tx:
        return await revise_report(
            store,
            tx,
            report.id,
            status,
            replace(report.current.findings, category="4B"),
            Conclusions(impression=impression),
            author=DOCTOR,
            reason=None if status is ReportStatus.FINAL else "错误的患者",
        )


async def encode(
    store: Store, report: Report, number: int = 0, **settings: Any
) -> None:
    payload = {
        "report_id": str(report.id),
        "version": number or report.current.number,
    }
    await encode_report(store, payload, replace(SETTINGS, **settings))


async def made(store: Store) -> list[StoredInstance]:
    async with store.db.transaction() as tx:
        found = await studies.instances_of(tx, store, STUDY)
    return [instance for instance in found if instance.origin is not Origin.RECEIVED]


def opened(store: Store, instance: StoredInstance) -> Dataset:
    with studies.open_blob(store, instance) as reader:
        return dcmread(BytesIO(reader.read()))


async def sent(store: Store) -> list[str]:
    uids = []
    while job := await store.jobs.claim(["send_instance"], "test", lane="ARCHIVE"):
        uids.append(str(job.payload["sop_instance_uid"]))
        await store.jobs.done(job)
    return uids


def named(document: Dataset) -> list[str]:
    return [
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in walk(document)
        if "ReferencedSOPSequence" in item
    ]


async def test_a_report_from_draft_to_withdrawal(store: Store, tmp_path: Path) -> None:
    report = await draft(store)
    await encode(store, report)
    report = await revise(store, report, ReportStatus.FINAL)
    await encode(store, report)
    report = await revise(store, report, ReportStatus.CORRECTED)
    await encode(store, report)
    report = await revise(store, report, ReportStatus.ENTERED_IN_ERROR)
    await encode(store, report)
    instances = await made(store)
    signed = [Origin.VERIFIED_SR, Origin.KEY_IMAGES, Origin.PDF]
    assert [i.origin for i in instances] == [
        Origin.HEAT_MAP,
        Origin.AI_SR,
        Origin.SEGMENTATION,
        Origin.KEY_IMAGES,
        *signed,
        *signed,
        Origin.REJECTION,
    ]
    assert await sent(store) == [i.sop_instance_uid for i in instances]
    note = opened(store, instances[-1])
    assert sorted(named(note)) == sorted(i.sop_instance_uid for i in instances[:-1])
    objects = [opened(store, instance) for instance in instances]
    assert len({o.SeriesInstanceUID for o in objects}) == len(objects)
    for keyword in (
        "Manufacturer",
        "ManufacturerModelName",
        "DeviceSerialNumber",
        "SoftwareVersions",
        "InstitutionName",
        "StudyDescription",
        "PatientName",
        "TimezoneOffsetFromUTC",
    ):
        assert len({str(o[keyword].value) for o in objects}) == 1, keyword
    for number, dataset in enumerate(objects):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(to_part10(dataset))
        assert dciodvfy(path) == []


async def test_a_lesion_has_one_identity_in_every_object_and_in_fhir(
    store: Store,
) -> None:
    """Criterion: AI SR, verified SR, SEG and FHIR name a lesion by one tracking UID."""
    drafted = await draft(store)
    await encode(store, drafted)
    report = await revise(store, drafted, ReportStatus.FINAL)
    await encode(store, report)
    expected = [lesion.tracking_uid for lesion in report.current.findings.lesions]
    by_origin = {i.origin: opened(store, i) for i in await made(store)}
    for origin in (Origin.AI_SR, Origin.VERIFIED_SR):
        groups = groups_of(by_origin[origin])
        uids = [str(group.ContentSequence[1].UID) for group in groups]
        assert uids[: len(expected)] == expected
    segments = by_origin[Origin.SEGMENTATION].SegmentSequence
    assert [str(segment.TrackingUID) for segment in segments] == expected
    for version in (drafted, report):
        observations = str(to_observations(version, Exam(None)))
        for uid in expected:
            assert f"urn:oid:{uid}" in observations


async def test_every_uid_follows_from_the_version(store: Store) -> None:
    report = await draft(store)
    await encode(store, report)
    before = await made(store)
    await encode(store, report)
    assert await made(store) == before
    signed = await revise(store, report, ReportStatus.FINAL)
    await encode(store, signed)
    await encode(store, signed)
    uids = [i.sop_instance_uid for i in (await made(store))[len(before) :]]
    assert uids == [
        result_uid(report.id, 2, "verified-sr"),
        result_uid(report.id, 2, "key-images"),
        pdf_uid(report.id, 2),
    ]
    assert all(UID(uid).is_valid for uid in uids)


async def test_what_the_site_does_not_want_is_not_made(store: Store) -> None:
    off = {"key_images": False, "segmentation": False, "pdf": "none"}
    report = await draft(store)
    await encode(store, report, **off)
    report = await revise(store, report, ReportStatus.FINAL)
    await encode(store, report, **off)
    assert {i.origin for i in await made(store)} == {
        Origin.HEAT_MAP,
        Origin.AI_SR,
        Origin.VERIFIED_SR,
    }


async def test_a_late_reading_names_the_draft_that_it_replaces(store: Store) -> None:
    await encode(store, await draft(store))
    second = await draft(store)
    await encode(store, second)
    documents = [
        opened(store, i) for i in await made(store) if i.origin is Origin.AI_SR
    ]
    assert "PredecessorDocumentsSequence" not in documents[0]
    (study,) = documents[1].PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == documents[0].SeriesInstanceUID
    (replaced,) = series.ReferencedSOPSequence
    assert replaced.ReferencedSOPInstanceUID == result_uid(second.id, 1, AI_SR)


async def test_nothing_of_a_withdrawn_report_is_added_behind_its_rejection(
    store: Store,
) -> None:
    report = await draft(store)
    await encode(store, report)
    signed = await revise(store, report, ReportStatus.FINAL)
    withdrawn = await revise(store, signed, ReportStatus.ENTERED_IN_ERROR)
    await encode(store, withdrawn)
    blobs = sum(1 for p in store.blobs._root.rglob("*") if p.is_file())
    await encode(store, withdrawn, number=signed.current.number)
    instances = await made(store)
    assert instances[-1].origin is Origin.REJECTION
    assert Origin.VERIFIED_SR not in {i.origin for i in instances}
    assert sum(1 for p in store.blobs._root.rglob("*") if p.is_file()) == blobs


async def test_a_withdrawal_of_which_nothing_was_made_rejects_nothing(
    store: Store,
) -> None:
    report = await revise(store, await draft(store), ReportStatus.FINAL)
    report = await revise(store, report, ReportStatus.ENTERED_IN_ERROR)
    await encode(store, report)
    assert await made(store) == []


async def test_a_report_that_cannot_be_printed_is_in_the_archive_all_the_same(
    store: Store,
) -> None:
    report = await draft(store)
    report = await revise(store, report, ReportStatus.FINAL, "\ue0a3")
    with pytest.raises(NodeError) as caught:
        await encode(store, report)
    assert caught.value.kind is ErrorKind.UNSUPPORTED
    assert [i.origin for i in await made(store)] == [
        Origin.VERIFIED_SR,
        Origin.KEY_IMAGES,
    ]
    async with store.db.transaction() as tx:
        page = await pages.find(tx, store, report, 2)
    assert page is not None
    assert "\ue0a3" in pages.read(store, page).decode()


async def test_the_pdf_shows_the_image_and_the_heat_map_of_the_draft(
    store: Store,
) -> None:
    report = await revise(store, await draft(store), ReportStatus.FINAL)
    await encode(store, report, pdf="both")
    (printed,) = (i for i in await made(store) if i.origin is Origin.PDF)
    pdf = bytes(opened(store, printed).EncapsulatedDocument)
    pypdf = pytest.importorskip("pypdf")
    (first, *_) = pypdf.PdfReader(BytesIO(pdf)).pages
    assert len(first.images) >= 2
    assert "Breast ultrasound report" in first.extract_text()


async def test_an_image_that_cannot_be_shown_does_not_stop_the_printing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: StoredImage, index: int) -> None:
        raise NodeError("no decoder here", ErrorKind.UNSUPPORTED)

    monkeypatch.setattr(StoredImage, "frame", refuse)
    report = await revise(store, await draft(store), ReportStatus.FINAL)
    await encode(store, report)
    assert Origin.PDF in {i.origin for i in await made(store)}


async def test_a_store_that_is_away_makes_the_printing_wait(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: StoredImage, index: int) -> None:
        raise NodeError("the store does not answer", ErrorKind.UNAVAILABLE)

    monkeypatch.setattr(StoredImage, "frame", refuse)
    report = await revise(store, await draft(store), ReportStatus.FINAL)
    with pytest.raises(NodeError) as caught:
        await encode(store, report)
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert Origin.PDF not in {i.origin for i in await made(store)}


def test_the_site_chooses_what_is_made_and_the_product_names_its_version(
    tmp_path: Path,
) -> None:
    settings = load_settings(
        {"SONONODE_DATA": str(tmp_path), "SONONODE_RESULTS__PDF": "both"}
    )
    chosen = results_of(settings, RoutingTable())
    assert (chosen.key_images, chosen.segmentation, chosen.pdf) == (True, False, "both")
    assert chosen.equipment.software_version == product_version()
    with pytest.raises(SettingsError, match=r"results\.pdf"):
        load_settings({"SONONODE_RESULTS__PDF": "paper"})
