"""Calls through an httpx2 transport: the same bytes out, the same answer in, nothing left open."""

from __future__ import annotations

import asyncio
import time

import httpx2
import pytest

from gateway.adapter import Adapter
from gateway.settings import Timeouts
from tests.scripted import Asked, plain, scripted

HEAD = b"host: up.test\r\nauthorization: Bearer x: y\r\n"


def adapter(**waits: float) -> Adapter:
    return Adapter(httpx2.AsyncHTTPTransport(), Timeouts(**waits), 1.0)


async def read(answer: object) -> bytes:
    return b"".join([piece async for piece in answer])  # type: ignore[attr-defined]  # an Answer


async def test_head_and_body_arrive_as_they_were_written() -> None:
    async with scripted(lambda asked: asked.wire.whole(201, asked.body, x_more="1")) as up:
        sender = adapter()
        answer = await sender.send("POST", httpx2.URL(f"{up.url}/x?q=1"), HEAD, b"abc", None)
        assert (answer.status, await read(answer)) == (201, b"abc")
        await answer.finish(1)
        await sender.aclose()
    assert (up.asked[0].method, up.asked[0].path) == ("POST", "/v1/x?q=1")
    assert up.asked[0].headers["authorization"] == "Bearer x: y"
    assert up.asked[0].headers["host"] == "up.test"
    assert dict(answer.headers)[b"x-more"] == b"1"


@pytest.mark.parametrize("length", [None, 6])
async def test_a_streamed_body_is_streamed(length: int | None) -> None:
    async def pieces():  # type: ignore[no-untyped-def]  # a generator of bytes
        yield b"abc"
        yield b"def"

    async with scripted(lambda asked: asked.wire.whole(200, asked.body)) as up:
        sender = adapter()
        answer = await sender.send("PUT", httpx2.URL(f"{up.url}/x"), HEAD, pieces(), length)
        assert await read(answer) == b"abcdef"
        await sender.aclose()
    assert ("content-length" in up.asked[0].headers) == (length is not None)


async def test_finish_waits_no_longer_than_it_may_and_leaves_nothing_open() -> None:
    async def endless(asked: Asked) -> None:
        await asked.wire.head()
        await asked.wire.chunk(b"a")
        await asked.wire.gone()

    async with scripted(endless) as up:
        sender = adapter()
        answer = await sender.send("GET", httpx2.URL(f"{up.url}/x"), HEAD, b"", None)
        began = time.monotonic()
        await answer.finish(0.2)
        assert time.monotonic() - began < 0.4
        async with asyncio.timeout(1):
            while not up.asked[0].closed_at:
                await asyncio.sleep(0.01)
        await sender.aclose()


async def test_a_connection_read_to_its_end_is_used_again() -> None:
    async with scripted(plain) as up:
        sender = adapter()
        for _ in range(3):
            answer = await sender.send("GET", httpx2.URL(f"{up.url}/x"), HEAD, b"", None)
            await answer.finish(1)
        await sender.aclose()
    assert len({asked.wire.writer.get_extra_info("peername") for asked in up.asked}) == 1


async def test_silence_is_a_time_out() -> None:
    async with scripted(lambda asked: asked.wire.gone()) as up:
        sender = adapter(first_byte=0.2, idle=0.2)
        with pytest.raises(httpx2.ReadTimeout):
            await sender.send("GET", httpx2.URL(f"{up.url}/x"), HEAD, b"", None)
        await sender.aclose()
