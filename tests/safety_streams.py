"""Streamed answers with spans planted in them, cut at random places; and what a caller gets of them past `safety`."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.dialects import opaque, openai, sse
from gateway.errors import Denied
from gateway.exchange import Caller, Exchange, Trace
from policies.safety import Safety

Key = tuple[Any, ...]

HELD = 4096  # characters that a text of `stream` waits for what goes on with it …
FAR = 3800  # … and the most of other texts that it goes on behind; names count too
LETTERS = string.ascii_letters + string.digits
FILLER = [
    "the", "a", "quick", "fox,", "jumps", "over", "it.", "und", "Größe", "naïve", "façade", "señor", "日本語の文",
    "中文没有空格", "emoji😀", "👩‍👩‍👧", "x=1", "(yes)", "he", "said",
    '"no"', "c:\\temp\\new", "line\nbreak", "tab\there",
    "`code`", "<b>", "{brace}", "[list]", "3.5", "42", "1,000", "2024-05-06", "q?", "e.g.", "i.e.", "a/b",
]  # fmt: skip


def planted(rng: random.Random) -> tuple[str, str]:
    """(what is unsafe, what stands in its place).  Made here, so that no scanner of repositories finds it in a file."""
    word = lambda size, letters=LETTERS: "".join(rng.choice(letters) for _ in range(size))  # noqa: E731
    upper, hexa = string.ascii_uppercase + "234567", "0123456789abcdef"
    made = {
        "aws_access_key": "AK" + "IA" + word(16, upper),
        "github_token": "gh" + "p_" + word(36),
        "openai_key": "sk-" + "proj-" + word(rng.randint(24, 120)),
        "digitalocean_token": "dop" + "_v1_" + word(64, hexa),
        "slack_token": "xo" + "xb-" + word(30),
        "private_key": "-----BEGIN RSA PRIV"
        + f"ATE KEY-----\n{word(rng.randint(40, 900))}\n-----END RSA PRIV"
        + "ATE KEY-----",
        "email": f"{word(6)}.{word(4)}@{word(8).lower()}.example.com",
        "card": rng.choice(["4111 1111 1111 1111", "5500000000000004", "3782-822463-10005", "4012 8888 8888 1881"]),
        "iban": rng.choice(["DE89 3704 0044 0532 0130 00", "GB29 NWBK 6016 1331 9268 19", "NL91ABNA0417164300"]),
        "us_ssn": f"{rng.randint(100, 600)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}",
        "phone": f"+49 30 {rng.randint(100000, 999999)}",
        "ip": f"8.8.{rng.randint(0, 255)}.{rng.randint(0, 255)}",
        "forbidden": rng.choice(
            ["Project  Zephyr", "project zephyr", "PROJECT\nZEPHYR", "Ölpreisabsprache", "内部机密"]
        ),
    }
    label = rng.choice(list(made))
    return made[label], f"[{label}]"


RULES: list[dict[str, Any]] = [
    {"use": "secrets"},
    {"use": "personal_data"},
    {"use": "words", "topics": {"forbidden": ["project zephyr", "Ölpreisabsprache", "内部机密"]}},
]


def safety(action: str, **more: Any) -> Safety:
    policy = Safety(
        Safety.Settings.model_validate({"assessors": [rule | {"action": action} for rule in RULES], **more})
    )
    policy.name = "safety"
    return policy


@dataclass
class Lane:
    """One text of an answer: as the provider wrote it, without what is unsafe, and up to the first of that."""

    key: Key
    text: str = ""
    clean: str = ""
    safe: str | None = None  # None: nothing was planted


@dataclass
class Stream:
    wire: bytes
    lanes: list[Lane]
    read: Callable[[bytes], dict[Key, str]]  # each lane's text, as a client of this shape puts it together
    relayed: bool = False  # it is in no dialect …
    whole: bool = False  # … and no stream of events

    @property
    def unsafe(self) -> bool:
        return any(lane.safe is not None for lane in self.lanes)


def lane(rng: random.Random, key: Key, plant: float = 0.25, words: list[str] = FILLER) -> Lane:
    made = Lane(key)
    in_json = key[-1] == "arguments"
    write = (lambda text: json.dumps(text, ensure_ascii=rng.random() < 0.3)[1:-1]) if in_json else str
    if in_json:
        made.text = made.clean = '{"q":"'
    for _ in range(rng.randint(0, 14)):
        if rng.random() < plant:
            text, clean = planted(rng)
            if in_json and not text.isascii():
                continue
            made.text += "is "
            made.clean += "is "
            if made.safe is None:
                made.safe = made.text
            made.text += write(text) + " and"
            made.clean += clean + " and"
        else:
            word = write(rng.choice(words))
            made.text += word
            made.clean += word
        made.text += " "
        made.clean += " "
    if in_json:
        made.text += '"}'
        made.clean += '"}'
    return made


def pieces(rng: random.Random, text: str) -> list[str]:
    """Cut at random: now like tokens, now character by character, now whole."""
    size = rng.choice([1, 3, 8, 40, 1000])
    cut = []
    while text:
        many = rng.randint(1, size)
        cut.append(text[:many])
        text = text[many:]
    return cut


def stream(rng: random.Random, plant: float = 0.25) -> Stream:
    choices = rng.choice([1, 1, 1, 2, 3])
    lanes: list[Lane] = []
    running: list[list[tuple[int, dict[str, Any], str | None]]] = []
    for index in range(choices):
        deltas: list[tuple[int, dict[str, Any], str | None]] = [(index, {"role": "assistant", "content": ""}, None)]
        for name in ("reasoning_content", "content"):
            if rng.random() < (0.3 if name == "reasoning_content" else 0.9):
                one = lane(rng, (index, name), plant)
                lanes.append(one)
                deltas += [(index, {name: piece}, None) for piece in pieces(rng, one.text)]
        calls = []
        for number in range(rng.choice([0, 0, 1, 2])):
            one = lane(rng, (index, number, "arguments"), plant)
            lanes.append(one)
            head = {
                "index": number,
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": "f", "arguments": ""},
            }
            calls.append(
                [(index, {"tool_calls": [head]}, None)]
                + [
                    (index, {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}, None)
                    for piece in pieces(rng, one.text)
                ]
            )
        deltas += shuffled(rng, calls)
        deltas.append((index, {}, "tool_calls" if calls else "stop"))
        running.append(deltas)
    wire = []
    order = shuffled(rng, running)
    if _farthest(order) > FAR:
        return stream(rng, plant)
    for index, delta, finish in order:
        choice = {"index": index, "delta": delta, "finish_reason": finish}
        whole = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "up",
            "choices": [choice],
        }
        spaced = (",", ":") if rng.random() < 0.5 else (", ", ": ")
        wire.append(
            b"data: " + json.dumps(whole, ensure_ascii=rng.random() < 0.5, separators=spaced).encode() + b"\n\n"
        )
    wire.append(b"data: [DONE]\n\n")
    return Stream(b"".join(wire), lanes, texts)


def shuffled(rng: random.Random, runs: list[list[Any]]) -> list[Any]:
    """In turns, at random; each run keeps its order."""
    runs = [list(run) for run in runs if run]
    out = []
    while runs:
        run = rng.choice(runs)
        out.append(run.pop(0))
        if not run:
            runs.remove(run)
    return out


def _farthest(order: list[Any]) -> int:
    """The most characters of others that a text goes on behind."""
    heard, last, most = 0, dict[Key, int](), 0
    for index, delta, _ in order:
        for call in delta.get("tool_calls", [{}]):
            text = call["function"]["arguments"] if call else "".join([delta[name] for name in delta if name != "role"])
            key = (index, call.get("index"), *delta)
            most = max(most, heard - last.get(key, heard))
            heard += len(text)
            last[key] = heard
    return most


def exchange(stream: bool = True) -> Exchange:
    return Exchange(
        id="req_1", endpoint="chat", operation="chat", method="POST", path="/v1/chat/completions", route="", started=0,
        started_at=0, trace=Trace(0, 0, 0, False), caller=Caller("t", "k"), dialect=openai, stream=stream,
        body=b'{"model":"m","messages":[{"role":"user","content":"hi"}]}',
    )  # fmt: skip


async def told(policy: Safety, one: Stream, rng: random.Random) -> tuple[bytes, Denied | None]:
    """What reaches the caller, and the refusal if one ends it."""
    x, out = exchange(not one.whole), b""
    relayed = opaque.OpaqueReader(not one.whole, False)
    reader = relayed if one.relayed else openai.reader(True, True, False)
    receipt = await policy.admit(x)
    try:
        at = 0
        while at < len(one.wire):
            size = rng.choice([1, 30, 400, 5000])
            for chunk in reader.feed(one.wire[at : at + size]):
                kept = await policy.screen(x, chunk)
                out += kept.raw if kept is not None else b""
            assert reader.failure is None
            at += size
        for chunk in relayed.close() if one.relayed else ():
            kept = await policy.screen(x, chunk)
            out += kept.raw if kept is not None else b""
        return out, None
    except Denied as error:
        return out, error
    finally:
        if receipt is not None:
            policy.settle(x, receipt)


def texts(out: bytes) -> dict[Key, str]:
    """Each lane's text, as a client puts it together."""
    said: dict[Key, str] = {}
    for event in sse.Splitter().feed(out):
        data = sse.data(event)
        if data is None or data == b"[DONE]":
            continue
        for choice in json.loads(data)["choices"]:
            delta = choice["delta"]
            for name in ("reasoning_content", "content"):
                if more := delta.get(name):
                    more = more if isinstance(more, str) else "".join(part["text"] for part in more)
                    said[choice["index"], name] = said.get((choice["index"], name), "") + more
            for call in delta.get("tool_calls", ()):
                key = (choice["index"], call["index"], "arguments")
                said[key] = said.get(key, "") + call["function"]["arguments"]
    return said


def leaked(one: Stream, out: bytes, refused: bool) -> int:
    """Characters of what was planted that reached the caller; asserts that nothing else is missing or changed."""
    said = one.read(out)
    count = 0
    for each in one.lanes:
        got = said.get(each.key, "")
        if refused:
            assert each.text.startswith(got), (each.key, got, each.text)
            count += max(0, len(got) - len(each.safe if each.safe is not None else each.text))
        else:
            assert got == each.clean, (each.key, got, each.clean, each.text)
    return count
