"""The retries of openai-python as it comes: how often a provider is asked, and after how long."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from gateway.errors import Denied
from gateway.exchange import Exchange
from gateway.policy import Policy
from tests.running import KEY, config, running
from tests.scripted import Asked as Request
from tests.scripted import answer, scripted

QUESTION: Any = [{"role": "user", "content": "What is a toll bridge?"}]


class Spent(Policy[None]):
    """Refuses as a budget does that is used up: no retry can mend it."""

    name = "spent"

    async def admit(self, x: Exchange) -> None:
        raise Denied("Nothing is left.", code="budget_exhausted", status=429, retry_after=1, should_retry=False)


async def refused(asked: Request) -> None:
    await asked.wire.whole(503, b"", retry_after="1")


async def ask(url: str) -> str | None:
    """One call with the SDK as it comes."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        whole = await client.chat.completions.create(model="m", messages=QUESTION)
        return whole.choices[0].message.content


async def test_the_provider_is_asked_once_for_each_try_of_the_sdk() -> None:
    async with scripted(refused) as provider, running(config(provider.url)) as gateway:
        began = time.monotonic()
        with pytest.raises(openai.InternalServerError):
            await ask(gateway.url)
        assert len(provider.asked) == 3  # max_retries is 2, and the gateway adds none on its own
        assert 2 <= time.monotonic() - began < 4  # Retry-After reached the SDK, twice


async def test_a_retry_waits_as_long_as_the_provider_says_and_is_then_answered() -> None:
    times: list[float] = []

    async def recovers(asked: Request) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            await asked.wire.whole(429, b"", retry_after="2")
        else:
            await asked.wire.whole(200, answer("Better now"))

    async with scripted(recovers) as provider, running(config(provider.url)) as gateway:
        assert await ask(gateway.url) == "Better now"
        statuses = [x.status for x in gateway.seen]
    assert statuses == [429, 200]
    assert 2 <= times[1] - times[0] < 3


async def test_a_refusal_that_no_retry_mends_is_asked_once() -> None:
    async with scripted(refused) as provider, running(config(provider.url), [Spent()]) as gateway:
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(gateway.url)
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert caught.value.code == "budget_exhausted"
        assert len(gateway.seen) == 1
        assert provider.asked == []


@pytest.mark.parametrize("head", [{"x_should_retry": "false"}, {}], ids=["by its header", "by its code"])
async def test_a_provider_whose_quota_is_used_up_is_asked_once(head: dict[str, str]) -> None:
    async def exhausted(asked: Request) -> None:
        error = {
            "message": "You exceeded your current quota.",
            "type": "insufficient_quota",
            "code": "insufficient_quota",
        }
        await asked.wire.whole(429, json.dumps({"error": error}).encode(), **head)

    async with scripted(exhausted) as provider, running(config(provider.url)) as gateway:
        with pytest.raises(openai.RateLimitError):
            await ask(gateway.url)
        assert len(provider.asked) == 1
