"""What an engineer sees of deliveries, and has done again."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from config.settings import Settings, SettingsError, load_settings
from dicom_scp.sending.delivery import send_instance
from dicom_scp.sending.routing import SEND, RoutingTable, When, route_received
from node.__main__ import cli
from node.administration import examine
from node.deliveries import replay_deliveries
from node.domain.errors import ErrorKind, NodeError
from node.outbound import bury_homeless, routing_of
from node.store import audit, routes
from node.store.jobs import Priority
from node.store.routes import DeliveryState, ProbeAnswer
from node.store.store import Store
from tests.conftest import FrozenClock
from tests.dicom_scp.sending.test_routing import ALL, Memory, payload, receive

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DESTINATIONS = """[
 {"name": "A", "ae_title": "ARCHIVE", "host": "127.0.0.1", "schedule": ["22:00-06:00"],
  "priority": "low"},
 {"name": "WEB", "kind": "stow", "url": "https://archive/dicom-web"}]"""
RULES = """[
 {"name": "all", "to": ["A"], "when": "arrival"},
 {"name": "suspicious", "to": ["WEB"], "origin": ["ai_sr"],
  "category_at_least": "4A"}]"""


def settings_of(folder: Path, **more: str) -> Settings:
    return load_settings(
        {
            "SONONODE_DATA": str(folder),
            "SONONODE_ROUTING__DESTINATIONS": DESTINATIONS,
            "SONONODE_ROUTING__RULES": RULES,
            **more,
        }
    )


def test_settings_become_rules_and_pacs_is_the_last_of_them(tmp_path: Path) -> None:
    table = routing_of(settings_of(tmp_path, SONONODE_PACS__AE_TITLE="PACS"))
    assert [rule.name for rule in table.rules] == ["all", "suspicious", "all results"]
    assert table.rules[0].when is When.ARRIVAL
    assert table.rules[1].category_at_least == "4A"
    assert table.outlets["A"].priority is Priority.LOW
    assert str(table.outlets["A"].hours.zone) == "UTC+08:00"
    assert set(table.outlets) == {"A", "WEB", "PACS"}
    assert routing_of(load_settings({})) == RoutingTable()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"DESTINATIONS": '[{"name": "A"}]'}, "routing.destinations[1].ae_title"),
        (
            {"DESTINATIONS": '[{"name": "A", "kind": "stow", "url": "ftp://a"}]'},
            "routing.destinations[1].url",
        ),
        (
            {"DESTINATIONS": DESTINATIONS.replace("22:00-06:00", "10pm-6am")},
            "routing.destinations[1].schedule: '10pm-6am'",
        ),
        ({"RULES": '[{"name": "r", "to": ["B"]}]'}, "routing.rules[1].to: 'B'"),
        (
            {"RULES": '[{"name": "r", "to": ["A"], "category_at_least": "4"}]'},
            "routing.rules[1].category_at_least: '4'",
        ),
        (
            {
                "RULES": '[{"name": "r", "to": ["A"], "origin": ["received"],'
                ' "status": ["final"]}]'
            },
            "routing.rules[1].origin: category and status are known of results",
        ),
    ],
)
def test_a_wrong_rule_or_destination_is_named(
    tmp_path: Path, changed: dict[str, str], told: str
) -> None:
    more = {f"SONONODE_ROUTING__{key}": text for key, text in changed.items()}
    with pytest.raises(SettingsError) as caught:
        settings_of(tmp_path, **more)
    assert any(fault.startswith(told) for fault in caught.value.faults)


async def fail(store: Store, error: str) -> None:
    job = await store.jobs.claim([SEND], "w", lane="A")
    assert job is not None
    await store.jobs.failed(job, error, retry=False)


async def states(store: Store) -> list[DeliveryState]:
    async with store.db.connection() as connection:
        return [one.state for one in await routes.deliveries(connection)]


async def test_failed_deliveries_are_done_again_and_that_is_audited(
    store: Store,
) -> None:
    for number in range(2):
        await receive(store, f"2.25.{number}")
    await route_received(store, ALL)
    for _ in range(2):
        await fail(store, "archive A does not allow us to store")
    assert await states(store) == [DeliveryState.FAILED] * 2
    count = await replay_deliveries(store, destination="A", study_instance_uid=None)
    assert count == 2
    assert await states(store) == [DeliveryState.QUEUED] * 2
    async with store.db.transaction() as tx:
        (entry,) = await audit.entries(tx, entity="destination/A")
    assert entry.action == "deliveries-replay"
    assert entry.detail == {"to": "A", "failed": "2", "sent_before": "0"}
    again = await store.jobs.claim([SEND], "w", lane="A")
    assert again is not None
    assert again.payload["sop_instance_uid"] == "2.25.0"


async def test_an_archive_that_lost_its_data_gets_them_again_only_when_told(
    store: Store,
) -> None:
    await receive(store)
    await route_received(store, ALL)
    archive = Memory()
    job = await store.jobs.claim([SEND], "w", lane="A")
    assert job is not None
    await send_instance(store, job.payload, {"A": archive}, ALL)
    await store.jobs.done(job)
    named = {"destination": "A", "study_instance_uid": None}
    assert await replay_deliveries(store, **named) == 0
    assert await replay_deliveries(store, **named, sent=True) == 1
    job = await store.jobs.claim([SEND], "w", lane="A")
    assert job is not None
    await send_instance(store, job.payload, {"A": archive}, ALL)
    assert archive.before == [None, "2.25.2001"]
    with pytest.raises(NodeError) as caught:
        await replay_deliveries(store, destination=None, study_instance_uid=None)
    assert caught.value.kind is ErrorKind.SETTING


async def test_what_waits_for_a_destination_that_is_gone_is_shown(
    store: Store,
) -> None:
    await receive(store)
    await route_received(store, ALL)
    await bury_homeless(store, ["A"])
    assert await states(store) == [DeliveryState.QUEUED]
    await bury_homeless(store, ["B"])
    assert await states(store) == [DeliveryState.FAILED]
    assert await replay_deliveries(store, destination="A", study_instance_uid=None) == 1


async def test_doctor_says_what_is_stuck_since_when_and_what_archives_said(
    store: Store, clock: FrozenClock, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path)

    async def told(what: str) -> tuple[bool, str]:
        found = await examine(store, settings)
        ((well, words),) = [(f.well, f.told) for f in found if f.what == what]
        return well, words

    await receive(store)
    await route_received(store, ALL)
    assert (await told("sending to A"))[0]
    away = NodeError("archive A does not answer", ErrorKind.UNAVAILABLE)
    with pytest.raises(NodeError):
        await send_instance(store, payload(), {"A": Memory(away)}, ALL)
    clock.advance(seconds=601)
    well, words = await told("sending to A")
    assert not well
    assert "1 waiting" in words
    assert "since 2026-11-21 08:00 UTC: archive A does not answer" in words
    await fail(store, "archive A does not allow us to store")
    well, words = await told("sending to A")
    assert "1 failed" in words
    assert "deliveries replay --to A" in words
    answer = ProbeAnswer(
        "A",
        "archive A",
        clock(),
        False,
        False,
        (("connection", True, "ok"), ("reports", False, "switch them on")),
        {},
        False,
    )
    async with store.db.transaction() as tx:
        await routes.remember_probe(tx, answer)
    well, words = await told("archive A")
    assert not well
    assert words == "reports: switch them on (asked 2026-11-21 08:10 UTC)"


def test_the_command_line_has_the_commands() -> None:
    runner = CliRunner()
    for command in (["doctor", "--help"], ["deliveries", "--help"]):
        answer = runner.invoke(cli, command)
        assert answer.exit_code == 0
    assert "pacs" in runner.invoke(cli, ["doctor", "--help"]).output
