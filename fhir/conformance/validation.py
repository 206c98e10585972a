"""Is this a resource that we may take: structure, codes, references, narrative.

fhirkit-rs checks types, formats, cardinality and unknown elements (FHIR R4);
what it leaves out is checked here, each with the FHIRPath of the element: codes
and targets by `fhir.conformance.rules`, invariants, narrative, and what a
resource says of itself in meta.profile by `fhir.conformance.profiles`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import fhirkit

from fhir.conformance import narrative
from fhir.conformance.invariants import INVARIANTS
from fhir.conformance.profiles import (
    PROFILES,
    departures,
    extension_faults,
    profile_named,
    profile_of,
)
from fhir.conformance.rules import ANY, rule_of
from fhir.encoding.elements import RESOURCE, elements_of
from fhir.encoding.outcome import Issue, Refused
from fhir.encoding.wire import Json, as_list, parse, to_bytes
from node.domain.errors import ErrorKind

MAX_ISSUES = 50
# Held against our profile whether they claim it or not: who edits a report edits one
# of the node's, and what others send has to be understood.
_OURS = frozenset({"DiagnosticReport", "Observation"})
_OURS |= {profile.type for profile in PROFILES if profile.sent} | {"Communication"}
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_LITERAL = re.compile(r"(?:^|/)([A-Z][A-Za-z]+)/[^/]+(?:/_history/[^/]+)?$")


def read_resource(raw: bytes, resource_type: str | None = None) -> Json:
    """Return the resource in `raw`; Refused with every problem that it has.

    A body that is no resource at all gets 400, a faulty resource 422
    (FHIR R4 3.1.0.1.5).
    """
    resource = parse_resource(raw, resource_type)
    check(resource, raw)
    return resource


def parse_resource(raw: bytes, resource_type: str | None = None) -> Json:
    """Return what says of itself that it is a resource; Refused (400) otherwise."""
    resource = parse(raw)
    told = resource.get("resourceType")
    if not isinstance(told, str) or told not in fhirkit.RESOURCE_TYPES:
        raise Refused([Issue("structure", "the body is not a FHIR R4 resource")], 400)
    if resource_type is not None and told != resource_type:
        message = f"the body is a {told}, the address says {resource_type}"
        raise Refused([Issue("invalid", message, "resourceType")], 400)
    return resource


def check(resource: Json, raw: bytes | None = None) -> None:
    """Raise Refused with every problem of a resource; return when there is none."""
    issues = problems(resource, raw)
    if issues:
        raise Refused(issues[:MAX_ISSUES], 422, ErrorKind.INVALID)


def problems(
    resource: Json, raw: bytes | None = None, *, thorough: bool = False
) -> list[Issue]:
    """Return every problem of a resource, none when we may take it.

    Structure first: the other checks rely on the shape of elements. Who is
    `thorough` wants to know what they find all the same, as far as they come.
    """
    issues = list(_structure(to_bytes(resource) if raw is None else raw))
    kind = str(resource["resourceType"])
    if not issues:
        return _resource(resource, kind)
    if thorough:
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            told = {issue.expression for issue in issues}
            more = _resource(resource, kind)
            issues += [issue for issue in more if issue.expression not in told]
    return issues


def _structure(raw: bytes) -> Iterator[Issue]:
    try:
        found = fhirkit.validate(raw)
    except ValueError as error:
        raise Refused([Issue("structure", _short(str(error)))], 400) from None
    for issue in found:
        if issue.severity == "error":
            missing = "missing" in issue.message or "required" in issue.message
            code = "required" if missing else "structure"
            yield Issue(code, _short(issue.message), issue.path or None)


def _short(message: str) -> str:
    """Return a message without the value that it quotes: it may name somebody."""
    return re.sub(r'"[^"]*"', "the value", message)[:200]


# --- one whole resource -------------------------------------------------------------


def _resource(resource: Json, path: str) -> list[Issue]:
    """Return the problems of a resource that stands by itself, alone or in a Bundle."""
    judge = _Judge()
    judge.element(resource, str(resource["resourceType"]), path)
    contained = as_list(resource.get("contained"))
    ids = {f"#{one.get('id')}" for one in contained}
    for text, at in judge.references:
        if text.startswith("#") and len(text) > 1 and text not in ids:
            judge.find("invariant", "ref-1: nothing contained has this id", at)
    pointed = {text for text, _ in judge.references}
    for index, one in enumerate(contained):
        judge.contained(one, f"{path}.contained[{index}]", pointed)
    judge.profiles(resource, path)
    return judge.issues


@dataclass(frozen=True)
class _Plan:
    """What there is to check of an element, looked up once for each type.

    `type` is empty for a primitive that only has its codes.
    """

    type: str
    codes: frozenset[str] | None
    targets: frozenset[str] | None


@cache
def _plans(type_name: str) -> Mapping[str, _Plan]:
    """Return what to check by the name of the element; primitives without a rule not.

    Their types and formats are fhirkit's.
    """
    plans = {}
    for name, element in elements_of(type_name).items():
        rule = rule_of(type_name, element.choice or name)
        if element.primitive:
            if element.type == "code" and rule.codes is not None:
                plans[name] = _Plan("", rule.codes, None)
            continue
        refers = element.type == "Reference" and rule.targets != ANY
        plans[name] = _Plan(element.type, None, rule.targets if refers else None)
    return plans


class _Judge:
    """Walks through one resource and puts down what is wrong with it."""

    def __init__(self) -> None:
        self.issues: list[Issue] = []
        # (reference, path) of every literal reference, those of what is contained too.
        self.references: list[tuple[str, str]] = []

    def find(self, code: str, message: str, path: str) -> None:
        self.issues.append(Issue(code, message, path))

    def element(self, element: Json, type_name: str, path: str) -> None:
        """Judge an element and all below it."""
        for invariant in INVARIANTS.get(type_name, ()):
            if not invariant.holds(element):
                self.find("invariant", f"{invariant.key}: {invariant.words}", path)
        if type_name == "Extension":
            self.issues += extension_faults(element, path)
        plans = _plans(type_name)
        for key, value in element.items():
            at = f"{path}.{key}"
            plan = plans.get(key)
            if plan is None:
                self._other(key, value, at, path)
            elif isinstance(value, list):
                for index, one in enumerate(value):
                    self._part(one, key, plan, f"{at}[{index}]")
            else:
                self._part(value, key, plan, at)

    def _other(self, key: str, value: Any, at: str, path: str) -> None:
        if key.startswith("_"):  # id and extensions of a primitive
            for index, one in enumerate(as_list(value)):
                place = f"[{index}]" if isinstance(value, list) else ""
                if isinstance(one, dict):
                    self.element(one, "Element", f"{path}.{key[1:]}{place}")
        elif key == "div":
            self._narrative(value, at)
        elif key == "id" and not _ID.fullmatch(str(value)) and "." not in path:
            self.find("value", "an id is 1 to 64 of A-Z a-z 0-9 - .", at)

    def _part(self, value: Any, key: str, plan: _Plan, path: str) -> None:
        if plan.codes is not None:
            if isinstance(value, str) and value not in plan.codes:
                words = ", ".join(sorted(plan.codes))
                self.find("code-invalid", f"must be one of {words}", path)
            return
        if not isinstance(value, dict):
            return
        if plan.type == RESOURCE:
            self._inner(value, key, path)
            return
        if not value.keys() - {"id"}:
            message = "ele-1: an element has a value or others below it"
            self.find("invariant", message, path)
        if key == "modifierExtension":
            message = "a modifier extension that this node does not know"
            self.find("extension", message, path.rpartition("[")[0])
        if plan.type == "Reference":
            self._reference(value, plan.targets, path)
        self.element(value, plan.type, path)

    def _inner(self, resource: Json, key: str, path: str) -> None:
        if key == "contained":
            self.element(resource, str(resource["resourceType"]), path)
        else:  # in a Bundle or in Parameters: a resource of its own
            self.issues += _resource(resource, path)

    def _reference(
        self, reference: Json, targets: frozenset[str] | None, path: str
    ) -> None:
        text, told = reference.get("reference"), reference.get("type")
        if isinstance(text, str):
            self.references.append((text, path))
        if not isinstance(text, str) or text.startswith(("#", "urn:")):
            kind = told
        else:
            match = _LITERAL.search(text)
            if match is None:
                message = "not a reference to a resource"
                self.find("value", message, f"{path}.reference")
            elif told is not None and told != match[1]:
                self.find("value", "type and reference differ", f"{path}.type")
            kind = match[1] if match else told
        if targets is not None and kind is not None and kind not in targets:
            words = ", ".join(sorted(targets))
            at = "reference" if isinstance(text, str) else "type"
            self.find("value", f"must refer to {words}", f"{path}.{at}")

    def _narrative(self, div: Any, path: str) -> None:
        fault = narrative.fault_of(div) if isinstance(div, str) else None
        if fault is not None:
            self.find("invariant", ": ".join(fault), path)

    def profiles(self, resource: Json, path: str) -> None:
        """Hold a resource against those of our profiles that are about it."""
        claimed = as_list(resource.get("meta", {}).get("profile"))
        known = (profile_named(url) for url in claimed)
        wanted = [profile for profile in known if profile is not None]
        own = profile_of(resource) if resource["resourceType"] in _OURS else None
        if own is not None and own not in wanted:
            wanted.append(own)
        for profile in wanted:
            if profile.type != resource["resourceType"]:
                message = f"{profile.id} is a profile of {profile.type}"
                self.find("value", message, f"{path}.meta.profile")
            else:
                self.issues += departures(resource, profile, path, whole=False)

    def contained(self, resource: Json, path: str, pointed: set[str]) -> None:
        """Judge a resource as one that is contained (FHIR R4 2.20.4)."""
        meta = resource.get("meta", {})
        if "contained" in resource:
            message = "dom-2: what is contained does not contain"
            self.find("invariant", message, f"{path}.contained")
        # What refers to its container ("#") belongs to it as well.
        if f"#{resource.get('id')}" not in pointed and "#" not in pointed:
            self.find("invariant", "dom-3: nothing refers to what is contained", path)
        for name in ("versionId", "lastUpdated"):
            if name in meta:
                message = "dom-4: what is contained has no version"
                self.find("invariant", message, f"{path}.meta.{name}")
        if "security" in meta:
            message = "dom-5: what is contained has no label of its own"
            self.find("invariant", message, f"{path}.meta.security")
