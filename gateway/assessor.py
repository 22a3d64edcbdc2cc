"""What an assessor is: an opinion about a text, in a verdict; and how one follows a text that is being written."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from pydantic import BaseModel

from gateway import settings
from gateway.exchange import Exchange
from gateway.patterns import HELD, Found, Hint, merged
from gateway.problems import nearest

SLICE: Final = 1024  # characters scanned in one go: other requests get their turn in between
OVERLAP: Final = 2 * HELD  # characters that two slices share
LONGEST: Final = 4_000_000  # characters that an assessor which must see all of an answer waits for

STAGES: Final = ("instructions", "input", "tool_definitions", "tool_arguments", "tool_results", "output")


class Verdict(NamedTuple):
    """An assessor's opinion of a text.

    score: 0 (nothing found) … 1 (certainly what the assessor looks for).  confidence: 0 … 1, in that score.
    explanation: in labels and figures, never in words of the text.  spans: places in the text; none where the
    opinion is of the whole.
    """

    score: float
    confidence: float = 1.0
    explanation: str = ""
    spans: Sequence[Found] = ()


PASSED: Final = Verdict(0.0)


class NoAssessor(Exception):
    """`use:` names no assessor that can be loaded.  mend: what to do about it."""

    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend


class Follower(Protocol):
    """One assessor beside one text that arrives in pieces."""

    settled: int  # characters, from the start of the text, that no later one can change the opinion of

    async def feed(self, piece: str, final: bool, due: bool) -> Verdict:
        """The text's next piece.  Spans are counted from its start, and lie before `settled`.

        final: no more will come.  due: what waits has waited long enough; judge what is there.
        """


class Assessor:
    """An opinion.  Override `assess`; an instance serves all requests, one after the other and side by side."""

    name: str = ""  # set by the policy to the name under which config.yaml uses it
    type: ClassVar[str] = "model"  # how it judges: pattern | model | llm | service
    stages: ClassVar[frozenset[str]] = frozenset({"input", "output", "tool_arguments", "tool_results"})
    quick: ClassVar[bool] = False  # its answers never wait for anything
    whole: ClassVar[bool] = False  # it must see all of an answer: a stream is held back to its end
    window: int = HELD  # characters of a stream that are judged together …
    context: int = HELD  # … with so many before them

    class Settings(settings.Settings):
        """An assessor's own words in config.yaml."""

    async def assess(self, text: str, stage: str) -> Verdict:
        """Of a whole text.  May raise anything: then `on_error` decides."""
        raise NotImplementedError

    async def asked(self, x: Exchange | None, text: str, stage: str) -> Verdict:
        """The same, for one that must know the request, because it makes calls of its own for it."""
        return await self.assess(text, stage)

    def spares(self, body: bytes) -> bool:
        """Is there certainly nothing to be found in these bytes, whatever texts they hold?"""
        return False

    async def aclose(self) -> None:
        """The gateway ends."""

    def follow(self, stage: str, x: Exchange | None = None) -> Follower:
        return WholeFollower(self, stage, x) if self.whole else WindowFollower(self, stage, x)


class Scanner(Assessor):
    """An opinion that is made of places in the text, each found by looking at no more than HELD characters around it.

    Override `find`; and `hold`, where less than `reach` characters need to wait for what follows them.
    """

    type: ClassVar[str] = "pattern"
    quick: ClassVar[bool] = True
    reach: int = HELD  # characters of the longest place that must be seen whole; at most HELD
    scores: ClassVar[dict[str, float]] = {}  # by label; else 1
    folds: ClassVar[bool] = False  # it reads letters beyond ASCII as others

    def find(self, text: str, data: bytes) -> list[Found]:
        """Every place.  data: the text as UTF-8."""
        raise NotImplementedError

    def hints(self) -> Sequence[Hint]:
        """Patterns of which one occurs wherever `find` finds anything; none: not known."""
        return ()

    def doubts(self, body: bytes, hits: list[int]) -> bool:
        """May there be anything in the texts of this JSON?  A closer look, where it is cheaper than to decode them.

        body: as it is written, but for the commonest escapes.  hits: the hints that occurred in it, by their places.
        """
        return True

    def hold(self, text: str) -> int:
        """How many of the last characters could belong to a place that what follows them completes; at most HELD."""
        return min(len(text), self.reach)

    def resume(self, label: str, text: str) -> tuple[int, bool]:
        """How many of these characters still belong to the place before them that was open; and may it still go on?"""
        return 0, False

    def scan(self, text: str) -> list[Found]:
        return self.find(text, text.encode(errors="replace")) if text else []

    async def assess(self, text: str, stage: str) -> Verdict:
        if len(text) <= 2 * SLICE:
            size = len(text)
            return self.verdict([one._replace(end=size) if one.open else one for one in self.scan(text)])
        found: list[Found] = []
        follower = ScanFollower(self)
        for at in range(0, len(text), SLICE):
            found += follower.feed_now(text[at : at + SLICE], at + SLICE >= len(text))
            await asyncio.sleep(0)
        return self.verdict(found)

    def verdict(self, found: Sequence[Found]) -> Verdict:
        if not found:
            return PASSED
        counts: dict[str, int] = {}
        for one in found:
            counts[one.label] = counts.get(one.label, 0) + 1
        score = max([self.scores.get(label, 1.0) for label in counts])
        told = ", ".join(f"{label} {count}×" if count > 1 else label for label, count in counts.items())
        return Verdict(score, score, told[:200], found)

    def follow(self, stage: str, x: Exchange | None = None) -> ScanFollower:
        return ScanFollower(self)


class ScanFollower:
    """Scans each new piece once, with what is held before it."""

    __slots__ = ("_base", "_last", "_open", "_scanner", "_text", "settled")

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        self._text = ""  # from _base on
        self._base = 0
        self._open: Found | None = None  # a place that goes on in what follows `settled`
        self._last = 0  # where the last place that was told ends
        self.settled = 0

    async def feed(self, piece: str, final: bool, due: bool) -> Verdict:
        found = self.feed_now(piece, final)
        return self._scanner.verdict(found) if found else PASSED

    def feed_now(self, piece: str, final: bool) -> list[Found]:
        scanner = self._scanner
        text = self._text = self._text + piece
        base, told = self._base, []
        if self._open is not None:
            told += self._resume(text[self.settled - base :], final)
            if self._open is not None:
                self._forget()
                return told
        size = len(text)
        settled = size if final else max(size - min(scanner.hold(text), HELD), self.settled - base)
        found = scanner.scan(text)
        if not found:  # nearly always
            self.settled = settled + base
            self._forget()
            return told
        last = max(self._last, self.settled) - base  # what lies before it is decided
        for one in merged(found):
            goes_on = one.open and not final
            start, end = max(one.start, last), size if one.open and final else one.end
            if end <= last or start >= settled:
                continue
            if end > settled and not goes_on and not final:
                if size - one.start <= HELD:  # it can still wait, whole
                    settled = one.start
                    break
                settled = end
            told.append(Found(start + base, end + base, one.label, goes_on, one.replacement))
            last = end
            if goes_on:
                self._open, settled = told[-1], end
                break
        self._last = max(self._last, last + base)
        self.settled = settled + base
        self._forget()
        return told

    def _resume(self, text: str, final: bool) -> list[Found]:
        """What belongs to a place that was open, and is taken away without a second placeholder."""
        assert self._open is not None
        label, start = self._open.label, self.settled
        more, goes_on = self._scanner.resume(label, text)
        if final and goes_on:
            more = len(text)
        if not goes_on:
            self._open = None
        self._last = self.settled = start + more
        return [Found(start, self.settled, label, False, "")] if more else []

    def _forget(self) -> None:
        """What lies too far back to matter to what comes goes."""
        keep = self.settled - self._base - 64
        if keep > HELD:
            self._text = self._text[keep:]
            self._base += keep


class WindowFollower:
    """Asks about each window of a text, with some of what stood before it."""

    def __init__(self, assessor: Assessor, stage: str, x: Exchange | None = None) -> None:
        self._assessor = assessor
        self._stage = stage
        self._x = x
        self._text = ""  # not longer than context and window
        self._new = 0  # characters at its end that were not judged
        self._size = 0
        self.settled = 0

    async def feed(self, piece: str, final: bool, due: bool) -> Verdict:
        self._text += piece
        self._new += len(piece)
        self._size += len(piece)
        if not self._new or not (final or due or self._new >= self._assessor.window):
            return PASSED
        text = self._text[-(self._new + self._assessor.context) :]
        verdict = await self._assessor.asked(self._x, text, self._stage)
        start = self._size - len(text)
        self._text, self._new = text[-self._assessor.context :], 0
        before, self.settled = self.settled, self._size
        spans = [one._replace(start=max(one.start + start, before), end=one.end + start) for one in verdict.spans]
        return verdict._replace(spans=[one for one in spans if one.end > one.start])


class WholeFollower:
    """Asks once, about all of it."""

    def __init__(self, assessor: Assessor, stage: str, x: Exchange | None = None) -> None:
        self._assessor = assessor
        self._stage = stage
        self._x = x
        self._pieces: list[str] = []
        self._size = 0
        self.settled = 0

    async def feed(self, piece: str, final: bool, due: bool) -> Verdict:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > LONGEST:
            raise ValueError(f"the text is over {LONGEST} characters")
        if not final:
            return PASSED
        verdict = await self._assessor.asked(self._x, "".join(self._pieces), self._stage)
        self.settled = self._size
        return verdict


def find(use: str) -> type[Assessor]:
    """The class behind `use: secrets` (policies.assessors.secrets.Secrets) or `use: acme.guard:Pii`.

    Raises NoAssessor.
    """
    if ":" not in use and use not in (names := known()):
        raise NoAssessor(f'no assessor named "{use[:64]}"' if use.isidentifier() else "not the name of an assessor",
                         nearest(use, names, "assessors"))  # fmt: skip
    module, _, name = use.partition(":") if ":" in use else (f"policies.assessors.{use}", ":", _camel(use))
    try:
        found: Any = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise NoAssessor(f"{module} cannot be imported: {error}", "install the package that holds it") from error
    except Exception as error:  # an operator's module may raise anything, and its words could hold a secret
        raise NoAssessor(f"{module} raised {type(error).__name__} while imported", "mend that module") from error
    if not (isinstance(found, type) and issubclass(found, Assessor)):
        raise NoAssessor(f"{module} has no assessor {name}", "it must be a subclass of gateway.assessor.Assessor")
    return found


def known() -> list[str]:
    """The names of those that are built in."""
    package = importlib.import_module("policies.assessors")  # not at the top: gateway works without any
    return sorted(one.name for one in pkgutil.iter_modules(package.__path__) if not one.name.startswith("_"))


def build(kind: type[Assessor], said: BaseModel, offers: dict[str, Any]) -> Assessor:
    """Its constructor names what it needs: `said`, its own Settings, and any of the offers."""
    import inspect

    asked = inspect.signature(kind).parameters
    return kind(**{name: offer for name, offer in {**offers, "said": said}.items() if name in asked})


def _camel(word: str) -> str:
    return "".join(part.capitalize() for part in word.split("_"))
