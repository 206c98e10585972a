"""Client assertions: how a program proves with its key who it is.

SMART App Launch 2.2, asymmetric client authentication (RFC 7523, RFC 7515). What
is wrong with an assertion goes to the audit trail; the caller learns that it is.
"""

import asyncio
import base64
import binascii
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, RSAKey

from node.domain.errors import ErrorKind, NodeError
from node.fetching import Unfetched, fetch_json, may_call
from node.store.clients import Client

TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ALGORITHMS = ("RS384", "ES384")
MAX_LENGTH = 8192
LONGEST = timedelta(minutes=5)
# Clocks of two machines differ; five minutes are five minutes on the other one.
SKEW = timedelta(seconds=10)
RSA_BITS = range(2048, 8193)
_CURVES = {"ES256": "P-256", "ES384": "P-384"}
MAX_JWKS = 65_536
_MAX_KEYS = 50
_FETCH_S = 5.0


class Unproven(Exception):
    """An assertion proves nothing; `reason` is one word for the audit trail."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Assertion:
    """A verified assertion; the caller spends `jti` before anything is granted."""

    jti: str
    expires_at: datetime


def claimed_client(assertion: str) -> str:
    """Return the client that an assertion speaks of; nothing is proven yet."""
    if len(assertion) > MAX_LENGTH:
        raise Unproven("too-long")
    parts = assertion.split(".")
    if len(parts) != 3:
        raise Unproven("malformed")
    issuer = decoded(parts[1]).get("iss")
    if not isinstance(issuer, str) or len(issuer) > 64:
        raise Unproven("iss")
    return issuer


async def verify(
    assertion: str, client: Client, keys: "Keys", *, audience: str, now: datetime
) -> Assertion:
    """Return what an assertion proves of `client`; Unproven when it does not.

    The key comes from the registration and nowhere else: `jwk`, `jku`, `x5u` and
    `x5c` in the header are not looked at. Neither is a curve or algorithm other
    than those of ALGORITHMS, whatever the key could do.
    """
    algorithm, key_id = read_header(assertion, ALGORITHMS)
    if not key_id:
        raise Unproven("kid")
    key = await keys.find(client, key_id, algorithm)
    try:
        # Only what the library is told to verify it verifies.
        proven = jws.deserialize_compact(assertion, key, algorithms=[algorithm])
    except (JoseError, ValueError):
        raise Unproven("signature") from None
    return _check(_object(proven.payload), str(client.client_id), audience, now)


def read_header(
    token: str, algorithms: Collection[str], *, typ: str = "JWT"
) -> tuple[str, str]:
    """Return `alg` and `kid` of a signed token, all of its header that counts.

    Unproven for an algorithm that is not among these, and for a token of another
    kind than `typ` (one that tells none may be any); `kid` is empty where none is.
    """
    header = decoded(token.partition(".")[0])
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        raise Unproven("alg")
    if "crit" in header or "b64" in header:
        raise Unproven("crit")
    told = str(header.get("typ", "JWT")).lower().removeprefix("application/")
    if told not in ("jwt", typ.lower()):
        raise Unproven("typ")
    return algorithm, key_id if isinstance(key_id, str) else ""


def _check(
    claims: Mapping[str, Any], client_id: str, audience: str, now: datetime
) -> Assertion:
    if claims.get("iss") != client_id or claims.get("sub") != client_id:
        raise Unproven("iss-sub")
    told = claims.get("aud")
    if audience not in (told if isinstance(told, list) else [told]):
        raise Unproven("aud")
    expires_at = time_of(claims, "exp")
    if expires_at is None:
        raise Unproven("exp-missing")
    if expires_at <= now:
        raise Unproven("expired")
    if expires_at > now + LONGEST + SKEW:
        raise Unproven("exp-too-far")
    for name in ("nbf", "iat"):
        at = time_of(claims, name)
        if at is not None and at > now + SKEW:
            raise Unproven(f"{name}-future")
    jti = claims.get("jti")
    if not isinstance(jti, str) or not 0 < len(jti) <= 255:
        raise Unproven("jti")
    return Assertion(jti, expires_at)


def time_of(claims: Mapping[str, Any], name: str) -> datetime | None:
    """Return a time that a token claims; None where it claims none."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unproven(name)
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        raise Unproven(name) from None


def decoded(part: str) -> Mapping[str, Any]:
    """Return one part of a token as an object; nothing is proven by that."""
    try:
        raw = base64.b64decode(part + "=" * (-len(part) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Unproven("malformed") from None
    return _object(raw)


def _object(raw: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise Unproven("malformed") from None
    if not isinstance(value, dict):
        raise Unproven("malformed")
    return value


# --- keys ---------------------------------------------------------------------------


def read_jwks(text: str | bytes) -> KeySet:
    """Return public keys as they are registered; INVALID names what is wrong.

    A private or symmetric key is refused: whoever sent it has to make a new one.
    """
    try:
        document = json.loads(text)
        entries = document["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _faulty("not a JSON Web Key Set") from None
    if not isinstance(entries, list) or not 0 < len(entries) <= _MAX_KEYS:
        raise _faulty(f"1 to {_MAX_KEYS} keys")
    keys: list[RSAKey | ECKey] = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
            raise _faulty("every key has a kid")
        if {"d", "k", "p", "q"} & set(entry):
            raise _faulty("a secret key is in it: make new ones, send public ones")
        try:
            if entry.get("kty") == "RSA":
                keys.append(RSAKey.import_key(entry))
            elif entry.get("kty") == "EC":
                keys.append(ECKey.import_key(entry))
        except (JoseError, ValueError, TypeError, KeyError):
            raise _faulty("a key cannot be read") from None
    kids = [key.kid for key in keys]
    if not keys or len(set(kids)) != len(kids):
        raise _faulty("RSA or EC keys, each with a kid of its own")
    return KeySet(list(keys))


def _faulty(message: str) -> NodeError:
    return NodeError(f"jwks: {message}", ErrorKind.INVALID, expression="jwks")


def fit_for(key: object, algorithm: str) -> bool:
    """Tell whether a key is of the kind and strength that an algorithm needs."""
    if isinstance(key, RSAKey):
        fits = algorithm[:2] in ("RS", "PS") and key.public_key.key_size in RSA_BITS
    elif isinstance(key, ECKey):
        fits = key.curve_name == _CURVES.get(algorithm)
    else:
        return False
    told = key.as_dict(private=False)
    operations = told.get("key_ops") or ["verify"]
    return (
        fits
        and told.get("use", "sig") == "sig"
        and told.get("alg", algorithm) == algorithm
        and "verify" in operations
    )


@dataclass
class _Fetched:
    keys: KeySet | None
    at: datetime
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Keys:
    """Finds the keys of clients; fetched ones are kept for a while.

    A `kid` that is not among them makes us fetch again, so that a client can
    change its keys at any time, but at most once a minute: nobody gets to make
    us call another host as often as he likes. Only hosts that the site lists are
    called, by https (http on this machine alone), and no redirect is followed.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession | None,
        clock: Callable[[], datetime],
        hosts: frozenset[str],
        *,
        keep: timedelta = timedelta(minutes=10),
        again_after: timedelta = timedelta(minutes=1),
    ) -> None:
        self._session = session
        self._clock = clock
        self._hosts = hosts
        self._keep = keep
        self._again_after = again_after
        self._fetched: dict[str, _Fetched] = {}

    async def find(self, client: Client, key_id: str, algorithm: str) -> RSAKey | ECKey:
        """Return the key of a client for a `kid` and algorithm; Unproven without."""
        if client.jwks is not None:
            found = _named(read_jwks(client.jwks), key_id)
        elif client.jwks_uri is not None:
            found = await self.fetched(client.jwks_uri, key_id)
        else:
            raise Unproven("public-client")
        if found is None:
            raise Unproven("unknown-kid")
        if not fit_for(found, algorithm):
            raise Unproven("key")
        return found

    async def fetched(self, uri: str, key_id: str) -> RSAKey | ECKey | None:
        """Return the key with a `kid` that is published at an address."""
        entry = self._fetched.setdefault(
            uri, _Fetched(None, self._clock() - self._keep)
        )
        async with entry.lock:
            age = self._clock() - entry.at
            found = None if entry.keys is None else _named(entry.keys, key_id)
            stale = age >= self._keep
            if stale or (found is None and age >= self._again_after):
                entry.at = self._clock()
                entry.keys = await self._fetch(uri)
                found = _named(entry.keys, key_id)
        return found

    async def _fetch(self, uri: str) -> KeySet:
        if self._session is None or not may_call(uri, self._hosts):
            raise Unproven("jwks-host")
        try:
            document = await fetch_json(
                self._session,
                "GET",
                uri,
                limit_bytes=MAX_JWKS,
                timeout_s=_FETCH_S,
            )
            return read_jwks(json.dumps(document))
        except Unfetched as error:
            word = "jwks" if error.kind == "json" else f"jwks-{error.kind}"
            raise Unproven(word) from None
        except NodeError:
            raise Unproven("jwks") from None


def _named(keys: KeySet, key_id: str) -> RSAKey | ECKey | None:
    for key in keys.keys:
        if key.kid == key_id and isinstance(key, RSAKey | ECKey):
            return key
    return None
