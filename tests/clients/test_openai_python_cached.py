"""openai-python behind the cache: hits are what the miss was, streamed or not, and the provider's bill has one row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from gateway.demo.simulator import Spawned
from tests.clients.conftest import House, rested, said
from tests.clients.test_openai_python import QUESTION, TOOLS, USE_TOOLS, fault, gathered
from tests.running import running

pytestmark = pytest.mark.asyncio(loop_scope="module")

USAGE: Any = {"include_usage": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cached(simulator: Spawned) -> AsyncIterator[House]:
    uses = [{"use": "access"}, {"use": "rate_limit"}, {"use": "cache", "tools": ["*"]}, {"use": "budget"}]
    settings = said(simulator.url) | {"policies": uses}
    async with running(settings) as run, httpx2.AsyncClient(base_url=simulator.url) as provider:
        yield House(run, provider)


@pytest_asyncio.fixture(loop_scope="module")
async def house(cached: House) -> House:
    await cached.run.admin("POST", "/cache/forget", {"all": True})
    return await rested(cached)


@pytest_asyncio.fixture(loop_scope="module")
async def client(house: House, key: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=house.url, api_key=key, max_retries=0, timeout=10) as client:
        yield client


async def rows(house: House) -> int:
    return len((await house.provider.get("/sim/bill")).json()["rows"])


async def words(house: House, count: int) -> list[str]:
    return [x.cache for x in await house.finished(count)]


@pytest.mark.parametrize("first_streams", [False, True])
@pytest.mark.parametrize("call", ["plain", "three choices", "tools"])
async def test_a_hit_is_what_the_miss_was_whichever_of_them_streams(
    house: House, client: AsyncOpenAI, call: str, first_streams: bool
) -> None:
    asked: dict[str, Any] = {"model": "small", "messages": QUESTION, "temperature": 0}
    asked |= {"plain": {}, "three choices": {"n": 3}, "tools": {"messages": USE_TOOLS, "tools": TOOLS}}[call]
    before = await rows(house)

    async def whole() -> Any:
        return await client.chat.completions.create(**asked)

    async def streamed() -> Any:
        async with client.chat.completions.stream(**asked, stream_options=USAGE) as stream:
            return await stream.get_final_completion()

    one = await (streamed() if first_streams else whole())
    other = await (whole() if first_streams else streamed())
    assert await words(house, 2) == ["miss", "hit"]
    assert await rows(house) == before + 1
    assert one.usage == other.usage
    assert one.id == other.id
    for mine, theirs in zip(one.choices, other.choices, strict=True):
        assert mine.finish_reason == theirs.finish_reason
        assert (mine.message.content or None) == (theirs.message.content or None)  # "" beside tool calls is none
        calls = [
            [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or []]
            for message in (mine.message, theirs.message)
        ]
        assert calls[0] == calls[1]


async def test_embeddings_are_cached_and_equal(house: House, client: AsyncOpenAI) -> None:
    before = await rows(house)
    one, other = [await client.embeddings.create(model="embed", input=["a", "b"]) for _ in range(2)]
    assert [item.embedding for item in one.data] == [item.embedding for item in other.data]
    assert await words(house, 2) == ["miss", "hit"]
    assert await rows(house) == before + 1
    await client.embeddings.create(model="embed", input=["a", "b"], dimensions=5)
    assert await words(house, 1) == ["miss"]


async def test_reasoning_tokens_of_the_usage_survive(house: House, client: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "reason", "messages": QUESTION, "temperature": 0}
    _, usages = await gathered(await client.chat.completions.create(**asked, stream=True, stream_options=USAGE))
    hit = await client.chat.completions.create(**asked)
    assert usages == [hit.usage]
    assert await words(house, 2) == ["miss", "hit"]


async def test_many_at_once_are_one_row_of_the_bill_and_one_charge(house: House, client: AsyncOpenAI) -> None:
    before = await rows(house)
    asked: dict[str, Any] = {"model": "small", "messages": QUESTION, "temperature": 0}
    calls = [gathered_of(client, asked, stream) for stream in (True, False) * 10]
    texts = await asyncio.gather(*calls)
    assert len(set(texts)) == 1
    seen = await house.finished(20)
    assert await rows(house) == before + 1
    paid = [x for x in seen if x.cost]
    assert len(paid) == 1
    assert paid[0].cost == (await house.row(paid[0]))["nano_usd"]
    assert all(x.saved == paid[0].cost for x in seen if x is not paid[0])


async def gathered_of(client: AsyncOpenAI, asked: dict[str, Any], stream: bool) -> str | None:
    if not stream:
        return (await client.chat.completions.create(**asked)).choices[0].message.content
    texts, _ = await gathered(await client.chat.completions.create(**asked, stream=True))
    return texts[0]


@pytest.mark.parametrize("word", ["status=500", "reset=3", "eof=3", "error-event=3", "malformed=3", "no-done"])
async def test_faults_of_the_provider_are_never_kept(house: House, client: AsyncOpenAI, word: str) -> None:
    asked: dict[str, Any] = {"model": "small", "messages": QUESTION, "temperature": 0, "stream": True}
    for _ in range(2):
        with pytest.raises((openai.APIError, httpx2.HTTPError)):
            await gathered(await client.chat.completions.create(**asked, extra_headers=fault(word)))
    assert await words(house, 2) == ["miss", "miss"]


async def test_an_idempotency_key_answers_a_retry_with_what_was_answered(house: House, client: AsyncOpenAI) -> None:
    before = await rows(house)
    asked: dict[str, Any] = {"model": "small", "messages": QUESTION, "extra_headers": {"Idempotency-Key": "order-17"}}
    one, other = [await client.chat.completions.create(**asked) for _ in range(2)]
    assert one == other
    await house.finished(2)
    assert await rows(house) == before + 1
    with pytest.raises(openai.UnprocessableEntityError):
        await client.chat.completions.create(**asked, n=2)
    await house.finished(1)
