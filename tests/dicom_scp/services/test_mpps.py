"""Performed procedure steps of a machine (PS3.4 F.7); pynetdicom is the machine."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import date

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    UltrasoundImageStorage,
)
from pynetdicom import AE
from pynetdicom.association import Association

from dicom_scp.services.mpps import PERFORMED_STEP, mpps_service
from node.domain.completion import StepStatus
from node.domain.order import OrderSource, OrderStatus, Step
from node.domain.study import PatientIdentity, StudyStatus
from node.store import audit, merges, orders, steps, studies
from node.store.steps import PerformedStep
from node.store.store import Store
from node.workflow.completion import close_due_studies
from node.workflow.orders import Placement, patient_of_order, place_order
from tests.conftest import FrozenClock
from tests.dicom_scp.conftest import StartScp
from tests.dicom_scp.instances import make_instance

STUDY = "2.25.71"
Connect = Callable[..., Awaitable["Machine"]]


class Machine:
    """An ultrasound machine on one association."""

    def __init__(self, association: Association) -> None:
        self.association = association

    async def create(
        self, step: Dataset | None, uid: str | None = "2.25.900"
    ) -> Dataset:
        """Return the answer to an N-CREATE."""
        return await asyncio.to_thread(
            lambda: self.association.send_n_create(step, PERFORMED_STEP, uid)[0]
        )

    async def set(self, change: Dataset, uid: str = "2.25.900") -> Dataset:
        """Return the answer to an N-SET."""
        return await asyncio.to_thread(
            lambda: self.association.send_n_set(change, PERFORMED_STEP, uid)[0]
        )

    async def store(self, instance: Dataset) -> None:
        answer = await asyncio.to_thread(self.association.send_c_store, instance)
        assert answer.Status == 0x0000


@pytest.fixture
def connect(start_scp: StartScp) -> Iterator[Connect]:
    """Return a function that connects a machine to a node with MPPS."""
    scps, open_ones = [], []

    async def start(title: str = "LOGIQ") -> Machine:
        if not scps:
            scps.append(await start_scp(services=[mpps_service()]))
        ae = AE(title)
        syntaxes = [ImplicitVRLittleEndian, ExplicitVRLittleEndian]
        ae.add_requested_context(PERFORMED_STEP, syntaxes)
        ae.add_requested_context(UltrasoundImageStorage, ExplicitVRLittleEndian)
        association = await asyncio.to_thread(
            lambda: ae.associate("127.0.0.1", scps[0].ports[0], ae_title="SONONODE")
        )
        assert association.is_established
        open_ones.append(association)
        return Machine(association)

    yield start
    for association in open_ones:
        if association.is_established:
            association.abort()


def make_step(status: str | None = "IN PROGRESS", **changes: object) -> Dataset:
    """Return the attribute list of an N-CREATE; None leaves an attribute out."""
    scheduled = Dataset()
    scheduled.StudyInstanceUID, scheduled.AccessionNumber = STUDY, "ACC-7"
    scheduled.RequestedProcedureID = "RP-1"
    scheduled.ScheduledProcedureStepID = "SPS-1"
    step = Dataset()
    step.SpecificCharacterSet = "GB18030"
    step.ScheduledStepAttributesSequence = [scheduled]
    step.PatientName, step.PatientID = "Zhang^San=张^三", "P-0001"
    step.PatientBirthDate, step.PatientSex = "", ""
    step.PerformedProcedureStepID = "PPS-1"
    step.PerformedStationAETitle = "LOGIQ"
    step.PerformedProcedureStepStartDate = "20261121"
    step.PerformedProcedureStepStartTime = "080000"
    step.Modality = "US"
    step.PerformedProcedureStepStatus = status
    for keyword, value in {"PerformedProcedureStepStatus": status, **changes}.items():
        if value is None:
            delattr(step, keyword)
        else:
            setattr(step, keyword, value)
    return step


def make_end(
    *uids: str, status: str = "COMPLETED", sop_class: str = UltrasoundImageStorage
) -> Dataset:
    """Return the modification list that ends a step with these images."""
    series = Dataset()
    series.SeriesInstanceUID, series.ProtocolName = "2.25.72", "Breast"
    series.ReferencedImageSequence = []
    for uid in uids:
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = sop_class, uid
        series.ReferencedImageSequence.append(image)
    end = Dataset()
    end.PerformedProcedureStepStatus = status
    end.PerformedProcedureStepEndDate = "20261121"
    end.PerformedProcedureStepEndTime = "081500"
    end.PerformedSeriesSequence = [series]
    return end


async def step_in(store: Store, uid: str = "2.25.900") -> PerformedStep | None:
    async with store.db.transaction() as tx:
        return await steps.find_for_update(tx, store, uid)


async def test_step_is_kept_sealed_and_moves_on_to_its_end(
    connect: Connect, store: Store
) -> None:
    machine = await connect()
    assert (await machine.create(make_step())).Status == 0x0000
    kept = await step_in(store)
    assert kept is not None
    assert (kept.status, kept.studies) == (StepStatus.IN_PROGRESS, (STUDY,))
    assert kept.body["00100010"]["Value"] == [
        {"Alphabetic": "Zhang^San", "Ideographic": "张^三"}
    ]
    described = Dataset()
    described.PerformedProcedureStepStatus = "IN PROGRESS"
    described.PerformedProcedureStepDescription = "Breast"
    assert (await machine.set(described)).Status == 0x0000
    assert (await machine.set(make_end("2.25.1", "2.25.2"))).Status == 0x0000
    ended = await step_in(store)
    assert ended is not None
    assert (ended.status, ended.images) == (
        StepStatus.COMPLETED,
        ("2.25.1", "2.25.2"),
    )
    assert ended.body["00400254"]["Value"] == ["Breast"]
    async with store.db.transaction() as tx:
        row = str(await tx.fetchrow("select * from performed_steps"))
        entries = await audit.entries(tx, entity="performed-step/2.25.900")
        assert await steps.performed_steps_of(tx, STUDY) == [
            ("2.25.900", StepStatus.COMPLETED)
        ]
        assert len(await steps.steps_of_order(tx, store, "acc-7")) == 1
        assert await steps.steps_of_order(tx, store, "ACC-8") == []
    assert "Zhang" not in row
    assert "ACC" not in row
    assert [e.action for e in entries] == ["create", "update", "update"]
    assert entries[-1].detail["images"] == "2"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"status": "COMPLETED"}, 0x0106),
        ({"status": "FINISHED"}, 0x0106),
        ({"status": None}, 0x0120),
        ({"status": ""}, 0x0121),
        ({"ScheduledStepAttributesSequence": None}, 0x0120),
        ({"ScheduledStepAttributesSequence": []}, 0x0121),
        ({"ScheduledStepAttributesSequence": [Dataset()]}, 0x0120),
        ({"PerformedProcedureStepID": None}, 0x0120),
        ({"PerformedStationAETitle": ""}, 0x0121),
        ({"PerformedProcedureStepStartTime": None}, 0x0120),
        ({"Modality": None}, 0x0120),
        ({"PatientID": None, "PatientName": None, "PatientSex": None}, 0x0000),
    ],
)
async def test_step_begins_in_progress_with_all_that_is_of_type_1(
    changes: dict[str, object], status: int, connect: Connect, store: Store
) -> None:
    machine = await connect()
    answer = await machine.create(make_step(**changes))  # type: ignore[arg-type]
    assert answer.Status == status
    assert (await step_in(store) is not None) is (status == 0x0000)
    if status:
        assert answer.ErrorComment
        assert (await machine.create(make_step())).Status == 0x0000  # it may try again


async def test_taken_uid_unknown_step_and_foreign_machine_are_told_apart(
    connect: Connect, store: Store
) -> None:
    machine = await connect()
    assert (await machine.set(make_end("2.25.1"))).Status == 0x0112
    assert (await machine.create(make_step())).Status == 0x0000
    assert (await machine.create(make_step())).Status == 0x0111
    other = await connect("OTHER")
    assert (await other.set(make_end("2.25.1"))).Status == 0x0124
    async with store.db.transaction() as tx:
        refused = await audit.entries(tx, entity="performed-step/2.25.900")
    assert [e.outcome.name for e in refused].count("REFUSED") >= 2


async def test_machine_may_leave_the_uid_of_its_step_to_us(
    connect: Connect, store: Store
) -> None:
    machine = await connect()
    assert (await machine.create(make_step(), uid=None)).Status == 0x0000
    async with store.db.transaction() as tx:
        ((uid, _),) = await steps.performed_steps_of(tx, STUDY)
    assert (await machine.set(make_end("2.25.1"), uid)).Status == 0x0000


@pytest.mark.parametrize("final", ["COMPLETED", "DISCONTINUED"])
async def test_ended_step_is_never_changed(
    final: str, connect: Connect, store: Store
) -> None:
    machine = await connect()
    await machine.create(make_step())
    assert (await machine.set(make_end("2.25.1", status=final))).Status == 0x0000
    answer = await machine.set(make_end("2.25.1", "2.25.2"))
    assert (answer.Status, answer.ErrorID) == (0x0110, 0xA506)
    kept = await step_in(store)
    assert kept is not None
    assert (kept.status.value, kept.images) == (final, ("2.25.1",))


async def test_end_names_its_series_and_fixes_what_was_said_at_the_beginning(
    connect: Connect, store: Store
) -> None:
    machine = await connect()
    await machine.create(make_step())
    end = make_end("2.25.1")
    del end.PerformedSeriesSequence
    assert (await machine.set(end)).Status == 0x0120
    end = make_end("2.25.1")
    del end.PerformedSeriesSequence[0].SeriesInstanceUID
    assert (await machine.set(end)).Status == 0x0120
    end = make_end("not a uid")
    assert (await machine.set(end)).Status == 0x0106
    end = make_end("2.25.1", status="DONE")
    assert (await machine.set(end)).Status == 0x0106
    end = make_end("2.25.1")
    end.PatientID = "P-0002"  # the operator took another woman
    assert (await machine.set(end)).Status == 0x0106
    end = make_end("2.25.1")
    end.PatientID, end.Modality = "P-0001", "US"  # repeated as it was: harmless
    assert (await machine.set(end)).Status == 0x0000
    kept = await step_in(store)
    assert kept is not None
    assert kept.status is StepStatus.COMPLETED


async def test_nobody_waits_for_objects_of_a_kind_that_we_do_not_take(
    connect: Connect, store: Store
) -> None:
    machine = await connect()
    await machine.create(make_step())
    await machine.set(make_end("2.25.1", sop_class="1.2.3.4.5"))
    kept = await step_in(store)
    assert kept is not None
    assert (kept.images, kept.not_taken) == ((), 1)


async def test_order_of_the_worklist_follows_its_step(
    connect: Connect, store: Store
) -> None:
    async with store.db.transaction() as tx:
        patient = await patient_of_order(
            store, tx, PatientIdentity(patient_id="P-0001", name="Zhang^San=张^三")
        )
        scheduled = Step(
            scheduled_on=date(2026, 11, 21),
            accession_number="ACC-7",
            requested_procedure_id="RP-1",
            step_id="SPS-1",
            study_instance_uid=STUDY,
        )
        placement = Placement("k", patient, OrderSource.REST, scheduled)
        order, _ = await place_order(store, tx, placement, by=None)

    async def status() -> OrderStatus:
        async with store.db.transaction() as tx:
            listed = await orders.find(tx, store, order.order_id)
        assert listed is not None
        return listed.order.status

    machine = await connect()
    await machine.create(make_step(PatientID="P-0002"), uid="2.25.901")
    assert await status() is OrderStatus.SCHEDULED  # another woman's step
    other = PatientIdentity(patient_id="P-0003", name="Zhang^San=张^三")
    async with store.db.transaction() as tx:
        kept_row = await patient_of_order(store, tx, other)
        await merges.link(tx, patient, kept_row)
    await machine.create(make_step(PatientID="P-0003"), uid="2.25.902")
    assert await status() is OrderStatus.IN_PROGRESS  # the other number of the same
    await machine.create(make_step(PatientID=""))
    kept = await step_in(store)
    assert kept is not None
    assert kept.patient_id == patient
    await machine.set(make_end("2.25.1"))
    assert await status() is OrderStatus.COMPLETED


@pytest.mark.parametrize("steps_first", [True, False])
async def test_study_closes_with_the_last_listed_image_and_its_association_open(
    steps_first: bool, connect: Connect, store: Store, clock: FrozenClock
) -> None:
    machine = await connect()
    images = [make_instance() for _ in range(3)]
    end = make_end(*(str(image.SOPInstanceUID) for image in images))
    await machine.create(make_step())
    if steps_first:
        await machine.set(end)
    for image in images[:2]:
        await machine.store(image)
    clock.advance(seconds=50)
    assert await close_due_studies(store) == 0
    await machine.store(images[2])
    if not steps_first:
        assert await close_due_studies(store) == 0
        await machine.set(end)
    assert await close_due_studies(store) == 1
    async with store.db.transaction() as tx:
        study = await studies.study(tx, STUDY)
    assert study is not None
    assert study.status is StudyStatus.CLOSED
    assert study.evidence == "complete: MPPS COMPLETED, 3 of 3 images"
    assert not study.incomplete


async def nobody_feeds(store: Store) -> None:
    """Return when the end of every association has been noted."""
    async with asyncio.timeout(60):
        while True:
            async with store.db.transaction() as tx:
                if not await tx.fetchval("select count(*) from open_associations"):
                    return
            await asyncio.sleep(0.01)


async def test_machine_that_breaks_off_is_flagged_until_it_sends_all_again(
    connect: Connect, store: Store, clock: FrozenClock
) -> None:
    images = [make_instance() for _ in range(2)]
    machine = await connect()
    for image in images:
        await machine.store(image)
    machine.association.abort()
    await nobody_feeds(store)
    clock.advance(seconds=60)
    assert await close_due_studies(store) == 1
    async with store.db.transaction() as tx:
        study = await studies.study(tx, STUDY)
    assert study is not None
    assert study.evidence == "incomplete: association aborted, 2 images"
    again = await connect()
    await again.store(make_instance())
    for image in images:  # nothing new in these
        await again.store(image)
    again.association.abort()
    await nobody_feeds(store)
    last = await connect()
    for image in images:
        await last.store(image)
    last.association.release()
    await nobody_feeds(store)
    clock.advance(seconds=5)
    assert await close_due_studies(store) == 1
    async with store.db.transaction() as tx:
        study = await studies.study(tx, STUDY)
    assert study is not None
    assert not study.incomplete
    assert study.evidence == (
        "complete: associations released, 5 s of silence, 3 images"
    )
