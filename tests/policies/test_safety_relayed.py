"""Relayed answers are judged whatever their head calls them: as what a client may read them as."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.policies.test_safety import SECRET, SHOWN, safety
from tests.policies.test_safety_lanes import HALF, REDACT, REST, native
from tests.running import config, running
from tests.scripted import DONE, Asked, event, say, scripted


def hidden(text: str) -> bytes:
    """As JSON that does not show it."""
    return json.dumps(text).replace("AKIA", "\\u0041KIA").encode()


def line(text: str) -> bytes:
    return b'{"response":%s}\n' % hidden(text)


HALVES = b"".join(native({"content": f"It is {HALF}"}, {"content": f"{REST} ok"}))


async def relayed(body: bytes, kind: str, policies: Any = REDACT, **headers: str) -> Any:
    async def script(asked: Asked) -> None:
        await asked.wire.head(kind=kind, **headers)
        for at in range(0, len(body), 50_000):
            await asked.wire.chunk(body[at : at + 50_000])
        await asked.wire.chunk(b"")

    async with scripted(script) as up, running(config(up.url, policies=policies)) as gateway:
        return await gateway.client.post("/v1/anything", json={"model": "m", "stream": True})


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (HALVES, "Text/Event-Stream"),
        (HALVES, "text/plain"),
        (HALVES.replace(b"\n", b"\r"), "application/json"),
        (b"event: message\n" + HALVES[:-2], "text/plain"),
        (b"data: " + line(f"It is {SECRET} ok") + b"\n", "text/plain"),
        (line(f"It is {SECRET} ok") + b'{"response":"and s', "application/x-ndjson"),
        (b"\x1e" + line(f"It is {HALF}") + b"\x1e" + line(f"{REST} ok"), "application/json-seq"),
        (line(f"It is {HALF}").strip() + line(f"{REST} ok").strip(), "application/json"),
        (json.dumps({"response": f"It is {SECRET} ok"}, indent=1).encode() * 2, "application/json"),
    ],
)
async def test_what_a_client_puts_together_is_redacted(body: bytes, kind: str) -> None:
    response = await relayed(body, kind)
    assert response.status_code == 200
    assert SHOWN in response.text
    assert "ok" in response.text
    for inner in (HALF[:6], "\\u0041KIA", REST[-6:]):
        assert inner not in response.text


@pytest.mark.parametrize(
    "body",
    [
        b"It is " + hidden(SECRET),
        b'Here:\n{"id":"x"}\n' + line(SECRET),
        line("fine") + b'{"response":' + hidden(f"It is {SECRET} ")[:-1],
        b"data: It is\n\n",
        f"It is {SECRET}".encode("utf-16-le"),
        b"It is \xff",
    ],
)
@pytest.mark.parametrize("unjudged", ["block", "allow"])
async def test_what_cannot_be_taken_out_or_read_is_refused(body: bytes, unjudged: str) -> None:
    policies = safety({"use": "secrets", "action": "redact"}, unjudged=unjudged)
    response = await relayed(body, "text/plain", policies)
    if unjudged == "block":
        assert response.json()["error"]["code"] == "blocked_by_safety"
        assert "cannot read" in response.json()["error"]["message"]
    else:
        assert response.headers["x-tollkeeper-safety"] == "not_judged"


@pytest.mark.parametrize(
    "body", [b"A path: C:\\new\\user\n", b'Here:\n{"a":"\\u00e9"}\n', b"data\n", line("fine") * 3, b"[1]\nend"]
)
async def test_what_is_harmless_stays_as_it_was(body: bytes) -> None:
    assert (await relayed(body, "text/plain")).content == body


@pytest.mark.parametrize("charset", ["utf-16-le", "UTF-16", "latin1"])
async def test_a_text_is_read_by_its_charset(charset: str) -> None:
    response = await relayed(f"It is {SECRET} é".encode(charset), f"text/plain; charset={charset}")
    assert response.content.decode(charset) == f"It is {SHOWN} é"


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "text/event-stream"])
@pytest.mark.parametrize("charset", ["utf-7", "klingon"])
async def test_what_two_clients_read_as_two_texts_is_refused(kind: str, charset: str) -> None:
    body = b'data: {"a":"It is %s"}\n\n' % SECRET.replace("A", "+AEE-").encode()
    response = await relayed(body if "event" in kind else body[6:], f"{kind}; charset={charset}")
    assert "blocked_by_safety" in response.text
    assert "+AEE-" not in response.text


TWICE = [
    '{"choices":[{"index":0,"message":{"role":"assistant","content":"It is SECRET","content":"fine"},"finish_reason":"stop"}]}',
    '{"choices": [{"index": 0, "delta": {"content": "It is SECRET", "content" : "fine"}}]}',
    '{"a\\\\": "SECRET", "a\\\\": ""}',
    '{"x": "\\u0022:", "a": ": SECRET", "a": ""}',
    '{"content": "SECRET", "\\u0063ontent": "\\ud83d"}',
    '{"data": [{"embedding": [0.5], "text": "SECRET", "text": ""}]}',
    '{"data": [{"embedding": [0.5]}], "data": [], "model": "SECRET"}',
]


@pytest.mark.parametrize("text", TWICE)
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream", "text/plain"])
async def test_an_answer_that_says_a_field_twice_is_refused(text: str, kind: str) -> None:
    body = text.replace("SECRET", SECRET).encode()
    if "event" in kind:
        body = b"data: " + body + b"\n\n"
    elif "plain" in kind:
        body = b'{"a":1}\n' + body
    response = await relayed(body, kind)
    assert SECRET not in response.text
    assert "blocked_by_safety" in response.text
    assert "cannot read" in response.text


async def test_a_chat_that_says_a_field_twice_is_refused() -> None:
    async def script(asked: Asked) -> None:
        text = TWICE[bool(asked.json.get("stream"))].replace("SECRET", SECRET).encode()
        if asked.json.get("stream"):
            await say(asked, [b"data: " + text + b"\n\n", event({}, "stop"), DONE])
        else:
            await asked.wire.whole(200, text)

    async with scripted(script) as up, running(config(up.url, policies=REDACT)) as gateway:
        for stream in (True, False):
            response = await gateway.chat(stream=stream)
            assert SECRET not in response.text
            assert "blocked_by_safety" in response.text


async def test_what_only_looks_like_a_field_twice_is_not_refused() -> None:
    text = '{ "a" : ": x", "b": "\\":\\":", "c\\\\": {"a": 1.50}, "d": [{"a": "\\\\"}, {"a": "\\u0022:"}] }'
    for kind in ("application/json", "text/event-stream"):
        body = text.encode() if "json" in kind else b"data: " + text.encode() + b"\n\n"
        response = await relayed(body, kind)
        assert text in response.text


async def test_a_compressed_answer_is_refused() -> None:
    response = await relayed(b"It is fine", "text/plain", content_encoding="x-other")
    assert response.status_code == 403


async def test_a_last_event_that_ends_with_carriage_returns_arrives() -> None:
    response = await relayed(b'data: {"text":"one"}\r\rdata: {"text":"the end"}\r\r', "text/event-stream")
    assert "the end" in response.text


async def test_a_large_event_is_judged_and_arrives() -> None:
    words = "word and " * 130_000
    event = b'data: {"type":"response.completed","response":{"text":"%s%s ok"}}\n\n' % (words.encode(), SECRET.encode())
    response = await relayed(event, "text/event-stream")
    assert response.status_code == 200
    assert words + SHOWN + " ok" in response.text
