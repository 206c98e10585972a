"""A ServiceRequest of the EHR stands on the worklist (FHIR R4, PS3.4 K)."""

from datetime import date, time, timedelta
from typing import Any

import pytest

from node.domain.access import Role
from node.domain.order import Order, OrderStatus
from node.store import orders
from node.store.orders import OrderQuery
from tests.factories import make_patient
from tests.fhir.rest.test_rest import ACSN_TYPE, make_ehr_patient
from tests.fhir.rig import Answer, Rig, publish_draft, receive_study

V2 = "http://terminology.hl7.org/CodeSystem/v2-0203"
SNOMED = "http://snomed.info/sct"


def typed(code: str, value: str) -> dict[str, Any]:
    return {"type": {"coding": [{"system": V2, "code": code}]}, "value": value}


@pytest.fixture
async def patient(empty_rig: Rig) -> str:
    """A patient of the EHR, as a reference."""
    posted = await empty_rig.ask("POST", "/Patient", make_ehr_patient(), role=Role.EHR)
    assert posted.status == 201, posted.raw
    return f"Patient/{posted.body['id']}"


def make_order(patient: str, **changes: Any) -> dict[str, Any]:
    order = {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": {"reference": patient},
        "identifier": [{"type": ACSN_TYPE, "value": "ACC-1"}, typed("PLAC", "P-77")],
        "code": {
            "coding": [
                {"system": "urn:hospital", "code": "XX"},
                {"system": SNOMED, "code": "47079000", "display": "US of breast"},
            ],
            "text": "乳腺超声",
        },
        "bodySite": [{"text": "左乳"}],
        "occurrenceDateTime": "2026-11-21T23:30:00+00:00",
        "priority": "urgent",
        "reasonCode": [{"text": "触及肿块"}],
        "locationCode": [
            {"coding": [{"system": "urn:sononode:ae-title", "code": "US1"}]},
            {"text": "Room 3"},
        ],
    }
    return {key: value for key, value in (order | changes).items() if value is not None}


async def post(rig: Rig, order: dict[str, Any], **headers: str) -> Answer:
    return await rig.ask(
        "POST", "/ServiceRequest", order, role=Role.EHR, headers=headers
    )


async def put(rig: Rig, posted: Answer, **changes: Any) -> Answer:
    path = f"/ServiceRequest/{posted.body['id']}"
    known = await rig.get(path, role=Role.EHR)
    headers = {"If-Match": known.headers["ETag"]}
    changed = {**known.body, **changes}
    return await rig.ask("PUT", path, changed, role=Role.EHR, headers=headers)


async def stored(rig: Rig) -> list[Order]:
    every = frozenset(OrderStatus)
    async with rig.store.db.transaction() as tx:
        found = await orders.search(tx, rig.store, OrderQuery(statuses=every), limit=9)
    return [one.order for one in found]


async def test_an_order_stands_on_the_worklist_with_all_that_a_machine_needs(
    empty_rig: Rig, patient: str
) -> None:
    doctor = {
        "resourceType": "Practitioner",
        "name": [{"family": "Sun", "given": ["Li"]}],
    }
    made = await empty_rig.ask("POST", "/Practitioner", doctor, role=Role.EHR)
    requester = {"reference": f"Practitioner/{made.body['id']}"}
    posted = await post(empty_rig, make_order(patient, requester=requester))
    assert posted.status == 201, posted.raw
    assert "Warning" not in posted.headers
    (order,) = await stored(empty_rig)
    step = order.step
    assert order.source_id == posted.body["id"]
    assert str(order.patient_id) == patient.removeprefix("Patient/")
    # 23:30 UTC is the next morning in the hospital.
    assert (step.scheduled_on, step.scheduled_time) == (date(2026, 11, 22), time(7, 30))
    assert (step.accession_number, step.placer_order_number) == ("ACC-1", "P-77")
    assert step.requested_procedure_code is not None
    assert step.requested_procedure_code.scheme == "SCT"
    assert step.requested_procedure_description == "乳腺超声"
    assert step.step_description == "乳腺超声, 左乳"
    assert (step.station_titles, step.step_location) == (("US1",), "Room 3")
    assert (step.priority, step.reason) == ("HIGH", "触及肿块")
    assert step.requesting_physician == "Sun^Li"


async def test_a_change_keeps_the_study_uid_and_a_withdrawal_ends_it(
    empty_rig: Rig, patient: str
) -> None:
    posted = await post(empty_rig, make_order(patient))
    (first,) = await stored(empty_rig)
    moved = await put(empty_rig, posted, occurrenceDateTime="2026-11-25")
    assert moved.status == 200, moved.raw
    (second,) = await stored(empty_rig)
    assert second.step.scheduled_on == date(2026, 11, 25)
    assert second.step.scheduled_time is None
    assert second.step.study_instance_uid == first.step.study_instance_uid
    held = await put(empty_rig, posted, status="on-hold")
    assert held.headers["Warning"].endswith('the status is on-hold"')
    await put(empty_rig, posted, status="active")
    assert (await stored(empty_rig))[0].status is OrderStatus.SCHEDULED
    await put(empty_rig, posted, status="revoked")
    (order,) = await stored(empty_rig)
    assert order.status is OrderStatus.CANCELLED


async def test_what_a_machine_cannot_carry_is_refused_and_nothing_is_stored(
    empty_rig: Rig, patient: str
) -> None:
    refused = [
        ({"identifier": [typed("ACSN", "A" * 17)]}, "ServiceRequest.identifier"),
        ({"occurrenceDateTime": "2026-11"}, "ServiceRequest.occurrence"),
        (
            {
                "occurrenceDateTime": None,
                "occurrenceTiming": {"event": ["2026-11-21"]},
            },
            "ServiceRequest.occurrenceTiming",
        ),
    ]
    for changes, element in refused:
        answer = await post(empty_rig, make_order(patient, **changes))
        assert (answer.status, answer.expressions) == (422, [element]), answer.raw
    assert await stored(empty_rig) == []
    found = await empty_rig.read("/ServiceRequest", role=Role.EHR)
    assert "entry" not in found


async def test_what_is_left_out_is_said(empty_rig: Rig, patient: str) -> None:
    order = make_order(
        patient,
        occurrenceDateTime=None,
        code={"coding": [{"system": "urn:hospital", "code": "XX"}], "text": "x" * 70},
    )
    answer = await post(empty_rig, order, Prefer="return=OperationOutcome")
    told = [issue["diagnostics"] for issue in answer.body["issue"]]
    assert answer.status == 201
    assert told[0] == "stored"
    assert any("no occurrence" in line for line in told)
    assert any("none of its systems" in line for line in told)
    assert any("first 64 characters" in line for line in told)
    (placed,) = await stored(empty_rig)
    assert placed.step.scheduled_on == date(2026, 11, 21)


@pytest.mark.parametrize(
    "changes",
    [{"status": "draft"}, {"intent": "proposal"}, {"doNotPerform": True}],
)
async def test_what_is_not_ordered_is_stored_but_not_on_the_worklist(
    empty_rig: Rig, patient: str, changes: dict[str, Any]
) -> None:
    answer = await post(empty_rig, make_order(patient, **changes))
    assert answer.status == 201
    assert "not on the worklist" in answer.headers["Warning"]
    assert await stored(empty_rig) == []


async def test_an_accession_number_of_another_patient_is_a_conflict(
    empty_rig: Rig, patient: str
) -> None:
    await post(empty_rig, make_order(patient))
    other = make_ehr_patient("MRN-0100", name=[{"text": "赵敏"}])
    made = await empty_rig.ask("POST", "/Patient", other, role=Role.EHR)
    answer = await post(empty_rig, make_order(f"Patient/{made.body['id']}"))
    assert answer.status == 409
    assert answer.expressions == ["ServiceRequest.identifier"]


async def test_an_order_stays_with_its_patient_also_when_its_examination_has_begun(
    empty_rig: Rig, patient: str
) -> None:
    posted = await post(empty_rig, make_order(patient))
    other = make_ehr_patient("MRN-0100", name=[{"text": "赵敏"}])
    made = await empty_rig.ask("POST", "/Patient", other, role=Role.EHR)
    hers = {"reference": f"Patient/{made.body['id']}"}
    (order,) = await stored(empty_rig)
    for status in (OrderStatus.SCHEDULED, OrderStatus.IN_PROGRESS):
        async with empty_rig.store.db.transaction() as tx:
            now = empty_rig.store.clock()
            await orders.set_status(tx, order.order_id, status, at=now)
        answer = await put(empty_rig, posted, subject=hers)
        assert (answer.status, answer.expressions) == (409, ["ServiceRequest.subject"])


async def test_the_ehr_may_change_its_order_while_the_examination_goes_on(
    empty_rig: Rig, patient: str
) -> None:
    posted = await post(empty_rig, make_order(patient))
    (order,) = await stored(empty_rig)
    async with empty_rig.store.db.transaction() as tx:
        begun, now = OrderStatus.IN_PROGRESS, empty_rig.store.clock()
        await orders.set_status(tx, order.order_id, begun, at=now)
    answer = await put(empty_rig, posted, status="revoked")
    assert answer.status == 200
    assert "has begun" in answer.headers["Warning"]
    assert (await stored(empty_rig))[0].status is begun
    await put(empty_rig, posted, status="completed")
    assert (await stored(empty_rig))[0].status is OrderStatus.COMPLETED


async def test_an_order_without_an_hour_keeps_the_day_on_which_it_came(
    empty_rig: Rig, patient: str
) -> None:
    posted = await post(empty_rig, make_order(patient, occurrenceDateTime=None))
    clock: Any = empty_rig.store.clock
    clock.now += timedelta(minutes=5)
    await put(empty_rig, posted, priority="stat")
    (order,) = await stored(empty_rig)
    assert order.step.priority == "STAT"
    assert order.step.scheduled_on == date(2026, 11, 21)


async def test_report_and_images_are_based_on_the_order(
    empty_rig: Rig, patient: str
) -> None:
    posted = await post(empty_rig, make_order(patient))
    identity = make_patient(patient_id="MRN-0099", name="=王^芳", birth_date=None)
    await receive_study(empty_rig.store, identity, accession="ACC-1")
    empty_rig.report = await publish_draft(empty_rig.store, empty_rig.settings)
    based_on = [{"reference": f"ServiceRequest/{posted.body['id']}"}]
    report = await empty_rig.read(empty_rig.report_path)
    assert report["basedOn"] == based_on
    for reference in (*report["result"], *report["imagingStudy"]):
        resource = await empty_rig.read(f"/{reference['reference']}")
        assert resource["basedOn"] == based_on
    assert (await stored(empty_rig))[0].status is OrderStatus.IN_PROGRESS
    assert (await empty_rig.sign()).status == 200
    assert (await stored(empty_rig))[0].status is OrderStatus.COMPLETED


async def test_an_order_that_came_after_the_draft_is_in_the_signed_report(
    empty_rig: Rig, patient: str
) -> None:
    identity = make_patient(patient_id="MRN-0099", name="=王^芳", birth_date=None)
    await receive_study(empty_rig.store, identity, accession="ACC-1")
    empty_rig.report = await publish_draft(empty_rig.store, empty_rig.settings)
    posted = await post(empty_rig, make_order(patient))
    assert (await empty_rig.sign()).status == 200
    report = await empty_rig.read(empty_rig.report_path)
    assert report["basedOn"] == [{"reference": f"ServiceRequest/{posted.body['id']}"}]


async def test_an_order_of_another_patient_is_named_as_a_conflict_and_not_linked(
    empty_rig: Rig, patient: str
) -> None:
    await post(empty_rig, make_order(patient))
    await receive_study(empty_rig.store, make_patient(), accession="ACC-1")
    empty_rig.report = await publish_draft(empty_rig.store, empty_rig.settings)
    report = await empty_rig.read(empty_rig.report_path)
    assert "basedOn" not in report
    images = await empty_rig.read(f"/{report['imagingStudy'][0]['reference']}")
    assert "another patient" in images["note"][0]["text"]
    assert "basedOn" not in images
    assert (await stored(empty_rig))[0].status is OrderStatus.SCHEDULED


async def test_an_order_that_replaces_another_takes_it_off_the_worklist(
    empty_rig: Rig, patient: str
) -> None:
    first = await post(empty_rig, make_order(patient))
    replaced = [{"reference": f"ServiceRequest/{first.body['id']}"}]
    second = await post(empty_rig, make_order(patient, replaces=replaced))
    assert second.status == 201, second.raw
    by_source = {order.source_id: order.status for order in await stored(empty_rig)}
    assert by_source == {
        first.body["id"]: OrderStatus.CANCELLED,
        second.body["id"]: OrderStatus.SCHEDULED,
    }


async def test_an_order_in_a_transaction_with_its_patient_is_matched_to_her_images(
    empty_rig: Rig,
) -> None:
    await receive_study(empty_rig.store, make_patient(), accession="ACC-1")
    await publish_draft(empty_rig.store, empty_rig.settings)
    told = make_ehr_patient("MRN-0042", birthDate="1979-03-05")
    told["identifier"][0].pop("system")
    told["identifier"][0]["system"] = empty_rig.settings.systems.mrn
    told["name"] = [{"text": "张三", "family": "张", "given": ["三"]}]
    order = make_order("urn:uuid:6b2f2f5e-0f7a-4a4e-9d3c-0a4f3f0f9c11")
    created = await empty_rig.transact(
        {
            "fullUrl": "urn:uuid:6b2f2f5e-0f7a-4a4e-9d3c-0a4f3f0f9c11",
            "resource": told,
            "request": {
                "method": "POST",
                "url": "Patient",
                "ifNoneExist": f"identifier={empty_rig.settings.systems.mrn}|MRN-0042",
            },
        },
        {
            "fullUrl": "urn:uuid:6b2f2f5e-0f7a-4a4e-9d3c-0a4f3f0f9c12",
            "resource": order,
            "request": {"method": "POST", "url": "ServiceRequest"},
        },
        role=Role.EHR,
    )
    assert created.status == 200, created.raw
    (placed,) = await stored(empty_rig)
    # Her images were here before it: they are its answer.
    assert placed.status is OrderStatus.IN_PROGRESS
