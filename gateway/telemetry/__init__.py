"""How the gateway tells about its requests: observers hear of each one when it starts and when it is over."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from gateway.exchange import Exchange

Item = TypeVar("Item")

log = logging.getLogger("tollkeeper.telemetry")

COMPLAIN_SECONDS = 60.0  # a sink that stays broken is reported once in so long; its losses are counted each time


class Observer(Protocol):
    """Never awaits in started or finished, never decides, never breaks a request."""

    def started(self, x: Exchange) -> None: ...

    def finished(self, x: Exchange) -> None:
        """Every attempt, decision, figure and time is on x by now."""

    async def aclose(self) -> None: ...


class Outbox(Generic[Item]):
    """A bounded queue that a daemon thread empties in batches: the event loop only appends.

    write: takes 1 … batch items, in the thread, and returns how many of them were lost; if it raises, all were.
    limit: items that may wait; a full queue loses the newest.  delay: seconds an item may wait for company.
    """

    def __init__(self, name: str, write: Callable[[list[Item]], int], limit: int, delay: float, batch: int) -> None:
        self._name = name
        self._write = write
        self._limit = limit
        self._delay = delay
        self._batch = batch
        self._items: deque[Item] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._refused = 0  # counted by the event loop only,
        self._failed = 0  # and this by the thread only: += is not atomic
        self._writing = 0  # items the thread holds
        self._abandoned = False
        self._complained = float("-inf")
        self._thread = threading.Thread(target=self._run, name=f"tollkeeper-{name}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Items lost since the start."""
        return self._refused + self._failed

    def put(self, item: Item) -> None:
        """Never blocks."""
        items = self._items
        if len(items) >= self._limit:
            self._refused += 1
            return
        items.append(item)
        if len(items) == 1:  # it was empty: the thread may sleep; while others wait, it was woken for them
            self._wake.set()

    async def aclose(self, seconds: float) -> None:
        """Writes what waits, for so many seconds at most; what is left then is counted as lost."""
        await asyncio.to_thread(self.close, seconds)

    def close(self, seconds: float) -> None:
        """The same, blocking.  What is put afterwards is lost, and counted."""
        self._limit = 0
        self._closing.set()
        self._wake.set()
        self._thread.join(seconds)
        if self._thread.is_alive() and not self._abandoned:
            self._abandoned = True
            self._failed += self._writing + len(self._items)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._closing.wait(self._delay)
            self._wake.clear()  # before the queue is emptied: what is put from here on wakes us again
            while self._items:
                self._send()
                if self._abandoned:
                    return
            if self._closing.is_set():
                return

    def _send(self) -> None:
        items = [self._items.popleft() for _ in range(min(self._batch, len(self._items)))]
        self._writing = len(items)
        try:
            lost = self._write(items)
        except Exception:
            lost = len(items)
            if time.monotonic() - self._complained >= COMPLAIN_SECONDS:
                self._complained = time.monotonic()
                log.exception("%s: %d could not be written; more losses are only counted for a while", self._name, lost)
        if not self._abandoned:  # else close() has counted these already
            self._failed += lost
            self._writing = 0
