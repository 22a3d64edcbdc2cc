"""A real gateway that ends itself by SIGKILL at a named point of a call's way: for the tests of what a kill leaves.

    python -m tests.killed_gateway HISTORY POINT COUNT serve --port 0 --config config.yaml

The product has no such hook: its own seams are wrapped here, in this process only, before it starts.  POINT is one of
POINTS, and COUNT which of its occurrences is the last; those under "recovery" count from the start, all others from the
moment the gateway is open.  HISTORY gets a line for each thing, written through to the kernel before the next begins:

    h <hold> <nano-USD>            before this is journalled: the call may leave from then on
    s <hold> <nano-USD | None>     after its end was journalled: from then on nothing about it is in doubt
    k <point>                      the last line
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from gateway.answer import Answer
from gateway.books import Books
from gateway.connection import Connection
from gateway.journal import Journal, Left
from gateway.leases import Leases
from gateway.ledger import Granted
from gateway.ledger.postgres import PostgresLedger
from gateway.ledger.sqlite import SqliteLedger
from gateway.meter import Meter
from gateway.reply import Reply

LEDGERS = (SqliteLedger, PostgresLedger)


class Point(NamedTuple):
    """after: when the method has returned, else before it is called.  when: of its answer, or of its arguments."""

    owners: tuple[type, ...]
    method: str
    after: bool = True
    when: Callable[..., bool] = lambda *_: True
    recovery: bool = False


POINTS = {
    "lease asked": Point((Journal,), "lease"),
    "reserve commit": Point(LEDGERS, "reserve", when=lambda answer: isinstance(answer, Granted)),
    "lease granted": Point((Leases,), "_take", when=lambda answer: isinstance(answer, Granted)),
    "lease grown": Point(LEDGERS, "grow", when=lambda answer: isinstance(answer, Granted)),
    "journal written": Point((Journal,), "hold"),
    "dispatch": Point((Connection,), "ask"),
    "first byte": Point((Answer,), "feed", after=False, when=lambda answer, *_: not answer.ready),
    "first byte delivered": Point((Reply,), "send"),
    "usage": Point((Meter,), "measure"),
    "end journalled": Point((Journal,), "settled"),
    "report made": Point((Books,), "report"),
    "settle commit": Point(LEDGERS, "post"),
    "posting committed": Point((Journal,), "posted"),
    "lease returned": Point(LEDGERS, "release"),
    "recovery: posted": Point(LEDGERS, "post", recovery=True),
    "recovery: released": Point(LEDGERS, "release", recovery=True),
    "recovery: about to forget": Point((Left,), "forget", after=False, recovery=True),
}


class Death:
    """Comes at the count-th occurrence."""

    def __init__(self, file: int, name: str, count: int) -> None:
        self.file, self.name, self.left = file, name, count
        self.recovering = True

    def note(self, *words: object) -> None:
        """One line in one call: a kill loses it or leaves it whole, and the page cache outlives the process."""
        os.write(self.file, (" ".join(map(str, words)) + "\n").encode())

    def step(self, point: Point) -> None:
        if point.recovery is not self.recovering:
            return
        self.left -= 1
        if not self.left:
            self.note("k", self.name)
            os.kill(os.getpid(), signal.SIGKILL)

    def stand_at(self, point: Point) -> None:
        for owner in point.owners:
            wrap(owner, point.method, *((None, self.after(point)) if point.after else (self.before(point), None)))

    def before(self, point: Point) -> Callable[..., None]:
        return lambda *told: self.step(point) if point.when(*told) else None

    def after(self, point: Point) -> Callable[..., None]:
        return lambda answer, *_: self.step(point) if point.when(answer) else None


def wrap(owner: type, name: str, before: Callable[..., None] | None, after: Callable[..., None] | None) -> None:
    """before: gets the arguments; after: what was returned, and the arguments."""
    original: Callable[..., Any] = getattr(owner, name)

    def entered(told: tuple[object, ...]) -> None:
        if before is not None:
            before(*told)

    def left(answer: object, told: tuple[object, ...]) -> None:
        if after is not None:
            after(answer, *told)

    @functools.wraps(original)
    def plain(*told: object, **named: object) -> object:
        entered(told)
        answer = original(*told, **named)
        left(answer, told)
        return answer

    @functools.wraps(original)
    async def awaited(*told: object, **named: object) -> object:
        entered(told)
        answer = await original(*told, **named)
        left(answer, told)
        return answer

    setattr(owner, name, awaited if asyncio.iscoroutinefunction(original) else plain)


def main(history: str, point: str, count: int, words: list[str]) -> None:
    """point: empty: it lives until somebody else kills it."""
    death = Death(os.open(history, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), point, count)

    def held(_: Journal, hold: str, amount: int, *__: object) -> None:
        death.note("h", hold, amount)

    def settled(_: object, __: Journal, hold: str, amount: int | None, *___: object) -> None:
        death.note("s", hold, amount)

    def opened(*_: object) -> None:
        death.recovering = False

    wrap(Journal, "hold", held, None)
    wrap(Journal, "settled", None, settled)
    wrap(Books, "open", None, opened)
    if point:
        death.stand_at(POINTS[point])
    from gateway.cli import main as command

    command(words)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
