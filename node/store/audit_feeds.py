"""How far a feed of the trail has come: one row for each repository outside.

Entries are committed in the order of the chain, without gaps: what lies behind the
row's number has been confirmed, what lies before it has not.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction


@dataclass(frozen=True)
class Feed:
    """Where a feed stands; `trouble` is what held it up since `trouble_since`."""

    name: str
    sequence: int
    confirmed_at: datetime | None
    trouble: str
    trouble_since: datetime | None


async def claim(
    tx: "Transaction", name: str, *, now: datetime, lease: timedelta
) -> int | None:
    """Return after which entry to go on; None while somebody else is sending."""
    await tx.execute(
        "insert into audit_feeds (name, sequence) values ($1, 0)"
        " on conflict do nothing",
        name,
    )
    sequence: int | None = await tx.fetchval(
        "update audit_feeds set held_until = $3 where name = $1"
        " and (held_until is null or held_until <= $2) returning sequence",
        name,
        now,
        now + lease,
    )
    return sequence


async def confirm(
    tx: "Transaction", name: str, sequence: int, *, now: datetime, held_until: datetime
) -> None:
    """Note that everything up to `sequence` has arrived; never goes back."""
    await tx.execute(
        "update audit_feeds set sequence = greatest(sequence, $2), confirmed_at = $3,"
        " trouble = '', trouble_since = null, held_until = $4 where name = $1",
        name,
        sequence,
        now,
        held_until,
    )


async def hold(
    tx: "Transaction", name: str, trouble: str, *, now: datetime, until: datetime
) -> None:
    """Note what went wrong, and that nobody is to try before `until`."""
    await tx.execute(
        "update audit_feeds set trouble = $2,"
        " trouble_since = coalesce(trouble_since, $3), held_until = $4 where name = $1",
        name,
        trouble,
        now,
        until,
    )


async def release(tx: "Transaction", name: str) -> None:
    """Let go of a feed that has nothing more to send."""
    await tx.execute("update audit_feeds set held_until = null where name = $1", name)


async def find(tx: "Transaction", name: str) -> Feed | None:
    """Return a feed, None before its first attempt."""
    row = await tx.fetchrow("select * from audit_feeds where name = $1", name)
    return None if row is None else _feed(row)


def _feed(row: "asyncpg.Record") -> Feed:
    return Feed(
        row["name"],
        row["sequence"],
        row["confirmed_at"],
        row["trouble"],
        row["trouble_since"],
    )
