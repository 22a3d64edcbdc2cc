"""The bare relay that the gateway is measured against: the same server and the same transport, and nothing else.

    python -m bench.relay PORT PROVIDER_URL [httpx2 | itself]

What it reads it sends on, what it hears it sends back: no keys, no parsing, no figures.  It calls the transport as the
gateway does; `httpx2`: by its httpx2 interface, as a relay of httpx2's users would; `itself`: it calls nobody,
and says again what the provider said to the first call.
"""

from __future__ import annotations

import gc
import sys

import httpx2
import uvloop
from starlette.types import Receive, Scope, Send

from gateway.server import server
from gateway.transport import Transport

Headers = list[tuple[bytes, bytes]]


class Relay:
    """The ASGI application."""

    def __init__(self, provider: str, *, by_httpx2: bool = False, by_itself: bool = False) -> None:
        self._url = httpx2.URL(f"{provider}/v1/chat/completions")
        self._headers = [(b"host", self._url.netloc), (b"content-type", b"application/json")]
        self._head = b"".join(b"%b: %b\r\n" % header for header in self._headers)
        self._by_httpx2 = by_httpx2
        self._by_itself = by_itself
        self._known: tuple[Headers, bytes] | None = None
        self._transport: Transport | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        message = await receive()
        body: bytes = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        if self._by_itself:
            await self._repeat(body, send)
            return
        status, heard, pieces = await self._ask(body)
        try:
            await self._pass_on(status, heard, pieces, send)
        finally:
            await pieces.aclose()

    async def _repeat(self, body: bytes, send: Send) -> None:
        if self._known is None:
            _, heard, pieces = await self._ask(body)
            whole = b"".join([piece async for piece in pieces])
            kind = next(value for name, value in heard if name.lower() == b"content-type")
            self._known = [(b"content-type", kind), (b"content-length", b"%d" % len(whole))], whole
        headers, whole = self._known
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": whole, "more_body": False})

    async def _ask(self, body: bytes) -> tuple[int, Headers, httpx2.AsyncByteStream]:
        assert self._transport is not None, "the server starts before it takes calls"
        if not self._by_httpx2:
            answer = await self._transport.send("POST", self._url, self._head, body, None)
            return answer.status, answer.headers, answer
        headers = [*self._headers, (b"content-length", b"%d" % len(body))]
        request = httpx2.Request("POST", self._url, headers=headers, stream=httpx2.ByteStream(body))
        response = await self._transport.handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream), "a transport's stream is async"
        return response.status_code, response.headers.raw, response.stream

    async def _pass_on(self, status: int, heard: Headers, pieces: httpx2.AsyncByteStream, send: Send) -> None:
        kind = next(value for name, value in heard if name.lower() == b"content-type")
        headers = [(b"content-type", kind)]
        head = {"type": "http.response.start", "status": status, "headers": headers}
        if kind.startswith(b"text/event-stream"):
            await send(head)
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        whole = b"".join([piece async for piece in pieces])
        headers.append((b"content-length", b"%d" % len(whole)))
        await send(head)
        await send({"type": "http.response.body", "body": whole, "more_body": False})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self._transport = Transport()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._transport.aclose()
        await send({"type": "lifespan.shutdown.complete"})


if __name__ == "__main__":
    told = Relay(sys.argv[2], by_httpx2="httpx2" in sys.argv[3:], by_itself="itself" in sys.argv[3:])
    serving = server(told, "127.0.0.1", int(sys.argv[1]), 60.0, 1.0)
    gc.freeze()  # as the gateway does
    uvloop.run(serving.serve())
