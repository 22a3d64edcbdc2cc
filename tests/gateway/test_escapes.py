"""The source of a JSON string, read however it is cut; places lead back to whole escapes."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.escapes import Escapes
from gateway.patterns import Found


@given(st.text(max_size=30), st.booleans(), st.lists(st.integers(1, 5), max_size=40))
def test_it_reads_what_json_reads(text: str, ascii: bool, sizes: list[int]) -> None:
    text = "".join(letter for letter in text if letter < "\ud800" or "\ue000" <= letter < "\U00010000")
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


def test_what_lies_before_is_forgotten_and_what_lies_behind_is_found() -> None:
    escapes, whole = Escapes(), Escapes()
    for at in range(1000):
        for one in (escapes, whole):
            one.feed("\\n\\u0041 x")
        escapes.forget(escapes.size - 9)
        for place in range(escapes.size - 9, escapes.size + 1):
            assert escapes.source(place) == whole.source(place), (at, place)
    assert len(escapes._plains) < 30
