"""How fast the simulated provider speaks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """first: median seconds to the first token (lognormal).  jitter: sigma of each gap (lognormal).
    rate: tokens per second, drawn anew for each answer between two bounds; (0, 0): at once."""

    first: float = 0.0
    rate: tuple[float, float] = (0.0, 0.0)
    jitter: float = 0.0

    @classmethod
    def read(cls, text: str) -> Pace:
        """`none`, `realistic`, or a fixed number of tokens per second.  Raises ValueError on anything else."""
        if text == "none":
            return cls()
        if text == "realistic":
            return cls(0.3, (50.0, 100.0), 0.3)
        rate = float(text)
        if not 0 < rate < 1e6:
            raise ValueError(f"pace: `{text}` is not a number of tokens per second between 0 and 1000000")
        return cls(0.0, (rate, rate))

    @property
    def waits(self) -> bool:
        return self.rate[1] > 0 or self.first > 0

    def draw(self) -> Callable[[int], float]:
        """Seconds to wait before a step of so many tokens, for one answer."""
        if not self.waits:
            return _at_once
        chance = random.Random()
        gap = 1 / chance.uniform(*self.rate)
        first = self.first and self.first * chance.lognormvariate(0, 0.4)
        jitter = self.jitter

        def wait(tokens: int) -> float:
            nonlocal first
            seconds = tokens * gap
            if jitter and tokens:
                seconds *= chance.lognormvariate(0, jitter)
            seconds, first = seconds + first, 0.0
            return seconds

        return wait


def _at_once(_tokens: int) -> float:
    return 0.0
