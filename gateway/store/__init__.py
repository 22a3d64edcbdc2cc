"""What is remembered of each request, and how it is found again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

from msgspec import Struct

from gateway.exchange import Usage


class StoreError(Exception):
    """The store cannot be opened, read or written now.  What was to be written may be offered again."""


class RecordRefused(StoreError):
    """What was offered can never be written as it is; offer its records one by one to find out which."""


class Fault(Struct, frozen=True, gc=False):
    """What went wrong: one of errors.CODES, and words for people."""

    code: str
    message: str


class DecisionRecord(Struct, frozen=True, gc=False):
    """What one policy said.  hook: admit | attempt | screen | settle.  took_us: microseconds, to the nanosecond."""

    policy: str
    hook: str
    outcome: str
    took_us: float


class AttemptRecord(Struct, frozen=True, gc=False):
    """One try at one target.  Times: whole microseconds since the request's start; null: it did not happen.

    cost_nano: nano-USD, null where it was billed and no price or no usage is known.  cost_usd: the same as exact USD.
    """

    provider: str
    model: str
    why: str
    status: int
    error: Fault | None
    started_us: int | None
    sent_us: int | None
    headers_us: int | None
    first_byte_us: int | None
    ended_us: int | None
    usage: Usage | None
    cost_usd: str | None
    cost_nano: int | None
    price_revision: str
    finish: list[str]
    response_id: str
    response_model: str
    provider_request_id: str
    complete: bool
    free: bool


class AssessmentRecord(Struct, frozen=True, gc=False):
    """What one safety assessor said of one kind of text.  Of the text itself there is nothing here.

    score: 0 (nothing found) … 1; confidence: 0 … 1, in that.  spans: places found.  error: timeout, error or junk.
    """

    assessor: str
    stage: str
    verdict: str
    score: float
    confidence: float
    explanation: str
    type: str
    spans: int
    took_us: float
    error: str


class Timings(Struct, frozen=True, gc=False):
    """Whole microseconds.  total: first byte in to last byte out.  first_byte: until the answer's first byte left.

    upstream: spent waiting for providers before that first byte.  overhead: what the gateway itself added before it.
    """

    total_us: int
    overhead_us: int
    first_byte_us: int | None
    upstream_us: int


class Tokens(Struct, frozen=True, gc=False):
    """Tokens of all attempts together; cache_write holds both kinds, 5 minutes and 1 hour."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0
    estimated: bool = False


class Content(Struct, frozen=True, gc=False):
    """What was asked and what was answered, kept only where the team's `content` says so."""

    input: str
    output: str


class Record(Struct, frozen=True, gc=False):
    """One request, from its first byte to its bill.  `at`: RFC 3339, UTC, to the nanosecond.

    cost_nano is null where what an attempt costs is not known; error is null if the caller got a whole reply.
    saved_nano: what an answer from the cache would have cost; null: none was served, or its cost is not known.
    """

    id: str
    at: str
    team: str
    key: str
    endpoint: str
    operation: str
    method: str
    path: str
    route: str
    model: str
    stream: bool
    client: str
    session: str
    user: str
    feature: str
    tags: tuple[str, ...]
    trace_id: str
    status: int
    error: Fault | None
    cache: str
    decisions: list[DecisionRecord]
    attempts: list[AttemptRecord]
    timings: Timings
    tokens: Tokens
    cost_nano: int | None
    cost_usd: str | None
    sent_bytes: int
    content: Content | None = None
    saved_nano: int | None = None
    assessments: list[AssessmentRecord] = []  # records of before there were any have none


class Summary(Struct, frozen=True, gc=False):
    """One line of a list.  provider: the one that answered, or failed last; null: none was asked."""

    id: str
    at: str
    team: str
    key: str
    model: str
    provider: str | None
    endpoint: str
    status: int
    code: str | None
    stream: bool
    session: str | None
    user: str | None
    feature: str | None
    input: int
    output: int
    cost_nano: int | None
    cost_usd: str | None
    duration_us: int


class Page(Struct, frozen=True, gc=False):
    """Part of a list, newest first.  next_cursor: what to ask with for the rest; null: this was all."""

    data: list[Summary]
    next_cursor: str | None


@dataclass(slots=True, frozen=True)
class Query:
    """Which records.  None: any.  since and until: ns since the epoch, until is not included."""

    team: str | None = None
    teams: frozenset[str] | None = None  # one of these
    key: str | None = None
    model: str | None = None
    code: str | None = None
    codes: tuple[str, ...] = ()  # one of these; empty: any
    session: str | None = None
    user: str | None = None
    feature: str | None = None
    status: tuple[int, int] | None = None  # lowest and highest
    failed: bool = False  # only what ended with a status of 400 and above, or with an error after its head had left
    since: int | None = None
    until: int | None = None
    limit: int = 100
    cursor: str | None = None


class Refused(Struct, frozen=True, gc=False):
    """Requests that ended alike.  values: of what was asked to be told apart, in that order; None: not said.

    first, last: when the first and the last of them began, ns since the epoch.
    id, message: of the one that was recorded last: its words name the budget or the limit.
    """

    values: tuple[str | None, ...]
    count: int
    first: int
    last: int
    id: str
    message: str


class Used(Struct, gc=False):
    """What a provider told of the attempts that began on one day (UTC) for one model, as it named it.

    input holds every input token, cache_read its part.  attempts: that used tokens.  estimated: those of them that were
    counted here.  untold: attempts beside them, of which the provider told nothing though it may have billed them.
    """

    day: str
    provider: str
    model: str
    input: int = 0
    cache_read: int = 0
    output: int = 0
    attempts: int = 0
    estimated: int = 0
    untold: int = 0


class RecordStore(Protocol):
    """Keeps records.  write and expire block and are called from a thread; the rest is called from the event loop."""

    def write(self, records: Sequence[Record]) -> None:
        """All or nothing; a record whose id is there already is left as it is.  Raises StoreError, RecordRefused."""

    def expire(self, before: int, limit: int) -> int:
        """Deletes up to `limit` records that began before this time (ns since the epoch), oldest first.  How many."""

    async def get(self, id: str) -> Record | None:
        """Raises StoreError."""

    async def find(self, query: Query) -> Page:
        """Newest first.  Raises StoreError; ValueError where the cursor is none of ours."""

    async def refused(self, by: Sequence[str], query: Query) -> list[Refused]:
        """How often requests ended with a code, by these words of rows.GROUPS; most often first, query.limit at most.

        query.cursor is not looked at.  Raises StoreError.
        """

    async def used(self, since: int, until: int) -> list[Used]:
        """Tokens of all attempts that began in this span, by day, provider and model.  Raises StoreError."""

    async def aclose(self) -> None: ...


@lru_cache(maxsize=4096)  # a request with one attempt asks twice
def usd(nano: int | None) -> str | None:
    """Nano-USD as an exact decimal of USD: 1500 -> 0.0000015."""
    if nano is None:
        return None
    whole, part = divmod(abs(nano), 1_000_000_000)
    text = f"{whole}.{part:09d}".rstrip("0").rstrip(".")
    return "-" + text if nano < 0 else text


def write_time(ns: int) -> str:
    """Nanoseconds since the epoch as RFC 3339 in UTC with nine decimals."""
    return f"{_second(ns // 1_000_000_000)}.{str(ns).zfill(9)[-9:]}Z"


def read_time(text: str) -> int:
    """RFC 3339, with up to nine decimals and a zone, as nanoseconds since the epoch.  Raises ValueError."""
    if not text.isascii() or len(text) < 20 or text[10] not in "Tt ":
        raise ValueError("not RFC 3339")
    rest = text[19:]
    digits = ""
    if rest.startswith("."):
        digits = rest[1 : len(rest) - len(rest[1:].lstrip("0123456789"))]
        rest = rest[1 + len(digits) :]
        if not 1 <= len(digits) <= 9:
            raise ValueError("one to nine decimals of a second are understood")
    if rest not in ("Z", "z") and not (len(rest) == 6 and rest[0] in "+-" and rest[3] == ":"):
        raise ValueError("the zone is missing")
    ns = _epoch(text[:19], rest) * 1_000_000_000 + int(digits.ljust(9, "0"))
    if not 0 <= ns < 2**63:
        raise ValueError("times from 1970 to 2262 are understood")
    return ns


@lru_cache(maxsize=256)  # neighbours in a batch share their second
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=256)
def _epoch(second: str, zone: str) -> int:
    return int(datetime.fromisoformat(second.upper() + zone.upper()).timestamp())
