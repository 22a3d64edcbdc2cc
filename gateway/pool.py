"""The connections to one provider: how many there are, who waits for one, and how a new one is made."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import OrderedDict
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Final, NamedTuple

import httpx2

from gateway.connection import Connection

STAGGER_SECONDS: Final = 0.25  # RFC 8305 section 5: the head start of one address over the next


@dataclass(frozen=True, slots=True)
class Limits:
    """Connections per origin, and seconds.  The words are config.yaml's."""

    max_connections: int = 512
    pool: float = 5.0  # how long a call may wait for a free connection
    connect: float = 5.0  # until the connection, with TLS, stands
    first_byte: float = 300.0  # from the request's last byte to the answer's first
    idle: float = 120.0  # between two pieces of an answer
    total: float = 1800.0  # from start to end of one attempt
    keepalive: float = 60.0  # how long an unused connection is kept


class Origin(NamedTuple):
    """Where connections go."""

    scheme: str
    host: str
    port: int


class Pool:
    """Connections to one origin: at most `max_connections`, first come, first served.

    `open` counts places: connections in use, idle ones, and those being made.  A place that falls free is handed over
    to the first who waits, in the same moment: it cannot be lost between two tasks.
    """

    def __init__(self, origin: Origin, limits: Limits, tls: ssl.SSLContext | None) -> None:
        self.origin = origin
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.open = 0
        self.idle: dict[Connection, None] = {}  # in the order they fell idle
        self._active: set[Connection] = set()
        self._waiters: OrderedDict[asyncio.Future[Connection | None], None] = OrderedDict()
        self._tls = tls
        self._closing = False
        self._ticker: asyncio.TimerHandle | None = None
        shortest = min(limits.first_byte, limits.idle, limits.total, limits.keepalive)
        self._tick = min(1.0, shortest / 50)  # one timer for all time-outs: late by 2 % at most, no cost per call

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def take_idle(self) -> Connection | None:
        """The one that was used last: the others may come of age."""
        if not self.idle:
            return None
        connection, _ = self.idle.popitem()
        self._active.add(connection)
        return connection

    async def take(self, ends: float, *, fresh: bool = False) -> Connection:
        """An idle connection, or a new one; fresh: only a new one will do.  ends: loop time.

        Raises httpx2.PoolTimeout, ConnectError, ConnectTimeout: in each case not a byte was sent.
        """
        until = min(ends, self.loop.time() + self.limits.pool)
        while not self._closing:
            if fresh and self.idle and self.open >= self.limits.max_connections:  # likely stale as well
                next(iter(self.idle)).drop()
            connection = None if fresh else self.take_idle()
            if connection is None and self.open < self.limits.max_connections:
                self.open += 1
            elif connection is None:
                connection = await self._queue(until)
            if connection is None:
                return await self._dial(ends)
            if fresh:
                connection.drop()
            elif not connection.closed:  # it may have ended between the hand-over and now
                return connection
        raise httpx2.ConnectError("the transport is closed")

    def put(self, connection: Connection) -> None:
        """An exchange has ended well."""
        connection.used = True
        if self._closing:
            connection.drop()
        else:
            self._give(connection)

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        if connection in self._active:
            self._active.remove(connection)
            self._give(None)
        elif connection in self.idle:
            del self.idle[connection]
            self._give(None)

    def close(self) -> None:
        """Cuts every connection; those who wait, read or connect get an error."""
        self._closing = True
        if self._ticker is not None:
            self._ticker.cancel()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(httpx2.ConnectError("the transport is closed"))
        for connection in [*self._active, *self.idle]:
            if connection.answer is not None:
                connection.answer.fail(httpx2.ReadError("the transport is closed"))
            connection.drop()

    def _give(self, connection: Connection | None) -> None:
        """To the first who waits.  None: a place for a new connection."""
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(connection)
                return
        if connection is None:
            self.open -= 1
        else:
            self._active.remove(connection)
            self.idle[connection] = None
            connection.idle_since = self.loop.time()

    async def _queue(self, until: float) -> Connection | None:
        waiter: asyncio.Future[Connection | None] = self.loop.create_future()
        self._waiters[waiter] = None
        timer = self.loop.call_at(until, self._too_late, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._pass_on(waiter.result())
            raise
        finally:
            timer.cancel()
            self._waiters.pop(waiter, None)

    def _pass_on(self, connection: Connection | None) -> None:
        """It was handed to a task that was cancelled in the same moment."""
        if connection is None or not connection.closed:  # a closed one has freed its place already
            self._give(connection)

    def _too_late(self, waiter: asyncio.Future[Connection | None]) -> None:
        if not waiter.done():
            limits = self.limits
            busy = f"all {limits.max_connections} connections to the provider are busy"
            waiter.set_exception(httpx2.PoolTimeout(f"{busy}; none fell free within {limits.pool:g} s (pool_seconds)"))

    async def _dial(self, ends: float) -> Connection:
        """Fills a place that is ours already; gives it back if that fails."""
        where = f"{self.origin.host}:{self.origin.port}"
        connection = Connection(self)
        try:
            async with asyncio.timeout_at(min(ends, self.loop.time() + self.limits.connect)):
                await self._connect(connection)
            if self._closing or connection.closed:
                raise ConnectionResetError("closed as soon as it stood")
        except BaseException as error:
            connection.drop()
            self._give(None)
            if isinstance(error, TimeoutError):
                late = f"no connection to {where} within {self.limits.connect:g} s (connect)"
                raise httpx2.ConnectTimeout(late) from error
            if isinstance(error, (OSError, UnicodeError)):  # UnicodeError: a name that is no host name
                raise httpx2.ConnectError(f"no connection to {where}: {error}") from error
            raise
        self._active.add(connection)
        if self._ticker is None:
            self._ticker = self.loop.call_later(self._tick, self._look_around)
        return connection

    async def _connect(self, connection: Connection) -> None:
        sock = await _reach(self.origin.host, self.origin.port)
        server = self.origin.host if self._tls is not None else None
        patience = self.limits.connect + 1 if self._tls is not None else None  # ours comes first
        await self.loop.create_connection(
            lambda: connection, sock=sock, ssl=self._tls, server_hostname=server, ssl_handshake_timeout=patience
        )

    def _look_around(self) -> None:
        """Time-outs, and idle connections that have come of age."""
        now = self.loop.time()
        for connection in list(self._active):
            if connection.answer is not None:
                connection.answer.check(now)
        for connection in list(self.idle):
            if now - connection.idle_since < self.limits.keepalive:
                break
            connection.drop()
        more = self._active or self.idle
        self._ticker = self.loop.call_later(self._tick, self._look_around) if more else None


async def _reach(host: str, port: int) -> socket.socket:
    """Happy eyeballs (RFC 8305): both families by turns; the next starts when one failed or was silent for 250 ms.

    uvloop's create_connection has no `happy_eyeballs_delay`, hence our own.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    families = [[info for info in found if info[0] == family] for family in dict.fromkeys(info[0] for info in found)]
    addresses = [info for info in chain.from_iterable(zip_longest(*families)) if info is not None]
    tries: set[asyncio.Task[socket.socket]] = set()
    errors: list[BaseException] = []
    try:
        while addresses or tries:
            if addresses:
                family, kind, proto, _, address = addresses.pop(0)
                tries.add(loop.create_task(_open(family, kind, proto, address)))
            patience = STAGGER_SECONDS if addresses else None
            done, _ = await asyncio.wait(tries, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                tries.discard(task)
                error = task.exception()
                if error is None:
                    tries.update(done - {task})  # a second winner is closed below
                    return task.result()
                errors.append(error)
    finally:
        for task in tries:
            task.cancel()
            task.add_done_callback(_close_loser)
    raise errors[0] if errors else OSError(f"{host} has no address")


async def _open(family: int, kind: int, proto: int, address: tuple[str | int | bytes, ...]) -> socket.socket:
    sock = socket.socket(family, kind, proto)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _close_loser(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
