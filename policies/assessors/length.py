"""Answers that are too long, and answers that go round in circles."""

from __future__ import annotations

import asyncio
from typing import Annotated, ClassVar, Final

from pydantic import Field

from gateway import settings
from gateway.assessor import PASSED, Assessor, Verdict
from gateway.exchange import Exchange
from gateway.patterns import Found

_TAIL: Final = 2048  # characters in which a repetition is looked for


class Length(Assessor):
    """Labels: too_long, repetition.  The score is 1."""

    type: ClassVar[str] = "pattern"
    stages: ClassVar[frozenset[str]] = frozenset({"output"})
    quick: ClassVar[bool] = True

    class Settings(settings.Settings):
        characters: Annotated[int, Field(ge=1)] | None = None  # of one choice; none: no limit
        repetitions: Annotated[int, Field(ge=3, le=1000)] | None = (
            20  # of one piece, one right after the other; none: any
        )
        shortest: Annotated[int, Field(ge=1, le=100)] = 4  # characters of such a piece

    def __init__(self, said: Settings | None = None) -> None:
        self.said = said or self.Settings()

    async def assess(self, text: str, stage: str) -> Verdict:
        follower = LengthFollower(self)
        verdict = PASSED
        for at in range(0, max(len(text), 1), 512):
            one = await follower.feed(text[at : at + 512], False, False)
            if not at % 4096:
                await asyncio.sleep(0)  # others get their turn
            verdict = one if one is not PASSED else verdict
        return verdict

    def spares(self, body: bytes) -> bool:
        said = self.said
        repeats = said.repetitions is not None and len(body) >= said.shortest * said.repetitions
        return not repeats and (said.characters is None or len(body) <= said.characters)

    def follow(self, stage: str, x: Exchange | None = None) -> LengthFollower:
        return LengthFollower(self)

    def repeats(self, text: str) -> int:
        """Characters of the piece that the text ends with, over and over; 0: it does not."""
        times = self.said.repetitions
        if times is None:
            return 0
        for size in range(self.said.shortest, len(text) // times + 1):
            piece = text[-size:]
            if (
                text.endswith(piece * 2)
                and text.endswith(piece * times)
                and not piece.isspace()
                and len(set(piece)) > 1
            ):
                return size
        return 0


class LengthFollower:
    """Judges what has come so far; nothing has to wait."""

    def __init__(self, assessor: Length) -> None:
        self._assessor = assessor
        self._tail = ""
        self._looked = 0
        self.settled = 0

    async def feed(self, piece: str, final: bool, due: bool) -> Verdict:
        before = self.settled
        self.settled += len(piece)
        most = self._assessor.said.characters
        if most is not None and self.settled > most:
            span = Found(max(before, most), self.settled, "too_long")
            return Verdict(1.0, 1.0, f"too_long: over {most} characters", [span])
        self._tail = (self._tail + piece)[-_TAIL:]
        if self.settled - self._looked >= 64 or final:
            self._looked = self.settled
            if size := self._assessor.repeats(self._tail):
                return Verdict(
                    1.0, 1.0, f"repetition of {size} characters", [Found(before, self.settled, "repetition")]
                )
        return PASSED
