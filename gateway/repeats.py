"""Calls that carry an Idempotency-Key: answered once, and from then on with what was answered.

A key belongs to the API key that sent it.  While its call is under way, another with it is refused (409); with another
body it is refused at any time (422).  A call that fails lets its key go: whoever tries again is served.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from gateway.answers import Generations, Kept, Question, Store, Tenants
from gateway.errors import BadCall
from gateway.exchange import Exchange

LONGEST: Final = 255  # bytes of a key


class Claim(NamedTuple):
    """The right to answer for a key.  `release` it once, with the answer where there is one."""

    question: Question
    asked: bytes  # a digest of what is asked
    now: Generations | None


class Repeats:
    """Belongs to one event loop; of calls under way it knows those of this process."""

    def __init__(self, store: Store, tenants: Tenants, seconds: float) -> None:
        self._store = store
        self._tenants = tenants
        self._ns = int(seconds * 1e9)
        self._under_way: dict[bytes, bytes] = {}  # key: a digest of what is asked

    async def claim(self, x: Exchange, word: bytes, keep: bool) -> Claim | Kept:
        """What was answered, or the right to answer.  keep: an answer may be looked up and kept.

        Raises BadCall: 400 for what is no key, 409 while the same is under way, 422 where something else was asked.
        """
        if not 0 < len(word) <= LONGEST:
            raise BadCall(f"Idempotency-Key: 1 to {LONGEST} bytes are wanted.", param="Idempotency-Key")
        tenant = self._tenants[f"repeats {x.caller.team} {x.caller.key}"]
        key = tenant.mac(b"key" + word)
        asked = tenant.mac(b"asked" + x.path.encode() + b"\0" + x.body)
        self._refuse(key, asked)
        question = Question(tenant, key, x.caller.team, x.caller.key, x.alias)
        now: Generations | None = None
        if keep:
            kept, now = await self._store.get(question)
            if kept is not None:
                if kept.asked != asked:
                    raise _other()
                return kept
            self._refuse(key, asked)  # somebody may have come meanwhile
        self._under_way[key] = asked
        return Claim(question, asked, now)

    def release(self, claim: Claim, body: bytes | None, cost: int | None) -> None:
        """body: the answer as it is when it is not streamed; None: there is none to keep."""
        del self._under_way[claim.question.key]
        if body is not None and claim.now is not None:
            at = time.time_ns()
            _, _, team, caller, _ = claim.question
            self._store.put(claim.question, Kept(body, at, at + self._ns, cost, team, caller, claim.now, claim.asked))

    def _refuse(self, key: bytes, asked: bytes) -> None:
        other = self._under_way.get(key)
        if other is None:
            return
        if other != asked:
            raise _other()
        raise BadCall(
            "A call with this Idempotency-Key is under way. Ask again for its answer.",
            code="idempotency_in_flight", status=409, retry_after=1,
        )  # fmt: skip


def _other() -> BadCall:
    return BadCall(
        "This Idempotency-Key was used for a call with another body. Use a new one.",
        code="idempotency_mismatch", status=422, param="Idempotency-Key", should_retry=False,
    )  # fmt: skip
