"""Starting, stopping and sealing: one clear line for each wrong setting."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.domain.disclosure import mask_name
from node.domain.errors import ErrorKind, NodeError
from tests.wechat.rig import Clock, Masked, Rig, encode, handle, notification
from wechat.relay.masked import RefusedNotification, read_notification
from wechat.relay.sealing import RelaySealer, create_key_file
from wechat.relay.server import Relay
from wechat.relay.settings import RelaySettings

ROOT = Path(__file__).parents[2]


async def test_a_missing_key_a_taken_port_and_a_long_text_name_their_setting(
    rig: Rig, tmp_path: Path
) -> None:
    port = int(rig.relay.base_url.rpartition(":")[2])
    unusable: tuple[tuple[dict[str, Any], str], ...] = (
        ({"key_file": tmp_path / "none"}, "relay.key_file"),
        ({"port": port}, "relay.port"),
    )
    for changed, named in unusable:
        relay = Relay(replace(rig.settings, **changed), Clock())
        with pytest.raises(NodeError, match=named) as refused:
            await relay.start()
        assert refused.value.kind is ErrorKind.SETTING
    wrong: tuple[dict[str, Any], ...] = (
        {"push_title": "长" * 21},
        {"template_fields": ("name1", "date2", "thing3")},
        {"hook_secret": b"short"},
    )
    for setting in wrong:
        with pytest.raises(NodeError) as refused:
            replace(rig.settings, **setting)
        assert refused.value.kind is ErrorKind.SETTING


async def test_a_short_key_file_is_refused(rig: Rig, tmp_path: Path) -> None:
    short = tmp_path / "short.key"
    short.write_bytes(b"too short")
    with pytest.raises(NodeError, match=r"relay\.key_file"):
        await Relay(replace(rig.settings, key_file=short), Clock()).start()


def test_the_process_serves_and_stops_on_sigterm(
    relay_database: str, tmp_path: Path
) -> None:
    key = tmp_path / "relay.key"
    create_key_file(key)
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from wechat.relay.server import run\n"
        "from wechat.relay.settings import RelaySettings\n"
        "asyncio.run(run(RelaySettings(dsn=sys.argv[1], hook_secret=b'x' * 32,"
        " key_file=Path(sys.argv[2]), app_id='wx', app_secret='s', template_id='t',"
        " department_phone='', port=0)))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, relay_database, str(key)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any("relay.started" in line for line in lines)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert "relay.stopped" in process.stdout.read()
    finally:
        process.kill()


def test_settings_do_not_print_secrets(tmp_path: Path) -> None:
    settings = RelaySettings(
        dsn="postgresql://user:password-of-db@host/db",
        hook_secret=b"secret-of-the-hook",
        key_file=tmp_path,
        app_id="wx",
        app_secret="secret-of-the-app",
        template_id="t",
        department_phone="",
        event_token="secret-of-events",
    )
    assert "secret-of" not in repr(settings)
    assert "password" not in repr(settings)


def test_a_sealed_value_opens_only_where_it_was_sealed() -> None:
    sealer = RelaySealer(bytes(range(32)))
    sealed = sealer.seal(b"openid", table="accounts", row="1", column="openid")
    assert b"openid" not in sealed
    assert sealer.open(sealed, table="accounts", row="1", column="openid") == b"openid"
    for table, row, column in (
        ("reports", "1", "openid"),
        ("accounts", "2", "openid"),
        ("accounts", "1", "content"),
    ):
        with pytest.raises(NodeError):
            sealer.open(sealed, table=table, row=row, column=column)
    for position in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[position] ^= 1
        with pytest.raises(NodeError):
            sealer.open(bytes(flipped), table="accounts", row="1", column="openid")
    with pytest.raises(NodeError):
        sealer.open(b"", table="accounts", row="1", column="openid")


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "relay.key"
    create_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o400
    with pytest.raises(FileExistsError):
        create_key_file(path)


@given(st.text(min_size=1, max_size=12))
def test_a_name_of_any_script_enters_the_relay_only_masked(name: str) -> None:
    def deliver(display: str) -> str:
        report = Masked(handle(), handle(), display=display)
        read = read_notification(encode(notification((1, report))))
        return read.events[0][1].display

    masked = mask_name(name)
    if name != masked:
        with pytest.raises(RefusedNotification):
            deliver(name)
    if len(masked) <= 16:
        assert deliver(masked) == masked
