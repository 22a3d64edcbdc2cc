"""What is passed on untouched is still read for its usage."""

from __future__ import annotations

import json

import pytest

from gateway.dialects import opaque
from gateway.exchange import Usage

USAGE = {"input_tokens": 9, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 3}}


def read(kind: str, body: bytes, size: int) -> tuple[bytes, Usage | None, opaque.OpaqueReader]:
    reader = opaque.reader({b"content-type": kind.encode()})
    chunks = [chunk for i in range(0, len(body), size) for chunk in reader.feed(body[i : i + size])] + reader.close()
    assert chunks[-1].last
    assert reader.failure is None
    return b"".join(chunk.raw for chunk in chunks), chunks[-1].usage, reader


@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_a_json_answer_passes_byte_for_byte_and_tells_its_usage(size: int) -> None:
    body = json.dumps({"id": "resp_1", "model": "up", "usage": USAGE, "output": ["é"]}).encode()
    out, usage, reader = read("application/json", body, size)
    assert out == body
    assert usage == Usage(9, 4, cache_read=3)
    assert reader.answer.id == "resp_1"


@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_a_responses_stream_passes_byte_for_byte_and_tells_its_usage(size: int) -> None:
    done = json.dumps({"type": "response.completed", "response": {"id": "resp_1", "usage": USAGE}})
    body = (
        b'event: response.created\ndata: {"type":"response.created"}\n\n'
        + f"event: response.completed\ndata: {done}\n\n".encode()
    )
    out, usage, _ = read("text/event-stream", body, size)
    assert out == body
    assert usage == Usage(9, 4, cache_read=3)


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json", "text/event-stream", ""])
def test_anything_else_passes_too(kind: str) -> None:
    body = bytes(range(256)) * 20
    out, usage, _ = read(kind, body, 100)
    assert out == body
    assert usage is None


def test_a_large_answer_is_not_held() -> None:
    body = b'{"usage":{"input_tokens":1,"output_tokens":1},"x":"' + b"y" * 2_000_000 + b'"}'
    out, usage, _ = read("application/json", body, 65536)
    assert out == body
    assert usage is None


def test_garbage_usage_is_refused_by_name() -> None:
    _, usage, reader = read("application/json", b'{"usage":{"input_tokens":-1,"output_tokens":1}}', 10)
    assert usage is None
    assert reader.rejected == "input_tokens"
