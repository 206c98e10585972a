"""Another client reads and writes here unmodified: fhirpy, both of its ways."""

import asyncio
from typing import Any

import pytest
from fhirpy import AsyncFHIRClient, SyncFHIRClient
from fhirpy.base.exceptions import (
    MultipleResourcesFound,
    OperationOutcome,
    ResourceNotFound,
)

from node.domain.access import Role
from tests.factories import make_findings, make_patient
from tests.fhir.rest.test_bundles import PATIENT, make_order
from tests.fhir.rest.test_rest import make_ehr_patient
from tests.fhir.rig import Rig, publish_draft, receive_study

MRN = "urn:oid:2.25.41"


def asynchronous(rig: Rig, role: Role = Role.EHR, **headers: str) -> Any:
    token = f"Bearer {rig.tokens[role]}"
    return AsyncFHIRClient(
        rig.settings.base_url, authorization=token, extra_headers=headers or None
    )


async def more_reports(rig: Rig) -> None:
    for number in (2, 3, 4):
        uid, patient = f"2.25.300{number}", make_patient(patient_id=f"MRN-{number}")
        await receive_study(rig.store, patient, study_uid=uid, accession=f"A-{number}")
        await publish_draft(
            rig.store, rig.settings, study_uid=uid, findings=make_findings("2")
        )


async def test_fhirpy_searches_includes_and_turns_pages(rig: Rig) -> None:
    await more_reports(rig)
    client = asynchronous(rig)
    reports = client.resources("DiagnosticReport")
    every = await reports.search(status="partial").limit(3).sort("-issued").fetch_all()
    assert len({one.id for one in every}) == 4
    assert await reports.search(status="partial").count() == 4
    assert len(await reports.limit(2).fetch()) == 2
    one = await reports.search(patient__identifier="MRN-2").first()
    patient = await one["subject"].to_resource()
    assert patient["identifier"][0]["value"] == "MRN-2"
    assert (await client.get("DiagnosticReport", one.id))["id"] == one.id
    with_patient = reports.search(_id=one.id).include("DiagnosticReport", "subject")
    found = await with_patient.fetch()
    assert [r.resource_type for r in found] == ["DiagnosticReport"]
    raw = await (
        reports.search(_id=one.id)
        .include("DiagnosticReport", "result")
        .include("Observation", "has-member", iterate=True)
        .revinclude("Provenance", "target")
        .fetch_raw()
    )
    kinds = {entry["resource"]["resourceType"] for entry in raw["entry"]}
    assert kinds == {"DiagnosticReport", "Observation", "Provenance"}
    part = await reports.search(_id=one.id).elements("status").first()
    assert part["status"] == "partial"
    assert "conclusion" not in part
    by_report = ("DiagnosticReport", "patient")
    by = client.resources("Patient").has(*by_report, identifier="A-2")
    assert [p["id"] for p in await by.fetch()] == [patient.id]
    whole = await patient.execute("$everything", method="get")
    assert whole["entry"][0]["resource"]["id"] == patient.id
    with pytest.raises(ResourceNotFound):
        await client.get("Patient", "nobody")


async def test_fhirpy_brings_patients_and_orders_and_changes_them(
    empty_rig: Rig,
) -> None:
    client = asynchronous(empty_rig)
    patient = client.resource(**_named(make_ehr_patient()))
    await patient.save()
    assert patient["meta"]["versionId"] == "1"
    order = client.resource(**_named(make_order(PATIENT)))
    order["subject"] = patient.to_reference()
    await order.save()
    patients = client.resources("Patient").search(identifier=f"{MRN}|MRN-0099")
    # Created once, then found.
    again = client.resource(**_named(make_ehr_patient()))
    same, created = await patients.get_or_create(again)
    assert (same.id, created) == (patient.id, False)
    # Changed by what it is known by, and by a version that was read.
    changed = client.resource(**_named(make_ehr_patient(gender="other")))
    stored, created = await patients.update(changed)
    assert (stored["meta"]["versionId"], created) == ("2", False)
    careful = asynchronous(empty_rig, **{"If-Match": 'W/"2"'})
    read = await careful.reference("Patient", patient.id).to_resource()
    read["gender"] = "female"
    await read.save()
    assert (await client.get("Patient", patient.id))["gender"] == "female"
    with pytest.raises(MultipleResourcesFound):  # what this client calls any 412
        await read.save()
    with pytest.raises(OperationOutcome) as refused:
        await patient.save()
    assert "If-Match" in str(refused.value)
    with pytest.raises(OperationOutcome) as refused:
        await patient.delete()
    assert "nothing is deleted" in str(refused.value)
    bundle = client.resource(
        "Bundle",
        type="transaction",
        entry=[
            {
                "fullUrl": PATIENT,
                "resource": make_ehr_patient("MRN-7"),
                "request": {"method": "POST", "url": "/Patient"},
            },
            {
                "resource": make_order(PATIENT, identifier=[{"value": "7"}]),
                "request": {"method": "POST", "url": "/ServiceRequest"},
            },
        ],
    )
    await bundle.save()
    orders = client.resources("ServiceRequest").search(patient__identifier="MRN-7")
    assert await orders.count() == 1


async def test_fhirpy_does_the_same_without_an_event_loop(rig: Rig) -> None:
    await more_reports(rig)

    def work() -> None:
        token = f"Bearer {rig.tokens[Role.EHR]}"
        client = SyncFHIRClient(rig.settings.base_url, authorization=token)
        reports = client.resources("DiagnosticReport")
        assert len(reports.search(status="partial").limit(1).fetch_all()) == 4
        raw = reports.include("DiagnosticReport", "subject").fetch_raw()
        kinds = [entry["resource"]["resourceType"] for entry in raw["entry"]]
        assert (kinds.count("DiagnosticReport"), kinds.count("Patient")) == (4, 4)
        patient = client.resource(**_named(make_ehr_patient()))
        patient.save()
        found = client.resources("Patient").search(identifier="MRN-0099").get()
        assert found["id"] == patient["id"]

    await asyncio.to_thread(work)


def _named(resource: dict[str, Any]) -> dict[str, Any]:
    """Return a resource as the arguments that this client takes."""
    return {
        {"resourceType": "resource_type"}.get(name, name): value
        for name, value in resource.items()
    }
