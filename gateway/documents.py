"""Cuts an answer that is no JSON by itself into what a client may take out of it: documents of JSON, events, text.

Lines of JSON, RFC 7464 (a record separator before each), documents one behind the other; the last may be cut off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final

from gateway import charsets
from gateway.dialects import Part, Place
from gateway.escapes import Escapes

Read = tuple[bytes, list[Part], bool]  # a piece, the texts in it, and whether it is JSON

_EVENTS: Final = re.compile(
    rb"\A(?:\xef\xbb\xbf)?\s*(?:data|event|id|retry)?:[^\r\n]*[\r\n](?:.*[\r\n])?data:"  # it begins as a stream does
    rb"|\A(?:\xef\xbb\xbf)?\s*data:"
    rb'|(?:\A|[\r\n])data: ?[{\["]',
    re.DOTALL,
)
_BLANK: Final = re.compile(r"[\s\x1e]*")
_scan = json.JSONDecoder().raw_decode


def are_events(raw: bytes) -> bool:
    """Would somebody who expects server-sent events find some?"""
    return b"data:" in raw and _EVENTS.search(raw) is not None


def cut(text: str) -> list[tuple[str, bool]]:
    """(piece, is it JSON); together they are the text.  What does not begin with JSON is one piece of text."""
    pieces: list[tuple[str, bool]] = []
    at, size, across = 0, len(text), True
    while at < size:
        begin = _match_blank(text, at)
        line = text.find("\n", begin)
        line = size if line < 0 else line + 1
        end = begin
        if begin < size and text[begin] in "{[":
            try:
                end = _scan(text, begin)[1] if across else begin + _scan(text[begin:line])[1]
            except (json.JSONDecodeError, RecursionError):
                across = False  # from here on a document ends with its line: nothing is gone over in vain but once
        if end > begin:
            if begin > at:
                _add(pieces, text[at:begin])
            pieces.append((text[begin:end], True))
            at = end
        elif not pieces:
            return [(text, False)]
        else:
            _add(pieces, text[at:line])
            at = line
    return pieces


def read_each(raw: bytes, read: Callable[[bytes], tuple[list[Part], list[Place]]]) -> list[Read]:
    """What it is cut into, with the texts in it.  Raises ValueError, in a few words, where it is no text."""
    text = None if b"\0" in raw else charsets.text(raw)
    if text is None:
        raise ValueError("an answer that is not text")
    said: list[Read] = []
    for piece, is_json in cut(text):
        data = piece.encode()
        try:
            parts = read(data)[0] if is_json else [Part((), piece, "output")] if piece.strip() else []
        except ValueError:
            parts = [Part((), "", "media")]  # it could be read in two ways: nobody here does
        said.append((data, parts, is_json))
    return said


def unescaped(text: str) -> str:
    """As it would be inside a string of JSON; the same where nothing in it is an escape."""
    return Escapes().feed(text, True) if "\\" in text else text


def _match_blank(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match is not None else at


def _add(pieces: list[tuple[str, bool]], text: str) -> None:
    if pieces and not pieces[-1][1]:
        pieces[-1] = (pieces[-1][0] + text, False)
    else:
        pieces.append((text, False))
