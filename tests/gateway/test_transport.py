"""The transport as a whole: requests as they are written, TLS, and what cancelling leaves behind."""

import asyncio
import random
import ssl
import threading
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import httpx2
import pytest
import trustme
import uvloop

from gateway.transport import Limits, Transport, write_call
from tests.gateway.transport_provider import LOOPS, OK, Provider, Visit, answers, ask, call, settled

__all__ = ["LOOPS"]

URL = "http://provider.example:81/v1/chat?a=b%20c"


def written(request: httpx2.Request) -> bytes:
    said = write_call(request)
    assert isinstance(said.body, bytes)
    return said.head + said.body


def test_a_request_is_written_as_its_headers_say():
    request = httpx2.Request("POST", URL, headers=[("Authorization", "Bearer x")], content=b"{}")
    lines = [b"POST /v1/chat?a=b%20c HTTP/1.1", b"Host: provider.example:81", b"Authorization: Bearer x"]
    assert written(request) == b"\r\n".join([*lines, b"Content-Length: 2", b"", b"{}"])


def test_a_request_made_of_parts_gets_the_host_and_framing_it_lacks():
    bare = httpx2.Request("POST", URL, stream=httpx2.ByteStream(b"{}"))
    lines = [b"POST /v1/chat?a=b%20c HTTP/1.1", b"Host: provider.example:81", b"Content-Length: 2", b"", b"{}"]
    assert written(bare) == b"\r\n".join(lines)
    empty = httpx2.Request("PUT", "http://provider.example", stream=httpx2.ByteStream(b""))
    assert written(empty) == b"PUT / HTTP/1.1\r\nHost: provider.example\r\nContent-Length: 0\r\n\r\n"
    get = httpx2.Request("GET", "http://[::1]:8/", stream=httpx2.ByteStream(b""))
    assert written(get) == b"GET / HTTP/1.1\r\nHost: [::1]:8\r\n\r\n"


@pytest.mark.parametrize(("body", "framed"), [(b"{}", b"2\r\n{}\r\n0\r\n\r\n"), (b"", b"0\r\n\r\n")])
def test_bytes_are_chunked_where_the_request_says_so(body, framed):
    request = httpx2.Request("POST", URL, headers={"transfer-encoding": "chunked"}, content=body)
    assert written(request).partition(b"\r\n\r\n")[2] == framed


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("POST", [("content-length", "3")]),
        ("POST", [("content-length", "+2")]),
        ("POST", [("content-length", "2"), ("content-length", "2")]),
        ("POST", [("content-length", "2"), ("transfer-encoding", "chunked")]),
        ("POST", [("transfer-encoding", "gzip, chunked")]),
        ("POST", [("host", "a"), ("Host", "b")]),
        ("POST", [("x", "a\nb")]),
        ("POST", [("x", "a\rb")]),
        ("POST", [("", "a")]),
        ("POST", [("x:y", "a")]),
        ("GET / HTTP/1.1\r\nx: y\r\n\r\nGET", []),
        ("GÉT", []),
    ],
)
def test_a_request_that_could_be_read_in_two_ways_is_refused(method, headers):
    with pytest.raises(httpx2.LocalProtocolError):
        write_call(httpx2.Request(method, URL, headers=headers, stream=httpx2.ByteStream(b"{}")))


def test_the_refusal_names_the_header_and_not_its_value():
    with pytest.raises(httpx2.LocalProtocolError, match="authorization") as refused:
        write_call(httpx2.Request("POST", URL, headers=[("authorization", "Bearer secret\n")], content=b""))
    assert "secret" not in str(refused.value)


async def test_send_frames_the_body_and_keeps_the_connection():
    heard: list[bytes] = []

    async def script(visit: Visit) -> None:
        while True:
            heard.append(await visit.heard())
            await visit.say(OK)

    async with Provider(script) as provider, Transport() as transport:
        url = httpx2.URL(provider.url)
        for body, length in ((b"{}", None), (b"", None), (stream(), None), (stream(), 300)):
            answer = await transport.send("POST", url, b"host: x\r\n", body, length)
            assert (answer.status, b"".join([piece async for piece in answer])) == (200, b"ok")
        assert len(provider.visits) == 1
    heads = [said.partition(b"\r\n\r\n")[0].split(b"\r\n") for said in heard]
    assert [head[:2] for head in heads] == [[b"POST /v1/chat HTTP/1.1", b"host: x"]] * 4
    framing = [b"content-length: 2", b"content-length: 0", b"transfer-encoding: chunked", b"content-length: 300"]
    assert [head[2:] for head in heads] == [[line] for line in framing]
    assert [len(said.partition(b"\r\n\r\n")[2]) for said in heard] == [2, 0, 300, 300]


async def test_only_http_and_https_are_spoken():
    async with Transport() as transport:
        with pytest.raises(httpx2.UnsupportedProtocol, match="ftp://"):
            await call(transport, "ftp://provider.example/")


async def test_proxies_in_the_environment_are_not_read(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with Provider(answers(OK)) as provider, Transport() as transport:
        assert await ask(transport, provider.url) == b"ok"


AUTHORITY = trustme.CA()


def speaks_as(*names: str, authority: trustme.CA = AUTHORITY, **more: object) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **more).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


async def test_tls_works_with_an_authority_of_ones_own_and_keeps_connections(ca_file):
    spoken: list[object] = []

    async def script(visit: Visit) -> None:
        spoken.append(visit.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await answers(OK)(visit)

    async with Provider(script, speaks_as("localhost")) as provider, Transport(ca_file=ca_file) as transport:
        body = b"x" * 3_000_000
        assert [await ask(transport, provider.url, content=body) for _ in range(3)] == [b"ok"] * 3
        assert spoken == ["http/1.1"]


async def test_tls_cut_short_is_an_error_and_a_cancelled_call_closes_the_socket(ca_file):
    async def script(visit: Visit) -> None:
        await visit.heard()
        await visit.say(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")

    async def mute(visit: Visit) -> None:
        await visit.heard()
        await visit.gone()

    tls = speaks_as("localhost")
    async with Provider(script, tls) as short, Provider(mute, tls) as silent, Transport(ca_file=ca_file) as transport:
        with pytest.raises(httpx2.RemoteProtocolError):
            await ask(transport, short.url)
        task = asyncio.create_task(call(transport, silent.url))
        assert await settled(lambda: silent.open == 1)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await settled(lambda: silent.open == 0, 0.2)


@pytest.mark.parametrize(
    "context",
    [
        lambda: speaks_as("localhost", authority=trustme.CA()),
        lambda: speaks_as("other.example"),
        lambda: speaks_as("localhost", not_after=datetime(2020, 1, 1)),
    ],
    ids=["an unknown authority", "another name", "expired"],
)
async def test_a_certificate_that_proves_nothing_is_refused_before_a_byte_is_sent(context, ca_file):
    async with Provider(answers(OK), context()) as provider, Transport(ca_file=ca_file) as transport:
        with pytest.raises(httpx2.ConnectError, match="certificate"):
            await call(transport, provider.url)
        assert provider.visits == []
        assert transport.active == 0


async def test_without_a_ca_file_the_systems_authorities_are_asked():
    async with Provider(answers(OK), speaks_as("localhost")) as provider, Transport() as transport:
        with pytest.raises(httpx2.ConnectError, match="certificate"):
            await call(transport, provider.url)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_file_that_cannot_be_used_stops_the_start(tmp_path, content):
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(ValueError, match=r"ca_file: .*ca\.pem"):
        Transport(ca_file=str(tmp_path / "ca.pem"))


class Watcher:
    """A provider in a thread of its own.  Slow at random; notes when the connection of each request was closed."""

    def __init__(self) -> None:
        self.closed: dict[bytes, float] = {}
        self.heard: set[bytes] = set()
        self.connections = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()))

    def __enter__(self) -> "Watcher":
        self._thread.start()
        self._ready.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with Provider(self._script) as provider:
            self.url, self.provider = provider.url, provider
            self._ready.set()
            await self._stop.wait()

    async def _script(self, visit: Visit) -> None:
        self.connections += 1
        name = b""
        try:
            while True:
                name = (await visit.heard()).partition(b"x-name: ")[2].partition(b"\r\n")[0]
                self.heard.add(name)
                watch = asyncio.create_task(visit.gone()) if name != b"plain" else None
                if watch is not None:  # from here on the connection says nothing more, or closes
                    await self._answer_slowly(visit, watch)
                await visit.say(OK)
        finally:
            self.closed[name] = time.perf_counter()

    async def _answer_slowly(self, visit: Visit, watch: "asyncio.Task[None]") -> None:
        pauses = [random.expovariate(500) for _ in range(3)]
        said = [
            b"HTTP/1.1 103 Early Hints\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n",
            b"\r\n1\r\nx\r\n",
        ]
        for pause, piece in zip(pauses, said, strict=True):
            if (await asyncio.wait({watch}, timeout=pause))[0] or visit.writer.transport.is_closing():
                raise ConnectionResetError
            visit.writer.write(piece)
        await watch
        raise ConnectionResetError


async def stream() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield b"x" * 100
        await asyncio.sleep(random.expovariate(1000))


async def abandon(transport: Transport, url: str, name: str) -> float:
    """A call that is cancelled somewhere, maybe twice; returns when.  Its answer never ends by itself."""
    content = stream() if random.random() < 0.2 else b"{}"
    request = httpx2.Request("POST", url, headers={"x-name": name}, content=content)
    head, body = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        response = await transport.handle_async_request(request)
        head.set()
        try:
            async for _ in response.stream:
                body.set()
        finally:
            await response.aclose()

    task = asyncio.create_task(run())
    try:
        await asyncio.wait_for(random.choice([head, body, asyncio.Event()]).wait(), random.expovariate(100))
    except TimeoutError:
        pass
    await asyncio.sleep(random.choice([0, random.expovariate(2000)]))
    while not task.done():
        task.cancel()
        if random.random() < 0.5:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait({task}, timeout=1)
    assert task.cancelled()
    return time.perf_counter()


async def test_ten_thousand_cancelled_calls_leave_no_connection_and_no_place_behind():
    random.seed(20)
    left: dict[bytes, float] = {}

    async def lane(number: int) -> None:
        for turn in range(200):
            name = f"{number}-{turn}"
            left[name.encode()] = await abandon(transport, watcher.url, name)

    with Watcher() as watcher:
        async with Transport(Limits(max_connections=10)) as transport:
            await asyncio.gather(*(lane(number) for number in range(50)))
            assert len(left) == 10_000
            assert (transport.active, transport.waiting) == (0, 0)
            started = time.perf_counter()
            plain = {"headers": {"x-name": "plain"}}
            assert await asyncio.gather(*(ask(transport, watcher.url, **plain) for _ in range(10))) == [b"ok"] * 10
            assert time.perf_counter() - started < 1
            assert transport.active == 0
            await asyncio.sleep(0.2)
            met = watcher.heard - {b"plain"}
            assert len(met) > 1000  # of those many had reached the provider when they were given up
            late = {name: watcher.closed.get(name, float("inf")) - left[name] for name in met}
            assert max(late.values()) < 1, max(late.items(), key=lambda item: item[1])
            assert watcher.provider.open == transport.idle
            print(f"\n{len(met)} calls met the provider; the latest close came {max(late.values()):.3f} s after")
