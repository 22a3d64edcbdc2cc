"""What a call and a streamed chunk cost: `python tests/gateway/transport_bench.py [seconds]` prints CPU microseconds.

Three processes: a provider, a bare relay (uvicorn, uvloop, httptools) around the transport, and the load.  Counted
is the relay's own CPU time, so that other work on the machine disturbs little.
"""

import asyncio
import multiprocessing
import resource
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import uvicorn
import uvloop

from gateway.transport import Limits, Transport

UNARY = b'{"id":"chatcmpl-1","object":"chat.completion","choices":[{"message":{"content":"' + b"word " * 80 + b'"}}]}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\nserver: x\r\n"
ANSWER += b"x-request-id: 1\r\nx-ratelimit-remaining: 9\r\ncontent-length: %d\r\n\r\n%b" % (len(UNARY), UNARY)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"delta":{"content":"word "}}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"word " * 60 + b'"}]}'
GAP = 0.05  # seconds between two chunks of a stream


class Provider(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.wire, self.rest = transport, b""

    def data_received(self, data: bytes) -> None:
        self.rest += data
        if not self.rest.endswith(BODY):
            return
        if b" /stream " in self.rest:
            self.wire.write(STREAM)
            asyncio.get_running_loop().call_later(GAP, self.tick)
        else:
            self.wire.write(ANSWER)
        self.rest = b""

    def tick(self) -> None:
        if not self.wire.is_closing():
            self.wire.write(CHUNK)
            asyncio.get_running_loop().call_later(GAP, self.tick)


def provide(sock: socket.socket) -> None:
    async def run() -> None:
        await (await asyncio.get_running_loop().create_server(Provider, sock=sock)).serve_forever()

    uvloop.run(run())


class Relay:
    """kind: `none` answers by itself; `ours` and `httpx2` are transports."""

    def __init__(self, kind: str, port: int, spent: Any) -> None:
        self.kind, self.spent, self.chunks = kind, spent, 0
        self.urls = {path: httpx2.URL(f"http://127.0.0.1:{port}{path}") for path in ("/unary", "/stream")}
        self.headers = [
            (b"host", b"127.0.0.1"),
            (b"authorization", b"Bearer x"),
            (b"content-type", b"application/json"),
        ]
        self.headers += [(b"accept", b"*/*"), (b"user-agent", b"bench"), (b"content-length", b"%d" % len(BODY))]
        self.transport: httpx2.AsyncBaseTransport | None = None

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["path"] == "/spent":
            used = resource.getrusage(resource.RUSAGE_SELF)
            self.spent[0], self.spent[1] = used.ru_utime + used.ru_stime, self.chunks
        body = (await receive())["body"]
        if self.kind == "none" or scope["path"] == "/spent":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})
            return
        if self.transport is None:
            limits = httpx2.Limits(max_connections=512, max_keepalive_connections=512)
            self.transport = Transport(Limits()) if self.kind == "ours" else httpx2.AsyncHTTPTransport(limits=limits)
        request = httpx2.Request("POST", self.urls[scope["path"]], headers=self.headers, stream=httpx2.ByteStream(body))
        answer = await self.transport.handle_async_request(request)
        await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.headers.raw})
        try:
            async for piece in answer.stream:
                self.chunks += 1
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        finally:
            await answer.stream.aclose()
        await send({"type": "http.response.body", "body": b""})


def relay(kind: str, sock: socket.socket, port: int, spent: Any) -> None:
    config = uvicorn.Config(
        Relay(kind, port, spent), loop="uvloop", http="httptools", log_level="critical", lifespan="off"
    )
    uvloop.run(uvicorn.Server(config).serve(sockets=[sock]))


async def ask(port: int, path: str) -> None:
    """One connection that asks again as soon as it is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    call = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(BODY), BODY)
    try:
        while True:
            writer.write(call)
            head = await reader.readuntil(b"\r\n\r\n")
            if b"chunked" in head.lower():
                while await reader.read(65536):
                    pass
                return
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            COUNT[0] += 1
    finally:
        writer.close()


COUNT = [0]


async def measure(port: int, spent: Any, path: str, clients: int, seconds: float) -> tuple[float, float]:
    """CPU microseconds per call (or chunk), and calls (chunks) per second."""
    tasks = [asyncio.create_task(ask(port, path)) for _ in range(clients)]
    await asyncio.sleep(0.7)
    looks = []
    for pause in (seconds, 0):
        probe = asyncio.create_task(ask(port, "/spent"))
        await asyncio.sleep(0.02)
        probe.cancel()
        looks.append((spent[0], spent[1] if path == "/stream" else COUNT[0], time.perf_counter()))
        await asyncio.sleep(pause)
    for task in tasks:
        task.cancel()
    (cpu, count, at), (cpu2, count2, at2) = looks
    return (cpu2 - cpu) / (count2 - count) * 1e6, (count2 - count) / (at2 - at)


def main(seconds: float) -> None:
    context = multiprocessing.get_context("fork")
    socks = [socket.create_server(("127.0.0.1", 0), backlog=512) for _ in range(4)]
    ports = [sock.getsockname()[1] for sock in socks]
    spent = {kind: context.Array("d", 2) for kind in ("none", "ours", "httpx2")}
    started = [context.Process(target=provide, args=(socks[0],), daemon=True)]
    for kind, sock in zip(spent, socks[1:], strict=True):
        started.append(context.Process(target=relay, args=(kind, sock, ports[0], spent[kind]), daemon=True))
    for process in started:
        process.start()
    time.sleep(1)
    for kind, port in zip(spent, ports[1:], strict=True):
        cost, rate = uvloop.run(measure(port, spent[kind], "/unary", 32, seconds))
        print(f"{kind:7} unary  {cost:7.1f} us CPU per call   {rate:8.0f} calls/s")
    for kind, port in zip(spent, ports[1:], strict=True):
        if kind != "none":
            cost, rate = uvloop.run(measure(port, spent[kind], "/stream", 200, seconds))
            print(f"{kind:7} stream {cost:7.1f} us CPU per chunk  {rate:8.0f} chunks/s")
    for process in reversed(started):
        process.terminate()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0)
