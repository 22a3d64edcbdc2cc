"""Answers in a Valkey or Redis that several gateways share; each entry is sealed with its tenant's secret.

A server that does not answer costs a request 0.1 s, at most 0.3, once: from then on every look-up is a miss, at once,
until it answers again (asked every 0.5 s).  Entries are written beside the requests, many at once; what cannot be
written is lost, and counted.  An entry whose seal does not fit was altered, or put there by another: a miss, counted
and logged.

A claim lies there for HELD seconds and is renewed until it is released, so that it ends with the gateway that holds it.
Each gateway knows its own, and holds to them while the server is away; they are told to it when it is there again.

Generations are numbers drawn at random, in one hash that every look-up reads.  Where the server has evicted it, that of
everything begins anew, and no entry from before is valid: whether it was forgotten is not known any more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from random import getrandbits
from typing import Final, TypeVar, cast

from redis.exceptions import ResponseError

from gateway.answers import ALL, Found, Generations, Kept, Question, claimed, marks, seal, seal_claim, unseal
from gateway.valkey import ANSWER, AWAY, PREFIX, PROBE, connect

WAITING: Final = 16 * 1024 * 1024  # bytes of entries that may wait to be written
BATCH: Final = 64
QUIET: Final = 60.0  # seconds between two complaints
HELD: Final = 10.0  # seconds that a claim outlives its gateway; it is renewed three times in them
_ENTRY: Final = f"{PREFIX}answer ".encode()
_CLAIM: Final = f"{PREFIX}claim ".encode()
_MARKS: Final = f"{PREFIX}generations"
_DRAWN: Final = 62  # bits of a generation: none comes twice

# KEYS[1] is held by ARGV[1] for ARGV[2] ms, 0: no more.  Answers what another put there, which stays.
_HOLD: Final = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return held end
if ARGV[2] == '0' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return false
"""

T = TypeVar("T")

log = logging.getLogger("gateway")


class ValkeyStore:
    """Belongs to one event loop; nothing runs before it is first used."""

    shared = True

    def __init__(self, url: str, patience: float = ANSWER, connections: int = 64) -> None:
        """patience: seconds the server has for each answer."""
        self.away = False
        self.defects = 0
        self.lost = 0
        self._patience = patience
        self._redis = connect(url, connections, patience)
        self._claims: dict[bytes, bytes] = {}  # of this gateway, as they lie in the server
        self._leaving: dict[bytes, asyncio.Future[None]] = {}  # those that are released, and not yet there
        self._renewed = 0.0  # time.monotonic()
        self._waiting: deque[tuple[bytes, bytes, int]] = deque()  # key, entry, ms that it is good for; a claim: 0
        self._size = 0
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._closing = False
        self._complained = float("-inf")

    @property
    def entries(self) -> int:
        return len(self._waiting)

    @property
    def size(self) -> int:
        return self._size

    async def get(self, question: Question) -> Found:
        if self.away:
            return Found(None, None)
        own = marks(question.team, question.caller, question.model)
        data, now = await self._ask(own, _ENTRY + question.key)
        if now is None or data is None:
            return Found(None, now)
        kept = unseal(question, data)
        if kept is None:
            self._suspect("an entry")
            return Found(None, now)
        valid: Generations | None = now
        if (origin := kept.origin(question)) != question[2:]:
            _, valid = await self._ask(marks(*origin), _ENTRY)
        if kept.made != valid or kept.until <= time.time_ns():
            return Found(None, now)
        return Found(kept, now)

    def put(self, question: Question, kept: Kept) -> None:
        data = seal(question, kept)
        ms = (kept.until - time.time_ns()) // 1_000_000
        if self.away or self._size + len(data) > WAITING or ms <= 0:
            self.lost += 1
            return
        self._line_up(_ENTRY + question.key, data, ms)

    async def claim(self, question: Question, asked: bytes) -> bytes | None:
        key = _CLAIM + question.key
        if not self.away and (leaving := self._leaving.get(key)) is not None:
            await asyncio.wait({leaving}, timeout=self._patience)
        mine = self._claims.get(key)
        if mine is not None:
            return claimed(question, mine)
        mine = self._claims[key] = seal_claim(question, os.urandom(16), asked)
        held: bytes | None = None
        try:
            if not self.away:
                held = cast("bytes | None", await self._wait(self._redis.eval(_HOLD, 1, key, mine, _ms(HELD))))
        except ResponseError as error:
            self._complain(f"the cache's server takes no claims ({_word(error)})")
        except AWAY as error:
            self._leave(error)
        except BaseException:
            self.release(question)
            raise
        if held is not None and (holder := claimed(question, held)) is not None:
            self.release(question)  # also there: a renewal may have taken it meanwhile
            return holder
        if held is not None:
            self._suspect("a claim")
        self._begin()
        self._wake.set()
        return None

    def release(self, question: Question) -> None:
        key = _CLAIM + question.key
        mine = self._claims.pop(key)
        if self._size < WAITING:  # else it ends by itself
            self._leaving[key] = asyncio.get_running_loop().create_future()
            self._line_up(key, mine, 0)

    async def forget(self, what: str) -> bool:
        try:
            async with asyncio.timeout(self._patience * 3):
                await self._redis.hset(_MARKS, what, str(getrandbits(_DRAWN)))
        except AWAY as error:
            self._leave(error)
            return False
        return True

    async def aclose(self) -> None:
        """What waits is written, where the server takes it within a second."""
        self._closing = True
        self._wake.set()
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=1.0)
            while not self._writer.done():
                self._writer.cancel()  # more than once: redis-py was seen to swallow a cancellation
                await asyncio.wait({self._writer}, timeout=ANSWER)
        await self._redis.aclose()

    async def _ask(self, what: Sequence[str], entry: bytes) -> tuple[bytes | None, Generations | None]:
        """What lies there, and the generations of these; neither where the server is away."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.get(entry)
        pipe.hmget(_MARKS, what)
        try:
            data, told = await self._wait(pipe.execute())
            if told[0] is None:
                told[0] = await self._start()
        except AWAY as error:
            self._leave(error)
            return None, None
        return data, _generations(told)

    async def _start(self) -> bytes | None:
        """The generation of everything, where there was none.  None: the server takes nothing."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hsetnx(_MARKS, ALL, str(getrandbits(_DRAWN)))
        pipe.hget(_MARKS, ALL)
        refused, told = await self._wait(pipe.execute(raise_on_error=False))
        if isinstance(refused, Exception):
            self._complain(f"the cache's server takes no generations ({_word(refused)})")
        return cast("bytes | None", told)

    async def _wait(self, answer: Awaitable[T]) -> T:
        """No longer than the server has, which answers several times to a new connection.  Raises what AWAY names."""
        task = asyncio.current_task()
        cancels = task.cancelling() if task is not None else 0
        async with asyncio.timeout(3 * self._patience):
            found = await answer
        if task is not None and task.cancelling() > cancels:
            raise asyncio.CancelledError  # redis-py swallowed it
        return found

    def _leave(self, error: BaseException) -> None:
        if not self.away:
            self.away = True
            log.warning("the cache's server is away (%s): every look-up is a miss until it answers", _word(error))
        self._begin()
        self._wake.set()

    def _line_up(self, key: bytes, data: bytes, ms: int) -> None:
        self._waiting.append((key, data, ms))
        self._size += len(data)
        self._begin()
        self._wake.set()

    def _begin(self) -> None:
        if self._writer is None and not self._closing:
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        """Beside the requests: writes what waits, and looks whether a server that is away is there again."""
        while not self._closing or (self._waiting and not self.away):
            try:
                if self.away:
                    await asyncio.sleep(PROBE)
                    await self._redis.ping()
                    self.away, self._renewed = False, 0.0
                    log.info("the cache's server is there again")
                elif self._claims and time.monotonic() >= self._renewed + HELD / 3:
                    await self._keep()
                elif self._waiting:
                    await self._offer()
                else:
                    await self._rest()
            except AWAY as error:
                self._leave(error)
            except Exception:
                log.exception("writing to the cache's server broke by a defect of ours")
                await asyncio.sleep(PROBE)

    async def _rest(self) -> None:
        """Until there is something to write, or claims to be renewed."""
        self._wake.clear()
        timer = asyncio.get_running_loop().call_later(HELD / 3, self._wake.set) if self._claims else None
        await self._wake.wait()
        if timer is not None:
            timer.cancel()

    async def _keep(self) -> None:
        for _ in range(0, len(self._waiting), BATCH):
            await self._offer()  # what is to be renewed may have been another's here until then
        self._renewed, held = time.monotonic(), list(self._claims.items())
        for at in range(0, len(held), BATCH):
            pipe = self._redis.pipeline(transaction=False)
            for key, mine in held[at : at + BATCH]:
                if self._claims.get(key) == mine:
                    pipe.eval(_HOLD, 1, key, mine, _ms(HELD))
            await pipe.execute(raise_on_error=False)

    async def _offer(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        self._size -= sum(len(data) for _, data, _ in batch)
        entries = sum(ms > 0 for _, _, ms in batch)
        self.lost += entries  # until they are written
        pipe = self._redis.pipeline(transaction=False)
        for key, data, ms in batch:
            if ms:
                pipe.set(key, data, px=ms)
            else:
                pipe.eval(_HOLD, 1, key, data, 0)
        try:
            answers = cast("list[object]", await pipe.execute(raise_on_error=False))
        finally:
            for key, _, ms in batch:
                if not ms and (leaving := self._leaving.pop(key, None)) is not None:
                    leaving.set_result(None)
        refused = [answer for answer in answers if isinstance(answer, Exception)]
        self.lost -= entries - len(refused)
        if refused:
            self._complain(f"the cache's server takes no entries ({_word(refused[0])})")

    def _suspect(self, what: str) -> None:
        self.defects += 1
        self._complain(f"{what} of the cache is not what was put there: it was altered, or is another's")

    def _complain(self, what: str) -> None:
        if time.monotonic() - self._complained >= QUIET:
            self._complained = time.monotonic()
            log.warning("%s; more of it is only counted for a while", what)


def _generations(told: list[bytes | None]) -> Generations | None:
    """None where they are not known."""
    if told[0] is None:
        return None
    try:
        every, model, team, key = (int(one or b"0") for one in told)
    except ValueError:
        return None
    return every, model, team, key


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _word(error: BaseException) -> str:
    """What kind of error: a server's own words could hold what was sent."""
    return f"{type(error).__name__}: {str(error)[:3]}" if str(error).startswith("OOM") else type(error).__name__
