"""A real model server that nobody here wrote answers through the gateway, and its own counts are the bill."""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import httpx2
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from openai.types import CompletionUsage

from gateway.demo.local import MODEL, spawn_local
from gateway.demo.spawned import Spawned
from gateway.exchange import Exchange
from tests.running import KEY, Running, config, running

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        find_spec("xllamacpp") is None and platform.machine() != "x86_64",
        reason=f"no wheel of the real model server exists for {platform.machine()}: IT IS NOT TESTED HERE",
    ),
]

NANO = {"input": 20, "cached": 10, "output": 60}  # nano-USD per token
PRICE = {"input": "0.02", "cached_input": "0.01", "output": "0.06"}  # the same as USD per million
LONG: Any = [{"role": "user", "content": "Tell a very long story about a toll bridge."}]


@dataclass
class House:
    run: Running
    client: AsyncOpenAI
    server: httpx2.AsyncClient  # the model server itself
    at: int = 0

    async def finished(self) -> Exchange:
        """The next finished exchange."""
        self.at += 1
        return await self.run.finished(self.at)

    async def recorded(self, prompt: int, cached: int, output: int) -> None:
        """The next finished exchange was recorded with this usage, and with what it costs to the nano-dollar."""
        x = await self.finished()
        assert x.error is None
        cost = (prompt - cached) * NANO["input"] + cached * NANO["cached"] + output * NANO["output"]
        assert x.cost == cost
        record = await self.run.record(x.id)
        assert record.cost_nano == cost
        tokens = record.tokens
        assert (tokens.input, tokens.cache_read, tokens.output, tokens.estimated) == (prompt, cached, output, False)

    async def counts(self) -> tuple[int, int]:
        """Tokens read (cached ones among them) and written, as the server counted them since its start."""
        lines = (await self.server.get("/metrics")).text.splitlines()
        told = dict(line.removeprefix("llamacpp:").split(" ") for line in lines if line.startswith("llamacpp:"))
        read = int(told["prompt_tokens_total"]) + int(told["prompt_tokens_cached_total"])
        return read, int(told["tokens_predicted_total"])


@pytest.fixture(scope="module")
def server() -> Iterator[Spawned]:
    with spawn_local(parallel=1) as spawned:
        yield spawned


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(server: Spawned) -> AsyncIterator[House]:
    model = {"targets": [{"provider": "up", "model": MODEL}], "price": PRICE}
    said = config(f"{server.url}/v1", models={"tiny": model})
    async with (
        running(said) as run,
        httpx2.AsyncClient(base_url=server.url, timeout=20) as direct,
        AsyncOpenAI(base_url=f"{run.url}/v1", api_key=KEY, max_retries=0, timeout=20) as client,
    ):
        yield House(run, client, direct)


@pytest_asyncio.fixture(loop_scope="module")
async def house(gateway: House) -> House:
    """The module's gateway, with nothing of other tests to look at."""
    gateway.at = len(gateway.run.seen)
    return gateway


def parts(usage: CompletionUsage | None) -> tuple[int, int, int]:
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    return usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens or 0, usage.completion_tokens


async def test_a_chat_is_recorded_as_the_server_counted_it(house: House) -> None:
    before = await house.counts()
    answer = await house.client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Name a colour."}], max_tokens=8
    )
    assert answer.choices[0].message.content
    prompt, cached, output = parts(answer.usage)
    after = await house.counts()
    assert (after[0] - before[0], after[1] - before[1]) == (prompt, output)
    await house.recorded(prompt, cached, output)


@pytest.mark.parametrize("asks", [True, False])
async def test_a_stream_is_recorded_whether_or_not_its_usage_was_asked_for(house: House, asks: bool) -> None:
    messages: Any = [{"role": "user", "content": "Name a river."}]
    options: Any = {"stream_options": {"include_usage": True}} if asks else {}
    before = await house.counts()
    text, usage = "", None
    stream = await house.client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=8, stream=True, **options
    )
    async for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text
    assert (usage is not None) is asks
    after = await house.counts()
    x = await house.run.finished(house.at + 1)
    assert x.attempts[0].usage is not None
    told = x.attempts[0].usage
    assert (told.input, told.output) == (after[0] - before[0], after[1] - before[1])
    if asks:
        assert parts(usage) == (told.input, told.cache_read, told.output)
    await house.recorded(told.input, told.cache_read, told.output)


async def test_a_prompt_asked_again_is_read_from_the_servers_cache_and_costs_less(house: House) -> None:
    messages: Any = [{"role": "user", "content": "A toll is paid at the bridge. " * 20}]
    costs = []
    for _ in range(2):
        answer = await house.client.chat.completions.create(model="tiny", messages=messages, max_tokens=2)
        prompt, cached, output = parts(answer.usage)
        await house.recorded(prompt, cached, output)
        costs.append(house.run.seen[-1].cost)
    assert cached > 100
    assert costs[1] < costs[0]


async def test_embeddings_are_recorded_as_the_server_counted_them(house: House) -> None:
    answer = await house.client.embeddings.create(model="tiny", input=["toll bridge", "river"], encoding_format="float")
    assert [len(one.embedding) for one in answer.data] == [576, 576]
    assert sum(value * value for value in answer.data[0].embedding) == pytest.approx(1, abs=1e-3)
    await house.recorded(answer.usage.prompt_tokens, 0, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_responses_are_relayed_and_recorded(house: House, stream: bool) -> None:
    asked = house.client.responses.create(model="tiny", input="Name a bridge.", max_output_tokens=6, stream=stream)
    usage, text = None, ""
    if stream:
        async for event in await asked:
            text += event.delta if event.type == "response.output_text.delta" else ""
            usage = event.response.usage if event.type == "response.completed" else usage
    else:
        whole = await asked
        usage, text = whole.usage, whole.output_text
    assert text
    assert usage is not None
    await house.recorded(usage.input_tokens, usage.input_tokens_details.cached_tokens, usage.output_tokens)


async def test_what_the_server_refuses_keeps_its_words(house: House) -> None:
    messages: Any = [{"role": "user", "content": "word " * 4000}]
    with pytest.raises(openai.BadRequestError, match="context size") as caught:
        await house.client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    assert caught.value.code == "upstream_refused"
    x = await house.finished()
    assert x.cost == 0


async def test_a_hung_up_client_frees_its_slot_within_a_second(house: House) -> None:
    """The slot is the only one, and the answer would have kept it for many seconds.

    Streamed only: what is not streamed this server generates to its end, also for one that hangs up on it directly.
    """
    stream = await house.client.chat.completions.create(
        model="tiny", messages=LONG, max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
    )
    seen = 0
    async for _ in stream:
        seen += 1
        if seen == 10:
            break
    assert (await house.server.get("/slots")).json()[0]["is_processing"]
    began = time.perf_counter()
    await stream.close()
    async with asyncio.timeout(1):
        while (await house.server.get("/slots")).json()[0]["is_processing"]:
            await asyncio.sleep(0.01)
    next_one = await house.client.chat.completions.create(model="tiny", messages=LONG, max_tokens=1)
    assert time.perf_counter() - began < 1
    x = await house.finished()
    assert x.error is not None
    assert x.error.code == "client_gone"
    assert x.attempts[0].usage is not None
    assert 0 < x.attempts[0].usage.output < 1900
    await house.recorded(*parts(next_one.usage))
