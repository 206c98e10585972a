"""The signed report on paper, from the browser: the link, and what opens behind it."""

from dataclasses import replace

import pytest
from playwright.async_api import expect

from dicom_scp.results.encode_report import encode_report
from fhir.content.documents import publish_document
from tests.review_ui.conftest import Open
from tests.review_ui.rig import RESULTS, Node
from tests.review_ui.test_page import BENIGN, _open_report

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


async def test_a_doctor_opens_the_paper_of_a_signed_report(
    node: Node, open_page: Open
) -> None:
    report = await node.receive(replace(BENIGN, frames=1))
    page = await open_page()
    await _open_report(page, node)
    link = page.get_by_role("link", name="打印 PDF")
    await expect(link).to_have_count(0)

    await page.keyboard.press("Shift+Enter")
    await page.wait_for_selector("dialog[open]")
    await page.keyboard.press("Enter")
    await page.wait_for_selector(".status.final")
    payload = {"report_id": str(report.id), "version": 2}
    await encode_report(node.store, payload, RESULTS)
    await expect(link).to_have_attribute("target", "_blank")
    path = await link.get_attribute("href")
    answer = await page.request.get(f"{node.url}{path}")
    assert answer.headers["content-type"] == "application/pdf"
    assert (await answer.body()).startswith(b"%PDF-1.7")


async def test_the_paper_that_comes_meanwhile_is_no_conflict_for_an_amendment(
    node: Node, open_page: Open
) -> None:
    report = await node.receive(replace(BENIGN, frames=1))
    page = await open_page()
    await _open_report(page, node)
    await page.keyboard.press("Shift+Enter")
    await page.wait_for_selector("dialog[open]")
    await page.keyboard.press("Enter")
    await page.wait_for_selector(".status.final")
    payload = {"report_id": str(report.id), "version": 2}
    await encode_report(node.store, payload, RESULTS)
    await publish_document(node.store, node.settings, payload)
    for key in ("q", "1", "Shift+Enter"):
        await page.keyboard.press(key)
    await page.click(".chip >> nth=0")
    await page.click("dialog button.primary")
    await page.wait_for_selector(".status.amended")
    await expect(page.locator("dialog")).to_have_count(0)
