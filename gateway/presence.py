"""Turns the caller hanging up into an ordinary exception."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from gateway.errors import ClientGone

Whole = Callable[[int, list[tuple[bytes, bytes]], bytes], None]


class Hangup:
    """The caller's end of the connection, as the server sees it.

    fire: called when it closes.  abort: cuts it.  whole: writes an answer (status, headers, body) in one piece,
    where the server can.
    """

    __slots__ = ("_listener", "abort", "gone", "whole")

    def __init__(self, abort: Callable[[], None]) -> None:
        self.abort = abort
        self.whole: Whole | None = None
        self.gone = False
        self._listener: Callable[[], None] | None = None

    def fire(self) -> None:
        if self.gone:
            return
        self.gone = True
        if self._listener is not None:
            self._listener()

    def listen(self, listener: Callable[[], None] | None) -> None:
        self._listener = listener


class Presence:
    """`with Presence(hangup):` raises ClientGone in the block, and only in the block, when the caller hangs up.

    Cancels and un-cancels the running task as asyncio.timeout does, so that a cancellation from outside stays one.
    `grace()` is asked first: seconds during which the block goes on although nobody listens (to read an answer's usage
    to its end); 0 ends it at once.  A block that ends within its grace raises ClientGone at its end.
    """

    __slots__ = ("_before", "_fired", "_grace", "_hangup", "_task", "_timer")

    def __init__(self, hangup: Hangup, grace: Callable[[], float]) -> None:
        self._hangup = hangup
        self._grace = grace
        self._fired = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "presence needs a running task"
        self._task = task
        self._before = task.cancelling()
        if self._hangup.gone:
            raise ClientGone("The caller hung up.")
        self._hangup.listen(self._gone)
        return self

    def reconsider(self) -> None:
        """Asks `grace` anew, for a caller that is gone: what it went on for may have changed."""
        if self._hangup.gone and not self._fired:
            if self._timer is not None:
                self._timer.cancel()
            self._gone()

    def _gone(self) -> None:
        seconds = self._grace()
        if seconds > 0:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._stop)
        else:
            self._stop()

    def _stop(self) -> None:
        self._fired = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hangup.listen(None)
        if self._timer is not None:
            self._timer.cancel()
        if self._fired and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise ClientGone("The caller hung up.") from None
        if self._hangup.gone and kind is None:
            raise ClientGone("The caller hung up before the answer's end.")
