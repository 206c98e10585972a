"""$validate tells what is wrong with a resource, and writes nothing (FHIR R4 3.1.0)."""

from typing import Any

import pytest

from fhir.content import concepts
from fhir.encoding.wire import Json, to_bytes
from fhir.encoding.xml import to_xml
from node.domain.access import Role
from tests.fhir.rest.test_rest import make_ehr_patient
from tests.fhir.rig import Answer, Rig

PROFILE = f"{concepts.BASE}/StructureDefinition/bi-rads-assessment"


def parameters(resource: Json | None = None, **others: str) -> Json:
    parts: list[Json] = []
    if resource is not None:
        parts.append({"name": "resource", "resource": resource})
    if "mode" in others:
        parts.append({"name": "mode", "valueCode": others["mode"]})
    if "profile" in others:
        parts.append({"name": "profile", "valueUri": others["profile"]})
    return {"resourceType": "Parameters", "parameter": parts}


async def told(rig: Rig, path: str, body: Any, **options: Any) -> list[Json]:
    answer = await rig.ask("POST", path, body, **options)
    assert answer.status == 200, answer.raw
    assert answer.body["resourceType"] == "OperationOutcome"
    return list(answer.body["issue"])


def errors(issues: list[Json]) -> set[str]:
    named = [issue for issue in issues if issue["severity"] == "error"]
    return {path for issue in named for path in issue.get("expression", [""])}


async def test_a_good_resource_is_told_to_be_good_and_is_not_stored(rig: Rig) -> None:
    patient = make_ehr_patient(id="p1")
    for body in (patient, parameters(patient), parameters(patient, mode="create")):
        issues = await told(rig, "/Patient/$validate", body, role=Role.EHR)
        assert [issue["severity"] for issue in issues] == ["information"]
    assert (await rig.get("/Patient/p1", role=Role.EHR)).status == 404
    as_xml = {"Content-Type": "application/fhir+xml"}
    issues = await told(
        rig,
        "/Patient/$validate",
        to_xml(patient),
        role=Role.EHR,
        headers=as_xml,
    )
    assert errors(issues) == set()


async def test_all_that_is_wrong_is_told_at_once(rig: Rig) -> None:
    bad = {
        "resourceType": "Patient",
        "gender": "F",
        "nothing": 1,
        "telecom": [{"value": "1"}],
        "generalPractitioner": [{"reference": "Device/1"}],
        "text": {"status": "generated", "div": "<div>x</div>"},
    }
    issues = await told(rig, "/Patient/$validate", parameters(bad), role=Role.EHR)
    assert errors(issues) == {
        "Patient.gender",
        "Patient.identifier",
        "Patient.nothing",
        "Patient.telecom[0]",
        "Patient.generalPractitioner[0].reference",
        "Patient.text.div",
    }


async def test_a_profile_is_asked_for_by_name(rig: Rig) -> None:
    category = await rig.read(f"/Observation/{rig.report_id}-category")
    path = f"/Observation/{category['id']}/$validate"
    asked = parameters(category, mode="update", profile=PROFILE)
    assert errors(await told(rig, path, asked)) == set()
    del category["subject"]
    assert errors(await told(rig, path, asked)) == {"Observation.subject"}
    assert errors(await told(rig, path, parameters(category))) == set()
    other = parameters(category, profile="https://example.org/profile")
    assert errors(await told(rig, path, other)) == {"profile"}
    query = f"/Observation/$validate?profile={PROFILE}"
    assert errors(await told(rig, query, category)) == {"Observation.subject"}


async def test_what_would_not_be_done_is_told_with_the_rest(rig: Rig) -> None:
    study = await rig.read("/ImagingStudy/2.25.3001", role=Role.EHR)
    for mode in ("create", "delete"):
        issues = await told(
            rig, "/ImagingStudy/$validate", parameters(study, mode=mode)
        )
        assert "mode" in errors(issues), mode
    assert "mode" in errors(
        await told(rig, "/Patient/$validate", parameters(mode="delete"), role=Role.EHR)
    )
    report = await rig.read(rig.report_path)
    wrong = parameters({**report, "id": "other"}, mode="update")
    issues = await told(rig, f"{rig.report_path}/$validate", wrong)
    assert errors(issues) == {"DiagnosticReport.id"}
    masked = await rig.read(f"/{report['subject']['reference']}")
    assert "Patient.meta" in errors(await told(rig, "/Patient/$validate", masked))


@pytest.mark.parametrize(
    "body",
    [
        b"nothing",
        {"resourceType": "Nothing"},
        {"resourceType": "Parameters"},
        parameters(make_ehr_patient(), mode="guess"),
    ],
)
async def test_what_asks_nothing_is_refused(empty_rig: Rig, body: Any) -> None:
    answer: Answer = await empty_rig.ask("POST", "/Patient/$validate", body)
    assert answer.status == 400
    assert answer.body["resourceType"] == "OperationOutcome"


async def test_any_nonsense_gets_an_outcome(empty_rig: Rig) -> None:
    for resource in (
        {"resourceType": "Patient", "telecom": "x", "contact": [1], "gender": [{}]},
        {"resourceType": "Patient", "extension": [{"extension": 1}], "meta": 1},
        {"resourceType": "Patient", "contained": [{}], "text": {"div": 1}},
        {"resourceType": "Observation", "id": "x"},
    ):
        for body in (resource, parameters(resource)):
            issues = await told(empty_rig, "/Patient/$validate", to_bytes(body))
            assert errors(issues)
