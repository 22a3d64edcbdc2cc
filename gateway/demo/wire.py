"""HTTP/1.1 as the simulated provider speaks it: one connection, its requests in order, pipelined or not."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import httptools

from gateway.demo.player import Player
from gateway.demo.reply import Refusal, Reply, framed

if TYPE_CHECKING:
    from gateway.demo.files import Upload

LARGEST_BODY: Final = 64 * 1024 * 1024  # bytes of a body that is held in memory; uploads go to a file
MOST_WAITING: Final = 64  # pipelined requests; beyond, the connection is not read


class Request:
    """One request.  Header names are lower case.  upload: where a multipart body goes; then `body` stays empty."""

    __slots__ = ("body", "early", "headers", "http10", "keep_alive", "method", "parts", "size", "target", "upload")

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.parts: list[bytes] = []
        self.size = 0
        self.upload: Upload | None = None
        self.early = False  # answered before its body was read: the rest of the body is thrown away
        self.keep_alive = True
        self.http10 = False

    @property
    def path(self) -> str:
        return self.target.partition(b"?")[0].decode("ascii", "replace")

    @property
    def query(self) -> dict[str, str]:
        pairs = (pair.partition("=") for pair in self.target.partition(b"?")[2].decode("ascii", "replace").split("&"))
        return {name: value for name, _, value in pairs if name}

    def header(self, name: bytes) -> str | None:
        value = self.headers.get(name)
        return None if value is None else value.decode("utf-8", "replace")


class Server(Protocol):
    """What a connection asks of its server."""

    connections: set[Connection]

    def head(self, request: Request) -> Reply | None:
        """The head is there: choose where the body goes; or answer at once, and the body is thrown away."""

    def serve(self, request: Request, connection: Connection) -> None:
        """It is the request's turn: write and call `connection.answered()`, or let a Player do both."""

    def play(self, reply: Reply, request: Request, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """A caller's connection."""

    __slots__ = (
        "_closing",
        "_parser",
        "_reading",
        "_request",
        "_waiting",
        "blocked",
        "busy",
        "loop",
        "player",
        "server",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.blocked = False  # the socket takes no more for now
        self.busy: Request | None = None  # being answered
        self.player: Player | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()  # being read
        self._reading = False
        self._waiting: deque[Request] = deque()
        self._closing = False

    # the socket's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream server's transport is a Transport
        self.server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise  # a defect of ours
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._closing = True
            if self.busy is None:
                for step in framed(Refusal(400, "This is not HTTP/1.1.").reply()):
                    self.transport.write(step.data)
                self.transport.close()

    def eof_received(self) -> bool:
        """A caller that closed its side has left."""
        self._leave()
        self.transport.abort()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self._leave()

    def _leave(self) -> None:
        self._closing = True
        self._waiting.clear()
        if self._request.upload is not None:
            self._request.upload.close()
        if self.player is not None:
            self.player.abandon()
            self.player = None

    def pause_writing(self) -> None:
        self.blocked = True

    def resume_writing(self) -> None:
        self.blocked = False
        if self.player is not None and self.player.timer is None:
            self.player.run()

    # the parser's side

    def on_message_begin(self) -> None:
        self._request = Request()
        self._reading = True

    def on_url(self, url: bytes) -> None:
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        request = self._request
        request.method = self._parser.get_method()
        request.keep_alive = self._parser.should_keep_alive()
        request.http10 = self._parser.get_http_version() == "1.0"
        reply = self.server.head(request)
        if reply is None and int(request.headers.get(b"content-length", 0)) > LARGEST_BODY and request.upload is None:
            reply = self._too_large()
        if reply is not None and self.busy is None:
            self._answer_early(reply)
        elif b"expect" in request.headers and self.busy is None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        request = self._request
        if request.early:
            return
        if request.upload is not None:
            request.upload.feed(data)
            return
        request.size += len(data)
        if request.size > LARGEST_BODY and self.busy is None:
            request.parts.clear()
            self._answer_early(self._too_large())
            return
        request.parts.append(data)

    def on_message_complete(self) -> None:
        request = self._request
        self._reading = False
        if request.early:
            if self.busy is None:
                self.transport.close()
            return
        parts = request.parts
        request.body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self.busy is not None:
            self._waiting.append(request)
            if len(self._waiting) >= MOST_WAITING:
                self.transport.pause_reading()
            return
        self.busy = request
        self.server.serve(request, self)

    def _too_large(self) -> Reply:
        return Refusal(413, f"The request body is larger than {LARGEST_BODY} bytes.").reply()

    def _answer_early(self, reply: Reply) -> None:
        self._request.early = reply.close = True
        self.busy = self._request
        self.server.play(reply, self._request, self)

    # the answer's side

    def answered(self, close: bool = False) -> None:
        """The answer to the current request was written whole."""
        request, self.busy, self.player = self.busy, None, None
        if request is not None and request.early:
            if self._reading:  # a close now could reset the connection and lose the answer on its way
                self.loop.call_later(2.0, self.transport.close)
            else:
                self.transport.close()
            return
        if close or self._closing or (request is not None and not request.keep_alive):
            self._closing = True
            self.transport.close()
            return
        if self._waiting:
            if len(self._waiting) == MOST_WAITING:
                self.transport.resume_reading()
            self.busy = self._waiting.popleft()
            self.server.serve(self.busy, self)

    def reset(self) -> None:
        """Close with RST, after what was written has left."""
        if self.transport.get_write_buffer_size():
            self.loop.call_later(0.005, self.reset)
            return
        sock: socket.socket = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
