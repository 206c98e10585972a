"""What an earlier release has left unpublished, until the worker has caught up."""

from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from node.store.database import Transaction


async def take(tx: "Transaction", kind: str, count: int) -> list[UUID]:
    """Take up to `count` ids of a kind away; they are back if `tx` fails."""
    rows = await tx.fetch(
        "delete from left_out where (kind, id) in (select kind, id from left_out"
        " where kind = $1 limit $2 for update skip locked) returning id",
        kind,
        count,
    )
    return [row["id"] for row in rows]
