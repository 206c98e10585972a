"""The pool of PostgreSQL connections, and what the node calls its failures."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Literal, TypeAlias, cast

import asyncpg
import structlog

from node.domain.errors import ErrorKind, NodeError

log = structlog.get_logger(__name__)

ACQUIRE_TIMEOUT_S = 30.0
# Few: a query keeps a processor busy, and more of them at once only wait longer.
READERS = 3
# What asks for longer would keep others waiting; it is told to ask for less.
READING_LIMIT_S = 10.0
LISTEN_RETRY_S = 1.0
# What a connection has learnt it keeps: whoever signs after a quiet half hour would
# else wait until fifty statements are prepared anew. PostgreSQL plans again by itself
# when its tables change.
STATEMENTS_KEPT = 250
CONNECTION_KEPT_S = 3600.0

# SQLSTATE classes that mean "the server is not there for us just now".
_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
)
# asyncpg says InterfaceError for a closed pool or connection, and for our mistakes.
_CLOSED = ("is closed", "is closing", "underlying connection")
# What asyncpg itself raises when a connection breaks in the middle of a message.
_BROKEN = (asyncpg.InterfaceError, asyncpg.InternalClientError)
_FULL = (asyncpg.DiskFullError, asyncpg.OutOfMemoryError)

_SESSION = {"application_name": "sononode", "timezone": "UTC", "jit": "off"}

Listener = Callable[[str], None]
Isolation = Literal["read_committed", "repeatable_read", "serializable"]
# A connection inside a transaction, as `Database.transaction` yields it.
Transaction: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class TooCostly(NodeError):
    """A query of a reader took longer than READING_LIMIT_S and was ended."""

    def __init__(self) -> None:
        super().__init__("this takes too long; ask for less", ErrorKind.RULE)


class Database:
    """One PostgreSQL database. Make it with `connect`, end it with `close`."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", dsn: str) -> None:
        self._pool = pool
        self._dsn = dsn
        self._readers: asyncpg.Pool[asyncpg.Record] | None = None
        self._readers_made = asyncio.Lock()
        self._turns = asyncio.Semaphore(READERS)
        self._listeners: dict[str, list[Listener]] = {}
        self._listening: asyncio.Task[None] | None = None
        self._subscribed = asyncio.Event()
        self._subscribing = asyncio.Lock()

    @classmethod
    async def connect(
        cls, dsn: str, *, min_size: int = 1, max_size: int = 10
    ) -> "Database":
        """Return a pool that has reached the server once.

        Raises NodeError UNAVAILABLE when nobody answers and SETTING when the
        server refuses the account or has no such database.
        """
        with _refusals_named(), _failures_named(connecting=True):
            pool = await asyncpg.create_pool(
                dsn,
                min_size=min_size,
                max_size=max_size,
                timeout=ACQUIRE_TIMEOUT_S,
                init=_learn_arrays,
                server_settings=_SESSION,
                statement_cache_size=STATEMENTS_KEPT,
                max_cached_statement_lifetime=0,
                max_inactive_connection_lifetime=CONNECTION_KEPT_S,
            )
        return cls(pool, dsn)

    async def close(self) -> None:
        """Give every connection back; wait for those in use."""
        if self._listening is not None:
            self._listening.cancel()
            with suppress(asyncio.CancelledError):
                await self._listening
            self._listening = None
        for pool in (self._readers, self._pool):
            if pool is not None:
                try:
                    async with asyncio.timeout(ACQUIRE_TIMEOUT_S):
                        await pool.close()
                except (OSError, TimeoutError, *_BROKEN, *_AWAY):
                    pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """Yield a connection outside any transaction."""
        async with _lent(self._pool) as connection:
            yield connection

    @asynccontextmanager
    async def reading(
        self, *, at_once: bool = False
    ) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """Yield a connection that can only read, for many short queries.

        Each statement sees what was committed before it. Nothing of the session
        is put back between callers, which would cost as much as a query: leave
        nothing in it. Raises TooCostly when a statement takes too long. `at_once`
        is for one caller whose queries are never long: it waits for no other.
        """
        if self._readers is None:
            async with self._readers_made:
                if self._readers is None:
                    self._readers = await self._make_readers()
        if not at_once:
            await self._take_turn()
        try:
            async with _lent(self._readers) as connection:
                yield connection
        except asyncpg.QueryCanceledError:
            raise TooCostly from None
        finally:
            if not at_once:
                self._turns.release()

    async def _take_turn(self) -> None:
        """Wait behind those who came before.

        The pool itself hands a connection to whoever comes at the right moment, and
        those who have waited longest would wait on.
        """
        if not self._turns.locked():
            await self._turns.acquire()
            return
        with _failures_named(connecting=True):
            async with asyncio.timeout(ACQUIRE_TIMEOUT_S):
                await self._turns.acquire()

    async def _make_readers(self) -> "asyncpg.Pool[asyncpg.Record]":
        with _refusals_named(), _failures_named(connecting=True):
            return await asyncpg.create_pool(
                self._dsn,
                min_size=1,
                max_size=READERS + 1,  # one for who reads at once
                timeout=ACQUIRE_TIMEOUT_S,
                init=_learn_arrays,
                reset=_leave_as_it_is,
                statement_cache_size=STATEMENTS_KEPT,
                max_cached_statement_lifetime=0,
                max_inactive_connection_lifetime=CONNECTION_KEPT_S,
                server_settings={
                    **_SESSION,
                    "default_transaction_read_only": "on",
                    "statement_timeout": str(int(1000 * READING_LIMIT_S)),
                    # A search for what is rare needs another plan than one for
                    # what is common; planning costs less than the wrong one.
                    "plan_cache_mode": "force_custom_plan",
                    # A page of twenty is no work for three processes.
                    "max_parallel_workers_per_gather": "0",
                },
            )

    @asynccontextmanager
    async def transaction(
        self, *, isolation: Isolation = "read_committed", readonly: bool = False
    ) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """Yield a connection inside a transaction.

        It is committed, and on disk, when the block ends without an exception.
        """
        async with self.connection() as connection:
            transaction: Any = connection.transaction(
                isolation=isolation, readonly=readonly
            )
            async with transaction:
                yield connection

    async def listen(self, channel: str, listener: Listener) -> None:
        """Call `listener(payload)` for every NOTIFY on `channel` from now on.

        One connection of its own serves all channels. When it is lost it comes
        back by itself, and every listener is called once with an empty payload,
        because notifications may have been missed in between.
        """
        async with self._subscribing:  # or two would each leave a connection behind
            self._listeners.setdefault(channel, []).append(listener)
            if self._listening is not None:
                self._listening.cancel()
                with suppress(asyncio.CancelledError):
                    await self._listening
            self._subscribed.clear()
            self._listening = asyncio.create_task(self._keep_listening())
            with suppress(TimeoutError):
                async with asyncio.timeout(ACQUIRE_TIMEOUT_S):
                    await self._subscribed.wait()

    async def _keep_listening(self) -> None:
        lost_before = False
        while True:
            try:
                connection = await asyncpg.connect(
                    self._dsn, server_settings={"application_name": "sononode listen"}
                )
            except (OSError, TimeoutError, asyncpg.PostgresError, *_BROKEN):
                lost_before = True
                await asyncio.sleep(LISTEN_RETRY_S)
                continue
            try:
                await self._listen_until_lost(connection, lost_before)
            except (OSError, asyncpg.PostgresError, *_BROKEN):
                log.warning("database.listen_lost")
            finally:
                connection.terminate()
            lost_before = True
            await asyncio.sleep(LISTEN_RETRY_S)

    async def _listen_until_lost(
        self, connection: "asyncpg.Connection[asyncpg.Record]", lost_before: bool
    ) -> None:
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        for channel in list(self._listeners):  # more may come meanwhile
            await connection.add_listener(channel, self._dispatch)
        self._subscribed.set()
        if lost_before:
            for channel in list(self._listeners):
                self._tell(channel, "")
        await lost.wait()

    def _dispatch(
        self, _connection: object, _pid: int, channel: str, payload: object
    ) -> None:
        self._tell(channel, str(payload))

    def _tell(self, channel: str, payload: str) -> None:
        for listener in self._listeners.get(channel, ()):
            listener(payload)


@asynccontextmanager
async def limited(tx: Transaction) -> AsyncIterator[None]:
    """Let reading within a transaction take as long as a reader may; TooCostly then.

    The transaction is lost with it.
    """
    await tx.execute(f"set local statement_timeout = {int(1000 * READING_LIMIT_S)}")
    try:
        yield
    except asyncpg.QueryCanceledError:
        raise TooCostly from None
    await tx.execute("set local statement_timeout = 0")


@asynccontextmanager
async def given_up_after(tx: Transaction, seconds: float) -> AsyncIterator[None]:
    """Let one question take so long; TooCostly then, and the others go on."""
    try:
        async with tx.transaction():
            allowed = await tx.fetchval("show statement_timeout")
            await _allow(tx, f"{round(1000 * seconds)}ms")
            yield
            await _allow(tx, allowed)  # for whatever transaction is around this one
    except asyncpg.QueryCanceledError:
        raise TooCostly from None


async def _allow(tx: Transaction, longest: str) -> None:
    await tx.execute("select set_config('statement_timeout', $1, true)", longest)


@asynccontextmanager
async def _lent(
    pool: "asyncpg.Pool[asyncpg.Record]",
) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    with _failures_named(connecting=True):
        connection = await pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
    try:
        with _failures_named():
            # The pool's proxy has the whole interface of a connection.
            yield cast("Transaction", connection)
    except (OSError, *_BROKEN) as error:
        if not connection.is_closed():
            raise
        # It broke under a statement: that is the server, not the caller.
        raise NodeError("the database is away", ErrorKind.UNAVAILABLE) from error
    finally:
        # A connection that died in the body has nothing left to release.
        with suppress(OSError, TimeoutError, *_BROKEN, *_AWAY):
            await pool.release(connection)


async def _learn_arrays(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Have asyncpg ask now what arrays are, not in the middle of the first request."""
    await connection.fetchrow(f"select {_ARRAYS}")


_ARRAYS = ", ".join(
    f"null::{kind}[]"
    for kind in ("text", "uuid", "bytea", "timestamptz", "bigint", "integer", "date")
)


async def _leave_as_it_is(_connection: object) -> None:
    """Put nothing back: readers leave nothing behind."""


@contextmanager
def _failures_named(*, connecting: bool = False) -> Iterator[None]:
    """Turn "PostgreSQL is away" and "is full" into NodeError; let the rest travel.

    OSError and TimeoutError mean the server only while connecting: inside a
    block they may be the caller's own.
    """
    try:
        yield
    except asyncpg.InterfaceError as error:
        if not any(sign in str(error) for sign in _CLOSED):
            raise
        raise NodeError("the database is away", ErrorKind.UNAVAILABLE) from error
    except asyncpg.DeadlockDetectedError as error:
        raise NodeError(
            "others were writing the same at this moment; send it again",
            ErrorKind.UNAVAILABLE,
        ) from error
    except _FULL as error:
        raise NodeError("the database has no room left", ErrorKind.EXHAUSTED) from error
    except _AWAY as error:
        raise NodeError(
            f"the database is away ({type(error).__name__})", ErrorKind.UNAVAILABLE
        ) from error
    except (OSError, TimeoutError, asyncpg.InternalClientError) as error:
        if not connecting:
            raise
        raise NodeError(
            f"the database does not answer ({type(error).__name__}); "
            "check database.url",
            ErrorKind.UNAVAILABLE,
        ) from error


@contextmanager
def _refusals_named() -> Iterator[None]:
    """Name the setting when the server answers but will not let us in."""
    try:
        yield
    except asyncpg.InvalidAuthorizationSpecificationError as error:
        raise NodeError(
            "database.url: the server refuses this user or password",
            ErrorKind.SETTING,
        ) from error
    except asyncpg.InvalidCatalogNameError as error:
        raise NodeError(
            "database.url: the server has no such database; create it first",
            ErrorKind.SETTING,
        ) from error
