"""Holds an answer back, event by event, until those who judge it have; then lets it go, with what they took out.

Events leave whole and in order, so that their finish reasons, tool calls and log-probabilities stay where they were.
What a reader joins is judged as one text, however it was cut (gateway/lanes.py).  Where the model goes on to another,
the end of the first waits for what may follow on from it, but only for so many characters of the other, or so long.
"""

from __future__ import annotations

import asyncio
import re
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final, TypeVar

from gateway import charsets, documents
from gateway.dialects import LOGPROBS, NAME, Ambiguous, Dialect, Part, Place, sse
from gateway.lanes import Judge, Lane, Lanes, Piece, Unjudged
from gateway.patterns import HELD, Found, merged

LARGE: Final = 16_384  # bytes that are read or written in a thread
MOST: Final = 64 * 1024 * 1024  # bytes of an answer that are held at most
_EACH: Final = 500  # bytes that an event takes, and a part, besides what was sent of it
_TURN: Final = 0.003  # seconds of work in one go: other requests get their turn in between
_FIELD: Final = re.compile(rb"event: ?[a-z][a-z_.-]{0,63}|retry: ?[0-9]{1,9}")  # of an event, what may leave unread

clock = time.monotonic
T = TypeVar("T")
_start, _end = attrgetter("start"), attrgetter("end")


class _Event:
    __slots__ = ("_decided", "data", "head", "pieces", "raw", "size")

    def __init__(self, raw: bytes, head: bytes, data: bytes | None) -> None:
        self.raw = raw
        self.head = head  # lines before the data's
        self.data = data  # the JSON in it; None: there is none
        self.size = len(raw)  # bytes that it takes, more or less
        self.pieces: list[Piece] = []
        self._decided = 0  # pieces at their beginning that wait for nothing any more

    @property
    def undecided(self) -> Lane | None:
        """The first lane that it waits for."""
        for at in range(self._decided, len(self.pieces)):
            if (lane := self.pieces[at].undecided) is not None:
                return lane
            self._decided = at + 1
        return None


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
        self.charset = ""  # of a relayed answer, as gateway/charsets.py tells it
        self._judge = judge
        self._unjudged = unjudged  # told of what cannot be read; raises to stop the answer
        self._seconds = seconds
        self._splitter = sse.Splitter(MOST) if stream else None
        self._whole: list[bytes] = []  # of an answer that is not streamed
        self._queue: deque[_Event] = deque()
        self._ready: deque[_Event] = deque()  # before the queue: what waits for nothing any more
        self._lanes = Lanes(judge, seconds, characters)
        self._timed: dict[Lane, None] = {}  # what was not decided by those who do in time; the longest waiting first
        self._changed: set[Place] = set()  # groups whose text was changed
        self._held = 0  # bytes
        self._worked = 0.0  # seconds since others had their turn …
        self._began = 0.0  # … and when that was, not counting what passed between two calls
        self.changed = False  # something was taken out of the answer
        self.said: list[str] = []  # the texts that were let go, with the placeholders that the caller did not see

    async def take(self, raw: bytes, last: bool) -> bytes:
        """What may leave, now that this has arrived."""
        self._began = clock() - self._worked
        out = await self._taken(raw, last)
        self._worked = clock() - self._began
        return out

    async def _taken(self, raw: bytes, last: bool) -> bytes:
        if not raw and not last:
            return await self._due()
        if self._splitter is None:
            self._count(len(raw))
            self._whole.append(raw)
            return await self._take_whole(b"".join(self._whole)) if last else b""
        if not charsets.in_events(self.charset):
            self._unjudged("events in this charset")
        for event in self._splitter.feed(raw):
            await self._take_event(event)
        if last:
            if rest := self._splitter.close():
                await self._take_event(rest)
            await self._finish()
        return await self._leave(last)

    async def _leave(self, last: bool) -> bytes:
        while (event := self._queue[0] if self._queue else None) is not None:
            if last or event.undecided is None:
                self._ready.append(self._queue.popleft())
            elif (lane := self._overdue()) is not None:
                lane.tried = lane.size
                await lane.judge.let_go()
                self._settle(lane, True)
            else:
                break
            await self._breathe()
        return b"".join(await self._release())

    async def _breathe(self) -> None:
        """Others have their turn."""
        if clock() - self._began >= _TURN:
            await asyncio.sleep(0)
            self._began = clock()

    def _overdue(self) -> Lane | None:
        """The lane that the next event to leave waits for, if it was left long enough ago."""
        lane = self._first()
        due = self._lanes.due(lane) if lane is not None else None
        return lane if due is not None and due <= clock() else None

    def _first(self) -> Lane | None:
        """The lane that the next event to leave waits for."""
        return self._queue[0].undecided if self._queue else None

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
        try:
            text = await _aside(len(raw), charsets.as_utf8, raw, self.charset)
        except ValueError as error:
            self._unjudged(str(error))
            return raw
        left = await self._take_body(text) if text else text
        return raw if left == text else await _aside(len(left), charsets.back, left, self.charset)

    async def _take_body(self, raw: bytes) -> bytes:
        read = self._dialect.read_said
        try:
            parts, _ = await _aside(len(raw), read, raw)
        except Ambiguous:
            self._unjudged("an answer that can be read in two ways")
            return raw
        except ValueError:
            return await self._take_text(raw)
        return (await self._take_all([(raw, parts, True)]))[0]

    async def _take_text(self, raw: bytes) -> bytes:
        """No JSON: events whatever they call themselves, several documents, text, or what nobody here can read."""
        if documents.are_events(raw):
            self._splitter = sse.Splitter(MOST)
            for event in self._splitter.feed(raw.rstrip(b"\r\n") + b"\n\n"):
                await self._take_event(event)
            await self._finish()
            return await self._leave(True)
        try:
            said = await _aside(len(raw), documents.read_each, raw, self._dialect.read_said)
        except ValueError as error:
            self._unjudged(str(error))
            return raw
        return b"".join(await self._take_all(said))

    async def _look_behind(self, event: _Event) -> None:
        """What only those find in a text who read its escapes cannot be taken out of it."""
        text = self._written(event.pieces[0], kept=True) if event.pieces else event.raw.decode()
        plain = await _aside(len(text), documents.unescaped, text)
        if plain != text and (judge := self._judge("output", True)) is not None:
            await judge.hear(plain, True, False)
            if any(edit.label for edit in judge.edits):
                self._unjudged("escapes in a text")

    async def _take_all(self, said: list[documents.Read]) -> list[bytes]:
        """An answer that is whole, in one or several; each as it leaves.  Empties `said`: to free it all takes time."""
        await _aside(self._held, self._lanes.whole, (part for _, parts, _ in said for part in parts))
        said.reverse()
        while said:
            raw, parts, is_json = said.pop()
            self._ready.append(event := _Event(raw, b"", raw if is_json else None))
            await self._take_parts(event, parts)
        await self._finish()
        for event in self._ready:
            if event.data is None and b"\\" in event.raw:
                await self._look_behind(event)
        return await self._release()

    def _count(self, size: int) -> None:
        self._held += size
        if self._held > MOST:
            self._unjudged(what := "an answer too large to be held")
            raise Unjudged(what)

    def _queued(self, raw: bytes, head: bytes, data: bytes | None, parts: int = 0) -> _Event:
        self._queue.append(event := _Event(raw, head, data))
        event.size += (1 + parts) * _EACH
        self._count(event.size)
        return event

    async def _take_event(self, raw: bytes) -> None:
        data = sse.data(raw)
        if data is None or not data.strip():
            # A comment may hold text too; what is left of it keeps the connection alive.
            self._queued(b":\n\n", b"", None)
            return
        if data.strip() == b"[DONE]":
            self._lanes.leave(())  # most readers stop here
            self._queued(b"data: [DONE]\n\n", b"", None)
            return
        head, plain = b"", raw.startswith(b"data:") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw
        if not plain:  # without its comments and other fields
            head = _head(raw)
            raw = head + b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"
        try:
            parts, ended = await _aside(len(data), self._dialect.read_said, data)
        except ValueError:
            self._unjudged("an event that is not JSON")
            parts, ended = [], []
        event = self._queued(raw, head, data, len(parts))
        await self._take_parts(event, parts)
        for group in ended:
            self._lanes.leave(group)

    async def _take_parts(self, event: _Event, parts: Sequence[Part]) -> None:
        for part in parts:
            await self._breathe()
            try:
                piece = self._lanes.put(part)
            except Unjudged as error:
                self._unjudged(error.what)
                continue
            if piece is not None:
                event.pieces.append(piece)
                for lane, _ in piece.lanes:
                    await self._hear(lane, part.text, lane.once)
                self._lanes.judged(piece)
        self._lanes.turn()

    async def _finish(self) -> None:
        for lane in self._lanes:
            if not lane.over:
                await self._breathe()
                lane.over = True
                await self._hear(lane, "", True)

    async def _hear(self, lane: Lane, piece: str, final: bool) -> None:
        due = lane in self._timed and lane.since + self._seconds <= clock()
        await lane.judge.hear(piece, final, due)
        self._settle(lane, due)

    def _settle(self, lane: Lane, due: bool) -> None:
        """due: those who decide in time were asked about all of it; they have nothing to add before more comes."""
        if due or lane.judge.settled >= lane.size:
            self._timed.pop(lane, None)
        elif lane.judge.timed and lane not in self._timed:
            lane.since = clock()
            self._timed[lane] = None

    # ── what leaves ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _release(self) -> list[bytes]:
        leaving: list[bytes] = []
        while self._ready:
            event = self._ready.popleft()
            leaving.append(await _aside(len(event.raw), self._write, event))
            self._held -= event.size
            for piece in event.pieces:
                for lane, start in piece.lanes:
                    _forget(lane.judge.edits, start)
            await self._breathe()
        return leaving

    def _write(self, event: _Event) -> bytes:
        changes: dict[Place, str | None] = {}
        for piece in event.pieces:
            part, text = piece.part, self._written(piece)
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
            self.said.append(self._written(piece, kept=True) if text != part.text else text)
        if not changes:
            return event.raw
        self.changed = True
        if event.data is None:
            return (changes[()] or "").encode()
        data = self._dialect.write_texts(event.data, changes)
        return data if self._splitter is None else event.head + b"data: " + data + b"\n\n"

    def _written(self, piece: Piece, kept: bool = False) -> str:
        """The part's text without what was taken out; each place is replaced where it begins.

        kept: with the placeholders, not with what they stand for.
        """
        text = piece.part.text
        edits = _edits_of(piece, kept)
        if not edits:
            return text
        size, parts, at = len(text), list[str](), 0
        for edit in edits:
            parts += (text[at : edit.start], edit.replacement or "")
            at = min(edit.end, size)
        self.changed = True
        return "".join([*parts, text[at:]])


def _edits_of(piece: Piece, kept: bool) -> list[Found]:
    """In the part's own numbering; what begins in an earlier part is replaced there."""
    size = len(piece.part.text)
    edits: list[Found] = []
    for lane, start in piece.lanes:
        if found := lane.judge.edits:
            first = bisect_right(found, start, key=_end)
            for at in range(first, bisect_left(found, start + size, first, key=_start)):
                edit = found[at]
                if edit.label or not kept:
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


def _forget(edits: list[Found], start: int) -> None:
    """Those before a place, for which nothing that comes will ask; not a few by a few, so that time stays linear."""
    if edits and edits[len(edits) // 2].end <= start:
        del edits[: bisect_right(edits, start, key=_end)]


async def _aside(size: int, work: Callable[..., T], *given: Any) -> T:
    """In a thread where there are many bytes to go over."""
    return await asyncio.to_thread(work, *given) if size > LARGE else work(*given)


def _head(raw: bytes) -> bytes:
    """The lines of an event that may leave beside its data (`event: …`), each with its end."""
    lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"".join(line + b"\n" for line in lines if _FIELD.fullmatch(line))
