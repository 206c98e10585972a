"""IHE Interactive Multimedia Report: reports are found as RAD-143 asks for them.

What a Report Repository has to do besides is told by the last test: whoever reads the
CapabilityStatement must not find a claim there that the node does not keep.
"""

from typing import Any
from urllib.parse import urlencode

from fhir.encoding.wire import Json, parse, to_bytes
from fhir.encoding.xml import from_xml, to_xml
from node.domain.access import Role
from node.store.store import Store
from tests.factories import make_patient
from tests.fhir.rest.test_bundles import PATIENT, entry, make_order, statuses
from tests.fhir.rest.test_rest import make_ehr_patient
from tests.fhir.rig import (
    ACCESSION,
    STUDY_UID,
    Answer,
    Rig,
    publish_draft,
    running_fhir,
)
from tests.fhir.rig import receive_study as receive

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
XML = "application/fhir+xml"
IMR = "https://profiles.ihe.net/RAD/IMR"
CREATOR = f"{IMR}/CapabilityStatement/IHE.IMR.ReportCreator"
# The search result parameters that a Responder shall support.
SHAPING = (
    ("_include", "DiagnosticReport:subject"),
    ("_sort", "-issued"),
    ("_count", "1"),
    ("_summary", "true"),
)


async def ordered(rig: Rig) -> tuple[str, str]:
    """Bring patient and order in as RAD-141 would, then the study and its report."""
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [
            entry("POST", "Patient", make_ehr_patient("MRN-0042"), fullUrl=PATIENT),
            entry("POST", "ServiceRequest", make_order(PATIENT)),
        ],
    }
    told = {"Content-Type": XML, "Accept": XML}
    answer = await rig.ask("POST", "", to_xml(bundle), role=Role.EHR, headers=told)
    assert statuses(answer) == [201, 201]
    assert answer.headers["Content-Type"].startswith(XML)
    await receive(rig.store, make_patient())
    rig.report = await publish_draft(rig.store, rig.settings)
    locations = [e["response"]["location"] for e in answer.body["entry"]]
    base = f"{rig.settings.base_url}/"
    patient, order = (
        location.removeprefix(base).partition("/_history")[0] for location in locations
    )
    return patient, order


async def ask(rig: Rig, query: Any, media: str, method: str) -> Answer:
    """Find reports by GET or by POST, answered as JSON or XML."""
    sent = urlencode(query)
    headers = {"Accept": media}
    if method == "GET":
        path = f"/DiagnosticReport?{sent}"
        return await rig.ask("GET", path, role=Role.EHR, headers=headers)
    return await rig.ask(
        "POST",
        "/DiagnosticReport/_search",
        sent.encode(),
        role=Role.EHR,
        headers=headers | FORM,
    )


def reports(bundle: Json) -> list[str]:
    return [
        e["resource"]["id"]
        for e in bundle.get("entry", [])
        if e["search"]["mode"] == "match"
    ]


async def test_reports_are_found_by_every_parameter_of_rad_143(empty_rig: Rig) -> None:
    rig = empty_rig
    patient, order = await ordered(rig)
    parameters = [
        ("patient", patient, "Patient/nobody"),
        ("patient.identifier", "urn:oid:2.25.41|MRN-0042", "urn:oid:2.25.41|MRN-1"),
        ("patient.name.given", "芳", "三"),
        ("patient.name.family", "王", "张"),
        ("basedOn", order, "ServiceRequest/none"),
        ("basedOn.identifier", ACCESSION, "ACC-0"),
        ("imagingStudy", f"ImagingStudy/{STUDY_UID}", "ImagingStudy/2.25.1"),
        (
            "imagingStudy.identifier",
            f"urn:dicom:uid|urn:oid:{STUDY_UID}",
            "urn:dicom:uid|urn:oid:2.25.1",
        ),
        ("imagingStudy.modality", "US", "MG"),
        ("imagingStudy.started", "2026-11-20", "2026-11-19"),
        ("status", "partial", "final"),
    ]
    for name, value, other in parameters:
        for media in ("application/fhir+json", XML):
            for method in ("GET", "POST"):
                case = (name, media, method)
                hit = await ask(rig, [(name, value)], media, method)
                assert hit.status == 200, (case, hit.raw)
                assert hit.headers["Content-Type"].startswith(media), case
                assert reports(hit.body) == [str(rig.report_id)], case
                miss = await ask(rig, [(name, other)], media, method)
                assert reports(miss.body) == [], case
                assert (hit.body["total"], miss.body["total"]) == (1, 0), case
    both = await ask(rig, [(n, v) for n, v, _ in parameters], XML, "POST")
    assert reports(both.body) == [str(rig.report_id)]


async def test_the_answer_takes_the_shape_that_rad_143_lets_one_ask_for(
    empty_rig: Rig,
) -> None:
    rig = empty_rig
    patient, _ = await ordered(rig)
    for media in ("application/fhir+json", XML):
        for method in ("GET", "POST"):
            answer = await ask(rig, [("patient", patient), *SHAPING], media, method)
            kinds = [e["resource"]["resourceType"] for e in answer.body["entry"]]
            assert kinds == ["DiagnosticReport", "Patient"]
            assert "SUBSETTED" in str(answer.body["entry"][0]["resource"]["meta"])
    whole = await ask(rig, [("patient", patient)], XML, "GET")
    same = await ask(rig, [("patient", patient)], "application/fhir+json", "GET")
    assert parse(to_bytes(from_xml(whole.raw)))["entry"] == same.body["entry"]


async def test_no_more_of_imr_is_claimed_than_is_there(empty_rig: Rig) -> None:
    """A Repository also takes reports that others have written (RAD-141).

    This one's reports are its own: drafted from the images, signed by people it knows.
    A Creator is who sends its own: `tests/fhir/multimedia` holds it against RAD-141.
    """
    rig = empty_rig
    report = {
        "resourceType": "DiagnosticReport",
        "status": "final",
        "code": {"text": "US breast"},
        "subject": {"reference": PATIENT},
    }
    patient = entry("POST", "Patient", make_ehr_patient(), fullUrl=PATIENT)
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [patient, entry("POST", "DiagnosticReport", report)],
    }
    refused = await rig.ask("POST", "", bundle, role=Role.EHR)
    assert (refused.status, refused.body["issue"][0]["code"]) == (422, "not-supported")
    assert "entry" not in await rig.read("/Patient", role=Role.EHR)
    statement = await rig.read("/metadata", role=None)
    claims = [*statement["instantiates"], *statement.get("implementationGuide", [])]
    assert not [claim for claim in claims if claim.startswith(IMR)]
    assert [rest["mode"] for rest in statement["rest"]] == ["server"]


async def test_who_has_a_repository_is_told_that_the_node_is_a_report_creator(
    store: Store,
) -> None:
    async with running_fhir(store, repositories=("hospital",)) as rig:
        statement = await rig.read("/metadata", role=None)
    claims = [*statement["instantiates"], *statement["implementationGuide"]]
    assert [claim for claim in claims if claim.startswith(IMR)] == [
        CREATOR,
        f"{IMR}/ImplementationGuide/ihe.rad.imr",
    ]
    assert not [claim for claim in claims if "ReportRepository" in claim]
    (sender,) = [rest for rest in statement["rest"] if rest["mode"] == "client"]
    assert [one["code"] for one in sender["interaction"]] == ["transaction"]
