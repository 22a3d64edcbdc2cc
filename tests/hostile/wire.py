"""Raw bytes to the gateway, and whatever comes back: for where HTTP itself is at stake."""

from __future__ import annotations

import asyncio
import gc
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.running import KEY

CALL = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error, of which the shape is checked."""
        said: dict[str, Any] = json.loads(self.body)["error"]
        assert {"message", "type", "param", "code"} <= set(said), said
        assert isinstance(said["message"], str), said
        assert said["message"], said
        assert isinstance(said["type"], str), said
        assert said["param"] is None or isinstance(said["param"], str), said
        assert isinstance(said["code"], str), said
        return said


def answers(data: bytes) -> list[Answer]:
    """Every answer in what a connection gave back; raises where there is anything else between them."""
    found = []
    while data:
        head = _HEAD.match(data)
        assert head is not None, f"not an answer: {data[:200]!r}"
        fields = (line.split(b": ", 1) for line in head[2].split(b"\r\n") if line)
        headers = {name.decode(): value.decode() for name, value in fields}
        data = data[head.end() :]
        if int(head[1]) == 100:
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body, data = _unchunk(data)
        else:
            length = int(headers["content-length"])
            body, data = data[:length], data[length:]
            assert len(body) == length, "an answer was cut short"
        found.append(Answer(int(head[1]), headers, body))
    return found


def _unchunk(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        body += data[:size]
        data = data[size + 2 :]
        if not size:
            return body, data


def request(
    body: bytes = CALL, *headers: bytes, path: bytes = b"/v1/chat/completions", method: bytes = b"POST", key: str = KEY
) -> bytes:
    """A proper request, with a content-length unless the headers say how long it is."""
    lines = [b"%s %s HTTP/1.1" % (method, path), b"host: h", b"authorization: Bearer " + key.encode(), *headers]
    if not any(line.lower().startswith((b"content-length", b"transfer-encoding")) for line in headers):
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(body: bytes, size: int = 7) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def tell(url: str, *pieces: bytes, quiet: float = 0.15, whole: float = 5.0) -> list[Answer]:
    """Writes the pieces; gives the answers that came until the gateway closed, or was quiet for so many seconds."""
    async with connected(url) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return answers(await listen(reader, quiet, whole))


async def listen(reader: asyncio.StreamReader, quiet: float = 0.15, whole: float = 5.0) -> bytes:
    """What comes until the end, or until nothing has come for `quiet` seconds since the first byte; at most `whole`."""
    got = b""
    try:
        async with asyncio.timeout(whole):
            while True:
                try:
                    piece = await asyncio.wait_for(reader.read(65536), quiet if got else whole)
                except TimeoutError:
                    return got
                if not piece:
                    return got
                got += piece
    except TimeoutError:
        return got


class Heartbeat:
    """`async with Heartbeat() as beat`: the longest time, in seconds, for which the event loop did nothing else."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def __aenter__(self) -> Heartbeat:
        gc.freeze()  # as `tollkeeper serve` does: what other tests have made is not looked at again
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0)
        return self

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0.001)
            self.worst = max(self.worst, loop.time() - before - 0.001)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0)
        self._task.cancel()
        gc.unfreeze()


def statuses(found: Sequence[Answer]) -> list[int]:
    return [answer.status for answer in found]
