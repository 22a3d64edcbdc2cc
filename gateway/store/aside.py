"""A PostgreSQL database that may be asked from any thread and any event loop, and a store's own schema in it.

Its connections live in an event loop of their own, in a thread.  So a caller who is no event loop may wait for it, and
what takes long to pack and unpack stays off the gateway's loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, Final, NamedTuple, TypeVar

import asyncpg
from asyncpg import Connection

from gateway.database import Database, DatabaseDown
from gateway.store import RecordRefused, StoreError

T = TypeVar("T")

# Errors that lie in what was offered; every other one lies in the database, and may pass.
_REFUSALS: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    OverflowError,
    UnicodeError,
    TypeError,
)


class Schema(NamedTuple):
    """what: whose it is, for people.  migrations: number n makes version n; none is edited once released."""

    name: str
    what: str
    migrations: tuple[str, ...]
    lock: int  # one gateway migrates, the others wait for it

    async def migrate(self, connection: Connection) -> None:
        """Brings it to the newest version; harmless when repeated, or done by several at once.

        Where nothing is to be done, no right to change the schema is needed.
        """
        newest = f"SELECT coalesce(max(version), 0) FROM {self.name}.migration"  # noqa: S608  (constants only)
        known = len(self.migrations)
        found = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{self.name}.migration")
        if found and await connection.fetchval(newest) == known:
            return
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", self.lock)
            if not await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", self.name):
                await connection.execute(f"CREATE SCHEMA {self.name}")  # IF NOT EXISTS wants the right to, always
            await connection.execute(
                f"CREATE TABLE IF NOT EXISTS {self.name}.migration "
                "(version int PRIMARY KEY, name text NOT NULL, at timestamptz NOT NULL)"
            )
            version = await connection.fetchval(newest)
            if version > known:
                raise StoreError(
                    f"the database of {self.what} has schema {version} and this Tollkeeper knows up to {known}: "
                    "run the newer Tollkeeper that made it, or name another database"
                )
            for number, name in enumerate(self.migrations[version:], version + 1):
                text = (files("gateway.store") / "migrations" / "postgres" / name).read_text(encoding="utf-8")
                await connection.execute(text)
                await connection.execute(
                    f"INSERT INTO {self.name}.migration VALUES ($1, $2, now())",  # noqa: S608  (constants only)
                    number,
                    name,
                )


class Aside:
    """One database, and the thread that speaks to it.  sizes: pool -> the most connections."""

    def __init__(self, dsn: str, schema: Schema, sizes: Mapping[str, int]) -> None:
        self._schema = schema
        self._database = Database(dsn, sizes, schema.migrate)
        self.rows = self._database.rows
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=schema.name, daemon=True)
        self._thread.start()

    def start(self, seconds: float) -> None:
        """Connects and migrates; what did not come to its end by then goes on, and any question does so too.

        Raises TimeoutError, DatabaseDown, and StoreError where the schema is newer or may not be made by this user.
        """
        with mapped(f"the schema of {self._schema.what} cannot be made", TimeoutError, DatabaseDown):
            self._asked(self._database.start()).result(seconds)

    def run(self, asked: Coroutine[Any, Any, T]) -> T:
        """Blocks."""
        return self._asked(asked).result()

    async def wait(self, asked: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self._asked(asked))

    def close(self) -> None:
        """Blocks.  What is asked afterwards is a StoreError."""
        if self._loop.is_closed():
            return
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _asked(self, asked: Coroutine[Any, Any, T]) -> Future[T]:
        if self._loop.is_closed():
            asked.close()
            raise StoreError(f"the store of {self._schema.what} is closed")
        return asyncio.run_coroutine_threadsafe(asked, self._loop)

    async def _end(self) -> None:
        await self._database.aclose()
        while left := asyncio.all_tasks() - {asyncio.current_task()}:  # one that breaks off may begin to probe
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)


@contextmanager
def mapped(what: str, *passed: type[Exception]) -> Iterator[None]:
    """The one place where the database's errors become ours."""
    try:
        yield
    except passed:
        raise
    except _REFUSALS as error:
        raise RecordRefused(f"{what}: {type(error).__name__}: {error}") from error
    except DatabaseDown as error:
        raise StoreError(f"{what}: {error}") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise StoreError(f"{what}: {type(error).__name__}: {error}") from error
