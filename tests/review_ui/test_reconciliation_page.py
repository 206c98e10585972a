"""The reconciliation page in a browser: both sides compared, linked by keyboard."""

from dataclasses import replace

import pytest
from playwright.async_api import Page, expect

from node.domain.access import Role
from node.store import identities, moves
from node.store.store import Store
from node.workflow.completion import close_due_studies
from tests.factories import make_patient
from tests.node.workflow.test_orders import OTHER, STEP, matched, placed, received
from tests.node.workflow.test_reconciliation import AT_ONCE
from tests.review_ui.conftest import Open
from tests.review_ui.rig import Node, add_person
from tests.review_ui.test_page import _accessible, _picture, _type

CLERK = "technologist"


async def _unmatched(store: Store, clock: object) -> None:
    """Fill the list: a mistyped number, another patient's order, and no number."""
    await placed(store, STEP)
    await placed(store, replace(STEP, accession_number="ACC-2"), OTHER, key="2")
    await received(store, study="2.25.1")
    await received(store, study="2.25.2", accession="ACC-2")
    await received(store, study="2.25.3", accession="ACC-11")
    async with store.db.transaction() as tx:
        twin = make_patient(issuer="urn:hospital:mpi", sex="O")
        await identities.upsert_patient(tx, store, twin, at=store.clock())
    clock.advance(seconds=1)  # type: ignore[attr-defined]
    await close_due_studies(store, AT_ONCE)


async def _show(page: Page) -> None:
    await page.click("header a[href='#/reconciliation']")
    await page.wait_for_selector(".reconcile h2")


@pytest.mark.parametrize("language", ["zh", "en"])
async def test_pictures_of_the_reconciliation_page(
    node: Node, open_page: Open, clock: object, language: str
) -> None:
    await add_person(node.store, CLERK, Role.TECHNOLOGIST)
    page = await open_page(CLERK, language=language)
    await _show(page)
    await _picture(page, f"c0-reconcile-empty-{language}")
    await _accessible(page)
    await _unmatched(node.store, clock)
    await page.reload()
    await page.wait_for_selector(".reconcile .lines")
    await page.click("button[data-study='2.25.2']")
    await page.wait_for_selector(".reconcile .side.linked, .reconcile .fault")
    await _picture(page, f"c1-reconcile-conflict-{language}")
    await _accessible(page)
    await page.click("button[data-study='2.25.3']")
    await page.click(".reconcile .orders .primary")
    await page.wait_for_selector("dialog textarea")
    await _picture(page, f"c2-reconcile-confirm-{language}")
    await _accessible(page)
    await page.keyboard.press("Escape")
    await page.set_viewport_size({"width": 900, "height": 1500})
    await _picture(page, f"c3-reconcile-narrow-{language}")


async def test_a_study_is_linked_by_keyboard_and_only_with_a_reason(
    node: Node, open_page: Open, clock: object
) -> None:
    await add_person(node.store, CLERK, Role.TECHNOLOGIST)
    await _unmatched(node.store, clock)
    page = await open_page(CLERK)
    await _show(page)
    await page.wait_for_selector(".reconcile .lines")
    rows = page.locator(".reconcile .lines button")
    chosen = page.locator(".reconcile .lines button[aria-pressed=true]")
    for _ in range(3):
        await _type(page, "j")
        await expect(chosen).to_have_count(1)
        if await chosen.get_attribute("data-study") == "2.25.3":
            break
    await page.locator(".reconcile .orders .primary").focus()
    await _type(page, "Enter")
    confirm = page.locator("dialog .primary")
    await expect(confirm).to_be_disabled()
    assert await matched(node.store, "2.25.3") == []
    await page.keyboard.type("typed wrong")
    await confirm.focus()
    await _type(page, "Enter")
    await expect(rows).to_have_count(2)
    (linked,) = await matched(node.store, "2.25.3")
    assert linked.agrees
    # It left the list; by its number it is found again, to be undone.
    await page.fill(".reconcile input[type=search]", "ACC-11")
    await _type(page, "Enter")
    await page.click("button[data-study='2.25.3']")
    await page.click(".reconcile .side.linked .actions button")
    await page.fill("dialog textarea", "the other breast")
    await page.click("dialog .primary")
    await expect(page.locator(".reconcile .side.linked")).to_have_count(0)
    assert await matched(node.store, "2.25.3") == []


async def test_images_of_another_woman_are_filed_anew_under_her(
    node: Node, open_page: Open, clock: object
) -> None:
    await add_person(node.store, CLERK, Role.TECHNOLOGIST)
    await _unmatched(node.store, clock)
    async with node.store.db.transaction() as tx:
        await tx.execute("update studies set status = 'read'")
    page = await open_page(CLERK, language="en")
    await _show(page)
    await page.click("button[data-study='2.25.1']")
    await page.click(".reconcile .other summary")
    await page.fill(".reconcile input[name=patient]", OTHER.patient_id)
    await _type(page, "Enter")
    await page.click(".reconcile .other .side button")
    await expect(page.locator("dialog .side")).to_have_count(2)
    await page.fill("dialog textarea", "the entry before hers was chosen")
    await _picture(page, "c4-reconcile-move-en")
    await _accessible(page)
    await page.click("dialog .primary")
    await expect(page.locator(".reconcile .void")).to_be_visible()
    await _picture(page, "c5-reconcile-void-en")
    await _accessible(page)
    async with node.store.db.transaction() as tx:
        move = await moves.of_study(tx, node.store, "2.25.1")
        assert move is not None
        whose = await identities.patient(tx, node.store, move.to_patient)
    assert whose.patient_id == OTHER.patient_id
    # From the other side: the order that the images name is hers.
    await page.click("button[data-study='2.25.2']")
    await page.click(".reconcile .orders .side .actions button >> nth=0")
    await page.fill("dialog textarea", "her order, her images")
    await page.click("dialog .primary")
    await expect(page.locator(".reconcile .void")).to_be_visible()
    async with node.store.db.transaction() as tx:
        move = await moves.of_study(tx, node.store, "2.25.2")
    assert move is not None
    assert move.order_id is not None


@pytest.mark.parametrize("language", ["zh", "en"])
async def test_two_rows_are_merged_by_keyboard_and_undone_from_the_decisions(
    node: Node, open_page: Open, clock: object, language: str
) -> None:
    await add_person(node.store, CLERK, Role.TECHNOLOGIST)
    await _unmatched(node.store, clock)
    page = await open_page(CLERK, language=language)
    await _show(page)
    await page.locator(".pairs [data-act=merge]").focus()
    await _type(page, "Enter")
    await expect(page.locator("dialog .side")).to_have_count(2)
    # The row with the studies and the orders stands, unless somebody chooses otherwise.
    await expect(page.locator("dialog input[type=radio]:checked")).to_have_count(1)
    await _picture(page, f"c6-reconcile-merge-{language}")
    await _accessible(page)
    confirm = page.locator("dialog .primary")
    await expect(confirm).to_be_disabled()
    await page.locator("dialog textarea").focus()
    await page.keyboard.type("same ID card")
    await confirm.focus()
    await _type(page, "Enter")
    undo = page.locator(".pairs [data-act=unmerge]")
    await expect(undo).to_have_count(1)
    await expect(page.locator("#reconcile-pairs")).to_have_count(0)
    await _picture(page, f"c7-reconcile-said-{language}")
    await _accessible(page)
    assert await _merged(node.store) == 1
    await undo.click()
    await page.fill("dialog textarea", "two sisters")
    await page.click("dialog .primary")
    await expect(undo).to_have_count(0)
    assert await _merged(node.store) == 0
    await page.click(".pairs [data-act=different]")
    await page.fill("dialog textarea", "two sisters")
    await page.click("dialog .primary")
    await expect(page.locator("[data-verdict=different]")).to_have_count(1)
    await expect(page.locator("#reconcile-pairs")).to_have_count(0)


async def _merged(store: Store) -> int:
    async with store.db.transaction() as tx:
        return int(
            await tx.fetchval(
                "select count(*) from patients where merged_into is not null"
            )
        )


async def test_who_may_not_reconcile_finds_no_way_to_the_page(
    node: Node, open_page: Open
) -> None:
    page = await open_page()
    assert await page.locator("header a[href='#/reconciliation']").count() == 0
    await page.goto(f"{node.url}/#/reconciliation")
    await expect(page.locator(".worklist")).to_be_visible()
