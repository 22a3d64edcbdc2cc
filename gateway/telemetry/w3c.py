"""W3C Trace Context: whose trace a request belongs to, whether it is sampled, and what is told to the next server.

Wire format: W3C Trace Context Level 2, `traceparent: 00-<32 hex>-<16 hex>-<2 hex>`, and `tracestate`.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable

from gateway.exchange import Trace
from gateway.settings import Traces

# Version 00 is exactly this; a higher version may add fields behind it.  Capitals are invalid.
_PARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER = (
    rb"[ \t]*+(?:[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])?[ \t]*"
)
_STATE = re.compile(_MEMBER + rb"(?:," + _MEMBER + rb"){0,31}")
_STATE_LENGTH = 512  # what must be passed on at least; whole members beyond it are left out

_SAMPLED, _RANDOM = 0x01, 0x02


class RandomTrace(Trace):
    """A trace whose id is known to be random: we drew it, or the caller's flags say so.  The flag must be passed on."""

    __slots__ = ()


class Sampler:
    """Opens each request's trace, and decides up front whether it is sampled.

    Sampled is what the caller sampled, if we know the caller, and else a share of `sample`; of both together no more
    than `per_second`.  The share is taken by the trace's id, so that several gateways choose the same traces.
    Where nothing is exported (no `otlp_endpoint`), a known caller's flag is passed on as it came.
    """

    def __init__(self, settings: Traces, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._draw = random.Random().getrandbits  # noqa: S311 - identifiers, not secrets; seeded by the system
        self._continues = settings.inbound == "continue"
        self._exports = settings.otlp_endpoint is not None
        self._below = int(settings.sample * (1 << 56))
        self._rate = settings.per_second / 1e9  # tokens per ns
        self._most = max(1.0, settings.per_second) if settings.per_second else 0.0
        self._tokens = self._most
        self._clock = clock
        self._filled = clock()

    def begin(self, traceparent: bytes | None, tracestate: bytes | None, authenticated: bool) -> Trace:
        """A caller we do not know cannot choose the trace, nor fill it; what cannot be read starts a new trace."""
        parent = None
        if traceparent is not None and authenticated and self._continues:
            parent = read_parent(traceparent)
        span_id = self.span_id()
        if parent is None:
            trace_id = self._draw(128) or 1
            return RandomTrace(trace_id, 0, span_id, self._exports and self._chosen(trace_id, False))
        trace_id, parent_id, flags = parent
        asked = bool(flags & _SAMPLED)
        sampled = self._chosen(trace_id, asked) if self._exports else asked
        state = read_state(tracestate) if tracestate else ""
        made = RandomTrace if flags & _RANDOM else Trace
        return made(trace_id, parent_id, span_id, sampled, state)

    def span_id(self) -> int:
        """64 random bits, never 0."""
        return self._draw(64) or 1

    def _chosen(self, trace_id: int, asked: bool) -> bool:
        if not asked and trace_id & 0xFF_FFFF_FFFF_FFFF >= self._below:  # Level 2: the last 7 bytes are random
            return False
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def read_parent(traceparent: bytes) -> tuple[int, int, int] | None:
    """(trace id, parent's span id, flags), or None where the whole header must be ignored."""
    found = _PARENT.fullmatch(traceparent)
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    trace_id, span_id = int(trace, 16), int(span, 16)
    if not trace_id or not span_id or (more is not None and version == b"00"):
        return None
    return trace_id, span_id, int(flags, 16)


def read_state(tracestate: bytes) -> str:
    """The header as it came, less the members that do not fit; "" where it cannot be read."""
    if len(tracestate) > _STATE_LENGTH:
        tracestate = tracestate[: _STATE_LENGTH + 1].rpartition(b",")[0]
    return tracestate.decode("ascii") if _STATE.fullmatch(tracestate) else ""


def outgoing(trace: Trace, attempt_span_id: int) -> bytes:
    """`traceparent` for a provider: its parent is our CLIENT span of this attempt.  `tracestate` is trace.state."""
    return _parent(trace, attempt_span_id)


def response(trace: Trace) -> bytes:
    """`traceresponse` for the caller (draft): the trace, and our SERVER span in it."""
    return _parent(trace, trace.span_id)


def _parent(trace: Trace, span_id: int) -> bytes:
    flags = (_SAMPLED if trace.sampled else 0) | (_RANDOM if isinstance(trace, RandomTrace) else 0)
    return b"00-%032x-%016x-%02x" % (trace.trace_id, span_id, flags)
