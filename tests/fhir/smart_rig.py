"""A node that authorizes programs: /fhir, /auth, and a program with its keys."""

import base64
import hashlib
import json
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import aiohttp
import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from fhir.rest.server import route_group as fhir_routes
from fhir.security import registration
from fhir.security.assertions import TYPE, Keys
from fhir.security.authorize import Desk
from fhir.security.sign_on import SignOn
from fhir.security.smart import Smart
from node.domain.access import Role
from node.http import HttpSettings, RouteGroup, make_app
from node.store.clients import Client
from node.store.store import Store
from review_ui import server
from tests.fhir.rig import Rig, make_settings, sign_in


@cache
def private_key(kind: str) -> Any:
    """Return a key by name, always the same: RSA keys take their time."""
    if kind.startswith("EC"):
        curve = ec.SECP256R1() if "256" in kind else ec.SECP384R1()
        return ec.generate_private_key(curve)
    return rsa.generate_private_key(65537, 1024 if "1024" in kind else 2048)


def public_jwk(kind: str, **more: str) -> dict[str, Any]:
    key = private_key(kind).public_key()
    algorithm = (
        jwt.algorithms.RSAAlgorithm
        if isinstance(key, rsa.RSAPublicKey)
        else jwt.algorithms.ECAlgorithm
    )
    told = algorithm.to_jwk(key, as_dict=True)
    told.pop("key_ops", None)
    return {**told, "kid": kind, **more}


def jwks(*kinds: str) -> str:
    return json.dumps({"keys": [public_jwk(kind) for kind in kinds]})


@dataclass
class SmartRig(Rig):
    """A rig whose programs get tokens by assertion; PyJWT signs, as others would."""

    root: str = ""
    keys: Keys | None = None

    def claims(self, client: Client, **changes: Any) -> dict[str, Any]:
        now = int(self.store.clock().timestamp())
        told = {
            "iss": str(client.client_id),
            "sub": str(client.client_id),
            "aud": f"{self.root}/auth/token",
            "iat": now,
            "exp": now + 240,
            "jti": secrets.token_hex(16),
        } | changes
        return {name: value for name, value in told.items() if value is not None}

    def assertion(
        self,
        client: Client,
        kind: str = "RSA",
        *,
        algorithm: str | None = None,
        headers: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        return jwt.encode(
            self.claims(client, **changes),
            private_key(kind),
            algorithm or ("ES384" if kind.startswith("EC") else "RS384"),
            headers={"kid": kind, **(headers or {})},
        )

    async def post(self, path: str, form: Mapping[str, str]) -> tuple[int, Any]:
        async with self.session.post(self.root + path, data=form) as answer:
            text = await answer.text()
            return answer.status, (await answer.json() if text else None)

    async def ask_token(
        self, client: Client, scope: str, assertion: str | None = None, **more: str
    ) -> tuple[int, Any]:
        form = {
            "grant_type": "client_credentials",
            "client_assertion_type": TYPE,
            "client_assertion": assertion or self.assertion(client),
            "scope": scope,
        } | more
        return await self.post("/auth/token", form)

    async def token(self, client: Client, scope: str) -> str:
        status, body = await self.ask_token(client, scope)
        assert status == 200, body
        return str(body["access_token"])

    async def with_token(
        self,
        token: str,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        sent = {"Authorization": f"Bearer {token}"} | dict(headers or {})
        return await self.ask(method, path, body, role=None, headers=sent)

    async def register(
        self, scopes: str = "system/*.cruds", *, keys: str | None = None, **more: Any
    ) -> Client:
        told: dict[str, Any] = {"name": "EHR", "roles": [Role.EHR]} | more
        if "jwks_uri" not in more and keys != "":
            told["jwks"] = keys or jwks("RSA", "EC")
        async with self.store.db.transaction() as tx:
            return await registration.register_client(
                tx, self.store, frozenset({"127.0.0.1"}), scopes=scopes, **told
            )


def pkce() -> tuple[str, str]:
    verifier = secrets.token_urlsafe(48)
    digest = hashlib.sha256(verifier.encode()).digest()
    return verifier, base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@asynccontextmanager
async def running_smart(
    store: Store,
    *groups: RouteGroup,
    roles: tuple[Role, ...] = (),
    sign_on: Callable[[str, Desk], SignOn] | None = None,
) -> AsyncIterator[SmartRig]:
    """Serve a whole /fhir and /auth on a free port of this machine."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        root = f"http://127.0.0.1:{listening.getsockname()[1]}"
        settings = make_settings(f"{root}/fhir")
        async with aiohttp.ClientSession() as session:
            hosts = frozenset({"127.0.0.1"})
            keys = Keys(session, store.clock, hosts)
            review = server.ReviewSettings(sign_on=sign_on is not None)
            throttle = server.throttle_of(store, review)
            desk = Desk(store, root, throttle, sign_on=review.sign_on)
            smart = Smart(store, root, keys, desk)
            more = [] if sign_on is None else [sign_on(root, desk).route_group()]
            app = make_app(
                store,
                HttpSettings(max_body_bytes=1024 * 1024),
                [
                    fhir_routes(store, settings, "0.1.0"),
                    *smart.route_groups(),
                    registration.route_group(store, hosts),
                    *server.routes(
                        store, review, throttle=throttle, grants=smart.grants
                    ),
                    *more,
                    *groups,
                ],
            )
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            listening.listen(128)
            await web.SockSite(runner, listening).start()
            tokens = {role: await sign_in(store, role) for role in roles}
            try:
                yield SmartRig(store, settings, session, tokens, root=root, keys=keys)
            finally:
                await runner.cleanup()
