"""Bodies made by mutation from the documented ones: understood or refused, on each typed route; nothing ever breaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.running import Running, config, running
from tests.scripted import Asked, Scripted, answer, events, say, scripted

TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
}
CALLED = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":"b"}'}}
FULL: dict[str, dict[str, Any]] = {
    "chat/completions": {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "data:,"}}],
            },
            {"role": "assistant", "content": None, "tool_calls": [CALLED]},
            {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 10,
        "max_completion_tokens": 10,
        "n": 1,
        "temperature": 0.5,
        "top_p": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "seed": 7,
        "stop": ["x"],
        "tools": [TOOL],
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "reasoning_effort": "low",
        "service_tier": "auto",
        "user": "u",
        "metadata": {"a": "b"},
    },
    "completions": {
        "model": "m",
        "prompt": ["hi", "ho"],
        "stream": False,
        "stream_options": {"include_usage": False},
        "max_tokens": 10,
        "n": 1,
        "best_of": 1,
        "temperature": 0.5,
        "top_p": 1,
        "seed": 7,
        "stop": "x",
        "user": "u",
    },
    "embeddings": {"model": "m", "input": ["hi", "ho"], "dimensions": 8, "encoding_format": "float", "user": "u"},
}
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "m", "\r\nx: y", "\x00", "\ud800", "' OR 1=1 --", 2**63, -(2**63) - 1, 1e308, -0.0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, the whole left out."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*path, key)
        yield from places(part, (*path, key))


PLACES = {route: list(places(body)) for route, body in FULL.items()}


@st.composite
def mutated(draw: st.DrawFn, route: str) -> bytes:
    body = json.loads(json.dumps(FULL[route]))
    for _ in range(draw(st.integers(0, 3))):
        *way, last = draw(st.sampled_from(PLACES[route]))
        place = body
        for key in way:
            place = place[key] if isinstance(place, dict) and key in place else {}
        if not isinstance(place, dict):
            continue
        match draw(st.sampled_from(["replace", "replace", "remove", "rename", "wrap"])):
            case "replace":
                place[last] = draw(JUNK)
            case "remove":
                place.pop(last, None)
            case "rename":
                place[str(draw(st.text(max_size=5)))] = place.pop(last, None)
            case "wrap":
                place[last] = [place.get(last)]
    text = json.dumps(body, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 0, 2])))
    raw = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:  # torn, doubled or with a byte changed
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.binary(max_size=3)) + raw[at + draw(st.integers(0, 3)) :]
    return raw


async def silent(asked: Asked) -> None:
    """Answers without usage: the gateway must then read what was asked in order to count it."""
    if b'"stream": true' in asked.body or b'"stream":true' in asked.body:
        await say(asked, events("Hel", "lo", usage=None))
    else:
        await asked.wire.whole(200, answer(usage=None))


def check(response: httpx2.Response, raw: bytes) -> None:
    if response.status_code == 200:
        assert b"internal_error" not in response.content, raw
        return
    assert response.status_code in (400, 404), (response.status_code, raw)
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error", raw
    assert error["code"] in ("invalid_json", "invalid_type", "invalid_request", "duplicate_field", "model_not_found"), (
        raw
    )
    assert error["param"] is None or isinstance(error["param"], str), raw
    if error["code"] in ("duplicate_field", "model_not_found"):
        assert error["param"] is not None, raw


class Fuzz:
    """A gateway that lives as long as the examples do."""

    def __init__(self, gateway: Running, up: Scripted) -> None:
        self.gateway = gateway
        self.up = up

    async def one(self, route: str, raw: bytes) -> None:
        before = len(self.up.asked)
        response = await self.gateway.client.post(
            f"/v1/{route}", content=raw, headers={"content-type": "application/json"}
        )
        check(response, raw)
        assert len(self.up.asked) - before == (response.status_code == 200), raw
        self.gateway.seen.clear()
        self.up.asked.clear()


async def fuzz(route: str, examples: int) -> None:
    """Examples are drawn in a thread, for hypothesis calls plain functions; each is sent from the test's loop."""
    loop = asyncio.get_running_loop()
    sent = 0
    async with scripted(silent) as up, running(config(up.url)) as gateway:
        fuzzing = Fuzz(gateway, up)

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(mutated(route))
        def one(raw: bytes) -> None:
            nonlocal sent
            sent += 1
            asyncio.run_coroutine_threadsafe(fuzzing.one(route, raw), loop).result(20)

        await asyncio.to_thread(one)
        assert (await gateway.chat()).status_code == 200
    assert sent >= examples // 2


@pytest.mark.parametrize("route", FULL)
async def test_mutated_bodies_are_understood_or_refused(route: str) -> None:
    await fuzz(route, 300)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("route", FULL)
async def test_thousands_of_mutated_bodies_are_understood_or_refused(route: str) -> None:
    await fuzz(route, 5000)
