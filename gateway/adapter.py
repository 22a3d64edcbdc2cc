"""Calls through any transport of httpx2's (HTTP/2, proxies, mocks), for providers that ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator

import httpx2

from gateway.settings import Timeouts


class Adapter:
    """A Sender over an httpx2 transport.  Its time-outs are httpx2's: one for first byte and idle, the longer."""

    def __init__(self, transport: httpx2.AsyncBaseTransport, waits: Timeouts, pool_seconds: float) -> None:
        self._transport = transport
        silence = max(waits.first_byte, waits.idle)
        self._timeout = {"connect": waits.connect, "read": silence, "write": waits.idle, "pool": pool_seconds}

    async def send(
        self, method: str, url: httpx2.URL, head: bytes, body: bytes | AsyncIterable[bytes], length: int | None
    ) -> Through:
        headers = [
            (name, value.lstrip()) for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")) if name
        ]
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        request = httpx2.Request(method, url, headers=headers, content=body, extensions={"timeout": self._timeout})
        return Through(await self._transport.handle_async_request(request))

    async def aclose(self) -> None:
        await self._transport.aclose()


class Through:
    """An httpx2 response as an Answer."""

    def __init__(self, response: httpx2.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers.raw
        self._response = response

    def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._response.stream, httpx2.AsyncByteStream)
        return aiter(self._response.stream)

    async def aclose(self) -> None:
        await self._response.aclose()

    async def finish(self, seconds: float) -> None:
        """Such a transport takes a connection back only when its answer was read to its end."""
        try:
            async with asyncio.timeout(seconds):
                async for _ in self:
                    pass
        except (TimeoutError, httpx2.TransportError, httpx2.StreamError):
            pass  # then it is not kept
        await self._response.aclose()
