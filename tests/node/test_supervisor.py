"""The supervisor: what dies comes back, what it leaves behind is ended first."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from config.settings import load_settings
from node.domain.errors import ErrorKind, NodeError
from node.installation import prepared
from node.store.postgres import EmbeddedPostgres
from node.supervisor import Supervisor, end_leftovers, supervised
from tests.conftest import run_apart
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]


def until(what: str, look: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    made = Supervisor(grace_s=20)
    yield made
    made.stop()


def running(supervisor: Supervisor) -> tuple[threading.Thread, list[int]]:
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(supervisor.run()))
    thread.start()
    return thread, status


def test_a_role_that_was_killed_runs_again(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    note = tmp_path / "pids"
    script = f"import os; open({str(note)!r}, 'a').write(f'{{os.getpid()}}\\n')"
    supervisor.add(
        "role", [sys.executable, "-c", f"{script}\n{SLEEPER[2]}"], dict(os.environ)
    )
    thread, _ = running(supervisor)

    def starts() -> list[str]:
        return note.read_text().split() if note.exists() else []

    until("first start", starts)
    os.kill(int(starts()[0]), signal.SIGKILL)
    until("second start", lambda: len(starts()) == 2)
    supervisor.stop()
    thread.join(PATIENCE_S)
    assert not psutil.pid_exists(int(starts()[1]))


def test_a_role_whose_settings_are_wrong_ends_the_node_with_status_2(
    supervisor: Supervisor,
) -> None:
    supervisor.add("good", SLEEPER, dict(os.environ))
    bad = [sys.executable, "-c", "raise SystemExit(2)"]
    supervisor.add("bad", bad, dict(os.environ))
    thread, status = running(supervisor)
    thread.join(PATIENCE_S)
    assert status == [2]


def test_roles_end_one_by_one_those_that_receive_first(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    note = tmp_path / "ends"
    for role in ("relay", "worker", "scp"):
        script = (
            "import signal, sys\n"
            f"def end(*_): open({str(note)!r}, 'a').write('{role} '); sys.exit(0)\n"
            f"signal.signal(signal.SIGTERM, end)\n"
            f"open({str(tmp_path / role)!r}, 'w').close()\n"
            "while True: signal.pause()"
        )
        supervisor.add(role, [sys.executable, "-c", script], dict(os.environ))
    thread, status = running(supervisor)
    for role in ("relay", "worker", "scp"):
        until(role, (tmp_path / role).exists)
    supervisor.stop()
    thread.join(PATIENCE_S)
    assert note.read_text().split() == ["scp", "worker", "relay"]
    assert status == [0]


def test_what_a_killed_supervisor_left_is_ended_before_another_starts(
    tmp_path: Path,
) -> None:
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    left = subprocess.Popen(
        [sys.executable, "-c", f"{deaf}\n{SLEEPER[2]}"],
        env={**os.environ, **supervised(tmp_path)},
        stdout=subprocess.PIPE,
    )
    other = subprocess.Popen(
        SLEEPER, env={**os.environ, **supervised(tmp_path / "other")}
    )
    try:
        assert left.stdout is not None
        assert left.stdout.readline() == b"up\n"
        assert end_leftovers(tmp_path) == 1
        assert left.wait(PATIENCE_S) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (left, other):
            process.kill()
            process.wait()


def test_a_role_ends_with_its_supervisor_however_that_ends(tmp_path: Path) -> None:
    script = (
        "from node.supervisor import Supervisor; import os, sys\n"
        "s = Supervisor(); s.add('role', sys.argv[1:], dict(os.environ))\n"
        "print(s._children[0].process.pid, flush=True); s.run()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *SLEEPER], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    role = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.wait()
    role.wait(PATIENCE_S)
    assert not role.is_running()


def test_a_database_that_was_killed_comes_back_at_the_same_address(
    tmp_path: Path,
) -> None:
    server = EmbeddedPostgres(tmp_path / "pg", {"fsync": "off"})
    try:
        server.start()
        dsn = server.create_database("node")
        assert not server.revive()
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        until("its death", lambda: server.revive())
        assert run_apart(_one(dsn)) == 1
    finally:
        server.stop()


def test_a_database_that_is_killed_while_the_node_starts_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, killed = EmbeddedPostgres.create_database, []

    def killed_once(server: EmbeddedPostgres, name: str) -> str:
        if not killed:
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            killed.append(server.pid)
        return create(server, name)

    monkeypatch.setattr(EmbeddedPostgres, "create_database", killed_once)
    roles = ("DICOM", "HTTP", "RELAY")
    ports = {f"SONONODE_{role}__PORT": str(free_port()) for role in roles}
    settings = load_settings({"SONONODE_DATA": str(tmp_path), **ports})
    with prepared(settings) as addresses:
        assert run_apart(_one(addresses.node)) == 1
    assert len(killed) == 1


async def _one(dsn: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval("select 1")
    finally:
        await connection.close()


def test_a_fault_of_the_database_does_not_end_the_watch(
    supervisor: Supervisor,
) -> None:
    calls: list[int] = []

    def look_after() -> None:
        calls.append(1)
        if len(calls) > 2:
            supervisor.stop()
        raise NodeError("not yet", ErrorKind.UNAVAILABLE)

    assert supervisor.run(look_after) == 0
    assert len(calls) == 3
