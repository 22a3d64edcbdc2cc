"""GET /healthz, /readyz and /metrics: what probes and scrapers ask."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from typing import Final

from starlette.types import Receive, Scope, Send

_FRESH: Final = 1.0  # seconds a rendered scrape is given again


async def answer(send: Send, status: int, body: bytes, kind: bytes = b"text/plain; charset=utf-8") -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def refused(scope: Scope, send: Send) -> bool:
    """Was it asked with a method that changes things?  Then the caller has been told."""
    if scope["method"] in ("GET", "HEAD"):
        return False
    await answer(send, 405, b"only GET is answered here\n")
    return True


class Healthy:
    """The process answers.  It asks no store: a database's outage must not restart the gateway."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await refused(scope, send):
            await answer(send, 200, b"ok\n")


class Ready:
    """Whether traffic should come here, and if not, why."""

    def __init__(self, reasons: Callable[[], list[str]]) -> None:
        self._reasons = reasons

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if await refused(scope, send):
            return
        reasons = self._reasons()
        if reasons:
            await answer(send, 503, ("not ready: " + "; ".join(reasons) + "\n").encode())
        else:
            await answer(send, 200, b"ready\n")


class Metrics:
    """Rendered in a thread, for it takes long; for at most one scraper at a time."""

    def __init__(self, render: Callable[[str], tuple[bytes, str]], key: str | None) -> None:
        self._render = render
        self._key = None if key is None else key.encode()
        self._lock = asyncio.Lock()
        self._kept: dict[str, tuple[float, bytes, str]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if await refused(scope, send):
            return
        headers = dict(scope["headers"])
        if self._key is not None:
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not hmac.compare_digest(given, self._key):
                await answer(send, 401, b"send the admin key as 'Authorization: Bearer <key>'\n")
                return
        accept = "openmetrics" if b"openmetrics" in headers.get(b"accept", b"") else ""
        async with self._lock:
            at, body, kind = self._kept.get(accept, (0.0, b"", ""))
            if time.monotonic() - at > _FRESH:
                body, kind = await asyncio.to_thread(self._render, headers.get(b"accept", b"").decode("latin-1"))
                self._kept[accept] = (time.monotonic(), body, kind)
        await answer(send, 200, body, kind.encode())
