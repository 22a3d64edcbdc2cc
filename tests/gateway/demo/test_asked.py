"""The fields that all endpoints read."""

import pytest

from gateway.demo.asked import Prefixes, images_in, model_of, text_of, whole_of
from gateway.demo.language import tokenize
from gateway.demo.reply import Refusal


@pytest.mark.parametrize(
    ("body", "embeds", "status", "code"),
    [
        ({}, False, 400, None),
        ({"model": "gpt-9"}, False, 404, "model_not_found"),
        ({"model": "sim-embed"}, False, 404, None),
        ({"model": "sim-small"}, True, 404, None),
    ],
)
def test_a_model_that_cannot_answer_is_refused(body: dict[str, str], embeds: bool, status: int, code: str) -> None:
    with pytest.raises(Refusal) as refused:
        model_of(body, embeds)
    assert (refused.value.status, refused.value.error["code"]) == (status, code)


def test_a_number_is_whole_and_large_enough() -> None:
    assert whole_of({"b": 3}, "a", "b") == 3
    assert whole_of({"a": None}, "a") is None
    for wrong in (0, True, "5", 1.5):
        with pytest.raises(Refusal, match="'a'"):
            whole_of({"a": wrong}, "a")


def test_the_text_of_parts_is_their_text_and_the_others_are_images() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}, {"text": "b"}]
    assert text_of(parts) == "a\nb"
    assert images_in(parts) == 1
    assert text_of(None) == ""


def test_a_long_prefix_seen_before_is_cached_in_steps_of_128() -> None:
    prefixes = Prefixes()
    first = " ".join(f"w{'x' * (n % 5)}" for n in range(1100))
    count = len(tokenize(first))
    assert prefixes.look("m", first, count) == (0, False)
    assert prefixes.look("m", first, count) == (1024, True)
    longer = first + " and more" * 200
    assert prefixes.look("m", longer, len(tokenize(longer))) == (1024, False)
    assert prefixes.look("m", longer, len(tokenize(longer)))[0] == len(tokenize(longer)) // 128 * 128
    assert prefixes.look("other", first, count) == (0, False)
    assert prefixes.look("m", "y" + first, count) == (0, False)


def test_a_short_prompt_is_never_cached() -> None:
    prefixes = Prefixes()
    assert prefixes.look("m", "short", 1) == (0, True)
    assert prefixes.look("m", "short", 1) == (0, True)
