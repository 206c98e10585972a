"""The definitions of a release: profiles, extensions, terminology, search parameters.

They are constants: made once for a process, never written, without history, and
never in the database of patients.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from fhir.conformance.profiles import EXTENSIONS, PROFILES
from fhir.conformance.structures import structure_of_extension, structure_of_profile
from fhir.conformance.terminology import (
    CODE_SYSTEMS,
    VALUE_SETS,
    Words,
    heading,
    to_code_system,
    to_value_set,
)
from fhir.content import concepts
from fhir.encoding.wire import Json
from fhir.search.parameters import UnknownParameter, UnsupportedModifier, parameter

Key = tuple[str, str]
# What a type can be searched by that R4 has no parameter for.
_OWN_PARAMETERS: Mapping[Key, Words] = {
    ("DiagnosticReport", "imaging-study"): Words(
        "报告所依据的影像检查", "The imaging study that a report is about"
    ),
    ("Communication", "about"): Words(
        "通知所涉及的报告", "The report that a person was told of"
    ),
}
# What shapes the answer to a search of them.
_SHAPING = frozenset({"_count", "_page", "_summary", "_elements", "_total", "_format"})
_SHAPING |= {"_pretty"}


def _begins(held: str, asked: str) -> bool:
    return held.casefold().startswith(asked.casefold())


def _equals(held: str, asked: str) -> bool:
    return held == asked


def _contains(held: str, asked: str) -> bool:
    return asked.casefold() in held.casefold()


# What definitions are found by: the element, and how its value is compared for each
# modifier. The CapabilityStatement names these.
FOUND_BY: Mapping[str, tuple[str, Mapping[str, Callable[[str, str], bool]]]] = {
    "_id": ("token", {"": _equals}),
    "url": ("uri", {"": _equals}),
    "version": ("token", {"": _equals}),
    "status": ("token", {"": _equals}),
    "name": ("string", {"": _begins, "exact": _equals, "contains": _contains}),
}


@cache
def definitions(version: str) -> Mapping[Key, Json]:
    """Return every definition of a release by its type and id."""
    found = [
        *(to_code_system(system, version) for system in CODE_SYSTEMS.values()),
        *(to_value_set(value_set, version) for value_set in VALUE_SETS.values()),
        *(structure_of_profile(profile, version) for profile in PROFILES),
        *(structure_of_extension(one, version) for one in EXTENSIONS.values()),
        *(_search_parameter(*key, version) for key in _OWN_PARAMETERS),
    ]
    return {(one["resourceType"], one["id"]): one for one in found}


def profiles_of(kind: str) -> Sequence[str]:
    """Return the profiles of a type, as a CapabilityStatement names them."""
    return [profile.url for profile in PROFILES if profile.type == kind]


def own_parameter(kind: str, name: str) -> str | None:
    """Return the canonical of a search parameter of ours, None for one of R4's."""
    known = (kind, name) in _OWN_PARAMETERS
    return f"{concepts.BASE}/SearchParameter/{kind}-{name}" if known else None


def narrowed(kind: str, found: list[Json], name: str, value: str) -> list[Json]:
    """Return what of `found` a parameter leaves; raises for one that is not ours."""
    bare, _, modifier = name.partition(":")
    if name in _SHAPING or not value:
        return found
    if bare not in FOUND_BY:
        raise UnknownParameter(name, kind)
    compares = FOUND_BY[bare][1].get(modifier)
    if compares is None:
        raise UnsupportedModifier(name)
    element = bare.removeprefix("_")
    wanted = [text.rpartition("|")[2] for text in value.split(",")]
    return [one for one in found if any(compares(str(one[element]), w) for w in wanted)]


def _search_parameter(kind: str, name: str, version: str) -> Json:
    found, words = parameter(kind, name), _OWN_PARAMETERS[kind, name]
    if found is None:
        raise KeyError(f"{kind} is not searched by {name}")
    head = heading(f"{kind}-{name}", own_parameter(kind, name) or "", words, version)
    for key in ("language", "title", "_title"):  # R4 has no title here
        del head[key]
    return {
        "resourceType": "SearchParameter",
        **head,
        "code": name,
        "base": [kind],
        "type": found.kind,
        "expression": f"{kind}.{found.path}",
        "target": list(found.targets),
    }
