"""Similar confirmed cases in the browser: what the doctor sees beside her lesion.

Pictures are kept in `ci-output/` for people to look at.
"""

from dataclasses import replace

import pytest
from playwright.async_api import expect

from dicom_scp.simulation.phantoms import PhantomLesion
from node.domain.outcome import CaseOutcome
from node.store import cases
from tests.review_ui.conftest import Open
from tests.review_ui.rig import Case, Node
from tests.review_ui.test_page import (
    BENIGN,
    SUSPICIOUS,
    UNCALIBRATED,
    _accessible,
    _open_report,
    _picture,
)

CYST = PhantomLesion(
    21,
    16,
    12.0,
    9.0,
    shape="oval",
    echo_pattern="anechoic",
    posterior_features="enhancement",
    assessment_category="2",
)


@pytest.mark.parametrize("language", ["zh", "en"])
async def test_a_doctor_compares_her_lesion_with_signed_cases(
    node: Node, open_page: Open, language: str
) -> None:
    own = await node.receive(replace(BENIGN, frames=1))
    await node.keep_vector(own, 1, 0)
    page = await open_page(language=language)
    await _open_report(page, node)
    panel = page.locator(".similar")
    few = {"zh": "还不足三例", "en": "fewer than three signed reports"}[language]
    await expect(panel).to_contain_text(few)
    await panel.scroll_into_view_if_needed()
    await _picture(page, f"similar-none-{language}")
    await _accessible(page)

    known = []
    for case, vector in (
        (replace(SUSPICIOUS, patient_number=7), (1.0, 0.3)),
        (replace(UNCALIBRATED, patient_number=8), (1.0, 0.6)),
        (Case("Sun^Na=孙^娜", CYST, "2", "0.010", patient_number=9), (0.5, 1.0)),
    ):
        draft = await node.draft(case)
        await node.keep_vector(draft, *vector)
        known.append(await node.sign(draft))
    await node.tell_outcome(known[0], CaseOutcome.MALIGNANT)
    await page.reload()
    cards = panel.locator(".cases li")
    await expect(cards).to_have_count(3)
    recorded = {"zh": "恶性 · 活检", "en": "malignant · biopsy"}[language]
    await expect(cards.nth(0)).to_contain_text(recorded)
    await expect(cards.nth(0)).to_contain_text("0.96")
    unknown = {"zh": "结局未记录", "en": "outcome not recorded"}[language]
    await expect(cards.nth(2)).to_contain_text(unknown)
    text = await panel.inner_text()
    assert not any(name in text for name in ("张", "王", "孙", "SIM", "REDACTED"))
    for number in range(3):
        picture = cards.nth(number).locator("img")
        await expect(picture).to_have_js_property("complete", True)
        assert await picture.evaluate("picture => picture.naturalWidth") > 40
    await page.keyboard.press("s")
    await expect(panel).to_be_focused()
    await expect(cards.nth(0)).to_be_in_viewport()
    await _picture(page, f"similar-{language}")
    await _accessible(page)
    for card in (cards.nth(0), cards.nth(1)):
        await page.keyboard.press("Tab")
        await expect(card.locator("a")).to_be_focused()


async def test_a_doctor_records_how_a_signed_case_ended(
    node: Node, open_page: Open
) -> None:
    own = await node.receive(replace(BENIGN, frames=1))
    await node.keep_vector(own, 1, 0)
    page = await open_page()
    await _open_report(page, node)
    await expect(page.locator(".similar .hint").first).to_be_visible()
    await expect(page.locator(".similar .own")).to_have_count(0)
    await page.keyboard.press("Shift+Enter")
    await page.wait_for_selector("dialog[open]")
    await page.keyboard.press("Enter")
    await page.wait_for_selector(".status.final")
    choice = page.locator(".similar .own select")
    await choice.select_option("benign follow-up")
    await page.click(".similar .own button")
    await expect(page.locator(".notice")).to_contain_text("结局已记录")
    await expect(choice).to_have_value("benign follow-up")
    await expect(page.locator(".similar .own button")).to_be_disabled()
    await page.locator(".similar").scroll_into_view_if_needed()
    await _picture(page, "similar-outcome")
    await _accessible(page)
    async with node.store.db.connection() as connection:
        (kept,) = await cases.outcomes(connection, own.id)
    assert (kept.outcome, kept.method) == ("benign", "follow-up")
    assert kept.tracking_uid == own.current.findings.lesions[0].tracking_uid
