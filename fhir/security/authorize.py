"""Where people let programs act for them: /auth/authorize, and what opens a program.

A person proves on this very page who she is, or comes back here from the hospital's
sign-on; the cookie of the review page does not count, so that no other site can agree
in her name. Then she sees who asks for what, picks the patient when the program has
to know of one, and agrees or does not (SMART App Launch 2.2, RFC 6749 4.1).
"""

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit
from uuid import UUID

from aiohttp import web

from fhir.encoding.wire import parse
from fhir.security import consent_page, patients
from fhir.security.consent_page import Shown
from fhir.security.oauth import granted, read_form, record, record_refusal, told
from node.domain.access import Action
from node.domain.errors import ErrorKind, NodeError
from node.domain.scopes import (
    FHIR_USER,
    LAUNCH,
    LAUNCH_PATIENT,
    OFFLINE,
    ONLINE,
    OPENID,
    Context,
    Scopes,
    read_scopes,
)
from node.http import (
    RouteGroup,
    csrf_token,
    identity,
    known_as,
    read_json_object,
)
from node.store import clients, launches, people, resources
from node.store.clients import Client, Code
from node.store.people import User
from node.throttle import Throttle

if TYPE_CHECKING:
    from node.store.store import Store

PATH = "/auth/authorize"
_COOKIE = "sononode_consent"
_WAITING = "consent"
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_OF_THE_PAGE = frozenset(
    {"login", "password", "decision", "seen", "patient", "accession"}
)


@dataclass(frozen=True)
class _Ask:
    """A request that could be answered with a code."""

    client: Client
    redirect_uri: str
    state: str
    scope: str
    challenge: str
    launch: str
    nonce: str
    issuer: str

    def back(self, **answer: str) -> web.HTTPSeeOther:
        """Return the way back to the program, with `answer` (RFC 6749 4.1.2)."""
        if self.state:
            answer["state"] = self.state
        answer["iss"] = self.issuer
        glue = "&" if "?" in self.redirect_uri else "?"
        return web.HTTPSeeOther(f"{self.redirect_uri}{glue}{urlencode(answer)}")

    @property
    def mark(self) -> str:
        """Return what tells this request from any other."""
        parts = (str(self.client.client_id), self.state, self.challenge)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def words(self) -> frozenset[str]:
        """Return the scopes as they were asked for."""
        return frozenset(self.scope.split())


@dataclass(frozen=True)
class _Arrival:
    """A person who proved a moment ago who she is, on her way to agree."""

    user: User
    ticket: str
    at: int
    new: bool = False


class Desk:
    """Answers for people; one instance serves a process.

    `throttle` counts passwords, wherever they are typed; `local_logins` are the
    accounts that may use one (`*` is everybody). `sign_on` tells whether the hospital
    has a sign-on of its own.
    """

    def __init__(
        self,
        store: "Store",
        root_url: str,
        throttle: Throttle,
        *,
        secure: bool = False,
        local_logins: Collection[str] = ("*",),
        sign_on: bool = False,
    ) -> None:
        self._store = store
        self._root = root_url.rstrip("/")
        self._throttle = throttle
        self._secure = secure
        self._local_logins = local_logins
        self._sign_on = sign_on

    def route_groups(self) -> list[RouteGroup]:
        """Return the page, and what the review page needs to open a program."""
        page = [
            web.get(PATH, told(self.ask)),
            web.get(f"{PATH}.css", consent_page.style),
            web.post(PATH, told(self.decide)),
        ]
        own = [
            web.get("/auth/programs", self.programs),
            web.post("/auth/launches", self.launch),
        ]
        return [
            RouteGroup(
                "/auth",
                page,
                public=frozenset(r.path for r in page),
                unrecorded=frozenset({f"{PATH}.css"}),
            ),
            RouteGroup("/auth", own, unrecorded=frozenset({"/auth/programs"})),
        ]

    # --- the page -----------------------------------------------------------------

    async def ask(self, request: web.Request) -> web.Response:
        """Show who asks for what; the person signs in and agrees or does not."""
        ask = await self._read_ask(request.query)
        if request.query.get("prompt") == "none":
            raise ask.back(error="login_required")
        arrival = await self._arrived(request, ask)
        return self._page(request, ask, request.query, arrival)

    async def decide(self, request: web.Request) -> web.Response:
        """Send the person back to the program, with a code if she agreed."""
        form = await read_form(request)
        ask = await self._read_ask(form)
        if form.get("decision") == "deny":
            raise ask.back(error="access_denied")
        arrival = await self._arrived(request, ask, form.get("seen", ""))
        if form.get("decision") == "other":
            return await self._start_over(request, ask, form, arrival)
        if arrival is None:
            user = await self._signed_in(request, form)
            if user is None:
                return self._page(request, ask, form, wrong=True)
            arrival = await self._welcomed(user, ask)
        known_as(request, arrival.user.identity)
        if ask.launch:
            context = await self._launched(ask, arrival.user)
        elif LAUNCH_PATIENT in ask.words:
            context = await self._picked(arrival.user, form.get("patient", ""))
            if not context:
                return await self._choices(request, ask, form, arrival)
        else:
            context = {}
        if LAUNCH in ask.words and not ask.launch:
            raise ask.back(error="invalid_request")
        raise await self._agreed(ask, arrival, context)

    async def _agreed(
        self, ask: _Ask, arrival: _Arrival, context: Mapping[str, Any]
    ) -> web.HTTPSeeOther:
        """Return the way back with a code for what is granted."""
        user, now = arrival.user, self._store.clock()
        for_whom = {Context.USER} | ({Context.PATIENT} if context else set())
        found = granted(ask.client, user.identity, ask.scope, for_whom)
        also = _granted_beside(ask, user, context)
        if not found and OPENID not in also:
            raise ask.back(error="invalid_scope")
        scopes = Scopes(found, context.get("patient"))
        about: dict[str, Any] = {"also": also, "auth_time": arrival.at}
        if ask.nonce:
            about["nonce"] = ask.nonce
        code = Code(
            user.user_id, ask.redirect_uri, ask.challenge, str(scopes), context, about
        )
        async with self._store.db.transaction() as tx:
            await launches.end(tx, self._store, arrival.ticket)
            secret = await clients.write_code(tx, ask.client.client_id, code, now=now)
            await record(
                self._store, tx, user.identity, "authorize client", scopes, ask.client
            )
        answer = ask.back(code=secret)
        answer.del_cookie(_COOKIE, path=PATH)
        return answer

    async def _read_ask(self, asked: Mapping[str, str]) -> _Ask:
        """Return what a program asks; it hears of a fault when its address is known.

        Raises INVALID, told to the person, when client or address are not ours:
        nobody is sent to an address that was not registered.
        """
        async with self._store.db.connection() as tx:
            client = await clients.find(tx, asked.get("client_id", ""))
        redirect_uri = asked.get("redirect_uri", "")
        if client is None or redirect_uri not in client.redirect_uris:
            raise NodeError(
                "this program or its address is not registered here", ErrorKind.INVALID
            )
        ask = _Ask(
            client,
            redirect_uri,
            asked.get("state", "")[:512],
            asked.get("scope", ""),
            asked.get("code_challenge", ""),
            asked.get("launch", "")[:128],
            asked.get("nonce", "")[:512],
            self._root,
        )
        if asked.get("response_type") != "code":
            raise ask.back(error="unsupported_response_type")
        proof = asked.get("code_challenge_method") == "S256"
        aud = asked.get("aud", "").rstrip("/") == f"{self._root}/fhir"
        if not (proof and aud and ask.state and _CHALLENGE.fullmatch(ask.challenge)):
            raise ask.back(error="invalid_request")
        return ask

    def _page(
        self,
        request: web.Request,
        ask: _Ask,
        asked: Mapping[str, str],
        arrival: _Arrival | None = None,
        *,
        wrong: bool = False,
        choices: patients.Choices | None = None,
    ) -> web.Response:
        fields = {name: asked[name] for name in sorted(set(asked) - _OF_THE_PAGE)}
        if arrival is not None:
            fields["seen"] = csrf_token(arrival.ticket)
        contexts = (Context.PATIENT, Context.USER)
        wanted = [s for s in read_scopes(ask.scope) if s.context in contexts]
        beside = [word for word in (OPENID, ONLINE, OFFLINE) if word in ask.words]
        shown = Shown(
            client=ask.client.name,
            host=urlsplit(ask.redirect_uri).netloc,
            scopes=wanted,
            beside=beside,
            fields=fields,
            redirect_uri=ask.redirect_uri,
            wrong=wrong,
            person=None if arrival is None else arrival.user.identity.shown,
            sign_on=self._sign_on,
            passwords=bool(self._local_logins),
            choices=choices,
        )
        response = consent_page.render(request, shown)
        if arrival is not None and arrival.new:
            self._give(response, arrival.ticket)
        return response

    # --- who she is ---------------------------------------------------------------

    async def welcome(self, user: User, query: Mapping[str, str]) -> web.Response:
        """Let somebody in whom the hospital's sign-on has sent back to this page."""
        arrival = await self._welcomed(user, await self._read_ask(query))
        response = web.Response(
            status=303, headers={"Location": f"{PATH}?{urlencode(query)}"}
        )
        self._give(response, arrival.ticket)
        return response

    def _give(self, response: web.Response, ticket: str) -> None:
        # Lax: she comes here from the program's site or the hospital's sign-on.
        response.set_cookie(
            _COOKIE,
            ticket,
            max_age=int(launches.LIFETIME.total_seconds()),
            httponly=True,
            secure=self._secure,
            samesite="Lax",
            path=PATH,
        )

    async def _welcomed(self, user: User, ask: _Ask) -> _Arrival:
        ticket, at = secrets.token_urlsafe(32), int(self._store.clock().timestamp())
        kept = {"user_id": str(user.user_id), "ask": ask.mark, "at": str(at)}
        async with self._store.db.transaction() as tx:
            await launches.begin(tx, self._store, ticket, _WAITING, kept)
        return _Arrival(user, ticket, at, new=True)

    async def _arrived(
        self, request: web.Request, ask: _Ask, seen: str | None = None
    ) -> _Arrival | None:
        """Return who proved for this very request who she is, in this browser.

        With `seen` the page that she saw has to have sent back what stood in it.
        """
        ticket = request.cookies.get(_COOKIE, "")
        if not ticket:
            return None
        if seen is not None and not hmac.compare_digest(
            seen.encode(), csrf_token(ticket).encode()
        ):
            return None
        async with self._store.db.connection() as tx:
            found = await launches.look(tx, self._store, ticket)
            if found is None or found[0] != _WAITING or found[1]["ask"] != ask.mark:
                return None
            user = await people.find(tx, UUID(found[1]["user_id"]))
        return None if user is None else _Arrival(user, ticket, int(found[1]["at"]))

    async def _start_over(
        self,
        request: web.Request,
        ask: _Ask,
        form: Mapping[str, str],
        arrival: _Arrival | None,
    ) -> web.Response:
        if arrival is not None:
            async with self._store.db.transaction() as tx:
                await launches.end(tx, self._store, arrival.ticket)
        response = self._page(request, ask, form)
        response.del_cookie(_COOKIE, path=PATH)
        return response

    async def _signed_in(
        self, request: web.Request, form: Mapping[str, str]
    ) -> User | None:
        login, password = form.get("login", ""), form.get("password", "")
        name, address = people.normalise_login(login), request.remote or ""
        self._throttle.begin(name, address)
        try:
            async with self._store.db.transaction() as tx:
                user = await people.check_password(
                    tx, login, password, among=self._local_logins
                )
        except NodeError as error:
            if error.kind is not ErrorKind.UNAUTHENTICATED:
                raise
            await record_refusal(self._store, "unknown", "password")
            return None
        self._throttle.succeeded(name, address)
        return user

    # --- about whom ---------------------------------------------------------------

    async def _launched(self, ask: _Ask, user: User) -> dict[str, Any]:
        async with self._store.db.transaction() as tx:
            found = await clients.spend_launch(
                tx, user.user_id, ask.launch, now=self._store.clock()
            )
        if found is None:
            raise ask.back(error="invalid_request")
        return dict(found)

    async def _picked(self, user: User, patient_id: str) -> dict[str, Any]:
        if patient_id and await patients.may_pick(
            self._store, user.identity, patient_id
        ):
            return {"patient": patient_id}
        return {}

    async def _choices(
        self,
        request: web.Request,
        ask: _Ask,
        form: Mapping[str, str],
        arrival: _Arrival,
    ) -> web.Response:
        if not user_may_pick(arrival.user):
            raise ask.back(error="access_denied")
        choices = await patients.choices(
            self._store, arrival.user.identity, form.get("accession", "")
        )
        return self._page(request, ask, form, arrival, choices=choices)

    # --- programs that the review page opens --------------------------------------

    async def programs(self, request: web.Request) -> web.Response:
        """Answer the programs that a report can be opened in, by name."""
        identity(request).require(Action.READ_REPORT)
        async with self._store.db.connection() as tx:
            known = await clients.list_clients(tx)
        shown = [
            {"client_id": str(client.client_id), "name": client.name}
            for client in known
            if client.launch_url and not client.disabled
        ]
        return web.json_response(shown)

    async def launch(self, request: web.Request) -> web.Response:
        """Answer with a `launch` value for the report that a doctor has open.

        With `client` it is also told where to open that program, ready to follow.
        """
        caller = identity(request)
        caller.require(Action.READ_REPORT)
        body = await read_json_object(request)
        report_id, client_id = str(body.get("report", "")), body.get("client")
        now = self._store.clock()
        async with self._store.db.transaction() as tx:
            client = None
            if client_id is not None:
                client = await clients.find(tx, str(client_id))
                if client is None or client.launch_url is None:
                    raise NodeError("no such program", ErrorKind.NOT_FOUND)
            stored = await resources.read(
                tx, self._store, "DiagnosticReport", report_id
            )
            context = _context_of(stored.body, report_id)
            launch = await clients.write_launch(
                tx, UUID(caller.user_id), context, now=now
            )
            await record(self._store, tx, caller, "launch program", client=client)
        answer = {"iss": f"{self._root}/fhir", "launch": launch}
        if client is not None and client.launch_url is not None:
            glue = "&" if "?" in client.launch_url else "?"
            answer["url"] = f"{client.launch_url}{glue}{urlencode(answer)}"
        return web.json_response(answer, status=201)


def user_may_pick(user: User) -> bool:
    """Tell whether a person may see patients at all."""
    return user.identity.may(Action.READ_REPORT)


def proves(verifier: str, challenge: str) -> bool:
    """Tell whether a verifier is what a challenge was made of (RFC 7636 4.6)."""
    if _VERIFIER.fullmatch(verifier) is None:
        return False
    digest = hashlib.sha256(verifier.encode()).digest()
    made = urlsafe_b64encode(digest).rstrip(b"=")
    return hmac.compare_digest(made, challenge.encode())


def _granted_beside(ask: _Ask, user: User, context: Mapping[str, Any]) -> list[str]:
    """Return the scopes that open no resource and are granted."""
    also = []
    if context:
        also += [word for word in (LAUNCH, LAUNCH_PATIENT) if word in ask.words]
    if OPENID in ask.words:
        also.append(OPENID)
        if FHIR_USER in ask.words and user.practitioner_id is not None:
            also.append(FHIR_USER)
    lasting = [w for w in (OFFLINE, ONLINE) if w in ask.words]
    also += [w for w in lasting if w in ask.client.scopes.split()][:1]
    return also


def _context_of(body: bytes, report_id: str) -> dict[str, Any]:
    report = parse(body)
    studies = [{"reference": r["reference"]} for r in report.get("imagingStudy", [])]
    own = {"reference": f"DiagnosticReport/{report_id}"}
    patient = str(report["subject"]["reference"]).rpartition("/")[2]
    return {"patient": patient, "fhirContext": [own, *studies]}
