"""The front door: uvicorn's server with deadlines for slow senders, limits for heads, and word of who hung up."""

from __future__ import annotations

import asyncio
import time
from types import FrameType
from typing import Any, Final

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.presence import Hangup

HEAD_SECONDS: Final = 10.0  # until a request's head must be whole
SLOWEST: Final = 16 * 1024  # bytes a second: a body that comes slower than this, after its first seconds, is refused
MAX_URL: Final = 16 * 1024
MAX_HEAD: Final = 64 * 1024
MAX_HEADERS: Final = 200
LINGER_SECONDS: Final = 5.0

_REASONS: Final = {400: "Bad Request", 408: "Request Timeout", 414: "URI Too Long", 431: "Request Header Fields Too Large"}


class Door(HttpToolsProtocol):
    """One connection of a caller."""

    receive_seconds = 60.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.deadline = time.monotonic() + HEAD_SECONDS
        self.refusal: tuple[int, str, str] | None = None
        self.head_bytes = 0
        self.url = b""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.scope["hangup"].fire()  # type: ignore[typeddict-item]  # ours
        for cycle, _ in self.pipeline:
            cycle.disconnected = True
            cycle.scope["hangup"].fire()  # type: ignore[typeddict-item]  # ours

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["hangup"] = Hangup(self.transport.abort)  # type: ignore[typeddict-unknown-key]  # ours
        self.deadline = time.monotonic() + HEAD_SECONDS
        self.head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL:
            self.refuse(414, "invalid_request", f"The URL is over {MAX_URL} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self.head_bytes += len(name) + len(value)
        if self.head_bytes > MAX_HEAD or len(self.headers) > MAX_HEADERS:
            self.refuse(431, "invalid_request", f"The head is over {MAX_HEAD} bytes or {MAX_HEADERS} fields.")

    def on_headers_complete(self) -> None:
        self.deadline = time.monotonic() + self.receive_seconds
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.cycle.response_complete:
            self.deadline += len(body) / SLOWEST
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.deadline = 0.0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body:  # answered early: the rest is read and thrown away, so that the answer is not lost in a reset
            self.deadline = time.monotonic() + LINGER_SECONDS

    def refuse(self, status: int, code: str, message: str) -> None:
        """Stops the parser; data_received then tells the caller."""
        self.refusal = (status, code, message)
        raise ValueError(message)

    def send_400_response(self, msg: str) -> None:
        """Uvicorn calls it for whatever it cannot parse."""
        self.tell(*(self.refusal or (400, "invalid_request", "This is not a valid HTTP request.")))

    def late(self) -> None:
        """The request did not arrive in time."""
        if self.head_bytes or self.url:
            self.tell(408, "body_incomplete", "The request did not arrive in time.")
        else:
            self.transport.close()

    def tell(self, status: int, code: str, message: str) -> None:
        """The last words on this connection, unless an answer is under way: nothing may be written into that."""
        self.deadline = 0.0
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()
            return
        shape = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = msgspec.json.encode({"error": shape})
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """Ends by itself, with status 0, when told to stop; a second signal makes it hurry."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Door) and 0 < connection.deadline < now:
                    connection.late()
        return await super().on_tick(counter)


def server(app: Any, host: str, port: int, receive_seconds: float, grace_seconds: float) -> Server:
    """A server for one process; `port` 0 takes any free one."""
    door = type("Door", (Door,), {"receive_seconds": receive_seconds})
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=door,
        ws="none",
        loop="uvloop" if _has_uvloop() else "asyncio",
        lifespan="on",
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

