"""The authorization server of the node: SMART App Launch 2.2 for programs.

Programs that act for themselves (Backend Services) prove with a key who they are
and get a token for five minutes. Programs that people use get a code after the
person has agreed (PKCE S256), and a token for what she may do herself. A token is
granted what is asked for, registered and permitted to the roles; nothing else.
What exactly was wrong stands in the audit trail: the caller gets RFC 6749's word.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from aiohttp import hdrs, web

from fhir.security import openid
from fhir.security.assertions import (
    ALGORITHMS,
    TYPE,
    Keys,
    Unproven,
    claimed_client,
    verify,
)
from fhir.security.authorize import Desk, proves
from fhir.security.oauth import (
    OAuthError,
    granted,
    narrowed,
    read_form,
    record,
    record_refusal,
    told,
)
from node.domain.scopes import (
    BESIDE,
    OFFLINE,
    ONLINE,
    OPENID,
    Context,
    Scopes,
    read_scopes,
)
from node.http import KNOWN_CALLERS, RouteGroup
from node.store import clients, people, refreshes
from node.store.clients import Client
from node.throttle import Throttle

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_ATTEMPTS = 20
_ATTEMPTS_FROM_ONE_ADDRESS = 100
_WINDOW = timedelta(minutes=5)


def _invalid_client(reason: str) -> OAuthError:
    return OAuthError("invalid_client", reason, 401)


class Smart:
    """Answers for all programs; one instance serves a process.

    `root_url` is the node as others see it; at `desk` people agree to what programs
    that they use may do.
    """

    def __init__(
        self,
        store: "Store",
        root_url: str,
        keys: Keys,
        desk: Desk,
    ) -> None:
        self._store = store
        self._root = root_url.rstrip("/")
        self._keys = keys
        self._desk = desk
        self._throttle = Throttle(
            store.clock, _ATTEMPTS, _ATTEMPTS_FROM_ONE_ADDRESS, _WINDOW
        )

    @property
    def grants(self) -> Mapping[str, Callable[[web.Request], Awaitable[web.Response]]]:
        """Return what answers at /auth/token, by grant_type."""
        return {
            "client_credentials": told(self.client_credentials),
            "authorization_code": told(self.authorization_code),
            "refresh_token": told(self.refresh_token),
        }

    def route_groups(self) -> list[RouteGroup]:
        """Return all routes but /auth/token, which people's scripts share."""
        known = [
            web.get("/fhir/.well-known/smart-configuration", self.configuration),
            web.get("/.well-known/smart-configuration", self.configuration),
            web.get("/.well-known/oauth-authorization-server", self.configuration),
            web.get("/.well-known/openid-configuration", self.configuration),
            web.get(openid.KEYS_PATH, self.keys),
            web.post("/auth/introspect", told(self.introspect)),
            web.post("/auth/revoke", told(self.revoke)),
        ]
        return [
            RouteGroup(
                "/auth",
                known,
                public=frozenset(r.path for r in known),
                unrecorded=frozenset(r.path for r in known if r.method == "GET"),
            ),
            *self._desk.route_groups(),
        ]

    # --- discovery ----------------------------------------------------------------

    async def configuration(self, _: web.Request) -> web.Response:
        """Answer discovery (SMART 2.2, RFC 8414, OpenID Connect); needs no caller."""
        body = {
            "issuer": self._root,
            "authorization_endpoint": f"{self._root}/auth/authorize",
            "token_endpoint": self._token_url,
            "introspection_endpoint": f"{self._root}/auth/introspect",
            "revocation_endpoint": f"{self._root}/auth/revoke",
            "jwks_uri": f"{self._root}{openid.KEYS_PATH}",
            "token_endpoint_auth_methods_supported": ["private_key_jwt", "none"],
            "token_endpoint_auth_signing_alg_values_supported": list(ALGORITHMS),
            "grant_types_supported": [
                "authorization_code",
                "client_credentials",
                "refresh_token",
            ],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [openid.ALGORITHM],
            "claims_supported": ["sub", "fhirUser", "auth_time", "nonce"],
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "scopes_supported": [
                *BESIDE,
                *(f"{c.value}/*.cruds" for c in (Context.SYSTEM, Context.USER)),
                "patient/*.rs",
            ],
            "capabilities": [
                "launch-ehr",
                "launch-standalone",
                "client-public",
                "client-confidential-asymmetric",
                "context-ehr-patient",
                "context-standalone-patient",
                "sso-openid-connect",
                "permission-offline",
                "permission-online",
                "permission-patient",
                "permission-user",
                "permission-v1",
                "permission-v2",
            ],
        }
        return web.json_response(body)

    async def keys(self, _: web.Request) -> web.Response:
        """Answer the keys that sign id_tokens; needs no caller."""
        return await openid.keys(self._store)

    @property
    def _token_url(self) -> str:
        return f"{self._root}/auth/token"

    # --- tokens -------------------------------------------------------------------

    async def client_credentials(self, request: web.Request) -> web.Response:
        """Grant a program a token for itself (SMART Backend Services)."""
        form = await read_form(request)
        client = await self._authenticated(request, form)
        found = granted(
            client, client.identity, form.get("scope", ""), {Context.SYSTEM}
        )
        if not found:
            raise OAuthError("invalid_scope")
        scopes, now = Scopes(found), self._store.clock()
        async with self._store.db.transaction() as tx:
            token = await clients.open_token(tx, client.client_id, scopes, now=now)
            await record(
                self._store, tx, client.identity, "token client_credentials", scopes
            )
        return _token_response(token, str(scopes), clients.SYSTEM_LIFETIME)

    async def authorization_code(self, request: web.Request) -> web.Response:
        """Exchange a code for a token that acts for a person (RFC 7636)."""
        form = await read_form(request)
        client = await self._authenticated(request, form, public=True)
        secret, now = form.get("code", ""), self._store.clock()
        async with self._store.db.transaction() as tx:
            code = await clients.redeem_code(tx, client.client_id, secret, now=now)
        if code is None or code.redirect_uri != form.get("redirect_uri"):
            raise OAuthError("invalid_grant", "code")
        if not proves(form.get("code_verifier", ""), code.challenge):
            raise OAuthError("invalid_grant", "code_verifier")
        scopes = Scopes(read_scopes(code.scopes), code.context.get("patient"))
        also = code.about.get("also", ())
        body = dict(code.context)
        async with self._store.db.transaction() as tx:
            family_id = None
            if {OFFLINE, ONLINE} & set(also):
                family, body["refresh_token"] = await refreshes.begin(
                    tx,
                    client.client_id,
                    code.user_id,
                    code=secret,
                    scopes=str(scopes),
                    patient_id=scopes.patient_id,
                    about={**code.about, "context": code.context},
                    offline=OFFLINE in also,
                    now=now,
                )
                family_id = family.family_id
            token = await self._open(
                tx, client, code.user_id, scopes, code.about, body, secret, family_id
            )
        return _token_response(token, body.pop("scope"), clients.USER_LIFETIME, body)

    async def refresh_token(self, request: web.Request) -> web.Response:
        """Give the next tokens for a refresh token (RFC 6749 6), which is spent.

        What the program is registered for and what the person may do are looked at
        anew: a token never opens more than either opens today.
        """
        form = await read_form(request)
        token = form.get("refresh_token", "")
        if not {"client_id", "client_assertion"} & form.keys():
            # RFC 6749 6 does not ask a public program for its name.
            async with self._store.db.connection() as tx:
                form = {**form, "client_id": await refreshes.client_of(tx, token)}
        client = await self._authenticated(request, form, public=True)
        now, body = self._store.clock(), {}
        async with self._store.db.transaction() as tx:
            renewed = await refreshes.renew(tx, client.client_id, token, now=now)
            if renewed is not None:
                family, body["refresh_token"] = renewed
                opened = await self._renewed(
                    tx, client, family, form.get("scope"), body
                )
        # A token that came twice has ended its family, and that is kept.
        if renewed is None:
            await record_refusal(self._store, str(client.client_id), "refresh-token")
            request.app[KNOWN_CALLERS].forget_all()
            raise OAuthError("invalid_grant", "refresh-token")
        return _token_response(opened, body.pop("scope"), clients.USER_LIFETIME, body)

    async def _renewed(
        self,
        tx: "Transaction",
        client: Client,
        family: refreshes.Family,
        asked: str | None,
        body: dict[str, Any],
    ) -> str:
        """Return the next access token of a family, for all of it or what is asked."""
        person = await people.find(tx, family.user_id)
        wanted = family.scopes if asked is None else narrowed(asked, family.scopes)
        contexts = {Context.USER, Context.PATIENT}
        found = person and granted(client, person.identity, wanted, contexts)
        if not found:
            raise OAuthError("invalid_scope")
        body |= family.about.get("context", {})
        about = {name: told for name, told in family.about.items() if name != "nonce"}
        scopes = Scopes(found, family.patient_id)
        return await self._open(
            tx,
            client,
            family.user_id,
            scopes,
            about,
            body,
            family_id=family.family_id,
        )

    async def _open(
        self,
        tx: "Transaction",
        client: Client,
        user_id: UUID,
        scopes: Scopes,
        about: Mapping[str, Any],
        body: dict[str, Any],
        code: str | None = None,
        family_id: UUID | None = None,
    ) -> str:
        """Return an access token for a person; `body` is told what comes with it."""
        now = self._store.clock()
        token = await clients.open_token(
            tx,
            client.client_id,
            scopes,
            now=now,
            user_id=user_id,
            code=code,
            family_id=family_id,
        )
        opened = await clients.find_token(tx, token, now=now)
        if opened is None:
            raise OAuthError("invalid_grant", "account")
        person, also = opened.identity, about.get("also", ())
        body["scope"] = " ".join([*also, str(scopes)])
        if OPENID in also:
            body["id_token"] = await openid.id_token(
                tx,
                self._store,
                issuer=self._root,
                client_id=client.client_id,
                person=person,
                about=about,
            )
        how = "authorization_code" if code else "refresh_token"
        await record(self._store, tx, person, f"token {how}", scopes, client)
        return token

    async def introspect(self, request: web.Request) -> web.Response:
        """Tell a program what one of its own tokens opens (RFC 7662)."""
        form = await read_form(request)
        client = await self._authenticated(request, form)
        async with self._store.db.connection() as tx:
            found = await clients.find_token(
                tx, form.get("token", ""), now=self._store.clock()
            )
            kept = await refreshes.find(
                tx, client.client_id, form.get("token", ""), now=self._store.clock()
            )
        if kept is not None:
            return web.json_response(self._introspected(kept))
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

    def _introspected(self, kept: refreshes.Family) -> dict[str, Any]:
        also = kept.about.get("also", ())
        body = {
            "active": True,
            "client_id": str(kept.client_id),
            "sub": str(kept.user_id),
            "scope": " ".join([*also, kept.scopes]),
            "iat": int(kept.begun_at.timestamp()),
            "exp": int(kept.expires_at.timestamp()),
            "iss": self._root,
        }
        return body if kept.patient_id is None else body | {"patient": kept.patient_id}

    async def revoke(self, request: web.Request) -> web.Response:
        """Take back a token of the program that asks (RFC 7009); always 200."""
        form = await read_form(request)
        client = await self._authenticated(request, form, public=True)
        if not form.get("token"):
            raise OAuthError("invalid_request", "token")
        async with self._store.db.transaction() as tx:
            await clients.close_token(tx, client.client_id, form["token"])
            await refreshes.end_of_token(tx, client.client_id, form["token"])
            await record(self._store, tx, client.identity, "revoke token")
        request.app[KNOWN_CALLERS].forget_all()
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
            await record_refusal(self._store, name, error.reason)
            raise
        self._throttle.succeeded(name, address)
        async with self._store.db.transaction() as tx:
            await clients.note_use(tx, client.client_id, now=self._store.clock())
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


def _token_response(
    token: str,
    scope: str,
    lifetime: timedelta,
    beside: Mapping[str, Any] | None = None,
) -> web.Response:
    body = {
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": int(lifetime.total_seconds()),
        "scope": scope,
        **(beside or {}),
    }
    return web.json_response(body, headers={hdrs.PRAGMA: "no-cache"})
