"""Calling a provider: what is sent, and what each failure becomes."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from typing import Any

import pytest

from gateway.upstream import retry_after
from tests.running import KEY, config, running
from tests.scripted import Asked, answer, event, events, plain, say, scripted

pytestmark = pytest.mark.serial  # time-outs and gaps are measured


def with_provider(url: str, **more: Any) -> dict[str, Any]:
    said = config(url)
    said["providers"]["up"] |= more
    return said


async def test_a_provider_that_is_not_there_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        async with running(config(url)) as gateway:
            began = time.monotonic()
            response = await gateway.chat()
            x = await gateway.finished()
    assert time.monotonic() - began < 0.5
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "upstream_unavailable"
    assert int(response.headers["retry-after"]) >= 1
    assert x.cost == 0


async def silent(asked: Asked) -> None:
    await asked.wire.gone()


async def stalls(asked: Asked) -> None:
    await asked.wire.head()
    await asked.wire.chunk(event({"content": "a"}))
    await asked.wire.gone()


async def drips(asked: Asked) -> None:
    await say(asked, events(*"a" * 100), pause=0.1)


@pytest.mark.parametrize(
    ("script", "which", "status"), [(silent, "first_byte", 504), (stalls, "idle", 200), (drips, "total", 200)]
)
async def test_each_time_out_is_its_own_and_fires_in_time(script: Any, which: str, status: int) -> None:
    async with scripted(script) as up, running(with_provider(up.url, timeouts={which: 0.5})) as gateway:
        began = time.monotonic()
        response = await gateway.chat(stream=True)
        took = time.monotonic() - began
        x = await gateway.finished()
    assert 0.45 < took < 0.8
    assert response.status_code == status
    assert '"upstream_timeout"' in response.text
    assert "[DONE]" not in response.text
    assert x.error is not None


async def test_a_slow_stream_outlives_the_time_outs_it_does_not_break() -> None:
    waits = {"first_byte": 0.3, "idle": 0.3, "connect": 0.3}
    async with scripted(lambda asked: say(asked, events(*"abcdefgh"), pause=0.1)) as up:
        async with running(with_provider(up.url, timeouts=waits)) as gateway:
            response = await gateway.chat(stream=True)
    assert response.text.endswith("data: [DONE]\n\n")


async def test_a_full_pool_answers_503_in_time() -> None:
    async with scripted(silent) as up, running(with_provider(up.url, max_connections=1, pool_seconds=0.3)) as gateway:
        first = asyncio.create_task(gateway.chat())
        while not up.asked:
            await asyncio.sleep(0.01)
        began = time.monotonic()
        response = await gateway.chat()
        assert 0.25 < time.monotonic() - began < 0.6
        first.cancel()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "overloaded"
    assert int(response.headers["retry-after"]) >= 1


async def test_tokens_arrive_as_they_are_written() -> None:
    async with (
        scripted(lambda asked: say(asked, events(*"abcde"), pause=0.2)) as up,
        running(config(up.url)) as gateway,
    ):
        call = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        async with gateway.client.stream("POST", "/v1/chat/completions", json=call) as response:
            times = [time.monotonic() async for _ in response.aiter_raw()]
    gaps = [b - a for a, b in itertools.pairwise(times)][:6]
    assert all(0.18 < gap < 0.25 for gap in gaps), gaps
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["cache-control"] == "no-cache"
    assert "content-encoding" not in response.headers


async def test_a_silent_stream_is_kept_alive_by_comments_only_between_events() -> None:
    async def slow(asked: Asked) -> None:
        await asked.wire.head()
        await asked.wire.chunk(event({"content": "a"}))
        await asyncio.sleep(1.1)
        for piece in events("b"):
            await asked.wire.chunk(piece)
        await asked.wire.chunk(b"")

    async with scripted(slow) as up, running(config(up.url, server={"ping_seconds": 0.25})) as gateway:
        response = await gateway.chat(stream=True)
    pings = response.text.count(": ping\n\n")
    assert 3 <= pings <= 4
    assert not any(line.startswith(("id:", "event:", "retry:")) for line in response.text.split("\n"))
    without = response.text.replace(": ping\n\n", "")
    assert without.endswith("data: [DONE]\n\n")
    assert without.startswith("data: ")


async def test_a_redirect_is_never_followed() -> None:
    async def redirecting(asked: Asked) -> None:
        await asked.wire.whole(307, b"", location="http://169.254.169.254/")

    async with scripted(redirecting) as up, running(config(up.url)) as gateway:
        response = await gateway.chat()
        assert len(up.asked) == 1
    assert response.status_code == 502
    assert "location" not in response.headers


async def test_only_what_may_pass_passes_back() -> None:
    async def chatty(asked: Asked) -> None:
        await asked.wire.whole(
            200, answer(), set_cookie="a=b", x_secret="1", openai_processing_ms="12", x_request_id="theirs"
        )

    async with scripted(chatty) as up, running(config(up.url)) as gateway:
        response = await gateway.chat()
        x = await gateway.finished()
    assert "set-cookie" not in response.headers
    assert "x-secret" not in response.headers
    assert response.headers["x-request-id"] == x.id
    assert x.attempts[0].provider_request_id == "theirs"


async def test_a_compressed_answer_nobody_asked_for_is_an_error_not_garbage() -> None:
    async def zipped(asked: Asked) -> None:
        assert asked.headers["accept-encoding"] == "identity"
        await asked.wire.whole(200, b"\x1f\x8b...", content_encoding="gzip")

    async with scripted(zipped) as up, running(config(up.url)) as gateway:
        response = await gateway.chat()
    assert response.status_code == 502


@pytest.mark.parametrize("propagate", ["none", "traceparent", "all"])
async def test_trace_context_leaves_only_where_the_operator_says_so(propagate: str) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = {"traceparent": trace, "tracestate": "a=1", "baggage": "user=7"}
    async with scripted(plain) as up, running(with_provider(up.url, propagate=propagate)) as gateway:
        await gateway.chat(headers=headers)
        x = await gateway.finished()
        sent = up.asked[0].headers
    assert f"{x.trace.trace_id:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert x.trace.parent_id == 0x00F067AA0BA902B7
    if propagate == "none":
        assert not {"traceparent", "tracestate", "baggage"} & set(sent)
    else:
        assert sent["traceparent"] == f"00-4bf92f3577b34da6a3ce929d0e0e4736-{x.attempts[0].span_id:016x}-01"
        assert sent["tracestate"] == "a=1"
        assert ("baggage" in sent) == (propagate == "all")


async def test_the_connection_is_used_again_after_a_stream() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for _ in range(5):
            await gateway.chat(stream=True)
        assert len({asked.wire.writer.get_extra_info("peername") for asked in up.asked}) == 1


async def test_the_end_of_a_stream_does_not_wait_for_the_providers_connection() -> None:
    async def lingering(asked: Asked) -> None:
        await asked.wire.head()
        for piece in events("a"):
            await asked.wire.chunk(piece)
        await asyncio.sleep(1)
        await asked.wire.chunk(b"")

    async with scripted(lingering) as up, running(config(up.url)) as gateway:
        began = time.monotonic()
        response = await gateway.chat(stream=True)
    assert time.monotonic() - began < 0.8
    assert "[DONE]" in response.text


async def test_httpxs_own_transport_serves_too() -> None:
    async with scripted(plain) as up, running(with_provider(up.url, transport="httpx")) as gateway:
        assert (await gateway.chat()).status_code == 200
        assert "[DONE]" in (await gateway.chat(stream=True)).text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), ("7", 7), ("0", 1), ("1.5", 2), ("100000", 300), ("-5", None), ("soon", None),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 1), ("Fri, 31 Dec 2100 23:59:59 GMT", 300)],
)  # fmt: skip
def test_retry_after_is_whole_seconds_within_reason(value: str | None, seconds: int | None) -> None:
    assert retry_after(value) == seconds


def test_the_callers_key_is_not_the_providers() -> None:
    assert KEY not in str(config("http://127.0.0.1:1")["providers"])
