"""Orders as scheduled steps: placed once, kept whole, matched to their studies only."""

from dataclasses import replace
from datetime import date, time
from uuid import UUID

import orjson
import pytest

from node.domain.errors import ErrorKind, NodeError
from node.domain.order import (
    Code,
    Order,
    OrderSource,
    OrderStatus,
    Step,
    is_somebody_else,
)
from node.domain.report import Conclusions, ReportStatus
from node.domain.study import PatientIdentity, ReceivedInstance
from node.store import identities, orders
from node.store.erasure import shred_patient
from node.store.orders import NamedBy, OrderQuery
from node.store.store import Store
from node.workflow.intake import Arrival, receive_instance
from node.workflow.orders import (
    By,
    Placed,
    Placement,
    cancel_order,
    match_study,
    patient_of_order,
    place_order,
)
from node.workflow.reporting import draft_report, revise_report
from tests.factories import ALGORITHM, DOCTOR, make_findings, make_patient

RIS = By("ris", "ehr")
STEP = Step(
    scheduled_on=date(2026, 11, 21),
    scheduled_time=time(9, 30),
    accession_number="ACC-1",
    requested_procedure_description="乳腺超声",
    requested_procedure_code=Code("47079000", "SCT", "Ultrasonography of breast"),
    station_titles=("US1",),
)
OTHER = PatientIdentity("MRN-7", "Liu^Yan=刘^燕", birth_date=date(1990, 1, 2), sex="F")


async def placed(
    store: Store,
    step: Step = STEP,
    identity: PatientIdentity | None = None,
    key: str = "1",
    **changes: object,
) -> tuple[Order, Placed]:
    async with store.db.transaction() as tx:
        patient_id = await patient_of_order(store, tx, identity or make_patient())
        placement = Placement(key, patient_id, OrderSource.REST, step)
        placement = replace(placement, **changes)  # type: ignore[arg-type]
        return await place_order(store, tx, placement, by=RIS)


async def received(
    store: Store,
    *,
    study: str = "2.25.77",
    accession: str = "",
    identity: PatientIdentity | None = None,
    request: dict[str, str] | None = None,
) -> None:
    header = {}
    if request is not None:
        item = {tag: {"Value": [value]} for tag, value in request.items()}
        header["00400275"] = {"vr": "SQ", "Value": [item]}
    instance = ReceivedInstance(
        study_instance_uid=study,
        series_instance_uid=f"{study}.1",
        sop_instance_uid=f"{study}.1.1",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.6.1",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        patient=identity or make_patient(),
        accession_number=accession,
        study_date=date(2026, 11, 21),
        study_description="",
        modality="US",
        number_of_frames=1,
        metadata=orjson.dumps(header),
        frame_table=(),
        blob_name=f"blob-{study}",
        size=1,
        sha256=b"\0" * 32,
        calling_ae="US1",
        association="1",
    )
    await receive_instance(store, Arrival(instance, blob_key=b"\1" * 32))


async def matched(store: Store, study: str = "2.25.77") -> list[orders.StudyOrder]:
    async with store.db.transaction() as tx:
        return await match_study(store, tx, study)


async def signed(store: Store, study: str) -> None:
    """Let the algorithm draft the report of a study, and a doctor sign it."""
    async with store.db.transaction() as tx:
        report = await draft_report(store, tx, study, make_findings(), author=ALGORITHM)
        await revise_report(
            store,
            tx,
            report.id,
            ReportStatus.FINAL,
            make_findings(),
            Conclusions(),
            author=DOCTOR,
        )


async def read(store: Store, order_id: UUID) -> Order:
    async with store.db.transaction() as tx:
        listed = await orders.find(tx, store, order_id)
    assert listed is not None
    return listed.order


async def test_an_order_gets_the_ids_that_nobody_gave_and_keeps_them(
    store: Store,
) -> None:
    order, new = await placed(store)
    again, repeated = await placed(store)
    assert (new, repeated, again) == (Placed.NEW, Placed.SAME, order)
    assert order.step.requested_procedure_id == "ACC-1"
    assert order.step.step_id.startswith("S")
    assert order.step.study_instance_uid.startswith("2.25.")
    later = replace(STEP, scheduled_time=time(11))
    moved, changed = await placed(store, later)
    assert changed is Placed.CHANGED
    assert moved.step.scheduled_time == time(11)
    assert moved.step.study_instance_uid == order.step.study_instance_uid
    assert await read(store, order.order_id) == moved


async def test_steps_of_one_procedure_belong_to_one_study(store: Store) -> None:
    first, _ = await placed(store)
    second, _ = await placed(store, replace(STEP, step_id="B"), key="2")
    other, _ = await placed(store, replace(STEP, accession_number="ACC-2"), key="3")
    assert first.step.study_instance_uid == second.step.study_instance_uid
    assert first.step.step_id != second.step.step_id
    assert other.step.study_instance_uid != first.step.study_instance_uid


async def test_what_names_the_patient_or_her_case_is_not_in_the_rows(
    store: Store,
) -> None:
    await placed(store, replace(STEP, reason="Knoten links", placer_order_number="P77"))
    async with store.db.transaction() as tx:
        row = await tx.fetchrow("select * from orders")
        entry = await tx.fetchrow("select * from audit_entries")
    seen = repr(dict(row)) + repr(dict(entry))
    for secret in ("ACC-1", "MRN-0042", "Zhang", "张", "乳腺", "Knoten", "P77"):
        assert secret not in seen


async def test_an_accession_number_is_not_given_to_two_patients(store: Store) -> None:
    order, _ = await placed(store)
    with pytest.raises(NodeError) as caught:
        await placed(store, identity=OTHER, key="2")
    assert caught.value.kind is ErrorKind.CONFLICT
    async with store.db.transaction() as tx:
        await cancel_order(store, tx, order.order_id, by=RIS)
    await placed(store, identity=OTHER, key="2")


async def test_a_patient_id_does_not_turn_one_woman_into_another(store: Store) -> None:
    await placed(store)
    wrong = replace(OTHER, patient_id="MRN-0042")
    with pytest.raises(NodeError) as caught:
        await placed(store, replace(STEP, accession_number="ACC-2"), wrong, key="2")
    assert caught.value.kind is ErrorKind.CONFLICT
    married = make_patient(name="Zhao^San=赵^三")
    assert not is_somebody_else(make_patient(), married)
    assert not is_somebody_else(make_patient(name="张^三"), make_patient())
    await placed(store, replace(STEP, accession_number="ACC-3"), married, key="3")


async def test_a_cancelled_order_is_off_the_list_and_stays_so(store: Store) -> None:
    order, _ = await placed(store)
    async with store.db.transaction() as tx:
        await cancel_order(store, tx, order.order_id, by=RIS)
        await cancel_order(store, tx, order.order_id, by=RIS)
        assert await orders.search(tx, store, OrderQuery(), limit=9) == []
    assert (await read(store, order.order_id)).status is OrderStatus.CANCELLED


async def test_an_examination_that_has_begun_keeps_its_order(store: Store) -> None:
    order, _ = await placed(store)
    await received(store, study=order.step.study_instance_uid)
    await matched(store, order.step.study_instance_uid)
    assert (await read(store, order.order_id)).status is OrderStatus.IN_PROGRESS
    with pytest.raises(NodeError):
        await placed(store, replace(STEP, scheduled_time=time(12)))
    async with store.db.transaction() as tx:
        with pytest.raises(NodeError):
            await cancel_order(store, tx, order.order_id, by=RIS)
    await signed(store, order.step.study_instance_uid)
    assert (await read(store, order.order_id)).status is OrderStatus.COMPLETED


async def test_an_order_that_comes_after_the_signature_is_done(store: Store) -> None:
    await received(store, accession="ACC-1")
    await signed(store, "2.25.77")
    order, _ = await placed(store)
    assert (await read(store, order.order_id)).status is OrderStatus.COMPLETED


async def test_a_study_finds_its_order_by_each_evidence(store: Store) -> None:
    order, _ = await placed(store)
    uid, step = order.step.study_instance_uid, order.step
    request = {
        "00401001": step.requested_procedure_id,
        "00400009": step.step_id,
    }
    await received(store, study=uid)
    await received(store, study="2.25.1", accession="ACC-1")
    await received(store, study="2.25.2", request=request)
    await received(store, study="2.25.3", request={**request, "00401001": "other"})
    await received(store, study="2.25.4")
    named = {
        study: [n.named_by for n in await matched(store, study)]
        for study in (uid, "2.25.1", "2.25.2", "2.25.3", "2.25.4")
    }
    assert named == {
        uid: [NamedBy.STUDY_UID],
        "2.25.1": [NamedBy.ACCESSION],
        "2.25.2": [NamedBy.REQUEST],
        "2.25.3": [],
        "2.25.4": [],
    }


async def test_an_order_of_another_patient_is_flagged_and_never_taken(
    store: Store,
) -> None:
    order, _ = await placed(store)
    await received(store, accession="ACC-1", identity=OTHER)
    (named,) = await matched(store)
    await matched(store)
    assert not named.agrees
    assert (await read(store, order.order_id)).status is OrderStatus.SCHEDULED
    async with store.db.transaction() as tx:
        assert await orders.conflicts(tx) == [("2.25.77", order.order_id)]
        entries = await tx.fetch(
            "select outcome from audit_entries where action = 'order-match'"
        )
    assert [entry["outcome"] for entry in entries] == ["4"]


async def test_a_conflict_ends_with_the_correction_of_the_order(store: Store) -> None:
    order, _ = await placed(store)
    await received(store, accession="ACC-1", identity=OTHER)
    await matched(store)
    async with store.db.transaction() as tx:
        await cancel_order(store, tx, order.order_id, by=RIS)
        assert await orders.conflicts(tx) == []
    await placed(store, replace(STEP, accession_number="ACC-9"))
    assert await matched(store) == []


async def test_an_order_that_comes_after_its_study_is_found_the_next_time(
    store: Store,
) -> None:
    await received(store, accession="ACC-1")
    assert await matched(store) == []
    await placed(store)
    assert [named.agrees for named in await matched(store)] == [True]


async def test_orders_of_an_erased_patient_are_gone(store: Store) -> None:
    order, _ = await placed(store)
    await placed(store, replace(STEP, accession_number="ACC-2"), OTHER, key="2")
    await shred_patient(store.db, store.ring, order.patient_id)
    async with store.db.transaction() as tx:
        found = await orders.search(tx, store, OrderQuery(), limit=9)
        assert await orders.find(tx, store, order.order_id) is None
    assert [one.identity.patient_id for one in found] == ["MRN-7"]


async def test_a_search_narrows_by_each_key(store: Store) -> None:
    order, _ = await placed(store)
    free = replace(STEP, accession_number="ACC-2", station_titles=(), modality="MG")
    await placed(store, replace(free, scheduled_on=date(2026, 11, 23)), OTHER, key="2")
    wanted = [
        (OrderQuery(), 2),
        (OrderQuery(first_day=date(2026, 11, 22)), 1),
        (OrderQuery(last_day=date(2026, 11, 22)), 1),
        (OrderQuery(stations=frozenset({"US1"})), 2),
        (OrderQuery(stations=frozenset({"US1"}), unassigned=False), 1),
        (OrderQuery(stations=frozenset({"US9"})), 1),
        (OrderQuery(modality="MG"), 1),
        (OrderQuery(patient_id="MRN-0042"), 1),
        (OrderQuery(accession_number="ACC-2"), 1),
        (OrderQuery(step_id=order.step.step_id), 1),
        (OrderQuery(requested_procedure_id="ACC-1"), 1),
        (OrderQuery(study_instance_uids=(order.step.study_instance_uid,)), 1),
        (OrderQuery(name_prefix="zha"), 1),
        (OrderQuery(name_prefix="刘"), 1),
        (OrderQuery(name_prefix="nobody"), 0),
        (OrderQuery(statuses=frozenset({OrderStatus.COMPLETED})), 0),
    ]
    async with store.db.transaction() as tx:
        for query, count in wanted:
            found = await orders.search(tx, store, query, limit=9)
            assert len(found) == count, query


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accession_number", "A" * 17),
        ("accession_number", "A\\B"),
        ("step_description", "a\nb"),
        ("modality", "us"),
        ("station_titles", ("超声",)),
        ("study_instance_uid", "1.02.3"),
        ("performing_physician", "a=b=c=d"),
        ("priority", "soon"),
        ("requested_procedure_code", Code("", "SCT", "x")),
    ],
)
def test_what_dicom_has_no_room_for_is_refused_by_name(
    field: str, value: object
) -> None:
    with pytest.raises(NodeError) as caught:
        replace(STEP, **{field: value})  # type: ignore[arg-type]
    assert caught.value.expression == field


def test_prefixes_find_names_without_their_accents() -> None:
    prefixes = identities.name_prefixes("Müller^Zoë=米勒")
    assert {"Mü", "MULLER".capitalize(), "Zoe", "米"} <= set(prefixes)


async def test_a_machine_that_leaves_the_issuer_out_still_means_the_same_patient(
    store: Store,
) -> None:
    issued = make_patient(issuer="urn:oid:1.2.3")
    await placed(store, identity=issued)
    await received(store, accession="ACC-1")
    assert [named.agrees for named in await matched(store)] == [True]
    other = replace(OTHER, patient_id="MRN-0042", issuer="urn:oid:9")
    await received(store, study="2.25.78", accession="ACC-1", identity=other)
    assert [named.agrees for named in await matched(store, "2.25.78")] == [False]


@pytest.mark.parametrize("where", ["accession", "placer"])
async def test_a_study_finds_the_order_of_its_patient_by_the_placers_number(
    store: Store, where: str
) -> None:
    step = replace(STEP, accession_number="", placer_order_number="P-77")
    order, _ = await placed(store, step)
    if where == "accession":
        await received(store, accession="P-77")
    else:
        await received(store, request={"00402016": "P-77"})
    (found,) = await matched(store)
    assert (found.order.order_id, found.agrees) == (order.order_id, True)


async def test_a_placers_number_says_nothing_of_another_patient(store: Store) -> None:
    step = replace(STEP, accession_number="", placer_order_number="P-77")
    await placed(store, step, OTHER)
    await received(store, accession="P-77")
    assert await matched(store) == []


async def test_an_order_that_comes_late_is_found_by_its_placers_number_too(
    store: Store,
) -> None:
    await received(store, accession="P-77")
    assert await matched(store) == []
    step = replace(STEP, accession_number="", placer_order_number="P-77")
    order, _ = await placed(store, step)
    assert (await read(store, order.order_id)).status is OrderStatus.IN_PROGRESS
