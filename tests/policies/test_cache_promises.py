"""What the cache promises to those who call with openai-python: the same answer whichever way, and what they may say."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from gateway import pipeline
from gateway.policy import Policy
from gateway.questions import UNASKED
from policies.cache import Cache
from tests.gateway.test_questions import CHANGES
from tests.policies.test_cache import OTHER, ask, cached, said, word
from tests.running import KEY, Running, running
from tests.scripted import DONE, Asked, event, plain, say, scripted

QUESTION: Any = [{"role": "user", "content": "hi"}]
DETAILED = {
    "prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 5},
}  # fmt: skip
CALLS = [("call_a", "weather", '{"city":"Zürich"}'), ("call_b", "time", '{"zone":"Europe/Zurich"}')]
ANSWER: Any = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "up", "system_fingerprint": "fp_1",
    "service_tier": "default", "usage": DETAILED,
    "choices": [
        {
            "index": at, "finish_reason": "tool_calls" if at else "stop", "logprobs": None,
            "message": {
                "role": "assistant", "content": None if at else "Grüezi, 世界 🌍", "reasoning_content": f"thinking {at}",
                "refusal": None,
                **({"tool_calls": [
                    {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
                    for id, name, arguments in CALLS
                ]} if at else {}),
            },
        }
        for at in range(2)
    ],
}  # fmt: skip


def pieces() -> list[bytes]:
    """The same answer as a stream: two choices and two tool calls, interleaved, a character or two at a time."""
    rest = {"system_fingerprint": "fp_1", "service_tier": "default"}

    def delta(at: int, finish: str | None = None, **said: Any) -> bytes:
        return event(choices=[{"index": at, "delta": said, "finish_reason": finish, "logprobs": None}], **rest)

    found = [delta(at, role="assistant", content=None if at else "", refusal=None) for at in range(2)]
    for at, choice in enumerate(ANSWER["choices"]):
        found += [delta(at, reasoning_content=one) for one in ("think", f"ing {at}")]
        found += [delta(at, content=one) for one in choice["message"]["content"] or ""]
    for index, (id, name, _) in enumerate(CALLS):
        opener = {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
        found.append(delta(1, tool_calls=[opener]))
    for place in range(0, 30, 3):
        for index, (*_, arguments) in enumerate(CALLS):
            part = {"index": index, "function": {"arguments": arguments[place : place + 3]}}
            found += [delta(1, tool_calls=[part])] if arguments[place:] else []
    return [*found, delta(0, "stop"), delta(1, "tool_calls"), event(None, usage=DETAILED, **rest), DONE]


async def rich(asked: Asked) -> None:
    if asked.json.get("stream"):
        await say(asked, pieces())
    else:
        await asked.wire.whole(200, json.dumps(ANSWER).encode())


def client(gateway: Running, key: str = KEY, **more: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=10, **more)


def meant(message: Any) -> Any:
    """All that a message says, whoever put it together."""
    told = message.model_dump(exclude_none=True)
    calls = [
        {"id": one["id"], "name": one["function"]["name"], "said": one["function"]["arguments"]}
        for one in told.pop("tool_calls", [])
    ]
    return told | {"tool_calls": calls, "content": told.get("content") or ""}


async def heard(asks: AsyncOpenAI, stream: bool) -> tuple[Any, ...]:
    """Messages, finish reasons, usage and the rest, as the SDK hands them to its caller."""
    asked: Any = {"model": "m", "messages": QUESTION, "temperature": 0, "n": 2}
    if not stream:
        whole = await asks.chat.completions.create(**asked)
    else:
        async with asks.chat.completions.stream(**asked, stream_options={"include_usage": True}) as events:
            whole = await events.get_final_completion()
    choices = [(choice.index, choice.finish_reason, meant(choice.message)) for choice in whole.choices]
    assert whole.usage is not None
    usage = whole.usage.model_dump(exclude_none=True)
    return choices, usage, whole.id, whole.model, whole.system_fingerprint, whole.service_tier


@pytest.mark.parametrize("streams", [(True, False, True), (False, True, False), (True, True, False)], ids=str)
async def test_message_reasoning_tool_calls_finish_reason_and_usage_are_the_same_whichever_way(
    streams: tuple[bool, ...],
) -> None:
    async with cached(rich, tools=["*"]) as (gateway, up), client(gateway) as asks:
        found = [await heard(asks, stream) for stream in streams]
        assert len(up.asked) == 1
    choices, usage, *rest = found[0]
    assert found[1:] == [found[0]] * 2
    assert [(at, why) for at, why, _ in choices] == [(0, "stop"), (1, "tool_calls")]
    assert choices[0][2]["content"] == "Grüezi, 世界 🌍"
    assert [one["reasoning_content"] for *_, one in choices] == ["thinking 0", "thinking 1"]
    assert [(one["id"], one["name"], one["said"]) for one in choices[1][2]["tool_calls"]] == CALLS
    assert usage == DETAILED
    assert rest == ["chatcmpl-1", "up", "fp_1", "default"]


async def test_what_callers_may_say_of_the_cache_and_what_they_are_told() -> None:
    async with cached() as (gateway, up), client(gateway) as asks:

        async def told(said: str = "") -> tuple[str, bool]:
            raw = await asks.chat.completions.with_raw_response.create(
                model="m", messages=QUESTION, temperature=0, extra_headers={"Cache-Control": said} if said else {}
            )
            assert raw.parse().choices[0].message.content == "Hello"
            return raw.headers["x-tollkeeper-cache"], "age" in raw.headers

        assert await told("no-store") == ("bypass", False)
        assert await told() == ("miss", False)
        assert await told() == ("hit", True)
        assert await told("max-age=60") == ("hit", True)
        assert await told("max-age=0") == ("miss", False)
        assert await told("no-cache") == ("miss", False)
        assert await told("no-store") == ("bypass", False)
        assert await told() == ("hit", True)
        assert len(up.asked) == 5


async def test_each_field_of_a_body_that_may_change_an_answer_is_asked_anew_and_no_other() -> None:
    async with cached() as (gateway, up):
        assert word(await ask(gateway)) == "miss"
        for change in CHANGES:
            sent = len(up.asked)
            await ask(gateway, **change)
            assert len(up.asked) == sent + 1, change
        sent = len(up.asked)
        for name in UNASKED - {"model", "stream", "stream_options"}:
            told: Any = {"a": "b"} if name == "metadata" else "1h" if name.endswith("retention") else "one"
            assert word(await ask(gateway, **{name: told})) == "hit", name
        assert len(up.asked) == sent


async def test_hits_are_answered_while_the_provider_is_gone() -> None:
    async with scripted(plain) as up:
        async with running(said(up.url)) as gateway, client(gateway) as asks:
            asked: Any = {"model": "m", "messages": QUESTION, "temperature": 0}
            one = await asks.chat.completions.create(**asked)
            up.script = gone
            assert await asks.chat.completions.create(**asked) == one
            with pytest.raises(openai.APIStatusError):
                await asks.chat.completions.create(**asked, seed=1)


async def gone(asked: Asked) -> None:
    asked.wire.reset()


async def test_of_two_with_one_idempotency_key_at_once_the_sdk_asks_again_by_itself_and_both_get_one_answer() -> None:
    async def slow(asked: Asked) -> None:
        await asyncio.sleep(0.5)
        await plain(asked)

    async with cached(slow) as (gateway, up), client(gateway) as asks:
        patient = asks.with_options(max_retries=3)
        asked: Any = {"model": "m", "messages": QUESTION, "extra_headers": {"Idempotency-Key": "order-17"}}
        one, other = await asyncio.gather(*(patient.chat.completions.create(**asked) for _ in range(2)))
        assert one == other
        assert len(up.asked) == 1
        with pytest.raises(openai.UnprocessableEntityError):
            await patient.chat.completions.create(**asked, n=2)


async def test_nothing_is_answered_to_a_near_question_unless_that_is_switched_on() -> None:
    asked = ["How do I reset my password?", "How do I reset my password, please?"]
    async with cached() as (gateway, up):
        assert [word(await ask(gateway, text)) for text in asked] == ["miss", "miss"]
        assert gateway.app.answers.near == dict.fromkeys(gateway.app.answers.near, 0)
        assert len(up.asked) == 2


WIDER: list[dict[str, Any]] = [
    {"headers": {"x-tollkeeper-cache": "hit", "x-tollkeeper-team": "checkout", "x-user-id": "checkout"}},
    {"headers": {"x-tollkeeper-cache-threshold": "0", "cache-control": "only-if-cached, max-stale=9999"}},
    {"headers": {"idempotency-key": "one"}},
    {"user": "team checkout"},
    {"metadata": {"team": "checkout", "tenant": "team checkout"}},
    {"cache": {"threshold": 0, "share": "all", "namespace": "team checkout"}},
    {"safety_identifier": "team checkout", "prompt_cache_key": "team checkout"},
]


@pytest.mark.parametrize("wider", WIDER, ids=str)
async def test_no_header_and_no_field_makes_anybody_share_more(wider: dict[str, Any]) -> None:
    async with cached() as (gateway, up):
        await ask(gateway, **wider)
        await ask(gateway, headers={"idempotency-key": "one"})
        before = len(up.asked)
        assert word(await ask(gateway, key=OTHER, **wider)) == "miss"
        assert len(up.asked) == before + 1


def test_it_is_a_policy_like_any_other() -> None:
    """Only the hooks that every policy has, in the one order of config.yaml; the pipeline knows nothing of it."""
    assert {name for name in vars(Cache) if not name.startswith("_")} - {"Settings"} <= set(vars(Policy))
    assert "cache" not in inspect.getsource(pipeline).lower()
