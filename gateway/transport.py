"""How requests reach providers: HTTP/1.1 over kept connections, behind httpx2's own transport interface.

Never: redirects, proxies from the environment, decoding of a body, unverified TLS, HTTP/2.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterable
from functools import cache, lru_cache
from typing import Final

import httpx2

from gateway.answer import Answer, Call
from gateway.pool import Limits, Origin, Pool

__all__ = ["Limits", "Transport"]

_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_FRAMING: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})
_BODY_EXPECTED: Final = frozenset({"POST", "PUT", "PATCH"})
_PORTS: Final = {"http": 80, "https": 443}


class Transport(httpx2.AsyncBaseTransport):
    """One per provider.  Its time-outs are its own `limits`; a request's `timeout` extension is not read.

    ca_file: a PEM file of the authorities to trust in place of the system's.
    A call that is cancelled, at whatever await, cuts its connection at once and gives its place back.
    """

    def __init__(self, limits: Limits | None = None, *, ca_file: str | None = None) -> None:
        self.limits = limits or Limits()
        self._tls = _system_trust() if ca_file is None else _own_trust(ca_file)
        self._pools: dict[Origin, Pool] = {}
        self._closed = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Until the answer's head is there.  The response's stream must be read to its end, or closed.

        Raises httpx2.PoolTimeout, ConnectTimeout, ConnectError, UnsupportedProtocol, LocalProtocolError (in these cases
        not a byte was sent), ReadTimeout, WriteTimeout, ReadError, WriteError, RemoteProtocolError.
        """
        answer = await self._ask(self._pool(request.url), write_call(request))
        return httpx2.Response(answer.status, headers=answer.headers, stream=answer)

    async def send(
        self, method: str, url: httpx2.URL, head: bytes, body: bytes | AsyncIterable[bytes], length: int | None
    ) -> Answer:
        """The same without httpx2's objects, which cost more than the call: gateway.providers.Sender.

        head: whole header lines, checked by whoever wrote them, without framing.  length: of a streamed body.
        """
        if isinstance(body, bytes):
            framing = b"content-length: %d\r\n" % len(body) if body or method in _BODY_EXPECTED else b""
        else:
            framing = b"transfer-encoding: chunked\r\n" if length is None else b"content-length: %d\r\n" % length
        lines = b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method.encode(), url.raw_path, head, framing)
        return await self._ask(self._pool(url), Call(lines, body, length, method == "HEAD"))

    async def _ask(self, pool: Pool, call: Call) -> Answer:
        ends = pool.loop.time() + self.limits.total
        connection = pool.take_idle() or await pool.take(ends)
        answer = connection.ask(call, ends)
        try:
            await answer.head()
        except httpx2.TransportError:
            if not answer.stale or not isinstance(call.body, bytes):
                await answer.aclose()
                raise
            connection = await pool.take(ends, fresh=True)  # once more, over a connection that cannot be stale
            answer = connection.ask(call, ends)
            await answer.head()
        except BaseException:
            await answer.aclose()
            raise
        return answer

    async def aclose(self) -> None:
        """Cuts every connection; calls that are under way fail, and later ones too."""
        self._closed = True
        for pool in self._pools.values():
            pool.close()
        await asyncio.sleep(0)  # the event loop closes the sockets

    @property
    def active(self) -> int:
        """Connections in use or being made."""
        return sum(pool.open - len(pool.idle) for pool in self._pools.values())

    @property
    def idle(self) -> int:
        """Connections kept for the next call."""
        return sum(len(pool.idle) for pool in self._pools.values())

    @property
    def waiting(self) -> int:
        """Calls that wait for a connection."""
        return sum(pool.waiting for pool in self._pools.values())

    def _pool(self, url: httpx2.URL) -> Pool:
        scheme = url.scheme
        if scheme not in _PORTS:
            raise httpx2.UnsupportedProtocol(f"a provider's address starts with http:// or https://, not {scheme}://")
        origin = Origin(scheme, url.raw_host.decode("ascii"), url.port or _PORTS[scheme])
        pool = self._pools.get(origin)
        if pool is None:
            if self._closed:
                raise httpx2.ConnectError("the transport is closed")
            pool = self._pools[origin] = Pool(origin, self.limits, self._tls if scheme == "https" else None)
        return pool


def write_call(request: httpx2.Request) -> Call:
    """The request's bytes.  Adds Host and the body's framing where missing; raises httpx2.LocalProtocolError."""
    method = request.method
    _lowered(method.encode("ascii", "replace"))
    lines = [b"%b %b HTTP/1.1" % (method.encode("ascii"), request.url.raw_path)]
    framing: dict[bytes, bytes] = {}
    for name, value in request.headers.raw:
        lines.append(b"%b: %b" % (name, value))
        lowered = _lowered(name)
        if lowered in _FRAMING:
            if lowered in framing and lowered != b"connection":
                raise httpx2.LocalProtocolError(f"the request has two {lowered.decode()} headers")
            framing[lowered] = framing.get(lowered, b"") + value.lower()
    if b"host" not in framing:
        lines.insert(1, b"Host: %b" % request.url.netloc)
    body, length, line = _body(request, framing.get(b"content-length"), framing.get(b"transfer-encoding"))
    if line:
        lines.append(line)
    lines += (b"", b"")
    head = b"\r\n".join(lines)
    ends = len(lines) - 1
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
        bad = next(line for line in lines if not {10, 13, 0}.isdisjoint(line))
        what = bad.partition(b":")[0].decode("ascii", "replace") if bad is not lines[0] else "request line"
        raise httpx2.LocalProtocolError(f"the request's {what!r} holds a line break or NUL")
    return Call(head, body, length, method == "HEAD", b"close" in framing.get(b"connection", b""))


def _body(
    request: httpx2.Request, length: bytes | None, coding: bytes | None
) -> tuple[bytes | httpx2.AsyncByteStream, int | None, bytes]:
    """The body as it is sent, the length a stream must keep to, and the header line that is missing."""
    if length is not None and (coding is not None or not length.isdigit()):
        raise httpx2.LocalProtocolError("Content-Length must be one number, and without Transfer-Encoding")
    if coding is not None and coding != b"chunked":
        raise httpx2.LocalProtocolError("Transfer-Encoding can only be chunked")
    stream = request.stream
    if not isinstance(stream, httpx2.ByteStream):
        if not isinstance(stream, httpx2.AsyncByteStream):
            raise httpx2.LocalProtocolError("the request's body must be bytes or an AsyncByteStream")
        if length is not None:
            return stream, int(length), b""
        return stream, None, b"Transfer-Encoding: chunked" if coding is None else b""
    body = b"".join(stream)
    if coding is not None:
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n", None, b""
    if length is not None and int(length) != len(body):
        raise httpx2.LocalProtocolError(f"Content-Length is {int(length)}, but the body has {len(body)} bytes")
    if length is None and (body or request.method in _BODY_EXPECTED):
        return body, None, b"Content-Length: %d" % len(body)
    return body, None, b""


@lru_cache(maxsize=1024)
def _lowered(name: bytes) -> bytes:
    if _TOKEN.fullmatch(name) is None:
        raise httpx2.LocalProtocolError(f"{name!r} cannot be sent as a header name or method")
    return name.lower()


@cache
def _system_trust() -> ssl.SSLContext:
    context = httpx2.create_ssl_context()  # the system's authorities, or those SSL_CERT_FILE names; about 20 ms
    context.set_alpn_protocols(["http/1.1"])
    return context


def _own_trust(ca_file: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ca_file: {ca_file} is not a readable PEM file of certificates: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    return context
