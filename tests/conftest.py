"""Shared fixtures: a PostgreSQL per test process, a fresh store per test."""

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
from argon2 import PasswordHasher
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from node.store import people
from node.store.database import Database
from node.store.keys import create_root_key
from node.store.migrate import migrate
from node.store.postgres import SUPERUSER, EmbeddedPostgres
from node.store.store import Store, open_store

T = TypeVar("T")

# One database takes 11 MB, the log 256 MB; tests that keep theirs are few.
ENOUGH_MEMORY = 4 << 30

# The same cases each time, however busy the machine is; a fuzz looks for others.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize="SONONODE_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")

_numbers = itertools.count(1)


class _TogetherWhatSharesANode(LoadFileScheduling):
    """Gives a file to one process, and the files that share a running node to one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        shares = file.startswith("tests/journeys/") and "test_demo" not in file
        return "tests/journeys" if shares else file


def pytest_xdist_make_scheduler(
    config: pytest.Config, log: Producer
) -> LoadFileScheduling | None:
    """Refine `--dist loadfile`: a node started twice costs more than it gains."""
    if config.getvalue("dist") != "loadfile":
        return None
    return _TogetherWhatSharesANode(config, log)


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a loop of its own, inside or outside a test's."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


class FrozenClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, *, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock(datetime(2026, 11, 21, 8, 0, tzinfo=UTC))


@pytest.fixture(scope="session", autouse=True)
def quick_passwords() -> Iterator[None]:
    """Accounts are made in every other test: hash their passwords with little work."""
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(people, "_HASHER", hasher)
        patch.setattr(people, "_DECOY", hasher.hash("nobody's"))
        yield


@pytest.fixture(scope="session")
def samples() -> Path:
    """The licensed sample images; tests that need them are skipped without."""
    folder = os.environ.get("SONONODE_SAMPLES")
    if not folder:
        pytest.skip("SONONODE_SAMPLES is not set: no real images here")
    return Path(folder)


def quick_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in memory where there is room, else on disk.

    Every test copies hundreds of files as its database: a tenth of the time there.
    """
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > ENOUGH_MEMORY:
        return Path(tempfile.mkdtemp(prefix="sononode-", dir=memory))
    return tmp_path_factory.mktemp("pg")


@pytest.fixture(scope="session")
def postgres_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of this test process. Tests must not stop it."""
    folder = quick_folder(tmp_path_factory)
    # Durability is the subject of its own tests; here it would only cost time.
    settings = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}
    # A client that a test cut off while it signed in holds up every "drop database".
    settings["authentication_timeout"] = "20s"
    server = EmbeddedPostgres(folder, settings)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template_database(postgres_server: EmbeddedPostgres) -> str:
    """The DSN of a migrated database from which the others are copied."""

    async def prepare() -> str:
        dsn = postgres_server.create_database("template_node")
        database = await Database.connect(dsn)
        await migrate(database)
        await database.close()
        return dsn

    return run_apart(prepare())


@pytest.fixture
def new_database(
    postgres_server: EmbeddedPostgres, template_database: str
) -> Iterator[Callable[[], str]]:
    """Return a function that makes a migrated database and returns its DSN."""
    made: list[str] = []

    async def execute(*statements: str) -> None:
        connection = await asyncpg.connect(postgres_server.dsn(SUPERUSER, "postgres"))
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    def make() -> str:
        name = f"test_{next(_numbers)}"
        copy = f"create database {name} template template_node owner template_node"
        run_apart(execute(f"{copy} strategy file_copy"))
        made.append(name)
        return template_database.replace("/template_node?", f"/{name}?")

    yield make
    # Eight megabytes each: a long run would fill the disk.
    run_apart(execute(*(f"drop database {name} with (force)" for name in made)))


@pytest.fixture
def empty_database(postgres_server: EmbeddedPostgres) -> str:
    """The DSN of a database without any table."""
    return postgres_server.create_database(f"empty_{next(_numbers)}")


@pytest.fixture
async def empty_migrated(new_database: Callable[[], str]) -> AsyncIterator[Database]:
    """A migrated database that no node has opened: there is no key in it yet."""
    database = await Database.connect(new_database())
    yield database
    await database.close()


@pytest.fixture
def root_key(tmp_path: Path) -> Path:
    path = tmp_path / "root.key"
    create_root_key(path)
    return path


@pytest.fixture
async def store(
    new_database: Callable[[], str],
    root_key: Path,
    tmp_path: Path,
    clock: FrozenClock,
) -> AsyncIterator[Store]:
    opened = await open_store(new_database(), root_key, tmp_path / "objects", clock)
    yield opened
    await opened.close()
