"""Which parts of an answer are one text for its reader, and how long the end of one waits for what it may go on with.

What a reader joins is a lane: the text of one choice, of one tool call, of one list of parts, of one place in the
events of a shape that nobody knows.  A lane ends with the answer.  Where the model goes on to another (from reasoning
to content, to another tool call or choice), or says that a choice has ended, it is left, and may still be come back to.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from gateway.dialects import Part, Place
from gateway.errors import Denied
from gateway.patterns import Found
from gateway.texts import short_name

MOST: Final = 4096  # texts that an answer goes on with …
_CLEAN: Final = 4096  # … and that are not judged again
_RUNS: Final = 64  # places of an unknown shape at which texts go on, at most
_SHORT: Final = 64  # characters of a text that is not judged again where it comes again
_SAME: Final = 8  # characters of a value that is not a text's next piece where it is the last one again
_NUMBER: Final = re.compile(r"[\d.,:/+-]*")  # no text begins with it, where nobody said that one is there

clock = time.monotonic


class Unjudged(Denied):
    """Something in an answer that cannot be read as text, or is too much.  what: in a few words."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"The answer is refused: {what} cannot be judged.", code="blocked_by_safety", should_retry=False
        )
        self.what = what


class Judge(Protocol):
    """Those who judge one lane."""

    settled: int  # characters of the lane that are decided
    timed: bool  # it decides more once it is told that text has waited long enough
    edits: list[Found]  # what stands in place of what, in order; without a label: what a placeholder stood for

    async def hear(self, piece: str, final: bool, due: bool) -> None:
        """Raises GatewayError to stop the answer."""

    async def let_go(self) -> None:
        """Decides what is there, although more may come; all but what must be seen whole.  Raises as `hear` does."""


class Turn:
    """From an event that goes on with texts to one that goes on with others."""

    __slots__ = ("heard", "left")

    def __init__(self) -> None:
        self.heard = 0  # characters of the answer, when the event was over
        self.left: float | None = None  # when another text went on, or the answer said that this one has ended


class Lane:
    __slots__ = ("group", "judge", "last", "once", "open", "over", "since", "size", "tried", "turn")

    def __init__(self, judge: Judge, turn: Turn, group: Place = (), once: bool = False) -> None:
        self.judge = judge
        self.turn = turn  # that of its last piece
        self.group = group
        self.once = once  # it is one part, whole in itself
        self.size = 0
        self.last = ""  # the last piece
        self.open = False  # nobody said since its last piece that its group has ended
        self.over = False
        self.since = 0.0  # when its oldest character came that somebody decides in time
        self.tried = -1  # its size when it was last let go

    @property
    def waits(self) -> bool:
        """Was it left, with something undecided that might be let go?"""
        return self.turn.left is not None and self.judge.settled < self.size and self.tried != self.size


class Piece(NamedTuple):
    """A part of an event, and where it begins in each lane that it stands in."""

    part: Part
    lanes: list[tuple[Lane, int]]

    @property
    def undecided(self) -> Lane | None:
        """A lane that has not decided all of it."""
        size = len(self.part.text)
        for lane, start in self.lanes:
            if start + size > lane.judge.settled:
                return lane
        return None


class Lanes:
    """Those of one answer.

    judge: who judges a lane of a kind (None: nobody); aside: of a text that is judged in another lane too.
    seconds, characters: how long the end of a text that was left may wait.
    """

    def __init__(self, judge: Callable[[str, bool], Judge | None], seconds: float, characters: int) -> None:
        self._judge = judge
        self._seconds = seconds
        self._characters = characters
        self._lanes: dict[tuple[bool, Place], Lane] = {}  # by (aside, key)
        self._open: dict[Place, set[Lane]] = {}  # by what their groups begin with: those that have not ended
        self._turn, self._last = Turn(), Turn()  # of the present event, and of the last one that went on with a text
        self._goes_on = False  # the present event does
        self._runs: frozenset[Place] | None = None  # of an answer that is whole: those of several parts
        self._clean: set[tuple[str, str, bool]] = set()  # (kind, text, aside) of what came whole and was harmless
        self._same = Turn()  # of what is as it was: nothing follows on from it
        self._same.heard, self._same.left = -characters, 0.0
        self._heard = 0  # characters

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def whole(self, parts: Iterable[Part]) -> None:
        """These are all that will come: what stands alone in its run is whole in itself."""
        runs = Counter(part.run for part in parts if part.run is not None)
        self._runs = frozenset(run for run, count in runs.items() if count > 1)

    def put(self, part: Part) -> Piece | None:
        """Who is asked about a part: as what it is by itself, or a piece of; and what else it may be read as.

        Raises Unjudged.
        """
        if part.kind == "media":
            raise Unjudged("media")
        if not part.text:
            return None
        goes_on, run = part.lane, part.run
        if self._runs is not None:
            goes_on, run = None, run if run in self._runs else None
        if goes_on is None and run is not None and not self._follows(run, part.text):
            run = None
        key = goes_on if goes_on is not None else run
        aside = short_name(part)
        if key is None and (part.kind, part.text, aside) in self._clean:
            return None
        lanes = [self._lane(part, key, aside)]
        if run is not None:
            lanes.append(self._lane(part, None if run == key else run, True))
        self._heard += len(part.text)
        piece = Piece(part, [(lane, lane.size) for lane in lanes if lane is not None])
        for lane, _ in piece.lanes:
            lane.size += len(part.text)
            lane.last = part.text
        return piece if piece.lanes else None

    def judged(self, piece: Piece) -> None:
        """Of what was harmless nobody need be asked again: neither about this, nor where it is said again."""
        lane, _ = piece.lanes[0]
        part = piece.part
        if lane.once and not lane.judge.edits and lane.judge.settled == lane.size:
            if len(part.text) <= _SHORT and len(self._clean) < _CLEAN:
                self._clean.add((part.kind, part.text, short_name(part)))
            del piece.lanes[0]

    def turn(self) -> None:
        """An event is over: the texts that it did not go on with may be complete."""
        if self._goes_on:
            self._goes_on = False
            self._last.left = self._last.left or clock()
            self._turn.heard = self._heard
            self._last, self._turn = self._turn, Turn()

    def leave(self, group: Place) -> None:
        """The texts of a group may be complete; (): of all."""
        ended = Turn()
        ended.heard, ended.left = self._heard, clock()
        for lane in self._open.pop(group, ()):
            lane.open = False
            if lane.turn.left is None:
                lane.turn = ended

    def due(self, lane: Lane) -> float | None:
        """When it was left long enough ago; None while it was not left, or has nothing to let go."""
        turn = lane.turn
        if not lane.waits or turn.left is None:
            return None
        return 0.0 if self._heard - turn.heard >= self._characters else turn.left + self._seconds

    def _lane(self, part: Part, key: Place | None, aside: bool) -> Lane | None:
        """key: what its parts are known by; None: it is whole in itself."""
        lane = self._lanes.get((aside, key)) if key is not None else None
        if lane is None:
            judge = self._judge(part.kind, aside)
            if judge is None:
                return None
            if key is None:
                return Lane(judge, self._turn, once=True)
            if len(self._lanes) >= MOST:
                raise Unjudged(f"an answer of more than {MOST} texts")
            lane = self._lanes[aside, key] = Lane(judge, self._turn, part.group)
        lane.over, lane.turn, self._goes_on = False, self._turn, True
        if not lane.open:
            lane.open = True
            for size in range(len(lane.group) + 1):
                self._open.setdefault(lane.group[:size], set()).add(lane)
        return lane

    def _follows(self, run: Place, text: str) -> bool:
        """Is this the next piece of a text, as far as looks tell, where no shape does?"""
        lane = self._lanes.get((False, run))
        if lane is None:
            return not _NUMBER.fullmatch(text) and (self._runs is not None or len(self._lanes) < _RUNS)
        if lane.last == text and len(text) >= _SAME:
            lane.turn = self._same
            return False
        return True
