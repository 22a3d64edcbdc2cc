"""Counting and making up text."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.demo.language import compose, fit, seed_of, tokenize


@given(st.text())
def test_the_tokens_of_a_text_are_the_text(text: str) -> None:
    assert "".join(tokenize(text)) == text


def test_a_token_is_at_most_eight_letters_three_digits_or_one_sign() -> None:
    assert tokenize("Hello, wonderful 12345\n") == ["Hello", ",", " wonderfu", "l", " 123", "45", "\n"]


@given(st.integers(0, 2**64 - 1))
def test_an_answer_counts_again_to_what_it_was_composed_of(seed: int) -> None:
    tokens, cut = compose(seed)
    assert tokenize("".join(tokens)) == tokens
    assert not cut
    assert 16 <= len(tokens) <= 600


def test_an_answer_depends_on_its_seed_alone_and_is_cut_at_its_limit() -> None:
    assert compose(7) == compose(7)
    assert compose(7) != compose(8)
    tokens, cut = compose(7, 5)
    assert cut
    assert tokens == compose(7)[0][:5]


def test_a_seed_tells_where_one_part_ends_and_the_next_begins() -> None:
    assert seed_of("ab", "c") != seed_of("a", "bc")


def test_a_value_fits_its_schema() -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 30, "maxLength": 32},
            "age": {"type": "integer", "minimum": 18, "maximum": 20},
            "even": {"type": "integer", "multipleOf": 2, "minimum": 7, "maximum": 9},
            "mood": {"enum": ["good", "bad"]},
            "kind": {"const": "person"},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 3},
            "share": {"type": "number", "minimum": 0, "maximum": 1},
            "born": {"type": "string", "format": "date"},
            "none": {"type": "null"},
            "sure": {"type": "boolean"},
        },
        "required": ["name"],
    }
    value = fit(schema, 1)
    assert 30 <= len(value["name"]) <= 32
    assert 18 <= value["age"] <= 20
    assert value["even"] == 8
    assert value["mood"] in ("good", "bad")
    assert value["kind"] == "person"
    assert len(value["tags"]) == 3
    assert 0 <= value["share"] <= 1
    assert value["born"] == "2026-01-02"
    assert value["none"] is None
    assert isinstance(value["sure"], bool)


def test_a_schema_that_refers_to_itself_ends() -> None:
    node = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["next"],
    }
    value = fit({"$ref": "#/$defs/node", "$defs": {"node": node}}, 1)
    depth = 0
    while value is not None:
        value, depth = value["next"], depth + 1
    assert 1 <= depth < 10
