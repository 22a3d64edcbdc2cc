"""OpenAI's wire: calls change only where they must, and errors have their shape."""

from __future__ import annotations

import json

import msgspec
import pytest

from gateway.dialects import Cap, openai
from gateway.errors import BadCall, UpstreamError


def fields(body: bytes) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(body, type=dict[str, msgspec.Raw])


def test_a_call_that_needs_no_change_is_sent_as_it_came() -> None:
    body = b'{ "model" : "m", "x_unknown":1e2 }'
    assert openai.write_call(fields(body), body, "m", "m", False) is body


def test_only_what_must_change_changes() -> None:
    body = b'{"model":"alias","messages":[{"role":"user","content":"\\u00e9 1.0"}],"x":1.10,"stream_options":{"a":1}}'
    sent = openai.write_call(fields(body), body, "real", "alias", True)
    assert sent == (
        b'{"model":"real","messages":[{"role":"user","content":"\\u00e9 1.0"}],"x":1.10,'
        b'"stream_options":{"a":1,"include_usage":true}}'
    )


@pytest.mark.parametrize(
    ("status", "ours", "retryable", "free"),
    [(400, 400, False, True), (401, 502, True, True), (403, 502, True, True), (404, 404, False, True),
     (408, 502, True, False), (409, 409, False, True), (413, 413, False, True), (422, 422, False, True),
     (429, 429, True, True), (500, 502, True, False), (502, 502, True, False), (503, 503, True, True),
     (504, 502, True, False), (529, 503, True, True), (418, 502, False, False)],
)  # fmt: skip
@pytest.mark.parametrize(
    "body", [b'{"error":{"message":"told you","param":"x","code":"context_length_exceeded"}}', b"<html>", b"", b"{"]
)
def test_each_refusal_has_its_status_and_consequence(
    status: int, ours: int, retryable: bool, free: bool, body: bytes
) -> None:
    error = openai.read_error(status, body)
    assert isinstance(error, UpstreamError)
    assert (error.status, error.retryable, error.free) == (ours, retryable, free)
    assert ("told you" in error.message) == (
        ours == status and status in (400, 404, 409, 413, 422) and b"told you" in body
    )
    if status in (401, 403):
        assert "told you" not in error.message


def test_errors_are_in_openais_shape() -> None:
    error = BadCall("no such model", code="model_not_found", status=404, param="model")
    wanted = {
        "message": "no such model",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
        "request_id": "req_1",
    }
    assert json.loads(openai.write_error(error, "req_1")) == {"error": wanted}
    assert openai.write_error_event(error, "req_1") == b"data: " + openai.write_error(error, "req_1") + b"\n\n"
    assert openai.write_summary({"cost_usd": "0.1"}).startswith(b": ")


@pytest.mark.parametrize(
    ("field", "asked", "sent"),
    [
        ("max_tokens", "", {"max_tokens": 64}),
        ("max_completion_tokens", "", {"max_completion_tokens": 64}),
        ("max_tokens", '"max_tokens":null,', {"max_tokens": 64}),
        ("max_completion_tokens", '"max_tokens":null,', {"max_tokens": None, "max_completion_tokens": 64}),
        ("max_tokens", '"max_tokens":900,', {"max_tokens": 64}),
        ("max_completion_tokens", '"max_tokens":900,', {"max_tokens": 64}),  # the caller's own word stays
        ("max_completion_tokens", '"max_completion_tokens":900,', {"max_completion_tokens": 64}),
        ("max_tokens", '"max_completion_tokens":900,', {"max_tokens": 64}),  # the other one might be ignored
        ("max_tokens", '"max_tokens":10,"max_completion_tokens":64,', {"max_tokens": 10}),  # never raised
        (
            "max_completion_tokens",
            '"max_tokens":10,"max_completion_tokens":99,',
            {"max_tokens": 10, "max_completion_tokens": 64},
        ),
        ("max_tokens", '"max_tokens":64,"max_completion_tokens":64,', {"max_tokens": 64}),
        ("max_tokens", '"max_tokens":64,"max_completion_tokens":null,', {"max_tokens": 64}),
    ],
)
def test_a_cap_is_sent_where_the_provider_reads_it(field: str, asked: str, sent: dict[str, int | None]) -> None:
    body = b'{"model":"m",%b"x":1.10}' % asked.encode()
    written = openai.write_call(fields(body), body, "m", "m", False, Cap(field, 64))
    assert json.loads(written) == {"model": "m", "x": 1.1, **sent}
    assert b'"x":1.10' in written


def test_a_cap_that_is_there_already_changes_nothing() -> None:
    body = b'{ "max_tokens":64 , "model":"m" }'
    assert openai.write_call(fields(body), body, "m", "m", False, Cap("max_tokens", 64)) is body
