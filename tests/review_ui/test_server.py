"""Signing in (RFC 6749 4.3), the page's files, and the desk QR code."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
from aiohttp.test_utils import TestClient, TestServer

from node.domain.access import Role
from node.http import CSRF_HEADER, SESSION_COOKIE, HttpSettings, make_app
from node.store import audit, identities, people
from node.store.store import Store
from review_ui.server import ReviewSettings, routes
from tests.factories import make_patient
from tests.review_ui.rig import LOGIN, PASSWORD, add_person

SIGN_IN = {"login": LOGIN, "password": PASSWORD}
FORM = {"grant_type": "password", "username": LOGIN, "password": PASSWORD}


def _page(folder: Path) -> Path:
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>页</title>")
    (folder / "assets" / "index-abc.js").write_text("1")
    (folder / "secret.txt").write_text("not served")
    return folder


@pytest.fixture
async def client(store: Store, tmp_path: Path) -> AsyncIterator[TestClient]:
    settings = ReviewSettings(assets=_page(tmp_path / "page"))
    app = make_app(
        store, HttpSettings(data_directory=tmp_path), routes(store, settings)
    )
    async with TestClient(TestServer(app)) as running:
        await add_person(store)
        yield running


async def _actions(store: Store) -> list[tuple[str, str]]:
    async with store.db.transaction() as tx:
        rows = await tx.fetch(
            "select action, outcome from audit_entries order by sequence"
        )
        await audit.verify(tx)
    return [(row["action"], row["outcome"]) for row in rows]


async def _sign_in(client: TestClient) -> dict[str, str]:
    response = await client.post("/auth/login", json=SIGN_IN)
    assert response.status == 200
    return {CSRF_HEADER: (await response.json())["csrf"]}


async def test_a_session_begins_with_the_password_and_ends_with_signing_out(
    client, store
):
    response = await client.post("/auth/login", json=SIGN_IN)
    cookie = response.cookies[SESSION_COOKIE]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Strict"
    me = await (await client.get("/auth/me")).json()
    assert me["display"] == f"{LOGIN} 医生"
    assert "sign_report" in me["may"]
    assert me["csrf"] == (await response.json())["csrf"]
    headers = {CSRF_HEADER: me["csrf"]}
    assert (await client.post("/auth/logout")).status == 403
    assert (await client.post("/auth/logout", headers=headers)).status == 204
    client.session.cookie_jar.update_cookies({SESSION_COOKIE: cookie.value})
    assert (await client.get("/auth/me")).status == 401
    assert await _actions(store) == [
        ("login cookie", "0"),
        ("auth create", "4"),  # signing out without the CSRF token
        ("logout", "0"),
    ]


async def test_whatever_is_wrong_the_answer_is_the_same_and_is_audited(client, store):
    answers = set()
    for change in ({"login": "nobody"}, {"password": "wrong"}):
        response = await client.post("/auth/login", json={**SIGN_IN, **change})
        body = await response.json()
        answers.add((response.status, body["error"]))
    assert answers == {(401, "wrong login or password")}
    assert await _actions(store) == [("login cookie", "4")] * 2


async def test_after_five_failures_even_the_right_password_waits_a_while(client, clock):
    for _ in range(5):
        await client.post("/auth/login", json={**SIGN_IN, "password": "wrong"})
    response = await client.post("/auth/login", json=SIGN_IN)
    assert response.status == 429
    assert int(response.headers["Retry-After"]) == 15 * 60
    clock.advance(seconds=15 * 60 + 1)
    assert (await client.post("/auth/login", json=SIGN_IN)).status == 200


async def test_parallel_guesses_do_not_get_more_attempts(client):
    wrong = {**SIGN_IN, "password": "wrong"}
    responses = await asyncio.gather(
        *(client.post("/auth/login", json=wrong) for _ in range(12))
    )
    assert sorted(r.status for r in responses) == [401] * 5 + [429] * 7


async def test_signing_in_forgets_earlier_failures_of_the_same_account(client):
    for _ in range(3):
        for _ in range(4):
            await client.post("/auth/login", json={**SIGN_IN, "password": "wrong"})
        assert (await client.post("/auth/login", json=SIGN_IN)).status == 200


async def test_a_form_of_another_site_cannot_sign_anybody_in(client):
    response = await client.post("/auth/login", data=SIGN_IN)
    assert response.status == 415


@pytest.mark.parametrize("body", [{}, {"login": LOGIN}, {"login": 1, "password": 2}])
async def test_half_a_login_is_named_as_such(client, body):
    assert (await client.post("/auth/login", json=body)).status == 400


async def test_a_script_gets_a_bearer_token_for_a_quarter_of_an_hour(client, clock):
    body = await (await client.post("/auth/token", data=FORM)).json()
    assert body["token_type"] == "Bearer"
    assert body["expires_in"] == 900
    headers = {"Authorization": f"Bearer {body['access_token']}"}
    assert (await client.get("/auth/me", headers=headers)).status == 200
    clock.advance(seconds=901)
    assert (await client.get("/auth/me", headers=headers)).status == 401


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"password": "wrong"}, "invalid_grant"),
        ({"grant_type": "implicit"}, "unsupported_grant_type"),
    ],
)
async def test_a_refused_token_is_worded_as_oauth_does(client, change, error):
    response = await client.post("/auth/token", data={**FORM, **change})
    assert response.status == 400
    assert await response.json() == {"error": error}


async def test_the_page_and_its_hashed_files_are_public_and_nothing_else_is(client):
    index = await client.get("/")
    assert index.status == 200
    assert index.headers["Cache-Control"] == "no-cache"
    script = await client.get("/assets/index-abc.js")
    assert "immutable" in script.headers["Cache-Control"]
    for path in ("/assets/..%2Fsecret.txt", "/assets/secret.txt", "/secret.txt"):
        assert (await client.get(path)).status in {401, 404}


async def test_a_page_that_was_not_built_says_what_to_do(store, tmp_path):
    settings = ReviewSettings(assets=tmp_path / "nothing")
    app = make_app(store, HttpSettings(), routes(store, settings))
    async with TestClient(TestServer(app)) as client:
        response = await client.get("/")
        assert response.status == 503
        assert "make setup" in await response.text()


async def _patient(store: Store, **changes: object) -> UUID:
    async with store.db.transaction() as tx:
        return await identities.upsert_patient(
            tx, store, make_patient(**changes), at=store.clock()
        )


async def test_the_desk_code_is_on_the_paper_and_its_hash_in_the_job(client, store):
    patient_id = await _patient(store)
    headers = await _sign_in(client)
    response = await client.post(
        "/auth/bindings", json={"patient": f"Patient/{patient_id}"}, headers=headers
    )
    body = await response.json()
    assert response.status == 201
    assert body["display"] == "张*"
    assert body["check"] is True
    assert body["svg"].startswith("<svg")
    job = await store.jobs.claim(["offer_binding"], "test")
    assert job.payload == {"binding_id": body["binding_id"]}
    async with store.db.transaction() as tx:
        binding = await people.read_binding(tx, UUID(body["binding_id"]))
    assert binding.patient_id == patient_id
    assert (await _actions(store))[-1] == ("print binding", "0")


@pytest.mark.parametrize("reference", ["Patient/x", "Group/1", "", None])
async def test_a_desk_code_needs_a_patient(client, reference):
    headers = await _sign_in(client)
    response = await client.post(
        "/auth/bindings", json={"patient": reference}, headers=headers
    )
    assert response.status == 400


async def test_a_desk_code_of_somebody_unknown_is_refused(client):
    headers = await _sign_in(client)
    unknown = {"patient": f"Patient/{UUID(int=7)}"}
    response = await client.post("/auth/bindings", json=unknown, headers=headers)
    assert response.status == 404


async def test_an_auditor_prints_no_desk_code(client, store):
    await add_person(store, "auditor", Role.AUDITOR)
    patient_id = await _patient(store)
    response = await client.post(
        "/auth/login", json={"login": "auditor", "password": PASSWORD}
    )
    headers = {CSRF_HEADER: (await response.json())["csrf"]}
    wanted = {"patient": f"Patient/{patient_id}"}
    refused = await client.post("/auth/bindings", json=wanted, headers=headers)
    assert refused.status == 403
