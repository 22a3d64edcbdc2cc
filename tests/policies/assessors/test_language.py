"""A language is guessed from what there is; from too little it is not."""

from __future__ import annotations

import random

from bench import texts
from policies.assessors.language import guess
from tests.assessed import made, verdict


async def test_the_built_in_set_is_told_apart_but_for_a_few() -> None:
    language = made("language", allow=["en"])
    wrong = [one.text for one in texts.language() if ((await verdict(language, one.text)).score >= 0.5) != one.unsafe]
    assert len(wrong) <= 1


def test_short_texts_and_code_are_not_guessed() -> None:
    for text in ("", "ok", "x = y + 1; return z", "12345 67890", "Berlin"):
        assert guess(text) == ("", 0.0)


def test_a_text_of_ascii_is_read_faster_and_not_otherwise() -> None:
    rng = random.Random(11)
    words = [word for one in texts.language() for word in one.text.split()]
    for _ in range(400):
        text = " ".join([rng.choice((*words, "x" * rng.randint(28, 70), "a_b-c9")) for _ in range(rng.randint(0, 60))])
        text = text.encode("ascii", "ignore").decode()
        assert guess(text) == guess(text + "\u00a0"), text  # a blank beyond ASCII
