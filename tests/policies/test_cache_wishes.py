"""What callers say of the cache in headers, of themselves, and in calls of odd shapes; and answers that are not kept."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from tests.policies.test_cache import ask, word
from tests.policies.test_cache_coalescing import text_of, under_way
from tests.policies.test_cache_sharing import house
from tests.running import KEY, Running
from tests.scripted import USAGE, Asked, answer


async def lines(gateway: Running, *headers: tuple[str, str]) -> httpx2.Response:
    """Each in a line of its own."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    sent = [("authorization", f"Bearer {KEY}"), *headers]
    return await gateway.client.post("/v1/chat/completions", json=body, headers=sent)


async def test_every_line_of_a_header_counts() -> None:
    async with house(lambda asked: asked.wire.whole(200, answer("yes"))) as (gateway, up):
        for _ in range(2):
            response = await lines(gateway, ("cache-control", "no-store"), ("cache-control", "max-age=60"))
            assert response.headers["x-tollkeeper-cache-reason"] == "no-store"
        assert len(up.asked) == 2


@pytest.mark.parametrize(
    "said", ['max-age="0"', "max-age=-1", "max-age=", "max-age=soon", "MAX-AGE = 0", 'no-cache="x"']
)
async def test_an_age_that_makes_no_sense_takes_nothing_old(said: str) -> None:
    async with house(lambda asked: asked.wire.whole(200, answer("yes"))) as (gateway, up):
        for _ in range(2):
            assert word(await ask(gateway, headers={"cache-control": said})) == "miss"
        assert len(up.asked) == 2


ANEW = {"cache-control": "no-cache"}


def gated() -> tuple[list[asyncio.Event], Callable[[Asked], Awaitable[None]]]:
    """A provider whose answers are numbered from 1, each withheld until its gate is opened."""
    gates = [asyncio.Event() for _ in range(4)]
    numbers = itertools.count(1)

    async def script(asked: Asked) -> None:
        mine = next(numbers)
        await gates[mine].wait()
        await asked.wire.whole(200, answer(f"answer {mine}"))

    return gates, script


async def test_an_older_call_that_ends_later_does_not_replace_what_no_cache_fetched() -> None:
    gates, script = gated()
    gates[2].set()
    async with house(script) as (gateway, up):
        old = asyncio.create_task(ask(gateway))
        await under_way(gateway, 1)
        assert text_of(await ask(gateway, headers=ANEW)) == "answer 2"
        gates[1].set()
        assert text_of(await old) == "answer 1"
        assert text_of(await ask(gateway)) == "answer 2"
        assert len(up.asked) == 2


async def test_of_calls_that_ask_anew_the_latest_is_kept_whichever_ends_last() -> None:
    gates, script = gated()
    async with house(script) as (gateway, up):
        calls = []
        for each in range(3):
            calls.append(asyncio.create_task(ask(gateway, headers=ANEW if each else {})))
            await under_way(gateway, each + 1)
        for each in (3, 2, 1):
            gates[each].set()
            assert text_of(await calls[each - 1]) == f"answer {each}"
        assert text_of(await ask(gateway)) == "answer 3"
        assert len(up.asked) == 3


async def test_an_older_call_that_ends_does_not_take_from_a_newer_one_what_it_fetches() -> None:
    gates, script = gated()
    async with house(script) as (gateway, _):
        first = asyncio.create_task(ask(gateway))
        await under_way(gateway, 1)
        second = asyncio.create_task(ask(gateway, headers=ANEW))
        await under_way(gateway, 2)
        gates[1].set()
        await first
        third = asyncio.create_task(ask(gateway, headers=ANEW))
        await under_way(gateway, 2)
        gates[2].set()
        await second
        gates[3].set()
        await third
        assert text_of(await ask(gateway)) == "answer 3"


LONG = "u" * 128


@pytest.mark.parametrize(
    ("one", "other"),
    [(LONG + "ann", LONG + "bob"), ("ann\u0000", "ann?"), ("a\u200b1", "a\u200c1")],
)
async def test_users_whose_names_look_alike_share_nothing(one: str, other: str) -> None:
    async with house(lambda asked: asked.wire.whole(200, answer("yes")), share="user") as (gateway, up):
        for user in (one, other):
            assert word(await ask(gateway, user=user)) == "miss"
            response = await ask(gateway, user=user, temperature=1, headers={"idempotency-key": "k"})
            assert "idempotent-replayed" not in response.headers
        assert len(up.asked) == 4


async def test_nor_do_those_whose_headers_are_no_unicode() -> None:
    async with house(lambda asked: asked.wire.whole(200, answer("yes")), share="user") as (gateway, up):
        for user in (b"ann\xe9", b"ann\xe8", LONG.encode() + b"ann", LONG.encode() + b"bob"):
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
            headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"x-user-id", user)]
            response = await gateway.client.post("/v1/chat/completions", json=body, headers=headers)
            assert word(response) == "miss"
        assert len(up.asked) == 4


async def test_a_users_key_is_its_own_where_users_do_not_share() -> None:
    async with house(lambda asked: asked.wire.whole(200, answer("yes")), share="user") as (gateway, up):
        for user in ("ann", "bob", "ann"):
            headers = {"idempotency-key": "one", "x-user-id": user}
            response = await ask(gateway, headers=headers, temperature=1)
            assert response.status_code == 200
        assert response.headers["idempotent-replayed"] == "true"
        assert len(up.asked) == 2


@pytest.mark.parametrize(
    "more", [{"error": {"message": "boom"}}, {"choices": [{"index": 0, "finish_reason": "stop", "error": {"code": 1}}]}]
)
async def test_an_answer_beside_an_error_is_not_kept(more: dict[str, Any]) -> None:
    async with house(lambda asked: asked.wire.whole(200, answer("yes", **more))) as (gateway, up):
        for _ in range(2):
            assert word(await ask(gateway)) == "miss"
        assert len(up.asked) == 2


@pytest.mark.parametrize(
    ("data", "error", "kept"),
    [([{"index": 0, "embedding": [0.5]}], None, True), ([], None, False), ([{"embedding": [0.5]}], {"code": 1}, False)],
)
async def test_embeddings_are_kept_that_are_there_and_beside_no_error(data: Any, error: Any, kept: bool) -> None:
    body = json.dumps({"object": "list", "data": data, "error": error, "usage": USAGE, "model": "m"}).encode()
    async with house(lambda asked: asked.wire.whole(200, body)) as (gateway, up):
        for _ in range(2):
            response = await gateway.client.post(
                "/v1/embeddings", json={"model": "m", "input": "hi"}, headers={"authorization": f"Bearer {KEY}"}
            )
        assert word(response) == ("hit" if kept else "miss")
        assert len(up.asked) == (1 if kept else 2)


async def test_numbers_beyond_floats_are_asked_with_near_questions_on() -> None:
    pytest.importorskip("wordllama")
    async with house(lambda asked: asked.wire.whole(200, answer("yes")), semantic={}) as (gateway, _):
        body = '{"model":"m","temperature":0,"messages":[{"role":"user","content":"How are you?","x":1e400}]}'
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        response = await gateway.client.post("/v1/chat/completions", content=body, headers=headers)
        assert response.status_code == 200, response.text
