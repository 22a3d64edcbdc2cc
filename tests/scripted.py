"""A provider made of bytes: a real server whose every answer the test writes itself."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Asked:
    """One request as the provider saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    wire: Wire
    closed_at: float = 0.0  # time.monotonic() when the caller's end closed

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Wire:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        await self.write(
            f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n{lines}\r\n".encode()
        )

    async def chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%s\r\n" % (len(data), data) if data else b"0\r\n\r\n")

    async def whole(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{lines}\r\n"
        await self.write(head.encode() + body)

    def reset(self) -> None:
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Returns when the caller's end has closed."""
        while await self.reader.read(65536):
            pass


Script = Callable[[Asked], Awaitable[None]]


@dataclass
class Scripted:
    """The server: what it was asked, in order."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    script: Script | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                asked = await _read(reader, writer)
                if asked is None:
                    break
                self.asked.append(asked)
                assert self.script is not None
                try:
                    await self.script(asked)
                finally:
                    asked.closed_at = time.monotonic()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the gateway hung up: what the test asks is closed_at
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, path, headers, body, Wire(reader, writer))


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Scripted]:
    provider = Scripted(script=script)
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0, limit=2**26)
    provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield provider
    finally:
        server.close()


@contextmanager
def answering_once(answer: bytes) -> Iterator[str]:
    """The URL of a server that says these bytes to the first who asks, and must not be asked again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.join()
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()


USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def answer(text: str = "Hello", **more: Any) -> bytes:
    """A whole chat answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "up",
        "choices": [choice],
        "usage": USAGE,
    }
    return json.dumps(whole | more).encode()


def event(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    """One event of a streamed chat answer."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    whole = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "up", "choices": choices}
    return b"data: " + json.dumps(whole | more).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def events(*texts: str, usage: dict[str, Any] | None = USAGE) -> list[bytes]:
    """A whole streamed answer, event by event."""
    said = [
        event({"role": "assistant", "content": ""}),
        *(event({"content": text}) for text in texts),
        event({}, "stop"),
    ]
    return [*said, *([event(None, usage=usage)] if usage is not None else []), DONE]


async def say(asked: Asked, pieces: list[bytes], pause: float = 0.0) -> None:
    """Writes a streamed answer to its end."""
    await asked.wire.head()
    for piece in pieces:
        await asked.wire.chunk(piece)
        if pause:
            await asyncio.sleep(pause)
    await asked.wire.chunk(b"")


async def plain(asked: Asked) -> None:
    """Answers chat calls properly, streamed or not."""
    if asked.body and asked.json.get("stream"):
        await say(asked, events("Hel", "lo"))
    else:
        await asked.wire.whole(200, answer())
