"""What the algorithm said beside what the doctor signed, as rows and as counts.

`agreement_values` holds every pair, `agreement_counts` the same counted per model,
machine and piece of calendar: pages, metrics and the drift test read counts and the
few newest reports, so that their cost does not grow with the archive.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.agreement import (
    FIELDS,
    LESION,
    OVERALL_CATEGORY,
    Comparison,
    Pair,
    Trials,
    count_trials,
)

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction

_SIGNED = ("final", "amended", "corrected", "appended")


@dataclass(frozen=True)
class ComparedReport:
    """A signed report beside one model's draft of it.

    `machine` is empty where no image names its maker. `version` is the signed
    version that was compared, `signed_at` the time of the first signature.
    """

    report_id: UUID
    model: str
    model_name: str
    machine: str
    version: int
    signed_at: datetime
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Selection:
    """Which reports a question is about; None = all of them."""

    model: str | None = None
    machine: str | None = None
    since: date | None = None


class Grain(StrEnum):
    """How finely time is divided."""

    MONTH = "month"
    WEEK = "week"


@dataclass(frozen=True)
class ModelRow:
    """A model with how many of its drafts were signed."""

    model: str
    name: str
    reports: int
    last_signed_at: datetime


@dataclass(frozen=True)
class Device:
    """A model on the pictures of one machine."""

    model: str
    machine: str


@dataclass(frozen=True)
class DriftTrials:
    """The newest complete window of a model against everything before it.

    `reports` counts all compared reports, `window` (first, last) tells when the
    reports of the window were signed; None while there is no window with
    something before it.
    """

    reports: int
    window: tuple[datetime, datetime] | None
    trials: Mapping[str, tuple[Trials, Trials]]


# --- writing ------------------------------------------------------------------


async def record(tx: "Transaction", compared: ComparedReport) -> None:
    """Write a comparison in the place of an earlier one of the same report.

    The caller holds the report's row, so that nobody else compares it meanwhile.
    """
    delta = await _withdrawn(tx, compared.report_id, compared.model)
    await tx.execute(
        "insert into agreement_models (model, name, last_signed_at)"
        " values ($1, $2, $3) on conflict (model) do update"
        " set last_signed_at = excluded.last_signed_at, name = excluded.name"
        " where agreement_models.last_signed_at < excluded.last_signed_at",
        compared.model,
        compared.model_name,
        compared.signed_at,
    )
    await tx.execute(
        "insert into agreement_reports"
        " (report_id, model, machine, version, signed_at) values ($1, $2, $3, $4, $5)",
        compared.report_id,
        compared.model,
        compared.machine,
        compared.version,
        compared.signed_at,
    )
    await tx.executemany(
        "insert into agreement_values (report_id, model, lesion, field, ai_value,"
        " signed_value, leads) values ($1, $2, $3, $4, $5, $6, $7)",
        [
            (compared.report_id, compared.model, *_row_of(row))
            for row in compared.comparisons
        ],
    )
    starts = piece_of(compared.signed_at.date())
    for row in compared.comparisons:
        cell = (row.field, row.leading, row.ai, row.signed)
        delta[starts, compared.machine, *cell] += 1
    await _count(tx, compared.model, delta)


async def withdraw(tx: "Transaction", report_id: UUID) -> None:
    """Take back the comparisons of a report that is no longer signed."""
    rows = await tx.fetch(
        "select model from agreement_reports where report_id = $1", report_id
    )
    for row in rows:
        await _count(tx, row["model"], await _withdrawn(tx, report_id, row["model"]))


async def forget_patient(tx: "Transaction", patient_id: UUID) -> None:
    """Delete the comparisons of a patient's reports.

    What was counted stays counted: the sums name nobody.
    """
    await tx.execute(
        "delete from agreement_reports where report_id in"
        " (select id from report where patient_id = $1)",
        patient_id,
    )


async def uncompared(tx: "Transaction", limit: int) -> list[UUID]:
    """Return signed reports with a draft that nobody has compared yet.

    These are reports from before comparisons were made, and those whose job
    gave up; patients who were erased are left out.
    """
    rows = await tx.fetch(
        "select r.id from report r where exists (select from report_version v"
        "  where v.report_id = r.id and v.author_kind = 'algorithm')"
        " and (select v.status from report_version v where v.report_id = r.id"
        "  order by v.number desc limit 1) = any($1)"
        " and not exists (select from agreement_reports a where a.report_id = r.id)"
        " and not exists (select from data_keys k where k.domain = 'patient'"
        "  and k.subject = r.patient_id and k.shredded_at is not null)"
        " order by r.created_at limit $2",
        list(_SIGNED),
        limit,
    )
    return [row["id"] for row in rows]


def piece_of(day: date) -> date:
    """Return the first day of the piece of calendar that `day` is counted in.

    It begins with a week or with a month: sums of pieces make either.
    """
    return max(day - timedelta(days=day.weekday()), day.replace(day=1))


_Cell = tuple[date, str, str, bool, str | None, str | None]


def _row_of(row: Comparison) -> tuple[int, str, str | None, str | None, bool]:
    return row.lesion, row.field, row.ai, row.signed, row.leading


async def _withdrawn(tx: "Transaction", report_id: UUID, model: str) -> Counter[_Cell]:
    """Delete a comparison; return what it takes from the counts."""
    delta: Counter[_Cell] = Counter()
    rows = await tx.fetch(
        "select r.machine, r.signed_at, v.field, v.leads, v.ai_value, v.signed_value"
        " from agreement_reports r join agreement_values v using (report_id, model)"
        " where r.report_id = $1 and r.model = $2",
        report_id,
        model,
    )
    for row in rows:
        starts = piece_of(row["signed_at"].date())
        values = (row["ai_value"], row["signed_value"])
        delta[starts, row["machine"], row["field"], row["leads"], *values] -= 1
    await tx.execute(
        "delete from agreement_reports where report_id = $1 and model = $2",
        report_id,
        model,
    )
    return delta


async def _count(tx: "Transaction", model: str, delta: Counter[_Cell]) -> None:
    """Add to the counts, always in the same order: writers never block each other."""
    changed = [(*cell, n) for cell, n in delta.items() if n]
    if not changed:
        return
    await tx.execute(
        "insert into agreement_counts (model, starts, machine, field, leads,"
        " ai_value, signed_value, n)"
        " select $1, * from unnest($2::date[], $3::text[], $4::text[], $5::bool[],"
        "  $6::text[], $7::text[], $8::int[]) as t(starts, machine, field, leads,"
        "  ai_value, signed_value, n)"
        " order by starts, machine, field, leads, ai_value, signed_value"
        " on conflict (model, starts, machine, field, leads, ai_value, signed_value)"
        " do update set n = agreement_counts.n + excluded.n",
        model,
        *map(list, zip(*changed, strict=True)),
    )


# --- reading ------------------------------------------------------------------

_CELLS = """
select field, ai_value, signed_value, sum(n)::int as n from agreement_counts
where ($1::text is null or model = $1) and ($2::text is null or machine = $2)
    and ($3::date is null or starts >= $3)
group by 1, 2, 3 having sum(n) > 0
"""
_TREND = """
select date_trunc($4, starts)::date as period, field, ai_value, signed_value,
    sum(n)::int as n
from agreement_counts
where ($1::text is null or model = $1) and ($2::text is null or machine = $2)
    and ($3::date is null or starts >= $3)
group by 1, 2, 3, 4 having sum(n) > 0 order by 1
"""
_DEVICES = """
select model, machine, ai_value, signed_value, sum(n)::int as n
from agreement_counts
where ($1::text is null or model = $1) and ($2::text is null or machine = $2)
    and ($3::date is null or starts >= $3) and field = $4
group by 1, 2, 3, 4 having sum(n) > 0 order by 1, 2
"""

Cells = dict[str, dict[Pair, int]]


async def cells(tx: "Transaction", chosen: Selection) -> Cells:
    """Return the counted pairs of every field."""
    return _by_field(await tx.fetch(_CELLS, *_arguments(chosen)))


async def trend(
    tx: "Transaction", chosen: Selection, grain: Grain
) -> dict[date, Cells]:
    """Return the counted pairs of every field per period, oldest first.

    Periods begin on the first of a month, or on Monday; empty ones are absent.
    """
    rows = await tx.fetch(_TREND, *_arguments(chosen), grain.value)
    periods: dict[date, list[asyncpg.Record]] = defaultdict(list)
    for row in rows:
        periods[row["period"]].append(row)
    return {period: _by_field(found) for period, found in periods.items()}


async def devices(
    tx: "Transaction", chosen: Selection, field: str
) -> dict[Device, dict[Pair, int]]:
    """Return the counted pairs of one field per model and machine."""
    found: dict[Device, dict[Pair, int]] = defaultdict(dict)
    for row in await tx.fetch(_DEVICES, *_arguments(chosen), field):
        device = Device(row["model"], row["machine"])
        found[device][row["ai_value"], row["signed_value"]] = row["n"]
    return dict(found)


async def models(tx: "Transaction", limit: int = 50) -> list[ModelRow]:
    """Return the models whose drafts were signed, the one signed last first."""
    rows = await tx.fetch(
        "select m.model, m.name, m.last_signed_at, sum(c.n)::int as reports"
        " from agreement_models m join agreement_counts c using (model)"
        " where c.field = $1 group by 1 having sum(c.n) > 0"
        " order by m.last_signed_at desc, m.model limit $2",
        OVERALL_CATEGORY,
        limit,
    )
    return [ModelRow(**dict(row)) for row in rows]


async def machines(tx: "Transaction", limit: int = 50) -> dict[str, int]:
    """Return how many compared reports each machine has, the busiest first."""
    rows = await tx.fetch(
        "select machine, sum(n)::int as reports from agreement_counts"
        " where field = $1 group by 1 having sum(n) > 0 order by 2 desc, 1 limit $2",
        OVERALL_CATEGORY,
        limit,
    )
    return {row["machine"]: row["reports"] for row in rows}


def _arguments(chosen: Selection) -> tuple[str | None, str | None, date | None]:
    since = None if chosen.since is None else piece_of(chosen.since)
    return chosen.model, chosen.machine, since


def _by_field(rows: Sequence["asyncpg.Record"]) -> Cells:
    found: Cells = {field: {} for field in FIELDS}
    for row in rows:
        found.setdefault(row["field"], {})
        found[row["field"]][row["ai_value"], row["signed_value"]] = row["n"]
    return found


# --- has it changed? ------------------------------------------------------------

_NEWEST = """
with newest as (
    select report_id, model, signed_at,
        row_number() over (order by signed_at desc, report_id desc) > $2 as inside
    from agreement_reports where model = $1
    order by signed_at desc, report_id desc limit $2 + $3
)
select inside, field, min(signed_at) as first, max(signed_at) as last,
    count(*) filter (where field = $4 or tried) as total,
    count(*) filter (where tried and ai_value = signed_value) as agreed
from (
    select n.inside, n.signed_at, v.field, v.ai_value, v.signed_value,
        v.ai_value is not null and v.signed_value is not null as tried
    from newest n join agreement_values v using (report_id, model) where v.leads
) t group by 1, 2
"""
_ALL_LEADING = (
    "select field, ai_value, signed_value, sum(n)::int as n from agreement_counts"
    " where model = $1 and leads group by 1, 2, 3"
)


async def drift_trials(tx: "Transaction", model: str, window: int) -> DriftTrials:
    """Return the newest complete window of `window` reports against those before.

    Windows follow each other without overlap, in the order of first signatures:
    every report is looked at once, so that the test's false alarms stay as
    rare as it says. Reads the counts and fewer than twice `window` reports.
    """
    everything = _by_field(await tx.fetch(_ALL_LEADING, model))
    reports = sum(everything[OVERALL_CATEGORY].values())
    if reports < 2 * window:
        return DriftTrials(reports, None, {})
    newest = await tx.fetch(_NEWEST, model, reports % window, window, LESION)
    inside = {row["field"]: row for row in newest if row["inside"]}
    after = {row["field"]: _trials(row) for row in newest if not row["inside"]}
    trials = {}
    for field in FIELDS:
        total = count_trials(field, everything[field])
        late = after.get(field, Trials(0, 0))
        recent = _trials(inside[field]) if field in inside else Trials(0, 0)
        before = Trials(
            total.agreed - late.agreed - recent.agreed,
            total.total - late.total - recent.total,
        )
        trials[field] = (recent, before)
    exam = inside[OVERALL_CATEGORY]
    return DriftTrials(reports, (exam["first"], exam["last"]), trials)


def _trials(row: "asyncpg.Record") -> Trials:
    return Trials(row["agreed"], row["total"])


async def alarms(tx: "Transaction") -> dict[tuple[str, str], datetime]:
    """Return since when (model, field) is in alarm."""
    rows = await tx.fetch("select model, field, since from agreement_alarms")
    return {(row["model"], row["field"]): row["since"] for row in rows}


async def set_alarms(
    tx: "Transaction", model: str, fields: Sequence[str], at: datetime
) -> tuple[list[str], list[str]]:
    """Let exactly `fields` of a model be in alarm; return which began, which ended.

    Of several processes that look at the same moment one is told of a change.
    """
    ended = await tx.fetch(
        "delete from agreement_alarms where model = $1 and field <> all($2)"
        " returning field",
        model,
        list(fields),
    )
    began = await tx.fetch(
        "insert into agreement_alarms (model, field, since)"
        " select $1, field, $3 from unnest($2::text[]) as field"
        " on conflict do nothing returning field",
        model,
        list(fields),
        at,
    )
    return [row["field"] for row in began], [row["field"] for row in ended]
