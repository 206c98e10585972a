"""Migrations: up only, once, and never over a database of another build."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path

import asyncpg
import pytest

from node.domain.errors import ErrorKind, NodeError
from node.store.database import Database
from node.store.migrate import MIGRATIONS, migrate, read_migrations


@pytest.fixture
async def empty(empty_database: str) -> AsyncIterator[Database]:
    database = await Database.connect(empty_database)
    yield database
    await database.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "migrations"
    made.mkdir()
    write(made, 1, "create table a (n integer)")
    write(made, 2, "alter table a add m integer; insert into a values (1, 2)")
    return made


def write(folder: Path, number: int, sql: str) -> None:
    (folder / f"{number:04d}_step.sql").write_text(sql)


async def test_the_node_s_migrations_apply_to_an_empty_database(
    empty: Database,
) -> None:
    applied = await migrate(empty)
    assert applied == [migration.name for migration in read_migrations()]
    assert await migrate(empty) == []


def test_the_node_s_migrations_are_numbered_without_a_gap() -> None:
    numbers = [migration.version for migration in read_migrations(MIGRATIONS)]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_only_what_is_new_is_applied(empty: Database, folder: Path) -> None:
    await migrate(empty, folder)
    write(folder, 3, "update a set m = 3")
    assert await migrate(empty, folder) == ["0003_step"]
    async with empty.connection() as connection:
        assert await connection.fetchval("select m from a") == 3


async def test_processes_that_start_together_apply_each_migration_once(
    empty: Database, folder: Path
) -> None:
    applied = await asyncio.gather(*(migrate(empty, folder) for _ in range(5)))
    assert sorted(chain.from_iterable(applied)) == ["0001_step", "0002_step"]


async def test_a_migration_that_fails_leaves_no_half(
    empty: Database, folder: Path
) -> None:
    write(folder, 3, "create table b (n integer); select 1 / 0")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(empty, folder)
    async with empty.connection() as connection:
        assert await connection.fetchval("select to_regclass('b')") is None
        assert await connection.fetchval("select max(version) from schema_migrations")
    write(folder, 3, "create table b (n integer)")
    assert await migrate(empty, folder) == ["0003_step"]


async def test_a_newer_database_is_refused_and_left_alone(
    empty: Database, folder: Path
) -> None:
    write(folder, 3, "create table b (n integer)")
    await migrate(empty, folder)
    (folder / "0003_step.sql").unlink()
    with pytest.raises(NodeError) as told:
        await migrate(empty, folder)
    assert told.value.kind is ErrorKind.SETTING
    assert "version 3, this release knows 2" in told.value.message
    assert told.value.message.startswith("database.url")


async def test_a_migration_that_was_changed_after_it_ran_is_refused(
    empty: Database, folder: Path
) -> None:
    await migrate(empty, folder)
    write(folder, 1, "create table a (n bigint)")
    with pytest.raises(NodeError, match="migration 0001") as told:
        await migrate(empty, folder)
    assert told.value.kind is ErrorKind.SETTING


@pytest.mark.parametrize("name", ["1_short.sql", "0003_UPPER.sql", "0001_twice.sql"])
def test_a_misnamed_file_is_our_mistake_and_stops_everything(
    folder: Path, name: str
) -> None:
    (folder / name).write_text("select 1")
    with pytest.raises(ValueError, match=r"named|number"):
        read_migrations(folder)


def test_a_checksum_is_that_of_the_file(folder: Path) -> None:
    first = read_migrations(folder)[0]
    content = (folder / "0001_step.sql").read_bytes()
    assert first.checksum == hashlib.sha256(content).digest()
