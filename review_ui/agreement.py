"""Serves how far AI and doctors agree: /review/agreement, and the same as metrics.

Counts only, no report and no patient: whoever improves the model or runs the node may
look without seeing anybody's result.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.domain.access import Action
from node.domain.agreement import (
    FIELDS,
    LEAST_PAIRS,
    LEAST_TRIALS,
    OVERALL_CATEGORY,
    Cells,
    FieldAgreement,
    FieldDrift,
    Trials,
    count_trials,
    kind_of,
    labels_of,
    summarise,
)
from node.domain.errors import ErrorKind, NodeError
from node.http import STORE, RouteGroup, identity
from node.store import agreement
from node.store.agreement import Grain, Selection
from node.store.store import Store
from node.workflow.agreement import DriftReport, DriftSettings, judge

PREFIX = "/review/agreement"
_LONGEST_PERIOD_MONTHS = 120
_MEASURED_MODELS = 3
_METRIC_MONTHS = 12

log = structlog.get_logger(__name__)


def route_group(settings: DriftSettings) -> RouteGroup:
    """Return the routes of the agreement page."""
    page = _Agreement(settings)
    return RouteGroup(prefix=PREFIX, routes=[web.get(PREFIX, page.read)])


@dataclass(frozen=True)
class _Agreement:
    settings: DriftSettings

    async def read(self, request: web.Request) -> web.Response:
        """Answer with every figure of the page, for the reports that are asked for.

        Query: `model`, `machine` (both as the answer lists them), `months` back
        from today, `grain` of the trend (month or week); each may be left out.
        """
        identity(request).require(Action.READ_AGREEMENT)
        store = request.app[STORE]
        now = store.clock()
        chosen, grain = _asked(request.query, now.date())
        async with store.db.transaction(
            isolation="repeatable_read", readonly=True
        ) as tx:
            known = await agreement.models(tx)
            machines = await agreement.machines(tx)
            counted = await agreement.cells(tx, chosen)
            periods = await agreement.trend(tx, chosen, grain)
            devices = await agreement.devices(tx, chosen, OVERALL_CATEGORY)
            judged = await judge(tx, self.settings, chosen.model)
            alarms = await agreement.alarms(tx)
        body = {
            "as_of": now.isoformat(),
            "grain": grain.value,
            "reports": sum(counted[OVERALL_CATEGORY].values()),
            "least_pairs": LEAST_PAIRS,
            "models": [
                {
                    "id": row.model,
                    "name": row.name,
                    "reports": row.reports,
                    "last_signed_at": row.last_signed_at.isoformat(),
                }
                for row in known
            ],
            "machines": [{"name": name, "reports": n} for name, n in machines.items()],
            "fields": [_field(name, counted[name], periods) for name in FIELDS],
            "devices": [
                {
                    "model": device.model,
                    "machine": device.machine,
                    "reports": sum(cells.values()),
                    **_figures(summarise(OVERALL_CATEGORY, cells)),
                }
                for device, cells in devices.items()
            ],
            "drift": _drift(judged, self.settings, alarms),
        }
        return web.json_response(body)


def _asked(query: Mapping[str, str], today: date) -> tuple[Selection, Grain]:
    try:
        grain = Grain(query.get("grain", Grain.MONTH.value))
    except ValueError:
        raise NodeError(
            "grain is month or week", ErrorKind.INVALID, expression="grain"
        ) from None
    chosen = Selection(
        model=query.get("model"),
        machine=query.get("machine"),
        since=_since(query["months"], today) if "months" in query else None,
    )
    return chosen, grain


def _since(text: str, today: date) -> date:
    """Return the first of the month `text` - 1 months before this one."""
    digits = text if text.isascii() and text.isdigit() else "0"
    months = int(digits[:4])
    if not 1 <= months <= _LONGEST_PERIOD_MONTHS:
        raise NodeError(
            f"months is 1 to {_LONGEST_PERIOD_MONTHS}",
            ErrorKind.INVALID,
            expression="months",
        )
    year, month = divmod(today.year * 12 + today.month - months, 12)
    return date(year, month + 1, 1)


def _field(
    name: str, cells: Cells, periods: Mapping[date, agreement.Cells]
) -> dict[str, Any]:
    found = summarise(name, cells)
    return {
        "field": name,
        "kind": kind_of(name).value,
        "labels": list(labels_of(name)),
        **_figures(found),
        "not_assessed_by_ai": found.not_assessed_by_ai,
        "added_by_doctor": found.added_by_doctor,
        "removed_by_doctor": found.removed_by_doctor,
        "off_scale": found.off_scale,
        "terms": [asdict(term) for term in found.terms],
        "pairs": [
            {"ai": ai, "signed": signed, "n": n}
            for (ai, signed), n in sorted(
                cells.items(), key=lambda row: (-row[1], str(row[0]))
            )
            if not (ai is None and signed is None)
        ],
        "trend": [
            {"starts": starts.isoformat(), **asdict(count_trials(name, found[name]))}
            for starts, found in periods.items()
        ],
    }


def _figures(found: FieldAgreement) -> dict[str, Any]:
    return {
        "compared": found.compared,
        "agreed": found.agreed,
        "few": found.few,
        "agreement": asdict(found.agreement) if found.agreement else None,
        "kappa": asdict(found.kappa) if found.kappa else None,
    }


def _drift(
    judged: DriftReport | None,
    settings: DriftSettings,
    alarms: Mapping[tuple[str, str], datetime],
) -> dict[str, Any] | None:
    if judged is None:
        return None
    return {
        "model": judged.model,
        "name": judged.name,
        "size": settings.window,
        "alpha": settings.alpha,
        "least_trials": LEAST_TRIALS,
        "reports": judged.reports,
        "window": [at.isoformat() for at in judged.window] if judged.window else None,
        "fields": [
            _field_drift(row, alarms.get((judged.model, row.field)))
            for row in judged.fields
        ],
    }


def _field_drift(row: FieldDrift, since: datetime | None) -> dict[str, Any]:
    def told(trials: Trials) -> dict[str, Any]:
        return {"agreed": trials.agreed, "total": trials.total}

    return {
        "field": row.field,
        "verdict": row.verdict.value,
        "p_value": row.p_value,
        "window": told(row.window),
        "reference": told(row.reference),
        "since": since.isoformat() if since else None,
    }


# --- metrics --------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    model: str
    reports: int
    fields: tuple[FieldAgreement, ...]
    judged: DriftReport | None


class AgreementMetrics(Collector):
    """Agreement of the models in use as gauges, as they were at the last `refresh`.

    Labels are fields of the lexicon and the ids of at most the three models whose
    drafts were signed last. A figure that cannot be judged is absent, not zero.
    """

    def __init__(self, registry: CollectorRegistry, settings: DriftSettings) -> None:
        self._settings = settings
        self._measured: tuple[_Measured, ...] = ()
        registry.register(self)

    async def refresh(self, store: Store) -> None:
        """Read the counts anew; cheap enough for once a minute."""
        since = _since(str(_METRIC_MONTHS), store.clock().date())
        measured = []
        async with store.db.transaction(
            isolation="repeatable_read", readonly=True
        ) as tx:
            for row in (await agreement.models(tx))[:_MEASURED_MODELS]:
                counted = await agreement.cells(tx, Selection(row.model, since=since))
                judged = await judge(tx, self._settings, row.model)
                fields = tuple(summarise(name, counted[name]) for name in FIELDS)
                measured.append(_Measured(row.model, row.reports, fields, judged))
        self._measured = tuple(measured)

    async def keep_fresh(self, store: Store, *, every_s: float) -> None:
        """Refresh until cancelled; while the database is away the last figures stay."""
        while True:
            try:
                await self.refresh(store)
            except NodeError as error:
                log.warning("agreement.not_measured", error=error.message)
            except Exception:
                log.exception("agreement.not_measured")
            await asyncio.sleep(every_s)

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges; called from the thread that answers the collector."""
        reports = GaugeMetricFamily(
            "sononode_agreement_reports",
            "Signed reports that were compared with the draft of a model",
            labels=["model"],
        )
        kappa = GaugeMetricFamily(
            "sononode_agreement_kappa",
            "Kappa between draft and signed report over the last 12 months",
            labels=["field", "model"],
        )
        share = GaugeMetricFamily(
            "sononode_agreement_ratio",
            "Share of compared values that the doctor kept over the last 12 months",
            labels=["field", "model"],
        )
        compared = GaugeMetricFamily(
            "sononode_agreement_compared",
            "Values that both assessed over the last 12 months",
            labels=["field", "model"],
        )
        drift = GaugeMetricFamily(
            "sononode_agreement_drift",
            "1 when agreement in the newest window differs from what was before",
            labels=["field", "model"],
        )
        for row in self._measured:
            reports.add_metric([row.model], row.reports)
            for field in row.fields:
                labels = [field.field, row.model]
                compared.add_metric(labels, field.compared)
                if field.agreement and not field.few:
                    share.add_metric(labels, field.agreement.value)
                if field.kappa:
                    kappa.add_metric(labels, field.kappa.value)
            for judged in row.judged.fields if row.judged else ():
                if judged.p_value is not None:
                    alarm = judged.field in row.judged.drifted if row.judged else False
                    drift.add_metric([judged.field, row.model], float(alarm))
        return [reports, kappa, share, compared, drift]
