"""People and machines with an account, their sessions, and desk QR codes.

Passwords are argon2id and are computed beside the event loop. A session token
has 256 random bits and is stored as its SHA-256; a stolen database signs
nobody in.
"""

import asyncio
import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from uuid import UUID, uuid4

import asyncpg
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from node.domain.access import Identity, Role
from node.domain.errors import ErrorKind, NodeError

if TYPE_CHECKING:
    from node.store.database import Transaction

_P = ParamSpec("_P")
_R = TypeVar("_R")

IDLE_LIMIT = timedelta(minutes=15)
COOKIE_LIFETIME = timedelta(hours=12)
BEARER_LIFETIME = timedelta(minutes=15)
BINDING_LIFETIME = timedelta(hours=24)
PASSWORD_LENGTH = range(12, 1025)
EVERYBODY = "*"
# A session in use is written down at most this often.
_TOUCH_AFTER = timedelta(seconds=20)

_HASHER = PasswordHasher()
# What a login that nobody has is checked against, so that it takes as long.
_DECOY = (
    "$argon2id$v=19$m=65536,t=3,p=4$"
    "AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)
# Each hash takes 64 MiB: two at a time is a limit on memory as well.
_THREADS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="argon2")


class SessionKind(StrEnum):
    """What carries a session: a browser's cookie or a script's bearer token."""

    COOKIE = "cookie"
    BEARER = "bearer"


_LIFETIME = {
    SessionKind.COOKIE: COOKIE_LIFETIME,
    SessionKind.BEARER: BEARER_LIFETIME,
}


@dataclass(frozen=True)
class User:
    """One account. `display` is the professional's own name."""

    user_id: UUID
    login: str
    display: str
    roles: frozenset[Role]
    practitioner_id: str | None = None
    disabled: bool = False

    @property
    def identity(self) -> Identity:
        """Return the account as the caller of a request."""
        return Identity(
            str(self.user_id), self.roles, self.display, self.practitioner_id
        )


@dataclass(frozen=True)
class Session:
    """A valid session: who it belongs to and when it ends at the latest."""

    identity: Identity
    expires_at: datetime


@dataclass(frozen=True)
class Binding:
    """A printed QR code; the code itself is known to its paper alone.

    `check_code` lets the relay test the last four signs of the patient's ID
    number without holding them: HMAC-SHA256 under the token that only the QR
    code has. None when no number is on file.
    """

    binding_id: UUID
    patient_id: UUID
    token_hash: bytes
    check_code: bytes | None
    expires_at: datetime


# --- accounts ----------------------------------------------------------------


async def create_user(
    tx: "Transaction",
    *,
    login: str,
    password: str,
    display: str,
    roles: Iterable[Role],
    now: datetime,
    practitioner_id: str | None = None,
) -> User:
    """Store a new account and return it.

    A doctor's account gets a `practitioner_id`, which FHIR Practitioner and
    signatures are named by. INVALID for an empty login, no role or a password
    outside `PASSWORD_LENGTH`; CONFLICT when the login is taken.
    """
    name = normalise_login(login)
    given = frozenset(roles)
    if not name or not given:
        raise NodeError("an account has a login and a role", ErrorKind.INVALID)
    user_id = uuid4()
    if practitioner_id is None and given & _SIGNERS:
        practitioner_id = str(uuid4())
    password_hash = await _hash(password)
    try:
        await tx.execute(
            "insert into people (user_id, login, display, password_hash, roles,"
            " practitioner_id, created_at) values ($1, $2, $3, $4, $5, $6, $7)",
            user_id,
            name,
            display.strip() or name,
            password_hash,
            sorted(role.value for role in given),
            practitioner_id,
            now,
        )
    except asyncpg.UniqueViolationError:
        raise NodeError(f"the login {name!r} is taken", ErrorKind.CONFLICT) from None
    return User(user_id, name, display.strip() or name, given, practitioner_id)


_SIGNERS = frozenset({Role.RADIOLOGIST, Role.SENIOR_RADIOLOGIST})


async def set_password(tx: "Transaction", login: str, password: str) -> None:
    """Give an account a new password and end all that was opened with the old one."""
    password_hash = await _hash(password)
    user_id = await tx.fetchval(
        "update people set password_hash = $2 where login = $1 returning user_id",
        normalise_login(login),
        password_hash,
    )
    if user_id is None:
        raise NodeError("no such account", ErrorKind.NOT_FOUND)
    await end_all(tx, user_id)


async def disable_user(tx: "Transaction", login: str, *, now: datetime) -> None:
    """Close an account and end all its sessions; its past work keeps its name."""
    user_id = await tx.fetchval(
        "update people set disabled_at = coalesce(disabled_at, $2)"
        " where login = $1 returning user_id",
        normalise_login(login),
        now,
    )
    if user_id is None:
        raise NodeError("no such account", ErrorKind.NOT_FOUND)
    await end_all(tx, user_id)


async def end_all(tx: "Transaction", user_id: UUID) -> None:
    """End all sessions of a person, and all that programs may do in her name."""
    for table in ("sessions", "client_families", "client_tokens", "client_codes"):
        await tx.execute(
            f"delete from {table} where user_id = $1",  # noqa: S608
            user_id,
        )


async def arrive(
    tx: "Transaction",
    *,
    issuer: str,
    subject: str,
    login: str,
    display: str,
    roles: Iterable[Role],
    now: datetime,
) -> User:
    """Return the account of somebody whom the hospital's sign-on vouches for.

    The first time one is made, without a password. Her roles are those of today.
    CONFLICT when the login is another account's: whose it is only an administrator
    can say (`link`). FORBIDDEN when her account here is closed.
    """
    row = await tx.fetchrow(
        "select * from people where sign_on_issuer = $1 and sign_on_subject = $2"
        " for update",
        issuer,
        subject,
    )
    given, name = frozenset(roles), normalise_login(login)
    if row is None:
        return await _make(tx, issuer, subject, name, display.strip(), given, now)
    if row["disabled_at"] is not None:
        raise NodeError("the account is closed", ErrorKind.FORBIDDEN)
    # A name with its parts was entered by hand: documents need them.
    told = display.strip()
    shown = told if told and "^" not in row["display"] else row["display"]
    # The row is locked: it is there.
    (changed,) = await tx.fetch(
        "update people set display = $2, roles = $3,"
        " practitioner_id = coalesce(practitioner_id, $4)"
        " where user_id = $1 returning *",
        row["user_id"],
        shown,
        sorted(role.value for role in given),
        str(uuid4()) if given & _SIGNERS else None,
    )
    return _user(changed)


async def _make(
    tx: "Transaction",
    issuer: str,
    subject: str,
    login: str,
    display: str,
    roles: frozenset[Role],
    now: datetime,
) -> User:
    row = await tx.fetchrow(
        "insert into people (user_id, login, display, password_hash, roles,"
        " practitioner_id, created_at, sign_on_issuer, sign_on_subject)"
        " values ($1, $2, $3, '', $4, $5, $6, $7, $8) on conflict do nothing"
        " returning *",
        uuid4(),
        login,
        display or login,
        sorted(role.value for role in roles),
        str(uuid4()) if roles & _SIGNERS else None,
        now,
        issuer,
        subject,
    )
    if row is None:
        raise NodeError(f"the login {login!r} is taken", ErrorKind.CONFLICT)
    return _user(row)


async def link(tx: "Transaction", login: str, issuer: str, subject: str) -> None:
    """Let an account be that of a subject of the hospital's sign-on from now on."""
    try:
        user_id = await tx.fetchval(
            "update people set sign_on_issuer = $2, sign_on_subject = $3"
            " where login = $1 returning user_id",
            normalise_login(login),
            issuer,
            subject,
        )
    except asyncpg.UniqueViolationError:
        raise NodeError(
            "the subject has an account here already", ErrorKind.CONFLICT
        ) from None
    if user_id is None:
        raise NodeError("no such account", ErrorKind.NOT_FOUND)


async def end_of_subject(tx: "Transaction", issuer: str, subject: str) -> None:
    """End all sessions of somebody who has lost her roles at the hospital's sign-on."""
    user_id = await tx.fetchval(
        "select user_id from people where sign_on_issuer = $1 and sign_on_subject = $2",
        issuer,
        subject,
    )
    if user_id is not None:
        await end_all(tx, user_id)


async def list_users(tx: "Transaction") -> list[User]:
    """Return every account, closed ones too, by login."""
    rows = await tx.fetch("select * from people order by login")
    return [_user(row) for row in rows]


async def find_login(tx: "Transaction", login: str) -> User | None:
    """Return the account with this login, None when there is none."""
    row = await tx.fetchrow(
        "select * from people where login = $1", normalise_login(login)
    )
    return None if row is None else _user(row)


async def find(tx: "Transaction", user_id: UUID) -> User | None:
    """Return an account that is open by its id, None when there is none."""
    row = await tx.fetchrow(
        "select * from people where user_id = $1 and disabled_at is null", user_id
    )
    return None if row is None else _user(row)


async def find_account(tx: "Transaction", user_id: str) -> User | None:
    """Return the account with this id, None when it is nobody's."""
    row = await tx.fetchrow("select * from people where user_id::text = $1", user_id)
    return None if row is None else _user(row)


async def find_practitioner(tx: "Transaction", practitioner_id: str) -> User | None:
    """Return the account behind a FHIR Practitioner, None when there is none."""
    row = await tx.fetchrow(
        "select * from people where practitioner_id = $1",
        practitioner_id,
    )
    return None if row is None else _user(row)


async def check_password(
    tx: "Transaction",
    login: str,
    password: str,
    *,
    among: Collection[str] = (EVERYBODY,),
) -> User:
    """Return the account that `login` and `password` open.

    `among` are the logins that may use a password here: where the hospital has a
    sign-on, those for the day on which it is away. UNAUTHENTICATED with one and the
    same message, after one and the same work, whether the login is unknown or has no
    password here, the account is closed or the password wrong.
    """
    name = normalise_login(login)
    row = None
    if name.isprintable():  # others nobody has, and the database takes not all of them
        row = await tx.fetchrow("select * from people where login = $1", name)
    stored = (row and row["password_hash"]) or _DECOY
    right = await _beside_the_loop(_verify, stored, password)
    admitted = {EVERYBODY, name} & {normalise_login(a) for a in among}
    closed = row is not None and row["disabled_at"] is not None
    if row is None or not right or closed or not admitted:
        raise NodeError("wrong login or password", ErrorKind.UNAUTHENTICATED)
    if _HASHER.check_needs_rehash(stored):
        await tx.execute(
            "update people set password_hash = $2 where user_id = $1",
            row["user_id"],
            await _hash(password),
        )
    return _user(row)


def normalise_login(login: str) -> str:
    """Return the form in which a login is stored and compared."""
    return unicodedata.normalize("NFKC", login).casefold().strip()


def _user(row: asyncpg.Record) -> User:
    return User(
        user_id=row["user_id"],
        login=row["login"],
        display=row["display"],
        roles=frozenset(Role(role) for role in row["roles"]),
        practitioner_id=row["practitioner_id"],
        disabled=row["disabled_at"] is not None,
    )


async def _hash(password: str) -> str:
    if len(password) not in PASSWORD_LENGTH:
        raise NodeError(
            f"a password has {PASSWORD_LENGTH[0]} to {PASSWORD_LENGTH[-1]} signs",
            ErrorKind.INVALID,
        )
    return await _beside_the_loop(_HASHER.hash, password)


def _verify(stored: str, password: str) -> bool:
    try:
        return _HASHER.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False


async def _beside_the_loop(
    function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
) -> _R:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_THREADS, lambda: function(*args, **kwargs))


# --- sessions ----------------------------------------------------------------


async def open_session(
    tx: "Transaction",
    user: User,
    kind: SessionKind,
    *,
    now: datetime,
    by_sign_on: bool = False,
    sid_hash: bytes | None = None,
) -> str:
    """Return the token of a new session; it is told once and stored as a hash.

    `sid_hash` is what the hospital's sign-on calls it, if it told that.
    """
    token = secrets.token_urlsafe(32)
    await tx.execute("delete from sessions where expires_at < $1", now)
    await tx.execute(
        "insert into sessions (token_hash, user_id, kind, created_at, last_used_at,"
        " expires_at, by_sign_on, sign_on_sid)"
        " values ($1, $2, $3, $4, $4, $5, $6, $7)",
        _token_hash(token),
        user.user_id,
        kind.value,
        now,
        now + _LIFETIME[kind],
        by_sign_on,
        sid_hash,
    )
    return token


async def read_session(
    tx: "Transaction",
    token: str,
    kind: SessionKind,
    *,
    now: datetime,
    touch: bool = True,
) -> Session:
    """Return the session of `token` and, with `touch`, count this as activity.

    UNAUTHENTICATED when it is unknown, of another kind, idle for longer than
    `IDLE_LIMIT`, older than its lifetime, or its account is closed.
    """
    row = await tx.fetchrow(
        "select * from sessions join people using (user_id)"
        " where token_hash = $1 and kind = $2",
        _token_hash(token),
        kind.value,
    )
    alive = (
        row is not None
        and row["disabled_at"] is None
        and now < row["expires_at"]
        and now - row["last_used_at"] <= IDLE_LIMIT
    )
    if row is None or not alive:
        raise NodeError("the session has ended", ErrorKind.UNAUTHENTICATED)
    if touch and now - row["last_used_at"] > _TOUCH_AFTER:
        await tx.execute(
            "update sessions set last_used_at = $2 where token_hash = $1",
            _token_hash(token),
            now,
        )
    return Session(_user(row).identity, row["expires_at"])


async def close_session(tx: "Transaction", token: str) -> bool:
    """End the session of `token`; ending it twice is fine.

    Tell whether it began at the hospital's sign-on, where another one goes on.
    """
    by_sign_on = await tx.fetchval(
        "delete from sessions where token_hash = $1 returning by_sign_on",
        _token_hash(token),
    )
    return bool(by_sign_on)


def _token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


# --- desk QR codes -----------------------------------------------------------


async def create_binding(
    tx: "Transaction",
    *,
    patient_id: UUID,
    id_number: str | None,
    created_by: UUID,
    now: datetime,
) -> tuple[Binding, str]:
    """Store a one-time QR code for a patient; return it and its token.

    The token is on the paper and nowhere else. `id_number` is used for the
    check code and not kept.
    """
    token = secrets.token_urlsafe(16)
    binding = Binding(
        binding_id=uuid4(),
        patient_id=patient_id,
        token_hash=_token_hash(token),
        check_code=check_code(token, id_number),
        expires_at=now + BINDING_LIFETIME,
    )
    await tx.execute("delete from bindings where expires_at < $1", now)
    await tx.execute(
        "insert into bindings (binding_id, patient_id, token_hash, check_code,"
        " created_by, created_at, expires_at) values ($1, $2, $3, $4, $5, $6, $7)",
        binding.binding_id,
        patient_id,
        binding.token_hash,
        binding.check_code,
        created_by,
        now,
        binding.expires_at,
    )
    return binding, token


def check_code(token: str, id_number: str | None) -> bytes | None:
    """Return HMAC-SHA256 of the last four signs of an ID number under `token`."""
    signs = "".join((id_number or "").split()).upper()
    if len(signs) < 4:
        return None
    return hmac.new(token.encode(), signs[-4:].encode(), hashlib.sha256).digest()


async def read_binding(tx: "Transaction", binding_id: UUID) -> Binding:
    """Return a printed QR code; GONE when it has expired or never was."""
    row = await tx.fetchrow(
        "select binding_id, patient_id, token_hash, check_code, expires_at"
        " from bindings where binding_id = $1",
        binding_id,
    )
    if row is None:
        raise NodeError("the QR code has expired", ErrorKind.GONE)
    return Binding(**dict(row))


async def mark_binding_offered(
    tx: "Transaction", binding_id: UUID, *, now: datetime
) -> None:
    """Note that the relay knows of the QR code, so that it works from now on."""
    await tx.execute(
        "update bindings set offered_at = coalesce(offered_at, $2)"
        " where binding_id = $1",
        binding_id,
        now,
    )
