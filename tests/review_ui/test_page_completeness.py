"""What a doctor sees of a study that is not whole, and of images that came later."""

import re

from playwright.async_api import Page, expect

from dicom_scp.simulation.phantoms import PhantomLesion
from fhir.content.publish import publish_study
from node.domain.completion import EvidenceKind, Flaw, StepStatus, Verdict, words_of
from node.domain.study import PatientIdentity
from node.store import completion, receiving, studies
from node.workflow.completion import (
    ASSESS_STUDY,
    PUBLISH_STUDY,
    CompletionSettings,
    close_due_studies,
    publish_study_later,
)
from node.workflow.intake import receive_instance
from node.workflow.mpps import Scheduled, ToldStep, begin_step, change_step
from node.workflow.orders import RequestIds
from node.workflow.reporting import propose_reading
from tests.factories import ALGORITHM, make_findings
from tests.node.workflow.test_completion import make_arrival
from tests.review_ui.conftest import Open
from tests.review_ui.rig import Case, Node

BENIGN = Case(
    "Li^Mei=李^梅",
    PhantomLesion(24, 14, 9.4, 6.2, assessment_category="3"),
    "3",
    "0.084",
)
DISCONTINUED = "2.25.7100"


async def _publish(node: Node) -> None:
    while job := await node.store.jobs.claim([PUBLISH_STUDY], "test"):
        await publish_study(node.store, node.settings, job.payload)
        await node.store.jobs.done(job)


async def _late_image(node: Node, study: str) -> None:
    instance = make_arrival(1, study_instance_uid=study).instance
    at = node.store.clock()
    async with node.store.db.transaction() as tx:
        known = await studies.study(tx, study)
        assert known is not None
        await receiving.insert_instance(
            tx, node.store, instance, known.patient_id, blob_key=bytes(32), at=at
        )
        await studies.touch_study(tx, study, at=at)
    await close_due_studies(node.store, CompletionSettings(quiet_period_s=0))
    async with node.store.db.transaction() as tx:
        assert await propose_reading(
            node.store, tx, study, make_findings("4B"), author=ALGORITHM
        )
    await _publish(node)


async def _discontinue(node: Node) -> None:
    """Let a machine break off an examination of which one image came."""
    arrival = make_arrival(7, study_instance_uid=DISCONTINUED)
    await receive_instance(node.store, arrival)
    scheduled = (Scheduled(DISCONTINUED, RequestIds()),)
    patient = PatientIdentity("P-1", "")
    told = ToldStep(StepStatus.IN_PROGRESS, patient, scheduled)
    uid, title = "2.25.900", "LOGIQ"
    await begin_step(node.store, sop_instance_uid=uid, calling_ae=title, told=told)
    ended = ToldStep(
        StepStatus.DISCONTINUED,
        patient,
        scheduled,
        images=(arrival.instance.sop_instance_uid,),
    )
    await change_step(
        node.store, sop_instance_uid=uid, calling_ae=title, change=lambda _: ended
    )
    assert await close_due_studies(node.store) == 1


async def _open(page: Page, node: Node) -> None:
    await page.goto(f"{node.url}/#/report/{node.reports[0].id}")
    await page.wait_for_selector("canvas[data-painted]")


async def test_missing_images_have_a_mark_in_the_list_and_a_line_on_the_report(
    node: Node, open_page: Open
) -> None:
    report = await node.receive(BENIGN)
    verdict = Verdict(
        EvidenceKind.MPPS,
        node.store.clock(),
        9,
        expected=12,
        missing=("2.25.1", "2.25.2", "2.25.3"),
        flaws=(Flaw.MISSING,),
    )
    whole = Verdict(EvidenceKind.MPPS, node.store.clock(), 12, expected=12)
    page = await open_page()
    for told in (verdict, whole):
        async with node.store.db.transaction() as tx:
            study = report.study_instance_uid
            await completion.write_verdict(tx, study, told, words_of(told).en)
            await publish_study_later(tx, node.store, study)
        await _publish(node)
        await page.goto(f"{node.url}/#/")
        await page.reload()
        row = page.locator("tbody tr")
        await expect(row).to_have_count(1)
        mark = row.locator(".flag")
        await _open(page, node)
        if told is verdict:
            line = page.locator(".banner")
            await expect(line).to_have_text("不完整：MPPS 已完成，收到 9/12 幅图像")
            await page.goto(f"{node.url}/#/")
            await expect(mark).to_have_text("图像不完整")
        else:
            line = page.locator(".completeness")
            await expect(line).to_have_text("完整：MPPS 已完成，收到 12/12 幅图像")
            await expect(page.locator(".banner")).to_have_count(0)


async def test_images_after_the_signature_bring_the_report_back_to_the_list(
    node: Node, open_page: Open
) -> None:
    report = await node.receive(BENIGN)
    page = await open_page(language="en")
    await _open(page, node)
    await page.keyboard.press("Shift+Enter")
    await page.click("dialog button.primary")
    await expect(page.locator(".status")).to_have_class(re.compile("final"))
    await _late_image(node, report.study_instance_uid)
    await page.goto(f"{node.url}/#/")
    row = page.locator("tbody tr")
    await expect(row.locator(".flag.late")).to_have_text("new images since")
    await expect(row.locator(".status.final")).to_have_count(1)
    await _open(page, node)
    banner = page.locator(".banner.late")
    await expect(banner).to_contain_text("1 new image after signature")
    await expect(banner).to_contain_text("BI-RADS 4B (0.873)")
    await expect(banner).to_contain_text("The report stands as it was")


async def test_discontinued_examination_is_named_and_read_where_somebody_wants_it(
    node: Node, open_page: Open
) -> None:
    await _discontinue(node)
    page = await open_page()
    entry = page.locator(".failed li")
    await expect(entry).to_contain_text("检查已中止（MPPS DISCONTINUED）")
    assert await node.store.jobs.claim([ASSESS_STUDY], "test") is None
    await entry.locator("button", has_text="仍然判读").click()
    await expect(entry).to_have_count(0)
    assert await node.store.jobs.claim([ASSESS_STUDY], "test") is not None
