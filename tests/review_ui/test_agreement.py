"""/review/agreement and its metrics: who may look, what is asked, what is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry, generate_latest

from node.domain.access import Action, Identity, Role
from node.domain.agreement import FIELDS, OVERALL_CATEGORY
from node.domain.errors import ErrorKind, NodeError
from node.http import HttpSettings, make_app
from node.store import agreement as stored
from node.store.store import Store
from node.workflow.agreement import DriftSettings, watch_drift
from review_ui import agreement
from review_ui.agreement import AgreementMetrics
from tests.agreements import KEPT, MODEL, compared_reports, record_all
from tests.fhir.rig import sign_in

NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)
SETTINGS = DriftSettings(window=60, alpha=0.01)
PATH = agreement.PREFIX


@pytest.fixture
async def client(store: Store, tmp_path) -> AsyncIterator[TestClient]:
    settings = HttpSettings(data_directory=tmp_path)
    app = make_app(store, settings, [agreement.route_group(SETTINGS)])
    async with TestClient(TestServer(app)) as running:
        yield running


async def bearer(store: Store, role: Role = Role.SENIOR_RADIOLOGIST) -> dict[str, str]:
    return {"Authorization": f"Bearer {await sign_in(store, role)}"}


@pytest.mark.parametrize("role", list(Role))
async def test_doctors_and_administrators_see_the_figures_and_nobody_else(
    client, store, role
) -> None:
    answer = await client.get(PATH, headers=await bearer(store, role))
    allowed = {Role.RADIOLOGIST, Role.SENIOR_RADIOLOGIST, Role.ADMINISTRATOR}
    assert answer.status == (200 if role in allowed else 403)
    granted = Identity("u", frozenset({role}), "x").may(Action.READ_AGREEMENT)
    assert granted is (role in allowed)


async def test_without_signing_in_there_are_no_figures(client) -> None:
    assert (await client.get(PATH)).status == 401


async def test_before_the_first_signature_there_is_nothing_and_no_zero(
    client, store
) -> None:
    body = await (await client.get(PATH, headers=await bearer(store))).json()
    assert (body["reports"], body["models"], body["drift"]) == (0, [], None)
    assert [row["field"] for row in body["fields"]] == list(FIELDS)
    assert all(row["agreement"] is None for row in body["fields"])
    assert all(row["kappa"] is None for row in body["fields"])


async def test_the_figures_are_those_of_the_reports_that_are_asked_for(
    client, store
) -> None:
    await record_all(store, compared_reports(130, ends=NOW, seed=1))
    headers = await bearer(store)
    body = await (await client.get(PATH, headers=headers)).json()
    assert body["reports"] == 130
    overall = body["fields"][0]
    assert overall["field"] == OVERALL_CATEGORY
    assert sum(pair["n"] for pair in overall["pairs"]) == 130
    assert 0.6 < overall["agreement"]["value"] < 0.85
    assert overall["agreement"]["low"] < overall["kappa"]["value"] < 1
    assert [period["starts"] for period in overall["trend"]] == [
        "2026-10-01",
        "2026-11-01",
    ]
    assert sum(period["total"] for period in overall["trend"]) == 130
    assert {row["machine"] for row in body["devices"]} == {
        "GE LOGIQ E9",
        "Mindray Resona 7",
    }
    margin = next(row for row in body["fields"] if row["field"] == "margin")
    assert len(margin["terms"]) == 5
    chosen = {"model": MODEL, "machine": "GE LOGIQ E9", "months": "1", "grain": "week"}
    less = await (await client.get(PATH, headers=headers, params=chosen)).json()
    assert 0 < less["reports"] < 80
    assert less["grain"] == "week"
    assert all(row["machine"] == "GE LOGIQ E9" for row in less["devices"])
    assert body["drift"]["window"] is not None
    assert {row["verdict"] for row in body["drift"]["fields"]} <= {"steady", "too_few"}


async def test_an_alarm_says_since_when(client, store, clock) -> None:
    await record_all(store, compared_reports(120, ends=NOW, seed=2))
    worse = {**KEPT, "echo_pattern": 0.4}
    later = NOW + timedelta(days=30)
    await record_all(store, compared_reports(60, ends=later, seed=3, kept=worse))
    await watch_drift(store, SETTINGS)
    body = await (await client.get(PATH, headers=await bearer(store))).json()
    rows = {row["field"]: row for row in body["drift"]["fields"]}
    alarmed = [name for name, row in rows.items() if row["verdict"] == "drifted"]
    assert alarmed == ["echo_pattern"]
    assert rows["echo_pattern"]["since"] == clock().isoformat()
    assert rows["shape"]["since"] is None


@pytest.mark.parametrize(
    "asked",
    [{"months": "0"}, {"months": "121"}, {"months": "²"}, {"grain": "day"}],
)
async def test_a_question_that_makes_no_sense_is_refused(client, store, asked) -> None:
    answer = await client.get(PATH, headers=await bearer(store), params=asked)
    assert answer.status == 400


async def test_an_unknown_model_has_no_reports(client, store) -> None:
    await record_all(store, compared_reports(3, ends=NOW, seed=4))
    asked = {"model": "model-x'; drop table report"}
    answer = await client.get(PATH, headers=await bearer(store), params=asked)
    body = await answer.json()
    assert (answer.status, body["reports"], body["drift"]) == (200, 0, None)


async def test_what_leaves_is_counts_and_names_no_report(client, store) -> None:
    reports = list(compared_reports(30, ends=NOW, seed=5))
    await record_all(store, iter(reports))
    told = json.dumps(
        await (await client.get(PATH, headers=await bearer(store))).json()
    )
    assert not any(str(report.report_id) in told for report in reports)


# --- metrics --------------------------------------------------------------------


async def test_metrics_are_bounded_and_absent_where_nothing_can_be_judged(
    store, clock
) -> None:
    registry = CollectorRegistry()
    metrics = AgreementMetrics(registry, SETTINGS)
    assert b"{" not in generate_latest(registry)
    for number in range(5):
        model = (f"model-{number}", f"m {number}")
        ends = NOW - timedelta(days=30 * (5 - number))
        made = compared_reports(
            140 if number == 4 else 4,
            ends=ends,
            seed=number,
            model=model,
            machines=("Maker <script>",),
        )
        await record_all(store, made)
    await metrics.refresh(store)
    text = generate_latest(registry).decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) <= 3 * (1 + 4 * len(FIELDS))
    assert 'sononode_agreement_reports{model="model-4"} 140.0' in lines
    assert "model-1" not in text
    assert "Maker" not in text
    kappas = [line for line in lines if line.startswith("sononode_agreement_kappa")]
    assert all('model="model-4"' in line for line in kappas)
    assert 0 < len(kappas) < len(FIELDS)  # lesions have no kappa
    drift = [line for line in lines if line.startswith("sononode_agreement_drift")]
    assert {line.rsplit(" ", 1)[1] for line in drift} == {"0.0"}


async def test_figures_stay_while_the_database_is_away(store, monkeypatch) -> None:
    registry = CollectorRegistry()
    metrics = AgreementMetrics(registry, SETTINGS)
    await record_all(store, compared_reports(40, ends=NOW, seed=6))
    await metrics.refresh(store)
    before = generate_latest(registry)

    async def away(*_: object) -> None:
        raise NodeError("the database is away", ErrorKind.UNAVAILABLE)

    monkeypatch.setattr(stored, "models", away)
    with pytest.raises(NodeError):
        await metrics.refresh(store)
    assert generate_latest(registry) == before


async def test_metrics_go_on_after_an_outage(store, monkeypatch) -> None:
    metrics = AgreementMetrics(CollectorRegistry(), SETTINGS)
    tried: list[int] = []
    enough = asyncio.Event()

    async def refresh(_: Store) -> None:
        tried.append(1)
        if len(tried) == 1:
            raise NodeError("the database is away", ErrorKind.UNAVAILABLE)
        if len(tried) == 2:
            raise ValueError
        enough.set()

    monkeypatch.setattr(metrics, "refresh", refresh)
    refreshing = asyncio.create_task(metrics.keep_fresh(store, every_s=0))
    await asyncio.wait_for(enough.wait(), 60)
    refreshing.cancel()
