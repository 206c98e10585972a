"""The auditor's page in a browser: who saw this woman, and does the chain hold."""

import json
import re
from pathlib import Path

from playwright.async_api import Page, expect

from node.domain.access import Role
from node.domain.audit import AuditEntry, Outcome
from node.store import audit, identities
from node.store.store import Store
from tests.factories import make_patient
from tests.node.workflow.test_auditing import work
from tests.review_ui.conftest import Open
from tests.review_ui.rig import Node, add_person
from tests.review_ui.test_page import _accessible, _picture

AUDITOR = "auditor"


async def _looked_at(store: Store, times: int) -> str:
    """Let somebody look at a woman again and again, once in vain; return her id."""
    doctor = await add_person(store, "li")
    async with store.db.transaction() as tx:
        her = await identities.upsert_patient(
            tx, store, make_patient(patient_id="H-7"), at=store.clock()
        )
        told = {"address": "10.0.0.7", "status": "200", "patients": str(her)}
        seen = AuditEntry(
            store.clock(),
            str(doctor.user_id),
            "radiologist",
            "fhir read",
            "DiagnosticReport/1",
            detail=told,
        )
        denied = AuditEntry(
            store.clock(),
            "unknown",
            "",
            "fhir read",
            "DiagnosticReport/1",
            Outcome.REFUSED,
            {"address": "10.0.0.9", "status": "401"},
        )
        await audit.record_all(tx, [seen] * times + [denied])
    return str(her)


async def _opened(node: Node, open_page: Open) -> Page:
    await add_person(node.store, AUDITOR, Role.AUDITOR)
    page = await open_page(AUDITOR)
    await expect(page.locator(".audit tbody tr").first).to_be_visible()
    return page


async def _pictures(page: Page, name: str) -> None:
    """Take the picture in both languages; what is shown stays."""
    await _accessible(page)
    for language in ("zh", "en"):
        await _picture(page, f"{name}-{language}")
        await page.locator("header nav button").first.click()


async def test_an_auditor_and_nobody_else_asks_who_saw_a_woman(
    node: Node, open_page: Open, tmp_path: Path
) -> None:
    her = await _looked_at(node.store, 60)
    page = await _opened(node, open_page)
    rows = page.locator(".audit tbody tr")
    await expect(rows).to_have_count(50)
    await _pictures(page, "d1-audit")
    # Refused ones stand out, and alone with a key.
    await expect(page.locator(".audit tbody tr.refused")).to_have_count(1)
    await page.keyboard.press("2")
    await expect(rows).to_have_count(1)
    await page.keyboard.press("Escape")
    await expect(rows).to_have_count(50)
    await page.keyboard.press("/")
    await page.keyboard.type("nobody's")
    await page.keyboard.press("Enter")
    await expect(page.locator(".audit .nobody")).to_be_visible()
    await page.fill(".audit input[name=number]", "H-7")
    await page.keyboard.press("Enter")
    await expect(page.locator(".audit .named button")).to_have_attribute(
        "aria-pressed", "true"
    )
    # The page that asked is among what is shown; the name is not.
    await expect(rows.first).to_contain_text("auditor")
    await page.locator(".audit h1").click()
    await page.keyboard.press("o")
    await expect(rows).to_have_count(61)
    await expect(page.locator(".audit .below button kbd")).to_have_count(0)
    await _pictures(page, "d2-audit-her")
    await page.keyboard.press("j")
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")
    await expect(page.locator("dialog")).to_contain_text(her)
    await _picture(page, "d3-audit-entry-zh")
    await _accessible(page)
    await page.keyboard.press("Escape")
    for form, button in (("csv", -2), ("ndjson", -1)):
        async with page.expect_download() as coming:
            await page.locator(".audit .below button").nth(button).click()
        kept = tmp_path / form
        await (await coming.value).save_as(kept)
        lines = kept.read_text("utf-8-sig").splitlines()
        assert len(lines) == 61 + (form == "csv")
    assert json.loads(lines[0])["resourceType"] == "AuditEvent"
    async with node.store.db.connection() as tx:
        told = [one.entry for one in await audit.following(tx, 0, 1000)]
    taken = [one for one in told if one.action == "audit-export"]
    assert [one.detail["form"] for one in taken] == ["csv", "ndjson"]
    assert [one.detail["events"] for one in taken] == ["61", "61"]
    assert not any(re.search(r"(?<![\w-])H-7(?![\w-])", str(one)) for one in told)
    assert any(f"patient={her}" in one.detail.get("query", "") for one in told)
    # Nothing fits: the page says what to do.
    await page.fill(".audit input[type=date] >> nth=1", "2020-01-01")
    await expect(page.locator(".audit .empty button")).to_be_visible()
    await _pictures(page, "d4-audit-none")
    # A doctor has no such page, by no address.
    page = await open_page()
    await expect(page.locator("header a[href='#/audit']")).to_have_count(0)
    await page.goto(f"{node.url}/#/audit")
    await expect(page.locator(".worklist")).to_be_visible()


async def test_the_chain_is_verified_beside_the_page_and_tells_what_broke(
    node: Node, open_page: Open
) -> None:
    page = await _opened(node, open_page)
    state = page.locator(".audit .chain")
    await page.keyboard.press("v")
    await expect(state.locator("progress")).to_be_visible()
    await _picture(page, "d5-audit-verifying-zh")
    await _accessible(page)
    await work(node.store)
    await expect(page.locator(".audit .chain.holds")).to_be_visible()
    await _picture(page, "d6-audit-holds-zh")
    async with node.store.db.transaction() as tx:
        await tx.execute("alter table audit_entries disable trigger audit_no_change")
        await tx.execute("update audit_entries set actor = 'me' where sequence = 2")
    await page.keyboard.press("v")
    await expect(state.locator("progress")).to_be_visible()
    await work(node.store)
    await expect(page.locator(".audit .chain.broken")).to_contain_text("2")
    await _picture(page, "d7-audit-broken-zh")
    await _accessible(page)
