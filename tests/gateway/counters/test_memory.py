"""Limits in one process: exact to the step, bounded in memory, and cheap.  tests/contract holds the rest."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from gateway.counters import SLOTS, Charge, Refusal, Taken
from gateway.counters.memory import MemoryCounters

pytestmark = pytest.mark.serial  # a server that answers late is left alone, as it should be


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def test_a_burst_at_a_window_s_edge_gains_nothing() -> None:
    clock = Clock()
    counters = MemoryCounters(clock)
    clock.now = 1_059.999
    for _ in range(10):
        assert isinstance(await counters.take([Charge("a", 1, 10, 60.0)]), Taken)
    for later in (1_060.0, 1_080.0, 1_119.99):
        clock.now = later
        assert isinstance(await counters.take([Charge("a", 1, 10, 60.0)]), Refusal)
    clock.now = 1_120.0
    assert isinstance(await counters.take([Charge("a", 10, 10, 60.0)]), Taken)


@pytest.mark.parametrize("window", [60.0, 86_400.0])
async def test_what_was_used_is_free_again_at_most_a_step_after_its_window(window: float) -> None:
    clock = Clock()
    counters = MemoryCounters(clock)
    await counters.take([Charge("a", 4, 10, window)])
    clock.now += window / 2
    await counters.take([Charge("a", 6, 10, window)])
    found = await counters.take([Charge("a", 5, 10, window)])
    assert isinstance(found, Refusal)
    assert window / 2 < found.retry_after <= window + window / SLOTS  # 4 are not enough: it waits for the 6
    found = await counters.take([Charge("a", 4, 10, window)])
    assert isinstance(found, Refusal)
    assert window / 2 < found.retry_after <= window / 2 + window / SLOTS
    clock.now += found.retry_after
    assert isinstance(await counters.take([Charge("a", 4, 10, window)]), Taken)


async def test_two_new_keys_of_one_call_are_both_counted() -> None:
    counters = MemoryCounters()
    both = [Charge("a", 1, 1, 60.0), Charge("b", 1, 1, 60.0)]
    assert isinstance(await counters.take(both), Taken)
    assert isinstance(await counters.take(both[:1]), Refusal)
    assert isinstance(await counters.take(both[1:]), Refusal)


async def test_keys_whose_window_has_passed_make_room_for_new_ones() -> None:
    clock = Clock()
    counters = MemoryCounters(clock)
    for at in range(20_000):
        clock.now += 0.1
        await counters.take([Charge(f"user {at}", 1, 5, 60.0)])
    assert len(counters) <= 620, "600 of them are less than a minute old"


async def test_beyond_the_bound_the_longest_unused_key_is_forgotten_and_not_the_busy_one() -> None:
    counters = MemoryCounters(most=100)
    for at in range(1_000):
        found = await counters.take([Charge("team", 1, 10_000, 60.0), Charge(f"user {at}", 1, 5, 60.0)])
    assert isinstance(found, Taken)
    assert found.remaining == [9_000, 4]
    assert len(counters) <= 101


async def test_nothing_is_kept_of_calls_that_are_over() -> None:
    counters = MemoryCounters()
    for at in range(100):
        found = await counters.take([Charge(f"r {at}", 1, 1, 0)])
        assert isinstance(found, Taken)
        counters.give_back(found, [0])
    assert len(counters) == 0


async def test_a_remembered_key_costs_less_than_half_a_kilobyte() -> None:
    counters = MemoryCounters()
    keys = [f"user checkout requests_per_minute u-{at}" for at in range(20_000)]
    tracemalloc.start()
    for key in keys:
        await counters.take([Charge(key, 1, 5, 86_400.0)])
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{size / len(keys):.0f} bytes a key")
    assert size / len(keys) < 512


@pytest.mark.serial
async def test_three_charges_are_taken_in_a_few_microseconds() -> None:
    counters = MemoryCounters()
    charges = [Charge("t", 1, 10**9, 60.0), Charge("k", 900, 10**12, 60.0), Charge("r", 1, 10**6, 0)]
    best = 1.0
    for _ in range(30):
        held = []
        began = time.perf_counter()
        for _ in range(500):
            held.append(await counters.take(charges))
        best = min(best, (time.perf_counter() - began) / 500)
        for one in held:
            assert isinstance(one, Taken)
            counters.give_back(one, [1, 700, 0])
    print(f"{best * 1e6:.2f} us")
    assert best < 6e-6  # 2.6 on a quiet machine
