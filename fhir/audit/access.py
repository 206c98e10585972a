"""What a request below /fhir is called in the audit trail, without any name in it.

The words come from the route and from what was noted, so an operation that is added
elsewhere is told without knowing of this. Of a search the trail keeps what identifies
nobody; another value is kept blind: equal values look equal, and nobody reads them.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from fhir.conformance.rules import required_codes
from fhir.conformance.terminology import VALUE_SETS
from fhir.encoding.elements import elements_of
from fhir.search.parameters import CONTROL, PARAMETERS, parameter
from fhir.security.access import PERMITS
from node.domain.audit import Noted
from node.recording import UNKNOWN_ID, Told, safe_id

if TYPE_CHECKING:
    from node.store.store import Store

_ROOT = "/fhir"
_WRITING = {
    hdrs.METH_POST: "create",
    hdrs.METH_PUT: "update",
    hdrs.METH_PATCH: "patch",
    hdrs.METH_DELETE: "delete",
}
_BLIND_CHARACTERS = 16
_DATES = re.compile(
    r"[a-z]{0,2}\d{4}(-\d\d(-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)?)?)?)?"
)
_NUMBERS = re.compile(r"\d{1,4}")
_REFERENCES = re.compile(
    r"(?:[A-Z][A-Za-z]+/)?(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d+(?:\.\d+){2,})"
)
# What an auditor may ask by; nothing of it is a name, unless she types one.
_AUDITED = frozenset(
    {"date", "patient", "entity", "agent", "source"}
    | {"action", "type", "subtype", "outcome"}
)
# Values of what shapes an answer, beside the names of types, parameters and elements.
_SHAPING = frozenset(
    {"true", "false", "none", "estimate", "accurate", "text", "data", "count"}
    | {"json", "xml", "*"}
)
_MODIFIERS = frozenset({"", "not", "missing", "exact", "contains", "identifier"})


def describe(store: "Store", request: web.Request, status: int, noted: Noted) -> Told:
    """Return action, entity and details of a request, for `node.http.RouteGroup`."""
    if (part := _of_export(request)) is not None:
        return part
    interaction = noted.interaction or _interaction(request)
    entity, detail = _entity(request, status), {}
    if noted.queries:
        detail["query"] = "\n".join(noted.queries)
    elif (kind := _kind(request)) and (request.query or interaction == "search-type"):
        detail["query"] = told_query(store, kind, request.query.items())
    if noted.parts:
        detail["parts"] = _told_parts(noted.parts)
    if status < 400:
        if interaction in ("read", "vread") and noted.last_shown is not None:
            kind, id_, version = noted.last_shown
            entity, detail["version"] = f"{kind}/{id_}", str(version)
        elif interaction in ("create", "update", "patch") and noted.written:
            entity, _, detail["version"] = noted.written[0].partition("/_history/")
        elif noted.shown:
            detail["shown"] = str(noted.shown)
        if len(noted.written) > 1 or (noted.written and "version" not in detail):
            detail["written"] = " ".join(noted.written)
    return Told(f"fhir {interaction}", entity, detail)


def _of_export(request: web.Request) -> Told | None:
    """Return what was done with a bulk export that was asked for before."""
    export_id, number = map(request.match_info.get, ("export_id", "number"))
    if export_id is None:
        return None
    step = "cancel" if request.method == hdrs.METH_DELETE else "status"
    if number is not None:
        step, export_id = "file", f"{export_id}/{number}"
    return Told("fhir operation $export", f"Export/{export_id}", {"step": step})


def _told_parts(parts: Mapping[str, int]) -> str:
    """Return how the entries of a batch were answered: `Task 403 x 2`."""
    told: dict[str, int] = {}
    for part, count in parts.items():
        kind, _, status = part.partition(" ")
        word = f"{kind if kind in PERMITS else UNKNOWN_ID} {status}"
        told[word] = told.get(word, 0) + count
    return ", ".join(f"{word} x {count}" for word, count in sorted(told.items()))


def told_query(store: "Store", kind: str, asked: Iterable[tuple[str, str]]) -> str:
    """Return a search as the trail keeps it: `name=~a41f…` for what may identify."""
    told = [_told_parameter(store, kind, name, value) for name, value in asked]
    return f"{kind}?{'&'.join(told)}"


def _told_parameter(store: "Store", kind: str, name: str, value: str) -> str:
    if name == "_page":
        return "_page=~"
    if name in CONTROL:
        return f"{name}={value if _shapes(kind, value) else '~'}"
    bare, _, modifier = name.partition(":")
    if not _is_parameter(kind, bare) or modifier not in _MODIFIERS:
        first = bare.partition(".")[0]
        told = f"{first}.~" if "." in bare and _is_parameter(kind, first) else "~"
        return f"{told}=~{_blind(store, name, value)}"
    plain = modifier != "identifier" and not _identifies(kind, bare)
    if plain and _is_plain(value):
        return f"{name}={value}"
    return f"{name}=~{_blind(store, bare, value)}"


def _is_parameter(kind: str, name: str) -> bool:
    if kind == "AuditEvent":
        return name in _AUDITED or name == "_id"
    return name in ("_id", "_lastUpdated") or (
        kind in PARAMETERS and parameter(kind, name) is not None
    )


def _identifies(kind: str, name: str) -> bool:
    """Tell whether a parameter asks by who somebody is: a day can be one of birth."""
    found = parameter(kind, name) if kind in PARAMETERS else None
    return found is not None and found.identifying


def _is_plain(value: str) -> bool:
    """Tell whether a value identifies nobody, whatever it was meant for.

    A caller can put a name where a code belongs: only what is known is plain.
    """
    return all(
        _DATES.fullmatch(one)
        or _REFERENCES.fullmatch(one)
        or set(one.split("|")) <= _vocabulary()
        for one in value.split(",")
    )


@cache
def _vocabulary() -> frozenset[str]:
    """Return the codes that R4 and the lexicon have, and the systems of the latter."""
    listed = [code for held in VALUE_SETS.values() for code in held.codes]
    ours = {word for code in listed for word in (code.system, code.code)}
    return required_codes() | ours | {"", "true", "false"}


def _shapes(kind: str, value: str) -> bool:
    """Tell whether a value only names types, parameters, elements or how many."""
    return all(
        _NUMBERS.fullmatch(word) or word in _names(kind) or word in _SHAPING
        for word in (part.removeprefix("-") for part in re.split("[,:]", value))
    )


@cache
def _names(kind: str) -> frozenset[str]:
    types = PERMITS.keys() & PARAMETERS.keys()
    searched = {p.name for one in types for p in PARAMETERS[one]}
    elements = elements_of(kind).keys() if kind in PERMITS else set()
    return frozenset(types | searched | elements | {"_id", "_lastUpdated"})


def _blind(store: "Store", name: str, value: str) -> str:
    return store.ring.blind(f"audit.{name}", value).hex()[:_BLIND_CHARACTERS]


def _interaction(request: web.Request) -> str:
    """Return the code of the interaction (FHIR R4 restful-interaction), or `$name`."""
    resource = request.match_info.route.resource
    if resource is None:
        return "unmatched"
    parts = resource.canonical.removeprefix(_ROOT).strip("/").split("/")
    operation = next((p for p in parts if p.startswith("$")), None)
    if operation is not None:
        return f"operation {operation}"
    if parts == [""]:
        return "transaction"
    if parts[-1] == "_search" or (len(parts) == 1 and _looks(request)):
        return "search-type"
    if "_history" in parts:
        last = parts[-1] == "_history"
        return (
            ("history-instance" if len(parts) > 2 else "history-type")
            if last
            else ("vread")
        )
    return "read" if _looks(request) else _WRITING.get(request.method, "other")


def _looks(request: web.Request) -> bool:
    return request.method in (hdrs.METH_GET, hdrs.METH_HEAD)


def _kind(request: web.Request) -> str | None:
    resource = request.match_info.route.resource
    if resource is None:
        return None
    kind = request.match_info.get("type")
    if kind is None:
        first = resource.canonical.removeprefix(f"{_ROOT}/").partition("/")[0]
        kind = first if first[:1].isupper() else None
    return kind if kind in PERMITS else None


def _entity(request: web.Request, status: int) -> str:
    kind = _kind(request)
    if kind is None:
        return UNKNOWN_ID
    resource_id = request.match_info.get("id")
    return kind if resource_id is None else f"{kind}/{safe_id(resource_id, status)}"
