"""Bodies nobody should send, over a real socket: a clear refusal, nothing sent on, nothing held up."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.hostile.wire import CALL, Heartbeat, chunked, connected, listen, request, statuses, tell
from tests.running import KEY, Running, config, running
from tests.scripted import Asked, plain, scripted

ROUTES: dict[str, dict[str, Any]] = {
    "chat/completions": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "completions": {"model": "m", "prompt": "hi"},
    "embeddings": {"model": "m", "input": "hi"},
}
MB = 1_048_576


async def said(gateway: Running, route: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    response = await gateway.client.post(
        f"/v1/{route}", content=body, headers={"content-type": "application/json", **headers}
    )
    if response.status_code < 400:
        return response.status_code, {}
    error = response.json()["error"]
    assert {"message", "type", "param", "code", "request_id"} == set(error), error
    assert error["request_id"] == response.headers["x-request-id"]
    assert isinstance(error["message"], str), error
    assert error["type"] == "invalid_request_error", error
    assert len(error["message"]) < 1000, error
    return response.status_code, error


def wrong(spec: Mapping[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in spec.items() for value in values]


INTEGER: list[Any] = ["7", 1.5, [], {}, True, 10**18, -1]
TOKENS: list[Any] = [*INTEGER, 0]
NUMBER: list[Any] = ["1", [], {}, True, 10**9, -(10**9)]
FLAG: list[Any] = ["true", 1, [], {}]
TEXT: list[Any] = [1, [], {}, True]
SHARED: dict[str, list[Any]] = {
    "model": [1, None, [], {}, True, "", "m" * 257],
    "user": TEXT,
}
SAMPLED: dict[str, list[Any]] = {
    "stream": FLAG,
    "stream_options": ["x", 1, [], True],
    "n": [*INTEGER, 0, 129],
    "temperature": NUMBER,
    "top_p": NUMBER,
    "seed": ["7", 1.5, [], {}, True],
    "stop": [1, {}, True, [1], ["x"] * 65],
}
WRONG: dict[str, dict[str, list[Any]]] = {
    "chat/completions": SHARED
    | SAMPLED
    | {
        "messages": [1, None, "x", {}, True, [], [1], [[]], ["x"], [{}], [{"role": 1}], [{"role": None}]],
        "max_tokens": TOKENS,
        "max_completion_tokens": TOKENS,
        "frequency_penalty": NUMBER,
        "presence_penalty": NUMBER,
        "tools": [1, {}, "x", True, [{}] * 1025],
        "reasoning_effort": TEXT,
        "service_tier": TEXT,
        "safety_identifier": TEXT,
    },
    "completions": SHARED
    | SAMPLED
    | {"max_tokens": INTEGER, "best_of": [*INTEGER, 0, 129], "prompt": [1, {}, True, [None], [[["x"]]]]},
    "embeddings": SHARED
    | {
        "input": [1, None, {}, True, [None], [{}], [["x"]], [1.5]],
        "dimensions": [*INTEGER, 0],
        "encoding_format": TEXT,
    },
}


@pytest.mark.parametrize("route", ROUTES)
async def test_a_field_of_the_wrong_type_is_named_and_nothing_is_sent_on(route: str) -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for name, value in wrong(WRONG[route]):
            status, error = await said(gateway, route, json.dumps(ROUTES[route] | {name: value}).encode())
            assert status == 400, (name, value)
            assert error["code"] in ("invalid_type", "invalid_request"), (name, value)
            assert error["param"].split("[")[0].split(".")[0] == name, (value, error)
            assert name in error["message"], (value, error)
        for name in ROUTES[route]:
            if name == "prompt":
                continue
            less = {key: value for key, value in ROUTES[route].items() if key != name}
            status, error = await said(gateway, route, json.dumps(less).encode())
            assert (status, error["param"]) == (400, name)
        assert not up.asked


async def test_inner_fields_of_the_wrong_type_are_named_to_the_place() -> None:
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        wrong_content: list[Any] = [1, 1.5, True, {}, {"text": "x"}]
        for value in wrong_content:
            body: dict[str, Any] = {"model": "m", "messages": [*messages, {"role": "user", "content": value}]}
            status, error = await said(gateway, "chat/completions", json.dumps(body).encode())
            assert (status, error["param"]) == (400, "messages[1].content"), value
        wrong_flags: list[Any] = ["yes", 1, [], {}]
        for value in wrong_flags:
            body = {"model": "m", "messages": messages, "stream": True, "stream_options": {"include_usage": value}}
            status, error = await said(gateway, "chat/completions", json.dumps(body).encode())
            assert (status, error["param"]) == (400, "stream_options.include_usage"), value
        raw = b'{"model":"m","messages":[{"role":"user"}],"stream":true,"stream_options":{"x":1e999}}'
        status, error = await said(gateway, "chat/completions", raw)
        assert (status, error["code"]) == (400, "invalid_type")
        assert not up.asked


async def test_numbers_beyond_all_floats_that_nobody_here_reads_pass_and_break_nothing() -> None:
    async def silent(asked: Asked) -> None:
        """No usage: the gateway must count the tokens itself, so it reads what was written."""
        choice = b'{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}'
        await asked.wire.whole(200, b'{"id":"c","object":"chat.completion","choices":[' + choice + b"]}")

    async with scripted(silent) as up, running(config(up.url)) as gateway:
        for number in (b"1e999", b"1" * 100_000, b"-0", b"1e-400"):
            body = b'{"model":"m","x":%s,"messages":[{"role":"user","content":[{"type":"text","text":"a","n":%s}]}]}'
            status, error = await said(gateway, "chat/completions", body % (number, number))
            assert (status, error) == (200, {}), number[:9]
            assert b'"n":' + number + b"}" in up.asked[-1].body


@pytest.mark.serial
async def test_depth_is_refused_at_once_wherever_it_is() -> None:
    tool = b'{"type":"function","function":{"name":"f","parameters":%s}}'
    places = [
        b'{"model":"m","messages":%s}',
        b'{"model":"m","messages":[{"role":"user","content":%s}]}',
        b'{"model":"m","messages":[{"role":"user","content":"hi"}],"tools":[' + tool + b"]}",
        b'{"model":"m","messages":[{"role":"user","content":"hi"}],"response_format":%s}',
        b'{ "model" : "m", "unknown" : %s }',
    ]
    async with scripted(plain) as up, running(config(up.url)) as gateway, Heartbeat() as beat:
        for place in places:
            for one in (b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"[" * 100_000):
                status, error = await said(gateway, "chat/completions", place % one)
                assert (status, error["code"]) == (400, "invalid_json"), place
        for depth in range(880, 1000, 5):  # near the edge: refused or passed, never broken
            body = places[1] % (b"[" * depth + b"]" * depth)
            assert (await said(gateway, "chat/completions", body))[0] in (200, 400), depth
        assert (await gateway.chat()).status_code == 200
    assert beat.worst < 0.05


@pytest.mark.serial
async def test_counts_over_the_limits_are_refused() -> None:
    message = {"role": "user", "content": "hi"}
    over: dict[str, tuple[str, Any]] = {
        "100,000 messages": ("messages", [message] * 100_000),
        "10,000 tools": ("tools", [{"type": "function"}] * 10_000),
        "10,000 stops": ("stop", ["x"] * 10_000),
        "n": ("n", 10**9),
        "n just over": ("n", 129),
    }
    async with scripted(plain) as up, running(config(up.url)) as gateway, Heartbeat() as beat:
        for what, (name, value) in over.items():
            body = {"model": "m", "messages": [message], name: value}
            status, error = await said(gateway, "chat/completions", json.dumps(body).encode())
            assert (status, error["param"]) == (400, name), what
        assert not up.asked
    assert beat.worst < 0.15


async def test_text_is_passed_byte_for_byte_or_refused() -> None:
    body = b'{"model":"up2","messages":[{"role":"user","content":"%s"}]}'
    said_config = {"models": {"up2": {"targets": [{"provider": "up", "model": "up2"}]}}}
    async with scripted(plain) as up, running(config(up.url, **said_config)) as gateway:
        for text in (
            rb"\u0000",
            b"\x7f",
            rb"\ud83d\ude00",
            "\U0001f600‮".encode(),
            rb"\/",
            b"\xc2\x85",
            rb"\r\nset-cookie: a=b",
        ):
            assert (await said(gateway, "chat/completions", body % text))[0] == 200, text
            assert up.asked[-1].body == body % text
        sent = len(up.asked)
        for text in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", rb"\ud800", rb"\udfff", b"\0", b"\n", rb"\x00"):
            status, error = await said(gateway, "chat/completions", body % text)
            assert (status, error["code"]) == (400, "invalid_json"), text
        status, error = await said(gateway, "chat/completions", b"\xef\xbb\xbf" + body % b"a")
        assert (status, error["code"]) == (400, "invalid_json")
        assert len(up.asked) == sent


async def test_compressed_bodies_are_refused_on_every_route() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for route in (*ROUTES, "responses", "files", "audio/transcriptions"):
            for coding in ("gzip", "br", "zstd", "deflate", "gzip, gzip", "x"):
                kind = "application/json" if route in ROUTES else "application/octet-stream"
                status, error = await said(
                    gateway, route, b"\x1f\x8b" * 9, **{"content-encoding": coding, "content-type": kind}
                )
                assert (status, error["code"]) == (415, "unsupported_encoding"), (route, coding)
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"):
            status, error = await said(gateway, "chat/completions", CALL, **{"content-type": kind})
            assert (status, error["code"]) == (415, "unsupported_media_type"), kind
        assert not up.asked


def resident() -> int:
    """Bytes of memory this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.serial
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/files"])
async def test_bodies_over_the_limit_are_refused_and_not_held(path: str) -> None:
    said_config = {"server": {"body_limit_mb": 1, "upload_limit_mb": 1}}
    kind = "application/octet-stream" if path == "/v1/files" else "application/json"
    async with scripted(plain) as up, running(config(up.url, **said_config)) as gateway:
        head = request(b"", b"content-length: 10000000000", b"content-type: " + kind.encode(), path=path.encode())
        assert statuses(await tell(gateway.url, head)) == [413]
        gc.collect()
        before = resident()
        for key, status in ((KEY, 413), ("wrong", 401)):
            async with connected(gateway.url) as (reader, writer):
                coding = b"transfer-encoding: chunked"
                writer.write(request(b"", coding, b"content-type: " + kind.encode(), path=path.encode(), key=key))
                piece = b"10000\r\n" + b" " * 65_536 + b"\r\n"
                for _ in range(600):
                    writer.write(piece)
                    await writer.drain()
                found = await listen(reader)
            assert found.startswith(b"HTTP/1.1 %d" % status), found[:200]
        assert resident() - before < 4 * MB
        assert all(len(asked.body) <= MB for asked in up.asked)


async def test_a_body_at_the_limit_passes_and_one_byte_more_does_not() -> None:
    start, end = b'{"model":"m","messages":[{"role":"user","content":"', b'"}]}'
    async with scripted(plain) as up, running(config(up.url, server={"body_limit_mb": 1})) as gateway:
        for size, status in ((MB, 200), (MB + 1, 413)):
            body = start + b"a" * (size - len(start) - len(end)) + end
            assert (await said(gateway, "chat/completions", body))[0] == status
            found = await tell(gateway.url, request(chunked(body, 65_000), b"transfer-encoding: chunked"))
            assert statuses(found) == [status]
        assert len(up.asked) == 2


async def test_the_key_is_checked_before_the_body_is_awaited() -> None:
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for path in (b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings", b"/v1/responses", b"/v1/files"):
            began = time.monotonic()
            head = request(b"", b"content-length: 1000", b"content-type: application/json", path=path, key="wrong")
            found = await tell(gateway.url, head, quiet=0.05)
            assert statuses(found) == [401], path
            assert time.monotonic() - began < 1
        assert not up.asked


async def test_half_sent_bodies_leave_nothing_behind() -> None:
    starts = [
        request(CALL[:20], b"content-length: 57"),
        request(chunked(CALL)[:20], b"transfer-encoding: chunked"),
        request(
            b"x" * 70_000, b"content-length: 1000000", b"content-type: application/octet-stream", path=b"/v1/files"
        ),
        request(
            b"--a\r\n", b"content-length: 1000000", b"content-type: multipart/form-data; boundary=a", path=b"/v1/files"
        ),
    ]
    async with scripted(plain) as up, running(config(up.url)) as gateway:

        async def one(start: bytes) -> None:
            async with connected(gateway.url) as (_, writer):
                writer.write(start)
                await writer.drain()
                await asyncio.sleep(0.01)

        await asyncio.gather(*(one(start) for start in starts * 25))
        await gateway.finished(100)
        assert {x.error.code for x in gateway.seen if x.error is not None} == {"client_gone"}
        assert not gateway.app.pipeline.running
        assert (await gateway.chat()).status_code == 200
        assert len(up.asked) == 1


FORM = b"content-type: multipart/form-data; boundary=a"


@pytest.mark.serial
async def test_a_form_laid_out_to_be_slow_holds_nothing_up() -> None:
    junk = b'--a\r\nContent-Disposition: form-data; name="model"\r\n'
    bodies = [
        junk + b'name="model"\r\n' * 4600,
        junk + b"a: b\r\n" * 10_000,
        junk + b"\r\n" * 30_000,
        (junk + b"\r\n") * 1200,
    ]
    async with scripted(plain) as up, running(config(up.url)) as gateway:
        for body in bodies:
            async with Heartbeat() as beat, connected(gateway.url) as (reader, writer):
                writer.write(request(b"", b"content-length: 100000", FORM, path=b"/v1/audio/transcriptions"))
                for at in range(0, len(body), 4096):
                    writer.write(body[at : at + 4096])
                    await writer.drain()
                    await asyncio.sleep(0)
                await listen(reader, whole=0.05)
            assert beat.worst < 0.05
        assert up.url


async def test_no_field_and_no_header_chooses_where_a_call_goes_or_has_anything_fetched() -> None:
    async with scripted(plain) as decoy, scripted(plain) as up, running(config(up.url)) as gateway:
        places = ("api_base", "base_url", "url", "host", "callback", "webhook", "proxy", "custom_host")
        fields: dict[str, Any] = dict.fromkeys(places, decoy.url)
        fields |= {
            "extra_body": fields.copy(),
            "config": {"targets": [fields.copy()]},
            "metadata": {"base_url": decoy.url},
        }
        image = {"type": "image_url", "image_url": {"url": decoy.url + "/cat.png"}}
        headers = {
            "x-portkey-custom-host": decoy.url, "x-portkey-config": json.dumps(fields), "x-base-url": decoy.url,
            "x-forwarded-host": decoy.url, "forwarded": f"host={decoy.url}",
            "x-original-url": "/admin", "x-rewrite-url": "/admin",
            "helicone-target-url": decoy.url, "x-http-method-override": "DELETE",
        }  # fmt: skip
        call = {"model": "m", "messages": [{"role": "user", "content": [image]}], **fields}
        response = await gateway.client.post("/v1/chat/completions", json=call, headers=headers)
        assert response.status_code == 200
        assert not decoy.asked
        assert len(up.asked) == 1
        assert up.asked[0].path == "/v1/chat/completions"
        assert up.asked[0].headers["authorization"] == "Bearer sk-secret-of-the-provider"
        assert up.asked[0].headers["host"] == httpx2.URL(up.url).netloc.decode()
        assert not set(headers) & set(up.asked[0].headers)
