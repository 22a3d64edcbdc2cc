"""Rates and calls at once, counted: what may be forgotten in a crash, because only time was lost, never money.

A window slides in steps of 1/60 of itself.  What was taken counts until no span of `window` seconds can hold both it
and what is taken now, so in no such span, wherever it begins, is more taken than the limit: a burst at an edge gains
nothing.  The price: what leaves the window is free again up to 1/60 of the window late.  (A token bucket and the
two-bucket average release smoothly, but both let nearly twice the limit through in one window.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

SLOTS: Final = 60  # steps of a window


class Charge(NamedTuple):
    """What one limit is asked for.  A key is always used with the same window."""

    key: str
    amount: int  # requests or tokens, 0 or more; 1 where the window is 0
    limit: int
    window: float  # seconds; 0: what is running now


class Taken(NamedTuple):
    """Every charge was taken.  The lists are in the order of the charges."""

    remaining: list[int]
    reset: list[float]  # seconds until nothing of the limit is used, if nothing more is taken; 0 for what is running
    token: object  # for give_back


class Refusal(NamedTuple):
    """Nothing was taken.  The lists are in the order of the charges, as they stand."""

    remaining: list[int]
    reset: list[float]
    which: int  # the charge that refused; of several, the one that will refuse longest
    retry_after: float  # seconds until it could be taken; math.inf: never, for the amount is above the limit


class Counters(Protocol):
    """Where limits are counted.  Nothing here raises because a server is away: `degraded` tells that one is."""

    degraded: bool  # a server is away: each replica holds its own share of the limits meanwhile

    async def take(self, charges: Sequence[Charge]) -> Taken | Refusal:
        """All of the charges, or none, in one step that nothing can come between."""

    def give_back(self, taken: Taken, used: Sequence[int]) -> None:
        """Once for each Taken, with what was really used of each charge: less is given back, more is charged.

        Never awaits, so that nothing can interrupt it.  A place among what is running is always given back.  More is
        charged even where the limit is reached: it is used by then, and the next ones wait the longer.
        """

    async def aclose(self) -> None:
        """Everything given back is told to the server, where there is one and it answers within a second."""
