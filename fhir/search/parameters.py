"""Search parameters: one table that indexes, parses queries and states capability."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from fhir.content.masked import UNLABELLED_TYPES
from fhir.encoding.wire import Json, as_list, date_range, reference_parts
from node.domain.errors import ErrorKind, NodeError
from node.store.resources import NEVER, DateRange, Index, Reference, Token
from node.store.search.criteria import (
    LAST_UPDATED,
    PREFIXES,
    AnyOf,
    Chained,
    Criterion,
    Has,
    IdIs,
    Order,
    ReferredBy,
    RefersTo,
    TokenIs,
    Within,
)

Kind = Literal["token", "reference", "date", "string", "uri"]
NAME_PREFIX_LENGTH = 16
# One more whenever `index_of` finds something else: the worker then indexes anew
# what was stored before.
INDEX_VERSION = 6
# What a resource has no value for stands in the index under this name: where hardly any
# lacks a value, it takes long to look at each.
_MISSING = "_missing"


@dataclass(frozen=True)
class Parameter:
    """One search parameter; `path` is an element path without indexes.

    `identifying` values are kept as an HMAC and only callers who see identity
    may search them, unless `accession` (a doctor knows what is on her request).
    `also` is the name that IHE IMR writes it by.
    `sorts` marks the date by which a type is sorted unless asked otherwise, and
    `sortable` another one that _sort takes.
    """

    name: str
    kind: Kind
    path: str
    targets: tuple[str, ...] = ()
    identifying: bool = False
    accession: bool = False
    sorts: bool = False
    sortable: bool = False
    also: str = ""


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
_ENDPOINT = Parameter("endpoint", "reference", "endpoint", ("Endpoint",))
_BASED_ON = Parameter(
    "based-on", "reference", "basedOn", ("ServiceRequest",), also="basedOn"
)
# What every resource can be found by, besides _id and _lastUpdated.
COMMON = (
    Parameter("_security", "token", "meta.security"),
    Parameter("_tag", "token", "meta.tag"),
    Parameter("_profile", "uri", "meta.profile"),
)

_REPORTED = ("DiagnosticReport", "Observation")

PARAMETERS: Mapping[str, tuple[Parameter, ...]] = {
    "Patient": (
        _PRIVATE_IDENTIFIER,
        Parameter("name", "string", "name", identifying=True),
        Parameter("family", "string", "name.family", identifying=True),
        Parameter("given", "string", "name.given", identifying=True),
        Parameter("birthdate", "date", "birthDate", identifying=True),
        Parameter("gender", "token", "gender"),
        Parameter("active", "token", "active"),
        Parameter("link", "reference", "link.other", ("Patient",)),
        Parameter(
            "organization", "reference", "managingOrganization", ("Organization",)
        ),
    ),
    "Practitioner": (_IDENTIFIER,),
    "PractitionerRole": (
        Parameter("active", "token", "active"),
        Parameter("practitioner", "reference", "practitioner", ("Practitioner",)),
        Parameter("organization", "reference", "organization", ("Organization",)),
        Parameter("role", "token", "code"),
    ),
    "Organization": (
        _IDENTIFIER,
        Parameter("active", "token", "active"),
        Parameter("type", "token", "type"),
        Parameter("partof", "reference", "partOf", ("Organization",)),
        _ENDPOINT,
    ),
    "Endpoint": (
        _STATUS,
        Parameter("connection-type", "token", "connectionType"),
        Parameter("payload-type", "token", "payloadType"),
        Parameter(
            "organization", "reference", "managingOrganization", ("Organization",)
        ),
    ),
    "Device": (
        _IDENTIFIER,
        Parameter("organization", "reference", "owner", ("Organization",)),
    ),
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
        Parameter(
            "basedon", "reference", "basedOn", ("ServiceRequest",), also="basedOn"
        ),
        Parameter("modality", "token", "modality"),
        Parameter("started", "date", "started", sorts=True),
        _ENDPOINT,
    ),
    "DiagnosticReport": (
        _ACCESSION,
        _STATUS,
        *_patient("subject"),
        Parameter("code", "token", "code"),
        Parameter("category", "token", "category"),
        Parameter("date", "date", "effectiveDateTime", sorts=True),
        Parameter("issued", "date", "issued", sortable=True),
        _BASED_ON,
        Parameter("result", "reference", "result", ("Observation",)),
        Parameter(
            "imaging-study",
            "reference",
            "imagingStudy",
            ("ImagingStudy",),
            also="imagingStudy",
        ),
        Parameter(
            "results-interpreter",
            "reference",
            "resultsInterpreter",
            ("Practitioner",),
            also="resultsInterpreter",
        ),
        Parameter("performer", "reference", "performer", ("Organization",)),
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
    "BodyStructure": (
        _IDENTIFIER,
        Parameter("location", "token", "location"),
        Parameter("patient", "reference", "patient", ("Patient",)),
    ),
    "DocumentReference": (
        _IDENTIFIER,
        _STATUS,
        *_patient("subject"),
        Parameter("type", "token", "type"),
        Parameter("category", "token", "category"),
        Parameter("date", "date", "date", sorts=True),
        Parameter("author", "reference", "author", ("Practitioner",)),
        Parameter("authenticator", "reference", "authenticator", ("Practitioner",)),
        Parameter("custodian", "reference", "custodian", ("Organization",)),
        Parameter("contenttype", "token", "content.attachment.contentType"),
        Parameter("language", "token", "content.attachment.language"),
        Parameter(
            "related",
            "reference",
            "context.related",
            ("DiagnosticReport", "ImagingStudy"),
        ),
        Parameter("relatesto", "reference", "relatesTo.target", ("DocumentReference",)),
    ),
    # Read by its address only, as what it is: there is nothing to find it by.
    "Binary": (),
    "Consent": (
        _STATUS,
        Parameter("patient", "reference", "patient", ("Patient",)),
        Parameter("scope", "token", "scope"),
        Parameter("category", "token", "category"),
        Parameter("date", "date", "dateTime", sorts=True),
        Parameter("organization", "reference", "organization", ("Organization",)),
    ),
    "Provenance": (
        Parameter(
            "target",
            "reference",
            "target",
            (*_REPORTED, "BodyStructure", "DocumentReference"),
        ),
        Parameter("agent", "reference", "agent.who", ("Device", "Practitioner")),
        Parameter("recorded", "date", "recorded", sorts=True),
    ),
    "Communication": (
        _STATUS,
        *_patient("subject"),
        Parameter("about", "reference", "about", _REPORTED),
        Parameter("sent", "date", "sent", sorts=True),
    ),
    "Subscription": (_STATUS, Parameter("criteria", "uri", "criteria")),
}
# Where resources without a date stand that others of their type are sorted by: dates
# of the index are finite.
_UNDATED = datetime(1000, 1, 1, tzinfo=UTC)
# How IHE IMR writes parameters of a patient behind `patient.` (RAD-143).
_OF_NAMES = {"name.given": "given", "name.family": "family"}
# What shapes the answer instead of choosing what is found.
CONTROL = frozenset(
    {"_count", "_sort", "_include", "_include:iterate", "_revinclude"}
    | {"_revinclude:iterate", "_summary", "_elements", "_total", "_format"}
    | {"_pretty", "_page", "_contained"}
)


def parameter(resource_type: str, name: str) -> Parameter | None:
    """Return the parameter of a type by its name or IHE's name for it."""
    for candidate in (*PARAMETERS[resource_type], *COMMON):
        if name in (candidate.name, candidate.also):
            return candidate
    return None


# --- indexing -----------------------------------------------------------------


def index_of(resource: Json) -> Index:
    """Return all that a resource is found by."""
    tokens: list[Token] = []
    references: list[Reference] = []
    dates: list[DateRange] = []
    happened_at = NEVER
    parameters = (*PARAMETERS.get(resource["resourceType"], ()), *COMMON)
    for p in parameters:
        values = list(_values(resource, p.path.split(".")))
        if p.kind == "reference":
            for value in values:
                target = reference_parts(value)
                if target is not None:
                    references.append(Reference(p.name, *target))
                logical = value.get("identifier") if isinstance(value, dict) else None
                tokens += [
                    Token(_logical(p.name), system, code, identifying=True)
                    for system, code in _tokens(logical)
                ]
        elif p.kind == "date" and p.identifying:
            days = {part for value in values for part in _parts_of(str(value))}
            tokens += [Token(p.name, "", day, identifying=True) for day in sorted(days)]
        elif p.kind == "date":
            found = [DateRange(p.name, *date_range(v)) for v in values]
            dates += found
            if p.sortable:  # every resource has a place, also one without the date
                at = found[0].earliest if found else _UNDATED
                dates.append(DateRange(sort_name(p.name), at, at))
            if p.sorts and found:
                happened_at = found[0].earliest
        elif p.kind == "string":
            names = {name for value in values for name in _names(value)}
            words = {word for name in names for word in _beginnings(name)}
            tokens += [Token(p.name, "", w, identifying=True) for w in sorted(words)]
            tokens += [
                Token(_exact(p.name), "", _to_the_letter(name), identifying=True)
                for name in sorted(names)
            ]
        elif p.kind == "uri":
            tokens += [Token(p.name, "", str(value)) for value in values]
        else:
            tokens += [
                Token(p.name, system, code, p.identifying)
                for system, code in dict.fromkeys(
                    pair for value in values for pair in _tokens(value)
                )
            ]
    held = {t.parameter for t in tokens} | {r.parameter for r in references}
    held |= {d.parameter for d in dates}
    tokens += [Token(_MISSING, "", p.name) for p in parameters if p.name not in held]
    return Index(
        tuple(tokens), tuple(references), tuple(dates), happened_at, INDEX_VERSION
    )


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
    if isinstance(value, bool):
        yield "", str(value).lower()
    elif isinstance(value, str):
        yield "", value
    elif isinstance(value, dict):
        for item in as_list(value.get("coding")):
            yield str(item.get("system", "")), str(item.get("code", ""))
        if "code" in value:
            yield str(value.get("system", "")), str(value["code"])
        elif "value" in value:
            yield str(value.get("system", "")), str(value["value"])


def _names(name: Any) -> set[str]:
    if isinstance(name, str):
        return {name.strip()} - {""}
    parts = [name.get("text"), name.get("family"), *as_list(name.get("given"))]
    return {str(part).strip() for part in parts if part} - {""}


def _beginnings(name: str) -> set[str]:
    """Return all that _name_ finds a name by: its beginnings, and the whole of it."""
    lengths = range(1, NAME_PREFIX_LENGTH + 1)
    return {name, *(name[:n] for n in lengths if name[:n].strip())}


def _parts_of(day: str) -> list[str]:
    """Return a day, its month and its year: a search may ask for any of them."""
    return [day[:length] for length in (4, 7, 10) if length <= len(day)]


def _to_the_letter(text: str) -> str:
    """Return `text` in a form that survives folding: :exact tells case apart."""
    return text.encode().hex()


def _exact(name: str) -> str:
    return f"{name}:exact"


def sort_name(name: str) -> str:
    """Return under which name the index keeps what _sort goes by."""
    return f"{name}:sort"


def _logical(name: str) -> str:
    return f"{name}:identifier"


# --- parsing --------------------------------------------------------------------

_HAS = re.compile(
    r"_has:([A-Za-z]+):([A-Za-z-]+):([A-Za-z_][A-Za-z-]*)(?::([A-Za-z]+))?"
)
_DAY = re.compile(r"\d{4}(?:-\d\d(?:-\d\d)?)?")
_INCLUDE = re.compile(r"([A-Za-z]+):([A-Za-z_-]+)(?::([A-Za-z]+))?")
# A comma separates alternatives unless a backslash stands before it (3.1.1.4.4).
_COMMA = re.compile(r"(?<!\\),")
_BAR = re.compile(r"(?<!\\)\|")
_ESCAPED = re.compile(r"\\([,|$\\])")


class UnknownParameter(NodeError):
    """A query names something that this server cannot search by."""

    def __init__(self, name: str, resource_type: str) -> None:
        super().__init__(
            f"{_told(name)} is not a search parameter of {resource_type} here",
            ErrorKind.INVALID,
        )


class UnsupportedModifier(NodeError):
    """A parameter is known, what a modifier asks of it is not: always refused.

    To leave a modifier out would find something else than was asked (3.1.1.4.4).
    """

    def __init__(self, name: str, reason: str = "this modifier is not offered") -> None:
        super().__init__(
            f"{_told(name)}: {reason}", ErrorKind.INVALID, expression=_told(name)
        )


def _told(name: str) -> str:
    # The name comes from a URL and could hold anything: only a sane one is told.
    return name if re.fullmatch(r"[A-Za-z_.:=-]{1,64}", name) else "a parameter"


@dataclass(frozen=True)
class Include:
    """An _include or _revinclude: who refers, through what, to which type."""

    source: str
    parameter: str
    target: str | None


def criterion(
    resource_type: str,
    name: str,
    value: str,
    *,
    sees_identity: bool,
    base_url: str = "",
) -> Criterion:
    """Return what `name=value` asks of a resource type.

    Raises UnknownParameter, UnsupportedModifier, INVALID for a value that cannot
    be read and FORBIDDEN when a caller with masked view asks by an identity.
    `base_url` is ours: a reference to another server finds nothing here.
    """
    asked = _Asked(sees_identity, base_url)
    if name.startswith("_has:"):
        return asked.reverse_chained(resource_type, name, value)
    if "." in name:
        return asked.chained(resource_type, name, value)
    bare, _, modifier = name.partition(":")
    return asked.plain(resource_type, bare, modifier, value)


@dataclass(frozen=True)
class _Asked:
    sees_identity: bool
    base_url: str

    def plain(
        self, resource_type: str, bare: str, modifier: str, value: str
    ) -> Criterion:
        name = f"{bare}:{modifier}" if modifier else bare
        if bare in ("_id", LAST_UPDATED):
            if modifier:
                raise UnsupportedModifier(name)
            if bare == "_id":
                return IdIs(tuple(_alternatives(value)))
            return _dates(LAST_UPDATED, value)
        found = parameter(resource_type, bare)
        if found is None:
            raise UnknownParameter(name, resource_type)
        self._require_sight(found)
        if found in COMMON and resource_type in UNLABELLED_TYPES:
            self._require_labels(found)
        if modifier == "missing":
            return _missing(found, name, value)
        match found.kind:
            case "token" | "uri" if modifier in ("", "not"):
                return _token(found, value, negated=modifier == "not")
            case "reference" if modifier == "identifier":
                return self._by_identifier(found, value)
            case "reference" if not modifier or modifier in found.targets:
                return self._reference(found, modifier, value)
            case "date" if found.identifying and not modifier:
                return _days(found, value)
            case "date" if not modifier:
                return _dates(found.name, value, sorts=found.sorts)
            case "string" if modifier in ("", "exact"):
                return _string(found, value, exact=modifier == "exact")
            case "string" if modifier == "contains":
                raise UnsupportedModifier(
                    name, "names are kept as blind indexes of how they begin"
                )
        raise UnsupportedModifier(name)

    def chained(self, resource_type: str, name: str, value: str) -> Criterion:
        head, _, rest = name.partition(".")
        bare, _, target = head.partition(":")
        found = parameter(resource_type, bare)
        inner, _, modifier = rest.partition(":")
        inner = _OF_NAMES.get(inner, inner)
        if found is None or found.kind != "reference" or "." in inner:
            raise UnknownParameter(name, resource_type)
        if not target and len(found.targets) == 1:
            target = found.targets[0]
        if target not in found.targets:
            raise UnknownParameter(name, resource_type)
        asked = self.plain(target, inner, modifier, value)
        return Chained(found.name, target, asked)

    def reverse_chained(self, resource_type: str, name: str, value: str) -> Criterion:
        """Return what asks for those to whom others refer (`_has`, 3.1.1.5.5)."""
        match = _HAS.fullmatch(name)
        if match is None or match[1] not in PARAMETERS:
            raise UnknownParameter("_has", resource_type)
        source, reference, inner, modifier = match.groups()
        found = parameter(source, reference)
        if found is None or resource_type not in found.targets:
            raise UnknownParameter("_has", resource_type)
        asked = self.plain(source, inner, modifier or "", value)
        return ReferredBy(source, found.name, asked)

    def _require_sight(self, found: Parameter) -> None:
        if found.identifying and not found.accession and not self.sees_identity:
            raise NodeError(
                "searching by a patient's identity needs the right to see it",
                ErrorKind.FORBIDDEN,
            )

    def _require_labels(self, found: Parameter) -> None:
        if found.name != "_security" and not self.sees_identity:
            raise NodeError(
                "searching by labels that are not shown needs the right to see them",
                ErrorKind.FORBIDDEN,
            )

    def _by_identifier(self, found: Parameter, value: str) -> Criterion:
        """Return who refers by this identifier, or to what has it."""
        wanted = _codes(value)
        options: list[Criterion] = []
        seen: list[Parameter] = []
        for target in found.targets:
            its = parameter(target, "identifier")
            if its is not None:
                seen.append(its)
                inner = TokenIs("identifier", wanted, its.identifying)
                options.append(Chained(found.name, target, inner))
        for its in seen or [_PRIVATE_IDENTIFIER]:
            self._require_sight(its)
        logical = TokenIs(_logical(found.name), wanted, identifying=True)
        return AnyOf(tuple((one,) for one in (logical, *options)))

    def _reference(self, found: Parameter, modifier: str, value: str) -> Criterion:
        targets: list[tuple[str | None, str]] = []
        for alternative in _alternatives(value):
            local = alternative
            if "://" in alternative:
                local = alternative.removeprefix(f"{self.base_url}/")
                if not self.base_url or local == alternative:
                    continue
            local = local.partition("/_history/")[0].strip("/")
            kind, _, resource_id = local.rpartition("/")
            if modifier and kind and kind != modifier:
                continue
            targets.append((kind or modifier or None, resource_id))
        return RefersTo(found.name, tuple(targets))


def _alternatives(value: str) -> list[str]:
    return [_ESCAPED.sub(r"\1", part) for part in _COMMA.split(value)]


def _missing(found: Parameter, name: str, value: str) -> Criterion:
    if value not in ("true", "false"):
        raise NodeError(
            "the value of :missing is true or false",
            ErrorKind.INVALID,
            expression=_told(name),
        )
    if value == "true":
        return TokenIs(_MISSING, ((None, found.name),))
    if found.kind in ("reference", "date") and not found.identifying:
        return Has(found.name, found.kind)
    return Has(found.name, "token")


def _token(found: Parameter, value: str, *, negated: bool) -> Criterion:
    if found.kind == "uri":
        wanted = tuple((None, uri) for uri in _alternatives(value))
        return TokenIs(found.name, wanted, negated=negated)
    return TokenIs(found.name, _codes(value), found.identifying, negated)


def _codes(value: str) -> tuple[tuple[str | None, str | None], ...]:
    """Return (system, code) of each alternative: `code`, `system|code`, `system|`."""
    wanted: list[tuple[str | None, str | None]] = []
    for alternative in _COMMA.split(value):
        bars = [match.start() for match in _BAR.finditer(alternative)]
        if not bars:
            wanted.append((None, _ESCAPED.sub(r"\1", alternative)))
            continue
        # Systems are URIs and may hold a bar of their own: the last one separates.
        system, code = alternative[: bars[-1]], alternative[bars[-1] + 1 :]
        code = _ESCAPED.sub(r"\1", code)
        wanted.append((_ESCAPED.sub(r"\1", system), code or None))
    return tuple(wanted)


def _string(found: Parameter, value: str, *, exact: bool) -> Criterion:
    wanted = [v.strip() for v in _alternatives(value)]
    if exact:
        letters = tuple((None, _to_the_letter(v)) for v in wanted)
        return TokenIs(_exact(found.name), letters, identifying=True)
    # Longer than what is indexed of beginnings: only a whole name is that long.
    return TokenIs(found.name, tuple((None, v) for v in wanted), identifying=True)


def _days(found: Parameter, value: str) -> Criterion:
    """Return what asks for a day, month or year of which only an HMAC is kept."""
    wanted = [one.removeprefix("eq") for one in value.split(",")]
    if not all(_DAY.fullmatch(day) for day in wanted):
        raise NodeError(
            f"{found.name} is a day, a month or a year: it is kept as a blind index,"
            " which knows no earlier and no later",
            ErrorKind.INVALID,
            expression=found.name,
        )
    return TokenIs(found.name, tuple((None, day) for day in wanted), identifying=True)


def _dates(name: str, value: str, *, sorts: bool = False) -> Criterion:
    options = tuple(_within(name, one, sorts=sorts) for one in value.split(","))
    return options[0] if len(options) == 1 else AnyOf(tuple((o,) for o in options))


def _within(name: str, value: str, *, sorts: bool) -> Criterion:
    if value.startswith("ap"):
        told = "ap is not offered: say from when (ge) and until when (le)"
        raise NodeError(told, ErrorKind.INVALID, expression=_told(name))
    prefix = value[:2] if value[:2] in PREFIXES else "eq"
    text = value[2:] if value[:2] in PREFIXES else value
    return Within(name, prefix, *date_range(text), sorts)


def includes(resource_type: str, value: str) -> list[Include]:
    """Return what an _include or _revinclude asks; `*` is every reference of a type."""
    source, _, name = value.partition(":")
    if value == "*":
        source = resource_type
    elif name != "*":
        return [_include(value)]
    if source not in PARAMETERS:
        raise UnknownParameter("_include", "this server")
    every = (p for p in PARAMETERS[source] if p.kind == "reference")
    return [Include(source, p.name, None) for p in every]


def _include(value: str) -> Include:
    """Return one _include or _revinclude; UnknownParameter when not ours."""
    match = _INCLUDE.fullmatch(value)
    if match is None or match[1] not in PARAMETERS:
        raise UnknownParameter("_include", "this server")
    found = parameter(match[1], match[2])
    if found is None or found.kind != "reference":
        raise UnknownParameter(f"_include={match[1]}:{match[2]}", match[1])
    return Include(match[1], found.name, match[3])


def sort(resource_type: str, value: str) -> tuple[Order, ...]:
    """Return the sort keys of a _sort: _lastUpdated, _id and dates of the type."""
    keys: dict[str, Order] = {}
    for part in value.split(","):
        name = part.removeprefix("-")
        found = parameter(resource_type, name)
        if name == LAST_UPDATED:
            key = "updated"
        elif name == "_id":
            key = "id"
        elif found is not None and found.sorts:
            key = "happened"
        elif found is not None and found.sortable:
            key = sort_name(found.name)
        else:
            raise UnknownParameter(f"_sort={name}", resource_type)
        keys.setdefault(key, Order(key, descending=part.startswith("-")))
    return tuple(keys.values())


def accession_criterion(accession_number: str) -> Criterion:
    """Return the search for resources with this accession number."""
    return TokenIs("identifier", ((None, accession_number),), identifying=True)
