"""OpenAI's answers as providers send them: read however they are cut, handed on as they came."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.dialects import Chunk, sse
from gateway.errors import UpstreamError
from gateway.exchange import Answer, Usage
from gateway.usage import BadUsage, WireUsage, usage_from

MAX_ANSWER: Final = 64 * 1024 * 1024  # bytes of an answer that is not streamed
_DONE: Final = b"[DONE]"
_encode = msgspec.json.Encoder().encode
_NOTHING: Final = msgspec.Raw()  # a field that is not there
_NULL: Final = msgspec.Raw(b"null")


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: Any = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING
    service_tier: str | None = None
    system_fingerprint: str | None = None


class _Message(msgspec.Struct):
    content: Any = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None


class _WholeChoice(msgspec.Struct):
    message: msgspec.Raw = _NOTHING
    text: str | None = None
    finish_reason: str | None = None


class _Whole(msgspec.Struct):
    """An answer that was not streamed: chat, completions (choices) or embeddings (data)."""

    id: str | None = None
    model: str | None = None
    choices: list[_WholeChoice] | None = None
    data: msgspec.Raw = _NOTHING
    usage: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING
    service_tier: str | None = None
    system_fingerprint: str | None = None


class _Error(msgspec.Struct):
    message: Any = None
    type: Any = None
    param: Any = None
    code: Any = None


_event = msgspec.json.Decoder(_Event)
_whole = msgspec.json.Decoder(_Whole)
_message = msgspec.json.Decoder(_Message)
_error = msgspec.json.Decoder(_Error)
_wire_usage = msgspec.json.Decoder(WireUsage)


class WholeReader:
    """An answer that is not streamed: one chunk, once it is whole."""

    __slots__ = ("_parts", "_size", "answer", "failure", "rejected")

    def __init__(self) -> None:
        self.answer = Answer()
        self.failure: UpstreamError | None = None
        self.rejected = ""  # the field of a usage that made no sense
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[Chunk]:
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_ANSWER:
            self.failure = UpstreamError(
                f"The provider's answer is over {MAX_ANSWER} bytes.", code="upstream_too_large"
            )
        return []

    def close(self) -> list[Chunk]:
        try:
            return [self._whole(self._parts[0] if len(self._parts) == 1 else b"".join(self._parts))]
        except UpstreamError as error:
            self.failure = error
            return []

    def _whole(self, raw: bytes) -> Chunk:
        try:
            whole = _whole.decode(raw)
        except msgspec.ValidationError:
            whole = _lenient(raw, _Whole)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise UpstreamError("The provider's answer is not valid JSON.", code="upstream_protocol") from None
        if whole.choices is None and not _said_something(whole.data):
            if _said_something(whole.error):
                raise _in_band(whole.error)
            raise UpstreamError("The provider's answer has no choices.", code="upstream_protocol")
        answer = self.answer
        answer.id, answer.model = whole.id or "", whole.model or ""
        answer.tier, answer.fingerprint = whole.service_tier or "", whole.system_fingerprint or ""
        answer.finish = [choice.finish_reason or "" for choice in whole.choices or ()]
        usage, self.rejected = _usage(whole.usage)
        if usage is None:
            _collect_text(whole, answer)
        return Chunk(raw=raw, usage=usage, last=True)


class StreamReader:
    """A streamed answer.  Events nobody looks at are handed on in the pieces they came in."""

    __slots__ = (
        "_done",
        "_look",
        "_splitter",
        "_template",
        "_usage_raw",
        "_wants_usage",
        "answer",
        "failure",
        "rejected",
    )

    def __init__(self, look: bool, wants_usage: bool) -> None:
        self.answer = Answer()
        self.failure: UpstreamError | None = None
        self.rejected = ""
        self._done = False
        self._look = look
        self._wants_usage = wants_usage
        self._splitter = sse.Splitter()
        self._usage_raw = _NOTHING  # the last one said: repeated usage is cumulative
        self._template: bytes | None = None  # an event to write the usage chunk after

    def feed(self, data: bytes) -> list[Chunk]:
        try:
            events = self._splitter.feed(data)
        except UpstreamError as error:
            self.failure = error
            return []
        return self._chunks(events)

    def close(self) -> list[Chunk]:
        rest = self._splitter.close()
        chunks = self._chunks([rest]) if rest else []
        if not self._done and self.failure is None:
            self.failure = UpstreamError("The provider's answer broke off before its end.", code="upstream_broke_off")
        return chunks

    def _chunks(self, events: list[bytes]) -> list[Chunk]:
        if self._done:
            return []  # nothing after [DONE] is part of the answer
        chunks: list[Chunk] = []
        run: list[bytes] = []  # events to be forwarded as they are
        for event in events:
            data = sse.data(event)
            if data is None:
                continue  # the provider's comments and bare fields end here: ours are the only pings
            if data.strip() == _DONE:
                self._done = True
                break
            texts = len(self.answer.text)
            try:
                kept = self._event(event, data)
            except UpstreamError as error:
                self.failure = error
                break
            if kept and self._look:
                chunks.append(Chunk(raw=kept, text="".join(self.answer.text[texts:])))
            elif kept:
                run.append(kept)
        if run:
            chunks.append(Chunk(raw=run[0] if len(run) == 1 else b"".join(run)))
        if self._done:
            chunks.append(self._end())
        return chunks

    def _end(self) -> Chunk:
        usage, self.rejected = _usage(self._usage_raw)
        raw = b"data: [DONE]\n\n"
        if self._wants_usage and usage is not None:
            raw = self._usage_chunk() + raw
        return Chunk(raw=raw, usage=usage, last=True)

    def _event(self, raw: bytes, data: bytes) -> bytes:
        """Notes what an event says; returns what the caller gets of it."""
        try:
            event = _event.decode(data)
        except msgspec.ValidationError:
            event = _lenient(data, _Event)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise UpstreamError(
                "The provider sent an event that is not valid JSON.", code="upstream_protocol"
            ) from None
        if _said_something(event.error):
            raise _in_band(event.error)
        answer = self.answer
        if not answer.id:
            answer.id, answer.model = event.id or "", event.model or ""
        if event.service_tier:
            answer.tier = event.service_tier
        if event.system_fingerprint:
            answer.fingerprint = event.system_fingerprint
        for choice in event.choices or ():
            _note_choice(choice, answer)
        if _said_something(event.usage):
            self._usage_raw = msgspec.Raw(bytes(event.usage))
            if self._template is None:
                self._template = data
            if not event.choices:
                return b""  # written anew before [DONE], where the caller asked for it
            return _without_usage(data)
        if self._template is None:
            self._template = data
        return raw if sse.plain(raw) else b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"

    def _usage_chunk(self) -> bytes:
        """One chunk without choices, as OpenAI writes it, with the usage the provider gave."""
        fields = msgspec.json.decode(self._template or b"{}", type=dict[str, msgspec.Raw])
        kept: dict[str, object] = {key: raw for key, raw in fields.items() if key not in ("choices", "usage")}
        kept["choices"] = []
        kept["usage"] = self._usage_raw
        return b"data: " + _encode(kept) + b"\n\n"


def _note_choice(choice: _Choice, answer: Answer) -> None:
    delta = choice.delta
    if delta is not None:
        if delta.content:
            answer.text.append(delta.content)
        if delta.reasoning_content:
            answer.text.append(delta.reasoning_content)
        if delta.refusal:
            answer.text.append(delta.refusal)
        for call in delta.tool_calls or ():
            if call.id:
                answer.tool_calls += 1
            if isinstance(call.function, dict):
                answer.text += [
                    text
                    for text in (call.function.get("name"), call.function.get("arguments"))
                    if isinstance(text, str)
                ]
    elif choice.text:
        answer.text.append(choice.text)
    if choice.finish_reason:
        answer.finish.append(choice.finish_reason)


def _without_usage(data: bytes) -> bytes:
    fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    fields.pop("usage", None)
    return b"data: " + _encode(fields) + b"\n\n"


def _collect_text(whole: _Whole, answer: Answer) -> None:
    """The answer's text, needed only where the provider gave no usage."""
    for choice in whole.choices or ():
        if choice.text:
            answer.text.append(choice.text)
        if not _said_something(choice.message):
            continue
        try:
            message = _message.decode(choice.message)
        except (msgspec.DecodeError, RecursionError):
            continue
        for piece in (message.content, message.reasoning_content, message.refusal):
            if isinstance(piece, str):
                answer.text.append(piece)
        for call in message.tool_calls or ():
            answer.tool_calls += 1
            answer.text.append(_encode(call).decode())


def _said_something(raw: msgspec.Raw) -> bool:
    return raw != _NOTHING and raw != _NULL


def _usage(raw: msgspec.Raw) -> tuple[Usage | None, str]:
    """(usage, "") or (None, the field that made no sense)."""
    if not _said_something(raw):
        return None, ""
    try:
        return usage_from(_wire_usage.decode(raw)), ""
    except BadUsage as error:
        return None, error.field
    except (msgspec.DecodeError, RecursionError):
        return None, "usage"


def _lenient(data: bytes, kind: type[Any]) -> Any:
    """Valid JSON whose types are not as documented: what can be read is read."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        raise UpstreamError("The provider's answer is not a JSON object.", code="upstream_protocol") from None
    found = kind()
    for field in msgspec.structs.fields(kind):
        if field.encode_name in fields:
            try:
                setattr(found, field.name, msgspec.json.decode(fields[field.encode_name], type=field.type))
            except (msgspec.DecodeError, RecursionError):
                continue
    return found


def _in_band(raw: msgspec.Raw) -> UpstreamError:
    """An error inside an answer whose status said 200."""
    try:
        said = _error.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        said = _Error()
    what = said.code if isinstance(said.code, str) else said.type if isinstance(said.type, str) else ""
    if what in ("rate_limit_exceeded", "rate_limit_error", "insufficient_quota"):
        return UpstreamError(
            "The provider is rate limiting the gateway.", code="upstream_rate_limited", status=429, retry_after=1
        )
    return UpstreamError("The provider reported an error inside its answer.", code="upstream_error")
