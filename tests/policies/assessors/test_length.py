"""Too long is cut at the limit; a loop is seen while it is written."""

from __future__ import annotations

from bench import texts
from tests.assessed import made, verdict


async def test_the_built_in_set_is_told_apart() -> None:
    length = made("length", characters=2000)
    for one in texts.length():
        assert ((await verdict(length, one.text)).score >= 0.5) == one.unsafe, one.text[:30]


async def test_what_is_over_the_limit_is_the_place() -> None:
    follower = made("length", characters=10).follow("output")
    assert (await follower.feed("123456789", False, False)).score == 0
    found = await follower.feed("0abc", True, False)
    assert [(one.start, one.end) for one in found.spans] == [(10, 13)]
    assert follower.settled == 13


def test_a_body_too_short_for_either_is_spared() -> None:
    assert made("length", characters=100).spares(b"x" * 70)
    assert not made("length", characters=100).spares(b"x" * 200)
