"""What is taken and what is refused: structure, codes, references, narrative."""

import contextlib
import json
import random
from typing import Any

import pytest

from fhir.conformance.validation import read_resource
from fhir.encoding.outcome import Refused
from fhir.encoding.wire import to_bytes
from node.domain.access import Role
from node.domain.errors import NodeError
from tests.fhir.content.test_life_cycle import because, told_by
from tests.fhir.rest.test_rest import make_ehr_patient
from tests.fhir.rig import Rig
from tests.fhir.subscriptions.test_subscriptions import make_subscription

DIV = '<div xmlns="http://www.w3.org/1999/xhtml">{}</div>'


def report(**changes: Any) -> bytes:
    resource = {
        "resourceType": "DiagnosticReport",
        "id": "d1",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "24601-7"}]},
        "subject": {"reference": "Patient/p1"},
        "effectiveDateTime": "2026-11-21T10:00:00+08:00",
        "issued": "2026-11-21T10:05:00.000+08:00",
    }
    merged = {**resource, **changes}
    return json.dumps({k: v for k, v in merged.items() if v is not ...}).encode()


def narrative(div: str) -> dict[str, Any]:
    return {"text": {"status": "generated", "div": DIV.format(div)}}


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("DiagnosticReport.foo", {"foo": 1}),
    ("DiagnosticReport.status", {"status": "done"}),
    ("DiagnosticReport.status", {"status": ...}),
    ("DiagnosticReport.status", {"status": " final "}),
    ("DiagnosticReport.code", {"code": ...}),
    ("DiagnosticReport.effective[x]", {"effectivePeriod": {"start": "2026-01-01"}}),
    (
        "DiagnosticReport.effectiveDateTime",
        {"effectiveDateTime": "2026-11-21T24:00:00Z"},
    ),
    ("DiagnosticReport.issued", {"issued": "2026-11-21"}),
    ("DiagnosticReport.subject.reference", {"subject": {"reference": "Medication/1"}}),
    ("DiagnosticReport.subject", {"subject": {"reference": "#nope"}}),
    (
        "DiagnosticReport.subject.type",
        {"subject": {"reference": "Patient/1", "type": "Group"}},
    ),
    ("DiagnosticReport.result[0].reference", {"result": [{"reference": "Patient/1"}]}),
    ("DiagnosticReport.id", {"id": "a b"}),
    ("DiagnosticReport.id", {"id": "a" * 65}),
    ("DiagnosticReport.result", {"result": []}),
    ("DiagnosticReport.conclusion", {"conclusion": ""}),
    ("DiagnosticReport.conclusion", {"conclusion": None}),
    ("DiagnosticReport.conclusion", {"conclusion": 5}),
    ("DiagnosticReport.extension[0]", {"extension": [{"url": "http://x.org"}]}),
    (
        "DiagnosticReport.extension[0]",
        {
            "extension": [
                {
                    "url": "http://x.org",
                    "valueString": "a",
                    "extension": [{"url": "y", "valueString": "b"}],
                }
            ]
        },
    ),
    (
        "DiagnosticReport.modifierExtension",
        {"modifierExtension": [{"url": "http://x.org", "valueBoolean": True}]},
    ),
    (
        "DiagnosticReport.contained[0]",
        {"contained": [{"resourceType": "Foo", "id": "f"}]},
    ),
    ("DiagnosticReport.text.status", {"text": {"status": "z", "div": DIV.format("a")}}),
    *(
        ("DiagnosticReport.text.div", narrative(div))
        for div in (
            "<script>alert(1)</script>",
            "<p onclick='x()'>a</p>",
            "<a href='javascript:x()'>a</a>",
            "<img src='https://example.org/x.png'/>",
            "<p>not closed",
            "<!-- hidden -->",
            "&nbsp;",
            "<svg xmlns='http://www.w3.org/2000/svg'/>",
            "<style>p{}</style>",
            "<p style='background:url(x)'>a</p>",
        )
    ),
    (
        "DiagnosticReport.text.div",
        {
            "text": {
                "status": "generated",
                "div": "<!DOCTYPE a [<!ENTITY x 'y'>]>" + DIV.format("&x;"),
            }
        },
    ),
    ("DiagnosticReport.text.div", {"text": {"status": "generated", "div": "hello"}}),
]

ACCEPTED: list[dict[str, Any]] = [
    {},
    {"effectiveDateTime": "2026-11"},
    {
        "contained": [{"resourceType": "Device", "id": "d"}],
        "performer": [{"reference": "#d"}],
    },
    narrative("<p>良性 <b>bold</b> &lt; 5 mm <a href='#top'>top</a></p>"),
    {"subject": {"identifier": {"value": "1"}}},
    {"subject": {"reference": "https://ehr.example/fhir/Patient/1/_history/2"}},
]


def test_each_fault_is_refused_with_the_element_at_fault() -> None:
    for expression, changes in REFUSED:
        with pytest.raises(Refused) as refused:
            read_resource(report(**changes))
        named = [i.expression for i in refused.value.issues]
        assert expression in named, (changes, refused.value.issues)


def test_what_is_right_is_taken() -> None:
    for changes in ACCEPTED:
        read_resource(report(**changes), "DiagnosticReport")


def test_a_message_does_not_repeat_what_was_sent() -> None:
    with pytest.raises(Refused) as refused:
        read_resource(to_bytes({"resourceType": "Patient", "birthDate": "张三"}))
    assert "张三" not in "".join(i.message for i in refused.value.issues)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nothing",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b'{"resourceType":"Patient","active":NaN}',
        b'{"resourceType":"Patient","id":"a","id":"b"}',
        b'{"resourceType":"Patient","language":"a\\u0000b"}',
        b'{"resourceType":"Patient","language":"\\ud800"}',
        b'{"resourceType":"Patient","multipleBirthInteger":1e999999999999999999999}',
        b'{"a":' * 100_000,
        b'{"resourceType":"Patient","extension":' + b"[" * 90 + b"]" * 90 + b"}",
        b'{"resourceType":["Patient"]}',
        b'{"resourceType":"Nothing"}',
        b'{"id":"x"}',
    ],
)
def test_what_is_no_resource_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(NodeError):
        read_resource(raw)


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """Return `raw` with one to four bytes or pieces changed."""
    body = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(body))
        match chance.randrange(5):
            case 0:
                body[at] = chance.randrange(256)
            case 1:
                del body[at : at + chance.randint(1, 12)]
            case 2:
                body[at:at] = bytes(chance.randrange(256) for _ in range(3))
            case 3:
                piece = chance.choice(
                    [b"null", b"[]", b"{}", b'"x"', b"-1", b"1e9", b"true", b"\\u0000"]
                )
                body[at : at + chance.randint(0, 6)] = piece
            case _:
                other = chance.randrange(len(body))
                body[at : at + 8] = body[other : other + 8]
        if not body:
            return b"{"
    return bytes(body)


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every element below `value`."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    else:
        return []
    return [(value, k) for k, _ in pairs] + [n for _, v in pairs for n in nodes(v)]


def bent(resource: Any, chance: random.Random) -> bytes:
    """Return a resource that is still JSON, with one to three elements changed."""
    resource = json.loads(to_bytes(resource))
    for _ in range(chance.randint(1, 3)):
        places = nodes(resource)
        container, key = chance.choice(places)
        other, other_key = chance.choice(places)
        strange = [None, [], {}, "", "x", 0, -1, 1.5, True, "#x", "Patient/1"]
        strange += ["2026-11-21", "entered-in-error", "final", [{}], {"coding": [{}]}]
        match chance.randrange(4):
            case 0:
                container[key] = chance.choice(strange)
            case 1:
                container.pop(key)
            case 2:
                container[key] = json.loads(json.dumps(other[other_key]))
            case _ if isinstance(container, dict):
                container[chance.choice(["value", "extension", "status"])] = (
                    chance.choice(strange)
                )
        if not resource:
            break
    return json.dumps(resource).encode()


async def test_thousands_of_broken_bodies_never_break_the_server(rig: Rig) -> None:
    chance = random.Random(20261121)
    entry = await rig.edited(rig.report_path, status="preliminary")
    margin = await rig.edited(f"/Observation/{rig.report_id}-l1-margin")
    size = await rig.edited(f"/Observation/{rig.report_id}-l1-size")
    patient = make_ehr_patient(
        extension=[{"url": "http://x.org/", "valueDecimal": 1}],
        telecom=[{"system": "phone", "value": "13800008000"}],
        contained=[{"resourceType": "Organization", "id": "o", "name": "x"}],
        managingOrganization={"reference": "#o"},
    )
    order = {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": entry["resource"]["subject"],
        "identifier": [{"value": "A1"}],
        "authoredOn": "2026-11-21",
    }
    told = told_by("phone", rig)
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [entry, margin, size, told, because(rig)],
    }
    doctor, ehr = Role.RADIOLOGIST, Role.EHR
    asked = make_subscription("http://127.0.0.1:9/hook")
    requests: list[tuple[str, str, Any, Role]] = [
        ("POST", "/Patient", patient, ehr),
        ("POST", "/ServiceRequest", order, ehr),
        ("POST", "/Subscription", asked, ehr),
        ("PUT", rig.report_path, entry["resource"], doctor),
        ("PUT", f"/{margin['request']['url']}", margin["resource"], doctor),
        ("PUT", f"/{size['request']['url']}", size["resource"], doctor),
        ("POST", "/Communication", told["resource"], doctor),
        ("POST", "", bundle, doctor),
    ]
    for _, _, resource, _ in requests:
        seed = to_bytes(resource)
        for number in range(500):
            bad = bent(resource, chance) if number % 2 else mutated(seed, chance)
            with contextlib.suppress(NodeError):
                read_resource(bad)
    statuses = set()
    for _ in range(60):
        for method, path, resource, role in requests:
            version = 1
            if method == "PUT":
                version = (await rig.read(path))["meta"]["versionId"]
            answer = await rig.ask(
                method,
                path,
                bent(resource, chance),
                role=role,
                headers={"If-Match": f'W/"{version}"'},
            )
            assert answer.status < 500, (path, answer.raw)
            statuses.add(answer.status)
    assert {200, 201, 400, 422} <= statuses
