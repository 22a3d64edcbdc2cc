"""Answers in this process's memory: bounded in bytes, the least recently used go first."""

from __future__ import annotations

import time

from cachetools import LRUCache

from gateway.answers import OVERHEAD, Found, Generations, Kept, Question, marks


class MemoryStore:
    """Belongs to one event loop.  An entry that is out of date takes its room until it is asked for, or pushed out."""

    shared = False

    def __init__(self, limit: int) -> None:
        """limit: bytes, with everything."""
        self.defects = 0
        self.lost = 0
        self._kept: LRUCache[bytes, Kept] = LRUCache(limit, getsizeof=lambda kept: len(kept.body) + OVERHEAD)
        self._generations: dict[str, int] = {}
        self._claims: dict[bytes, bytes] = {}  # what is asked, by what it is an answer to

    @property
    def entries(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        return int(self._kept.currsize)

    async def get(self, question: Question) -> Found:
        now = self._now(question.team, question.caller, question.model)
        kept = self._kept.get(question.key)
        if kept is None:
            return Found(None, now)
        valid = now
        if (origin := kept.origin(question)) != question[2:]:
            valid = self._now(*origin)
        if kept.made != valid or kept.until <= time.time_ns():
            del self._kept[question.key]
            return Found(None, now)
        return Found(kept, now)

    def put(self, question: Question, kept: Kept) -> None:
        try:
            self._kept[question.key] = kept
        except ValueError:  # larger than the whole store
            self.lost += 1

    async def claim(self, question: Question, asked: bytes) -> bytes | None:
        holder = self._claims.get(question.key)
        if holder is None:
            self._claims[question.key] = asked
        return holder

    def release(self, question: Question) -> None:
        del self._claims[question.key]

    async def forget(self, what: str) -> bool:
        self._generations[what] = self._generations.get(what, 0) + 1
        return True

    async def aclose(self) -> None:
        self._kept.clear()

    def _now(self, team: str, caller: str, model: str) -> Generations:
        known = self._generations
        if not known:
            return 0, 0, 0, 0
        every, of_model, of_team, of_key = (known.get(what, 0) for what in marks(team, caller, model))
        return every, of_model, of_team, of_key
