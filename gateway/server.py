"""The front door: uvicorn's server with deadlines for slow senders, limits for heads, and word of who hung up."""

from __future__ import annotations

import asyncio
import re
import time
from functools import partial
from types import FrameType
from typing import Any, Final, Literal

import httptools
import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.presence import Hangup

HEAD_SECONDS: Final = 10.0  # until a request's head must be whole
SLOWEST: Final = 16 * 1024  # bytes a second: a body that comes slower than this, after its first seconds, is refused
MAX_URL: Final = 16 * 1024
MAX_HEAD: Final = 64 * 1024
MAX_HEADERS: Final = 200
LINGER_SECONDS: Final = 5.0  # for which the rest of a refused request is read

_REASONS: Final = {
    400: "Bad Request",
    408: "Request Timeout",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
}
_HEAD_TOO_LARGE: Final = f"The head is over {MAX_HEAD} bytes or {MAX_HEADERS} fields."
_OFFERS: Final = (b"upgrade", b"connection", b"http2-settings")
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~-]*|\[[0-9A-Fa-f:.%]+\])(?::[0-9]{0,5})?")


class Door(HttpToolsProtocol):
    """One connection of a caller."""

    receive_seconds = 60.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.deadline = time.monotonic() + HEAD_SECONDS
        self.refusal: tuple[int, str] | None = None
        self.told = False  # the last word was said: what still comes is thrown away
        self.running: RequestResponseCycle | None = None  # the request that is being answered; later ones queue
        self.reading_head = True
        self.loose = 0  # bytes that have come since the parser last had a whole head, or a part of a body
        self.good_host = b""  # the last one that was looked at
        self.url = b""
        self.declined = b""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.leave()

    def leave(self) -> None:
        """Whatever works for this caller learns that nobody listens any more."""
        for cycle in (self.running, self.cycle, *(queued for queued, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
                cycle.scope["hangup"].fire()  # type: ignore[typeddict-item]  # ours

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        if self.told:
            return
        self.loose += len(data)
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                self.parser = httptools.HttpRequestParser(self)
                self.parser.feed_data(self.declined + data[offer.args[0] :])
        except httptools.HttpParserUpgrade:
            self.tell(400, "One offer to change the protocol is enough.")
        except httptools.HttpParserError:
            self.tell(*(self.refusal or (400, "This is not a valid HTTP request.")))
        if self.loose > MAX_HEAD and not self.told:
            self.tell(431, _HEAD_TOO_LARGE)

    def decline(self) -> None:
        """Keeps the request without its offer of another protocol, to be read again: the parser would skip its body.

        Java's HTTP client offers h2c with every call.  RFC 9110 7.8: a server may ignore it.
        """
        if self.parser.get_method() == b"CONNECT":
            self.refuse(400, "This is no proxy.")
        lines = [b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url)]
        lines += [name + b": " + value for name, value in self.headers if name not in _OFFERS]
        self.declined = b"\r\n".join(lines) + b"\r\n\r\n"

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self.scope["hangup"] = Hangup(self.transport.abort)  # type: ignore[typeddict-unknown-key]  # ours
        self.deadline = time.monotonic() + HEAD_SECONDS
        self.reading_head = True

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL:
            self.refuse(414, f"The URL is over {MAX_URL} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called for each of a request's many headers: short, and sizes are looked at elsewhere."""
        if self.reading_head:  # a trailer is no header: it could name another caller (RFC 9110 6.5.1)
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_HEADERS or (
            self.loose > MAX_HEAD and sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD
        ):
            self.refuse(431, _HEAD_TOO_LARGE)
        self.loose = 0
        self.reading_head = False
        self.check_head()
        if self.parser.should_upgrade():
            self.decline()
            return
        self.deadline = time.monotonic() + self.receive_seconds
        super().on_headers_complete()
        self.scope["hangup"].whole = partial(self.write_whole, self.cycle)  # type: ignore[typeddict-item]  # ours

    def check_head(self) -> None:
        """What the parser lets pass, and servers in front may read differently."""
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self.refuse(400, "Speak HTTP/1.1.")
        found = dict(self.headers)
        host = found.get(b"host")
        if len(found) != len(self.headers) and sum(name == b"host" for name, _ in self.headers) > 1:
            host = None
        elif host is None and version == "1.0":
            host = self.good_host = b""
        if host is None:
            self.refuse(400, "Send the header 'Host' once.")
        elif host != self.good_host:
            if not _HOST.fullmatch(host):
                self.refuse(400, "The header 'Host' is not a host and a port.")
            self.good_host = host
        if b"transfer-encoding" in found:
            codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
            if version == "1.0" or any(coding != b"chunked" for coding in codings):
                self.refuse(400, "The header 'Transfer-Encoding' may only be 'chunked'.")

    def on_body(self, body: bytes) -> None:
        self.loose = 0
        if not self.cycle.response_complete:
            self.deadline += len(body) / SLOWEST
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.loose = 0
        if self.parser.should_upgrade():
            return
        self.deadline = 0.0
        super().on_message_complete()

    # ── answering ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def write_whole(
        self, cycle: RequestResponseCycle, status: int, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> None:
        """What `cycle.send` does with two messages, in one write, for headers of our own making."""
        if cycle.disconnected:
            return
        lines = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
        lines.append(body)
        cycle.waiting_for_100_continue = False
        cycle.response_started = cycle.response_complete = True
        self.transport.write(b"".join(lines))
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def on_response_complete(self) -> None:
        if self.running is not None:
            self.running.scope["hangup"].whole = None  # type: ignore[typeddict-item]  # ours; else a circle is left
        super().on_response_complete()
        if self.answered_early():  # the rest is read and thrown away, so that the answer is not lost in a reset
            self.deadline = time.monotonic() + LINGER_SECONDS

    def answered_early(self) -> bool:
        """Has the request that is being read had its answer?"""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and cycle.response_complete and cycle.more_body

    def refuse(self, status: int, message: str) -> None:
        """Stops the parser; data_received then tells the caller."""
        self.refusal = (status, message)
        raise ValueError(message)

    def late(self) -> None:
        """What was awaited did not come in time."""
        if self.told or self.scope is None:
            self.transport.abort()
        else:
            self.tell(408, "The request did not arrive in time.")

    def tell(self, status: int, message: str) -> None:
        """The last words on this connection, unless an answer is under way or was given: nothing may follow that."""
        self.told = True
        running = self.running
        if running is not None and running.response_started and not running.response_complete:
            self.transport.abort()
            return
        if self.answered_early():
            self.transport.close()
            return
        code = "body_incomplete" if status == 408 else "invalid_request"
        shape = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = msgspec.json.encode({"error": shape})
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.leave()
        self.transport.write_eof()  # what it still sends is read and thrown away: a reset could overtake the answer
        self.deadline = time.monotonic() + LINGER_SECONDS

    def shutdown(self) -> None:
        if self.told:
            self.transport.abort()
        else:
            super().shutdown()


class Server(uvicorn.Server):
    """Ends by itself, with status 0, when told to stop; a second signal makes it hurry."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def serve_quietly(self) -> None:
        """Beside another server of this process, which listens to signals for both."""
        await self._serve()

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Door) and 0 < connection.deadline < now:
                    connection.late()
        return await super().on_tick(counter)


def server(
    app: Any, host: str, port: int, receive_seconds: float, grace_seconds: float, lifespan: Literal["on", "off"] = "on"
) -> Server:
    """A server for one process; `port` 0 takes any free one."""
    door = type("Door", (Door,), {"receive_seconds": receive_seconds})
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=door,
        ws="none",
        loop="uvloop" if _has_uvloop() else "asyncio",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(grace_seconds) or 1,
        timeout_keep_alive=75,  # longer than the load balancers in front
        backlog=4096,
    )
    return Server(config)


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return False
    return True
