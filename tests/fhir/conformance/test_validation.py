"""What is taken and what is refused: structure, codes, references, narrative."""

import contextlib
import json
import os
import random
from dataclasses import dataclass
from typing import Any

import pytest

from fhir.conformance.validation import problems, read_resource
from fhir.encoding.outcome import Refused
from fhir.encoding.wire import parse, to_bytes
from fhir.encoding.xml import from_xml, to_xml
from node.domain.access import Role
from node.domain.errors import NodeError
from tests.fhir.content.test_life_cycle import because, told_by
from tests.fhir.rest.test_rest import make_ehr_patient
from tests.fhir.rig import Rig
from tests.fhir.subscriptions.rig import make_subscription

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


def attached(**content: Any) -> dict[str, Any]:
    return {"presentedForm": [content]}


def coded(**coding: Any) -> dict[str, Any]:
    return {"code": {"coding": [{"code": "24601-7", **coding}]}}


CODE = {"coding": [{"system": "http://loinc.org", "code": "24601-7"}]}
CONTAINED = {"resourceType": "Organization", "id": "o", "name": "x"}


SPOKEN = {"url": "http://x.org", "valueString": "a"}


def containing(resource: dict[str, Any]) -> dict[str, Any]:
    return {"contained": [resource], "performer": [{"reference": "#o"}]}


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
    ("DiagnosticReport.text.div", narrative("<p> </p>")),
    ("DiagnosticReport.effectiveDateTime", {"effectiveDateTime": "2026-11-21T10:00"}),
    ("DiagnosticReport.issued", {"issued": "2026-11-21T10:05:00"}),
    ("DiagnosticReport.extension[0].url", {"extension": [{"valueString": "a"}]}),
    ("DiagnosticReport.category", {"category": {"text": "x"}}),
    ("DiagnosticReport.code", {"code": [{"text": "x"}]}),
    ("DiagnosticReport.language", {"language": True}),
    ("DiagnosticReport.presentedForm[0].data", attached(data="!!!")),
    ("DiagnosticReport.presentedForm[0].url", attached(url="http://x y")),
    ("DiagnosticReport.presentedForm[0].size", attached(size=-1)),
    ("DiagnosticReport.presentedForm[0]", attached(data="AAAA")),
    ("DiagnosticReport.code.coding[0].system", coded(system="not a uri")),
    ("DiagnosticReport.code.coding[0].code", coded(code="a  b")),
    (
        "DiagnosticReport.effectivePeriod",
        {
            "effectiveDateTime": ...,
            "effectivePeriod": {"start": "2026-11-22", "end": "2026-11-21T23:00:00Z"},
        },
    ),
    (
        "DiagnosticReport.performer[0].reference",
        {"performer": [{"reference": "Device/1"}]},
    ),
    (
        "DiagnosticReport.performer[0].type",
        {"performer": [{"type": "Device", "identifier": {"value": "1"}}]},
    ),
    (
        "DiagnosticReport.identifier[0].use",
        {"identifier": [{"use": "mine", "value": "1"}]},
    ),
    (
        "DiagnosticReport.conclusion.extension[0]",
        {"_conclusion": {"extension": [{"url": "http://x.org"}]}},
    ),
    # What is contained (dom-2 to dom-5)
    ("DiagnosticReport.contained[0]", {"contained": [CONTAINED]}),
    (
        "DiagnosticReport.contained[0].meta.versionId",
        containing({**CONTAINED, "meta": {"versionId": "1"}}),
    ),
    (
        "DiagnosticReport.contained[0].meta.security",
        containing({**CONTAINED, "meta": {"security": [{"code": "R"}]}}),
    ),
    (
        "DiagnosticReport.contained[0].contained",
        containing({**CONTAINED, "contained": [CONTAINED]}),
    ),
    (
        "DiagnosticReport.contained[0].telecom[0]",
        containing({**CONTAINED, "telecom": [{"value": "1"}]}),
    ),
]

# Invariants of other types: (type, elements, what is at fault).
BROKEN: list[tuple[str, dict[str, Any], str]] = [
    (
        "Observation",
        {"valueString": "a", "dataAbsentReason": {"text": "b"}},
        "Observation",
    ),
    (
        "Observation",
        {"valueString": "a", "component": [{"code": CODE}]},
        "Observation",
    ),
    ("Observation", {"referenceRange": [{"age": {}}]}, "Observation.referenceRange[0]"),
    (
        "Observation",
        {"valueQuantity": {"value": 1, "code": "mm"}},
        "Observation.valueQuantity",
    ),
    (
        "Observation",
        {"valueRange": {"low": {"value": 2}, "high": {"value": 1}}},
        "Observation.valueRange",
    ),
    (
        "Observation",
        {"valueRatio": {"numerator": {"value": 2}}},
        "Observation.valueRatio",
    ),
    ("Observation", {"device": {"reference": "Patient/1"}}, "Observation.device"),
    ("Patient", {"contact": [{"gender": "female"}]}, "Patient.contact[0]"),
    ("Patient", {"gender": "F"}, "Patient.gender"),
    ("Patient", {"identifier": [{}]}, "Patient.identifier[0]"),
    ("Patient", {"maritalStatus": {"id": "a"}}, "Patient.maritalStatus"),
    ("Patient", {"telecom": [{"value": "1"}]}, "Patient.telecom[0]"),
    ("Organization", {"active": True}, "Organization"),
    (
        "ServiceRequest",
        {
            "status": "active",
            "intent": "order",
            "subject": {"reference": "Patient/1"},
            "orderDetail": [{"text": "x"}],
        },
        "ServiceRequest",
    ),
    (
        "Task",
        {
            "status": "ready",
            "intent": "order",
            "authoredOn": "2026-11-21",
            "lastModified": "2026-11-20",
        },
        "Task",
    ),
    ("Parameters", {"parameter": [{"name": "a"}]}, "Parameters.parameter[0]"),
    ("Bundle", {"type": "transaction", "total": 1}, "Bundle"),
    ("Bundle", {"type": "transaction", "entry": [{"fullUrl": "urn:a:b"}]}, "Bundle"),
    (
        "Bundle",
        {
            "type": "collection",
            "entry": [{"resource": {"resourceType": "Patient", "gender": "F"}}],
        },
        "Bundle.entry[0].resource.gender",
    ),
]

ACCEPTED: list[dict[str, Any]] = [
    {},
    {"effectiveDateTime": "2026-11"},
    {
        **containing(CONTAINED),
    },
    {"contained": [CONTAINED | {"partOf": {"reference": "#"}}]},
    {"_status": {"id": "s"}, "_conclusion": {"extension": [SPOKEN]}},
    {"performer": [{"reference": "urn:uuid:da2873d0-1a8d-5090-a7de-a75944f34862"}]},
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


def test_each_broken_invariant_is_named_where_it_is_broken() -> None:
    for kind, elements, expression in BROKEN:
        resource = {"resourceType": kind, **elements}
        if kind == "Observation":
            resource |= {"status": "final", "code": CODE}
        found = problems(resource)
        named = [issue.expression or "" for issue in found]
        assert any(n.startswith(expression) for n in named), (elements, found)


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


# How many bodies are sent; `make fuzz` sends more.
CASES = int(os.environ.get("SONONODE_FUZZ", "400"))


@dataclass(frozen=True)
class Seed:
    """A good request that is sent with its body broken."""

    method: str
    path: str
    resource: Any
    role: Role
    content_type: str = "application/fhir+json"


async def seeds_of(rig: Rig) -> list[Seed]:
    """Return one good request for each way in: create, update, patch, transaction."""
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
    patch = [{"op": "replace", "path": "/status", "value": "preliminary"}]
    path_patch = {
        "resourceType": "Parameters",
        "parameter": [
            {
                "name": "operation",
                "part": [
                    {"name": "type", "valueCode": "replace"},
                    {"name": "path", "valueString": "DiagnosticReport.status"},
                    {"name": "value", "valueCode": "preliminary"},
                ],
            }
        ],
    }
    doctor, ehr = Role.RADIOLOGIST, Role.EHR
    asked = make_subscription("http://127.0.0.1:9/hook")
    at, form = rig.report_path, "application/json-patch+json"
    return [
        Seed("POST", "/Patient", patient, ehr),
        Seed("POST", "/ServiceRequest", order, ehr),
        Seed("POST", "/Subscription", asked, ehr),
        Seed("PUT", at, entry["resource"], doctor),
        Seed("PUT", f"/{margin['request']['url']}", margin["resource"], doctor),
        Seed("PUT", f"/{size['request']['url']}", size["resource"], doctor),
        Seed("PATCH", at, patch, doctor, form),
        Seed("PATCH", at, path_patch, doctor),
        Seed("POST", "/Communication", told["resource"], doctor),
        Seed("POST", "", bundle, doctor),
        Seed("POST", "/DiagnosticReport/$validate", entry["resource"], doctor),
    ]


def broken(seed: Seed, chance: random.Random) -> tuple[bytes, str]:
    """Return a body made wrong in one of four ways, and its Content-Type."""
    whole = to_bytes(seed.resource)
    match chance.randrange(4):
        case 0:
            return mutated(whole, chance), seed.content_type
        case 1 if seed.content_type == "application/fhir+json":
            xml = mutated(to_xml(parse(whole)), chance)
            return xml, "application/fhir+xml"
        case _:
            return bent(seed.resource, chance), seed.content_type


async def test_fuzzed_bodies_never_break_the_server(rig: Rig) -> None:
    chance = random.Random(20261121)
    seeds = await seeds_of(rig)
    statuses = set()
    for number in range(CASES):
        seed = seeds[number % len(seeds)]
        body, content_type = broken(seed, chance)
        headers = {"Content-Type": content_type}
        if seed.method != "POST":
            version = (await rig.read(seed.path))["meta"]["versionId"]
            headers["If-Match"] = f'W/"{version}"'
        answer = await rig.ask(
            seed.method, seed.path, body, role=seed.role, headers=headers
        )
        assert answer.status < 500, (number, seed.path, body, answer.raw)
        if answer.status >= 400:
            assert answer.body["resourceType"] == "OperationOutcome"
        statuses.add(answer.status)
    assert {200, 201, 400, 422} <= statuses


async def test_fuzzed_resources_are_judged_without_a_server(rig: Rig) -> None:
    chance = random.Random(20261122)
    for seed in await seeds_of(rig):
        for _ in range(max(CASES, 200)):
            body, content_type = broken(seed, chance)
            with contextlib.suppress(NodeError):
                xml = content_type == "application/fhir+xml"
                read_resource(to_bytes(from_xml(body)) if xml else body)
