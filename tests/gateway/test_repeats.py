"""Idempotency-Key over real sockets: the saved answer, 409 while it is under way, 422 for another body."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from tests.policies.test_cache import CRON, cached
from tests.running import KEY, Running
from tests.scripted import Asked, answer, event, events, plain, say


def key(word: str, of: str = KEY) -> dict[str, str]:
    return {"idempotency-key": word, "authorization": f"Bearer {of}"}


async def ask(gateway: Running, word: str, text: str = "hi", of: str = KEY, **body: Any) -> httpx2.Response:
    """Of a temperature at which nothing is cached."""
    return await gateway.chat(text, headers=key(word, of), **({"temperature": 1} | body))


@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_again_is_answered_with_what_was_saved_and_costs_nothing(stream: bool) -> None:
    async with cached() as (gateway, up):
        first, again = [await ask(gateway, "one", stream=stream) for _ in range(2)]
        assert len(up.asked) == 1
        record = await gateway.record((await gateway.finished(2)).id)
    assert first.status_code == again.status_code == 200
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert "Hel" in again.text
    assert (record.cost_nano, record.saved_nano, record.cache) == (0, 9000, "hit")


async def test_also_an_answer_that_the_cache_would_never_keep() -> None:
    async def script(asked: Asked) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": "cu"}, "finish_reason": "length"}
        await asked.wire.whole(200, answer(choices=[choice]))

    async with cached(script) as (gateway, up):
        for temperature in (0, 1):
            word = f"at {temperature}"
            bodies = [(await ask(gateway, word, temperature=temperature)).content for _ in range(2)]
            assert bodies[0] == bodies[1]
        assert len(up.asked) == 2


async def test_another_body_is_refused_before_and_after_the_answer() -> None:
    gate = asyncio.Event()

    async def script(asked: Asked) -> None:
        await gate.wait()
        await plain(asked)

    async with cached(script) as (gateway, up):
        first = asyncio.create_task(ask(gateway, "one"))
        while not up.asked:
            await asyncio.sleep(0.005)
        during = await ask(gateway, "one", "other")
        gate.set()
        await first
        after = await ask(gateway, "one", "other")
        path = await gateway.client.post("/v1/completions", json={"model": "m", "prompt": "hi"}, headers=key("one"))
        assert len(up.asked) == 1
    for refused in (during, after, path):
        assert refused.status_code == 422
        assert refused.json()["error"]["code"] == "idempotency_mismatch"
        assert refused.headers["x-should-retry"] == "false"


async def test_while_it_is_under_way_the_same_is_told_to_come_again_and_then_gets_the_answer() -> None:
    gate = asyncio.Event()

    async def script(asked: Asked) -> None:
        await gate.wait()
        await plain(asked)

    async with cached(script) as (gateway, up):
        first = asyncio.create_task(ask(gateway, "one"))
        while not up.asked:
            await asyncio.sleep(0.005)
        early = await ask(gateway, "one")
        gate.set()
        answered = await first
        assert (await ask(gateway, "one")).content == answered.content
        assert len(up.asked) == 1
    assert (early.status_code, early.json()["error"]["code"]) == (409, "idempotency_in_flight")
    assert early.headers["retry-after"] == "1"


async def breaks(asked: Asked) -> None:
    await asked.wire.head()
    await asked.wire.chunk(event({"content": "half"}))
    asked.wire.reset()


async def refuses(asked: Asked) -> None:
    await asked.wire.whole(500, b"")


@pytest.mark.parametrize(("first", "stream"), [(refuses, False), (breaks, True)])
async def test_a_call_that_failed_lets_its_key_go(first: Any, stream: bool) -> None:
    calls = iter([first, plain])

    async def script(asked: Asked) -> None:
        await next(calls)(asked)

    async with cached(script) as (gateway, up):
        await ask(gateway, "one", stream=stream)
        again = await ask(gateway, "one", stream=stream)
        assert "Hel" in again.text
        assert len(up.asked) == 2


async def test_a_caller_that_hangs_up_lets_its_key_go() -> None:
    async def script(asked: Asked) -> None:
        await say(asked, events(*"abcdefgh"), pause=0.05)

    async with cached(script) as (gateway, up):
        call = asyncio.create_task(ask(gateway, "one", stream=True))
        while not up.asked:
            await asyncio.sleep(0.005)
        call.cancel()
        await gateway.finished(1)
        assert (await ask(gateway, "one", stream=True)).status_code == 200
        assert len(up.asked) == 2


async def test_a_key_belongs_to_the_api_key_that_sent_it() -> None:
    async with cached() as (gateway, up):
        await ask(gateway, "one")
        other = await ask(gateway, "one", "something else", of=CRON)
        assert other.status_code == 200
        assert len(up.asked) == 2


async def test_an_answer_from_the_cache_or_shared_with_others_is_saved_too() -> None:
    async with cached() as (gateway, up):
        await ask(gateway, "first", temperature=0)
        hit = await ask(gateway, "second", temperature=0)
        assert hit.headers["x-tollkeeper-cache"] == "hit"
        again = await ask(gateway, "second", temperature=0)
        assert again.headers["idempotent-replayed"] == "true"
        other = await ask(gateway, "second", "other", temperature=0)
        assert other.status_code == 422
        assert len(up.asked) == 1


@pytest.mark.parametrize("streams", [(True, True), (True, False), (False, True)])
async def test_likewise_one_that_was_followed(streams: tuple[bool, bool]) -> None:
    async def script(asked: Asked) -> None:
        if asked.json.get("stream"):
            await say(asked, events(*"abcdefgh"), pause=0.03)
        else:
            await asyncio.sleep(0.2)
            await asked.wire.whole(200, answer("abcdefgh"))

    async with cached(script) as (gateway, up):
        leader = asyncio.create_task(ask(gateway, "leader", temperature=0, stream=streams[0]))
        while not up.asked:
            await asyncio.sleep(0.005)
        follower = await ask(gateway, "follower", temperature=0, stream=streams[1])
        await leader
        assert follower.headers["x-tollkeeper-cache"] == "coalesced"
        for word, stream in zip(("leader", "follower"), streams, strict=True):
            again = await ask(gateway, word, temperature=0, stream=stream)
            assert again.headers["idempotent-replayed"] == "true"
        assert len(up.asked) == 1


async def test_no_store_keeps_nothing_and_still_refuses_a_second_at_once() -> None:
    gate = asyncio.Event()

    async def script(asked: Asked) -> None:
        await gate.wait()
        await plain(asked)

    async with cached(script) as (gateway, up):
        headers = key("one") | {"cache-control": "no-store"}
        first = asyncio.create_task(gateway.chat(headers=headers))
        while not up.asked:
            await asyncio.sleep(0.005)
        assert (await gateway.chat(headers=headers)).status_code == 409
        gate.set()
        await first
        await gateway.chat(headers=headers)
        assert len(up.asked) == 2


@pytest.mark.parametrize("word", ["", "x" * 256])
async def test_what_is_no_key_is_refused(word: str) -> None:
    async with cached() as (gateway, up):
        refused = await ask(gateway, word)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key")
        assert not up.asked


async def test_a_saved_answer_ends() -> None:
    async with cached(idempotency_ttl=0.2) as (gateway, up):
        await ask(gateway, "one")
        await asyncio.sleep(0.25)
        await ask(gateway, "one", "other")
        assert len(up.asked) == 2
