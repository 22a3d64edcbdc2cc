"""What an attempt used and cost: the provider's word first, ours where it is silent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest

from gateway import tokens
from tests.running import config, running
from tests.scripted import Asked, answer, event, events, say, scripted

LONG = "The quick brown fox jumps over the lazy dog. " * 4


def script(usage: dict[str, Any] | None, **more: Any) -> Any:
    async def act(asked: Asked) -> None:
        if asked.json.get("stream"):
            said = [event({"content": LONG}, **more), event({}, "stop", **more)]
            await say(asked, [*said, *([event(None, usage=usage, **more)] if usage is not None else []), events()[-1]])
        else:
            await asked.wire.whole(200, answer(LONG, usage=usage, **more))

    return act


@pytest.mark.parametrize("stream", [False, True])
async def test_the_providers_usage_is_priced_exactly(stream: bool) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 400}}
    price = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}
    async with scripted(script(usage)) as up:
        said = config(up.url)
        said["models"]["m"]["price"] = price
        async with running(said) as gateway:
            response = await gateway.chat(stream=stream)
            x = await gateway.finished()
    assert x.cost == 600 * 150 + 400 * 75 + 50 * 600
    attempt = x.attempts[0]
    assert attempt.usage is not None
    assert not attempt.usage.estimated
    assert attempt.price.startswith("config:m@")
    if not stream:
        assert response.headers["x-tollkeeper-cost-usd"] == "0.000150000"
    else:
        assert '"cost_usd":"0.000150000"' in response.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("usage", [None, {"prompt_tokens": -5, "completion_tokens": 1}])
async def test_missing_or_senseless_usage_is_counted_here_and_marked(
    stream: bool, usage: dict[str, Any] | None
) -> None:
    tokens.warm("up")
    async with scripted(script(usage)) as up, running(config(up.url)) as gateway:
        await gateway.chat(LONG, stream=stream)
        x = await gateway.finished()
        metrics = (await gateway.client.get("/metrics")).text
    attempt = x.attempts[0]
    assert attempt.usage is not None
    assert attempt.usage.estimated
    assert attempt.usage.output == tokens.count(LONG, "up")
    assert attempt.usage.input == tokens.count("user" + LONG, "up")
    assert attempt.rejected == ("" if usage is None else "prompt_tokens")
    assert f"tollkeeper_usage_missing_total {1.0 if usage is None else 0.0}" in metrics
    assert f"tollkeeper_usage_rejected_total {0.0 if usage is None else 1.0}" in metrics


async def test_zero_is_believed() -> None:
    async with scripted(script({"prompt_tokens": 0, "completion_tokens": 0})) as up, running(config(up.url)) as gateway:
        await gateway.chat()
        x = await gateway.finished()
    assert x.cost == 0
    assert x.attempts[0].usage is not None
    assert not x.attempts[0].usage.estimated


async def test_an_unknown_price_is_null_never_0() -> None:
    async with scripted(script({"prompt_tokens": 5, "completion_tokens": 5})) as up:
        said = config(up.url)
        said["models"] = {"m": {"targets": [{"provider": "up", "model": "nobody-knows-this"}]}}
        async with running(said) as gateway:
            response = await gateway.chat()
            x = await gateway.finished()
            record = await gateway.record(x.id)
            metrics = (await gateway.client.get("/metrics")).text
    assert response.status_code == 200
    assert "x-tollkeeper-cost-usd" not in response.headers
    assert x.cost is None
    assert record.cost_nano is None
    assert "tollkeeper_unpriced_requests_total 1.0" in metrics


async def test_a_refused_attempt_costs_nothing_and_a_broken_one_what_was_seen() -> None:
    async def act(asked: Asked) -> None:
        if asked.json["messages"][0]["content"] == "refuse":
            await asked.wire.whole(400, b"{}")
            return
        await asked.wire.head()
        await asked.wire.chunk(event({"content": LONG}))
        asked.wire.reset()

    async with scripted(act) as up, running(config(up.url)) as gateway:
        await gateway.chat("refuse", stream=True)
        assert (await gateway.finished(1)).cost == 0
        await gateway.chat("break", stream=True)
        x = await gateway.finished(2)
    usage = x.attempts[0].usage
    assert usage is not None
    assert usage.estimated
    assert usage.output >= tokens.count(LONG, "up")
    assert x.cost == usage.input * 1000 + usage.output * 2000


async def test_the_tier_in_the_answer_selects_the_price() -> None:
    async with scripted(script({"prompt_tokens": 1_000_000, "completion_tokens": 0}, service_tier="flex")) as up:
        said = config(up.url)
        said["providers"]["up"]["catalogue"] = "openai"
        said["models"] = {"m": {"targets": [{"provider": "up", "model": "o3"}]}}
        async with running(said) as gateway:
            await gateway.chat(service_tier="auto")
            x = await gateway.finished()
    assert x.cost == 1_000_000_000  # o3 flex: 1 USD per million, half of the default


async def test_what_a_team_asks_to_be_kept_is_kept_and_nothing_else_is() -> None:
    async with scripted(script({"prompt_tokens": 1, "completion_tokens": 1})) as up:
        said = config(up.url)
        async with running(said) as gateway:
            await gateway.chat("sentinel")
            assert (await gateway.finished()).output == []
        said["teams"]["checkout"]["content"] = "full"
        async with running(said) as gateway:
            await gateway.chat("sentinel", stream=True)
            x = await gateway.finished()
            assert "".join(x.output) == LONG
            record = await gateway.record(x.id)
    assert record.content is not None
    assert "sentinel" in record.content.input


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_hangs_up_while_tokens_are_counted_pays_for_the_answer(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(pieces: Sequence[str], model: str) -> int:
        await asyncio.sleep(60)
        return 0

    monkeypatch.setattr(tokens, "estimate", never)  # the caller is gone before the count is there
    async with scripted(script(None)) as up, running(config(up.url)) as gateway:
        call = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": LONG}]}
        with pytest.raises(httpx2.ReadTimeout):
            await gateway.client.post("/v1/chat/completions", json=call, timeout=0.3)
        x = await gateway.finished()
    usage = x.attempts[0].usage
    assert usage is not None
    assert usage.estimated
    assert usage.output >= tokens.by_length(LONG) // 2
    assert x.cost == usage.input * 1000 + usage.output * 2000
    assert x.cost > 0
