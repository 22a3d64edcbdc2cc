"""Limits of a gateway that runs in one process: exact, and gone when it ends."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from gateway.counters import SLOTS, Charge, Refusal, Taken

MOST: Final = 100_000  # keys remembered for each length of window, about 30 MB; beyond, the longest unused is forgotten


_NO_CELL: Final[list[int]] = []  # of what is running


class _Count:
    """What one key used in its window: cells of [slot, amount], the oldest first, and their sum."""

    __slots__ = ("asked", "cells", "total")

    def __init__(self) -> None:
        self.asked = 0  # the slot in which it was last asked for
        self.cells: list[list[int]] = []
        self.total = 0

    def leave(self, oldest: int) -> None:
        """Forgets the slots before `oldest`.  Their cells are emptied: what is given back later finds nothing."""
        cells = self.cells
        while cells and cells[0][0] < oldest:
            cell = cells.pop(0)
            self.total -= cell[1]
            cell[1] = 0

    def add(self, slot: int, amount: int) -> list[int]:
        """The cell that now holds the amount, too."""
        self.total += amount
        cells = self.cells
        if cells and cells[-1][0] == slot:
            cell = cells[-1]
            cell[1] += amount
        else:
            cell = [slot, amount]
            cells.append(cell)
        return cell

    def free_slot(self, excess: int) -> int:
        """The slot with which the last of `excess` leaves."""
        for slot, amount in self.cells:
            excess -= amount
            if excess <= 0:
                return slot
        raise AssertionError("no more than the total can be in excess")


_Held = tuple[Sequence[Charge], list[_Count | None], list[list[int]]]  # with the cells that hold the amounts


class MemoryCounters:
    """Counters in this process.  An idle key costs 282 bytes, and its own text, until its window has passed."""

    degraded = False

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MOST) -> None:
        self._clock = clock
        self._most = most
        self._windows: dict[float, OrderedDict[str, _Count]] = {}  # by length; the longest unused key first
        self._running: dict[str, int] = {}

    def __len__(self) -> int:
        """Keys remembered."""
        return len(self._running) + sum(len(counts) for counts in self._windows.values())

    async def take(self, charges: Sequence[Charge]) -> Taken | Refusal:
        now = self._clock()
        counts: list[_Count | None] = []
        remaining: list[int] = []
        fits = True
        for key, amount, limit, window in charges:
            count = self._find(key, window, int(now * SLOTS / window)) if window else None
            left = limit - amount - (self._running.get(key, 0) if count is None else count.total)
            if left < 0:
                fits = False
            counts.append(count)
            remaining.append(left)
        if not fits:
            return self._refuse(charges, counts, now)
        cells: list[list[int]] = []
        reset: list[float] = []
        for (key, amount, _, window), count in zip(charges, counts):  # noqa: B905  (as long: made above)
            if count is None:
                self._running[key] = self._running.get(key, 0) + amount
                cells.append(_NO_CELL)
                reset.append(0.0)
            else:
                slot = count.asked
                cells.append(count.add(slot, amount))
                reset.append((slot + SLOTS + 1) * window / SLOTS - now if count.total else 0.0)
        return Taken(remaining, reset, (charges, counts, cells))

    def give_back(self, taken: Taken, used: Sequence[int]) -> None:
        held: _Held = taken.token  # type: ignore[assignment]  # made by take above
        charges, counts, cells = held
        for (key, amount, _, window), count, cell, really in zip(charges, counts, cells, used, strict=True):
            if count is None:
                left = self._running[key] - amount
                if left:
                    self._running[key] = left
                else:
                    del self._running[key]
            elif really < amount:
                back = min(amount - really, cell[1])
                cell[1] -= back
                count.total -= back
            elif really > amount:
                slot = int(self._clock() * SLOTS / window)
                self._find(key, window, slot).add(slot, really - amount)

    async def aclose(self) -> None:
        self._windows.clear()
        self._running.clear()

    def _find(self, key: str, window: float, slot: int) -> _Count:
        """The key's count as of now, the most recently used from now on."""
        counts = self._windows.get(window)
        if counts is None:
            counts = self._windows[window] = OrderedDict()
        count = counts.get(key)
        if count is None:
            self._forget(counts, slot - SLOTS)
            count = counts[key] = _Count()
        else:
            counts.move_to_end(key)
            cells = count.cells
            if cells and cells[0][0] < slot - SLOTS:
                count.leave(slot - SLOTS)
        count.asked = slot
        return count

    def _forget(self, counts: OrderedDict[str, _Count], oldest: int) -> None:
        """Makes room for one: at most two that have expired go, so that no call pays for all of them."""
        for _ in range(2):
            if not counts:
                return
            key, count = next(iter(counts.items()))
            if count.asked >= oldest and len(counts) < self._most:
                return
            del counts[key]

    def _refuse(self, charges: Sequence[Charge], counts: Sequence[_Count | None], now: float) -> Refusal:
        remaining: list[int] = []
        reset: list[float] = []
        which, longest = 0, -1.0
        for at, ((key, amount, limit, window), count) in enumerate(zip(charges, counts, strict=True)):
            total = self._running.get(key, 0) if count is None else count.total
            step = window / SLOTS
            remaining.append(max(0, limit - total))
            reset.append((count.cells[-1][0] + SLOTS + 1) * step - now if count is not None and total else 0.0)
            if total + amount <= limit:
                continue
            if amount > limit:
                wait = math.inf
            elif count is None:
                wait = 1.0  # nobody knows when a running call ends
            else:
                wait = (count.free_slot(total + amount - limit) + SLOTS + 1) * step - now
            if wait > longest:
                which, longest = at, wait
        return Refusal(remaining, reset, which, longest)
