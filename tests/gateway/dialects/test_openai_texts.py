"""Every text of a call or an answer is found, whatever its field is called, and can be changed by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.dialects import NAME, openai
from tests.scripted import event


def asked(**call: Any) -> list[tuple[str, str]]:
    return [(part.kind, part.text) for part in openai.read_asked(json.dumps(call, separators=(",", ":")).encode())]


def test_texts_are_told_by_what_they_are_for() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    messages: list[Any] = [
        {"role": "system", "content": "be kind"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "hi"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
    ]
    found = asked(
        model="m", messages=messages, tools=[{"type": "function", "function": {"description": "does"}}], user="me"
    )
    assert found == [
        ("instructions", "be kind"), ("input", "hi"), ("media", ""), ("media", ""), ("tool_text", "f"),
        ("tool_arguments", '{"a":1}'), ("tool_results", "42"), ("tool_definitions", "does"), ("input", "me"),
    ]  # fmt: skip


def test_a_long_identifier_and_a_long_name_are_text() -> None:
    assert asked(model="m", input=[{"id": "a" * 65, "type": "t"}]) == [("input", "a" * 65)]
    assert asked(model="m", input=[{"id": "a b", "type": "t"}]) == [("input", "a b")]


def test_what_somebody_chose_is_read_names_too_and_what_the_api_has_is_not() -> None:
    assert asked(model="m", temperature=1, metadata={"id": "a", "temperature": "b"}) == [("input", "a"), ("input", "b")]
    found = openai.read_asked(b'{"model":"m","y":1,"metadata":{"of_mine":{"type":"object"}}}')
    assert [(part.place, part.text) for part in found] == [
        (("y", NAME), "y"),
        (("metadata", "of_mine", NAME), "of_mine"),
    ]


def test_prompts_of_tokens_are_media_for_nobody_can_read_them() -> None:
    assert asked(model="m", prompt=[1, 2]) == [("media", "")]
    assert asked(model="m", input=["a", [1]]) == [("media", ""), ("input", "a")]


@pytest.mark.parametrize("body", [b"{", b'{"a":{"b":1,"b":2}}', b'{"a":' + b"[" * 300 + b'"x"' + b"]" * 300 + b"}"])
def test_what_could_be_read_in_two_ways_is_not_read(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        openai.read_asked(body)


def test_deltas_of_one_text_share_a_lane_by_their_own_index() -> None:
    one = event({"tool_calls": [{"index": 1, "function": {"arguments": "{"}}]})[6:-2]
    two = event(
        {"tool_calls": [{"index": 0, "function": {"arguments": "a"}}, {"index": 1, "function": {"arguments": "}"}}]}
    )[6:-2]
    (first,), _ = openai.read_said(one)
    (other, second), _ = openai.read_said(two)
    assert first.lane == second.lane != other.lane
    whole, ended = openai.read_said(event({}, "stop")[6:-2])
    assert (whole, ended) == ([], [("choice", 0)])


def test_an_event_of_another_shape_has_lanes_too_and_says_when_they_end() -> None:
    delta = {"type": "response.output_text.delta", "item_id": "i", "output_index": 0, "content_index": 1, "delta": "x"}
    (part,), ended = openai.read_said(json.dumps(delta).encode())
    assert (part.text, part.kind, ended) == ("x", "output", [])
    assert part.lane is not None
    assert part.run is not None  # whatever item it stands in
    (part,), ended = openai.read_said(b'{"type":"response.output_text.done","text":"x"}')
    assert (part.lane, part.run, ended) == (None, None, [()])


def test_a_text_is_changed_and_nothing_else() -> None:
    raw = (
        b'{ "n": 1.50e3, "choices":[{"index":0,"message":{"content":"a\\u0062"},"logprobs":{"content":[]}}],"x":null }'
    )
    changed = openai.write_texts(raw, {("choices", 0, "message", "content"): 'say "é"'})
    assert changed == (
        '{"n":1.50e3,"choices":[{"index":0,"message":{"content":"say \\"é\\""},"logprobs":null}],"x":null}'.encode()
    )
