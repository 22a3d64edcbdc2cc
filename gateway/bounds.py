"""The most that one call may cost at one target, known before a byte is sent, and the cap that keeps it there.

Prompt.  A token of a byte-level vocabulary stands for at least one byte of text, and JSON takes no fewer bytes than the
text in it (an escape is longer than what it stands for): so a prompt has no more tokens than its body has bytes.  On
top come what providers add (chat templates: PER_CALL, PER_MESSAGE, PER_TOOL) and, once more, the bytes of whatever a
template may write out anew, with other blanks and escapes: tools, their calls, schemas.  Pictures, sound and files are
no text: their bytes are taken off, and each counts by its kind.

Answer.  Every choice stays within a cap, the caller's own or the one that is sent for it.  Reasoning is part of it.

Whatever else a call asks for must be known to cost nothing, by its name.  A field that a provider adds tomorrow may
have a price, or be a cap that overrides ours, so a call that holds an unknown one has no bound; nor has one with tools
that run at the provider.  Such calls are refused, unless the operator says what they cost at most (`max_cost_usd`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from functools import lru_cache
from typing import Any, Final, NamedTuple
from unicodedata import normalize

import msgspec

from gateway import settings
from gateway.body import NOTHING
from gateway.errors import Denied
from gateway.exchange import Exchange
from gateway.prices import NANO, Rate
from gateway.targets import Target

# Tokens that providers add.  Of the templates seen, the longest without tools (gpt-oss) adds about 100, the longest
# preamble for tools (Anthropic's) 530, a message 10 and a tool 12.
PER_CALL: Final = 256
FOR_TOOLS: Final = 1024
PER_MESSAGE: Final = 16
PER_TOOL: Final = 32

# Sound costs 10 tokens a second at OpenAI and 32 at Google, and no less than 1,000 bytes a second (MP3 at its lowest
# rate), which are 1,333 characters of base64.
SOUND_BYTES: Final = 32  # characters of base64 per token
PER_SOUND: Final = 128

COMPLETION: Final = 16  # tokens of /v1/completions where the call sets no cap: the API's own default
LONGEST_NORMALISED: Final = 32_768  # bytes that are normalised to be counted: 3 ms for the worst of texts

# The fields of a call that add nothing to its bill beyond the tokens counted here.
_SAMPLING: Final = frozenset(
    "model stream stream_options temperature top_p n stop seed user logit_bias logprobs frequency_penalty "  # noqa: SIM905
    "presence_penalty max_tokens top_k min_p top_a typical_p tfs_z repetition_penalty repeat_penalty length_penalty "
    "min_tokens ignore_eos stop_token_ids bad_words include_stop_str_in_output skip_special_tokens "
    "spaces_between_special_tokens random_seed dry_multiplier dry_base mirostat mirostat_tau mirostat_eta "
    "guided_json guided_regex guided_choice guided_grammar guided_decoding_backend structured_outputs grammar "
    "json_schema cache_prompt return_token_ids usage".split()
)
_CHAT: Final = _SAMPLING | frozenset(
    "messages max_completion_tokens tools tool_choice parallel_tool_calls functions function_call response_format "  # noqa: SIM905
    "reasoning_effort reasoning include_reasoning reasoning_format verbosity thinking modalities audio metadata store "
    "top_logprobs service_tier safety_identifier prompt_cache_key prompt_cache_retention safe_prompt "
    "chat_template_kwargs".split()
)
_COMPLETIONS: Final = _SAMPLING | {"prompt", "suffix", "best_of", "echo"}
_EMBEDDINGS: Final = frozenset(
    "model input dimensions encoding_format user input_type truncate truncation task normalize normalized "  # noqa: SIM905
    "late_chunking output_dimension output_dtype".split()
)

# Of the fields that are not listed, those that ask for nothing while they are null.  Not so others: llama.cpp takes
# `"n_predict": null` for no cap at all.
_NULLABLE: Final = frozenset({"web_search_options", "prediction", "max_completion_tokens"})

# Units beyond tokens that are billed only where a call asks for them by a field that is not listed above.
_ASKED_FOR: Final = frozenset({"web_searches_kcount", "storage_searches_kcount"})
_SEARCHES: Final = re.compile(r"search|sonar|compound", re.IGNORECASE)  # models that search the web unasked

# Vocabularies that read text in Unicode's form NFKC, in which one character can become 18.
_NORMALISES: Final = re.compile(r"claude|\bt5|e5-|bge|xlm|jina|gte-|minilm|paraphrase", re.IGNORECASE)

_LIST: Final = ord("[")
_HIGH: Final = bytes(range(128, 256))
_TEXT: Final = frozenset({"text", "refusal", "thinking", "redacted_thinking"})
_RUN_BY_CALLER: Final = frozenset({"function", "custom"})


class Bound(NamedTuple):
    """What one call may come to at one target.  A free model: amount 0, and nothing is counted."""

    amount: int  # nano-USD: the most this call can cost at this target
    input: int  # tokens its prompt may have at most
    output: int  # tokens it may answer at most, all choices together
    cap: int | None  # output tokens per choice that the gateway must send upstream; None: nothing to change


class _Part(msgspec.Struct):
    type: str = ""
    image_url: msgspec.Raw = NOTHING
    input_audio: msgspec.Raw = NOTHING


class _Tool(msgspec.Struct):
    type: str = ""


class _Call(msgspec.Struct):
    """What a call asks for."""

    input: int  # tokens of text
    cap: int = 0  # output tokens per choice
    choices: int = 0  # 0: the call has no output
    send: bool = False  # the cap is not what the caller wrote, or not where the provider reads it
    more: int = 0  # output tokens per choice beyond the cap
    images: int = 0
    audio: bool = False
    tier: str = ""
    open: str = ""  # a prompt's part of unknown length
    trouble: str = ""  # what has no bound: a field …
    why: str = ""  # … and a sentence

    @property
    def output(self) -> int:
        return (self.cap + self.more) * self.choices

    @property
    def pictures(self) -> bool:
        return self.images > 0 or self.open != ""

    def refuse(self, field: str, why: str = "What '{field}' adds to the bill has no bound the gateway knows.") -> None:
        """The first thing that has no bound is the one that is told."""
        if not self.trouble:
            self.trouble, self.why = field, why


_parts = msgspec.json.Decoder(list[_Part | str])
_tools = msgspec.json.Decoder(list[_Tool])
_words = msgspec.json.Decoder(list[str])
_PLAIN: Final = settings.Model.model_construct(targets=[])


def bound(x: Exchange, target: Target, rate: Rate | None, model: settings.Model | None) -> Bound:
    """model: the target's, of config.yaml; None: the call names none.  Raises Denied where there is no bound."""
    return _bound(x, target, rate, model or _PLAIN)[0]


def shrunk(
    x: Exchange, target: Target, rate: Rate | None, model: settings.Model | None, available: int, floor: int = 64
) -> Bound | None:
    """The same call with the largest cap per choice whose amount fits `available`.

    None: not even `floor` tokens fit, or there is no cap to lower.  Raises as `bound` does.
    """
    whole, call = _bound(x, target, rate, model or _PLAIN)
    if whole.amount <= available:
        return whole
    if rate is None or call is None or call.trouble or not call.choices:
        return None
    per_input, per_output, request = rate.dearest(whole.input, call.tier, call.audio, call.pictures)
    if not per_output:
        return None
    left = available * NANO - request - whole.input * per_input
    cap = left // (per_output * call.choices) - call.more
    if cap < floor:
        return None
    call.cap = cap
    return Bound(_cost(rate, call, whole.input), whole.input, call.output, cap)


def _bound(x: Exchange, target: Target, rate: Rate | None, model: settings.Model) -> tuple[Bound, _Call | None]:
    if rate is not None and rate.free:
        return Bound(0, 0, 0, None), None
    read = _READERS.get(x.endpoint)
    if read is None:
        return _relayed(x, target, model), None
    call = read(x, target, model)
    _check(call, target, rate, model)
    most = call.input if model.max_input_tokens is None else min(call.input, model.max_input_tokens)
    if call.open and model.max_input_tokens is not None:
        most = model.max_input_tokens
    most += call.images * (model.image_tokens or 0)
    amount = 0 if rate is None else _cost(rate, call, most)
    if call.trouble:
        amount = max(amount, _stated(call.trouble, call.why, target.alias or x.alias, model))
    return Bound(amount, most, call.output, call.cap if call.send else None), call


def _cost(rate: Rate, call: _Call, input: int) -> int:
    return rate.worst(input, call.output, call.tier, call.audio, call.pictures)


def _check(call: _Call, target: Target, rate: Rate | None, model: settings.Model) -> None:
    """What can lack a bound beside the fields: the price itself, and parts whose tokens nobody configured."""
    if rate is None:
        said = f"No price is known for '{target.model}' at '{target.provider.name}': models.{{alias}}.price sets it."
        call.refuse("model", said)
    elif rate.uncounted and not (_ASKED_FOR.issuperset(rate.uncounted) and not _SEARCHES.search(target.model)):
        call.refuse("model", f"'{target.model}' is also billed by {', '.join(rate.uncounted)}, which no cap bounds.")
    if call.open and model.max_input_tokens is None:
        said = "How many tokens '{field}' has cannot be seen: models.{alias}.max_input_tokens bounds every prompt."
        call.refuse(call.open, said)
    if call.images and model.image_tokens is None:
        call.refuse("messages", "How many tokens a picture has at most is not said: models.{alias}.image_tokens does.")


def _stated(field: str, why: str, alias: str, model: settings.Model) -> int:
    """The operator's own bound, in nano-USD."""
    if model.max_cost_usd is not None:
        return int(model.max_cost_usd * 10**9)
    mend = " Calls that name no model cannot be held against a hard budget."
    if alias:
        mend = f" Else leave it out, or have models.{alias}.max_cost_usd set to the most such a call may cost."
    said = why.replace("{field}", field).replace("{alias}", alias) + mend
    refusal = Denied(said, code="model_unpriced", status=400, param=field or None, should_retry=False)
    refusal.kind = "invalid_request_error"
    raise refusal


def _relayed(x: Exchange, target: Target, model: settings.Model) -> Bound:
    """A path of which the gateway reads nothing.  To read, to delete and to store a file costs nothing by itself."""
    if not x.alias and (x.method in ("GET", "HEAD", "DELETE") or x.upstream_path.partition("?")[0] == "/files"):
        return Bound(0, 0, 0, None)
    why = f"What a call to {x.path} costs has no bound that the gateway knows."
    return Bound(_stated("", why, target.alias or x.alias, model), 0, 0, None)


# ── what is asked, by endpoint ──────────────────────────────────────────────────────────────────────────────────────


def _chat(x: Exchange, target: Target, model: settings.Model) -> _Call:
    asked, fields = x.call, x.fields
    messages = asked.messages
    call = _Call(len(x.body) + PER_CALL + PER_MESSAGE * len(messages), choices=asked.n or 1)
    _known(call, fields, _CHAT)
    for at, message in enumerate(messages):
        content = message.content
        if content is not NOTHING and memoryview(content)[0] == _LIST:
            _read_parts(call, content, f"messages[{at}].content")
        if message.tool_calls is not NOTHING:
            call.input += memoryview(message.tool_calls).nbytes
        if message.audio is not NOTHING and bytes(message.audio) != b"null":
            call.audio, call.open = True, f"messages[{at}].audio"
    if asked.tools:
        _read_tools(call, fields["tools"])
    for name in ("functions", "response_format", "chat_template_kwargs"):
        if name in fields:
            call.input += memoryview(fields[name]).nbytes + FOR_TOOLS
    if "modalities" in fields or "audio" in fields:
        call.audio = True
        _read_modalities(call, fields)
    if target.model and _normalises(target.model):
        call.input += _grown(x.body)
    call.tier = asked.service_tier or ""
    old, new = asked.max_tokens, asked.max_completion_tokens
    own = old if new is None else new if old is None else max(old, new)
    _cap(call, own, own or model.output_tokens, model)
    if target.provider.cap_field == "max_tokens":
        _only_older(call, fields)
    return call


def _completions(x: Exchange, target: Target, model: settings.Model) -> _Call:
    asked, fields, prompt = x.call, x.fields, x.call.prompt
    # Numbers alone are the tokens of one prompt; anything else in the list is a prompt of its own.
    prompts = len(prompt) if isinstance(prompt, list) and not all(type(part) is int for part in prompt) else 1
    call = _Call(len(x.body) + PER_CALL + PER_MESSAGE * prompts)
    call.choices = max(asked.n or 1, asked.best_of or 1) * prompts
    _known(call, fields, _COMPLETIONS)
    if _normalises(target.model):
        call.input += _grown(x.body)
    if bytes(fields.get("echo", b"null")) not in (b"null", b"false"):
        call.more = call.input  # some servers count the echo as answered
    _cap(call, asked.max_tokens, COMPLETION if asked.max_tokens is None else asked.max_tokens, model)
    _only_older(call, fields)
    return call


def _embeddings(x: Exchange, target: Target, model: settings.Model) -> _Call:
    given = x.call.input
    items = len(given) if isinstance(given, list) and not isinstance(given[0] if given else 0, int) else 1
    call = _Call(len(x.body) + PER_CALL + PER_MESSAGE * items)
    _known(call, x.fields, _EMBEDDINGS)
    if _normalises(target.model):
        call.input += _grown(x.body)
    return call


_READERS: Final[Mapping[str, Callable[[Exchange, Target, settings.Model], _Call]]] = {
    "chat": _chat,
    "completions": _completions,
    "embeddings": _embeddings,
}


def _known(call: _Call, fields: Mapping[str, Any], known: Set[str]) -> None:
    if not known >= fields.keys():
        for name, value in fields.items():
            if name not in known and not (name in _NULLABLE and bytes(value) == b"null"):
                call.refuse("".join(c if c.isprintable() else "?" for c in name[:64]))


def _cap(call: _Call, own: int | None, cap: int, model: settings.Model) -> None:
    call.cap = cap if model.max_output_tokens is None else min(cap, model.max_output_tokens)
    call.send = call.cap != own


def _only_older(call: _Call, fields: Mapping[str, Any]) -> None:
    """Even a null `max_completion_tokens` has to go: llama.cpp reads it first, and then as no cap at all."""
    if "max_completion_tokens" in fields:
        call.send = True


def _read_parts(call: _Call, content: msgspec.Raw, place: str) -> None:
    try:
        parts = _parts.decode(content)
    except msgspec.DecodeError:
        call.refuse(place)
        return
    for part in parts:
        if isinstance(part, str):
            continue
        if picture := memoryview(part.image_url).nbytes:
            call.images += 1
            call.input -= picture
        if sound := memoryview(part.input_audio).nbytes:
            call.audio = True
            call.input += PER_SOUND + sound // SOUND_BYTES - sound
        if not picture and not sound and part.type not in _TEXT:
            call.open, call.audio = place, True


def _read_tools(call: _Call, raw: msgspec.Raw) -> None:
    try:
        tools = _tools.decode(raw)
    except msgspec.DecodeError:
        call.refuse("tools")
        return
    call.input += memoryview(raw).nbytes + FOR_TOOLS + PER_TOOL * len(tools)
    for at, tool in enumerate(tools):
        if tool.type not in _RUN_BY_CALLER:
            call.refuse(f"tools[{at}]")


def _read_modalities(call: _Call, fields: Mapping[str, msgspec.Raw]) -> None:
    """Pictures that are made do not stop at a cap."""
    try:
        asked = _words.decode(fields["modalities"]) if bytes(fields.get("modalities", b"null")) != b"null" else []
    except msgspec.DecodeError:
        asked = ["unknown"]
    if not {"text", "audio"}.issuperset(asked):
        call.refuse("modalities")


@lru_cache(maxsize=4096)
def _normalises(model: str) -> bool:
    return _NORMALISES.search(model) is not None


def _grown(body: bytes) -> int:
    """Bytes that a body's text may gain in form NFKC: three can become 33, so an escape's six gain 27 at most."""
    gained = 27 * body.count(b"\\u")
    if body.isascii():
        return gained
    if len(body) > LONGEST_NORMALISED:
        return gained + 10 * (len(body) - len(body.translate(None, _HIGH)))
    return gained + max(0, len(normalize("NFKC", body.decode(errors="replace")).encode()) - len(body))
