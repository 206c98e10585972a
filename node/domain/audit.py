"""The audit trail: what is recorded of every access, and how entries are chained."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

GENESIS = b"\x00" * 32
_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


class Outcome(Enum):
    """Whether the act took place (FHIR R4 AuditEvent.outcome)."""

    SUCCESS = "0"
    REFUSED = "4"
    FAILED = "8"


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
