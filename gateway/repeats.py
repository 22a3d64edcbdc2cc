"""Calls that carry an Idempotency-Key: answered once, and from then on with what was answered.

A key belongs to the API key that sent it.  While its call is under way, at whichever of the gateways that share a
store, another with it is refused (409); with another body it is refused at any time (422).  A call that fails lets its
key go: whoever tries again is served.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, NamedTuple

from gateway.answers import Found, Generations, Kept, Question, Store, Tenants
from gateway.errors import BadCall
from gateway.exchange import Exchange

LONGEST: Final = 255  # bytes of a key


class Claim(NamedTuple):
    """The right to answer for a key.  `release` it once, with the answer where there is one."""

    question: Question
    asked: bytes  # a digest of what is asked
    now: Generations | None


class Repeats:
    """Belongs to one event loop."""

    def __init__(self, store: Store, tenants: Tenants, seconds: float, rules: bytes, by_user: bool = False) -> None:
        """rules: a digest of all policies.  What was answered under others is not answered again.

        by_user: each user has keys of its own.
        """
        self._store = store
        self._tenants = tenants
        self._ns = int(seconds * 1e9)
        self._rules = rules
        self._by_user = by_user
        self._ending: dict[bytes, asyncio.Future[None]] = {}  # claims whose answer is whole, and being made ready

    async def claim(self, x: Exchange, word: bytes, keep: bool) -> Claim | Kept:
        """What was answered, or the right to answer.  keep: an answer may be looked up and kept.

        Raises BadCall: 400 for what is no key, 409 while the same is under way, 422 where something else was asked.
        """
        if not 0 < len(word) <= LONGEST:
            raise BadCall(f"Idempotency-Key: 1 to {LONGEST} bytes are wanted.", param="Idempotency-Key")
        caller = x.caller
        whose = f"repeats {caller.team} {caller.born} {caller.key} {caller.id}"
        tenant = self._tenants[f"{whose} of {x.user}" if self._by_user else whose]
        question = Question(tenant, tenant.mac(b"key" + word), caller.team, caller.key, x.alias)
        asked = tenant.mac(b"asked" + x.path.encode() + b"\0" + x.body)
        if (ending := self._ending.get(question.key)) is not None:
            await asyncio.wait({ending})
        kept, _ = await self._saved(x, question, asked, keep)
        if kept is None:
            holder = await self._store.claim(question, asked)
            if holder is None:
                return await self._begin(x, question, asked, keep)
            kept, _ = await self._saved(x, question, asked, keep)  # it may have been answered meanwhile
            if kept is None:
                raise _under_way() if holder == asked else _other()
        return kept

    def ending(self, claim: Claim) -> None:
        """Its answer has ended, and is being made ready: who asks again waits for `release`."""
        self._ending[claim.question.key] = asyncio.get_running_loop().create_future()

    def release(self, claim: Claim, body: bytes | None, cost: int | None) -> None:
        """body: the answer as it is when it is not streamed; None: there is none to keep."""
        try:
            if body is not None and claim.now is not None:
                at, (_, _, team, caller, model) = time.time_ns(), claim.question
                until, asked = at + self._ns, claim.asked
                kept = Kept(body, at, until, cost, team, caller, claim.now, asked, "", model, self._rules)
                self._store.put(claim.question, kept)
        finally:
            self._store.release(claim.question)
            if (ending := self._ending.pop(claim.question.key, None)) is not None:
                ending.set_result(None)

    async def _begin(self, x: Exchange, question: Question, asked: bytes, keep: bool) -> Claim | Kept:
        """With the right to answer.  Whoever had it before may have been answered since it was looked up."""
        claim = None
        try:
            kept, now = await self._saved(x, question, asked, keep)
            if kept is not None:
                return kept
            claim = Claim(question, asked, now)
            return claim
        finally:
            if claim is None:
                self._store.release(question)

    async def _saved(self, x: Exchange, question: Question, asked: bytes, keep: bool) -> Found:
        if not keep:
            return Found(None, None)
        found = await self._store.get(question)
        if found.kept is not None and found.kept.asked != asked:
            raise _other()
        if found.kept is not None and found.kept.rules != self._rules:
            return Found(None, found.now)
        if found.kept is not None and x.stream and x.dialect.replay(found.kept.body, False, False) is None:
            return Found(None, found.now)  # no stream can be made of it
        return found


def _under_way() -> BadCall:
    return BadCall(
        "A call with this Idempotency-Key is under way. Ask again for its answer.",
        code="idempotency_in_flight", status=409, retry_after=1,
    )  # fmt: skip


def _other() -> BadCall:
    return BadCall(
        "This Idempotency-Key was used for a call with another body. Use a new one.",
        code="idempotency_mismatch", status=422, param="Idempotency-Key", should_retry=False,
    )  # fmt: skip
