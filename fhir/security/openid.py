"""What the node says of a person to the programs that she uses (OpenID Connect Core).

An id_token is signed with RS256: every client library reads it, and SMART 2.2
(Scopes for requesting identity data) asks for it. It names her Practitioner and
nothing of a patient.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from aiohttp import web
from joserfc import jwt
from joserfc.jwk import RSAKey

from fhir.content.mapping import to_practitioner
from fhir.content.publish import write_once
from node.domain.access import Identity
from node.store import signing
from node.store.clients import USER_LIFETIME
from node.store.signing import SigningKey

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

ALGORITHM = "RS256"
KEYS_PATH = "/auth/keys"
_BITS = 2048


def new_key() -> SigningKey:
    """Return a key pair that nobody has used; it takes a moment."""
    key = RSAKey.generate_key(_BITS, {"use": "sig", "alg": ALGORITHM}, auto_kid=True)
    public = dict(key.as_dict(private=False))
    return SigningKey(str(key.kid), public, dict(key.as_dict(private=True)))


async def keys(store: "Store") -> web.Response:
    """Answer the public keys (OpenID Connect Discovery, jwks_uri)."""
    async with store.db.transaction() as tx:
        await signing.current(tx, store, new_key)
        shown = await signing.shown(tx, now=store.clock())
    return web.json_response(
        {"keys": shown}, headers={"Cache-Control": "public, max-age=300"}
    )


async def id_token(
    tx: "Transaction",
    store: "Store",
    *,
    issuer: str,
    client_id: UUID,
    person: Identity,
    about: Mapping[str, Any],
) -> str:
    """Return what is said of a person: who, since when, and her Practitioner."""
    key = await signing.current(tx, store, new_key)
    now = store.clock()
    claims: dict[str, Any] = {
        "iss": issuer,
        "sub": person.user_id,
        "aud": str(client_id),
        "iat": int(now.timestamp()),
        "exp": int((now + USER_LIFETIME).timestamp()),
    }
    claims |= {name: about[name] for name in ("nonce", "auth_time") if name in about}
    if "fhirUser" in about["also"] and person.practitioner_id is not None:
        # What the address names is there, also before she has signed a report.
        practitioner = to_practitioner(person.practitioner_id, person.display)
        await write_once(tx, store, practitioner)
        claims["fhirUser"] = f"{issuer}/fhir/Practitioner/{person.practitioner_id}"
    header = {"alg": ALGORITHM, "kid": key.kid, "typ": "JWT"}
    private = RSAKey.import_key(dict(key.private))
    return jwt.encode(header, claims, private, algorithms=[ALGORITHM])
