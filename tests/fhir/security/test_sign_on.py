"""People sign in by the hospital's own sign-on.

OpenID Connect Core 1.0 3.1 (code flow, 3.1.3.7 what is checked of an id_token),
RFC 7636 (PKCE), RFC 9207, RP-Initiated Logout 1.0. The provider is played by PyJWT
and real keys.
"""

import base64
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import aiohttp
import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives import serialization

from fhir.security import sign_on
from fhir.security.authorize import Desk
from fhir.security.provider import SignOnSettings
from fhir.security.sign_on import CALLBACK, SignOn, own_key
from node.domain.access import Role
from node.domain.errors import NodeError
from node.http import HttpSettings, make_app
from node.store import launches, people
from node.store.store import Store
from review_ui import server
from tests.conftest import FrozenClock
from tests.fhir.security.test_smart import by_hand
from tests.fhir.security.test_smart_people import BACK, App
from tests.fhir.smart_rig import SmartRig, private_key, public_jwk, running_smart

CLIENT, SECRET = "sononode", "s:cret/+"
ROLES = {"US-Doctors": Role.RADIOLOGIST, "IT": Role.ADMINISTRATOR}


def pem_of(kind: str) -> str:
    return (
        private_key(kind)
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


@dataclass
class Idp:
    """A hospital's identity provider; checks what a strict one would."""

    clock: FrozenClock
    root: str = ""
    discovery: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=lambda: ["RSA", "EC256"])
    sign: Callable[[dict[str, Any]], str] | None = None
    asked: dict[str, str] = field(default_factory=dict)
    proof: str = "basic"
    fetched: int = 0
    away: bool = False
    clock_ahead: timedelta = timedelta(0)
    # What it says to `prompt=none`; empty: the redirect address is unknown to it.
    silently: str = "login_required"

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/.well-known/openid-configuration", self.configuration),
            web.get("/keys", self.keys),
            web.post("/token", self.token),
            web.get("/authorize", self.authorize),
        ]

    async def configuration(self, _: web.Request) -> web.Response:
        if self.away:
            return web.Response(status=502)
        told = {
            "issuer": self.root,
            "authorization_endpoint": f"{self.root}/authorize",
            "token_endpoint": f"{self.root}/token",
            "jwks_uri": f"{self.root}/keys",
            "end_session_endpoint": f"{self.root}/logout",
        }
        date = format_datetime(self.clock() + self.clock_ahead, usegmt=True)
        return web.json_response(told | self.discovery, headers={"Date": date})

    async def authorize(self, request: web.Request) -> web.Response:
        if not self.silently:
            return web.Response(status=400, text="invalid redirect_uri")
        place = f"{request.query['redirect_uri']}?error={self.silently}"
        return web.Response(status=302, headers={"Location": place})

    async def keys(self, _: web.Request) -> web.Response:
        self.fetched += 1
        return web.json_response({"keys": [public_jwk(kind) for kind in self.kinds]})

    async def token(self, request: web.Request) -> web.Response:
        form = {k: str(v) for k, v in (await request.post()).items()}
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        made = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        right = (
            made == self.asked["code_challenge"]
            and form["redirect_uri"] == self.asked["redirect_uri"]
            and form["code"] == "code-1"
            and self.proven(request, form)
        )
        if not right:
            return web.json_response({"error": "invalid_grant"}, status=400)
        return web.json_response({"access_token": "a", "id_token": self.id_token()})

    def proven(self, request: web.Request, form: dict[str, str]) -> bool:
        if self.proof == "basic":
            # RFC 6749 2.3.1: both halves are form-encoded before.
            told = base64.b64encode(b"sononode:s%3Acret%2F%2B").decode()
            return request.headers.get("Authorization") == f"Basic {told}"
        if self.proof == "post":
            return form.get("client_secret") == SECRET
        if self.proof == "none":
            return form.get("client_id") == CLIENT and "client_secret" not in form
        claims = jwt.decode(
            form["client_assertion"],
            private_key(self.proof).public_key(),
            algorithms=["RS384", "ES384"],
            audience=f"{self.root}/token",
            options={"verify_exp": False, "verify_iat": False},
        )
        return bool(claims["iss"] == claims["sub"] == CLIENT)

    def said(self) -> dict[str, Any]:
        now = int(self.clock().timestamp())
        told = {
            "iss": self.root,
            "aud": CLIENT,
            "sub": "u-1",
            "iat": now,
            "exp": now + 300,
            "nonce": self.asked.get("nonce"),
            "preferred_username": "Li.Ming",
            "name": "李明",
            "roles": ["US-Doctors", "Canteen"],
        }
        return {k: v for k, v in (told | self.claims).items() if v is not None}

    def id_token(self) -> str:
        if self.sign is not None:
            return self.sign(self.said())
        return jwt.encode(
            self.said(), private_key("RSA"), "RS256", headers={"kid": "RSA"}
        )


@dataclass
class Hospital:
    """A node that trusts a provider, and a browser between them."""

    rig: SmartRig
    idp: Idp
    settings: SignOnSettings
    browser: aiohttp.ClientSession

    async def get(self, path: str, **query: str) -> tuple[int, str, str]:
        async with self.browser.get(
            self.rig.root + path, params=query, allow_redirects=False
        ) as answer:
            place = answer.headers.get("Location", "")
            return answer.status, place, await answer.text()

    async def start(self, back: str = "#/") -> tuple[int, str]:
        status, place, _ = await self.get("/auth/oidc/start", back=back)
        query = parse_qs(urlsplit(place).query)
        self.idp.asked = {name: values[0] for name, values in query.items()}
        return status, place

    async def come_back(self, **changes: str) -> tuple[int, str, str]:
        told = {"code": "code-1", "state": self.idp.asked.get("state", "")} | changes
        return await self.get(CALLBACK, **told)

    async def signed_in(self) -> bool:
        """Sign in from the beginning; tell whether it worked."""
        await self.start()
        return (await self.come_back())[0] == 303

    async def me(self) -> dict[str, Any] | None:
        async with self.browser.get(f"{self.rig.root}/auth/me") as answer:
            return dict(await answer.json()) if answer.status == 200 else None

    async def reasons(self) -> list[str]:
        async with self.rig.store.db.connection() as tx:
            rows = await tx.fetch(
                "select detail::jsonb ->> 'reason' as reason from audit_entries"
                " where action = 'login sign-on' order by sequence"
            )
        return [row["reason"] for row in rows]


@asynccontextmanager
async def running_hospital(
    store: Store, clock: FrozenClock, proof: str = "basic", **changes: Any
) -> AsyncIterator[Hospital]:
    idp = Idp(clock, proof=proof)
    app = web.Application()
    app.router.add_routes(idp.routes())
    jar = aiohttp.CookieJar(unsafe=True)
    async with (
        TestServer(app) as provider,
        aiohttp.ClientSession(cookie_jar=jar) as browser,
        aiohttp.ClientSession() as own,
    ):
        idp.root = f"http://127.0.0.1:{provider.port}"
        secret = SECRET if proof in ("basic", "post") else None
        told = SignOnSettings(idp.root, CLIENT, ROLES, secret=secret)
        settings = replace(told, **changes)
        if proof == "post":
            methods = ["client_secret_post"]
            idp.discovery["token_endpoint_auth_methods_supported"] = methods
        async with running_smart(
            store,
            roles=(Role.RADIOLOGIST,),
            sign_on=lambda root, desk: SignOn(
                store, root, settings, own, secure=False, consent=desk.welcome
            ),
        ) as rig:
            yield Hospital(rig, idp, settings, browser)


@pytest.fixture
async def hospital(store: Store, clock: FrozenClock) -> AsyncIterator[Hospital]:
    """A node whose people sign in at a provider."""
    async with running_hospital(store, clock) as running:
        yield running


async def test_a_doctor_signs_in_with_her_hospital_account(hospital: Hospital) -> None:
    status, place = await hospital.start("#/report/abc")
    assert status == 303
    assert place.startswith(f"{hospital.idp.root}/authorize?")
    assert hospital.idp.asked["code_challenge_method"] == "S256"
    assert hospital.idp.asked["scope"].split()[0] == "openid"
    assert (await hospital.come_back())[:2] == (303, "/#/report/abc")
    me = await hospital.me()
    assert me is not None
    assert (me["display"], me["roles"]) == ("李明", ["radiologist"])
    assert me["practitioner_id"]
    # The next time it is the same account, with the roles of that day.
    hospital.idp.claims = {"roles": ["IT"], "preferred_username": "li.ming2"}
    assert await hospital.signed_in()
    again = await hospital.me()
    assert again is not None
    assert again["user_id"] == me["user_id"]
    assert (again["roles"], again["practitioner_id"]) == (
        ["administrator"],
        me["practitioner_id"],
    )


async def test_signing_out_leads_out_of_the_hospitals_sign_on_too(
    hospital: Hospital,
) -> None:
    assert await hospital.signed_in()
    me = await hospital.me()
    assert me is not None
    headers = {"X-CSRF-Token": me["csrf"]}
    url = f"{hospital.rig.root}/auth/logout"
    async with hospital.browser.post(url, headers=headers) as answer:
        told = await answer.json()
    status, place, _ = await hospital.get(told["leave"])
    assert status == 303
    query = dict(parse_qsl(urlsplit(place).query))
    assert place.startswith(f"{hospital.idp.root}/logout?")
    assert query["post_logout_redirect_uri"] == f"{hospital.rig.root}/"
    assert await hospital.me() is None


@pytest.mark.parametrize("proof", ["post", "none", "RSA", "EC"])
async def test_the_node_proves_itself_as_the_provider_wants_it(
    store: Store, clock: FrozenClock, proof: str
) -> None:
    key = pem_of(proof) if proof in ("RSA", "EC") else None
    async with running_hospital(store, clock, proof, private_key=key) as hospital:
        assert await hospital.signed_in()


def test_a_key_that_proves_nothing_is_named_at_the_start() -> None:
    for pem in ("", "x", pem_of("EC256"), pem_of("RSA1024")):
        with pytest.raises(NodeError, match=r"auth\.oidc\.private_key_file"):
            own_key(pem)


def _signed(kind: str, algorithm: str, **header: Any) -> Callable[[Any], str]:
    def sign(claims: dict[str, Any]) -> str:
        told = {"kid": kind} | header
        return jwt.encode(claims, private_key(kind), algorithm, headers=told)

    return sign


def _forged(header: dict[str, Any], secret: bytes = b"") -> Callable[[Any], str]:
    return lambda claims: by_hand(header, claims, secret)


def _of_public_key(claims: dict[str, Any]) -> str:
    """Sign with HMAC under the public key, which everybody has."""
    pem = (
        private_key("RSA")
        .public_key()
        .public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return by_hand({"alg": "HS256", "kid": "RSA"}, claims, pem)


NOW = 0  # replaced by the time of the test
HOSTILE: dict[str, tuple[dict[str, Any], Callable[[Any], str] | None, str]] = {
    "another issuer": ({"iss": "https://evil.test"}, None, "iss"),
    "no issuer": ({"iss": None}, None, "iss"),
    "another audience": ({"aud": "other"}, None, "aud"),
    "audience of others": ({"aud": ["other", "more"]}, None, "aud"),
    "several, no azp": ({"aud": [CLIENT, "other"]}, None, "azp"),
    "azp of another": ({"azp": "other"}, None, "azp"),
    "expired": ({"exp": -61}, None, "expired"),
    "never expires": ({"exp": None}, None, "expired"),
    "expires in words": ({"exp": "tomorrow"}, None, "exp"),
    "expires beyond time": ({"exp": 10**400}, None, "exp"),
    "of tomorrow": ({"iat": 3600}, None, "iat"),
    "not yet": ({"nbf": 120}, None, "nbf"),
    "another nonce": ({"nonce": "n"}, None, "nonce"),
    "no nonce": ({"nonce": None}, None, "nonce"),
    "a nonce of another kind": ({"nonce": 1}, None, "nonce"),
    "no subject": ({"sub": None}, None, "sub"),
    "an endless subject": ({"sub": "s" * 256}, None, "sub"),
    "no name": ({"preferred_username": None}, None, "username"),
    "a name of another kind": ({"preferred_username": ["x"]}, None, "username"),
    "no role": ({"roles": []}, None, "no-role"),
    "roles missing": ({"roles": None}, None, "no-role"),
    "a role of nobody": ({"roles": ["radiologist"]}, None, "no-role"),
    "roles of another kind": ({"roles": {"US-Doctors": 1}}, None, "no-role"),
    "nested roles": ({"roles": [["US-Doctors"]]}, None, "no-role"),
    "not signed": ({}, _forged({"alg": "none"}), "alg"),
    "a shared secret": ({}, _of_public_key, "alg"),
    "signed by another": ({}, _signed("RSA-other", "RS256", kid="RSA"), "signature"),
    "an unknown key": ({}, _signed("RSA", "RS256", kid="x"), "unknown-kid"),
    "no kid": ({}, _forged({"alg": "RS256"}, b"x"), "unknown-kid"),
    "another kind of key": ({}, _forged({"alg": "ES256", "kid": "RSA"}, b"x"), "key"),
    "another curve": ({}, _forged({"alg": "ES384", "kid": "EC256"}, b"x"), "key"),
    "crit": ({}, _signed("RSA", "RS256", crit=["exp"]), "crit"),
    "a logout token": ({}, _signed("RSA", "RS256", typ="logout+jwt"), "typ"),
    "its own key": (
        {},
        _signed("RSA-other", "RS256", kid="RSA", jwk=public_jwk("RSA-other")),
        "signature",
    ),
    "in pieces": ({}, lambda _: "a.b", "malformed"),
    "no base64": ({}, lambda _: "§.§.§", "malformed"),
    "no object": ({}, _forged({"alg": ["RS256"]}, b"x"), "alg"),
    "endless": ({}, lambda _: "a." * 40_000, "id-token"),
}


async def test_an_id_token_that_is_not_right_in_everything_signs_nobody_in(
    hospital: Hospital, clock: FrozenClock
) -> None:
    now, expected = int(clock().timestamp()), []
    for name, (claims, sign, reason) in HOSTILE.items():
        timed = {"exp", "iat", "nbf"} & claims.keys()
        hospital.idp.claims = {
            k: now + v if k in timed and isinstance(v, int) and v < 10**9 else v
            for k, v in claims.items()
        }
        hospital.idp.sign = sign
        await hospital.start()
        status, _, page = await hospital.come_back()
        assert status == 403, name
        assert "<script" not in page
        expected.append(reason)
    assert await hospital.reasons() == expected
    assert await hospital.me() is None
    async with hospital.rig.store.db.connection() as tx:
        logins = {user.login for user in await people.list_users(tx)}
    assert "li.ming" not in logins
    hospital.idp.claims, hospital.idp.sign = {}, None
    assert await hospital.signed_in()


async def test_clocks_may_differ_by_a_minute(
    hospital: Hospital, clock: FrozenClock
) -> None:
    now = int(clock().timestamp())
    for claims in ({"exp": now - 59}, {"iat": now + 59}, {"nbf": now + 59}):
        hospital.idp.claims = claims
        assert await hospital.signed_in(), claims
    for algorithm, kind in (("ES256", "EC256"), ("PS256", "RSA"), ("RS512", "RSA")):
        hospital.idp.claims, hospital.idp.sign = {}, _signed(kind, algorithm)
        assert await hospital.signed_in(), algorithm


async def test_the_providers_keys_may_change_at_any_time(
    hospital: Hospital, clock: FrozenClock
) -> None:
    assert [await hospital.signed_in(), await hospital.signed_in()] == [True, True]
    assert hospital.idp.fetched == 1
    hospital.idp.kinds = ["RSA-other"]
    hospital.idp.sign = _signed("RSA-other", "RS256")
    clock.advance(seconds=61)
    assert await hospital.signed_in()
    assert hospital.idp.fetched == 2
    hospital.idp.sign = None
    clock.advance(seconds=601)
    assert not await hospital.signed_in()


async def test_a_way_back_is_bound_to_its_browser_its_minutes_and_works_once(
    hospital: Hospital, clock: FrozenClock
) -> None:
    await hospital.start()
    state = hospital.idp.asked["state"]
    async with aiohttp.ClientSession() as stranger:
        url = hospital.rig.root + CALLBACK
        told = {"code": "code-1", "state": state}
        async with stranger.get(url, params=told, allow_redirects=False) as answer:
            assert answer.status == 403
    assert (await hospital.come_back(state="x"))[0] == 403
    assert (await hospital.come_back())[0] == 303
    assert (await hospital.come_back())[0] == 403
    await hospital.start()
    clock.advance(seconds=601)
    assert (await hospital.come_back())[0] == 403
    for changes in (
        {"error": "access_denied"},
        {"code": ""},
        {"code": "c" * 5000},
        {"code": "code-2"},
        {"iss": "https://evil.test"},
    ):
        await hospital.start()
        assert (await hospital.come_back(**changes))[0] == 403, changes


async def test_nobody_is_led_elsewhere_afterwards(hospital: Hospital) -> None:
    for back in (
        "https://evil.test/",
        "//evil.test",
        "#//evil.test/\r\nx: y",
        "#/" + "a" * 200,
        "/auth/authorize",
        "javascript:alert(1)",
    ):
        await hospital.start(back)
        assert (await hospital.come_back())[:2] == (303, "/#/"), back


async def test_a_provider_that_cannot_be_trusted_leads_nowhere(
    hospital: Hospital, clock: FrozenClock
) -> None:
    idp = hospital.idp
    for fault in (
        {"issuer": "https://evil.test"},
        {"token_endpoint": "https://evil.test/token"},
        {"authorization_endpoint": "http://10.0.0.1/"},
        {"jwks_uri": None},
    ):
        idp.discovery = fault
        assert (await hospital.start())[0] in (403, 503), fault
    idp.discovery, idp.away = {}, True
    status, _, page = await hospital.get("/auth/oidc/start")
    assert status == 503
    assert "href=" in page
    idp.away = False
    assert await hospital.signed_in()


async def test_who_begins_without_end_is_asked_to_wait(
    store: Store, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sign_on, "STARTS_FROM_ONE_ADDRESS", 3)
    async with running_hospital(store, clock) as hospital:
        for _ in range(3):
            assert (await hospital.start())[0] == 303
        assert (await hospital.start())[0] == 429
        clock.advance(seconds=launches.LIFETIME.total_seconds() + 1)
        assert await hospital.signed_in()


async def test_a_login_of_this_node_is_not_taken_over_until_it_is_linked(
    hospital: Hospital, clock: FrozenClock
) -> None:
    store = hospital.rig.store
    hospital.idp.claims = {"preferred_username": "RADIOLOGIST"}
    assert not await hospital.signed_in()
    assert (await hospital.reasons())[-1] == "login-taken"
    async with store.db.transaction() as tx:
        await people.link(tx, "radiologist", hospital.idp.root, "u-1")
        known = await people.find_login(tx, "radiologist")
    assert await hospital.signed_in()
    me = await hospital.me()
    assert known is not None
    assert me is not None
    assert me["user_id"] == str(known.user_id)
    async with store.db.transaction() as tx:
        await people.disable_user(tx, "radiologist", now=clock())
    assert not await hospital.signed_in()
    assert (await hospital.reasons())[-1] == "closed"
    assert await hospital.me() is None


async def test_who_has_lost_her_roles_loses_her_open_session_too(
    hospital: Hospital,
) -> None:
    assert await hospital.signed_in()
    hospital.idp.claims = {"roles": ["Canteen"]}
    assert not await hospital.signed_in()
    assert await hospital.me() is None


async def test_an_account_of_the_sign_on_has_no_password_here(
    hospital: Hospital,
) -> None:
    assert await hospital.signed_in()
    for password in ("", "x" * 12, "correct horse battery"):
        body = {"login": "li.ming", "password": password}
        url = f"{hospital.rig.root}/auth/login"
        async with hospital.browser.post(url, json=body) as answer:
            assert answer.status == 401


async def test_she_agrees_to_a_program_with_her_hospital_account(
    hospital: Hospital,
) -> None:
    client = await hospital.rig.register(
        "user/*.rs", keys="", roles=[], redirect_uris=[BACK]
    )
    app = App(hospital.rig, client)
    app.asked["scope"] = "openid fhirUser user/DiagnosticReport.rs"
    await hospital.start(f"/auth/authorize?{urlencode(app.asked)}")
    status, place, _ = await hospital.come_back()
    assert (status, place.partition("?")[0]) == (303, "/auth/authorize")
    _, _, page = await hospital.get(place)
    assert "李明" in page
    assert 'name="password"' not in page
    seen = page.split('name="seen" value="')[1].split('"')[0]
    async with hospital.browser.post(
        f"{hospital.rig.root}/auth/authorize",
        data=app.asked | {"seen": seen, "decision": "allow"},
        allow_redirects=False,
    ) as answer:
        told = dict(parse_qsl(urlsplit(answer.headers["Location"]).query))
    status, body = await app.redeem(told["code"])
    assert status == 200
    claims = jwt.decode(body["id_token"], options={"verify_signature": False})
    assert "/Practitioner/" in claims["fhirUser"]
    # She agreed to one program; the review page does not know her yet.
    assert await hospital.me() is None


async def test_passwords_are_for_those_whom_the_site_lists(
    store: Store, clock: FrozenClock
) -> None:
    review = server.ReviewSettings(local_logins=["Admin"], sign_on=True)
    desk = Desk(store, "http://node", server.throttle_of(store, review))
    assert desk.route_groups()
    async with store.db.transaction() as tx:
        for login in ("admin", "doctor"):
            await people.create_user(
                tx,
                login=login,
                password="correct horse battery",
                display=login,
                roles=[Role.RADIOLOGIST],
                now=clock(),
            )
    app = make_app(store, HttpSettings(), server.routes(store, review))
    async with TestServer(app) as node, aiohttp.ClientSession() as browser:
        root = f"http://127.0.0.1:{node.port}"
        async with browser.get(f"{root}/auth/sign-in") as answer:
            told = await answer.json()
        assert (told["sign_on"], told["passwords"]) == (True, True)
        for login, expected in (("admin", 200), ("ADMIN ", 200), ("doctor", 401)):
            body = {"login": login, "password": "correct horse battery"}
            async with browser.post(f"{root}/auth/login", json=body) as answer:
                assert answer.status == expected, login
        form = {
            "grant_type": "password",
            "username": "doctor",
            "password": "correct horse battery",
        }
        async with browser.post(f"{root}/auth/token", data=form) as answer:
            assert answer.status == 400
