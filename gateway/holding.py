"""Holds an answer back, event by event, until those who judge it have; then lets it go, with what they took out.

Events leave whole and in order, so that their finish reasons, tool calls and log-probabilities stay where they were.
What a reader joins is judged as one text, however it was cut (gateway/lanes.py).  Where the model goes on to another,
the end of the first waits for what may follow on from it, but only for so many characters of the other, or so long.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from gateway.dialects import LOGPROBS, NAME, Dialect, Part, Place, sse
from gateway.lanes import Judge, Lane, Lanes, Piece
from gateway.patterns import HELD, Found, merged

MANY: Final = 2000  # edits of a lane that are gone over in a thread
MOST: Final = 64 * 1024 * 1024  # bytes of an answer that are held at most
_FIELD: Final = re.compile(rb"event: ?[a-z][a-z_.-]{0,63}|retry: ?[0-9]{1,9}")  # of an event, what may leave unread

clock = time.monotonic


class Unjudged(Exception):
    """Something in an answer that cannot be read as text.  what: in a few words."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class _Event:
    __slots__ = ("data", "head", "pieces", "raw")

    def __init__(self, raw: bytes, head: bytes, data: bytes | None) -> None:
        self.raw = raw
        self.head = head  # lines before the data's
        self.data = data  # the JSON in it; None: there is none
        self.pieces: list[Piece] = []

    def waits(self) -> bool:
        return any(piece.undecided is not None for piece in self.pieces)


class Holding:
    """One answer.

    judge: who judges a lane of a kind (None: nobody); aside: of a text that is judged in another lane too.
    seconds, characters: how long a text may wait unjudged, or for what it might go on with.
    """

    def __init__(
        self,
        dialect: Dialect,
        stream: bool,
        judge: Callable[[str, bool], Judge | None],
        unjudged: Callable[[str], None],
        seconds: float,
        characters: int = HELD,
    ) -> None:
        self._dialect = dialect
        self._unjudged = unjudged  # told of what cannot be read; raises to stop the answer
        self._seconds = seconds
        self._splitter = sse.Splitter() if stream else None
        self._whole: list[bytes] = []  # of an answer that is not streamed
        self._queue: deque[_Event] = deque()
        self._lanes = Lanes(judge, seconds, characters)
        self._timed: dict[Lane, None] = {}  # what was not decided by those who do in time; the longest waiting first
        self._changed: set[Place] = set()  # groups whose text was changed
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
            await self._finish()
        return await self._leave(last)

    async def _leave(self, last: bool) -> bytes:
        """In a thread where there are many places to go over."""
        while not last and (lane := self._overdue()) is not None:
            lane.tried = lane.size
            await lane.judge.let_go()
            self._settle(lane, True)
        return await asyncio.to_thread(self._release, last) if self._many else self._release(last)

    def _overdue(self) -> Lane | None:
        """The lane that the next event to leave waits for, if it was left long enough ago."""
        lane = self._first()
        due = self._lanes.due(lane) if lane is not None else None
        return lane if due is not None and due <= clock() else None

    def _first(self) -> Lane | None:
        """The lane that the next event to leave waits for."""
        for event in self._queue:
            for piece in event.pieces:
                if (lane := piece.undecided) is not None:
                    return lane
        return None

    async def _due(self) -> bytes:
        """What may leave although nothing has arrived: what waits has waited long enough."""
        now = clock()
        while self._timed and (lane := next(iter(self._timed))).since + self._seconds <= now:
            await self._hear(lane, "", False)
        return await self._leave(False)

    @property
    def waits(self) -> float | None:
        """Seconds after which to ask again, with nothing new; None where that would change nothing."""
        first = self._first()
        left = self._lanes.due(first) if first is not None else None
        due = [left] if left is not None else []
        if self._timed:
            due.append(next(iter(self._timed)).since + self._seconds)
        return max(0.0, min(due) - clock()) if due else None

    # ── what arrives ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _take_whole(self, raw: bytes) -> bytes:
        if not raw:
            return raw
        try:
            parts, _ = self._dialect.read_said(raw)
        except ValueError:
            return await self._take_text(raw)
        await self._take_all([(_Event(raw, b"", raw), parts)])
        return await self._leave(True)

    async def _take_text(self, raw: bytes) -> bytes:
        """No JSON: text by itself, or lines of JSON, or what nobody here can read."""
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            self._unjudged("an answer that is not text")
            return raw
        read = self._dialect.read_said
        try:
            lines = [(_Event(line, b"", line), read(line)[0] if line.strip() else []) for line in raw.split(b"\n")]
        except ValueError:
            event = _Event(raw, b"", None)
            await self._take_all([(event, [Part((), text, "output")])])
            return self._written(event.pieces[0]).encode() if event.pieces else raw
        await self._take_all(lines)
        return b"\n".join([self._write(event) for event in self._queue])

    async def _take_all(self, events: Sequence[tuple[_Event, Sequence[Part]]]) -> None:
        """Of an answer that is whole."""
        self._lanes.whole(part for _, parts in events for part in parts)
        for event, parts in events:
            self._queue.append(event)
            await self._take_parts(event, parts)
        await self._finish()

    async def _take_event(self, raw: bytes) -> None:
        data = sse.data(raw)
        if data is None:  # a comment may hold text too; what is left of it keeps the connection alive
            self._queue.append(_Event(b":\n\n", b"", None))
            return
        if data.strip() == b"[DONE]":
            self._lanes.leave(())  # most readers stop here
            self._queue.append(_Event(b"data: [DONE]\n\n", b"", None))
            return
        head, plain = b"", raw.startswith(b"data:") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw
        if not plain:  # without its comments and other fields
            head = _head(raw)
            raw = head + b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"
        try:
            parts, ended = self._dialect.read_said(data)
        except ValueError:
            self._unjudged("an event that is not JSON")
            parts, ended = [], []
        event = _Event(raw, head, data)
        self._queue.append(event)
        await self._take_parts(event, parts)
        for group in ended:
            self._lanes.leave(group)

    async def _take_parts(self, event: _Event, parts: Sequence[Part]) -> None:
        for part in parts:
            if part.kind == "media":
                self._unjudged("media")
                continue
            if (piece := self._lanes.put(part)) is not None:
                event.pieces.append(piece)
                for lane, _ in piece.lanes:
                    await self._hear(lane, part.text, lane.once)
                self._lanes.judged(piece)
        self._lanes.turn()

    async def _finish(self) -> None:
        for lane in self._lanes:
            if not lane.over:
                lane.over = True
                await self._hear(lane, "", True)

    async def _hear(self, lane: Lane, piece: str, final: bool) -> None:
        due = lane in self._timed and lane.since + self._seconds <= clock()
        await lane.judge.hear(piece, final, due)
        self._many = self._many or len(lane.judge.edits) > MANY
        self._settle(lane, due)

    def _settle(self, lane: Lane, due: bool) -> None:
        """due: those who decide in time were asked about all of it; they have nothing to add before more comes."""
        if due or lane.judge.settled >= lane.size:
            self._timed.pop(lane, None)
        elif lane.judge.timed and lane not in self._timed:
            lane.since = clock()
            self._timed[lane] = None

    # ── what leaves ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _release(self, last: bool) -> bytes:
        leaving: list[bytes] = []
        queue = self._queue
        while queue:
            event = queue[0]
            if not last and event.waits():
                break
            queue.popleft()
            raw = self._write(event)
            self._held -= len(event.raw)
            for piece in event.pieces:
                for lane, start in piece.lanes:
                    edits = lane.judge.edits
                    while edits and edits[0].end <= start:  # nothing that comes will ask for it
                        del edits[0]
            leaving.append(raw)
        return leaving[0] if len(leaving) == 1 else b"".join(leaving)

    def _write(self, event: _Event) -> bytes:
        changes: dict[Place, str | None] = {}
        for piece in event.pieces:
            part, text = piece.part, piece.part.text
            for lane, _ in piece.lanes:
                if lane.judge.edits:
                    text = self._written(piece)
                    break
            if part.place[-1:] == (LOGPROBS,):
                if text != part.text or part.group in self._changed:
                    changes[part.place] = None  # they repeat what was taken out
                continue
            if text != part.text:
                if part.place[-1:] == (NAME,):
                    self._unjudged("a field's name, which cannot be taken out")
                    continue
                changes[part.place] = text
                self._changed.add(part.group)
            restored = text != part.text and any(not edit.label for lane, _ in piece.lanes for edit in lane.judge.edits)
            self.said.append(self._written(piece, kept=True) if restored else text)
        if not changes or event.data is None:
            return event.raw
        self.changed = True
        data = self._dialect.write_texts(event.data, changes)
        return data if self._splitter is None else event.head + b"data: " + data + b"\n\n"

    def _written(self, piece: Piece, kept: bool = False) -> str:
        """The part's text without what was taken out; each place is replaced where it begins.

        kept: with the placeholders, not with what they stand for.
        """
        text = piece.part.text
        size, parts, at = len(text), list[str](), 0
        for edit in _edits_of(piece, kept):
            parts += (text[at : edit.start], edit.replacement or "")
            at = min(edit.end, size)
        if not at:
            return text
        self.changed = True
        return "".join([*parts, text[at:]])


def _edits_of(piece: Piece, kept: bool) -> list[Found]:
    """In the part's own numbering; what begins in an earlier part is replaced there."""
    size = len(piece.part.text)
    edits: list[Found] = []
    for lane, start in piece.lanes:
        for edit in lane.judge.edits:
            if edit.start >= start + size:
                break
            if edit.end > start and (edit.label or not kept):
                edits.append(edit._replace(start=edit.start - start, end=edit.end - start))
    if len(piece.lanes) > 1:  # those of one lane are in order and apart
        edits = merged(edits)
    if edits and edits[0].start < 0:
        edits[0] = edits[0]._replace(start=0, replacement="")
    return edits


def add(edits: list[Found], more: Sequence[Found]) -> None:
    """Keeps edits in order and apart from one another; what lies before the new ones is not gone over again."""
    if not more:
        return
    start, at = min(one.start for one in more), len(edits)
    while at and edits[at - 1].end > start:
        at -= 1
    edits[at:] = merged([*edits[at:], *more])


def _head(raw: bytes) -> bytes:
    """The lines of an event that may leave beside its data (`event: …`), each with its end."""
    lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"".join(line + b"\n" for line in lines if _FIELD.fullmatch(line))
