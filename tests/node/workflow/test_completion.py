"""A study is read when nobody feeds it any more, and read again when more comes."""

from dataclasses import replace
from datetime import date
from uuid import uuid4

import pytest

from node.domain.errors import ErrorKind, NodeError
from node.domain.study import Origin, PatientIdentity, ReceivedInstance, StudyStatus
from node.store import audit, identities, studies
from node.store.associations import EndedHow
from node.store.store import Store
from node.workflow.completion import (
    ASSESS_STUDY,
    CompletionSettings,
    close_due_studies,
    end_association,
    end_lost_associations,
)
from node.workflow.intake import (
    Arrival,
    KnownStudies,
    Received,
    receive_instance,
    receive_instances,
    store_result,
)
from tests.conftest import FrozenClock

SETTINGS = CompletionSettings(
    quiet_period_s=60, quiet_after_release_s=5, stale_association_s=600
)
STUDY = "2.25.71"


def make_arrival(
    number: int = 1, *, association: str = "a1", **changes: object
) -> Arrival:
    instance = ReceivedInstance(
        study_instance_uid=STUDY,
        series_instance_uid="2.25.72",
        sop_instance_uid=f"2.25.100{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.6.1",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        patient=PatientIdentity(
            patient_id="P-1", name="Zhang^San=张^三", birth_date=date(1970, 1, 31)
        ),
        accession_number="ACC-7",
        study_date=date(2026, 11, 20),
        study_description="乳腺超声",
        modality="US",
        number_of_frames=1,
        metadata=b'{"00100010":{}}',
        frame_table=((400, 4096),),
        blob_name=f"instances/{uuid4().hex}",
        size=5000,
        sha256=bytes([number] * 32),
        calling_ae="SCANNER",
        association=association,
    )
    return Arrival(replace(instance, **changes), blob_key=bytes(32), process="scp-1")  # type: ignore[arg-type]


async def status_of(store: Store) -> StudyStatus:
    async with store.db.transaction() as tx:
        study = await studies.study(tx, STUDY)
    assert study is not None
    return study.status


async def test_study_stays_open_while_an_association_feeds_it(
    store: Store, clock: FrozenClock
) -> None:
    await receive_instance(store, make_arrival())
    clock.advance(seconds=500)
    assert await close_due_studies(store, SETTINGS) == 0


async def test_release_of_the_last_association_closes_after_a_short_silence(
    store: Store, clock: FrozenClock
) -> None:
    await receive_instance(store, make_arrival(1, association="a1"))
    await receive_instance(store, make_arrival(2, association="a2"))
    await end_association(store, "a1", EndedHow.RELEASED)
    clock.advance(seconds=6)
    assert await close_due_studies(store, SETTINGS) == 0
    await end_association(store, "a2", EndedHow.RELEASED)
    clock.advance(seconds=4)
    assert await close_due_studies(store, SETTINGS) == 0
    clock.advance(seconds=1)
    assert await close_due_studies(store, SETTINGS) == 1
    job = await store.jobs.claim([ASSESS_STUDY], "test")
    assert job is not None
    assert job.payload == {"study_instance_uid": STUDY, "generation": 1}
    async with store.db.transaction() as tx:
        closed = await studies.study(tx, STUDY)
        entries = await audit.entries(tx, entity=f"study/{STUDY}")
    assert closed is not None
    assert "released" in (closed.evidence or "")
    assert [e.action for e in entries] == ["close"]


@pytest.mark.parametrize("how", [EndedHow.ABORTED, EndedHow.LOST])
async def test_abort_gives_the_scanner_the_whole_quiet_period_to_come_back(
    how: EndedHow, store: Store, clock: FrozenClock
) -> None:
    await receive_instance(store, make_arrival(1, association="a1"))
    await receive_instance(store, make_arrival(2, association="a2"))
    if how is EndedHow.LOST:
        assert await end_lost_associations(store, "another process") == []
        assert await end_lost_associations(store, "scp-1") == [STUDY]
    else:
        await end_association(store, "a1", how)
        await end_association(store, "a2", EndedHow.RELEASED)
    clock.advance(seconds=59)
    assert await close_due_studies(store, SETTINGS) == 0
    clock.advance(seconds=1)
    assert await close_due_studies(store, SETTINGS) == 1


async def test_association_of_a_process_that_never_came_back_is_given_up(
    store: Store, clock: FrozenClock
) -> None:
    await receive_instance(store, make_arrival())
    clock.advance(seconds=601)
    assert await close_due_studies(store, SETTINGS) == 1


async def test_late_instance_opens_the_study_for_another_reading(
    store: Store, clock: FrozenClock
) -> None:
    await receive_instance(store, make_arrival(1))
    await end_association(store, "a1", EndedHow.RELEASED)
    clock.advance(seconds=5)
    await close_due_studies(store, SETTINGS)
    async with store.db.transaction() as tx:
        assert await studies.mark_study(tx, STUDY, StudyStatus.READ, generation=1)
    await receive_instance(store, make_arrival(2, association="a2"))
    assert await status_of(store) is StudyStatus.RECEIVING
    async with store.db.transaction() as tx:
        # The reading of the first generation must not hide the new instance.
        assert not await studies.mark_study(tx, STUDY, StudyStatus.READ, generation=1)
    await end_association(store, "a2", EndedHow.RELEASED)
    clock.advance(seconds=5)
    assert await close_due_studies(store, SETTINGS) == 1
    async with store.db.transaction() as tx:
        study = await studies.study(tx, STUDY)
    assert study is not None
    assert study.generation == 2


async def test_our_own_result_leaves_the_study_closed(
    store: Store, clock: FrozenClock
) -> None:
    await receive_instance(store, make_arrival(1))
    await end_association(store, "a1", EndedHow.RELEASED)
    clock.advance(seconds=5)
    await close_due_studies(store, SETTINGS)
    result = make_arrival(9, origin=Origin.AI_SR).instance
    for expected in (Received.STORED, Received.DUPLICATE):
        async with store.db.transaction() as tx:
            assert await store_result(store, tx, result, blob_key=bytes(32)) is expected
    assert await status_of(store) is StudyStatus.CLOSED
    async with store.db.transaction() as tx:
        own = await studies.instances_of(tx, store, STUDY, Origin.AI_SR)
        everything = await studies.instances_of(tx, store, STUDY)
    assert [i.sop_instance_uid for i in own] == ["2.25.1009"]
    assert [i.origin for i in everything] == [Origin.RECEIVED, Origin.AI_SR]


async def test_one_refused_instance_does_not_take_its_batch_with_it(
    store: Store,
) -> None:
    await receive_instance(store, make_arrival(1))
    known = KnownStudies()
    for _ in range(2):  # the long way, then the short one
        results = await receive_instances(
            store,
            [make_arrival(2), make_arrival(1, sha256=bytes(32)), make_arrival(1)],
            known,
        )
        assert isinstance(results[1], NodeError)
        assert results[1].kind is ErrorKind.CONFLICT
        assert results[2] is Received.DUPLICATE
    assert results[0] is Received.DUPLICATE


async def test_known_study_takes_the_short_way_to_the_same_rows_and_audit(
    store: Store, clock: FrozenClock
) -> None:
    known = KnownStudies()
    batch = [make_arrival(n, association=f"a{n % 2}") for n in range(2, 9)]
    assert await receive_instances(store, [make_arrival(1)], known) == [Received.STORED]
    again = [make_arrival(2)]  # the same instance twice in one batch
    results = await receive_instances(store, [*batch, *again], known)
    assert results == [*[Received.STORED] * 7, Received.DUPLICATE]
    async with store.db.transaction() as tx:
        assert await audit.verify(tx) == 8
        kept = await studies.instances_of(tx, store, STUDY)
        assert await tx.fetchval("select count(*) from open_associations") == 2
    assert [i.sop_instance_uid[-1] for i in kept] == list("12345678")
    assert kept[-1].metadata == kept[0].metadata
    for association in ("a0", "a1"):
        await end_association(store, association, EndedHow.RELEASED)
    clock.advance(seconds=5)
    assert await close_due_studies(store, SETTINGS) == 1
    await receive_instances(store, [make_arrival(9)], known)
    assert await status_of(store) is StudyStatus.RECEIVING  # closed: the long way


async def test_patient_is_found_by_id_and_by_any_part_of_the_name(
    store: Store,
) -> None:
    await receive_instance(store, make_arrival(1))
    async with store.db.transaction() as tx:
        found = await identities.find_patient(tx, store, issuer="", patient_id="P-1")
        assert found is not None
        for prefix in ("zhang", "SA", "张", "张三"):
            assert await identities.find_patients_by_name(tx, store, prefix) == [found]
        assert await identities.find_patients_by_name(tx, store, "hang") == []
        assert (
            await identities.find_patient(tx, store, issuer="", patient_id="p-1")
            is None
        )
        assert await studies.find_studies_by_accession(tx, store, "acc-7") == [STUDY]
        detail = await studies.study_detail(tx, store, STUDY)
    assert detail.study_description == "乳腺超声"


async def test_typing_error_of_a_scanner_renames_nobody(store: Store) -> None:
    await receive_instance(store, make_arrival(1))
    told = PatientIdentity(patient_id="P-1", name="Zhang^Sam", sex="F")
    await receive_instance(store, make_arrival(2, patient=told))
    async with store.db.transaction() as tx:
        found = await identities.find_patient(tx, store, issuer="", patient_id="P-1")
        assert found is not None
        identity = await identities.patient(tx, store, found)
        assert (identity.name, identity.sex) == ("Zhang^San=张^三", "F")
        await identities.upsert_patient(tx, store, told, at=store.clock(), replace=True)
        assert (await identities.patient(tx, store, found)).name == "Zhang^Sam"
