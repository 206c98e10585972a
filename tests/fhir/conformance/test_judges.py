"""Whatever the server answers, four validators of other people take it."""

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import pytest

from fhir.content import concepts
from fhir.encoding.wire import Json, parse, to_bytes
from node.domain.access import Role
from node.store.store import Store
from tests.fhir import judges
from tests.fhir.content.test_life_cycle import because, told_by
from tests.fhir.judges import Heard, faults
from tests.fhir.rest.test_rest import make_ehr_patient
from tests.fhir.rig import Rig, drafted, running_fhir
from tests.fhir.subscriptions.rig import make_subscription

ROLES = (Role.EHR, Role.RADIOLOGIST, Role.AUDITOR)


@pytest.fixture
async def everybody(store: Store) -> AsyncIterator[Rig]:
    """A live /fhir with a drafted report, for those who read and who audit."""
    judges.require_judges()
    async with running_fhir(store, roles=ROLES) as rig:
        yield await drafted(rig)


async def look_at_everything(rig: Rig) -> None:
    """Read, search and turn over all that the CapabilityStatement names."""
    statement = await rig.read("/metadata")
    for offered in statement["rest"][0]["resource"]:
        kind = offered["type"]
        codes = {one["code"] for one in offered["interaction"]}
        for role in ROLES:
            if "search-type" not in codes:
                continue
            ways = [("_include", one) for one in offered.get("searchInclude", ())]
            for one in offered.get("searchRevInclude", ()):
                ways.append(("_revinclude", one))
            asked = [f"_count=200&{urlencode(ways)}"]
            if role is Role.EHR:
                asked += ["_summary=true", "_elements=id", "nothing=1"]
            for query in asked:
                answer = await rig.get(f"/{kind}?{query}", role=role)
            for entry in answer.body.get("entry", [])[:2]:
                await look_at(rig, kind, entry["resource"], codes, role)
            if "history-type" in codes:
                await rig.get(f"/{kind}/_history", role=role)
        await rig.ask("POST", f"/{kind}/$validate", {"resourceType": kind})
        await rig.get(f"/{kind}/nothing")


async def look_at(rig: Rig, kind: str, one: Json, codes: set[str], role: Role) -> None:
    if "id" not in one or one["resourceType"] != kind:
        return
    await rig.get(f"/{kind}/{one['id']}", role=role)
    if "vread" in codes:
        version = one["meta"].get("versionId", "1")
        await rig.get(f"/{kind}/{one['id']}/_history/{version}", role=role)
        await rig.get(f"/{kind}/{one['id']}/_history", role=role)
    if kind == "Patient":
        await rig.get(f"/Patient/{one['id']}/$everything", role=role)
    if kind == "Subscription":
        await rig.get(f"/Subscription/{one['id']}/$status", role=role)
        await rig.get(f"/Subscription/{one['id']}/$events?content=full-resource")


async def write_a_little_of_everything(rig: Rig) -> None:
    patient = await rig.ask("POST", "/Patient", make_ehr_patient(), role=Role.EHR)
    order = {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": {"reference": f"Patient/{patient.body['id']}"},
        "identifier": [{"value": "A-77"}],
    }
    await rig.ask("POST", "/ServiceRequest", order, role=Role.EHR)
    hook = make_subscription("http://127.0.0.1:9/hook")
    await rig.ask("POST", "/Subscription", hook, role=Role.EHR)
    shown = {"Prefer": "return=representation"}
    bundle: dict[str, Any] = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [
            await rig.edited(rig.report_path, status="final"),
            told_by("phone", rig),
        ],
    }
    await rig.ask("POST", "", bundle, headers=shown)
    corrected = await rig.edited(
        rig.report_path, status="corrected", conclusion="BI-RADS 4C"
    )
    bundle["entry"] = [corrected, because(rig)]
    told = {"Prefer": "return=OperationOutcome"}
    await rig.ask("POST", "", bundle, headers=told)
    bad = {"resourceType": "Patient", "gender": "x", "foo": 1}
    await rig.ask("POST", "/Patient", bad, role=Role.EHR)


async def test_whatever_is_answered_is_taken_by_all_judges(everybody: Rig) -> None:
    rig = everybody
    await write_a_little_of_everything(rig)
    await look_at_everything(rig)
    heard = Heard()
    for answer in rig.answers:
        if "json" in answer.headers.get("Content-Type", "") and answer.raw:
            heard.hear(answer.raw)
    kinds = {parse(body)["resourceType"] for body in heard.bodies}
    assert {"Bundle", "OperationOutcome", "CapabilityStatement"} <= kinds
    assert {"DiagnosticReport", "StructureDefinition", "Patient"} <= kinds
    assert faults(heard.bodies) == []


GOOD = {
    "resourceType": "Observation",
    "meta": {"profile": [f"{concepts.BASE}/StructureDefinition/lesion-shape"]},
    "status": "final",
    "code": {
        "coding": [{"system": "http://snomed.info/sct", "code": "107644003"}],
        "text": "shape",
    },
    "subject": {"reference": "Patient/1"},
    "derivedFrom": [{"reference": "ImagingStudy/1"}],
    "valueCodeableConcept": {
        "coding": [{"system": "http://snomed.info/sct", "code": "84360004"}]
    },
}


def test_the_judges_see_what_is_wrong_each_in_its_own_way() -> None:
    judges.require_judges()
    bad = [
        GOOD | {"status": "done"},
        GOOD | {"foo": 1},
        GOOD | {"id": "a b"},
        {k: v for k, v in GOOD.items() if k != "subject"},
        GOOD | {"code": {"text": "another"}},
        GOOD | {"extension": [{"url": "http://x.org"}]},
    ]
    assert faults([to_bytes(GOOD)]) == []
    told = faults([json.dumps(one).encode() for one in bad])
    words = {f"{who}: {message}" for who, _, _, message in told}
    for who, message in (
        ("fhir", "not found"),
        ("medplum", "Invalid additional property"),
        ("schema", "must match pattern"),
        ("medplum", "Missing required property"),
        ("medplum", "Value did not match expected pattern"),
        ("medplum", "ext-1"),
    ):
        found = any(w.startswith(f"{who}:") and message in w for w in words)
        assert found, (who, message, words)
