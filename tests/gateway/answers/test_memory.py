"""Answers in memory: bounded in bytes, the least recently used go first.  The rest is in the contract suite."""

from __future__ import annotations

import time

from gateway.answers import OVERHEAD, Kept, Question, Tenants
from gateway.answers.memory import MemoryStore

TENANT = Tenants(b"root")["team red"]


def question(number: int) -> Question:
    return Question(TENANT, number.to_bytes(32), "red", "web", "m")


def kept(size: int) -> Kept:
    return Kept(b"x" * size, 0, time.time_ns() + 10**12, None, "red", "web", (0, 0, 0, 0))


async def test_it_never_holds_more_bytes_than_it_may_and_keeps_what_was_used_last() -> None:
    store = MemoryStore(10 * (1000 + OVERHEAD))
    for number in range(100):
        store.put(question(number), kept(1000))
        assert (await store.get(question(0))).kept is not None  # used each time: it stays
        assert store.size <= 10 * (1000 + OVERHEAD)
    assert store.entries == 10
    assert (await store.get(question(99))).kept is not None
    assert (await store.get(question(50))).kept is None


async def test_an_answer_larger_than_the_store_is_lost_and_counted_and_pushes_nothing_out() -> None:
    store = MemoryStore(5000)
    store.put(question(1), kept(100))
    store.put(question(2), kept(6000))
    assert store.lost == 1
    assert (await store.get(question(1))).kept is not None


async def test_one_that_has_ended_gives_its_room_back_when_it_is_asked_for() -> None:
    store = MemoryStore(5000)
    store.put(question(1), Kept(b"x", 0, time.time_ns() - 1, None, "red", "web", (0, 0, 0, 0)))
    assert (await store.get(question(1))).kept is None
    assert store.entries == 0
