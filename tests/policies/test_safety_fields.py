"""No field of a call or an answer is left unread because of what it is called, or where it stands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.policies.test_safety import SECRET, SHOWN, safety
from tests.policies.test_safety_failures import Odd
from tests.running import config, running
from tests.scripted import Asked, plain, say, scripted

WORDS = {"use": "words", "words": ["kestrel"]}
HI = [{"role": "user", "content": "hi"}]


def tool(arguments: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": arguments}]}]


CALLS: list[dict[str, Any]] = [
    {"messages": HI, "metadata": {"status": SECRET}},
    {"messages": HI, "metadata": {"type": f"a {SECRET}"}},
    {"messages": tool({"status": SECRET})},
    {"messages": tool({"deep": [{"role": SECRET}]})},
    {"messages": tool({"signature": SECRET})},
    {"messages": [{"role": "user", "content": "hi", "status": f"is {SECRET}"}]},
    {"messages": HI, "mine": {"call_id": SECRET}},
    {"messages": HI, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"detail": SECRET}}}]},
    {"messages": HI, "metadata": {"id": SECRET}},
    {"metadata": {"model": SECRET}, "messages": HI},
    {"messages": HI, "mine": {"system_fingerprint": SECRET}, "n": 1},
    {"messages": HI, "metadata": {"kestrel": "1"}},
    {"messages": HI, "Kestrel": 1},
    {"messages": HI, SECRET: 1},
    {"messages": [{"role": "user", "content": "hi", "4111 1111 1111 1111": 1}]},
]


async def test_identifiers_and_names_that_a_caller_chooses_are_read() -> None:
    rules = safety({"use": "secrets"}, {"use": "personal_data"}, WORDS)
    async with scripted(plain) as up, running(config(up.url, policies=rules)) as gateway:
        for call in CALLS:
            response = await gateway.client.post("/v1/chat/completions", json={"model": "m", **call})
            assert (response.status_code, len(up.asked)) == (403, 0), (call, response.text)


async def test_what_identifies_and_enumerates_at_its_own_place_is_let_be() -> None:
    """Numbers that look like a card's, in identifiers; and the words of a schema."""
    card = "call_4111111111111111"
    schema = {
        "type": "object",
        "properties": {"email": {"type": "string", "description": "whose"}},
        "required": ["email"],
    }
    call = {
        "messages": [
            *HI,
            {"role": "assistant", "content": None, "tool_calls": [{"id": card, "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": card, "content": "ok"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
        "metadata": {"customer": "c-1", "ticket_number": "7"},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        "max_completion_tokens": 5,
    }  # fmt: skip
    rules = safety({"use": "secrets"}, {"use": "personal_data"}, WORDS)
    async with scripted(plain) as up, running(config(up.url, policies=rules)) as gateway:
        response = await gateway.client.post("/v1/chat/completions", json={"model": "m", **call})
        assert response.status_code == 200, response.text
        assert len(up.asked) == 1


@pytest.mark.parametrize("action", ["block", "redact", "mask"])
async def test_a_relayed_calls_query_is_read(action: str) -> None:
    rules = safety({"use": "secrets", "action": action})
    async with scripted(plain) as up, running(config(up.url, policies=rules)) as gateway:
        for query in (f"q={SECRET}", f"q=%41KIA{SECRET[4:]}", SECRET, f"a=1&q=my+key+{SECRET}&b=2"):
            for method in ("GET", "POST"):
                json = {} if method == "POST" else None
                response = await gateway.client.request(method, f"/v1/files?{query}", json=json)
                assert (response.status_code, response.json()["error"]["code"]) == (403, "blocked_by_safety"), query
        assert not up.asked
        assert (await gateway.client.get("/v1/files?limit=20&after=file-abc")).status_code == 200


async def test_texts_in_an_answer_of_embeddings_are_read_and_its_numbers_stay_as_they_were() -> None:
    rows = b'[{"object":"embedding","index":0,"embedding":[4111111111111111,0.50,-1e-3],"note":"%s"},{"index":1,"embedding":"AAAA"}]'
    kept = b"[4111111111111111,0.50,-1e-3]"

    async def script(asked: Asked) -> None:
        note = SECRET.encode() if "secret" in asked.json["input"] else b"fine"
        await asked.wire.whole(200, b'{"object":"list","model":"m","data":' + rows % note + b"}")

    rules = safety({"use": "secrets", "action": "redact"}, {"use": "personal_data", "action": "redact"})
    async with scripted(script) as up, running(config(up.url, policies=rules)) as gateway:
        for word in ("secret", "other"):
            response = await gateway.client.post("/v1/embeddings", json={"model": "m", "input": word})
            assert response.status_code == 200
            assert kept in response.content
            assert SECRET not in response.text
            assert (SHOWN in response.text) == (word == "secret")


async def test_text_between_the_numbers_of_an_embedding_is_read_too() -> None:
    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, json.dumps({"data": [{"index": 0, "embedding": [1, SECRET]}]}).encode())

    async with scripted(script) as up, running(config(up.url, policies=safety({"use": "secrets"}))) as gateway:
        assert (await gateway.client.post("/v1/embeddings", json={"model": "m", "input": "x"})).status_code == 403


async def test_the_other_lines_of_an_event_carry_nothing() -> None:
    pieces = [
        b"event: " + SECRET.encode() + b'\ndata: {"type":"ping"}\n\n',
        b"id: " + SECRET.encode() + b'\ndata: {"text":"a"}\n\n',
        SECRET.encode() + b': x\nevent: message_stop\nretry: 10\ndata: {"type":"message_stop"}\n\n',
        b"event: " + SECRET.encode() + b"\ndata: [DONE]\n\n",
        b"id: " + SECRET.encode() + b"\n\n",
    ]

    async def script(asked: Asked) -> None:
        await say(asked, pieces)

    rules = safety({"use": "secrets", "action": "redact"})
    async with scripted(script) as up, running(config(up.url, policies=rules)) as gateway:
        response = await gateway.client.post("/v1/messages", json={"model": "m", "stream": True})
    assert SECRET not in response.text
    assert "event: message_stop\n" in response.text
    assert response.text.count("data: ") == 4


@pytest.mark.parametrize(
    "said",
    [
        {"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "x", "status": f"a {SECRET}"}}]},
        {"type": "message", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"status": SECRET}}]},
        {"output": [{"type": "function_call", "arguments": "{}", "metadata": {"role": SECRET}}]},
        {"usage": {"prompt_tokens": 1, "note": SECRET}},
        {"mine": {SECRET: 1}},
    ],
)
async def test_identifiers_and_names_that_a_model_chooses_are_read(said: dict[str, Any]) -> None:
    async def script(asked: Asked) -> None:
        if asked.json.get("stream"):
            await say(asked, [b"data: " + json.dumps(said).encode() + b"\n\n"])
        else:
            await asked.wire.whole(200, json.dumps(said).encode())

    async with scripted(script) as up, running(config(up.url, policies=safety({"use": "secrets"}))) as gateway:
        for stream in (False, True):
            response = await gateway.client.post("/v1/anything", json={"model": "m", "stream": stream})
            assert "blocked_by_safety" in response.text
            assert SECRET not in response.text


async def test_a_value_that_is_a_field_s_name_too_is_judged_by_all() -> None:
    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, b'{"bogus": "bogus"}')

    Odd.heard.clear()
    odd = {"use": "tests.policies.test_safety_failures:Odd", "action": "block", "stages": ["output"]}
    rules = safety({"use": "secrets"}, odd)
    async with scripted(script) as up, running(config(up.url, policies=rules)) as gateway:
        assert (await gateway.client.post("/v1/anything", json={"model": "m"})).status_code == 200
    assert Odd.heard == [("output", "bogus")]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_a_field_that_stands_twice_is_refused_whatever_else_is_written_in_escapes(path: str) -> None:
    message = '{"role":"assistant","content":"AKIAQZXW5BTRNKLM2PQ7","content":"ok","x":"\\u003a"}'
    body = '{"choices":[{"index":0,"message":%s,"finish_reason":"stop"}]}' if "chat" in path else '{"output":[%s]}'

    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, (body % message).encode())

    policies = [{"use": "safety", "assessors": [{"use": "secrets", "action": "redact"}]}]
    async with scripted(script) as up, running(config(up.url, policies=policies)) as gateway:
        call = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "input": "hi"}
        response = await gateway.client.post(path, json=call)
    assert response.status_code == 403
    assert "AKIA" not in response.text
