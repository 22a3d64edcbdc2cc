"""The only file that calls a provider: writes the call, opens it, and maps every foreign error to ours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Final, NamedTuple

import httpx2

from gateway.dialects import Reader
from gateway.errors import GatewayError, UpstreamError
from gateway.exchange import Attempt, Exchange
from gateway.telemetry import w3c

# Request headers that reach a provider; everything else stays here.
_PASSED: Final = (
    b"accept", b"anthropic-beta", b"anthropic-version", b"idempotency-key", b"openai-beta", b"user-agent",
)  # fmt: skip
_ERROR_BODY: Final = 64 * 1024
_LINGER: Final = 0.25  # seconds a finished answer's connection may take to end its body and be used again


class Cleared(NamedTuple):
    """Proof that every policy let this attempt pass.  Made in pipeline.clear only: a call without it cannot be written."""

    attempt: Attempt


class Call:
    """`async with Call(...) as (pieces, reader)`: one call to one target, from its first byte to its connection's return."""

    __slots__ = ("_attempt", "_look", "_response", "_timeout", "_x")

    def __init__(self, x: Exchange, cleared: Cleared, look: bool) -> None:
        self._x = x
        self._attempt = cleared.attempt
        self._look = look
        self._response: httpx2.Response | None = None
        self._timeout = asyncio.timeout(self._attempt.target.provider.timeouts.total)

    async def __aenter__(self) -> tuple[AsyncIterable[bytes], Reader, httpx2.Response]:
        await self._timeout.__aenter__()
        try:
            response = await self._open()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        x, attempt = self._x, self._attempt
        if x.reader is not None:
            reader = x.reader(response.headers)
        else:
            reader = attempt.target.provider.dialect.reader(x.stream, self._look, x.wants_usage)
        attempt.answer = reader.answer
        return response.stream, reader, response  # type: ignore[return-value]  # a transport's stream is async

    async def _open(self) -> httpx2.Response:
        x, attempt = self._x, self._attempt
        provider = attempt.target.provider
        request = self._request()
        attempt.sent = time.perf_counter_ns()
        response = self._response = await provider.transport.handle_async_request(request)
        attempt.headers = time.perf_counter_ns()
        attempt.status = response.status_code
        attempt.provider_request_id = response.headers.get("x-request-id", "")[:128]
        if response.status_code >= 300:
            raise await self._refused(response)
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity" and x.reader is None:
            raise UpstreamError("The provider compressed its answer although it was asked not to.", code="upstream_protocol")
        return response

    def _request(self) -> httpx2.Request:
        x, attempt = self._x, self._attempt
        target = attempt.target
        provider = target.provider
        headers = list(provider.headers)
        asked = x.headers
        for name in _PASSED:
            if name in asked:
                headers.append((name, asked[name]))
        for name in provider.forward:
            if name in asked:
                headers.append((name, asked[name]))
        headers.append((b"accept-encoding", b"identity"))
        headers.append((b"x-tollkeeper-attempt", b"%s.%d" % (x.id.encode(), len(x.attempts))))
        if provider.propagate != "none":
            headers.append((b"traceparent", w3c.outgoing(x.trace, attempt.span_id)))
            if x.trace.state:
                headers.append((b"tracestate", x.trace.state.encode()))
            if provider.propagate == "all" and b"baggage" in asked:
                headers.append((b"baggage", asked[b"baggage"]))
        if b"content-type" in asked:
            headers.append((b"content-type", asked[b"content-type"]))
        url = provider.url(x.upstream_path)
        if x.upload is not None:
            length = x.upload.length(target.model)
            headers.append((b"transfer-encoding", b"chunked") if length is None else (b"content-length", b"%d" % length))
            return httpx2.Request(x.method, url, headers=headers, content=x.upload.pieces(target.model))
        body = x.body
        if x.fields:
            body = provider.dialect.write_call(x.fields, body, target.model or x.model, x.model, x.asks_usage)
        headers.append((b"content-length", b"%d" % len(body)))
        return httpx2.Request(x.method, url, headers=headers, content=body)

    async def _refused(self, response: httpx2.Response) -> UpstreamError:
        body = b""
        async for piece in response.stream:  # type: ignore[union-attr]  # a transport's stream is async
            body += piece
            if len(body) > _ERROR_BODY:
                break
        if response.status_code < 400:
            return UpstreamError("The provider answered with a redirect, which is never followed.", code="upstream_protocol")
        error = self._attempt.target.provider.dialect.read_error(response.status_code, body)
        wait = retry_after(response.headers.get("retry-after"))
        if wait is not None and error.status in (429, 503):
            error.retry_after = wait
        return error

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            error = late
        response = self._response
        if response is not None:
            linger = getattr(response.stream, "linger", None)
            if self._attempt.complete and linger is not None:
                linger(_LINGER)
            else:
                await response.aclose()
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
                f"The provider '{name}' cannot be reached.", code="upstream_unavailable", free=True, retry_after=1, status=503
            ) from None
        if isinstance(error, httpx2.TimeoutException | TimeoutError):
            raise UpstreamError(f"The provider '{name}' took too long.", code="upstream_timeout", status=504) from None
        if isinstance(error, httpx2.RemoteProtocolError):
            raise UpstreamError(f"The provider '{name}' broke off or broke the protocol.", code="upstream_broke_off") from None
        if isinstance(error, httpx2.TransportError):
            raise UpstreamError(f"The connection to '{name}' failed.", code="upstream_broke_off") from None


def retry_after(value: str | None) -> int | None:
    """Retry-After, as seconds or as a date, in whole seconds from 1 to 300; None where it says nothing."""
    if not value:
        return None
    try:
        seconds = float(value) if value.replace(".", "", 1).isdigit() else parsedate_to_datetime(value).timestamp() - time.time_ns() / 1e9
    except (ValueError, OverflowError):
        return None
    return max(1, min(300, int(-(-seconds // 1))))
