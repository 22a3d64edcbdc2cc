"""Writes an answer of the simulated provider step by step, at its pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gateway.demo.reply import Identity, Step, stamped

if TYPE_CHECKING:
    from gateway.demo.wire import Connection


class Player:
    """Writes one answer.  Told of back-pressure and of the caller leaving by its connection.

    written: visible tokens handed to the socket.  finished: the whole answer was.  reasoning: tokens thought before it.
    """

    __slots__ = (
        "close", "connection", "done", "due", "ended", "finished", "identity", "loop", "pending", "reasoning", "steps",
        "timer", "wait", "written",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        steps: Iterator[Step],
        wait: Callable[[int], float],
        identity: Identity,
        done: Callable[[Player], None],
    ) -> None:
        self.connection = connection
        self.steps = steps
        self.wait = wait
        self.identity = identity
        self.done = done
        self.reasoning = 0
        self.close = False  # the connection, after it
        self.written = 0
        self.finished = False
        self.ended = False
        self.pending: Step | None = None
        self.timer: asyncio.Handle | None = None
        self.loop = connection.loop
        self.due = self.loop.time()

    def run(self) -> None:
        """Write what is due; come back for the rest."""
        self.timer = None
        while not self.ended and not self.connection.blocked:
            step = self.pending
            if step is None:
                step = next(self.steps, None)
                if step is None:
                    self.finish()
                    return
                tokens = step.tokens
                if tokens and self.reasoning:
                    tokens, self.reasoning = tokens + self.reasoning, 0
                seconds = step.delay + self.wait(tokens)
                if seconds:
                    self.due += seconds
                    late = self.due - self.loop.time()
                    if late > 0.0005:
                        self.pending = step
                        self.timer = self.loop.call_later(late, self.run)
                        return
            self.pending = None
            if step.end:
                self.cut(step)
                return
            if step.data:
                self.connection.transport.write(stamped(step.data, self.identity))
            self.written += step.tokens
            if step.alone:
                self.timer = self.loop.call_soon(self.run)
                return

    def cut(self, step: Step) -> None:
        """The connection breaks here, after everything before it has left."""
        if step.data:
            self.connection.transport.write(stamped(step.data, self.identity))
        self.finished = self.ended = True
        self.done(self)
        if step.end == "reset":
            self.connection.reset()
        else:
            self.connection.transport.close()

    def finish(self) -> None:
        self.finished = self.ended = True
        self.done(self)
        self.connection.answered(self.close)

    def abandon(self) -> None:
        """The caller left."""
        if self.ended:
            return
        self.ended = True
        if self.timer is not None:
            self.timer.cancel()
        self.done(self)
