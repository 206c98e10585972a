"""A change through FHIR gives what the same change on the review page gives.

The same signature and the same amendment, each by five ways, on five studies alike:
the page's transaction, and a program at the EHR with its doctor's token by transaction,
JSON Patch, FHIRPath Patch and XML. SR, paper and notifications are then compared.
"""

import base64
import json
import re
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pypdf import PdfReader

from fhir.content import concepts
from fhir.content.mapping import category_element, field_value
from fhir.encoding.wire import Json, as_list, to_bytes
from fhir.encoding.xml import to_xml
from node.domain.access import Role
from node.domain.lexicon import FieldKey
from node.domain.report import Report
from node.domain.study import Origin
from node.store import reports, studies
from node.store.store import Store
from tests.fhir.content.test_life_cycle import because
from tests.fhir.printing import draft_with_image, encode, tell_of_papers
from tests.fhir.security.test_smart_people import BACK, App
from tests.fhir.smart_rig import SmartRig, running_smart
from tests.fhir.subscriptions.test_subscriptions import make_subscription

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TOPIC = f"{concepts.BASE}/SubscriptionTopic"
SUMMARY = {"url": concepts.PATIENT_SUMMARY, "valueString": "请半年后复查。"}
# Resource, by the end of its id, and the elements that it gets; None takes one away.
Edit = dict[str, dict[str, Any]]
SIGN: Edit = {
    "-l1-shape": field_value(FieldKey.SHAPE, ("oval",)),
    "-l1-margin": field_value(FieldKey.MARGIN, ("indistinct",)),
    "-l1-category": category_element("4B"),
    "-category": category_element("4B"),
    "": {"status": "final", "conclusion": "左乳 2 点低回声结节。"},
}
AMEND: Edit = {
    "-l1-category": category_element("3"),
    "-category": category_element("3"),
    "": {"status": "amended", "conclusion": "复阅后降为 3 类。"},
}
Make = Callable[[Json, dict[str, Any]], Json]


def put(resource: Json, changes: dict[str, Any]) -> Json:
    changed = {**resource, **changes}
    if "component" in changes or "valueCodeableConcept" in changes:
        changed.pop("dataAbsentReason", None)
    return entry_of("PUT", resource, changed)


def put_as_the_page_does(resource: Json, changes: dict[str, Any]) -> Json:
    """Return the entry of `write.ts`: the value is hers, no longer the AI's."""
    if resource["resourceType"] == "Observation":
        resource = {k: v for k, v in resource.items() if k != "device"}
        performer = [{"reference": "Practitioner/somebody"}]
        resource |= {"performer": performer}
    labels = [
        label
        for label in resource["meta"].get("security", [])
        if label["code"] != "AIAST"
    ]
    meta = {k: v for k, v in resource["meta"].items() if k != "security"}
    meta |= {"security": labels} if labels else {}
    return put({**resource, "meta": meta}, changes)


def json_patch(resource: Json, changes: dict[str, Any]) -> Json:
    steps = [
        {"op": "add", "path": f"/{name}", "value": value}
        for name, value in changes.items()
    ]
    binary = {
        "resourceType": "Binary",
        "contentType": "application/json-patch+json",
        "data": base64.b64encode(to_bytes(steps)).decode(),
    }
    return entry_of("PATCH", resource, binary)


def fhirpath_patch(resource: Json, changes: dict[str, Any]) -> Json:
    kind, parameters = resource["resourceType"], []
    for name, value in changes.items():
        element = re.sub(r"(CodeableConcept|Quantity)$", "", name)
        held: list[Any] = value if isinstance(value, list) else [value]
        for place in reversed(range(len(as_list(resource.get(name))))):
            indexed = f"[{place}]" if isinstance(resource[name], list) else ""
            parameters.append(step("delete", f"{kind}.{element}{indexed}"))
        for item in held:
            parameters.append(step("add", kind, name=element, value=typed(name, item)))
    body = {"resourceType": "Parameters", "parameter": parameters}
    return entry_of("PATCH", resource, body)


def typed(name: str, value: Any) -> dict[str, Any]:
    if name == "component":
        code, said = value["code"], value["valueCodeableConcept"]
        return {
            "part": [
                {"name": "code", "valueCodeableConcept": code},
                {"name": "value", "valueCodeableConcept": said},
            ]
        }
    if isinstance(value, dict) and "url" in value:
        return {
            "part": [
                {"name": "url", "valueUri": value["url"]},
                {"name": "value", "valueString": value["valueString"]},
            ]
        }
    if isinstance(value, dict):
        return {"valueCodeableConcept": value}
    return {"valueCode" if name == "status" else "valueString": value}


def step(
    verb: str, path: str = "", name: str = "", value: dict[str, Any] | None = None
) -> Json:
    parts = [
        {"name": "type", "valueCode": verb},
        {"name": "path", "valueString": path},
    ]
    if name:
        parts.append({"name": "name", "valueString": name})
    if value is not None:
        parts.append({"name": "value", **value})
    return {"name": "operation", "part": parts}


def entry_of(method: str, resource: Json, body: Json) -> Json:
    version = resource["meta"]["versionId"]
    url = f"{resource['resourceType']}/{resource['id']}"
    request = {"method": method, "url": url, "ifMatch": f'W/"{version}"'}
    return {"resource": body, "request": request}


async def change(
    rig: SmartRig, token: str, report: Report, edit: Edit, make: Make, *, xml: bool
) -> None:
    entries = []
    for suffix, elements in edit.items():
        kind = "Observation" if suffix else "DiagnosticReport"
        path = f"/{kind}/{report.id}{suffix}"
        changes = dict(elements)
        resource = (await rig.with_token(token, "GET", path)).body
        if not suffix and "extension" not in resource:
            changes["extension"] = [SUMMARY]
        entries.append(make(resource, changes))
    if edit is AMEND:
        rig.report = report
        entries.append(because(rig, "会诊后修改"))
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    headers = {"Authorization": f"Bearer {token}"}
    body = to_bytes(bundle)
    if xml:
        headers |= {"Content-Type": "application/fhir+xml"}
        body = to_xml(json.loads(body))
    answer = await rig.ask("POST", "", body, role=None, headers=headers)
    assert answer.status == 200, (make.__name__, answer.raw)


WAYS: dict[str, tuple[Make, bool]] = {
    "review page": (put_as_the_page_does, False),
    "transaction": (put, False),
    "JSON Patch": (json_patch, False),
    "FHIRPath Patch": (fhirpath_patch, False),
    "XML": (put, True),
}


async def token_of_her_program(rig: SmartRig) -> str:
    """Return what a program at the EHR gets when the doctor lets it act for her."""
    client = await rig.register("user/*.cruds", keys="", roles=[], redirect_uris=[BACK])
    app = App(rig, client)
    _, told = await app.agree(scope="user/*.cruds")
    status, body = await app.redeem(told["code"])
    assert status == 200, body
    return str(body["access_token"])


def alike(text: str, report: Report, handles: tuple[str, str]) -> str:
    """Return `text` without the ids in which five studies alike differ."""
    for known in (str(report.id), report.study_instance_uid, *handles):
        text = text.replace(known, "ID")
    return re.sub(r"2\.25\.\d+(?:\.\d+)*", "UID", text)


def content_of(document: Dataset) -> str:
    for element in document.iterall():
        if element.VR in ("DA", "TM", "DT"):
            element.value = ""
    return document.to_json()


async def made_of(rig: SmartRig, report: Report) -> list[str]:
    """Return what the archive and the printer get of a report."""
    async with rig.store.db.transaction() as tx:
        handles = await reports.handles(tx, report.id)
        found = await studies.instances_of(tx, rig.store, report.study_instance_uid)
    told = []
    for instance in found:
        if instance.origin not in (Origin.VERIFIED_SR, Origin.PDF):
            continue
        with studies.open_blob(rig.store, instance) as reader:
            document = dcmread(BytesIO(reader.read()))
        if instance.origin is Origin.PDF:
            pages = PdfReader(BytesIO(document.EncapsulatedDocument)).pages
            text = "\n".join(page.extract_text() for page in pages)
        else:
            text = content_of(document)
        told.append(alike(text, report, handles))
    return told


async def told_of(rig: SmartRig, subscription: str, report: Report) -> list[str]:
    """Return the notifications of one report, as a subscriber gets them."""
    async with rig.store.db.transaction() as tx:
        handles = await reports.handles(tx, report.id)
    path = f"/Subscription/{subscription}/$events?content=full-resource"
    bundle = await rig.read(path, role=Role.EHR)
    focuses = [e for e in bundle["entry"] if e["request"]["method"] != "GET"]
    found = [json.loads(to_bytes(e["resource"])) for e in focuses]
    for body in found:  # of paper that names its study, and this one differs
        for form in body.get("presentedForm", []):
            del form["hash"], form["size"]
    bodies = [json.dumps(body, sort_keys=True) for body in found]
    hers = [b for b in bodies if str(report.id) in b or handles[0] in b]
    return [alike(body, report, handles) for body in hers]


async def test_five_ways_to_change_a_report_give_one_and_the_same(
    store: Store,
) -> None:
    async with running_smart(store, roles=(Role.RADIOLOGIST, Role.EHR)) as rig:
        subscriptions = []
        for topic in ("report-signed", "report-released"):
            asked = make_subscription(
                "http://127.0.0.1:9/hook", criteria=f"{TOPIC}/{topic}"
            )
            made = await rig.ask("POST", "/Subscription", asked, role=Role.EHR)
            subscriptions.append(made.body["id"])
        program = await token_of_her_program(rig)
        results = {}
        for number, (way, (make, xml)) in enumerate(WAYS.items()):
            token = rig.tokens[Role.RADIOLOGIST] if way == "review page" else program
            report = await draft_with_image(rig, f"2.25.77{number}")
            for edit in (SIGN, AMEND):
                await change(rig, token, report, edit, make, xml=xml)
                report = await encode(rig, report)
                await tell_of_papers(rig)
            told = [await told_of(rig, one, report) for one in subscriptions]
            results[way] = [await made_of(rig, report), *told]
    page = results.pop("review page")
    # Two SRs and two papers; each signature told, and each paper; the patient twice.
    assert [len(part) for part in page] == [4, 4, 2]
    assert "复阅后降为 3 类。" in page[0][-1]
    for way, others in results.items():
        assert others == page, way
