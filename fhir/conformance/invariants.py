"""Invariants of FHIR R4 that a resource has to keep, by the type that has them.

Of every data type, and of the resources that come and go here; those of one whole
resource (`dom-…`, `ref-1`) stand with their FHIRPath in `fhir.conformance.validation`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fhir.encoding.wire import Json, as_list, date_range
from node.domain.errors import NodeError


@dataclass(frozen=True)
class Invariant:
    """A constraint: its key in R4, what it asks for in words, and how to tell.

    `expression` is R4's FHIRPath, for the snapshots that repeat it; `at` the element
    below the type where R4 has it.
    """

    key: str
    words: str
    holds: Callable[[Json], bool]
    expression: str = ""
    at: str = ""


def value_of(element: Json, name: str = "value") -> str | None:
    """Return the key under which a choice has its value, None when it has none."""
    for key in element:
        bare = key.lstrip("_")
        if bare.startswith(name) and bare[len(name) : len(name) + 1].isupper():
            return key
    return None


def _has_value(element: Json) -> bool:
    return value_of(element) is not None


def _has(element: Json, name: str) -> bool:
    return name in element or f"_{name}" in element


def _needs(name: str, other: str) -> Callable[[Json], bool]:
    """Return whether an element that has `name` has `other` too."""
    return lambda element: not _has(element, name) or _has(element, other)


def _one_of(*names: str) -> Callable[[Json], bool]:
    return lambda element: any(_has(element, name) for name in names)


def _not_both(name: str, other: str) -> Callable[[Json], bool]:
    return lambda element: not (_has(element, name) and _has(element, other))


def _not_before(start: str, end: str) -> Callable[[Json], bool]:
    """Return whether one time is not after another, as far as both are told."""

    def holds(element: Json) -> bool:
        first, last = element.get(start), element.get(end)
        if not isinstance(first, str) or not isinstance(last, str):
            return True
        try:
            return date_range(first)[0] < date_range(last)[1]
        except NodeError:
            return True

    return holds


def _in_order(range_: Json) -> bool:
    low, high = range_.get("low", {}), range_.get("high", {})
    if low.get("code", low.get("unit")) != high.get("code", high.get("unit")):
        return True
    return not ("value" in low and "value" in high) or low["value"] <= high["value"]


def _whole_ratio(ratio: Json) -> bool:
    both = ("numerator" in ratio) == ("denominator" in ratio)
    return both and ("numerator" in ratio or "extension" in ratio)


def _value_or_parts(extension: Json) -> bool:
    return _has_value(extension) != ("extension" in extension)


def _one_content(parameter: Json) -> bool:
    held = (_has_value(parameter), "resource" in parameter, "part" in parameter)
    return held.count(True) == 1


def _codes_of(element: Json) -> set[tuple[str | None, str | None]]:
    codings = as_list(element.get("code", {}).get("coding"))
    return {(c.get("system"), c.get("code")) for c in codings}


def _value_once(observation: Json) -> bool:
    own = _codes_of(observation)
    components = as_list(observation.get("component"))
    return not _has_value(observation) or not any(
        own & _codes_of(c) for c in components
    )


def _not_at_home(element: str) -> Callable[[Json], bool]:
    return lambda organization: all(
        one.get("use") != "home" for one in as_list(organization.get(element))
    )


def _amount(name: str) -> Callable[[Json], bool]:
    return lambda element: not _has(element, name) or element.get(name, 0) >= 0


def _only_in(element: str, *types: str) -> Callable[[Json], bool]:
    return lambda bundle: element not in bundle or bundle.get("type") in types


def _entries(name: str, *types: str, needed: bool) -> Callable[[Json], bool]:
    """Return whether entries have `name` only, or just, in Bundles of these types."""

    def holds(bundle: Json) -> bool:
        fits = bundle.get("type") in types
        held = [name in entry for entry in as_list(bundle.get("entry"))]
        return (all(held) or not needed) if fits else not any(held)

    return holds


def _distinct(bundle: Json) -> bool:
    named = [
        (entry["fullUrl"], entry.get("resource", {}).get("meta", {}).get("versionId"))
        for entry in as_list(bundle.get("entry"))
        if "fullUrl" in entry
    ]
    return bundle.get("type") == "history" or len(set(named)) == len(named)


def _unversioned(entry: Json) -> bool:
    return "/_history/" not in str(entry.get("fullUrl", ""))


INVARIANTS: Mapping[str, tuple[Invariant, ...]] = {
    "Extension": (
        Invariant(
            "ext-1",
            "an extension has a value or extensions, and not both",
            _value_or_parts,
            "extension.exists() != value.exists()",
        ),
    ),
    "Attachment": (
        Invariant("att-1", "data need a contentType", _needs("data", "contentType")),
    ),
    "ContactPoint": (
        Invariant("cpt-2", "a value needs a system", _needs("value", "system")),
    ),
    "Expression": (
        Invariant(
            "exp-1", "an expression or a reference", _one_of("expression", "reference")
        ),
    ),
    "Period": (
        Invariant(
            "per-1", "the start is not after the end", _not_before("start", "end")
        ),
    ),
    "Quantity": (
        Invariant("qty-3", "a code needs a system", _needs("code", "system")),
    ),
    "Range": (Invariant("rng-2", "the low is not above the high", _in_order),),
    "Ratio": (Invariant("rat-1", "numerator and denominator", _whole_ratio),),
    "Timing.repeat": (
        Invariant(
            "tim-1", "a duration needs a unit", _needs("duration", "durationUnit")
        ),
        Invariant("tim-2", "a period needs a unit", _needs("period", "periodUnit")),
        Invariant("tim-4", "a duration is not negative", _amount("duration")),
        Invariant("tim-5", "a period is not negative", _amount("period")),
        Invariant("tim-6", "periodMax needs a period", _needs("periodMax", "period")),
        Invariant(
            "tim-7", "durationMax needs a duration", _needs("durationMax", "duration")
        ),
        Invariant("tim-8", "countMax needs a count", _needs("countMax", "count")),
        Invariant("tim-10", "timeOfDay or when", _not_both("timeOfDay", "when")),
    ),
    "AuditEvent.entity": (
        Invariant("sev-1", "a name or a query", _not_both("name", "query")),
    ),
    "Bundle": (
        Invariant(
            "bdl-1",
            "only what was searched has a total",
            _only_in("total", "searchset", "history"),
        ),
        Invariant(
            "bdl-2",
            "only what was searched has entry.search",
            _entries("search", "searchset", needed=False),
        ),
        Invariant(
            "bdl-3",
            "entry.request is for what is asked or was done, and needed there",
            _entries("request", "batch", "transaction", "history", needed=True),
        ),
        Invariant(
            "bdl-4",
            "entry.response is for what was answered, and needed there",
            _entries(
                "response",
                "batch-response",
                "transaction-response",
                "history",
                needed=True,
            ),
        ),
        Invariant("bdl-7", "one entry for each fullUrl and version", _distinct),
    ),
    "Bundle.entry": (
        Invariant(
            "bdl-5",
            "an entry has a resource, a request or a response",
            _one_of("resource", "request", "response"),
        ),
        Invariant("bdl-8", "a fullUrl names no version", _unversioned),
    ),
    "Consent": (
        Invariant(
            "ppc-1",
            "a policy or a policyRule",
            _one_of("policy", "policyRule"),
            "policy.exists() or policyRule.exists()",
        ),
    ),
    "Observation": (
        Invariant(
            "obs-6",
            "a value, or the reason why there is none",
            lambda one: not (_has_value(one) and "dataAbsentReason" in one),
            "dataAbsentReason.empty() or value.empty()",
        ),
        Invariant(
            "obs-7",
            "a component does not repeat the code of the value",
            _value_once,
            "value.empty() or component.code.where(coding.intersect("
            "%resource.code.coding).exists()).empty()",
        ),
    ),
    "Observation.referenceRange": (
        Invariant(
            "obs-3",
            "a low, a high or a text",
            _one_of("low", "high", "text"),
            "low.exists() or high.exists() or text.exists()",
        ),
    ),
    "Organization": (
        Invariant(
            "org-1",
            "a name or an identifier",
            _one_of("name", "identifier"),
            "(identifier.count() + name.count()) > 0",
        ),
        *(
            Invariant(
                key,
                "an organization has no home",
                _not_at_home(element),
                "where(use = 'home').empty()",
                at=element,
            )
            for key, element in (("org-2", "address"), ("org-3", "telecom"))
        ),
    ),
    "Parameters.parameter": (
        Invariant("inv-1", "a value, a resource or parts", _one_content),
    ),
    "Patient.contact": (
        Invariant(
            "pat-1",
            "a name, a way to reach or an organization",
            _one_of("name", "telecom", "address", "organization"),
            "name.exists() or telecom.exists() or address.exists()"
            " or organization.exists()",
        ),
    ),
    "ServiceRequest": (
        Invariant(
            "prr-1",
            "orderDetail needs a code",
            _needs("orderDetail", "code"),
            "orderDetail.empty() or code.exists()",
        ),
    ),
    "Task": (
        Invariant(
            "inv-1",
            "lastModified is not before authoredOn",
            _not_before("authoredOn", "lastModified"),
            "lastModified.exists().not() or authoredOn.exists().not()"
            " or lastModified >= authoredOn",
        ),
    ),
}
