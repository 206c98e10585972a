"""The HTTP edge: default-deny, one place for failures, nothing of a patient in logs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from node.domain.access import Role
from node.domain.errors import ErrorKind, NodeError
from node.http import (
    BACKGROUND_HEADER,
    CSRF_HEADER,
    HTTP_STATUS,
    SESSION_COOKIE,
    Failure,
    HttpSettings,
    RouteGroup,
    csrf_token,
    identity,
    make_app,
    read_json_object,
)
from node.store import models, people
from node.store.models import ModelRole, ModelState
from node.store.people import SessionKind
from node.store.store import Store
from tests.factories import NOW

PASSWORD = "correct horse battery"
Caller = Callable[..., Awaitable[str]]


async def _who(request: web.Request) -> web.Response:
    return web.json_response({"user": identity(request).display})


async def _echo(request: web.Request) -> web.Response:
    return web.json_response(await read_json_object(request))


async def _fail(request: web.Request) -> web.Response:
    kind = request.match_info["kind"]
    if kind == "bug":
        raise ZeroDivisionError("张三 330102199001011234")
    raise NodeError(f"it is {kind}", ErrorKind(kind), expression="Some.element")


def _render_outcome(failure: Failure) -> web.Response:
    body = {"resourceType": "OperationOutcome", "text": failure.message}
    return web.json_response(body, status=failure.status)


async def _open(_: web.Request) -> web.Response:
    return web.json_response({})


GROUPS = [
    RouteGroup(
        "/thing",
        [
            web.get("/thing/who", _who),
            web.post("/thing/echo", _echo),
            web.get("/thing/open", _open),
            web.get("/thing/fail/{kind}", _fail),
        ],
        public=frozenset({"/thing/open"}),
    ),
    RouteGroup(
        "/fhir",
        [web.get("/fhir/fail/{kind}", _fail)],
        render_error=_render_outcome,
    ),
]


@pytest.fixture
async def client(store: Store, tmp_path: Path) -> AsyncIterator[TestClient]:
    settings = HttpSettings(
        max_body_bytes=4096, data_directory=tmp_path, min_free_bytes=0
    )
    app = make_app(store, settings, GROUPS)
    async with TestClient(TestServer(app)) as running:
        yield running


@pytest.fixture
def session(store: Store) -> Caller:
    async def open_(kind: SessionKind = SessionKind.BEARER) -> str:
        async with store.db.transaction() as tx:
            user = await people.create_user(
                tx,
                login="wang",
                password=PASSWORD,
                display="Wang",
                roles=[Role.RADIOLOGIST],
                now=store.clock(),
            )
            return await people.open_session(tx, user, kind, now=store.clock())

    return open_


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _cookie(token: str) -> dict[str, str]:
    return {"Cookie": f"{SESSION_COOKIE}={token}"}


async def test_every_route_that_is_not_public_refuses_a_stranger(client):
    for resource in client.app.router.resources():
        path = resource.canonical.replace("{kind}", "rule")
        public = path in {"/thing/open", "/healthz", "/readyz", "/metrics"}
        for route in resource:
            response = await client.request(route.method, path)
            assert (response.status != 401) is public, path


async def test_an_unknown_path_tells_a_stranger_nothing(client):
    assert (await client.get("/fhir/no-such-thing")).status == 401


async def test_an_unknown_path_is_told_to_a_known_caller_in_the_words_of_its_prefix(
    client, session
):
    headers = _bearer(await session())
    response = await client.get("/fhir/no-such-thing", headers=headers)
    assert response.status == 404
    assert (await response.json())["resourceType"] == "OperationOutcome"
    plain = await client.get("/thing/no-such-thing", headers=headers)
    assert (await plain.json())["error"] == "not found"


@pytest.mark.parametrize("kind", list(ErrorKind))
async def test_every_kind_of_failure_has_its_status_and_request_id(
    client, session, kind
):
    headers = {**_bearer(await session()), "X-Request-Id": "abc-1"}
    response = await client.get(f"/thing/fail/{kind.value}", headers=headers)
    assert response.status == HTTP_STATUS[kind]
    assert (await response.json())["request_id"] == "abc-1"
    assert response.headers["X-Request-Id"] == "abc-1"


async def test_an_unforeseen_failure_shows_and_logs_no_content(client, session):
    headers = _bearer(await session())
    with structlog.testing.capture_logs() as logs:
        response = await client.get("/fhir/fail/bug?name=张三", headers=headers)
    assert response.status == 500
    text = await response.text()
    assert "张三" not in text
    assert "330102199001011234" not in text
    assert "张三" not in str([{**row, "exc_info": None} for row in logs])


async def test_the_access_log_names_the_route_and_not_the_path_or_query(
    client, session
):
    headers = _bearer(await session())
    with structlog.testing.capture_logs() as logs:
        await client.get("/thing/fail/rule?name=Zhang", headers=headers)
    entry = next(row for row in logs if row["event"] == "request")
    assert entry["route"] == "/thing/fail/{kind}"
    assert entry["status"] == 422
    assert entry["user_id"]
    assert "Zhang" not in str(logs)


async def test_a_cookie_needs_the_csrf_header_where_something_changes(client, session):
    token = await session(SessionKind.COOKIE)
    headers = _cookie(token)
    assert (await client.get("/thing/who", headers=headers)).status == 200
    assert (await client.post("/thing/echo", json={}, headers=headers)).status == 403
    wrong = {**headers, CSRF_HEADER: csrf_token("other")}
    assert (await client.post("/thing/echo", json={}, headers=wrong)).status == 403
    right = {**headers, CSRF_HEADER: csrf_token(token)}
    assert (await client.post("/thing/echo", json={}, headers=right)).status == 200


async def test_a_bearer_token_needs_no_csrf_header_and_is_no_cookie(client, session):
    token = await session()
    answer = await client.post("/thing/echo", json={}, headers=_bearer(token))
    assert answer.status == 200
    assert (await client.get("/thing/who", headers=_cookie(token))).status == 401


async def test_an_idle_session_ends_and_polling_does_not_keep_it(
    client, session, clock
):
    headers = _cookie(await session(SessionKind.COOKIE))
    polling = {**headers, BACKGROUND_HEADER: "1"}
    clock.advance(seconds=14 * 60)
    assert (await client.get("/thing/who", headers=polling)).status == 200
    clock.advance(seconds=2 * 60)
    assert (await client.get("/thing/who", headers=polling)).status == 401


async def test_a_session_in_use_stays_but_not_beyond_twelve_hours(
    client, session, clock
):
    headers = _cookie(await session(SessionKind.COOKIE))
    for _ in range(71):
        clock.advance(seconds=600)
        assert (await client.get("/thing/who", headers=headers)).status == 200
    clock.advance(seconds=600)
    assert (await client.get("/thing/who", headers=headers)).status == 401


async def test_a_body_over_the_limit_is_refused(client, session):
    headers = _bearer(await session())
    response = await client.post(
        "/thing/echo", data=b'"' + b"x" * 5000, headers=headers
    )
    assert response.status == 413


async def test_a_body_over_the_limit_is_refused_when_its_length_is_not_told(
    client, session
):
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 1000

    headers = _bearer(await session())
    response = await client.post("/thing/echo", data=chunks(), headers=headers)
    assert response.status == 413


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"[" * 4000])
async def test_a_body_that_is_no_json_object_is_named_so(client, session, body):
    headers = _bearer(await session())
    response = await client.post("/thing/echo", data=body, headers=headers)
    assert response.status == 400


async def test_every_answer_carries_the_security_headers(client):
    for path in ("/thing/open", "/thing/who", "/no-such-path"):
        headers = (await client.get(path)).headers
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


async def test_the_node_says_that_it_is_alive_and_ready(client):
    assert (await client.get("/healthz")).status == 200
    response = await client.get("/readyz")
    assert response.status == 200
    parts = ("database", "keys", "disk", "model")
    assert await response.json() == dict.fromkeys(parts, "ok")


async def test_a_part_that_is_away_makes_the_node_unready(store, tmp_path):
    settings = HttpSettings(data_directory=tmp_path, min_free_bytes=2**60)
    async with TestClient(TestServer(make_app(store, settings, []))) as client:
        response = await client.get("/readyz")
        assert response.status == 503
        assert (await response.json())["disk"] == "exhausted"


async def test_a_model_that_cannot_be_used_is_told_and_holds_up_nobody(client, store):
    state = ModelState(ModelRole.ACTIVE, 1, None, "its weights are torn", NOW)
    async with store.db.transaction() as tx:
        await models.write_state(tx, state)
    response = await client.get("/readyz")
    assert response.status == 200
    assert (await response.json())["model"] == "integrity"


async def test_metrics_count_requests_by_route_and_stay_on_this_machine(client):
    await client.get("/thing/open")
    text = await (await client.get("/metrics")).text()
    assert 'route="/thing/open",status="200"' in text
    forwarded = {"X-Forwarded-For": "10.0.0.9"}
    assert (await client.get("/metrics", headers=forwarded)).status == 403


async def test_metrics_open_to_a_collector_with_the_token_alone(store, tmp_path):
    settings = HttpSettings(data_directory=tmp_path, metrics_token="collector")
    async with TestClient(TestServer(make_app(store, settings, []))) as client:
        assert (await client.get("/metrics")).status == 403
        headers = _bearer("collector")
        assert (await client.get("/metrics", headers=headers)).status == 200
