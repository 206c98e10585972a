"""Reports on disk: versions in order, sealed, never overwritten."""

import pytest

from node.domain.errors import ErrorKind, NodeError
from node.domain.report import Conclusions, ReportStatus
from node.store import reports
from node.store.store import Store
from tests.factories import ALGORITHM, DOCTOR, make_disclosure, make_findings


async def make_report(store: Store) -> reports.Report:
    from uuid import uuid4

    async with store.db.transaction() as tx:
        report_id = await reports.create(
            tx, study_instance_uid="2.25.1", patient_id=uuid4(), at=store.clock()
        )
        report = await reports.read_for_update(tx, store, report_id)
        report = report.draft(make_findings(), author=ALGORITHM, at=store.clock())
        await reports.append_version(tx, store, report, report.current)
    return report


async def test_versions_and_disclosures_come_back_as_written(store: Store) -> None:
    report = await make_report(store)
    signed = report.revise(
        ReportStatus.FINAL,
        make_findings("4A"),
        Conclusions(impression="李女士"),
        author=DOCTOR,
        at=store.clock(),
    )
    told = signed.disclose(make_disclosure())
    async with store.db.transaction() as tx:
        await reports.append_version(tx, store, signed, signed.current)
        await reports.append_disclosure(tx, store, told, told.disclosures[0])
    async with store.db.connection() as connection:
        assert await reports.read(connection, store, report.id) == told
        bodies = await connection.fetch("select body from report_version")
    assert not any("李女士".encode() in row["body"] for row in bodies)


async def test_a_version_number_is_written_once(store: Store) -> None:
    report = await make_report(store)
    with pytest.raises(NodeError) as caught:
        async with store.db.transaction() as tx:
            await reports.append_version(tx, store, report, report.current)
    assert caught.value.kind is ErrorKind.CONFLICT


async def test_handles_are_random_and_stay(store: Store) -> None:
    report = await make_report(store)
    async with store.db.transaction() as tx:
        first = await reports.handles(tx, report.id)
        assert await reports.handles(tx, report.id) == first
    assert all(len(handle) == 22 for handle in first)


async def test_an_unknown_report_is_not_found(store: Store) -> None:
    from uuid import uuid4

    async with store.db.connection() as connection:
        with pytest.raises(NodeError, match="no report"):
            await reports.read(connection, store, uuid4())
