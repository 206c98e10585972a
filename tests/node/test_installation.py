"""A start that cannot succeed: one line that names the setting, status 2, no trace.

Every case is a process of its own, started as an engineer starts it (DESIGN §3).
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import asyncpg
import psutil
import pytest

from node.store.keys import create_root_key
from node.store.store import open_store
from tests.conftest import FrozenClock, run_apart
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
WRONG_SETTINGS = 2


def serve(data: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Start a node that is expected to end by itself."""
    given = {
        "DICOM__HOST": "127.0.0.1",
        "DICOM__PORT": str(free_port()),
        "HTTP__PORT": str(free_port()),
        "RELAY__PORT": str(free_port()),
        **settings,
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SONONODE_")}
    return subprocess.run(
        [sys.executable, "-m", "node", "serve"],
        cwd=ROOT,
        env={
            **inherited,
            "PYTHONPATH": str(ROOT),
            "SONONODE_DATA": str(data),
            **{f"SONONODE_{name}": value for name, value in given.items()},
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_refused(
    ended: subprocess.CompletedProcess[str], data: Path, setting: str, *mend: str
) -> None:
    """One line that begins with the setting, status 2, and nothing left running."""
    assert ended.returncode == WRONG_SETTINGS, ended.stderr
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith(f"{setting}: "), line
    assert [word for word in mend if word not in line] == [], line
    assert ended.stdout == ""
    assert not (data / "running.json").exists()
    left = [p.pid for p in psutil.process_iter() if _runs_on(p, data)]
    assert left == []


def _runs_on(process: psutil.Process, data: Path) -> bool:
    try:
        return bool(process.environ().get("SONONODE_DATA") == str(data))
    except psutil.Error:
        return False


def on_database(dsn: str, key: Path) -> dict[str, str]:
    return {
        "DATABASE__URL": dsn,
        "KEYS__ROOT_FILE": str(key),
        "RELAY__ENABLED": "false",
    }


@pytest.mark.parametrize("setting", ["dicom.port", "http.port", "relay.port"])
def test_a_taken_port_is_named_with_its_number(tmp_path: Path, setting: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = str(other.getsockname()[1])
        name = setting.upper().replace(".", "__")
        ended = serve(tmp_path, **{name: port})
    assert_refused(ended, tmp_path, setting, port, "choose another port")
    assert not (tmp_path / "pg").exists()


def test_every_wrong_setting_is_told_at_once(tmp_path: Path) -> None:
    ended = serve(tmp_path, HTTP__PORT="abc", LOG__LEVEL="loud", RELAY__ENABLED="si")
    assert ended.returncode == WRONG_SETTINGS
    told = sorted(line.partition(":")[0] for line in ended.stderr.splitlines())
    assert told == ["http.port", "log.level", "relay.enabled"]


@pytest.mark.parametrize(
    ("setting", "mend"),
    [
        ("dicom.tls_certificate", "leave the setting empty"),
        ("inference.weights", "leave it empty"),
    ],
)
def test_a_file_that_is_not_there_is_found_before_anything_starts(
    tmp_path: Path, setting: str, mend: str
) -> None:
    name = setting.upper().replace(".", "__")
    ended = serve(tmp_path, **{name: str(tmp_path / "nowhere")})
    assert_refused(ended, tmp_path, setting, mend)
    assert not (tmp_path / "pg").exists()


def test_a_lost_root_key_is_not_replaced_by_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "pg").mkdir()
    ended = serve(tmp_path)
    assert_refused(ended, tmp_path, "keys.root_file", "restore it from its copy")
    assert not (tmp_path / "keys" / "root.key").exists()


def test_a_lost_root_key_of_an_external_database_is_named(
    tmp_path: Path, new_database: Callable[[], str]
) -> None:
    missing = tmp_path / "root.key"
    ended = serve(tmp_path, **on_database(new_database(), missing))
    assert_refused(ended, tmp_path, "keys.root_file", str(missing))


def test_a_root_key_of_other_data_is_refused(
    tmp_path: Path,
    new_database: Callable[[], str],
    root_key: Path,
    clock: FrozenClock,
) -> None:
    dsn, other = new_database(), tmp_path / "other.key"

    async def use() -> None:
        await (await open_store(dsn, root_key, tmp_path / "objects", clock)).close()

    run_apart(use())
    create_root_key(other)
    ended = serve(tmp_path, **on_database(dsn, other))
    assert_refused(ended, tmp_path, "keys.root_file", "restore")


def test_a_database_of_a_newer_version_is_left_alone(
    tmp_path: Path, new_database: Callable[[], str], root_key: Path
) -> None:
    dsn = new_database()

    async def age() -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute(
            "insert into schema_migrations select 9999, 'newer', checksum, applied_at"
            " from schema_migrations limit 1"
        )
        await connection.close()

    asyncio.run(age())
    ended = serve(tmp_path, **on_database(dsn, root_key))
    assert_refused(ended, tmp_path, "database.url", "newer")


def test_a_second_node_on_the_same_data_is_refused(tmp_path: Path) -> None:
    lock = f"import fcntl; f = open({str(tmp_path / 'node.lock')!r}, 'w')"
    hold = "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", f"{lock}; {hold}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as first:
        assert first.stdout is not None
        first.stdout.readline()
        ended = serve(tmp_path)
        first.kill()
    assert_refused(ended, tmp_path, "SONONODE_DATA", "another node")
