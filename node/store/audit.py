"""The audit trail on disk: append-only and hash-chained."""

import json
from dataclasses import replace
from datetime import UTC
from typing import TYPE_CHECKING

from node.domain.audit import GENESIS, AuditEntry, Outcome, canonical_text, chain_hash
from node.domain.errors import ErrorKind, NodeError

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction

_DETAIL = json.JSONEncoder(ensure_ascii=False, sort_keys=True)


async def record(tx: "Transaction", entry: AuditEntry) -> None:
    """Append `entry` to the chain; it becomes durable with `tx`.

    From here until `tx` ends nobody else can append: record last.
    """
    await tx.execute(
        "select audit_append($1, $2, $3, $4, $5, $6, $7, $8)", *arguments(entry)
    )


def arguments(entry: AuditEntry) -> tuple[object, ...]:
    """Return what the SQL function `audit_append` takes for `entry`."""
    entry = replace(entry, at=entry.at.astimezone(UTC))  # as it will be read back
    return (
        entry.at,
        entry.actor,
        entry.role,
        entry.action,
        entry.entity,
        entry.outcome.value,
        _DETAIL.encode(dict(entry.detail)),
        canonical_text(entry),
    )


async def verify(tx: "Transaction") -> int:
    """Recompute the chain; return its length; INTEGRITY names the first bad entry."""
    previous, count = GENESIS, 0
    async for row in tx.cursor("select * from audit_entries order by sequence"):
        entry = _entry(row)
        expected = chain_hash(previous, entry)
        broken = (
            row["sequence"] != count + 1
            or bytes(row["previous_hash"]) != previous
            or bytes(row["hash"]) != expected
        )
        if broken:
            raise NodeError(
                f"audit entry {row['sequence']} or one before it was changed",
                ErrorKind.INTEGRITY,
            )
        previous, count = expected, count + 1
    return count


async def entries(tx: "Transaction", *, entity: str) -> list[AuditEntry]:
    """Return what was recorded about `entity`, oldest first."""
    rows = await tx.fetch(
        "select * from audit_entries where entity = $1 order by sequence", entity
    )
    return [_entry(row) for row in rows]


def _entry(row: "asyncpg.Record") -> AuditEntry:
    return AuditEntry(
        at=row["at"],
        actor=row["actor"],
        role=row["role"],
        action=row["action"],
        entity=row["entity"],
        outcome=Outcome(row["outcome"]),
        detail=json.loads(row["detail"]),
    )
