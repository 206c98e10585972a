"""Comparisons on disk: counted once, taken back whole, read at the same cost."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from node.domain.agreement import (
    FIELDS,
    OVERALL_CATEGORY,
    Comparison,
    Trials,
    count_trials,
)
from node.store import agreement
from node.store.agreement import Grain, Selection, piece_of
from node.store.store import Store
from tests.agreements import MODEL, compared_reports, record_all

NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)


async def recount(store: Store) -> Counter:
    """Return the counts as the rows have them."""
    async with store.db.connection() as tx:
        rows = await tx.fetch(
            "select r.model, r.signed_at, r.machine, v.field, v.leads, v.ai_value,"
            " v.signed_value from agreement_reports r"
            " join agreement_values v using (report_id, model)"
        )
    counted: Counter = Counter()
    for model, signed_at, *cell in rows:
        counted[model, piece_of(signed_at.date()), *cell] += 1
    return counted


async def counts(store: Store) -> dict:
    async with store.db.connection() as tx:
        rows = await tx.fetch("select * from agreement_counts where n <> 0")
    return {tuple(row)[:-1]: row["n"] for row in rows}


def counted_as(counted: Counter) -> dict:
    return {
        (model, starts, machine, field, leading, ai, signed): n
        for (model, starts, machine, field, leading, ai, signed), n in counted.items()
    }


async def test_counts_are_the_sums_of_the_rows_through_every_change(
    store: Store,
) -> None:
    reports = list(compared_reports(40, ends=NOW, seed=1))
    await record_all(store, iter(reports))
    amended = replace(
        reports[3],
        version=3,
        comparisons=(Comparison(0, OVERALL_CATEGORY, "4A", "6", True),),
    )
    await record_all(store, iter([amended]))
    async with store.db.transaction() as tx:
        await agreement.withdraw(tx, reports[5].report_id)
        await agreement.withdraw(tx, reports[5].report_id)
    assert await counts(store) == counted_as(await recount(store))
    async with store.db.connection() as tx:
        cells = (await agreement.cells(tx, Selection()))[OVERALL_CATEGORY]
    assert cells["4A", "6"] == 1
    assert sum(cells.values()) == 39


async def test_writing_the_same_comparison_again_changes_nothing(store: Store) -> None:
    reports = list(compared_reports(5, ends=NOW, seed=2))
    await record_all(store, iter(reports))
    before = await counts(store)
    await record_all(store, iter(reports))
    assert await counts(store) == before


@pytest.mark.parametrize(
    ("day", "starts"),
    [
        ((2026, 11, 1), (2026, 11, 1)),  # a Sunday: its week began in October
        ((2026, 11, 2), (2026, 11, 2)),
        ((2026, 11, 8), (2026, 11, 2)),
        ((2026, 11, 30), (2026, 11, 30)),
        ((2026, 12, 1), (2026, 12, 1)),
    ],
)
def test_a_piece_of_calendar_lies_in_one_week_and_one_month(day, starts) -> None:
    assert piece_of(date(*day)) == date(*starts)


async def test_weeks_and_months_add_up_to_the_same(store: Store) -> None:
    await record_all(store, compared_reports(120, ends=NOW, seed=3))
    async with store.db.connection() as tx:
        months = await agreement.trend(tx, Selection(), Grain.MONTH)
        weeks = await agreement.trend(tx, Selection(), Grain.WEEK)
    assert list(months) == sorted(months)
    assert all(day.day == 1 for day in months)
    assert all(day.weekday() == 0 for day in weeks)
    for field in FIELDS:
        sums = [
            sum((Counter(cells[field]) for cells in found.values()), Counter())
            for found in (months, weeks)
        ]
        assert sums[0] == sums[1]


async def test_reports_are_chosen_by_model_machine_and_time(store: Store) -> None:
    await record_all(store, compared_reports(60, ends=NOW, seed=4))
    other = ("model-2", "next 0.2.0+sha256.2")
    later = NOW + timedelta(days=3)
    await record_all(
        store,
        compared_reports(7, ends=later, seed=5, model=other, machines=("",)),
    )
    async with store.db.connection() as tx:
        models = await agreement.models(tx)
        assert [(m.model, m.reports) for m in models] == [("model-2", 7), (MODEL, 60)]
        machines = await agreement.machines(tx)
        assert sum(machines.values()) == 67
        assert machines[""] == 7
        chosen = await agreement.cells(tx, Selection(MODEL, "GE LOGIQ E9"))
        assert sum(chosen[OVERALL_CATEGORY].values()) == machines["GE LOGIQ E9"]
        since = Selection(since=date(2026, 11, 10))
        recent = await agreement.cells(tx, since)
        assert 0 < sum(recent[OVERALL_CATEGORY].values()) < 67
        devices = await agreement.devices(tx, Selection(), OVERALL_CATEGORY)
    assert {(d.model, d.machine) for d in devices} == {
        ("model-2", ""),
        (MODEL, "GE LOGIQ E9"),
        (MODEL, "Mindray Resona 7"),
    }


async def test_the_newest_complete_window_stands_against_all_before_it(
    store: Store,
) -> None:
    reports = list(compared_reports(137, ends=NOW, seed=6))
    # Two signed in the same moment have an order too.
    reports[90] = replace(reports[90], signed_at=reports[89].signed_at)
    await record_all(store, iter(reports))
    ordered = sorted(reports, key=lambda r: (r.signed_at, r.report_id))
    async with store.db.connection() as tx:
        found = await agreement.drift_trials(tx, MODEL, 30)
        early = await agreement.drift_trials(tx, MODEL, 69)
    assert found.reports == 137
    window, before = ordered[90:120], ordered[:90]
    assert found.window == (window[0].signed_at, window[-1].signed_at)
    for field in FIELDS:
        expected = tuple(_trials(field, part) for part in (window, before))
        assert found.trials[field] == expected, field
    assert (early.window, early.trials) == (None, {})


def _trials(field: str, reports: list) -> Trials:
    cells = Counter(
        (row.ai, row.signed)
        for report in reports
        for row in report.comparisons
        if row.field == field and row.leading
    )
    return count_trials(field, cells)


async def test_an_alarm_is_told_once_when_it_begins_and_once_when_it_ends(
    store: Store, clock
) -> None:
    await record_all(store, compared_reports(1, ends=NOW, seed=7))
    async with store.db.transaction() as tx:
        began = await agreement.set_alarms(tx, MODEL, ["margin", "shape"], clock())
        again = await agreement.set_alarms(tx, MODEL, ["margin", "shape"], clock())
        ended = await agreement.set_alarms(tx, MODEL, ["shape"], clock())
        assert await agreement.alarms(tx) == {(MODEL, "shape"): clock()}
    assert sorted(began[0]) == ["margin", "shape"]
    assert began[1] == []
    assert again == ([], [])
    assert ended == ([], ["margin"])


_MANY = """
with numbered as (
    select i, gen_random_uuid() as report_id from generate_series(1, 5000) i
), written as (
    insert into agreement_reports (report_id, model, machine, version, signed_at)
    select report_id, $1, '', 2, now() - i * interval '1 hour' from numbered
)
insert into agreement_values
    (report_id, model, lesion, field, ai_value, signed_value, leads)
select report_id, $1, 1, field, 'a', 'a', true
from numbered, unnest($2::text[]) as field
"""


async def test_the_newest_window_is_found_without_reading_the_archive(
    store: Store,
) -> None:
    await record_all(store, compared_reports(1, ends=NOW, seed=8))
    async with store.db.transaction() as tx:
        await tx.execute(_MANY, MODEL, list(FIELDS))
        await tx.execute("analyze agreement_reports, agreement_values")
        plan = await tx.fetch(f"explain {agreement._NEWEST}", MODEL, 5, 30, "lesion")
    told = "\n".join(row[0] for row in plan)
    assert "agreement_reports_in_order" in told
    assert "agreement_values_pkey" in told
    assert "Seq Scan" not in told
