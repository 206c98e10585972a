"""How far a verification of the audit trail has come: one row for each that was asked.

One runs at a time. Its row is moved on with each piece of the chain that holds, so that
a process which takes over goes on where the one before it ended.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from node.domain.errors import ErrorKind, NodeError
from node.store.audit import Anchor

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction


@dataclass(frozen=True)
class Check:
    """A verification of the entries from `first` to `last`.

    Everything up to the anchor `reached` holds. `fault` tells what does not, after
    which nothing is looked at; `ended_at` is None while it runs.
    """

    check_id: UUID
    asked_at: datetime
    asked_by: str
    first: int
    last: int
    reached: Anchor
    ended_at: datetime | None
    fault: str


async def begin(
    tx: "Transaction", after: Anchor, last: int, *, asked_by: str, now: datetime
) -> Check:
    """Return the verification that runs; a new one of what follows `after`, if none."""
    row = await tx.fetchrow(
        "insert into audit_checks"
        " (check_id, asked_at, asked_by, first, last, checked, hash)"
        " values ($1, $2, $3, $4 + 1, $5, $4, $6)"
        " on conflict ((true)) where ended_at is null"
        " do update set fault = '' returning *",
        uuid4(),
        now,
        asked_by,
        after.sequence,
        last,
        after.hash,
    )
    if row is None:
        raise NodeError("the check is neither there nor made", ErrorKind.CONFLICT)
    return _check(row)


async def claim(tx: "Transaction", check_id: UUID) -> Check | None:
    """Return a verification that has not ended, held until `tx` ends."""
    row = await tx.fetchrow(
        "select * from audit_checks where check_id = $1 and ended_at is null"
        " for update",
        check_id,
    )
    return None if row is None else _check(row)


async def advance(
    tx: "Transaction",
    check_id: UUID,
    reached: Anchor,
    *,
    ended_at: datetime | None,
    fault: str = "",
) -> None:
    """Note up to which entry the chain holds, and whether that was all."""
    await tx.execute(
        "update audit_checks set checked = $2, hash = $3, ended_at = $4, fault = $5"
        " where check_id = $1",
        check_id,
        reached.sequence,
        reached.hash,
        ended_at,
        fault,
    )


async def running(tx: "Transaction") -> Check | None:
    """Return the verification that has not ended."""
    row = await tx.fetchrow("select * from audit_checks where ended_at is null")
    return None if row is None else _check(row)


async def newest(tx: "Transaction") -> Check | None:
    """Return the verification that ended last, however it ended."""
    row = await tx.fetchrow(
        "select * from audit_checks where ended_at is not null"
        " order by asked_at desc limit 1"
    )
    return None if row is None else _check(row)


def _check(row: "asyncpg.Record") -> Check:
    return Check(
        row["check_id"],
        row["asked_at"],
        row["asked_by"],
        row["first"],
        row["last"],
        Anchor(row["checked"], bytes(row["hash"])),
        row["ended_at"],
        row["fault"],
    )
