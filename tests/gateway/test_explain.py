"""The story of a request as people read it, and how the command gets it from a running gateway."""

import io
import os
import pty
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn
from starlette.applications import Starlette

from gateway.endpoints.admin import Admin
from gateway.errors import CODES
from gateway.explain import NEXT, CannotExplain, bar, colourful, fetch, waterfall
from gateway.plane import Door
from gateway.store import AttemptRecord, Record
from gateway.store.sqlite import SqliteRecordStore
from tests.scripted import answering_once

KEY = "admin-key-of-the-test"


def attempt(**said: Any) -> dict[str, Any]:
    return {
        "provider": "openai", "model": "gpt-4o-mini", "why": "fallback: upstream_unavailable", "status": 200,
        "error": None, "started_us": 200_000, "sent_us": 300_000, "headers_us": 600_000, "first_byte_us": 700_000,
        "ended_us": 1_000_000, "usage": {"input": 1100, "output": 20}, "cost_usd": "0.000027", "cost_nano": 27_000,
        "price_revision": "config:gpt@2026-01-01", "finish": ["stop"], "response_id": "chatcmpl-1",
        "response_model": "gpt-4o-mini-2024", "provider_request_id": "pr-1", "complete": True, "free": False,
    } | said  # fmt: skip


FAILED = attempt(
    provider="first", why="first", status=503,
    error={"code": "upstream_unavailable", "message": "The provider failed."},
    started_us=0, sent_us=100_000, headers_us=200_000, first_byte_us=None, ended_us=200_000, usage=None, cost_usd="0",
    cost_nano=0, price_revision="", finish=[], response_id="", response_model="", complete=False, free=True,
)  # fmt: skip


def record(**said: Any) -> Record:
    facts = {
        "id": "req_1", "at": "2025-11-21T02:00:00.000000001Z", "team": "checkout", "key": "web", "endpoint": "chat",
        "operation": "chat", "method": "POST", "path": "/v1/chat/completions", "route": "/v1/chat/completions",
        "model": "gpt", "stream": True, "client": "10.0.0.1", "session": "s1", "user": "u1", "feature": "f1",
        "tags": ["a", "b"], "trace_id": "0af7651916cd43dd8448eb211c80319c", "status": 200, "error": None,
        "cache": "miss", "decisions": [{"policy": "access", "hook": "admit", "outcome": "passed", "took_us": 12.345}],
        "attempts": [FAILED, attempt()],
        "timings": {"total_us": 1_000_000, "overhead_us": 812, "first_byte_us": 701_000, "upstream_us": 700_188},
        "tokens": {"input": 1100, "output": 20, "cache_read": 30, "reasoning": 6}, "cost_nano": 27_000,
        "cost_usd": "0.000027", "sent_bytes": 1234,
    }  # fmt: skip
    return msgspec.convert(facts | said, Record)


def test_the_story_is_told_to_the_letter() -> None:
    assert (
        waterfall(record(), 60)
        == """\
req_1  POST /v1/chat/completions  200
2025-11-21T02:00:00.000000001Z  trace 0af7651916cd43dd8448eb211c80319c  cache miss

asked     by team checkout with key web from 10.0.0.1
          chat: model gpt, streamed
          session s1, user u1, feature f1, tags a, b
decided   admit    access           passed                             12.345 us
tried     0 to 1.000000 s   - connect  . wait  : first byte  = stream
       1  first/gpt-4o-mini  (first)  503 upstream_unavailable
          |----.....                                       |
          begun at 0 us, connect 100.000 ms, wait 100.000 ms, stream 0 us
          certainly not billed
          error: The provider failed.
          provider's id pr-1
       2  openai/gpt-4o-mini  (fallback: upstream_unavailable)  200 complete
          |         -----..............:::::===============|
          begun at 200.000 ms, connect 100.000 ms, wait 300.000 ms, first byte 100.000 ms, stream 300.000 ms
          1,100 tokens in, 20 out; $0.000027 by price config:gpt@2026-01-01
          served as gpt-4o-mini-2024, finish stop, response chatcmpl-1, provider's id pr-1
answered  200, complete, 1,234 bytes
tokens    1,100 in (30 from cache), 20 out (6 reasoning)
paid      $0.000027 (27,000 nano-USD)
took      1.000000 s in all, first byte out after 701.000 ms
          until then 700.188 ms waiting for providers, 812 us in the gateway
"""
    )


def test_a_refusal_says_who_refused_and_what_to_do_next() -> None:
    refused = record(
        status=403,
        error={"code": "model_not_allowed", "message": "Team checkout may not use gpt."},
        decisions=[{"policy": "access", "hook": "admit", "outcome": "denied:model_not_allowed", "took_us": 3.1}],
        attempts=[],
    )
    lines = waterfall(refused).splitlines()
    assert "decided   admit    access           denied:model_not_allowed            3.100 us" in lines
    assert "tried     no provider: refused before one was asked" in lines
    assert "error     model_not_allowed: Team checkout may not use gpt." in lines
    assert "next      " + NEXT["model_not_allowed"] in lines


def test_every_stable_code_has_a_next_step() -> None:
    assert set(NEXT) == CODES


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"usage": {"input": 1, "output": 2, "estimated": True}, "cost_nano": None},
         "1 tokens in, 2 out estimated; no price is known"),
        ({"usage": None, "cost_nano": None}, "billed, but no usage is known"),
        ({"usage": None, "cost_nano": 0, "free": True}, "certainly not billed"),
        ({"usage": None, "cost_nano": 0}, "no usage, nothing to pay"),
        ({"error": None, "complete": False}, "openai/gpt-4o-mini  (fallback: upstream_unavailable)  200 incomplete"),
        (dict.fromkeys(["started_us", "sent_us", "headers_us", "first_byte_us", "ended_us"]), "never begun"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_said(said: dict[str, Any], line: str) -> None:
    assert any(told.endswith(line) for told in waterfall(record(attempts=[attempt(**said)])).splitlines())


@pytest.mark.parametrize("width", [0, 60, 100, 173])
def test_bars_share_one_axis_and_fill_the_width(width: int) -> None:
    bars = [line for line in waterfall(record(), width).splitlines() if line.startswith(" " * 10 + "|")]
    assert {len(line) for line in bars} == {max(width, 60)}
    first, second = (line[11:-1] for line in bars)
    assert len(first.rstrip()) == len(second) - len(second.lstrip()), "the second begins where the first ended"
    assert not second.endswith(" "), "the last attempt ended with the request"


def test_a_phase_too_short_for_a_column_is_still_seen_and_one_after_the_end_is_not_drawn_outside() -> None:
    short = msgspec.convert(attempt(started_us=999_998, sent_us=999_999, headers_us=1_000_000), AttemptRecord)
    for total in (0, 1, 500_000, 10**9):
        drawn = bar(short, total, 50)
        assert len(drawn) == 50
        assert drawn.strip()


HOSTILE = "a\x1b[2J\x07\r\nfake: line\x9b31m\u202e"


def test_words_of_a_caller_or_provider_cannot_steer_the_terminal_or_forge_a_line() -> None:
    fault = {"code": HOSTILE, "message": HOSTILE}
    words = {"provider", "model", "why", "price_revision", "response_id", "response_model", "provider_request_id"}
    hostile = record(
        **dict.fromkeys(["id", "team", "key", "endpoint", "method", "path", "model", "client", "session"], HOSTILE),
        **dict.fromkeys(["user", "feature", "cache", "trace_id"], HOSTILE), tags=[HOSTILE], error=fault,
        decisions=[{"policy": HOSTILE, "hook": HOSTILE, "outcome": HOSTILE, "took_us": 1}],
        attempts=[attempt(**dict.fromkeys(words, HOSTILE), error=fault, finish=[HOSTILE])],
        content={"input": HOSTILE, "output": HOSTILE},
    )  # fmt: skip
    told = waterfall(hostile)
    assert told.count("\\x1b[2J\\x07\\x0d\\x0afake: line\\x9b31m\\u202e") >= 24
    assert all(character == "\n" or character.isprintable() for character in told)
    assert not any(line.startswith("fake") for line in told.splitlines())


def test_colours_are_added_only_when_asked_for_and_change_nothing_else() -> None:
    plain, coloured = waterfall(record()), waterfall(record(), colour=True)
    assert "\x1b" not in plain
    assert "\x1b[31m503 upstream_unavailable\x1b[0m" in coloured
    stripped = coloured
    for code in ("0", "1", "2", "31", "32"):
        stripped = stripped.replace(f"\x1b[{code}m", "")
    assert [line.rstrip() for line in stripped.splitlines()] == plain.splitlines()


def test_only_a_terminal_gets_colours_and_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert not colourful(io.StringIO())
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "w") as terminal:
        assert colourful(terminal)
        monkeypatch.setenv("NO_COLOR", "")
        assert colourful(terminal), "an empty NO_COLOR means nothing"
        monkeypatch.setenv("NO_COLOR", "1")
        assert not colourful(terminal)
        monkeypatch.delenv("NO_COLOR")
        monkeypatch.setenv("TERM", "dumb")
        assert not colourful(terminal)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = SqliteRecordStore(tmp_path_factory.mktemp("explain") / "records.db")
    store.write([record(), record(id="req_/../?#")])
    app = Starlette(routes=Door(KEY).routes(Admin(store).operations()))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    running = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    running.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    running.join()
    store._close()


def test_the_record_is_fetched_from_a_running_gateway(gateway: str) -> None:
    assert fetch(gateway + "/", KEY, "req_1") == record()


def test_an_id_cannot_reach_another_path(gateway: str) -> None:
    with pytest.raises(CannotExplain, match="no record"):
        fetch(gateway, KEY, "../openapi.json")


@pytest.mark.parametrize(
    ("url", "key", "id", "says"),
    [
        ("", KEY, "req_2", "no record of req_2"),
        ("", "wrong", "req_1", "does not take this admin key"),
        ("http://127.0.0.1:1", KEY, "req_1", "is the gateway running there"),
        ("nonsense", KEY, "req_1", "is the gateway running there"),
        ("http://[", KEY, "req_1", "is the gateway running there"),
        ("", "k\n", "req_1", "is the gateway running there"),
    ],
)
def test_why_it_cannot_be_had_is_said_without_the_key(gateway: str, url: str, key: str, id: str, says: str) -> None:
    with pytest.raises(CannotExplain, match=says) as raised:
        fetch(url or gateway, key, id)
    assert key not in str(raised.value)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "is it a Tollkeeper"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xff", "is it a Tollkeeper"),
        (b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n", "answered 302"),
        (b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", "answered 503"),
        (b"garbage\r\n\r\n", "is the gateway running there"),
    ],
)
def test_what_is_no_tollkeeper_is_said_and_a_redirect_is_not_followed(answer: bytes, says: str) -> None:
    with answering_once(answer) as url, pytest.raises(CannotExplain, match=says):
        fetch(url, KEY, "req_1")


def test_the_story_can_be_printed_where_only_ascii_is_understood(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(waterfall(record()), encoding="ascii")
