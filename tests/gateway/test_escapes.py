"""The source of a JSON string, read however it is cut; places lead back to whole escapes."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.escapes import Escapes
from gateway.patterns import Found


@given(st.text(max_size=30), st.booleans(), st.lists(st.integers(1, 5), max_size=40))
def test_it_reads_what_json_reads(text: str, ascii: bool, sizes: list[int]) -> None:
    text = "".join(letter for letter in text if letter < "\ud800" or letter >= "\ue000")
    source = json.dumps(text, ensure_ascii=ascii)[1:-1]
    escapes, read, rest = Escapes(), "", source
    for size in sizes:
        read += escapes.feed(rest[:size])
        rest = rest[size:]
    read += escapes.feed(rest, True)
    assert read == text
    for place in range(len(text) + 1):
        at = escapes.source(place)
        assert json.loads(f'"{source[:at]}"') == text[:place]


def test_a_replacement_is_written_as_json_wants_it() -> None:
    escapes = Escapes()
    assert escapes.feed('a\\n\\u0041b"c', True) == 'a\nAb"c'
    assert escapes.placed(Found(2, 4, "x", False, 'say "no"')) == Found(3, 10, "x", False, 'say \\"no\\"')


def test_halves_of_a_character_make_one_however_they_are_cut() -> None:
    source = '{"a":"x \\ud83d\\udca3 y \\ud83d z \\\\ud83d \\\\\\ud83d\\uDCA3"}'
    for cut in range(len(source)):
        for second in range(cut, len(source)):
            escapes = Escapes()
            read = escapes.feed(source[:cut]) + escapes.feed(source[cut:second]) + escapes.feed(source[second:], True)
            assert read == '{"a":"x \U0001f4a3 y \ufffd z \\ud83d \\\U0001f4a3"}', (cut, second)
            assert escapes.source(read.index("y")) == source.index("y")


def test_what_lies_before_is_forgotten_and_what_lies_behind_is_found() -> None:
    escapes, whole = Escapes(), Escapes()
    for at in range(1000):
        for one in (escapes, whole):
            one.feed("\\n\\u0041 x")
        escapes.forget(escapes.size - 9)
        for place in range(escapes.size - 9, escapes.size + 1):
            assert escapes.source(place) == whole.source(place), (at, place)
    assert len(escapes._plains) < 30


@given(
    st.lists(st.sampled_from(['"', "\\", '\\"', "\\\\", "a", "4", ",", "\\u0022"]), max_size=30),
    st.lists(st.integers(0, 40), max_size=8),
    st.integers(1, 5),
)
def test_a_replacement_is_quoted_where_the_source_is_in_no_string(
    parts: list[str], places: list[int], step: int
) -> None:
    source = "{" + "".join(parts)
    escapes = Escapes()
    text = ""
    for at in range(0, len(source), step):
        text += escapes.feed(source[at : at + step], at + step >= len(source))
    for place in places:
        start = escapes.source(min(place, len(text)))
        inside = escaped = False
        for letter in source[:start]:
            inside ^= letter == '"' and not escaped
            escaped = letter == "\\" and not escaped
        here = escapes.placed(Found(min(place, len(text)), len(text), "x", False, "y"))
        assert here.replacement == ("y" if inside else '"y"')


def test_what_is_a_string_is_known_although_what_lies_before_is_forgotten() -> None:
    escapes, whole = Escapes(), Escapes()
    for at in range(1000):
        for one in (escapes, whole):
            one.feed('[\\"12"34' if at % 3 else '[1"34\\\\"')
        escapes.forget(escapes.size - 9)
        for place in range(escapes.size - 9, escapes.size + 1):
            found = Found(place, escapes.size, "x", False, "y")
            assert escapes.placed(found) == whole.placed(found), (at, place)
    assert len(escapes._pieces) < 10
