"""Cuts a byte stream into server-sent events, however the network cut it, and keeps each as it was written.

The format is WHATWG HTML 9.2: lines end in LF, CRLF or CR; a blank line ends an event; a leading BOM is ignored.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.errors import UpstreamError

MAX_EVENT: Final = 1024 * 1024  # bytes

# A CR ends a line only once the byte after it is known not to be LF.
_END = re.compile(rb"(?:\r\n|\n|\r(?=[^\n]))(?:\r\n|\n|\r(?=[^\n]))")
_BOM = b"\xef\xbb\xbf"


class Splitter:
    """feed(bytes) -> whole events, each with the blank line that ends it.  most: bytes of one event."""

    __slots__ = ("_first", "_most", "_rest")

    def __init__(self, most: int = MAX_EVENT) -> None:
        self._most = most
        self._rest = bytearray()
        self._first = True

    def feed(self, data: bytes) -> list[bytes]:
        if self._first and data:
            if not self._started(data):
                return []
            data, self._rest = bytes(self._rest), bytearray()
        if not self._rest and b"\r" not in data:
            events = data.split(b"\n\n")
            rest = events.pop()
            if rest:
                self._keep(rest)
            return [event + b"\n\n" for event in events]
        return self._search(data)

    def close(self) -> bytes:
        """What stood after the last whole event.  An event without its blank line does not count (WHATWG)."""
        rest = bytes(self._rest)
        if rest.endswith(b"\r") and _END.search(rest + b"."):
            return rest  # a CR that was waiting for its LF did end an event
        return b""

    def _started(self, data: bytes) -> bool:
        """Has enough arrived to tell a byte order mark from text?  Then it is gone."""
        self._rest += data
        if len(self._rest) < 3 and _BOM.startswith(bytes(self._rest)):
            return False
        if self._rest.startswith(_BOM):
            del self._rest[:3]
        self._first = False
        return True

    def _search(self, data: bytes) -> list[bytes]:
        start = max(0, len(self._rest) - 3)  # an ending cut by the network begins here at the earliest: linear time
        self._rest += data
        events: list[bytes] = []
        taken = 0
        for end in _END.finditer(self._rest, start):
            events.append(bytes(self._rest[taken : end.end()]))
            taken = end.end()
        if taken:
            del self._rest[:taken]
        self._check()
        return events

    def _keep(self, rest: bytes) -> None:
        self._rest += rest
        self._check()

    def _check(self) -> None:
        if len(self._rest) > self._most:
            raise UpstreamError(
                f"The provider sent an event of more than {self._most} bytes.",
                code="upstream_protocol",
                retryable=False,
            )


def data(event: bytes) -> bytes | None:
    """An event's data lines, joined; None where it has none (a comment, or fields only)."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]  # the ordinary event, in one look
    lines = [line for line in re.split(rb"\r\n|\n|\r", event) if line.startswith(b"data")]
    values = []
    for line in lines:
        name, _, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" "))
    return b"\n".join(values) if values else None


def plain(event: bytes) -> bool:
    """Is it one data line, or data lines only?  Other fields (id, event, retry) make some clients stumble."""
    if event.startswith(b"data:") and event.find(b"\n") == len(event) - 2:
        return True
    return all(not line or line.startswith((b"data:", b":")) for line in re.split(rb"\r\n|\n|\r", event))
