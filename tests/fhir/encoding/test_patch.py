"""A patch is an update in other words (FHIR R4 3.1.0.7, RFC 6902, FHIRPath Patch)."""

import base64
import json
import random
from contextlib import suppress
from typing import Any

import pytest

from fhir.encoding.outcome import Refused
from fhir.encoding.patch import read_fhirpath_patch, read_json_patch
from fhir.encoding.wire import Json, parse, to_bytes
from fhir.encoding.xml import to_xml
from node.domain.access import Role
from node.domain.errors import NodeError
from tests.fhir.rest.test_rest import make_ehr_patient
from tests.fhir.rig import ACCESSION, STUDY_UID, Answer, Rig
from tests.fhir.subscriptions.rig import make_subscription

JSON_PATCH = {"Content-Type": "application/json-patch+json"}
RAW = b"""{"resourceType":"Patient","id":"p","active":true,
"extension":[{"url":"urn:a","valueDecimal":0.910}],
"name":[{"use":"official","family":"A","given":["x","y"],"_given":[null,{"id":"g"}]},
{"use":"maiden","text":"B"}],
"telecom":[{"system":"phone","value":"1"}],
"birthDate":"2000-01-01","_birthDate":{"id":"b"},"deceasedBoolean":false,
"contact":[{"name":{"text":"C"}}]}"""


def patched(*operations: Any, of: bytes = RAW) -> Json:
    return read_json_patch(to_bytes(list(operations)))(parse(of))


def op(verb: str, path: str, **more: Any) -> dict[str, Any]:
    return {"op": verb, "path": path, **more}


# --- JSON Patch ---------------------------------------------------------------------


def test_json_patch_does_what_rfc_6902_says() -> None:
    after = patched(
        op("test", "/birthDate", value="2000-01-01"),
        op("replace", "/active", value=False),
        op("add", "/name/0/given/-", value="z"),
        op("add", "/name/0/given/0", value="w"),
        op("add", "/gender", value="female"),
        op("remove", "/name/1"),
        op("copy", "/contact/0/name/family", **{"from": "/name/0/family"}),
        op("move", "/maritalStatus", **{"from": "/contact/0/name"}),
    )
    assert after["active"] is False
    assert after["name"][0]["given"] == ["w", "x", "y", "z"]
    assert len(after["name"]) == 1
    assert after["maritalStatus"] == {"text": "C", "family": "A"}
    assert "contact" not in after  # emptied: FHIR has no empty lists or objects


def test_a_patch_leaves_digits_alone_and_the_original_too() -> None:
    before = parse(RAW)
    after = read_json_patch(b'[{"op":"add","path":"/x","value":1.00}]')(before)
    assert b'"valueDecimal":0.910' in to_bytes(after)
    assert b'"x":1.00' in to_bytes(after)
    assert before == parse(RAW)
    same = op("test", "/extension/0/valueDecimal", value=0.91)
    assert patched(same) == before


def test_pointers_escape_as_rfc_6901_says() -> None:
    raw = b'{"resourceType":"X","a/b":1,"c~d":2,"e~1":3}'
    assert patched(
        op("test", "/a~1b", value=1),
        op("test", "/c~0d", value=2),
        op("test", "/e~01", value=3),
        op("test", "", value=parse(raw)),
        of=raw,
    ) == parse(raw)


MALFORMED: list[Any] = [
    {},
    [],
    ["x"],
    [{"path": "/a"}],
    [{"op": "nonsense", "path": "/a"}],
    [{"op": ["add"], "path": "/a", "value": 1}],
    [{"op": "add", "path": "/a"}],
    [{"op": "add", "value": 1}],
    [{"op": "add", "path": "a", "value": 1}],
    [{"op": "add", "path": "/~2", "value": 1}],
    [{"op": "add", "path": 7, "value": 1}],
    [{"op": "move", "path": "/name/0", "from": "/name"}],
    [{"op": "remove", "path": "/a"}] * 501,
]


@pytest.mark.parametrize("body", MALFORMED)
def test_what_is_no_json_patch_is_a_bad_request(body: Any) -> None:
    with pytest.raises(Refused) as refused:
        read_json_patch(to_bytes(body))
    assert refused.value.status == 400


UNFIT = [
    (op("remove", "/gender"), 422, "Patient.gender"),
    (op("remove", "/_gender"), 422, "Patient.gender"),
    (op("replace", "/name/2", value={}), 422, "Patient.name[2]"),
    (op("add", "/name/3", value={}), 422, "Patient.name[3]"),
    (op("add", "/name/x", value={}), 422, "Patient.name.x"),
    (op("add", "/name/01", value={}), 422, "Patient.name"),
    (op("remove", "/name/-"), 422, "Patient.name"),
    (op("add", "/birthDate/x", value=1), 422, "Patient.birthDate"),
    (op("add", "/photo/0/title", value="x"), 422, "Patient.photo"),
    (op("copy", "/a", **{"from": "/b"}), 422, "Patient.b"),
    (op("test", "/active", value=1), 409, "Patient.active"),
    (op("test", "/active", value="true"), 409, "Patient.active"),
    (op("test", "/name/0/family", value="Z"), 409, "Patient.name[0].family"),
    (op("test", "/name", value=[]), 409, "Patient.name"),
    (op("test", "/gender", value=None), 422, "Patient.gender"),
    (op("replace", "/id", value="q"), 422, "Patient.id"),
    (op("remove", "/id"), 422, "Patient.id"),
    (op("replace", "/resourceType", value="Group"), 422, "Patient.resourceType"),
    (op("replace", "", value=[]), 422, "Patient.resourceType"),
    (op("remove", ""), 422, "Patient.resourceType"),
]


@pytest.mark.parametrize(("operation", "status", "expression"), UNFIT)
def test_what_does_not_fit_says_where(
    operation: dict[str, Any], status: int, expression: str
) -> None:
    with pytest.raises(Refused) as refused:
        patched(operation)
    assert (refused.value.status, refused.value.expression) == (status, expression)


def test_copies_cannot_fill_the_memory() -> None:
    double = op("copy", "/extension/-", **{"from": "/extension"})
    with pytest.raises(Refused, match="copies too much"):
        patched(*[double] * 40)
    nest = {"op": "move", "from": "/name", "path": "/contact/0/name"}
    back = {"op": "move", "from": "/contact", "path": "/name"}
    again = op("add", "/contact", value=[{}])
    with pytest.raises(NodeError, match="too deeply"):
        patched(*[step for _ in range(40) for step in (nest, back, again)])


def test_thousands_of_made_up_patches_fail_by_name_or_fit() -> None:
    chance = random.Random(6902)
    paths = [
        "",
        "/id",
        "/name",
        "/name/0",
        "/name/0/given/-",
        "/contact/0/name",
        "/x/y",
    ]
    values = [None, True, 1, "x", [], {}, [{}], [None], {"a": 1}]
    for _ in range(3000):
        steps = [
            op(
                chance.choice(["add", "remove", "replace", "move", "copy", "test"]),
                chance.choice(paths),
                **{"from": chance.choice(paths), "value": chance.choice(values)},
            )
            for _ in range(chance.randint(1, 8))
        ]
        with suppress(NodeError):
            assert patched(*steps)["id"] == "p"


# --- FHIRPath Patch ------------------------------------------------------------------


def fhirpath(*operations: dict[str, Any]) -> Json:
    patch = {
        "resourceType": "Parameters",
        "parameter": [
            {
                "name": "operation",
                "part": [
                    {"name": name, **_value(value)} for name, value in one.items()
                ],
            }
            for one in operations
        ],
    }
    return read_fhirpath_patch(patch)(parse(RAW))


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, dict | list):
        return value if isinstance(value, dict) else {"part": value}
    if isinstance(value, int):
        return {"valueInteger": value}
    return {"valueString": value}


def change(verb: str, path: str, **more: Any) -> dict[str, Any]:
    return {"type": verb, "path": path, **more}


def test_fhirpath_patch_knows_its_five_verbs() -> None:
    after = fhirpath(
        change("replace", "Patient.active", value={"valueBoolean": False}),
        change("add", "Patient", name="gender", value={"valueCode": "female"}),
        change("add", "Patient.name[1]", name="given", value="B"),
        change("insert", "Patient.name[0].given", index=1, value="m"),
        change("move", "Patient.name", source=1, destination=0),
        change("delete", "Patient.telecom.where(system = 'phone').value"),
        change("delete", "Patient.telecom.where(system='email')"),
    )
    assert after["active"] is False
    assert after["gender"] == "female"
    assert after["name"][0] == {"use": "maiden", "text": "B", "given": ["B"]}
    # What stands beside a value moves with it.
    assert after["name"][1]["given"] == ["x", "m", "y"]
    assert after["name"][1]["_given"] == [None, None, {"id": "g"}]
    assert after["telecom"] == [{"system": "phone"}]


def test_a_choice_is_named_without_its_type() -> None:
    after = fhirpath(
        change("replace", "Patient.deceased", value={"valueDateTime": "2020"})
    )
    assert after["deceasedDateTime"] == "2020"
    assert "deceasedBoolean" not in after
    assert "deceasedBoolean" not in fhirpath(change("delete", "Patient.deceased"))
    whole = fhirpath(
        change("delete", "Patient.deceased"),
        change("add", "Patient", name="deceased", value={"valueBoolean": True}),
    )
    assert whole["deceasedBoolean"] is True


def test_ids_and_extensions_of_a_value_go_and_come_with_it() -> None:
    assert "_birthDate" not in fhirpath(change("delete", "Patient.birthDate"))
    masked = {"extension": [{"url": "urn:m", "valueCode": "masked"}]}
    after = fhirpath(
        change("replace", "Patient.birthDate", value={"_valueDate": masked})
    )
    assert "birthDate" not in after
    assert after["_birthDate"] == masked


def test_what_has_no_type_of_its_own_is_sent_in_parts() -> None:
    parts = [
        {"name": "name", "valueHumanName": {"text": "D"}},
        {"name": "telecom", "valueContactPoint": {"value": "1"}},
        {"name": "telecom", "valueContactPoint": {"value": "2"}},
        {"name": "gender", "valueCode": "male"},
    ]
    after = fhirpath(change("add", "Patient", name="contact", value=parts))
    assert after["contact"][1] == {
        "name": {"text": "D"},
        "telecom": [{"value": "1"}, {"value": "2"}],
        "gender": "male",
    }


NOT_UNDERSTOOD = [
    change("delete", "Patient.name.first()"),
    change("delete", "Patient.name.where(use='a' and text='b')"),
    change("delete", "Patient.name.where(use!='a')"),
    change("delete", "Patient.name.given | Patient.name.family"),
    change("delete", "Patient.descendants()"),
    change("delete", "Patient.value.ofType(Quantity)"),
    change("delete", "Patient.name[x]"),
    change("delete", "Patient.name[-1]"),
    change("delete", "Patient..name"),
    change("delete", "name"),
    change("delete", "Observation.status"),
    change("delete", "Patient.nonsense"),
    change("delete", "Patient.birthDate.id"),
    change("delete", "Patient.name"),
    change("delete", "Patient"),
    change("replace", "Patient", value="x"),
    change("replace", "Patient.gender", value={"valueCode": "male"}),
    change("replace", "Patient.name", value={"valueHumanName": {"text": "x"}}),
    change("replace", "Patient.active", value="true"),
    change("replace", "Patient.name[0]", value="x"),
    change("replace", "Patient.id", value={"valueId": "q"}),
    change("replace", "Patient.deceased", value={"valueQuantity": {"value": 1}}),
    change("add", "Patient", name="active", value={"valueBoolean": True}),
    change("add", "Patient", name="deceased", value={"valueDateTime": "2020"}),
    change("add", "Patient.name", name="text", value="x"),
    change("add", "Patient", name="contact", value=[{"name": "x", "valueCode": "y"}]),
    change("add", "Patient", name="contact", value={}),
    change("insert", "Patient.name[0].given", index=3, value="x"),
    change("insert", "Patient.birthDate", index=0, value={"valueDate": "2000"}),
    change("insert", "Patient.name[0]", index=0, value="x"),
    change("move", "Patient.name", source=0, destination=2),
    change("move", "Patient.name", source=-1, destination=0),
]


@pytest.mark.parametrize("operation", NOT_UNDERSTOOD, ids=str)
def test_what_is_not_understood_is_refused(operation: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        fhirpath(operation)
    assert refused.value.status == 422
    assert refused.value.expression in ("Parameters.parameter[0]", "Patient.id")


FAULTY = [
    {},
    {"type": "nonsense", "path": "Patient.name"},
    {"type": "delete"},
    {"type": "delete", "path": "Patient.name", "value": "x"},
    {"type": "add", "path": "Patient", "value": "x"},
    {"type": "insert", "path": "Patient.name", "index": "0", "value": "x"},
    {"type": "delete", "path": f"Patient{'.name' * 300}"},
]


@pytest.mark.parametrize("operation", FAULTY, ids=lambda one: str(one)[:40])
def test_what_is_no_fhirpath_patch_is_a_bad_request(operation: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        fhirpath(operation)
    assert refused.value.status == 400


# --- on a live server -----------------------------------------------------------------


async def send(
    rig: Rig,
    path: str,
    body: Any,
    version: int | None = None,
    role: Role = Role.RADIOLOGIST,
    **headers: str,
) -> Answer:
    told = dict(JSON_PATCH) if isinstance(body, list) else {}
    told |= {"If-Match": f'W/"{version}"'} if version else {}
    return await rig.ask("PATCH", path, body, role=role, headers=told | headers)


def signing(verb: str = "replace") -> Json:
    part = [
        {"name": "type", "valueCode": verb},
        {"name": "path", "valueString": "DiagnosticReport.status"},
        {"name": "value", "valueCode": "final"},
    ]
    operation = {"name": "operation", "part": part}
    return {"resourceType": "Parameters", "parameter": [operation]}


async def test_a_patch_signs_as_a_put_does_and_only_of_the_version_seen(
    rig: Rig,
) -> None:
    path = rig.report_path
    final = [op("replace", "/status", value="final")]
    assert (await send(rig, path, final)).status == 428
    stale = await send(rig, path, final, 7)
    assert (stale.status, stale.headers["ETag"]) == (412, 'W/"1"')
    edited = await send(rig, path, [op("replace", "/status", value="preliminary")], 1)
    assert (edited.status, edited.headers["ETag"]) == (200, 'W/"2"')
    signed = await send(rig, path, signing(), 2)
    assert (signed.status, signed.body["status"]) == (200, "final")
    assert signed.body["resultsInterpreter"]
    found = await rig.read(f"/Provenance?target=DiagnosticReport/{rig.report_id}")
    agents = [a for e in found["entry"] for a in e["resource"]["agent"]]
    assert "verifier" in {a["type"]["coding"][0]["code"] for a in agents}
    # The life cycle and the reason for a change hold for a patch, too.
    back = await send(rig, path, [op("replace", "/status", value="partial")], 3)
    assert back.status == 422
    silent = await send(rig, path, [op("replace", "/status", value="amended")], 3)
    assert silent.status == 422
    why = json.dumps(
        {"resourceType": "Provenance", "reason": [{"text": "typing error"}]}
    )
    amended = await send(
        rig,
        path,
        [
            op("replace", "/status", value="amended"),
            op("add", "/conclusion", value="x"),
        ],
        3,
        **{"X-Provenance": why},
    )
    assert amended.status == 200, amended.raw
    assert amended.body["conclusion"] == "x"


async def test_a_patch_makes_nothing_that_a_put_could_not(rig: Rig) -> None:
    refused = [
        ([op("replace", "/code", value={"text": "x"})], 422, "DiagnosticReport.code"),
        ([op("replace", "/status", value="done")], 422, "DiagnosticReport.status"),
        ([op("add", "/nonsense", value="x")], 422, None),
        ([op("remove", "/status")], 422, "DiagnosticReport.status"),
        ([op("replace", "/subject/reference", value="Patient/x")], 422, None),
        ([op("test", "/status", value="final")], 409, "DiagnosticReport.status"),
        ([op("remove", "/nothing")], 422, "DiagnosticReport.nothing"),
        ({"resourceType": "Patient"}, 400, "resourceType"),
        (b"[", 400, None),
    ]
    for body, status, expression in refused:
        headers = JSON_PATCH if isinstance(body, bytes) else {}
        answer = await send(rig, rig.report_path, body, 1, **headers)
        assert answer.status == status, (body, answer.raw)
        assert answer.body["resourceType"] == "OperationOutcome"
        if expression is not None:
            assert expression in answer.expressions, (body, answer.raw)
    assert (await rig.read(rig.report_path))["meta"]["versionId"] == "1"


async def test_a_patch_does_not_tell_what_is_masked(rig: Rig) -> None:
    shown = f"…{ACCESSION[-4:]}"
    for value, status in ((ACCESSION, 409), (shown, 200)):
        steps = [
            op("test", "/identifier/0/value", value=value),
            op("replace", "/status", value="preliminary"),
        ]
        answer = await send(rig, rig.report_path, steps, 1)
        assert answer.status == status, answer.raw
    whole = await rig.read(rig.report_path, role=Role.EHR)
    assert whole["identifier"][0]["value"] == ACCESSION
    patient = whole["subject"]["reference"]
    guess = [op("test", "/identifier/0/value", value="MRN-0042")]
    assert (await send(rig, f"/{patient}", guess, 1)).status == 403


async def test_observations_patients_and_orders_are_patched(rig: Rig) -> None:
    category = f"/Observation/{rig.report_id}-category"
    before = await rig.read(category)
    note = {"name": "value", "valueAnnotation": {"text": "looked twice"}}
    add = {
        "resourceType": "Parameters",
        "parameter": [
            {
                "name": "operation",
                "part": [
                    {"name": "type", "valueCode": "add"},
                    {"name": "path", "valueString": "Observation"},
                    {"name": "name", "valueString": "note"},
                    note,
                ],
            }
        ],
    }
    headers = {"Content-Type": "application/fhir+xml", "Accept": "application/fhir+xml"}
    answer = await send(rig, category, to_xml(add), 1, **headers)
    assert answer.status == 200, answer.raw
    assert answer.body["note"] == [{"text": "looked twice"}]
    assert answer.body["valueCodeableConcept"] == before["valueCodeableConcept"]
    patient = await rig.ask("POST", "/Patient", make_ehr_patient(), role=Role.EHR)
    path = f"/Patient/{patient.body['id']}"
    steps = [
        op("replace", "/birthDate", value="1981-02-03"),
        op("add", "/extension", value=[{"url": "urn:x", "valueString": "y"}]),
    ]
    minimal = await send(rig, path, steps, 1, Role.EHR, Prefer="return=minimal")
    assert (minimal.status, minimal.raw) == (200, b"")
    assert (await rig.read(path, role=Role.EHR))["birthDate"] == "1981-02-03"
    # She keeps her record number; a patch is no way round that.
    other = [op("replace", "/identifier/0/value", value="MRN-1")]
    assert (await send(rig, path, other, 2, Role.EHR)).status == 422
    order = {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": {"reference": path.strip("/")},
    }
    placed = await rig.ask("POST", "/ServiceRequest", order, role=Role.EHR)
    path = f"/ServiceRequest/{placed.body['id']}"
    revoke = [op("replace", "/status", value="revoked")]
    revoked = await send(rig, path, revoke, 1, Role.EHR)
    assert (revoked.status, revoked.body["status"]) == (200, "revoked")


async def test_failed_work_is_tried_again_by_a_patch(rig: Rig) -> None:
    store = rig.store
    async with store.db.transaction() as tx:
        await store.jobs.defer(tx, "assess_study", {"study_instance_uid": STUDY_UID})
    job = await store.jobs.claim(["assess_study"], "w")
    assert job is not None
    await store.jobs.failed(job, "no usable frame", retry=False)
    task = (await rig.read("/Task"))["entry"][0]["resource"]
    path = f"/Task/{task['id']}"
    done = await send(rig, path, [op("replace", "/status", value="completed")])
    assert done.status == 422
    again = [op("replace", "/status", value="requested")]
    answer = await send(rig, path, again, Prefer="return=OperationOutcome")
    assert answer.status == 200, answer.raw
    assert answer.body["issue"][0]["severity"] == "information"
    assert "entry" not in await rig.read("/Task?status=failed")


async def test_a_subscription_is_patched_under_its_own_rules(rig: Rig) -> None:
    asked = make_subscription("http://127.0.0.1:1/")
    made = await rig.ask("POST", "/Subscription", asked, role=Role.EHR)
    assert made.status == 201, made.raw
    path = f"/Subscription/{made.body['id']}"
    elsewhere = [op("replace", "/channel/endpoint", value="https://other.example/")]
    assert (await send(rig, path, elsewhere, 1, Role.EHR)).status == 422
    off = await send(rig, path, [op("replace", "/status", value="off")], 1, Role.EHR)
    assert (off.status, off.body["status"]) == (200, "off"), off.raw


async def test_languages_that_we_do_not_speak_are_named(rig: Rig) -> None:
    for told in ("application/xml-patch+xml", "application/merge-patch+json"):
        answer = await send(rig, rig.report_path, b"x", 1, **{"Content-Type": told})
        assert answer.status == 415
        assert "application/json-patch+json" in answer.headers["Accept-Patch"]


async def test_a_transaction_may_hold_patches(rig: Rig) -> None:
    steps = [
        op("add", "/conclusion", value="seen"),
        op("replace", "/status", value="final"),
    ]
    binary = {
        "resourceType": "Binary",
        "contentType": "application/json-patch+json",
        "data": base64.b64encode(to_bytes(steps)).decode(),
    }
    path = rig.report_path.strip("/")
    entry: dict[str, Any] = {
        "resource": binary,
        "request": {"method": "PATCH", "url": path, "ifMatch": 'W/"1"'},
    }
    patient = (await rig.read(rig.report_path))["subject"]["reference"]
    faults = [
        (entry | {"request": {"method": "PATCH", "url": path}}, 428),
        (entry | {"request": entry["request"] | {"ifMatch": 'W/"3"'}}, 412),
        (entry | {"request": entry["request"] | {"url": patient}}, 403),
        (entry | {"resource": binary | {"contentType": "text/plain"}}, 400),
        (entry | {"resource": binary | {"data": "W10="}}, 400),
    ]
    for faulty, status in faults:
        answer = await rig.transact(faulty)
        assert answer.status == status, (faulty, answer.raw)
    category = await rig.edited(f"/Observation/{rig.report_id}-category")
    both = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [entry, category],
    }
    headers = {"Prefer": "return=OperationOutcome"}
    answer = await rig.ask("POST", "", both, headers=headers)
    assert answer.status == 200, answer.raw
    told = [e["response"]["outcome"]["resourceType"] for e in answer.body["entry"]]
    assert told == ["OperationOutcome"] * 2
    report = await rig.read(rig.report_path)
    assert (report["status"], report["conclusion"]) == ("final", "seen")
