"""What the CapabilityStatement says is so, walked against a node with data in it.

Values are taken from resources as they are read: a parameter has to find the resource
that they come from, and not to find it by anything else.
"""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from fhir.conformance.profiles import BY_URL, departures, profile_of
from fhir.content.consents import publish_consent
from fhir.content.mapping import field_value
from fhir.content.publish import keep_site_current
from fhir.encoding.wire import Json, as_list
from fhir.search.parameters import PARAMETERS, Parameter, parameter
from fhir.security.access import DEFINED, Interaction
from node.domain.access import Role
from node.domain.consent import ConsentScope
from node.domain.lexicon import FieldKey
from node.store.store import Store
from node.workflow.consent import PUBLISH_CONSENT, give_consent
from tests.fhir.content.test_life_cycle import because, told_by
from tests.fhir.printing import STUDY, draft_with_image, encode, tell_of_papers
from tests.fhir.rest.test_rest import ACSN_TYPE, make_ehr_patient
from tests.fhir.rig import Rig, running_fhir
from tests.fhir.subscriptions.rig import make_subscription

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
STRICT = {"Prefer": "handling=strict"}
ROLES = (Role.RADIOLOGIST, Role.EHR, Role.ADMINISTRATOR, Role.AUDITOR)
# Who is asked as: what is not here the EHR reads.
READER = {
    "Task": Role.RADIOLOGIST,
    "AuditEvent": Role.AUDITOR,
}
# Answered by handlers of their own, whose tests walk their parameters.
APART = frozenset({"Task", "AuditEvent", *DEFINED})
# What nothing in this hospital has a value for.
WITHOUT_VALUE = {"Device?identifier", "Organization?identifier"}


@pytest.fixture
async def hospital(store: Store) -> AsyncIterator[Rig]:
    """A hospital in which everything that the node can tell of has happened once."""
    async with running_fhir(store, roles=ROLES) as rig:
        patient = make_ehr_patient("BUS-0001")
        patient["managingOrganization"] = {"reference": "Organization/hospital"}
        patient["meta"] = {
            "tag": [{"system": "urn:ward", "code": "w1"}],
            "security": [{"system": "urn:label", "code": "R"}],
            "profile": ["https://example.org/p"],
        }
        made = await rig.ask("POST", "/Patient", patient, role=Role.EHR)
        assert made.status == 201, made.raw
        mother = make_ehr_patient("BUS-0009") | {"active": True}
        hers = {"reference": f"Patient/{made.body['id']}"}
        mother["link"] = [{"other": hers, "type": "seealso"}]
        assert (await rig.ask("POST", "/Patient", mother, role=Role.EHR)).status == 201
        doctor = {
            "resourceType": "Practitioner",
            "identifier": [{"system": "urn:staff", "value": "17"}],
            "name": [{"text": "Dr Ming"}],
        }
        asks = await rig.ask("POST", "/Practitioner", doctor, role=Role.EHR)
        order = {
            "resourceType": "ServiceRequest",
            "status": "active",
            "intent": "order",
            "identifier": [{"type": ACSN_TYPE, "value": "ACC0001"}],
            "subject": {"reference": f"Patient/{made.body['id']}"},
            "requester": {"reference": f"Practitioner/{asks.body['id']}"},
            "authoredOn": "2026-11-19T10:00:00+08:00",
        }
        placed = await rig.ask("POST", "/ServiceRequest", order, role=Role.EHR)
        assert placed.status == 201, placed.raw
        rig.report = await draft_with_image(rig)
        shape = f"/Observation/{rig.report_id}-l1-shape"
        told = await rig.transact(
            await rig.edited(shape, **field_value(FieldKey.SHAPE, ("round",))),
            await rig.edited(rig.report_path, status="final"),
        )
        assert told.status == 200, told.raw
        await print_it(rig)
        entry = await rig.edited(rig.report_path, status="amended", conclusion="more")
        assert (await rig.transact(entry, because(rig))).status == 200
        await print_it(rig)
        assert (await rig.transact(told_by("in-person", rig))).status == 200
        hook = make_subscription("http://127.0.0.1:1/hook")
        made = await rig.ask("POST", "/Subscription", hook, role=Role.EHR)
        assert made.status == 201, made.raw
        await give_consent(rig.store, STUDY, ConsentScope.RESEARCH, by="desk")
        while job := await rig.store.jobs.claim([PUBLISH_CONSENT], "test"):
            await publish_consent(rig.store, job.payload)
            await rig.store.jobs.done(job)
        await keep_site_current(rig.store, rig.settings)
        await rig.store.jobs.failed(
            await _some_job(rig), "no usable frame", retry=False
        )
        yield rig


async def print_it(rig: Rig) -> None:
    assert rig.report is not None
    rig.report = await encode(rig, rig.report)
    await tell_of_papers(rig)


async def _some_job(rig: Rig) -> Any:
    async with rig.store.db.transaction() as tx:
        payload = {"study_instance_uid": STUDY}
        await rig.store.jobs.defer(tx, "assess_study", payload)
    job = await rig.store.jobs.claim(["assess_study"], "w")
    assert job is not None
    return job


def role_for(kind: str) -> Role:
    return READER.get(kind, Role.EHR)


async def all_of(rig: Rig, kind: str) -> list[Json]:
    bundle = await rig.read(f"/{kind}?_count=200", role=role_for(kind))
    return [e["resource"] for e in bundle.get("entry", [])]


def values(resource: Json, p: Parameter) -> Iterator[str]:
    """Yield what a resource can be found by, as a query says it."""
    found: list[Any] = [resource]
    for step in p.path.split("."):
        found = [v for item in found for v in as_list(item.get(step))]
    for value in found:
        match p.kind:
            case "token":
                yield from _tokens(value)
            case "reference" if isinstance(value, dict) and "reference" in value:
                yield value["reference"].partition("/_history/")[0]
            case "date" | "uri":
                yield str(value)
            case "string":
                yield value if isinstance(value, str) else value["text"]


def _tokens(value: Any) -> Iterator[str]:
    if isinstance(value, bool):
        yield json.dumps(value)
    elif isinstance(value, str):
        yield value
    else:
        for coding in value.get("coding", [value]):
            code = coding.get("code", coding.get("value"))
            if code is not None:
                yield f"{coding.get('system', '')}|{code}"


OTHER = {
    "token": "urn:nowhere|nothing",
    "reference": "nobody",
    "date": "1999",
    "string": "Nobody",
    "uri": "urn:nowhere",
}


async def ids(rig: Rig, kind: str, name: str, value: str) -> list[str]:
    path = f"/{kind}?{urlencode({name: value, '_count': '200'})}"
    answer = await rig.get(path, role=role_for(kind), headers=STRICT)
    assert answer.status == 200, (path, answer.raw)
    return [e["resource"]["id"] for e in answer.body.get("entry", [])]


async def test_each_listed_parameter_finds_what_has_its_value_and_nothing_else(
    hospital: Rig,
) -> None:
    statement = await hospital.read("/metadata", role=None)
    untried = set()
    for resource in statement["rest"][0]["resource"]:
        kind = resource["type"]
        if kind in APART or "searchParam" not in resource:
            continue
        held = await all_of(hospital, kind)
        assert held, kind
        for told in resource["searchParam"]:
            name, p = told["name"], parameter(kind, told["name"])
            if p is None:  # what every resource has
                first = held[0]
                good = {
                    "_id": first["id"],
                    "_lastUpdated": first["meta"]["lastUpdated"],
                }
                assert first["id"] in await ids(hospital, kind, name, good[name])
                bad = "1999" if name == "_lastUpdated" else "nothing"
                assert await ids(hospital, kind, name, bad) == []
                continue
            assert told["type"] == p.kind
            rows = [(r["id"], value) for r in held for value in values(r, p)]
            if not rows:
                untried.add(f"{kind}?{name}")
                continue
            holder, value = rows[0]
            matching = await ids(hospital, kind, name, value)
            assert holder in matching, (kind, name, value)
            if p.kind == "token":
                same = {i for i, v in rows if v == value}
                assert set(matching) == same, (kind, name, value)
            assert await ids(hospital, kind, name, OTHER[p.kind]) == [], (kind, name)
    common = {u for u in untried if u.partition("?")[2] in ("_tag", "_profile")}
    common |= {u for u in untried if u.endswith("?_security")}
    assert untried - common == WITHOUT_VALUE


async def test_each_listed_include_brings_what_is_referred_to(hospital: Rig) -> None:
    statement = await hospital.read("/metadata", role=None)
    listed = {r["type"]: r for r in statement["rest"][0]["resource"]}
    every = {
        kind: await all_of(hospital, kind) for kind in PARAMETERS if kind != "Binary"
    }
    there = {f"{kind}/{r['id']}" for kind, held in every.items() for r in held}
    for kind, resource in listed.items():
        for told in resource.get("searchInclude", []):
            source, _, name = told.partition(":")
            assert source == kind
            p = parameter(kind, name)
            assert p is not None
            expected = {v for r in every[kind] for v in values(r, p)} & there
            brought = await included(hospital, kind, "_include", told)
            own = {f"{kind}/{r['id']}" for r in every[kind]}
            assert brought == expected - own, told
        for told in resource.get("searchRevInclude", []):
            source, _, name = told.partition(":")
            p = parameter(source, name)
            assert p is not None
            expected = {
                f"{source}/{r['id']}"
                for r in every[source]
                if any(v.startswith(f"{kind}/") and v in there for v in values(r, p))
            }
            brought = await included(hospital, kind, "_revinclude", told)
            assert brought == (expected if source != kind else set()), (kind, told)


async def included(rig: Rig, kind: str, how: str, what: str) -> set[str]:
    path = f"/{kind}?_count=200&{how}={what}"
    answer = await rig.get(path, role=role_for(kind), headers=STRICT)
    assert answer.status == 200, (path, answer.raw)
    return {
        f"{e['resource']['resourceType']}/{e['resource']['id']}"
        for e in answer.body.get("entry", [])
        if e["search"]["mode"] == "include"
    }


async def test_each_listed_way_of_reading_works_and_no_other(hospital: Rig) -> None:
    statement = await hospital.read("/metadata", role=None)
    reading = {
        Interaction.READ: "/{kind}/{id}",
        Interaction.VREAD: "/{kind}/{id}/_history/1",
        Interaction.HISTORY: "/{kind}/{id}/_history",
        Interaction.HISTORY_TYPE: "/{kind}/_history",
        Interaction.SEARCH: "/{kind}",
    }
    for resource in statement["rest"][0]["resource"]:
        kind, role = resource["type"], role_for(resource["type"])
        offered = {i["code"] for i in resource["interaction"]}
        held = [] if kind == "Binary" else await all_of(hospital, kind)
        if kind == "Binary":
            (document, *_) = await all_of(hospital, "DocumentReference")
            url = document["content"][0]["attachment"]["url"]
            held = [{"id": url.rpartition("/")[2]}]
        for interaction, path in reading.items():
            where = path.format(kind=kind, id=held[0]["id"])
            headers = {"Accept": "application/fhir+json"}
            answer = await hospital.get(where, role=role, headers=headers)
            works = interaction.value in offered
            assert (answer.status == 200) is works, (where, answer.status)
            assert works or answer.status in (404, 405), (where, answer.status)
        one, listed = f"/{kind}/{held[0]['id']}", resource["conditionalRead"]
        latest = {"If-Modified-Since": "Fri, 01 Jan 2038 00:00:00 GMT"}
        for headers, ways in (
            ({"If-None-Match": "*"}, ("not-match", "full-support")),
            (latest, ("full-support",)),
        ):
            sent = {"Accept": "application/fhir+json", **headers}
            answer = await hospital.get(one, role=role, headers=sent)
            assert (answer.status == 304) is (listed in ways), (one, listed, headers)
        answer = await hospital.ask("DELETE", one, role=role)
        assert answer.status in (404, 405), kind


async def test_what_the_node_has_written_keeps_the_profile_stated_for_its_type(
    hospital: Rig,
) -> None:
    statement = await hospital.read("/metadata", role=None)
    named: dict[str, set[str]] = {}
    for resource in statement["rest"][0]["resource"]:
        kind, stated = resource["type"], set(resource.get("supportedProfile", []))
        if kind in DEFINED:
            assert not stated
            continue
        assert stated, kind
        held = [] if kind == "Binary" else await all_of(hospital, kind)
        for one in held:
            claimed = {u for u in one["meta"].get("profile", []) if u in BY_URL}
            assert claimed <= stated
            named.setdefault(kind, set()).update(claimed)
            for url in claimed:
                departed = departures(one, BY_URL[url], kind, whole=True)
                assert list(departed) == [], one["id"]
    # What the EHR has sent claims nothing of ours, and keeps its profile all the same.
    assert {kind for kind, urls in named.items() if not urls} == {
        *("AuditEvent", "Patient", "ServiceRequest", "Subscription"),
    }
    for kind in ("Patient", "ServiceRequest"):
        for one in await all_of(hospital, kind):
            profile = profile_of(one)
            assert profile is not None
            assert list(departures(one, profile, kind, whole=True)) == []


OPERATIONS = {
    ("", "export"): "/$export",
    ("Patient", "export"): "/Patient/$export",
    ("Patient", "everything"): "/Patient/{id}/$everything",
    ("Subscription", "status"): "/Subscription/{id}/$status",
    ("Subscription", "events"): "/Subscription/{id}/$events",
    ("CodeSystem", "lookup"): "/CodeSystem/$lookup?code=4A",
    ("ValueSet", "expand"): "/ValueSet/{id}/$expand",
    ("ValueSet", "validate-code"): "/ValueSet/{id}/$validate-code?code=4A",
}


async def test_operations_that_are_listed_are_there_and_others_are_not(
    hospital: Rig,
) -> None:
    statement = await hospital.read("/metadata", role=None)
    (rest,) = statement["rest"]
    listed = {("", o["name"]): o["definition"] for o in rest.get("operation", [])}
    for resource in rest["resource"]:
        for operation in resource.get("operation", []):
            listed[resource["type"], operation["name"]] = operation["definition"]
    for (kind, name), definition in listed.items():
        assert definition.startswith("http"), (kind, name)
        path = OPERATIONS.get((kind, name))
        if path is None:
            continue  # asked by POST, in the tests of what they do
        held = await all_of(hospital, kind) if "{id}" in path else [{"id": ""}]
        answer = await hospital.get(path.format(id=held[0]["id"]), role=Role.EHR)
        # An export is for programs: it says so instead of being unknown.
        assert answer.status in (200, 202, 400, 403), (kind, name, answer.raw)
    assert set(OPERATIONS) <= set(listed)
    patient = (await all_of(hospital, "Patient"))[0]["id"]
    for path in (
        "/$everything",
        "/$match",
        "/Patient/$match",
        "/Patient/$everything",
        f"/Patient/{patient}/$summary",
        f"/DiagnosticReport/{hospital.report_id}/$everything",
        f"/DiagnosticReport/{hospital.report_id}/$document",
    ):
        answer = await hospital.get(path, role=Role.EHR)
        assert answer.status in (404, 405), path
        assert answer.body["resourceType"] == "OperationOutcome"


async def test_nothing_is_there_that_is_not_listed(rig: Rig) -> None:
    statement = await rig.read("/metadata", role=None)
    listed = {r["type"] for r in statement["rest"][0]["resource"]}
    assert [i["code"] for i in statement["rest"][0]["interaction"]] == [
        "transaction",
        "batch",
    ]
    for kind in ("Medication", "Encounter", "Group", "List", "Nothing"):
        if kind in listed:
            continue
        for path in (f"/{kind}", f"/{kind}/1", f"/{kind}/_history"):
            answer = await rig.get(path, role=Role.EHR)
            assert answer.status == 404, path
    for method, path in (
        ("GET", "/_history"),
        ("GET", ""),
        ("GET", "?_id=1"),
        ("POST", "/_search"),
        ("GET", f"/Patient/{rig.report_id}/Observation"),
        ("DELETE", "/Patient"),
        ("PATCH", "/Practitioner?identifier=1"),
    ):
        answer = await rig.ask(method, path, role=Role.EHR)
        assert answer.status in (404, 405), (method, path, answer.status)
        assert answer.body["resourceType"] == "OperationOutcome"
