"""Writes one record per finished request to the store, from a thread of its own, without ever slowing a request."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Final

import msgspec

from gateway.errors import GatewayError, UpstreamError
from gateway.exchange import Assessment, Attempt, Exchange
from gateway.redaction import Redactor, redact
from gateway.store import (
    AssessmentRecord,
    AttemptRecord,
    Content,
    DecisionRecord,
    Fault,
    Record,
    RecordRefused,
    RecordStore,
    StoreError,
    Timings,
    Tokens,
    usd,
    write_time,
)

log = logging.getLogger("tollkeeper.telemetry")

BATCH: Final = 500  # rows in one transaction, and how many may wait before the thread is woken early
DELAY_SECONDS: Final = 0.2  # how long a record may wait for company
RETRY_SECONDS: Final = 5.0  # the longest pause between two tries at a store that fails
CLOSE_SECONDS: Final = 5.0  # how long aclose tries at a store that fails before it gives up what is left
SLICE: Final = 32  # records built in one go; then the thread rests, so that the event loop gets its turn …
REST_SECONDS: Final = 0.0002  # … without waiting for the interpreter's switch interval, which is 5 ms
EXPIRE_ROWS: Final = 2000  # deleted in one transaction
EXPIRE_SECONDS: Final = 3600.0  # between two looks for what is too old
CONTENT_CHARS: Final = 262_144  # kept of a prompt, and of an answer
CONTENT_AT_ONCE: Final = 4 * 1024 * 1024  # characters in one transaction: a store may hold several copies of them
CONTENT_WAITING: Final = 64 * 1024 * 1024  # characters that may wait for a store that fails; beyond: without content
TEXT_CHARS: Final = 512  # kept of a word the caller chose: a model's, session's, user's or feature's name

# Codes for which the dialects word the message themselves, though the provider has answered.
_OUR_WORDS: Final = frozenset(
    {
        "upstream_auth", "upstream_rate_limited", "upstream_unavailable", "upstream_timeout", "upstream_protocol",
        "upstream_broke_off", "upstream_too_large",
    }
)  # fmt: skip


class Records:
    """An Observer.  `dropped` counts the records that were lost, `bare` those that lost only their content."""

    def __init__(self, store: RecordStore, *, days: int = 30, queue: int = 65_536) -> None:
        self.bare = 0
        self._refused = 0  # counted by the event loop only,
        self._lost = 0  # and this by the thread only: += is not atomic
        self._store = store
        self._keep_ns = days * 86_400 * 1_000_000_000
        self._limit = queue
        self._queue: deque[Exchange] = deque()
        self._built: list[Record] = []  # the thread's own; the loop asks only for its length
        self._waiting: deque[Future[None]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._failures = 0
        self._retry_at = 0.0
        self._content_waiting = 0
        self._expire_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records lost since the start."""
        return self._refused + self._lost

    def started(self, x: Exchange) -> None:
        """Nothing is known yet that is worth a record."""

    def finished(self, x: Exchange) -> None:
        queue = self._queue
        if len(queue) + len(self._built) >= self._limit:
            self._refused += 1
            return
        queue.append(x)
        if len(queue) == BATCH:
            self._wake.set()

    async def flush(self) -> None:
        """Returns when all that finished before has been offered to the store, once, whether it took it or not."""
        if self._closing:
            return await asyncio.to_thread(self._thread.join)
        offered: Future[None] = Future()
        self._waiting.append(offered)
        self._wake.set()
        return await asyncio.wrap_future(offered)

    async def aclose(self) -> None:
        """Writes all that finished before; what the store does not take within CLOSE_SECONDS is lost and counted."""
        self._limit = 0  # what finishes from now on is counted as dropped
        self._closing = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        """The thread's life."""
        give_up = 0.0
        while True:
            self._wake.wait(DELAY_SECONDS)
            self._wake.clear()
            if self._closing and not give_up:
                give_up = time.monotonic() + CLOSE_SECONDS
            offered = [self._waiting.popleft() for _ in range(len(self._waiting))]
            self._build(len(self._queue))  # also while the store fails: a record is smaller than a request's body
            if offered or give_up or time.monotonic() >= self._retry_at:
                self._offer()
            _resolve(offered)
            if give_up and self._end(give_up):
                return
            if not self._built:
                self._expire()

    def _end(self, give_up: float) -> bool:
        """Whether all is written, or it is time to give up."""
        left = len(self._queue) + len(self._built)
        if left and time.monotonic() < give_up:
            return False
        if left:
            self._lost += left
            log.error("%d records are lost: the store did not take them before the end", left)
        _resolve(list(self._waiting))
        return True

    def _build(self, count: int) -> None:
        for number in range(1, count + 1):
            x = self._queue.popleft()
            try:
                record = build(x)
            except Exception:  # one strange request must not cost the others their record
                self._lose(x.id)
                continue
            if record.content is not None:
                record = self._with_room(record, record.content)
            self._built.append(record)
            if number % SLICE == 0:
                time.sleep(REST_SECONDS)

    def _with_room(self, record: Record, content: Content) -> Record:
        """The record, without its content where a store that fails has let too much of it pile up."""
        size = len(content.input) + len(content.output)
        if self._content_waiting + size > CONTENT_WAITING:
            self.bare += 1
            return msgspec.structs.replace(record, content=None)
        self._content_waiting += size
        return record

    def _offer(self) -> None:
        """What the store does not take stays in its place."""
        try:
            while self._built:
                batch = self._batch()
                try:
                    self._store.write(batch)
                except RecordRefused:
                    self._sift(batch)
                del self._built[: len(batch)]
        except Exception as error:  # whatever it is, this thread must live, and try again
            self._failed(error)
            return
        self._failures = 0
        self._content_waiting = 0

    def _batch(self) -> list[Record]:
        """What is offered next."""
        size = 0
        for number, record in enumerate(batch := self._built[:BATCH]):
            if record.content is not None:
                size += len(record.content.input) + len(record.content.output)
                if size > CONTENT_AT_ONCE and number:
                    return batch[:number]
        return batch

    def _sift(self, batch: list[Record]) -> None:
        """Offers the records of a refused batch one by one and loses only those that are refused alone."""
        for record in list(batch):
            try:
                self._store.write([record])
            except RecordRefused:
                self._lose(record.id)
                self._built.remove(record)
                batch.remove(record)

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._retry_at = time.monotonic() + min(RETRY_SECONDS, DELAY_SECONDS * 2 ** min(self._failures, 10))
        if self._failures == 1:
            known = isinstance(error, StoreError)
            log.warning("records wait in memory, for %s", error, exc_info=None if known else error)

    def _lose(self, id: str) -> None:
        self._lost += 1
        log.exception("a request's record is lost", extra={"request_id": id})

    def _expire(self) -> None:
        """One bounded batch; when there may be more, the next round goes on."""
        if time.monotonic() < self._expire_at:
            return
        try:
            gone = self._store.expire(time.time_ns() - self._keep_ns, EXPIRE_ROWS)
        except Exception:
            log.exception("records that are too old were not deleted; trying again in an hour")
            gone = 0
        if gone < EXPIRE_ROWS:
            self._expire_at = time.monotonic() + EXPIRE_SECONDS


def _resolve(futures: list[Future[None]]) -> None:
    for future in futures:
        if future.set_running_or_notify_cancel():  # False: who waited has gone away
            future.set_result(None)


def build(x: Exchange) -> Record:
    """The record of a finished exchange."""
    cost = x.cost
    return Record(  # by position, in its own order: 29 keywords take six times as long
        x.id,
        write_time(x.started_at),
        x.caller.team,
        x.caller.key,
        x.endpoint,
        x.operation,
        x.method,
        x.path,
        x.route,
        x.model[:TEXT_CHARS],
        x.stream,
        x.client,
        x.session[:TEXT_CHARS],
        x.user[:TEXT_CHARS],
        x.feature[:TEXT_CHARS],
        x.tags,
        x.trace.trace_id.to_bytes(16).hex(),
        x.status,
        _fault(x.error, x) if x.error is not None else None,
        x.cache,
        [DecisionRecord(d.policy, d.hook, d.outcome, d.took / 1000) for d in x.decisions],
        [_attempt(attempt, x) for attempt in x.attempts],
        _timings(x),
        _tokens(x.attempts),
        cost,
        usd(cost),
        x.sent_bytes,
        None if x.caller.content == "none" else _content(x),
        x.saved,
        [_assessment(one) for one in x.assessments],
    )


def _assessment(one: Assessment) -> AssessmentRecord:
    return AssessmentRecord(
        one.assessor,
        one.stage,
        one.verdict,
        one.score,
        one.confidence,
        one.explanation,
        one.type,
        one.spans,
        one.took / 1000,
        one.error,
    )


def _attempt(attempt: Attempt, x: Exchange) -> AttemptRecord:
    started, answer = x.started, attempt.answer
    return AttemptRecord(  # by position, likewise
        attempt.target.provider.name,
        attempt.target.model,
        attempt.why,
        attempt.status,
        _fault(attempt.error, x, attempt.status) if attempt.error is not None else None,
        (attempt.started - started) // 1000 if attempt.started else None,
        (attempt.sent - started) // 1000 if attempt.sent else None,
        (attempt.headers - started) // 1000 if attempt.headers else None,
        (attempt.first_byte - started) // 1000 if attempt.first_byte else None,
        (attempt.ended - started) // 1000 if attempt.ended else None,
        attempt.usage,
        usd(attempt.cost),
        attempt.cost,
        attempt.price,
        answer.finish,
        answer.id,
        answer.model,
        attempt.provider_request_id,
        attempt.complete,
        attempt.free,
    )


def _timings(x: Exchange) -> Timings:
    first = x.first_byte or x.ended
    return Timings(
        total_us=(x.ended - x.started) // 1000,
        overhead_us=(first - x.started - x.upstream) // 1000,
        first_byte_us=(x.first_byte - x.started) // 1000 if x.first_byte else None,
        upstream_us=x.upstream // 1000,
    )


def _tokens(attempts: list[Attempt]) -> Tokens:
    asked = answered = read = written = reasoning = 0
    estimated = False
    for attempt in attempts:
        used = attempt.usage
        if used is not None:
            asked += used.input
            answered += used.output
            read += used.cache_read
            written += used.cache_write + used.cache_write_1h
            reasoning += used.reasoning
            estimated |= used.estimated
    return Tokens(asked, answered, read, written, reasoning, estimated)


def _fault(error: GatewayError, x: Exchange, status: int | None = None) -> Fault:
    """A provider's words may repeat the prompt or a key: kept only where content is, and then without what is obvious.

    status: what the provider answered with, 0 where it did not: then the words are ours.  None: as the last attempt's.
    """
    if status is None:
        status = x.attempts[-1].status if x.attempts else 0
    if not isinstance(error, UpstreamError) or error.code in _OUR_WORDS or status == 0:
        return Fault(error.code, error.message)
    if x.caller.content == "none":
        return Fault(
            error.code, "the provider's words are not kept, for they may repeat the prompt (team's `content: none`)"
        )
    return Fault(error.code, redact(error.message[:CONTENT_CHARS]))


def _content(x: Exchange) -> Content:
    asked = _cut(x.body[: 4 * CONTENT_CHARS + 4].decode(errors="replace"))  # no character is longer than 4 bytes
    answered = _cut("".join(x.output))
    if x.caller.content == "full":
        return Content(asked, answered)
    redactor = Redactor()
    return Content(redactor.redact(asked), redactor.redact(answered))


def _cut(text: str) -> str:
    return text if len(text) <= CONTENT_CHARS else f"{text[:CONTENT_CHARS]}… [cut after {CONTENT_CHARS} characters]"
