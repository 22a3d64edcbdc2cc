"""POST /v1/completions: what is read of a call."""

from __future__ import annotations

from typing import Any

from tests.running import config, running
from tests.scripted import Asked, answer, events, plain, say, scripted


async def test_a_prompt_is_text_texts_or_tokens() -> None:
    prompts: list[Any] = ["hi", ["hi", "ho"], [1, 2], [[1, 2], [3]], None]
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for prompt in prompts:
            response = await gateway.client.post("/v1/completions", json={"model": "m", "prompt": prompt})
            assert response.status_code == 200, prompt
            assert up.asked[-1].path == "/v1/completions"
            assert up.asked[-1].json == {"model": "up", "prompt": prompt}


async def test_a_prompt_is_counted_where_the_provider_does_not() -> None:
    async def silent(asked: Asked) -> None:
        if asked.json.get("stream"):
            await say(asked, events("a", usage=None))
        else:
            await asked.wire.whole(200, answer(usage=None))

    async with scripted(silent) as up, running(config(up.url)) as gateway:
        for count, stream in enumerate((False, True), 1):
            call = {"model": "m", "prompt": ["one two three", "four"], "stream": stream}
            assert (await gateway.client.post("/v1/completions", json=call)).status_code == 200
            usage = (await gateway.finished(count)).attempts[0].usage
            assert usage is not None
            assert usage.estimated
            assert usage.input >= 4


async def test_usage_is_asked_for_on_streams_and_a_wrong_wish_is_named() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        call: dict[str, Any] = {"model": "m", "prompt": "hi", "stream": True}
        await gateway.client.post("/v1/completions", json=call)
        assert up.asked[0].json["stream_options"] == {"include_usage": True}
        wrong = await gateway.client.post("/v1/completions", json=call | {"stream_options": {"include_usage": "yes"}})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "stream_options.include_usage")
        assert len(up.asked) == 1
