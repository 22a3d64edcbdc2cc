"""Holds an answer back, event by event, until those who judge it have; then lets it go, with what they took out.

Events leave whole and in order, so that their finish reasons, tool calls and log-probabilities stay where they were.
The text of one choice (of one tool call, of one item) is a lane: it is judged as one text, however it was cut.  A lane
ends when its choice ends, or goes on to another kind of text (from reasoning to content, from content to tool calls).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.dialects import NAME, Dialect, Part, Place, sse
from gateway.patterns import Found, merged

MANY: Final = 2000  # edits of a lane that are gone over in a thread
MOST: Final = 64 * 1024 * 1024  # bytes of an answer that are held at most

clock = time.monotonic


class Judge(Protocol):
    """Those who judge one lane."""

    settled: int  # characters of the lane that are decided
    timed: bool  # it decides more once it is told that text has waited long enough
    edits: list[Found]  # what stands in place of what, in order; without a label: what a placeholder stood for

    async def hear(self, piece: str, final: bool, due: bool) -> None:
        """Raises GatewayError to stop the answer."""


class Unjudged(Exception):
    """Something in an answer that cannot be read as text.  what: in a few words."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class _Lane:
    __slots__ = ("judge", "kind", "over", "since", "size")

    def __init__(self, judge: Judge, kind: Place) -> None:
        self.judge = judge
        self.kind = kind
        self.size = 0
        self.over = False
        self.since = 0.0  # when the oldest character came that is not decided; 0: all are


class _Piece:
    """A part of an event, and where it stands in its lane."""

    __slots__ = ("end", "lane", "part", "start")

    def __init__(self, part: Part, lane: _Lane) -> None:
        self.part = part
        self.lane = lane
        self.start = lane.size
        self.end = lane.size = lane.size + len(part.text)


class _Event:
    __slots__ = ("data", "head", "pieces", "raw")

    def __init__(self, raw: bytes, head: bytes, data: bytes | None) -> None:
        self.raw = raw
        self.head = head  # lines before the data's
        self.data = data  # the JSON in it; None: there is none
        self.pieces: list[_Piece] = []


class Holding:
    """One answer.  judge: who judges a lane of a kind (None: nobody).  seconds: how long a text may wait unjudged."""

    def __init__(
        self,
        dialect: Dialect,
        stream: bool,
        judge: Callable[[str], Judge | None],
        unjudged: Callable[[str], None],
        seconds: float,
    ) -> None:
        self._dialect = dialect
        self._judge = judge
        self._unjudged = unjudged  # told of what cannot be read; raises to stop the answer
        self._seconds = seconds
        self._splitter = sse.Splitter() if stream else None
        self._whole: list[bytes] = []  # of an answer that is not streamed
        self._queue: deque[_Event] = deque()
        self._lanes: dict[Place, _Lane] = {}
        self._held = 0
        self._many = False
        self.changed = False  # something was taken out of the answer
        self.said: list[str] = []  # the texts that were let go, with the placeholders that the caller did not see

    async def take(self, raw: bytes, last: bool) -> bytes:
        """What may leave, now that this has arrived."""
        if not raw and not last:
            return await self._due()
        self._held += len(raw)
        if self._held > MOST:
            raise Unjudged("an answer too large to be held")
        if self._splitter is None:
            self._whole.append(raw)
            if not last:
                return b""
            return await self._take_whole(b"".join(self._whole))
        for event in self._splitter.feed(raw):
            await self._take_event(event)
        if last:
            await self._finish(list(self._lanes.values()))
        return await self._leave(last)

    async def _leave(self, last: bool) -> bytes:
        """In a thread where there are many places to go over."""
        return await asyncio.to_thread(self._release, last) if self._many else self._release(last)

    async def _due(self) -> bytes:
        """What may leave although nothing has arrived: what waits has waited long enough."""
        now = clock()
        for lane in self._lanes.values():
            if lane.since and now - lane.since >= self._seconds:
                await self._hear(lane, "", False)
        return self._release(False)

    @property
    def waits(self) -> float | None:
        """Seconds after which to ask again, with nothing new; None where that would change nothing."""
        since = [lane.since for lane in self._lanes.values() if lane.since and lane.judge.timed]
        return max(0.0, min(since) + self._seconds - clock()) if since and self._queue else None

    # ── what arrives ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _take_whole(self, raw: bytes) -> bytes:
        if not raw:
            return raw
        try:
            parts, _ = self._dialect.read_said(raw)
        except ValueError:
            return await self._take_text(raw)
        event = _Event(raw, b"", raw)
        self._queue.append(event)
        await self._take_parts(event, parts, None)
        return await self._leave(True)

    async def _take_text(self, raw: bytes) -> bytes:
        """No JSON: text by itself, or lines of JSON, or what nobody here can read."""
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            self._unjudged("an answer that is not text")
            return raw
        lines = raw.split(b"\n")
        try:
            read = [(line, self._dialect.read_said(line)[0] if line.strip() else []) for line in lines]
        except ValueError:
            part = Part((), text, "output")
            event = _Event(raw, b"", None)
            await self._take_parts(event, [part], None)
            return self._written(event.pieces[0], event.pieces[0].lane.judge.edits).encode() if event.pieces else raw
        for line, parts in read:
            event = _Event(line, b"", line)
            self._queue.append(event)
            await self._take_parts(event, parts, None)
        done = [self._write(event) for event in self._queue]
        return b"\n".join(done)

    async def _take_event(self, raw: bytes) -> None:
        data = sse.data(raw)
        if data is None:  # a comment may hold text too; what is left of it keeps the connection alive
            self._queue.append(_Event(b":\n\n", b"", None))
            return
        if data.strip() == b"[DONE]":
            await self._finish(list(self._lanes.values()))
            self._queue.append(_Event(raw if sse.plain(raw) else b"data: [DONE]\n\n", b"", None))
            return
        head = _fields_of(raw)
        try:
            parts, ended = self._dialect.read_said(data)
        except ValueError:
            self._unjudged("an event that is not JSON")
            parts, ended = [], []
        if b"\n:" in raw or raw.startswith(b":"):
            raw = head + b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"  # without its comments
        event = _Event(raw, head, data)
        self._queue.append(event)
        await self._take_parts(event, parts, ended)

    async def _take_parts(self, event: _Event, parts: Sequence[Part], ended: list[Place] | None) -> None:
        for part in parts:
            if part.kind == "media":
                self._unjudged("media")
                continue
            if not part.text:
                continue
            lane = self._lane(part)
            if lane is None:
                continue
            await self._turned(part, lane)
            event.pieces.append(_Piece(part, lane))
            await self._hear(lane, part.text, part.lane is None or self._splitter is None)
        if ended is None:
            await self._finish(list(self._lanes.values()))
        elif ended:
            for group in ended:
                await self._finish([lane for key, lane in self._lanes.items() if key[: len(group)] == group])

    def _lane(self, part: Part) -> _Lane | None:
        if part.lane is None or self._splitter is None:
            judge = self._judge(part.kind)
            return _Lane(judge, ()) if judge is not None else None
        lane = self._lanes.get(part.lane)
        if lane is None or lane.over:  # one that goes on after its end is judged anew
            judge = self._judge(part.kind)
            if judge is None:
                return None
            kind = (*part.group, *(step for step in part.lane if isinstance(step, str)))
            lane = self._lanes[part.lane] = _Lane(judge, kind)
        return lane

    async def _turned(self, part: Part, lane: _Lane) -> None:
        """The model has gone on to another kind of text: what came before is complete."""
        if lane.size or not part.group:
            return
        size = len(part.group)
        await self._finish(
            [one for one in self._lanes.values() if one.kind[:size] == part.group and one.kind != lane.kind]
        )

    async def _finish(self, lanes: Sequence[_Lane]) -> None:
        for lane in lanes:
            if not lane.over:
                lane.over = True
                await self._hear(lane, "", True)

    async def _hear(self, lane: _Lane, piece: str, final: bool) -> None:
        now = clock()
        due = bool(lane.since) and now - lane.since >= self._seconds
        await lane.judge.hear(piece, final, due)
        self._many = self._many or len(lane.judge.edits) > MANY
        lane.since = 0.0 if lane.judge.settled >= lane.size else now if due or not lane.since else lane.since

    # ── what leaves ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _release(self, last: bool) -> bytes:
        leaving: list[bytes] = []
        queue = self._queue
        while queue:
            event = queue[0]
            if not last and any(piece.end > piece.lane.judge.settled for piece in event.pieces):
                break
            queue.popleft()
            raw = self._write(event)
            self._held -= len(event.raw)
            for piece in event.pieces:
                edits = piece.lane.judge.edits
                while edits and edits[0].end <= piece.start:  # nothing that comes will ask for it
                    del edits[0]
            leaving.append(raw)
        return leaving[0] if len(leaving) == 1 else b"".join(leaving)

    def _write(self, event: _Event) -> bytes:
        changes: dict[Place, str] = {}
        for piece in event.pieces:
            edits = piece.lane.judge.edits
            text = kept = piece.part.text
            if edits:
                text = self._written(piece, edits)
                restored = any(not edit.label for edit in edits)
                kept = self._written(piece, [edit for edit in edits if edit.label]) if restored else text
            if text is not piece.part.text:
                if piece.part.place[-1:] == (NAME,):
                    self._unjudged("a field's name, which cannot be taken out")
                    continue
                changes[piece.part.place] = text
            self.said.append(kept)
        if not changes or event.data is None:
            return event.raw
        self.changed = True
        data = self._dialect.write_texts(event.data, changes)
        return data if self._splitter is None else event.head + b"data: " + data + b"\n\n"

    def _written(self, piece: _Piece, edits: Sequence[Found]) -> str:
        """The part's text without what was taken out; each place is replaced where it begins."""
        text, start, end = piece.part.text, piece.start, piece.end
        parts: list[str] = []
        at = start
        for edit in edits:
            if edit.end <= start or edit.start >= end:
                continue
            if edit.start >= start:
                parts += (text[at - start : edit.start - start], edit.replacement or "")
            at = max(at, min(edit.end, end))
        if not parts and at == start:
            return text
        self.changed = True
        return "".join([*parts, text[at - start :]])


def add(edits: list[Found], more: Sequence[Found]) -> None:
    """Keeps edits in order and apart from one another; what lies before the new ones is not gone over again."""
    if not more:
        return
    start, at = min(one.start for one in more), len(edits)
    while at and edits[at - 1].end > start:
        at -= 1
    edits[at:] = merged([*edits[at:], *more])


def _fields_of(raw: bytes) -> bytes:
    """The lines of an event that are neither data nor comments (`event: …`), each with its end."""
    if raw.startswith(b"data:") and raw.find(b"\n") >= len(raw) - 2:
        return b""
    lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"".join(line + b"\n" for line in lines if line and not line.startswith((b"data", b":")))
