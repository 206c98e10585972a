"""A doctor and a patient at their screens, on a running node, over one report.

What each page does by itself is the subject of tests/review_ui and tests/wechat;
here one reading of the real model goes through both browsers. Pictures of what the
two saw are kept in `ci-output/journeys` for people to look at.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from node.store.reports import report_id_for
from tests.journeys.rig import (
    MINI_PROGRAM,
    PASSWORD,
    ROOT,
    Caller,
    Installation,
    invented,
    make_study,
    until,
)
from tests.review_ui.conftest import CHROMIUM, FLAGS

PATIENT = invented(60, "Qin^Yulan=秦^玉兰", "19720808")
MASKED = "秦*"
PAGE_MS = 60_000
expect.set_options(timeout=PAGE_MS)
TRIES = 20

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.skipif(
        not (ROOT / "review_ui" / "dist" / "index.html").is_file(),
        reason="the review page is not built: run `make setup`",
    ),
    pytest.mark.skipif(
        not (MINI_PROGRAM / "index.html").is_file(),
        reason="the Mini Program is not built for a browser: npm run build:web",
    ),
]


@dataclass
class Screen:
    """A page in a browser, what went wrong on it, and where its pictures go."""

    page: Page
    pictures: Path
    faults: list[str] = field(default_factory=list)

    async def picture(self, name: str) -> None:
        await self.page.screenshot(path=self.pictures / f"{name}.png")

    async def type(self, *keys: str) -> None:
        for key in keys:
            await self.page.keyboard.press(key)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        await running.close()


async def screen(browser: Browser, pictures: Path, **context: object) -> Screen:
    opened = await browser.new_context(locale="zh-CN", **context)
    page = await opened.new_page()
    page.set_default_timeout(PAGE_MS)
    made = Screen(page, pictures)
    page.on("pageerror", lambda error: made.faults.append(str(error)))
    return made


async def sign_in(node: Installation, desk: Screen) -> None:
    await desk.page.goto(node.url)
    await desk.page.fill("input[name=login]", "li")
    await desk.page.fill("input[name=password]", PASSWORD)
    await desk.page.click("button.primary")
    await desk.page.wait_for_selector(".worklist")
    await expect(desk.page.locator(".who")).to_have_text("李明")


async def open_from_worklist(desk: Screen) -> None:
    row = desk.page.locator("tbody tr", has_text=MASKED)
    await expect(row).to_contain_text("AI")
    await desk.picture("1-worklist")
    await row.click()
    await desk.page.wait_for_selector(".review")
    await desk.page.wait_for_selector("canvas[data-painted]")


async def print_code(desk: Screen) -> str:
    """Open the desk's dialog; return what a phone would scan there."""
    async with desk.page.expect_response("**/auth/bindings") as answered:
        await desk.page.get_by_role("button", name="二维码").click()
    code = (await (await answered.value).json())["code"]
    await desk.page.wait_for_selector(".desk img")
    await desk.picture("3-desk-code")
    await desk.type("Escape")
    await expect(desk.page.locator("dialog")).to_have_count(0)
    return str(code)


async def bind(node: Installation, phone: Screen, code: str) -> None:
    asked = {"openid": "journey-browser", "privacy": "", "scan": f"?scene={code}"}
    page = phone.page
    await page.goto(f"{node.wechat_url}/phone/?{urlencode(asked)}#/pages/list/index")
    await page.get_by_role("button", name="同意并继续").tap()
    await page.get_by_role("button", name="扫描二维码").tap()
    await page.get_by_role("textbox", name="证件号码").fill(PATIENT.id_number[-4:])
    await page.get_by_role("button", name="绑定", exact=True).tap()
    await expect(page.get_by_role("heading", name=MASKED)).to_be_visible()
    await phone.picture("4-phone-bound")


async def read_on_phone(node: Installation, phone: Screen, words: str) -> None:
    """Open the list until `words` are in its only report."""
    asked = {"openid": "journey-browser", "privacy": "agreed"}
    address = f"{node.wechat_url}/phone/?{urlencode(asked)}#/pages/list/index"
    page = phone.page
    report = page.get_by_role("button", name="乳腺超声")
    for _ in range(TRIES):
        await page.goto("about:blank")
        await page.goto(address)
        await expect(page.get_by_role("heading", name=MASKED)).to_be_visible()
        if await report.count():
            await report.tap()
            text = page.get_by_text(words).first
            with suppress(AssertionError):
                await expect(text).to_be_visible(timeout=3000)
                return
    raise AssertionError(f"the phone never showed {words}")


async def test_what_the_doctor_signs_the_patient_reads(
    node: Installation, doctor: Caller, browser: Browser, ci_output: Path
) -> None:
    study = make_study(PATIENT, images=2, seed=600)
    node.send([study])
    report = doctor.report_of(study.study_instance_uid)
    uid, report_id = study.study_instance_uid, report_id_for(study.study_instance_uid)
    until("the AI SR", lambda: doctor.documents(uid))
    explained = f"{report_id}-l1" in doctor.observations(report)

    desk = await screen(browser, ci_output, viewport={"width": 1440, "height": 900})
    phone = await screen(
        browser,
        ci_output,
        viewport={"width": 375, "height": 720},
        device_scale_factor=2,
        is_mobile=True,
        has_touch=True,
    )
    await sign_in(node, desk)
    await open_from_worklist(desk)
    assert PATIENT.name.split("=")[0] not in await desk.page.content()
    if explained:
        await desk.type("h")
        await desk.page.wait_for_selector(".overlay image")
    await desk.picture("2-review-heat-map")
    await bind(node, phone, await print_code(desk))

    await desk.type("q", "1", "g", "2")
    await desk.page.fill("textarea >> nth=2", "请放心，一年后复查。")
    await desk.page.evaluate("document.activeElement.blur()")
    await desk.type("Shift+Enter")
    await desk.page.wait_for_selector("dialog[open]")
    await desk.picture("5-sign")
    await desk.type("Enter")
    await desk.page.wait_for_selector(".status.final")
    await desk.picture("6-signed")
    until("the verified SR", lambda: len(doctor.documents(uid)) == 2)
    await read_on_phone(node, phone, "请放心，一年后复查。")
    await phone.picture("7-phone-report")

    await desk.type("g", "3", "Shift+Enter")
    await desk.page.wait_for_selector("dialog[open]")
    await desk.page.click(".chip >> nth=0")
    await desk.picture("8-amend")
    await desk.page.click("dialog button.primary")
    await desk.page.wait_for_selector(".status.amended")
    until("the successor SR", lambda: len(doctor.documents(uid)) == 3)
    await read_on_phone(node, phone, "BI-RADS 分类 3")
    await phone.picture("9-phone-amended")

    await desk.page.get_by_role("button", name="English").click()
    await expect(desk.page.get_by_role("button", name="Sign out")).to_be_visible()
    await desk.picture("10-english")

    overall = doctor.read(f"Observation/{report_id}-category")
    assert overall["valueCodeableConcept"]["coding"][0]["code"] == "3"
    signed = doctor.read(f"DiagnosticReport/{report_id}")
    assert signed["status"] == "amended"
    assert desk.faults == phone.faults == []
