"""XML says what JSON says, and nothing gets lost between them (FHIR R4 2.6.2)."""

import inspect
import random
from contextlib import suppress
from importlib import import_module
from typing import Any

import fhirkit
import pytest
from fhirclient.models import fhirelementfactory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhir.encoding import elements
from fhir.encoding.elements import RESOURCE, XHTML, Element, elements_of, is_resource
from fhir.encoding.outcome import Refused
from fhir.encoding.wire import MAX_DEPTH, Json, Number, parse, to_bytes
from fhir.encoding.xml import NAMESPACE, from_xml, to_xml
from fhir.security.access import PERMITS
from node.domain.access import Role
from node.domain.errors import NodeError
from tests.fhir.rig import Rig

KINDS = [*PERMITS, "Bundle", "OperationOutcome", "CapabilityStatement", "Parameters"]
XHTML_NS = "http://www.w3.org/1999/xhtml"
DIV = f"<div xmlns=\"{XHTML_NS}\">a &amp; b<br/>\r\n<p title='x'>&#160;é</p></div>"
PATIENT = {
    "resourceType": "Patient",
    "id": "p",
    "meta": {"versionId": "1", "profile": ["urn:a"], "_profile": [{"id": "k"}]},
    "text": {"status": "generated", "div": DIV},
    "contained": [{"resourceType": "Organization", "id": "o", "name": "O"}],
    "extension": [
        {"url": "urn:b", "valueDecimal": Number("0.910")},
        {"url": "urn:c", "id": "c", "valueDecimal": Number("1E+2")},
        {"url": "urn:d", "extension": [{"url": "e", "valueBoolean": False}]},
        {"url": "urn:f", "valueString": "a\n\tb <&\"'> 王"},
    ],
    "name": [
        {
            "family": "王",
            "given": ["a", None, "b"],
            "_given": [None, {"id": "g", "extension": [{"url": "urn:g"}]}, None],
        }
    ],
    "_birthDate": {"extension": [{"url": "urn:h", "valueCode": "masked"}]},
    "multipleBirthInteger": 2,
    "contact": [{"name": {"text": "x"}}, {"name": {"text": "y"}}],
}


def document(inner: str, kind: str = "Patient") -> bytes:
    return f'<{kind} xmlns="{NAMESPACE}">{inner}</{kind}>'.encode()


def test_every_part_of_a_resource_has_its_place_in_xml() -> None:
    written = to_xml(PATIENT)
    assert from_xml(written) == PATIENT
    assert to_bytes(from_xml(written)) == to_bytes(PATIENT)
    for part in (
        b'<valueDecimal value="0.910"/>',
        b'<extension url="urn:c" id="c"><valueDecimal value="1E+2"/></extension>',
        b'<profile id="k" value="urn:a"/>',
        b'<given value="a"/><given id="g">',
        b"<contained><Organization><id",
        b'<valueString value="a&#10;&#9;b &lt;&amp;&quot;\'&gt; \xe7\x8e\x8b"/>',
        DIV.encode(),
    ):
        assert part in written
    assert from_xml(to_xml(PATIENT, pretty=True)) == PATIENT


# --- the table -------------------------------------------------------------------


def test_the_table_has_every_type_and_names_none_that_is_not_there() -> None:
    assert all(is_resource(kind) for kind in fhirkit.RESOURCE_TYPES)
    assert not is_resource("Patient.contact")
    for name in elements._lines():
        for element in elements_of(name).values():
            assert element.primitive or elements.has_type(element.type), element


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_has_the_order_of_another_library(kind: str) -> None:
    """Between R4 and R4B the types that we take differ in Extension alone."""
    module = import_module(f"fhir.resources.R4B.{kind.lower()}")
    for name, model in inspect.getmembers(module, inspect.isclass):
        if model.__module__ != module.__name__:
            continue
        ours = kind if name == kind else _backbone(kind, name)
        known = [n for n in elements_of(ours) if n != "resourceType"]
        theirs = [n for n in model.elements_sequence() if _in_r4(n)]
        assert _by_choice(ours, theirs) == _by_choice(ours, known)
        assert {n for n in known if _in_r4(n)} == set(theirs)


def _in_r4(name: str) -> bool:
    return not name.endswith(("CodeableReference", "RatioRange", "valueMeta"))


def _backbone(kind: str, name: str) -> str:
    found = [k for k in elements._lines() if k.startswith(f"{kind}.")]
    return next(k for k in found if k.replace(".", "").lower() == name.lower())


def _by_choice(type_name: str, names: list[str]) -> list[str]:
    known = elements_of(type_name)
    return list(dict.fromkeys(known[n].choice or n for n in names))


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_repeats_what_r4_repeats(kind: str) -> None:
    model = fhirelementfactory.FHIRElementFactory.instantiate(kind, None)
    for told in model.elementProperties():
        element = elements_of(kind)[told[1]]
        assert element.repeats == told[3], told
        if told[2] in (bool, int, float):
            assert (
                element.type
                in {
                    bool: {"boolean"},
                    int: {"integer", "positiveInt", "unsignedInt"},
                    float: {"decimal"},
                }[told[2]]
            ), told


# --- made-up resources -----------------------------------------------------------

TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff")
    | st.sampled_from("\t\n\r<>&\"'"),
    min_size=1,
    max_size=12,
)
DECIMAL = st.from_regex(
    r"-?(0|[1-9][0-9]{0,12})(\.[0-9]{1,9})?(e[+-]?[0-9])?", fullmatch=True
)
PRIMITIVES: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "decimal": DECIMAL.map(Number),
    "integer": st.integers(-(2**31), 2**31),
    "positiveInt": st.integers(1, 2**31),
    "unsignedInt": st.integers(0, 2**31),
    XHTML: st.sampled_from([DIV, f'<div xmlns="{XHTML_NS}"/>']),
}


@st.composite
def values(draw: st.DrawFn, type_name: str, depth: int = 0) -> Json:
    """Draw an instance of a type by its table: any of its elements, nested a little."""
    made: Json = {}
    chosen: set[int] = set()
    known = [
        e
        for e in elements_of(type_name).values()
        if e.name != "resourceType" and (e.primitive or depth < 2)
    ]
    count = draw(st.integers(1, 3 if depth else 5))
    for element in draw(st.lists(st.sampled_from(known), min_size=1, max_size=count)):
        if element.place in chosen:
            continue
        chosen.add(element.place)
        times = draw(st.integers(1, 3)) if element.repeats else 1
        parts = [draw(_part(element, depth)) for _ in range(times)]
        elements.set_parts(made, element, parts)
    return made


@st.composite
def _part(draw: st.DrawFn, element: Element, depth: int) -> elements.Part:
    if element.type == RESOURCE:
        kind = draw(st.sampled_from(["Patient", "Basic", "Observation"]))
        return {"resourceType": kind, **draw(values(kind, depth + 1))}, None
    if not element.primitive:
        return draw(values(element.type, depth + 1)), None
    value = draw(PRIMITIVES.get(element.type, TEXT))
    if element.attribute or element.type == XHTML or depth > 2:
        return value, None
    extra = draw(st.none() | values("Element", depth + 1))
    return (None if extra and draw(st.booleans()) else value), extra


@st.composite
def resources(draw: st.DrawFn) -> Json:
    """Draw a resource of a kind that comes or goes here."""
    kind = draw(st.sampled_from(KINDS))
    return parse(to_bytes({"resourceType": kind, **draw(values(kind))}))


@settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(resources())
def test_nothing_is_lost_on_the_way_to_xml_and_back(resource: Json) -> None:
    again = from_xml(to_xml(resource))
    assert again == resource
    assert _digits(again) == _digits(resource)
    assert from_xml(to_xml(resource, pretty=True)) == resource


def _digits(value: Any) -> list[str]:
    """Return the numbers of a resource as they are written, in any order."""
    if isinstance(value, dict):
        return sorted(d for item in value.values() for d in _digits(item))
    if isinstance(value, list):
        return [d for item in value for d in _digits(item)]
    if isinstance(value, int | Number) and not isinstance(value, bool):
        return [to_bytes(value).decode()]
    return []


# --- other people's XML --------------------------------------------------------------


async def test_another_library_reads_and_writes_the_same_xml(rig: Rig) -> None:
    etree = pytest.importorskip("lxml.etree")
    resources = import_module("fhir.resources.R4B")
    paths = ["/Patient", "/DiagnosticReport", "/Observation", "/ImagingStudy"]
    for path in [*paths, "/Device", "/Provenance"]:
        bundle = await rig.read(path, role=Role.EHR)
        for entry in bundle["entry"]:
            known = entry["resource"]
            ours = to_xml(known)
            etree.fromstring(ours)
            model = resources.get_fhir_model_class(known["resourceType"])
            theirs = model.model_validate_json(to_bytes(known)).model_dump_xml()
            # It writes instants and decimals its own way; by value they are equal.
            assert _plain(from_xml(theirs)) == _plain(known)
            if known["resourceType"] != "Provenance":
                read = model.model_validate_xml(ours).model_dump_json()
                assert _plain(parse(read.encode())) == _plain(known)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str) and value[10:11] == "T":
        return value.replace("Z", "+00:00").replace(".000", "")
    return value


# --- what is no FHIR XML ----------------------------------------------------------

NO_FHIR = {
    "nothing at all": b"",
    "json": b"{}",
    "a cut document": b'<Patient xmlns="http://hl7.org/fhir">',
    "no namespace": b"<Patient/>",
    "another namespace": b'<Patient xmlns="urn:x"/>',
    "no resource": document("", "Nonsense"),
    "a data type": document("", "HumanName"),
    "an unknown element": document('<nonsense value="1"/>'),
    "an element of another namespace": document('<id xmlns="urn:x" value="1"/>'),
    "the wrong order": document('<birthDate value="2000"/><active value="true"/>'),
    "an element twice": document('<id value="1"/><id value="2"/>'),
    "two of one choice": document(
        '<deceasedBoolean value="true"/><deceasedDateTime value="2000"/>'
    ),
    "an empty element": document("<birthDate/>"),
    "an empty group": document("<name/>"),
    "text": document("Zhang"),
    "text in a value": document("<birthDate>2000</birthDate>"),
    "an unknown attribute": document('<birthDate value="2000" lang="x"/>'),
    "a value on a group": document('<name value="x"/>'),
    "an attribute on a resource": b'<Patient xmlns="http://hl7.org/fhir" id="1"/>',
    "no boolean": document('<active value="True"/>'),
    "no integer": document('<multipleBirthInteger value="1.0"/>'),
    "no decimal": document('<extension url="x"><valueDecimal value=".5"/></extension>'),
    "a decimal beyond all bounds": document(
        '<extension url="x"><valueDecimal value="1e99999999999999999999"/></extension>'
    ),
    "two resources in one": document(
        '<contained><Basic><id value="a"/></Basic><Basic/></contained>'
    ),
    "nothing contained": document("<contained/>"),
    "a narrative of no XHTML": document("<text><div>x</div></text>"),
    "a comment": document("<!-- x -->"),
    "a processing instruction": document("<?php x?>"),
    "a document type": b"<!DOCTYPE Patient>" + document(""),
    "an entity": b'<!DOCTYPE P [<!ENTITY x "y">]>' + document('<id value="&x;"/>'),
    "an entity from a file": b'<!DOCTYPE P [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    + document('<id value="&x;"/>'),
    "an entity that HTML has": document('<id value="&nbsp;"/>'),
    "a control character": document('<id value="&#1;"/>'),
    "Latin-1": b'<?xml version="1.0" encoding="ISO-8859-1"?>' + document(""),
    "UTF-16": document("").decode().encode("utf-16"),
    "broken UTF-8": document('<id value="\u00e9"/>').replace(b"\xc3", b""),
}


@pytest.mark.parametrize("fault", NO_FHIR)
def test_what_is_no_fhir_xml_is_refused(fault: str) -> None:
    with pytest.raises(Refused) as refused:
        from_xml(NO_FHIR[fault])
    assert refused.value.status == 400


def test_a_billion_laughs_are_not_heard() -> None:
    layers = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
    bomb = f'<!DOCTYPE P [<!ENTITY l0 "ha">{layers}]>'.encode()
    with pytest.raises(Refused, match="document type"):
        from_xml(bomb + document('<id value="&l9;"/>'))


def test_thousands_of_broken_documents_never_break_the_reader() -> None:
    chance = random.Random(2)
    whole = to_xml(PATIENT)
    bits = [
        b"<",
        b"/>",
        b'"',
        b"&",
        b"\x00",
        b"\xff",
        b"<br/>",
        b"<![CDATA[x]]>",
        b"</",
    ]
    read = 0
    for _ in range(4000):
        broken = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(broken))
            if chance.random() < 0.5:
                broken[at] = chance.choice(b"aZ09 .-")
                continue
            other = chance.randrange(len(broken))
            piece = broken[other : other + chance.randint(0, 40)]
            broken[at : at + chance.randint(0, 20)] = chance.choice([*bits, piece])
        with suppress(NodeError):
            resource = from_xml(bytes(broken))
            assert from_xml(to_xml(resource)) == resource
            read += 1
    assert read > 20


def test_depth_has_a_bound_in_groups_and_in_narrative() -> None:
    deep = '<extension url="x">' * 70 + "</extension>" * 70
    with pytest.raises(Refused, match="too deeply"):
        from_xml(document(deep))
    div = f'<text><div xmlns="{XHTML_NS}">{"<p>" * 70}{"</p>" * 70}</div></text>'
    with pytest.raises(Refused, match="too deeply"):
        from_xml(document(div))
    # What JSON would refuse for its depth XML does not bring in by the back door.
    nested = '<extension url="x">' * 40 + "</extension>" * 40
    with pytest.raises(NodeError, match="too deeply"):
        from_xml(document(nested))
    assert MAX_DEPTH == 64


def test_a_refusal_says_where_and_quotes_no_value() -> None:
    with pytest.raises(Refused) as refused:
        from_xml(document('<name><text value="x"/></name>\n<active value="王芳"/>'))
    assert "comes too late" in refused.value.message
    with pytest.raises(Refused) as refused:
        from_xml(document('<active value="王芳"/>'))
    assert refused.value.expression == "Patient.active"
    assert "王" not in refused.value.message
    with pytest.raises(Refused) as refused:
        from_xml(document('<name><given value="a"/><given value="b" use="x"/></name>'))
    assert refused.value.expression == "Patient.name[0].given[1]"


# --- narrative, prefixes ------------------------------------------------------------


def test_prefixes_are_only_another_way_to_write() -> None:
    raw = (
        f'<?xml version="1.0"?>\n<f:Patient xmlns:f="{NAMESPACE}" xmlns:h="{XHTML_NS}"'
        ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
        ' xsi:schemaLocation="http://hl7.org/fhir patient.xsd">'
        '<f:text><f:status value="empty"/><h:div>a<h:br/></h:div></f:text>'
        '<f:active value="true"/></f:Patient>'
    )
    resource = from_xml(raw.encode())
    assert resource["active"] is True
    div = resource["text"]["div"]
    assert div == f'<h:div xmlns:h="{XHTML_NS}">a<h:br/></h:div>'
    assert from_xml(to_xml(resource)) == resource


@pytest.mark.parametrize(
    "div",
    [
        f'<div xmlns="{XHTML_NS}"/>',
        f'<div xmlns="{XHTML_NS}" ></div >',
        f'<div xmlns="{XHTML_NS}"><br/></div>',
        f'<div xmlns="{XHTML_NS}">a &gt; b</div>',
    ],
)
def test_a_narrative_keeps_its_very_text(div: str) -> None:
    inner = f'<text><status value="generated"/>{div}</text><active value="true"/>'
    resource = from_xml(b"\xef\xbb\xbf" + document(inner))
    assert resource["text"]["div"] == div
    assert div.encode() in to_xml(resource)


def test_a_narrative_cannot_break_out_of_its_document() -> None:
    broken = f'<div xmlns="{XHTML_NS}"></div></text><id value="x"/><text>'
    resource = {"resourceType": "Patient", "text": {"div": broken}}
    with pytest.raises(NodeError, match="not XHTML"):
        to_xml(resource)


def test_json_does_not_need_the_table() -> None:
    elements._lines.cache_clear()
    elements_of.cache_clear()
    to_bytes(parse(b'{"resourceType":"Patient"}'))
    assert elements_of.cache_info().currsize == 0
