"""What a report says of the completeness of its study, and of images that came late.

A signed version stays as it is (DESIGN §6); who signed is told beside it.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from fhir.content import concepts
from fhir.content.publish import publish_report, publish_study
from fhir.encoding.wire import Json, extensions
from inference.reading import with_what_is_missing
from node.domain.completion import EvidenceKind, Flaw, Verdict
from node.domain.report import AuthorKind, ReportStatus
from node.domain.study import StudyStatus
from node.store import completion, receiving, reports, studies
from node.workflow.completion import (
    ASSESS_STUDY,
    PUBLISH_STUDY,
    CompletionSettings,
    close_due_studies,
)
from node.workflow.reporting import draft_report, propose_reading
from tests.factories import ALGORITHM, make_findings
from tests.fhir.content.test_life_cycle import because
from tests.fhir.rig import STUDY_UID, Rig
from tests.node.workflow.test_completion import make_arrival

SETTINGS = CompletionSettings(quiet_period_s=0)


async def late_image(rig: Rig, number: int) -> None:
    """Let one more image of the study arrive, over no association."""
    arrival = make_arrival(number)
    async with rig.store.db.transaction() as tx:
        study = await studies.study(tx, STUDY_UID)
        assert study is not None
        instance = replace(arrival.instance, study_instance_uid=STUDY_UID)
        await receiving.insert_instance(
            tx,
            rig.store,
            instance,
            study.patient_id,
            blob_key=bytes(32),
            at=rig.store.clock(),
        )
        await studies.touch_study(tx, STUDY_UID, at=rig.store.clock())


async def close(rig: Rig) -> None:
    assert await close_due_studies(rig.store, SETTINGS) == 1
    await do(rig, PUBLISH_STUDY)


async def do(rig: Rig, kind: str) -> None:
    while job := await rig.store.jobs.claim([kind], "test"):
        if kind == PUBLISH_STUDY:
            await publish_study(rig.store, rig.settings, job.payload)
        await rig.store.jobs.done(job)


async def propose(rig: Rig, category: str) -> bool:
    async with rig.store.db.transaction() as tx:
        return await propose_reading(
            rig.store, tx, STUDY_UID, make_findings(category), author=ALGORITHM
        )


def told(report: Json, url: str) -> Mapping[str, Any]:
    """Return the parts of an extension by name; the words in English too."""
    (extension,) = extensions(report, url)
    parts: dict[str, Any] = {}
    for part in extension["extension"]:
        (value,) = [v for k, v in part.items() if k.startswith("value")]
        parts[part["url"]] = value
        if part["url"] == "words":
            (translation,) = part["_valueString"]["extension"]
            parts["en"] = translation["extension"][1]["valueString"]
    return parts


async def test_report_says_what_its_study_was_closed_on(rig: Rig) -> None:
    await late_image(rig, 1)
    await close(rig)
    report = await rig.read(rig.report_path)
    parts = told(report, concepts.STUDY_COMPLETENESS)
    assert (parts["state"], parts["evidence"]) == ("complete", "silence")
    assert parts["en"] == "complete: silence, 0 s of silence, 2 images"
    assert "收到 2 幅图像" in parts["words"]
    # Nobody has worked on it: the next draft takes all images, there is no one to tell.
    assert not list(extensions(report, concepts.LATE_IMAGES))
    assert not await propose(rig, "5")


async def test_images_after_the_signature_are_told_and_change_nothing(
    rig: Rig,
) -> None:
    signed = await rig.sign()
    assert signed.status == 200
    await late_image(rig, 1)
    await late_image(rig, 2)
    await close(rig)
    report = await rig.read(rig.report_path)
    parts = told(report, concepts.LATE_IMAGES)
    assert (parts["count"], parts["total"]) == (2, 3)
    assert parts["en"] == "2 new images after signature; not yet read by the AI"
    assert report["status"] == "final"
    version = f"{rig.report_path.strip('/')}/_history/{report['meta']['versionId']}"
    filed = await rig.read(f"/Provenance?target={version}&agent=Device/sononode")
    (provenance,) = [e["resource"] for e in filed["entry"]]
    assert provenance["target"] == [{"reference": version}]
    study = await rig.read(f"/ImagingStudy/{STUDY_UID}")
    assert study["numberOfInstances"] == 3
    assert told(study, concepts.STUDY_COMPLETENESS)["state"] == "complete"

    assert await propose(rig, "5")
    await do(rig, PUBLISH_STUDY)
    report = await rig.read(rig.report_path)
    en = told(report, concepts.LATE_IMAGES)["en"]
    assert en.endswith("; the AI reads all images as BI-RADS 5 (0.873)")
    assert report["status"] == "final"
    async with rig.store.db.transaction() as tx:
        kept = await reports.read(tx, rig.store, rig.report_id)
        body = str(await tx.fetchrow("select * from report_proposal"))
    assert kept.current.author.kind is AuthorKind.PHYSICIAN
    assert kept.current.findings.category == "4C"
    assert "category" not in body


async def test_edit_begun_before_the_images_came_is_a_conflict_and_the_next_clears(
    rig: Rig,
) -> None:
    await rig.sign()
    stale = await rig.edited(rig.report_path, status="amended", conclusion="seen")
    await late_image(rig, 1)
    await close(rig)
    assert (await rig.transact(stale, because(rig))).status in (409, 412)
    fresh = await rig.edited(rig.report_path, status="amended", conclusion="seen")
    assert (await rig.transact(fresh, because(rig))).status == 200
    report = await rig.read(rig.report_path)
    assert report["status"] == "amended"
    assert not list(extensions(report, concepts.LATE_IMAGES))
    assert told(report, concepts.STUDY_COMPLETENESS)["state"] == "complete"
    await late_image(rig, 2)
    await close(rig)
    report = await rig.read(rig.report_path)
    assert told(report, concepts.LATE_IMAGES)["count"] == 1  # only what is new to her


async def test_signature_that_met_the_images_on_their_way_is_told_of_them(
    rig: Rig,
) -> None:
    await late_image(rig, 1)
    assert (await rig.sign()).status == 200  # the study is not closed yet
    await close(rig)
    report = await rig.read(rig.report_path)
    assert told(report, concepts.LATE_IMAGES)["count"] == 1


async def test_doctor_cannot_take_the_mark_away_with_a_text(rig: Rig) -> None:
    await late_image(rig, 1)
    await close(rig)
    answer = await rig.put(rig.report_path, status="preliminary", extension=None)
    assert answer.status == 200
    report = await rig.read(rig.report_path)
    assert told(report, concepts.STUDY_COMPLETENESS)["state"] == "complete"


async def test_draft_of_an_incomplete_study_says_so_in_sr_and_fhir(rig: Rig) -> None:
    verdict = Verdict(
        EvidenceKind.SILENCE,
        rig.store.clock() - timedelta(minutes=1),
        9,
        flaws=(Flaw.ABORTED,),
    )
    async with rig.store.db.transaction() as tx:
        await completion.write_verdict(tx, STUDY_UID, verdict, "evidence")
        report = await draft_report(
            rig.store,
            tx,
            STUDY_UID,
            with_what_is_missing(make_findings(), verdict),
            author=ALGORITHM,
            status=ReportStatus.PARTIAL,
        )
    payload = {"report_id": str(report.id), "version": report.current.number}
    await publish_report(rig.store, rig.settings, payload)
    (note,) = report.current.findings.not_read  # makes the SR PARTIAL
    assert note.en == "incomplete: association aborted, 9 images"
    shown = await rig.read(rig.report_path)
    assert told(shown, concepts.STUDY_COMPLETENESS)["state"] == "incomplete"
    assert not list(extensions(shown, concepts.NOT_READ))


async def test_closing_again_asks_for_another_reading(rig: Rig) -> None:
    await rig.sign()
    await late_image(rig, 1)
    await close(rig)
    assert await rig.store.jobs.claim([ASSESS_STUDY], "test") is not None
    async with rig.store.db.transaction() as tx:
        study = await studies.study(tx, STUDY_UID)
    assert study is not None
    assert (study.status, study.generation) == (StudyStatus.CLOSED, 2)
