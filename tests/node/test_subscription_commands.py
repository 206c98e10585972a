"""Who is told of what, by hand: `python -m node subscriptions`."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from node.__main__ import cli
from node.parts import utc_now
from node.store import audit, notifying, subscriptions, topic_events
from node.store.keys import create_root_key
from node.store.notifying import Settlement
from node.store.store import open_store
from node.store.subscriptions import Subscription
from node.store.topic_events import Occurrence
from tests.conftest import FrozenClock, run_apart


def test_what_waits_for_a_subscriber_is_listed_with_its_trouble(
    new_database: Callable[[], str],
    tmp_path: Path,
    clock: FrozenClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dsn, key = new_database(), tmp_path / "keys" / "root.key"
    key.parent.mkdir()
    create_root_key(key)
    monkeypatch.setenv("SONONODE_DATA", str(tmp_path))
    monkeypatch.setenv("SONONODE_DATABASE__URL", dsn)
    monkeypatch.setenv("COLUMNS", "220")
    one, url = uuid4(), "https://ehr.hospital:8443/hook?key=secret"

    async def prepare() -> None:
        store = await open_store(dsn, key, tmp_path / "objects", clock)
        asked = Subscription(
            one, "urn:x/report-signed", "active", url, (), "empty", 10, None
        )
        async with store.db.transaction() as tx:
            await subscriptions.create(tx, store, asked)
            told = Occurrence("DiagnosticReport/x", b"{}", None)
            await topic_events.add_events(
                tx, store, [(told, [one]), (told, [one])], at=clock.now
            )
            settled = Settlement(delivered=[(one, 1)], failed=[(one, clock.now)])
            await notifying.settle(tx, settled, at=clock.now)
        await store.close()

    run_apart(prepare())
    shown = CliRunner().invoke(cli, ["subscriptions"])
    assert shown.exit_code == 0, shown.output
    for told in (
        str(one),
        "report-signed",
        "active",
        "ehr.hospital:8443",
        "failing since 2026-11-21 08:00, 1 times",
    ):
        assert told in shown.stdout
    assert "secret" not in shown.stdout

    def command(*told: str) -> str:
        done = CliRunner().invoke(cli, ["hook-secret", str(one), *told])
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    async def known() -> tuple[bytes, ...]:
        store = await open_store(dsn, key, tmp_path / "objects", utc_now)
        async with store.db.transaction() as tx:
            found = await subscriptions.read(tx, store, one)
            acts = await audit.entries(tx, entity=f"Subscription/{one}")
        await store.close()
        assert acts[-1].action == "subscription-secret"
        return found.secrets

    first, second = command(), command("--overlap-h", "1")
    assert run_apart(known()) == (second.encode(), first.encode())
    assert len(first) > 40
    third = command("--overlap-h", "0")
    assert run_apart(known()) == (third.encode(),)
    command("--remove")
    assert run_apart(known()) == ()
    missing = CliRunner().invoke(cli, ["hook-secret", str(uuid4())])
    assert missing.exit_code != 0
