"""The review page opened from inside an EHR (SMART App Launch 2.2, RFC 7636)."""

import hashlib
import socket
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import aiohttp
import pytest
from aiohttp import web
from playwright.async_api import Browser, expect

from dicom_scp.web import dicomweb
from fhir.rest.server import route_group as fhir_routes
from node.http import HttpSettings, RouteGroup, make_app
from node.store.reports import report_id_for
from node.store.store import Store
from review_ui import server
from review_ui.launch import CALLBACK, COOKIE, Ehr, route_group
from tests.conftest import FrozenClock
from tests.factories import make_patient
from tests.fhir.rig import (
    ACCESSION,
    STUDY_UID,
    make_settings,
    publish_draft,
    receive_study,
)
from tests.review_ui.rig import LOGIN, PASSWORD, add_person

CLIENT = "sononode"
ACSN = {"coding": [{"code": "ACSN"}]}
STUDY = {"system": "urn:dicom:uid", "value": f"urn:oid:{STUDY_UID}"}


@dataclass
class FakeEhr:
    """A hospital's authorization and FHIR server; checks what a strict one would."""

    root: str = ""
    discovery: dict[str, Any] = field(default_factory=dict)
    context: list[dict[str, Any]] = field(default_factory=list)
    resources: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    status: int = 200
    calls: int = 0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/fhir/.well-known/smart-configuration", self.configuration),
            web.get("/", self.desk),
            web.get("/authorize", self.authorize),
            web.post("/token", self.token),
            web.get("/fhir/{kind}/{id}", self.read),
        ]

    async def configuration(self, _: web.Request) -> web.Response:
        self.calls += 1
        told = {
            "authorization_endpoint": f"{self.root}/authorize",
            "token_endpoint": f"{self.root}/token",
            "code_challenge_methods_supported": ["S256"],
        }
        return web.json_response(told | self.discovery)

    async def desk(self, request: web.Request) -> web.Response:
        """Answer a page of the EHR with a link into the node."""
        link = f'<a href="{request.query["to"]}">ultrasound</a>'
        return web.Response(text=link, content_type="text/html")

    async def authorize(self, request: web.Request) -> web.Response:
        self.asked = dict(request.query)
        answer = urlencode({"code": "code-1", "state": self.asked["state"]})
        place = f"{self.asked['redirect_uri']}?{answer}"
        return web.Response(status=302, headers={"Location": place})

    async def token(self, request: web.Request) -> web.Response:
        form = await request.post()
        digest = hashlib.sha256(str(form["code_verifier"]).encode()).digest()
        challenge = urlsafe_b64encode(digest).rstrip(b"=").decode()
        right = (
            challenge == self.asked["code_challenge"]
            and form["redirect_uri"] == self.asked["redirect_uri"]
            and form["client_id"] == CLIENT
            and form["code"] == "code-1"
        )
        if not right or self.status != 200:
            return web.json_response({"error": "invalid_grant"}, status=400)
        body = {"access_token": "t-1", "patient": "p", "fhirContext": self.context}
        return web.json_response(body)

    async def read(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer t-1"
        found = self.resources.get(request.path.removeprefix("/fhir/"))
        return web.json_response(found, status=200 if found else 404)


@dataclass
class Launching:
    """A node, an EHR and a browser between them."""

    root: str
    ehr: FakeEhr
    browser: aiohttp.ClientSession

    async def begin(self, **changes: str) -> tuple[int, str]:
        told = {"iss": f"{self.ehr.root}/fhir", "launch": "l-1"} | changes
        async with self.browser.get(
            f"{self.root}/launch", params=told, allow_redirects=False
        ) as answer:
            place = answer.headers.get("Location", "")
        query = parse_qs(urlsplit(place).query)
        self.ehr.asked = {name: values[0] for name, values in query.items()}
        return answer.status, place

    async def come_back(self, **changes: str) -> tuple[int, str]:
        told = {"code": "code-1", "state": self.ehr.asked.get("state", "")} | changes
        async with self.browser.get(
            self.root + CALLBACK, params=told, allow_redirects=False
        ) as answer:
            return answer.status, answer.headers.get("Location", "")

    async def opened(self) -> str:
        assert (await self.begin())[0] == 303
        status, place = await self.come_back()
        assert status == 303
        return place


async def _serve(app: web.Application, listening: socket.socket) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listening.listen(16)
    await web.SockSite(runner, listening).start()
    return runner


@asynccontextmanager
async def running_launch(
    store: Store, more: Callable[[str], list[RouteGroup]] = lambda _: []
) -> AsyncIterator[Launching]:
    """Serve a node with one report, and an EHR of another site that may open it."""
    jar = aiohttp.CookieJar(unsafe=True)
    with socket.socket() as at_ehr, socket.socket() as at_node:
        for one in (at_ehr, at_node):
            one.bind(("127.0.0.1", 0))
        ehr = FakeEhr(f"http://localhost:{at_ehr.getsockname()[1]}")
        root = f"http://127.0.0.1:{at_node.getsockname()[1]}"
        ehr_app = web.Application()
        ehr_app.router.add_routes(ehr.routes())
        async with (
            aiohttp.ClientSession() as own,
            aiohttp.ClientSession(cookie_jar=jar) as browser,
        ):
            known = Ehr(f"{ehr.root}/fhir", CLIENT)
            group = route_group(root, [known], own, secure=False)
            node_app = make_app(store, HttpSettings(), [group, *more(root)])
            runners = [await _serve(ehr_app, at_ehr), await _serve(node_app, at_node)]
            await receive_study(store, make_patient())
            await publish_draft(store, make_settings(f"{root}/fhir"))
            yield Launching(root, ehr, browser)
            for runner in runners:
                await runner.cleanup()


@pytest.fixture
async def launching(store: Store) -> AsyncIterator[Launching]:
    """A node with one report, and an EHR that may open it."""
    async with running_launch(store) as running:
        yield running


REPORT = f"/#/report/{report_id_for(STUDY_UID)}"


async def test_the_report_of_the_study_that_the_ehr_has_open_is_opened(
    launching: Launching,
) -> None:
    ehr = launching.ehr
    ehr.resources["ImagingStudy/i"] = {"identifier": [STUDY]}
    ehr.resources["ServiceRequest/s"] = {
        "identifier": [{"type": ACSN, "value": ACCESSION}]
    }
    for context in (
        [{"reference": "ImagingStudy/i"}],
        [{"reference": f"{ehr.root}/fhir/ImagingStudy/i"}],
        [{"reference": "ServiceRequest/s"}],
        [{"reference": "Encounter/e"}, {"reference": "ServiceRequest/s"}],
        [{"identifier": STUDY}],
        [{"identifier": {"type": ACSN, "value": ACCESSION}}],
    ):
        ehr.context = context
        assert await launching.opened() == REPORT, context
    asked = ehr.asked
    assert asked["aud"] == f"{ehr.root}/fhir"
    assert asked["launch"] == "l-1"
    assert asked["code_challenge_method"] == "S256"
    assert asked["redirect_uri"] == launching.root + CALLBACK


async def test_without_one_clear_study_the_worklist_is_opened(
    launching: Launching, store: Store
) -> None:
    await receive_study(
        store,
        make_patient(patient_id="MRN-2"),
        study_uid="2.25.3002",
        accession=ACCESSION,
    )
    for context in (
        [],
        [{"identifier": {"type": ACSN, "value": ACCESSION}}],
        [{"identifier": {"type": ACSN, "value": "unknown"}}],
        [{"identifier": {"system": "urn:dicom:uid", "value": "urn:oid:2.25.9"}}],
        [{"identifier": {"type": "x", "value": 3}}, "x", {"reference": "../Patient/p"}],
    ):
        launching.ehr.context = context
        assert await launching.opened() == "/#/", context


async def test_a_launch_is_bound_to_its_browser_and_works_once(
    launching: Launching, clock: FrozenClock
) -> None:
    await launching.begin()
    state = launching.ehr.asked["state"]
    async with aiohttp.ClientSession() as stranger:
        told = {"code": "code-1", "state": state}
        async with stranger.get(launching.root + CALLBACK, params=told) as answer:
            assert answer.status == 403
    assert (await launching.come_back(state="x"))[0] == 403
    assert (await launching.come_back())[0] == 303
    assert COOKIE not in {c.key for c in launching.browser.cookie_jar}
    assert (await launching.come_back())[0] == 403
    await launching.begin()
    clock.advance(seconds=601)
    assert (await launching.come_back())[0] == 400


async def test_an_ehr_that_is_not_entered_is_never_called(launching: Launching) -> None:
    ehr = launching.ehr
    for changes in (
        {"iss": "https://evil.test/fhir"},
        {"iss": f"{ehr.root}/fhir2"},
        {"iss": f"{ehr.root}@evil.test/fhir"},
        {"iss": ""},
        {"launch": ""},
    ):
        assert (await launching.begin(**changes))[0] == 400
    assert ehr.calls == 0


async def test_an_ehr_that_cannot_be_trusted_leads_nowhere(
    launching: Launching,
) -> None:
    ehr = launching.ehr
    for fault in (
        {"authorization_endpoint": "http://evil.test/authorize"},
        {"token_endpoint": "https://evil.test/token"},
        {"token_endpoint": None},
        {"code_challenge_methods_supported": ["plain"]},
    ):
        ehr.discovery = fault
        assert (await launching.begin())[0] == 503, fault
    ehr.discovery = {}
    for context in ([{"reference": "ImagingStudy/gone"}],):
        ehr.context = context
        await launching.begin()
        assert (await launching.come_back())[0] == 503
    await launching.begin()
    ehr.status = 400
    assert (await launching.come_back())[0] == 503
    await launching.begin()
    refused = {"error": "access_denied", "code": ""}
    assert (await launching.come_back(**refused))[0] == 400


async def test_a_doctor_who_is_signed_in_goes_from_the_ehr_to_the_report(
    store: Store, built_page: Path, browser: Browser
) -> None:
    def page_of(root: str) -> list[RouteGroup]:
        settings = make_settings(f"{root}/fhir")
        review = server.ReviewSettings(assets=built_page, texts=settings.texts)
        fhir = fhir_routes(store, settings, "0.1.0")
        images = RouteGroup(dicomweb.PREFIX, dicomweb.routes(store))
        return [fhir, images, *server.routes(store, review)]

    async with running_launch(store, page_of) as running:
        await add_person(store)
        running.ehr.context = [{"identifier": STUDY}]
        page = await (await browser.new_context(locale="zh-CN")).new_page()
        await page.goto(running.root)
        await page.fill("input[name=login]", LOGIN)
        await page.fill("input[name=password]", PASSWORD)
        await page.click("button.primary")
        await page.wait_for_selector(".worklist")
        link = urlencode({"iss": f"{running.ehr.root}/fhir", "launch": "l-1"})
        at_ehr = urlencode({"to": f"{running.root}/launch?{link}"})
        await page.goto(f"{running.ehr.root}/?{at_ehr}")
        await page.get_by_role("link", name="ultrasound").click()
        # Her session is there, though another site has sent her.
        await expect(page.locator("header.top .who")).to_be_visible()
        await expect(page).to_have_url(running.root + REPORT)
        await expect(page.locator("input[name=login]")).to_have_count(0)
