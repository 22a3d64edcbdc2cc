"""Answers in which a span is cut in two: by other texts, by ends that are none, by parts of lists; and in other shapes.

A reader is written for each, which joins what a client of that shape joins.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from gateway.dialects import sse
from tests import safety_streams as streams
from tests.safety_streams import Key, Lane, Stream, pieces, texts

# Pieces of lists and of shapes that nobody knows are judged by themselves too: half a date may be a telephone number.
WORDS = [word for word in streams.FILLER if not any(map(str.isdigit, word))]
FAR = 200  # characters of other texts that a text goes on behind at most; `safety` waits for 256


def lane(rng: random.Random, key: Key) -> Lane:
    return streams.lane(rng, key, words=WORDS)


def turned(rng: random.Random) -> Stream:
    """One choice that goes to and fro between its texts, says that it ends, and goes on."""
    keys: list[Key] = [(0, "content"), (0, "reasoning_content"), (0, 0, "arguments")]
    lanes = [lane(rng, key) for key in keys if rng.random() < 0.8]
    wire: list[bytes] = []
    for one, piece in alternating(rng, lanes):
        if rng.random() < 0.1:
            wire.append(chunk({}, rng.choice(["stop", "length", "tool_calls"])))
        if one.key[-1] == "arguments":
            delta: dict[str, Any] = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        elif rng.random() < 0.2:
            at = rng.randint(0, len(piece))
            delta = {one.key[-1]: [{"type": "text", "text": text} for text in (piece[:at], piece[at:])]}
        else:
            delta = {one.key[-1]: piece}
        wire.append(chunk(delta, "stop" if rng.random() < 0.05 else None))
    return Stream(b"".join([*wire, chunk({}, "stop"), b"data: [DONE]\n\n"]), lanes, texts)


def chunk(delta: dict[str, Any], finish: str | None) -> bytes:
    whole = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "up"}
    return frame(whole | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def frame(event: Any, type_: str = "") -> bytes:
    head = f"event: {type_}\n".encode() if type_ else b""
    return head + b"data: " + json.dumps(event).encode() + b"\n\n"


def alternating(rng: random.Random, lanes: list[Lane]) -> Iterator[tuple[Lane, str]]:
    """(lane, piece): at random, but none goes on further than FAR behind its last piece."""
    waiting = [(one, [part for piece in pieces(rng, one.text) for part in _cut(piece, 50)]) for one in lanes]
    behind = dict.fromkeys([one.key for one in lanes], 0)
    while waiting := [(one, left) for one, left in waiting if left]:
        late = [pair for pair in waiting if behind[pair[0].key] + 50 * len(lanes) > FAR]
        one, left = rng.choice(late or waiting)
        for _ in range(rng.choice([1, 1, 2, 4])):
            if not left or any(
                other.key != one.key and behind[other.key] + 100 > FAR for other, rest in waiting if rest
            ):
                break
            piece = left.pop(0)
            for key in behind:
                behind[key] = 0 if key == one.key else behind[key] + len(piece)
            yield one, piece
        else:
            continue
        if left and late:
            piece = left.pop(0)
            for key in behind:
                behind[key] = 0 if key == one.key else behind[key] + len(piece)
            yield one, piece


def _cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


# ── shapes of others ────────────────────────────────────────────────────────────────────────────────────────────────


def candidates(rng: random.Random) -> Stream:
    """Gemini's: a part, or several, of each candidate in an event."""
    lanes = [lane(rng, (at, "text")) for at in range(rng.choice([1, 1, 2]))]
    wire = []
    for one, piece in alternating(rng, lanes):
        parts = [{"text": text} for text in _cut(piece, rng.choice([3, 60]))]
        event = {"candidates": [{"content": {"parts": parts, "role": "model"}, "index": one.key[0]}]}
        more = {"usageMetadata": {"promptTokenCount": 4}, "modelVersion": "gemini-2.5", "responseId": "0f3a4111-1111"}
        wire.append(frame(event | more))
    return Stream(b"".join(wire), lanes, _candidates, relayed=True)


def _candidates(out: bytes) -> dict[Key, str]:
    said: dict[Key, str] = {}
    for event in _events(out):
        for candidate in event["candidates"]:
            for part in candidate["content"]["parts"]:
                key = candidate["index"], "text"
                said[key] = said.get(key, "") + part["text"]
    return said


def blocks(rng: random.Random) -> Stream:
    """Anthropic's: a text that goes on in another block, with a call of a tool between."""
    one = lane(rng, (0, "text"))
    index, wire = 0, [frame({"type": "message_start", "message": {"id": "msg_1", "content": []}}, "message_start")]
    for piece in pieces(rng, one.text):
        if rng.random() < 0.2:
            wire.append(frame({"type": "content_block_stop", "index": index}, "content_block_stop"))
            index += 1
            if rng.random() < 0.5:
                call = {"type": "input_json_delta", "partial_json": '{"a": "so"}'}
                wire.append(
                    frame({"type": "content_block_delta", "index": index, "delta": call}, "content_block_delta")
                )
                index += 1
        delta = {"type": "text_delta", "text": piece}
        wire.append(frame({"type": "content_block_delta", "index": index, "delta": delta}, "content_block_delta"))
    wire.append(frame({"type": "message_stop"}, "message_stop"))
    return Stream(b"".join(wire), [one], _blocks, relayed=True)


def _blocks(out: bytes) -> dict[Key, str]:
    deltas = [event["delta"] for event in _events(out) if event["type"] == "content_block_delta"]
    return {(0, "text"): "".join(delta.get("text", "") for delta in deltas)}


def lines(rng: random.Random) -> Stream:
    """Ollama's: an object with a little of the text in each line; or the same as events."""
    one, stream = lane(rng, (0, "response")), rng.random() < 0.5
    said = [
        {
            "model": "m",
            "created_at": f"2026-01-02T03:04:{at % 60:02}.{at:06}Z",
            "response": piece,
            "done": False,
            "n": str(at),
        }
        for at, piece in enumerate(pieces(rng, one.text))
    ]
    if stream:
        return Stream(b"".join(map(frame, said)), [one], _lines, relayed=True)
    return Stream(b"\n".join(json.dumps(event).encode() for event in said), [one], _lines, relayed=True, whole=True)


def _lines(out: bytes) -> dict[Key, str]:
    said = _events(out) if out.startswith(b"data:") else [json.loads(line) for line in out.splitlines()]
    return {(0, "response"): "".join(event["response"] for event in said)}


def parts(rng: random.Random) -> Stream:
    """A whole answer whose text stands in a list of parts."""
    one = lane(rng, (0, "content"))
    content = [{"type": "text", "text": piece} for piece in pieces(rng, one.text)]
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    whole = json.dumps({"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice]}).encode()
    return Stream(whole, [one], _parts, relayed=True, whole=True)


def _parts(out: bytes) -> dict[Key, str]:
    if not out:
        return {}
    return {(0, "content"): "".join(part["text"] for part in json.loads(out)["choices"][0]["message"]["content"])}


def _events(out: bytes) -> list[Any]:
    found = [sse.data(event) for event in sse.Splitter().feed(out)]
    return [json.loads(data) for data in found if data is not None]


SHAPES: dict[str, Callable[[random.Random], Stream]] = {
    "turned": turned, "candidates": candidates, "blocks": blocks, "lines": lines, "parts": parts,
}  # fmt: skip
