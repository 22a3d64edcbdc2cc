"""What a test may ask of the simulated provider and set in it: fault rates, counts, and when answers ended."""

from __future__ import annotations

import random
import resource
import time
from collections import Counter, deque
from typing import Any, Final

from gateway.demo import faults
from gateway.demo.reply import Refusal

REMEMBERED: Final = 10_000  # answers that ended


def now() -> float:
    """Unix seconds."""
    return time.time_ns() / 1e9


class Watched:
    """An answer as it is written.  finished: the simulator wrote what it meant to; False: the caller left."""

    __slots__ = ("attempt", "closed", "finished", "id", "opened")

    def __init__(self, id: str, attempt: str | None) -> None:
        self.id = id
        self.attempt = attempt
        self.opened = now()
        self.closed: float | None = None
        self.finished = False

    def plain(self, at: float) -> dict[str, Any]:
        return {
            "id": self.id,
            "attempt": self.attempt,
            "opened": self.opened,
            "closed": self.closed,
            "finished": self.finished,
            "ago": None if self.closed is None else at - self.closed,
        }


class Control:
    """Fault rates and counts since the last reset."""

    def __init__(self) -> None:
        self.rates: list[dict[str, Any]] = []
        self.answers: Counter[tuple[str, int]] = Counter()  # by endpoint and status
        self.faults: Counter[str] = Counter()
        self.tokens = 0  # visible ones, written
        self._chance = random.Random(0)  # the same faults after each reset
        self._under_way: set[Watched] = set()
        self._ended: deque[Watched] = deque(maxlen=REMEMBERED)

    def open(self, id: str, attempt: str | None) -> Watched:
        watched = Watched(id, attempt)
        self._under_way.add(watched)
        return watched

    def close(self, watched: Watched, finished: bool) -> None:
        watched.closed, watched.finished = now(), finished
        self._under_way.discard(watched)
        self._ended.append(watched)

    def add_rate(self, entry: Any) -> list[dict[str, Any]]:
        """{"rate": 0.1, "fault": "status=503", "model": "sim-small"}; returns the rates in force.  Raises Refusal."""
        if not isinstance(entry, dict) or not isinstance(entry.get("fault"), str):
            raise Refusal(400, 'expected {"rate": 0.1, "fault": "status=503"}', param="fault")
        rate = entry.get("rate")
        if not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise Refusal(400, "`rate` is a number between 0 and 1", param="rate")
        faults.read(entry["fault"])
        self.rates.append({"rate": rate, "fault": entry["fault"], "model": entry.get("model")})
        return self.rates

    def choose(self, header: str, body: bytes) -> faults.Faults:
        """The faults of a request: those it asks for, and those that chance adds."""
        chosen = faults.read(header)
        for entry in self.rates:
            model = entry["model"]
            if (model is None or f'"{model}"'.encode() in body) and self._chance.random() < entry["rate"]:
                chosen = {**faults.read(entry["fault"]), **chosen}
        self.faults.update(chosen.keys())
        return chosen

    def stats(self, connections: int) -> dict[str, Any]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "answers": [{"endpoint": e, "status": s, "count": n} for (e, s), n in sorted(self.answers.items())],
            "tokens": self.tokens,
            "faults": self.faults,
            "open": connections,
            "cpu_seconds": used.ru_utime + used.ru_stime,
        }

    def connections(self, count: int) -> dict[str, Any]:
        at = now()
        requests = [watched.plain(at) for watched in [*self._ended, *self._under_way]]
        return {"open": count, "now": at, "requests": requests}
