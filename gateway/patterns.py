"""Finds places in a text by patterns, in time that is linear in the text, whatever the text and whoever wrote it.

Hyperscan says which rules have anything in a text: one pass over it for all rules, at most one call back for each.
Where hints are common words and the text is ASCII, a second pass looks for the whole patterns.  What is left is then
looked at by Python's own `re`, whose patterns here have no quantifier that is neither bounded nor possessive, so that
no text is gone over twice.  Expressions of an operator's own run in RE2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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


class Hint(NamedTuple):
    """A pattern that occurs wherever something may be found."""

    pattern: str
    caseless: bool = False
    digits: bool = False  # only texts with four digits or more are looked at: the costly ones are of numbers


class Rule(NamedTuple):
    """What to look for.

    pattern: "" where another way of looking is asked when the hint occurs.
    hint: a pattern for Hyperscan that occurs wherever `pattern` does; must be short and cheap.
    exact: the same for texts of ASCII, and it hardly occurs anywhere else (see `exactly`); "": there is none.
    confirm: gives the place's start and end, or None where the match is none; as it stands where absent.
    """

    label: str
    pattern: str
    hint: str
    confirm: Callable[[re.Match[str]], tuple[int, int] | None] | None = None
    bounded: bool = True  # no letter or digit may stand directly before it
    caseless: bool = False
    digits: bool = False  # whatever it finds has four digits or more
    exact: str = ""

    @property
    def hinted(self) -> Hint:
        return Hint(self.hint, self.caseless, self.digits)


class Rules:
    """Compiled once, used by one thread."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [(rule, re.compile(rule.pattern, re.IGNORECASE if rule.caseless else 0)) for rule in rules]
        self.hints = [rule.hinted for rule in rules]
        self._scan = hinting(self.hints)
        exact = [(number, Hint(rule.exact, rule.caseless)) for number, rule in enumerate(rules) if rule.exact]
        self._close = _scanner(exact)
        self._loose = frozenset(range(len(rules))) - {number for number, _ in exact}

    @property
    def last(self) -> int:
        """The number of the last rule, as `hits` gives it."""
        return len(self._rules) - 1

    def hits(self, data: bytes) -> list[int]:
        """The rules that have anything in a text, by their numbers.  data: the text as UTF-8."""
        hits: list[int] = []
        self._scan(data, hits)
        if hits:
            hits = self.closer(data, hits)
            hits.sort()  # the rule that stands first gives its label
        return hits

    def closer(self, data: bytes, hits: list[int]) -> list[int]:
        """What is left of the hits of hints; the same where some of the bytes are not ASCII."""
        if self._close is None or self._loose.issuperset(hits) or not data.isascii():
            return hits
        close: list[int] = []
        self._close(data, close)
        return [number for number in hits if number in close or number in self._loose]

    def find(self, text: str, data: bytes) -> list[Found]:
        hits = self.hits(data)
        return self.look(text, hits) if hits else []

    def look(self, text: str, hits: Sequence[int]) -> list[Found]:
        """The places of those rules."""
        found: list[Found] = []
        for number in hits:
            rule, pattern = self._rules[number]
            if not rule.pattern:
                continue
            for match in pattern.finditer(text):
                place = match.span() if rule.confirm is None else rule.confirm(match)
                if place is None or (rule.bounded and place[0] and _joins(text, place[0])):
                    continue
                found.append(Found(*place, rule.label, place[1] == len(text)))
        return found


class Expressions:
    """Regular expressions that an operator wrote, run by RE2: in linear time, whatever they are.  Extra: patterns."""

    def __init__(self, expressions: Sequence[tuple[str, str]]) -> None:
        """expressions: (label, expression), in any case.  Raises ValueError on one that RE2 cannot read."""
        try:
            import re2
        except ModuleNotFoundError:
            raise ValueError("google-re2 is not installed: pip install 'tollkeeper[patterns]'") from None
        options = re2.Options()
        options.case_sensitive = False
        options.log_errors = False
        self._compiled = []
        for label, expression in expressions:
            try:
                self._compiled.append((label, re2.compile(expression, options=options)))
            except re2.error as error:
                said = error.args[0]
                raise ValueError(said.decode(errors="replace") if isinstance(said, bytes) else str(said)) from None

    def find(self, text: str) -> list[Found]:
        """At most MOST places of one expression are told one by one; what follows the last counts as one."""
        found: list[Found] = []
        for label, compiled in self._compiled:
            for number, match in enumerate(compiled.finditer(text)):
                start, end = match.span()
                if number == MOST:
                    found.append(Found(start, len(text), label, True))
                    break
                if end > start:
                    found.append(Found(start, end, label, end == len(text)))
        return found


_SIGN: Final = re.compile(r"\\.|\[\^?\]?|\]|\(\?(?:P<\w+>|.)|[?*+}]\+|.", re.DOTALL)
_ASCII: Final = {r"\s": r"\s\x1c-\x1f"}  # what Python's `\s` is in ASCII: Hyperscan's is less
_WIDE: Final = {r"\s": r"\s\x1c-\x1f\x80-\xff", r"\w": r"\w\x80-\xff"}  # … and every blank, every letter, in UTF-8


def exactly(pattern: str) -> str:
    """A pattern in Hyperscan's words: it occurs in ASCII, and in JSON that holds it, wherever `re` finds the pattern.

    Nothing in it is possessive or named, and a text may begin behind a quotation mark.  Raises ValueError on what looks
    around.
    """
    parts: list[str] = []
    for sign, listed in _signs(pattern, _ASCII):
        if listed or sign == "(?:":
            parts.append(sign)
        elif sign.startswith("(?P<"):
            parts.append("(")
        elif sign.startswith("(?"):
            raise ValueError(f"{sign} cannot be said exactly")
        elif sign == "^":
            parts.append('(?:^|")')
        else:
            parts.append(sign[0] if sign in ("?+", "*+", "++", "}+") else sign)
    return "".join(parts)


def _signs(pattern: str, classes: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    r"""The signs of an expression, and which stand within […]; but in [^…], with those classes in place of `\s` …"""
    listed = negated = False
    for sign in _SIGN.findall(pattern):
        if sign[0] == "[" and not listed:
            listed, negated = True, sign.startswith("[^")
        elif sign == "]":
            listed = negated = False
        elif sign in classes and not negated:
            sign = classes[sign] if listed else f"[{classes[sign]}]"
        yield sign, listed


def literal(words: str) -> tuple[str, str]:
    """(pattern, hint) of a phrase in any case; its blanks stand for any blanks."""
    parts = words.split()
    pattern = r"\s{1,4}".join([re.escape(part) for part in parts])
    hint = r"\s+".join(["".join([any_case(letter) for letter in part]) for part in parts])
    return pattern, hint


def any_case(letter: str) -> str:
    """Hyperscan knows the cases of ASCII only."""
    if letter.isascii():
        return re.escape(letter)
    return "(?:" + "|".join(dict.fromkeys([letter, letter.lower(), letter.upper()])) + ")"


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


def hinting(hints: Sequence[Hint]) -> Callable[[bytes, list[int]], None]:
    """What is returned adds the numbers of the hints that occur in some UTF-8; each once, in no order."""
    hints = [hint._replace(pattern="".join([sign for sign, _ in _signs(hint.pattern, _WIDE)])) for hint in hints]
    plain = _scanner([(number, hint) for number, hint in enumerate(hints) if not hint.digits])
    of_numbers = _scanner([(number, hint) for number, hint in enumerate(hints) if hint.digits])

    def scan(data: bytes, hits: list[int]) -> None:
        if plain is not None:
            plain(data, hits)
        if of_numbers is not None and count_digits(data) >= 4:
            of_numbers(data, hits)

    return scan


def count_digits(data: bytes) -> int:
    """How many there are."""
    return len(data.translate(None, _NO_DIGITS))


_NO_DIGITS: Final = bytes(set(range(256)) - set(b"0123456789"))


def _scanner(hints: Sequence[tuple[int, Hint]]) -> Callable[[bytes, list[int]], None] | None:
    """Tells which patterns occur, never where: looking for starts (HS_FLAG_SOM_LEFTMOST) crashes on `a+b`."""
    if not hints:
        return None
    import hyperscan  # where it is needed: the gateway starts without it

    database = hyperscan.Database()
    flags = [hyperscan.HS_FLAG_SINGLEMATCH | (hyperscan.HS_FLAG_CASELESS if hint.caseless else 0) for _, hint in hints]
    expressions = [hint.pattern.encode() for _, hint in hints]
    database.compile(expressions=expressions, ids=[number for number, _ in hints], flags=flags)
    scratch = hyperscan.Scratch(database)

    def note(number: int, start: int, end: int, flags: int, hits: Any) -> None:
        hits.append(number)

    def scan(data: bytes, hits: list[int]) -> None:
        database.scan(data, match_event_handler=note, context=hits, scratch=scratch)

    return scan
