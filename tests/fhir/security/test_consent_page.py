"""The page on which a person agrees, in a browser that holds it to its policy (CSP)."""

import shutil
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import async_playwright, expect

from node.domain.access import Role
from node.store.store import Store
from tests.fhir.rig import drafted
from tests.fhir.smart_rig import pkce, running_smart
from tests.review_ui.test_page import _accessible, _picture

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_a_browser_shows_who_asks_and_brings_the_code_back(store: Store) -> None:
    returned: list[str] = []

    async def back(request: web.Request) -> web.Response:
        returned.append(str(request.url))
        return web.Response(text="<h1>back</h1>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/back", back)
    async with (
        running_smart(store, roles=(Role.RADIOLOGIST,)) as rig,
        TestServer(app) as program,
        async_playwright() as playwright,
    ):
        await drafted(rig)
        # Another site than the node's: a browser goes by the host name.
        uri = f"http://localhost:{program.port}/back"
        client = await rig.register(
            "user/*.rs patient/*.rs",
            keys="",
            roles=[],
            redirect_uris=[uri],
            name="趋势 <i>",
        )
        asked = {
            "response_type": "code",
            "client_id": str(client.client_id),
            "redirect_uri": uri,
            "scope": "openid launch/patient patient/*.rs",
            "state": "s" * 16,
            "aud": f"{rig.root}/fhir",
            "code_challenge": pkce()[1],
            "code_challenge_method": "S256",
        }
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = await browser.new_page(locale="zh-CN")
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        await page.goto(f"{rig.root}/auth/authorize?{urlencode(asked)}")
        await expect(page.get_by_role("heading")).to_have_text("授权第三方程序")
        await expect(page.locator("strong").first).to_have_text("趋势 <i>")
        await expect(page.locator(".wanted li").first).to_contain_text(
            "仅限一位患者: 读取、检索 全部资料"
        )
        await _accessible(page)
        await page.get_by_label("登录名").fill("radiologist")
        await page.get_by_label("密码").fill("wrong password")
        await page.get_by_role("button", name="登录并同意").click()
        await expect(page.get_by_role("alert")).to_have_text("登录名或密码错误。")
        await page.get_by_label("登录名").fill("radiologist")
        await page.get_by_label("密码").fill("correct horse battery")
        await page.get_by_role("button", name="登录并同意").click()
        await expect(page.get_by_role("heading")).to_have_text("选择患者")
        await _accessible(page)
        await _picture(page, "c6-patients-zh")
        await page.locator(".patients button").first.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading")).to_have_text("back")
        await browser.close()
    told = parse_qs(urlsplit(returned[0]).query)
    assert told["code"]
    assert told["state"] == ["s" * 16]
    policy = [text for text in complaints if "Content Security Policy" in text]
    assert policy == []
