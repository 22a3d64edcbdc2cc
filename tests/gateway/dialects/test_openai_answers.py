"""OpenAI's answers: read correctly however they are cut, changed only where they must be."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dialects import openai_answers as openai
from gateway.exchange import Usage
from tests.scripted import DONE, USAGE, answer, event, events


def read(pieces: list[bytes], wants_usage: bool = False, look: bool = False) -> tuple[bytes, openai.StreamReader]:
    """What the caller gets, and the reader after it."""
    reader = openai.StreamReader(look, wants_usage)
    out = b""
    for piece in pieces:
        out += b"".join(chunk.raw for chunk in reader.feed(piece))
        if reader.failure:
            return out, reader
    out += b"".join(chunk.raw for chunk in reader.close())
    return out, reader


def usage_of(pieces: list[bytes]) -> Usage | None:
    reader = openai.StreamReader(False, False)
    last = [chunk for piece in pieces for chunk in reader.feed(piece) if chunk.last]
    assert len(last) == 1
    return last[0].usage


STREAMS = {
    "plain": b"".join(events("Hel", "lo", " wörld 🌍")),
    "crlf": b"".join(events("a", "b")).replace(b"\n\n", b"\r\n\r\n"),
    "comments": b": ping\n\n" + b": ping\n\n".join(events("a", "b")),
    "multi-line": b"".join(events("a")).replace(b'"choices"', b'\ndata: "choices"'),
    "no space": b"".join(events("a")).replace(b"data: ", b"data:"),
    "named": b"".join(b"event: message\nid: 7\n" + e for e in events("a", "b")),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("wants_usage", [False, True])
def test_cut_at_every_byte_content_and_usage_are_the_same(name: str, wants_usage: bool) -> None:
    stream = STREAMS[name]
    whole, reader = read([stream], wants_usage)
    assert reader.failure is None
    said = "".join(reader.answer.text)
    for cut in range(len(stream) + 1):
        pieces = [stream[:cut], stream[cut:]]
        again, other = read(pieces, wants_usage)
        assert (again, "".join(other.answer.text), other.answer.finish) == (whole, said, ["stop"]), cut
        assert usage_of(pieces) == Usage(5, 2)
    assert read([stream[i : i + 1] for i in range(len(stream))], wants_usage)[0] == whole


def test_ordinary_events_pass_as_they_came() -> None:
    said = events("a", "b", usage=None)
    assert read([b"".join(said)])[0] == b"".join(said)


def test_fields_that_make_clients_stumble_do_not_pass() -> None:
    out, _ = read([b"retry: 3000\n\nid: 5\nevent: message\n" + event({"content": "a"}) + DONE])
    assert out == event({"content": "a"}) + DONE


@pytest.mark.parametrize("wants", [False, True])
@pytest.mark.parametrize("how", ["own chunk", "on the last", "on every one"])
def test_usage_reaches_those_who_asked_once_and_nobody_else(how: str, wants: bool) -> None:
    said = events("a", "b", usage=None)
    if how == "own chunk":
        said.insert(-1, event(None, usage=USAGE))
    elif how == "on the last":
        said[-2] = event({}, "stop", usage=USAGE)
    else:
        said = [
            *(event({"content": t}, usage={**USAGE, "completion_tokens": i}) for i, t in enumerate("ab")),
            said[-2],
            DONE,
        ]
        said[-2] = event({}, "stop", usage=USAGE)
    out, reader = read(said, wants_usage=wants)
    told = [json.loads(e[6:]) for e in out.split(b"\n\n") if e.startswith(b"data: {")]
    with_usage = [e for e in told if e.get("usage")]
    assert usage_of(said) == Usage(5, 2)
    assert "".join(reader.answer.text) == "ab"
    if wants:
        assert [e["choices"] for e in with_usage] == [[]]
        assert told[-1] == with_usage[0]
        assert with_usage[0]["usage"] == USAGE
        assert out.endswith(DONE)
    else:
        assert not with_usage
        assert all(e["choices"] for e in told)


def test_usage_that_is_null_until_the_end_passes_untouched() -> None:
    said = [event({"content": "a"}, usage=None), event({}, "stop", usage=None), event(None, usage=USAGE), DONE]
    out, _ = read(said, wants_usage=True)
    assert out == said[0] + said[1] + msgspec_like(said[2]) + DONE


def msgspec_like(raw: bytes) -> bytes:
    fields = msgspec.json.decode(raw[6:-2], type=dict[str, msgspec.Raw])
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


BROKEN = {
    "end before [DONE]": ([*events("a")[:-1]], "upstream_broke_off"),
    "malformed": ([event({"content": "a"}), b"data: {oops\n\n"], "upstream_protocol"),
    "not an object": ([event({"content": "a"}), b"data: 17\n\n"], "upstream_protocol"),
    "invalid utf-8": ([event({"content": "a"}), b'data: {"id":"\xff"}\n\n'], "upstream_protocol"),
    "error inside": (
        [event({"content": "a"}), b'data: {"error":{"message":"secret sk-1","type":"server_error"}}\n\n'],
        "upstream_error",
    ),
    "limit inside": ([b'data: {"error":{"code":"rate_limit_exceeded"}}\n\n'], "upstream_rate_limited"),
    "nothing at all": ([], "upstream_broke_off"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_is_a_failure_after_what_was_good(name: str) -> None:
    pieces, code = BROKEN[name]
    for cut in (pieces, [b"".join(pieces)], [b"".join(pieces)[i : i + 1] for i in range(len(b"".join(pieces)))]):
        out, reader = read(list(cut))
        assert reader.failure is not None
        assert reader.failure.code == code
        assert "sk-1" not in reader.failure.message
        assert b"[DONE]" not in out
        assert out.count(b"data: ") == sum(
            1 for piece in pieces if b'"content"' in piece or b'"finish_reason": "stop"' in piece
        )


def test_nothing_after_done_is_part_of_the_answer() -> None:
    out, reader = read([*events("a"), event({"content": "late"}), DONE])
    assert out.count(DONE) == 1
    assert reader.answer.text == ["a"]


def test_types_that_are_not_as_documented_are_read_as_far_as_they_go() -> None:
    usage = b'"usage":{"prompt_tokens":1,"completion_tokens":1}'
    odd = b'data: {"id":7,"choices":[{"index":0,"delta":{"content":["x"]}}],' + usage + b"}\n\n"
    assert usage_of([odd, DONE]) == Usage(1, 1)


tool_args = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=6), max_size=6), st.lists(tool_args, max_size=3), st.integers(1, 40), st.data())
def test_text_and_tool_calls_come_through_whole(
    texts: list[str], calls: list[list[str]], size: int, data: st.DataObject
) -> None:
    said = [event({"content": text}) for text in texts]
    fragments = [(i, j, part) for i, call in enumerate(calls) for j, part in enumerate(call)]
    fragments.sort(key=lambda f: (f[1], f[0]))  # interleaved
    for i, j, part in fragments:
        opener: dict[str, Any] = {"id": f"call_{i}", "type": "function"} if j == 0 else {}
        function = {"name": f"f{i}", "arguments": part} if j == 0 else {"arguments": part}
        said.append(event({"tool_calls": [{"index": i, **opener, "function": function}]}))
    said += [event({}, "tool_calls" if calls else "stop"), event(None, usage=USAGE), DONE]
    stream = b"".join(said)
    out, reader = read([stream[i : i + size] for i in range(0, len(stream), size)])
    assert out == b"".join(e for e in said if b'"usage": {' not in e)
    assert reader.answer.tool_calls == len(calls)
    assert reader.answer.finish == ["tool_calls" if calls else "stop"]
    assert usage_of([stream]) == Usage(5, 2)


def test_somebody_who_looks_gets_the_text_event_by_event() -> None:
    reader = openai.StreamReader(True, False)
    chunks = reader.feed(b"".join(events("a", "b")))
    assert [chunk.text for chunk in chunks if chunk.text] == ["a", "b"]


# ── not streamed ────────────────────────────────────────────────────────────────────────────────────────────────────


def whole(body: bytes) -> tuple[Any, openai.WholeReader]:
    reader = openai.WholeReader()
    for i in range(0, len(body), 7):
        assert reader.feed(body[i : i + 7]) == []
    chunks = reader.close()
    return (chunks[0] if chunks else None), reader


def test_a_whole_answer_is_one_chunk_with_its_usage_and_its_bytes() -> None:
    chunk, reader = whole(answer())
    assert chunk.raw == answer()
    assert chunk.last
    assert chunk.usage == usage_of(events("x")) == Usage(5, 2)
    assert reader.answer.finish == ["stop"]
    assert (reader.answer.id, reader.answer.model) == ("chatcmpl-1", "up")


@pytest.mark.parametrize(
    ("usage", "wanted", "rejected"),
    [
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage(0, 0), ""),
        (None, None, ""),
        ({"prompt_tokens": -1, "completion_tokens": 2}, None, "prompt_tokens"),
        ({"prompt_tokens": 1.5, "completion_tokens": 2}, None, "prompt_tokens"),
        ({"prompt_tokens": "12", "completion_tokens": 2}, None, "prompt_tokens"),
        ({"prompt_tokens": 10**18, "completion_tokens": 2}, None, "prompt_tokens"),
        ("junk", None, "usage"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_zero_is_a_value_and_garbage_is_refused(usage: Any, wanted: Usage | None, rejected: str, stream: bool) -> None:
    if stream:
        reader = openai.StreamReader(False, False)
        chunk = reader.feed(b"".join([event({"content": "a"}), event(None, usage=usage), DONE]))[-1]
        assert (chunk.usage, reader.rejected) == (wanted, rejected)
    else:
        chunk, whole_reader = whole(answer(usage=usage))
        assert (chunk.usage, whole_reader.rejected) == (wanted, rejected)


def test_text_is_collected_only_where_usage_is_missing() -> None:
    assert whole(answer("secret"))[1].answer.text == []
    assert whole(answer("said", usage=None))[1].answer.text == ["said"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"<html>", "upstream_protocol"),
        (b"", "upstream_protocol"),
        (answer()[:-5], "upstream_protocol"),
        (b'{"id":"\xff"}', "upstream_protocol"),
        (b"[1,2]", "upstream_protocol"),
        (b'{"object":"x"}', "upstream_protocol"),
        (b'{"error":{"message":"boom","code":"rate_limit_exceeded"}}', "upstream_rate_limited"),
        (b"[" * 100_000, "upstream_protocol"),
    ],
)
def test_a_200_that_is_no_answer_is_an_error(body: bytes, code: str) -> None:
    chunk, reader = whole(body)
    assert chunk is None
    assert reader.failure is not None
    assert reader.failure.code == code


def test_an_answer_without_end_is_refused_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "MAX_ANSWER", 1000)
    reader = openai.WholeReader()
    reader.feed(b"x" * 1001)
    assert reader.failure is not None
    assert reader.failure.code == "upstream_too_large"
