"""Our profiles and extensions as StructureDefinitions, snapshot and differential.

The snapshot is R4's own elements, as `fhir.encoding.elements` and
`fhir.conformance.rules` have them, with the rows of the profile worked in
(FHIR R4 5.1.0.2): others' validators read nothing else.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fhir.conformance.asking import STRUCTURE, Extending, Profile, Row
from fhir.conformance.invariants import INVARIANTS
from fhir.conformance.profiles import EXTENSIONS
from fhir.conformance.rules import ANY, rule_of
from fhir.conformance.terminology import VALUE_SETS, Words, heading, translated
from fhir.encoding.elements import RESOURCE, Element, base_of, elements_of, has_type
from fhir.encoding.wire import Json

_R4 = "http://hl7.org/fhir/StructureDefinition/"
_SYSTEM_STRING = {
    "extension": [{"url": f"{_R4}structuredefinition-fhir-type", "valueUrl": "string"}],
    "code": "http://hl7.org/fhirpath/System.String",
}
_BOUND = frozenset({"code", "Coding", "CodeableConcept", "Quantity", "string", "uri"})
_BY_URL = {
    "discriminator": [{"type": "value", "path": "url"}],
    "ordered": False,
    "rules": "open",
}
_NOT_EMPTY: Json = {
    "key": "ele-1",
    "severity": "error",
    "human": "an element has a value or others below it",
    "expression": "hasValue() or (children().count() > id.count())",
    "source": f"{_R4}Element",
}
_WITHIN = "%resource.descendants()"
# Key, severity, words and R4's FHIRPath of what every resource has to keep.
_OF_RESOURCE = (
    (
        "dom-2",
        "error",
        "what is contained does not contain",
        "contained.contained.empty()",
    ),
    (
        "dom-3",
        "error",
        "something refers to what is contained",
        f"contained.where((('#'+id in ({_WITHIN}.reference | {_WITHIN}.as(canonical)"
        f" | {_WITHIN}.as(uri) | {_WITHIN}.as(url)))"
        " or descendants().where(reference = '#').exists()"
        " or descendants().where(as(canonical) = '#').exists()"
        " or descendants().where(as(canonical) = '#').exists()).not())"
        ".trace('unmatched', id).empty()",
    ),
    (
        "dom-4",
        "error",
        "what is contained has no version",
        "contained.meta.versionId.empty() and contained.meta.lastUpdated.empty()",
    ),
    (
        "dom-5",
        "error",
        "what is contained has no label of its own",
        "contained.meta.security.empty()",
    ),
    ("dom-6", "warning", "a narrative helps people to read it", "text.`div`.exists()"),
)


def structure_of_profile(profile: Profile, version: str) -> Json:
    """Return the StructureDefinition of a profile."""
    slices = [one for one in EXTENSIONS.values() if one.id in profile.extensions]
    snapshot = list(snapshot_of(profile.type))
    for row in profile.rows:  # a row may reach into a data type, and into its parts
        names = row.path.split(".")
        for depth in range(1, len(names)):
            path = ".".join([profile.type, *names[: depth + 1]])
            snapshot = list(_opened(snapshot, path))
    rows = {f"{profile.type}.{row.path}": row for row in profile.rows}
    whole: list[Json] = []
    differential: list[Json] = []
    for element in snapshot:
        changes = _changes(rows.get(element["path"]))
        if not whole:
            own = _demanded(profile)
            changes = _told(profile.words) | ({"constraint": own} if own else {})
        if element["path"] == f"{profile.type}.extension" and slices:
            changes = {"slicing": _BY_URL}
        whole.append(_merged(element, changes))
        if changes:
            place = {"id": element["id"], "path": element["path"]}
            differential.append(place | changes)
        if element["path"] == f"{profile.type}.extension":
            for one in slices:
                sliced = _slice(element, one)
                whole.append(element | sliced)
                differential.append(sliced)
    head = heading(profile.id, profile.url, profile.words, version)
    return _definition(head, profile.type, whole, differential)


def structure_of_extension(extending: Extending, version: str) -> Json:
    """Return the StructureDefinition of an extension, simple or of several parts."""
    snapshot = list(snapshot_of("Extension"))
    root, own_id, parts, url, value = snapshot
    fixed = {"fixedUri": extending.url}
    differential: list[Json] = [_placed(root, _told(extending.words))]
    whole = [root | _told(extending.words), own_id]
    if extending.parts:
        changes = {"slicing": _BY_URL}
        whole.append(parts | changes)
        differential.append(_placed(parts, changes))
        for part in extending.parts:
            for element, changed in _part(part, snapshot):
                whole.append(element | changed)
                differential.append(_placed(element | changed, changed))
        last: Json = {"max": "0"}
    else:
        whole.append(parts | {"max": "0"})
        differential.append(_placed(parts, {"max": "0"}))
        last = _value(extending.type, extending.value_set)
    whole += [url | fixed, value | last]
    differential += [_placed(url, fixed), _placed(value, last)]
    head = heading(extending.id, extending.url, extending.words, version)
    context = [{"type": "element", "expression": on} for on in extending.on]
    return _definition(head, "Extension", whole, differential, context)


def _definition(
    head: Json,
    type_name: str,
    snapshot: list[Json],
    differential: list[Json],
    context: list[Json] | None = None,
) -> Json:
    extension = type_name == "Extension"
    return {
        "resourceType": "StructureDefinition",
        **head,
        "fhirVersion": "4.0.1",
        "kind": "complex-type" if extension else "resource",
        "abstract": False,
        **({"context": context} if context else {}),
        "type": type_name,
        "baseDefinition": f"{_R4}{type_name}",
        "derivation": "constraint",
        "snapshot": {"element": snapshot},
        "differential": {"element": differential},
    }


# --- R4's own elements ----------------------------------------------------------------


def snapshot_of(type_name: str) -> Iterator[Json]:
    """Yield the elements that R4 gives a type, in order."""
    words = f"As FHIR R4 defines it: {type_name}"
    constraints = list(_constraints(type_name))
    yield {
        "id": type_name,
        "path": type_name,
        "short": type_name,
        "definition": words,
        "min": 0,
        "max": "*",
        "base": {"path": type_name, "min": 0, "max": "*"},
        **({"constraint": constraints} if constraints else {}),
        "isModifier": False,
        "isSummary": False,
    }
    yield from _below(type_name, type_name)


def _below(type_name: str, path: str) -> Iterator[Json]:
    choices: dict[str, list[Element]] = {}
    for element in elements_of(type_name).values():
        if element.name != "resourceType":
            choices.setdefault(element.choice or element.name, []).append(element)
    for name, kinds in choices.items():
        yield _element(type_name, path, name, kinds)
        part = kinds[0].type
        if part == f"{type_name}.{name}":
            yield from _below(part, f"{path}.{name}")


def _element(type_name: str, path: str, name: str, kinds: list[Element]) -> Json:
    rule = rule_of(type_name, name)
    shown = name if kinds[0].choice is None else f"{name}[x]"
    at = f"{path}.{shown}"
    low, high = int(rule.mandatory), "*" if kinds[0].repeats else "1"
    base = f"{_definer(type_name, kinds[0].name)}.{shown}"
    element: Json = {
        "id": at,
        "path": at,
        "short": shown,
        "definition": f"As FHIR R4 defines it: {base}",
        "min": low,
        "max": high,
        "base": {"path": base, "min": low, "max": high},
    }
    types = [kind.type for kind in kinds]
    if "." in types[0] and types[0] != f"{type_name}.{name}":
        return element | {
            "contentReference": f"#{types[0]}",
            "constraint": [_NOT_EMPTY],
            "isModifier": False,
            "isSummary": rule.summary,
        }
    element["type"] = [_type(kind, rule.targets) for kind in kinds]
    # What XML writes as an attribute has nothing below it; a resource has its own.
    bare = kinds[0].attribute or element["type"] == [_SYSTEM_STRING]
    element["constraint"] = [] if bare or types == [RESOURCE] else [_NOT_EMPTY]
    for one in types:
        if one in ("Extension", *INVARIANTS) and "." in one:
            element["constraint"] += _constraints(one)
    if types == ["Extension"]:
        element["constraint"] += _invariants("Extension")
    element["constraint"] += _invariants(type_name, at=name)
    if not element["constraint"]:
        del element["constraint"]
    element["isModifier"] = rule.modifier
    if rule.modifier:
        element["isModifierReason"] = "its value can turn what the rest says around"
    element["isSummary"] = rule.summary
    if rule.value_set and rule.strength and _BOUND & set(types):
        strength = {"strength": rule.strength, "valueSet": rule.value_set}
        element["binding"] = strength
    return element


def _type(kind: Element, targets: frozenset[str]) -> Json:
    if kind.attribute or (kind.type == "string" and kind.name == "id"):
        return _SYSTEM_STRING
    if "." in kind.type:
        return {"code": "BackboneElement"}
    told: Json = {"code": kind.type}
    if kind.type == "Reference" and targets != ANY:
        told["targetProfile"] = [f"{_R4}{target}" for target in sorted(targets)]
    return told


def _definer(type_name: str, name: str) -> str:
    """Return the type that brings an element in: Resource for the id of a Patient."""
    base = base_of(type_name)
    while base and name in elements_of(base):
        type_name, base = base, base_of(base)
    return type_name


def _constraints(type_name: str) -> Iterator[Json]:
    if has_type(type_name) and base_of(type_name) == "DomainResource":
        for key, severity, words, expression in _OF_RESOURCE:
            one = _constraint(key, words, expression, "DomainResource")
            yield one | {"severity": severity}
    elif base_of(type_name) != "Resource" and "." not in type_name:
        yield _NOT_EMPTY
    yield from _invariants(type_name)


def _invariants(type_name: str, at: str = "") -> Iterator[Json]:
    for one in INVARIANTS.get(type_name, ()):
        if one.expression and one.at == at:
            yield _constraint(one.key, one.words, one.expression, type_name)


def _constraint(key: str, words: str, expression: str, type_name: str) -> Json:
    return {
        "key": key,
        "severity": "error",
        "human": words,
        "expression": expression,
        "source": f"{_R4}{type_name.partition('.')[0]}",
    }


def _opened(snapshot: Iterable[Json], path: str) -> Iterator[Json]:
    """Yield the snapshot with the parts of a data type where a row reaches into it."""
    known = list(snapshot)
    parent = path.rpartition(".")[0]
    inside = any(e["path"].startswith(f"{parent}.") for e in known)
    for element in known:
        yield element
        if element["path"] == parent and not inside:
            yield from _below(element["type"][0]["code"], parent)


# --- what a profile makes of them -----------------------------------------------------


def _demanded(profile: Profile) -> list[Json]:
    """Return what a profile asks of the whole resource, as constraints of its root."""
    return [
        {
            "key": demand.key,
            "severity": "error",
            **translated("human", demand.words),
            "expression": demand.expression,
            "source": profile.url,
        }
        for demand in profile.demands
    ]


def _told(words: Words) -> Json:
    return translated("short", words) | translated("definition", words)


def _changes(row: Row | None) -> Json:
    """Return what a row of a profile changes of an element."""
    if row is None:
        return {}
    changes = _told(row.words)
    if row.min is not None:
        changes["min"] = row.min
    if row.max is not None:
        changes["max"] = row.max
    if row.types:
        changes["type"] = [{"code": kind} for kind in row.types]
    if row.targets:
        targets = [f"{_R4}{target}" for target in row.targets]
        changes["type"] = [{"code": "Reference", "targetProfile": targets}]
    if row.pattern is not None:
        kind, pattern = row.pattern
        changes[f"pattern{kind}"] = pattern
    if row.value_set is not None:
        strength = "extensible" if row.open else "required"
        changes["binding"] = _binding(row.value_set, strength)
    return changes | ({} if row.max == "0" else {"mustSupport": True})


def _merged(element: Json, changes: Mapping[str, Any]) -> Json:
    merged = {**element, **changes}
    if "constraint" in changes:  # beside R4's own
        merged["constraint"] = [*element.get("constraint", ()), *changes["constraint"]]
    if merged.get("max") == "0":
        merged["min"] = 0
    return merged


def _binding(value_set: str, strength: str) -> Json:
    one = VALUE_SETS[value_set]
    return {"strength": strength, "description": one.words.en, "valueSet": one.url}


def _slice(element: Json, extending: Extending) -> Json:
    return {
        "id": f"{element['id']}:{extending.id}",
        "path": element["path"],
        "sliceName": extending.id,
        **_told(extending.words),
        "min": 0,
        "max": extending.max,
        "type": [{"code": "Extension", "profile": [f"{STRUCTURE}/{extending.id}"]}],
    }


def _placed(element: Json, changes: Json) -> Json:
    return {"id": element["id"], "path": element["path"], **changes}


def _value(type_name: str, value_set: str | None) -> Json:
    changes: Json = {"min": 1, "type": [{"code": type_name}]}
    if value_set is not None:
        changes["binding"] = _binding(value_set, "required")
    return changes


def _part(part: Any, snapshot: list[Json]) -> Iterator[tuple[Json, Json]]:
    """Yield the elements of one part of an extension, and what is said of each."""
    _, own_id, parts, url, value = snapshot
    at = f"Extension.extension:{part.name}"

    def inside(element: Json) -> Json:
        name = element["path"].removeprefix("Extension.")
        path = f"Extension.extension.{name}"
        return element | {"id": f"{at}.{name}", "path": path}

    sliced = {
        "sliceName": part.name,
        **_told(part.words),
        "min": part.min,
        "max": "1",
    }
    yield parts | {"id": at}, sliced
    yield inside(own_id), {}
    yield inside(parts), {"max": "0"}
    yield inside(url), {"fixedUri": part.name}
    yield inside(value), _value(part.type, part.value_set)
