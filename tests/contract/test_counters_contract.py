"""What counters promise, in this process and in a real Valkey: never over a limit, all or nothing."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator

import pytest

from gateway.counters import SLOTS, Charge, Counters, Refusal, Taken
from gateway.counters.memory import MemoryCounters
from gateway.counters.valkey import ValkeyCounters
from tests.valkeys import Valkey, one_server  # noqa: F401  (pytest finds the fixture by this import)

pytestmark = pytest.mark.serial  # a server that answers late is left alone, as it should be

WINDOW = 0.6  # seconds; a step is 10 ms
STEP = WINDOW / SLOTS


@pytest.fixture(params=["memory", "valkey"])
async def counters(request: pytest.FixtureRequest, server: Valkey) -> AsyncIterator[Counters]:
    if request.param == "memory":
        yield MemoryCounters()
        return
    assert server.say("FLUSHALL") == "+OK"
    counters = ValkeyCounters(server.url, MemoryCounters(), patience=5.0)  # what a late server does is told elsewhere
    yield counters
    degraded = counters.degraded
    await counters.aclose()
    assert not degraded, "the server was away: what was tested is the fallback"


def requests(limit: int, key: str = "a", amount: int = 1, window: float = WINDOW) -> Charge:
    return Charge(key, amount, limit, window)


async def taken(counters: Counters, *charges: Charge) -> Taken:
    found = await counters.take(charges)
    assert isinstance(found, Taken), found
    return found


async def refused(counters: Counters, *charges: Charge) -> Refusal:
    found = await counters.take(charges)
    assert isinstance(found, Refusal), found
    return found


async def test_a_limit_lets_as_much_through_as_it_says_and_no_more(counters: Counters) -> None:
    assert [(await taken(counters, requests(3))).remaining for _ in range(3)] == [[2], [1], [0]]
    found = await refused(counters, requests(3))
    assert found.which == 0
    assert found.remaining == [0]
    assert 0 < found.retry_after <= WINDOW + STEP


async def test_another_key_has_its_own_limit(counters: Counters) -> None:
    await taken(counters, requests(1))
    assert (await taken(counters, requests(1, "b"))).remaining == [0]
    await refused(counters, requests(1))


async def test_retrying_when_told_succeeds_and_not_before(counters: Counters) -> None:
    await taken(counters, requests(1))
    found = await refused(counters, requests(1))
    assert WINDOW - 0.1 < found.retry_after <= WINDOW + STEP
    await asyncio.sleep(found.retry_after * 0.8)
    again = await refused(counters, requests(1))
    await asyncio.sleep(again.retry_after + 0.002)
    await taken(counters, requests(1))


async def test_of_one_call_all_charges_are_taken_or_none(counters: Counters) -> None:
    await taken(counters, requests(1, "full"))
    both = requests(9), requests(9, "t", 5), Charge("c", 1, 9, 0), requests(1, "full")
    for _ in range(3):
        found = await refused(counters, *both)
        assert found.which == 3
        assert found.remaining == [9, 9, 9, 0]
    assert (await taken(counters, *both[:3])).remaining == [8, 4, 8]


async def test_of_several_that_refuse_the_one_that_will_longest_is_named(counters: Counters) -> None:
    await taken(counters, requests(1, "short", window=WINDOW / 2))
    await taken(counters, requests(1, "long"))
    found = await refused(counters, requests(1, "long"), requests(1, "short", window=WINDOW / 2))
    assert found.which == 0
    found = await refused(counters, requests(1, "short", window=WINDOW / 2), requests(1, "long"))
    assert found.which == 1
    found = await refused(counters, requests(5, "huge", 6), requests(1, "long"))
    assert (found.which, found.retry_after) == (0, math.inf)


async def test_more_than_the_limit_at_once_is_never_taken(counters: Counters) -> None:
    found = await refused(counters, requests(10, amount=11))
    assert found.retry_after == math.inf
    assert (await taken(counters, requests(10, amount=10))).remaining == [0]


async def test_no_window_wherever_it_begins_sees_more_than_the_limit(counters: Counters) -> None:
    """Pushes at random, in bursts, over three windows; then slides a window over what was let through."""
    chance, limit, granted = random.Random(5), 40, []
    until = time.monotonic() + 3 * WINDOW
    while time.monotonic() < until:
        for _ in range(chance.choice([1, 5, 60])):
            before, amount = time.monotonic(), chance.choice([1, 1, 3])
            if isinstance(await counters.take([requests(limit, amount=amount)]), Taken):
                granted.append((before, time.monotonic(), amount))
        await asyncio.sleep(chance.choice([0, 0.01, 0.05, 0.2]))
    for at, (_, first, _) in enumerate(granted):
        # Certainly within one window: begun less than its length after the first had ended.
        inside = sum(amount for before, after, amount in granted[at:] if after - granted[at][0] < WINDOW)
        assert inside <= limit, f"{inside} in the window that begins at {first}"
    assert sum(amount for _, _, amount in granted) >= 2 * limit, "hardly anything was let through"


async def test_what_was_not_used_is_given_back_and_what_was_used_on_top_is_charged(counters: Counters) -> None:
    less = await taken(counters, requests(100, amount=80))
    counters.give_back(less, [30])
    assert (await taken(counters, requests(100, amount=0))).remaining == [70]
    more = await taken(counters, requests(100, amount=10))
    counters.give_back(more, [95])
    found = await refused(counters, requests(100))
    assert found.remaining == [0]
    assert found.retry_after <= WINDOW + STEP
    await asyncio.sleep(WINDOW + 2 * STEP)
    assert (await taken(counters, requests(100))).remaining == [99]


async def test_what_is_given_back_late_gives_nobody_else_s_use_back(counters: Counters) -> None:
    old = await taken(counters, requests(10, amount=9))
    await asyncio.sleep(WINDOW / 2)
    await taken(counters, requests(10))  # the window never ends, it slides
    await asyncio.sleep(WINDOW / 2 + 2 * STEP)
    await taken(counters, requests(10, amount=9))
    counters.give_back(old, [0])
    await refused(counters, requests(10))


async def test_a_place_among_the_running_is_free_when_the_call_is_over(counters: Counters) -> None:
    running = Charge("r", 1, 2, 0)
    first, _ = await taken(counters, running), await taken(counters, running)
    found = await refused(counters, running)
    assert found.retry_after == 1.0
    counters.give_back(first, [0])
    assert (await taken(counters, running)).remaining == [0]


async def test_one_caller_after_the_other_never_finds_its_own_place_taken(counters: Counters) -> None:
    """What was given back is known to the very next take, however soon it comes."""
    for _ in range(500):
        one = await taken(counters, Charge("r", 1, 1, 0), requests(10, amount=10))
        counters.give_back(one, [1, 0])


async def test_many_at_once_get_exactly_the_limit(counters: Counters) -> None:
    both = [requests(50, window=60.0), Charge("r", 1, 40, 0)]
    found = await asyncio.gather(*(counters.take(both) for _ in range(200)))
    assert sum(isinstance(one, Taken) for one in found) == 40
    for one in found:
        if isinstance(one, Taken):
            counters.give_back(one, [1, 1])
    found = await asyncio.gather(*(counters.take(both) for _ in range(60)))
    assert sum(isinstance(one, Taken) for one in found) == 10


async def test_a_limit_that_is_changed_counts_what_was_used(counters: Counters) -> None:
    await taken(counters, requests(10, amount=5))
    assert (await taken(counters, requests(20))).remaining == [14]
    assert (await refused(counters, requests(4))).remaining == [0]


async def test_the_reset_is_when_everything_is_free_again(counters: Counters) -> None:
    found = await taken(counters, requests(10), Charge("r", 1, 9, 0))
    assert found.reset[1] == 0
    assert WINDOW <= found.reset[0] <= WINDOW + STEP + 0.001
    await asyncio.sleep(found.reset[0] + 0.002)
    assert (await taken(counters, requests(10))).remaining == [9]


@pytest.mark.parametrize("key", ["u \n\x00'\"", "}{tollkeeper}", "ключ 鍵 🔑", "x" * 300, "KEYS[1]", "%d"])
async def test_a_key_is_any_text(counters: Counters, key: str) -> None:
    await taken(counters, requests(1, key))
    await refused(counters, requests(1, key))
    await taken(counters, requests(1, key + "."))


async def test_the_largest_limits_are_counted_exactly(counters: Counters) -> None:
    most = 10**12
    await taken(counters, requests(most, amount=most - 3))
    assert (await taken(counters, requests(most, amount=2))).remaining == [1]
    await refused(counters, requests(most, amount=2))
