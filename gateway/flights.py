"""One answer that several wait for: it is read once, and each who waits gets every chunk of it, at its own pace.

The exchange whose call it is leads; the others follow.  A follower that is slow holds up nobody: it reads from what is
kept.  What is kept is bounded: an answer that grows beyond takes no new followers, lets go of what all have read, and
cuts those that are a whole bound behind.  A leader whose caller does not take what it is sent for PATIENCE seconds,
while others wait, is cut off, and its answer read on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Final

from gateway.dialects import Chunk
from gateway.errors import Denied, GatewayError, Unavailable, UpstreamError
from gateway.exchange import Exchange

LONGEST: Final = 4 * 1024 * 1024  # bytes of one answer that are kept while it is under way
TOGETHER: Final = 64 * 1024 * 1024  # of all of them: beyond, answers that nobody else waits for are not kept
PATIENCE: Final = 5.0
_EACH: Final = 64  # bytes that a chunk takes beside its own


class Room:
    """What all flights of a process keep together, in bytes."""

    def __init__(self, limit: int = TOGETHER) -> None:
        self.limit = limit
        self.used = 0


class Flight:
    """Of one question.  It has landed when it is whole or has failed."""

    __slots__ = (
        "_base", "_chunks", "_followers", "_longest", "_room", "_size", "_waiters", "_watch", "body", "complete",
        "cost", "error", "kept", "landed", "leader",
    )  # fmt: skip

    def __init__(self, leader: Exchange, room: Room, longest: int = LONGEST) -> None:
        self.leader = leader
        self.landed = False
        self.error: GatewayError | None = None  # why it failed
        self.complete = False  # its last chunk is here
        self.kept = True  # nothing of it was let go: it may be joined
        self.body: bytes | None = None  # as it is when it is not streamed, once it has landed
        self.cost: int | None = None  # nano-USD, once it is complete
        self._room = room
        self._longest = longest
        self._chunks: list[Chunk] = []
        self._base = 0  # chunks that were let go
        self._size = 0
        self._followers: dict[Follower, None] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._watch: asyncio.TimerHandle | None = None

    @property
    def begun(self) -> bool:
        return self._base + len(self._chunks) > 0

    @property
    def followers(self) -> int:
        return len(self._followers)

    def add(self, chunk: Chunk) -> None:
        """By the leader, in order."""
        if chunk.last:
            self.complete = True
        if self.kept or self._followers:
            self._chunks.append(chunk)
            size, room = len(chunk.raw) + _EACH, self._room
            self._size += size
            room.used += size
            if self._size > self._longest or (room.used > room.limit and not self._followers):
                self.kept = False
                self._let_go()
        if self._waiters:
            self._wake()

    def land(self, error: GatewayError | None = None) -> None:
        """Whole, or failed: nothing will be added.  Who follows reads on to the end of what there is."""
        self.landed, self.error = True, error
        if self._followers:
            self._wake()
            self._rest()
        if not self._followers:
            self.leave_room()

    def raw(self) -> bytes | None:
        """The answer as it came; None where something of it was let go."""
        if not self.kept:
            return None
        chunks = self._chunks
        return chunks[0].raw if len(chunks) == 1 else b"".join([chunk.raw for chunk in chunks])

    def leave_room(self) -> None:
        self._room.used -= self._size
        self._size = 0

    # ── followers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def join(self) -> Follower:
        follower = Follower(self)
        self._followers[follower] = None
        self.leader.awaited = True
        if self.leader.presence is not None:
            self.leader.presence.reconsider()  # its caller may have gone already
        if self._watch is None and not self.landed:
            self._look()
        return follower

    def leave(self, follower: Follower) -> None:
        """May be called again."""
        if self._followers.pop(follower, self) is self or self._followers:
            return
        self.leader.awaited = False
        self._rest()
        if self.landed:
            self.leave_room()
        elif self.leader.presence is not None:
            self.leader.presence.reconsider()  # its caller may have gone long ago

    def _look(self) -> None:
        """Is the leader's caller in everybody's way?"""
        leader = self.leader
        stuck = time.perf_counter_ns() - leader.sending if leader.sending else 0
        if stuck > PATIENCE * 1e9 and leader.presence is not None:
            leader.presence.cut()
            return
        self._watch = asyncio.get_running_loop().call_later(PATIENCE / 4, self._look)

    def _rest(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def chunk(self, at: int) -> Chunk | None:
        return self._chunks[at - self._base] if at - self._base < len(self._chunks) else None

    def behind(self, at: int) -> bool:
        """Was what stands there let go?"""
        return at < self._base

    async def news(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _let_go(self) -> None:
        """What all have read; and then the oldest, until what is left is within the bound."""
        read = min((follower.at for follower in self._followers), default=self._base + len(self._chunks))
        gone = max(0, read - self._base)
        size = sum(len(chunk.raw) + _EACH for chunk in self._chunks[:gone])
        while self._size - size > self._longest:
            size += len(self._chunks[gone].raw) + _EACH
            gone += 1
        del self._chunks[:gone]
        self._base += gone
        self._size -= size
        self._room.used -= size


class Follower:
    """One who waits for the answer of another.  `leave` it, however it ends."""

    __slots__ = ("at", "flight")

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self.at = 0  # chunks read

    def leave(self) -> None:
        self.flight.leave(self)

    async def begun(self) -> bool:
        """Waits for the first chunk.  False: there will be none, and why does not concern others (see `shared`)."""
        flight = self.flight
        while not flight.begun and not flight.landed:
            await flight.news()
        return self._outcome(flight.begun)

    async def ended(self) -> bool:
        """Waits until it is whole.  False: as for `begun`, or it grew too long to be kept."""
        flight = self.flight
        while not flight.landed and flight.kept:
            await flight.news()
        return self._outcome(flight.landed and flight.complete and flight.error is None)

    def _outcome(self, good: bool) -> bool:
        """Raises what concerns every caller who asks the same."""
        flight = self.flight
        if not good and flight.error is not None and (error := shared(flight.error)) is not None:
            raise error
        return good

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """From the first to the last.  Raises GatewayError where the answer breaks off."""
        flight = self.flight
        while True:
            if flight.behind(self.at):
                raise Unavailable("The answer was read too slowly, while others waited for it too.", retry_after=1)
            chunk = flight.chunk(self.at)
            if chunk is not None:
                self.at += 1
                yield chunk
                if chunk.last:
                    return
            elif flight.landed:
                raise _broken(flight.error)
            else:
                await flight.news()


def shared(error: GatewayError) -> GatewayError | None:
    """The error as another caller of the same would have got it; None where it is the leader's own affair.

    A provider's refusal or failure is the question's; a refusal by a policy, a hang-up, our shutdown are the leader's.
    """
    if not isinstance(error, UpstreamError):
        return None
    again = UpstreamError(
        error.message, code=error.code, status=error.status, param=error.param, retry_after=error.retry_after,
        should_retry=error.should_retry, retryable=False, free=error.free, said=error.said,
    )  # fmt: skip
    again.kind = error.kind
    return again


def _broken(error: GatewayError | None) -> GatewayError:
    """What is told after a byte has left: nobody may begin again."""
    if error is not None and (again := shared(error)) is not None:
        return again
    if isinstance(error, Denied):
        return Denied(error.message, code=error.code, status=error.status)
    return UpstreamError("The answer that this call shared broke off before its end.", code="upstream_broke_off")
