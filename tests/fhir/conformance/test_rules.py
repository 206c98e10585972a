"""The table of R4's rules, and snapshots made of it, against others' copies of R4."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fhir.conformance.profiles import PROFILES
from fhir.conformance.rules import ANY, rule_of
from fhir.conformance.structures import snapshot_of
from fhir.encoding.elements import elements_of, has_type
from fhir.encoding.wire import Json
from fhir.security.access import PERMITS
from tests.fhir import judges

MODULES = Path(judges.__file__).with_name("validators") / "node_modules"
R4 = MODULES / "@medplum" / "definitions" / "dist" / "fhir" / "r4"
NPM_FHIR = MODULES / "fhir" / "profiles" / "types.json"
ANYTHING = "http://hl7.org/fhir/StructureDefinition/Resource"


@pytest.fixture(autouse=True)
def _installed() -> None:
    judges.require_judges()


# What that copy of R4 adds to it.
ADDED = frozenset({"Binary.url"})
# They ask of a code system that is called "something": nothing breaks them.
IDLE = frozenset({"ppc-2", "ppc-3", "ppc-4", "ppc-5"})


def told(element: Json) -> dict[str, Any]:
    """Return what has to agree in two snapshots of the same element."""
    # Whom a canonical names is nobody's concern here: none is resolved.
    types = [
        (one["code"], sorted(t for t in one.get("targetProfile", []) if t != ANYTHING))
        if one["code"] == "Reference"
        else (one["code"], [])
        for one in element.get("type", [])
    ]
    binding = element.get("binding", {})
    if "valueSet" not in binding:  # an example of nothing
        binding = {}
    return {
        "path": element["path"],
        "times": (element["min"], element["max"]),
        "base": element["base"],
        "types": sorted(types),
        "refers to": element.get("contentReference"),
        "modifier": element.get("isModifier", False),
        "summary": element.get("isSummary", False),
        "strength": binding.get("strength"),
        "codes": binding.get("valueSet", "").partition("|")[0],
        "constraints": sorted(
            {one["key"] for one in element.get("constraint", [])} - IDLE
        ),
    }


def test_our_snapshots_start_from_r4_s_own_elements() -> None:
    theirs: dict[str, list[Json]] = {}
    for name in ("profiles-resources.json", "profiles-types.json"):
        for entry in json.loads((R4 / name).read_text("utf-8"))["entry"]:
            resource = entry["resource"]
            if "snapshot" in resource:
                theirs[resource["id"]] = resource["snapshot"]["element"]
    for kind in {profile.type for profile in PROFILES} | {"Extension"}:
        ours = [told(element) for element in snapshot_of(kind)]
        whole = [told(element) for element in theirs[kind]]
        assert ours == [one for one in whole if one["path"] not in ADDED], kind


def properties(kind: str, rows: list[Json]) -> Iterator[tuple[str, Json]]:
    for row in rows:
        if not row["_name"].startswith("_"):
            yield kind, row
            yield from properties(f"{kind}.{row['_name']}", row.get("_properties", []))


def test_what_comes_in_is_judged_by_the_rules_that_another_program_has() -> None:
    table = json.loads(NPM_FHIR.read_text("utf-8"))
    compared = 0
    for kind in PERMITS:
        for owner, row in properties(kind, table[kind]["_properties"]):
            if not has_type(owner):
                continue
            element = elements_of(owner)[row["_name"]]
            rule = rule_of(owner, element.choice or element.name)
            where = f"{owner}.{element.name}"
            if element.choice is None:
                assert rule.mandatory == row["_required"], where
            codes = row.get("_valueSet", "").partition("|")[0]
            assert (rule.value_set or "") == codes, where
            targets = {url.rpartition("/")[2] for url in row.get("_targetProfiles", ())}
            if targets and element.choice is None:
                assert rule.targets == targets or rule.targets == ANY, where
                assert (rule.targets == ANY) == (targets == {"Resource"}), where
            compared += 1
    assert compared > 500
