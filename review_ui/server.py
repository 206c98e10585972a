"""Serves the review page, signs people in, and prints the desk QR code.

What the page does to a report goes through /fhir and /dicom-web; here are its
files and /auth, beside it what only this page shows (/review).
"""

import gzip
import io
import mimetypes
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import segno
from aiohttp import hdrs, web

from node.domain.access import Action, Identity
from node.domain.audit import AuditEntry, Outcome
from node.domain.disclosure import TierText, mask_name
from node.domain.errors import ErrorKind, NodeError
from node.http import (
    KNOWN_CALLERS,
    SESSION_COOKIE,
    STORE,
    RouteGroup,
    clear_session_cookie,
    csrf_token,
    identity,
    read_json_object,
    set_session_cookie,
)
from node.store import audit, identities, people, refreshes
from node.store.people import SessionKind, User
from node.store.store import Store
from node.throttle import Throttle
from review_ui import measured, printed, similar

_DIST = Path(__file__).parent / "dist"
_PATIENT = re.compile(r"Patient/([0-9a-f-]{36})")
_NOT_BUILT = (
    "The review page is not built. Run `make setup`, then start the node again."
)
_JSON = "application/json"
_MAX_FORM = 65_536


@dataclass(frozen=True)
class ReviewSettings:
    """What an installation may set about the review page.

    `secure` tells that browsers reach us by https: the cookie then never
    travels without. `assets` is where the built page lies. `texts` (one for
    every BI-RADS category) and `department_phone` are what the patient will
    read; the page shows them to the doctor before she signs. `sign_on` tells whether
    the hospital's sign-on lets people in; `local_logins` may use a password here.
    """

    secure: bool = False
    assets: Path = _DIST
    texts: Mapping[str, TierText] = field(default_factory=dict)
    department_phone: str = ""
    attempts: int = 5
    attempts_from_one_address: int = 50
    attempts_window: timedelta = timedelta(minutes=15)
    local_logins: Collection[str] = (people.EVERYBODY,)
    sign_on: bool = False


# Answers a token request whose grant_type is not the password's.
Grant = Callable[[web.Request], Awaitable[web.Response]]


def throttle_of(store: Store, settings: ReviewSettings) -> Throttle:
    """Return what counts the attempts to guess passwords, wherever they are typed."""
    return Throttle(
        store.clock,
        settings.attempts,
        settings.attempts_from_one_address,
        settings.attempts_window,
    )


def routes(
    store: Store,
    settings: ReviewSettings,
    *,
    throttle: Throttle | None = None,
    grants: Mapping[str, Grant] | None = None,
) -> list[RouteGroup]:
    """Return the route groups of the page itself, of /auth and of /review.

    `grants` answer at /auth/token for programs, by grant_type (RFC 6749 4).
    """
    throttle = throttle or throttle_of(store, settings)
    return [
        _page_group(settings.assets),
        _auth_group(settings, throttle, grants or {}),
        similar.route_group(),
        measured.route_group(),
        printed.route_group(),
    ]


# --- the page ----------------------------------------------------------------


@dataclass(frozen=True)
class _Asset:
    body: bytes
    compressed: bytes
    content_type: str


def _page_group(assets: Path) -> RouteGroup:
    page = _Page(assets)
    return RouteGroup(
        prefix="/",
        routes=[web.get("/", page.index), web.get("/assets/{name}", page.asset)],
        public=frozenset({"/", "/assets/{name}"}),
        unrecorded=frozenset({"/", "/assets/{name}"}),
    )


class _Page:
    """The built page, read once: no request can name a path on the disk."""

    def __init__(self, directory: Path) -> None:
        index = directory / "index.html"
        self._index = _read_asset(index) if index.is_file() else None
        files = sorted((directory / "assets").glob("*")) if self._index else []
        self._assets = {path.name: _read_asset(path) for path in files}

    async def index(self, request: web.Request) -> web.Response:
        if self._index is None:
            return web.Response(text=_NOT_BUILT, status=503)
        return _send(request, self._index, "no-cache")

    async def asset(self, request: web.Request) -> web.Response:
        asset = self._assets.get(request.match_info["name"])
        if asset is None:
            raise NodeError("no such file", ErrorKind.NOT_FOUND)
        # The name holds a hash of the content.
        return _send(request, asset, "public, max-age=31536000, immutable")


def _read_asset(path: Path) -> _Asset:
    body = path.read_bytes()
    content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return _Asset(body, gzip.compress(body, mtime=0), content_type)


def _send(request: web.Request, asset: _Asset, cache_control: str) -> web.Response:
    headers = {hdrs.CACHE_CONTROL: cache_control, hdrs.VARY: hdrs.ACCEPT_ENCODING}
    text = asset.content_type.startswith("text/")
    response = web.Response(
        body=asset.body,
        content_type=asset.content_type,
        charset="utf-8" if text else None,
        headers=headers,
    )
    if "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
        response.body = asset.compressed
        response.headers[hdrs.CONTENT_ENCODING] = "gzip"
    return response


# --- signing in --------------------------------------------------------------


def _auth_group(
    settings: ReviewSettings, throttle: Throttle, grants: Mapping[str, Grant]
) -> RouteGroup:
    desk = _SignIn(settings, throttle, grants)
    return RouteGroup(
        prefix="/auth",
        routes=[
            web.get("/auth/sign-in", desk.ways_in),
            web.post("/auth/login", desk.login),
            web.post("/auth/logout", desk.logout),
            web.get("/auth/me", desk.me),
            web.post("/auth/token", desk.token),
            web.post("/auth/bindings", print_binding),
        ],
        public=frozenset({"/auth/sign-in", "/auth/login", "/auth/token"}),
        unrecorded=frozenset({"/auth/me", "/auth/sign-in"}),
    )


class _SignIn:
    def __init__(
        self,
        settings: ReviewSettings,
        throttle: Throttle,
        grants: Mapping[str, Grant],
    ) -> None:
        self._secure = settings.secure
        self._local_logins = settings.local_logins
        self._sign_on = settings.sign_on
        self._site = {
            "department_phone": settings.department_phone,
            "patient_texts": {
                key: asdict(text) for key, text in settings.texts.items()
            },
        }
        self._throttle = throttle
        self._grants = grants

    async def ways_in(self, request: web.Request) -> web.Response:
        """Tell the page, before anybody is known, how people sign in here."""
        told = {
            "sign_on": self._sign_on,
            "passwords": bool(self._local_logins),
            "locale": _locale(request),
        }
        return web.json_response(told)

    async def login(self, request: web.Request) -> web.Response:
        """Open a session for a person at a browser."""
        if request.content_type != _JSON:
            # A form of another site cannot send JSON without being asked first.
            raise web.HTTPUnsupportedMediaType
        body = await read_json_object(request)
        login, password = _text(body, "login"), _text(body, "password")
        user, token = await self._open(request, login, password, SessionKind.COOKIE)
        response = web.json_response(self._me(request, user.identity, token))
        set_session_cookie(response, token, secure=self._secure)
        return response

    async def token(self, request: web.Request) -> web.Response:
        """Open a short session for a script (RFC 6749 4.3 and 5)."""
        if request.content_length is None or request.content_length > _MAX_FORM:
            return _oauth_error("invalid_request")
        try:
            form = await request.post()
        except (ValueError, LookupError):
            # No form, or in a charset that nobody knows.
            return _oauth_error("invalid_request")
        grant = self._grants.get(str(form.get("grant_type")))
        if grant is not None:
            return await grant(request)
        if form.get("grant_type") != "password":
            return _oauth_error("unsupported_grant_type")
        login, password = form.get("username"), form.get("password")
        if not isinstance(login, str) or not isinstance(password, str):
            return _oauth_error("invalid_request")
        try:
            _, token = await self._open(request, login, password, SessionKind.BEARER)
        except NodeError as error:
            if error.kind is not ErrorKind.UNAUTHENTICATED:
                raise
            return _oauth_error("invalid_grant")
        return web.json_response(
            {
                "access_token": token,
                "token_type": "Bearer",
                "expires_in": int(people.BEARER_LIFETIME.total_seconds()),
            }
        )

    async def _open(
        self, request: web.Request, login: str, password: str, kind: SessionKind
    ) -> tuple[User, str]:
        store, address = request.app[STORE], request.remote or ""
        name = people.normalise_login(login)
        self._throttle.begin(name, address)
        try:
            async with store.db.transaction() as tx:
                user = await people.check_password(
                    tx, login, password, among=self._local_logins
                )
                token = await people.open_session(tx, user, kind, now=store.clock())
                await _record(
                    store, tx, user.identity, f"login {kind.value}", "session"
                )
        except NodeError as error:
            if error.kind is ErrorKind.UNAUTHENTICATED:
                await _record_refusal(store, kind)
            raise
        self._throttle.succeeded(name, address)
        return user, token

    async def me(self, request: web.Request) -> web.Response:
        """Tell the page who is signed in and what she may do."""
        token = request.cookies.get(SESSION_COOKIE, "")
        return web.json_response(self._me(request, identity(request), token))

    async def logout(self, request: web.Request) -> web.Response:
        """End the session; the page then shows nothing of a patient any more."""
        store = request.app[STORE]
        token = request.cookies.get(SESSION_COOKIE, "")
        async with store.db.transaction() as tx:
            by_sign_on = await people.close_session(tx, token)
            await refreshes.end_online(tx, UUID(identity(request).user_id))
            await _record(store, tx, identity(request), "logout", "session")
        request.app[KNOWN_CALLERS].forget(token)
        response = web.Response(status=204)
        if by_sign_on and self._sign_on:
            response = web.json_response({"leave": "/auth/oidc/leave"})
        clear_session_cookie(response, secure=self._secure)
        response.headers["Clear-Site-Data"] = '"cache"'
        return response

    def _me(self, request: web.Request, caller: Identity, token: str) -> dict[str, Any]:
        return {
            "user_id": caller.user_id,
            "display": caller.shown,
            "roles": sorted(role.value for role in caller.roles),
            "may": sorted(action.value for action in Action if caller.may(action)),
            "practitioner_id": caller.practitioner_id,
            "csrf": csrf_token(token),
            "locale": _locale(request),
            "idle_limit_s": int(people.IDLE_LIMIT.total_seconds()),
            "site": self._site,
        }


def _locale(request: web.Request) -> str:
    first = request.headers.get(hdrs.ACCEPT_LANGUAGE, "zh").split(",")[0]
    return "en" if first.strip().lower().startswith("en") else "zh"


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise NodeError(f"{key} is missing", ErrorKind.INVALID, expression=key)
    return value


def _oauth_error(code: str) -> web.Response:
    return web.json_response({"error": code}, status=400)


async def _record(
    store: Store, tx: Any, caller: Identity, action: str, entity: str
) -> None:
    role = ",".join(sorted(role.value for role in caller.roles))
    entry = AuditEntry(store.clock(), caller.user_id, role, action, entity)
    await audit.record(tx, entry)


async def _record_refusal(store: Store, kind: SessionKind) -> None:
    # What was typed stays out: people type their password into the wrong field.
    entry = AuditEntry(
        store.clock(), "unknown", "", f"login {kind.value}", "session", Outcome.REFUSED
    )
    async with store.db.transaction() as tx:
        await audit.record(tx, entry)


# --- the desk ----------------------------------------------------------------


async def print_binding(request: web.Request) -> web.Response:
    """Answer with a one-time QR code that binds a patient's phone to her reports.

    The code is on this paper only: the node keeps its hash, the relay gets the
    hash and a check of the last four signs of her ID number.
    """
    caller = identity(request)
    caller.require(Action.BIND_PATIENT)
    store = request.app[STORE]
    patient_id = _patient_id(await read_json_object(request))
    async with store.db.transaction() as tx:
        person = await identities.patient(tx, store, patient_id)
        binding, token = await people.create_binding(
            tx,
            patient_id=patient_id,
            id_number=person.id_number,
            created_by=UUID(caller.user_id),
            now=store.clock(),
        )
        await store.jobs.defer(
            tx,
            "offer_binding",
            {"binding_id": str(binding.binding_id)},
            patient_id=patient_id,
        )
        await _record(store, tx, caller, "print binding", f"Patient/{patient_id}")
    body = {
        "binding_id": str(binding.binding_id),
        "display": mask_name(person.name),
        "expires_at": binding.expires_at.isoformat(),
        "check": binding.check_code is not None,
        # Read aloud or typed where a phone cannot scan.
        "code": token,
        "svg": _qr_svg(token),
    }
    return web.json_response(body, status=201)


def _patient_id(body: dict[str, Any]) -> UUID:
    match = _PATIENT.fullmatch(str(body.get("patient", "")))
    try:
        return UUID(match[1] if match else "")
    except ValueError:
        raise NodeError(
            "patient is a reference like Patient/{id}",
            ErrorKind.INVALID,
            expression="patient",
        ) from None


def _qr_svg(token: str) -> str:
    out = io.BytesIO()
    code = segno.make(token, error="m", micro=False)
    code.save(out, kind="svg", scale=8, border=4, xmldecl=False, svgns=True)
    return out.getvalue().decode()
