"""What a search finds, whom it tells what, and how its pages hold (FHIR R4 3.1.1)."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from fhir.content.publish import index_older
from fhir.encoding.wire import Json, parse
from fhir.search import bundles
from fhir.search.parameters import COMMON, CONTROL, INDEX_VERSION, PARAMETERS, index_of
from node.domain.access import Role
from node.store import database, resources
from node.store.erasure import shred
from node.store.search import pages as found_pages
from node.store.search import totals
from node.store.search.criteria import Order, Query
from node.store.store import Store
from tests.conftest import FrozenClock
from tests.factories import make_findings, make_patient
from tests.fhir.rest.test_rest import ACSN_TYPE, MRN_TYPE
from tests.fhir.rig import Rig, publish_draft, receive_study, running_fhir

LABEL = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"
STRICT = {"Prefer": "handling=strict"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
NAMES = ("Anna", "Ånne", "anna", "Konstantinopolitanska", "李娜")
MORE_NAMES = {2: [{"family": "Muster", "given": ["Berta", "Carla"]}]}


@pytest.fixture
async def hospital(store: Store, clock: FrozenClock) -> AsyncIterator[Rig]:
    """Five patients of the EHR, three with a report, one of these with an order."""
    roles = (Role.RADIOLOGIST, Role.EHR, Role.ADMINISTRATOR, Role.AUDITOR)
    async with running_fhir(store, roles=roles) as rig:
        for number, name in enumerate(NAMES):
            patient = {
                "resourceType": "Patient",
                "meta": {
                    "tag": [{"system": "urn:ward", "code": f"w{number % 2}"}],
                    "security": [{"system": LABEL, "code": "R" if number else "V"}],
                    "profile": [f"https://example.org/p{number}|1.0"],
                },
                "identifier": [
                    {
                        "type": MRN_TYPE,
                        "system": "urn:oid:2.25.41",
                        "value": f"M{number}",
                    }
                ],
                "name": [{"text": name}, *MORE_NAMES.get(number, ())],
                "gender": "female",
                "birthDate": "1980-02-03",
            }
            made = await rig.ask("POST", "/Patient", patient, role=Role.EHR)
            assert made.status == 201, made.raw
            if number == 0:
                await order(rig, made.body["id"])
            if number < 3:
                await report(rig, number)
            clock.advance(seconds=1)
        await rig.renew_sessions()
        yield rig


async def order(rig: Rig, patient_id: str) -> None:
    request = {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "identifier": [{"type": ACSN_TYPE, "system": "urn:oid:2.25.42", "value": "A0"}],
        "subject": {
            "reference": f"Patient/{patient_id}",
            "identifier": {"system": "urn:ward-list", "value": "bed 7"},
        },
        "authoredOn": "2026-11-19T10:00:00+08:00",
    }
    made = await rig.ask("POST", "/ServiceRequest", request, role=Role.EHR)
    assert made.status == 201, made.raw


async def report(rig: Rig, number: int) -> None:
    uid = f"2.25.300{number}"
    patient = make_patient(patient_id=f"M{number}")
    await receive_study(rig.store, patient, study_uid=uid, accession=f"A{number}")
    findings = make_findings("4C" if number == 0 else "2")
    rig.report = await publish_draft(
        rig.store, rig.settings, study_uid=uid, findings=findings
    )


def found(bundle: Json, mode: str = "match") -> list[Json]:
    entries = bundle.get("entry", [])
    return [e["resource"] for e in entries if e["search"]["mode"] == mode]


# What EHR finds: query -> number of matches.
CASES: list[tuple[str, int]] = [
    # token
    ("DiagnosticReport?status=partial", 3),
    ("DiagnosticReport?status:not=partial", 0),
    ("DiagnosticReport?status:not=final,amended", 3),
    ("DiagnosticReport?status=http://hl7.org/fhir/wrong|partial", 0),
    ("DiagnosticReport?status=|partial", 3),
    ("DiagnosticReport?code=http://loinc.org|", 3),
    ("DiagnosticReport?code=http://loinc.org|24601-7", 3),
    ("DiagnosticReport?code=|24601-7", 0),
    ("DiagnosticReport?code:not=24601-7", 0),
    ("DiagnosticReport?issued:missing=true", 3),
    ("DiagnosticReport?based-on:missing=false", 1),
    ("DiagnosticReport?based-on:missing=true", 2),
    ("Patient?name:missing=false", 5),
    ("Patient?identifier=urn:oid:2.25.41|M1,urn:oid:2.25.41|M2", 2),
    ("Patient?identifier=M1&identifier=M2", 0),
    # reference
    ("DiagnosticReport?imagingStudy=ImagingStudy/2.25.3000", 1),
    ("DiagnosticReport?imaging-study=2.25.3000,2.25.3001", 2),
    ("DiagnosticReport?imaging-study:ImagingStudy=2.25.3000", 1),
    ("DiagnosticReport?imaging-study={base}/ImagingStudy/2.25.3000", 1),
    ("DiagnosticReport?imaging-study=https://other.org/fhir/ImagingStudy/2.25.3000", 0),
    ("Observation?code=111005&device:Device=model-1", 6),
    ("Observation?code=111005&performer:Practitioner=model-1", 0),
    ("DiagnosticReport?performer:Organization=hospital", 0),
    ("DiagnosticReport?performer:Organization=department", 3),
    ("DiagnosticReport?patient:identifier=urn:oid:2.25.41|M1", 1),
    ("DiagnosticReport?basedOn:identifier=A0", 1),
    ("ServiceRequest?subject:identifier=urn:ward-list|bed 7", 1),
    ("ServiceRequest?subject:identifier=M0", 1),
    ("ServiceRequest?subject:identifier=M1", 0),
    # one level of chaining
    ("DiagnosticReport?patient.identifier=M1", 1),
    ("DiagnosticReport?patient.identifier:not=M1", 2),
    ("DiagnosticReport?basedOn.identifier=urn:oid:2.25.42|A0", 1),
    ("DiagnosticReport?imagingStudy.modality=US", 3),
    ("DiagnosticReport?imagingStudy.modality=MG", 0),
    ("DiagnosticReport?imagingStudy.identifier=urn:dicom:uid|urn:oid:2.25.3001", 1),
    ("DiagnosticReport?imagingStudy.started=2026-11-20", 3),
    ("DiagnosticReport?imagingStudy.started=gt2026-11-20", 0),
    ("DiagnosticReport?subject:Patient.name=an", 2),
    ("DiagnosticReport?patient._tag=urn:ward|w1", 1),
    ("DiagnosticReport?patient._id=nobody", 0),
    ("ImagingStudy?basedOn.identifier=A0", 1),
    ("Provenance?target:DiagnosticReport.status=partial", 3),
    # as IHE IMR writes it
    ("DiagnosticReport?patient.name.given=carl", 1),
    ("DiagnosticReport?patient.name.given:exact=carla", 0),
    ("DiagnosticReport?patient.name.family=muster", 1),
    ("DiagnosticReport?patient.name.family=carla", 0),
    ("Patient?given=berta&family=mus", 1),
    ("Patient?given=anna", 0),
    ("Patient?birthdate=1980-02-03", 5),
    ("Patient?birthdate=eq1980-02", 5),
    ("Patient?birthdate=1979,1980&given=berta", 1),
    ("Patient?birthdate=1980-02-04", 0),
    ("Patient?birthdate=1980-03", 0),
    ("Patient?birthdate:missing=true", 0),
    ("DiagnosticReport?patient.birthdate=1980-02-03", 3),
    ("DiagnosticReport?resultsInterpreter:missing=true", 3),
    # who is referred to
    ("Patient?_has:DiagnosticReport:patient:status=partial", 3),
    ("Patient?_has:DiagnosticReport:patient:status=final", 0),
    ("Patient?_has:DiagnosticReport:patient:status:not=final", 3),
    ("Patient?_has:DiagnosticReport:patient:identifier=A1", 1),
    ("Patient?_has:DiagnosticReport:subject:date=gt2026-11-20", 0),
    ("Patient?_has:ServiceRequest:subject:identifier=A0&gender=female", 1),
    ("ServiceRequest?_has:DiagnosticReport:based-on:status=partial", 1),
    ("ImagingStudy?_has:DiagnosticReport:imagingStudy:_id=nothing", 0),
    # dates, by precision
    ("DiagnosticReport?date=2026", 3),
    ("DiagnosticReport?date=2026-11-20", 3),
    ("DiagnosticReport?date=2026-11-20T10:00Z", 0),
    ("DiagnosticReport?date=ne2026-11-20", 0),
    ("DiagnosticReport?date=ne2026-11-19", 3),
    ("DiagnosticReport?date=gt2026-11-20T10:00Z", 3),
    ("DiagnosticReport?date=gt2026-11-20", 0),
    ("DiagnosticReport?date=lt2026-11-20T10:00Z", 3),
    ("DiagnosticReport?date=lt2026-11-20", 0),
    ("DiagnosticReport?date=ge2026-11", 3),
    ("DiagnosticReport?date=ge2026-12", 0),
    ("DiagnosticReport?date=le2026-11-20", 3),
    ("DiagnosticReport?date=le2026-11-19", 0),
    ("DiagnosticReport?date=sa2026-11-19", 3),
    ("DiagnosticReport?date=sa2026-11-20T10:00Z", 0),
    ("DiagnosticReport?date=eb2026-11-21", 3),
    ("DiagnosticReport?date=eb2026-11-20", 0),
    ("DiagnosticReport?date=2025,2026", 3),
    ("DiagnosticReport?date=ge2026-11-20&date=le2026-11-20", 3),
    ("ServiceRequest?authored=2026-11-19T02:00:00Z", 1),
    ("Patient?_lastUpdated=ge2026-11-21", 5),
    ("Patient?_lastUpdated=lt2026-11-21T08:00:02Z", 2),
    ("Patient?_lastUpdated=eb2026-11-21T08:00:02Z", 2),
    ("Patient?_lastUpdated=sa2026-11-21T08:00:02Z", 2),
    ("Patient?_lastUpdated=ne2026-11-21", 0),
    # strings
    ("Patient?name=ANNA", 2),
    ("Patient?name=an", 2),
    ("Patient?name:exact=Anna", 1),
    ("Patient?name:exact=ANNA", 0),
    ("Patient?name:exact=An", 0),
    ("Patient?name=konstantinopolit", 1),
    ("Patient?name=Konstantinopolitanska", 1),
    ("Patient?name=konstantinopolitenska", 0),
    ("Patient?name=李", 1),
    ("Patient?name=anna,李", 3),
    ("Patient?name=anna\\,李", 0),
    # what every resource has
    ("Patient?_tag=w1", 2),
    ("Patient?_tag:not=w1", 3),
    ("Patient?_security=V,R", 5),
    (f"Patient?_security={LABEL}|V", 1),
    ("DiagnosticReport?_security=AIAST", 3),
    ("Patient?_profile=https://example.org/p3|1.0", 1),
    ("Patient?_profile=https://example.org/p3", 0),
    ("DiagnosticReport?_id=a,b", 0),
    # an empty value asks for nothing
    ("DiagnosticReport?status=", 3),
]


async def test_each_parameter_finds_what_it_says_by_get_and_by_post(
    hospital: Rig,
) -> None:
    for case, expected in CASES:
        kind, _, query = case.format(base=hospital.settings.base_url).partition("?")
        name, _, value = query.partition("=")
        address = f"/{kind}?" + (query if "&" in query else f"{name}={quote(value)}")
        answer = await hospital.get(address, role=Role.EHR, headers=STRICT)
        assert answer.status == 200, (case, answer.raw)
        assert len(found(answer.body)) == expected, case
        # Half of what is asked in the address, half in the form.
        body = query.replace("|", "%7C").encode()
        path = f"/{kind}/_search?_count=40"
        form = await hospital.ask("POST", path, body, role=Role.EHR, headers=FORM)
        assert len(found(form.body)) == expected, case
        assert "_count=40" in form.body["link"][0]["url"]


async def test_what_the_statement_lists_works_and_what_it_does_not_is_told(
    hospital: Rig,
) -> None:
    statement = await hospital.read("/metadata", role=None)
    listed = {r["type"]: r for r in statement["rest"][0]["resource"]}
    every = {p.name for rows in PARAMETERS.values() for p in rows}
    examples = {
        "date": "2026",
        "reference": "1",
        "token": "x",
        "string": "x",
        "uri": "x",
    }
    for place, (kind, resource) in enumerate(listed.items()):
        if "searchParam" not in resource:
            assert (await hospital.get(f"/{kind}", role=Role.EHR)).status == 405
            continue
        # An administrator searches what is hers: subscriptions and failed work.
        role = Role.ADMINISTRATOR if kind in ("Task", "Subscription") else Role.EHR
        role = Role.AUDITOR if kind == "AuditEvent" else role
        offered = {p["name"]: p["type"] for p in resource["searchParam"]}
        for name, form in offered.items():
            path = f"/{kind}?{name}={examples.get(form, 'x')}"
            answer = await hospital.get(path, role=role, headers=STRICT)
            assert answer.status == 200, (path, answer.raw)
        wrong = {
            "_has",
            "_has:DiagnosticReport:patient",
            "_has:Medication:subject:code",
        }
        wrong |= {"_has:DiagnosticReport:status:code", "_list", "_filter", "_query"}
        # What others are found by, an eighth of it for each type in turn.
        others = sorted(every - set(offered))[place % 8 :: 8]
        for name in {*others, "_text", "_content", "colour", *wrong} - set(offered):
            path = f"/{kind}?{name}=x"
            told = found(await hospital.read(path, role=role), "outcome")
            assert told[0]["issue"][0]["code"] == "not-supported", path
            answer = await hospital.get(path, role=role, headers=STRICT)
            assert answer.status == 400, path
    assert {p.name for p in COMMON} <= {
        p["name"] for p in listed["Device"]["searchParam"]
    }
    assert "_elements" in CONTROL


async def test_what_cannot_be_asked_is_refused_and_not_left_out(
    hospital: Rig,
) -> None:
    for query in (
        "Patient?name:contains=n",
        "Patient?birthdate=ge1980",
        "Patient?birthdate=yesterday",
        "Patient?birthdate:not=1980",
        "Patient?name:text=n",
        "Patient?identifier:of-type=a|b|c",
        "DiagnosticReport?status:text=part",
        "DiagnosticReport?status:in=http://example.org/set",
        "DiagnosticReport?date:exact=2026",
        "DiagnosticReport?date=ap2026",
        "DiagnosticReport?issued:missing=maybe",
        "DiagnosticReport?performer:Patient=1",
        "Patient?_id:not=1",
        "Patient?_has:DiagnosticReport:patient:status:text=x",
        "Patient?_total=guess",
        "Patient?_summary=some",
        "Patient?_elements=name.text",
        "Patient?_count=-1",
    ):
        answer = await hospital.get(f"/{query}", role=Role.EHR)
        assert answer.status == 400, query
        assert answer.body["resourceType"] == "OperationOutcome"
    answer = await hospital.get("/Patient?name:contains=n", role=Role.EHR)
    assert "blind" in answer.body["issue"][0]["diagnostics"]


async def test_who_sees_masked_patients_learns_no_more_by_asking(
    hospital: Rig,
) -> None:
    for query in (
        "Patient?name=Anna",
        "Patient?name:exact=Anna",
        "Patient?name:missing=true",
        "Patient?birthdate=1980",
        "Patient?birthdate:missing=true",
        "DiagnosticReport?patient.birthdate=1980-02-03",
        "Patient?_tag=w1",
        "Patient?_profile:missing=true",
        "DiagnosticReport?patient._tag=w1",
        "Patient?identifier=M1",
        "Patient?identifier:not=M1",
        "DiagnosticReport?patient.identifier=M1",
        "DiagnosticReport?patient:identifier=M1",
        "DiagnosticReport?subject:Patient.name=Anna",
        "DiagnosticReport?subject:identifier=urn:ward-list|bed 7",
        "ServiceRequest?patient:identifier=bed 7",
        "ImagingStudy?subject:identifier=M1",
        "DiagnosticReport?patient.name.given=Anna",
        "Organization?_has:Patient:organization:identifier=M1",
    ):
        assert (await hospital.get(f"/{query}")).status == 403, query
    # She knows the accession number of her request; she is shown its last signs.
    bundle = await hospital.read("/DiagnosticReport?basedOn.identifier=A0")
    assert len(found(bundle)) == 1
    hospital.answers.clear()
    for query in (
        "Patient?_summary=true",
        "Patient?_elements=name,identifier,birthDate",
        "DiagnosticReport?_include=DiagnosticReport:subject&_elements=subject,name",
        "Patient?_summary=data&_revinclude=ServiceRequest:subject",
    ):
        await hospital.read(f"/{query}")
    seen = b"".join(answer.raw for answer in hospital.answers).decode()
    assert "REDACTED" in seen
    for secret in ("Anna", "1980-02", '"M1"', "bed 7", "李娜"):
        assert secret not in seen, secret


async def test_a_part_of_a_resource_says_that_it_is_one(hospital: Rig) -> None:
    path = f"/DiagnosticReport/{hospital.report_id}"
    for asked, kept, gone in (
        ("_summary=true", {"status", "code", "subject"}, {"result", "presentedForm"}),
        ("_summary=text", {"status", "code"}, {"subject", "result"}),
        ("_summary=data", {"status", "subject", "result"}, {"text"}),
        ("_elements=effective", {"status", "effectiveDateTime"}, {"subject"}),
    ):
        for where in (f"{path}?{asked}", f"/DiagnosticReport?{asked}"):
            body = await hospital.read(where)
            one = found(body)[0] if body["resourceType"] == "Bundle" else body
            assert kept | {"id", "meta"} <= one.keys(), where
            assert not gone & one.keys(), where
            assert "SUBSETTED" in {t["code"] for t in one["meta"]["tag"]}, where
    whole = await hospital.read("/DiagnosticReport?_summary=false")
    assert "tag" not in found(whole)[0]["meta"]
    for none in ("_summary=count", "_count=0"):
        bundle = await hospital.read(f"/DiagnosticReport?{none}")
        assert (bundle["total"], "entry" in bundle) == (3, False)
    for how, total in (("none", None), ("estimate", 3), ("accurate", 3)):
        bundle = await hospital.read(f"/DiagnosticReport?_total={how}&_count=1")
        assert bundle.get("total") == total
    # All that there is on one page is counted by looking at it.
    assert (await hospital.read("/DiagnosticReport"))["total"] == 3
    assert (await hospital.read("/DiagnosticReport?status=cancelled"))["total"] == 0
    first = await hospital.read("/DiagnosticReport?_count=2")
    (following,) = [one["url"] for one in first["link"] if one["relation"] == "next"]
    last = await hospital.read(following)
    assert not {"total"} & {*first, *last}


async def test_what_is_referred_to_comes_along_as_far_as_was_asked(
    hospital: Rig,
) -> None:
    async def kinds(query: str) -> dict[str, int]:
        bundle = await hospital.read(f"/{query}", role=Role.EHR)
        brought = [r["resourceType"] for r in found(bundle, "include")]
        return {kind: brought.count(kind) for kind in brought}

    report_ = f"DiagnosticReport?_id={hospital.report_id}"
    assert await kinds(f"{report_}&_include=DiagnosticReport:subject") == {"Patient": 1}
    category = f"Observation?_id={hospital.report_id}-category"
    assert await kinds(f"{category}&_include=Observation:device:Device") == {
        "Device": 1
    }
    assert await kinds(f"{report_}&_include=DiagnosticReport:subject:Device") == {}
    every = await kinds(f"{report_}&_include=*&_contained=false")
    assert every == await kinds(f"{report_}&_include=DiagnosticReport:*")
    assert {"Patient", "Observation", "ImagingStudy", "Organization"} <= set(every)
    once = await kinds(f"{report_}&_include=DiagnosticReport:result")
    further = await kinds(
        f"{report_}&_include=DiagnosticReport:result"
        "&_include:iterate=Observation:has-member"
    )
    assert further["Observation"] > once["Observation"]
    back = await kinds(
        "Patient?identifier=M0&_revinclude=ServiceRequest:patient"
        "&_revinclude:iterate=DiagnosticReport:based-on"
    )
    assert back == {"ServiceRequest": 1, "DiagnosticReport": 1}


async def walk(rig: Rig, query: str, relation: str = "next") -> list[list[str]]:
    pages, url = [], f"/{query}"
    while url:
        bundle = await rig.read(url, role=Role.EHR)
        pages.append([r["id"] for r in found(bundle)])
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        url = links.get(relation, "")
        assert "anna" not in url
    return pages


async def test_pages_lead_forth_and_back_and_hold_while_others_write(
    hospital: Rig, clock: FrozenClock
) -> None:
    for sort in ("_lastUpdated", "-_lastUpdated", "_id", "-_id", "-_lastUpdated,_id"):
        pages = await walk(hospital, f"Patient?_count=2&_sort={sort}&gender=female")
        ids = [one for page in pages for one in page]
        assert [len(page) for page in pages] == [2, 2, 1]
        assert len(set(ids)) == 5
        if sort.endswith("_id") and "," not in sort:
            assert ids == sorted(ids, reverse=sort.startswith("-"))
    for sort in ("-date,_id", "date,-_id", "-date,_lastUpdated"):
        pages = await walk(hospital, f"DiagnosticReport?_count=1&_sort={sort}")
        assert len({page[0] for page in pages}) == len(pages) == 3
    first = await hospital.read("/Patient?_count=2", role=Role.EHR)
    links = {link["relation"]: link["url"] for link in first["link"]}
    assert links.keys() == {"self", "next"}
    # Somebody on the first page is changed, somebody new comes: nothing shifts.
    changed = found(first)[0]
    clock.advance(seconds=1)
    await hospital.renew_sessions()
    body = {**changed, "gender": "unknown"}
    put = await hospital.ask(
        "PUT",
        f"/Patient/{body['id']}",
        body,
        role=Role.EHR,
        headers={"If-Match": 'W/"1"'},
    )
    assert put.status == 200, put.raw
    rest = await walk(
        hospital, links["next"].removeprefix(hospital.settings.base_url)[1:]
    )
    ids = [r["id"] for r in found(first)] + [one for page in rest for one in page]
    assert len(ids) == len(set(ids)) == 5
    second = await hospital.read(links["next"], role=Role.EHR)
    back = {link["relation"]: link["url"] for link in second["link"]}["previous"]
    again = await hospital.read(back, role=Role.EHR)
    assert [r["id"] for r in found(again)] == [r["id"] for r in found(first)]
    assert "previous" not in {link["relation"] for link in again["link"]}
    assert "first" not in links  # and its link names nobody
    begin = {link["relation"]: link["url"] for link in second["link"]}["first"]
    assert begin.partition("?")[2].startswith("_page=")
    again = await hospital.read(begin, role=Role.EHR)
    assert [r["id"] for r in found(again)] == [r["id"] for r in found(first)]


async def test_pages_by_another_date_and_by_several_keys_are_whole(
    hospital: Rig, clock: FrozenClock
) -> None:
    clock.advance(seconds=60)
    await hospital.renew_sessions()
    assert (await hospital.sign()).status == 200
    signed = str(hospital.report_id)
    for order in ("issued", "-issued", "-issued,_lastUpdated", "date,-issued,_id"):
        url, seen = f"/DiagnosticReport?_count=1&_sort={order}", []
        while url:
            bundle = await hospital.read(url)
            seen += [one["id"] for one in found(bundle)]
            links = {link["relation"]: link["url"] for link in bundle["link"]}
            url = links.get("next", "")
        assert len(seen) == len(set(seen)) == 3, order
        first = order.startswith("-issued") or order.startswith("date")
        assert seen.index(signed) == (0 if first else 2), order
        # And back again.
        back = [seen[-1]]
        while "previous" in links:
            bundle = await hospital.read(links["previous"])
            back = [*(one["id"] for one in found(bundle)), *back]
            links = {link["relation"]: link["url"] for link in bundle["link"]}
        assert back == seen, order


async def test_a_newer_version_and_an_erased_patient_are_never_served_from_memory(
    hospital: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = hospital.store
    path = hospital.report_path
    assert (await hospital.read(path))["status"] == "partial"
    before = store.opened.size
    assert before > 0
    assert (await hospital.put(path, status="preliminary")).status == 200
    assert (await hospital.read(path))["status"] == "preliminary"
    bundle = await hospital.read("/DiagnosticReport?status=preliminary")
    assert found(bundle)[0]["meta"]["versionId"] == "2"
    subject = (await hospital.read(path))["subject"]["reference"]
    await hospital.read(f"/{subject}", role=Role.EHR)
    async with store.db.transaction() as tx:
        stored = await resources.read(tx, store, *path.strip("/").split("/"))
        assert stored.patient_id is not None
        await shred(tx, store.ring, stored.patient_id)
    assert (await hospital.get(path)).status == 410
    assert (await hospital.get(f"/{subject}", role=Role.EHR)).status == 410
    assert len(found(await hospital.read("/DiagnosticReport"))) == 2
    assert store.opened.find(("DiagnosticReport", stored.resource_id), 2) is None
    monkeypatch.setattr(store.opened, "_limit", 4096)
    for _ in range(2):
        assert len(found(await hospital.read("/Observation?_count=20"))) == 20
        assert 0 < store.opened.size <= 4096


async def test_old_rows_are_found_by_new_parameters_after_indexing_anew(
    hospital: Rig,
) -> None:
    store = hospital.store
    async with store.db.transaction() as tx:
        await tx.execute("delete from resource_tokens where parameter = '_tag'")
        await tx.execute("update resources set index_version = 0")
    assert found(await hospital.read("/Patient?_tag=w1", role=Role.EHR)) == []
    await index_older(store, 7)
    async with store.db.transaction() as tx:
        assert await resources.behind(tx, store, INDEX_VERSION, 1) == []
    assert len(found(await hospital.read("/Patient?_tag=w1", role=Role.EHR))) == 2


async def test_a_rolled_back_version_is_never_kept(hospital: Rig) -> None:
    store = hospital.store

    kind, resource_id = hospital.report_path.strip("/").split("/")
    async with store.db.connection() as tx:
        transaction = tx.transaction()
        await transaction.start()
        stored = await resources.read(tx, store, kind, resource_id)
        body = re.sub(rb'"status":"partial"', b'"status":"unknown"', stored.body)
        await resources.write(
            tx, store, kind, resource_id, lambda *_: body, index_of(parse(body))
        )
        query = Query(kind, (), order=(Order("id"),))
        page = await found_pages.search(tx, store, query)
        assert b"unknown" in b"".join(m.body for m in page.matches)
        await transaction.rollback()
    assert (await hospital.read(hospital.report_path))["status"] == "partial"


async def test_a_search_that_takes_too_long_is_ended_and_reads_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "READING_LIMIT_S", 0.25)

    async def endless(tx: Any, *_: Any) -> None:
        await tx.fetch("select pg_sleep(60)")

    monkeypatch.setattr(found_pages, "search", endless)
    async with running_fhir(store, roles=(Role.EHR,)) as rig:
        searches = [rig.get("/Patient", role=Role.EHR) for _ in range(8)]
        unknown = rig.get("/Patient/unknown", role=Role.EHR)
        *ended, read = await asyncio.gather(*searches, unknown)
    assert read.status == 404
    for answer in ended:
        assert answer.status == 422
        issue = answer.body["issue"][0]
        assert issue["code"] == "too-costly"
        assert "narrow it by identifier, name" in issue["diagnostics"]


async def test_a_page_does_not_wait_for_an_exact_total_that_takes_too_long(
    hospital: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(tx: Any, *_: Any) -> None:
        await tx.fetch("select pg_sleep(60)")

    monkeypatch.setattr(totals, "count", endless)
    monkeypatch.setattr(bundles, "COUNTING_LIMIT_S", 0.05)
    bundle = await hospital.read("/DiagnosticReport?_total=accurate&_count=2")
    assert "total" not in bundle
    assert len(found(bundle)) == 2
    (told,) = found(bundle, "outcome")
    assert told["issue"][0]["code"] == "too-costly"
    assert "about 3" in told["issue"][0]["diagnostics"]
    counted = await hospital.read("/DiagnosticReport?_summary=count&_total=estimate")
    assert counted["total"] == 3


def test_no_parameter_stands_twice_and_each_sorts_by_one_date() -> None:
    for kind, rows in PARAMETERS.items():
        names: list[Any] = [name for p in rows for name in (p.name, p.also) if name]
        assert len(names) == len(set(names)), kind
        assert sum(p.sorts for p in rows) <= 1, kind
