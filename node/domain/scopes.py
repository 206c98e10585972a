"""SMART App Launch 2.2 scopes: what a token opens, and what is left of a request.

A scope only narrows what the roles behind a token may do. It opens nothing by
itself, and what is not in it is refused.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qsl, urlencode

from node.domain.errors import ErrorKind, NodeError

LETTERS = "cruds"
_LOOKING = frozenset("rs")
_OF_V1 = {"read": "rs", "write": "cud", "*": LETTERS}
_SCOPE = re.compile(
    r"(patient|user|system)/(\*|[A-Z][A-Za-z]{1,63})\."
    r"(read|write|\*|c?r?u?d?s?)(?:\?([\x21\x23-\x5b\x5d-\x7e]{1,512}))?"
)
MAX_LENGTH = 4096
# Scopes that open no resource. What goes on without the person has to be registered.
LAUNCH, LAUNCH_PATIENT = "launch", "launch/patient"
OPENID, FHIR_USER = "openid", "fhirUser"
OFFLINE, ONLINE = "offline_access", "online_access"
BESIDE = (LAUNCH, LAUNCH_PATIENT, OPENID, FHIR_USER, ONLINE, OFFLINE)


class Context(StrEnum):
    """For whom a token asks: itself, the person signed in, or one patient."""

    SYSTEM = "system"
    USER = "user"
    PATIENT = "patient"


@dataclass(frozen=True)
class Scope:
    """`context/kind.letters?narrowing`; all of `narrowing` (name, value) must hold.

    A scope that is narrowed, by parameters or to one patient, only looks: what
    would become of a resource that a change moves out of it has no good answer.
    """

    context: Context
    kind: str
    letters: frozenset[str]
    narrowing: frozenset[tuple[str, str]] = frozenset()

    def __str__(self) -> str:
        """Return the scope as SMART v2 writes it."""
        letters = "".join(letter for letter in LETTERS if letter in self.letters)
        narrowing = urlencode(sorted(self.narrowing))
        told = f"{self.context.value}/{self.kind}.{letters}"
        return f"{told}?{narrowing}" if narrowing else told

    @property
    def narrowed(self) -> bool:
        """Tell whether it opens some resources of its kind only."""
        return bool(self.narrowing) or self.context is Context.PATIENT


def read_scope(text: str) -> Scope:
    """Return one resource scope, v2 or v1; INVALID when it is none."""
    match = _SCOPE.fullmatch(text)
    if match is None or not match[3]:
        raise NodeError("not a scope of SMART App Launch", ErrorKind.INVALID)
    context, kind, letters, query = match.groups()
    narrowing = frozenset(parse_qsl(query or "", keep_blank_values=True))
    if query and not narrowing:
        raise NodeError("a scope is narrowed by name=value", ErrorKind.INVALID)
    allowed = frozenset(_OF_V1.get(letters, letters))
    scope = Scope(Context(context), kind, allowed, narrowing)
    if not scope.narrowed:
        return scope
    return Scope(scope.context, kind, allowed & _LOOKING, narrowing)


def read_scopes(text: str) -> tuple[Scope, ...]:
    """Return the resource scopes among what a client asks for; others are left out."""
    found = []
    for word in dict.fromkeys(text[:MAX_LENGTH].split()):
        try:
            found.append(read_scope(word))
        except NodeError:
            continue  # launch, openid and whatever else: granted elsewhere or not
    return tuple(found)


@dataclass(frozen=True)
class Scopes:
    """What one token opens; `patient_id` is the patient of `patient/` scopes.

    `also` are the other rows that stand for her at this moment.
    """

    granted: tuple[Scope, ...]
    patient_id: str | None = None
    also: tuple[str, ...] = ()

    @property
    def patients(self) -> tuple[str, ...]:
        """Return every id of the patient whom `patient/` scopes open."""
        return (self.patient_id or "", *self.also)

    def __str__(self) -> str:
        """Return them as the token response lists them."""
        return " ".join(str(scope) for scope in self.granted)

    def alternatives(self, kind: str, letter: str) -> tuple[Scope, ...]:
        """Return the scopes that let something be done to a kind; () is a refusal.

        A whole scope makes the narrowed ones beside it meaningless: it then
        stands alone.
        """
        fitting = tuple(
            scope
            for scope in self.granted
            if scope.kind in (kind, "*")
            and letter in scope.letters
            and (scope.context is not Context.PATIENT or self.patient_id)
        )
        whole = tuple(scope for scope in fitting if not scope.narrowed)
        return whole[:1] or fitting

    def opens_whole(self, kind: str, letter: str) -> bool:
        """Tell whether something may be done to every resource of a kind."""
        return any(not scope.narrowed for scope in self.alternatives(kind, letter))


def grant(
    requested: Iterable[Scope],
    registered: Iterable[Scope],
    kinds: Iterable[str],
    permitted: Callable[[str, str], bool],
) -> tuple[Scope, ...]:
    """Return what is both asked for, registered and permitted to the roles.

    `*` is told kind by kind, so that a client sees what it really got.
    `permitted(kind, letter)` is the roles' word.
    """
    kinds, registered = tuple(kinds), tuple(registered)
    found: dict[tuple[Context, str, frozenset[tuple[str, str]]], frozenset[str]] = {}
    for asked in requested:
        for kind in kinds if asked.kind == "*" else (asked.kind,):
            if kind not in kinds:
                continue
            for entered in registered:
                if entered.context is asked.context and entered.kind in (kind, "*"):
                    narrowing = asked.narrowing | entered.narrowing
                    letters = asked.letters & entered.letters
                    if narrowing:
                        letters &= _LOOKING
                    letters = frozenset(x for x in letters if permitted(kind, x))
                    key = (asked.context, kind, narrowing)
                    found[key] = found.get(key, frozenset()) | letters
    return tuple(
        Scope(c, k, letters, n) for (c, k, n), letters in found.items() if letters
    )
