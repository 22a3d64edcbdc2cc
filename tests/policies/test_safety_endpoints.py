"""Safety is the same on every endpoint that carries text; one that has none fails here."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.running import ADMIN, config, running
from tests.scripted import Asked, say, scripted

SECRET = "AK" + "IA" + "QZXW5BTRNKLM2PQ7"
SHOWN = "[aws_access_key]"
ROOT = Path(__file__).parents[2]
USER = {"role": "user", "content": f"my key is {SECRET}"}

# Every data-plane route of app.py: calls that hold a secret; a route that is not here fails the test below.
ASKING: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [{"messages": [USER]}],
    "/v1/completions": [{"prompt": SECRET}, {"prompt": ["a", SECRET]}, {"prompt": "a", "suffix": SECRET}],
    "/v1/embeddings": [{"input": SECRET}, {"input": ["a", SECRET]}],
    "/v1/models": [],  # takes no body and tells names from the configuration
    "/v1/": [  # the relay: whatever a provider has beside these
        ("/v1/responses", {"input": SECRET}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": SECRET}]}]}),
        ("/v1/responses", {"instructions": SECRET, "input": "x"}),
        ("/v1/messages", {"messages": [USER], "max_tokens": 5}),
        ("/v1/messages", {"system": [{"type": "text", "text": SECRET}], "messages": []}),
        ("/v1/images/generations", {"prompt": SECRET}),
        ("/v1/audio/speech", {"input": SECRET}),
        ("/v1/moderations", {"input": [{"type": "text", "text": SECRET}]}),
        ("/v1/anything/of/tomorrow", {"a": {"b": [SECRET]}}),
    ],  # type: ignore[dict-item]
}
OPERATORS = ("/healthz", "/readyz", "/metrics", "/admin")


def safety(action: str, **more: Any) -> list[dict[str, Any]]:
    return [{"use": "safety", "assessors": [{"use": "secrets", "action": action}], **more}]


def routes() -> set[str]:
    """Every path that app.py's table of URLs names, on the data plane."""
    tree = ast.parse((ROOT / "gateway/app.py").read_text(encoding="utf-8"))
    table = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_urls")
    words = {node.value for node in ast.walk(table) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {word.rstrip("/") or word for word in words if word.startswith("/v1")} - {"/v1"} | {"/v1/"}


def test_every_route_of_the_data_plane_is_tried_here() -> None:
    assert routes() == set(ASKING), "an endpoint is new: say here how text is asked and answered by it"


async def echo(asked: Asked) -> None:
    await asked.wire.whole(200, json.dumps({"choices": [], "data": [], "got": 1}).encode())


async def test_an_unsafe_input_is_refused_or_redacted_on_every_endpoint() -> None:
    async with scripted(echo) as up:
        for action in ("block", "redact"):
            async with running(config(up.url, policies=safety(action))) as gateway:
                for route, calls in ASKING.items():
                    for call in calls:
                        path, body = call if isinstance(call, tuple) else (route, call)
                        sent = len(up.asked)
                        response = await gateway.client.post(path, json={"model": "m", **body})
                        case = (action, path, body, response.text)
                        if action == "block":
                            assert response.status_code == 403, case
                            assert response.json()["error"]["code"] == "blocked_by_safety", case
                            assert len(up.asked) == sent, case
                        else:
                            assert response.status_code == 200, case
                            assert SECRET not in up.asked[-1].body.decode(), case
                            assert SHOWN in up.asked[-1].body.decode(), case


def sse(*said: dict[str, Any]) -> list[bytes]:
    return [b"event: %s\ndata: %s\n\n" % (one["type"].encode(), json.dumps(one).encode()) for one in said]


RESPONSES = sse(
    {"type": "response.created", "response": {"id": "resp_1", "output": []}},
    *(
        {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": piece}
        for piece in ("It is ", SECRET[:5], SECRET[5:12], SECRET[12:], " ok")
    ),
    {"type": "response.output_text.done", "item_id": "msg_1", "output_index": 0, "content_index": 0, "text": f"It is {SECRET} ok"},
    {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "output_index": 1, "delta": '{"k":"' + SECRET[:8]},
    {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "output_index": 1, "delta": SECRET[8:] + '"}'},
    {"type": "response.completed", "response": {"id": "resp_1", "output": [{"content": [{"text": f"It is {SECRET} ok"}]}]}},
)  # fmt: skip
MESSAGES = sse(
    {"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "content": []}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}} for piece in ("It is ", SECRET[:9], SECRET[9:], " ok")),
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"k":"' + SECRET[:4]}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": SECRET[4:] + '"}'}},
    {"type": "content_block_stop", "index": 1},
    {"type": "message_stop"},
)  # fmt: skip
COMPLETIONS = [
    *(
        b"data: %s\n\n"
        % json.dumps({"id": "c", "choices": [{"index": 0, "text": piece, "finish_reason": None}]}).encode()
        for piece in ("It is ", SECRET[:9], SECRET[9:], " ok")
    ),
    b'data: {"id":"c","choices":[{"index":0,"text":"","finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
]


@pytest.mark.parametrize(
    ("path", "wire"), [("/v1/responses", RESPONSES), ("/v1/messages", MESSAGES), ("/v1/completions", COMPLETIONS)]
)
async def test_an_unsafe_stream_is_stopped_or_redacted_in_every_shape(path: str, wire: list[bytes]) -> None:
    async def script(asked: Asked) -> None:
        await say(asked, wire)

    async with scripted(script) as up:
        async with running(config(up.url, policies=safety("redact"))) as gateway:
            response = await gateway.client.post(path, json={"model": "m", "stream": True, "input": "x", "prompt": "x"})
            assert response.status_code == 200
            for start in range(len(SECRET) - 5):
                assert SECRET[start : start + 6] not in response.text, response.text
            assert response.text.count("event:") == sum(event.count(b"event:") for event in wire)
            assert SHOWN in response.text
            assert " ok" in response.text
        async with running(config(up.url, policies=safety("block"))) as gateway:
            response = await gateway.client.post(path, json={"model": "m", "stream": True, "input": "x", "prompt": "x"})
            assert SECRET[:5] not in response.text
            assert response.text.count("blocked_by_safety") == 1
            assert response.text.rstrip().endswith("}}")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", json.dumps({"output": [{"content": [{"text": f"é {SECRET}"}]}], "n": 1.50}).encode()),
        ("text/plain; charset=utf-8", f"WEBVTT\n\n{SECRET} said é".encode()),
        ("application/jsonl", b"\n".join([json.dumps({"a": 1}).encode(), json.dumps({"b": SECRET}).encode(), b""])),
    ],
)
async def test_a_relayed_answer_is_judged_whatever_kind_of_text_it_is(kind: str, body: bytes) -> None:
    async def script(asked: Asked) -> None:
        await asked.wire.whole(200, body, kind)

    async with scripted(script) as up:
        async with running(config(up.url, policies=safety("redact"))) as gateway:
            response = await gateway.client.get("/v1/files/file-1/content")
            assert int(response.headers["content-length"]) == len(response.content)
            assert b"1.5" in response.content or b"\n" in response.content
            assert SECRET not in response.text
            assert SHOWN in response.text
        async with running(config(up.url, policies=safety("block"))) as gateway:
            assert (await gateway.client.get("/v1/files/file-1/content")).status_code == 403


async def test_what_cannot_be_read_is_refused_or_told_to_be_unjudged() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}

    async def script(asked: Asked) -> None:
        if asked.path.endswith("/speech"):
            await asked.wire.whole(200, b"\xff\xfb\x90\x00" * 100, "audio/mpeg")
        else:
            await asked.wire.whole(200, b'{"choices":[],"data":[]}')

    calls: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"json": {"model": "m", "messages": [{"role": "user", "content": [picture]}]}}),
        ("/v1/chat/completions", {"json": {"model": "m", "messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]}}),
        ("/v1/completions", {"json": {"model": "m", "prompt": [1, 2, 3]}}),
        ("/v1/embeddings", {"json": {"model": "m", "input": [[1, 2], [3]]}}),
        ("/v1/files", {"files": {"file": ("a.jsonl", SECRET.encode())}, "data": {"purpose": "batch"}}),
        ("/v1/audio/speech", {"json": {"model": "m", "input": "hello"}}),
    ]  # fmt: skip
    async with scripted(script) as up:
        async with running(config(up.url, policies=safety("block"))) as gateway:
            for path, call in calls:
                response = await gateway.client.post(path, **call)
                assert response.status_code == 403, (path, call, response.text)
                assert "cannot read" in response.json()["error"]["message"], path
        async with running(config(up.url, policies=safety("block", unjudged="allow"))) as gateway:
            for path, call in calls:
                response = await gateway.client.post(path, **call)
                assert response.status_code == 200, (path, response.text)
                assert response.headers["x-tollkeeper-safety"] == "not_judged", path
            x = await gateway.finished(len(calls))
            assert "not_judged" in {one.verdict for one in x.assessments}


async def test_the_operators_plane_is_not_asked() -> None:
    async with scripted(echo) as up, running(config(up.url, policies=safety("block"))) as gateway:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await gateway.client.get(path)).status_code == 200
        headers = {"authorization": f"Bearer {ADMIN}"}
        assert (await gateway.client.get("/admin/v1/exchanges", headers=headers)).status_code == 200
