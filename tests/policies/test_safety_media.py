"""What nobody here can read is refused; what only looks so is judged, and goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.policies.test_safety_endpoints import safety
from tests.running import config, running
from tests.scripted import Asked, answer, event, events, say, scripted

URL = "data:image/png;base64,iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"source": {"type": "string"}, "file_id": {"type": "string"}}}
USER = [{"role": "user", "content": "hi"}]


async def sent(path: str, call: dict[str, Any], said: Any = None) -> tuple[int, str]:
    async def script(asked: Asked) -> None:
        if isinstance(said, list):
            await say(asked, said)
        else:
            await asked.wire.whole(200, json.dumps(said).encode() if said is not None else answer())

    async with scripted(script) as up, running(config(up.url, policies=safety("redact"))) as gateway:
        more = {"stream": True} if isinstance(said, list) else {}
        response = await gateway.client.post(path, json={"model": "m", **call, **more})
        return response.status_code, response.text


READABLE: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": USER, "metadata": {"source": "web", "file_id": "file-1"}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "data: 1, 2, 3 - what is the mean?"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": ["data: a, b"]}]}),
    ("/v1/chat/completions", {"messages": USER, "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]}),
    ("/v1/messages", {"messages": USER, "tools": [{"name": "f", "input_schema": SCHEMA}]}),
    ("/v1/responses", {"input": "hi", "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]}),
    ("/v1/messages", {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"source": "web"}}]}]}),
    ("/v1/messages", {"messages": [{"role": "assistant", "content": [{"type": "mcp_tool_use", "name": "f", "input": {"image_url": "https://a.example"}}]}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "search_result", "source": "https://a.example", "title": "t", "content": [{"type": "text", "text": "hi"}]}]}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hello"}}]}]}),
    ("/v1/responses", {"input": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": [{"type": "file_citation", "file_id": "file-1"}]}]}]}),
]  # fmt: skip

MEDIA: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.example/a.png"}}]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": URL}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": URL.upper()}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://a.example"}}]}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image", "source": {"type": "base64", "data": "iVBORw0KGgo="}}]}]}]}),
    ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]}),
    ("/v1/responses", {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file", "file_id": "file-1"}]}]}),
    ("/v1/responses", {"input": "hi", "tools": [{"type": "image_generation", "input_image_mask": {"file_id": "file-1"}}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": "data: text/plain;base64,aGVsbG8="}}]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": "data:,my%20card"}}]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "document_url", "document_url": "https://a.example/a.pdf"}]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "data:;x=" + "y" * 300 + ";base64,aGVsbG8="}}]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi", "images": ["aGVsbG8="]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "a", "annotations": [{"type": "file", "file": {"content": [{"type": "image_url", "image_url": {"url": "https://a.example"}}]}}]}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"image": {"format": "png", "source": {"type": "text", "bytes": "aGVsbG8="}}}]}]}),
    ("/v1/elsewhere", {"contents": [{"parts": [{"file_data": {"file_uri": "gs://a"}}]}]}),
    ("/v1/elsewhere", {"contents": [{"parts": [{"inline_data": {"mime_type": "text/plain", "data": "bXkgY2FyZA=="}}]}]}),
    ("/v1/responses", {"input": "hi", "tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-1"]}}]}),
    ("/v1/elsewhere", {"contents": [{"parts": [{"image_url": "https://a.example/a.png"}]}]}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "call"), READABLE)
async def test_calls_that_hold_nothing_but_text_go_on(path: str, call: dict[str, Any]) -> None:
    status, text = await sent(path, call)
    assert status == 200, text


@pytest.mark.parametrize(("path", "call"), MEDIA)
async def test_calls_with_pictures_and_files_do_not(path: str, call: dict[str, Any]) -> None:
    status, text = await sent(path, call)
    assert status == 403, text
    assert "cannot read media" in text


ANSWERS: list[tuple[str, Any]] = [
    ("/v1/chat/completions", json.loads(answer("data: is the field of an event."))),
    ("/v1/chat/completions", events("data: is the field", " of an event")),
    ("/v1/responses", {"output": [{"type": "message", "content": [{"type": "output_text", "text": "a", "annotations": [{"type": "file_citation", "file_id": "file-1", "filename": "a.pdf"}]}]}]}),
    ("/v1/responses", [b"data: " + json.dumps({"type": "response.output_text.annotation.added", "annotation": {"type": "file_citation", "file_id": "file-1"}}).encode() + b"\n\n"]),
    ("/v1/responses", {"output": [{"type": "file_search_call", "results": [{"file_id": "file-1", "text": "hello"}]}]}),
    ("/v1/responses", {"output": [], "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]}),
    ("/v1/messages", {"content": [{"type": "text", "text": "a", "citations": [{"type": "search_result_location", "source": "https://a.example", "cited_text": "a"}]}]}),
    ("/v1/messages", {"content": [{"type": "tool_use", "name": "f", "input": {"source": "web"}}]}),
    ("/v1/vector_stores/vs_1/search", {"object": "vector_store.search_results.page", "data": [{"file_id": "file-1", "content": [{"type": "text", "text": "hi"}]}]}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "said"), ANSWERS)
async def test_answers_that_hold_nothing_but_text_go_on(path: str, said: Any) -> None:
    call = {"messages": USER} if "vector" not in path and "responses" not in path else {"input": "hi"}
    status, text = await sent(path, call, said)
    assert status == 200, text
    assert "cannot" not in text
    if isinstance(said, list):
        assert "error" not in text


@pytest.mark.parametrize(
    "said",
    [
        json.loads(answer(URL)),
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": "", "images": [{"image_url": {"url": URL}}]}, "finish_reason": "stop"}]},
        [event({"content": URL})],
    ],
)  # fmt: skip
async def test_answers_with_pictures_do_not(said: Any) -> None:
    status, text = await sent("/v1/chat/completions", {"messages": USER}, said)
    assert status == 403 or "blocked_by_safety" in text
