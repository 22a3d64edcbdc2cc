"""OpenAI's wire: chat completions, completions, embeddings; the form other dialects are translated through."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from gateway import body as bodies
from gateway.dialects import Cap
from gateway.dialects.openai_answers import StreamReader, WholeReader
from gateway.dialects.openai_replay import gather, look, replay, without_usage
from gateway.dialects.openai_texts import read_asked, read_said, write_texts
from gateway.errors import GatewayError, UpstreamError

__all__ = [
    "gather", "look", "name", "read_asked", "read_error", "read_said", "reader", "replay", "without_usage",
    "write_call", "write_error", "write_error_event", "write_ping", "write_summary", "write_texts",
]  # fmt: skip

name: Final = "openai"
_encode = msgspec.json.Encoder().encode


class _Error(msgspec.Struct):
    message: Any = None
    type: Any = None
    param: Any = None
    code: Any = None


_error = msgspec.json.Decoder(_Error)
_any = msgspec.json.Decoder()
_CAPS: Final = ("max_completion_tokens", "max_tokens")  # the newer first
_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


# ── what callers read ───────────────────────────────────────────────────────────────────────────────────────────────


def write_error(error: GatewayError, request_id: str) -> bytes:
    """{"error": {message, type, param, code}}, with the request's id where support can find it."""
    shape = {
        "message": error.message,
        "type": error.kind,
        "param": error.param,
        "code": error.said or error.code,
        "request_id": request_id,
    }
    return _encode({"error": shape})


def write_error_event(error: GatewayError, request_id: str) -> bytes:
    """The frame that makes every SDK raise; nothing may follow it that looks like an end."""
    return b"data: " + write_error(error, request_id) + b"\n\n"


def write_ping() -> bytes:
    return b": ping\n\n"


def write_summary(facts: dict[str, str | int | bool | None]) -> bytes:
    """What is known last, as a comment before [DONE]: a comment breaks no client."""
    return b": tollkeeper " + _encode(facts) + b"\n\n"


# ── what providers are sent ─────────────────────────────────────────────────────────────────────────────────────────


def write_call(
    fields: bodies.Fields, body: bytes, model: str, asked: str, want_usage: bool, cap: Cap | None = None
) -> bytes:
    """The caller's body with the provider's name of the model, usage asked for on a stream, and the cap."""
    changes: dict[str, object] = {}
    drop = None
    if model != asked:
        changes["model"] = model
    if want_usage:
        options = fields.get("stream_options")
        said = _any.decode(options) if options is not None else None
        if not isinstance(said, dict):
            said = {}
        if said.get("include_usage") is not True:
            changes["stream_options"] = {**said, "include_usage": True}
    if cap is not None:
        drop = _write_cap(fields, cap, changes)
    return bodies.patch(body, fields, changes, drop)


def _write_cap(fields: bodies.Fields, cap: Cap, changes: dict[str, object]) -> str | None:
    """Adds to the changes; returns the field to leave out.  A cap is only ever lowered.

    Who knows `max_completion_tokens` knows `max_tokens`, so a caller's own word stays there; models that refuse the
    older one say so.  Many servers know only `max_tokens`, and ignore the other, or refuse it.
    """
    given = {name: value for name in _CAPS if (value := _whole(fields.get(name))) is not None}
    newer = cap.field == _CAPS[0]
    names = given if newer and given else (cap.field,)
    for name in names:
        most = min(given.get(name, cap.tokens), cap.tokens)
        if given.get(name) != most:
            changes[name] = most
    return None if newer else _CAPS[0]


def _whole(raw: msgspec.Raw | None) -> int | None:
    """The number in a field; None where there is none."""
    said = _any.decode(raw) if raw is not None else None
    return said if type(said) is int else None


def reader(stream: bool, look: bool, wants_usage: bool) -> StreamReader | WholeReader:
    """look: somebody reads the text, so give it event by event.  wants_usage: the caller asked for the usage chunk."""
    return StreamReader(look, wants_usage) if stream else WholeReader()


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_error(status: int, body: bytes) -> UpstreamError:
    """A provider's refusal in our words.  Its own sentence is kept only where it tells the developer what to mend."""
    said = _said(body)
    message = str(said.message)[:2000] if said is not None and isinstance(said.message, str) else ""
    param = said.param[:200] if said is not None and isinstance(said.param, str) else None
    if status in (400, 404, 409, 413, 415, 422):
        return UpstreamError(
            f"The provider refused the call: {message}" if message else f"The provider refused the call ({status}).",
            code="upstream_refused", status=status, param=param, kind="invalid_request_error",
            retryable=False, free=True,
            said=said.code if said is not None and isinstance(said.code, str) and _WORD.fullmatch(said.code) else "",
        )  # fmt: skip
    if status in (401, 403):
        return UpstreamError(
            f"The provider did not accept the gateway's credentials ({status}). Tell your platform team.",
            code="upstream_auth", status=502, free=True,
        )  # fmt: skip
    if status == 429:
        spent = said is not None and "insufficient_quota" in (said.code, said.type)  # waiting does not mend it
        return UpstreamError(
            "The gateway's account at the provider is used up. Tell your platform team." if spent
            else "The provider is rate limiting the gateway. Wait, then retry.",
            code="upstream_rate_limited", status=429, kind="rate_limit_error", retry_after=1, free=True,
            should_retry=False if spent else None, said="insufficient_quota" if spent else "",
        )  # fmt: skip
    if status == 408 or status >= 500:
        code = "upstream_timeout" if status in (408, 504) else "upstream_unavailable"
        return UpstreamError(
            f"The provider failed ({status}). Retry shortly.", code=code, status=503 if status in (503, 529) else 502,
            retry_after=1 if status in (503, 529) else None, free=status in (503, 529),
        )  # fmt: skip
    return UpstreamError(
        f"The provider answered with an unexpected status ({status}).", code="upstream_protocol", retryable=False
    )


def _said(body: bytes) -> _Error | None:
    try:
        wrapped = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        return _error.decode(wrapped["error"])
    except (msgspec.DecodeError, RecursionError, KeyError, UnicodeDecodeError):
        return None
