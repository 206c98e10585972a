"""The authorization server of the node: SMART App Launch 2.2 for programs.

Programs that act for themselves (Backend Services) prove with a key who they are
and get a token for five minutes. Programs that people use get a code after the
person has agreed (PKCE S256), and a token for what she may do herself. A token is
granted what is asked for, registered and permitted to the roles; nothing else.
What exactly was wrong stands in the audit trail: the caller gets RFC 6749's word.
"""

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit
from uuid import UUID

from aiohttp import hdrs, web

from fhir.encoding.wire import parse
from fhir.security import consent_page
from fhir.security.access import PERMITS, permits
from fhir.security.assertions import (
    ALGORITHMS,
    TYPE,
    Keys,
    Unproven,
    claimed_client,
    verify,
)
from fhir.security.scoping import understood
from node.domain.access import Action, Identity
from node.domain.audit import AuditEntry, Outcome
from node.domain.errors import ErrorKind, NodeError
from node.domain.scopes import Context, Scope, Scopes, grant, read_scopes
from node.http import KNOWN_CALLERS, RouteGroup, identity, read_json_object
from node.store import audit, clients, people, resources
from node.store.clients import Client, Code
from node.store.people import User
from node.throttle import Throttle

if TYPE_CHECKING:
    from node.store.store import Store

_FORM = "application/x-www-form-urlencoded"
_MAX_FORM = 32_768
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_LAUNCH = "launch"
_ATTEMPTS = 20
_ATTEMPTS_FROM_ONE_ADDRESS = 100
_WINDOW = timedelta(minutes=5)


class OAuthError(Exception):
    """A request that fails in the words of RFC 6749 5.2; `reason` is for the audit."""

    def __init__(self, code: str, reason: str = "", status: int = 400) -> None:
        super().__init__(code)
        self.code = code
        self.reason = reason or code
        self.status = status


def _invalid_client(reason: str) -> OAuthError:
    return OAuthError("invalid_client", reason, 401)


@dataclass(frozen=True)
class _Ask:
    """A request at /auth/authorize that could be answered with a code."""

    client: Client
    redirect_uri: str
    state: str
    scope: str
    challenge: str
    launch: str

    def back(self, **answer: str) -> web.HTTPSeeOther:
        """Return the way back to the program, with `answer` (RFC 6749 4.1.2)."""
        if self.state:
            answer["state"] = self.state
        glue = "&" if "?" in self.redirect_uri else "?"
        return web.HTTPSeeOther(f"{self.redirect_uri}{glue}{urlencode(answer)}")


class Smart:
    """Answers for all programs; one instance serves a process.

    `root_url` is the node as others see it. `people_throttle` counts passwords,
    wherever they are typed.
    """

    def __init__(
        self,
        store: "Store",
        root_url: str,
        keys: Keys,
        people_throttle: Throttle,
    ) -> None:
        self._store = store
        self._root = root_url.rstrip("/")
        self._keys = keys
        self._people_throttle = people_throttle
        self._throttle = Throttle(
            store.clock, _ATTEMPTS, _ATTEMPTS_FROM_ONE_ADDRESS, _WINDOW
        )

    @property
    def grants(self) -> Mapping[str, Callable[[web.Request], Awaitable[web.Response]]]:
        """Return what answers at /auth/token, by grant_type."""
        return {
            "client_credentials": _told(self.client_credentials),
            "authorization_code": _told(self.authorization_code),
        }

    def route_groups(self) -> list[RouteGroup]:
        """Return all routes but /auth/token, which people's scripts share."""
        known = [
            web.get("/fhir/.well-known/smart-configuration", self.configuration),
            web.get("/.well-known/smart-configuration", self.configuration),
            web.get("/.well-known/oauth-authorization-server", self.configuration),
            web.get("/auth/authorize", _told(self.ask)),
            web.get("/auth/authorize.css", consent_page.style),
            web.post("/auth/authorize", _told(self.decide)),
            web.post("/auth/introspect", _told(self.introspect)),
            web.post("/auth/revoke", _told(self.revoke)),
        ]
        return [
            RouteGroup("/auth", known, public=frozenset(r.path for r in known)),
            RouteGroup("/auth", [web.post("/auth/launches", self.launch)]),
        ]

    # --- discovery ----------------------------------------------------------------

    async def configuration(self, _: web.Request) -> web.Response:
        """Answer SMART discovery (SMART 2.2, RFC 8414); needs no caller."""
        body = {
            "issuer": self._root,
            "authorization_endpoint": f"{self._root}/auth/authorize",
            "token_endpoint": self._token_url,
            "introspection_endpoint": f"{self._root}/auth/introspect",
            "revocation_endpoint": f"{self._root}/auth/revoke",
            "token_endpoint_auth_methods_supported": ["private_key_jwt", "none"],
            "token_endpoint_auth_signing_alg_values_supported": list(ALGORITHMS),
            "grant_types_supported": ["authorization_code", "client_credentials"],
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "scopes_supported": [
                _LAUNCH,
                *(f"{c.value}/*.cruds" for c in (Context.SYSTEM, Context.USER)),
                "patient/*.rs",
            ],
            "capabilities": [
                "launch-ehr",
                "launch-standalone",
                "client-public",
                "client-confidential-asymmetric",
                "context-ehr-patient",
                "permission-patient",
                "permission-user",
                "permission-v1",
                "permission-v2",
            ],
        }
        return web.json_response(body)

    @property
    def _token_url(self) -> str:
        return f"{self._root}/auth/token"

    # --- tokens -------------------------------------------------------------------

    async def client_credentials(self, request: web.Request) -> web.Response:
        """Grant a program a token for itself (SMART Backend Services)."""
        form = await _form(request)
        client = await self._authenticated(request, form)
        granted = _granted(
            client, client.identity, form.get("scope", ""), {Context.SYSTEM}
        )
        if not granted:
            raise OAuthError("invalid_scope")
        scopes, now = Scopes(granted), self._store.clock()
        async with self._store.db.transaction() as tx:
            token = await clients.open_token(tx, client.client_id, scopes, now=now)
            await self._record(tx, client.identity, "token client_credentials", scopes)
        return _token_response(token, str(scopes), clients.SYSTEM_LIFETIME)

    async def authorization_code(self, request: web.Request) -> web.Response:
        """Exchange a code for a token that acts for a person (RFC 7636)."""
        form = await _form(request)
        client = await self._authenticated(request, form, public=True)
        secret, now = form.get("code", ""), self._store.clock()
        async with self._store.db.transaction() as tx:
            code = await clients.redeem_code(tx, client.client_id, secret, now=now)
        if code is None or code.redirect_uri != form.get("redirect_uri"):
            raise OAuthError("invalid_grant", "code")
        if not _proves(form.get("code_verifier", ""), code.challenge):
            raise OAuthError("invalid_grant", "code_verifier")
        patient = code.context.get("patient")
        scopes = Scopes(read_scopes(code.scopes), patient)
        async with self._store.db.transaction() as tx:
            token = await clients.open_token(
                tx,
                client.client_id,
                scopes,
                now=now,
                user_id=code.user_id,
                code=secret,
            )
            opened = await clients.find_token(tx, token, now=now)
            if opened is None:
                raise OAuthError("invalid_grant", "account")
            await self._record(
                tx, opened.identity, "token authorization_code", scopes, client
            )
        told = f"{_LAUNCH} {scopes}" if code.context else str(scopes)
        return _token_response(token, told, clients.USER_LIFETIME, code.context)

    async def introspect(self, request: web.Request) -> web.Response:
        """Tell a program what one of its own tokens opens (RFC 7662)."""
        form = await _form(request)
        client = await self._authenticated(request, form)
        async with self._store.db.connection() as tx:
            found = await clients.find_token(
                tx, form.get("token", ""), now=self._store.clock()
            )
        if found is None or found.client_id != client.client_id:
            return web.json_response({"active": False})
        scopes = found.identity.scopes
        body: dict[str, Any] = {
            "active": True,
            "client_id": str(found.client_id),
            "sub": found.identity.user_id,
            "scope": str(scopes),
            "iat": int(found.issued_at.timestamp()),
            "exp": int(found.expires_at.timestamp()),
            "token_type": "Bearer",
            "iss": self._root,
        }
        if scopes is not None and scopes.patient_id is not None:
            body["patient"] = scopes.patient_id
        return web.json_response(body)

    async def revoke(self, request: web.Request) -> web.Response:
        """Take back a token of the program that asks (RFC 7009); always 200."""
        form = await _form(request)
        client = await self._authenticated(request, form, public=True)
        if not form.get("token"):
            raise OAuthError("invalid_request", "token")
        async with self._store.db.transaction() as tx:
            await clients.close_token(tx, client.client_id, form["token"])
            await self._record(tx, client.identity, "revoke token")
        request.app[KNOWN_CALLERS].forget(form["token"])
        return web.Response(status=200)

    async def _authenticated(
        self, request: web.Request, form: Mapping[str, str], *, public: bool = False
    ) -> Client:
        """Return the program that asks; invalid_client when it does not prove it."""
        address = request.remote or ""
        told = form.get("client_id", "")[:64]
        assertion = form.get("client_assertion")
        try:
            name = told if assertion is None else claimed_client(assertion)
        except Unproven:
            name = "malformed"
        self._throttle.begin(name, address)
        try:
            if assertion is None:
                client = await self._public(told) if public else None
                if client is None:
                    raise _invalid_client("no-assertion")
            else:
                client = await self._proven(assertion, form)
        except OAuthError as error:
            await self._record_refusal(name, error.reason)
            raise
        self._throttle.succeeded(name, address)
        return client

    async def _public(self, client_id: str) -> Client | None:
        async with self._store.db.connection() as tx:
            client = await clients.find(tx, client_id)
        return client if client is not None and not client.confidential else None

    async def _proven(self, assertion: str, form: Mapping[str, str]) -> Client:
        if form.get("client_assertion_type") != TYPE:
            raise _invalid_client("assertion-type")
        now = self._store.clock()
        try:
            claimed = claimed_client(assertion)
            if form.get("client_id", claimed) != claimed:
                raise Unproven("client-id")
            async with self._store.db.connection() as tx:
                client = await clients.find(tx, claimed)
            if client is None or str(client.client_id) != claimed:
                raise Unproven("unknown-client")
            proven = await verify(
                assertion, client, self._keys, audience=self._token_url, now=now
            )
        except Unproven as error:
            raise _invalid_client(error.reason) from None
        async with self._store.db.transaction() as tx:
            spent = await clients.spend_assertion(
                tx,
                client.client_id,
                proven.jti,
                expires_at=proven.expires_at,
                now=now,
            )
        if not spent:
            raise _invalid_client("jti-replay")
        return client

    # --- what people agree to -----------------------------------------------------

    async def ask(self, request: web.Request) -> web.Response:
        """Show who asks for what; the person signs in and agrees or does not."""
        ask = await self._read_ask(request.query)
        return self._page(request, ask, request.query)

    async def decide(self, request: web.Request) -> web.Response:
        """Send the person back to the program, with a code if she agreed.

        She signs in on this very page: no cookie is looked at, so that no other
        site can agree in her name.
        """
        form = await _form(request)
        ask = await self._read_ask(form)
        if form.get("decision") != "allow":
            raise ask.back(error="access_denied", iss=self._root)
        user = await self._signed_in(request, form)
        if user is None:
            return self._page(request, ask, form, wrong=True)
        context: dict[str, Any] = {}
        now = self._store.clock()
        async with self._store.db.transaction() as tx:
            if ask.launch:
                found = await clients.spend_launch(
                    tx, user.user_id, ask.launch, now=now
                )
                context = dict(found or {})
        if _LAUNCH in ask.scope.split() and not context:
            raise ask.back(error="invalid_request", iss=self._root)
        for_whom = {Context.USER} | ({Context.PATIENT} if context else set())
        granted = _granted(ask.client, user.identity, ask.scope, for_whom)
        if not granted:
            raise ask.back(error="invalid_scope", iss=self._root)
        scopes = Scopes(granted, context.get("patient"))
        code = Code(user.user_id, ask.redirect_uri, ask.challenge, str(scopes), context)
        async with self._store.db.transaction() as tx:
            secret = await clients.write_code(tx, ask.client.client_id, code, now=now)
            await self._record(
                tx, user.identity, "authorize client", scopes, ask.client
            )
        raise ask.back(code=secret, iss=self._root)

    async def _read_ask(self, told: Mapping[str, str]) -> _Ask:
        """Return what a program asks; it hears of a fault when its address is known.

        Raises INVALID, told to the person, when client or address are not ours:
        nobody is sent to an address that was not registered.
        """
        async with self._store.db.connection() as tx:
            client = await clients.find(tx, told.get("client_id", ""))
        redirect_uri = told.get("redirect_uri", "")
        if client is None or redirect_uri not in client.redirect_uris:
            raise NodeError(
                "this program or its address is not registered here", ErrorKind.INVALID
            )
        ask = _Ask(
            client,
            redirect_uri,
            told.get("state", "")[:512],
            told.get("scope", ""),
            told.get("code_challenge", ""),
            told.get("launch", "")[:128],
        )
        if told.get("response_type") != "code":
            raise ask.back(error="unsupported_response_type", iss=self._root)
        proof = told.get("code_challenge_method") == "S256"
        aud = told.get("aud", "").rstrip("/") == f"{self._root}/fhir"
        if not (proof and aud and ask.state and _CHALLENGE.fullmatch(ask.challenge)):
            raise ask.back(error="invalid_request", iss=self._root)
        return ask

    def _page(
        self,
        request: web.Request,
        ask: _Ask,
        told: Mapping[str, str],
        *,
        wrong: bool = False,
    ) -> web.Response:
        known = set(told) - {"login", "password", "decision"}
        wanted = [str(scope) for scope in read_scopes(ask.scope)]
        return consent_page.render(
            request,
            client=ask.client.name,
            host=urlsplit(ask.redirect_uri).netloc,
            scopes=wanted,
            fields={name: told[name] for name in sorted(known)},
            redirect_uri=ask.redirect_uri,
            wrong=wrong,
        )

    async def _signed_in(
        self, request: web.Request, form: Mapping[str, str]
    ) -> User | None:
        login, password = form.get("login", ""), form.get("password", "")
        name, address = people.normalise_login(login), request.remote or ""
        self._people_throttle.begin(name, address)
        try:
            async with self._store.db.transaction() as tx:
                user = await people.check_password(tx, login, password)
        except NodeError as error:
            if error.kind is not ErrorKind.UNAUTHENTICATED:
                raise
            await self._record_refusal("unknown", "password")
            return None
        self._people_throttle.succeeded(name, address)
        return user

    async def launch(self, request: web.Request) -> web.Response:
        """Answer with a `launch` value for the report that a doctor has open."""
        caller = identity(request)
        caller.require(Action.READ_REPORT)
        report_id = str((await read_json_object(request)).get("report", ""))
        now = self._store.clock()
        async with self._store.db.transaction() as tx:
            stored = await resources.read(
                tx, self._store, "DiagnosticReport", report_id
            )
            context = _context_of(stored.body, report_id)
            launch = await clients.write_launch(
                tx, UUID(caller.user_id), context, now=now
            )
            await self._record(tx, caller, "launch program")
        body = {"iss": f"{self._root}/fhir", "launch": launch}
        return web.json_response(body, status=201)

    # --- audit --------------------------------------------------------------------

    async def _record(
        self,
        tx: Any,
        caller: Identity,
        action: str,
        scopes: Scopes | None = None,
        client: Client | None = None,
    ) -> None:
        role = ",".join(sorted(role.value for role in caller.roles))
        about = caller.user_id if client is None else str(client.client_id)
        detail = {} if scopes is None else {"scope": str(scopes)}
        entry = AuditEntry(
            self._store.clock(),
            caller.user_id,
            role,
            action,
            f"client/{about}",
            detail=detail,
        )
        await audit.record(tx, entry)

    async def _record_refusal(self, name: str, reason: str) -> None:
        async with self._store.db.transaction() as tx:
            # What was sent is not repeated unless it is the id of one of ours.
            known = await clients.find(tx, name)
            actor = "unknown" if known is None else str(known.client_id)
            entry = AuditEntry(
                self._store.clock(),
                actor,
                "",
                "token",
                f"client/{actor}",
                Outcome.REFUSED,
                {"reason": reason},
            )
            await audit.record(tx, entry)


# --- the wire -------------------------------------------------------------------------


def _told(
    handler: Callable[[web.Request], Awaitable[web.Response]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def told(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except OAuthError as error:
            return web.json_response({"error": error.code}, status=error.status)

    return told


async def _form(request: web.Request) -> Mapping[str, str]:
    """Return a form in which nothing stands twice (RFC 6749 3.2)."""
    length = request.content_length
    if request.content_type != _FORM or length is None or length > _MAX_FORM:
        raise OAuthError("invalid_request", "form")
    form = await request.post()
    told = {name: value for name, value in form.items() if isinstance(value, str)}
    if len(told) != len(form):
        raise OAuthError("invalid_request", "twice")
    return told


def _granted(
    client: Client, caller: Identity, asked: str, contexts: set[Context]
) -> tuple[Scope, ...]:
    wanted = [scope for scope in read_scopes(asked) if scope.context in contexts]
    granted = grant(
        wanted, read_scopes(client.scopes), PERMITS, partial(permits, caller)
    )
    return tuple(scope for scope in granted if understood(scope))


def _proves(verifier: str, challenge: str) -> bool:
    if _VERIFIER.fullmatch(verifier) is None:
        return False
    digest = hashlib.sha256(verifier.encode()).digest()
    told = urlsafe_b64encode(digest).rstrip(b"=")
    return hmac.compare_digest(told, challenge.encode())


def _context_of(body: bytes, report_id: str) -> dict[str, Any]:
    report = parse(body)
    studies = [{"reference": r["reference"]} for r in report.get("imagingStudy", [])]
    own = {"reference": f"DiagnosticReport/{report_id}"}
    patient = str(report["subject"]["reference"]).rpartition("/")[2]
    return {"patient": patient, "fhirContext": [own, *studies]}


def _token_response(
    token: str,
    scope: str,
    lifetime: timedelta,
    context: Mapping[str, Any] | None = None,
) -> web.Response:
    body = {
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": int(lifetime.total_seconds()),
        "scope": scope,
        **(context or {}),
    }
    return web.json_response(body, headers={hdrs.PRAGMA: "no-cache"})
