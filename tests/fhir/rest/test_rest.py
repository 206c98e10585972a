"""What the FHIR API answers (FHIR R4 3.1.0)."""

from typing import Any

from node.domain.access import Role
from node.domain.finding import Findings, NotRead
from node.store import audit
from tests.factories import make_patient
from tests.fhir.rig import ACCESSION, Rig, publish_draft, receive_study

MRN_TYPE = {
    "coding": [
        {"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "MR"}
    ]
}
ACSN_TYPE = {
    "coding": [
        {"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}
    ]
}


def make_ehr_patient(mrn: str = "MRN-0099", **changes: Any) -> dict[str, Any]:
    patient = {
        "resourceType": "Patient",
        "identifier": [{"type": MRN_TYPE, "system": "urn:oid:2.25.41", "value": mrn}],
        "name": [{"family": "王", "given": ["芳"], "text": "王芳"}],
        "gender": "female",
        "birthDate": "1980-02-03",
    }
    return {**patient, **changes}


async def test_a_drafted_report_is_partial_and_labelled_as_the_algorithms(
    rig: Rig,
) -> None:
    report = await rig.read(rig.report_path)
    assert report["status"] == "partial"
    assert report["meta"]["security"][0]["code"] == "AIAST"
    category = await rig.read(f"/Observation/{rig.report_id}-category")
    assert category["device"] == {"reference": "Device/model-1"}
    assert report["performer"] == [{"reference": "Organization/department"}]
    assert "issued" not in report
    assert "resultsInterpreter" not in report
    device = await rig.read("/Device/model-1")
    assert {v["value"] for v in device["version"]} == {"1.0.0", "ab" * 32}


async def test_every_field_of_the_lexicon_has_an_observation(rig: Rig) -> None:
    root = await rig.read(f"/Observation/{rig.report_id}-l1")
    members = [await rig.read(f"/{m['reference']}") for m in root["hasMember"]]
    assert len(members) == 10
    missing = [m for m in members if "dataAbsentReason" in m]
    assert {m["id"].rpartition("-")[2] for m in missing} == {"boundary", "posterior"}
    assert all(m["device"] == {"reference": "Device/model-1"} for m in members)


async def test_a_study_that_was_not_read_says_so(empty_rig: Rig) -> None:
    rig = empty_rig
    await receive_study(rig.store, make_patient())
    image = NotRead("2.25.3001.1.1", "doppler", "彩色多普勒图像", "colour Doppler")
    rig.report = await publish_draft(
        rig.store, rig.settings, findings=Findings(not_read=(image,))
    )
    report = await rig.read(rig.report_path)
    assert report["extension"][0]["valueString"] == "彩色多普勒图像"
    category = await rig.read(f"/Observation/{rig.report_id}-category")
    assert category["dataAbsentReason"]["coding"][0]["code"] == "not-performed"


async def test_a_doctor_sees_a_masked_patient_and_the_ehr_the_whole(rig: Rig) -> None:
    report = await rig.read(rig.report_path)
    path = f"/{report['subject']['reference']}"
    masked = await rig.read(path)
    assert masked["name"] == [{"text": "张*"}]
    assert masked["extension"][0]["valueString"] == "47"
    assert "identifier" not in masked
    assert masked["meta"]["security"][0]["code"] == "REDACTED"
    whole = await rig.read(path, role=Role.EHR)
    assert whole["identifier"][0]["value"] == "MRN-0042"
    assert report["identifier"][0]["value"] == f"…{ACCESSION[-4:]}"
    seen_by_ehr = await rig.read(rig.report_path, role=Role.EHR)
    assert seen_by_ehr["identifier"][0]["value"] == ACCESSION


async def test_no_way_of_reading_shows_a_doctor_who_the_patient_is(rig: Rig) -> None:
    report = await rig.read(rig.report_path)
    patient = report["subject"]["reference"]
    order = {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": {"reference": patient, "display": "张三"},
        "identifier": [{"type": ACSN_TYPE, "value": ACCESSION}],
        "note": [{"text": "张三 13800008000"}],
    }
    posted = await rig.ask("POST", "/ServiceRequest", order, role=Role.EHR)
    assert posted.status == 201, posted.raw
    rig.answers.clear()
    for path in (
        f"/{patient}",
        f"/{patient}/_history",
        f"/{patient}/_history/1",
        "/Patient",
        "/ServiceRequest",
        f"/ServiceRequest/{posted.body['id']}",
        "/ImagingStudy",
        "/DiagnosticReport?_include=DiagnosticReport:subject",
        "/DiagnosticReport?_include=*",
        "/Observation?_include=Observation:subject&_revinclude=Provenance:target",
        "/ImagingStudy?_include=ImagingStudy:patient",
        "/Provenance",
    ):
        assert (await rig.get(path)).status == 200, path
    seen = b"".join(answer.raw for answer in rig.answers).decode()
    for secret in ("MRN-0042", "三", "Zhang", "13800008000", "1979-03", ACCESSION):
        assert secret not in seen


async def test_a_doctor_cannot_ask_by_an_identity(rig: Rig) -> None:
    for query in (
        "/Patient?identifier=MRN-0042",
        "/Patient?name=Zhang",
        "/Patient?name:missing=false",
        "/DiagnosticReport?patient.identifier=MRN-0042",
        "/DiagnosticReport?subject:Patient.name=Zhang",
    ):
        answer = await rig.get(query)
        assert answer.status == 403, query
        assert len((await rig.read(query, role=Role.EHR))["entry"]) == 1, query


FOUND = [
    ("status=partial", 1),
    ("status=final", 0),
    ("status=final,partial", 1),
    ("status:not=final", 1),
    (f"identifier={ACCESSION}", 1),
    (f"identifier=urn:oid:2.25.42|{ACCESSION}", 1),
    (f"identifier=urn:oid:9|{ACCESSION}", 0),
    ("identifier=ACC", 0),
    ("code=http://loinc.org|24601-7", 1),
    ("date=2026-11-20", 1),
    ("date=2026-11", 1),
    ("date=ge2026-11-21", 0),
    ("date=lt2026-11-20", 0),
    ("date=ge2026-11-20&date=le2026-11-20", 1),
    ("_lastUpdated=ge2026-11-21T08:00:00Z", 1),
    ("_lastUpdated=gt2026-11-21", 0),
    ("_lastUpdated=2026-11-21", 1),
    ("issued:missing=true", 1),
    ("issued:missing=false", 0),
    ("imagingStudy=ImagingStudy/2.25.3001", 1),
    ("performer=Organization/department", 1),
    ("performer=department", 1),
    ("_id=nothing", 0),
    ("patient.gender=female", 1),
    ("patient.gender=male", 0),
]


async def test_a_search_finds_what_it_says(rig: Rig) -> None:
    for query, found in FOUND:
        bundle = await rig.read(f"/DiagnosticReport?{query}")
        assert len(bundle.get("entry", [])) == found, query
        form = await rig.ask(
            "POST",
            "/DiagnosticReport/_search",
            query.encode(),
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
        assert len(form.body.get("entry", [])) == found, query


async def test_an_unknown_parameter_is_ignored_and_told_or_refused(rig: Rig) -> None:
    bundle = await rig.read("/DiagnosticReport?colour=red&status=partial")
    modes = [e["search"]["mode"] for e in bundle["entry"]]
    assert modes == ["match", "outcome"]
    assert "colour" not in bundle["link"][0]["url"]
    strict = {"Prefer": "handling=strict"}
    answer = await rig.get("/DiagnosticReport?colour=red", headers=strict)
    assert answer.status == 400


async def test_a_value_that_cannot_be_read_is_a_clear_400(empty_rig: Rig) -> None:
    for query in (
        "date=yesterday",
        "date=2026-13",
        "_count=many",
        "_page=x",
        "_lastUpdated=0000",
    ):
        answer = await empty_rig.get(f"/DiagnosticReport?{query}")
        assert answer.status == 400, query


async def test_the_worklist_brings_patients_and_results_along(rig: Rig) -> None:
    bundle = await rig.read(
        "/DiagnosticReport?_count=20&_sort=-_lastUpdated"
        "&_include=DiagnosticReport:subject&_include=DiagnosticReport:result"
        "&_include:iterate=Observation:has-member&_total=accurate"
    )
    assert bundle["total"] == 1
    modes = [
        (e["resource"]["resourceType"], e["search"]["mode"]) for e in bundle["entry"]
    ]
    assert modes[0] == ("DiagnosticReport", "match")
    assert modes.count(("Observation", "include")) == 13
    assert modes.count(("Patient", "include")) == 1


async def test_pages_walk_over_everything_once_and_hide_the_query(rig: Rig) -> None:
    await rig.draft_more(range(2, 8))
    url: str | None = "/DiagnosticReport?_count=3&patient.name=zhang&_sort=date"
    seen, pages = [], 0
    while url:
        bundle = await rig.read(url, role=Role.EHR)
        seen += [e["resource"]["id"] for e in bundle["entry"]]
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        url, pages = links.get("next"), pages + 1
        assert url is None or "zhang" not in url
    assert (len(seen), len(set(seen)), pages) == (7, 7, 3)


async def test_every_version_can_be_read_and_listed(rig: Rig) -> None:
    assert (await rig.sign()).status == 200
    history = await rig.read(f"{rig.report_path}/_history")
    assert [e["response"]["etag"] for e in history["entry"]] == ['W/"2"', 'W/"1"']
    first = await rig.read(f"{rig.report_path}/_history/1")
    assert first["status"] == "partial"
    assert (await rig.get(f"{rig.report_path}/_history/3")).status == 404
    page = await rig.read(f"{rig.report_path}/_history?_count=1")
    following = await rig.read(page["link"][1]["url"])
    assert following["entry"][0]["resource"]["meta"]["versionId"] == "1"


async def test_a_read_carries_its_version_and_answers_304(rig: Rig) -> None:
    answer = await rig.get(rig.report_path)
    assert answer.headers["ETag"] == 'W/"1"'
    assert answer.headers["Last-Modified"].endswith("GMT")
    modified = answer.headers["Last-Modified"]
    for headers, status in (
        ({"If-None-Match": 'W/"1"'}, 304),
        ({"If-None-Match": '"9", "1"'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": 'W/"2"', "If-Modified-Since": modified}, 200),
        ({"If-Modified-Since": modified}, 304),
        ({"If-Modified-Since": "Fri, 01 Jan 2010 00:00:00 GMT"}, 200),
        ({"If-Modified-Since": "whenever"}, 200),
    ):
        again = await rig.get(rig.report_path, headers=headers)
        assert (again.status, again.raw == b"") == (status, status == 304), headers
    head = await rig.ask("HEAD", rig.report_path)
    assert head.headers["ETag"] == 'W/"1"'
    assert int(head.headers["Content-Length"]) == len(answer.raw)
    # A second version of the same second looks like the first one by its date.
    assert (await rig.sign()).status == 200
    since = {"If-Modified-Since": modified}
    assert (await rig.get(rig.report_path, headers=since)).status == 200
    later = {"If-Modified-Since": "Fri, 01 Jan 2038 00:00:00 GMT"}
    assert (await rig.get(rig.report_path, headers=later)).status == 304
    first = f"{rig.report_path}/_history/1"
    assert (await rig.get(first, headers={"If-None-Match": 'W/"1"'})).status == 304
    statement = {"If-None-Match": (await rig.get("/metadata")).headers["ETag"]}
    assert (await rig.get("/metadata", headers=statement)).status == 304


async def test_bytes_in_are_bytes_out(empty_rig: Rig) -> None:
    rig = empty_rig
    numbers = ["0.910", "1.00", "100000000000000000000.01", "-0.0", "1e2"]
    extension = ",".join(
        f'{{"url":"https://example.org/n","valueDecimal":{n}}}' for n in numbers
    )
    body = (
        '{"resourceType":"Patient","extension":[' + extension + "],"
        '"identifier":[{"type":{"coding":[{"system":'
        '"http://terminology.hl7.org/CodeSystem/v2-0203","code":"MR"}]},'
        '"value":"7"}],"gender":"female",'
        '"_birthDate":{"extension":[{"url":"https://example.org/t","valueString":"x"}]},'
        '"name":[{"text":"李 娜"}]}'
    )
    made = await rig.ask("POST", "/Patient", body.encode(), role=Role.EHR)
    assert made.status == 201, made.raw
    path = f"/Patient/{made.body['id']}"

    async def check(where: str) -> None:
        raw = (await rig.get(where, role=Role.EHR)).raw.decode()
        assert f'"extension":[{extension}]' in raw
        assert '"_birthDate":{"extension":[{"url"' in raw

    await check(path)
    sent = (await rig.get(path, role=Role.EHR)).raw
    put = await rig.ask("PUT", path, sent, role=Role.EHR, headers={"If-Match": 'W/"1"'})
    assert put.status == 200, put.raw
    await check(f"{path}/_history/1")
    await check(f"{path}/_history/2")


async def test_the_ehr_creates_a_patient_once(empty_rig: Rig) -> None:
    rig = empty_rig
    headers = {"If-None-Exist": "identifier=urn:oid:2.25.41|MRN-0099"}

    async def create() -> Any:
        return await rig.ask(
            "POST", "/Patient", make_ehr_patient(), role=Role.EHR, headers=headers
        )

    first = await create()
    assert first.status == 201, first.raw
    assert first.headers["Location"].endswith(f"/Patient/{first.body['id']}/_history/1")
    second = await create()
    assert second.status == 200
    assert second.body["id"] == first.body["id"]
    plain = await rig.ask("POST", "/Patient", make_ehr_patient(), role=Role.EHR)
    assert plain.status == 409
    empty = await rig.ask(
        "POST",
        "/Patient",
        make_ehr_patient(),
        role=Role.EHR,
        headers={"If-None-Exist": "_count=1"},
    )
    assert empty.status == 400


async def test_a_patient_of_the_ehr_is_the_patient_of_the_scanner(
    empty_rig: Rig,
) -> None:
    rig = empty_rig
    made = await rig.ask("POST", "/Patient", make_ehr_patient(), role=Role.EHR)
    order = {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "identifier": [
            {"type": ACSN_TYPE, "system": "urn:oid:2.25.42", "value": ACCESSION}
        ],
        "subject": {"reference": f"Patient/{made.body['id']}"},
    }
    ordered = await rig.ask("POST", "/ServiceRequest", order, role=Role.EHR)
    assert ordered.status == 201, ordered.raw
    await receive_study(rig.store, make_patient(patient_id="MRN-0099"))
    rig.report = await publish_draft(rig.store, rig.settings)
    report = await rig.read(rig.report_path)
    assert report["subject"]["reference"] == f"Patient/{made.body['id']}"
    reference = f"ServiceRequest/{ordered.body['id']}"
    assert report["basedOn"] == [{"reference": reference}]
    found = await rig.read(f"/DiagnosticReport?basedOn={reference}")
    assert len(found["entry"]) == 1


async def test_an_order_for_nobody_is_refused(empty_rig: Rig) -> None:
    order = {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": {"reference": "Patient/00000000-0000-0000-0000-000000000001"},
    }
    answer = await empty_rig.ask("POST", "/ServiceRequest", order, role=Role.EHR)
    assert answer.status == 422
    assert answer.expressions == ["ServiceRequest.subject"]


async def test_a_patient_keeps_her_number_when_the_ehr_changes_her_name(
    empty_rig: Rig,
) -> None:
    rig = empty_rig
    made = await rig.ask("POST", "/Patient", make_ehr_patient(), role=Role.EHR)
    path = f"/Patient/{made.body['id']}"
    renamed = {**made.body, "name": [{"text": "李芳"}]}
    match = {"If-Match": 'W/"1"'}
    answer = await rig.ask("PUT", path, renamed, role=Role.EHR, headers=match)
    assert answer.status == 200, answer.raw
    assert (await rig.read(path))["name"] == [{"text": "李*"}]
    moved = {**renamed, "identifier": make_ehr_patient("MRN-1")["identifier"]}
    answer = await rig.ask(
        "PUT", path, moved, role=Role.EHR, headers={"If-Match": 'W/"2"'}
    )
    assert answer.status == 422


NOBODY = make_ehr_patient(id="nobody")
FAILURES: list[tuple[int, str, str, dict[str, Any]]] = [
    (404, "GET", "/Nothing/1", {}),
    (404, "GET", "/nowhere", {}),
    (404, "GET", "/Patient/unknown", {}),
    (404, "GET", "/Patient/unknown/_history", {}),
    (404, "GET", "/Patient/unknown/$everything", {}),
    (404, "GET", "/Medication", {}),
    (405, "DELETE", "/Patient/1", {}),
    (405, "PATCH", "/Device/1", {}),
    (405, "POST", "/Device", {"body": {"resourceType": "Device"}}),
    (405, "POST", "/DiagnosticReport", {"body": {}}),
    (406, "GET", "/Patient", {"headers": {"Accept": "text/turtle"}}),
    (406, "GET", "/Patient?_format=ttl", {}),
    (415, "POST", "/Patient", {"headers": {"Content-Type": "text/plain"}}),
    (415, "POST", "/Patient/_search", {"body": {}}),
    (413, "POST", "/Patient", {"body": b"x" * (2 * 1024 * 1024)}),
    (400, "POST", "/Patient", {"body": b"{"}),
    (400, "POST", "/Patient", {"body": b"[]"}),
    (400, "POST", "/Patient", {"body": {"resourceType": "Device"}}),
    (422, "POST", "/Patient", {"body": {"resourceType": "Patient", "gender": "f"}}),
    (401, "GET", "/Patient", {"role": None}),
    (401, "GET", "/nowhere", {"role": None}),
    (403, "PUT", "/Observation/x", {"body": {"resourceType": "Observation"}}),
    (422, "POST", "", {"body": {"resourceType": "Bundle"}}),
    (422, "POST", "", {"body": {"resourceType": "Bundle", "type": "history"}}),
    (405, "DELETE", "/DiagnosticReport/1", {}),
    (405, "DELETE", "/Subscription/1", {}),
    (405, "DELETE", "/Patient?gender=male", {}),
    (405, "PUT", "/Practitioner?identifier=1", {"body": {}}),
    (405, "PATCH", "/Subscription?status=off", {"body": b"[]"}),
    (405, "PUT", "/Patient/nobody", {"body": NOBODY, "headers": {"If-Match": '"1"'}}),
    (400, "GET", "/DiagnosticReport?date=ap2026", {}),
    (400, "GET", "/DiagnosticReport?_contained=true", {}),
    (400, "GET", "/Patient?name:contains=li", {}),
    (404, "DELETE", "/Medication/1", {}),
    (403, "GET", "/Task", {}),
]


async def test_every_failure_is_an_operation_outcome(empty_rig: Rig) -> None:
    for status, method, path, options in FAILURES:
        case = (method, path)
        answer = await empty_rig.ask(method, path, **{"role": Role.EHR, **options})
        assert answer.status == status, (case, answer.raw)
        assert answer.body["resourceType"] == "OperationOutcome", case
        assert answer.body["issue"][0]["severity"] == "error", case
        assert answer.headers["Content-Type"].startswith("application/fhir+json")
        if status == 405:
            assert "Allow" in answer.headers, case


async def test_failed_work_is_shown_and_tried_again_with_one_put(rig: Rig) -> None:
    store = rig.store
    async with store.db.transaction() as tx:
        await store.jobs.defer(tx, "assess_study", {"study_instance_uid": "2.25.3001"})
    job = await store.jobs.claim(["assess_study"], "w")
    assert job is not None
    await store.jobs.failed(job, "no usable frame", retry=False)
    bundle = await rig.read("/Task?status=failed")
    task = bundle["entry"][0]["resource"]
    words = "The AI reading was not completed: no usable frame"
    assert task["statusReason"]["text"] == words
    (translation,) = task["statusReason"]["_text"]["extension"]
    assert translation["extension"][1]["valueString"].startswith("AI 阅片未完成")
    assert task["focus"]["reference"] == "ImagingStudy/2.25.3001"
    path = f"/Task/{task['id']}"
    assert (await rig.ask("PUT", path, {**task, "status": "completed"})).status == 422
    retried = await rig.ask("PUT", path, {**task, "status": "requested"})
    assert retried.status == 200, retried.raw
    assert "entry" not in await rig.read("/Task?status=failed")
    assert await store.jobs.claim(["assess_study"], "w") is not None
    async with store.db.transaction() as tx:
        (entry,) = await audit.entries(tx, entity=f"job/{task['id']}")
    assert (entry.action, entry.detail) == ("work-retry", {"kind": "assess_study"})


async def test_a_result_that_did_not_arrive_is_told_in_plain_words(rig: Rig) -> None:
    store = rig.store
    payload = {"study_instance_uid": "2.25.3001", "destination": "PACS"}
    async with store.db.transaction() as tx:
        await store.jobs.defer(tx, "send_instance", payload, lane="PACS")
    job = await store.jobs.claim(["send_instance"], "w", lane="PACS")
    assert job is not None
    error = (
        "archive PACS at 10.1.2.3:104 does not know the calling AE title NODE:"
        " enter it there, with the address of this machine"
    )
    await store.jobs.failed(job, error, retry=False)
    bundle = await rig.read("/Task?status=failed")
    task = bundle["entry"][0]["resource"]
    assert task["focus"]["reference"] == "ImagingStudy/2.25.3001"
    assert error in task["statusReason"]["text"]
    (translation,) = task["statusReason"]["_text"]["extension"]
    assert translation["extension"][1]["valueString"] == (
        "结果未能送达 PACS：归档 PACS（10.1.2.3:104）不认识主叫 AE NODE，"
        "请在对方登记该名称和本机地址"
    )
