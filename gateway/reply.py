"""What the caller receives, in the caller's dialect: chunks, or a refusal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from starlette.types import Send

from gateway.errors import ClientGone, GatewayError
from gateway.exchange import Exchange
from gateway.presence import Hangup

# What of a provider's answer head reaches the caller.
_PASSED: Final = frozenset(
    b"content-type content-disposition content-encoding content-language content-length content-range accept-ranges"
    b" etag last-modified openai-model openai-organization openai-processing-ms openai-version retry-after"
    b" retry-after-ms x-should-retry".split()
)
_JSON: Final = (b"content-type", b"application/json")
_STREAM: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather the tokens into one burst
)


class Reply:
    """Starts with the first chunk, so that until then a failure can still be an honest HTTP status."""

    __slots__ = ("_hangup", "_head", "_ping_ns", "_pinging", "_send", "_timer", "_x", "sent_at", "started", "status")

    def __init__(self, x: Exchange, send: Send, hangup: Hangup, ping_seconds: float | None = None) -> None:
        """ping_seconds: a comment line on a stream that has begun and is silent for so long; none: never."""
        self._x = x
        self._send = send
        self._hangup = hangup
        self._ping_ns = round((ping_seconds or 0) * 1e9)
        self._timer: asyncio.TimerHandle | None = None
        self._pinging: asyncio.Task[None] | None = None
        self._head: list[tuple[bytes, bytes]] | None = None
        self.status = 200
        self.started = False
        self.sent_at = 0

    def adopt(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """A relayed answer keeps the provider's status and head (those parts of it that may pass)."""
        self.status = status
        own = {name for name, _ in self._x.reply_headers}
        self._head = [
            (name, value)
            for name, value in headers.items()
            if name in _PASSED or (b"ratelimit" in name and name not in own)
        ]

    async def send(self, raw: bytes, last: bool) -> None:
        """One piece of the answer.  Raises ClientGone once nobody is left to read it."""
        x = self._x
        if self._hangup.gone:
            if x.draining:
                return
            raise ClientGone("The caller hung up.")
        if not self.started:
            whole = last and not x.stream
            headers = self._begin(len(raw) if whole else None)
            if whole and self._head is None and self._hangup.whole is not None and x.method != "HEAD":
                self._hangup.whole(self.status, headers, raw)
                x.sent_bytes += len(raw)
                return
            await self._send({"type": "http.response.start", "status": self.status, "headers": headers})
        if last:
            self.quiet()
        if last and x.stream:
            raw = x.dialect.write_summary(summary(x)) + raw
        x.sending = self.sent_at = time.perf_counter_ns()
        await self._send({"type": "http.response.body", "body": raw, "more_body": not last})
        x.sending = 0
        x.sent_bytes += len(raw)

    def _begin(self, length: int | None) -> list[tuple[bytes, bytes]]:
        """The head.  length: of a body that is whole."""
        x = self._x
        self.started = True
        x.status = self.status
        x.first_byte = time.perf_counter_ns()
        headers = self._facts()
        if self._head is not None:
            if length and x.method != "HEAD":  # all of it is here, and may not be as long as the provider said
                own = (b"content-length", b"%d" % length)
                self._head = [own if name == b"content-length" else (name, value) for name, value in self._head]
            headers += self._head
        elif x.stream:
            headers += _STREAM
        else:
            headers.append(_JSON)
        if length is not None:
            if self._head is None:
                headers.append((b"content-length", b"%d" % length))
            if (cost := x.cost) is not None:
                headers.append((b"x-tollkeeper-cost-usd", usd(cost).encode()))
        if self._ping_ns and x.stream:
            self.sent_at = x.first_byte
            self._listen()
        return headers

    def _facts(self) -> list[tuple[bytes, bytes]]:
        x = self._x
        headers = [
            (b"x-request-id", x.id.encode()),
            (b"x-tollkeeper-attempts", b"%d" % len(x.attempts)),
            (b"x-tollkeeper-overhead-ms", b"%.3f" % (x.overhead / 1e6)),
            *x.reply_headers,
        ]
        if x.cache:
            headers.append((b"x-tollkeeper-cache", x.cache.encode()))
        if (final := x.final) is not None:
            headers.append((b"x-tollkeeper-provider", final.target.provider.name.encode()))
            if final.target.alias:
                headers.append((b"x-tollkeeper-model", final.target.alias.encode()))
        return headers

    async def refuse(self, error: GatewayError) -> None:
        """Before the first byte: an HTTP status.  After it: one error frame, or a cut connection; never a clean end."""
        x = self._x
        self.quiet()
        if self._hangup.gone or isinstance(error, ClientGone):
            return
        if self.started:
            if x.stream:
                frame = x.dialect.write_error_event(error, x.id)
                await self._send({"type": "http.response.body", "body": frame, "more_body": False})
            else:
                self._hangup.abort()
            return
        self.started = True
        x.status = error.status
        x.first_byte = time.perf_counter_ns()
        body = b"" if x.method == "HEAD" else x.dialect.write_error(error, x.id)
        headers = [*self._facts(), _JSON, (b"content-length", b"%d" % len(body))]
        if error.retry_after is not None or error.status in (429, 503):
            headers.append((b"retry-after", b"%d" % max(1, error.retry_after or 1)))
        if error.should_retry is not None:
            headers.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def _listen(self) -> None:
        """Looks again when the stream will have been silent long enough; a provider's own time-outs are not touched."""
        silent = time.perf_counter_ns() - self.sent_at
        if silent >= self._ping_ns and (self._pinging is None or self._pinging.done()):
            silent, self.sent_at = 0, time.perf_counter_ns()
            self._pinging = asyncio.create_task(self._ping())
        self._timer = asyncio.get_running_loop().call_later(max(0, self._ping_ns - silent) / 1e9, self._listen)

    async def _ping(self) -> None:
        await self._send({"type": "http.response.body", "body": self._x.dialect.write_ping(), "more_body": True})

    def quiet(self) -> None:
        """No more pings: the end is about to be written, or nobody is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pinging is not None:
            self._pinging.cancel()


def summary(x: Exchange) -> dict[str, str | int | bool | None]:
    """What is known last: cost and usage."""
    facts: dict[str, str | int | bool | None] = {
        "request_id": x.id,
        "cost_usd": None if x.cost is None else usd(x.cost),
    }
    if (final := x.final) is not None and (usage := final.usage) is not None:
        facts |= {"input_tokens": usage.input, "output_tokens": usage.output, "estimated": usage.estimated}
    return facts


def usd(nano: int) -> str:
    """nano-USD as a decimal of USD, exactly."""
    whole, rest = divmod(nano, 1_000_000_000)
    return f"{whole}.{rest:09d}"
