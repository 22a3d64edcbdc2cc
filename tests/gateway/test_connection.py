"""Connections: stale ones, uploads, early answers, bytes nobody asked for."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from gateway import answer
from gateway.transport import Limits, Transport
from tests.gateway.transport_provider import HEAD, LOOPS, OK, Provider, Visit, answers, ask, call, once, read, settled

__all__ = ["LOOPS"]

TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig"


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with Transport(Limits(max_connections=4, first_byte=3, idle=3)) as made:
        yield made


def leaves_after(*said: bytes, wait: float = 0.0, reset: bool = False):
    """Answers a connection's first request; says `said` to the second, then is gone."""

    async def script(visit: Visit) -> None:
        await visit.heard()
        await visit.say(OK)
        await visit.heard()
        await asyncio.sleep(wait)
        await visit.say(*said)
        if reset:
            visit.writer.transport.abort()

    return script


@pytest.mark.parametrize("reset", [False, True])
async def test_a_call_that_met_a_stale_connection_is_sent_again_over_a_new_one(transport, reset):
    async with Provider(leaves_after(reset=reset)) as provider:
        assert await ask(transport, provider.url) == b"ok"
        assert await ask(transport, provider.url) == b"ok"
        assert len(provider.visits) == 2


async def test_all_other_kept_connections_being_stale_too_does_no_harm(transport):
    async with Provider(leaves_after()) as provider:
        assert await asyncio.gather(*(ask(transport, provider.url) for _ in range(4))) == [b"ok"] * 4
        assert transport.idle == 4
        assert await ask(transport, provider.url) == b"ok"
        assert len(provider.visits) == 5


async def test_a_new_connection_that_ends_without_an_answer_is_not_tried_again(transport):
    async with Provider(once(b"")) as provider:
        with pytest.raises(httpx2.RemoteProtocolError, match="without an answer"):
            await ask(transport, provider.url)
        assert len(provider.visits) == 1


async def test_a_call_is_not_sent_again_when_a_byte_of_its_answer_arrived(transport):
    async with Provider(leaves_after(b"H")) as provider:
        await ask(transport, provider.url)
        with pytest.raises(httpx2.RemoteProtocolError):
            await ask(transport, provider.url)
        assert len(provider.visits) == 1


async def test_a_call_is_not_sent_again_when_the_provider_had_time_to_work_on_it(transport, monkeypatch):
    monkeypatch.setattr(answer, "STALE_SECONDS", 0.1)
    async with Provider(leaves_after(wait=0.2)) as provider:
        await ask(transport, provider.url)
        with pytest.raises(httpx2.RemoteProtocolError):
            await ask(transport, provider.url)
        assert len(provider.visits) == 1


async def test_a_call_is_not_sent_again_when_its_body_was_a_stream(transport):
    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    async with Provider(leaves_after()) as provider:
        await ask(transport, provider.url)
        with pytest.raises(httpx2.RemoteProtocolError):
            await ask(transport, provider.url, content=body())
        assert len(provider.visits) == 1


class Upload:
    """A body that never ends, and notes what became of it."""

    def __init__(self, pause: float = 0.001) -> None:
        self.pause, self.pieces, self.at_rest = pause, 0, False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while True:
                self.pieces += 1
                yield b"x" * 65536
                await asyncio.sleep(self.pause)
        finally:
            self.at_rest = True


@pytest.mark.parametrize("pause", [0.001, 9])
async def test_an_early_answer_arrives_while_the_upload_goes_on_and_ends_it(transport, pause):
    async def script(visit: Visit) -> None:
        await visit.reader.readexactly(1000)
        await visit.say(TOO_LARGE)
        await visit.gone()

    upload = Upload(pause)
    async with Provider(script) as provider:
        response = await call(transport, provider.url, content=upload)
        assert (response.status_code, await read(response)) == (413, b"big")
        assert upload.at_rest
        assert (transport.active, transport.idle) == (0, 0)  # half a request was sent: of no further use
        assert await settled(lambda: provider.open == 0)


async def test_an_early_answer_arrives_while_held_bytes_are_being_sent(transport):
    async def script(visit: Visit) -> None:
        await visit.reader.readexactly(1000)
        await visit.say(TOO_LARGE)
        await asyncio.sleep(9)

    async with Provider(script) as provider:
        response = await call(transport, provider.url, content=b"x" * 30_000_000)
        assert (response.status_code, await read(response)) == (413, b"big")
        assert (transport.active, transport.idle) == (0, 0)


async def test_request_and_answer_may_run_side_by_side(transport):
    heard = asyncio.Event()

    async def script(visit: Visit) -> None:
        await visit.reader.readuntil(b"1\r\na\r\n")
        await visit.say(HEAD + b"1\r\nA\r\n")
        await visit.reader.readuntil(b"1\r\nb\r\n0\r\n\r\n")
        await visit.say(b"1\r\nB\r\n0\r\n\r\n")
        await visit.gone()

    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        await heard.wait()
        yield b"b"

    async with Provider(script) as provider:
        response = await call(transport, provider.url, content=body())
        stream = aiter(response.stream)
        assert await anext(stream) == b"A"
        heard.set()
        assert await anext(stream) == b"B"
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert transport.idle == 1


async def test_an_upload_is_held_back_while_the_provider_does_not_read(transport):
    async def script(visit: Visit) -> None:
        await asyncio.sleep(9)

    upload = Upload(0)
    async with Provider(script) as provider:
        task = asyncio.create_task(call(transport, provider.url, content=upload))
        await asyncio.sleep(0.3)
        held = upload.pieces
        await asyncio.sleep(0.1)
        assert upload.pieces == held < 256  # 16 MiB: what the sockets' own buffers take
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert upload.at_rest
        assert transport.active == 0


async def test_an_upload_that_breaks_breaks_the_call_with_its_own_error(transport):
    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        raise LookupError("the caller hung up")

    async with Provider(answers(OK)) as provider:
        with pytest.raises(LookupError, match="the caller hung up"):
            await ask(transport, provider.url, content=body())
        assert await settled(lambda: provider.open == 0)
        assert transport.active == 0


@pytest.mark.parametrize(("length", "word"), [("3", "longer"), ("9", "shorter")])
async def test_an_upload_of_another_length_than_promised_is_refused_and_cut(transport, length, word):
    async def body() -> AsyncIterator[bytes]:
        yield b"abcd"

    async with Provider(answers(OK)) as provider:
        with pytest.raises(httpx2.LocalProtocolError, match=word):
            await ask(transport, provider.url, content=body(), headers={"content-length": length})
        assert await settled(lambda: provider.open == 0)


@pytest.mark.parametrize("size", [0, 100, 20_000, 100_000, 5_000_000])
async def test_a_body_of_any_size_arrives_whole_and_its_connection_is_kept(transport, size):
    heard: list[bytes] = []

    async def script(visit: Visit) -> None:
        while True:
            heard.append(await visit.heard())
            await visit.say(OK)

    body = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    async with Provider(script) as provider:
        for _ in range(2):
            assert await ask(transport, provider.url, content=body[:size]) == b"ok"
        assert len(provider.visits) == 1
    assert [said.partition(b"\r\n\r\n")[2] for said in heard] == [body[:size]] * 2


async def test_bytes_on_an_unused_connection_cost_it(transport):
    async def script(visit: Visit) -> None:
        await visit.heard()
        await visit.say(OK)
        await asyncio.sleep(0.05)
        await visit.say(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
        await visit.gone()

    async with Provider(script) as provider:
        assert await ask(transport, provider.url) == b"ok"
        assert transport.idle == 1
        assert await settled(lambda: transport.idle == 0)
        assert await ask(transport, provider.url) == b"ok"


async def test_a_request_that_says_close_closes(transport):
    async with Provider(answers(OK)) as provider:
        assert await ask(transport, provider.url, headers={"connection": "close"}) == b"ok"
        assert (transport.active, transport.idle) == (0, 0)
