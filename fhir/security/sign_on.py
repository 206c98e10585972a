"""People sign in by the hospital's own sign-on (OpenID Connect, code with PKCE).

The node is the relying party: it sends the browser to the identity provider, redeems
the code, and believes an id_token only when issuer, audience, signature, time and
nonce are right. What she may do comes from one claim and the site's list of roles;
what is not in the list gives nothing. Only the provider that the site has entered is
spoken to, at its own hosts, by https.
"""

import hashlib
import hmac
import re
import secrets
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode

import aiohttp
import structlog
from aiohttp import hdrs, web
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from fhir.encoding.formats import FORM
from fhir.security import consent_page, sign_out
from fhir.security.assertions import TYPE, Unproven, fit_for, time_of
from fhir.security.consent_page import SIGN_ON_PATH
from fhir.security.provider import (
    ALGORITHMS,
    MAX_BODY,
    MAX_TOKEN,
    SKEW,
    TIMEOUT_S,
    Provider,
    SignOnSettings,
    audience_of,
)
from node.domain.access import Role
from node.domain.audit import AuditEntry, Outcome
from node.domain.errors import ErrorKind, NodeError
from node.fetching import Unfetched, fetch_json
from node.http import KNOWN_CALLERS, RouteGroup, known_as, set_session_cookie
from node.store import audit, launches, people, sign_ons
from node.store.people import SessionKind, User
from node.store.sign_ons import sid_hash
from node.throttle import Throttle

if TYPE_CHECKING:
    from node.store.store import Store

CALLBACK = "/auth/oidc/callback"
LEAVE = "/auth/oidc/leave"
SIGNED_OUT = "/auth/oidc/logout"
COOKIE = "sononode_sign_on"
# A whole hospital may stand behind one address; each start leaves a row for minutes.
STARTS_FROM_ONE_ADDRESS = 1000
_PROOF_LIFETIME = timedelta(minutes=2)
_PLACE = re.compile(r"#/[A-Za-z0-9./-]{0,128}")
_CONSENT = "/auth/authorize?"
# What a site can do about what is wrong with the provider's answers.
_MEND = {
    "iss": "auth.oidc.issuer is not what it calls itself",
    "aud": "auth.oidc.client_id is not whom it speaks to",
    "azp": "auth.oidc.client_id is not whom it speaks to",
    "expired": "the clocks differ, or it answers late",
    "iat": "the clocks differ",
    "nbf": "the clocks differ",
    "alg": f"let it sign id_tokens with one of {', '.join(ALGORITHMS)}",
    "username": "auth.oidc.username_claim is not in the id_token",
    "no-role": "auth.oidc.roles has none of what auth.oidc.role_claim says of her",
    "login-taken": "the login belongs to an account here: node user link",
    "closed": "her account here is disabled: node user list",
    "jwks-host": "auth.oidc.hosts lacks the host of its keys",
    "redeem": "see auth.oidc.client_secret_file or private_key_file, and the"
    " redirect address that it knows",
}

_UNKEPT = {hdrs.CACHE_CONTROL: "no-store"}

log = structlog.get_logger("sign_on")


@dataclass(frozen=True)
class Said:
    """What the provider says of a person, after all of it was looked at.

    `sid` is what it calls this sign-in, None where it does not tell.
    """

    subject: str
    login: str
    display: str
    roles: frozenset[Role]
    sid: str | None = None


class SignOn:
    """Answers below /auth/oidc; one instance serves a process.

    `consent` takes in a person who came from the consent page of a program.
    """

    def __init__(
        self,
        store: "Store",
        root_url: str,
        settings: SignOnSettings,
        session: aiohttp.ClientSession,
        *,
        secure: bool,
        consent: Callable[[User, Mapping[str, str]], Awaitable[web.Response]],
    ) -> None:
        self._store = store
        self._root = root_url.rstrip("/")
        self._settings = settings
        self._session = session
        self._secure = secure
        self._consent = consent
        self._provider = Provider(settings, session, store.clock)
        if settings.private_key is not None:
            own_key(settings.private_key)
        most = STARTS_FROM_ONE_ADDRESS
        self._starts = Throttle(store.clock, most, most, launches.LIFETIME)

    def route_group(self) -> RouteGroup:
        """Return the way to the provider and back, and out from either side."""
        routes = [
            web.get(SIGN_ON_PATH, self.start),
            web.get(CALLBACK, self.come_back),
            web.get(LEAVE, self.leave),
            web.post(SIGNED_OUT, self.signed_out),
        ]
        return RouteGroup("/auth", routes, public=frozenset(r.path for r in routes))

    # --- the way there ------------------------------------------------------------

    async def start(self, request: web.Request) -> web.Response:
        """Send the browser to the provider; `back` is where it goes afterwards."""
        self._starts.begin("sign-on", request.remote or "")
        back = request.query.get("back", "#/")
        if _PLACE.fullmatch(back) is None and not back.startswith(_CONSENT):
            back = "#/"
        try:
            found = await self._provider.discover()
        except Unproven as error:
            return await self._refuse(request, error.reason)
        state, nonce = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        verifier = secrets.token_urlsafe(48)
        kept = {"verifier": verifier, "nonce": nonce, "back": back}
        async with self._store.db.transaction() as tx:
            await launches.begin(tx, self._store, state, self._settings.issuer, kept)
        challenge = hashlib.sha256(verifier.encode()).digest()
        asked = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._root + CALLBACK,
            "scope": self._settings.scope,
            "state": state,
            "nonce": nonce,
            "code_challenge": urlsafe_b64encode(challenge).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        response = _to(found["authorization_endpoint"], asked)
        # Lax: the provider's redirect must bring it back, no other site's form may.
        response.set_cookie(
            COOKIE,
            state,
            max_age=int(launches.LIFETIME.total_seconds()),
            httponly=True,
            secure=self._secure,
            samesite="Lax",
            path=CALLBACK,
        )
        return response

    async def leave(self, _: web.Request) -> web.Response:
        """Send a browser whose session here has ended to end it at the provider too."""
        try:
            endpoint = (await self._provider.discover()).get("end_session_endpoint")
        except Unproven:
            endpoint = None
        if endpoint is None:
            return web.Response(status=303, headers={hdrs.LOCATION: "/"})
        told = {
            "client_id": self._settings.client_id,
            "post_logout_redirect_uri": f"{self._root}/",
        }
        return _to(str(endpoint), told)

    async def signed_out(self, request: web.Request) -> web.Response:
        """End here what the provider ended (Back-Channel Logout 1.0, 2.5 to 2.8)."""
        address = request.remote or ""
        self._starts.begin("logout", address)
        try:
            token = await _logout_token(request)
            claims = await self._provider.verified(token, typ=sign_out.TYPE)
            ended = sign_out.read_logout(
                claims, self._settings, now=self._store.clock()
            )
            await self._end(ended)
        except Unproven as error:
            await self._note_refusal("logout sign-on", error.reason)
            answer = {"error": "invalid_request", "error_description": "not believed"}
            return web.json_response(answer, status=400, headers=_UNKEPT)
        self._starts.succeeded("logout", address)
        # In other processes within a second (node.known).
        request.app[KNOWN_CALLERS].forget_all()
        return web.Response(status=200, headers=_UNKEPT)

    async def _end(self, told: sign_out.SignedOut) -> None:
        """End the sessions that a logout token names; none is as good as ended."""
        now, issuer = self._store.clock(), self._settings.issuer
        async with self._store.db.transaction() as tx:
            fresh = await sign_ons.spend(
                tx, issuer, told.jti, expires_at=told.expires_at, now=now
            )
            if not fresh:
                raise Unproven("replayed")
            try:
                whom = await sign_ons.whom(
                    tx, issuer, subject=told.subject, sid=told.sid
                )
            except NodeError:
                raise Unproven("sid") from None
            entries = []
            for user_id in sorted(whom):
                count = await sign_ons.end(tx, user_id, sid=told.sid)
                detail = {"sessions": str(count)}
                entries.append(
                    AuditEntry(
                        now,
                        str(user_id),
                        "",
                        "logout sign-on",
                        "session",
                        detail=detail,
                    )
                )
            for entry in entries:
                await audit.record(tx, entry)

    # --- the way back -------------------------------------------------------------

    async def come_back(self, request: web.Request) -> web.Response:
        """Sign the person in whom the provider sends back."""
        state, own = request.query.get("state", ""), request.cookies.get(COOKIE, "")
        if not state or not hmac.compare_digest(own.encode(), state.encode()):
            return await self._refuse(request, "state")
        async with self._store.db.transaction() as tx:
            begun = await launches.end(tx, self._store, state)
        if begun is None or begun[0] != self._settings.issuer:
            return await self._refuse(request, "state")
        try:
            said = await self._learn(request.query, begun[1])
            user, session = await self._enter(said, begun[1]["back"])
            known_as(request, user.identity)
        except Unproven as error:
            return await self._refuse(request, error.reason)
        if session is None:
            query = dict(
                parse_qsl(
                    begun[1]["back"].removeprefix(_CONSENT), keep_blank_values=True
                )
            )
            response = await self._consent(user, query)
        else:
            place = f"/{begun[1]['back']}"
            response = web.Response(status=303, headers={hdrs.LOCATION: place})
            set_session_cookie(response, session, secure=self._secure)
        response.del_cookie(COOKIE, path=CALLBACK, secure=self._secure, httponly=True)
        return response

    async def _learn(self, answer: Mapping[str, str], begun: Mapping[str, str]) -> Said:
        """Return who came back; Unproven when the provider does not say so."""
        if "error" in answer:
            raise Unproven("denied")
        # RFC 9207: an answer that names another issuer was meant for somebody else.
        if answer.get("iss", self._settings.issuer) != self._settings.issuer:
            raise Unproven("iss")
        code = answer.get("code", "")
        if not 0 < len(code) <= 4096:
            raise Unproven("code")
        token = await self._redeem(code, begun["verifier"])
        claims = await self._provider.verified(token)
        check_claims(
            claims, self._settings, nonce=begun["nonce"], now=self._store.clock()
        )
        return said_of(claims, self._settings)

    async def _redeem(self, code: str, verifier: str) -> str:
        found = await self._provider.discover()
        endpoint = str(found["token_endpoint"])
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._root + CALLBACK,
            "code_verifier": verifier,
        }
        proof, headers = self._proof(endpoint, found)
        try:
            body = await fetch_json(
                self._session,
                "POST",
                endpoint,
                limit_bytes=MAX_BODY,
                timeout_s=TIMEOUT_S,
                data=form | proof,
                headers=headers,
            )
        except Unfetched as error:
            log.warning("sign_on_code_not_redeemed", why=error.reason)
            raise Unproven("redeem") from None
        token = body.get("id_token")
        if not isinstance(token, str) or len(token) > MAX_TOKEN:
            raise Unproven("id-token")
        return token

    def _proof(
        self, endpoint: str, found: Mapping[str, Any]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Return what in form and headers proves the node (OpenID Connect Core 9)."""
        own = self._settings
        if own.private_key is not None:
            told = {
                "client_assertion_type": TYPE,
                "client_assertion": _assertion(own, endpoint, self._store.clock()),
            }
            return {"client_id": own.client_id} | told, {}
        if own.secret is None:
            return {"client_id": own.client_id}, {}
        methods = found.get("token_endpoint_auth_methods_supported")
        if methods and "client_secret_basic" not in methods:
            return {"client_id": own.client_id, "client_secret": own.secret}, {}
        pair = f"{quote(own.client_id, safe='')}:{quote(own.secret, safe='')}"
        basic = b64encode(pair.encode()).decode()
        return {}, {hdrs.AUTHORIZATION: f"Basic {basic}"}

    # --- what becomes of it -------------------------------------------------------

    async def _enter(self, said: Said, back: str) -> tuple[User, str | None]:
        """Return the account of a person and, for the review page, her session."""
        now, issuer = self._store.clock(), self._settings.issuer
        async with self._store.db.transaction() as tx:
            if not said.roles:
                # Who has lost her roles there has no open session here either.
                await people.end_of_subject(tx, issuer, said.subject)
            else:
                user = await _account(tx, issuer, said, now)
                role = ",".join(sorted(role.value for role in user.roles))
                how = "program" if back.startswith(_CONSENT) else "cookie"
                session = None
                if how == "cookie":
                    session = await people.open_session(
                        tx,
                        user,
                        SessionKind.COOKIE,
                        now=now,
                        by_sign_on=True,
                        sid_hash=None if said.sid is None else sid_hash(said.sid),
                    )
                if said.sid is not None:
                    await sign_ons.note(tx, issuer, said.sid, user.user_id, now=now)
                entry = AuditEntry(
                    now, str(user.user_id), role, f"login sign-on {how}", "session"
                )
                await audit.record(tx, entry)
        if not said.roles:
            raise Unproven("no-role")
        return user, session

    async def _refuse(self, request: web.Request, reason: str) -> web.Response:
        """Write down why nobody was let in, and tell her in words of hers."""
        await self._note_refusal("login sign-on", reason)
        return consent_page.notice(request, reason)

    async def _note_refusal(self, action: str, reason: str) -> None:
        mend = _MEND.get(reason, "")
        log.warning("sign_on_refused", action=action, reason=reason, mend=mend)
        entry = AuditEntry(
            self._store.clock(),
            "unknown",
            "",
            action,
            "session",
            Outcome.REFUSED,
            {"reason": reason},
        )
        async with self._store.db.transaction() as tx:
            await audit.record(tx, entry)


async def _account(tx: Any, issuer: str, said: Said, now: datetime) -> User:
    try:
        return await people.arrive(
            tx,
            issuer=issuer,
            subject=said.subject,
            login=said.login,
            display=said.display,
            roles=said.roles,
            now=now,
        )
    except NodeError as error:
        known = {ErrorKind.CONFLICT: "login-taken", ErrorKind.FORBIDDEN: "closed"}
        if error.kind not in known:
            raise
        raise Unproven(known[error.kind]) from None


async def _logout_token(request: web.Request) -> str:
    """Return the token of a logout request, which is a form with one."""
    length = request.content_length
    if request.content_type != FORM or length is None or length > 2 * MAX_TOKEN:
        raise Unproven("form")
    try:
        told = (await request.post()).getall("logout_token", [])
    except (ValueError, LookupError):
        raise Unproven("form") from None
    if len(told) != 1 or not isinstance(told[0], str):
        raise Unproven("form")
    return told[0]


def _to(endpoint: str, told: Mapping[str, str]) -> web.Response:
    glue = "&" if "?" in endpoint else "?"
    place = f"{endpoint}{glue}{urlencode(told)}"
    return web.Response(status=303, headers={hdrs.LOCATION: place})


def own_key(pem: str) -> RSAKey | ECKey:
    """Return the key by which the node proves itself; SETTING when it is unfit."""
    for kind, algorithm in ((RSAKey, "RS384"), (ECKey, "ES384")):
        try:
            key = kind.import_key(pem)
        except (JoseError, ValueError, TypeError):
            continue
        if key.is_private and fit_for(key, algorithm):
            return key
    raise NodeError(
        "auth.oidc.private_key_file: holds no private key, PEM, RSA of 2048 bits or"
        " more, or P-384",
        ErrorKind.SETTING,
    )


def _assertion(own: SignOnSettings, endpoint: str, now: datetime) -> str:
    """Return what proves the node by its own key (private_key_jwt)."""
    key = own_key(own.private_key or "")
    algorithm = "RS384" if isinstance(key, RSAKey) else "ES384"
    claims = {
        "iss": own.client_id,
        "sub": own.client_id,
        "aud": endpoint,
        "jti": secrets.token_hex(16),
        "iat": int(now.timestamp()),
        "exp": int((now + _PROOF_LIFETIME).timestamp()),
    }
    header = {"alg": algorithm, "kid": key.thumbprint()}
    return jwt.encode(header, claims, key, algorithms=[algorithm])


# --- what is believed -------------------------------------------------------------


def check_claims(
    claims: Mapping[str, Any], settings: SignOnSettings, *, nonce: str, now: datetime
) -> None:
    """Raise Unproven unless an id_token is for us, now, and for this very sign-in.

    OpenID Connect Core 3.1.3.7.
    """
    if claims.get("iss") != settings.issuer:
        raise Unproven("iss")
    audience = audience_of(claims)
    if settings.client_id not in audience:
        raise Unproven("aud")
    authorized = claims.get("azp")
    if (len(audience) > 1 or authorized is not None) and (
        authorized != settings.client_id
    ):
        raise Unproven("azp")
    expires_at, issued_at = time_of(claims, "exp"), time_of(claims, "iat")
    if expires_at is None or expires_at + SKEW <= now:
        raise Unproven("expired")
    if issued_at is None or issued_at > now + SKEW:
        raise Unproven("iat")
    not_before = time_of(claims, "nbf")
    if not_before is not None and not_before > now + SKEW:
        raise Unproven("nbf")
    sent = claims.get("nonce")
    if not isinstance(sent, str) or not hmac.compare_digest(
        sent.encode("utf-8", "replace"), nonce.encode()
    ):
        raise Unproven("nonce")


def said_of(claims: Mapping[str, Any], settings: SignOnSettings) -> Said:
    """Return the person of an id_token that was checked, and the roles she gets."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255:
        raise Unproven("sub")
    login = _claim(claims, settings.username_claim)
    if not isinstance(login, str) or not 0 < len(login.strip()) <= 200:
        raise Unproven("username")
    display = _claim(claims, settings.display_claim)
    shown = display.strip()[:200] if isinstance(display, str) else ""
    given = _claim(claims, settings.role_claim)
    words = [given] if isinstance(given, str) else given
    groups = [w for w in words if isinstance(w, str)] if isinstance(words, list) else []
    roles = frozenset(settings.roles[w] for w in groups if w in settings.roles)
    sid = claims.get("sid")
    told = isinstance(sid, str) and 0 < len(sid) <= 255
    return Said(subject, login, shown, roles, sid if told else None)


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim by its name or, where there is none, by a path with dots."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value
