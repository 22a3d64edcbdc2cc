"""The answer that is being read from a provider: its head, its body as it arrives, its time-outs.

Bytes go to httptools as they come; what it finds of a body waits here, bounded, until somebody iterates.  An answer
holds its connection from the request's first byte to the answer's last: then the connection goes back to the pool.
Whatever else ends an answer (an error, a time-out, a cancelled or closed reader) cuts the connection in the same
moment, without an await, so that nothing can come between.  Times are loop times in seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final

import httptools
import httpx2

if TYPE_CHECKING:  # a name only: the connection imports this file
    from gateway.connection import Connection

HEAD_LIMIT: Final = 64 * 1024  # bytes of an answer's head, and of chunk sizes and trailers between two body bytes
HIGH_WATER: Final = 64 * 1024  # bytes of a body that wait for a slow reader before the socket is left unread
STALE_SECONDS: Final = 1.0  # a kept connection that ends later than this was not stale: the provider was at work


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it goes over the wire.  body: bytes, or a stream; length: what a stream promised (None: chunked)."""

    head: bytes
    body: bytes | AsyncIterable[bytes]
    length: int | None = None
    bodiless: bool = False  # HEAD: the answer's head is all there is
    close: bool = False  # the request says `Connection: close`


class Answer(httpx2.AsyncByteStream):
    """An answer's body as it arrives, in the provider's own encoding.  Read it to its end, or close it.

    A cancelled read gives the answer up.  Raises httpx2.ReadTimeout, WriteTimeout, ReadError, WriteError,
    RemoteProtocolError, StreamClosed; and whatever the request's own stream raised.
    """

    __slots__ = (
        "_begun", "_bodiless", "_buffered", "_connection", "_deadline", "_done", "_ends", "_interim", "_keep",
        "_over", "_overhead", "_paused", "_pieces", "_progress", "_sending", "_sent_at", "_unsent", "_upload",
        "_uploading", "_waiter", "error", "headers", "on_body", "ready", "stale", "status",
    )  # fmt: skip

    def __init__(self, connection: Connection, call: Call, ends: float) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.error: BaseException | None = None
        self.stale = False  # a kept connection turned out to be gone before it carried a byte
        self.ready = False  # the head is complete
        self._connection = connection
        self._over = False  # the answer is whole, broken, or given up: the connection is no longer ours
        self._bodiless = call.bodiless
        self._keep = not call.close
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # httptools calls it: a C function, no Python frame per piece
        self._interim = False  # a 1xx answer has just gone by
        self._begun = False  # a part of the head is here
        self._done = False  # the body is complete
        self._buffered = 0
        self._overhead = 0  # bytes since the last byte of the body
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = inf  # of the wait that is on
        self._ends = ends  # of the attempt
        self._upload: asyncio.Task[None] | None = None
        self._uploading = False  # the request's stream has not ended
        self._sending = False  # bytes of the request wait for the socket
        self._unsent = 0
        self._progress = inf  # when there must be fewer of them
        self._sent_at = 0.0

    # What httptools calls while it is fed.  Nothing here may end the answer: that happens in `feed`.

    def on_message_begin(self) -> None:
        if self._done:
            raise ValueError("a second answer, to a question nobody asked")  # its body must not join the first's

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.ready:  # later ones are trailers
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._done:
            return
        status = self._parser().get_status_code()
        if status < 200:
            if status < 100 or status == 101:
                raise ValueError(f"status {status} is no answer to this request")
            self.headers.clear()
            self._interim = True
            return
        if self._overhead > HEAD_LIMIT and sum(len(n) + len(v) + 4 for n, v in self.headers) > HEAD_LIMIT:
            raise ValueError(f"the head is larger than {HEAD_LIMIT} bytes")
        self.status = status
        self.ready = True
        if self._bodiless:
            self._message_is_whole()

    def on_message_complete(self) -> None:
        if self.ready and not self._done:
            self._message_is_whole()

    def _message_is_whole(self) -> None:
        self._done = True
        self._keep = self._keep and self._parser().should_keep_alive()

    def _parser(self) -> httptools.HttpResponseParser:
        return self._connection.parser

    # The reader's side.

    async def head(self) -> None:
        """Until `status` and `headers` are there."""
        while not self.ready:
            if self._over:
                raise self.error or httpx2.StreamClosed()
            await self._wait()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """All that has arrived since the last call; waits when that is nothing."""
        pieces = self._pieces
        while not pieces:
            if self._over:
                if self._done:
                    raise StopAsyncIteration
                raise self.error or httpx2.StreamClosed()
            self._deadline = self._connection.loop.time() + self._connection.pool.limits.idle
            await self._wait()
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._buffered = 0
        if self._paused and not self._over:
            self._paused = False
            self._connection.wire.resume_reading()
        return data

    async def finish(self, seconds: float) -> None:
        """Its reader has all it needs.  What is left may come within so long, and nobody waits for it."""
        if not self._over:
            self._connection.loop.call_later(seconds, self.abandon)

    async def aclose(self) -> None:
        """Before the answer's end: cuts the connection, and the upload with it.  After it: nothing."""
        self.abandon()
        if self._upload is not None and not self._upload.done():
            await asyncio.wait({self._upload})  # the caller finds its own stream at rest

    def abandon(self) -> None:
        """Nobody will read on."""
        self._pieces.clear()
        self._done = False  # what was not read must not look like an end
        if not self._over:
            self._leave().drop()
            self._wake()

    async def _wait(self) -> None:
        self._waiter = waiter = self._connection.loop.create_future()
        try:
            await waiter
        except BaseException:
            self.abandon()
            raise
        finally:
            self._waiter = None
            self._deadline = inf

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The wire's side.

    def feed(self, data: bytes) -> None:
        pieces = len(self._pieces)
        self._overhead += len(data)
        try:
            self._parser().feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._keep = False
            if not self._done:  # else: bytes behind a whole answer
                cause = error.__context__ if isinstance(error.__context__, ValueError) else error
                self.fail(httpx2.RemoteProtocolError(f"the provider's answer is not valid HTTP/1.1: {cause}"))
                return
        if self._done:
            self._finish(data)
        elif len(self._pieces) > pieces:
            self._overhead = 0
            self._buffered += len(data)
            if self._buffered > HIGH_WATER and not self._paused:
                self._paused = True
                self._connection.wire.pause_reading()
            self._wake()
        elif self._overhead > HEAD_LIMIT:
            what = "framing" if self.ready else "head"
            self.fail(httpx2.RemoteProtocolError(f"the {what} of the provider's answer is over {HEAD_LIMIT} bytes"))
        elif self.ready:
            self._wake()
        else:
            self._part_of_head()

    def _part_of_head(self) -> None:
        """A head that has begun must go on (idle); an interim answer leaves first_byte as it is."""
        if self.headers or not self._interim:
            self._begun = True
            idle = self._connection.loop.time() + self._connection.pool.limits.idle
            self._deadline = min(self._deadline, idle)
        self._interim = False

    def fail(self, error: BaseException) -> None:
        """What has arrived is still handed out; the error follows it."""
        if not self._over:
            self.error = error
            self._leave().drop()
            self._wake()

    def ended(self, error: Exception | None = None) -> None:
        """The provider has closed the connection, or it broke."""
        connection = self._connection
        if self._over:
            return
        if connection.used and not self._overhead and not self.ready:
            self.stale = connection.loop.time() - self._sent_at < STALE_SECONDS
        framing = (b"content-length", b"transfer-encoding")
        if error is not None:
            kind = httpx2.WriteError if isinstance(error, BrokenPipeError) else httpx2.ReadError
            self.fail(kind(f"the connection to the provider broke: {error}"))
        elif not self.ready:
            self.fail(httpx2.RemoteProtocolError("the provider closed the connection without an answer"))
        elif any(name.lower() in framing for name, _ in self.headers):
            self.fail(httpx2.RemoteProtocolError("the provider closed the connection before the answer's end"))
        else:  # the connection's end is the body's: RFC 9112 section 6.3
            self._done = True
            self._keep = False
            self._finish(b"")

    def _finish(self, data: bytes) -> None:
        """The answer is whole; `data` was the last of it."""
        connection = self._connection
        busy = self._uploading or (self._sending and connection.wire.get_write_buffer_size() > 0)
        self._leave()
        if self._bodiless and (self._pieces or not data.endswith(b"\r\n\r\n")):  # a body behind HEAD's answer
            self._pieces.clear()
            self._keep = False
        if self._keep and not busy:
            connection.pool.put(connection)
        else:
            connection.drop()
        self._wake()

    def _leave(self) -> Connection:
        connection = self._connection
        self._over = True
        connection.answer = None
        del connection.parser  # it holds the answer, and the answer the connection: no ring is left for the collector
        if self._uploading and self._upload is not None:
            self._upload.cancel()
        return connection

    # The request's body, and time.

    def sent(self, now: float) -> None:
        """The request's last byte is on its way."""
        self._sending = False
        self._sent_at = now
        if not self.ready:
            self._deadline = now + self._connection.pool.limits.first_byte

    def send_slowly(self, now: float) -> None:
        """The socket does not take all at once: first_byte starts when it has."""
        self._sending = True
        self._sent_at = now
        self._progress = now + self._connection.pool.limits.idle
        if not self.ready:
            self._deadline = inf

    def start_upload(self, stream: AsyncIterable[bytes], length: int | None) -> None:
        self._uploading = True
        self._upload = self._connection.loop.create_task(self._pump(self._connection, stream, length))

    async def _pump(self, connection: Connection, stream: AsyncIterable[bytes], length: int | None) -> None:
        """Beside the reader, because a provider may answer before it has heard everything."""
        try:
            left = length or 0
            async for piece in stream:
                left -= len(piece)
                if length is not None and left < 0:
                    raise httpx2.LocalProtocolError("the request's body is longer than its Content-Length")
                if self._over:
                    return
                connection.write_piece(piece, chunked=length is None)
                if connection.full is not None:
                    self.send_slowly(connection.loop.time())
                    await connection.full
                    self._sending = False
            if length is not None and left > 0:
                raise httpx2.LocalProtocolError("the request's body is shorter than its Content-Length")
            if not self._over:
                if length is None:
                    connection.wire.write(b"0\r\n\r\n")
                self._uploading = False
                self.send_slowly(connection.loop.time())
                self._look_at_sending(connection.loop.time())
        except asyncio.CancelledError:
            self.fail(httpx2.WriteError("the request's upload was cancelled"))  # by others: else it is over already
            raise
        except Exception as error:  # the caller's stream may raise anything: its reader gets it
            self.fail(error)

    def _look_at_sending(self, now: float) -> None:
        unsent = self._connection.wire.get_write_buffer_size()
        if unsent == 0 and not self._uploading:
            self.sent(now)
        elif unsent != self._unsent:
            self._unsent = unsent
            self._progress = now + self._connection.pool.limits.idle

    def check(self, now: float) -> None:
        """Called often: has one of the time-outs passed?"""
        if self._over:
            return
        limits = self._connection.pool.limits
        if self._sending:
            self._look_at_sending(now)
        if self._sending and now >= self._progress and not self.ready:
            self.fail(httpx2.WriteTimeout(f"the provider has read nothing of the request for {limits.idle:g} s (idle)"))
        elif now >= self._deadline and not self.ready and not self._begun:
            self.fail(httpx2.ReadTimeout(f"no answer from the provider within {limits.first_byte:g} s (first_byte)"))
        elif now >= self._deadline:
            self.fail(httpx2.ReadTimeout(f"no more of the provider's answer for {limits.idle:g} s (idle)"))
        elif now >= self._ends:
            self.fail(httpx2.ReadTimeout(f"the provider's answer has not ended within {limits.total:g} s (total)"))
