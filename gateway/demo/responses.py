"""Answers of /v1/responses, in OpenAI's shapes: one object, or a stream of named events (no [DONE])."""

from __future__ import annotations

from typing import Any

from gateway.demo.asked import Prefixes, images_in, model_of, text_of, whole_of
from gateway.demo.bill import Charge
from gateway.demo.chat import Choice, choose, reasoning_of
from gateway.demo.language import seed_of, tokenize
from gateway.demo.reply import IDENT, STAMP, Refusal, Reply, Step, encode, of_events, of_json


def responses(body: dict[str, Any], prefixes: Prefixes) -> Reply:
    model = model_of(body)
    asked = body.get("input")
    if isinstance(asked, str):
        items: list[Any] = [{"role": "user", "content": asked}]
    elif isinstance(asked, list) and asked and all(isinstance(item, dict) for item in asked):
        items = asked
    else:
        raise Refusal(400, "Missing required parameter: 'input'.", code="missing_required_parameter", param="input")
    limit = whole_of(body, "max_output_tokens", least=16)
    lines = [f"{item.get('role', item.get('type', ''))}: {_said(item)}" for item in items]
    text = "\n".join([str(body.get("instructions") or ""), *lines])
    if body.get("tools"):
        text = encode(body["tools"]).decode() + "\n" + text
    input = 3 + sum(3 + 85 * images_in(item.get("content")) for item in items) + len(tokenize(text))
    cached, steady = prefixes.look(model, text, input)
    seed = seed_of(model, text)
    hidden = reasoning_of(model, seed, limit)
    wish = text_of(items[-1].get("content")) if items[-1].get("role") == "user" else ""
    choice = choose(_as_chat(body), wish, seed, None if limit is None else limit - hidden)
    charge = Charge(model, "responses", input, cached, hidden + choice.output, hidden)
    reply = _stream(body, choice, charge) if body.get("stream") else of_json(_whole(body, choice, charge), charge)
    reply.reusable = steady
    return reply


def _said(item: dict[str, Any]) -> str:
    return text_of(item.get("content")) or str(item.get("output", item.get("arguments", "")))


def _as_chat(body: dict[str, Any]) -> dict[str, Any]:
    """The same wishes as the chat endpoint words them."""
    tools = body.get("tools") or []
    chat: dict[str, Any] = {"tools": [{"function": tool} for tool in tools if tool.get("type") == "function"]}
    wanted = body.get("tool_choice")
    if wanted is not None:
        chat["tool_choice"] = {"function": wanted} if isinstance(wanted, dict) else wanted
    chat["parallel_tool_calls"] = body.get("parallel_tool_calls")
    form = body.get("text")
    shape = form.get("format") if isinstance(form, dict) else None
    if isinstance(shape, dict):
        chat["response_format"] = {"type": shape.get("type"), "json_schema": shape}
    return chat


def _whole(body: dict[str, Any], choice: Choice | None, charge: Charge) -> dict[str, Any]:
    """The response; choice None: it has only begun."""
    cut = choice is not None and choice.finish == "length"
    usage = {
        "input_tokens": charge.input,
        "input_tokens_details": {"cached_tokens": charge.cached},
        "output_tokens": charge.output,
        "output_tokens_details": {"reasoning_tokens": charge.reasoning},
        "total_tokens": charge.input + charge.output,
    }
    return {
        "id": f"resp_{IDENT}",
        "object": "response",
        "created_at": STAMP,
        "status": "in_progress" if choice is None else "incomplete" if cut else "completed",
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "model": charge.model,
        "output": [] if choice is None else _items(choice),
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": body.get("store") is not False,
        "temperature": body.get("temperature", 1.0),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None if choice is None else usage,
        "user": body.get("user"),
    }


def _items(choice: Choice) -> list[dict[str, Any]]:
    status = "incomplete" if choice.finish == "length" else "completed"
    if not choice.calls:
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": "".join(choice.tokens)}
        return [{"id": f"msg_{IDENT}", "type": "message", "status": status, "role": "assistant", "content": [part]}]
    return [
        {
            "id": f"fc_{IDENT}_{index}",
            "type": "function_call",
            "status": status,
            "call_id": call.id,
            "name": call.name,
            "arguments": "".join(call.fragments),
        }
        for index, call in enumerate(choice.calls)
    ]


def _stream(body: dict[str, Any], choice: Choice, charge: Charge) -> Reply:
    steps: list[Step] = []

    def say(kind: str, tokens: int = 0, **fields: Any) -> None:
        event = {"type": f"response.{kind}", "sequence_number": len(steps), **fields}
        steps.append(Step(b"event: response.%b\ndata: %b\n\n" % (kind.encode(), encode(event)), tokens))

    say("created", response=_whole(body, None, charge))
    say("in_progress", response=_whole(body, None, charge))
    for at, item in enumerate(_items(choice)):
        place = {"item_id": item["id"], "output_index": at}
        if item["type"] == "message":
            part = item["content"][0]
            empty = {**part, "text": ""}
            say("output_item.added", output_index=at, item={**item, "status": "in_progress", "content": []})
            say("content_part.added", **place, content_index=0, part=empty)
            for token in choice.tokens:
                say("output_text.delta", 1, **place, content_index=0, delta=token, logprobs=[])
            say("output_text.done", **place, content_index=0, text=part["text"], logprobs=[])
            say("content_part.done", **place, content_index=0, part=part)
        else:
            say("output_item.added", 1, output_index=at, item={**item, "status": "in_progress", "arguments": ""})
            for fragment in choice.calls[at].fragments:
                say("function_call_arguments.delta", 1, **place, delta=fragment)
            say("function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"])
        say("output_item.done", output_index=at, item=item)
    whole = _whole(body, choice, charge)
    say(whole["status"], response=whole)
    return of_events(steps, charge)
