"""Limits of several gateways at once, counted by a Valkey or Redis that they share.

Each call is one script (take.lua), which runs alone and whole, by the server's clock.  Calls carry what was given back
since the last one; what nobody carries within 2 ms is sent by itself.  A call has an id, and the server remembers its
answer for 30 s: a call whose answer was lost is asked again, and what it took for nobody is given back.

A server that does not answer costs a request at most 0.3 s, once.  From then on it is left alone: limits are counted
in this process, each replica holding its share, until the server answers again (asked every 0.5 s).  Around such a
change a window may see the limit at the server and, besides, the shares.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, NamedTuple

import msgspec
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as Late

from gateway.counters import Charge, Counters, Refusal, Taken
from gateway.valkey import ANSWER, AWAY, PREFIX, PROBE, connect

KEEP: Final = 15.0  # seconds between two renewals of leases; they end after 45 (take.lua)
FORGET: Final = 25.0  # seconds after which a call that was not answered is not asked again: its record ends after 30
LINGER: Final = 0.002  # seconds what is given back waits for a call that carries it
CARRIED: Final = 200  # things given back that one call carries
_SCRIPT: Final = files("gateway.counters").joinpath("take.lua").read_text(encoding="utf-8")
_SHA: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()  # how servers name scripts

log = logging.getLogger("gateway")


class _Given(NamedTuple):
    """Something to tell the server; a lease where there is one, else the amount that was not used of a slot."""

    key: str
    lease: str = ""
    window: int = 0  # ms
    amount: int = 0  # below 0: used on top
    slot: int = 0
    born: int = 0  # of the window, by the server's clock


class _Held(NamedTuple):
    """What the server granted."""

    charges: Sequence[Charge]
    lease: str
    slots: list[int]
    births: list[int]


@dataclass(slots=True)
class _Call:
    id: str
    keys: list[str]
    body: bytes
    charges: Sequence[Charge]
    began: float  # time.monotonic()


class ValkeyCounters:
    """Counters in a server.  Belongs to one event loop; nothing runs before the first take."""

    def __init__(
        self, url: str, fallback: Counters, replicas: int = 1, connections: int = 64, patience: float = ANSWER
    ) -> None:
        """url: valkey://host:6379/0, redis:// the same, valkeys:// or rediss:// with TLS.

        fallback: counts while the server is away.  replicas: gateways that share the server; each then holds
        limit / replicas, and at least 1.  patience: seconds the server has for connecting, and for each answer; a
        request waits three times as long, with everything.
        """
        self.degraded = False
        self._fallback = fallback
        self._replicas = max(1, replicas)
        self._redis = connect(url, connections, patience)
        self._patience = 3 * patience
        self._name = os.urandom(9).hex()
        self._number = itertools.count()
        self._given: deque[_Given] = deque()
        self._unsure: deque[_Call] = deque()  # sent, and not answered
        self._live: dict[str, list[str]] = {}  # leases, and the keys they are held in
        self._wake = asyncio.Event()
        self._tender: asyncio.Task[None] | None = None
        self._waking: asyncio.TimerHandle | None = None
        self._closing = False

    async def take(self, charges: Sequence[Charge]) -> Taken | Refusal:
        if self._tender is None:
            self._tender = asyncio.create_task(self._tend())
        if self.degraded:
            return await self._take_share(charges)
        call = self._call(charges)
        task = asyncio.current_task()
        cancels = task.cancelling() if task is not None else 0
        try:
            async with asyncio.timeout(self._patience):
                answer = await self._send(call)
            if task is not None and task.cancelling() > cancels:
                raise asyncio.CancelledError  # redis-py swallowed it
        except asyncio.CancelledError:
            self._ask_again(call)
            raise
        except AWAY as error:
            self._ask_again(call)
            self._leave(error)
            return await self._take_share(charges)
        return self._read(call, answer)

    def give_back(self, taken: Taken, used: Sequence[int]) -> None:
        held = taken.token
        if isinstance(held, Taken):
            self._fallback.give_back(held, used)
            return
        assert isinstance(held, _Held)
        self._live.pop(held.lease, None)
        places = zip(held.charges, held.slots, held.births, used, strict=True)
        for (key, amount, _, window), slot, born, really in places:
            if not window:
                self._given.append(_Given(key, held.lease))
            elif really != amount:
                self._given.append(_Given(key, "", round(window * 1000), amount - really, slot, born))
        if self._given and self._waking is None and not self.degraded:
            self._waking = asyncio.get_running_loop().call_later(LINGER, self._wake_up)

    async def aclose(self) -> None:
        self._closing = True
        while self._tender is not None and not self._tender.done():
            self._tender.cancel()  # more than once: redis-py was seen to swallow a cancellation
            await asyncio.wait({self._tender}, timeout=ANSWER)
        if self._waking is not None:
            self._waking.cancel()
        self._given += [_Given(key, lease) for lease, keys in self._live.items() for key in keys]
        self._live.clear()
        try:
            async with asyncio.timeout(1):
                await self._settle()
        except AWAY:
            lost = len(self._given) + len(self._unsure)
            log.warning("%d corrections of limits could not be told to the counters' server", lost)
        await self._redis.aclose()
        await self._fallback.aclose()

    # ── one call ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _call(
        self, charges: Sequence[Charge] = (), keep: Sequence[tuple[str, str]] = (), carry: int = CARRIED
    ) -> _Call:
        """keep: keys and leases.  carry: how much at most of what was given back until now."""
        number = f"{self._name}{next(self._number):x}"
        keys = [f"{PREFIX}call {number}"]
        free, give = [], []
        for _ in range(min(len(self._given), carry)):
            given = self._given.popleft()
            keys.append(PREFIX + given.key)
            if given.lease:
                free.append((len(keys), given.lease))
            else:
                give.append((len(keys), *given[2:]))
        kept = []
        for key, lease in keep:
            keys.append(PREFIX + key)
            kept.append((len(keys), lease))
        take = []
        for key, amount, limit, window in charges:
            keys.append(PREFIX + key)
            take.append((len(keys), amount, limit, round(window * 1000)))
        said = {"free": free, "keep": kept, "give": give, "take": take, "lease": number}
        return _Call(number, keys, msgspec.json.encode(said), charges, time.monotonic())

    async def _send(self, call: _Call) -> list[int]:
        """The server's answer.  A connection that broke is tried once more: the call's id makes that harmless."""
        try:
            return await self._ask(call)
        except Late:
            raise
        except Disconnected:
            return await self._ask(call)

    async def _ask(self, call: _Call) -> list[int]:
        try:
            answer: list[int] = await self._redis.evalsha(_SHA, len(call.keys), *call.keys, call.body)
        except NoScriptError:  # a new server, or one that was emptied
            answer = await self._redis.eval(_SCRIPT, len(call.keys), *call.keys, call.body)
        return answer

    def _read(self, call: _Call, answer: list[int]) -> Taken | Refusal:
        remaining = answer[3::4]
        reset = [ms / 1000 for ms in answer[4::4]]
        if not answer[0]:
            wait = answer[2] / 1000 if answer[2] >= 0 else math.inf
            return Refusal(remaining, reset, answer[1] - 1, wait)
        held = [charge.key for charge in call.charges if not charge.window]
        if held:
            self._live[call.id] = held
        return Taken(remaining, reset, _Held(call.charges, call.id, answer[5::4], answer[6::4]))

    # ── when the server is away ──────────────────────────────────────────────────────────────────────────────────────

    async def _take_share(self, charges: Sequence[Charge]) -> Taken | Refusal:
        n = self._replicas
        shares = [Charge(key, amount, max(1, limit // n), window) for key, amount, limit, window in charges]
        found = await self._fallback.take(shares)
        if isinstance(found, Taken):
            return Taken(found.remaining, found.reset, found)
        charge = charges[found.which]
        if found.retry_after == math.inf and charge.amount <= charge.limit:
            return found._replace(retry_after=5.0)  # too much for a share; the server may be back by then
        return found

    def _leave(self, error: BaseException) -> None:
        if not self.degraded:
            self.degraded = True
            log.warning("the counters' server is away (%s): each replica holds its share", type(error).__name__)
        self._wake.set()

    def _ask_again(self, call: _Call) -> None:
        self._unsure.append(call)
        self._wake.set()

    # ── beside the requests ──────────────────────────────────────────────────────────────────────────────────────────

    def _wake_up(self) -> None:
        self._waking = None
        self._wake.set()

    async def _tend(self) -> None:
        """Tells the server what is given back, keeps the leases, and looks whether it is there again."""
        kept = time.monotonic()
        task = asyncio.current_task()
        assert task is not None
        while not (self._closing or task.cancelling()):  # redis-py was seen to swallow a cancellation
            await self._pause(kept + KEEP - time.monotonic())
            try:
                await self._settle()
                if self.degraded or time.monotonic() - kept >= KEEP:
                    kept = time.monotonic()
                    await self._keep()
            except AWAY as error:
                self._leave(error)
                continue
            except Exception:
                log.exception("telling the counters' server broke by a defect of ours")
                await asyncio.sleep(PROBE)
                continue
            if self.degraded:
                self.degraded = False
                log.info("the counters' server is there again")

    async def _pause(self, seconds: float) -> None:
        if self.degraded:
            await asyncio.sleep(PROBE)
        else:
            try:
                async with asyncio.timeout(max(0.0, seconds)):
                    await self._wake.wait()
            except TimeoutError:
                pass  # nothing to tell: it is time to keep the leases
        self._wake.clear()

    async def _settle(self) -> None:
        """What was not answered first, then what was given back; raises where the server is away, and loses nothing."""
        while self._unsure:
            call = self._unsure[0]
            if time.monotonic() - call.began < FORGET:
                found = self._read(call, await self._send(call))
                if isinstance(found, Taken) and call.charges:
                    self.give_back(found, [0] * len(call.charges))
            self._unsure.popleft()
        while self._given:
            call = self._call()
            self._unsure.append(call)
            await self._send(call)
            self._unsure.remove(call)

    async def _keep(self) -> None:
        """Also the look at a server that is away: it writes, so that one that can only be read is not taken back."""
        leases = [(key, lease) for lease, keys in self._live.items() for key in keys]
        for at in range(0, len(leases) or 1, CARRIED):
            part = leases[at : at + CARRIED]
            await self._send(self._call(keep=part, carry=0))
            self._given += [_Given(key, lease) for key, lease in part if lease not in self._live]
