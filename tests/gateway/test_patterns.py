"""Patterns find what they say, in linear time, and a hint never misses what a pattern finds."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise

import pytest

from gateway.patterns import Expressions, Found, Rule, Rules, literal, merged


def test_a_rule_gives_places_and_no_letter_may_stand_before_it() -> None:
    rules = Rules([Rule("key", r"ab\d{3,}+", r"ab[0-9]{3}")])
    text = "ab123 xab123 \\nab1234 ab12"
    found = rules.find(text, text.encode())
    assert [text[one.start : one.end] for one in found] == ["ab123", "ab1234"]  # an escape's letter joins nothing
    assert [one.open for one in rules.find("ab123", b"ab123")] == [True]


def test_the_rule_that_stands_first_gives_the_label() -> None:
    rules = Rules([Rule("special", r"ab-x\d", r"ab-x"), Rule("any", r"ab-\w\d", r"ab-")])
    assert [one.label for one in merged(rules.find("ab-x1", b"ab-x1"))] == ["special"]


def test_places_that_overlap_become_one() -> None:
    found = [Found(5, 9, "b"), Found(0, 6, "a"), Found(9, 12, "c", True)]
    assert merged(found) == [Found(0, 9, "a"), Found(9, 12, "c", True)]


def test_a_phrase_matches_any_blanks_and_any_case_of_any_letter() -> None:
    pattern, hint = literal("Größe  zwei")
    rules = Rules([Rule("x", pattern, hint, bounded=False, caseless=True)])
    for text in ("GRÖßE\nzwei", "größe zwei"):
        assert rules.find(text, text.encode()), text


def test_expressions_are_bounded_in_what_they_tell() -> None:
    found = Expressions([("a", "a")]).find("a" * 5000)
    assert len(found) == 1001
    assert found[-1].end == 5000
    with pytest.raises(ValueError, match="repetition"):
        Expressions([("x", "(*)")])


def test_no_text_crashes_the_engine() -> None:
    """In a process of its own: a crash of native code would take the tests along."""
    code = """
import random
from policies.assessors import injection, personal_data, secrets, urls
from gateway.patterns import Hint, hinting
rules = [rule for module in (injection, personal_data, secrets, urls) for rule in module._RULES]
hints = [rule.hinted for rule in rules] + [Hint(rule.exact, rule.caseless) for rule in rules if rule.exact]
scan, rng = hinting(hints), random.Random(7)
parts = [hint.pattern.encode()[:12] for hint in hints] + [bytes([n]) for n in range(256)]
for _ in range(3000):
    hits = []
    scan(b"".join(rng.choice(parts) * rng.randint(1, 40) for _ in range(rng.randint(0, 60))), hits)
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "alive\n", done.stderr


def test_what_is_merged_covers_what_was_found() -> None:
    rng = random.Random(3)
    for _ in range(200):
        found = [Found(start := rng.randint(0, 30), start + rng.randint(1, 9), "x") for _ in range(rng.randint(0, 8))]
        covered = {at for one in found for at in range(one.start, one.end)}
        kept = merged(found)
        assert {at for one in kept for at in range(one.start, one.end)} == covered
        assert all(one.end <= other.start for one, other in pairwise(kept))
