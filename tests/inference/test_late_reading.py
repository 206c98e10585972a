"""What becomes of a reading when a physician has already worked on the report."""

from typing import Any

import pytest

from inference import reading
from inference.assess import ModelIdentity, StudyReading
from inference.reading import ReadingSettings, assess_study
from node.domain.finding import STUDY_INCOMPLETE
from node.domain.report import Conclusions, Report, ReportStatus
from node.domain.study import StudyStatus
from node.store import reports, studies
from node.store.associations import EndedHow
from node.store.reports import report_id_for
from node.store.store import Store
from node.workflow.completion import (
    ASSESS_STUDY,
    PUBLISH_STUDY,
    close_due_studies,
    end_association,
)
from node.workflow.intake import receive_instance
from node.workflow.reporting import revise_report
from tests.conftest import FrozenClock
from tests.factories import DOCTOR, make_findings
from tests.node.workflow.test_completion import STUDY, make_arrival

REPORT = report_id_for(STUDY)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Let the model say the category that the test puts under `category`."""
    told = {"category": "3"}

    def read_stored(*_: Any) -> StudyReading:
        model = ModelIdentity("tiny", "1.0", "ab" * 32)
        return StudyReading(make_findings(told["category"]), (), model, 1, {})

    monkeypatch.setattr(reading, "read_stored", read_stored)
    return told


async def examine(
    store: Store, clock: FrozenClock, number: int, how: EndedHow = EndedHow.RELEASED
) -> None:
    """Receive one image, close the study and read it."""
    await receive_instance(store, make_arrival(number, association=f"a{number}"))
    await end_association(store, f"a{number}", how)
    clock.advance(seconds=60)
    assert await close_due_studies(store) == 1
    job = await store.jobs.claim([ASSESS_STUDY], "test")
    assert job is not None
    await assess_study(store, job.payload, None, ReadingSettings())  # type: ignore[arg-type]
    await store.jobs.done(job)


async def current(store: Store) -> Report:
    async with store.db.transaction() as tx:
        study = await studies.study(tx, STUDY)
        assert study is not None
        assert study.status is StudyStatus.READ
        return await reports.read(tx, store, REPORT)


async def test_late_image_makes_a_new_draft_until_a_physician_has_worked(
    store: Store, clock: FrozenClock, says: dict[str, str]
) -> None:
    await examine(store, clock, 1)
    says["category"] = "4A"
    await examine(store, clock, 2)
    report = await current(store)
    assert [v.findings.category for v in report.versions] == ["3", "4A"]


async def test_reading_of_late_images_never_takes_the_place_of_a_signed_version(
    store: Store, clock: FrozenClock, says: dict[str, str]
) -> None:
    await examine(store, clock, 1)
    async with store.db.transaction() as tx:
        await revise_report(
            store,
            tx,
            REPORT,
            ReportStatus.FINAL,
            make_findings("2"),
            Conclusions(),
            author=DOCTOR,
        )
    says["category"] = "5"
    await examine(store, clock, 2)
    report = await current(store)
    assert report.current.status is ReportStatus.FINAL
    assert report.current.findings.category == "2"
    async with store.db.transaction() as tx:
        proposal = await reports.newest_proposal(tx, store, REPORT)
    assert proposal is not None
    assert (proposal.number, proposal.findings.category) == (2, "5")
    # She is told: `fhir.content.publish` does it.
    assert await store.jobs.claim([PUBLISH_STUDY], "test") is not None


async def test_draft_of_an_interrupted_transfer_says_that_images_may_be_missing(
    store: Store, clock: FrozenClock, says: dict[str, str]
) -> None:
    await examine(store, clock, 1, EndedHow.ABORTED)
    (note,) = (await current(store)).current.findings.not_read
    assert note.reason == STUDY_INCOMPLETE
    assert "association aborted" in note.en
    await examine(store, clock, 2)  # the machine came back, and released
    assert (await current(store)).current.findings.not_read == ()
