"""Tokens that bind a screen's socket to subscriptions for a while."""

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from node.store.database import Transaction


async def open_binding(
    tx: "Transaction",
    subscription_ids: Sequence[UUID],
    *,
    expires_at: datetime,
    now: datetime,
) -> str:
    """Return a token that binds a socket to subscriptions until `expires_at`."""
    token = secrets.token_urlsafe(32)
    await tx.execute("delete from subscription_bindings where expires_at <= $1", now)
    await tx.execute(
        "insert into subscription_bindings (token_hash, subscription_ids, expires_at)"
        " values ($1, $2, $3)",
        _hash(token),
        list(subscription_ids),
        expires_at,
    )
    return token


async def read_binding(
    tx: "Transaction", token: str, *, now: datetime
) -> tuple[list[UUID], datetime] | None:
    """Return what a token binds to and until when; None when it is none."""
    row = await tx.fetchrow(
        "select * from subscription_bindings where token_hash = $1 and expires_at > $2",
        _hash(token),
        now,
    )
    return None if row is None else (list(row["subscription_ids"]), row["expires_at"])


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
