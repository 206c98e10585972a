"""Our profiles and codes: served, and true of what the node writes (FHIR R4 5.1)."""

from typing import Any

import fhirkit
import pytest

from fhir.conformance import terminology
from fhir.conformance.definitions import definitions
from fhir.conformance.profiles import BY_URL, EXTENSIONS, departures
from fhir.conformance.terminology import CODE_SYSTEMS, VALUE_SETS, field_set
from fhir.conformance.validation import problems
from fhir.content import concepts
from fhir.content.mapping import field_value
from fhir.encoding.wire import Json, to_bytes
from fhir.security.access import DEFINED
from node.domain import lexicon
from node.domain.access import Role
from node.domain.completion import EvidenceKind
from node.domain.disclosure import ReleaseState
from node.domain.lexicon import FieldKey
from tests.fhir.rig import Rig

VERSION = "0.1.0"
EXTERNAL = "http://hl7.org/fhir/"


def found(bundle: Json) -> list[Json]:
    return [entry["resource"] for entry in bundle.get("entry", [])]


def inside(value: Any, path: str = "") -> list[tuple[str, Json]]:
    """Return every object below a value with its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    below = [
        pair
        for key, one in items
        if isinstance(one, dict | list)
        for pair in inside(one, f"{path}/{key}")
    ]
    return [(path, value), *below] if isinstance(value, dict) else below


def test_each_definition_is_r4_and_has_a_canonical_of_its_own() -> None:
    known = definitions(VERSION)
    for resource in known.values():
        assert not fhirkit.validate(to_bytes(resource)), resource["id"]
        assert problems(resource) == [], resource["id"]
        assert resource["version"] == VERSION
    urls = [resource["url"] for resource in known.values()]
    assert len(urls) == len(set(urls))
    bound = {
        element["valueSet"]
        for _, element in inside(list(known.values()))
        if isinstance(element.get("valueSet"), str)
    }
    assert {url for url in bound if not url.startswith("http")} == set()
    ours = {url for url in bound if url.startswith(concepts.BASE)}
    assert ours <= set(urls)


def test_every_code_that_a_doctor_may_send_is_in_its_value_set() -> None:
    for key, field in lexicon.FIELDS.items():
        held = VALUE_SETS[field_set(field)]
        for term in field.terms:
            value = field_value(key, (term.key,))
            for _, part in inside(value):
                if "valueCodeableConcept" in part:
                    codings = part["valueCodeableConcept"]["coding"]
                    assert all(held.holds(c["system"], c["code"]) for c in codings)
            assert held.holds(concepts.PRIVATE, term.key)
    none = field_value(FieldKey.CALCIFICATIONS, ())["valueCodeableConcept"]["coding"][0]
    assert VALUE_SETS["lesion-calcifications"].holds(none["system"], none["code"])
    for key, category in lexicon.CATEGORIES.items():
        for coding in concepts.category_value(category)["coding"]:
            held = VALUE_SETS["bi-rads-category"]
            assert held.holds(coding["system"], coding["code"]), key


def test_each_code_means_one_thing_in_both_languages() -> None:
    for system in CODE_SYSTEMS.values():
        codes = [code.code for code in system.codes]
        assert len(codes) == len(set(codes)), system.id
        assert all(code.words.zh and code.words.en for code in system.codes)
    state = {code.code for code in VALUE_SETS["release-state"].codes}
    assert state == {one.value for one in ReleaseState}
    evidence = {code.code for code in VALUE_SETS["completeness-evidence"].codes}
    assert evidence == {one.value for one in EvidenceKind}


async def test_every_definition_is_read_and_found_by_what_it_says(rig: Rig) -> None:
    for (kind, id_), resource in definitions(VERSION).items():
        answer = await rig.get(f"/{kind}/{id_}")
        assert answer.body == resource
        etag = {"If-None-Match": answer.headers["ETag"]}
        assert (await rig.get(f"/{kind}/{id_}", headers=etag)).status == 304
        bundle = await rig.read(f"/{kind}?url={resource['url']}&status=active")
        assert found(bundle) == [resource]
    for query, count in (
        ("ValueSet?name=lesion", len(lexicon.FIELDS)),
        ("ValueSet?name:contains=RADS", 1),
        ("ValueSet?name:exact=lesion", 0),
        ("ValueSet?version=9", 0),
        ("ValueSet?_id=breast-side,clock-position", 2),
        ("CodeSystem?_summary=count", 0),
    ):
        assert len(found(await rig.read(f"/{query}"))) == count, query


async def test_pages_of_definitions_follow_each_other_to_the_end(rig: Rig) -> None:
    ids: list[str] = []
    url: str | None = "/StructureDefinition?_count=10&_elements=url"
    while url:
        bundle = await rig.read(url)
        ids += [one["id"] for one in found(bundle)]
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        url = links.get("next")
    assert len(ids) == len(set(ids)) == bundle["total"]
    assert len(ids) == len(BY_URL) + len(EXTENSIONS)


async def test_what_definitions_are_not_searched_by_is_told_or_refused(
    rig: Rig,
) -> None:
    bundle = await rig.read("/ValueSet?publisher=x&_count=1")
    assert found(bundle)[-1]["resourceType"] == "OperationOutcome"
    strict = {"Prefer": "handling=strict"}
    assert (await rig.get("/ValueSet?publisher=x", headers=strict)).status == 400
    assert (await rig.get("/ValueSet?url:below=http://x")).status == 400
    assert (await rig.get("/ValueSet/nothing")).status == 404


async def test_definitions_are_not_written_and_have_no_history(rig: Rig) -> None:
    for kind in DEFINED:
        body = {"resourceType": kind, "id": "x"}
        for role in (Role.RADIOLOGIST, Role.EHR):
            answers = [
                await rig.ask("POST", f"/{kind}", body, role=role),
                await rig.ask("PUT", f"/{kind}/x", body, role=role),
                await rig.get(f"/{kind}/x/_history", role=role),
            ]
            assert {answer.status for answer in answers} == {405}


async def test_what_the_node_writes_names_its_profile_and_keeps_it(rig: Rig) -> None:
    await rig.sign()
    written = ["DiagnosticReport", "Observation", "ImagingStudy", "Device"]
    written += ["Provenance", "BodyStructure", "DocumentReference", "Patient"]
    written += ["Practitioner", "PractitionerRole", "Organization", "Endpoint"]
    seen: set[str] = set()
    for kind in written:
        for resource in found(await rig.read(f"/{kind}?_count=200", role=Role.EHR)):
            claimed = resource["meta"].get("profile", [])
            assert len(claimed) == 1, (kind, resource["id"])
            seen.add(claimed[0])
            profile = BY_URL[claimed[0]]
            issues = list(departures(resource, profile, kind, whole=True))
            assert issues == [], resource["id"]
            for _, part in inside(resource):
                url = str(part.get("url", ""))
                if url.startswith(f"{concepts.BASE}/Struct"):
                    assert url in EXTENSIONS
    statement = await rig.read("/metadata")
    stated = {
        url
        for one in statement["rest"][0]["resource"]
        for url in one.get("supportedProfile", [])
    }
    assert seen < set(BY_URL) < stated
    assert {
        url for url in stated - set(BY_URL) if url.startswith(concepts.BASE)
    } == set()
    assert len(seen) >= 20


@pytest.mark.parametrize(
    ("changes", "expression"),
    [
        (
            {"valueCodeableConcept": {"text": "oval"}},
            "Observation.valueCodeableConcept",
        ),
        (
            {"valueCodeableConcept": {"coding": [{"system": "urn:x", "code": "oval"}]}},
            "Observation.valueCodeableConcept",
        ),
        ({"valueString": "oval"}, "Observation.valueString"),
        ({"subject": {"reference": "Group/1"}}, "Observation.subject.reference"),
        ({"component": [{"code": {"text": "x"}}]}, "Observation.component"),
    ],
)
def test_an_edit_that_leaves_the_profile_is_told_where(
    changes: dict[str, Any], expression: str
) -> None:
    code = concepts.codeable(lexicon.SHAPE.concept, "shape")
    good = {
        "resourceType": "Observation",
        "status": "final",
        "code": code,
        "subject": {"reference": "Patient/1"},
        "valueCodeableConcept": concepts.codeable(
            lexicon.SHAPE.term("oval").concept, "oval"
        ),
    }
    assert problems(good) == []
    bad = {k: v for k, v in good.items() if not k.startswith("value")} | changes
    named = {issue.expression for issue in problems(bad)}
    assert expression in named


def test_an_extension_of_ours_has_the_value_that_its_definition_says() -> None:
    base = f"{concepts.BASE}/StructureDefinition"
    faults = {
        "valueBoolean": {"url": f"{base}/patient-summary", "valueBoolean": True},
        "state": {
            "url": f"{base}/study-completeness",
            "extension": [{"url": "state", "valueCode": "perhaps"}],
        },
        "code": {"url": f"{base}/release-state", "valueCode": "hidden"},
    }
    for name, extension in faults.items():
        resource = {
            "resourceType": "DiagnosticReport",
            "status": "final",
            "code": {"coding": [concepts.coding(lexicon.REPORT_CODES["U"])]},
            "extension": [extension],
        }
        named = [issue.expression or "" for issue in problems(resource)]
        assert any(n.startswith("DiagnosticReport.extension[0]") for n in named), name


def test_the_lexicon_is_one_code_system_with_both_languages() -> None:
    system = terminology.to_code_system(CODE_SYSTEMS[terminology.LEXICON], VERSION)
    by_code = {one["code"]: one for one in system["concept"]}
    assert by_code["4A"]["display"] == lexicon.CATEGORIES["4A"].concept.en
    assert by_code["4A"]["designation"] == [
        {"language": "zh-CN", "value": lexicon.CATEGORIES["4A"].concept.zh},
        {"language": "en", "value": lexicon.CATEGORIES["4A"].concept.en},
    ]
