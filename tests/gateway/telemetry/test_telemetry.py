"""The queue between the event loop and a sink: it never blocks, never grows without bound, and counts what is lost."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

import pytest

from gateway.telemetry import Outbox


def test_every_item_is_written_once_and_in_order_when_it_is_closed_at_once() -> None:
    written: list[int] = []

    def write(items: list[int]) -> int:
        assert 1 <= len(items) <= 100
        written.extend(items)
        return 0

    box: Outbox[int] = Outbox("test", write, limit=10_000, delay=5, batch=100)
    for n in range(5000):
        box.put(n)
    box.close(2)
    assert written == list(range(5000))
    assert box.dropped == 0


def test_an_item_is_written_after_the_delay_without_being_asked() -> None:
    seen = threading.Event()

    def write(items: list[int]) -> int:
        seen.set()
        return 0

    box: Outbox[int] = Outbox("test", write, limit=10, delay=0.05, batch=10)
    for _ in range(3):  # also after it was idle
        seen.clear()
        began = time.perf_counter()
        box.put(1)
        assert seen.wait(2)
        assert time.perf_counter() - began >= 0.04
    box.close(1)


class Late(deque[int]):
    """A queue into which an item comes just after the thread has emptied it and gone to sleep."""

    def append(self, item: int) -> None:
        while self:
            time.sleep(0.001)
        time.sleep(0.02)
        super().append(item)


def test_an_item_that_comes_while_the_thread_falls_asleep_is_not_forgotten() -> None:
    seen: list[int] = []
    box: Outbox[int] = Outbox("test", lambda items: seen.extend(items) or 0, limit=10, delay=0.05, batch=1)
    box._items = Late()
    box.put(1)
    box.put(2)  # there is one in the queue when this is called, and none when it is appended
    deadline = time.monotonic() + 2
    while len(seen) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen == [1, 2]
    box.close(1)


async def test_a_stuck_sink_delays_neither_put_nor_close_and_each_loss_is_counted_once() -> None:
    stuck = threading.Event()

    def write(items: list[int]) -> int:
        stuck.wait(20)
        return len(items)

    box: Outbox[int] = Outbox("test", write, limit=100, delay=0, batch=10)
    began = time.perf_counter()
    for n in range(1000):
        box.put(n)
    assert time.perf_counter() - began < 0.2
    await box.aclose(0.1)
    assert time.perf_counter() - began < 1
    assert box.dropped == 1000
    stuck.set()
    box._thread.join(2)
    assert not box._thread.is_alive()
    assert box.dropped == 1000  # the thread that came late counts nothing again


def test_a_write_that_fails_loses_its_batch_says_so_once_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    written: list[int] = []

    def write(items: list[int]) -> int:
        if items[0] < 20:
            raise OSError("no space left")
        written.extend(items)
        return 0

    box: Outbox[int] = Outbox("test", write, limit=100, delay=1, batch=10)
    with caplog.at_level(logging.ERROR):
        for n in range(40):
            box.put(n)
        box.close(2)
    assert written == list(range(20, 40))
    assert box.dropped == 20
    assert len(caplog.records) == 1


def test_what_is_put_after_the_end_is_counted_as_lost() -> None:
    box: Outbox[int] = Outbox("test", lambda _: 0, limit=100, delay=0, batch=10)
    box.close(1)
    box.put(1)
    box.close(1)
    assert box.dropped == 1


def test_nothing_is_lost_between_a_loop_that_puts_and_a_thread_that_takes() -> None:
    taken = 0

    def write(items: list[int]) -> int:
        nonlocal taken
        taken += len(items)
        return 0

    box: Outbox[int] = Outbox("test", write, limit=1_000_000, delay=0, batch=7)
    for n in range(200_000):
        box.put(n)
    box.close(5)
    assert taken + box.dropped == 200_000
    assert box.dropped == 0


def test_a_put_costs_under_a_microsecond(cost_of: Callable[[Callable[[], object], int], float]) -> None:
    box: Outbox[int] = Outbox("test", lambda _: 0, limit=1_000_000, delay=1, batch=1000)
    cost = cost_of(lambda: box.put(1), 2000)
    print(f"put: {cost:.2f} us")
    box.close(2)
    assert cost < 1
