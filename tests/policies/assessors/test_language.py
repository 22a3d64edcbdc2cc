"""A language is guessed from what there is; from too little it is not."""

from __future__ import annotations

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
