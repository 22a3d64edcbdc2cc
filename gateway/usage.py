"""What a provider says it counted, believed only where it is consistent.

Three ways of telling it are understood (OpenAI API reference, Chat and Responses `usage`; Anthropic Messages `usage`):
prompt_tokens/completion_tokens and input_tokens/output_tokens, where cached and audio tokens are *parts* of the whole,
and Anthropic's input_tokens with cache_*_input_tokens, where they come *on top*.  A field that is missing or null is 0.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.exchange import Usage

MOST: Final = 1_000_000_000  # tokens; no call has more, a number beyond is a defect


class BadUsage(ValueError):
    """A usage object that cannot be believed.  `field` is where."""

    def __init__(self, field: str) -> None:
        super().__init__(f"{field}: not a count of tokens that fits the others")
        self.field = field


class WireUsage(msgspec.Struct):
    """A usage object as it came.  Every field accepts anything: what is wrong is refused in `usage_from`, by name."""

    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None
    input_tokens: Any = None
    output_tokens: Any = None
    input_tokens_details: Any = None
    input_token_details: Any = None  # the singular is transcriptions' spelling
    output_tokens_details: Any = None
    cache_creation_input_tokens: Any = None
    cache_read_input_tokens: Any = None
    cache_creation: Any = None
    prompt_cache_hit_tokens: Any = None  # DeepSeek


def read_usage(raw: object) -> Usage | None:
    """The usage in a decoded JSON value; None where it tells nothing.  Raises BadUsage."""
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise BadUsage("usage")
    return usage_from(msgspec.convert(raw, WireUsage))


def merge(old: WireUsage | None, new: WireUsage) -> WireUsage:
    """Two reports of one stream.  Reports are cumulative: of each field the last one that is not null holds."""
    if old is None:
        return new
    for field in WireUsage.__struct_fields__:
        before = getattr(old, field)
        now = getattr(new, field)
        if now is None:
            setattr(new, field, before)
        elif isinstance(now, dict) and isinstance(before, dict):
            setattr(new, field, before | {key: value for key, value in now.items() if value is not None})
    return new


def usage_from(wire: WireUsage) -> Usage | None:
    """Checked tokens; None where no count is given at all.  Raises BadUsage."""
    if wire.prompt_tokens is not None or wire.completion_tokens is not None:
        words = "prompt_tokens", "completion_tokens"
        whole = _count(wire.prompt_tokens, words[0])
        answer = _count(wire.completion_tokens, words[1])
        inner, outer = wire.prompt_tokens_details, wire.completion_tokens_details
    elif wire.input_tokens is not None or wire.output_tokens is not None:
        words = "input_tokens", "output_tokens"
        whole = _count(wire.input_tokens, words[0])
        answer = _count(wire.output_tokens, words[1])
        inner, outer = wire.input_tokens_details, wire.output_tokens_details
        if inner is None:
            inner = wire.input_token_details
    elif wire.total_tokens is not None:  # some embedding servers give nothing else
        return Usage(input=_count(wire.total_tokens, "total_tokens"))
    else:
        return None
    usage = Usage(whole, answer)
    if (
        wire.cache_read_input_tokens is not None
        or wire.cache_creation_input_tokens is not None
        or wire.cache_creation is not None
    ):
        _anthropic(usage, wire, on_top=words[0] == "input_tokens" and inner is None)
    elif wire.prompt_cache_hit_tokens is not None:
        usage.cache_read = _count(wire.prompt_cache_hit_tokens, "prompt_cache_hit_tokens")
    if inner is not None:
        _input_parts(usage, inner, words[0] + "_details")
    if wire.total_tokens is not None:
        # Thinking tokens that a provider leaves out of its output (Gemini, xAI) are still in its total, and billed.
        unplaced = _count(wire.total_tokens, "total_tokens") - usage.input - answer
        if unplaced > 0:
            usage.output += unplaced
            usage.reasoning = unplaced
    if outer is not None:
        _output_parts(usage, outer, words[1] + "_details")
    if usage.cache_read or usage.cache_write or usage.cache_write_1h or usage.audio_input or usage.image_input:
        _check_input(usage, words[0])
    return usage


def _count(value: object, field: str) -> int:
    if value is None:
        return 0
    if type(value) is int and 0 <= value <= MOST:  # type(): True is an int, too
        return value
    raise BadUsage(field)


def _details(value: object, field: str) -> dict[str, Any]:
    if type(value) is dict:
        return value
    raise BadUsage(field)


def _anthropic(usage: Usage, wire: WireUsage, on_top: bool) -> None:
    """cache_*_input_tokens.  Beside prompt_tokens they are parts of it (so gateways rewrite them), else on top."""
    read = _count(wire.cache_read_input_tokens, "cache_read_input_tokens")
    split = {} if wire.cache_creation is None else _details(wire.cache_creation, "cache_creation")
    hour = _count(split.get("ephemeral_1h_input_tokens"), "cache_creation.ephemeral_1h_input_tokens")
    five = _count(split.get("ephemeral_5m_input_tokens"), "cache_creation.ephemeral_5m_input_tokens")
    written = _count(wire.cache_creation_input_tokens, "cache_creation_input_tokens")
    if wire.cache_creation_input_tokens is None:
        written = five + hour
    elif five + hour > written:
        raise BadUsage("cache_creation")
    usage.cache_read = read
    usage.cache_write = written - hour
    usage.cache_write_1h = hour
    if on_top:
        usage.input += read + written


def _input_parts(usage: Usage, raw: object, field: str) -> None:
    parts = _details(raw, field)
    get = parts.get
    cached = get("cached_tokens")
    if cached is not None:
        usage.cache_read = _count(cached, field + ".cached_tokens")
    usage.audio_input = _count(get("audio_tokens"), field + ".audio_tokens")
    usage.image_input = _count(get("image_tokens"), field + ".image_tokens")
    for word in ("cache_write_tokens", "cache_creation_tokens"):  # OpenAI's and OpenRouter's word, LiteLLM's word
        if (written := get(word)) is not None:
            usage.cache_write = max(_count(written, f"{field}.{word}") - usage.cache_write_1h, 0)
    if (split := get("cached_tokens_details")) is not None:
        field += ".cached_tokens_details"
        split = _details(split, field)
        usage.audio_cache_read = _count(split.get("audio_tokens"), field + ".audio_tokens")
        usage.image_cache_read = _count(split.get("image_tokens"), field + ".image_tokens")
        if usage.audio_cache_read > usage.audio_input or usage.image_cache_read > usage.image_input:
            raise BadUsage(field)


def _output_parts(usage: Usage, raw: object, field: str) -> None:
    get = _details(raw, field).get
    reasoning = get("reasoning_tokens")
    if reasoning is not None:
        usage.reasoning = max(_count(reasoning, field + ".reasoning_tokens"), usage.reasoning)
    usage.audio_output = _count(get("audio_tokens"), field + ".audio_tokens")
    usage.image_output = _count(get("image_tokens"), field + ".image_tokens")
    if usage.reasoning + usage.audio_output + usage.image_output > usage.output:
        raise BadUsage(field)


def _check_input(usage: Usage, field: str) -> None:
    """Parts fit the whole; cached audio and images that no field tells are the fewest that make them fit."""
    written = usage.cache_write + usage.cache_write_1h
    if usage.cache_read + written > usage.input or usage.audio_input + usage.image_input > usage.input:
        raise BadUsage(field)
    if usage.audio_cache_read + usage.image_cache_read > usage.cache_read:
        raise BadUsage(field)
    told = usage.audio_cache_read + usage.image_cache_read
    over = usage.cache_read + written + usage.audio_input + usage.image_input - told - usage.input
    if over > 0:
        audio = min(over, usage.audio_input - usage.audio_cache_read, usage.cache_read - told)
        image = min(over - audio, usage.image_input - usage.image_cache_read, usage.cache_read - told - audio)
        if audio + image < over:
            raise BadUsage(field)
        usage.audio_cache_read += audio
        usage.image_cache_read += image
