"""Search parameters: one table that indexes, parses queries and states capability."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fhir.wire import Json, as_list, date_range, reference_parts
from node.domain.errors import ErrorKind, NodeError
from node.store.resources import (
    LAST_UPDATED,
    NEVER,
    PREFIXES,
    Chained,
    Criterion,
    DateRange,
    Has,
    IdIs,
    Index,
    Reference,
    RefersTo,
    Token,
    TokenIs,
    Within,
)

Kind = Literal["token", "reference", "date", "string"]
NAME_PREFIX_LENGTH = 16


@dataclass(frozen=True)
class Parameter:
    """One search parameter; `path` is an element path without indexes.

    `identifying` values are kept as an HMAC and only callers who see identity
    may search them, unless `accession` (a doctor knows what is on her request).
    `sorts` marks the one date of a type that _sort takes besides _lastUpdated.
    """

    name: str
    kind: Kind
    path: str
    targets: tuple[str, ...] = ()
    identifying: bool = False
    accession: bool = False
    sorts: bool = False


def _patient(path: str) -> tuple[Parameter, ...]:
    return (
        Parameter("subject", "reference", path, ("Patient",)),
        Parameter("patient", "reference", path, ("Patient",)),
    )


_IDENTIFIER = Parameter("identifier", "token", "identifier")
_PRIVATE_IDENTIFIER = Parameter("identifier", "token", "identifier", identifying=True)
_ACCESSION = Parameter(
    "identifier", "token", "identifier", identifying=True, accession=True
)
_STATUS = Parameter("status", "token", "status")

PARAMETERS: Mapping[str, tuple[Parameter, ...]] = {
    "Patient": (
        _PRIVATE_IDENTIFIER,
        Parameter("name", "string", "name", identifying=True),
        Parameter("gender", "token", "gender"),
    ),
    "Practitioner": (_IDENTIFIER,),
    "Device": (_IDENTIFIER,),
    "ServiceRequest": (
        _ACCESSION,
        _STATUS,
        *_patient("subject"),
        Parameter("authored", "date", "authoredOn", sorts=True),
    ),
    "ImagingStudy": (
        _ACCESSION,
        _STATUS,
        *_patient("subject"),
        Parameter("basedon", "reference", "basedOn", ("ServiceRequest",)),
        Parameter("modality", "token", "modality"),
        Parameter("started", "date", "started", sorts=True),
    ),
    "DiagnosticReport": (
        _ACCESSION,
        _STATUS,
        *_patient("subject"),
        Parameter("code", "token", "code"),
        Parameter("category", "token", "category"),
        Parameter("date", "date", "effectiveDateTime", sorts=True),
        Parameter("issued", "date", "issued"),
        Parameter("based-on", "reference", "basedOn", ("ServiceRequest",)),
        Parameter("result", "reference", "result", ("Observation",)),
        Parameter("imaging-study", "reference", "imagingStudy", ("ImagingStudy",)),
        Parameter(
            "results-interpreter", "reference", "resultsInterpreter", ("Practitioner",)
        ),
        Parameter("performer", "reference", "performer", ("Device", "Practitioner")),
    ),
    "Observation": (
        _IDENTIFIER,
        _STATUS,
        *_patient("subject"),
        Parameter("code", "token", "code"),
        Parameter("category", "token", "category"),
        Parameter("value-concept", "token", "valueCodeableConcept"),
        Parameter("date", "date", "effectiveDateTime", sorts=True),
        Parameter("device", "reference", "device", ("Device",)),
        Parameter("performer", "reference", "performer", ("Practitioner",)),
        Parameter("has-member", "reference", "hasMember", ("Observation",)),
        Parameter("derived-from", "reference", "derivedFrom", ("ImagingStudy",)),
    ),
    "Provenance": (
        Parameter("target", "reference", "target"),
        Parameter("agent", "reference", "agent.who"),
        Parameter("recorded", "date", "recorded", sorts=True),
    ),
    "Communication": (
        _STATUS,
        *_patient("subject"),
        Parameter("about", "reference", "about"),
        Parameter("sent", "date", "sent", sorts=True),
    ),
    "Subscription": (_STATUS, Parameter("criteria", "token", "criteria")),
}
# IHE IMR writes these names in camel case.
_ALIASES = {"basedOn": "based-on", "imagingStudy": "imaging-study"}
CONTROL = frozenset(
    {"_count", "_sort", "_include", "_revinclude", "_summary", "_total", "_format"}
    | {"_pretty", "_page", "_include:iterate"}
)


def parameter(resource_type: str, name: str) -> Parameter | None:
    """Return the parameter of a type by its name or IHE's name for it."""
    wanted = _ALIASES.get(name, name)
    for candidate in PARAMETERS[resource_type]:
        if candidate.name == wanted:
            return candidate
    return None


# --- indexing -----------------------------------------------------------------


def index_of(resource: Json) -> Index:
    """Return all that a resource is found by."""
    tokens: list[Token] = []
    references: list[Reference] = []
    dates: list[DateRange] = []
    happened_at = NEVER
    for p in PARAMETERS.get(resource["resourceType"], ()):
        values = list(_values(resource, p.path.split(".")))
        if p.kind == "reference":
            for value in values:
                target = reference_parts(value)
                if target is not None:
                    references.append(Reference(p.name, *target))
        elif p.kind == "date":
            found = [DateRange(p.name, *date_range(v)) for v in values]
            dates += found
            if p.sorts and found:
                happened_at = found[0].earliest
        elif p.kind == "string":
            words = {w for value in values for w in _name_words(value)}
            tokens += [Token(p.name, "", w, identifying=True) for w in sorted(words)]
        else:
            tokens += [
                Token(p.name, system, code, p.identifying)
                for system, code in dict.fromkeys(
                    pair for value in values for pair in _tokens(value)
                )
            ]
    return Index(tuple(tokens), tuple(references), tuple(dates), happened_at)


def _values(element: Any, path: list[str]) -> Iterable[Any]:
    if not path:
        if element is not None:
            yield element
        return
    for item in as_list(element):
        if isinstance(item, dict):
            for value in as_list(item.get(path[0])):
                yield from _values(value, path[1:])


def _tokens(value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, str):
        yield "", value
    elif isinstance(value, dict):
        for item in as_list(value.get("coding")):
            yield str(item.get("system", "")), str(item.get("code", ""))
        if "code" in value:
            yield str(value.get("system", "")), str(value["code"])
        elif "value" in value:
            yield str(value.get("system", "")), str(value["value"])


def _name_words(name: Any) -> set[str]:
    """Return every prefix of a HumanName's parts, as _name_ matches by beginning."""
    parts = [name.get("text"), name.get("family"), *as_list(name.get("given"))]
    words = {str(part).strip() for part in parts if part}
    lengths = range(1, NAME_PREFIX_LENGTH + 1)
    return {word[:n] for word in words for n in lengths if word[:n].strip()}


# --- parsing --------------------------------------------------------------------

_INCLUDE = re.compile(r"([A-Za-z]+):([A-Za-z-]+)(?::([A-Za-z]+))?")


class UnknownParameter(NodeError):
    """A query names something that this server cannot search by."""

    def __init__(self, name: str, resource_type: str) -> None:
        # The name comes from a URL and could hold anything: only a sane one is told.
        told = name if re.fullmatch(r"[A-Za-z_.:-]{1,64}", name) else "a parameter"
        super().__init__(
            f"{told} is not a search parameter of {resource_type} here",
            ErrorKind.INVALID,
        )


@dataclass(frozen=True)
class Include:
    """An _include or _revinclude: who refers, through what, to which type."""

    source: str
    parameter: str
    target: str | None


def criterion(
    resource_type: str, name: str, value: str, *, sees_identity: bool
) -> Criterion:
    """Return what `name=value` asks of a resource type.

    Raises UnknownParameter, INVALID for a value that cannot be read and
    FORBIDDEN when a caller with masked view asks by an identity.
    """
    bare, _, modifier = name.partition(":")
    if "." in name:
        return _chained(resource_type, name, value, sees_identity)
    if bare == "_id" and not modifier:
        return IdIs(tuple(value.split(",")))
    if bare == LAST_UPDATED and not modifier:
        return _within(LAST_UPDATED, value)
    found = parameter(resource_type, bare)
    if found is None:
        raise UnknownParameter(name, resource_type)
    if found.identifying and not found.accession and not sees_identity:
        raise NodeError(
            "searching by a patient's identity needs the right to see it",
            ErrorKind.FORBIDDEN,
        )
    if modifier == "missing":
        kind: Any = "token" if found.kind == "string" else found.kind
        return Has(found.name, kind, value != "true")
    match found.kind:
        case "token":
            return _token(found, modifier, value, resource_type)
        case "reference":
            return _reference(found, modifier, value, resource_type)
        case "date" if not modifier:
            return _within(found.name, value)
        case "string" if not modifier:
            wanted = tuple((None, v[:NAME_PREFIX_LENGTH]) for v in value.split(","))
            return TokenIs(found.name, wanted, identifying=True)
    raise UnknownParameter(name, resource_type)


def _token(
    found: Parameter, modifier: str, value: str, resource_type: str
) -> Criterion:
    if modifier not in ("", "not"):
        raise UnknownParameter(f"{found.name}:{modifier}", resource_type)
    wanted: list[tuple[str | None, str | None]] = []
    for alternative in value.split(","):
        system, bar, code = alternative.rpartition("|")
        if not bar:
            wanted.append((None, alternative))
        else:
            wanted.append((system, code or None))
    return TokenIs(found.name, tuple(wanted), found.identifying, modifier == "not")


def _reference(
    found: Parameter, modifier: str, value: str, resource_type: str
) -> Criterion:
    if modifier and modifier not in found.targets:
        raise UnknownParameter(f"{found.name}:{modifier}", resource_type)
    targets: list[tuple[str | None, str]] = []
    for alternative in value.split(","):
        parts = alternative.rstrip("/").split("/")
        kind = parts[-2] if len(parts) > 1 else modifier or None
        targets.append((kind, parts[-1]))
    return RefersTo(found.name, tuple(targets))


def _within(name: str, value: str) -> Criterion:
    prefix = value[:2] if value[:2] in PREFIXES else "eq"
    text = value[2:] if value[:2] in PREFIXES else value
    return Within(name, prefix, *date_range(text))


def _chained(
    resource_type: str, name: str, value: str, sees_identity: bool
) -> Criterion:
    head, _, rest = name.partition(".")
    bare, _, target = head.partition(":")
    found = parameter(resource_type, bare)
    if found is None or found.kind != "reference" or "." in rest:
        raise UnknownParameter(name, resource_type)
    if not target and len(found.targets) == 1:
        target = found.targets[0]
    if target not in found.targets or target not in PARAMETERS:
        raise UnknownParameter(name, resource_type)
    inner = criterion(target, rest, value, sees_identity=sees_identity)
    return Chained(found.name, target, inner)


def include(value: str) -> Include:
    """Return what an _include or _revinclude asks; UnknownParameter when not ours."""
    match = _INCLUDE.fullmatch(value)
    if match is None or match[1] not in PARAMETERS:
        raise UnknownParameter("_include", "this server")
    found = parameter(match[1], match[2])
    if found is None or found.kind != "reference":
        raise UnknownParameter(f"_include={match[1]}:{match[2]}", match[1])
    return Include(match[1], found.name, match[3])


def sort(resource_type: str, value: str) -> tuple[bool, bool]:
    """Return (by clinical date, descending) of a _sort with one key."""
    descending, name = value.startswith("-"), value.lstrip("-")
    if name == LAST_UPDATED:
        return False, descending
    found = parameter(resource_type, name)
    if found is None or not found.sorts:
        raise UnknownParameter(f"_sort={name}", resource_type)
    return True, descending


def accession_criterion(accession_number: str) -> Criterion:
    """Return the search for resources with this accession number."""
    return TokenIs("identifier", ((None, accession_number),), identifying=True)
