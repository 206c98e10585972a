"""The page in a browser against the real node: what a radiologist does, and can see.

Pictures of every screen are kept in `ci-output/` for people to look at.
"""

from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from dicom_scp.simulation.phantoms import PhantomLesion
from node.domain.access import Role
from node.domain.finding import NotRead
from node.domain.lexicon import FieldKey
from node.domain.report import ReportStatus
from node.store import reports
from tests.review_ui.conftest import UI, Open
from tests.review_ui.rig import PASSWORD, Case, Node, add_person

AXE = UI / "node_modules" / "axe-core" / "axe.min.js"
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
    await _picture(page, f"1-login-{language}")
    await _accessible(page)
    await page.fill("input[name=login]", "wang")
    await page.fill("input[name=password]", "correct horse battery")
    await page.click("button.primary")
    await page.wait_for_selector("tbody tr:nth-child(3)")
    await _picture(page, f"2-worklist-{language}")
    await _accessible(page)
    await _open_report(page, node)
    await page.keyboard.press("h")
    await page.wait_for_selector(".overlay image")
    await _settled(page)
    await _picture(page, f"3-review-{language}")
    await _accessible(page)
    for key in ("e", "2", "g", "4", "b"):
        await page.keyboard.press(key)
    await page.click(
        "summary:has-text('患者将看到'), summary:has-text('What the patient')"
    )
    await _picture(page, f"4-changed-{language}")
    await _accessible(page)
    await page.keyboard.press("Shift+Enter")
    await page.wait_for_selector("dialog[open]")
    await _picture(page, f"5-sign-{language}")
    await _accessible(page)
    await page.click("input[name=told] >> nth=2")
    await page.keyboard.press("Enter")
    await page.wait_for_selector(".status.final")
    for key in ("q", "1"):
        await page.keyboard.press(key)
    await page.keyboard.press("Shift+Enter")
    await page.click(".chip >> nth=0")
    await page.click("input[name=told] >> nth=0")
    await _picture(page, f"6-amend-{language}")
    await _accessible(page)
    await page.click("dialog button.primary")
    await page.wait_for_selector(".status.amended")
    await _picture(page, f"7-amended-{language}")
    await _accessible(page)
    await page.keyboard.press("d")
    await page.wait_for_selector(".diff tbody tr")
    await _picture(page, f"8-history-{language}")
    await _accessible(page)
    await page.keyboard.press("Escape")
    await expect(page.locator("dialog")).to_have_count(0)
    await page.keyboard.press("?")
    await page.wait_for_selector(".keymap")
    await _picture(page, f"9-keys-{language}")
    await _accessible(page)
    assert (await _current(node)).status is ReportStatus.AMENDED


async def _settled(page: Page) -> None:
    """Wait until picture and overlay lie on each other."""
    await page.wait_for_function(
        """() => {
          const canvas = document.querySelector('.screen canvas');
          const box = canvas.getBoundingClientRect();
          return Math.abs(canvas.width - box.width * devicePixelRatio) < 1.5
            && Math.abs(canvas.height - box.height * devicePixelRatio) < 1.5;
        }"""
    )


async def _accessible(page: Page) -> None:
    await page.evaluate(AXE.read_text("utf-8"))
    found = await page.evaluate(
        """async () => (await axe.run(document, {runOnly: {type: 'tag', values:
          ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']}}
          )).violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 160))])"""
    )
    assert found == []


async def _type(page: Page, *keys: str) -> None:
    for key in keys:
        await page.keyboard.press(key)


async def test_a_report_that_the_doctor_agrees_with_is_signed_in_five_keys(
    node: Node, open_page: Open
):
    await node.receive(BENIGN)
    page = await open_page()
    await page.wait_for_selector("tbody tr")
    await _type(page, "j", "Enter")
    await page.wait_for_selector("canvas[data-painted]")
    await _type(page, "Shift+Enter")
    await page.wait_for_selector("dialog[open]")
    await _type(page, "Enter")
    await page.wait_for_selector(".status.final")
    version = await _current(node)
    assert version.status is ReportStatus.FINAL
    assert version.findings == (await _first(node)).findings
    await _type(page, "n")
    await page.wait_for_selector(".worklist .empty")
    await _type(page, "3")
    await page.wait_for_selector("tbody .status.final")


async def _first(node: Node):
    async with node.store.db.transaction() as tx:
        return (await reports.read(tx, node.store, node.reports[0].id)).version(1)


async def test_what_the_doctor_types_is_what_is_signed(node: Node, open_page: Open):
    await node.receive(SUSPICIOUS)
    page = await open_page()
    await _open_report(page, node)
    await _type(page, "q", "1", "e", "3", "r", "2", "t", "2", "i", "0", "g", "3")
    await page.fill("textarea >> nth=0", "半年后复查")
    await page.fill("textarea >> nth=2", "请按时复查")
    await page.keyboard.press("Control+s")
    await page.wait_for_selector(".status.preliminary")
    await page.evaluate("document.activeElement.blur()")
    await _type(page, "Shift+Enter")
    await page.wait_for_selector("dialog[open]")
    await _type(page, "Enter")
    await page.wait_for_selector(".status.final")
    version = await _current(node)
    (lesion,) = version.findings.lesions
    assert dict(lesion.descriptors) == {
        FieldKey.SHAPE: ("oval",),
        FieldKey.ORIENTATION: ("not_parallel",),
        FieldKey.MARGIN: ("spiculated",),
        FieldKey.LESION_BOUNDARY: ("echogenic_halo",),
        FieldKey.CALCIFICATIONS: ("in_mass",),
        FieldKey.ECHO_PATTERN: ("hypoechoic",),
    }
    assert (lesion.category, version.findings.category) == ("3", "3")
    assert version.conclusions.followup == "short"
    assert version.conclusions.advice == "半年后复查"
    assert version.conclusions.patient_summary == "请按时复查"
    # The AI's own values stay beside the doctor's after signing.
    notes = await page.locator(".said.changed").all_inner_texts()
    assert any("不规则形" in note for note in notes)
    assert any("4C" in note for note in notes)


async def test_a_suspicious_report_is_held_until_the_patient_was_told(
    node: Node, open_page: Open
):
    await node.receive(SUSPICIOUS)
    page = await open_page()
    await _open_report(page, node)
    await _type(page, "Shift+Enter")
    sign = page.locator("dialog button.primary")
    await expect(sign).to_be_disabled()
    await page.click("input[name=told] >> nth=2")
    await sign.click()
    await page.wait_for_selector(".banner.held")
    async with node.store.db.transaction() as tx:
        report = await reports.read(tx, node.store, node.reports[0].id)
    assert report.disclosures == ()
    await page.click(".banner.held button >> nth=1")
    await expect(page.locator(".banner.held")).to_have_count(0)
    async with node.store.db.transaction() as tx:
        report = await reports.read(tx, node.store, node.reports[0].id)
    assert [told.medium for told in report.disclosures] == ["in-person"]
    await page.reload()
    await page.wait_for_selector(".status.final")
    await expect(page.locator(".banner.held")).to_have_count(0)


async def test_somebody_else_was_faster_and_nothing_of_either_is_lost(
    node: Node, open_page: Open
):
    await node.receive(BENIGN)
    await add_person(node.store, "li")
    mine, theirs = await open_page(), await open_page("li")
    await _open_report(mine, node)
    await _open_report(theirs, node)
    await _type(theirs, "q", "2", "w", "2", "Control+s")
    await theirs.wait_for_selector(".status.preliminary")
    await _type(mine, "q", "3", "r", "1", "Shift+Enter")
    await mine.click("dialog button.primary")
    await mine.wait_for_selector("dialog:has-text('他人已修改')")
    await _picture(mine, "conflict-zh")
    await mine.keyboard.press("Enter")
    await mine.wait_for_selector("dialog:has-text('对方：圆形')")
    await expect(mine.locator("dialog li")).to_have_count(1)
    await mine.keyboard.press("Enter")
    await expect(mine.locator("dialog")).to_have_count(0)
    await _type(mine, "Shift+Enter")
    await mine.click("dialog button.primary")
    await mine.wait_for_selector(".status.final")
    (lesion,) = (await _current(node)).findings.lesions
    assert lesion.descriptors[FieldKey.SHAPE] == ("irregular",)
    assert lesion.descriptors[FieldKey.ORIENTATION] == ("not_parallel",)
    assert lesion.descriptors[FieldKey.LESION_BOUNDARY] == ("abrupt_interface",)


async def _draw_length(page: Page) -> str:
    await _settled(page)
    await page.keyboard.press("l")
    box = await page.locator(".screen").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    await page.mouse.move(x - 100, y)
    await page.mouse.down()
    await page.mouse.move(x + 100, y, steps=4)
    await page.mouse.up()
    return str(await page.locator(".caliper text").text_content())


async def test_a_length_is_in_millimetres_only_where_the_image_has_a_scale(
    node: Node, open_page: Open
):
    await node.receive(BENIGN)
    await node.receive(UNCALIBRATED)
    page = await open_page()
    await _open_report(page, node, 0)
    text = await _draw_length(page)
    scale = await page.evaluate(
        "document.querySelector('.overlay g').transform.baseVal[0].matrix.a"
    )
    # Phantom: 0.065 mm a pixel, drawn on the scanner's screen 620 rows high.
    expected = 200 / scale * 0.065 * 600 / 620
    assert text.endswith(" mm")
    assert float(text.removesuffix(" mm")) == pytest.approx(expected, abs=0.1)
    await _open_report(page, node, 1)
    await page.wait_for_selector(".corners .warn")
    text = await _draw_length(page)
    assert "px" in text
    assert "mm" not in text


async def test_cine_runs_zoom_and_window_work_and_the_box_stays_on_its_frame(
    node: Node, open_page: Open
):
    await node.receive(BENIGN)
    page = await open_page()
    await _open_report(page, node)
    await expect(page.locator(".overlay .box")).to_have_count(1)
    await _type(page, "ArrowRight")
    await expect(page.locator(".overlay .box")).to_have_count(0)
    await _type(page, "Space")
    await page.wait_for_function(
        "() => Number(document.querySelector('canvas').dataset.painted) > 12"
    )
    await _type(page, "Space")
    await page.hover(".screen")
    await page.mouse.wheel(0, -400)
    await expect(page.locator(".corners .sw")).not_to_contain_text("100%")
    box = await page.locator(".screen").bounding_box()
    assert box is not None
    await _type(page, "v")
    await page.mouse.move(box["x"] + 300, box["y"] + 300)
    await page.mouse.down()
    await page.mouse.move(box["x"] + 200, box["y"] + 250)
    await page.mouse.up()
    await expect(page.locator("canvas.windowed")).to_have_count(1)
    await _type(page, "z")
    await expect(page.locator("canvas.windowed")).to_have_count(0)


async def test_an_ended_session_hides_the_patient_and_keeps_the_unsaved_words(
    node: Node, open_page: Open, clock
):
    await node.receive(BENIGN)
    page = await open_page()
    await _open_report(page, node)
    await page.fill("textarea >> nth=0", "未保存")
    clock.advance(seconds=16 * 60)
    await page.keyboard.press("Control+s")
    await page.wait_for_selector(".login .banner")
    assert not await page.locator(".review").is_visible()
    await page.fill("input[name=login]", "wang")
    await page.fill("input[name=password]", PASSWORD)
    await page.keyboard.press("Enter")
    await page.wait_for_selector(".review")
    assert await page.input_value("textarea >> nth=0") == "未保存"
    await page.click("button:has-text('保存草稿')")
    await page.wait_for_selector(".status.preliminary")


async def test_new_studies_wait_until_asked_for_and_failed_work_is_retried(
    node: Node, open_page: Open
):
    page = await open_page()
    await page.wait_for_selector(".empty")
    await _picture(page, "empty-zh")
    await _accessible(page)
    await node.receive(BENIGN)
    await page.wait_for_selector("tbody tr")
    await node.receive(SUSPICIOUS)
    await page.wait_for_selector(".newcomers")
    await expect(page.locator("tbody tr")).to_have_count(1)
    await _type(page, "r")
    await expect(page.locator("tbody tr")).to_have_count(2)
    await expect(page.locator("tbody tr >> nth=0")).to_contain_text("4C")
    await _fail_a_job(node, node.reports[0].study_instance_uid)
    await expect(page.locator(".failed li")).to_contain_text("李*")
    await _picture(page, "failed-zh")
    await _accessible(page)
    await page.click(".failed button")
    await expect(page.locator(".failed")).to_have_count(0)


async def _fail_a_job(node: Node, study_instance_uid: str) -> None:
    payload = {"study_instance_uid": study_instance_uid}
    jobs = node.store.jobs
    async with node.store.db.transaction() as tx:
        await tx.execute("delete from jobs")
        await jobs.defer(tx, "assess_study", {**payload, "generation": 1})
    job = await jobs.claim(["assess_study"], "test")
    assert job is not None
    await jobs.failed(job, "the pixels of frame 1 cannot be decoded", retry=False)


async def test_nobody_sees_a_whole_name_and_a_technologist_signs_nothing(
    node: Node, open_page: Open
):
    await node.receive(SUSPICIOUS)
    await add_person(node.store, "zhao", Role.TECHNOLOGIST)
    page = await open_page("zhao")
    await page.wait_for_selector("tbody tr")
    assert "张*" in await page.inner_text("tbody")
    await _open_report(page, node)
    for secret in ("张三", "Zhang", "SIM-000001", "19790412"):
        assert secret not in await page.content()
    await expect(page.locator(".panel footer .primary")).to_have_count(0)
    await expect(page.locator(".option input").first).to_be_disabled()
    await page.click("button:has-text('二维码')")
    await page.wait_for_selector(".desk img")
    await _picture(page, "desk-zh")
    await _accessible(page)
    assert "张*" in await page.inner_text("dialog")


async def test_a_wrong_password_says_so_and_signs_nobody_in(open_page: Open):
    page = await open_page(None)
    await page.fill("input[name=login]", "wang")
    await page.fill("input[name=password]", "wrong")
    await page.keyboard.press("Enter")
    await expect(page.locator("[role=alert]")).to_have_text("账号或密码不正确。")
    assert await page.locator(".worklist").count() == 0


async def test_an_administrator_mends_work_and_sees_no_patient(
    node: Node, open_page: Open
):
    await node.receive(BENIGN)
    await _fail_a_job(node, node.reports[0].study_instance_uid)
    await add_person(node.store, "admin", Role.ADMINISTRATOR)
    page = await open_page("admin")
    await page.wait_for_selector(".failed li")
    await expect(page.locator(".live.stale")).to_have_count(0)
    assert "李" not in await page.inner_text(".worklist")
    await page.click(".failed button")
    await expect(page.locator(".failed")).to_have_count(0)


async def test_a_study_that_was_never_read_still_says_whose_it_is(
    node: Node, open_page: Open
):
    _, dataset = await node.receive_images(BENIGN)
    await _fail_a_job(node, str(dataset.StudyInstanceUID))
    page = await open_page()
    await expect(page.locator(".failed li")).to_contain_text("李*")
