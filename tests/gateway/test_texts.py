"""Texts are joined for one look, and places lead back to the parts they stand in."""

from __future__ import annotations

from gateway.dialects import Part
from gateway.judging import Rule
from gateway.patterns import Found
from gateway.texts import SEPARATOR, Texts
from tests.assessed import made


def rule(*stages: str) -> Rule:
    return Rule(made("length"), "redact", frozenset(stages))


PARTS = [
    Part(("messages", 0, "content"), "first", "instructions"),
    Part(("messages", 1, "content", 0, "text"), "sec", "input"),
    Part(("messages", 1, "content", 1, "text"), "ret", "input"),
    Part(("messages", 2, "content"), "", "media"),
    Part(("messages", 3, "tool_calls", 0, "function", "arguments"), '{"a":"x\\ny"}', "tool_arguments"),
]


def test_a_rule_sees_its_stages_and_parts_of_one_message_together_as_well() -> None:
    texts = Texts(PARTS)
    assert texts.media
    assert [joined.text for _, joined in texts.of(rule("instructions"))] == ["first"]
    assert [joined.text for _, joined in texts.of(rule("input"))] == [SEPARATOR.join(["sec", "ret"]), "secret"]


def test_what_is_found_over_two_parts_is_taken_out_of_both() -> None:
    texts = Texts(PARTS)
    _, joined = texts.of(rule("input"))[1]
    edits = joined.placed([Found(1, 5, "x", False, "[x]")])
    assert texts.changed(edits) == {PARTS[1].place: "s[x]", PARTS[2].place: "t"}


def test_what_is_found_in_the_source_of_json_is_taken_out_with_its_escapes() -> None:
    texts = Texts(PARTS)
    _, joined = texts.of(rule("tool_arguments"))[0]
    assert joined.text == '{"a":"x\ny"}'
    at = joined.text.index("\n")
    edits = joined.placed([Found(at, at + 2, "x", False, "[x]")])
    assert texts.changed(edits) == {PARTS[4].place: '{"a":"x[x]"}'}
