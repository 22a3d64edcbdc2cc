"""One line for each request, in three formats, that nothing a caller sends can break."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.errors import BadCall, Broken, ClientGone, Denied, UpstreamError
from gateway.exchange import Caller, Trace, Usage
from gateway.settings import Logs
from gateway.telemetry.logs import AccessLog, configure

FORMATS = ("json", "ecs", "text")
NASTY = "a\r\nb\x1b[31mred\x00\x7f\x9b2J\u2028\"quote'\\"


async def written(*exchanges: Any, style: Any = "json") -> list[str]:
    stream = io.BytesIO()
    log = AccessLog(Logs(format=style), stream)
    for x in exchanges:
        log.started(x)
        log.finished(x)
    await log.aclose()
    assert log.dropped == 0
    return stream.getvalue().decode().splitlines(keepends=True)


async def test_a_line_tells_the_whole_request(make: Any) -> None:
    x = make.answered(
        trace=Trace(0xABC, 1, 0x12, True), session="s", user="u", feature="f", client="192.0.2.7", cache="miss"
    )
    x.attempts[0].usage = Usage(120, 35, cache_read=20)
    (line,) = await written(x)
    at = datetime.fromtimestamp((x.started_at + 202_000_000) // 1000 / 1e6, UTC)
    told = json.loads(line)
    assert datetime.fromisoformat(told.pop("timestamp")) == at
    assert told == {
        "severity_text": "INFO", "severity_number": 9, "message": "POST /v1/chat/completions 200",
        "request_id": "req_0192", "team": "checkout", "key": "web", "endpoint": "chat", "method": "POST",
        "path": "/v1/chat/completions", "model": "gpt-4o-mini", "served": "gpt-4o-mini-2024", "provider": "openai",
        "attempts": 1, "status": 200, "code": None, "stream": False, "cache": "miss", "ttft_ms": 201.0,
        "duration_ms": 202.0, "overhead_ms": 2.0, "input_tokens": 120, "output_tokens": 35, "cached_tokens": 20,
        "cost_usd": "0.000039000", "session": "s", "user": "u", "feature": "f", "client": "192.0.2.7",
        "trace_id": f"{0xABC:032x}", "span_id": f"{0x12:016x}", "trace_flags": "01",
    }  # fmt: skip


async def test_elastic_gets_its_own_names_for_the_same_facts(make: Any) -> None:
    (line,) = await written(make.answered(trace=Trace(0xABC, 1, 0x12, True), client="192.0.2.7"), style="ecs")
    told = json.loads(line)
    wanted = {
        "log.level": "info", "trace.id": f"{0xABC:032x}", "span.id": f"{0x12:016x}", "labels.team": "checkout",
        "http.request.id": "req_0192", "http.response.status_code": 200, "event.duration": 202_000_000,
        "gen_ai.usage.input_tokens": 120, "client.address": "192.0.2.7", "service.name": "tollkeeper",
        "event.dataset": "tollkeeper.access", "tollkeeper.cost_usd": "0.000039000", "url.path": "/v1/chat/completions",
    }  # fmt: skip
    assert wanted.items() <= told.items()
    assert {"@timestamp", "ecs.version", "message"} <= set(told)
    assert not [name for name in told if "severity" in name]  # OpenTelemetry's word for log.level
    assert None not in told.values()


async def test_people_get_one_readable_line(make: Any) -> None:
    x = make.bare(status=502, error=UpstreamError("down", code="upstream_unavailable"))
    make.attempt(x, error=x.error)
    make.attempt(x, make.azure, error=x.error)
    answered, failed = await written(make.answered(), x, style="text")
    assert re.fullmatch(
        r"\S+Z INFO    req_0192 checkout/web POST /v1/chat/completions 200, gpt-4o-mini -> openai/gpt-4o-mini-2024, "
        r"202\.0 ms \(overhead 2\.000 ms\), 120\+35 tokens, 0\.000039000 USD\n",
        answered,
    )
    assert " ERROR " in failed
    assert "backup/gpt-4o-mini-eu" in failed
    assert failed.endswith("2 attempts, upstream_unavailable\n")


@pytest.mark.parametrize("style", FORMATS)
async def test_nothing_a_caller_sends_ends_a_line_or_moves_a_terminal(make: Any, style: str) -> None:
    x = make.answered(
        model=NASTY, path=f"/v1/{NASTY}", session=NASTY, user=NASTY, feature=NASTY, client=NASTY,
        caller=Caller(NASTY, NASTY),
    )  # fmt: skip
    stream = io.BytesIO()
    log = AccessLog(Logs.model_validate({"format": style}), stream)
    log.finished(x)
    await log.aclose()
    raw = stream.getvalue()
    assert raw.count(b"\n") == 1
    assert raw.endswith(b"\n")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", raw.decode())
    if style == "json":
        assert json.loads(raw)["model"] == NASTY  # escaped, not lost


@pytest.mark.parametrize("style", FORMATS)
async def test_no_prompt_answer_key_or_quoted_error_is_ever_written(make: Any, style: str) -> None:
    secret = "sentinel"
    exchanges = []
    for error in (None, BadCall(secret), Denied(secret), UpstreamError(secret), Broken(secret), ClientGone(secret)):
        x = make.bare(
            error=error, body=secret.encode(), output=[secret], headers={b"authorization": secret.encode()},
            caller=Caller("checkout", "web", content="full"), upstream_path=f"/x?key={secret}",
        )  # fmt: skip
        make.attempt(x, error=error).answer.text = [secret]
        exchanges.append(x)
    lines = await written(*exchanges, style=style)
    assert len(lines) == len(exchanges)
    assert not [line for line in lines if secret in line or "sk-provider-secret" in line]


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (None, "INFO"),
        (ClientGone("by"), "INFO"),
        (Denied("no"), "WARNING"),
        (UpstreamError("down"), "ERROR"),
        (Broken("defect"), "ERROR"),
    ],
)
async def test_the_level_says_whose_fault_it_is(make: Any, error: Any, level: str) -> None:
    (line,) = await written(make.bare(error=error, status=0 if error else 200))
    assert json.loads(line)["severity_text"] == level


async def test_an_unknown_cost_is_none_and_a_refusal_has_no_first_token(make: Any) -> None:
    unpriced = make.answered()
    unpriced.attempts[0].cost = None
    first, second = await written(unpriced, make.bare(status=403, error=Denied("no")))
    assert json.loads(first)["cost_usd"] is None
    assert json.loads(second)["ttft_ms"] is None
    assert json.loads(second)["provider"] is None


async def test_a_long_name_is_cut(make: Any) -> None:
    (line,) = await written(make.bare(model="m" * 100_000, path="/" + "p" * 100_000))
    assert len(line) < 2000


async def test_a_request_that_cannot_be_told_does_not_take_the_others_along(make: Any) -> None:
    stream = io.BytesIO()
    log = AccessLog(Logs(), stream)
    broken = make.answered(user="\ud800")  # no UTF-8 can hold it
    for x in (make.answered(), broken, make.answered()):
        log.finished(x)
    await log.aclose()
    assert stream.getvalue().count(b"\n") == 2
    assert log.dropped == 1


async def test_lines_appear_within_a_tenth_of_a_second_in_few_writes(make: Any) -> None:
    read, write = os.pipe()
    log = AccessLog(Logs(), os.fdopen(write, "wb", buffering=0))
    began = time.perf_counter()
    for _ in range(50):
        log.finished(make.answered())
    got = os.read(read, 1 << 20)
    assert time.perf_counter() - began < 0.3  # 0.05 s, and what a busy machine adds
    assert got.count(b"\n") == 50
    await log.aclose()
    log._stream.close()
    os.close(read)


async def test_a_stdout_that_nobody_reads_holds_up_no_request_and_is_given_up_at_the_end(
    make: Any, cost_of: Callable[[Callable[[], object], int], float]
) -> None:
    read, write = os.pipe()
    stream = os.fdopen(write, "wb", buffering=0)
    log = AccessLog(Logs(queue=100), stream)
    x = make.answered()
    for _ in range(100):
        log.finished(x)
        time.sleep(0.003)
    cost = cost_of(lambda: log.finished(x), 1000)
    assert cost < 3
    began = time.perf_counter()
    await log.aclose()
    assert time.perf_counter() - began < 2
    assert 0 < log.dropped <= 7100
    drain = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(read, 1 << 16), b"")])
    drain.start()
    log._lines._thread.join(5)
    stream.close()
    drain.join(5)
    os.close(read)


def test_a_finished_request_costs_under_three_microseconds_and_its_line_under_forty(
    make: Any, cost_of: Callable[[Callable[[], object], int], float]
) -> None:
    from gateway.telemetry import logs

    x = make.answered()
    log = AccessLog(Logs(queue=1_000_000), io.BytesIO())
    costs = {"finished": cost_of(lambda: log.finished(x), 1000)}
    log._lines.close(5)
    for style in FORMATS:
        line = logs._teller(style)
        costs[style] = cost_of(lambda line=line: line(x), 1000)  # type: ignore[misc]  # a default binds it
    print({name: f"{cost:.1f} us" for name, cost in costs.items()})
    assert costs["finished"] < 3
    assert max(costs.values()) < 40


@pytest.fixture
def quiet() -> Iterator[None]:
    """Puts the process's logging back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.setLevel(logging.NOTSET)
        logger.disabled = False


def lines(style: str, act: Callable[[], object], secrets: tuple[str, ...] = (), level: str = "info") -> list[str]:
    stream = io.StringIO()
    configure(Logs.model_validate({"format": style, "level": level}), stream, secrets)
    act()
    return stream.getvalue().splitlines(keepends=True)


def fail() -> None:
    try:
        raise ValueError("bad\nthing with tk-secret")
    except ValueError:
        logging.getLogger("gateway").exception("it broke %s", NASTY, extra={"request_id": "req_1"})


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("style", FORMATS)
def test_the_processs_own_words_are_one_line_each_with_the_requests_id_and_no_secret(style: str) -> None:
    (line,) = lines(style, fail, ("tk-secret", ""))
    assert "req_1" in line
    assert "tk-secret" not in line
    assert "[secret]" in line
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", line)
    if style == "json":
        told = json.loads(line)
        assert (told["severity_text"], told["severity_number"], told["logger"]) == ("ERROR", 17, "gateway")
        assert told["error_message"] == "bad\nthing with [secret]"
        assert told["stack"].startswith("Traceback")
    if style == "ecs":
        told = json.loads(line)
        assert (told["log.level"], told["http.request.id"]) == ("error", "req_1")
        assert told["error.stack_trace"].startswith("Traceback")


@pytest.mark.usefixtures("quiet")
def test_libraries_do_not_tell_each_request_again_even_at_debug() -> None:
    def act() -> None:
        for name in ("httpx2", "httpcore2", "httpx", "httpcore.http11", "uvicorn.error", "uvicorn.access", "asyncio"):
            logging.getLogger(name).info("GET https://api.test/?key=secret")
        logging.getLogger("uvicorn.access").warning("access")
        logging.getLogger("uvicorn.error").warning("kept")
        logging.getLogger("gateway").debug("ours")

    told = [json.loads(line)["message"] for line in lines("json", act, level="debug")]
    assert told == ["kept", "ours"]


@pytest.mark.usefixtures("quiet")
def test_the_level_is_the_configured_one() -> None:
    def act() -> None:
        logging.getLogger("gateway").warning("quiet")
        logging.getLogger("uvicorn.error").warning("quiet")
        logging.getLogger("gateway").error("loud")

    assert [json.loads(line)["message"] for line in lines("json", act, level="error")] == ["loud"]


def test_the_access_log_goes_to_stdout_if_nothing_else_is_said() -> None:
    script = (
        "import asyncio; from gateway.settings import Logs; from gateway.telemetry.logs import AccessLog;"
        "log = AccessLog(Logs()); log._lines._write = lambda items: log._stream.write(b'here\\n') and 0;"
        "log._lines.put(None); asyncio.run(log.aclose())"
    )
    assert subprocess.check_output([sys.executable, "-c", script]) == b"here\n"
