"""Connections to a PostgreSQL database that may be slow, dead or back again: asked often, never waited for in vain."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
from asyncpg import Connection, Pool, Record
from asyncpg.pool import PoolConnectionProxy

STATEMENT: Final = 2.0  # seconds a step may take
ADMIT: Final = 1.25  # … where a caller waits.  A server that lives has told by then that a row is locked (after 1 s)
REPORT: Final = 60.0  # seconds a report may take
PREPARE: Final = 60.0  # seconds that preparing the database may take, such as a migration
CONNECT: Final = 1.0  # seconds to connect
QUEUE: Final = 0.25  # seconds that a request waits for a free connection
PROBE: Final = 0.25  # seconds between two looks at a database that is down
AGAIN: Final = 3  # times that a deadlock is tried again

# Not done, or nobody knows: the connection or the server went away, or it is a standby that does not write.
_LOST: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)
_RETRIED: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)

log = logging.getLogger(__name__)


class DatabaseDown(Exception):
    """It does not answer now; what was asked may have been done."""


class Database:
    """Pools of connections to one database.

    sizes: pool -> the most connections.  "admit" is for those whom a caller waits for, "report" for what may take long.
    prepare: run once on the first connection, such as a migration.
    Once it was noticed that the database is down, every call raises DatabaseDown at once, those of callers who wait
    already too; one task looks if it is back.
    Statements are asked again where an answer was lost, so each must be harmless when repeated with the same values.
    """

    def __init__(self, dsn: str, sizes: Mapping[str, int], prepare: Callable[[Connection], Awaitable[None]]) -> None:
        self._dsn = dsn
        self._sizes = sizes
        self._prepare = prepare
        self._pools: dict[str, Pool] = {}
        self._down: str | None = None
        self._probing: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._waits: set[asyncio.Timeout] = set()  # of callers

    async def start(self) -> None:
        """Connects, unless that was done.  Raises DatabaseDown (a later call tries again) and what `prepare` raises."""
        async with self._opening:
            if self._pools:
                return
            try:
                connection = await asyncpg.connect(self._dsn, timeout=CONNECT)
                try:
                    async with asyncio.timeout(PREPARE):
                        await self._prepare(connection)
                finally:
                    connection.terminate()
                self._pools = await self._connected()
            except (*_LOST, TimeoutError) as error:
                raise self._fell(error)

    async def rows(self, pool: str, sql: str, *values: object, patience: float | None = None) -> list[Record]:
        """patience: seconds for the statement; None: what its pool says.

        Raises DatabaseDown, and asyncpg.PostgresError where the statement was refused.
        """
        patience = patience or {"report": REPORT, "admit": ADMIT}.get(pool, STATEMENT)
        for attempt in range(AGAIN + 1):
            if self._down is not None:
                raise DatabaseDown(self._down)
            try:
                if not self._pools:
                    await self.start()
                async with self._wait(pool, patience), self._connection(pool) as connection:
                    found: list[Record] = await connection.fetch(sql, *values, timeout=patience)
                    return found
            except asyncpg.LockNotAvailableError:
                raise DatabaseDown("a row is locked by another session of the database") from None
            except _RETRIED as error:
                if attempt == AGAIN:
                    raise DatabaseDown(f"the database is too busy: {type(error).__name__}") from error
                await asyncio.sleep(random.uniform(0.001, 0.02) * 2**attempt)  # noqa: S311  (spreads, hides nothing)
            except TimeoutError as error:  # before OSError, which it is: what hangs is not asked a second time
                raise self._fell(error)
            except _LOST as error:
                if attempt or pool not in self._pools:
                    raise self._fell(error)
                await self._pools[pool].expire_connections()  # after a restart all of them are dead, not only this one
        raise AssertionError("the last attempt raises or returns")

    async def aclose(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        for pool in self._pools.values():
            try:
                async with asyncio.timeout(STATEMENT):
                    await pool.close()
            except TimeoutError:
                pool.terminate()
        self._pools.clear()

    async def _connected(self) -> dict[str, Pool]:
        pools: dict[str, Pool] = {}
        try:
            for name, size in self._sizes.items():
                pools[name] = self._pool(size)
                await pools[name]
                async with pools[name].acquire(timeout=CONNECT):  # one is there for the first caller
                    pass
        except BaseException:
            for pool in pools.values():
                pool.terminate()
            raise
        return pools

    def _pool(self, size: int) -> Pool:
        """Not connected yet: await it."""
        return asyncpg.create_pool(
            self._dsn,
            min_size=0,  # asyncpg would try to keep more than that, and log each time that it cannot, while all is down
            max_size=size,
            timeout=CONNECT,
            command_timeout=STATEMENT,
            max_inactive_connection_lifetime=0,
            reset=_keep,
        )

    @asynccontextmanager
    async def _wait(self, pool: str, patience: float) -> AsyncIterator[None]:
        """A caller waits no longer than this for a connection and its answer; and no longer than the first of all."""
        if pool != "admit":
            yield
            return
        async with asyncio.timeout(patience) as wait:
            self._waits.add(wait)
            try:
                yield
            finally:
                self._waits.discard(wait)

    @asynccontextmanager
    async def _connection(self, name: str) -> AsyncIterator[PoolConnectionProxy]:
        """A connection of one pool.  One whose answer did not come is thrown away, never given to the next caller."""
        pool = self._pools[name]
        try:
            connection = await pool.acquire(timeout=QUEUE if name == "admit" else STATEMENT)
        except TimeoutError:
            if self._down is None and not await self._answers():
                raise
            raise DatabaseDown(self._down or "all connections to the database are in use") from None
        try:
            yield connection
        except BaseException as error:
            if not isinstance(error, asyncpg.PostgresError):
                connection.terminate()  # also where the caller was cancelled: its answer may be on the way
            raise
        finally:
            await pool.release(connection)

    def _fell(self, error: BaseException) -> DatabaseDown:
        """From now on nobody waits for it; who does is told at once."""
        self._down = f"the database does not answer ({type(error).__name__})"
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(now)
        if self._probing is None or self._probing.done():
            log.warning("%s: %s", self._down, error)
            self._probing = asyncio.create_task(self._probe(), name="database-probe")
        return DatabaseDown(self._down)

    async def _probe(self) -> None:
        while not await self._answers():  # noqa: ASYNC110  (what is waited for is another machine)
            await asyncio.sleep(PROBE)
        self._down = None
        log.info("the database answers again")

    async def _answers(self) -> bool:
        """Whether it takes connections, and writes."""
        try:
            async with asyncio.timeout(CONNECT):
                connection = await asyncpg.connect(self._dsn)
                try:
                    return not await connection.fetchval("SELECT current_setting('transaction_read_only')::boolean")
                finally:
                    connection.terminate()
        except (*_LOST, asyncpg.PostgresError, TimeoutError):
            return False


async def _keep(_: Connection) -> None:
    """Nothing was set on it, so nothing is to be reset: one round trip less."""
