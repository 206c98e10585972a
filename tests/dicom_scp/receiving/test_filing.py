"""Images of a void study come again as those of the right woman (IHE RAD IOCM)."""

import re
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp.test_utils import TestClient, TestServer
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from dicom_scp.receiving.filing import corrected_pieces, file_anew
from dicom_scp.results.encode_report import encode_report
from dicom_scp.results.sr import to_part10
from dicom_scp.web import dicomweb
from node.domain.access import Identity, Role
from node.domain.errors import ErrorKind, NodeError
from node.domain.order import OrderSource, Step
from node.domain.study import Origin, PatientIdentity, StudyStatus
from node.http import HttpSettings, RouteGroup, make_app
from node.imaging import BytesReader, read_part10
from node.store import catalogue, identities, moves, orders, studies
from node.store.erasure import shred_patient
from node.store.store import Store
from node.store.studies import StoredInstance
from node.workflow.intake import data_set_offset
from node.workflow.moving import (
    FILE_ANEW,
    find_patients,
    move_study,
    seen_patient,
)
from node.workflow.orders import By, Placement, match_study, place_order
from node.workflow.reconciliation import compare
from tests.dicom_scp.results.test_results import (
    SETTINGS,
    blob_count,
    draft,
    encode,
    make_image,
    sign,
    stored_bytes,
)
from tests.dicom_scp.ultrasound import STUDY
from tests.fhir.rig import sign_in
from tests.intake import receive_object

CLERK = Identity(str(uuid4()), frozenset({Role.TECHNOLOGIST}), "Li")
HERS = PatientIdentity("MRN-77", "Zhao^Min=赵^敏", sex="F", issuer="HOSPITAL")
MOMENT = datetime(2026, 1, 2, tzinfo=UTC)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


async def right_woman(store: Store) -> UUID:
    async with store.db.transaction() as tx:
        return await identities.upsert_patient(tx, store, HERS, at=store.clock())


async def moved(store: Store, right: UUID, order_id: UUID | None = None) -> moves.Move:
    async with store.db.transaction() as tx:
        await tx.execute("update studies set status = $1", StudyStatus.READ.value)
        shown = await compare(store, tx, STUDY)
        target = await identities.patient(tx, store, right)
    return await move_study(
        store,
        STUDY,
        right,
        identity=CLERK,
        reason="wrong entry",
        seen=shown.seen,
        seen_target=seen_patient(right, target),
        order_id=order_id,
    )


async def filed(store: Store) -> None:
    while job := await store.jobs.claim([FILE_ANEW], "test"):
        await file_anew(store, job.payload, system="SONONODE")
        await store.jobs.done(job)


async def instances(
    store: Store, study: str, origin: Origin | None = Origin.RECEIVED
) -> list[StoredInstance]:
    async with store.db.transaction() as tx:
        return await studies.instances_of(tx, store, study, origin)


def opened(store: Store, instance: StoredInstance) -> Dataset:
    return dcmread(BytesIO(stored_bytes(store, instance)))


async def test_the_images_are_hers_in_a_study_of_their_own_with_the_same_pixels(
    store: Store,
) -> None:
    await draft(store)
    move = await moved(store, right := await right_woman(store))
    await filed(store)
    (old,), (new,) = (
        await instances(store, STUDY),
        await instances(store, move.filed_as),
    )
    assert new.patient_id == right
    before, after = opened(store, old), opened(store, new)
    assert str(before.PatientName) == "Wang^XiaoDong=王^小东"
    assert (str(after.PatientName), after.PatientID) == (HERS.name, "MRN-77")
    assert (after.IssuerOfPatientID, after.AccessionNumber) == ("HOSPITAL", "")
    assert after.PixelData == before.PixelData
    assert after.StudyInstanceUID == move.filed_as
    assert after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID
    assert {after.SOPInstanceUID, after.SeriesInstanceUID}.isdisjoint(
        {before.SOPInstanceUID, before.SeriesInstanceUID}
    )


async def test_nothing_of_the_other_woman_is_in_the_new_objects(store: Store) -> None:
    await draft(store)
    move = await moved(store, await right_woman(store))
    await filed(store)
    (new,) = await instances(store, move.filed_as)
    whole = stored_bytes(store, new) + new.metadata
    for word in ("Wang", "王", "BUS-0001", "19800214", "ACC0001"):
        assert word.encode() not in whole, word
    assert not re.search(re.escape(STUDY).encode() + rb"(?!\d)", whole)
    (item,) = opened(store, new).OriginalAttributesSequence
    assert (item.ReasonForTheAttributeModification, item.ModifyingSystem) == (
        "CORRECT",
        "SONONODE",
    )
    (names,) = item.ModifiedAttributesSequence
    assert "PatientName" in names
    assert not names.PatientName


async def test_a_repeated_job_files_nothing_twice(store: Store) -> None:
    await draft(store)
    move = await moved(store, await right_woman(store))
    payload: Mapping[str, Any] = {"study_instance_uid": STUDY}
    for _ in range(2):
        await file_anew(store, payload, system="SONONODE")
    (new,) = await instances(store, move.filed_as)
    every = [*await instances(store, STUDY, None), new]
    assert blob_count(store) == len(every)


async def test_as_the_answer_to_her_order_it_is_matched_by_itself(store: Store) -> None:
    await draft(store)
    right = await right_woman(store)
    step = Step(store.clock().date(), accession_number="ACC-77")
    async with store.db.transaction() as tx:
        placement = Placement("k", right, OrderSource.REST, step)
        order, _ = await place_order(store, tx, placement, by=By("ris", "ehr"))
    move = await moved(store, right, order.order_id)
    assert move.filed_as == order.step.study_instance_uid
    await filed(store)
    async with store.db.transaction() as tx:
        (found,) = await match_study(store, tx, move.filed_as)
        detail = await studies.study_detail(tx, store, move.filed_as)
    assert found.agrees
    assert detail.accession_number == "ACC-77"


async def test_archives_are_told_to_hide_results_and_images(
    store: Store,
) -> None:
    report = await sign(store, drafted := await draft(store))
    await encode(store, drafted)
    await encode(store, report)
    await moved(store, await right_woman(store))
    payload = {"report_id": str(report.id), "version": 3}
    await encode_report(store, payload, SETTINGS)
    notes = [
        opened(store, one) for one in await instances(store, STUDY, Origin.REJECTION)
    ]
    titles = {note.ConceptNameCodeSequence[0].CodeValue: note for note in notes}
    assert set(titles) == {"113037", "113038"}
    images = titles["113038"].CurrentRequestedProcedureEvidenceSequence[0]
    (reference,) = images.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert reference.ReferencedSOPInstanceUID == "2.25.2001"
    # An archive files the notes where it has what they reject.
    assert {str(note.PatientID) for note in notes} == {"BUS-0001"}


async def test_a_late_image_under_the_wrong_name_is_refused_not_lost_silently(
    store: Store,
) -> None:
    await draft(store)
    move = await moved(store, await right_woman(store))
    async with store.db.transaction() as tx:
        await studies.study(tx, STUDY, for_update=True)
        await moves.reseal(tx, store, move)
    late = make_image()
    late.SOPInstanceUID = "2.25.2002"
    with pytest.raises(NodeError) as refused:
        await receive_object(store, late, to_part10(late))
    assert refused.value.kind is ErrorKind.CONFLICT


@pytest.mark.parametrize("which", ["wrong", "right"])
async def test_erasing_one_leaves_the_other_whole_and_hers_gone(
    store: Store, which: str
) -> None:
    await draft(store)
    right = await right_woman(store)
    move = await moved(store, right)
    await filed(store)
    async with store.db.transaction() as tx:
        await studies.study(tx, STUDY, for_update=True)
        await moves.reseal(tx, store, move)
    erased = move.from_patient if which == "wrong" else right
    await shred_patient(store.db, store.ring, erased)
    with pytest.raises(NodeError) as gone:
        await instances(store, STUDY)
    assert gone.value.kind is ErrorKind.GONE
    if which == "wrong":
        (new,) = await instances(store, move.filed_as)
        assert str(opened(store, new).PatientName) == HERS.name
    else:
        with pytest.raises(NodeError):
            await instances(store, move.filed_as)


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        JPEGBaseline8Bit,
    ],
)
def test_pixels_are_the_same_bytes_in_every_encoding(syntax: UID) -> None:
    image = make_image()
    image.SpecificCharacterSet = "GB18030"
    image.PatientName = "Wang^XiaoDong=王^小东"
    image.add_new(0x00091001, "LO", "private")
    image.add_new(0x00091002, "LO", "of 王小东")
    image.add_new(0x7FE11001, "LO", "behind")  # where some machines write, too
    image.file_meta = replace_meta(image, syntax)
    if syntax == JPEGBaseline8Bit:
        image.PixelData = encapsulate([b"\xff\xd8 not looked at \xff\xd9"])
        image["PixelData"].is_undefined_length = True
    file = BytesIO()
    image.save_as(file, enforce_file_format=True)
    meta = file.getvalue()[: data_set_offset(file.getvalue())]
    uids = {STUDY: "2.25.9", "2.25.2001": "2.25.10"}
    done = meta + b"".join(
        corrected_pieces(
            BytesReader(file.getvalue()),
            replace(HERS, issuer=""),
            None,
            uids,
            system="SONONODE",
            at=MOMENT,
        )
    )
    after, frames = read_part10(done)
    assert str(after.PatientName) == HERS.name
    assert len(frames) == 1
    whole = dcmread(BytesIO(done))
    assert whole.PixelData == image.PixelData
    assert whole[0x7FE11001].value in ("behind", b"behind")
    assert whole[0x00091001].value in ("private", b"private ")
    assert 0x00091002 not in whole
    assert after.StudyDescription == "乳腺超声"


class LongCine:
    """A file whose 200 MB of pixels are made as they are read."""

    def __init__(self, head: bytes, length: int) -> None:
        self._head = head + b"\xe0\x7f\x10\0OW\0\0" + length.to_bytes(4, "little")
        self.size = len(self._head) + length

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        end = self.size if length is None else min(offset + length, self.size)
        return self._head[offset:end].ljust(max(0, end - offset), b"\x07")


def test_a_cine_of_200_mb_is_never_whole_in_memory() -> None:
    image, length = make_image(), 200 << 20
    del image.PixelData
    image.file_meta = replace_meta(image, ExplicitVRLittleEndian)
    file = BytesIO()
    image.save_as(file, enforce_file_format=True)
    cine, told = LongCine(file.getvalue(), length), {"system": "S", "at": MOMENT}
    tracemalloc.start()
    try:
        pieces = corrected_pieces(cine, HERS, None, {}, **told)  # type: ignore[arg-type]
        assert sum(map(len, pieces)) > length
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def replace_meta(image: Dataset, syntax: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = image.SOPClassUID
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    meta.TransferSyntaxUID = UID(syntax)
    return meta


async def test_nobody_is_found_as_the_keeper_of_a_void_study(store: Store) -> None:
    await draft(store)
    move = await moved(store, await right_woman(store))
    async with store.db.transaction() as tx:
        assert await find_patients(store, CLERK, "") == []
        told = await identities.patient(tx, store, move.owner)
        assert (told.name, told.patient_id) == ("", "")
        assert await orders.decisions(tx, STUDY) == {}


async def test_viewers_are_led_from_the_void_study_to_the_one_that_stands(
    store: Store, tmp_path: Path
) -> None:
    await draft(store)
    move = await moved(store, await right_woman(store))
    await filed(store)
    groups = [
        RouteGroup(
            dicomweb.PREFIX,
            dicomweb.routes(store),
            render_error=dicomweb.render_error,
        )
    ]
    app = make_app(store, HttpSettings(data_directory=tmp_path), groups)
    token = {"Authorization": f"Bearer {await sign_in(store, Role.PACS)}"}
    async with TestClient(TestServer(app)) as client:
        for path in ("metadata", "instances"):
            void = await client.get(
                f"{dicomweb.PREFIX}/studies/{STUDY}/{path}", headers=token
            )
            assert void.status == 410
            assert move.filed_as in await void.text()
        stands = await client.get(
            f"{dicomweb.PREFIX}/studies/{move.filed_as}/metadata", headers=token
        )
        assert stands.status == 200


@pytest.mark.parametrize("rejected_too", [False, True])
async def test_no_peer_finds_or_fetches_the_void_study(
    store: Store, rejected_too: bool
) -> None:
    await draft(store)
    move = await moved(store, right := await right_woman(store))
    await filed(store)
    every = catalogue.Narrowing()
    for resealed in (False, True):
        if resealed:
            async with store.db.transaction() as tx:
                await moves.reseal(tx, store, move)
        page = await catalogue.studies_page(store, every, after=None, limit=9)
        assert [one.study_instance_uid for one in page.entries] == [move.filed_as]
        people = await catalogue.patients_page(store, every, after=None, limit=9)
        assert [one.patient_id for one in people.entries] == [right]
        found = await catalogue.retrievable(
            store, every, [STUDY], rejected_too=rejected_too
        )
        assert found == []
        assert await catalogue.retrievable(store, every, [move.filed_as])
