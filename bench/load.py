"""Sends calls over kept connections, each as soon as the one before is answered, and looks at every answer."""

from __future__ import annotations

import asyncio
import socket
import time
from array import array
from collections.abc import Callable
from typing import Final, NamedTuple

from bench.upstream import CHUNKS, PROOF, WORD

PATH: Final = "/v1/chat/completions"
MARK: Final = b"question aaaaaaaaaa"
_LETTERS: Final = bytes.maketrans(b"0123456789", b"abcdefghij")  # prose holds few long numbers
_END: Final = b"\r\n0\r\n\r\n"
_DONE: Final = b"data: [DONE]\n\n"


class Failed(Exception):
    """A measurement that cannot be trusted: a wrong answer, a lost connection, a process that ended."""


class Work(NamedTuple):
    """One kind of call: its bytes, whether its answer is streamed, and how many are under way at once."""

    call: bytes
    stream: bool
    connections: int
    differs: bool = False  # each call asks something that was not asked before: MARK is replaced by its number


class Result(NamedTuple):
    """What one run has shown.  `answers` and `chunks` are all there were; the rest leaves out the warm-up."""

    answers: int
    chunks: int
    rate: float  # of answers (or chunks), per second
    share: float  # of a core: the server's CPU time in each second
    latencies: array[int]  # ns


def work(key: str, connections: int = 1, *, stream: bool = False, differs: bool = False, mark: bytes = MARK) -> Work:
    """A chat call of some 60 words, with the headers that openai-python sends.  mark: its first ones."""
    body = (
        b'{"messages":[{"role":"system","content":"Answer briefly."},{"role":"user","content":"'
        + mark
        + b" word" * 60
        + b'"}],'
    )
    body += b'"model":"gpt-4o-mini"' + (b',"stream":true}' if stream else b',"temperature":0.2}')
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: identity\r\nConnection: keep-alive\r\n"
        "Accept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 3.0.0\r\n"
        "X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 3.0.0\r\nX-Stainless-OS: Linux\r\n"
        "X-Stainless-Arch: x64\r\n"
        "X-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.11.7\r\nX-Stainless-Async: async:asyncio\r\n"
        f"X-Stainless-Retry-Count: 0\r\nX-Stainless-Read-Timeout: 600\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return Work(head.encode() + body, stream, connections, differs)


class Tally:
    """Shared by the clients of one run.  limit: answers after which the run is over."""

    def __init__(self, limit: int | None, differs: bool = False) -> None:
        self.limit = limit
        self.answers = 0
        self.chunks = 0
        self.latencies = array("q")
        self.open = 0
        self.wires: list[asyncio.Transport] = []
        self.number = time.time_ns() // 10_000 % 10**10 if differs else 0  # of the next call: none came before
        self.stopped = False
        self.over = asyncio.get_running_loop().create_future()

    def answered(self, ns: int) -> None:
        self.answers += 1
        self.latencies.append(ns)
        if self.limit is not None and self.answers >= self.limit:
            self.stopped = True

    def fail(self, why: str) -> None:
        self.stopped = True
        if not self.over.done():
            self.over.set_exception(Failed(why))

    def closed(self) -> None:
        self.open -= 1
        if not self.open and not self.over.done():
            self.over.set_result(None)


class Client(asyncio.Protocol):
    """One connection."""

    __slots__ = ("asked", "buffer", "call", "ended", "tally", "wire")

    def __init__(self, tally: Tally, call: bytes) -> None:
        self.tally = tally
        self.call = call
        self.buffer = b""
        self.asked = 0
        self.ended = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a stream's kind
        self.wire = transport
        self.tally.open += 1
        self.tally.wires.append(transport)
        self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended:
            self.tally.fail(f"the connection was lost ({exc}) after {self.buffer[:300]!r}")
        self.tally.closed()

    def ask(self) -> None:
        self.asked = time.perf_counter_ns()
        if not self.tally.number:
            self.wire.write(self.call)
            return
        self.tally.number += 1
        number = (b"%010d" % self.tally.number).translate(_LETTERS)
        self.wire.write(self.call.replace(MARK, b"question " + number, 1))

    def next(self) -> None:
        self.tally.answered(time.perf_counter_ns() - self.asked)
        self.buffer = b""
        if self.tally.stopped:
            self.end()
        else:
            self.ask()

    def end(self) -> None:
        self.ended = True
        self.wire.close()

    def wrong(self) -> None:
        self.tally.fail(f"not the answer that was expected: {self.buffer[:600]!r}")
        self.end()

    def data_received(self, data: bytes) -> None:
        self.buffer = data = self.buffer + data if self.buffer else data
        whole = is_whole(data)
        if whole is None:
            return
        if whole and data.startswith(b"HTTP/1.1 200") and PROOF in data:
            self.next()
        else:
            self.wrong()


class Listener(Client):
    """One connection whose answers are streams."""

    __slots__ = ("counted", "heard", "looked")

    def ask(self) -> None:
        self.heard = bytearray()
        self.counted = self.looked = 0
        super().ask()

    def data_received(self, data: bytes) -> None:
        heard = self.heard
        heard += data
        found = heard.count(WORD, self.looked)
        self.looked = max(0, len(heard) - len(WORD) + 1)  # a word may come in two pieces, and none is counted twice
        self.counted += found
        self.tally.chunks += found
        if not data.endswith(_END[2:]) or not heard.endswith(_END):
            return
        missing = CHUNKS - self.counted
        if missing:  # some stood across the frames of the transfer
            self.counted = unframed(heard).count(WORD)
            self.tally.chunks += missing
        if heard.startswith(b"HTTP/1.1 200") and self.counted == CHUNKS and _DONE in heard[-400:]:
            self.next()
        else:
            self.buffer = bytes(heard[:300] + b" ... " + heard[-300:])
            self.wrong()


def is_whole(data: bytes) -> bool | None:
    """Whether these bytes are one HTTP answer: None is not yet, False is more than one."""
    ends = data.find(b"\r\n\r\n")
    if ends < 0:
        return None
    at = data.find(b"ontent-length:", 0, ends)
    if at < 0:
        at = data.find(b"ontent-Length:", 0, ends)
    if at < 0:
        return True if data.endswith(_END) else None
    missing = ends + 4 + int(data[at + 14 : data.find(b"\r\n", at)]) - len(data)
    return None if missing > 0 else missing == 0


def unframed(answer: bytes | bytearray) -> bytes:
    """The body of an answer in `Transfer-Encoding: chunked`."""
    rest, body = bytes(answer).partition(b"\r\n\r\n")[2], b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return body
        body += rest[:length]
        rest = rest[length + 2 :]


async def run(
    port: int, job: Work, seconds: float, *, warm: float = 0.3, limit: int | None = None, cpu: Callable[[], int] = int
) -> Result:
    """Closed loop.  Every call that was begun is answered before it returns.  Raises Failed.

    limit: ends after so many answers, whatever the seconds.  cpu: reads the server's CPU time, ns.
    """
    tally = Tally(limit, job.differs)
    try:
        return await _run(tally, port, job, (warm, seconds), cpu)
    finally:
        for wire in tally.wires:
            wire.abort()


async def _run(tally: Tally, port: int, job: Work, times: tuple[float, float], cpu: Callable[[], int]) -> Result:
    loop = asyncio.get_running_loop()
    kind = Listener if job.stream else Client
    for _ in range(job.connections):
        await loop.create_connection(lambda: kind(tally, job.call), "127.0.0.1", port)
    await asyncio.wait({tally.over}, timeout=times[0])
    skipped, before, spent, since = tally.answers, _count(tally, job), cpu(), time.perf_counter_ns()
    await asyncio.wait({tally.over}, timeout=times[1])
    took = time.perf_counter_ns() - since
    share, rate = (cpu() - spent) / took, (_count(tally, job) - before) / took * 1e9
    tally.stopped = True
    async with asyncio.timeout(60):
        await tally.over
    return Result(tally.answers, tally.chunks, rate, share, tally.latencies[skipped:])


def _count(tally: Tally, job: Work) -> int:
    return tally.chunks if job.stream else tally.answers


def ask_once(port: int, job: Work, patience: float) -> None:
    """Blocks until a server answers one call.  Raises Failed: not in `patience` seconds, or not as expected."""
    until = time.monotonic() + patience
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=patience) as sock:
                sock.sendall(job.call)
                answer = b""
                while is_whole(answer) is None:
                    piece = sock.recv(65536)
                    if not piece:
                        break
                    answer += piece
        except OSError as error:
            if time.monotonic() > until:
                raise Failed(f"no answer within {patience:g} s: {error}") from error
            time.sleep(0.002)
            continue
        if not answer.startswith(b"HTTP/1.1 200") or PROOF not in answer:
            raise Failed(f"not the answer that was expected: {answer[:600]!r}")
        return
