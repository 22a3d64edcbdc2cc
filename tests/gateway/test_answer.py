"""Answers: cut anywhere, late, endless, too large, slowly read, given up."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable

import httpx2
import pytest

from gateway.transport import Limits, Transport
from tests.gateway.transport_provider import HEAD, LOOPS, OK, Provider, Visit, answers, ask, call, once, read, settled

__all__ = ["LOOPS"]

CHUNKED = HEAD + b"5;ext=1\r\ndata:\r\n6\r\n \xc3\xa9\r\n\r\r\n1\r\n\n\r\n0\r\nx-trailer: 1\r\n\r\n"
CUT = {
    "chunked": (CHUNKED, b"data: \xc3\xa9\r\n\r\n"),
    "length": (
        b"HTTP/1.1 103 Early\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 9\r\nx:\r\n\r\ndata: a\r\n",
        b"data: a\r\n",
    ),
}


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with Transport(Limits(max_connections=4, first_byte=3, idle=3)) as made:
        yield made


@pytest.mark.parametrize("kind", CUT)
async def test_an_answer_reads_the_same_wherever_the_network_cuts_it(transport, kind):
    said, body = CUT[kind]
    cuts = iter(range(1, len(said)))

    async def script(visit: Visit) -> None:
        visit.writer.get_extra_info("socket").setsockopt(6, 1, 1)
        while True:
            await visit.heard()
            at = next(cuts)
            await visit.say(said[:at])
            await asyncio.sleep(0.001)
            await visit.say(said[at:])

    async with Provider(script) as provider:
        for at in range(1, len(said)):
            assert await ask(transport, provider.url) == body, at
        assert len(provider.visits) == 1  # each answer was seen to end where it ends


@pytest.mark.parametrize("kind", CUT)
async def test_an_answer_may_come_byte_by_byte(transport, kind):
    said, body = CUT[kind]
    async with Provider(answers(*(said[i : i + 1] for i in range(len(said))))) as provider:
        assert [await ask(transport, provider.url) for _ in range(3)] == [body] * 3
        assert len(provider.visits) == 1


async def test_what_has_arrived_comes_as_one_piece(transport):
    async with Provider(once(HEAD + b"".join(b"1\r\nx\r\n" for _ in range(500)) + b"0\r\n\r\n")) as provider:
        response = await call(transport, provider.url)
        assert [piece async for piece in response.stream] == [b"x" * 500]


class Lateness:
    """How late the event loop itself was at worst, in seconds: the machine may have other work than this test."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def watch(self) -> None:
        while True:
            due = time.perf_counter() + 0.005
            await asyncio.sleep(0.005)
            self.worst = max(self.worst, time.perf_counter() - due)


async def takes(seconds: float, kind: type[Exception], word: str, awaitable: Awaitable[object]) -> None:
    """It fails after that time, within 10 %, and the message names the setting."""
    loop = Lateness()
    watch = asyncio.create_task(loop.watch())
    started = time.perf_counter()
    with pytest.raises(kind, match=word):
        await awaitable
    took = time.perf_counter() - started
    watch.cancel()
    assert seconds * 0.99 <= took <= seconds * 1.1 + 2 * loop.worst, word  # late twice: to look, and to tell


async def test_each_time_out_fires_within_a_tenth_of_its_value():
    async def drip(visit: Visit) -> None:
        await visit.heard()
        await visit.say(HEAD)
        while True:
            await visit.say(b"1\r\nx\r\n")
            await asyncio.sleep(0.1)

    async def deaf(visit: Visit) -> None:
        await asyncio.sleep(9)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    t = 0.8
    async with (
        Provider(answers(OK, after=9)) as silent,
        Provider(answers(HEAD + b"1\r\nx\r\n")) as stalled,
        Provider(answers(b"HTTP/1.1 200 OK\r\nx-half: ")) as half,
        Provider(answers(b"HTTP/1.1 103 Early Hints\r\n\r\n")) as early,
        Provider(drip) as dripping,
        Provider(deaf) as unheard,
        Transport(Limits(first_byte=t)) as first,
        Transport(Limits(idle=t)) as idle,
        Transport(Limits(total=t)) as total,
        Transport(Limits(pool=t, max_connections=1)) as pool,
    ):
        await call(pool, stalled.url)
        await asyncio.gather(
            takes(t, httpx2.ReadTimeout, "first_byte", ask(first, silent.url)),
            takes(t, httpx2.ReadTimeout, "first_byte", ask(first, early.url)),
            takes(t, httpx2.ReadTimeout, "idle", ask(idle, stalled.url)),
            takes(t, httpx2.ReadTimeout, "idle", ask(idle, half.url)),
            takes(t, httpx2.ReadTimeout, "total", ask(total, dripping.url)),
            takes(t, httpx2.ReadTimeout, "total", ask(total, silent.url)),
            takes(t, httpx2.PoolTimeout, "pool_seconds", ask(pool, stalled.url)),
        )
        await asyncio.gather(  # by themselves: filling the sockets' buffers keeps the event loop from the others
            takes(t, httpx2.WriteTimeout, "idle", ask(idle, unheard.url, content=b"x" * 16_000_000)),
            takes(t, httpx2.WriteTimeout, "idle", ask(idle, unheard.url, content=endless())),
        )
        assert (first.active, idle.active, total.active, pool.active) == (0, 0, 0, 1)


async def test_a_long_stream_lives_on_while_its_pieces_come_in_time():
    async def script(visit: Visit) -> None:
        await visit.heard()
        await visit.say(HEAD)
        for _ in range(16):
            await asyncio.sleep(0.03)
            await visit.say(b"1\r\nx\r\n")
        await visit.say(b"0\r\n\r\n")

    async with Provider(script) as provider, Transport(Limits(first_byte=0.15, idle=0.15)) as transport:
        assert await ask(transport, provider.url) == b"x" * 16


async def test_a_slow_reader_is_not_the_providers_fault():
    async with Provider(once(HEAD + b"1\r\nx\r\n0\r\n\r\n")) as provider, Transport(Limits(idle=0.1)) as transport:
        response = await call(transport, provider.url)
        await asyncio.sleep(0.3)
        assert await read(response) == b"x"


async def test_first_byte_is_counted_from_the_requests_last_byte():
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(5):
            await asyncio.sleep(0.1)
            yield b"x"

    async with Provider(answers(OK, after=0.1)) as provider, Transport(Limits(first_byte=0.3)) as transport:
        assert await ask(transport, provider.url, content=slow()) == b"ok"


async def test_a_long_body_may_take_its_time_as_long_as_some_of_it_leaves():
    async def script(visit: Visit) -> None:
        while await visit.reader.read(2**19):
            await asyncio.sleep(0.03)

    async with Provider(script) as provider, Transport(Limits(first_byte=3, idle=0.25)) as transport:
        heard = asyncio.create_task(call(transport, provider.url, content=b"x" * 20_000_000))
        await asyncio.sleep(0.5)
        assert not heard.done()  # longer than idle, and not yet all of it
        heard.cancel()
        with pytest.raises(asyncio.CancelledError):
            await heard


async def test_first_byte_and_not_idle_is_waited_after_a_long_body():
    async def script(visit: Visit) -> None:
        await visit.heard()
        await asyncio.sleep(0.4)
        await visit.say(OK)

    async with Provider(script) as provider, Transport(Limits(first_byte=3, idle=0.1)) as transport:
        assert await ask(transport, provider.url, content=b"x" * 900_000) == b"ok"


async def test_memory_stays_bounded_when_the_provider_is_faster_than_the_reader(transport):
    total, sent = 64 * 2**20, [0]

    async def script(visit: Visit) -> None:
        await visit.heard()
        await visit.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while sent[0] < total:
            await visit.say(b"x" * 2**18)
            sent[0] += 2**18

    async with Provider(script) as provider:
        response = await call(transport, provider.url)
        await asyncio.sleep(0.3)
        held = sent[0]
        await asyncio.sleep(0.1)
        assert sent[0] == held < 16 * 2**20  # what the sockets' own buffers take, and no more
        sizes = [len(piece) async for piece in response.stream]
        assert sum(sizes) == total
        assert max(sizes) <= 2**16 + 2**18  # high water, and one read on top
        assert transport.idle == 1  # the paused socket is read again: it can be kept


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (b"HTTP/1.1 200 OK\r\nx: " + b"x" * 66_000 + b"\r\ncontent-length: 0\r\n\r\n", "head"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 12_000 + b"\r\n", "head"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 4_000, "head"),
        (HEAD + b"1;" + b"x" * 400_000, "framing"),
        (HEAD + b"1\r\na\r\n0\r\n" + b"x-t: y\r\n" * 60_000, "framing"),
        (b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", "101"),
        (b"HTTP/1.1 099 What\r\n\r\n", "99"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n", "whitespace"),
    ],
    ids=["long line", "many lines", "endless 100", "chunk size", "trailers", "101", "099", "two framings", "folded"],
)
async def test_what_is_no_answer_or_has_no_end_is_an_error_and_drops_the_connection(transport, said, word):
    async def script(visit: Visit) -> None:
        await visit.heard()
        await visit.say(said)
        await visit.gone()

    async with Provider(script) as provider:
        with pytest.raises(httpx2.RemoteProtocolError, match=word):
            await ask(transport, provider.url)
        assert await settled(lambda: provider.open == 0)
        assert (transport.active, transport.idle) == (0, 0)


async def test_what_came_before_the_break_is_handed_out_and_then_the_error(transport):
    async with Provider(once(HEAD + b"3\r\nabc\r\n")) as provider:
        response = await call(transport, provider.url)
        await settled(lambda: provider.open == 0)
        stream = aiter(response.stream)
        assert await anext(stream) == b"abc"
        for _ in range(2):  # it never turns into an end
            with pytest.raises(httpx2.RemoteProtocolError):
                await anext(stream)


@pytest.mark.parametrize("surplus", [b"more", OK, b"\x00"])
async def test_bytes_behind_a_whole_answer_cost_the_connection_not_the_answer(transport, surplus):
    async with Provider(answers(OK + surplus)) as provider:
        for number in (1, 2):
            assert await ask(transport, provider.url) == b"ok"
            assert len(provider.visits) == number


async def test_a_body_behind_heads_answer_is_never_read_as_the_next_answer(transport):
    async with Provider(answers(OK)) as provider:
        assert await ask(transport, provider.url, method="HEAD") == b""
        assert await ask(transport, provider.url) == b"ok"
        assert len(provider.visits) == 2


async def test_an_answer_closed_by_another_task_is_not_read_as_complete(transport):
    async with Provider(answers(HEAD + b"1\r\nx\r\n")) as provider:
        response = await call(transport, provider.url)
        reading = asyncio.create_task(read(response))
        await asyncio.sleep(0.02)
        await response.stream.aclose()
        with pytest.raises(httpx2.StreamClosed):
            await reading
        assert transport.active == 0


async def test_a_cancelled_read_cuts_the_connection_at_once(transport):
    async with Provider(answers(HEAD + b"1\r\nx\r\n")) as provider:
        response = await call(transport, provider.url)
        stream = aiter(response.stream)
        assert await anext(stream) == b"x"
        reading = asyncio.ensure_future(anext(stream))  # nobody closes the answer afterwards
        await asyncio.sleep(0.02)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert (transport.active, transport.idle) == (0, 0)
        assert await settled(lambda: provider.open == 0, 0.2)
