"""A study that is linked by hand: `basedOn` and accession number of its resources."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from fhir.content import concepts
from fhir.content.links import publish_links
from node.domain.access import Identity, Role
from node.store import subscriptions
from node.workflow.orders import PUBLISH_LINKS
from node.workflow.reconciliation import compare, link_order, unlink_order
from tests.factories import make_patient
from tests.fhir.content.test_orders import make_order, post, stored
from tests.fhir.rig import STUDY_UID, Rig, publish_draft, receive_study

CLERK = Identity(str(uuid4()), frozenset({Role.TECHNOLOGIST}), "Li")


@pytest.fixture
async def known(empty_rig: Rig) -> str:
    """A study with a draft and a mistyped number; its patient as a reference."""
    await receive_study(empty_rig.store, make_patient(), accession="TYPO")
    empty_rig.report = await publish_draft(empty_rig.store, empty_rig.settings)
    return f"Patient/{empty_rig.report.patient_id}"


async def done(rig: Rig) -> None:
    """Do the jobs that tell of links, as the worker would."""
    while job := await rig.store.jobs.claim([PUBLISH_LINKS], "test"):
        await publish_links(rig.store, rig.settings, job.payload)
        await rig.store.jobs.done(job)


async def act(rig: Rig, what: Any, order_id: UUID) -> None:
    async with rig.store.db.transaction() as tx:
        seen = (await compare(rig.store, tx, STUDY_UID)).seen
    await what(
        rig.store,
        STUDY_UID,
        order_id,
        identity=CLERK,
        reason="mistyped at the machine",
        seen=seen,
    )
    await done(rig)


async def test_linking_by_hand_writes_new_versions_and_says_who_and_why(
    empty_rig: Rig, known: str
) -> None:
    posted = await post(empty_rig, make_order(known))
    (order,) = await stored(empty_rig)
    before = await empty_rig.read(empty_rig.report_path, role=Role.EHR)
    assert "basedOn" not in before
    await act(empty_rig, link_order, order.order_id)
    after = await empty_rig.read(empty_rig.report_path, role=Role.EHR)
    reference = {"reference": f"ServiceRequest/{posted.body['id']}"}
    assert after["basedOn"] == [reference]
    assert after["identifier"][0]["value"] == "ACC-1"
    assert after["meta"]["versionId"] == str(int(before["meta"]["versionId"]) + 1)
    assert (after["status"], after["result"]) == (before["status"], before["result"])
    study = await empty_rig.read(f"/ImagingStudy/{STUDY_UID}", role=Role.EHR)
    assert study["basedOn"] == [reference]
    version = after["meta"]["versionId"]
    target = f"DiagnosticReport/{after['id']}"
    found = await empty_rig.read(f"/Provenance?target={target}", role=Role.EHR)
    said = [
        entry["resource"]
        for entry in found["entry"]
        if "reason" in entry["resource"]
        and entry["resource"]["target"][0]["reference"]
        == f"{target}/_history/{version}"
    ]
    assert said[0]["reason"][0]["text"] == "mistyped at the machine"
    await act(empty_rig, unlink_order, order.order_id)
    again = await empty_rig.read(empty_rig.report_path, role=Role.EHR)
    assert "basedOn" not in again
    assert again["identifier"][0]["value"] == "TYPO"


async def test_a_repeated_job_writes_nothing(empty_rig: Rig, known: str) -> None:
    await post(empty_rig, make_order(known))
    (order,) = await stored(empty_rig)
    await act(empty_rig, link_order, order.order_id)
    once = await empty_rig.read(empty_rig.report_path, role=Role.EHR)
    payload = {"study_instance_uid": STUDY_UID, "decision": None}
    await publish_links(empty_rig.store, empty_rig.settings, payload)
    twice = await empty_rig.read(empty_rig.report_path, role=Role.EHR)
    assert twice["meta"]["versionId"] == once["meta"]["versionId"]


async def test_the_number_of_an_order_that_was_taken_away_is_not_the_studys(
    empty_rig: Rig, known: str
) -> None:
    await post(empty_rig, make_order(known, identifier=[acsn("TYPO")]))
    (order,) = await stored(empty_rig)
    await done(empty_rig)
    linked = await empty_rig.read(empty_rig.report_path, role=Role.EHR)
    assert linked["basedOn"]
    await act(empty_rig, unlink_order, order.order_id)
    after = await empty_rig.read(empty_rig.report_path, role=Role.EHR)
    assert "identifier" not in after
    assert "basedOn" not in after


async def test_hospital_systems_are_told_of_a_signed_report_and_the_phone_is_not(
    rig: Rig,
) -> None:
    assert (await rig.sign()).status == 200
    told: list[str] = []
    async with rig.store.db.transaction() as tx:
        for topic in ("report-signed", "report-released"):
            subscription = subscriptions.Subscription(
                subscription_id=uuid4(),
                topic=f"{concepts.BASE}/SubscriptionTopic/{topic}",
                status="active",
                endpoint="http://localhost/hook",
                headers=(),
                content="empty",
                timeout_s=5,
                heartbeat_period_s=None,
            )
            await subscriptions.create(tx, rig.store, subscription)
    patient = f"Patient/{rig.report.patient_id if rig.report else ''}"
    await post(rig, make_order(patient))
    (order,) = await stored(rig)
    await act(rig, link_order, order.order_id)
    async with rig.store.db.transaction() as tx:
        rows = await tx.fetch(
            "select topic from subscription_events join subscriptions"
            " using (subscription_id)"
        )
        told = [row["topic"].rpartition("/")[2] for row in rows]
    assert told == ["report-signed"]


def acsn(value: str) -> dict[str, Any]:
    return {**make_order("")["identifier"][0], "value": value}
