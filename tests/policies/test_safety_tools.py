"""What tools are called with: JSON in JSON is read as the text it stands for, code and free text as they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.policies.test_safety_endpoints import SECRET, SHOWN
from tests.running import config, running
from tests.scripted import Asked, say, scripted

CARD = "4111111111111111"
CODE = rf'open(r"C:\keys\{SECRET}") # dir\{CARD} x'
CLEAN = rf'open(r"C:\keys\{SHOWN}") # dir\[card] x'
LISTED = rf'["C:\keys\{SECRET}"]'  # code that begins as JSON does
SAFE = rf'["C:\keys\{SHOWN}"]'
REDACT = [{"use": "safety", "assessors": [{"use": use, "action": "redact"} for use in ("secrets", "personal_data")]}]
MASK = [{"use": "safety", "assessors": [{"use": "words", "topics": {"co": ['O"Neil \\ Sons']}, "action": "mask"}]}]


def events(*said: dict[str, Any]) -> list[bytes]:
    return [b"data: " + json.dumps(one).encode() + b"\n\n" for one in said]


async def both(path: str, call: dict[str, Any], said: Any, policies: list[dict[str, Any]] = REDACT) -> tuple[Any, str]:
    """What the provider was asked, and what the caller got: its JSON, or the text of its stream."""

    async def script(asked: Asked) -> None:
        await (say(asked, said) if isinstance(said, list) else asked.wire.whole(200, json.dumps(said).encode()))

    async with scripted(script) as up, running(config(up.url, policies=policies)) as gateway:
        more = {"stream": True} if isinstance(said, list) else {}
        response = await gateway.client.post(path, json={"model": "m", **call, **more})
        assert response.status_code == 200, response.text
        return up.asked[-1].json, response.text


def deltas(stream: str, type_: str) -> str:
    told = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    return "".join(one["delta"] for one in told if one["type"] == type_)


@pytest.mark.parametrize("kind", ["code_interpreter_call_code", "custom_tool_call_input"])
@pytest.mark.parametrize(("code", "clean"), [(CODE, CLEAN), (LISTED, SAFE)])
async def test_code_in_a_stream(kind: str, code: str, clean: str) -> None:
    type_, last = f"response.{kind}.delta", {"type": "response.completed", "response": {}}
    pieces = [{"type": type_, "item_id": "i", "output_index": 0, "delta": piece} for piece in (code[:14], code[14:])]
    _, got = await both("/v1/responses", {"input": "x"}, events(*pieces, last))
    assert deltas(got, type_) == clean


@pytest.mark.parametrize(("code", "clean"), [(CODE, CLEAN), (LISTED, SAFE)])
async def test_code_in_a_whole_answer_and_in_a_call(code: str, clean: str) -> None:
    called = {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": code}
    ran = {"type": "code_interpreter_call", "id": "i", "code": code}
    sent, got = await both("/v1/responses", {"input": [called]}, {"id": "r", "output": [called, ran]})
    assert sent["input"][0]["input"] == clean
    assert [json.loads(got)["output"][at][name] for at, name in ((0, "input"), (1, "code"))] == [clean, clean]


async def test_free_text_of_a_tool_in_chat() -> None:
    message = {
        "role": "assistant",
        "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": CODE}}],
    }
    answer = {"choices": [{"index": 0, "message": {"content": None, **message}, "finish_reason": "tool_calls"}]}
    sent, got = await both("/v1/chat/completions", {"messages": [message]}, answer)
    calls = sent["messages"][0]["tool_calls"], json.loads(got)["choices"][0]["message"]["tool_calls"]
    assert [call[0]["custom"]["input"] for call in calls] == [CLEAN] * 2


async def test_arguments_that_are_told_as_an_object() -> None:
    blocks = [{"type": "tool_use", "id": "t", "name": "f", "input": {"path": CODE}}]
    sent, got = await both(
        "/v1/messages", {"messages": [{"role": "assistant", "content": blocks}]}, {"content": blocks}
    )
    assert sent["messages"][0]["content"][0]["input"]["path"] == CLEAN
    assert json.loads(got)["content"][0]["input"]["path"] == CLEAN


@pytest.mark.parametrize("before", ["", "\ufeff", "```json\n", "null", " (", 'k":"'])
@pytest.mark.parametrize("stream", [False, True])
async def test_arguments_are_read_as_what_they_stand_for_whatever_stands_before(before: str, stream: bool) -> None:
    arguments = before + json.dumps({"a": f"x {SECRET}", "b": "\U0001f4a3"}).replace("IA", "\\u0049A")
    assert SECRET not in arguments
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}
    type_ = "response.function_call_arguments.delta"
    cut = [{"type": type_, "item_id": "i", "delta": arguments[at : at + 3]} for at in range(0, len(arguments), 3)]
    said: Any = events(*cut, {"type": "response.completed", "response": {}}) if stream else {"output": [call]}
    sent, got = await both("/v1/responses", {"input": [call]}, said)
    back = deltas(got, type_) if stream else json.loads(got)["output"][0]["arguments"]
    for one in (sent["input"][0]["arguments"], back):
        assert one == arguments.replace("AK\\u0049A" + SECRET[4:], SHOWN)


@pytest.mark.parametrize("kind", ["code_interpreter_call_code", "custom_tool_call_input", "function_call_arguments"])
async def test_what_was_masked_comes_back_as_the_text_is_written(kind: str) -> None:
    name = 'O"Neil \\ Sons'
    text = "for [CO_1]" if "arguments" not in kind else '{"for": "[CO_1]"}'
    back = text.replace("[CO_1]", name if "arguments" not in kind else json.dumps(name)[1:-1])
    field = kind.rpartition("_")[2]
    type_ = f"response.{kind}.delta"
    pieces = [{"type": type_, "item_id": "i", "output_index": 0, "delta": piece} for piece in (text[:7], text[7:])]
    done = {"type": f"response.{kind}.done", "item_id": "i", "output_index": 0, field: text}
    last = {"type": "response.completed", "response": {}}
    sent, got = await both("/v1/responses", {"input": f"Of {name}."}, events(*pieces, done, last), MASK)
    assert sent["input"] == "Of [CO_1]."
    assert deltas(got, type_) == back
    assert [json.loads(line[6:]).get(field) for line in got.splitlines() if ".done" in line] == [back]


@pytest.mark.parametrize("kind", ["code_interpreter_call_code", "custom_tool_call_input", "function_call_arguments"])
async def test_an_assessor_of_calls_alone_sees_them_where_they_are_said_again(kind: str) -> None:
    policies = [{"use": "safety", "assessors": [{"use": "secrets", "action": "redact", "stages": ["tool_arguments"]}]}]
    field = kind.rpartition("_")[2]
    done = {"type": f"response.{kind}.done", "item_id": "i", "output_index": 0, field: f'"{SECRET}"'}
    _, got = await both("/v1/responses", {"input": "x"}, events(done, {"type": "response.completed"}), policies)
    assert SECRET not in got
    assert SHOWN in got
