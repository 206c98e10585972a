"""What a bulk export is asked for (Bulk Data Access 2.0, "Kick-off Request").

Only programs that act for themselves may ask, and only for what their scopes open.
What the node cannot do is refused by name; who prefers `handling=lenient` gets the
rest, and is told in a file of the export what was left out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from fhir.encoding.outcome import Issue, Refused
from fhir.encoding.wire import Json, as_list, reference_parts
from fhir.search.matching import decidable
from fhir.search.parameters import CONTROL, PARAMETERS, criterion
from fhir.security.access import PERMITS, Interaction
from node.domain.access import Action, Identity
from node.domain.errors import ErrorKind, NodeError
from node.domain.scopes import Context, Scopes, read_scopes
from node.store.search.criteria import Criterion

NDJSON = "application/fhir+ndjson"
FORMATS = (NDJSON, "application/ndjson", "ndjson")
PARAMETERS_TAKEN = ("_outputFormat", "_since", "_type", "_typeFilter", "patient")
_MANY = frozenset({"_type", "_typeFilter", "patient"})
_MOST = 1000
# A comma within a filter separates values; one before the next filter, filters.
_NEXT_FILTER = re.compile(r",(?=[A-Z][A-Za-z]{1,63}\?)")

Asked = Sequence[tuple[str, str]]


def kinds() -> tuple[str, ...]:
    """Return the types that are exported: what is read of a report, and all around."""
    return tuple(
        kind
        for kind in sorted(PARAMETERS)
        if PERMITS.get(kind, {}).get(Interaction.READ) is Action.READ_REPORT
    )


def with_patients(kind: str) -> bool:
    """Tell whether a type is in the Patient compartment (FHIR R4 2.1.5)."""
    return kind in ("Patient", "Provenance") or any(
        p.name == "patient" for p in PARAMETERS.get(kind, ())
    )


@dataclass(frozen=True)
class ExportRequest:
    """An export as it was understood.

    `filters` has (type, query) pairs: a resource meets one of those of its type.
    `scopes` is what the token opened when it was asked for. `notes` tell what was
    left out.
    """

    url: str
    types: tuple[str, ...]
    scopes: str
    since: datetime | None = None
    filters: tuple[tuple[str, str], ...] = ()
    of_patients: bool = False
    patients: tuple[str, ...] | None = None
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return what `of_json` makes the same request of."""
        since = self.since.isoformat() if self.since else None
        return {
            "url": self.url,
            "types": list(self.types),
            "scopes": self.scopes,
            "since": since,
            "filters": [list(one) for one in self.filters],
            "of_patients": self.of_patients,
            "patients": None if self.patients is None else list(self.patients),
            "notes": list(self.notes),
        }

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> "ExportRequest":
        """Return the request that `to_json` told."""
        patients = told["patients"]
        return cls(
            told["url"],
            tuple(told["types"]),
            told["scopes"],
            datetime.fromisoformat(told["since"]) if told["since"] else None,
            tuple((kind, query) for kind, query in told["filters"]),
            told["of_patients"],
            None if patients is None else tuple(patients),
            tuple(told["notes"]),
        )


def exporter(identity: Identity) -> Identity:
    """Return the caller with nothing but its system scopes; FORBIDDEN for people.

    A session, of a person or a machine, exports nothing either.
    """
    identity.require(Action.EXPORT_RESOURCES)
    granted = identity.scopes.granted if identity.scopes else ()
    own = tuple(scope for scope in granted if scope.context is Context.SYSTEM)
    if not own:
        raise NodeError(
            "bulk export is for programs with system/ scopes", ErrorKind.FORBIDDEN
        )
    return replace(identity, scopes=Scopes(own))


def opens(identity: Identity, kind: str) -> bool:
    """Tell whether the caller may both read and search a type (`.rs`)."""
    scopes = identity.scopes
    return scopes is not None and all(scopes.alternatives(kind, x) for x in "rs")


def same_or_wider(identity: Identity, scopes: str, kind: str) -> bool:
    """Tell whether the caller's token opens all of a type that `scopes` opened.

    A file was written for the token that asked; a narrower one must not fetch it.
    """
    now, then = identity.scopes, Scopes(read_scopes(scopes))
    if now is None or not opens(identity, kind):
        return False
    return all(
        now.opens_whole(kind, letter)
        or set(map(_narrowing, then.alternatives(kind, letter)))
        <= set(map(_narrowing, now.alternatives(kind, letter)))
        for letter in "rs"
    )


def _narrowing(scope: Any) -> frozenset[tuple[str, str]]:
    narrowing: frozenset[tuple[str, str]] = scope.narrowing
    return narrowing


def of_parameters(resource: Json) -> Asked:
    """Return the name and value of each of the Parameters that were posted."""
    found = []
    for part in as_list(resource.get("parameter")):
        name = str(part.get("name", ""))
        values = [v for k, v in part.items() if k.startswith("value")]
        if len(values) != 1:
            raise _refused("value", "a parameter has one value", name)
        value = values[0]
        if isinstance(value, dict):
            value = value.get("reference", "")
        found.append((name, str(value)))
    return found


def read_request(
    identity: Identity,
    asked: Asked,
    url: str,
    *,
    of_patients: bool,
    posted: bool,
    lenient: bool,
    base_url: str,
) -> ExportRequest:
    """Return what is asked for; Refused names what cannot be done.

    With `lenient` what the node does not know or may not show is left out and put
    down in the notes.
    """
    return _Reader(identity, url, of_patients, posted, lenient, base_url).read(asked)


class _Reader:
    def __init__(
        self,
        identity: Identity,
        url: str,
        of_patients: bool,
        posted: bool,
        lenient: bool,
        base_url: str,
    ) -> None:
        self._identity = identity
        self._url = url
        self._of_patients = of_patients
        self._posted = posted
        self._lenient = lenient
        self._base_url = base_url
        self._notes: list[str] = []

    def read(self, asked: Asked) -> ExportRequest:
        told = self._gathered(asked)
        _check_format(told.get("_outputFormat", [NDJSON])[-1])
        since = told.get("_since")
        types = self._types(told.get("_type"))
        filters = tuple(self._filters(told.get("_typeFilter", ()), types))
        patients = self._patients(told.get("patient"))
        return ExportRequest(
            self._url,
            types,
            str(self._identity.scopes),
            None if since is None else _instant(since[-1]),
            filters,
            self._of_patients,
            patients,
            tuple(self._notes),
        )

    def _gathered(self, asked: Asked) -> dict[str, list[str]]:
        told: dict[str, list[str]] = {}
        for name, value in asked:
            if name in ("_format", "_pretty"):
                continue  # of the answer, not of the export
            if name not in PARAMETERS_TAKEN or (name == "patient" and not self._posted):
                known = ", ".join(PARAMETERS_TAKEN)
                self._leave_out(f"{_safe(name)} is not offered, but {known}", name)
                continue
            if name in told and name not in _MANY:
                raise _refused("value", f"{name} is given once", name)
            told.setdefault(name, []).append(value)
        return told

    def _leave_out(
        self, words: str, expression: str, code: str = "not-supported"
    ) -> None:
        if not self._lenient:
            status = 403 if code == "forbidden" else 400
            kind = ErrorKind.FORBIDDEN if status == 403 else ErrorKind.INVALID
            raise Refused([Issue(code, words, _safe(expression))], status, kind)
        self._notes.append(words)

    def _types(self, asked: list[str] | None) -> tuple[str, ...]:
        offered = [k for k in kinds() if with_patients(k) or not self._of_patients]
        if asked is None:
            found = [kind for kind in offered if opens(self._identity, kind)]
            if not found:
                raise NodeError(
                    "the token has no scope .rs for anything that is exported",
                    ErrorKind.FORBIDDEN,
                )
            return tuple(found)
        found = []
        for kind in dict.fromkeys(_split(asked)):
            if kind not in offered:
                self._leave_out(f"{_safe(kind)} is not exported here", "_type")
            elif not opens(self._identity, kind):
                self._leave_out(
                    f"the token has no scope .rs for {kind}", "_type", "forbidden"
                )
            else:
                found.append(kind)
        return tuple(found)

    def _filters(
        self, asked: Sequence[str], types: Sequence[str]
    ) -> Iterable[tuple[str, str]]:
        for one in [part for text in asked for part in _NEXT_FILTER.split(text)]:
            kind, bar, query = one.partition("?")
            if not bar or not query or kind not in types:
                self._leave_out("a filter is Type?query of an exported type", _FILTER)
                continue
            try:
                criteria_of(kind, query, self._base_url)
            except NodeError as error:
                # What a lenient caller would get instead is more than it asked for.
                raise _refused("not-supported", error.message, _FILTER) from None
            yield kind, query

    def _patients(self, asked: list[str] | None) -> tuple[str, ...] | None:
        if asked is None:
            return None
        if not self._of_patients:
            self._leave_out("patient is for Patient/$export", "patient")
            return None
        found = []
        for value in asked:
            parts = reference_parts({"reference": value})
            if parts is None or parts[0] != "Patient":
                raise _refused("value", "patient is a reference to a Patient", _PATIENT)
            found.append(parts[1])
        if len(found) > _MOST:
            raise _refused("too-costly", f"at most {_MOST} patients", _PATIENT)
        return tuple(dict.fromkeys(found))


_FILTER = "_typeFilter"
_PATIENT = "patient"


def criteria_of(kind: str, query: str, base_url: str) -> tuple[Criterion, ...]:
    """Return what `query` asks of a type; NodeError for what cannot be decided.

    A filter is held against a resource as it was, not as the index knows it now:
    what takes another resource to decide is not offered.
    """
    found = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name.partition(":")[0] in CONTROL:
            raise NodeError(f"{_safe(name)} does not filter", ErrorKind.INVALID)
        asked = criterion(kind, name, value, sees_identity=True, base_url=base_url)
        if not decidable(asked):
            raise NodeError(f"{_safe(name)} cannot filter here", ErrorKind.INVALID)
        found.append(asked)
    return tuple(found)


def _check_format(text: str) -> None:
    # A bare `+` in a query string is a space.
    if text.replace(" ", "+") not in FORMATS:
        words = f"exports are written as {', '.join(FORMATS)}"
        raise _refused("not-supported", words, "_outputFormat")


def _instant(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise _refused("value", "_since is an instant with its time zone", "_since")
    return at


def _split(values: Iterable[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part]


def _safe(text: str) -> str:
    """Return words of a request only where they cannot hold anything else."""
    return text if re.fullmatch(r"[A-Za-z_:.-]{1,64}", text) else "this"


def _refused(code: str, words: str, expression: str) -> Refused:
    return Refused([Issue(code, words, _safe(expression))], 400)
