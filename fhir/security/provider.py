"""The hospital's identity provider: what it says of itself, and what it signs.

Only the provider that the site has entered is spoken to, at its own hosts, by https
(OpenID Connect Discovery 1.0). What it signs is believed by its published keys alone.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import structlog
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from fhir.security.assertions import Keys, Unproven, fit_for, read_header
from node.domain.access import Role
from node.fetching import Unfetched, fetch_json, may_call

ALGORITHMS = ("RS256", "ES256", "PS256", "RS384", "ES384", "PS384", "RS512", "PS512")
# Clocks of two machines differ; more than this is a fault to be mended.
SKEW = timedelta(seconds=60)
ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")
MAX_BODY = 1 << 20
TIMEOUT_S = 10.0
MAX_TOKEN = 65_536
_KEEP = timedelta(minutes=10)

log = structlog.get_logger("sign_on")


@dataclass(frozen=True)
class SignOnSettings:
    """What the site says of its identity provider, and of the roles that it gives.

    Without `secret` and `private_key` (PEM, RSA or P-384) the node is a public client.
    """

    issuer: str
    client_id: str
    roles: Mapping[str, Role]
    scope: str = "openid profile"
    username_claim: str = "preferred_username"
    display_claim: str = "name"
    role_claim: str = "roles"
    secret: str | None = field(default=None, repr=False)
    private_key: str | None = field(default=None, repr=False)
    hosts: frozenset[str] = frozenset()

    @property
    def all_hosts(self) -> frozenset[str]:
        """Return the hosts that may be called for it."""
        return self.hosts | {urlsplit(self.issuer).netloc}


class Provider:
    """The provider of the site, as a running process knows it."""

    def __init__(
        self,
        settings: SignOnSettings,
        session: aiohttp.ClientSession,
        clock: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._session = session
        self._clock = clock
        self._keys = Keys(session, clock, settings.all_hosts)
        self._found: tuple[datetime, Mapping[str, Any]] | None = None

    async def verified(self, token: str, *, typ: str = "JWT") -> Mapping[str, Any]:
        """Return the claims of a token that it has signed; Unproven when it has not."""
        found = await self.discover()

        async def key_of(kid: str, algorithm: str) -> RSAKey | ECKey:
            key = await self._keys.fetched(str(found["jwks_uri"]), kid)
            if key is None:
                raise Unproven("unknown-kid")
            if not fit_for(key, algorithm):
                raise Unproven("key")
            return key

        return await read_signed(token, key_of, typ=typ)

    async def discover(self) -> Mapping[str, Any]:
        """Return what the provider says of itself; asked again every ten minutes."""
        now = self._clock()
        if self._found is not None and now - self._found[0] < _KEEP:
            return self._found[1]
        issuer, hosts = self._settings.issuer, self._settings.all_hosts
        try:
            found = await fetch_json(
                self._session,
                "GET",
                configuration_of(issuer),
                limit_bytes=MAX_BODY,
                timeout_s=TIMEOUT_S,
            )
        except Unfetched as error:
            log.warning("sign_on_away", setting="auth.oidc.issuer", why=error.reason)
            raise Unproven("away") from None
        if found.get("issuer") != issuer:
            raise Unproven("iss")
        for name in ENDPOINTS:
            if not may_call(str(found.get(name, "")), hosts):
                log.warning("sign_on_host", setting="auth.oidc.hosts", endpoint=name)
                raise Unproven("host")
        leaving = found.get("end_session_endpoint")
        if leaving is not None and not may_call(str(leaving), hosts):
            found = {k: v for k, v in found.items() if k != "end_session_endpoint"}
        self._found = now, found
        return found


def configuration_of(issuer: str) -> str:
    """Return the address at which a provider tells of itself."""
    return f"{issuer.rstrip('/')}/.well-known/openid-configuration"


KeyOf = Callable[[str, str], Awaitable[RSAKey | ECKey]]


async def read_signed(
    token: str, key_of: KeyOf, *, typ: str = "JWT"
) -> Mapping[str, Any]:
    """Return the claims of a token that one of the provider's keys has signed.

    Nothing of the header counts but `alg` and `kid`.
    """
    if token.count(".") != 2 or len(token) > MAX_TOKEN:
        raise Unproven("malformed")
    algorithm, kid = read_header(token, ALGORITHMS, typ=typ)
    if not kid:
        raise Unproven("unknown-kid")
    key = await key_of(kid, algorithm)
    try:
        payload = jws.deserialize_compact(token, key, algorithms=[algorithm]).payload
        claims = json.loads(payload)
    except (JoseError, ValueError, TypeError, RecursionError):
        raise Unproven("signature") from None
    if not isinstance(claims, dict):
        raise Unproven("malformed")
    return claims


def audience_of(claims: Mapping[str, Any]) -> list[Any]:
    """Return for whom a token is, one or several."""
    told = claims.get("aud")
    return told if isinstance(told, list) else [told]
