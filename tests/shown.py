"""What a tracing backend has to show of a request, for tests to compare with what it shows."""

from __future__ import annotations

from typing import NamedTuple

from gateway.exchange import Exchange


class Tokens(NamedTuple):
    """As a backend counts them: `cached` is part of `input`."""

    input: int
    output: int
    cached: int = 0

    @property
    def total(self) -> int:
        return self.input + self.output


class Shown(NamedTuple):
    """A span, in no backend's own words."""

    name: str
    span_id: str
    parent_id: str  # empty: the root
    kind: str  # request | call
    failed: bool
    model: str = ""
    tokens: Tokens | None = None


class Told(NamedTuple):
    """What went through the gateway, as the gateway knows it."""

    unary: Exchange
    stream: Exchange
    fallback: Exchange
    error: Exchange


def trace_id(x: Exchange) -> str:
    return f"{x.trace.trace_id:032x}"


def expected(x: Exchange) -> list[Shown]:
    """The request, and below it each attempt in order."""
    root = f"{x.trace.span_id:016x}"
    spans = [Shown(f"{x.method} {x.route}", root, "", "request", x.status >= 500)]
    for attempt in x.attempts:
        model, usage = attempt.target.model, attempt.usage
        tokens = Tokens(usage.input, usage.output, usage.cache_read) if usage is not None else None
        failed = attempt.error is not None
        spans.append(Shown(f"chat {model}", f"{attempt.span_id:016x}", root, "call", failed, model, tokens))
    return spans


def billed(told: Told) -> Tokens:
    """The tokens of all of them together, each counted once."""
    used = [attempt.usage for x in told for attempt in x.attempts if attempt.usage is not None]
    return Tokens(sum(u.input for u in used), sum(u.output for u in used), sum(u.cache_read for u in used))
