"""Reads an answer by the charset that its head declares, as a client would."""

from __future__ import annotations

import codecs
import re
from typing import Final

_CHARSET: Final = re.compile(r"charset\s*=\s*[\"']?([^\s;\"',]*)", re.IGNORECASE)
_SAME: Final = frozenset({"utf-8", "ascii"})
_NEARLY: Final = frozenset({"iso8859-1", "cp1252", "utf-8-sig"})  # ASCII stands for itself in them
UNKNOWN: Final = "unknown"


def declared(kind: bytes) -> str:
    """Of a content type, in Python's words; empty: UTF-8, or nothing is said; UNKNOWN: what nobody here can read."""
    found: set[str] = set()
    for name in _CHARSET.findall(kind.decode("latin-1")):
        try:
            found.add(codecs.lookup(name).name)
        except (LookupError, ValueError):
            return UNKNOWN
    found -= _SAME
    return "" if not found else found.pop() if len(found) == 1 else UNKNOWN


def event_stream(kind: bytes) -> bool:
    """Is it that of server-sent events?"""
    return kind.lstrip().lower().startswith(b"text/event-stream")


def as_utf8(raw: bytes, charset: str) -> bytes:
    """The same text.  Raises ValueError where it cannot be read, or could be read in two ways."""
    if not charset:
        return raw
    try:
        read = raw.decode(charset).encode()
    except (LookupError, UnicodeError) as error:
        raise ValueError("an answer in this charset") from error
    if (
        read != raw and b"\0" not in raw and text(raw) is not None
    ):  # clients that pass over the charset read another text
        raise ValueError("an answer that can be read in two ways")
    return read


def back(read: bytes, charset: str) -> bytes:
    """What `as_utf8` read, as it was written; what the charset cannot write becomes a question mark."""
    return read if not charset else read.decode().encode(charset, "replace")


def in_events(charset: str) -> bool:
    """Is it harmless in server-sent events, which are UTF-8 whatever their head says?"""
    return not charset or charset in _NEARLY


def text(raw: bytes) -> str | None:
    """As UTF-8; None: it is none."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
