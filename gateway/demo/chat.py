"""Answers of /v1/chat/completions and /v1/completions, in OpenAI's shapes, streamed or not.

Input tokens: 3 for the reply; per message 3, its role and its text; 85 per part that is no text; the tools' JSON.
Output tokens: a stream's content chunks and tool-call fragments are exactly one token each, the role's chunk none.

What a prompt can ask for: a last user message that begins with `say:` is answered with the rest of it; one that
contains `use tools` (with tools given) is answered with tool calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from gateway.demo.asked import Prefixes, images_in, model_of, text_of, whole_of
from gateway.demo.bill import Charge
from gateway.demo.language import compose, fit, seed_of, tokenize
from gateway.demo.reply import IDENT, STAMP, Refusal, Reply, Step, encode, of_events, of_json

MOST_CHOICES: Final = 128


@dataclass(slots=True)
class Call:
    """A tool call: a token of head, then its arguments."""

    id: str
    name: str
    fragments: list[str]


@dataclass(slots=True)
class Choice:
    """One answer: content, or tool calls."""

    tokens: list[str]
    finish: str
    calls: list[Call]

    @property
    def output(self) -> int:
        return len(self.tokens) + sum(1 + len(call.fragments) for call in self.calls)


def reasoning_of(model: str, seed: int, limit: int | None) -> int:
    """Hidden tokens that a reasoning model spends before it speaks."""
    if not model.startswith("sim-reason"):
        return 0
    return min(64 + seed % 449, limit if limit is not None else 512)


def usage_of(charge: Charge) -> dict[str, Any]:
    return {
        "prompt_tokens": charge.input,
        "completion_tokens": charge.output,
        "total_tokens": charge.input + charge.output,
        "prompt_tokens_details": {"cached_tokens": charge.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": charge.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def chat(body: dict[str, Any], prefixes: Prefixes) -> Reply:
    model = model_of(body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise Refusal(
            400, "Missing required parameter: 'messages'.", code="missing_required_parameter", param="messages"
        )
    count = whole_of(body, "n") or 1
    if count > MOST_CHOICES:
        raise Refusal(400, f"Invalid 'n': at most {MOST_CHOICES}.", code="integer_above_max_value", param="n")
    limit = whole_of(body, "max_completion_tokens", "max_tokens")
    tools = body.get("tools") or []
    if not isinstance(tools, list):
        raise Refusal(400, "Invalid type for 'tools': expected an array.", code="invalid_type", param="tools")
    text = "\n".join(f"{m.get('role', '')}: {text_of(m.get('content'))}" for m in messages)
    if tools:
        text = encode(tools).decode() + "\n" + text
    input = 3 + sum(3 + 85 * images_in(m.get("content")) for m in messages) + len(tokenize(text))
    cached, steady = prefixes.look(model, text, input)
    seed = seed_of(model, text)
    hidden = reasoning_of(model, seed, limit)
    room = None if limit is None else limit - hidden
    last = messages[-1]
    wish = text_of(last.get("content")) if last.get("role") == "user" else ""
    choices = [choose(body, wish, seed + index, room) for index in range(count)]
    hidden *= count
    charge = Charge(model, "chat", input, cached, hidden + sum(c.output for c in choices), hidden)
    reply = _chat_stream(body, choices, charge) if body.get("stream") else _chat_whole(choices, charge)
    reply.reusable = steady
    return reply


def choose(body: dict[str, Any], wish: str, seed: int, room: int | None) -> Choice:
    """One choice, of at most `room` tokens."""
    tools = [
        t["function"] for t in body.get("tools") or [] if isinstance(t, dict) and isinstance(t.get("function"), dict)
    ]
    wanted = body.get("tool_choice", "auto")
    forced = wanted == "required" or isinstance(wanted, dict)
    if tools and wanted != "none" and (forced or "use tools" in wish):
        return _tool_calls(body, tools, seed, room)
    shape = body.get("response_format")
    shape = shape if isinstance(shape, dict) else {}
    kind = shape.get("type")
    if kind in ("json_schema", "json_object"):
        schema = (
            (shape.get("json_schema") or {}).get("schema") if kind == "json_schema" else {"properties": {"answer": {}}}
        )
        return _cut(tokenize(encode(fit(schema, seed)).decode()), room)
    if wish.startswith("say:"):
        return _cut(tokenize(_before_stop(wish[4:].lstrip(" "), body.get("stop"))), room)
    tokens, cut = compose(seed, room)
    if body.get("stop"):
        tokens = tokenize(_before_stop("".join(tokens), body["stop"]))
    return Choice(tokens, "length" if cut else "stop", [])


def _before_stop(text: str, stop: Any) -> str:
    for sign in [stop] if isinstance(stop, str) else stop or []:
        text = text.partition(sign)[0] if sign else text
    return text


def _cut(tokens: list[str], room: int | None) -> Choice:
    if room is not None and len(tokens) > room:
        return Choice(tokens[:room], "length", [])
    return Choice(tokens, "stop", [])


def _tool_calls(body: dict[str, Any], tools: list[dict[str, Any]], seed: int, room: int | None) -> Choice:
    wanted = body.get("tool_choice")
    if isinstance(wanted, dict):
        named = wanted.get("function", {}).get("name")
        tools = [tool for tool in tools if tool.get("name") == named]
    elif body.get("parallel_tool_calls") is not False:
        tools = tools[:3] if len(tools) > 1 else tools * 2
    else:
        tools = tools[:1]
    calls, finish = [], "tool_calls"
    for index, tool in enumerate(tools):
        fragments = tokenize(encode(fit(tool.get("parameters"), seed + index)).decode())
        if room is not None and 1 + len(fragments) > room:
            fragments, finish = fragments[: max(0, room - 1)], "length"
        if room is not None:
            if room < 1:
                break
            room -= 1 + len(fragments)
        calls.append(Call(f"call_{seed_of(str(seed), str(index)):020d}", str(tool.get("name", "")), fragments))
    return Choice([], finish, calls)


def _chat_whole(choices: list[Choice], charge: Charge) -> Reply:
    return of_json(
        {
            "id": f"chatcmpl-{IDENT}",
            "object": "chat.completion",
            "created": STAMP,
            "model": charge.model,
            "choices": [_whole(index, choice) for index, choice in enumerate(choices)],
            "usage": usage_of(charge),
            "service_tier": "default",
            "system_fingerprint": "fp_sim",
        },
        charge,
    )


def _whole(index: int, choice: Choice) -> dict[str, Any]:
    content = None if choice.calls else "".join(choice.tokens)
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
    if choice.calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": "".join(c.fragments)}}
            for c in choice.calls
        ]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish}


def _chat_stream(body: dict[str, Any], choices: list[Choice], charge: Charge) -> Reply:
    tells = _tells_usage(body)
    head = (
        f'data: {{"id":"chatcmpl-{IDENT}","object":"chat.completion.chunk","created":{STAMP},"model":"{charge.model}",'
        '"service_tier":"default","system_fingerprint":"fp_sim","choices":['
    ).encode()
    tail = b'],"usage":null}\n\n' if tells else b"]}\n\n"

    def event(index: int, delta: bytes, finish: bytes = b"null", tokens: int = 0) -> Step:
        choice = b'{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}' % (index, delta, finish)
        return Step(head + choice + tail, tokens)

    steps = [event(i, b'{"role":"assistant","content":"","refusal":null}') for i in range(len(choices))]
    pending = [iter(_deltas(choice)) for choice in choices]
    going = dict(enumerate(pending))
    while going:  # the choices take turns
        for index, deltas in list(going.items()):
            delta = next(deltas, None)
            if delta is None:
                del going[index]
                steps.append(event(index, b"{}", encode(choices[index].finish)))
            else:
                steps.append(event(index, delta, tokens=1))
    if tells:
        steps.append(Step(head + b'],"usage":%b}\n\n' % encode(usage_of(charge))))
    steps.append(Step(b"data: [DONE]\n\n"))
    return of_events(steps, charge)


def _deltas(choice: Choice) -> list[bytes]:
    """Each of them one token; parallel tool calls take turns."""
    deltas = [b'{"content":%b}' % encode(token) for token in choice.tokens]
    for index, call in enumerate(choice.calls):
        function = {"name": call.name, "arguments": ""}
        head = {"index": index, "id": call.id, "type": "function", "function": function}
        deltas.append(encode({"tool_calls": [head]}))
    for turn in range(max((len(call.fragments) for call in choice.calls), default=0)):
        for index, call in enumerate(choice.calls):
            if turn < len(call.fragments):
                fragment = {"index": index, "function": {"arguments": call.fragments[turn]}}
                deltas.append(encode({"tool_calls": [fragment]}))
    return deltas


def _tells_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def completions(body: dict[str, Any], prefixes: Prefixes) -> Reply:
    """The older endpoint: `prompt` is a string, a list of strings, or token numbers."""
    model = model_of(body)
    prompt = body.get("prompt", "")
    prompts = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    texts = [p if isinstance(p, str) else " ".join(map(str, p)) for p in prompts]
    count, limit = whole_of(body, "n") or 1, whole_of(body, "max_tokens") or 16
    input = sum(len(tokenize(text)) for text in texts)
    cached, steady = prefixes.look(model, "\n".join(texts), input)
    seed = seed_of(model, *texts)
    hidden = reasoning_of(model, seed, limit)
    choices = [
        choose({}, text, seed + 31 * at + i, limit - hidden) for at, text in enumerate(texts) for i in range(count)
    ]
    hidden *= len(choices)
    charge = Charge(model, "completions", input, cached, hidden + sum(c.output for c in choices), hidden)
    top = {"id": f"cmpl-{IDENT}", "object": "text_completion", "created": STAMP, "model": model}

    def one(index: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"text": text, "index": index, "logprobs": None, "finish_reason": finish}

    if body.get("stream"):
        tells = _tells_usage(body)
        null = {"usage": None} if tells else {}
        steps = []
        for index, choice in enumerate(choices):
            pieces = [(one(index, token, None), 1) for token in choice.tokens] + [(one(index, "", choice.finish), 0)]
            steps += [Step(b"data: %b\n\n" % encode({**top, "choices": [p], **null}), n) for p, n in pieces]
        if tells:
            steps.append(Step(b"data: %b\n\n" % encode({**top, "choices": [], "usage": usage_of(charge)})))
        reply = of_events([*steps, Step(b"data: [DONE]\n\n")], charge)
    else:
        whole = [one(index, "".join(choice.tokens), choice.finish) for index, choice in enumerate(choices)]
        reply = of_json({**top, "choices": whole, "usage": usage_of(charge), "system_fingerprint": "fp_sim"}, charge)
    reply.reusable = steady
    return reply
