"""The Mini Program's pages in Chromium, over a real relay: seen, tapped, read aloud.

The same WXML, WXSS and TypeScript that WeChat gets, run by glass-easel; `wx` is as
strict as WeChat's about taps, domains and the privacy gate. Pictures are kept in
ci-output/.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from aiohttp import web
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.fake_phone import add_phone
from tests.fake_wechat import FakeWeChat
from tests.wechat.rig import TEMPLATE, Masked, Rig, handle

MINIPROGRAM = Path(__file__).parents[2] / "wechat" / "miniprogram"
BUILD = MINIPROGRAM / "dist"
AXE = MINIPROGRAM / "node_modules" / "axe-core" / "axe.min.js"
PICTURES = Path(__file__).parents[2] / "ci-output" / "phone"
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-gpu",
    "--disable-3d-apis",
]
OPENID = "openid-of-the-patient"
expect.set_options(timeout=60_000)  # the machine may be busy

pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium"),
    pytest.mark.skipif(
        not (BUILD / "index.html").exists(),
        reason="needs the built Mini Program (npm run build:web)",
    ),
]


@dataclass
class Handset:
    """A phone's screen and everything that went wrong on it."""

    page: Page
    address: str
    faults: list[str]

    async def open(self, path: str, **asked: str) -> None:
        query = urlencode({"openid": OPENID, "privacy": "agreed"} | asked)
        await self.page.goto("about:blank")
        await self.page.goto(f"{self.address}/phone/?{query}#/{path}")

    async def said(self, name: str) -> list[Any]:
        """Return what the Mini Program asked of `wx.<name>`."""
        calls: list[list[Any]] = await self.page.evaluate("window.__calls")
        return [detail for called, detail in calls if called == name]

    async def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)

    async def check_accessibility(self) -> None:
        await self.page.add_script_tag(path=AXE)
        found = await self.page.evaluate("axe.run()")
        violations = [
            (entry["id"], [node["html"] for node in entry["nodes"]])
            for entry in found["violations"]
        ]
        assert violations == []

    async def check_width(self) -> None:
        """No page may scroll sideways."""
        overflow = await self.page.evaluate(
            "document.documentElement.scrollWidth - window.innerWidth"
        )
        assert overflow <= 0


@asynccontextmanager
async def handset(
    rig: Rig, browser: Browser, *, width: int = 375
) -> AsyncIterator[Handset]:
    """Yield a phone whose Mini Program talks to the rig's relay and nobody else."""
    app = web.Application()
    server = FakeWeChat(clock=rig.clock)
    app = rig.wechat.build_app()
    add_phone(app, rig.wechat, build=BUILD, relay_url=rig.relay.base_url)
    address = await server.start(app=app)
    context = await browser.new_context(
        viewport={"width": width, "height": 720},
        device_scale_factor=2,
        is_mobile=True,
        has_touch=True,
        locale="zh-CN",
    )
    page = await context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda message: (
            faults.append(message.text)
            if message.type in {"error", "warning"}
            else None
        ),
    )
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((address, "about:", "data:"))
            else faults.append(f"left the phone: {request.url}")
        ),
    )
    try:
        yield Handset(page, address, faults)
    finally:
        await context.close()
        await server.stop()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=FLAGS
        )
        yield started
        await started.close()


async def two_visits(rig: Rig, patient: str, **changed: Any) -> Masked:
    """Deliver an earlier and a newer report; return the newer one."""
    earlier = Masked(
        handle(), patient, examined_on="2025-03-06", trend=(("L", 2, None),)
    )
    newer = replace(
        Masked(
            handle(),
            patient,
            category="3",
            summary="左乳这枚结节边界清楚，和去年相比没有明显变化，请不用担心，半年后来复查一次。",
            trend=(("L", 2, 8.5), ("R", 10, 5.0)),
        ),
        **changed,
    )
    await rig.deliver(earlier)
    await rig.deliver(newer)
    return newer


@pytest.mark.parametrize("language", ["zh", "en"])
async def test_a_released_report_is_read_on_the_phone(
    rig: Rig, browser: Browser, language: str
) -> None:
    patient = handle()
    await rig.bound_phone(OPENID, patient)
    report = await two_visits(rig, patient)
    async with handset(rig, browser) as phone:
        await phone.open(f"pages/report/index?handle={report.handle}", lang=language)
        result = {"zh": "良性可能性大", "en": "Probably benign"}[language]
        await expect(phone.page.get_by_text(result)).to_be_visible()
        await expect(phone.page.get_by_text("—", exact=True)).to_be_visible()
        await expect(phone.page.get_by_text("8.5 mm")).to_be_visible()
        await phone.picture(f"report-released-{language}")
        await phone.check_accessibility()
        await phone.check_width()
        assert phone.faults == []


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("state", ["ready", "withdrawn"])
async def test_a_report_that_is_not_released_shows_a_calm_page(
    rig: Rig, browser: Browser, state: str, language: str
) -> None:
    patient = handle()
    await rig.bound_phone(OPENID, patient)
    status = "entered-in-error" if state == "withdrawn" else "final"
    report = await two_visits(
        rig, patient, state=state, status=status, category="4A", version=2
    )
    async with handset(rig, browser) as phone:
        await phone.open(f"pages/report/index?handle={report.handle}", lang=language)
        button = phone.page.get_by_role("button", name="010-55550100")
        await expect(button).to_be_visible()
        seen = await phone.page.inner_text("body")
        assert "BI-RADS" not in seen
        assert "mm" not in seen
        await phone.picture(f"report-{state}-{language}")
        await phone.check_accessibility()
        await button.tap()
        assert await phone.said("makePhoneCall") == ["010-55550100"]
        assert phone.faults == []


async def test_language_and_large_text_are_chosen_and_kept(
    rig: Rig, browser: Browser
) -> None:
    patient = handle()
    await rig.bound_phone(OPENID, patient)
    report = await two_visits(rig, patient)
    async with handset(rig, browser, width=320) as phone:
        path = f"pages/report/index?handle={report.handle}"
        await phone.open(path)
        before = await _font_size(phone.page)
        await phone.page.get_by_role("button", name="大字").tap()
        await phone.page.get_by_role("button", name="English").tap()
        await expect(phone.page.get_by_text("Probably benign")).to_be_visible()
        assert await _font_size(phone.page) == pytest.approx(before * 1.3, rel=0.01)
        await phone.open(path)
        await expect(phone.page.get_by_text("Probably benign")).to_be_visible()
        await phone.picture("report-large-320-en")
        await phone.check_accessibility()
        await phone.check_width()
        assert phone.faults == []


async def _font_size(page: Page) -> float:
    size: str = await page.get_by_role("main").evaluate(
        "e => getComputedStyle(e).fontSize"
    )
    return float(size.removesuffix("px"))


async def test_a_tap_buys_one_message_and_the_relay_learns_of_it(
    rig: Rig, browser: Browser
) -> None:
    patient = handle()
    await rig.bound_phone(OPENID, patient)
    report = await two_visits(rig, patient)
    async with handset(rig, browser) as phone:
        await phone.open(f"pages/report/index?handle={report.handle}")
        async with phone.page.expect_response("**/relay/api/quota") as counted:
            await phone.page.get_by_role("button", name="报告有更新时通知我").tap()
        assert (await counted.value).status == 200
        await expect(phone.page.get_by_text("好的，下一次更新会通知您")).to_be_visible()
        assert await phone.said("requestSubscribeMessage") == [[TEMPLATE]]
        assert rig.wechat.quota(OPENID, TEMPLATE) == 1
        await rig.deliver(replace(report, version=2, status="amended"))
        await rig.wechat.wait_until_sent(1)
        assert rig.wechat.sent[0].page.endswith(report.handle)
        assert phone.faults == []


async def test_the_mock_refuses_what_wechat_refuses(rig: Rig, browser: Browser) -> None:
    await rig.bound_phone(OPENID, handle())
    async with handset(rig, browser) as phone:
        await phone.open("pages/list/index")
        await expect(phone.page.get_by_role("heading")).to_be_visible()
        asked = """(name, options) => new Promise(done =>
            wx[name]({...options, success: done, fail: done}))"""
        for name, options, expected in (
            ("requestSubscribeMessage", {"tmplIds": ["a"]}, "TAP gesture"),
            ("request", {"url": "https://elsewhere.example/"}, "domain list"),
            ("request", {"url": "http://relay.example.org/"}, "domain list"),
        ):
            answer = await phone.page.evaluate(
                f"([name, options]) => ({asked})(name, options)", [name, options]
            )
            assert expected in answer["errMsg"]
        await phone.open("pages/list/index", privacy="")
        await expect(phone.page.get_by_role("heading")).to_be_visible()
        answer = await phone.page.evaluate(f"() => ({asked})('scanCode', {{}})")
        assert answer["errno"] == 104


async def test_a_patient_agrees_binds_and_reads_her_list(
    rig: Rig, browser: Browser
) -> None:
    patient = handle()
    token = await rig.offer(patient)
    await two_visits(rig, patient, state="ready", category="4A")
    async with handset(rig, browser) as phone:
        page = phone.page
        await phone.open("pages/list/index", privacy="", scan=f"?scene={token}")
        await expect(page.get_by_role("heading", name="先请您了解")).to_be_visible()
        await phone.picture("bind-privacy-zh")
        await phone.check_accessibility()
        await page.get_by_role("button", name="同意并继续").tap()
        await page.get_by_role("button", name="扫描二维码").tap()
        last_four = page.get_by_role("textbox", name="证件号码最后四位")
        await last_four.fill("0000")
        await page.get_by_role("button", name="绑定", exact=True).tap()
        await expect(page.get_by_role("alert")).to_be_visible()
        await phone.picture("bind-failed-zh")
        await phone.check_accessibility()
        await last_four.fill("123x")
        await page.get_by_role("button", name="绑定", exact=True).tap()
        await expect(page.get_by_role("heading", name="张*，您好")).to_be_visible()
        await phone.picture("list-zh")
        await phone.check_accessibility()
        await phone.check_width()
        await page.get_by_role("button", name="医生将与您联系").tap()
        await expect(page.get_by_role("heading", name="您的报告已完成")).to_be_visible()
        await page.go_back()
        assert [m for m in phone.faults if "403" not in m] == []


async def test_unbinding_removes_the_reports_from_the_phone(
    rig: Rig, browser: Browser
) -> None:
    patient = handle()
    await rig.bound_phone(OPENID, patient)
    await two_visits(rig, patient)
    async with handset(rig, browser) as phone:
        await phone.open("pages/list/index")
        await phone.page.get_by_role("button", name="解除绑定").tap()
        await expect(
            phone.page.get_by_role("heading", name="绑定就诊凭证")
        ).to_be_visible()
        await phone.open("pages/list/index")
        await expect(
            phone.page.get_by_role("heading", name="绑定就诊凭证")
        ).to_be_visible()


async def test_a_foreign_report_and_a_lost_network_are_told_in_plain_words(
    rig: Rig, browser: Browser
) -> None:
    patient = handle()
    await rig.bound_phone(OPENID, handle())
    report = await two_visits(rig, patient)
    async with handset(rig, browser) as phone:
        await phone.open(f"pages/report/index?handle={report.handle}")
        await expect(
            phone.page.get_by_role("heading", name="没有找到这份报告")
        ).to_be_visible()
        await phone.check_accessibility()
        await phone.picture("report-not-found-zh")
        await rig.relay.stop()
        await phone.open("pages/list/index")
        await expect(phone.page.get_by_role("alert")).to_contain_text("网络没有连上")
        await phone.check_accessibility()


async def test_a_session_that_ended_is_renewed_unseen(
    rig: Rig, browser: Browser
) -> None:
    patient = handle()
    await rig.bound_phone(OPENID, patient)
    report = await two_visits(rig, patient)
    async with handset(rig, browser) as phone:
        await phone.open("pages/list/index")
        await expect(
            phone.page.get_by_role("heading", name="张*，您好")
        ).to_be_visible()
        rig.clock.advance(3600)
        await phone.page.evaluate(
            "url => wx.navigateTo({url})", f"/pages/report/index?handle={report.handle}"
        )
        await expect(phone.page.get_by_text("良性可能性大")).to_be_visible()
