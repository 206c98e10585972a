"""The HTTP edge that FHIR, DICOMweb, /auth and the review page share.

Default-deny: a route answers only to a known caller, unless its group lists it
as public. Every failure leaves through one place, in the words of its prefix
(OperationOutcome under /fhir, JSON elsewhere) and without detail when it was
not foreseen. Logs name the route, never the path or the query: both may hold
what identifies a patient.
"""

import asyncio
import hashlib
import hmac
import json
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import structlog
from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from node.domain.access import Identity
from node.domain.errors import ErrorKind, NodeError
from node.domain.scopes import Scopes
from node.known import KnownCallers
from node.recording import Access, Describe, Group, Recorder
from node.store import clients, models, people
from node.store.store import Store

SESSION_COOKIE = "sononode_session"
CSRF_HEADER = "X-CSRF-Token"
# A page that refreshes itself sends this, so that polling does not keep the
# session of a doctor alive who has left the room.
BACKGROUND_HEADER = "X-Sononode-Background"
REQUEST_ID_HEADER = "X-Request-Id"

HTTP_STATUS: Mapping[ErrorKind, HTTPStatus] = {
    ErrorKind.INVALID: HTTPStatus.BAD_REQUEST,
    ErrorKind.UNSUPPORTED: HTTPStatus.NOT_IMPLEMENTED,
    ErrorKind.FORBIDDEN: HTTPStatus.FORBIDDEN,
    ErrorKind.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    ErrorKind.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorKind.GONE: HTTPStatus.GONE,
    ErrorKind.CONFLICT: HTTPStatus.CONFLICT,
    ErrorKind.PRECONDITION: HTTPStatus.PRECONDITION_REQUIRED,
    ErrorKind.RULE: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorKind.EXHAUSTED: HTTPStatus.INSUFFICIENT_STORAGE,
    ErrorKind.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorKind.INTEGRITY: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorKind.SETTING: HTTPStatus.INTERNAL_SERVER_ERROR,
}
_RETRY_AFTER_S = "2"

_SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; script-src 'self'; "
        "style-src 'self'; connect-src 'self'; object-src 'none'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    hdrs.CACHE_CONTROL: "no-store",
}
_SAFE_METHODS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNMATCHED = "unmatched"

STORE: web.AppKey[Store] = web.AppKey("store", Store)
KNOWN_CALLERS: web.AppKey[KnownCallers] = web.AppKey("known_callers", KnownCallers)
_IDENTITY: web.RequestKey[Identity] = web.RequestKey("identity", Identity)
_REQUEST_ID_KEY: web.RequestKey[str] = web.RequestKey("request_id", str)

log = structlog.get_logger("http")


@dataclass(frozen=True)
class HttpSettings:
    """What an installation may set about its HTTP edge.

    `secure` tells that callers reach us by https, directly or through a proxy.
    `metrics_token` opens /metrics to a remote collector; without one only the
    machine itself may read it. A caller who was recognised is not looked up again
    for `known_for_s`.
    """

    secure: bool = False
    max_body_bytes: int = 16 * 1024 * 1024
    metrics_token: str | None = None
    data_directory: Path = Path("var")
    min_free_bytes: int = 1024 * 1024 * 1024
    known_for_s: float = 0.0


@dataclass(frozen=True)
class Failure:
    """A failed request as every renderer sees it; safe to show as it is.

    `request` is there for its headers: they say what its caller can read.
    """

    status: int
    message: str
    request_id: str
    kind: ErrorKind | None = None
    expression: str | None = None
    request: web.Request | None = field(default=None, repr=False, compare=False)


ErrorRenderer = Callable[[Failure], web.Response]
Admits = Callable[[Scopes], bool]
Check = Callable[[], Awaitable[None]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class RouteGroup:
    """The routes of one part of the product and how it words its failures.

    `public` lists the route patterns (as registered) that need no caller.
    `admits` tells for which scopes a SMART token may come in here at all; without
    it the group is closed to tokens, whatever the roles behind them.
    `on_shutdown` ends what would not end by itself with its request.
    `render_error` answers for everything under `prefix`, unknown paths
    included; it may choose another status than the one proposed.
    Every request is recorded in the audit trail, but for the patterns in
    `unrecorded`, which show nothing of anybody; `describe` gives it the words.
    """

    prefix: str
    routes: Sequence[web.AbstractRouteDef]
    public: frozenset[str] = frozenset()
    render_error: ErrorRenderer | None = None
    admits: Admits = field(default=lambda _: False)
    unrecorded: frozenset[str] = frozenset()
    describe: Describe | None = None
    on_shutdown: Sequence[Callable[[web.Application], Awaitable[None]]] = ()


def identity(request: web.Request) -> Identity:
    """Return who is calling; UNAUTHENTICATED when nobody we know is."""
    try:
        return request[_IDENTITY]
    except KeyError:
        raise NodeError("sign in first", ErrorKind.UNAUTHENTICATED) from None


def known_as(request: web.Request, caller: Identity) -> None:
    """Let a public route's access be recorded as that of whom it recognised itself."""
    request[_IDENTITY] = caller


def request_id(request: web.Request) -> str:
    """Return the id under which this request stands in the log."""
    return request[_REQUEST_ID_KEY]


def csrf_token(session_token: str) -> str:
    """Return the token that a page must send back on every unsafe request.

    Derived from the session, so that nothing is stored and none outlives it.
    """
    key = session_token.encode()
    return hmac.new(key, b"csrf", hashlib.sha256).hexdigest()


async def read_json_object(request: web.Request) -> dict[str, Any]:
    """Return the body as a JSON object; INVALID when it is anything else."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise NodeError("the body is not JSON", ErrorKind.INVALID) from None
    if not isinstance(body, dict):
        raise NodeError("the body is not a JSON object", ErrorKind.INVALID)
    return body


def render_json(failure: Failure) -> web.Response:
    """Return a failure as plain JSON, for every prefix without its own words."""
    body = {"error": failure.message, "request_id": failure.request_id}
    return web.json_response(body, status=failure.status)


def make_app(
    store: Store,
    settings: HttpSettings,
    route_groups: Sequence[RouteGroup],
    *,
    registry: CollectorRegistry | None = None,
    checks: Mapping[str, Check] | None = None,
) -> web.Application:
    """Return the web application that serves `route_groups` and its own health.

    `checks` replaces the readiness checks (database, keys, disk); `registry`
    is shared with the other parts of the process that count something.
    """
    registry = CollectorRegistry() if registry is None else registry
    health = _Health(
        store_checks(store, settings) if checks is None else checks,
        {"model": _model_check(store)},
        registry,
        settings,
    )
    groups = [*route_groups, health.group()]
    renderers = _Renderers(groups)
    public = frozenset().union(*(group.public for group in groups))
    admissions: dict[str, Admits] = {}
    known = KnownCallers(settings.known_for_s)
    recorder = Recorder(store)
    access = Access(
        recorder,
        [Group(g.prefix, g.unrecorded, g.describe) for g in groups],
        store.clock,
        caller=lambda request: request.get(_IDENTITY),
        request_id=request_id,
        in_background=lambda request: BACKGROUND_HEADER in request.headers,
    )
    app = web.Application(
        client_max_size=settings.max_body_bytes,
        middlewares=[
            _observe(_Metrics(registry)),
            _record(access, renderers),
            _translate(renderers),
            _limit(settings.max_body_bytes),
            _authenticate(store, known, public, admissions),
        ],
    )
    app[STORE] = store
    app[KNOWN_CALLERS] = known
    app.on_response_prepare.append(_add_headers(settings.secure))
    app.on_response_prepare.append(_record_first(access))
    app.cleanup_ctx.append(lambda _: _recording(recorder))
    for group in groups:
        app.on_shutdown.extend(group.on_shutdown)
        for route in app.add_routes(group.routes):
            if route.resource is not None:
                admissions[route.resource.canonical] = group.admits
    return app


# --- who is calling ----------------------------------------------------------


def _authenticate(
    store: Store,
    known: KnownCallers,
    public: frozenset[str],
    admissions: Mapping[str, Admits],
) -> Any:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        pattern = _pattern(request)
        if pattern not in public:
            caller = request[_IDENTITY] = await _identify(store, known, request)
            if caller.scopes is not None and pattern is not None:
                admits = admissions.get(pattern)
                if admits is None or not admits(caller.scopes):
                    raise NodeError(
                        "the token has no scope for this", ErrorKind.FORBIDDEN
                    )
        return await handler(request)

    return middleware


async def _identify(
    store: Store, known: KnownCallers, request: web.Request
) -> Identity:
    """Return the caller behind a bearer token or the session cookie.

    A bearer token never comes from a browser on its own, the cookie does:
    only the cookie needs the CSRF header on methods that change something.
    """
    kind, token = _credentials(request)
    touch = BACKGROUND_HEADER not in request.headers
    # What keeps a session alive must not hide behind what does not.
    how = f"{kind.value} {touch}"
    caller = known.find(token, how)
    if caller is None:
        caller = await _recognise(store, kind, token, touch=touch)
        known.keep(token, how, caller)
    cookie = kind is people.SessionKind.COOKIE
    if cookie and request.method not in _SAFE_METHODS:
        sent = request.headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(sent.encode(), csrf_token(token).encode()):
            raise NodeError("the CSRF token is missing", ErrorKind.FORBIDDEN)
    return caller


async def _recognise(
    store: Store, kind: people.SessionKind, token: str, *, touch: bool
) -> Identity:
    if token.startswith(clients.TOKEN_PREFIX):
        async with store.db.connection() as connection:
            return await clients.read_token(connection, token, now=store.clock())
    async with store.db.connection() as connection:
        session = await people.read_session(
            connection, token, kind, now=store.clock(), touch=touch
        )
    return session.identity


def _credentials(request: web.Request) -> tuple[people.SessionKind, str]:
    header = request.headers.get(hdrs.AUTHORIZATION)
    if header is not None:
        scheme, _, token = header.partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return people.SessionKind.BEARER, token.strip()
        raise NodeError("use a bearer token", ErrorKind.UNAUTHENTICATED)
    token = request.cookies.get(SESSION_COOKIE, "")
    if not token:
        raise NodeError("sign in first", ErrorKind.UNAUTHENTICATED)
    return people.SessionKind.COOKIE, token


def set_session_cookie(response: web.Response, token: str, *, secure: bool) -> None:
    """Give the browser its session; scripts cannot read it, other sites not send it."""
    response.set_cookie(
        SESSION_COOKIE, token, httponly=True, secure=secure, samesite="Strict", path="/"
    )


def clear_session_cookie(response: web.Response, *, secure: bool) -> None:
    """Take the session from the browser."""
    response.del_cookie(
        SESSION_COOKIE, httponly=True, secure=secure, samesite="Strict", path="/"
    )


# --- what the trail tells ----------------------------------------------------


def _record(access: Access, renderers: "_Renderers") -> Any:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await access.answered(request, handler)
        except NodeError as error:  # all others are answers by now
            failure = _known(error, request_id(request))
            response = renderers(request.path, replace(failure, request=request))
            response.headers.update(_retry_headers(error.kind))
            return response

    return middleware


def _record_first(
    access: Access,
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def record(request: web.Request, response: web.StreamResponse) -> None:
        # What goes out in pieces is recorded before the first; all else is by now.
        await access.record(request, response.status)

    return record


async def _recording(recorder: Recorder) -> AsyncIterator[None]:
    async with recorder.running():
        yield


# --- what went wrong ---------------------------------------------------------


class _Renderers:
    """Finds the words for a failure by the longest prefix of its path."""

    def __init__(self, groups: Sequence[RouteGroup]) -> None:
        self._by_prefix = sorted(
            ((g.prefix, g.render_error) for g in groups if g.render_error),
            key=lambda row: -len(row[0]),
        )

    def __call__(self, path: str, failure: Failure) -> web.Response:
        for prefix, render in self._by_prefix:
            if path == prefix or path.startswith(f"{prefix.rstrip('/')}/"):
                return render(failure)
        return render_json(failure)


def _translate(renderers: _Renderers) -> Any:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except NodeError as error:
            failure = _known(error, request_id(request))
            headers = _retry_headers(error.kind)
        except web.HTTPException as error:
            if error.status < HTTPStatus.BAD_REQUEST:
                raise
            failure = _protocol(error, request_id(request))
            told = (hdrs.ALLOW, hdrs.RETRY_AFTER)
            headers = {k: error.headers[k] for k in told if k in error.headers}
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("request_failed", request_id=request_id(request))
            failure = Failure(
                500, "the node failed on this request", request_id(request)
            )
            headers = {}
        response = renderers(request.path, replace(failure, request=request))
        response.headers.update(headers)
        if response.status == HTTPStatus.UNAUTHORIZED:
            response.headers.setdefault(hdrs.WWW_AUTHENTICATE, _challenge(request))
        caller = request.get(_IDENTITY)
        if response.status == HTTPStatus.FORBIDDEN and caller and caller.scopes:
            wanted = 'Bearer error="insufficient_scope"'
            response.headers.setdefault(hdrs.WWW_AUTHENTICATE, wanted)
        return response

    return middleware


def _challenge(request: web.Request) -> str:
    """Return how to come in (RFC 6750 3): what was sent did not open anything."""
    sent = hdrs.AUTHORIZATION in request.headers
    return 'Bearer error="invalid_token"' if sent else "Bearer"


def _known(error: NodeError, request_id_: str) -> Failure:
    status = HTTP_STATUS[error.kind]
    if status is HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request_failed", request_id=request_id_, reason=error.message)
        return Failure(status, "the node failed on this request", request_id_)
    return Failure(status, error.message, request_id_, error.kind, error.expression)


def _protocol(error: web.HTTPException, request_id_: str) -> Failure:
    kind = {404: ErrorKind.NOT_FOUND, 410: ErrorKind.GONE}.get(error.status)
    text = HTTPStatus(error.status).phrase.lower()
    return Failure(error.status, text, request_id_, kind)


def _retry_headers(kind: ErrorKind) -> dict[str, str]:
    if kind in {ErrorKind.UNAVAILABLE, ErrorKind.EXHAUSTED}:
        return {hdrs.RETRY_AFTER: _RETRY_AFTER_S}
    return {}


def _limit(max_body_bytes: int) -> Any:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        announced = request.content_length or 0
        if announced > max_body_bytes:
            raise web.HTTPRequestEntityTooLarge(max_body_bytes, announced)
        return await handler(request)

    return middleware


# --- what is seen of it ------------------------------------------------------


@dataclass
class _Metrics:
    registry: CollectorRegistry
    requests: Counter = field(init=False)
    seconds: Histogram = field(init=False)

    def __post_init__(self) -> None:
        self.requests = Counter(
            "sononode_http_requests",
            "Answered HTTP requests",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "sononode_http_request_seconds",
            "Time to answer a request",
            ["method", "route"],
            registry=self.registry,
        )

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        known = method if method in hdrs.METH_ALL else "other"
        self.requests.labels(known, route, str(status)).inc()
        self.seconds.labels(known, route).observe(seconds)


def _observe(metrics: _Metrics) -> Any:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        sent = request.headers.get(REQUEST_ID_HEADER, "")
        request[_REQUEST_ID_KEY] = (
            sent if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(8)
        )
        started = time.perf_counter()
        status = 499  # the caller went away
        try:
            response = await handler(request)
            status = response.status
            return response
        except web.HTTPException as redirect:
            status = redirect.status
            raise
        finally:
            seconds = time.perf_counter() - started
            route = _pattern(request) or _UNMATCHED
            metrics.count(request.method, route, status, seconds)
            _log_access(request, route, status, seconds)

    return middleware


def _log_access(request: web.Request, route: str, status: int, seconds: float) -> None:
    caller = request.get(_IDENTITY)
    log.info(
        "request",
        request_id=request_id(request),
        method=request.method,
        route=route,
        status=status,
        ms=round(seconds * 1000, 1),
        user_id=caller.user_id if caller else None,
    )


def _pattern(request: web.Request) -> str | None:
    """Return the pattern of the route that answers, None when there is none."""
    resource = request.match_info.route.resource
    return None if resource is None else resource.canonical


def _add_headers(
    secure: bool,
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def add(request: web.Request, response: web.StreamResponse) -> None:
        for name, value in _SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        if secure:
            response.headers.setdefault("Strict-Transport-Security", "max-age=31536000")
        if _REQUEST_ID_KEY in request:
            response.headers[REQUEST_ID_HEADER] = request[_REQUEST_ID_KEY]

    return add


# --- is the node well --------------------------------------------------------


def store_checks(store: Store, settings: HttpSettings) -> dict[str, Check]:
    """Return the checks without which no request could be answered truthfully."""

    async def database() -> None:
        async with store.db.connection() as connection:
            await connection.execute("SELECT 1")

    async def keys() -> None:
        place = {"table": "readyz", "row": str(UUID(int=0)), "column": "probe"}
        sealed = store.ring.node.seal(b"probe", **place)
        if store.ring.node.open(sealed, **place) != b"probe":
            raise NodeError("a sealed body did not open", ErrorKind.INTEGRITY)

    async def disk() -> None:
        usage = await asyncio.to_thread(shutil.disk_usage, settings.data_directory)
        if usage.free < settings.min_free_bytes:
            raise NodeError("the disk is almost full", ErrorKind.EXHAUSTED)

    return {"database": database, "keys": keys, "disk": disk}


def _model_check(store: Store) -> Check:
    """Return what tells that the chosen model does not read; pages go on without."""

    async def model() -> None:
        async with store.db.transaction(readonly=True) as tx:
            state = await models.state(tx, models.ModelRole.ACTIVE)
        if state is not None and state.trouble:
            raise NodeError(state.trouble, ErrorKind.INTEGRITY)

    return model


class _Health:
    """Answers how the node is; `remarks` are told, but hold up nobody."""

    def __init__(
        self,
        checks: Mapping[str, Check],
        remarks: Mapping[str, Check],
        registry: CollectorRegistry,
        settings: HttpSettings,
    ) -> None:
        self._checks = checks
        self._remarks = remarks
        self._registry = registry
        self._token = settings.metrics_token

    def group(self) -> RouteGroup:
        return RouteGroup(
            prefix="/",
            routes=[
                web.get("/healthz", self.alive),
                web.get("/readyz", self.ready),
                web.get("/metrics", self.metrics),
            ],
            public=frozenset({"/healthz", "/readyz", "/metrics"}),
            unrecorded=frozenset({"/healthz", "/readyz", "/metrics"}),
        )

    async def alive(self, _: web.Request) -> web.Response:
        """Answer as long as the process can."""
        return web.json_response({"status": "alive"})

    async def ready(self, _: web.Request) -> web.Response:
        """Answer 200 only when a request could be served, with one word per part."""
        parts = {name: await self._word(check) for name, check in self._checks.items()}
        well = all(word == "ok" for word in parts.values())
        parts |= {name: await self._word(c) for name, c in self._remarks.items()}
        return web.json_response(parts, status=200 if well else 503)

    async def _word(self, check: Check) -> str:
        try:
            await check()
        except NodeError as error:
            return error.kind.value
        except Exception:
            log.exception("readiness_check_failed", incident=uuid4().hex)
            return "failed"
        return "ok"

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer to a collector: by token, or from this machine when none is set."""
        if not self._may_collect(request):
            raise NodeError("not for this caller", ErrorKind.FORBIDDEN)
        body = await asyncio.to_thread(generate_latest, self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _may_collect(self, request: web.Request) -> bool:
        if self._token is not None:
            sent = request.headers.get(hdrs.AUTHORIZATION, "")
            return hmac.compare_digest(sent.encode(), f"Bearer {self._token}".encode())
        # A proxy on this machine speaks for somebody else.
        forwarded = (
            "X-Forwarded-For" in request.headers or "Forwarded" in request.headers
        )
        return not forwarded and request.remote in {"127.0.0.1", "::1"}
