"""The agreement page in a browser: what is compared, what changed, by keyboard too."""

from datetime import UTC, datetime, timedelta

import pytest
from playwright.async_api import Page, expect

from node.domain.access import Role
from node.store.store import Store
from node.workflow.agreement import DriftSettings, compare_report, watch_drift
from tests.agreements import KEPT, compared_reports, record_all
from tests.review_ui.conftest import Open
from tests.review_ui.rig import Node, add_person
from tests.review_ui.test_page import (
    BENIGN,
    _accessible,
    _open_report,
    _picture,
    _type,
)

NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)
SETTINGS = DriftSettings(window=60)


async def _half_a_year(store: Store) -> None:
    """Fill the archive: a steady model, then a newer one whose shapes go wrong."""
    before = NOW - timedelta(days=70)
    every = timedelta(hours=10)
    await record_all(store, compared_reports(210, ends=before, seed=1, every=every))
    newer = ("model-0c11d2e3f4a5", "sononode-breast 0.2.0+sha256.0c11d2e3f4a5")
    machines = ("GE LOGIQ E9", "Mindray Resona 7", "")
    worse = {**KEPT, "shape": 0.45, "echo_pattern": 0.6}
    for kept, ends, count in ((KEPT, 22, 120), (worse, 0, 60)):
        made = compared_reports(
            count,
            ends=NOW - timedelta(days=ends),
            seed=count,
            kept=kept,
            model=newer,
            machines=machines,
            every=timedelta(hours=8),
        )
        await record_all(store, made)
    await watch_drift(store, SETTINGS)


async def _show(page: Page) -> None:
    await page.click("header a[href='#/agreement']")
    await page.wait_for_selector(".agreement .overview")


@pytest.mark.parametrize("language", ["zh", "en"])
async def test_pictures_of_the_agreement_page(
    node: Node, open_page: Open, language: str
) -> None:
    await _half_a_year(node.store)
    page = await open_page(language=language)
    await _show(page)
    await page.wait_for_selector(".drift.alarm")
    await _picture(page, f"a1-agreement-{language}")
    await _accessible(page)
    await page.click(".drift summary")
    await page.click("button[data-field=margin]")
    await page.click(".detail summary")
    await page.set_viewport_size({"width": 1440, "height": 1700})
    await _picture(page, f"a2-agreement-margin-{language}")
    await _accessible(page)
    await page.click("button[data-field=shape]")
    await _picture(page, f"a3-agreement-shape-{language}")
    await _accessible(page)
    # Nothing is cut off where the figures stand.
    assert (
        await page.evaluate(
            "(o => o.scrollWidth - o.clientWidth)(document.querySelector('.overview'))"
        )
        <= 0
    )
    await page.set_viewport_size({"width": 900, "height": 1700})
    await _picture(page, f"a4-agreement-narrow-{language}")
    await _accessible(page)


async def test_before_the_first_signature_the_page_says_what_to_do(
    node: Node, open_page: Open
) -> None:
    page = await open_page()
    await page.click("header a[href='#/agreement']")
    await page.wait_for_selector(".agreement .empty h2")
    await _picture(page, "a5-agreement-empty-zh")
    await _accessible(page)
    await page.click(".agreement .empty a")
    await page.wait_for_selector(".worklist")


async def test_a_signature_in_the_page_appears_among_the_figures(
    node: Node, open_page: Open
) -> None:
    await node.receive(BENIGN)
    page = await open_page()
    await _open_report(page, node)
    await _type(page, "q", "2")
    await _type(page, "Shift+Enter")
    await page.wait_for_selector("dialog[open]")
    await _type(page, "Enter")
    await page.wait_for_selector(".status.final")
    job = await node.store.jobs.claim(["compare_report"], "test")
    await compare_report(node.store, job.payload)
    await _show(page)
    shape = page.locator("tr", has=page.locator("button[data-field=shape]"))
    await expect(shape.locator("td").nth(0)).to_have_text("1")
    await expect(shape.locator("td").nth(2)).to_have_text("少于 20 对，不评价")
    await page.click("button[data-field=shape]")
    changes = page.locator(".often li")
    await expect(changes).to_have_count(1)
    await expect(changes.first).to_contain_text("椭圆形 → 圆形")
    # The maker of the simulated scanner, as its images name it.
    await expect(page.locator(".devices tbody tr")).to_have_count(1)
    await expect(page.locator(".devices tbody")).not_to_contain_text("设备未知")


async def test_the_page_is_worked_by_keyboard_and_narrows_to_what_is_asked(
    node: Node, open_page: Open
) -> None:
    await _half_a_year(node.store)
    page = await open_page(language="en")
    await page.goto(f"{node.url}/#/agreement")
    title = page.locator(".overview h2")
    await expect(title).to_have_text("390 signed reports")
    await _type(page, "j", "j", "j")
    await expect(page.locator("#detail-title")).to_have_text("Shape")
    assert await page.evaluate("document.activeElement.dataset.field") == "shape"
    await _type(page, "ArrowUp")
    await expect(page.locator("#detail-title")).to_have_text("Lesion")
    await _type(page, "1")
    await expect(title).not_to_have_text("390 signed reports")
    await _type(page, "3", "w")
    await expect(title).to_have_text("390 signed reports")
    await expect(page.locator(".detail details th[scope=row]").first).to_have_text(
        "2026-06-15"
    )
    machine = page.locator(".heading select").nth(1)
    await machine.select_option(label="unknown machine (58)")
    await expect(title).to_have_text("58 signed reports")
    await expect(page.locator(".devices tbody tr")).to_have_count(1)
    model = page.locator(".heading select").nth(0)
    await model.select_option(index=2)
    await page.wait_for_selector(".agreement .empty")
    await page.click(".agreement .empty button")
    await expect(title).to_have_text("390 signed reports")
    await page.evaluate("document.activeElement.blur()")
    await _type(page, "Escape")
    await page.wait_for_selector(".worklist")


async def test_an_administrator_sees_figures_and_no_patient(
    node: Node, open_page: Open
) -> None:
    await add_person(node.store, "admin", Role.ADMINISTRATOR)
    await add_person(node.store, "auditor", Role.AUDITOR)
    await node.receive(BENIGN)
    await _half_a_year(node.store)
    page = await open_page("admin")
    await _show(page)
    await expect(page.locator("body")).not_to_contain_text("李*")
    other = await open_page("auditor")
    await expect(other.locator("header a[href='#/agreement']")).to_have_count(0)
    await other.goto(f"{node.url}/#/agreement")
    await other.wait_for_selector(".audit")
