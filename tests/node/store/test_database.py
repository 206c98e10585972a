"""PostgreSQL away, full or refusing is told in the node's own words."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from node.domain.errors import ErrorKind, NodeError
from node.store.database import Database
from node.store.postgres import SUPERUSER, EmbeddedPostgres
from node.store.store import Store
from tests.conftest import run_apart


async def end_sessions(server: EmbeddedPostgres, dsn: str) -> None:
    """End every session of a database, as a restart of the server does."""
    name = urlsplit(dsn).path.lstrip("/")
    connection = await asyncpg.connect(server.dsn(SUPERUSER, "postgres"))
    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1",
        name,
    )
    await connection.close()


LISTENING = """
select count(*) from pg_stat_activity
where application_name = 'sononode listen' and datname = current_database()
"""


async def test_what_a_block_did_is_committed_at_its_end(store: Store) -> None:
    async with store.db.transaction() as tx:
        await tx.execute("create table t (a integer)")
        await tx.execute("insert into t values (1)")
    async with store.db.connection() as connection:
        assert await connection.fetchval("select a from t") == 1
        assert await connection.fetchval("show timezone") == "UTC"


async def test_what_a_failed_block_did_is_rolled_back_and_its_failure_travels(
    store: Store,
) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with store.db.transaction() as tx:
            await tx.execute("create table t (a integer)")
            raise ZeroDivisionError
    async with store.db.connection() as connection:
        assert await connection.fetchval("select to_regclass('t')") is None


async def test_a_lost_connection_is_unavailable_and_the_pool_recovers(
    store: Store, postgres_server: EmbeddedPostgres
) -> None:
    with pytest.raises(NodeError) as told:  # noqa: PT012
        async with store.db.transaction() as tx:
            await end_sessions(postgres_server, store.db._dsn)
            await tx.execute("select 1")
    assert told.value.kind is ErrorKind.UNAVAILABLE
    async with store.db.transaction() as tx:
        assert await tx.fetchval("select 1") == 1


@pytest.mark.parametrize(
    "broken",
    [ConnectionResetError(104, "reset"), asyncpg.InternalClientError("odd state")],
)
async def test_however_a_connection_breaks_under_a_statement_it_is_unavailable(
    store: Store, broken: Exception
) -> None:
    with pytest.raises(NodeError) as told:  # noqa: PT012
        async with store.db.transaction() as tx:
            tx.terminate()
            raise broken
    assert told.value.kind is ErrorKind.UNAVAILABLE
    with pytest.raises(type(broken)):
        async with store.db.transaction():
            raise broken  # the connection lives: this is the caller's own


async def test_our_own_mistakes_are_not_called_an_outage(store: Store) -> None:
    with pytest.raises(asyncpg.UndefinedTableError):
        async with store.db.transaction() as tx:
            await tx.execute("select * from no_such_table")
    with pytest.raises(asyncpg.DataError):
        async with store.db.transaction() as tx:
            await tx.execute("select $1::integer", "not a number")
    with pytest.raises(OSError, match="the caller's own"):
        async with store.db.transaction():
            raise OSError("the caller's own")


async def test_a_pool_that_was_closed_is_unavailable(
    new_database: Callable[[], str],
) -> None:
    database = await Database.connect(new_database())
    await database.close()
    with pytest.raises(NodeError) as told:
        async with database.connection():
            pass
    assert told.value.kind is ErrorKind.UNAVAILABLE


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (lambda dsn: dsn.replace(":", ":x", 2), ErrorKind.SETTING),
        (lambda dsn: dsn.replace("?host=", "?host=%2Fnowhere"), ErrorKind.UNAVAILABLE),
        (lambda _: "postgresql://a@127.0.0.1:1/b", ErrorKind.UNAVAILABLE),
    ],
)
async def test_a_wrong_address_names_the_setting(
    new_database: Callable[[], str], wrong: Callable[[str], str], kind: ErrorKind
) -> None:
    with pytest.raises(NodeError, match=r"database\.url") as told:
        await Database.connect(wrong(new_database()))
    assert told.value.kind is kind
    assert "postgresql://" not in told.value.message  # it may hold the password


async def test_a_database_that_does_not_exist_names_the_setting(
    postgres_server: EmbeddedPostgres,
) -> None:
    with pytest.raises(NodeError, match=r"database\.url") as told:
        await Database.connect(postgres_server.dsn(SUPERUSER, "no_such_database"))
    assert told.value.kind is ErrorKind.SETTING


async def test_two_who_begin_to_listen_at_once_share_one_connection(
    store: Store,
) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    for wave in range(3):  # some begin while others are still being taken in
        names = [f"news{wave}{n}" for n in range(4)]
        listening = [store.db.listen(name, heard.put_nowait) for name in names]
        await asyncio.gather(*listening)
    async with store.db.transaction() as tx:
        await tx.execute("notify news23, 'last'")
    async with asyncio.timeout(60):
        while await heard.get() != "last":
            pass
    async with store.db.connection() as connection, asyncio.timeout(60):
        while await connection.fetchval(LISTENING) != 1:
            await asyncio.sleep(0.01)


async def test_who_begins_to_listen_meanwhile_ends_nobodys_listening(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, begun = asyncpg.Connection.add_listener, []

    async def interrupted(connection: Any, channel: str, told: Any) -> None:
        await add(connection, channel, told)
        if not begun:
            begun.append(asyncio.create_task(store.db.listen("late", lambda _: None)))
            await asyncio.sleep(0)

    monkeypatch.setattr(asyncpg.Connection, "add_listener", interrupted)
    heard: asyncio.Queue[str] = asyncio.Queue()
    await store.db.listen("news", heard.put_nowait)
    await begun[0]
    async with store.db.connection() as connection, asyncio.timeout(60):
        await connection.execute("notify news, 'all the same'")
        while await heard.get() != "all the same":
            pass


async def test_listeners_hear_commits_and_are_told_of_a_gap(
    store: Store, postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.store.database.LISTEN_RETRY_S", 0.01)
    heard: asyncio.Queue[str] = asyncio.Queue()
    await store.db.listen("news", heard.put_nowait)

    async def tell(text: str) -> None:
        async with store.db.transaction() as tx:
            await tx.execute("select pg_notify('news', $1)", text)

    await tell("one")
    async with asyncio.timeout(60):
        assert await heard.get() == "one"
        run_apart(end_sessions(postgres_server, store.db._dsn))
        assert await heard.get() == ""  # something may have been missed
    await store.db.listen("other", heard.put_nowait)
    await tell("two")
    async with asyncio.timeout(60):
        assert await heard.get() == "two"


async def test_readers_only_read_and_come_back_after_the_server_did(
    store: Store, postgres_server: EmbeddedPostgres
) -> None:
    async with store.db.reading() as connection:
        assert await connection.fetchval("select 1") == 1
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with store.db.reading() as connection:
            await connection.execute("create table t (a integer)")
    await end_sessions(postgres_server, store.db._dsn)
    async with asyncio.timeout(60):
        for _ in range(3):
            with suppress(NodeError):  # the first may be the one that finds out
                async with store.db.reading() as connection:
                    await connection.fetchval("select 1")
    async with store.db.reading() as connection:
        assert await connection.fetchval("select 1") == 1
