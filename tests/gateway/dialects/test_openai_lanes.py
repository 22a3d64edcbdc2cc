"""Which strings of two events are one text; tests/policies/test_safety_lanes.py shows what follows from it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.dialects import openai
from gateway.dialects.openai_lanes import group_of, tokens


def read(said: Any) -> list[tuple[Any, Any]]:
    """(lane, run) of each text."""
    return [(part.lane, part.run) for part in openai.read_said(msgspec.json.encode(said))[0]]


@pytest.mark.parametrize(
    ("said", "run"),
    [
        ({"text": "a"}, ("text",)),
        ([{"generated_text": "a"}], ("generated_text",)),
        ({"candidates": [{"content": {"parts": [{"text": "a"}]}}]}, ("candidates", 0, "content", "parts")),
        ({"candidates": [{"index": 3, "content": {"text": "a"}}]}, ("candidates", 3, "content", "text")),
        ({"output": [{"content": [{"text": "a"}]}]}, ("output", "content")),
        ({"mine": ["a"]}, ("mine", 0)),
        ({"tool_calls": [{"function": {"arguments": "{}"}}]}, ("tool_calls", 0, "function", "arguments")),
        ({"type": "token", "content": "a"}, ("content",)),
        ({"type": "response.done", "content": "a"}, None),
        ({"responseId": "a b"}, None),
        ({"created_at": "a b"}, None),
        ({"name": "a b"}, None),
        ({"text": "2026-01-02T03:04:05Z"}, None),
    ],
)  # fmt: skip
def test_what_stands_at_one_place_is_one_text_unless_it_looks_whole(said: Any, run: Any) -> None:
    assert [found for found in read(said) if found[0] is None][-1] == (None, run)


def test_deltas_are_known_by_what_they_belong_to_and_joined_with_others_of_their_type() -> None:
    def said(index: int, **delta: str) -> Any:
        return {"type": "content_block_delta", "index": index, "delta": delta}

    (first,), (second,), (call,) = read(said(0, text="a")), read(said(1, text="b")), read(said(2, partial_json="{"))
    assert first[0] != second[0]
    assert first[1] == second[1] is not None
    assert call[1] is None
    assert group_of({"index": 1, "item_id": "x", "output_index": None}) == (0, 1, "x", 0, 0)


def test_parts_of_a_list_in_a_delta_are_one_text_and_calls_are_not() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    calls = [{"index": at, "function": {"arguments": "{"}} for at in (0, 1)]
    found = read({"choices": [{"index": 0, "delta": {"content": parts, "tool_calls": calls}}]})
    assert found[0] == found[1]
    assert found[0][0] == found[0][1]
    assert found[0][0] == read({"choices": [{"index": 0, "delta": {"content": "a"}}]})[0][0]
    assert found[2][0] != found[3][0]
    assert found[2][1] is None


def test_log_probabilities_are_the_text_that_they_repeat() -> None:
    assert tokens({"content": [{"token": "a"}, {"token": "b"}], "refusal": None}) == "ab"
    assert tokens([{"token": "a"}, {"logprob": 1}]) == "a"
    assert tokens({"tokens": ["a", "b"], "token_logprobs": [0.5]}) == "ab"
