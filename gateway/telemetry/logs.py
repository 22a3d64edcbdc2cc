"""Logs: one line for each finished request, and the process's own words likewise; never a prompt, never a key."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import IO, Any, TextIO

import msgspec

from gateway import __version__
from gateway.errors import ClientGone
from gateway.exchange import Attempt, Exchange
from gateway.settings import Logs
from gateway.telemetry import Outbox, log

WRITE_SECONDS = 0.05  # a line waits no longer than this for others
WRITE_LINES = 2000  # at once
LONGEST = 256  # characters of a value that a caller chose

# Libraries that would tell each request again, with its URL, or each lost batch of traces in several lines.
_QUIET = {
    "httpx2": logging.WARNING, "httpcore2": logging.WARNING, "httpx": logging.WARNING, "httpcore": logging.WARNING,
    "uvicorn": logging.WARNING, "uvicorn.error": logging.WARNING, "asyncio": logging.WARNING,
    "urllib3": logging.ERROR, "opentelemetry": logging.ERROR,
}  # fmt: skip

_SEVERITY = {"DEBUG": 5, "INFO": 9, "WARNING": 13, "ERROR": 17, "CRITICAL": 21}  # OpenTelemetry's numbers

# One line's fields: ours, and where the Elastic Common Schema has its own name for one.
_ECS = {
    "timestamp": "@timestamp",
    "severity_text": "log.level",
    "logger": "log.logger",
    "error_message": "error.message",
    "stack": "error.stack_trace",
    "request_id": "http.request.id",
    "team": "labels.team",
    "key": "labels.key",
    "feature": "labels.feature",
    "session": "labels.session",
    "endpoint": "labels.endpoint",
    "cache": "labels.cache",
    "user": "user.id",
    "client": "client.address",
    "method": "http.request.method",
    "path": "url.path",
    "status": "http.response.status_code",
    "code": "error.code",
    "model": "gen_ai.request.model",
    "served": "gen_ai.response.model",
    "provider": "gen_ai.provider.name",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "trace_id": "trace.id",
    "span_id": "span.id",
    "message": "message",
}

# What JSON leaves as it is: DEL and the C1 control characters, which a terminal may obey, and line separators.
_UNSAFE_UTF8 = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]")
_UNSAFE = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160))} | {0x2028: "\\u2028", 0x2029: "\\u2029"}

_encode = msgspec.json.Encoder().encode


class AccessLog:
    """Observer.  Notes the exchange; a thread writes the lines, many at once.

    stream: binary, stdout if not given; written by nobody else, or lines could be torn apart.
    """

    def __init__(self, logs: Logs, stream: IO[bytes] | None = None) -> None:
        self._stream = sys.stdout.buffer if stream is None else stream
        self._line = _teller(logs.format)
        self._lines: Outbox[Exchange] = Outbox("access log", self._write, logs.queue, WRITE_SECONDS, WRITE_LINES)

    @property
    def dropped(self) -> int:
        """Requests whose line was lost."""
        return self._lines.dropped

    def started(self, x: Exchange) -> None:
        """Nothing yet: a request has one line, when it is over."""

    def finished(self, x: Exchange) -> None:
        self._lines.put(x)

    async def aclose(self) -> None:
        """Writes what waits; gives up after 1 s on a stream that takes nothing."""
        await self._lines.aclose(1.0)

    def _write(self, exchanges: list[Exchange]) -> int:
        lines, lost = [], 0
        for x in exchanges:
            try:
                lines.append(self._line(x))
            except Exception:  # one request that cannot be told must not take the others along
                log.exception("no line could be made of request %s", x.id)
                lost += 1
        self._stream.write(_safe(b"".join(lines)))
        self._stream.flush()
        return lost


class _Told(msgspec.Struct, gc=False):
    """What is told of a request.  Money is a decimal string of USD; None means it did not happen or is not known."""

    timestamp: str
    severity_text: str
    message: str
    request_id: str
    team: str | None
    key: str | None
    endpoint: str
    method: str
    path: str
    model: str | None
    served: str | None
    provider: str | None
    attempts: int
    status: int | None
    code: str | None
    stream: bool
    cache: str | None
    ttft_ms: float | None
    duration_ms: float
    overhead_ms: float
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    cost_usd: str | None
    session: str | None
    user: str | None
    feature: str | None
    client: str | None
    trace_id: str
    span_id: str
    trace_flags: str
    severity_number: int


def _tell(x: Exchange) -> _Told:
    attempts, status, trace, path, level = x.attempts, x.status, x.trace, x.path[:LONGEST], _level(x)
    target = attempts[-1].target if attempts else None
    asked, answered, cached = _tokens(attempts)
    return _Told(  # by position, which costs a quarter of what 32 keywords do
        _time(x.started_at + x.ended - x.started),
        level,
        f"{x.method} {path} {status or '-'}",
        x.id,
        x.caller.team or None,
        x.caller.key or None,
        x.endpoint,
        x.method,
        path,
        x.model[:LONGEST] or None,
        target.model if target is not None else None,
        target.provider.name if target is not None else None,
        len(attempts),
        status or None,
        x.error.code if x.error is not None else None,
        x.stream,
        x.cache or None,
        _ms(x.first_byte - x.started) if x.first_byte and status < 400 else None,
        _ms(x.ended - x.started),
        _ms(x.overhead),
        asked,
        answered,
        cached,
        _usd(x.cost),
        x.session[:LONGEST] or None,
        x.user[:LONGEST] or None,
        x.feature[:LONGEST] or None,
        x.client or None,
        trace.trace_id.to_bytes(16).hex(),
        trace.span_id.to_bytes(8).hex(),
        "01" if trace.sampled else "00",
        _SEVERITY[level],
    )


def _tokens(attempts: list[Attempt]) -> tuple[int, int, int] | tuple[None, None, None]:
    """Input, output and cached tokens of all attempts."""
    asked = answered = cached = 0
    known = False
    for attempt in attempts:
        usage = attempt.usage
        if usage is not None:
            known = True
            asked += usage.input
            answered += usage.output
            cached += usage.cache_read
    return (asked, answered, cached) if known else (None, None, None)


def _usd(nano: int | None) -> str | None:
    if nano is None:
        return None
    digits = str(nano).zfill(10)
    return f"{digits[:-9]}.{digits[-9:]}"


def _level(x: Exchange) -> str:
    if x.error is None or isinstance(x.error, ClientGone):
        return "INFO"
    return "ERROR" if x.error.status >= 500 else "WARNING"


def _ms(ns: int) -> float:
    """To the microsecond: round() would take five times as long."""
    return (ns + 500) // 1000 / 1000


def _time(ns: int) -> str:
    """RFC 3339, UTC, to the microsecond."""
    return f"{_second(ns // 10**9)}.{str(ns)[-9:-3]}Z"


@lru_cache(maxsize=64)  # neighbours share their second
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def _teller(style: str) -> Callable[[Exchange], bytes]:
    """Exchange -> one line, still to be made _safe: which is cheaper for many at once."""
    if style == "json":
        return lambda x: _encode(_tell(x)) + b"\n"
    line = _writer(style, _text)
    return lambda x: line(msgspec.structs.asdict(_tell(x)))


def _writer(style: str, text: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], bytes]:
    """Facts -> one line.  Whatever a fact holds, it cannot end the line or move a terminal."""
    if style == "text":
        return lambda facts: text(facts).translate(_UNSAFE).encode("utf-8", "backslashreplace") + b"\n"
    return _ecs if style == "ecs" else _line


def _ecs(facts: dict[str, Any]) -> bytes:
    """Elastic's names; what it has none for stands under `tollkeeper.`.  Absent facts are left out."""
    shown = {_ECS.get(name) or f"tollkeeper.{name}": fact for name, fact in facts.items() if fact is not None}
    del shown["tollkeeper.severity_number"]  # OpenTelemetry's
    shown["log.level"] = facts["severity_text"].lower()
    shown |= {"ecs.version": "8.17.0", "service.name": "tollkeeper", "service.version": __version__}
    if "duration_ms" in facts:
        shown |= {"event.dataset": "tollkeeper.access", "event.duration": round(facts["duration_ms"] * 1e6)}
    return _line(shown)


def _line(facts: dict[str, Any]) -> bytes:
    return _safe(_encode(facts)) + b"\n"


def _safe(lines: bytes) -> bytes:
    """Lines of JSON, which itself escapes the rest."""
    return lines if lines.isascii() and b"\x7f" not in lines else _UNSAFE_UTF8.sub(_escape, lines)


def _escape(found: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(found[0].decode())


def _text(facts: dict[str, Any]) -> str:
    """For people: who, what, from where, how it went, how long it took, what it cost."""
    who = f"{facts['team'] or '-'}/{facts['key'] or '-'}"
    served = f"{facts['provider']}/{facts['served']}" if facts["provider"] else facts["cache"] or "-"
    told = [
        f"{facts['timestamp']} {facts['severity_text']:<7} {facts['request_id']} {who} {facts['message']}",
        f"{facts['model'] or '-'} -> {served}",
        f"{facts['duration_ms']:.1f} ms (overhead {facts['overhead_ms']:.3f} ms)",
    ]
    if facts["input_tokens"] is not None:
        told.append(f"{facts['input_tokens']}+{facts['output_tokens']} tokens")
        told.append("unpriced" if facts["cost_usd"] is None else f"{facts['cost_usd']} USD")
    if facts["attempts"] > 1:
        told.append(f"{facts['attempts']} attempts")
    if facts["code"]:
        told.append(facts["code"])
    return ", ".join(told)


class _Formatter(logging.Formatter):
    """The process's own words, in the format of the access log."""

    def __init__(self, style: str, secrets: Iterable[str]) -> None:
        super().__init__()
        self._line = _writer(style, _words)
        self._secrets = [secret for secret in secrets if secret]

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "timestamp": _time(int(record.created * 1e9)),
            "severity_text": record.levelname,
            "message": self._mask(record.getMessage()),
            "logger": record.name,
            "request_id": getattr(record, "request_id", None),
        }
        if record.exc_info and record.exc_info[0] is not None:
            facts["error_message"] = self._mask(str(record.exc_info[1]))
            facts["stack"] = self._mask(self.formatException(record.exc_info))
        facts["severity_number"] = _SEVERITY.get(record.levelname, 0)
        return self._line({name: fact for name, fact in facts.items() if fact is not None}).decode()[:-1]

    def _mask(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return text


def _words(facts: dict[str, Any]) -> str:
    request = f"{facts['request_id']} " if "request_id" in facts else ""
    stack = f" | {facts['stack']}" if "stack" in facts else ""
    return f"{facts['timestamp']} {facts['severity_text']:<7} {facts['logger']} {request}{facts['message']}{stack}"


def configure(logs: Logs, stream: TextIO, secrets: Iterable[str] = ()) -> None:
    """Standard logging, to this stream.  A line about a request gives its id: `extra={"request_id": x.id}`.

    secrets: texts that are masked wherever they turn up in a message or a stack.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(logs.format, secrets))
    level = logging.getLevelNamesMapping()[logs.level.upper()]
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name, least in _QUIET.items():
        library = logging.getLogger(name)
        library.setLevel(max(level, least))
        library.handlers.clear()
        library.propagate = True
    access = logging.getLogger("uvicorn.access")  # AccessLog says more
    access.handlers.clear()
    access.disabled = True
