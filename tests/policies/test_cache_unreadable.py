"""Answers that cannot be read, or break what reads them: nobody waits for them, nothing of them is kept."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any
from unittest.mock import patch

import pytest
from msgspec.structs import replace

from gateway.dialects import openai
from tests.policies.test_cache import ask, cached, word
from tests.running import Running
from tests.scripted import DONE, Asked, answer, event, events, say

ODD = event({"content": "ok"}).replace(b'"object"', b'"note": "\xff", "object"')
LONG = [event({"content": "x" * 1000}) for _ in range(150)]  # gathered in a thread


def telling(*pieces: bytes) -> Any:
    """A provider whose stream begins, waits for a while, and then holds these."""

    async def script(asked: Asked) -> None:
        if not asked.json.get("stream"):
            await asked.wire.whole(200, answer())
            return
        await asked.wire.head()
        await asked.wire.chunk(event({"role": "assistant", "content": ""}))
        await asyncio.sleep(0.3)
        for piece in (*pieces, event({}, "stop") + DONE, b""):
            await asked.wire.chunk(piece)

    return script


async def led_and_followed(gateway: Running) -> None:
    """Nobody waits for ever for the leader's answer, and its key is let go."""
    key = {"idempotency-key": "k"}
    leader = asyncio.create_task(ask(gateway, stream=True, headers=key))
    await asyncio.sleep(0.1)
    async with asyncio.timeout(5):
        follower = await ask(gateway)
        assert (await leader).status_code == follower.status_code == 200
        assert (await ask(gateway, stream=True, headers=key)).status_code == 200


@pytest.mark.parametrize("more", [[], LONG], ids=["short", "long"])
async def test_a_stream_that_cannot_be_gathered_is_nobodys_end(more: list[bytes]) -> None:
    async with cached(telling(ODD, *more)) as (gateway, up):
        await led_and_followed(gateway)
        assert len(up.asked) == 2  # the follower asked by itself, and what it was answered is kept


@pytest.mark.parametrize("more", [[], LONG], ids=["short", "long"])
async def test_nor_is_a_defect_of_who_gathers(
    more: list[bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(stream: bytes) -> bytes | None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(openai, "gather", broken)
    with caplog.at_level(logging.ERROR):
        async with cached(telling(*more)) as (gateway, up):
            await led_and_followed(gateway)
            assert len(up.asked) == 2
    assert "a defect" in caplog.text


NO_UNICODE = answer("Hi XX").replace(b"XX", b"\xff\xfe")
ODD_SHAPE = b'{"choices":[{"index":0,"message":{"content":"Hi","tool_calls":[5]},"finish_reason":"stop"}]}'


def saying(whole: bytes) -> Any:
    """A provider that answers so, and streams as any."""

    async def script(asked: Asked) -> None:
        if asked.json.get("stream"):
            await say(asked, events("Hello"))
        else:
            await asyncio.sleep(0.2)
            await asked.wire.whole(200, whole)

    return script


@pytest.mark.parametrize("whole", [NO_UNICODE, ODD_SHAPE], ids=["no Unicode", "odd shape"])
async def test_what_cannot_be_read_back_is_not_kept(whole: bytes) -> None:
    async with cached(saying(whole), tools=["*"]) as (gateway, up):
        first, streamed = await ask(gateway), await ask(gateway, stream=True)
        assert (first.content, first.status_code, word(first)) == (whole, 200, "miss")
        assert (streamed.status_code, word(streamed)) == (200, "miss")
        assert len(up.asked) == 2


async def test_nor_does_a_stream_follow_it() -> None:
    async with cached(saying(NO_UNICODE)) as (gateway, up):
        leader = asyncio.create_task(ask(gateway))
        await asyncio.sleep(0.1)
        followers = await asyncio.gather(ask(gateway, stream=True), ask(gateway))
        assert [response.status_code for response in (await leader, *followers)] == [200] * 3
        assert word(followers[0]) == "miss"
        assert followers[1].content == NO_UNICODE
        assert len(up.asked) == 2


@pytest.mark.parametrize("key", [{}, {"idempotency-key": "k"}], ids=["kept", "saved"])
async def test_a_kept_answer_of_which_no_stream_can_be_made_is_a_miss(key: dict[str, str]) -> None:
    """As one that another version kept."""
    async with cached(saying(answer())) as (gateway, up):
        (store,) = gateway.app.answers.stores
        put = store.put
        with patch.object(store, "put", lambda question, kept: put(question, replace(kept, body=NO_UNICODE))):
            await ask(gateway, stream=True, headers=key)
        again = await ask(gateway, stream=True, headers=key)
        assert (again.status_code, word(again), len(up.asked)) == (200, "miss", 2)
        assert word(await ask(gateway, stream=True, headers=key)) == "hit"


async def test_an_answer_that_does_not_say_what_it_is_is_streamed_all_the_same() -> None:
    whole = json.dumps({"choices": json.loads(answer())["choices"]}).encode()
    async with cached(saying(whole)) as (gateway, up):
        await ask(gateway)
        streamed = await ask(gateway, stream=True)
        assert (streamed.status_code, word(streamed), len(up.asked)) == (200, "hit", 1)
        assert "Hello" in streamed.text
        assert streamed.text.endswith("data: [DONE]\n\n")
