"""The set for training: consent, labels, and nothing that names anybody (PS3.15 E)."""

import asyncio
import csv
import hmac
import io
import json
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_scp.export.training import (
    NO_REGION,
    OF_A_SIMULATOR,
    UNDECODABLE,
    UNLABELLED,
    export_training,
)
from dicom_scp.simulation.phantoms import PhantomLesion, build_phantom
from inference.training.data import read_catalogue
from node.domain.audit import AuditEntry
from node.domain.consent import ConsentScope
from node.domain.errors import NodeError
from node.domain.finding import Findings, ImageReference, PixelBox
from node.domain.lexicon import FieldKey
from node.domain.outcome import CaseOutcome, Method, RecordedOutcome
from node.domain.report import Conclusions, Report, ReportStatus
from node.store import audit, cases, reports, studies
from node.store.erasure import shred
from node.store.store import Store
from node.workflow.consent import give_consent, show_consents, withdraw_consent
from node.workflow.export import LeftOut
from node.workflow.reporting import draft_report, revise_report
from tests.conformance.judges import dciodvfy
from tests.dicom_scp.instances import make_instance
from tests.factories import ALGORITHM, DOCTOR, make_lesion
from tests.intake import receive_object

STUDY = "2.25.711963111755018"  # in no random UID by chance
NAME = "Kanarienvogel^Xiulanhua=金丝雀^秀兰花"
SECRETS = (
    "Kanarienvogel",
    "Xiulanhua",
    "金丝雀",
    "秀兰花",
    "KANARI-7741902",
    "KANARIACC55018",
    "Kanarischer Palast",
    "金丝雀医院",
    "SERIAL-4471",
    "STATION-9",
    "19631117",
    "1963-11-17",
    "20261120",
    "2026-11-20",
    "Sie hat Angst",
    "凭印象",
    STUDY,
)
REGION = {"x0": 20, "y0": 40, "x1": 379, "y1": 279}


def region(**changes: int) -> Dataset:
    place = REGION | changes
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, 1, 2
    item.RegionLocationMinX0, item.RegionLocationMinY0 = place["x0"], place["y0"]
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = place["x1"], place["y1"]
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX = item.PhysicalDeltaY = 0.01
    return item


def ultrasound(
    uid: str = "2.25.2001", study: str = STUDY, **changes: object
) -> Dataset:
    """Return an instance that names the patient wherever it can."""
    phantom = build_phantom(
        (PhantomLesion(12, 10, 8, 5),), seed=1, rows=300, columns=400
    )
    instance = make_instance(rows=300, columns=400)
    instance.PixelData = phantom.pixels.tobytes()
    instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = uid
    instance.StudyInstanceUID = study
    instance.PatientName, instance.PatientID = NAME, "KANARI-7741902"
    instance.PatientBirthDate = "19631117"
    instance.AccessionNumber = "KANARIACC55018"
    instance.InstitutionName = "Kanarischer Palast 金丝雀医院"
    instance.DeviceSerialNumber, instance.StationName = "SERIAL-4471", "STATION-9"
    instance.Manufacturer, instance.ManufacturerModelName = "GE", "LOGIQ E9"
    instance.BodyPartExamined, instance.Laterality = "BREAST", "L"
    instance.SeriesDescription = "Kanarienvogel links"
    instance.add_new((0x0009, 0x0010), "LO", "Kanarienvogel")
    instance.SequenceOfUltrasoundRegions = [region()]
    for keyword, value in changes.items():
        setattr(instance, keyword, value)
    return instance


async def receive(store: Store, instance: Dataset) -> None:
    part10 = io.BytesIO()
    instance.save_as(part10, enforce_file_format=True)
    await receive_object(store, instance, part10.getvalue())


def lesion(**changes: object) -> object:
    told: dict[str, object] = {
        "image": ImageReference("1.2.840.10008.5.1.4.1.1.6.1", "2.25.2001"),
        "box": PixelBox(100, 120, 180, 170),
        "outline": ((100.5, 120.5), (179.5, 120.5), (140.5, 169.5), (100.5, 120.5)),
    }
    return make_lesion(**(told | changes))


async def sign(
    store: Store,
    findings: Findings | None = None,
    *,
    study: str = STUDY,
    status: ReportStatus = ReportStatus.FINAL,
) -> Report:
    """Draft and sign the report of a received study."""
    found = findings or Findings(lesions=(lesion(),), category="4C")  # type: ignore[arg-type]
    async with store.db.transaction() as tx:
        report = await draft_report(store, tx, study, found, author=ALGORITHM)
    async with store.db.transaction() as tx:
        return await revise_report(
            store,
            tx,
            report.id,
            status,
            found,
            Conclusions(impression="Sie hat Angst", advice="凭印象"),
            author=DOCTOR,
        )


async def agree(store: Store, study: str = STUDY) -> None:
    await give_consent(store, study, ConsentScope.RESEARCH, by="desk")


@pytest.fixture
async def site(store: Store) -> Store:
    """A node with one signed study of a woman who agrees."""
    await receive(store, ultrasound())
    await sign(store)
    await agree(store)
    return store


def manifest(target: Path) -> list[dict[str, str]]:
    with (target / "site" / "manifest.csv").open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


async def audited(store: Store, entity: str) -> list[AuditEntry]:
    async with store.db.transaction() as tx:
        return await audit.entries(tx, entity=entity)


# -- who may go ------------------------------------------------------------------------


async def test_a_patient_without_consent_is_left_out(
    store: Store, tmp_path: Path
) -> None:
    await receive(store, ultrasound())
    await sign(store)
    done = await export_training(store, tmp_path, by="tester")
    assert done.images == 0
    assert done.left_out == {LeftOut.NO_CONSENT: 1}
    assert manifest(tmp_path) == []


async def test_consent_that_was_withdrawn_counts_no_more(
    site: Store, tmp_path: Path
) -> None:
    await withdraw_consent(site, STUDY, ConsentScope.RESEARCH, by="desk")
    done = await export_training(site, tmp_path, by="tester")
    assert done.left_out == {LeftOut.NO_CONSENT: 1}
    await agree(site)
    assert (await export_training(site, tmp_path / "later", by="tester")).images == 1
    told = await show_consents(site, STUDY)
    assert [one.in_force for one in told] == [False, True]


async def test_a_consent_is_given_once_and_withdrawn_once(site: Store) -> None:
    with pytest.raises(NodeError, match="in force already"):
        await agree(site)
    await withdraw_consent(site, STUDY, ConsentScope.RESEARCH, by="desk")
    with pytest.raises(NodeError, match="no such consent"):
        await withdraw_consent(site, STUDY, ConsentScope.RESEARCH, by="desk")
    with pytest.raises(NodeError, match="no such study"):
        await agree(site, "2.25.404")


async def test_giving_withdrawing_and_exporting_are_audited(
    site: Store, tmp_path: Path
) -> None:
    await export_training(site, tmp_path, by="tester")
    await withdraw_consent(site, STUDY, ConsentScope.RESEARCH, by="desk")
    async with site.db.transaction() as tx:
        study = await studies.study(tx, STUDY)
    assert study is not None
    acts = [
        entry.action for entry in await audited(site, f"patient/{study.patient_id}")
    ]
    assert acts[-2:] == ["consent-give", "consent-withdraw"]
    exported = await audited(site, f"report/{reports.report_id_for(STUDY)}/2")
    assert [entry.action for entry in exported][-1] == "export-training"


async def test_only_signed_reports_that_stand_go(store: Store, tmp_path: Path) -> None:
    await receive(store, ultrasound())
    await agree(store)
    found = Findings(lesions=(lesion(),), category="4C")  # type: ignore[arg-type]
    async with store.db.transaction() as tx:
        report = await draft_report(store, tx, STUDY, found, author=ALGORITHM)
    done = await export_training(store, tmp_path / "draft", by="tester")
    assert done.left_out == {LeftOut.UNSIGNED: 1}
    for status in (ReportStatus.FINAL, ReportStatus.ENTERED_IN_ERROR):
        async with store.db.transaction() as tx:
            await revise_report(
                store,
                tx,
                report.id,
                status,
                found,
                Conclusions(),
                author=DOCTOR,
                reason="the other breast",
            )
    done = await export_training(store, tmp_path / "withdrawn", by="tester")
    assert done.left_out == {LeftOut.WITHDRAWN: 1}


async def test_since_counts_from_the_day_of_signing(
    site: Store, tmp_path: Path
) -> None:
    day = site.clock().date()
    later = await export_training(
        site, tmp_path / "a", by="tester", since=day + timedelta(days=1)
    )
    assert later.left_out == {LeftOut.EARLIER: 1}
    assert (await export_training(site, tmp_path / "b", by="tester", since=day)).images


async def test_an_erased_patient_is_left_out(site: Store, tmp_path: Path) -> None:
    async with site.db.transaction() as tx:
        study = await studies.study(tx, STUDY)
        assert study is not None
        await shred(tx, site.ring, study.patient_id)
    done = await export_training(site, tmp_path, by="tester")
    assert done.left_out == {LeftOut.ERASED: 1}


# -- what goes -------------------------------------------------------------------------


async def test_training_reads_the_exported_set(site: Store, tmp_path: Path) -> None:
    await export_training(site, tmp_path, by="tester")
    (row,) = manifest(tmp_path)
    catalogue = read_catalogue(tmp_path, row["split"], sets=("site",))
    assert catalogue.categories == ("4C",)
    assert len(catalogue) == 1


async def test_labels_are_the_doctor_s_and_malignancy_stays_open(
    site: Store, tmp_path: Path
) -> None:
    await export_training(site, tmp_path, by="tester")
    (row,) = manifest(tmp_path)
    assert row["label"] == ""
    assert (row["birads"], row["shape"], row["orientation"]) == (
        "4c",
        "irregular",
        "not parallel",
    )
    assert (row["margin_spiculated"], row["margin_circumscribed"]) == ("1", "0")
    assert row["calcification"] == "none"
    assert row["boundary"] == row["posterior"] == ""
    assert (row["laterality"], row["clock"], row["age"]) == ("L", "2", "63")
    assert (row["device"], row["mask_from"]) == ("GE LOGIQ E9", "outline")


async def test_a_recorded_outcome_becomes_the_label(
    site: Store, tmp_path: Path
) -> None:
    async with site.db.transaction() as tx:
        report = await reports.read(tx, site, reports.report_id_for(STUDY))
        ended = RecordedOutcome(
            "2.25.1001", CaseOutcome.MALIGNANT, Method.BIOPSY, site.clock(), "dr-li"
        )
        await cases.record_outcome(tx, report, ended)
    await export_training(site, tmp_path, by="tester")
    (row,) = manifest(tmp_path)
    assert row["label"] == "malignant"


async def test_the_mask_lies_where_the_lesion_lies_in_the_cut_picture(
    site: Store, tmp_path: Path
) -> None:
    await export_training(site, tmp_path, by="tester")
    (row,) = manifest(tmp_path)
    with Image.open(tmp_path / row["file"]) as image:
        assert image.size == (360, 240)
    with Image.open(tmp_path / row["mask"]) as mask:
        assert mask.getbbox() == (80, 80, 160, 130)
        assert mask.getpixel((120, 90))
        assert not mask.getpixel((85, 125))
    assert float(row["pixel_mm"]) == pytest.approx(0.1)
    assert float(row["lesion_w_mm"]) == pytest.approx(8.0)


async def test_a_lesion_without_outline_says_that_its_mask_is_a_box(
    store: Store, tmp_path: Path
) -> None:
    await receive(store, ultrasound())
    await sign(store, Findings(lesions=(lesion(outline=()),), category="3"))  # type: ignore[arg-type]
    await agree(store)
    await export_training(store, tmp_path, by="tester")
    (row,) = manifest(tmp_path)
    assert row["mask_from"] == "box"
    assert (row["lesion_w_px"], row["lesion_h_px"]) == ("80", "50")


async def test_of_two_lesions_in_one_picture_only_what_agrees_is_a_label(
    store: Store, tmp_path: Path
) -> None:
    other = lesion(
        tracking_uid="2.25.1002",
        box=PixelBox(220, 200, 250, 220),
        outline=(),
        descriptors={
            FieldKey.SHAPE: ("oval",),
            FieldKey.ORIENTATION: ("not_parallel",),
        },
        category="3",
    )
    await receive(store, ultrasound())
    await sign(store, Findings(lesions=(lesion(), other), category="4C"))  # type: ignore[arg-type]
    await agree(store)
    await export_training(store, tmp_path, by="tester")
    (row,) = manifest(tmp_path)
    assert (row["birads"], row["shape"], row["orientation"], row["n_lesions"]) == (
        "4c",
        "",
        "not parallel",
        "2",
    )


async def test_a_signed_negative_study_gives_normal_pictures(
    store: Store, tmp_path: Path
) -> None:
    await receive(store, ultrasound())
    await sign(store, Findings(category="1"))
    await agree(store)
    await export_training(store, tmp_path, by="tester")
    (row,) = manifest(tmp_path)
    assert (row["label"], row["birads"], row["mask"]) == ("normal", "1", "")


async def test_pictures_that_say_nothing_or_cannot_be_used_are_counted(
    site: Store, tmp_path: Path
) -> None:
    marked = {"2.25.2002": {"SequenceOfUltrasoundRegions": []}}
    marked["2.25.2003"] = {"ImageComments": "SIMULATED - NOT A PATIENT"}
    marked["2.25.2004"] = {"PixelData": b"\0" * 10}
    lesions = []
    for number, (uid, changes) in enumerate(marked.items()):
        study = f"2.25.8{number}"
        await receive(site, ultrasound(uid, study, **changes))
        image = ImageReference("1.2.840.10008.5.1.4.1.1.6.1", uid)
        lesions = [lesion(image=image, extent=None, probability=Decimal("0.2"))]
        await sign(site, Findings(lesions=tuple(lesions), category="3"), study=study)  # type: ignore[arg-type]
    await receive(site, ultrasound("2.25.2005"))
    done = await export_training(site, tmp_path, by="tester")
    assert done.images == 1
    assert done.left_out == {
        NO_REGION: 1,
        OF_A_SIMULATOR: 1,
        UNDECODABLE: 1,
        UNLABELLED: 1,
    }
    whole = await export_training(
        site, tmp_path / "whole", by="tester", whole_frames=True
    )
    assert whole.images == 2


async def test_an_export_is_never_written_over(site: Store, tmp_path: Path) -> None:
    await export_training(site, tmp_path, by="tester")
    with pytest.raises(NodeError, match="holds an export already"):
        await export_training(site, tmp_path, by="tester")


# -- whose it is -----------------------------------------------------------------------


async def test_no_file_names_the_patient_the_place_or_a_day(
    site: Store, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    await export_training(site, target, by="tester", dicom=True)
    files = [path for path in target.rglob("*") if path.is_file()]
    assert len(files) == 5
    wanted = {
        form.encode(encoding): form
        for secret in SECRETS
        for form in (secret, secret.upper(), secret.casefold())
        for encoding in ("utf-8", "gb18030", "utf-16-le", "utf-16-be")
    }
    wanted |= {json.dumps(secret)[1:-1].encode(): secret for secret in SECRETS}
    for path in files:
        content = path.read_bytes() + str(path.relative_to(target)).encode()
        assert [told for octets, told in wanted.items() if octets in content] == []


async def test_the_search_would_find_her_in_the_received_object(site: Store) -> None:
    async with site.db.transaction() as tx:
        (instance,) = await studies.instances_of(tx, site, STUDY)
    content = await asyncio.to_thread(studies.open_blob(site, instance).read)
    assert all(
        secret.encode() in content
        for secret in SECRETS
        if secret[:3] in ("Kan", "金丝雀")
    )


async def test_the_dicom_object_is_valid_and_says_what_was_done(
    site: Store, tmp_path: Path
) -> None:
    await export_training(site, tmp_path, by="tester", dicom=True)
    (path,) = (tmp_path / "site" / "dicom").glob("*.dcm")
    dataset = dcmread(path)
    assert dataset.PatientIdentityRemoved == "YES"
    assert dataset.LongitudinalTemporalInformationModified == "MODIFIED"
    assert [i.CodeValue for i in dataset.DeidentificationMethodCodeSequence] == [
        "113100",
        "113101",
        "113107",
        "113108",
    ]
    assert dataset.PatientID == manifest(tmp_path)[0]["group_id"]
    assert dataset.StudyInstanceUID.startswith("2.25.")
    assert dataset.StudyInstanceUID != STUDY
    assert not any(element.tag.is_private for element in dataset.iterall())
    pixels = dataset.pixel_array
    assert pixels[:40].max() == 0
    assert pixels[40:280, 20:380].max() > 0
    assert [line for line in dciodvfy(path) if line.startswith("Error")] == []


async def test_dates_move_by_the_same_days_for_one_patient(
    site: Store, tmp_path: Path
) -> None:
    second = "2.25.79"
    await receive(site, ultrasound("2.25.2009", second, StudyDate="20261204"))
    image = ImageReference("1.2.840.10008.5.1.4.1.1.6.1", "2.25.2009")
    await sign(
        site, Findings(lesions=(lesion(image=image),), category="3"), study=second
    )  # type: ignore[arg-type]
    await export_training(site, tmp_path, by="tester")
    rows = manifest(tmp_path)
    first, other = sorted(date.fromisoformat(row["study_date"]) for row in rows)
    assert (other - first).days == 14
    assert (date(2026, 11, 20) - first).days >= 30
    assert len({(row["group_id"], row["split"]) for row in rows}) == 1


async def test_a_later_export_calls_everything_the_same(
    site: Store, tmp_path: Path
) -> None:
    await export_training(site, tmp_path / "a", by="tester")
    site.clock.advance(seconds=86_400)  # type: ignore[attr-defined]
    await site.ring.rotate()
    await export_training(site, tmp_path / "b", by="tester")
    assert manifest(tmp_path / "a") == manifest(tmp_path / "b")


async def test_a_woman_of_ninety_five_is_ninety(store: Store, tmp_path: Path) -> None:
    await receive(store, ultrasound(PatientBirthDate="19311117"))
    await sign(store)
    await agree(store)
    await export_training(store, tmp_path, by="tester")
    assert manifest(tmp_path)[0]["age"] == "90"


def test_two_nodes_name_the_same_patient_differently() -> None:
    from node.workflow.export import Pseudonyms

    class Ring:
        def __init__(self, key: bytes) -> None:
            self.key = key

        def blind(self, field: str, value: str) -> bytes:
            return hmac.digest(self.key, f"{field}{value}".encode(), "sha256")[:16]

    patient = uuid4()
    one, other = (Pseudonyms(Ring(key), patient) for key in (b"1", b"2"))  # type: ignore[arg-type]
    assert one.patient != other.patient
    assert one.uid("2.25.1") != other.uid("2.25.1")
    assert len(one.uid("2.25.1")) <= 64
    assert datetime(2026, 1, 31) + one.shift < datetime(2026, 1, 2)  # noqa: DTZ001
