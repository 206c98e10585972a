"""The audit trail: what is recorded of every access, and how entries are chained.

What a request opens is noted where it is opened (`noting`), so that whoever writes
a new operation need not think of the trail: the entry of the request tells it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from uuid import UUID

GENESIS = b"\x00" * 32
_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


class Outcome(Enum):
    """Whether the act took place (FHIR R4 AuditEvent.outcome)."""

    SUCCESS = "0"
    REFUSED = "4"
    FAILED = "8"
    UNAVAILABLE = "12"


@dataclass(frozen=True)
class AuditEntry:
    """One act, told without names: actors and entities are ids and UIDs."""

    at: datetime
    actor: str
    role: str
    action: str
    entity: str
    outcome: Outcome = Outcome.SUCCESS
    detail: Mapping[str, str] = field(default_factory=dict)


def by_the_node(
    at: datetime, action: str, entity: str, detail: Mapping[str, str] | None = None
) -> AuditEntry:
    """Return the entry of something that the node did by itself."""
    return AuditEntry(at, "sononode", "device", action, entity, detail=detail or {})


def chain_hash(previous: bytes, entry: AuditEntry) -> bytes:
    """Return the SHA-256 that binds `entry` to everything recorded before it."""
    return hashlib.sha256(previous + canonical_text(entry)).digest()


def canonical_text(entry: AuditEntry) -> bytes:
    """Return what the chain hashes of `entry`, in UTF-8.

    It is canonical JSON, so that a verifier written in another language can
    recompute the chain from an export.
    """
    text = _CANONICAL.encode(
        {
            "at": entry.at.isoformat(),
            "actor": entry.actor,
            "role": entry.role,
            "action": entry.action,
            "entity": entry.entity,
            "outcome": entry.outcome.value,
            "detail": dict(entry.detail),
        }
    )
    return text.encode()


# --- what a request opens ---------------------------------------------------------


@dataclass
class Noted:
    """What was opened, written and asked while one request was answered.

    `written` are FHIR addresses with their version, `queries` searches without
    what identifies a patient. `acts` are the entries that a handler made itself.
    """

    patients: dict[UUID, None] = field(default_factory=dict)
    shown: int = 0
    last_shown: tuple[str, str, int] | None = None
    written: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    interaction: str | None = None
    parts: dict[str, int] = field(default_factory=dict)
    acts: list[AuditEntry] = field(default_factory=list)

    @property
    def told(self) -> bool:
        """Tell whether the handler's own entries name everybody who was opened."""
        words = " ".join(
            word for act in self.acts for word in (act.entity, *act.detail.values())
        )
        return bool(self.acts) and all(str(p) in words for p in self.patients)


_NOTED: ContextVar[Noted | None] = ContextVar("noted", default=None)


@contextmanager
def noting() -> Iterator[Noted]:
    """Yield what will be noted in this context, and in all that it starts."""
    noted = Noted()
    token = _NOTED.set(noted)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


def note_patient(patient_id: UUID | None) -> None:
    """Note whose data were opened; nothing where no request is answered."""
    noted = _NOTED.get()
    if noted is not None and patient_id is not None:
        noted.patients[patient_id] = None


def note_shown(kind: str, id_: str, version: int, patient_id: UUID | None) -> None:
    """Note that a version of a resource goes out."""
    noted = _NOTED.get()
    if noted is None:
        return
    noted.shown += 1
    noted.last_shown = (kind, id_, version)
    if patient_id is not None:
        noted.patients[patient_id] = None


def note_written(address: str, patient_id: UUID | None) -> None:
    """Note the address of a version that was written, as in `Patient/1/_history/2`."""
    noted = _NOTED.get()
    if noted is not None:
        noted.written.append(address)
        note_patient(patient_id)


def note_query(query: str) -> None:
    """Note what a search asks; its writer has taken out what identifies a patient."""
    noted = _NOTED.get()
    if noted is not None:
        noted.queries.append(query)


def note_interaction(interaction: str) -> None:
    """Note what a request turned out to be, where its address does not tell it."""
    noted = _NOTED.get()
    if noted is not None:
        noted.interaction = interaction


def note_part(kind: str, status: int) -> None:
    """Note how one of several requests in a body was answered: denials are in there."""
    noted = _NOTED.get()
    if noted is not None:
        part = f"{kind} {status}"
        noted.parts[part] = noted.parts.get(part, 0) + 1


def note_act(entry: AuditEntry) -> None:
    """Note that a handler recorded an entry of its own."""
    noted = _NOTED.get()
    if noted is not None:
        noted.acts.append(entry)
