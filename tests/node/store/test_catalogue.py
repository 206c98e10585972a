"""The catalogue: pages by key, what is hidden, who is found (PS3.4 C)."""

from uuid import UUID

import pytest

from node.domain.study import Origin
from node.store import catalogue, erasure, reports
from node.store.catalogue import Narrowing, StudyEntry
from node.store.store import Store
from tests.dicom_scp.services import archive
from tests.dicom_scp.services.archive import JANUARY, MARCH, OTHER, UNDATED, ZHANG


async def found(store: Store, narrowing: Narrowing, *, limit: int = 100) -> list[str]:
    """Return the UIDs of all candidates, page by page."""
    uids: list[str] = []
    after, more = None, True
    while more:
        page = await catalogue.studies_page(store, narrowing, after=after, limit=limit)
        uids += [study.study_instance_uid for study in page.entries]
        after, more = page.last, page.more
    return uids


async def entry(store: Store, uid: str) -> StudyEntry:
    narrowing = Narrowing(study_uids=(uid,))
    page = await catalogue.studies_page(store, narrowing, after=None, limit=1)
    return page.entries[0]


@pytest.mark.parametrize("limit", [1, 3, 4])
async def test_pages_of_any_size_have_every_study_once_newest_first(
    store: Store, limit: int
) -> None:
    await archive.fill(store)
    expected = [OTHER, MARCH, JANUARY, UNDATED]
    assert await found(store, Narrowing(), limit=limit) == expected


async def test_patient_of_every_issuer_and_of_before_the_index_is_a_candidate(
    store: Store,
) -> None:
    await archive.fill(store)
    narrowing = Narrowing(patient_number=ZHANG)
    assert set(await found(store, narrowing)) == {MARCH, JANUARY, UNDATED}
    async with store.db.transaction() as tx:
        await tx.execute("update patients set number_blind = null")
    assert OTHER in await found(store, narrowing)  # opened and compared by the caller


async def test_number_is_looked_up_in_indexes_also_of_rows_that_are_one_woman(
    store: Store,
) -> None:
    narrowing = Narrowing(patient_number=ZHANG)
    text, values = catalogue.studies_statement(store, narrowing, after=None, limit=9)
    async with store.db.transaction() as tx:
        # An empty table is read whole, as nothing is cheaper.
        await tx.execute("set local enable_seqscan = off")
        plan = await tx.fetch(f"explain {text}", *values)
    told = "\n".join(row["QUERY PLAN"] for row in plan)
    assert "Seq Scan" not in told, told
    assert told.count("patients_number") == 3  # that number, none, and the other rows


async def test_erased_patient_is_nobody_and_ends_no_search(store: Store) -> None:
    await archive.fill(store)
    other = await entry(store, OTHER)
    await erasure.shred_patient(store.db, store.ring, other.patient.patient_id)
    assert await found(store, Narrowing(), limit=1) == [MARCH, JANUARY, UNDATED]


async def test_results_of_a_withdrawn_report_are_hidden(store: Store) -> None:
    await archive.fill(store)
    study = await entry(store, MARCH)
    async with store.db.transaction() as tx:
        await tx.execute(
            "update instances set origin = $2 where sop_instance_uid = $1",
            f"{MARCH}.1.2",
            Origin.AI_SR.value,
        )
        report_id = await reports.create(
            tx,
            study_instance_uid=MARCH,
            patient_id=study.patient.patient_id,
            at=store.clock(),
        )
        await write_version(store, tx, report_id, 1, "final")
    assert (await catalogue.summaries(store, [MARCH]))[MARCH].instances == 2
    async with store.db.transaction() as tx:
        await write_version(store, tx, report_id, 2, "entered-in-error")
    assert (await catalogue.summaries(store, [MARCH]))[MARCH].instances == 1
    told = await catalogue.retrievable(store, Narrowing(), [MARCH])
    assert [one.sop_instance_uid for one in told] == [f"{MARCH}.1.1"]
    told = await catalogue.retrievable(store, Narrowing(), [MARCH], rejected_too=True)
    assert len(told) == 2


async def write_version(
    store: Store, tx: object, report_id: UUID, number: int, status: str
) -> None:
    await tx.execute(  # type: ignore[attr-defined]
        "insert into report_version"
        " (report_id, number, status, author_kind, written_at, body)"
        " values ($1, $2, $3, 'physician', $4, '')",
        report_id,
        number,
        status,
        store.clock(),
    )


async def test_study_of_which_everything_is_rejected_is_not_there(
    store: Store,
) -> None:
    await archive.fill(store)
    await archive.reject(store, MARCH, [f"{MARCH}.1.1", f"{MARCH}.1.2", f"{MARCH}.9.1"])
    firsts = await catalogue.first_instances(store, [MARCH, JANUARY])
    assert list(firsts) == [JANUARY]
    assert MARCH not in await catalogue.summaries(store, [MARCH, JANUARY])


def test_key_objects_of_interest_reject_nothing() -> None:
    header = {
        "0040A043": {"vr": "SQ", "Value": [{"00080100": {"Value": ["113000"]}}]},
        "0040A375": {"vr": "SQ", "Value": [{"00081115": {"Value": []}}]},
    }
    assert catalogue.rejected_by(header) == set()
