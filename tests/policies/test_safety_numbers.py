"""Numbers are judged where nobody says what they are, and what stands in their place leaves JSON what it was: JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.policies.test_safety import safety
from tests.policies.test_safety_lanes import native
from tests.running import config, running
from tests.scripted import DONE, Asked, answer, event, say, scripted

CARD = 4111111111111111
REDACT = safety({"use": "personal_data", "action": "redact"})


def calls(arguments: str) -> list[dict[str, Any]]:
    return [{"index": 0, "id": "c", "type": "function", "function": {"name": "pay", "arguments": arguments}}]


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ('{"amount":12,"card":4111111111111111,"ok":true}', {"amount": 12, "card": "[card]", "ok": True}),
        ('[4111111111111111, "4111111111111111"]', ["[card]", "[card]"]),
        (' {"a\\"b":4111111111111111}', {'a"b': "[card]"}),
        ('{"a":"\\\\","b":4111111111111111,"c":"\\u0034111111111111111"}', {"a": "\\", "b": "[card]", "c": "[card]"}),
        ('{"a":"x \\" 4111111111111111","b":"4111111111111111 y"}', {"a": 'x " [card]', "b": "[card] y"}),
    ],
)
async def test_arguments_of_a_tool_call_stay_json(source: str, left: Any) -> None:
    async def script(asked: Asked) -> None:
        if asked.json.get("stream"):
            pieces = [event({"tool_calls": calls(one)}) for one in source]
            await say(asked, [*pieces, event({}, "tool_calls"), DONE])
        else:
            message = {"role": "assistant", "content": None, "tool_calls": calls(source)}
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
            await asked.wire.whole(200, answer(choices=[choice]))

    call = {"messages": [{"role": "assistant", "tool_calls": calls(source)}]}
    async with scripted(script) as up, running(config(up.url, policies=REDACT)) as gateway:
        whole = (await gateway.chat(**call)).json()["choices"][0]["message"]
        streamed = (await gateway.chat(stream=True, **call)).text
    assert json.loads(whole["tool_calls"][0]["function"]["arguments"]) == left
    assert json.loads(up.asked[0].json["messages"][0]["tool_calls"][0]["function"]["arguments"]) == left
    said = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for one in said for choice in one["choices"]]
    heard = "".join(one["tool_calls"][0]["function"]["arguments"] for one in deltas if "tool_calls" in one)
    assert json.loads(heard) == left


async def test_a_text_that_is_no_json_gets_no_quotes() -> None:
    async def script(asked: Asked) -> None:
        said = [
            {"type": "response.custom_tool_call_input.delta", "item_id": "i", "delta": f'Pay "{CARD} and {CARD} now'}
        ]
        await say(asked, native(*said))

    async with scripted(script) as up, running(config(up.url, policies=REDACT)) as gateway:
        response = await gateway.client.post("/v1/responses", json={"model": "m", "stream": True})
    assert 'Pay \\"[card] and [card] now' in response.text


@pytest.mark.parametrize(
    "made",
    [
        lambda card: {"type": "message", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"card": card}}]},
        lambda card: {"type": "message", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"cards": [1, card]}}]},
        lambda card: {"choices": [], "mine": {"a": {"n": card}, "at": 1700000000000, "small": 1234567, "ok": True}},
    ],
)  # fmt: skip
async def test_numbers_in_objects_of_anybodys_own_are_judged(made: Any) -> None:
    async def script(asked: Asked) -> None:
        if asked.json.get("stream"):
            await say(asked, native(made(CARD)))
        else:
            await asked.wire.whole(200, json.dumps(made(CARD)).encode())

    async with scripted(script) as up, running(config(up.url, policies=REDACT)) as gateway:
        for stream in (False, True):
            response = await gateway.client.post("/v1/messages", json={"model": "m", "stream": stream})
            text = (
                next(line[6:] for line in response.text.splitlines() if line.startswith("data: {"))
                if stream
                else response.text
            )
            assert json.loads(text) == made("[card]")


async def test_numbers_that_a_caller_sends_are_judged_and_those_of_a_schema_are_not() -> None:
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"card": float(CARD)}}
    tools = [{"name": "f", "input_schema": {"properties": {"n": {"type": "integer", "maximum": CARD}}}}]
    call = {
        "model": "m",
        "messages": [{"role": "assistant", "content": [use]}],
        "tools": tools,
        "metadata": {"n": CARD},
    }

    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, b"{}")

    async with scripted(script) as up, running(config(up.url, policies=REDACT)) as gateway:
        await gateway.client.post("/v1/messages", json=call)
    assert up.asked[0].json["messages"][0]["content"][0]["input"] == {"card": "[card]"}
    assert up.asked[0].json["metadata"] == {"n": "[card]"}
    assert up.asked[0].json["tools"] == tools


@pytest.mark.parametrize(
    "number",
    [
        "4111111111111111e0",
        "4.111111111111111e15",
        "4.111111111111111E+15",
        "41111111111111110e-1",
        "4111111111111111.0",
        "4111111111111110.9999999",
    ],
)
async def test_a_number_is_found_however_it_is_written(number: str) -> None:
    said = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"context":{"card":%b}}'

    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, said % number.encode())

    async with scripted(script) as up, running(config(up.url, policies=REDACT)) as gateway:
        call = '{"model":"m","messages":[{"role":"user","content":"hi"}],"metadata":{"card":' + number + "}}"
        headers = {"content-type": "application/json"}
        response = await gateway.client.post("/v1/chat/completions", content=call, headers=headers)
        assert up.asked[0].json["metadata"] == {"card": "[card]"}
    assert response.json()["context"] == {"card": "[card]"}
