"""Stands placeholders in for what is found in a call, and puts it back where an answer repeats them.

One per request; nothing of it is kept afterwards, written down or sent.  Placeholders are numbered in the order of
their first occurrence, so that a conversation that grows keeps those it had.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from gateway.patterns import Found

_MARK: Final = re.compile(r"\[([A-Z0-9][A-Z0-9_]{0,30}_[0-9]{1,6})\]", re.IGNORECASE | re.ASCII)
_OPEN: Final = re.compile(r"\[(?:[A-Z0-9][A-Z0-9_]{0,37})?\Z", re.IGNORECASE | re.ASCII)
_OTHERS: Final = re.compile(r"[^A-Z0-9]+")  # letters of a label that stand in no placeholder
_LONGEST: Final = 40
MASKED: Final = "\ufdd0"  # as a replacement: a placeholder for what stands there; no character, and no text has it


class Masking:
    """Values by placeholder, and back."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        """taken: texts whose own words must not be read as placeholders."""
        self._taken = {mark.upper() for text in taken if "[" in text for mark in _MARK.findall(text)}
        self._names: dict[str, str] = {}  # value -> placeholder's name
        self._values: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Masking({len(self)} values)"

    def placeholder(self, label: str, value: str) -> str:
        """The same for the same value, and another for another, whatever their labels are."""
        name = self._names.get(value)
        kind = _OTHERS.sub("_", label.upper()).strip("_")[:31] or "VALUE"
        while name is None:
            number = self._counts[kind] = self._counts.get(kind, 0) + 1
            if (word := f"{kind}_{number}") not in self._taken:
                name = self._names[value] = word
                self._values[word] = value
        return f"[{name}]"

    def find(self, text: str, in_json: bool) -> list[Found]:
        """Placeholders in a text, with what belongs in their place (no label).  in_json: the text is JSON's source."""
        found = []
        for match in _MARK.finditer(text):
            value = self._values.get(match[1].upper())
            if value is not None:
                if in_json:
                    value = msgspec.json.encode(value)[1:-1].decode()
                found.append(Found(*match.span(), "", False, value))
        return found


class Restorer:
    """A text that arrives in pieces: where a placeholder may be incomplete, it waits."""

    __slots__ = ("_base", "_in_json", "_masking", "_text", "settled")

    def __init__(self, masking: Masking, in_json: bool) -> None:
        self._masking = masking
        self._in_json = in_json
        self._text = ""  # from `_base` on: what is not settled
        self._base = 0
        self.settled = 0

    def feed(self, piece: str, final: bool) -> list[Found]:
        text = self._text + piece
        if not text:
            return []
        tail = None if final else _OPEN.search(text, max(0, len(text) - _LONGEST))
        end = len(text) if tail is None else tail.start()
        found = self._masking.find(text[:end], self._in_json) if "[" in text else []
        base = self._base
        self._text, self._base = text[end:], base + end
        self.settled = self._base
        return [one._replace(start=one.start + base, end=one.end + base) for one in found]
