"""Reads the source of a JSON string as the text it stands for, and finds places of that text again in the source.

The arguments of a tool call are JSON inside JSON: `\\u0041` there is an A, and the n of `\\n` belongs to no word.
Escapes: RFC 8259, section 7.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import Final

import msgspec

from gateway.patterns import Found

_ESCAPE: Final = re.compile(  # two halves of a character; a character; a letter
    r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))", re.DOTALL
)
_OPEN: Final = re.compile(r"\\(?:u(?:[0-9a-fA-F]{0,3}|[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?))?\Z")
_LETTERS: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class Escapes:
    """A source that arrives in pieces.  A half of a character alone becomes a mark: no pattern asks for it."""

    __slots__ = ("_begins", "_carry", "_inside", "_json", "_looked", "_pieces", "_plain", "_plains", "_raws", "_size")

    def __init__(self) -> None:
        self._carry = ""  # an escape that is not complete
        self._size = 0  # of the source, without it
        self._plain = 0  # of the text
        self._plains: list[int] = []  # where an escape's character ends in the text …
        self._raws: list[int] = []  # … and where the escape ends in the source
        self._json: bool | None = None  # does it begin as an object or a list does?  None: it has not begun
        self._pieces: list[str] = []  # the source, without a part of an escape at an end …
        self._begins: list[int] = []  # … and where each of them begins
        self._inside = [False]  # do they begin within a string?  And the next one
        self._looked = (0, 0, False)  # (piece, place in it, is that within a string): the last answer

    def feed(self, piece: str, final: bool = False) -> str:
        """The text of what is complete."""
        if self._json is None and (begun := piece.lstrip()):
            self._json = begun[0] in "{["
        raw = self._carry + piece
        at = len(raw) if final or "\\" not in raw else max(0, len(raw) - 11)
        while (tail := _OPEN.search(raw, at)) is not None and _doubled(raw, tail.start()):
            at = tail.start() + 1
        at = len(raw) if tail is None else tail.start()
        self._carry, raw = raw[at:], raw[:at]
        self._pieces.append(raw)
        self._begins.append(self._size)
        quotes = raw.count('"')
        if "\\" not in raw:
            self._size += len(raw)
            self._plain += len(raw)
            self._inside.append(self._inside[-1] ^ (quotes % 2 == 1))
            return raw
        parts: list[str] = []
        done = 0
        for escape in _ESCAPE.finditer(raw):
            high, low, code, letter = escape.groups()
            quotes -= letter == '"'
            before = raw[done : escape.start()]
            if high is not None:
                character = chr(0x10000 + ((int(high, 16) & 0x3FF) << 10 | int(low, 16) & 0x3FF))
            elif code is not None:
                character = chr(int(code, 16))
                character = "\ufffd" if "\ud800" <= character <= "\udfff" else character
            else:
                character = _LETTERS.get(letter, letter)
            parts += (before, character)
            self._plain += len(before) + 1
            done = escape.end()
            self._plains.append(self._plain)
            self._raws.append(self._size + done)
        parts.append(raw[done:])
        self._plain += len(raw) - done
        self._size += len(raw)
        self._inside.append(self._inside[-1] ^ (quotes % 2 == 1))
        return "".join(parts)

    def source(self, place: int) -> int:
        """The place in the source of a place in the text: between two characters, so that no escape is cut."""
        at = bisect_right(self._plains, place) - 1
        return place if at < 0 else self._raws[at] + place - self._plains[at]

    def forget(self, place: int) -> None:
        """What lies before a place in the text is not asked for again.  Half by half, so that time stays linear."""
        begins, plains, source = self._begins, self._plains, self.source(place)
        if begins and begins[len(begins) // 2] < source and (gone := bisect_right(begins, source) - 1) > 0:
            del begins[:gone], self._pieces[:gone], self._inside[:gone]
            self._looked = (0, 0, self._inside[0])
        if plains and plains[len(plains) // 2] < place and (gone := bisect_right(plains, place) - 1) > 0:
            del plains[:gone], self._raws[:gone]

    def placed(self, one: Found) -> Found:
        """A place in the text as one in the source, with a replacement that may stand there: for a number, a string."""
        there = self.located(one)
        written = one.replacement and msgspec.json.encode(one.replacement)[1:-1].decode()
        if written is not None and self._json and not self._in_string(there.start):
            written = f'"{written}"'
        return there._replace(replacement=written)

    def located(self, one: Found) -> Found:
        """The same with its replacement as it is."""
        return one._replace(start=self.source(one.start), end=self.source(one.end))

    def _in_string(self, place: int) -> bool:
        """Of the source."""
        if not self._begins:
            return False
        last = max(bisect_right(self._begins, place) - 1, 0)
        piece, at, inside = self._looked
        offset = max(place - self._begins[last], 0)
        if piece != last or offset < at:
            at, inside = 0, self._inside[last]
        inside ^= _turns(self._pieces[last][at:offset])
        self._looked = last, offset, inside  # the next one asked about is mostly a little behind
        return inside

    @property
    def size(self) -> int:
        """Characters of the text so far."""
        return self._plain


def _turns(source: str) -> bool:
    """Does it end in a string if it does not begin in one, and the reverse?"""
    quotes = source.count('"')
    if "\\" in source:
        quotes -= sum(escape[4] == '"' for escape in _ESCAPE.finditer(source))
    return quotes % 2 == 1


def _doubled(text: str, at: int) -> bool:
    """Is the backslash there itself escaped by an odd number of others before it?"""
    count = 0
    while at and text[at - 1] == "\\":
        count += 1
        at -= 1
    return count % 2 == 1
