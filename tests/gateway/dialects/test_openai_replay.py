"""A stream and the whole answer say the same, whichever of them came first."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demo.asked import Prefixes
from gateway.demo.chat import chat
from gateway.dialects import Chunk, openai
from gateway.dialects.openai_replay import gather, look, replay, without_usage

TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("weather", "traffic")]


def chunks_of(whole: bytes, usage: bool = True, pieces: bool = False) -> list[Chunk]:
    chunks = replay(whole, usage, pieces)
    assert chunks is not None
    return list(chunks)


def stream_of(whole: bytes, usage: bool = True, pieces: bool = False) -> bytes:
    return b"".join(chunk.raw for chunk in chunks_of(whole, usage, pieces))


def simulated(**body: Any) -> tuple[Any, bytes]:
    """The simulator's whole answer and its stream, of the same call."""
    call = {"model": "sim-small", "messages": [{"role": "user", "content": "Please use tools."}], **body}
    whole = chat(call, Prefixes())
    stream = chat(call | {"stream": True, "stream_options": {"include_usage": True}}, Prefixes())
    return json.loads(_bytes(whole)), _bytes(stream)


def _bytes(reply: Any) -> bytes:
    return b"".join(step.data for step in reply.steps)


def plain(value: Any) -> Any:
    """Without what means nothing: null, and an empty list, beside a field that is not there."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if inner is not None and inner != []}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("body", [{}, {"n": 3}, {"tools": TOOLS}, {"tools": TOOLS, "n": 2}, {"max_tokens": 3}])
def test_a_providers_stream_gathers_to_its_own_whole_answer(body: dict[str, Any]) -> None:
    whole, stream = simulated(**body)
    gathered = gather(stream)
    assert gathered is not None
    assert plain(json.loads(gathered)) == plain(whole)


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("body", [{}, {"n": 3}, {"tools": TOOLS}, {"tools": TOOLS, "n": 2}])
def test_a_whole_answer_replayed_and_gathered_is_itself(body: dict[str, Any], pieces: bool) -> None:
    whole, _ = simulated(**body)
    gathered = gather(stream_of(json.dumps(whole).encode(), pieces=pieces))
    assert gathered is not None
    assert plain(json.loads(gathered)) == plain(whole)


text = st.text(st.characters(codec="utf-8"), max_size=40)
call = st.fixed_dictionaries(
    {"id": text, "type": st.just("function"), "function": st.fixed_dictionaries({"name": text, "arguments": text})}
)
message = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | text},
    optional={
        "reasoning_content": text,
        "refusal": text,
        "vendor_word": text,
        "annotations": st.lists(st.fixed_dictionaries({"url": text}), max_size=2),
        "tool_calls": st.lists(call, min_size=1, max_size=3),
    },
)
logprobs = st.fixed_dictionaries({"content": st.lists(st.fixed_dictionaries({"token": text}), min_size=1, max_size=3)})
choice = st.fixed_dictionaries(
    {"message": message, "finish_reason": st.sampled_from(["stop", "tool_calls"])},
    optional={"logprobs": logprobs, "content_filter_results": st.fixed_dictionaries({"hate": text})},
)


@given(st.lists(choice, min_size=1, max_size=3), st.booleans())
def test_every_field_survives_both_ways(choices: list[Any], pieces: bool) -> None:
    choices = [{"index": index, **one} for index, one in enumerate(choices)]
    whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "vendor": {"a": 1}}
    whole |= {"choices": choices, "usage": {"prompt_tokens": 1, "odd": [1, None]}}
    gathered = gather(stream_of(json.dumps(whole).encode(), pieces=pieces))
    assert gathered is not None
    for one in choices:  # an empty text beside tool calls is none
        if one["message"].get("tool_calls") and not one["message"]["content"]:
            one["message"]["content"] = None
    assert plain(json.loads(gathered)) == plain(whole)


@given(st.lists(text, min_size=1, max_size=3), st.booleans())
def test_completions_likewise(texts: list[str], pieces: bool) -> None:
    choices = [{"text": one, "index": at, "logprobs": None, "finish_reason": "stop"} for at, one in enumerate(texts)]
    whole = {"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": choices}
    gathered = gather(stream_of(json.dumps(whole).encode(), pieces=pieces))
    assert gathered is not None
    assert plain(json.loads(gathered)) == plain(whole)


def test_a_stream_tells_its_text_its_usage_only_where_asked_and_its_end() -> None:
    whole, _ = simulated()
    raw = json.dumps(whole).encode()
    chunks = chunks_of(raw, True, True)
    assert "".join(chunk.text or "" for chunk in chunks) == whole["choices"][0]["message"]["content"]
    assert [chunk.last for chunk in chunks[-2:]] == [False, True]
    assert b'"usage"' in chunks[-1].raw
    assert b'"usage"' not in stream_of(raw, usage=False)
    assert without_usage(chunks[-1].raw) == b"data: [DONE]\n\n"


@pytest.mark.parametrize(("text", "other"), [("content", "reasoning_content"), ("refusal", "reasoning")])
def test_log_probabilities_stand_with_the_text_that_they_are_of(text: str, other: str) -> None:
    message = {"role": "assistant", "content": None, other: "hm", text: "yes"}
    whole = {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "logprobs": {text: [{"token": "yes"}]}}],
    }
    deltas = [
        json.loads(chunk.raw[6:])["choices"][0]
        for chunk in chunks_of(json.dumps(whole).encode(), False, True)
        if not chunk.last
    ]
    assert [one["delta"] for one in deltas if one.get("logprobs")] == [{text: "yes"}]


def test_the_dialects_own_reader_understands_a_replay() -> None:
    whole, _ = simulated(tools=TOOLS)
    reader = openai.reader(True, False, True)
    chunks = reader.feed(stream_of(json.dumps(whole).encode(), pieces=True))
    assert chunks[-1].last
    assert chunks[-1].usage is not None
    assert reader.answer.finish == ["tool_calls"]
    assert reader.answer.tool_calls == 2


BAD = {
    "no Unicode": b'data: {"note":"\xff","choices":[]}\n\ndata: [DONE]\n\n',
    "no end": b'data: {"choices":[]}\n\n',
    "no json": b"data: {\n\ndata: [DONE]\n\n",
    "no object": b"data: 1\n\ndata: [DONE]\n\n",
    "sound": b'data: {"choices":[{"delta":{"audio":{"data":"aa"}}}]}\n\ndata: [DONE]\n\n',
    "a choice that is none": b'data: {"choices":[1]}\n\ndata: [DONE]\n\n',
}


@pytest.mark.parametrize("stream", BAD.values(), ids=BAD)
def test_what_cannot_be_gathered_is_not_guessed(stream: bytes) -> None:
    assert gather(stream) is None


def test_what_decides_whether_an_answer_may_be_kept() -> None:
    whole, _ = simulated(tools=TOOLS)
    found = look(json.dumps(whole).encode())
    assert found is not None
    assert found.finish == ["tool_calls"]
    assert found.tools == ["weather", "traffic"]
    assert look(b'{"choices":[{"message":{"function_call":{"name":"pay"}}}]}') == ([""], ["pay"], 0)
    assert look(b'{"data":[{"embedding":[1]},{"embedding":[2]}]}') == ([], [], 2)
    assert look(b'{"choices":[],"error":null}') == ([], [], 0)
    assert look(b'{"choices":[],"error":{"code":1}}') is None
    assert look(b"{") is None


@pytest.mark.parametrize("end", [b"\r\n", b"\r", b"\n"])
def test_lines_may_end_in_any_way_that_the_format_has(end: bytes) -> None:
    first = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}'
    second = b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}'
    whole = gather(end.join([first, b"", second, b"", b""]) + b"data: [DONE]\n\n")
    assert whole is not None
    assert json.loads(whole)["choices"][0]["message"]["content"] == "ab"


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        ([[{"type": "thinking"}], "answer"], None),
        (["Hello ", [{"type": "text", "text": "world"}]], None),
        (["", [{"type": "text", "text": "world"}]], [{"type": "text", "text": "world"}]),
        (["Hello", []], "Hello"),
    ],
)
def test_texts_in_two_shapes_are_not_made_one(pieces: list[Any], whole: Any) -> None:
    events = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    gathered = gather(stream + b"data: [DONE]\n\n")
    assert (gathered and json.loads(gathered)["choices"][0]["message"]["content"]) == whole


def test_two_calls_in_one_place_are_not_made_one() -> None:
    def call(id: str, name: str) -> bytes:
        function = {"name": name, "arguments": "{}"}
        delta = {"tool_calls": [{"index": 0, "id": id, "type": "function", "function": function}]}
        return b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()

    assert gather(call("call_1", "look") + call("call_2", "delete_all") + b"data: [DONE]\n\n") is None
    assert gather(call("call_1", "look") + call("call_1", "look") + b"data: [DONE]\n\n") is not None


UNTOLD = {
    "no Unicode": b'{"choices":[{"message":{"content":"\xff"}}]}',
    "no json": b"{",
    "no object": b"[]",
    "a choice that is none": b'{"choices":[1]}',
    "a call that is none": b'{"choices":[{"message":{"tool_calls":[5]}}]}',
    "a text that is none": b'{"choices":[{"text":5}]}',
    "too deep": b'{"a":' * 5000,
}


@pytest.mark.parametrize("whole", UNTOLD.values(), ids=UNTOLD)
def test_what_cannot_be_told_as_a_stream_is_not_begun_and_not_kept(whole: bytes) -> None:
    assert replay(whole, True, False) is None
    assert look(whole) is None
