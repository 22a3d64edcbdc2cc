"""Paces."""

import statistics

import pytest

from gateway.demo.pace import Pace


def test_no_pace_never_waits() -> None:
    assert not Pace.read("none").waits
    assert Pace.read("none").draw()(100) == 0


def test_a_fixed_pace_waits_by_the_token_and_not_for_what_has_none() -> None:
    wait = Pace.read("50").draw()
    assert wait(0) == 0
    assert wait(1) == pytest.approx(0.02)
    assert wait(100) == pytest.approx(2)


def test_a_realistic_pace_waits_a_third_of_a_second_and_then_speaks_50_to_100_tokens_a_second() -> None:
    draws = [Pace.read("realistic").draw() for _ in range(500)]
    assert statistics.median(wait(0) for wait in draws) == pytest.approx(0.3, rel=0.2)
    rates = [200 / sum(wait(1) for _ in range(200)) for wait in draws]
    assert 46 < statistics.quantiles(rates, n=20)[0] < 56  # the slowest of twenty
    assert 86 < statistics.quantiles(rates, n=20)[-1] < 102  # and the fastest


@pytest.mark.parametrize("text", ["fast", "0", "-1", "nan", "1e9"])
def test_a_pace_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"pace|float"):
        Pace.read(text)
