"""POST /v1/embeddings: what is read of a call."""

from __future__ import annotations

import json
from typing import Any

from tests.running import config, running
from tests.scripted import Asked, scripted


async def vectors(asked: Asked) -> None:
    usage = {} if asked.json.get("user") == "silent" else {"usage": {"prompt_tokens": 3, "total_tokens": 3}}
    data = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}]
    await asked.wire.whole(200, json.dumps({"object": "list", "data": data, "model": "up", **usage}).encode())


async def test_an_input_is_text_texts_or_tokens() -> None:
    inputs: list[Any] = ["hi", ["hi", "ho"], [1, 2], [[1, 2], [3]]]
    async with scripted(vectors) as up, running(config(up.url)) as gateway:
        for count, given in enumerate(inputs, 1):
            response = await gateway.client.post("/v1/embeddings", json={"model": "m", "input": given, "dimensions": 2})
            assert response.json()["data"][0]["embedding"] == [0.1, 0.2]
            assert up.asked[-1].path == "/v1/embeddings"
            assert up.asked[-1].json == {"model": "up", "input": given, "dimensions": 2}
            usage = (await gateway.finished(count)).attempts[0].usage
            assert usage is not None
            assert (usage.input, usage.output, usage.estimated) == (3, 0, False)


async def test_an_input_is_counted_where_the_provider_does_not() -> None:
    async with scripted(vectors) as up, running(config(up.url)) as gateway:
        for count, given in enumerate(("one two three", ["one two", "three"]), 1):
            await gateway.client.post("/v1/embeddings", json={"model": "m", "input": given, "user": "silent"})
            usage = (await gateway.finished(count)).attempts[0].usage
            assert usage is not None
            assert usage.estimated
            assert usage.input >= 3
        assert up.asked
