"""Asks assessors about one request's texts, side by side and within their time, and acts on what they say."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from weakref import ref

from gateway.assessor import PASSED, SLICE, Assessor, Follower, ScanFollower, Scanner, Verdict, WindowFollower
from gateway.dialects import stage_of
from gateway.errors import Denied
from gateway.escapes import Escapes
from gateway.exchange import Assessment, Exchange
from gateway.holding import add
from gateway.masking import Masking, Restorer
from gateway.patterns import Found

log = logging.getLogger("gateway")
clock = time.perf_counter_ns

SLOW_NS: Final = 100_000_000  # of an assessor that never waits: while it works every other request stands still
_DONE: Final = {"flag": "flagged", "redact": "redacted", "mask": "masked", "block": "blocked"}
_RANK: Final = {
    word: rank
    for rank, word in enumerate(
        ("passed", "not_judged", "flagged", "failed_open", "masked", "redacted", "failed", "blocked")
    )
}
_WHAT: Final = {
    "output": "The answer was",
    "tool_arguments": "A tool call was",
    "tool_results": "A tool's result was",
}

Action = Literal["block", "redact", "mask", "flag"]


@dataclass(frozen=True, slots=True)
class Rule:
    """An assessor, and what follows from its opinion."""

    assessor: Assessor
    action: Action
    stages: frozenset[str]
    threshold: float = 0.5  # of the score, from which the action is taken
    closed: bool = True  # when it fails: refuse the call, or let it pass
    timeout: float = 5.0  # seconds
    replacement: str = "[{label}]"

    @property
    def name(self) -> str:
        return self.assessor.name


class Panel:
    """Those who are asked about one request; what they say is noted on it, once for each of them and stage."""

    __slots__ = ("_noted", "_x", "failed_open", "rules", "unjudged")

    def __init__(self, rules: Sequence[Rule], x: Exchange) -> None:
        self.rules = rules
        self._x = ref(x)  # it may outlive its state, never the reverse
        self.failed_open = False  # one failed, and the call went on
        self.unjudged = False  # there was something that nobody here can read
        self._noted: dict[tuple[str, str], Assessment] = {}

    def noted(self, rule: Rule, stage: str) -> Assessment:
        one = self._noted.get((rule.name, stage))
        if one is None:
            one = self._noted[rule.name, stage] = Assessment(rule.name, stage, type=rule.assessor.type)
            if (x := self._x()) is not None:
                x.assessments.append(one)
        return one

    def exchange(self) -> Exchange | None:
        return self._x()

    async def ask(self, rule: Rule, stage: str, answer: Awaitable[Verdict]) -> list[Found]:
        """What is to be taken out of the text.  Raises Denied where the call is refused."""
        began = clock()
        try:
            if rule.assessor.quick:
                verdict = await answer
            else:
                async with asyncio.timeout(rule.timeout):
                    verdict = await answer
            if not (0 <= verdict.score <= 1 and 0 <= verdict.confidence <= 1):
                raise ValueError("a score or a confidence outside 0 … 1")
        except Denied:
            raise  # a call of its own, through the gateway, was refused: it has no opinion
        except Exception as error:
            self._failed(rule, stage, error, clock() - began)
            return []
        took = clock() - began
        if took > SLOW_NS and rule.assessor.quick and not isinstance(rule.assessor, Scanner):  # these give way
            log.warning("the assessor %s held up the event loop for %d ms", rule.name, took // 1_000_000)
        if verdict is PASSED:
            self.noted(rule, stage).took += took
            return []
        return self.act(rule, stage, verdict, took)

    def act(self, rule: Rule, stage: str, verdict: Verdict, took: int = 0) -> list[Found]:
        """Notes an opinion.  Raises Denied where it blocks; returns what is to be taken out."""
        one = self.noted(rule, stage)
        one.took += took
        if verdict.score >= one.score:
            one.score, one.confidence = verdict.score, verdict.confidence
            one.explanation = verdict.explanation[:512]
        if not verdict.score or verdict.score < rule.threshold:
            return []
        one.spans += len(verdict.spans)
        _raise(one, _DONE[rule.action])
        if rule.action == "block":
            raise refused(rule.name, stage)
        return list(verdict.spans) if rule.action in ("redact", "mask") else []

    def not_judged(self, rule: Rule, stage: str, what: str) -> None:
        self.unjudged = True
        one = self.noted(rule, stage)
        one.explanation = one.explanation or what
        _raise(one, "not_judged")

    def _failed(self, rule: Rule, stage: str, error: Exception, took: int) -> None:
        one = self.noted(rule, stage)
        one.took += took
        timeout = isinstance(error, TimeoutError)
        one.error = "timeout" if timeout else "junk" if isinstance(error, ValueError | TypeError) else "error"
        if isinstance(error, AttributeError):
            one.error = "junk"
        _raise(one, "failed" if rule.closed else "failed_open")
        log.warning("the assessor %s failed: %s (%s)", rule.name, one.error, type(error).__name__)
        if rule.closed:
            raise Denied(
                f"The safety assessor '{rule.name}' failed, so the call is refused.", code="policy_failed", status=503
            )
        self.failed_open = True


def refused(name: str, stage: str) -> Denied:
    """Without a word of what was found."""
    return Denied(
        f"{_WHAT.get(stage, 'The call was')} refused by the safety assessor '{name}'.",
        code="blocked_by_safety",
        should_retry=False,
    )


def _raise(one: Assessment, word: str) -> None:
    if _RANK[word] > _RANK[one.verdict]:
        one.verdict = word


class _Beside:
    """A rule and its follower of one lane."""

    __slots__ = ("dead", "follower", "holds", "rule")

    def __init__(self, rule: Rule, stage: str, x: Exchange | None) -> None:
        self.rule = rule
        self.follower: Follower = rule.assessor.follow(stage, x)
        self.holds = rule.action != "flag"
        self.dead = False  # it failed, and may: it is not asked again


class LaneJudge:
    """The rules for one lane of an answer, and the placeholders to be put back into it."""

    __slots__ = ("_escapes", "_panel", "_quick", "_restorer", "_size", "_slow", "_stage", "edits", "settled", "timed")

    def __init__(self, panel: Panel, rules: Sequence[Rule], kind: str, masking: Masking | None) -> None:
        self._panel = panel
        self._stage = stage = stage_of(kind)
        beside = [_Beside(rule, stage, panel.exchange()) for rule in rules]
        self._quick = [one for one in beside if isinstance(one.follower, ScanFollower)]
        self._slow = [one for one in beside if not isinstance(one.follower, ScanFollower)]
        self._escapes = Escapes() if kind == "tool_arguments" else None  # it is the source of JSON
        self._restorer = Restorer(masking, self._escapes is not None) if masking else None
        self._size = 0
        self.timed = any(isinstance(one.follower, WindowFollower) and one.holds for one in self._slow)
        self.settled = 0
        self.edits: list[Found] = []

    async def hear(self, piece: str, final: bool, due: bool) -> None:
        texts: list[str] = []
        for source, end in _slices(piece):
            text = source if self._escapes is None else self._escapes.feed(source, final and end)
            for one in self._quick:
                self._scan(one, text, final and end)
            if self._slow:
                texts.append(text)
            if not end:
                await asyncio.sleep(0)  # others have their turn
        self._size += len(piece)
        if self._slow:
            asked = [self._ask(one, "".join(texts), final, due) for one in self._slow if not one.dead]
            await (side_by_side(asked) if len(asked) > 1 else asked[0] if asked else _nothing())
        settled = self._size if final else 1 << 62
        for one in (*self._quick, *self._slow):
            if one.holds and not one.dead and one.follower.settled < settled:
                settled = one.follower.settled
        if self._escapes is not None and not final:
            plain = min(settled, self._escapes.size)
            settled = self._escapes.source(plain)
            self._escapes.forget(plain)
        settled = min(settled, self._size)
        if self._restorer is not None:
            for source, end in _slices(piece):
                add(self.edits, self._restorer.feed(source, final and end))
                if not end:
                    await asyncio.sleep(0)
            settled = min(settled, self._restorer.settled)
        self.settled = max(settled, self.settled)  # what was let go stays so

    async def let_go(self) -> None:
        """Decides what is there, although more may come; all but what must be seen whole."""
        for one in self._quick:
            self._scan(one, "", True)
        for one in self._slow:
            if not one.dead:
                await self._ask(one, "", False, True)
        if self._restorer is not None:
            add(self.edits, self._restorer.feed("", True))
        if all(one.dead or not one.holds or isinstance(one.follower, WindowFollower) for one in self._slow):
            self.settled = self._size

    def _scan(self, one: _Beside, piece: str, final: bool) -> None:
        if one.dead:
            return
        follower, rule = one.follower, one.rule
        assert isinstance(follower, ScanFollower)
        began = clock()
        try:
            found = follower.feed_now(piece, final)
        except Exception as error:
            self._panel._failed(rule, self._stage, error, clock() - began)
            one.dead = True
            return
        took = clock() - began
        if not found:
            self._panel.noted(rule, self._stage).took += took
            return
        assert isinstance(rule.assessor, Scanner)
        self._take(rule, self._panel.act(rule, self._stage, rule.assessor.verdict(found), took))

    async def _ask(self, one: _Beside, piece: str, final: bool, due: bool) -> None:
        follower, before = one.follower, one.follower.settled
        heard: list[Verdict] = []

        async def answer() -> Verdict:
            heard.append(await follower.feed(piece, final, due))
            return heard[0]

        spans = await self._panel.ask(one.rule, self._stage, answer())
        if not heard:
            one.dead = True  # it failed, and the call goes on without it
            return
        verdict = heard[0]
        if not spans and one.rule.action == "redact" and verdict.score and verdict.score >= one.rule.threshold:
            spans = [Found(before, follower.settled, one.rule.name)]  # no place was named: all that it was asked about
        self._take(one.rule, spans)

    def _take(self, rule: Rule, spans: Sequence[Found]) -> None:
        if rule.action != "redact" or not spans:
            return
        edits = [replaced(one, rule.replacement) for one in spans]
        add(self.edits, edits if self._escapes is None else [self._escapes.placed(one) for one in edits])


def _slices(piece: str) -> Iterator[tuple[str, bool]]:
    """(slice, is it the last); at least one."""
    for at in range(0, len(piece) or 1, SLICE):
        yield piece[at : at + SLICE], at + SLICE >= len(piece)


def judged(panel: Panel, rules: Sequence[Rule], masking: Masking | None, kind: str, aside: bool) -> LaneJudge | None:
    """Who judges a lane of parts of a kind; None: nobody.

    aside: others are asked about its text elsewhere; patterns cost nothing.
    """
    stage = stage_of(kind)
    asked = [rule for rule in rules if stage in rule.stages and (not aside or isinstance(rule.assessor, Scanner))]
    masking = None if aside else masking
    return LaneJudge(panel, asked, kind, masking) if asked or masking is not None else None


def replaced(one: Found, replacement: str) -> Found:
    return one if one.replacement is not None else one._replace(replacement=replacement.format(label=one.label))


async def side_by_side(asked: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All of them; the first refusal is raised at once, and ends the others."""
    tasks = [asyncio.create_task(one) for one in asked]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


async def _nothing() -> None:
    return
