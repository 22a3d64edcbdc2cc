"""The check beside nearness: how often it takes one question for another, measured on built-in pairs and printed."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.sameness import Depth, facts, may_be_same
from tests.questions_alike import DIFFERENT, SAME, pairs


def same(one: str, other: str, depth: Depth = "words") -> bool:
    first, second = facts(one), facts(other)
    assert first is not None
    assert second is not None
    return may_be_same(first, second, depth)


@pytest.mark.parametrize(("one", "other"), pairs(DIFFERENT))
def test_no_question_is_taken_for_one_that_only_looks_like_it(one: str, other: str) -> None:
    assert not same(one, other)
    assert not same(other, one)


@pytest.mark.parametrize("text", ["", "?", "x", "日本の首都はどこですか", "What is 5,000 + 5000?", "a" * 4000])
def test_each_is_the_same_as_itself(text: str) -> None:
    assert same(text, text)


def test_numbers_are_the_same_however_they_are_written() -> None:
    assert same("List 3 uses of it", "List three uses of it")
    assert same("What is 5,000 plus 2?", "What is 5000 plus two?")
    assert not same("What is 5.000 plus 2?", "What is 5000 plus 2?")  # a point may be a decimal's
    assert not same("at 6:30", "at 630")
    assert same("What is 50 percent of 10?", "What is 50% of 10?")


def test_lines_and_their_indentation_are_seen() -> None:
    assert not same("if a:\n    b\nc", "if a:\n    b\n    c")
    assert not same("1 2\n3", "1\n2 3")
    assert same("a\n\nb\n", "a\n\nb")


def test_what_is_too_long_is_not_compared() -> None:
    assert facts("x" * 4001) is None


def test_the_check_is_quick_on_hostile_texts() -> None:
    for text in (
        "'" * 4000,
        "a'" * 2000,
        "1,." * 1300,
        "http://" * 500,
        '"' * 4000,
        "é" * 4000,
        "a@" * 2000,
        "." * 4000,
        "a+" * 2000,
        "-" * 4000,
        "दि" * 2000,
        "\n " * 2000,
        "explain " * 500,
        "how " * 1000,
        "' a" * 1300,
    ):
        began = time.perf_counter()
        facts(text)
        assert time.perf_counter() - began < 0.02, text[:10]


def test_a_word_put_in_anothers_place_is_seen_wherever_it_stands() -> None:
    """Pairs that nobody made up with the check in mind: each word of each question, replaced by others in turn."""
    questions = [one for one, _ in pairs(SAME) + pairs(DIFFERENT)]
    words = sorted({word for question in questions for word in question.split()})
    chance = random.Random(5)
    seen = missed = 0
    for question in questions:
        parts = question.split()
        for at, part in enumerate(parts):
            for other in chance.sample(words, 10):
                alike = facts(part), facts(other)
                if alike[0] == alike[1] or not alike[0] or {part.lower(), other.lower()} <= {"a", "an", "the"}:
                    continue
                frame = {part.lower(), other.lower()} <= {"do", "can", "could"} or part.lower() == other.lower() == "i"
                if frame and "how" in [word.lower() for word in parts[max(0, at - 2) : at]]:
                    continue  # `how can I` is `how do I`
                seen += 1
                missed += same(question, instead := " ".join([*parts[:at], other, *parts[at + 1 :]]))
                assert not missed, (question, instead)
    print(f"{seen:,} questions with one word replaced: {missed} taken for the same")
    assert seen > 3000
    assert missed == 0


@pytest.fixture(scope="module")
def model() -> Any:
    wordllama = pytest.importorskip("wordllama")
    return wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)


@pytest.mark.parametrize("threshold", [0.8, 0.9, 0.95])
def test_false_hits_on_the_built_in_set(model: Any, threshold: float) -> None:
    rates: dict[str, tuple[float, float]] = {}
    for name, checks in (("cosine alone", None), ("with facts", "facts"), ("with words", "words")):
        hits = []
        for text in (SAME, DIFFERENT):
            found = pairs(text)
            near = [model.similarity(one, other) >= threshold for one, other in found]
            held = [checks is None or same(one, other, checks) for one, other in found]  # type: ignore[arg-type]
            hits.append(sum(a and b for a, b in zip(near, held, strict=True)) / len(found))
        rates[name] = hits[0], hits[1]
        print(
            f"cosine {threshold}: {name}: {hits[0]:.0%} of same pairs hit, {hits[1]:.1%} false hits of different ones"
        )
    assert rates["with words"][1] == 0
    assert rates["with facts"][1] < rates["cosine alone"][1] / 2
    assert rates["with words"][0] > 0.3
