"""The only file that calls a provider: writes the call, opens it, and maps every foreign error to ours."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Final, NamedTuple

import httpx2

from gateway.dialects import Cap, Reader
from gateway.errors import GatewayError, UpstreamError
from gateway.exchange import Attempt, Exchange
from gateway.providers import Answer
from gateway.telemetry import w3c

_ERROR_BODY: Final = 64 * 1024
_LONGEST: Final = 4096  # bytes of a caller's header that are passed on
_LINGER: Final = 0.25  # seconds a finished answer's connection may take to end its body and be used again


class Cleared(NamedTuple):
    """Proof that every policy let this attempt pass, and what they hold for it.

    Made in pipeline.clear only, so that no call can be written whose money is not held.
    """

    attempt: Attempt
    receipts: Sequence[object]  # to be settled when the attempt is over


class Call:
    """`async with Call(...) as (answer, reader, headers)`: one call, until its connection is given back or cut."""

    __slots__ = ("_answer", "_attempt", "_look", "_x")

    def __init__(self, x: Exchange, cleared: Cleared, look: bool) -> None:
        self._x = x
        self._attempt = cleared.attempt
        self._look = look
        self._answer: Answer | None = None

    async def __aenter__(self) -> tuple[Answer, Reader, Mapping[bytes, bytes]]:
        try:
            answer, headers = await self._open()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        x, attempt = self._x, self._attempt
        if x.reader is not None:
            reader = x.reader(headers)
        else:
            reader = attempt.target.provider.dialect.reader(x.stream, self._look, x.wants_usage)
        attempt.answer = reader.answer
        return answer, reader, headers

    async def _open(self) -> tuple[Answer, Mapping[bytes, bytes]]:
        x, attempt = self._x, self._attempt
        provider = attempt.target.provider
        body, length = self._body()
        head = self._head()
        attempt.sent = time.perf_counter_ns()
        answer = self._answer = await provider.sender.send(x.method, provider.url(x.upstream_path), head, body, length)
        attempt.headers = time.perf_counter_ns()
        attempt.status = answer.status
        headers = {name.lower(): value for name, value in answer.headers}
        attempt.provider_request_id = headers.get(b"x-request-id", b"")[:128].decode("latin-1")
        if answer.status >= 300:
            raise await self._refused(answer, headers)
        if x.reader is None and headers.get(b"content-encoding", b"identity") != b"identity":
            raise UpstreamError(
                "The provider compressed its answer although it was asked not to.", code="upstream_protocol"
            )
        return answer, headers

    def _head(self) -> bytes:
        """Header lines: the provider's own, and of the caller's those that may pass."""
        x, provider = self._x, self._attempt.target.provider
        asked = x.headers
        lines = [provider.head, b"x-tollkeeper-attempt: %b.%d" % (x.id.encode(), len(x.attempts))]
        for name in provider.passed:
            if name in asked and len(value := asked[name]) <= _LONGEST and value.isascii():
                lines.append(name + b": " + value)
        if provider.propagate != "none":
            lines.append(b"traceparent: " + w3c.outgoing(x.trace, self._attempt.span_id))
            if x.trace.state:
                lines.append(b"tracestate: " + x.trace.state.encode())
            if provider.propagate == "all" and b"baggage" in asked:
                lines.append(b"baggage: " + asked[b"baggage"])
        lines.append(b"")
        return b"\r\n".join(lines)

    def _body(self) -> tuple[bytes | AsyncIterable[bytes], int | None]:
        x, target = self._x, self._attempt.target
        if x.upload is not None:
            return x.upload.pieces(target.model), x.upload.length(target.model)
        if x.fields:
            cap = None
            if (tokens := self._attempt.cap) is not None:
                cap = Cap(target.provider.cap_field if x.endpoint == "chat" else "max_tokens", tokens)
            return target.provider.dialect.write_call(
                x.fields, x.body, target.model or x.model, x.model, x.asks_usage, cap
            ), None
        return x.body, None

    async def _refused(self, answer: Answer, headers: Mapping[bytes, bytes]) -> UpstreamError:
        body = b""
        async for piece in answer:
            body += piece
            if len(body) > _ERROR_BODY:
                break
        if answer.status < 400:
            return UpstreamError(
                "The provider answered with a redirect, which is never followed.", code="upstream_protocol"
            )
        error = self._attempt.target.provider.dialect.read_error(answer.status, body)
        if answer.status >= 500 and not self._attempt.target.provider.failures_billed:
            error.free = True
        wait = retry_after(headers.get(b"retry-after", b"").decode("latin-1"))
        if wait is not None and error.status in (429, 503):
            error.retry_after = wait
        if (again := headers.get(b"x-should-retry")) in (b"true", b"false"):
            error.should_retry = again == b"true"
        return error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        answer = self._answer
        if answer is not None:
            if self._attempt.complete:
                await answer.finish(_LINGER)
            else:
                await answer.aclose()
        if error is not None:
            self._raise_mapped(error)

    def _raise_mapped(self, error: BaseException) -> None:
        """Raises our error for a foreign one; returns where the error is ours or nobody's."""
        if isinstance(error, GatewayError):
            return
        name = self._attempt.target.provider.name
        if isinstance(error, httpx2.PoolTimeout):
            raise UpstreamError(
                f"No connection to '{name}' came free in time.", code="overloaded", status=503, retry_after=1, free=True
            ) from None
        if isinstance(error, httpx2.ConnectTimeout | httpx2.ConnectError):
            raise UpstreamError(
                f"The provider '{name}' cannot be reached.",
                code="upstream_unavailable",
                free=True,
                retry_after=1,
                status=503,
            ) from None
        if isinstance(error, httpx2.TimeoutException | TimeoutError):
            raise UpstreamError(f"The provider '{name}' took too long.", code="upstream_timeout", status=504) from None
        if isinstance(error, httpx2.RemoteProtocolError):
            raise UpstreamError(
                f"The provider '{name}' broke off or broke the protocol.", code="upstream_broke_off"
            ) from None
        if isinstance(error, httpx2.TransportError):
            raise UpstreamError(f"The connection to '{name}' failed.", code="upstream_broke_off") from None


def retry_after(value: str | None) -> int | None:
    """Retry-After, as seconds or as a date, in whole seconds from 1 to 300; None where it says nothing."""
    if not value:
        return None
    try:
        seconds = (
            float(value)
            if value.replace(".", "", 1).isdigit()
            else parsedate_to_datetime(value).timestamp() - time.time_ns() / 1e9
        )
    except (ValueError, OverflowError):
        return None
    return max(1, min(300, int(-(-seconds // 1))))
