"""What every transport does, ours and httpx2's own: the same script, the same outcome."""

import asyncio
import gzip
from collections.abc import AsyncIterator

import httpx2
import pytest

from gateway.transport import Limits, Transport
from tests.gateway.transport_provider import HEAD, LOOPS, OK, Provider, Visit, answers, ask, call, once, read, settled

__all__ = ["LOOPS"]

SECONDS = {"connect": 2.0, "read": 0.2, "write": 2.0, "pool": 0.2}
TRUST = httpx2.create_ssl_context()  # once: it takes a tenth of a second
PATIENT = {"timeout": {**SECONDS, "read": 5.0}}


@pytest.fixture(params=["ours", "httpx2"])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[httpx2.AsyncBaseTransport]:
    """At most two connections."""
    made: httpx2.AsyncBaseTransport
    if request.param == "ours":
        made = Transport(Limits(max_connections=2, pool=0.2, connect=2.0, first_byte=0.2, idle=0.2))
    else:
        made = httpx2.AsyncHTTPTransport(verify=TRUST, limits=httpx2.Limits(max_connections=2))
    async with made:
        yield made


ZIPPED = gzip.compress(b"hello")
LONG = b"x" * 70_000

# name, method, the answer's bytes, and what comes of it: (status, body) or an error
WHOLE = [
    ("a body with its length", "POST", OK, (200, b"ok")),
    ("an empty body", "POST", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", (200, b"")),
    ("chunks", "POST", HEAD + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", (200, b"abcde")),
    ("chunks with extensions and trailers", "POST", HEAD + b"3;a=b\r\nabc\r\n0\r\nx-t: 1\r\n\r\n", (200, b"abc")),
    ("a body until the close", "POST", b"HTTP/1.1 200 OK\r\n\r\nabc", (200, b"abc")),
    ("a body until the close over HTTP/1.0", "POST", b"HTTP/1.0 200 OK\r\n\r\nabc", (200, b"abc")),
    ("no content", "POST", b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
    ("not modified, with a length", "GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", (304, b"")),
    ("HEAD, with a length", "HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", (200, b"")),
    ("HEAD, chunked", "HEAD", HEAD, (200, b"")),
    ("100 first", "POST", b"HTTP/1.1 100 Continue\r\n\r\n" + OK, (200, b"ok")),
    ("103 first, with headers", "POST", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, (200, b"ok")),
    ("a redirect, not followed", "POST", b"HTTP/1.1 307 T\r\nlocation: /\r\ncontent-length: 1\r\n\r\nx", (307, b"x")),
    ("an error with a body", "POST", b"HTTP/1.1 529 Overloaded\r\ncontent-length: 4\r\n\r\nbusy", (529, b"busy")),
    (
        "gzip, left as it is",
        "POST",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b" % (len(ZIPPED), ZIPPED),
        (200, ZIPPED),
    ),
    ("a long body", "POST", b"HTTP/1.1 200 OK\r\ncontent-length: 70000\r\n\r\n" + LONG, (200, LONG)),
    ("a body that ends short", "POST", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", httpx2.RemoteProtocolError),
    ("chunks that end short", "POST", HEAD + b"3\r\nabc\r\n", httpx2.RemoteProtocolError),
    ("a chunk size that is none", "POST", HEAD + b"zz\r\nabc\r\n0\r\n\r\n", httpx2.RemoteProtocolError),
    ("a chunk longer than it says", "POST", HEAD + b"2\r\nabc\r\n0\r\n\r\n", httpx2.RemoteProtocolError),
    ("a length that is none", "POST", b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", httpx2.RemoteProtocolError),
    ("two lengths", "POST", OK.replace(b"\r\n\r\n", b"\r\ncontent-length: 3\r\n\r\n"), httpx2.RemoteProtocolError),
    ("garbage", "POST", b"\x16\x03\x01 what is this\r\n\r\n", httpx2.RemoteProtocolError),
    ("nothing", "POST", b"", httpx2.RemoteProtocolError),
    ("half a head", "POST", b"HTTP/1.1 200 OK\r\ncontent-le", httpx2.RemoteProtocolError),
    ("a head without end", "POST", b"HTTP/1.1 200 OK\r\nx: " + LONG * 3, httpx2.RemoteProtocolError),
]


@pytest.mark.parametrize(("method", "answer", "outcome"), [w[1:] for w in WHOLE], ids=[w[0] for w in WHOLE])
async def test_an_answer_comes_out_as_it_was_sent_or_as_an_error(transport, method, answer, outcome):
    async with Provider(once(answer)) as provider:
        if isinstance(outcome, tuple):
            response = await call(transport, provider.url, method=method, extensions=PATIENT)
            assert (response.status_code, await read(response)) == outcome
        else:
            with pytest.raises(outcome):
                await ask(transport, provider.url, method=method, extensions=PATIENT)


async def test_headers_keep_their_order_their_repetitions_and_empty_values(transport):
    said = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nX-Empty:\r\nset-cookie: b=2\r\ncontent-length: 0\r\n\r\n"
    async with Provider(once(said)) as provider:
        response = await call(transport, provider.url, extensions=PATIENT)
        assert await read(response) == b""
    lowered = [(name.lower(), value) for name, value in response.headers.raw]
    assert lowered[:3] == [(b"set-cookie", b"a=1"), (b"x-empty", b""), (b"set-cookie", b"b=2")]


async def test_a_connection_whose_answer_was_read_to_its_end_carries_the_next_call(transport):
    async with Provider(answers(OK)) as provider:
        for _ in range(3):
            assert await ask(transport, provider.url, extensions=PATIENT) == b"ok"
        assert len(provider.visits) == 1


@pytest.mark.parametrize(
    "answer",
    [OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), OK.replace(b"HTTP/1.1", b"HTTP/1.0")],
    ids=["connection: close", "HTTP/1.0"],
)
async def test_a_connection_that_the_provider_will_close_is_not_used_again(transport, answer):
    async with Provider(answers(answer)) as provider:
        for _ in range(2):
            assert await ask(transport, provider.url, extensions=PATIENT) == b"ok"
        assert len(provider.visits) == 2


async def test_an_answer_closed_before_its_end_closes_its_connection(transport):
    async with Provider(answers(HEAD + b"3\r\nabc\r\n")) as provider:
        response = await call(transport, provider.url, extensions=PATIENT)
        assert await anext(aiter(response.stream)) == b"abc"
        await response.aclose()
        assert await settled(lambda: provider.open == 0)
        await (await call(transport, provider.url, extensions=PATIENT)).aclose()
        assert len(provider.visits) == 2


async def test_a_kept_connection_that_the_provider_has_closed_is_replaced(transport):
    async with Provider(once(OK)) as provider:
        for number in (1, 2, 3):
            assert await ask(transport, provider.url, extensions=PATIENT) == b"ok"
            assert await settled(lambda: provider.open == 0)
            assert len(provider.visits) == number


async def test_a_call_waits_for_a_free_connection_and_no_longer_than_it_may(transport):
    async with Provider(answers(HEAD + b"3\r\nabc\r\n")) as provider:
        busy = [await call(transport, provider.url, extensions=PATIENT) for _ in range(2)]
        with pytest.raises(httpx2.PoolTimeout):
            await call(transport, provider.url, extensions={"timeout": SECONDS})
        waits = asyncio.create_task(call(transport, provider.url, extensions=PATIENT))
        await asyncio.sleep(0.05)
        await busy[0].aclose()
        third = await waits
        await third.aclose()
        await busy[1].aclose()


async def test_nobody_listening_is_a_connect_error(transport):
    async with Provider(once(OK)) as provider:
        url = provider.url
    with pytest.raises(httpx2.ConnectError):
        await call(transport, url, extensions=PATIENT)


async def test_silence_is_a_read_time_out_before_the_head_and_after_it(transport):
    async with Provider(answers(OK, after=9)) as provider:
        with pytest.raises(httpx2.ReadTimeout):
            await call(transport, provider.url, extensions={"timeout": SECONDS})
    async with Provider(answers(HEAD)) as provider:
        response = await call(transport, provider.url, extensions={"timeout": SECONDS})
        with pytest.raises(httpx2.ReadTimeout):
            await read(response)


async def pieces() -> AsyncIterator[bytes]:
    yield b"abc"
    await asyncio.sleep(0.01)
    yield b""
    yield b"defg"


@pytest.mark.parametrize("headers", [{}, {"content-length": "7"}], ids=["chunked", "with its length"])
async def test_a_streamed_request_arrives_whole(transport, headers):
    heard: list[bytes] = []

    async def script(visit: Visit) -> None:
        heard.append(await visit.heard())
        await visit.say(OK)

    async with Provider(script) as provider:
        assert await ask(transport, provider.url, content=pieces(), headers=headers, extensions=PATIENT) == b"ok"
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert body == b"abcdefg"
    assert (b"chunked" in head.lower()) is (not headers)


@pytest.mark.parametrize(
    "header", [("x", "a\r\nb: c"), ("x\r\ny", "a"), ("x", "a\0b"), ("x y", "a")], ids=["CRLF", "name", "NUL", "space"]
)
async def test_a_header_that_would_write_another_is_refused_and_nothing_is_sent(transport, header):
    async with Provider(answers(OK)) as provider:
        with pytest.raises(httpx2.LocalProtocolError):
            await call(transport, provider.url, headers=[header], extensions=PATIENT)
        assert await ask(transport, provider.url, extensions=PATIENT) == b"ok"


async def test_a_cancelled_call_closes_its_connection_and_leaves_its_place_to_others(transport):
    async with Provider(answers(OK, after=0.1)) as provider:
        for _ in range(6):
            task = asyncio.create_task(call(transport, provider.url, extensions=PATIENT))
            await asyncio.sleep(0.03)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await settled(lambda: provider.open == 0)
        done = await asyncio.gather(*(ask(transport, provider.url, extensions=PATIENT) for _ in range(2)))
        assert done == [b"ok", b"ok"]


async def test_different_origins_get_different_connections(transport):
    async with Provider(answers(OK)) as one, Provider(answers(OK)) as two:
        assert await ask(transport, one.url, extensions=PATIENT) == b"ok"
        assert await ask(transport, two.url, extensions=PATIENT) == b"ok"
        assert (len(one.visits), len(two.visits)) == (1, 1)


async def test_it_works_beneath_an_httpx2_client(transport):
    async with Provider(answers(HEAD + b"3\r\nabc\r\n0\r\n\r\n")) as provider:
        client = httpx2.AsyncClient(transport=transport)
        assert (await client.post(provider.url, json={})).text == "abc"
        async with client.stream("POST", provider.url, json={}) as response:
            assert [line async for line in response.aiter_lines()] == ["abc"]
