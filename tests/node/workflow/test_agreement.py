"""A signature is compared with the draft, an amendment again; drift is said once."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import structlog

from node.domain.agreement import FIELDS, LESION_CATEGORY, OVERALL_CATEGORY
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import Conclusions, Report, ReportStatus
from node.store import agreement, erasure
from node.store.agreement import Selection
from node.store.store import Store
from node.workflow.agreement import (
    JOB,
    DriftSettings,
    compare_report,
    compare_the_rest,
    judge,
    machine_of,
    watch_drift,
)
from node.workflow.reporting import draft_report, revise_report
from tests.agreements import KEPT, MODEL, MODEL_NAME, compared_reports, record_all
from tests.factories import ALGORITHM, DOCTOR, make_findings, make_patient
from tests.fhir.rig import STUDY_UID, receive_study

NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)
SETTINGS = DriftSettings(window=60, alpha=0.01)


async def drafted(store: Store, study_uid: str = STUDY_UID) -> Report:
    await receive_study(store, make_patient(), study_uid=study_uid)
    async with store.db.transaction() as tx:
        return await draft_report(
            store, tx, study_uid, make_findings("4C"), author=ALGORITHM
        )


async def revise(store: Store, report: Report, status: str, category: str) -> Report:
    async with store.db.transaction() as tx:
        return await revise_report(
            store,
            tx,
            report.id,
            ReportStatus(status),
            make_findings(category),
            Conclusions(),
            author=DOCTOR,
            reason="复核" if status != "final" else None,
        )


async def do_jobs(store: Store) -> int:
    done = 0
    while job := await store.jobs.claim([JOB], "test"):
        await compare_report(store, job.payload)
        await store.jobs.done(job)
        done += 1
    return done


async def cells(store: Store, field: str = OVERALL_CATEGORY) -> dict:
    async with store.db.connection() as tx:
        return (await agreement.cells(tx, Selection()))[field]


async def test_a_report_is_compared_when_it_is_signed_and_again_when_it_is_amended(
    store: Store, clock
) -> None:
    report = await drafted(store)
    await revise(store, report, "preliminary", "4B")
    assert await do_jobs(store) == 0
    await revise(store, report, "final", "4B")
    assert await do_jobs(store) == 1
    assert await cells(store) == {("4C", "4B"): 1}
    clock.advance(seconds=40 * 86400)
    await revise(store, report, "amended", "4C")
    assert await do_jobs(store) == 1
    assert await cells(store) == {("4C", "4C"): 1}
    assert await cells(store, LESION_CATEGORY) == {("4C", "4C"): 1}
    async with store.db.connection() as tx:
        row = await tx.fetchrow("select * from agreement_reports")
    assert row["model"] == ALGORITHM.id
    assert row["version"] == 4
    assert row["signed_at"] == NOW  # an amendment does not move a report in time


async def test_a_withdrawn_report_leaves_no_comparison(store: Store) -> None:
    report = await drafted(store)
    await revise(store, report, "final", "4C")
    await revise(store, report, "entered-in-error", "4C")
    assert await do_jobs(store) == 2
    assert await cells(store) == {}
    assert await compare_the_rest(store) == 0


async def test_reports_signed_before_there_were_comparisons_are_compared_later(
    store: Store,
) -> None:
    report = await drafted(store)
    await drafted(store, "2.25.3002")
    await revise(store, report, "final", "4C")
    async with store.db.transaction() as tx:
        await tx.execute("delete from jobs")
    assert await compare_the_rest(store) == 1
    assert await do_jobs(store) == 1
    assert await compare_the_rest(store) == 0
    assert await cells(store) == {("4C", "4C"): 1}


async def test_nothing_is_kept_of_an_erased_patient_but_sums(store: Store) -> None:
    report = await drafted(store)
    await revise(store, report, "final", "4C")
    assert await do_jobs(store) == 1
    await revise(store, report, "amended", "4B")
    await erasure.shred_patient(store.db, store.ring, report.patient_id)
    await do_jobs(store)
    assert await compare_the_rest(store) == 0
    async with store.db.connection() as tx:
        assert await tx.fetchval("select count(*) from agreement_reports") == 0
        assert await tx.fetchval("select count(*) from agreement_values") == 0
    assert await cells(store) == {("4C", "4C"): 1}


async def test_an_unknown_report_is_not_found(store: Store) -> None:
    with pytest.raises(NodeError) as caught:
        await compare_report(store, {"report_id": str(UUID(int=1))})
    assert caught.value.kind is ErrorKind.NOT_FOUND


async def test_rows_hold_words_of_the_lexicon_and_nothing_of_the_patient(
    store: Store,
) -> None:
    report = await drafted(store)
    await revise(store, report, "final", "4C")
    await do_jobs(store)
    person = make_patient()
    async with store.db.connection() as tx:
        told = [
            str(tuple(row))
            for table in ("models", "reports", "values", "counts")
            for row in await tx.fetch(f"select * from agreement_{table}")
        ]
    written = "\n".join(told)
    assert "angular+spiculated" in written
    for secret in (person.patient_id, "张", "Zhang", "2026, 11, 20", STUDY_UID):
        assert secret not in written
    assert (await reports_of(store)) == [report.id]


async def reports_of(store: Store) -> list[UUID]:
    async with store.db.connection() as tx:
        return [r["report_id"] for r in await tx.fetch("table agreement_reports")]


def header(manufacturer: object = None, model: object = None) -> bytes:
    given = {"00080070": manufacturer, "00081090": model}
    elements = {
        tag: {"vr": "LO", "Value": [value]} for tag, value in given.items() if value
    }
    return json.dumps({"00080060": {"vr": "CS", "Value": ["US"]}, **elements}).encode()


def test_the_machine_is_the_one_that_made_most_of_the_images() -> None:
    ge = header("GE Healthcare", "LOGIQ E9")
    assert machine_of([ge, ge, header("Mindray", "Resona 7")]) == (
        "GE Healthcare LOGIQ E9"
    )
    assert machine_of([header("SIEMENS", "Siemens S2000")]) == "Siemens S2000"
    assert machine_of([header(), header("Philips"), header()]) == "Philips"
    assert machine_of([]) == machine_of([b"{}", header()]) == ""
    assert machine_of([header("A\n\x00B" * 40, 7)]) == ("A B" * 40)[:64]


# --- drift ------------------------------------------------------------------------


def changed(**fields: float) -> dict[str, float]:
    return {**KEPT, **fields}


async def test_a_planted_drop_is_said_once_and_its_end_once(store: Store) -> None:
    start = NOW - timedelta(days=400)
    await record_all(store, compared_reports(240, ends=start, seed=11))
    with structlog.testing.capture_logs() as lines:
        await watch_drift(store, SETTINGS)
        worse = compared_reports(
            60, ends=start + timedelta(days=60), seed=12, kept=changed(shape=0.45)
        )
        await record_all(store, worse)
        for _ in range(3):
            await watch_drift(store, SETTINGS)
        again = compared_reports(60, ends=start + timedelta(days=120), seed=13)
        await record_all(store, again)
        for _ in range(2):
            await watch_drift(store, SETTINGS)
    said = [(line["event"], line["field"]) for line in lines]
    assert said == [("agreement.drift", "shape"), ("agreement.drift_ended", "shape")]
    assert lines[0]["window"] < lines[0]["reference"]


async def test_stable_reports_raise_no_alarm_window_after_window(store: Store) -> None:
    ends = NOW - timedelta(days=300)
    found = []
    for number in range(10):
        ends += timedelta(hours=9 * 60)
        await record_all(store, compared_reports(60, ends=ends, seed=100 + number))
        async with store.db.connection() as tx:
            judged = await judge(tx, SETTINGS)
        found.append(judged.drifted)
    assert found == [()] * 10


async def test_the_model_in_use_is_judged_and_others_when_asked_for(
    store: Store,
) -> None:
    async with store.db.connection() as tx:
        assert await judge(tx, SETTINGS) is None
    await record_all(store, compared_reports(120, ends=NOW, seed=14))
    other = ("model-2", "next")
    later = NOW + timedelta(days=1)
    await record_all(store, compared_reports(5, ends=later, seed=15, model=other))
    async with store.db.connection() as tx:
        newest = await judge(tx, SETTINGS)
        before = await judge(tx, SETTINGS, MODEL)
        assert await judge(tx, SETTINGS, "model-3") is None
    assert (newest.model, newest.reports, newest.fields) == ("model-2", 5, ())
    assert (before.name, before.reports) == (MODEL_NAME, 120)
    assert [row.field for row in before.fields] == list(FIELDS)
