"""What the hospital's sign-on calls the sign-ins of people here, and how it ends them.

Identifiers of its sessions (`sid`) and of its logout tokens (`jti`) are kept as hashes.
"""

import hashlib
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.errors import ErrorKind, NodeError
from node.store import refreshes
from node.store.people import COOKIE_LIFETIME

if TYPE_CHECKING:
    from node.store.database import Transaction

# A program that she let in at the end of a sign-in is known by it as long as a session.
_KEPT = COOKIE_LIFETIME + timedelta(hours=1)


async def note(
    tx: "Transaction", issuer: str, sid: str, user_id: UUID, *, now: datetime
) -> None:
    """Remember what the provider calls a sign-in of this person."""
    await tx.execute("delete from sign_ons where expires_at < $1", now)
    await tx.execute(
        "insert into sign_ons (issuer, sid_hash, user_id, expires_at)"
        " values ($1, $2, $3, $4) on conflict (issuer, sid_hash, user_id)"
        " do update set expires_at = excluded.expires_at",
        issuer,
        sid_hash(sid),
        user_id,
        now + _KEPT,
    )


async def spend(
    tx: "Transaction", issuer: str, jti: str, *, expires_at: datetime, now: datetime
) -> bool:
    """Note a logout token until it expires; False when it was used before."""
    await tx.execute("delete from sign_on_logouts where expires_at < $1", now)
    spent = await tx.fetchval(
        "insert into sign_on_logouts (issuer, jti_hash, expires_at)"
        " values ($1, $2, $3) on conflict do nothing returning true",
        issuer,
        sid_hash(jti),
        expires_at,
    )
    return bool(spent)


async def whom(
    tx: "Transaction", issuer: str, *, subject: str | None, sid: str | None
) -> set[UUID]:
    """Return whose sign-in a subject or a `sid` names; nobody, where it is over.

    CONFLICT when both are told and name different people.
    """
    named: set[UUID] = set()
    if subject is not None:
        rows = await tx.fetch(
            "select user_id from people"
            " where sign_on_issuer = $1 and sign_on_subject = $2",
            issuer,
            subject,
        )
        named = {row["user_id"] for row in rows}
    if sid is None:
        return named
    rows = await tx.fetch(
        "select user_id from sign_ons where issuer = $1 and sid_hash = $2",
        issuer,
        sid_hash(sid),
    )
    signed_in = {row["user_id"] for row in rows}
    if subject is None:
        return signed_in
    if signed_in and not named & signed_in:
        raise NodeError("subject and session are two people", ErrorKind.CONFLICT)
    return named


async def end(tx: "Transaction", user_id: UUID, *, sid: str | None) -> int:
    """End what a person began at the hospital's sign-on; return how many sessions.

    With `sid` one of her sessions, and those of which the provider told none. Programs
    keep only what she let them have for when she is not there, as in any sign-out.
    """
    ended = await tx.fetch(
        "delete from sessions where user_id = $1 and by_sign_on"
        " and ($2::bytea is null or sign_on_sid is null or sign_on_sid = $2)"
        " returning 1",
        user_id,
        None if sid is None else sid_hash(sid),
    )
    await refreshes.end_online(tx, user_id)
    await tx.execute(
        "delete from client_tokens where user_id = $1 and family_id is null", user_id
    )
    await tx.execute("delete from client_codes where user_id = $1", user_id)
    return len(ended)


def sid_hash(text: str) -> bytes:
    """Return what is kept of an identifier of the provider's."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
