"""In which form resources come and go (FHIR R4 3.1.0.1.5, RFC 9110 12.5.1)."""

import json
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from fhir.encoding.formats import FORMATS, PATCH_FORMATS, Wanted, negotiated, readable
from fhir.encoding.outcome import Refused
from fhir.encoding.wire import parse
from fhir.encoding.xml import NAMESPACE, from_xml, to_xml
from fhir.security.access import PERMITS
from node.domain.access import Role
from tests.fhir.rest.test_rest import make_ehr_patient
from tests.fhir.rig import Rig
from tests.fhir.security.test_access import request_of

FHIR_JSON = "application/fhir+json"
FHIR_XML = "application/fhir+xml"

ACCEPTED = [
    (None, FHIR_JSON),
    ("*/*", FHIR_JSON),
    ("application/*", FHIR_JSON),
    ("application/json", "application/json"),
    ("text/json", "text/json"),
    (FHIR_XML, FHIR_XML),
    ("Application/FHIR+XML", FHIR_XML),
    ("text/*", "text/json"),
    ("application/xml", "application/xml"),
    ("text/xml;charset=utf-8", "text/xml"),
    (f"{FHIR_JSON};q=0.5, {FHIR_XML};q=0.9", FHIR_XML),
    (f"{FHIR_XML}, {FHIR_JSON}", FHIR_XML),
    (f"{FHIR_JSON}, {FHIR_XML}", FHIR_JSON),
    (f"{FHIR_XML}, */*", FHIR_XML),
    (f"*/*;q=1, {FHIR_JSON};q=0, application/json;q=0, text/json;q=0", FHIR_XML),
    ("text/html, application/xml;q=0.9, */*;q=0.8", "application/xml"),
    ("text/csv, application/json;q=0.1", "application/json"),
    (f"{FHIR_JSON};fhirVersion=4.0", FHIR_JSON),
    (f"{FHIR_JSON};fhirVersion=5.0, {FHIR_XML};fhirVersion=4.0;q=0.2", FHIR_XML),
]
REFUSED = [
    "text/csv",
    "text/turtle, application/fhir+turtle",
    f"{FHIR_JSON};q=0",
    f"{FHIR_JSON};q=1.5",
    f"{FHIR_JSON};fhirVersion=5.0",
    "json",
]


def asked(accept: str | None, address: str = "/fhir/Patient", **headers: str) -> Any:
    told = headers if accept is None else headers | {"Accept": accept}
    return make_mocked_request("GET", address, headers=told)


@pytest.mark.parametrize(("accept", "media_type"), ACCEPTED)
def test_what_a_caller_likes_best_is_what_it_gets(
    accept: str | None, media_type: str
) -> None:
    assert negotiated(asked(accept)).media_type == media_type


@pytest.mark.parametrize("accept", REFUSED)
def test_what_nobody_here_writes_is_refused(accept: str) -> None:
    with pytest.raises(Refused) as refused:
        negotiated(asked(accept))
    assert refused.value.status == 406


def test_format_goes_before_accept_and_a_version_comes_back() -> None:
    for told in ("xml", "text/xml", "application/fhir+xml", "application%2Ffhir%2Bxml"):
        request = asked(FHIR_JSON, f"/fhir/Patient?_format={told}&_pretty=true")
        assert negotiated(request).xml
        assert negotiated(request).pretty
    assert not negotiated(asked(FHIR_XML, "/fhir/Patient?_format=json")).xml
    with pytest.raises(Refused):
        negotiated(asked(FHIR_JSON, "/fhir/Patient?_format=html"))
    versioned = negotiated(asked(f"{FHIR_XML}; fhirVersion=4.0"))
    assert versioned.content_type == f"{FHIR_XML}; fhirVersion=4.0; charset=utf-8"


def test_a_refusal_is_readable_for_who_sent_xml() -> None:
    assert readable(asked("text/csv")) == Wanted()
    assert readable(asked("text/csv", **{"Content-Type": "text/xml"})).xml


async def test_every_interaction_answers_in_xml_what_it_answers_in_json(
    rig: Rig,
) -> None:
    report = await rig.read(rig.report_path)
    patient = report["subject"]["reference"]
    for path in (
        "/metadata",
        rig.report_path,
        f"{rig.report_path}/_history",
        f"{rig.report_path}/_history/1",
        f"/{patient}",
        "/Observation?_include=*&_revinclude=Provenance:target",
        "/ImagingStudy",
        "/Device",
        "/Provenance",
        "/Task",
        "/Patient?nonsense=1",
    ):
        for role in (Role.RADIOLOGIST, Role.EHR):
            if path == "/Task" and role is Role.EHR:
                continue
            as_json = await rig.get(path, role=role)
            as_xml = await rig.get(path, role=role, headers={"Accept": FHIR_XML})
            assert (as_json.status, as_xml.status) == (200, 200), path
            assert as_xml.headers["Content-Type"] == f"{FHIR_XML}; charset=utf-8"
            assert as_xml.headers["Vary"] == "Accept"
            assert as_xml.raw.startswith(b"<?xml"), path
            assert as_xml.body == as_json.body, path
            assert as_xml.headers.get("ETag") == as_json.headers.get("ETag")


async def test_a_doctor_sees_no_more_in_xml_than_in_json(rig: Rig) -> None:
    patient = (await rig.read(rig.report_path))["subject"]["reference"]
    rig.answers.clear()
    for path in (f"/{patient}", f"/{patient}/_history", "/DiagnosticReport?_include=*"):
        for form in ("xml", "json&_pretty=true"):
            sign = "&" if "?" in path else "?"
            assert (await rig.get(f"{path}{sign}_format={form}")).status == 200
    seen = b"".join(answer.raw for answer in rig.answers).decode()
    for secret in ("MRN-0042", "三", "Zhang", "1979-03"):
        assert secret not in seen


async def test_pretty_is_the_same_resource_with_line_breaks(rig: Rig) -> None:
    plain = await rig.get(rig.report_path)
    pretty = await rig.get(f"{rig.report_path}?_pretty=true")
    assert b"\n" not in plain.raw
    assert pretty.raw.count(b"\n") > 20
    assert pretty.body == plain.body
    as_xml = await rig.get(f"{rig.report_path}?_pretty=true&_format=xml")
    assert as_xml.raw.count(b"\n") > 20
    assert as_xml.body == plain.body


FAILURES = [
    (401, "GET", "/Patient", {"role": None}),
    (403, "GET", "/Subscription", {"role": Role.RADIOLOGIST}),
    (404, "GET", "/Patient/unknown", {}),
    (404, "GET", "/no/such/route/at/all", {}),
    (405, "DELETE", "/Patient/1", {}),
    (406, "GET", "/Patient?_format=ttl", {}),
    (413, "POST", "/Patient", {"body": b"x" * (2 * 1024 * 1024)}),
    (415, "POST", "/Patient", {"headers": {"Content-Type": "text/plain"}}),
    (400, "POST", "/Patient", {"body": b"<Patient"}),
    (
        428,
        "PUT",
        "/Patient/x",
        {"body": to_xml(make_ehr_patient(id="x"))},
    ),
]


async def test_every_failure_is_an_outcome_that_its_caller_can_read(rig: Rig) -> None:
    for status, method, path, options in FAILURES:
        for accept in (FHIR_XML, FHIR_JSON):
            told = {"Content-Type": FHIR_XML, "Accept": accept}
            told |= options.get("headers", {})
            role = options.get("role", Role.EHR)
            body = options.get("body")
            answer = await rig.ask(method, path, body, role=role, headers=told)
            case = (status, path, accept, answer.status, answer.raw[:200])
            assert answer.status == status, case
            assert answer.body["resourceType"] == "OperationOutcome", case
            told_xml = answer.headers["Content-Type"].startswith(FHIR_XML)
            # Of 406 the form asked for is what we do not have: the one sent serves.
            assert told_xml == (accept == FHIR_XML or status == 406), case


async def test_what_came_as_xml_is_the_json_that_it_means(empty_rig: Rig) -> None:
    rig = empty_rig
    patient = make_ehr_patient() | {
        "text": {
            "status": "generated",
            "div": '<div xmlns="http://www.w3.org/1999/xhtml">a<br/>&#160;b</div>',
        },
        "extension": [{"url": "urn:x", "valueDecimal": 7}],
    }
    sent = to_xml(patient).replace(b'value="7"', b'value="0.910"')
    told = {"Content-Type": FHIR_XML, "Accept": FHIR_XML}
    posted = await rig.ask("POST", "/Patient", sent, role=Role.EHR, headers=told)
    assert posted.status == 201, posted.raw
    path = f"/Patient/{posted.body['id']}"
    stored = await rig.get(path, role=Role.EHR)
    assert b'"valueDecimal":0.910' in stored.raw
    assert stored.body == posted.body
    assert {k: stored.body[k] for k in ("name", "text", "birthDate")} == {
        k: patient[k] for k in ("name", "text", "birthDate")
    }
    # And back again, changed, as XML.
    changed = posted.raw.replace(b'value="1980-02-03"', b'value="1980-02-04"')
    told["If-Match"] = posted.headers["ETag"]
    put = await rig.ask("PUT", path, changed, role=Role.EHR, headers=told)
    assert put.status == 200, put.raw
    assert b'value="0.910"' in put.raw
    assert (await rig.read(path, role=Role.EHR))["birthDate"] == "1980-02-04"


async def test_a_long_document_is_taken_like_a_short_one(empty_rig: Rig) -> None:
    names = [{"text": "x" * 1000}] * 200
    told = {"Content-Type": FHIR_XML, "Accept": FHIR_XML}
    sent = to_xml(make_ehr_patient() | {"contact": [{"name": n} for n in names]})
    answer = await empty_rig.ask("POST", "/Patient", sent, role=Role.EHR, headers=told)
    assert answer.status == 201
    assert len(answer.body["contact"]) == 200


async def test_a_report_is_signed_by_a_transaction_in_xml(rig: Rig) -> None:
    entry = await rig.edited(rig.report_path, status="final")
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
    told = {"Content-Type": "application/xml", "Accept": FHIR_XML}
    told["Prefer"] = "return=representation"
    answer = await rig.ask("POST", "", to_xml(bundle), headers=told)
    assert answer.status == 200, answer.raw
    assert answer.body["entry"][0]["resource"]["status"] == "final"


async def test_another_fhir_or_another_charset_is_not_taken(rig: Rig) -> None:
    for told in (
        f"{FHIR_JSON};fhirVersion=5.0",
        f"{FHIR_XML};fhirVersion=1.0",
        f"{FHIR_JSON};charset=gb18030",
        "application/fhir+turtle",
    ):
        headers = {"Content-Type": told}
        answer = await rig.ask(
            "POST", "/Patient", b"{}", headers=headers, role=Role.EHR
        )
        assert answer.status == 415, told
    headers = {"Content-Type": f"{FHIR_JSON}; fhirVersion=4.0; charset=UTF-8"}
    patient = make_ehr_patient()
    answer = await rig.ask("POST", "/Patient", patient, headers=headers, role=Role.EHR)
    assert answer.status == 201


async def test_a_search_by_post_may_ask_for_a_format_in_its_form(rig: Rig) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    form = b"_format=xml&_pretty=true&status=partial"
    path = "/DiagnosticReport/_search"
    answer = await rig.ask("POST", path, form, headers=headers)
    assert answer.headers["Content-Type"].startswith(FHIR_XML)
    assert len(answer.body["entry"]) == 1


async def test_preferences_say_what_comes_back(empty_rig: Rig) -> None:
    rig = empty_rig
    shapes: dict[str, str | None] = {
        "minimal": None,
        "representation": "Patient",
        "OperationOutcome": "OperationOutcome",
        "something-else": "Patient",
    }
    for number, (wanted, kind) in enumerate(shapes.items()):
        headers = {"Prefer": f'respond-async, return="{wanted}"', "Accept": FHIR_XML}
        patient = make_ehr_patient(f"MRN-1{number}")
        answer = await rig.ask(
            "POST", "/Patient", patient, headers=headers, role=Role.EHR
        )
        assert answer.status == 201
        assert "Location" in answer.headers
        if kind is None:
            assert answer.raw == b""
        else:
            assert answer.body["resourceType"] == kind
    for handling, status in (("strict", 400), ("lenient", 200)):
        headers = {"Prefer": f"handling={handling}"}
        answer = await rig.get("/Patient?nonsense=1", headers=headers, role=Role.EHR)
        assert answer.status == status


async def test_the_capabilities_claim_xml_because_every_interaction_takes_it(
    rig: Rig,
) -> None:
    statement = await rig.read("/metadata", role=None)
    assert statement["format"] == list(FORMATS)
    assert statement["patchFormat"] == list(PATCH_FORMATS)
    told = {"Content-Type": FHIR_XML, "Accept": FHIR_XML}
    for kind, offered in PERMITS.items():
        for interaction in offered:
            method, path, body = request_of(kind, interaction)
            raw = None if body is None else to_xml(body)
            answer = await rig.ask(method, path, raw, headers=told)
            assert answer.status not in (406, 415, 500), (kind, interaction)
            assert NAMESPACE.encode() in answer.raw


def test_a_long_bundle_keeps_every_digit_on_its_way() -> None:
    bundle = {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [
            {
                "resource": {
                    "resourceType": "Observation",
                    "status": "final",
                    "code": {"text": "size"},
                    "valueQuantity": {"value": json.loads("1"), "unit": "mm"},
                }
            }
        ]
        * 50,
    }
    raw = json.dumps(bundle).replace('"value": 1', '"value": 1.0')
    assert from_xml(to_xml(parse(raw.encode()))) == parse(raw.encode())
    assert to_xml(parse(raw.encode())).count(b'<value value="1.0"/>') == 50
