"""One connection to a provider: what the event loop calls, and how a request is put on the wire."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import httptools

from gateway.answer import HIGH_WATER, Answer, Call

if TYPE_CHECKING:  # a name only: the pool imports this file
    from gateway.pool import Pool

JOINED: Final = 16 * 1024  # bytes: up to here copying a body behind its head is cheaper than handing over two pieces


class Connection(asyncio.Protocol):
    """A socket, with TLS or without; it carries one exchange after the other."""

    __slots__ = ("answer", "closed", "full", "idle_since", "loop", "parser", "pool", "used", "wire")

    wire: asyncio.Transport
    parser: httptools.HttpResponseParser  # there while an answer is

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.loop = pool.loop
        self.answer: Answer | None = None
        self.closed = False
        self.used = False  # has carried an exchange before
        self.idle_since = 0.0
        self.full: asyncio.Future[None] | None = None  # done when the socket takes bytes again

    def ask(self, call: Call, ends: float) -> Answer:
        """Sends a request.  ends: when the whole attempt must be over."""
        self.answer = answer = Answer(self, call, ends)
        self.parser = httptools.HttpResponseParser(answer)
        now = self.loop.time()
        if not isinstance(call.body, bytes):
            self.wire.write(call.head)
            answer.start_upload(call.body, call.length)
            return answer
        if len(call.body) <= JOINED:
            self.wire.write(call.head + call.body)
        else:
            self.wire.writelines((call.head, call.body))
        answer.sent(now)
        if len(call.body) > HIGH_WATER:
            answer.send_slowly(now)
        return answer

    def write_piece(self, piece: bytes, *, chunked: bool) -> None:
        if not chunked:
            self.wire.write(piece)
        elif piece:  # an empty chunk would be the last one
            self.wire.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))

    def drop(self) -> None:
        """Cuts the connection now; its place in the pool is free."""
        if not self.closed:
            self.closed = True
            if hasattr(self, "wire"):
                self.wire.abort()
            self.pool.forget(self)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # create_connection's kind
        self.wire = transport

    def data_received(self, data: bytes) -> None:
        if self.answer is not None:
            self.answer.feed(data)
        else:  # nobody has asked for anything
            self.drop()

    def eof_received(self) -> None:
        if self.answer is not None:
            self.answer.ended()
        self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answer is not None:
            self.answer.ended(exc)
        if not self.closed:
            self.closed = True
            self.pool.forget(self)

    def pause_writing(self) -> None:
        if self.full is None:
            self.full = self.loop.create_future()

    def resume_writing(self) -> None:
        if self.full is not None and not self.full.done():
            self.full.set_result(None)
        self.full = None
