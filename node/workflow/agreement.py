"""Comparing what the algorithm drafted with what the doctor signed, and watching it."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog

from node.domain.agreement import FieldDrift, Verdict, compare, judge_drift
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import AuthorKind, Report, ReportVersion
from node.domain.study import Origin
from node.store import agreement, reports, studies
from node.store.agreement import ComparedReport

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

log = structlog.get_logger(__name__)

JOB = "compare_report"
_AT_ONCE = 1000
_MANUFACTURER, _MODEL_NAME = "00080070", "00081090"
_LONGEST_NAME = 64


@dataclass(frozen=True)
class DriftSettings:
    """When agreement counts as changed.

    `window` reports are judged together; a window in which nothing changed
    raises an alarm with a chance of `alpha` at most.
    """

    window: int = 100
    alpha: float = 0.01


@dataclass(frozen=True)
class DriftReport:
    """What can be said of one model; `fields` is empty before the first judgement."""

    model: str
    name: str
    reports: int
    window: tuple[datetime, datetime] | None
    fields: tuple[FieldDrift, ...]

    @property
    def drifted(self) -> tuple[str, ...]:
        """Return the fields in which agreement has changed."""
        return tuple(f.field for f in self.fields if f.verdict is Verdict.DRIFTED)


# --- comparing ----------------------------------------------------------------


async def compare_report(store: "Store", payload: Mapping[str, Any]) -> None:
    """Write how far the signed report keeps to its draft; runs again without harm.

    Whatever version the job was deferred for, the newest one counts: an amended
    report replaces its comparison, a withdrawn one leaves none.
    """
    report_id = UUID(payload["report_id"])
    try:
        async with store.db.transaction() as tx:
            report = await reports.read_for_update(tx, store, report_id)
            await _compare(store, tx, report)
    except NodeError as error:
        if error.kind is not ErrorKind.GONE:
            raise
        # The patient was erased meanwhile: there is nothing left to compare.


async def _compare(store: "Store", tx: "Transaction", report: Report) -> None:
    draft, signed = last_draft(report), report.current
    if draft is None or not signed.signed:
        await agreement.withdraw(tx, report.id)
        return
    first = next(version for version in report.versions if version.signed)
    images = await studies.instances_of(
        tx, store, report.study_instance_uid, Origin.RECEIVED
    )
    await agreement.record(
        tx,
        ComparedReport(
            report_id=report.id,
            model=draft.author.id,
            model_name=draft.author.display,
            machine=machine_of(image.metadata for image in images),
            version=signed.number,
            signed_at=first.at,
            comparisons=compare(draft.findings, signed.findings),
        ),
    )


def last_draft(report: Report) -> ReportVersion | None:
    """Return the draft that the doctor had before her, None when there was none."""
    drafts = [v for v in report.versions if v.author.kind is AuthorKind.ALGORITHM]
    return drafts[-1] if drafts else None


def machine_of(headers: Iterable[bytes]) -> str:
    """Return Manufacturer and model name of most of the images; '' when unknown.

    `headers` are DICOM JSON (PS3.18 F). Serial numbers and station names, which
    would tell one room from another, stay where they are.
    """
    names = Counter(name for header in headers if (name := _machine(header)))
    return names.most_common(1)[0][0] if names else ""


def _machine(header: bytes) -> str:
    elements = json.loads(header)
    maker = _text(elements, _MANUFACTURER)
    model = _text(elements, _MODEL_NAME)
    if maker and model.casefold().startswith(maker.casefold()):
        maker = ""
    return " ".join(f"{maker} {model}".split())[:_LONGEST_NAME]


def _text(elements: Mapping[str, Any], tag: str) -> str:
    values = elements.get(tag, {}).get("Value") or [""]
    text = values[0] if isinstance(values[0], str) else ""
    return "".join(sign if sign.isprintable() else " " for sign in text)


async def compare_the_rest(store: "Store") -> int:
    """Defer the comparison of signed reports that were left out; return how many."""
    async with store.db.transaction() as tx:
        left = await agreement.uncompared(tx, _AT_ONCE)
        for report_id in left:
            payload = {"report_id": str(report_id)}
            await store.jobs.defer(tx, JOB, payload, key=str(report_id))
    return len(left)


# --- watching -----------------------------------------------------------------


async def judge(
    tx: "Transaction", settings: DriftSettings, model: str | None = None
) -> DriftReport | None:
    """Judge `model`, or the one whose drafts were signed last; None without any."""
    known = await agreement.models(tx)
    row = next((m for m in known if model is None or m.model == model), None)
    if row is None:
        return None
    counted = await agreement.drift_trials(tx, row.model, settings.window)
    return DriftReport(
        model=row.model,
        name=row.name,
        reports=counted.reports,
        window=counted.window,
        fields=judge_drift(counted.trials, settings.alpha),
    )


async def watch_drift(store: "Store", settings: DriftSettings) -> None:
    """Look at the model in use, and say once when an alarm begins or ends."""
    async with store.db.transaction() as tx:
        judged = await judge(tx, settings)
        if judged is None:
            return
        began, ended = await agreement.set_alarms(
            tx, judged.model, judged.drifted, store.clock()
        )
    figures = {field.field: field for field in judged.fields}
    for name in began:
        log.warning(
            "agreement.drift",
            model=judged.model,
            field=name,
            window=figures[name].window.share,
            reference=figures[name].reference.share,
            p_value=figures[name].p_value,
        )
    for name in ended:
        log.info("agreement.drift_ended", model=judged.model, field=name)
