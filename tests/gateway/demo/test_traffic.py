"""The sample traffic is the same each time and holds every kind of call."""

from __future__ import annotations

from collections import Counter

from gateway.demo import traffic
from tests.running import running
from tests.scripted import plain, scripted


def test_every_kind_is_met_before_chance_decides_and_it_is_the_same_each_time() -> None:
    kinds = [sample.kind for sample in traffic.samples(200)]
    assert len(set(kinds[: len(set(kinds))])) == len(set(kinds)) >= 15
    assert list(traffic.samples(50)) == list(traffic.samples(50))
    assert Counter(kinds)["unary"] > 30


async def test_each_outcome_is_counted_once() -> None:
    team, key = next(iter(traffic.TEAMS.items()))
    async with scripted(plain) as up:
        said = {
            "providers": {"up": {"base_url": up.url}},
            "models": {"small": {"targets": [{"provider": "up", "model": "up"}], "price": {"input": 1, "output": 1}}},
            "teams": {team: {"keys": [{"name": "demo", "key": key}], "provider": "up"}},
            "telemetry": {"logs": {"access": False}},
        }
        tally, steps = traffic.Tally(), []
        async with running(said) as gateway:
            await traffic.send(gateway.url, 60, tally, lambda now: steps.append(now.sent))
    assert tally.sent == 60 == tally.answered + tally.refused + tally.broken + tally.hung_up
    assert tally.refused > 0
    assert tally.answered > 0
    assert tally.codes.total() == tally.refused
    assert tally.cached == 0
    assert len(steps) == 60
    assert tally.ids["unary"].startswith("req_")
