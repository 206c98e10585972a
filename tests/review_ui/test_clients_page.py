"""Programs of other systems in a browser: registered, opened, shut; and the sign-on."""

import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Page, expect

from node.domain.access import Role
from node.http import HttpSettings, make_app
from node.store import clients, refreshes
from node.store.store import Store
from review_ui import server
from tests.fhir.smart_rig import jwks
from tests.review_ui.conftest import Open
from tests.review_ui.rig import Node, add_person
from tests.review_ui.test_page import BENIGN, _accessible, _open_report, _picture

ADMIN = "boss"


async def _administrator(node: Node, open_page: Open, language: str = "zh") -> Page:
    await add_person(node.store, ADMIN, Role.ADMINISTRATOR)
    page = await open_page(ADMIN, language=language)
    await page.click("header a[href='#/clients']")
    await page.wait_for_selector(".clients h1")
    return page


async def _add(node: Node, **changes: object) -> clients.Client:
    told = {
        "name": "HIS 检验系统",
        "roles": [Role.EHR],
        "scopes": "system/DiagnosticReport.rs?status=final system/Patient.cruds",
        "jwks": jwks("RSA", "EC"),
    } | changes
    async with node.store.db.transaction() as tx:
        return await clients.register(tx, now=node.store.clock(), **told)  # type: ignore[arg-type]


@pytest.mark.parametrize("language", ["zh", "en"])
async def test_pictures_of_the_programs(
    node: Node, open_page: Open, language: str
) -> None:
    page = await _administrator(node, open_page, language)
    await page.wait_for_selector(".clients .empty h2")
    await _picture(page, f"c1-programs-empty-{language}")
    await _accessible(page)
    await page.keyboard.press("n")
    await page.wait_for_selector("dialog[open]")
    await page.fill("dialog textarea >> nth=0", "system/Patient.rs system/x openid")
    await page.wait_for_selector(".explained .unknown")
    await _picture(page, f"c2-programs-register-{language}")
    await _accessible(page)
    await page.keyboard.press("Escape")
    await _add(node)
    shut = await _add(node, name="Old")
    viewer = await _add(
        node,
        name="Trend viewer",
        roles=[],
        scopes="launch openid patient/*.rs offline_access",
        jwks=None,
        redirect_uris=["https://trend.test/back"],
        launch_url="https://trend.test/launch",
    )
    doctor = await add_person(node.store, "doctor")
    async with node.store.db.transaction() as tx:
        await clients.disable(tx, str(shut.client_id), now=node.store.clock())
        await refreshes.begin(
            tx,
            viewer.client_id,
            doctor.user_id,
            code="c",
            scopes="patient/*.rs",
            patient_id="p",
            about={},
            offline=True,
            now=node.store.clock(),
        )
    await page.reload()
    await page.wait_for_selector(".programs > li:nth-child(3)")
    await page.wait_for_selector(".grants tbody tr")
    await _picture(page, f"c3-programs-{language}")
    await _accessible(page)
    # Nothing is cut off on a narrow screen.
    await page.set_viewport_size({"width": 700, "height": 900})
    wide = "(m => m.scrollWidth - m.clientWidth)(document.querySelector('.programs'))"
    assert await page.evaluate(wide) <= 0


async def test_an_administrator_registers_a_program_and_shuts_it_by_keyboard(
    node: Node, open_page: Open
) -> None:
    page = await _administrator(node, open_page)
    await page.wait_for_selector(".clients .empty")
    await page.keyboard.press("n")
    await expect(page.locator("dialog input >> nth=0")).to_be_focused()
    await page.keyboard.type("HIS")
    await page.click("dialog .presets button >> nth=0")
    await expect(page.locator("dialog .explained li")).to_have_count(3)
    await page.select_option("dialog select", "ehr")
    await page.fill("dialog textarea.mono", "{")
    await page.click("dialog button.primary")
    await expect(page.locator("dialog .fault")).to_contain_text("JSON")
    secret = json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "1"}]})
    await page.fill("dialog textarea.mono", secret)
    await page.click("dialog button.primary")
    await expect(page.locator("dialog .fault")).to_contain_text("secret key")
    await page.fill("dialog textarea.mono", jwks("RSA", "EC"))
    await page.keyboard.press("Tab")
    await page.click("dialog button.primary")
    await expect(page.locator("dialog[open]")).to_have_count(0)
    await expect(page.locator(".notice")).to_contain_text("HIS")
    async with node.store.db.connection() as tx:
        (made,) = await clients.list_clients(tx)
    row = page.locator(".programs > li")
    await expect(row).to_contain_text(str(made.client_id))
    await expect(row.locator(".print")).to_have_count(2)
    assert made.roles == {Role.EHR}
    await row.get_by_role("button", name="更换公钥").click()
    await page.fill("dialog textarea.mono", jwks("EC"))
    await page.click("dialog button.primary")
    await expect(row.locator(".print")).to_have_count(1)
    await row.get_by_role("button", name="停用").focus()
    await page.keyboard.press("Enter")
    await page.wait_for_selector("dialog[open]")
    await page.keyboard.press("Escape")
    await expect(row.locator(".status.final")).to_be_visible()
    await row.get_by_role("button", name="停用").click()
    await page.click("dialog button.primary")
    await expect(row.locator(".status.entered-in-error")).to_be_visible()
    await expect(row.get_by_role("button")).to_have_count(0)
    async with node.store.db.connection() as tx:
        assert await clients.find(tx, str(made.client_id)) is None


async def test_doctors_have_no_page_of_programs(node: Node, open_page: Open) -> None:
    page = await open_page()
    await expect(page.locator("header a[href='#/clients']")).to_have_count(0)
    await page.goto(f"{node.url}/#/clients")
    await page.wait_for_selector(".worklist")


async def test_a_report_is_opened_in_another_program_with_its_patient(
    node: Node, open_page: Open
) -> None:
    asked: list[str] = []

    async def opened(request: web.Request) -> web.Response:
        asked.append(str(request.url))
        assert "Referer" not in request.headers
        page = "<!doctype html><title>x</title><p id=o></p><script>"
        page += "o.textContent = String(window.opener)</script>"
        return web.Response(text=page, content_type="text/html")

    app = web.Application()
    app.router.add_get("/launch", opened)
    await node.receive(BENIGN)
    async with TestServer(app) as program:
        uri = f"http://127.0.0.1:{program.port}"
        await _add(
            node,
            name="Trend",
            roles=[],
            scopes="launch patient/*.rs",
            jwks=None,
            redirect_uris=[f"{uri}/back"],
            launch_url=f"{uri}/launch?lang=zh",
        )
        page = await open_page()
        await _open_report(page, node)
        button = page.get_by_role("button", name="在 Trend 中打开")
        await _accessible(page)
        await _picture(page, "c4-open-in-zh")
        async with page.context.expect_page() as found:
            await button.focus()
            await page.keyboard.press("Enter")
        tab = await found.value
        await expect(tab.locator("#o")).to_have_text("null")
        await tab.close()
        await _add(
            node,
            name="Other",
            roles=[],
            scopes="launch patient/*.rs",
            jwks=None,
            redirect_uris=[f"{uri}/back"],
            launch_url=f"{uri}/launch",
        )
        await page.reload()
        choice = page.get_by_label("在其他程序中打开…")
        await expect(choice.locator("option")).to_have_count(3)
        async with page.context.expect_page() as found:
            await choice.select_option("Other")
        await (await found.value).wait_for_url(re.compile("/launch"))
    told = [parse_qs(urlsplit(url).query) for url in asked]
    assert [len(query["launch"]) for query in told] == [1, 1]
    assert told[0]["lang"] == ["zh"]
    assert told[0]["iss"] == [f"{node.url}/fhir"]


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("passwords", [True, False])
async def test_the_hospitals_sign_on_stands_first_on_the_page(
    store: Store, built_page: Path, browser: Browser, language: str, passwords: bool
) -> None:
    review = server.ReviewSettings(
        assets=built_page, sign_on=True, local_logins=["admin"] if passwords else []
    )
    app = make_app(store, HttpSettings(), server.routes(store, review))
    async with TestServer(app) as node:
        locale = "zh-CN" if language == "zh" else "en-GB"
        page = await (await browser.new_context(locale=locale)).new_page()
        await page.goto(f"http://127.0.0.1:{node.port}/#/report/abc")
        link = page.locator("a.sign-on")
        await expect(link).to_be_focused()
        told = "医院统一身份" if language == "zh" else "hospital's account"
        await expect(link).to_contain_text(told)
        href = await link.get_attribute("href")
        assert href == "/auth/oidc/start?back=%23%2Freport%2Fabc"
        count = 1 if passwords else 0
        await expect(page.locator("input[name=password]")).to_have_count(count)
        await _picture(page, f"c5-sign-on-{language}-{'both' if passwords else 'only'}")
        await _accessible(page)
