"""One request, from its first byte to its bill: the one object that flows through the gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from msgspec import Struct, field

if TYPE_CHECKING:  # names only: nothing above this file is imported
    from gateway.body import Fields
    from gateway.dialects import Chunk, Dialect, Reader
    from gateway.errors import GatewayError
    from gateway.presence import Presence
    from gateway.targets import Target

Content = Literal["none", "redacted", "full"]


@dataclass(slots=True, frozen=True)
class Caller:
    """Who is asking: a team, by one of its keys."""

    team: str
    key: str  # the key's name; the key itself is kept nowhere
    models: frozenset[str] | None = None  # None: every configured model
    provider: str | None = None  # where calls go that name no model
    content: Content = "none"  # what of prompts and answers may be kept
    organisation: str = ""  # the group of teams that its team belongs to
    narrowed: bool = False  # models: fewer than its team may use
    born: str = ""  # when its team was created, so that one made anew is another; empty: config.yaml declares it
    id: str = ""  # its key's, likewise


class Usage(Struct):
    """Tokens of one attempt.  `input` holds every input token, `output` every output token; the rest are parts."""

    input: int = 0
    output: int = 0
    cache_read: int = 0  # of input: read from the provider's prompt cache
    cache_write: int = 0  # of input: written to it, kept 5 minutes
    cache_write_1h: int = 0  # of input: written to it, kept 1 hour
    reasoning: int = 0  # of output
    audio_input: int = 0  # of input; audio_cache_read is the part of it that was cached
    audio_cache_read: int = 0
    audio_output: int = 0  # of output
    image_input: int = 0  # of input; image_cache_read is the part of it that was cached
    image_cache_read: int = 0
    image_output: int = 0  # of output
    estimated: bool = False  # counted here, because the provider did not say


class Upload(Protocol):
    """A body that passes through; it can be read once, so its call cannot be tried again."""

    def pieces(self, model: str) -> AsyncGenerator[bytes, None]:
        """The body, with the provider's name of the model where it holds one."""

    def length(self, model: str) -> int | None:
        """Bytes of it; None where the caller did not say."""


class Answer(Struct):
    """What was seen of a provider's answer as it went by."""

    id: str = ""
    model: str = ""
    tier: str = ""  # the service tier the provider says it served
    fingerprint: str = ""
    finish: list[str] = field(default_factory=list)  # finish reasons, one per choice
    text: list[str] = field(default_factory=list)  # pieces in order, for counting where usage is missing
    tool_calls: int = 0
    charset: str = ""  # of a relayed answer, as its head says; empty: UTF-8 (gateway/charsets.py)


class Attempt(Struct, eq=False):
    """One try at one target.  Times are time.perf_counter_ns(); 0 means it did not happen."""

    target: Target
    span_id: int = 0
    started: int = 0
    sent: int = 0  # the request's first byte left
    headers: int = 0  # the answer's head arrived
    first_byte: int = 0  # the answer's first chunk arrived
    ended: int = 0
    status: int = 0  # the provider's HTTP status
    answer: Answer = field(default_factory=Answer)
    usage: Usage | None = None
    rejected: str = ""  # the field of a usage that made no sense
    cost: int | None = 0  # nano-USD; None: billed, but no price or no usage is known
    price: str = ""  # the revision of the price it was computed with
    delivered: bool = False  # something of its answer was handed on: no other target may try
    complete: bool = False  # False: the provider may have billed more than we saw …
    free: bool = False  # … unless it certainly billed nothing
    error: GatewayError | None = None
    cap: int | None = None  # output tokens per choice that the provider is told to keep; None: as the caller wrote
    lowered: bool = False  # the cap is below what the caller asked for, for want of money
    why: str = ""  # why this target was tried: first | fallback: <code of the error before>
    provider_request_id: str = ""


class Decision(NamedTuple):
    """What one policy said, and how long it took."""

    policy: str
    hook: str  # admit | attempt | screen | settle
    outcome: str  # passed | answered | held | denied:<code> | failed
    took: int  # ns


class Assessment(Struct):
    """What one assessor found in one kind of text of a request.  It never holds any of that text."""

    assessor: str  # several, with commas, where one look told that none of them could find anything
    stage: str  # input | output | tool_arguments | tool_results | …
    verdict: str = "passed"  # passed | flagged | redacted | masked | blocked | failed | failed_open | not_judged
    score: float = 0.0  # 0: nothing found … 1: certain; of several texts the highest
    confidence: float = 0.0  # 0 … 1, in that score
    explanation: str = ""  # in the assessor's words, of labels and figures
    type: str = "pattern"  # how it judges: pattern | model | llm | service
    spans: int = 0  # places found
    took: int = 0  # ns
    error: str = ""  # why it failed: timeout | error | junk


class Trace(NamedTuple):
    """W3C trace context of this request."""

    trace_id: int  # 128 bits
    parent_id: int  # 64 bits; 0: the trace starts here
    span_id: int  # 64 bits: our SERVER span
    sampled: bool
    state: str = ""  # tracestate, as it came


class Exchange(Struct, eq=False, weakref=True):
    """One request.  Times are time.perf_counter_ns() unless said otherwise."""

    # asked
    id: str
    endpoint: str  # chat | completions | embeddings | relay | …: the metric label
    operation: str  # OTel gen_ai.operation.name
    method: str
    path: str
    route: str  # the route's template, for spans and metrics
    started: int
    started_at: int  # wall clock, ns since the epoch
    trace: Trace
    caller: Caller
    dialect: Dialect  # in which the caller is answered
    model: str = ""  # as the caller wrote it
    alias: str = ""  # the configured model behind it; empty where none is
    stream: bool = False
    wants_usage: bool = True  # False: the caller did not ask for usage on its stream
    call: Any = None  # the decoded part of the body; its type belongs to the endpoint
    texts: Callable[[], list[str]] | None = None  # what the caller wrote, for counting; None: not countable
    body: bytes = b""
    fields: Fields = field(default_factory=dict)  # the body's top-level fields, each as it was written
    upload: Upload | None = None  # a body that is streamed, not held
    asks_usage: bool = False  # the provider is to be asked for usage on this stream
    upstream_path: str = ""  # below the provider's base_url, with its query
    reader: Callable[[Mapping[bytes, bytes]], Reader] | None = None  # reads a relayed answer, given its head
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    session: str = ""
    user: str = ""
    feature: str = ""
    tags: tuple[str, ...] = ()
    client: str = ""  # the caller's address
    inner: str = ""  # why the gateway itself makes this call, for another one: embed | assess | …
    # decided
    decisions: list[Decision] = field(default_factory=list)
    assessments: list[Assessment] = field(default_factory=list)
    answer: AsyncGenerator[Chunk, None] | None = None  # set by a policy that answers in the provider's place
    cache: str = ""  # hit | semantic | coalesced | miss | bypass
    provider: str = ""  # where a call goes that names no model
    max_attempts: int = 1
    reply_headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # what policies tell the caller
    # happened
    attempts: list[Attempt] = field(default_factory=list)
    status: int = 0  # the HTTP status the caller received
    first_byte: int = 0  # the answer's first byte left for the caller
    ended: int = 0
    sent_bytes: int = 0
    sending: int = 0  # since when the caller has not taken what was sent last; 0: it has
    kept: bool = False  # an observer reads what was asked later on, in its thread
    draining: bool = False  # the caller hung up; the answer is read to its end, for its usage or for others
    awaited: bool = False  # others wait for this answer: it is read to its end although its caller hangs up
    presence: Presence | None = None  # of the caller, while the call is under way
    upstream: int = 0  # ns spent waiting for providers before the first byte left
    error: GatewayError | None = None  # None if and only if the caller received a complete reply
    saved: int | None = None  # nano-USD that an answer from the cache would have cost
    output: list[str] = field(default_factory=list)  # the answer's text, kept only where the team asks for content

    @property
    def final(self) -> Attempt | None:
        """The attempt that answered, or the last that failed."""
        return self.attempts[-1] if self.attempts else None

    def rewrite(self, body: bytes, fields: Fields, call: Any) -> None:
        """Asks something else of the provider than the caller did.  body, fields, call: the same, in three forms."""
        self.body, self.fields, self.call = body, fields, call
        if isinstance(self.texts, partial):
            self.texts = partial(self.texts.func, call)  # what is counted is what is sent

    def forget(self) -> None:
        """Lets go of what was asked, once nobody will read it."""
        self.body, self.fields, self.call, self.texts, self.headers, self.upload = b"", {}, None, None, {}, None
        self.reader = self.answer = None  # they may hold the exchange itself

    @property
    def overhead(self) -> int:
        """ns of our own until the first byte left; until the end, where none did."""
        return (self.first_byte or self.ended) - self.started - self.upstream

    @property
    def cost(self) -> int | None:
        """nano-USD of all attempts; None where what one of them costs is not known."""
        total = 0
        for attempt in self.attempts:
            if attempt.cost is None:
                return None
            total += attempt.cost
        return total
