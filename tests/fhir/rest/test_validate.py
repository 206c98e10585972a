"""$validate tells what is wrong with a resource, and writes nothing (FHIR R4 3.1.0)."""

from typing import Any

import pytest

from fhir.content import concepts
from fhir.encoding.wire import Json, to_bytes
from fhir.encoding.xml import to_xml
from node.domain.access import Role
from node.store import audit
from tests.fhir.rest.test_rest import ACSN_TYPE, make_ehr_patient
from tests.fhir.rig import Answer, Rig
from tests.fhir.subscriptions.rig import make_subscription

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
    query = f"/Observation/$validate?profile={PROFILE}|0.1.0"
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


async def everything_stored(rig: Rig) -> dict[str, int]:
    """Count the rows of every table, but for the trail of who asked."""
    async with rig.store.db.connection() as connection:
        names = await connection.fetch(
            "select relname from pg_class where relkind = 'r'"
            " and relnamespace = 'public'::regnamespace"
        )
        return {
            name: await connection.fetchval(f'select count(*) from "{name}"')
            for (name,) in names
            if not name.startswith("audit")
        }


def order_of(patient: str, **changes: Any) -> Json:
    return {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": {"reference": f"Patient/{patient}"},
        "identifier": [{"type": ACSN_TYPE, "value": "A-1"}],
        **changes,
    }


async def test_a_mode_tells_what_the_write_would_be_refused_for(rig: Rig) -> None:
    known = await rig.ask("POST", "/Patient", make_ehr_patient("M-1"), role=Role.EHR)
    patient, at = known.body["id"], known.body
    report, hook = await rig.read(rig.report_path), make_subscription("http://evil/")
    told_of = {"resourceType": "Communication", "status": "in-progress"}
    amended = {**report, "status": "amended"}
    changed = {**report, "status": "final", "subject": {"reference": "Patient/1"}}
    before = await everything_stored(rig)
    cases: list[tuple[Role, str, Json, str, str]] = [
        (Role.EHR, "create", make_ehr_patient("M-2"), "information", "nothing is"),
        (Role.EHR, "create", make_ehr_patient("M-1"), "Patient.identifier", "update"),
        (Role.RADIOLOGIST, "create", make_ehr_patient("M-2"), "mode", "not allowed"),
        (Role.EHR, "update", at, "information", "nothing is wrong"),
        (Role.EHR, "update", {**at, "meta": {"versionId": "9"}}, "", "version"),
        (Role.EHR, "update", {**at, "id": "unknown"}, "", "chosen here"),
        (Role.EHR, "update", at | make_ehr_patient("M-3"), "Patient.identifier", ""),
        (Role.EHR, "create", order_of(patient), "warning", "no occurrence"),
        (Role.EHR, "create", order_of("nobody"), "ServiceRequest.subject", "Patient"),
        (Role.EHR, "create", hook, "Subscription.channel.endpoint", ""),
        (Role.EHR, "update", report, "mode", ""),
        (Role.RADIOLOGIST, "create", report, "mode", "not offered"),
        (Role.RADIOLOGIST, "update", {**report, "status": "final"}, "information", ""),
        (Role.RADIOLOGIST, "update", amended, "DiagnosticReport.status", "become"),
        (Role.RADIOLOGIST, "update", changed, "DiagnosticReport.subject", "node"),
        (Role.RADIOLOGIST, "create", told_of, "Communication.status", ""),
    ]
    for role, mode, body, where, words in cases:
        kind = body["resourceType"]
        asked = parameters(body, mode=mode)
        (issue, *_) = await told(rig, f"/{kind}/$validate", asked, role=role)
        case = (role, mode, kind, where, issue)
        if where in ("information", "warning"):
            assert issue["severity"] == where, case
        else:
            assert issue["severity"] == "error", case
            assert where in issue.get("expression", [""]), case
        assert words in issue["diagnostics"], case
    assert await everything_stored(rig) == before
    async with rig.store.db.transaction() as tx:
        last = (await audit.head(tx)).sequence
        trail = await audit.following(tx, last - len(cases), 99)
    assert len(trail) == len(cases)  # each question once, and no write
    assert {one.entry.action for one in trail} == {"fhir operation $validate"}
    # What was tried stays as possible as it was, and the trail is whole.
    made = await rig.ask("POST", "/Patient", make_ehr_patient("M-2"), role=Role.EHR)
    assert made.status == 201
    signed = {**report, "status": "final"}
    etag = {"If-Match": f'W/"{report["meta"]["versionId"]}"'}
    assert (await rig.ask("PUT", rig.report_path, signed, headers=etag)).status == 200
    async with rig.store.db.transaction() as tx:
        await audit.verify(tx)


async def test_what_is_stored_is_held_against_a_profile_by_its_id(rig: Rig) -> None:
    category = f"/Observation/{rig.report_id}-category"
    query = f"mode=profile&profile={PROFILE}"
    for method, path, body in (
        ("GET", f"{category}/$validate?{query}", None),
        ("POST", f"{category}/$validate", parameters(mode="profile", profile=PROFILE)),
    ):
        answer = await rig.ask(method, path, body)
        (issue,) = answer.body["issue"]
        assert issue["severity"] == "information", issue
    other = f"/Observation/{rig.report_id}-advice/$validate?{query}"
    assert "Observation.code" in (await rig.get(other)).expressions
    assert (await rig.get(f"/Observation/nothing/$validate?{query}")).status == 404
    assert (await rig.get(f"{category}/$validate")).status == 400
    by_type = await told(rig, "/Observation/$validate", parameters(mode="profile"))
    assert errors(by_type) == {"mode"}
