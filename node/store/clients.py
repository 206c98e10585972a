"""Programs of other systems: who they are, what they were granted, and for how long.

Tokens are random and stored as their SHA-256, like sessions: they can be looked
into and taken back, and a stolen database opens nothing. What may be used once
(an assertion, a code, a launch) is spent in the database, so that it is spent for
every process and after a restart.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from node.domain.access import Identity, Role
from node.domain.errors import ErrorKind, NodeError
from node.domain.scopes import BESIDE, Scopes, read_scope, read_scopes

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction

TOKEN_PREFIX = "sst_"  # noqa: S105
SYSTEM_LIFETIME = timedelta(seconds=300)
USER_LIFETIME = timedelta(minutes=15)
CODE_LIFETIME = timedelta(seconds=60)
LAUNCH_LIFETIME = timedelta(minutes=5)
# A used code is kept for a while, so that its second use is seen as one.
_KEPT = timedelta(hours=1)


@dataclass(frozen=True)
class Client:
    """A registered program. Without keys it is public and acts for people only."""

    client_id: UUID
    name: str
    roles: frozenset[Role]
    scopes: str
    jwks: str | None = None
    jwks_uri: str | None = None
    redirect_uris: tuple[str, ...] = ()
    disabled: bool = False
    launch_url: str | None = None
    last_used_at: datetime | None = None

    @property
    def confidential(self) -> bool:
        """Tell whether it proves with a key who it is."""
        return self.jwks is not None or self.jwks_uri is not None

    @property
    def identity(self) -> Identity:
        """Return the program as a caller that acts for itself, before scopes."""
        return Identity(str(self.client_id), self.roles, self.name)


@dataclass(frozen=True)
class Grant:
    """What stands behind a token."""

    client_id: UUID
    identity: Identity
    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True)
class Code:
    """An authorization code that was told to a program once, as it is redeemed.

    `context` is told to the program; `about` is what an id_token says of the sign-in.
    """

    user_id: UUID
    redirect_uri: str
    challenge: str
    scopes: str
    context: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


# --- registration -------------------------------------------------------------------


async def register(
    tx: "Transaction",
    *,
    name: str,
    roles: Iterable[Role],
    scopes: str,
    now: datetime,
    jwks: str | None = None,
    jwks_uri: str | None = None,
    redirect_uris: Iterable[str] = (),
    launch_url: str | None = None,
) -> Client:
    """Store a program and return it with the id that it is told; INVALID if faulty."""
    client = Client(
        uuid4(),
        " ".join(name.split()),
        frozenset(roles),
        " ".join(scopes.split()),
        jwks,
        jwks_uri,
        tuple(redirect_uris),
        launch_url=launch_url,
    )
    _check(client)
    await tx.execute(
        "insert into clients (client_id, name, roles, scopes, jwks, jwks_uri,"
        " redirect_uris, created_at, launch_url)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        client.client_id,
        client.name,
        sorted(role.value for role in client.roles),
        client.scopes,
        client.jwks,
        client.jwks_uri,
        list(client.redirect_uris),
        now,
        client.launch_url,
    )
    return client


def _check(client: Client) -> None:
    if not 0 < len(client.name) <= 100 or not client.name.isprintable():
        raise _faulty("a client has a name of up to 100 signs", "name")
    if client.jwks is not None and client.jwks_uri is not None:
        raise _faulty("keys are given or fetched, not both", "jwks_uri")
    words = client.scopes.split()
    asked = [read_scope(scope) for scope in words if scope not in BESIDE]
    if not asked:
        raise _faulty("a client has at least one scope", "scopes")
    for_itself = any(scope.context == "system" for scope in asked)
    if for_itself and not (client.confidential and client.roles):
        raise _faulty("system/ scopes need keys and a role", "scopes")
    if any(scope.context != "system" for scope in asked) and not client.redirect_uris:
        raise _faulty("user/ and patient/ scopes need a redirect address", "scopes")
    if client.launch_url is not None and not client.redirect_uris:
        raise _faulty("a program that is opened needs a redirect address", "launch_url")


def _faulty(message: str, element: str) -> NodeError:
    return NodeError(message, ErrorKind.INVALID, expression=element)


async def find(tx: "Transaction", client_id: str) -> Client | None:
    """Return a program by the id that it gives; None for unknown and shut ones."""
    try:
        wanted = UUID(client_id)
    except ValueError:
        return None
    row = await tx.fetchrow(
        "select * from clients where client_id = $1 and disabled_at is null", wanted
    )
    return None if row is None else _client(row)


async def note_use(tx: "Transaction", client_id: UUID, *, now: datetime) -> None:
    """Write down that a program proved itself, at most once a minute."""
    await tx.execute(
        "update clients set last_used_at = $2 where client_id = $1"
        " and (last_used_at is null or last_used_at < $3)",
        client_id,
        now,
        now - timedelta(minutes=1),
    )


async def list_clients(tx: "Transaction") -> list[Client]:
    """Return every program, shut ones too, by name."""
    rows = await tx.fetch("select * from clients order by name, created_at")
    return [_client(row) for row in rows]


async def disable(tx: "Transaction", client_id: str, *, now: datetime) -> None:
    """Shut a program and take its tokens back, refresh tokens too."""
    await _change(tx, client_id, "disabled_at = coalesce(disabled_at, $2)", now)


async def rotate(
    tx: "Transaction", client_id: str, *, jwks: str | None, jwks_uri: str | None
) -> None:
    """Give a program other keys and take its tokens back, refresh tokens too."""
    if (jwks is None) == (jwks_uri is None):
        raise _faulty("keys are given or fetched", "jwks")
    await _change(tx, client_id, "jwks = $2, jwks_uri = $3", jwks, jwks_uri)


async def _change(
    tx: "Transaction", client_id: str, change: str, *values: object
) -> None:
    try:
        wanted = UUID(client_id)
    except ValueError:
        raise NodeError("no such client", ErrorKind.NOT_FOUND) from None
    changed = await tx.fetchval(
        # `change` is one of two constants above.
        f"update clients set {change} where client_id = $1 returning client_id",  # noqa: S608
        wanted,
        *values,
    )
    if changed is None:
        raise NodeError("no such client", ErrorKind.NOT_FOUND)
    await tx.execute("delete from client_families where client_id = $1", wanted)
    await tx.execute("delete from client_tokens where client_id = $1", wanted)
    await tx.execute("delete from client_codes where client_id = $1", wanted)


def _client(row: "asyncpg.Record") -> Client:
    return Client(
        client_id=row["client_id"],
        name=row["name"],
        roles=frozenset(Role(role) for role in row["roles"]),
        scopes=row["scopes"],
        jwks=row["jwks"],
        jwks_uri=row["jwks_uri"],
        redirect_uris=tuple(row["redirect_uris"]),
        disabled=row["disabled_at"] is not None,
        launch_url=row["launch_url"],
        last_used_at=row["last_used_at"],
    )


# --- what works once ----------------------------------------------------------------


async def spend_assertion(
    tx: "Transaction",
    client_id: UUID,
    jti: str,
    *,
    expires_at: datetime,
    now: datetime,
) -> bool:
    """Note an assertion until it expires; False when it had been used before."""
    await tx.execute("delete from client_assertions where expires_at < $1", now)
    spent = await tx.fetchval(
        "insert into client_assertions (client_id, jti_hash, expires_at)"
        " values ($1, $2, $3) on conflict do nothing returning true",
        client_id,
        _hash(jti),
        expires_at,
    )
    return bool(spent)


async def write_code(
    tx: "Transaction", client_id: UUID, code: Code, *, now: datetime
) -> str:
    """Return a new authorization code; it works once, for a minute."""
    secret = secrets.token_urlsafe(32)
    await tx.execute("delete from client_codes where expires_at < $1", now - _KEPT)
    await tx.execute(
        "insert into client_codes (code_hash, client_id, user_id, redirect_uri,"
        " challenge, scopes, context, about, expires_at)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        _hash(secret),
        client_id,
        code.user_id,
        code.redirect_uri,
        code.challenge,
        code.scopes,
        json.dumps(code.context),
        json.dumps(code.about),
        now + CODE_LIFETIME,
    )
    return secret


async def redeem_code(
    tx: "Transaction", client_id: UUID, secret: str, *, now: datetime
) -> Code | None:
    """Spend a code and return it; None when it does not work (any more).

    A code that comes a second time was stolen from one of both: the tokens that
    it gave are taken back (RFC 6749 4.1.2). The caller commits that, too.
    """
    row = await tx.fetchrow(
        "select * from client_codes where code_hash = $1 and client_id = $2 for update",
        _hash(secret),
        client_id,
    )
    if row is None:
        return None
    if row["used_at"] is not None:
        for table in ("client_families", "client_tokens"):
            await tx.execute(
                f"delete from {table} where code_hash = $1",  # noqa: S608
                row["code_hash"],
            )
        return None
    await tx.execute(
        "update client_codes set used_at = $2 where code_hash = $1",
        row["code_hash"],
        now,
    )
    if now >= row["expires_at"]:
        return None
    return Code(
        row["user_id"],
        row["redirect_uri"],
        row["challenge"],
        row["scopes"],
        json.loads(row["context"]),
        json.loads(row["about"]),
    )


async def write_launch(
    tx: "Transaction", user_id: UUID, context: Mapping[str, Any], *, now: datetime
) -> str:
    """Return the `launch` value under which a program learns what it is opened for."""
    secret = secrets.token_urlsafe(16)
    await tx.execute("delete from client_launches where expires_at < $1", now)
    await tx.execute(
        "insert into client_launches (launch_hash, user_id, context, expires_at)"
        " values ($1, $2, $3, $4)",
        _hash(secret),
        user_id,
        json.dumps(context),
        now + LAUNCH_LIFETIME,
    )
    return secret


async def spend_launch(
    tx: "Transaction", user_id: UUID, secret: str, *, now: datetime
) -> Mapping[str, Any] | None:
    """Return what a launch is about, once, to the person who began it."""
    context = await tx.fetchval(
        "delete from client_launches where launch_hash = $1 and user_id = $2"
        " and expires_at > $3 returning context",
        _hash(secret),
        user_id,
        now,
    )
    return None if context is None else dict(json.loads(context))


# --- tokens -------------------------------------------------------------------------


async def open_token(
    tx: "Transaction",
    client_id: UUID,
    scopes: Scopes,
    *,
    now: datetime,
    user_id: UUID | None = None,
    code: str | None = None,
    family_id: UUID | None = None,
) -> str:
    """Return a new access token; it is told once and stored as a hash."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    lifetime = SYSTEM_LIFETIME if user_id is None else USER_LIFETIME
    await tx.execute("delete from client_tokens where expires_at < $1", now)
    await tx.execute(
        "insert into client_tokens (token_hash, client_id, user_id, scopes, patient_id,"
        " code_hash, issued_at, expires_at, family_id)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        _hash(token),
        client_id,
        user_id,
        str(scopes),
        scopes.patient_id,
        None if code is None else _hash(code),
        now,
        now + lifetime,
        family_id,
    )
    return token


async def find_token(tx: "Transaction", token: str, *, now: datetime) -> Grant | None:
    """Return what stands behind a token; None when it is not, or no longer, valid."""
    row = await tx.fetchrow(
        "select t.*, c.name, c.roles as client_roles, p.display, p.roles,"
        " p.practitioner_id, (select array_agg(other) from patient_rows r"
        "  where r.patient_id = t.patient_id) as also"
        " from client_tokens t join clients c using (client_id)"
        " left join people p using (user_id)"
        " where token_hash = $1 and expires_at > $2 and c.disabled_at is null"
        " and p.disabled_at is null",
        _hash(token),
        now,
    )
    if row is None:
        return None
    scopes = Scopes(
        read_scopes(row["scopes"]), row["patient_id"], tuple(row["also"] or ())
    )
    own = row["user_id"] is None
    identity = Identity(
        str(row["client_id"] if own else row["user_id"]),
        frozenset(Role(r) for r in row["client_roles" if own else "roles"]),
        row["name"] if own else row["display"],
        None if own else row["practitioner_id"],
        scopes,
        client_id=str(row["client_id"]),
        token_id=token_id(token),
    )
    return Grant(row["client_id"], identity, row["issued_at"], row["expires_at"])


async def read_token(tx: "Transaction", token: str, *, now: datetime) -> Identity:
    """Return the caller behind a token; UNAUTHENTICATED when it is not valid."""
    grant = await find_token(tx, token, now=now)
    if grant is None:
        raise NodeError("the token has ended", ErrorKind.UNAUTHENTICATED)
    return grant.identity


async def close_token(tx: "Transaction", client_id: UUID, token: str) -> None:
    """Take back a token of a program; others' tokens are left alone (RFC 7009 2.1)."""
    await tx.execute(
        "delete from client_tokens where token_hash = $1 and client_id = $2",
        _hash(token),
        client_id,
    )


def token_id(token: str) -> str:
    """Return what the audit trail calls a token: it opens nothing."""
    return hashlib.sha256(b"id " + token.encode()).hexdigest()[:32]


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
