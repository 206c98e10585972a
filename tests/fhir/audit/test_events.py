"""AuditEvents (IHE BALP 1.1): what every access leaves, and who may read of it."""

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from fhir.encoding.wire import Json
from node.domain.access import Role
from node.domain.audit import AuditEntry
from node.store import audit, clients, merges
from node.store.store import Store
from tests.conftest import FrozenClock
from tests.factories import make_patient
from tests.fhir.rig import (
    Rig,
    drafted,
    publish_draft,
    receive_study,
    running_fhir,
    sign_in,
)
from tests.fhir.smart_rig import SmartRig, jwks, running_smart

ROLES = (Role.RADIOLOGIST, Role.EHR, Role.AUDITOR, Role.ADMINISTRATOR)


@pytest.fixture
async def rig(store: Store) -> AsyncIterator[Rig]:
    async with running_fhir(store, roles=ROLES) as rig:
        yield await drafted(rig)


async def entries(store: Store) -> list[AuditEntry]:
    async with store.db.connection() as connection:
        found = await audit.following(connection, 0, 10_000)
    return [one.entry for one in found]


async def last(store: Store) -> AuditEntry:
    return (await entries(store))[-1]


async def events(rig: Rig, query: str = "", **options: Any) -> list[Json]:
    bundle = await rig.read(f"/AuditEvent?{query}", role=Role.AUDITOR, **options)
    return [
        e["resource"]
        for e in bundle.get("entry", [])
        if e["resource"]["resourceType"] == "AuditEvent"
    ]


def agent(event: Json, code: str) -> Json:
    found = [a for a in event["agent"] if a["type"]["coding"][0]["code"] == code]
    assert len(found) == 1, event["agent"]
    return dict(found[0])


def entity(event: Json, kind: str) -> Json:
    found = [e for e in event["entity"] if e["type"]["code"] == kind]
    assert len(found) == 1, event["entity"]
    return dict(found[0])


def query_of(event: Json) -> str:
    return base64.b64decode(entity(event, "2")["query"]).decode()


async def test_a_read_is_an_event_of_balp_patient_read(rig: Rig, store: Store) -> None:
    answer = await rig.get(rig.report_path, headers={"X-Request-Id": "abc-1"})
    assert answer.status == 200
    (event,) = await events(rig, f"entity={rig.report_path.strip('/')}&subtype=read")
    assert event["meta"]["profile"] == [
        "https://profiles.ihe.net/ITI/BALP/StructureDefinition/"
        "IHE.BasicAudit.PatientRead"
    ]
    assert event["type"]["code"] == "rest"
    assert event["subtype"][0]["code"] == "read"
    assert (event["action"], event["outcome"]) == ("R", "0")
    assert agent(event, "110152")["network"] == {"address": "127.0.0.1", "type": "2"}
    assert agent(event, "110153")["network"]["address"] == rig.settings.base_url
    user = agent(event, "IRCP")
    assert user["requestor"] is True
    assert user["name"] == "Dr radiologist"
    assert user["role"] == [{"text": "radiologist"}]
    data = entity(event, "2")
    assert data["what"]["reference"] == f"{rig.report_path.strip('/')}/_history/1"
    assert data["role"]["code"] == "3"
    assert rig.report is not None
    told = entity(event, "1")["what"]["reference"]
    assert told == f"Patient/{rig.report.patient_id}"
    assert entity(event, "XrequestId")["what"]["identifier"]["value"] == "abc-1"


async def test_a_search_is_told_to_each_patient_that_it_disclosed(rig: Rig) -> None:
    other = make_patient(patient_id="MRN-2")
    await receive_study(rig.store, other, study_uid="2.25.3002", accession="A2")
    report = await publish_draft(rig.store, rig.settings, study_uid="2.25.3002")
    assert rig.report is not None
    both = {str(rig.report.patient_id), str(report.patient_id)}
    await rig.read("/DiagnosticReport?status=partial&_count=10", role=Role.EHR)
    for patient in both:
        found = await events(rig, f"patient={patient}&subtype=search-type")
        (event,) = found
        assert "-" in event["id"]
        assert entity(event, "1")["what"]["reference"] == f"Patient/{patient}"
        assert query_of(event) == "DiagnosticReport?status=partial&_count=10"
        assert event["meta"]["profile"][0].endswith("PatientQuery")
        assert await rig.read(f"/AuditEvent/{event['id']}", role=Role.AUDITOR) == event


async def test_what_identifies_a_patient_never_enters_the_trail(
    rig: Rig, store: Store
) -> None:
    name, written, number = "张丽", "Zhangli", "330102197904121234"
    asked = [
        f"/Patient?name={name}",
        "/Patient?birthdate=1980-02-03",
        "/DiagnosticReport?patient.birthdate=1980-02-03&date=2026-11-21",
        f"/Patient?identifier=urn:oid:2.25.41|{number}",
        f"/Patient?name:exact={name}&_sort={name}",
        f"/DiagnosticReport?patient:identifier=|{number}",
        f"/DiagnosticReport?patient.name={name}",
        f"/DiagnosticReport?{name}=1&status={name}",
        f"/DiagnosticReport?status={written}&_elements={written}&code={number}",
        f"/DiagnosticReport?date={number}&_profile=urn:x:{written}",
        f"/DiagnosticReport?patient=Patient/{number}",
        f"/Patient/{number}",
        f"/Patient/{number}/_history/1",
        f"/{number}",
    ]
    for path in asked:
        await rig.get(path, role=Role.EHR)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    await rig.ask(
        "POST", "/Patient/_search", f"name={name}".encode(), role=Role.EHR, headers=form
    )
    told = await entries(store)
    text = json.dumps([str(one) for one in told], ensure_ascii=False)
    secrets = (name, written, number, "1980-02-03")
    assert not [secret for secret in secrets if secret in text]
    blind = {one.detail.get("query", "") for one in told if "name=~" in str(one)}
    assert any(query.startswith("Patient?name=~") for query in blind)


async def test_whoever_saw_a_row_of_a_woman_saw_her(rig: Rig, store: Store) -> None:
    await rig.read(rig.report_path, role=Role.EHR)
    seen = (await rig.read(rig.report_path, role=Role.EHR))["subject"]["reference"]
    lost = UUID(seen.removeprefix("Patient/"))
    kept = await receive_study(
        store, make_patient(patient_id="H-9"), study_uid="2.25.91", accession="ACC-9"
    )
    assert await events(rig, f"patient=Patient/{kept}") == []
    async with store.db.transaction() as tx:
        await merges.link(tx, lost, kept)
    found = await events(rig, f"patient=Patient/{kept}&subtype=read")
    assert {entity(one, "1")["what"]["reference"] for one in found} == {seen}
    async with store.db.transaction() as tx:
        await merges.link(tx, lost, None)
    assert await events(rig, f"patient=Patient/{kept}&subtype=read") == []


async def test_equal_names_look_equal_to_the_auditor(rig: Rig, store: Store) -> None:
    for name in ("Zhang", "zhang", "Wang"):
        await rig.get(f"/Patient?name={name}", role=Role.EHR)
    first, second, other = [e.detail["query"] for e in (await entries(store))[-3:]]
    assert first == second != other


async def test_each_interaction_has_its_word(rig: Rig, store: Store) -> None:
    path = rig.report_path
    await rig.get(path)
    await rig.get(f"{path}/_history/1")
    await rig.get(f"{path}/_history")
    await rig.get(path, headers={"If-None-Match": 'W/"1"'})
    await rig.sign()
    nurse = {"resourceType": "Practitioner", "name": [{"family": "Li"}]}
    made = await rig.ask("POST", "/Practitioner", nurse, role=Role.EHR)
    assert made.status == 201, made.raw
    told = [(e.action, e.detail.get("status")) for e in await entries(store)]
    for wanted in (
        ("fhir read", "200"),
        ("fhir vread", "200"),
        ("fhir history-instance", "200"),
        ("fhir read", "304"),
        ("fhir update", "200"),
        ("fhir create", "201"),
    ):
        assert wanted in told, wanted


async def test_denials_of_every_kind_are_told(rig: Rig, store: Store) -> None:
    path = rig.report_path
    secret = {"Authorization": "Bearer nothing"}
    asked: list[tuple[str, str, Role | None, dict[str, str], int, str]] = [
        ("GET", path, None, {}, 401, "unknown"),
        ("GET", "/DiagnosticReport", None, secret, 401, "unknown"),
        ("GET", path, Role.ADMINISTRATOR, {}, 403, ""),
        ("GET", "/DiagnosticReport/2.25.1.1", Role.RADIOLOGIST, {}, 404, ""),
        ("DELETE", path, Role.RADIOLOGIST, {}, 405, ""),
        ("GET", path, Role.RADIOLOGIST, {"Accept": "image/png"}, 406, ""),
        ("PUT", path, Role.EHR, {}, 403, ""),
        ("GET", "/Nothing/1", Role.RADIOLOGIST, {}, 404, ""),
    ]
    for method, place, role, headers, status, actor in asked:
        before = len(await entries(store))
        answer = await rig.ask(method, place, role=role, headers=headers)
        assert answer.status == status, (method, place, answer.raw)
        entry = await last(store)
        assert len(await entries(store)) == before + 1
        assert entry.outcome.value == "4"
        assert entry.detail["status"] == str(status)
        assert not actor or entry.actor == actor
        assert "patients" not in entry.detail
    refused = await events(rig, "outcome=4")
    assert len(refused) == len(asked)
    assert refused[0]["outcomeDesc"] == "refused (404)"


async def test_a_flood_of_denials_is_one_entry_and_a_count(
    store: Store, clock: FrozenClock
) -> None:
    async with running_fhir(store) as rig:
        for _ in range(50):
            answer = await rig.get("/Patient/2.25.1.1", role=None)
            assert answer.status == 401
        assert len(await entries(store)) == 1
        clock.advance(seconds=61)
        await rig.get("/Patient/2.25.1.1", role=None)
        told = await entries(store)
        assert [e.detail.get("repeated") for e in told] == [None, "49", None]
        assert told[1].detail["since"] == told[0].at.isoformat()
        await rig.get("/Patient/2.25.1.1", role=None)
    counts = [e.detail.get("repeated") for e in await entries(store)]
    assert counts == [None, "49", None, "1"]  # ending, the node tells what it counted


async def test_a_page_that_refreshes_itself_is_counted(rig: Rig, store: Store) -> None:
    headers = {"X-Sononode-Background": "1"}
    for _ in range(5):
        await rig.get("/DiagnosticReport?status=partial", headers=headers)
    told = [e for e in await entries(store) if e.action == "fhir search-type"]
    assert len(told) == 1
    await rig.get("/DiagnosticReport?status=partial")
    told = [e for e in await entries(store) if e.action == "fhir search-type"]
    assert len(told) == 2


async def test_without_a_trail_nothing_is_shown(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(audit, "append", broken)
    answer = await rig.get(rig.report_path)
    assert answer.status == 503
    assert "Retry-After" in answer.headers
    assert answer.body["issue"][0]["code"] == "transient"
    assert (await rig.get(rig.report_path, role=None)).status == 503
    monkeypatch.undo()
    assert (await rig.get(rig.report_path)).status == 200


async def test_only_auditors_read_the_trail(rig: Rig, store: Store) -> None:
    for role in Role:
        if role not in ROLES:
            rig.tokens[role] = await sign_in(store, role)
        wanted = 200 if role is Role.AUDITOR else 403
        assert (await rig.get("/AuditEvent", role=role)).status == wanted, role
        assert (await rig.get("/AuditEvent/1", role=role)).status == wanted, role
    assert (await rig.get("/AuditEvent", role=None)).status == 401
    assert (await rig.get(rig.report_path, role=Role.AUDITOR)).status == 403
    told = [e for e in await entries(store) if e.entity.startswith("AuditEvent")]
    assert len(told) == 2 * len(Role) + 1  # reading of the trail is in the trail


async def test_nobody_writes_audit_events(rig: Rig) -> None:
    event = (await events(rig))[0]
    for method, path in (
        ("POST", "/AuditEvent"),
        ("PUT", f"/AuditEvent/{event['id']}"),
        ("PATCH", f"/AuditEvent/{event['id']}"),
        ("DELETE", f"/AuditEvent/{event['id']}"),
        ("GET", f"/AuditEvent/{event['id']}/_history"),
    ):
        answer = await rig.ask(method, path, event, role=Role.AUDITOR)
        assert answer.status == 405, (method, answer.status)


async def test_pages_of_the_trail_leave_nothing_out(rig: Rig) -> None:
    for number in range(3):
        uid = f"2.25.400{number}"
        await receive_study(
            rig.store, make_patient(patient_id=f"M{number}"), study_uid=uid
        )
        await publish_draft(rig.store, rig.settings, study_uid=uid)
    await rig.read("/DiagnosticReport?_count=10")
    await rig.read(rig.report_path)
    await rig.read("/DiagnosticReport?_count=10&status=partial")
    whole = [e["id"] for e in await events(rig, "agent:identifier=x,y&_count=50")]
    assert whole == []
    whole = [e["id"] for e in await events(rig, "type=rest&date=lt2100&_count=100")]
    assert any("-" in one for one in whole)
    paged: list[str] = []
    url = "/AuditEvent?type=rest&date=lt2100&_count=3"
    while url:
        bundle = await rig.read(url, role=Role.AUDITOR)
        page = [e["resource"]["id"] for e in bundle["entry"]]
        assert len(page) <= 3
        paged += page
        links = {one["relation"]: one["url"] for one in bundle["link"]}
        url = links.get("next", "")
        if len(paged) > 200:
            break
    assert [i for i in paged if i in whole] == whole


async def test_each_parameter_narrows(rig: Rig, clock: FrozenClock) -> None:
    await rig.read(rig.report_path)
    clock.advance(seconds=86_400)
    await rig.renew_sessions()
    await rig.read(rig.report_path)
    path = rig.report_path.strip("/")
    assert rig.report is not None
    patient = rig.report.patient_id
    for query, wanted in (
        (f"entity={path}&subtype=read", 2),
        (f"entity={path}&subtype=read&date=2026-11-21", 1),
        (f"entity={path}&subtype=read&date=gt2026-11-21", 1),
        (f"entity={path}&subtype=read&date=ge2026-11-21&date=lt2026-11-22", 1),
        (f"entity={path}&action=R", 2),
        (f"entity={path}&action=D", 0),
        (f"entity={path}&type=rest&subtype=vread", 0),
        (f"entity={path}&type=http://dicom.nema.org/resources/ontology/DCM|110110", 1),
        (f"patient={patient}&subtype=read", 2),
        (f"patient=Patient/{patient}&action=C", 0),
        (f"entity=Patient/{patient}&subtype=read", 2),
        (f"patient={patient},00000000-0000-4000-8000-000000000000&subtype=read", 2),
        ("outcome=8", 0),
        ("source:identifier=" + rig.settings.base_url + "&subtype=read", 2),
        ("source=Device/9&subtype=read", 0),
        ("_id=1", 1),
        ("_id=nothing", 0),
        ("patient=Zhang", 0),
        ("outcome=9", 0),
        ("entity=x", 0),
    ):
        found = await events(rig, query)
        assert len(found) == wanted, (query, [e["id"] for e in found])
    (event, _) = await events(rig, f"entity={path}&subtype=read")
    actor = agent(event, "IRCP")["who"]["identifier"]["value"]
    assert len(await events(rig, f"agent:identifier={actor}&subtype=read")) == 2
    assert await events(rig, "agent=Practitioner/nobody") == []
    for bad in ("date=yesterday", "date=ne2026", "_count=x"):
        answer = await rig.get(f"/AuditEvent?{bad}", role=Role.AUDITOR)
        assert answer.status == 400, bad
    lenient = await rig.read("/AuditEvent?colour=red", role=Role.AUDITOR)
    assert lenient["entry"][-1]["search"]["mode"] == "outcome"
    strict = {"Prefer": "handling=strict"}
    answer = await rig.get("/AuditEvent?colour=red", role=Role.AUDITOR, headers=strict)
    assert answer.status == 400


async def test_a_program_reads_the_trail_if_it_is_registered_for_it(
    store: Store,
) -> None:
    async with running_smart(store, roles=(Role.AUDITOR,)) as rig:
        allowed = await rig.register("system/AuditEvent.rs", roles=[Role.AUDITOR])
        token = await rig.token(allowed, "system/AuditEvent.rs")
        bundle = await rig.with_token(token, "GET", "/AuditEvent")
        assert bundle.status == 200
        ehr = await rig.register("system/*.cruds", roles=[Role.EHR])
        token = await rig.token(ehr, "system/*.rs")
        assert (await rig.with_token(token, "GET", "/AuditEvent")).status == 403
        await _assert_token_is_told(rig, str(ehr.client_id))


async def test_a_program_is_found_in_what_others_did_through_it(
    rig: Rig, store: Store
) -> None:
    async with store.db.transaction() as tx:
        viewer = await clients.register(
            tx,
            name="Viewer",
            roles=[Role.EHR],
            scopes="system/*.rs",
            jwks=jwks("EC"),
            now=store.clock(),
        )
        program = str(viewer.client_id)
        told = {"address": "10.0.0.7", "client": program, "status": "200"}
        one = AuditEntry(store.clock(), "dr-li", "radiologist", "fhir read", "Task/1")
        through = replace(one, detail=told)
        forged = replace(one, detail={"address": f'"client": "{program}"'})
        by_itself = replace(one, actor=program, detail=told)
        await audit.record_all(tx, [through, forged, by_itself, through])
    asked = f"agent:identifier={program}"
    found = await events(rig, asked)
    last_ids = [int(event["id"]) for event in found]
    assert len(found) == 3
    assert last_ids == sorted(last_ids, reverse=True)
    (client,) = {agent(event, "110152")["who"]["display"] for event in found}
    assert client == "Viewer"
    assert len(await events(rig, f"{asked}&agent:identifier=dr-li")) == 2
    page = await rig.read(f"/AuditEvent?{asked}&_count=2", role=Role.AUDITOR)
    assert [int(e["resource"]["id"]) for e in page["entry"]] == last_ids[:2]
    (rest,) = [one["url"] for one in page["link"] if one["relation"] == "next"]
    page = await rig.read(rest, role=Role.AUDITOR)
    assert [int(e["resource"]["id"]) for e in page["entry"]] == last_ids[2:]


async def _assert_token_is_told(rig: SmartRig, client_id: str) -> None:
    (event, *_) = await events(rig, f"agent:identifier={client_id}&outcome=4")
    user = agent(event, "IRCP")
    assert user["policy"][0].startswith("urn:ietf:params:oauth:jti:")
    client = [a for a in event["agent"] if a["who"]["identifier"]["value"] == client_id]
    assert client


async def test_answers_in_xml_and_by_post_are_the_same(rig: Rig) -> None:
    await rig.read(rig.report_path)
    path = f"/AuditEvent?entity={rig.report_path.strip('/')}&subtype=read"
    as_json = await rig.get(path, role=Role.AUDITOR)
    as_xml = await rig.get(
        path, role=Role.AUDITOR, headers={"Accept": "application/fhir+xml"}
    )
    assert as_json.body["entry"] == as_xml.body["entry"]


async def test_a_batch_tells_whom_it_opened_and_what_it_was_denied(
    rig: Rig, store: Store
) -> None:
    asked = [rig.report_path, "/Task", "/DiagnosticReport?status=partial", "/Nothing/1"]
    entries_ = [{"request": {"method": "GET", "url": u.strip("/")}} for u in asked]
    bundle = {"resourceType": "Bundle", "type": "batch", "entry": entries_}
    answer = await rig.ask("POST", "", bundle, role=Role.EHR)
    assert answer.status == 200, answer.raw
    entry = await last(store)
    assert entry.action == "fhir batch"
    assert "DiagnosticReport 200 x 2" in entry.detail["parts"]
    assert "Task 403 x 1" in entry.detail["parts"]
    assert rig.report is not None
    assert entry.detail["patients"] == str(rig.report.patient_id)
    assert entry.detail["query"] == "DiagnosticReport?status=partial"


HOW_BALP_HAS_IT = {
    # profile: interactions, action, client and server role
    "Read": (("read", "vread"), "R", "110152", "110153"),
    "Query": (("search-type",), "E", "110153", "110152"),
    "Create": (("create",), "C", "110153", "110152"),
    "Update": (("update", "patch"), "U", "110153", "110152"),
}


def assert_balp(event: Json) -> str:
    """Hold an event against the constraints of its BALP 1.1 profile."""
    (profile,) = event["meta"]["profile"]
    name = profile.rpartition("IHE.BasicAudit.")[2]
    of_patient, name = name.startswith("Patient"), name.removeprefix("Patient")
    codes, action, client, server = HOW_BALP_HAS_IT[name]
    assert event["type"]["code"] == "rest"
    assert event["subtype"][0]["code"] in codes
    assert (event["action"], event["outcome"]) == (action, "0")
    for code in (client, server):
        one = agent(event, code)
        assert one["network"]["address"]
        assert one["who"]
        assert "media" not in one
    assert "network" not in agent(event, "IRCP")
    assert sum(one["requestor"] for one in event["agent"]) == 1
    kinds = [
        (e["type"]["code"], e.get("role", {}).get("code")) for e in event["entity"]
    ]
    assert kinds.count(("1", "1")) == (1 if of_patient else 0)
    assert entity(event, "XrequestId")["what"]["identifier"]["value"]
    data = entity(event, "2")
    if name == "Query":
        assert data["role"]["code"] == "24"
        assert data["query"]
        assert not {"what", "lifecycle", "detail"} & set(data)
    else:
        assert data["role"]["code"] in ("3", "4", "20")
        assert data["what"]["reference"]
    return name


async def test_each_event_keeps_the_profile_that_it_names(rig: Rig) -> None:
    path = rig.report_path
    for place in (path, f"{path}/_history/1", "/DiagnosticReport", "/Device", "/Task"):
        await rig.get(place)
    await rig.get(path, headers={"If-None-Match": 'W/"1"'})
    await rig.sign()
    nurse = {"resourceType": "Practitioner", "name": [{"family": "Li"}]}
    await rig.ask("POST", "/Practitioner", nurse, role=Role.EHR)
    await events(rig)
    told = await events(rig, "type=rest&outcome=0&_count=100")
    named = [assert_balp(e) for e in told if "profile" in e["meta"]]
    assert set(named) == set(HOW_BALP_HAS_IT)
    assert len(named) == len(told)


def test_the_trail_has_one_writer_for_requests() -> None:
    """Handlers below /fhir need not think of the trail: none records an access."""
    folder = Path(__file__).parents[3] / "fhir"
    for path in folder.rglob("*.py"):
        assert "audit.append(" not in path.read_text("utf-8"), path
