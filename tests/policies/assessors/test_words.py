"""Listed words are found as whole words, in any case and script; expressions run in linear time."""

from __future__ import annotations

import time

import pytest

from tests.assessed import hinted, made, places, same_in_pieces


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("about PROJECT   kestrel.", ["PROJECT   kestrel"]),
        ("project\nkestrel", ["project\nkestrel"]),
        ("projects kestrel", []),
        ("aproject kestrel", []),
        ("die ÖLPREISABSPRACHE", ["ÖLPREISABSPRACHE"]),
        ("关于内部机密的", ["内部机密"]),
        ("c++ and c", ["c++"]),
    ],
)
def test_whole_words_in_any_case(text: str, found: list[str]) -> None:
    words = made("words", words=["Project Kestrel", "Ölpreisabsprache", "内部机密", "C++"])
    assert [one for _, one in places(words, text)] == found
    assert hinted(words, text)
    same_in_pieces(words, f"x {text} y")


def test_a_topic_is_told_by_its_name() -> None:
    assert places(made("words", topics={"weapons": ["gun"]}), "a gun") == [("weapons", "gun")]


def test_expressions_of_an_operator_cannot_take_long() -> None:
    words = made("words", patterns={"bomb": r"(a+)+$", "x": r"(x|xx)*y"})
    began = time.perf_counter()
    words.scan("a" * 20_000 + "!" + "x" * 20_000)
    assert time.perf_counter() - began < 1
    assert places(made("words", patterns={"k": r"kilo\d+"}), "a KILO12 b") == [("k", "KILO12")]
