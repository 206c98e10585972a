"""Fixtures of the patient channel: a relay over its own database, a fake WeChat."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest

from node.store.database import Database
from node.store.migrate import migrate
from node.store.postgres import EmbeddedPostgres
from tests.wechat.rig import Bench, Rig, push_bench, running_rig
from wechat.relay.records import MIGRATIONS


@pytest.fixture(scope="session")
def relay_database(postgres_server: EmbeddedPostgres) -> str:
    """The DSN of one relay database of this test process, migrated."""

    async def prepare() -> str:
        dsn = postgres_server.create_database("relay")
        database = await Database.connect(dsn)
        await migrate(database, directory=MIGRATIONS)
        await database.close()
        return dsn

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, prepare()).result()


@pytest.fixture
async def relay_dsn(relay_database: str) -> str:
    """The DSN of a relay database without a row."""
    connection = await asyncpg.connect(relay_database)
    tables = await connection.fetch(
        "select tablename from pg_tables where schemaname = 'public'"
        " and tablename <> 'schema_migrations'"
    )
    names = ", ".join(row["tablename"] for row in tables)
    await connection.execute(f"truncate {names} restart identity cascade")
    await connection.close()
    return relay_database


@pytest.fixture
async def rig(relay_dsn: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """A running relay on an empty database."""
    async with running_rig(relay_dsn, tmp_path) as made:
        yield made


@pytest.fixture
async def bench(relay_dsn: str, tmp_path: Path) -> AsyncIterator[Bench]:
    """A push worker that the test drives step by step."""
    async with push_bench(relay_dsn, tmp_path) as made:
        yield made


@pytest.fixture
async def hurried_bench(relay_dsn: str, tmp_path: Path) -> AsyncIterator[Bench]:
    """A push worker that waits half a second for WeChat, for calls that hang."""
    async with push_bench(relay_dsn, tmp_path, timeout_s=0.5) as made:
        yield made
