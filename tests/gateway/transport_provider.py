"""A provider that says, byte for byte, what a test wants it to say, over a real socket."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Self

import httpx2
import uvloop

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}  # see tests/conftest.py


class Visit:
    """One connection, as the provider sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def heard(self) -> bytes:
        """The next request: its head, and its body with the framing taken off."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        body = b""
        lowered = head.lower()
        if b"transfer-encoding: chunked" in lowered:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        elif b"content-length: " in lowered:
            body = await self.reader.readexactly(int(lowered.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        return head + body

    async def say(self, *pieces: bytes) -> None:
        """Each piece is a packet of its own, as far as a sender can tell."""
        for piece in pieces:
            if self.writer.transport.is_closing():  # uvloop would raise a RuntimeError
                raise ConnectionResetError("the other side has closed")
            self.writer.write(piece)
            await self.writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0)

    async def gone(self) -> None:
        """Until the other side has closed."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:  # cut is closed, too
            pass


Script = Callable[[Visit], Awaitable[None]]


class Provider:
    """Runs `script` for each connection and closes it afterwards."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script, self.tls = script, tls
        self.visits: list[Visit] = []
        self.open = 0
        self.failed: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://localhost:{self.port}/v1/chat"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.tls, limit=2**20, backlog=1024)
        # fixed, or the kernel would take up to 32 MiB that a script does not read
        self._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**17)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0.01)  # the event loop closes the sockets
        if self.failed:
            raise self.failed[0]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(Visit(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, visit: Visit) -> None:
        self.visits.append(visit)
        self.open += 1
        try:
            await self.script(visit)
            if not visit.writer.transport.is_closing():
                visit.writer.close()
                await visit.writer.wait_closed()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side has closed: most scripts end so
        except Exception as error:
            self.failed.append(error)
        finally:
            self.open -= 1
            visit.writer.transport.abort()


def answers(*pieces: bytes, after: float = 0.0) -> Script:
    """A script that gives every request the same answer and keeps the connection."""

    async def script(visit: Visit) -> None:
        while True:
            await visit.heard()
            await asyncio.sleep(after)
            await visit.say(*pieces)

    return script


def once(*pieces: bytes) -> Script:
    """A script that answers one request and closes."""

    async def script(visit: Visit) -> None:
        await visit.heard()
        await visit.say(*pieces)

    return script


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def call(
    transport: httpx2.AsyncBaseTransport, url: str, content: object = b"{}", method: str = "POST", **more: object
) -> httpx2.Response:
    return await transport.handle_async_request(httpx2.Request(method, url, content=content, **more))


async def read(response: httpx2.Response) -> bytes:
    try:
        return b"".join([piece async for piece in response.stream])
    finally:
        await response.aclose()


async def ask(transport: httpx2.AsyncBaseTransport, url: str, **more: object) -> bytes:
    """A whole call: its answer's body."""
    return await read(await call(transport, url, **more))


async def settled(truth: Callable[[], bool], seconds: float = 1.0) -> bool:
    """Waits until something is true."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not truth() and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.005)
    return truth()
