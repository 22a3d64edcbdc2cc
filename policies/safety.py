"""Asks assessors about what goes to a provider and what comes back; blocks, redacts, masks or flags what they find.

Nothing of an answer reaches the caller before those who may block or redact it have judged it, streamed or not
(gateway/holding.py).  What was found is told nowhere: records, logs and errors name the assessor, never the text.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import unquote_plus
from weakref import WeakKeyDictionary

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gateway import assessor as assessors
from gateway import settings
from gateway.assessor import STAGES, NoAssessor
from gateway.dialects import NAME, Chunk, Part
from gateway.errors import BadCall, Denied
from gateway.exchange import Assessment, Exchange
from gateway.holding import Holding
from gateway.inner import Inner
from gateway.judging import Panel, Rule, judged, refused, replaced, side_by_side
from gateway.masking import MASKED, Masking
from gateway.patterns import Found
from gateway.policy import Policy, Words
from gateway.prefilter import Look, Prefilter
from gateway.texts import Joined, Texts

log = logging.getLogger("gateway")
clock = time.perf_counter_ns

_MANY: Final = 2000  # places in a text that are gone over in a thread
_LARGE: Final = 65_536  # bytes of a body that are read in a thread
_ASKED: Final = frozenset(STAGES) - {"output"}
_SAID: Final = frozenset({"output", "tool_arguments"})
_FUNCTION: Final = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
_HEADER: Final = b"x-tollkeeper-safety"

T = TypeVar("T")
Stage = Literal["instructions", "input", "tool_definitions", "tool_arguments", "tool_results", "output"]


class Use(BaseModel):
    """One line of `assessors:`.  What it says besides these belongs to the assessor's own Settings."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    use: Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_]*$|^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    name: settings.Name | None = None  # in metrics, records and errors; none: as `use` says
    action: Literal["block", "redact", "mask", "flag"] = "block"
    stages: list[Stage] | None = None  # which texts; none: those the assessor is made for
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5  # of the score, from which the action is taken
    on_error: Literal["block", "allow"] | None = None  # when it fails; none: block, but for `flag`
    timeout_seconds: settings.Seconds = 5.0
    teams: list[settings.Name] | None = None  # none: all


class _State:
    """What is known of one request while it runs."""

    __slots__ = ("holding", "masking", "panel", "said", "tasks")

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.masking: Masking | None = None
        self.holding: Holding | None = None  # from the answer's first chunk on
        self.said: Sequence[Rule] | None = None  # those who must be asked about the answer, once that is known
        self.tasks: list[asyncio.Task[None]] = []  # asked beside the call


class _Team:
    """The rules for one team."""

    __slots__ = ("asked", "asked_once", "masks", "rules", "said", "said_once")

    def __init__(self, rules: Sequence[Rule], looks: Sequence[Look]) -> None:
        self.rules = rules
        self.asked = [rule for rule in rules if rule.stages & _ASKED]
        self.said = [rule for rule in rules if rule.stages & _SAID and rule.action != "mask"]
        changing = [rule for rule in self.asked if rule.action in ("mask", "redact")]
        self.masks = changing if any(rule.action == "mask" for rule in rules) else []
        self.asked_once = Prefilter(self.asked, looks[0])
        self.said_once = Prefilter(self.said, looks[1])


class Safety(Policy[_State]):
    """Acts only where its line in config.yaml names assessors."""

    class Settings(settings.Settings):
        assessors: list[Use] = Field(default_factory=list)
        hold_characters: Annotated[int, Field(ge=16, le=4096)] = 256  # of a stream, judged together by models …
        hold_seconds: settings.Seconds = 1.0  # … or what came in so long, whichever is first
        beside: bool = False  # ask about the input while the provider is called; its answer waits for them
        unjudged: Literal["block", "allow"] = "block"  # media and files, which no assessor can read
        replacement: str = "[{label}]"  # in place of what is redacted
        alert: Annotated[str, StringConstraints(pattern=_FUNCTION)] | None = None

    def __init__(self, said: Settings | None = None, *, inner: Inner | None = None) -> None:
        self._said = said = said or self.Settings()
        offers = {"inner": inner}
        self._rules = [(use.teams, _rule(use, said, offers)) for use in said.assessors]
        rules = [rule for _, rule in self._rules]
        self._looks = [Look([one.assessor for one in rules if one.stages & stages]) for stages in (_ASKED, _SAID)]
        self._alike = all(use.teams is None for use in said.assessors)  # what one team may ask, each may
        self._teams: dict[str, _Team] = {}
        self._states: dict[Exchange, _State] = {}  # until the receipt comes back
        self._late: WeakKeyDictionary[Exchange, _State] = WeakKeyDictionary()  # of calls that left no receipt
        self.looks = any(rule.stages & _SAID or rule.action == "mask" for _, rule in self._rules)
        self._alert: Callable[[Exchange, Assessment], None] | None = None
        if said.alert is not None:
            module, _, name = said.alert.partition(":")
            self._alert = getattr(importlib.import_module(module), name)

    @staticmethod
    def words(said: dict[str, Any]) -> Iterator[Words]:
        alert = said.get("alert")
        if isinstance(alert, str) and re.fullmatch(_FUNCTION, alert) and (wrong := _not_there(alert)):
            yield Words(("alert",), {}, wrong=wrong, mend="name it as package.module:function")
        uses = said.get("assessors")
        for index, line in enumerate(uses if isinstance(uses, list) else []):
            use = line.get("use") if isinstance(line, dict) else None
            if not isinstance(use, str):
                continue
            try:
                kind = assessors.find(use)
            except NoAssessor as error:
                yield Words(("assessors", index, "use"), {}, wrong=error.message, mend=error.mend)
                continue
            own = {word: value for word, value in line.items() if word not in Use.model_fields}
            known = (*Use.model_fields, *[field.alias or name for name, field in kind.Settings.model_fields.items()])
            yield Words(("assessors", index), own, kind.Settings, known)

    async def aclose(self) -> None:
        for _, rule in self._rules:
            await rule.assessor.aclose()

    # ── what is asked ───────────────────────────────────────────────────────────────────────────────────────────────

    async def admit(self, x: Exchange) -> _State | None:
        team = self._of(x.caller.team)
        if not team.rules:
            return None
        asked: Sequence[Rule] = team.asked
        if x.upload is None and "?" not in x.upstream_path:
            asked = _suspects(x, asked, team.asked_once, "input", x.body)
        if not asked and x.caller.content == "none":
            return None  # most calls: what there is to know of the answer is made when it is needed
        state = self._states[x] = _State(Panel(team.rules, x))
        try:
            await self._ask(x, state, asked)
        except BaseException as error:  # also a caller who hangs up: there will be no receipt to come back
            if isinstance(error, Denied):
                x.body, x.fields = b"", {}  # what was blocked is kept nowhere
            self._over(x, state)
            raise
        self._tell(x, state)
        return state

    async def _ask(self, x: Exchange, state: _State, rules: Sequence[Rule]) -> None:
        if not rules:
            return
        if x.upload is not None:
            self._not_judged(state.panel, rules, "input", "a file or a form")
            return
        try:
            texts = _texts(x, rules) if len(x.body) <= _LARGE else await asyncio.to_thread(_texts, x, rules)
        except ValueError as error:
            raise BadCall(f"The body cannot be judged: {error}.", code="invalid_json") from None
        if texts.media:
            self._not_judged(state.panel, rules, "input", "media")
        edits: list[Found] = []
        slow: list[tuple[Rule, str, Joined]] = []
        for rule in rules:
            for stage, text in texts.of(rule):
                if rule.assessor.quick:
                    await self._judge(state, rule, stage, text, edits)
                else:
                    slow.append((rule, stage, text))  # not asked at all where a quick one refuses
        waiting: list[Coroutine[Any, Any, None]] = []
        for rule, stage, text in slow:
            asked = self._judge(state, rule, stage, text, edits)
            if self._said.beside and rule.action in ("block", "flag"):
                state.tasks.append(asyncio.create_task(asked))
            else:
                waiting.append(asked)
        if waiting:
            await side_by_side(waiting)
        if edits:
            body, fields, call = await _off_loop(len(edits), self._rewritten, x, state, texts, edits)
            x.rewrite(body, fields, call)

    async def _judge(self, state: _State, rule: Rule, stage: str, text: Joined, edits: list[Found]) -> None:
        spans = await state.panel.ask(rule, stage, rule.assessor.asked(state.panel.exchange(), text.text, stage))
        if spans:
            edits += await _off_loop(len(spans), self._placed, rule, text, spans)

    def _placed(self, rule: Rule, text: Joined, spans: Sequence[Found]) -> Sequence[Found]:
        if rule.action == "mask":
            return text.placed([one._replace(replacement=MASKED) for one in spans])
        return text.placed([replaced(one, rule.replacement) for one in spans])

    def _rewritten(
        self, x: Exchange, state: _State, texts: Texts, edits: Sequence[Found]
    ) -> tuple[bytes, dict[str, msgspec.Raw], Any]:
        """What is asked in its place: as bytes, as fields, as a call."""
        state.masking = Masking(texts.each)
        changes = texts.changed(edits, state.masking.placeholder)
        if any(place[-1:] == (NAME,) for place in changes):
            raise refused(state.panel.rules[0].name, "input")  # a field's name cannot be taken out
        body = x.dialect.write_texts(x.body, changes)
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        return body, fields, msgspec.json.decode(body, type=type(x.call)) if x.call is not None else None

    def _not_judged(self, panel: Panel, rules: Sequence[Rule], stage: str, what: str) -> None:
        """Raises Denied where somebody should have read what nobody here can."""
        for rule in rules:
            if rule.action != "flag" and self._said.unjudged == "block":
                panel.not_judged(rule, stage, what)
                raise Denied(
                    f"The safety assessor '{rule.name}' cannot read {what}, so the call is refused.",
                    code="blocked_by_safety",
                    should_retry=False,
                )
        for rule in rules:
            panel.not_judged(rule, stage, what)

    # ── what is answered ────────────────────────────────────────────────────────────────────────────────────────────

    async def screen(self, x: Exchange, chunk: Chunk) -> Chunk | None:
        state = self._states.get(x) or self._late.get(x)
        if state is None:
            team = self._of(x.caller.team)
            # An earlier policy answers: for a call that was judged before, perhaps by the rules of another team.
            # What is kept of the question must not hold what was taken out of it.
            again = team.masks if self._alike and x.caller.content == "none" else team.asked
            asked = () if x.answer is None else again
            if not team.rules:
                return chunk
            said = None
            if chunk.last and not (asked or team.masks or x.stream):
                said = _suspects(x, team.said, team.said_once, "output", chunk.raw)
                if not said:
                    return chunk
            state = self._late[x] = _State(Panel(team.rules, x))
            state.said = said
            await self._ask(x, state, asked)  # masks: their placeholders are the same again
        try:
            kept = await self._screen(x, state, chunk)
        except Denied:
            if self._late.pop(x, None) is not None:
                x.body, x.fields, x.output = b"", {}, []  # what was blocked is kept nowhere
                self._over(x, state)
            raise
        if chunk.last and x in self._late:  # no receipt will come back
            self._keep(x, state)
        return kept

    async def _screen(self, x: Exchange, state: _State, chunk: Chunk) -> Chunk | None:
        if state.tasks:  # the answer waits for those who were asked beside the call
            await _all(state.tasks)
            state.tasks.clear()
        holding = state.holding
        if holding is None:
            team = self._of(x.caller.team)
            said = state.said
            if said is None:
                said = team.said
                if said and chunk.last and not x.stream:
                    said = _suspects(x, said, team.said_once, "output", chunk.raw)
            if not (said or state.masking):
                return chunk
            holding = state.holding = self._hold(x, state, said)
        raw = await holding.take(chunk.raw, chunk.last)
        if not x.first_byte:
            self._tell(x, state)
        if not raw and not chunk.last:
            return None
        return Chunk(raw, chunk.text, chunk.usage, chunk.last)

    def _hold(self, x: Exchange, state: _State, rules: Sequence[Rule]) -> Holding:
        judge = partial(judged, state.panel, rules, state.masking)
        unjudged, said = partial(self._not_judged, state.panel, rules, "output"), self._said
        holding = Holding(x.dialect, x.stream, judge, unjudged, said.hold_seconds, said.hold_characters)
        holding.charset = x.final.answer.charset if x.final is not None else ""
        return holding

    def veils(self, x: Exchange) -> bool:
        """Its words may repeat what was asked, and are judged by nobody."""
        return any(rule.action != "flag" for rule in self._of(x.caller.team).rules)

    def patience(self, x: Exchange) -> float | None:
        state = self._states.get(x) or self._late.get(x)
        return state.holding.waits if state is not None and state.holding is not None else None

    def settle(self, x: Exchange, state: _State) -> None:
        self._keep(x, state)
        self._over(x, state)

    def _keep(self, x: Exchange, state: _State) -> None:
        """Of an answer, what was let go."""
        holding = state.holding
        if x.output and holding is not None and (holding.changed or x.error is not None):
            x.output = holding.said

    def _over(self, x: Exchange, state: _State) -> None:
        self._states.pop(x, None)
        for task in state.tasks:
            task.cancel()
        state.masking = state.holding = None
        if self._alert is None:
            return
        for one in x.assessments:
            if one.verdict in ("blocked", "failed", "failed_open"):
                try:
                    self._alert(x, one)
                except Exception:
                    log.exception("the alert of the policy %s broke", self.name, extra={"request_id": x.id})

    def _of(self, name: str) -> _Team:
        team = self._teams.get(name)
        if team is None:
            rules = tuple(rule for teams, rule in self._rules if teams is None or name in teams)
            same = next((one for one in self._teams.values() if one.rules == rules), None)
            if len(self._teams) > 10_000:
                self._teams.clear()
            team = self._teams[name] = same or _Team(rules, self._looks)
        return team

    def _tell(self, x: Exchange, state: _State) -> None:
        """In the answer's head: not everybody was asked who should have been."""
        panel = state.panel
        if not (panel.failed_open or panel.unjudged):
            return
        told = b", ".join([b"failed_open"] * panel.failed_open + [b"not_judged"] * panel.unjudged)
        x.reply_headers = [header for header in x.reply_headers if header[0] != _HEADER]
        x.reply_headers.append((_HEADER, told))


def _not_there(function: str) -> str:
    """Why `package.module:function` cannot be called; empty where it can.  Its module may raise anything."""
    module, _, name = function.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        return f"{module} cannot be imported: {error}"
    except Exception as error:
        return f"{module} raised {type(error).__name__} while imported"
    return "" if callable(found) else f"{module} has no function {name}"


def _rule(use: Use, said: Safety.Settings, offers: dict[str, Any]) -> Rule:
    kind = assessors.find(use.use)
    own = kind.Settings.model_validate(dict(use.model_extra or {}))
    assessor = assessors.build(kind, own, offers)
    assessor.name = use.name or use.use
    assessor.window = assessor.context = said.hold_characters
    stages = frozenset(use.stages) if use.stages is not None else assessor.stages
    closed = use.on_error == "block" if use.on_error is not None else use.action != "flag"
    return Rule(assessor, use.action, stages, use.threshold, closed, use.timeout_seconds, said.replacement)


def _suspects(x: Exchange, rules: Sequence[Rule], prefilter: Prefilter, stage: str, body: bytes) -> Sequence[Rule]:
    """Those of the rules that must be asked about a body.  That the others have passed is noted."""
    began = clock()
    found = prefilter.suspects(body)
    if found is None:
        return rules
    asked, passed = found
    if passed:
        x.assessments.append(Assessment(passed, stage, "passed", took=clock() - began))
    return asked


def _texts(x: Exchange, rules: Sequence[Rule]) -> Texts:
    """What is asked, put together as those rules are asked about it."""
    # A query is like a field's name: nothing can be taken out of it.
    parts = [Part((NAME,), unquote_plus(query), "input")] if (query := x.upstream_path.partition("?")[2]) else []
    return Texts([*parts, *x.dialect.read_asked(x.body)] if x.body else parts, rules)


async def _off_loop(places: int, work: Callable[..., T], *given: Any) -> T:
    """In a thread where there are many places to go over."""
    return await asyncio.to_thread(work, *given) if places > _MANY else work(*given)


async def _all(tasks: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        if task.done():
            task.result()
    await asyncio.gather(*tasks)
