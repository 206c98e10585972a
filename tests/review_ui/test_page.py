"""The page in a browser against the real node: what a radiologist does, and can see.

Pictures of every screen are kept in `ci-output/` for people to look at.
"""

from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from dicom_scp.phantoms import PhantomLesion
from node.domain.finding import NotRead
from node.domain.report import ReportStatus
from node.store import reports
from tests.review_ui.conftest import Open
from tests.review_ui.rig import Case, Node

PICTURES = Path(__file__).parents[2] / "ci-output" / "review"

SUSPICIOUS = Case(
    "Zhang^San=张^三",
    PhantomLesion(
        22,
        17,
        11.8,
        13.5,
        shape="irregular",
        margin=("angular", "spiculated"),
        posterior_features="shadowing",
        assessment_category="4C",
    ),
    "4C",
    "0.873",
    not_read=(NotRead("2.25.9", "colour", "彩色多普勒图像", "colour Doppler"),),
)
BENIGN = Case(
    "Li^Mei=李^梅",
    PhantomLesion(24, 14, 9.4, 6.2, assessment_category="3"),
    "3",
    "0.084",
    frames=12,
    patient_number=2,
)
UNCALIBRATED = Case(
    "Wang^Fang=王^芳",
    PhantomLesion(20, 15, 8, 6, shape="round", assessment_category="2"),
    "2",
    "0.031",
    calibrated=False,
    patient_number=3,
)


async def _open_report(page: Page, node: Node, at: int = 0) -> None:
    await page.goto(f"{node.url}/#/report/{node.reports[at].id}")
    await page.wait_for_selector(".review")
    await page.wait_for_selector("canvas[data-painted]")


async def _picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=PICTURES / f"{name}.png")


async def _current(node: Node, at: int = 0):
    async with node.store.db.transaction() as tx:
        return (await reports.read(tx, node.store, node.reports[at].id)).current


@pytest.mark.parametrize("language", ["zh", "en"])
async def test_pictures_of_every_screen(node: Node, open_page: Open, language: str):
    for case in (SUSPICIOUS, BENIGN, UNCALIBRATED):
        await node.receive(case)
    page = await open_page(None, language=language)
    await page.wait_for_selector(".login form")
    if language == "en":
        await page.click("text=English")
    await _picture(page, f"1-login-{language}")
    await page.fill("input[name=login]", "wang")
    await page.fill("input[name=password]", "correct horse battery")
    await page.click("button.primary")
    await page.wait_for_selector("tbody tr:nth-child(3)")
    await _picture(page, f"2-worklist-{language}")
    await _open_report(page, node)
    await page.keyboard.press("h")
    await page.wait_for_selector(".overlay image")
    await _picture(page, f"3-review-{language}")
    for key in ("e", "2", "g", "4", "b"):
        await page.keyboard.press(key)
    await page.click(
        "summary:has-text('患者将看到'), summary:has-text('What the patient')"
    )
    await _picture(page, f"4-changed-{language}")
    await page.keyboard.press("Shift+Enter")
    await page.wait_for_selector("dialog[open]")
    await _picture(page, f"5-sign-{language}")
    await page.click("input[name=told] >> nth=2")
    await page.keyboard.press("Enter")
    await page.wait_for_selector(".status.final")
    for key in ("q", "1"):
        await page.keyboard.press(key)
    await page.keyboard.press("Shift+Enter")
    await page.click(".chip >> nth=0")
    await page.click("input[name=told] >> nth=0")
    await _picture(page, f"6-amend-{language}")
    await page.click("dialog button.primary")
    await page.wait_for_selector(".status.amended")
    await _picture(page, f"7-amended-{language}")
    await page.keyboard.press("d")
    await page.wait_for_selector(".diff tbody tr")
    await _picture(page, f"8-history-{language}")
    await page.keyboard.press("Escape")
    await expect(page.locator("dialog")).to_have_count(0)
    await page.keyboard.press("?")
    await page.wait_for_selector(".keymap")
    await _picture(page, f"9-keys-{language}")
    assert (await _current(node)).status is ReportStatus.AMENDED
