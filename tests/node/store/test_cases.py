"""Confirmed cases: found by likeness, only while a physician stands behind them."""

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Findings
from node.domain.outcome import (
    CaseOutcome,
    Method,
    RecordedOutcome,
    outcome_of_lesion,
)
from node.domain.report import Conclusions, Report, ReportStatus
from node.store import cases, reports
from node.store.database import Database
from node.store.erasure import shred_patient
from node.store.migrate import migrate
from node.store.postgres import SUPERUSER, EmbeddedPostgres
from node.store.store import Store, open_store
from tests.conftest import FrozenClock
from tests.factories import ALGORITHM, DOCTOR, NOW, make_findings

ROOT = Path(__file__).parents[3]
MODEL = "ab" * 32
LESION = "2.25.1001"


@pytest.fixture(params=["vector", "real[]"])
async def archive(
    request: pytest.FixtureRequest,
    postgres_server: EmbeddedPostgres,
    new_database: Callable[[], str],
    empty_database: str,
    root_key: Path,
    tmp_path: Path,
    clock: FrozenClock,
) -> AsyncIterator[Store]:
    """A store on a database with pgvector, and one on a database without."""
    dsn = new_database()
    if request.param == "real[]":
        dsn = empty_database
        name = dsn.split("?")[0].rsplit("/", 1)[1]
        superuser = await asyncpg.connect(postgres_server.dsn(SUPERUSER, name))
        await superuser.execute("drop extension vector")
        await superuser.close()
        database = await Database.connect(dsn)
        await migrate(database)
        await database.close()
    opened = await open_store(dsn, root_key, tmp_path / "objects", clock)
    async with opened.db.connection() as connection:
        assert await cases._column_type(connection) == request.param
    yield opened
    await opened.close()


def pointing(*parts: float) -> list[float]:
    """Return a vector whose first values are `parts`."""
    return [*parts, *[0.0] * (cases.DIMENSIONS - len(parts))]


async def draft(
    store: Store,
    vector: Sequence[float] | None,
    *,
    patient_id: UUID | None = None,
    model: str = MODEL,
) -> Report:
    """Write the algorithm's draft of a new study, with its lesion's vector."""
    async with store.db.transaction() as tx:
        report_id = await reports.create(
            tx,
            study_instance_uid=f"2.25.{uuid4().int}",
            patient_id=patient_id or uuid4(),
            at=store.clock(),
        )
        report = await reports.read_for_update(tx, store, report_id)
        report = report.draft(make_findings(), author=ALGORITHM, at=store.clock())
        await reports.append_version(tx, store, report, report.current)
        if vector is not None:
            await cases.write_vectors(
                tx,
                report,
                model_sha=model,
                vectors={LESION: vector},
                at=store.clock(),
            )
    return report


async def revise(
    store: Store,
    report: Report,
    status: ReportStatus = ReportStatus.FINAL,
    findings: Findings | None = None,
) -> Report:
    """Write a physician's version and let the archive follow."""
    report = report.revise(
        status,
        findings or make_findings("4A"),
        Conclusions(),
        author=DOCTOR,
        at=store.clock(),
        reason="because",
    )
    async with store.db.transaction() as tx:
        await reports.append_version(tx, store, report, report.current)
        await cases.follow(tx, report)
    return report


async def signed(
    store: Store,
    vector: Sequence[float] | None,
    *,
    patient_id: UUID | None = None,
    model: str = MODEL,
) -> Report:
    return await revise(
        store, await draft(store, vector, patient_id=patient_id, model=model)
    )


async def alike(store: Store, report: Report) -> list[tuple[UUID, float]] | None:
    async with store.db.transaction() as tx:
        found = await cases.similar(tx, report.id, LESION)
    if found is None:
        return None
    return [(one.case.report_id, round(one.similarity, 3)) for one in found]


async def test_the_three_nearest_confirmed_cases_come_nearest_first(
    archive: Store,
) -> None:
    far = await signed(archive, pointing(0, 5))
    near = await signed(archive, pointing(4, 3))
    same = await signed(archive, pointing(2))
    opposite = await signed(archive, pointing(-1))
    own = await draft(archive, pointing(1))
    found = await alike(archive, own)
    assert found == [(same.id, 1.0), (near.id, 0.8), (far.id, 0.0)]
    assert opposite.id not in {report_id for report_id, _ in found}


async def test_only_what_a_physician_stands_behind_is_found(archive: Store) -> None:
    await draft(archive, pointing(1))
    unsigned = await draft(archive, pointing(1))
    await revise(archive, unsigned, ReportStatus.PRELIMINARY)
    withdrawn = await signed(archive, pointing(1))
    await revise(archive, withdrawn, ReportStatus.ENTERED_IN_ERROR)
    refuted = await signed(archive, pointing(1))
    none = Findings(lesions=(), category="1")
    await revise(archive, refuted, ReportStatus.CORRECTED, none)
    amended = await signed(archive, pointing(1))
    await revise(archive, amended, ReportStatus.AMENDED)
    own = await draft(archive, pointing(1))
    assert await alike(archive, own) == [(amended.id, 1.0)]


async def test_the_patient_s_own_and_another_model_s_cases_do_not_compare(
    archive: Store,
) -> None:
    woman = uuid4()
    await signed(archive, pointing(1), patient_id=woman)
    await signed(archive, pointing(1), model="cd" * 32)
    own = await draft(archive, pointing(1), patient_id=woman)
    assert await alike(archive, own) == []


async def test_one_patient_with_many_examinations_is_one_case(archive: Store) -> None:
    woman = uuid4()
    for _ in range(4):
        await signed(archive, pointing(1, 0.1), patient_id=woman)
    nearest = await signed(archive, pointing(1), patient_id=woman)
    other = await signed(archive, pointing(1, 1))
    own = await draft(archive, pointing(1))
    found = await alike(archive, own)
    assert found == [(nearest.id, 1.0), (other.id, 0.707)]


async def test_a_lesion_without_a_vector_has_no_answer(archive: Store) -> None:
    assert await alike(archive, await draft(archive, None)) is None


async def test_a_second_reading_replaces_the_first(archive: Store) -> None:
    case = await signed(archive, pointing(0, 1))
    own = await draft(archive, pointing(1))
    for vector in (pointing(3, 1), pointing(0, 1)):
        async with archive.db.transaction() as tx:
            await cases.write_vectors(
                tx, own, model_sha=MODEL, vectors={LESION: vector}, at=archive.clock()
            )
    assert await alike(archive, own) == [(case.id, 1.0)]


async def test_a_shredded_patient_leaves_no_vector_and_no_outcome(
    archive: Store,
) -> None:
    case = await signed(archive, pointing(1))
    kept = await signed(archive, pointing(1))
    for report in (case, kept):
        await tell(archive, report, CaseOutcome.MALIGNANT)
    await shred_patient(archive.db, archive.ring, case.patient_id)
    async with archive.db.connection() as connection:
        for table in ("lesion_vector", "case_outcome"):
            rows = await connection.fetch(f"select report_id from {table}")
            assert [row["report_id"] for row in rows] == [kept.id]


@pytest.mark.parametrize(
    "vector", [[1.0], pointing(0), pointing(float("nan")), pointing(float("inf"))]
)
async def test_what_is_no_direction_is_refused(
    store: Store, vector: list[float]
) -> None:
    with pytest.raises(NodeError) as told:
        await draft(store, vector)
    assert told.value.kind is ErrorKind.INVALID


async def test_a_case_that_is_not_confirmed_cannot_be_looked_at(store: Store) -> None:
    case = await signed(store, pointing(1))
    own = await draft(store, pointing(1))
    async with store.db.transaction() as tx:
        found = await cases.similar(tx, own.id, LESION)
        assert found is not None
        (similar,) = found
        again = await cases.confirmed_case(tx, similar.case.case_id)
        assert again == similar.case
    await revise(store, case, ReportStatus.ENTERED_IN_ERROR)
    async with store.db.transaction() as tx:
        with pytest.raises(NodeError, match="no such confirmed case"):
            await cases.confirmed_case(tx, similar.case.case_id)


async def test_the_index_answers_also_when_most_neighbours_are_filtered_out(
    store: Store,
) -> None:
    """Hundreds of nearer cases of another model must not hide ours."""
    report = await signed(store, pointing(0, 1))
    async with store.db.transaction() as tx:
        await tx.execute("set local enable_seqscan = off")
        await tx.execute(
            "insert into lesion_vector (report_id, tracking_uid, model_sha,"
            " patient_id, confirmed, written_at, vector)"
            " select $1, 'other ' || n, 'other', gen_random_uuid(), true, now(),"
            " ('[1,' || n / 1e4 || repeat(',0', 126) || ']')::vector"
            " from generate_series(1, 500) n",
            report.id,
        )
    own = await draft(store, pointing(1))
    async with store.db.transaction() as tx:
        await tx.execute("set local enable_seqscan = off")
        await tx.execute("set local enable_sort = off")
        await tx.execute("set local hnsw.iterative_scan = strict_order")
        plan = await tx.fetch(
            "explain "
            + cases._BY_INDEX.replace("$1", f"'{pointing(1)}'")
            .replace("$2", f"'{MODEL}'")
            .replace("$3::uuid[]", f"array['{uuid4()}']::uuid[]")
            .replace("$4", "24")
        )
        assert any("lesion_vector_alike" in row[0] for row in plan)
        found = await cases.similar(tx, own.id, LESION)
    assert found is not None
    assert [one.case.report_id for one in found] == [report.id]


async def test_an_archive_without_pgvector_changes_over_as_the_manual_says(
    archive: Store, postgres_server: EmbeddedPostgres
) -> None:
    case = await signed(archive, pointing(1, 0.2))
    own = await draft(archive, pointing(1))
    before = await alike(archive, own)
    async with archive.db.connection() as connection:
        if await cases._column_type(connection) == "vector":
            return
        name = await connection.fetchval("select current_database()")
        superuser = await asyncpg.connect(postgres_server.dsn(SUPERUSER, name))
        await superuser.execute("create extension vector")
        await superuser.close()
        manual = (ROOT / "docs" / "operations.md").read_text("utf-8")
        told = manual[manual.index("create extension vector") :].split("\n\n")[1]
        await connection.execute(told)
    assert await alike(archive, own) == before == [(case.id, 0.981)]
    again = await signed(archive, pointing(1, 0.1))
    assert [report_id for report_id, _ in await alike(archive, own) or ()] == [
        again.id,
        case.id,
    ]


# --- outcomes ----------------------------------------------------------------------


async def tell(
    store: Store,
    report: Report,
    outcome: CaseOutcome | None,
    lesion: str | None = LESION,
) -> None:
    method = None if outcome is None else Method.BIOPSY
    async with store.db.transaction() as tx:
        await cases.record_outcome(
            tx,
            report,
            RecordedOutcome(lesion, outcome, method, store.clock(), DOCTOR.id),
        )


async def test_the_newest_entry_counts_and_none_takes_back(store: Store) -> None:
    report = await signed(store, None)
    for outcome in (CaseOutcome.BENIGN, CaseOutcome.MALIGNANT, None):
        await tell(store, report, outcome)
    async with store.db.connection() as connection:
        kept = await cases.outcomes(connection, report.id)
    assert [row.outcome for row in kept] == ["benign", "malignant", None]
    newest = outcome_of_lesion(LESION, 1, kept[:2])
    assert newest is not None
    assert newest.outcome is CaseOutcome.MALIGNANT
    assert outcome_of_lesion(LESION, 1, kept) is None


def test_a_malignant_examination_does_not_tell_which_of_two_lesions_it_was() -> None:
    def entry(uid: str | None, outcome: CaseOutcome) -> RecordedOutcome:
        return RecordedOutcome(uid, outcome, Method.BIOPSY, NOW, DOCTOR.id)

    whole = [entry(None, CaseOutcome.MALIGNANT)]
    assert outcome_of_lesion(LESION, 2, whole) is None
    assert outcome_of_lesion(LESION, 1, whole) == whole[0]
    benign = [entry(None, CaseOutcome.BENIGN)]
    assert outcome_of_lesion(LESION, 2, benign) == benign[0]
    own = entry(LESION, CaseOutcome.BENIGN)
    assert outcome_of_lesion(LESION, 2, [own, *whole]) == own
