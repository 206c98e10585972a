"""Refresh tokens of programs: families that begin with a sign-in and end as one.

A refresh token works once and gives the next one (RFC 6749 6, RFC 9700 4.14.2).
One that comes a second time was copied: the whole family ends with the access
tokens that it gave. Tokens are stored as hashes. A family ends by itself too: when
its program or person is shut, and when its time is over, however often it was used.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from node.domain.errors import ErrorKind, NodeError
from node.store.people import COOKIE_LIFETIME

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction

TOKEN_PREFIX = "srt_"  # noqa: S105
OFFLINE_LIFETIME = timedelta(days=90)
# Nobody is at work for longer than her session at the review page could last.
ONLINE_LIFETIME = COOKIE_LIFETIME
MOST_OF_ONE = 20
"""Families of one person with one program; the oldest ends when one more begins."""


@dataclass(frozen=True)
class Family:
    """What a person left to a program; `about` is what an id_token tells of it."""

    family_id: UUID
    client_id: UUID
    user_id: UUID
    scopes: str
    patient_id: str | None
    offline: bool
    begun_at: datetime
    used_at: datetime
    expires_at: datetime
    about: Mapping[str, Any] = field(default_factory=dict)


async def begin(
    tx: "Transaction",
    client_id: UUID,
    user_id: UUID,
    *,
    code: str,
    scopes: str,
    patient_id: str | None,
    about: Mapping[str, Any],
    offline: bool,
    now: datetime,
) -> tuple[Family, str]:
    """Return a new family and its first token, which is told once."""
    lifetime = OFFLINE_LIFETIME if offline else ONLINE_LIFETIME
    family = Family(
        uuid4(),
        client_id,
        user_id,
        scopes,
        patient_id,
        offline,
        now,
        now,
        now + lifetime,
        about,
    )
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    await tx.execute("delete from client_families where expires_at < $1", now)
    await tx.execute(
        "delete from client_families where family_id in (select family_id from"
        " client_families where client_id = $1 and user_id = $2"
        " order by used_at desc offset $3)",
        client_id,
        user_id,
        MOST_OF_ONE - 1,
    )
    await tx.execute(
        "insert into client_families (family_id, client_id, user_id, scopes,"
        " patient_id, about, offline, code_hash, token_hash, begun_at, used_at,"
        " expires_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, $11)",
        family.family_id,
        client_id,
        user_id,
        scopes,
        patient_id,
        json.dumps(dict(about)),
        offline,
        _hash(code),
        _hash(token),
        now,
        family.expires_at,
    )
    return family, token


async def renew(
    tx: "Transaction", client_id: UUID, token: str, *, now: datetime
) -> tuple[Family, str] | None:
    """Spend a refresh token; return its family and the next one, None when it is void.

    One that was spent before ends its family: the caller commits that, too.
    """
    row = await tx.fetchrow(
        "select f.* from client_families f join clients c using (client_id)"
        " join people p using (user_id)"
        " where token_hash = $1 and client_id = $2 and expires_at > $3"
        " and c.disabled_at is null and p.disabled_at is null for update of f",
        _hash(token),
        client_id,
        now,
    )
    if row is None:
        await tx.execute(
            "delete from client_families f using client_spent_refreshes s"
            " where s.family_id = f.family_id and s.token_hash = $1"
            " and f.client_id = $2",
            _hash(token),
            client_id,
        )
        return None
    following = TOKEN_PREFIX + secrets.token_urlsafe(32)
    await tx.execute(
        "insert into client_spent_refreshes (token_hash, family_id) values ($1, $2)",
        _hash(token),
        row["family_id"],
    )
    await tx.execute(
        "update client_families set token_hash = $2, used_at = $3 where family_id = $1",
        row["family_id"],
        _hash(following),
        now,
    )
    return _family(row), following


async def find(
    tx: "Transaction", client_id: UUID, token: str, *, now: datetime
) -> Family | None:
    """Return the family of a refresh token of a program that still works."""
    row = await tx.fetchrow(
        "select f.* from client_families f join people p using (user_id)"
        " where token_hash = $1 and client_id = $2 and expires_at > $3"
        " and p.disabled_at is null",
        _hash(token),
        client_id,
        now,
    )
    return None if row is None else _family(row)


async def client_of(tx: "Transaction", token: str) -> str:
    """Return whose refresh token this is or was; empty when it is nobody's."""
    found = await tx.fetchval(
        "select client_id from client_families where token_hash = $1"
        " union select f.client_id from client_spent_refreshes s"
        " join client_families f using (family_id) where s.token_hash = $1",
        _hash(token),
    )
    return "" if found is None else str(found)


async def list_families(
    tx: "Transaction", *, now: datetime, client_id: UUID | None = None
) -> list[tuple[Family, str, str]]:
    """Return every family that lives with its program's name and its person's."""
    rows = await tx.fetch(
        "select f.*, c.name, p.display from client_families f"
        " join clients c using (client_id) join people p using (user_id)"
        " where expires_at > $1 and ($2::uuid is null or client_id = $2)"
        " order by used_at desc",
        now,
        client_id,
    )
    return [(_family(row), row["name"], row["display"]) for row in rows]


async def end(tx: "Transaction", family_id: str) -> None:
    """End one family and the access tokens that it gave; NOT_FOUND without it."""
    try:
        wanted = UUID(family_id)
    except ValueError:
        wanted = None
    ended = wanted and await tx.fetchval(
        "delete from client_families where family_id = $1 returning family_id", wanted
    )
    if ended is None:
        raise NodeError("no such grant", ErrorKind.NOT_FOUND)


async def end_of_token(tx: "Transaction", client_id: UUID, token: str) -> None:
    """End the family of a token that a program takes back (RFC 7009 2.1)."""
    await tx.execute(
        "delete from client_families where token_hash = $1 and client_id = $2",
        _hash(token),
        client_id,
    )


async def end_online(tx: "Transaction", user_id: UUID) -> None:
    """End what lives only as long as a person is there: she signed out."""
    await tx.execute(
        "delete from client_families where user_id = $1 and not offline", user_id
    )


def _family(row: "asyncpg.Record") -> Family:
    return Family(
        row["family_id"],
        row["client_id"],
        row["user_id"],
        row["scopes"],
        row["patient_id"],
        row["offline"],
        row["begun_at"],
        row["used_at"],
        row["expires_at"],
        json.loads(row["about"]),
    )


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
