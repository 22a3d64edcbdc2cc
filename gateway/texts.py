"""The texts of one call, put together so that each assessor looks once, and taken apart again where it found something.

Texts are joined by what no pattern crosses.  The parts of one message are also looked at without anything
between them, as many a model is given them: what is cut in two there is found too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from gateway.assessor import Scanner
from gateway.dialects import NAME, TOOL_TEXT, Part, Place, stage_of
from gateway.escapes import Escapes
from gateway.masking import MASKED
from gateway.patterns import Found, merged

if TYPE_CHECKING:
    from gateway.judging import Rule

SEPARATOR: Final = "\n\x00\n"
SHORT: Final = 16  # characters of a field's name that is no sentence


def short_name(part: Part) -> bool:
    """Is it a field's name that only patterns make sense of?"""
    return part.place[-1:] == (NAME,) and len(part.text) <= SHORT


class Joined:
    """Several texts as one.  start: where it begins in the numbering that all of a call's texts share."""

    __slots__ = ("_escapes", "_global", "_local", "text")

    def __init__(self, parts: Sequence[tuple[int, Part]], separator: str = SEPARATOR) -> None:
        """parts: (place in the shared numbering, text)."""
        self._global: list[int] = []
        self._local: list[int] = []
        self._escapes: dict[int, Escapes] = {}  # of the parts that are the source of JSON
        texts: list[str] = []
        at = 0
        for start, part in parts:
            text = part.text
            if part.kind == "tool_arguments":
                escapes = self._escapes[len(texts)] = Escapes()
                text = escapes.feed(text, True)
            texts.append(text)
            self._global.append(start)
            self._local.append(at)
            at += len(text) + len(separator)
        self.text = separator.join(texts)

    def placed(self, found: Sequence[Found]) -> list[Found]:
        """The same places in the shared numbering; one that reaches over several texts is cut."""
        placed: list[Found] = []
        local = self._local
        for one in found:
            first = True
            at = bisect_right(local, one.start) - 1
            while at < len(local) and local[at] < one.end:
                begin = local[at]
                end = local[at + 1] if at + 1 < len(local) else len(self.text)
                start, stop = max(one.start, begin), min(one.end, end)
                if stop > start:
                    each = first or one.replacement == MASKED  # what comes back must say all that stood here
                    here = Found(start - begin, stop - begin, one.label, False, one.replacement if each else "")
                    if (escapes := self._escapes.get(at)) is not None:
                        here = escapes.placed(here) if each else escapes.located(here)
                    shift = self._global[at]
                    placed.append(here._replace(start=here.start + shift, end=here.end + shift))
                    first = False
                at += 1
        return placed


class Texts:
    """Every text of a call."""

    def __init__(self, parts: Sequence[Part], rules: Sequence[Rule] = ()) -> None:
        """rules: they will be asked; what they are asked about is made at once."""
        self.media = any(part.kind == "media" for part in parts)
        self._parts = [part for part in parts if part.text]
        self._starts: list[int] = []
        at = 0
        for part in self._parts:
            self._starts.append(at)
            at += len(part.text) + 1
        self._made: dict[tuple[frozenset[str], bool], list[tuple[str, Joined]]] = {}
        for rule in rules:
            self.of(rule)

    def of(self, rule: Rule) -> list[tuple[str, Joined]]:
        """(stage, text) of what the rule is asked about."""
        key = rule.stages, isinstance(rule.assessor, Scanner)
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = [*self._joined(*key)]
        return made

    @property
    def each(self) -> Iterator[str]:
        """As they are read."""
        return (_plain(part, part.text) for part in self._parts)

    def changed(self, edits: Sequence[Found], mask: Callable[[str, str], str] | None = None) -> dict[Place, str]:
        """The texts that are different without what was found, by their places.

        mask: the placeholder for a value of a label, in the order in which they stand in the call.
        """
        changes: dict[Place, str] = {}
        by_part: dict[int, list[Found]] = {}
        for one in merged(edits):
            by_part.setdefault(bisect_right(self._starts, one.start) - 1, []).append(one)
        for at, found in by_part.items():
            part, begin = self._parts[at], self._starts[at]
            pieces: list[str] = []
            done = 0
            for one in found:
                start, end = one.start - begin, one.end - begin
                instead = one.replacement or ""
                if MASKED in instead and mask is not None:
                    value = part.text[start:end]
                    instead = instead.replace(MASKED, mask(one.label, _plain(part, value)))
                pieces += (part.text[done:start], instead)
                done = end
            changes[part.place] = "".join([*pieces, part.text[done:]])
        return changes

    def _joined(self, stages: frozenset[str], patterns: bool) -> Iterator[tuple[str, Joined]]:
        wanted = stages | {TOOL_TEXT} if stage_of(TOOL_TEXT) in stages else stages
        mine = [
            (at, part)
            for at, part in enumerate(self._parts)
            if part.kind in wanted and (patterns or not short_name(part))
        ]
        if not mine:
            return
        kinds = {stage_of(kind) for kind in {part.kind for _, part in mine}}
        stage = "input" if "input" in kinds else min(kinds)
        yield stage, Joined([(self._starts[at], part) for at, part in mine])
        for run in _messages(mine):
            yield stage, Joined([(self._starts[at], part) for at, part in run], "")


def _plain(part: Part, text: str) -> str:
    return Escapes().feed(text, True) if part.kind == "tool_arguments" else text


def _messages(parts: Sequence[tuple[int, Part]]) -> Iterator[list[tuple[int, Part]]]:
    """Runs of parts that stand in one message's list of contents."""
    run: list[tuple[int, Part]] = []
    for one in parts:
        place = one[1].place
        if place[-1:] != ("text",) or len(place) < 3:
            continue
        if run and run[-1][1].place[:-2] != place[:-2]:
            if len(run) > 1:
                yield run
            run = []
        run.append(one)
    if len(run) > 1:
        yield run
