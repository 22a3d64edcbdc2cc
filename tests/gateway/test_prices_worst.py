"""No usage within a call's bounds costs more than the worst, whatever tier serves it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.exchange import Usage
from gateway.prices import Rate, Tariff, catalogued, configured
from gateway.settings import Price

TODAY = date(2026, 11, 21)
TIERS = ["", "default", "flex", "priority", "fast", "batch", "no-such-tier"]
SIZES = st.sampled_from([0, 1, 99, 127_999, 128_001, 199_999, 200_000, 200_001, 272_001, 1_000_003]) | st.integers(
    0, 2_000_000
)
tariffs = st.builds(Tariff, *[st.integers(0, 10**14)] * 13)
bands = st.lists(st.tuples(st.sampled_from([128_000, 200_000, 272_000]), tariffs), max_size=2).flatmap(
    lambda above: tariffs.map(lambda last: (*sorted(dict(above).items(), reverse=True), (-1, last)))
)
rates = st.dictionaries(
    st.tuples(st.sampled_from(["flex", "priority", "default", "fast"]), st.booleans()), bands, max_size=3
).flatmap(lambda more: bands.map(lambda first: Rate("made up", {("", False): first, **more})))


@st.composite
def usages(draw: st.DrawFn, most: tuple[int, int], audio: bool, image: bool) -> Usage:
    """Parts that do not overlap and fit the whole, as read_usage gives them."""

    def shares(whole: int, *wanted: bool) -> list[int]:
        left, parts = whole, []
        for want in wanted:
            part = draw(st.sampled_from([0, left]) | st.integers(0, left)) if want else 0
            parts.append(part)
            left -= part
        return parts

    whole, answer = draw(st.integers(0, most[0])), draw(st.integers(0, most[1]))
    if draw(st.booleans()):
        whole, answer = most
    cached, write, hour, sound, sound_cached, seen, seen_cached = shares(
        whole, True, True, True, audio, audio, image, image
    )
    thought, spoken, painted = shares(answer, True, audio, True)
    return Usage(
        whole, answer, cached + sound_cached + seen_cached, write, hour, thought, sound + sound_cached, sound_cached,
        spoken, seen + seen_cached, seen_cached, painted,
    )  # fmt: skip


@cache
def catalogue() -> list[Rate]:
    from genai_prices.data_snapshot import get_snapshot

    found = (catalogued(seller, offered.id, TODAY) for seller in get_snapshot().providers for offered in seller.models)
    rates = list({tuple(rate.contexts.items()): rate for rate in found if rate is not None}.values())
    assert len(rates) > 500
    return rates


def flags() -> Iterator[tuple[bool, bool]]:
    return ((audio, image) for audio in (False, True) for image in (False, True))


@settings(max_examples=150, deadline=None)
@given(st.data(), SIZES, SIZES, rates)
def test_no_usage_costs_more_than_the_worst(data: st.DataObject, input: int, output: int, rate: Rate) -> None:
    for audio, image in flags():
        usage = data.draw(usages((input, output), audio, image))
        worst = rate.worst(input, output, audio=audio, image=image)
        for tier in TIERS:
            for batch in (False, True):
                assert rate.cost(usage, tier, batch) <= worst


@settings(max_examples=150, deadline=None)
@given(st.data(), SIZES, st.integers(0, 100_000))
def test_nor_at_any_model_of_the_catalogue(data: st.DataObject, input: int, output: int) -> None:
    rate = data.draw(st.sampled_from(catalogue()))
    usage = data.draw(usages((input, output), True, True))
    for tier in TIERS:
        assert rate.cost(usage, tier) <= rate.worst(input, output)


@settings(max_examples=100, deadline=None)
@given(st.data(), SIZES, SIZES, rates, st.sampled_from(["default", "flex"]))
def test_a_plain_tier_asked_for_bounds_what_it_and_the_default_cost(
    data: st.DataObject, input: int, output: int, rate: Rate, asked: str
) -> None:
    usage = data.draw(usages((input, output), True, True))
    for served in (asked, ""):
        assert rate.cost(usage, served) <= rate.worst(input, output, asked)


def rate_of(provider: str, name: str) -> Rate:
    from genai_prices.data_snapshot import get_snapshot

    seller = next(provider_ for provider_ in get_snapshot().providers if provider_.id == provider)
    rate = catalogued(seller, name, TODAY)
    assert rate is not None
    return rate


def test_the_worst_is_no_dearer_than_it_must_be() -> None:
    rate = rate_of("openai", "gpt-5.4")  # 2.50/15, above 272,000 5/22.50; priority twice, flex half
    assert rate.worst(272_000, 1_000, "default") == rate.cost(Usage(272_000, 1_000))
    assert rate.worst(272_001, 1_000, "default") == rate.cost(Usage(272_001, 1_000))
    assert rate.worst(100, 10) == rate.cost(Usage(100, 10), "priority") == 2 * rate.worst(100, 10, "flex")
    assert rate.worst(0, 0) == 0


def test_sound_counts_only_where_it_may_be_there() -> None:
    rate = configured(Price.model_validate({"input": 2, "output": 8, "audio_input": 40, "audio_output": 80}), "x")
    assert rate.worst(10, 10, audio=False) == 100_000
    assert rate.worst(10, 10) == 1_200_000


@pytest.mark.parametrize(
    ("price", "free"), [({"input": 0, "output": 0}, True), ({"input": 0, "output": 0, "request": 1}, False)]
)
def test_only_a_price_of_nothing_at_all_is_free(price: dict[str, int], free: bool) -> None:
    rate = configured(Price.model_validate(price), "x")
    assert rate.free == free
    assert not Rate("x", rate.contexts, ("web_searches_kcount",)).free
