"""POST /v1/chat/completions: what is read of a call, and what is passed on."""

from __future__ import annotations

import json
import re

import msgspec

from gateway.endpoints.chat import ChatCall, texts
from tests.running import config, running
from tests.scripted import plain, scripted

CALL = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


async def test_fields_nobody_here_knows_reach_the_provider_byte_for_byte() -> None:
    raw = (
        b'{"model":"m","messages":[{"role":"user","content":"hi","x":1.50}],"new":{"a":[1e2,"\\u00e9"]},"max_tokens":5}'
    )
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        response = await gateway.client.post("/v1/chat/completions", content=raw)
        assert response.status_code == 200
        assert up.asked[0].body == raw.replace(b'"model":"m"', b'"model":"up"')


async def test_every_field_may_be_null_but_the_two_that_are_needed() -> None:
    names = [field.encode_name for field in msgspec.structs.fields(ChatCall)]
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for name in names:
            response = await gateway.client.post("/v1/chat/completions", json=CALL | {name: None})
            assert response.status_code == (400 if name in CALL else 200), name
        assert len(up.asked) == len(names) - len(CALL)


async def test_usage_is_always_asked_for_and_told_to_those_who_asked() -> None:
    wishes: list[dict[str, bool | None] | None] = [None, {}, {"include_usage": False}, {"include_usage": None}]
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for options in (*wishes, {"include_usage": True}):
            response = await gateway.chat(stream=True, stream_options=options)
            assert up.asked[-1].json["stream_options"]["include_usage"] is True
            assert ('"usage":' in response.text) is (options == {"include_usage": True}), options


async def test_the_user_is_noted_in_one_line_and_not_at_any_length() -> None:
    said = "a\r\nb" + "c" * 5000
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for count, name in enumerate(("user", "safety_identifier"), 1):
            await gateway.client.post("/v1/chat/completions", json=CALL | {name: said})
            x = await gateway.finished(count)
            assert up.asked[-1].json[name] == said
            assert re.fullmatch(r"a\?\?bc{107}~[0-9a-f]{16}", x.user)  # a digest tells it from others alike


async def test_content_is_text_parts_or_null() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for content in ("hi", None, [{"type": "text", "text": "hi"}], []):
            call = CALL | {"messages": [{"role": "user", "content": content}]}
            assert (await gateway.client.post("/v1/chat/completions", json=call)).status_code == 200, content
        assert len(up.asked) == 4


def test_all_that_is_written_is_counted_and_nothing_breaks_the_count() -> None:
    parts = [{"type": "text", "text": "two"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    called = [{"id": "four", "function": {"name": "five", "arguments": "six"}}]
    messages = [
        {"role": "user", "content": "one"},
        {"role": "user", "content": parts},
        {"role": "assistant", "tool_calls": called},
    ]
    call = msgspec.json.decode(
        json.dumps({"model": "m", "messages": messages, "tools": [{"a": "seven"}]}), type=ChatCall
    )
    found = texts(call)
    for text in ("one", "two", "four", "five", "six", '{"a": "seven"}', "assistant"):
        assert text in found
    huge = b'{"model":"m","messages":[{"role":"user","content":[{"text":"x","n":1e999}]}]}'
    assert texts(msgspec.json.decode(huge, type=ChatCall)) == ["user", '[{"text":"x","n":1e999}]']
