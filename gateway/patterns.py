"""Finds places in a text by patterns, in time that is linear in the text, whatever the text and whoever wrote it.

Hyperscan says which rules have anything in a text: one pass over it for all rules, at most one call back for each.
Only those are then looked at by Python's own `re`, whose patterns here have no quantifier that is neither bounded nor
possessive, so that no text is gone over twice.  Patterns of an operator's own run in Hyperscan alone (`Words`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

HELD: Final = 256  # characters: the most of a text that is held back because a place may begin in it
MOST: Final = 1000  # places of one pattern that are told one by one; then all that follows counts as one


class Found(NamedTuple):
    """A place in a text.  start, end: characters.  open: it reaches to the end of the text, and may go on."""

    start: int
    end: int
    label: str
    open: bool = False
    replacement: str | None = None  # in place of the ordinary one


class Rule(NamedTuple):
    """What to look for.

    hint: a pattern for Hyperscan that occurs wherever `pattern` does; must be short and cheap.
    confirm: gives the place's start and end, or None where the match is none; as it stands where absent.
    """

    label: str
    pattern: str
    hint: str
    confirm: Callable[[re.Match[str]], tuple[int, int] | None] | None = None
    bounded: bool = True  # no letter or digit may stand directly before it
    caseless: bool = False


class Rules:
    """Compiled once, used by one thread."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        flags = [_flags(rule.caseless) for rule in rules]
        self._rules = [(rule, re.compile(rule.pattern, re.IGNORECASE if rule.caseless else 0)) for rule in rules]
        self._scan = _scanner([rule.hint for rule in rules], flags)

    @property
    def last(self) -> int:
        """The number of the last rule, as `hits` gives it."""
        return len(self._rules) - 1

    def hits(self, data: bytes) -> list[int]:
        """The rules that have anything in a text, by their numbers.  data: the text as UTF-8."""
        hits: list[int] = []
        self._scan(data, hits)
        hits.sort()  # the rule that stands first gives its label
        return hits

    def find(self, text: str, data: bytes) -> list[Found]:
        hits = self.hits(data)
        return self.look(text, hits) if hits else []

    def look(self, text: str, hits: Sequence[int]) -> list[Found]:
        """The places of those rules."""
        found: list[Found] = []
        for number in hits:
            rule, pattern = self._rules[number]
            for match in pattern.finditer(text):
                place = match.span() if rule.confirm is None else rule.confirm(match)
                if place is None or (rule.bounded and place[0] and _joins(text, place[0])):
                    continue
                found.append(Found(*place, rule.label, place[1] == len(text)))
        return found


class Words:
    """Patterns that an operator wrote: nothing but Hyperscan runs them.  Raises ValueError on one it cannot read."""

    def __init__(self, patterns: Sequence[tuple[str, str]], caseless: bool = True) -> None:
        """patterns: (label, regular expression)."""
        self._labels = [label for label, _ in patterns]
        self._lower = caseless  # Hyperscan knows the cases of ASCII; of other letters it is given the lower ones
        if caseless:
            patterns = [(label, re.sub(r"[^\x00-\x7f]+", lambda m: m[0].lower(), one)) for label, one in patterns]
        for label, pattern in patterns:
            try:
                _scanner([pattern], [_flags(caseless, starts=True)])
            except Exception as error:
                raise ValueError(f"the pattern {label!r} cannot be compiled: {error}") from error
        flags = [_flags(caseless, starts=True)] * len(patterns)
        self._starts = _finder([pattern for _, pattern in patterns], flags)

    def find(self, text: str, data: bytes) -> list[Found]:
        if self._lower and len(data) != len(text) and len(lower := text.lower()) == len(text):
            data = lower.encode(errors="replace")
        places: dict[tuple[int, int], int] = {}
        if not self._starts(data, places):
            return []
        found = []
        for (number, start), end in places.items():
            if len(data) != len(text):  # places are counted in bytes
                start, end = len(data[:start].decode("utf-8", "ignore")), len(data[:end].decode("utf-8", "ignore"))
            found.append(Found(start, end, self._labels[number], end == len(text)))
        return found


def merged(found: Sequence[Found]) -> list[Found]:
    """In order, without overlaps: the longer label wins nothing, the earlier place does."""
    if len(found) < 2:
        return list(found)
    ordered = sorted(found, key=lambda one: (one.start, -one.end))
    kept = [ordered[0]]
    for one in ordered[1:]:
        last = kept[-1]
        if one.start >= last.end:
            kept.append(one)
        elif one.end > last.end:
            kept[-1] = last._replace(end=one.end, open=last.open or one.open)
        elif one.open and not last.open and one.end == last.end:
            kept[-1] = last._replace(open=True)
    return kept


def _joins(text: str, start: int) -> bool:
    """Does what begins here go on from the character before it?  A letter behind a backslash is a JSON escape's."""
    before = text[start - 1]
    return before.isalnum() and before.isascii() and not (start > 1 and text[start - 2] == "\\")


def _flags(caseless: bool, starts: bool = False) -> int:
    import hyperscan  # where it is needed: the gateway starts without it

    starting = hyperscan.HS_FLAG_SOM_LEFTMOST | hyperscan.HS_FLAG_UTF8
    flags = starting if starts else hyperscan.HS_FLAG_SINGLEMATCH
    return int(flags | (hyperscan.HS_FLAG_CASELESS if caseless else 0))


def _scanner(patterns: Sequence[str], flags: Sequence[int]) -> Callable[[bytes, list[int]], None]:
    database, scratch = _compiled(patterns, flags)

    def note(number: int, start: int, end: int, flags: int, hits: list[int]) -> None:
        hits.append(number)

    def scan(data: bytes, hits: list[int]) -> None:
        database.scan(data, match_event_handler=note, context=hits, scratch=scratch)

    return scan


def _finder(patterns: Sequence[str], flags: Sequence[int]) -> Callable[[bytes, dict[tuple[int, int], int]], bool]:
    """Longest end by (pattern, start)."""
    from hyperscan import ScanTerminated as stopped

    database, scratch = _compiled(patterns, flags)

    def note(number: int, start: int, end: int, flags: int, places: dict[tuple[int, int], int]) -> bool | None:
        places[number, start] = end
        return True if len(places) > MOST else None  # stops: all that follows is taken as found

    def find(data: bytes, places: dict[tuple[int, int], int]) -> bool:
        try:
            database.scan(data, match_event_handler=note, context=places, scratch=scratch)
        except stopped:
            number, start = next(reversed(places))
            places[number, start] = len(data)
        return bool(places)

    return find


def _compiled(patterns: Sequence[str], flags: Sequence[int]) -> tuple[Any, Any]:
    import hyperscan

    database = hyperscan.Database()
    expressions = [pattern.encode() for pattern in patterns]
    database.compile(expressions=expressions, ids=list(range(len(patterns))), flags=list(flags))
    return database, hyperscan.Scratch(database)
