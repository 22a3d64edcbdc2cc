"""What a collector receives: the tree, its attributes, and nothing that slows a request down."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from gateway.errors import Broken, ClientGone, Denied, GatewayError, UpstreamError
from gateway.exchange import Caller, Decision, Exchange, Trace, Usage
from gateway.settings import Traces as Config
from gateway.telemetry.traces import Traces
from tests.otlp import Collector, attributes, plain

SERVER, CLIENT, INTERNAL = Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_INTERNAL
SAMPLED = Trace(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, 0x1122334455667788, True, "vendor=1")


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def config(url: str, **said: Any) -> Config:
    return Config.model_validate({"otlp_endpoint": url, **said})


async def sent(collector: Collector, *exchanges: Exchange, redact: Any = None, **settings: Any) -> list[Span]:
    traces = Traces(config(collector.url, **settings), redact)
    for x in exchanges:
        traces.started(x)
        traces.finished(x)
    await traces.aclose()
    assert traces.dropped == 0
    return collector.spans


async def test_a_unary_answer_is_a_server_span_and_the_client_span_of_its_attempt(
    collector: Collector, make: Any
) -> None:
    x = make.answered(
        trace=SAMPLED,
        call=SimpleNamespace(max_tokens=50, temperature=0.5, n=1, seed=7, stream=True, reasoning_effort="low"),
        session="s-1", user="u-1", feature="search", tags=("a", "b"), client="192.0.2.7", cache="miss",
        decisions=[Decision("access", "admit", "passed", 12_400)], headers={b"user-agent": b"curl/8"},
    )  # fmt: skip
    x.attempts[0].usage = Usage(120, 35, cache_read=20, cache_write=8, cache_write_1h=2, reasoning=5)
    server, client = await sent(collector, x, service_name="toll", resource={"deployment.environment.name": "test"})
    assert (server.name, server.kind) == ("POST /v1/chat/completions", SERVER)
    assert (client.name, client.kind) == ("chat gpt-4o-mini-2024", CLIENT)
    assert server.trace_id == client.trace_id == bytes.fromhex("0af7651916cd43dd8448eb211c80319c")
    assert server.span_id == bytes.fromhex("1122334455667788")
    assert server.parent_span_id == bytes.fromhex("b7ad6b7169203331")
    assert (client.parent_span_id, client.span_id) == (server.span_id, (77).to_bytes(8, "big"))
    assert server.trace_state == client.trace_state == "vendor=1"
    assert (server.start_time_unix_nano, server.end_time_unix_nano) == (x.started_at, x.started_at + 202_000_000)
    assert client.start_time_unix_nano - x.started_at == 1_000_000
    assert client.end_time_unix_nano - x.started_at == 200_000_000
    assert server.status.code == client.status.code == Status.STATUS_CODE_UNSET
    assert attributes(server) == {
        "openinference.span.kind": "CHAIN", "http.request.method": "POST", "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions", "url.scheme": "http", "http.response.status_code": 200,
        "client.address": "192.0.2.7", "user_agent.original": "curl/8", "session.id": "s-1",
        "gen_ai.conversation.id": "s-1", "user.id": "u-1", "tag.tags": ["a", "b"], "tollkeeper.request.id": "req_0192",
        "tollkeeper.endpoint": "chat", "tollkeeper.team": "checkout", "tollkeeper.key": "web",
        "tollkeeper.model.requested": "gpt-4o-mini", "tollkeeper.feature": "search", "tollkeeper.cache.status": "miss",
        "tollkeeper.decisions": ["access.admit passed 12us"], "tollkeeper.attempts": 1, "tollkeeper.fallback": False,
        "tollkeeper.stream": False, "tollkeeper.overhead_us": 2000, "tollkeeper.cost_nano_usd": 39000,
    }  # fmt: skip
    assert attributes(client) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini-2024",
        "gen_ai.request.max_tokens": 50, "gen_ai.request.temperature": 0.5, "gen_ai.request.seed": 7,
        "gen_ai.request.reasoning.level": "low", "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "gpt-4o-mini-2024-07-18", "gen_ai.response.finish_reasons": ["stop"],
        "openai.response.service_tier": "default", "openai.response.system_fingerprint": "fp_1",
        "gen_ai.usage.input_tokens": 120, "gen_ai.usage.output_tokens": 35, "gen_ai.usage.cache_read.input_tokens": 20,
        "gen_ai.usage.cache_write.input_tokens": 10, "gen_ai.usage.cache_creation.input_tokens": 10,
        "gen_ai.usage.reasoning.output_tokens": 5, "server.address": "api.openai.test", "server.port": 443,
        "http.response.status_code": 200, "tollkeeper.provider": "openai", "tollkeeper.model": "gpt-4o-mini",
        "tollkeeper.attempt.why": "", "tollkeeper.cost_nano_usd": 39000,
        "tollkeeper.price.revision": "config:gpt-4o-mini@2026-01-01",
        "session.id": "s-1", "gen_ai.conversation.id": "s-1", "user.id": "u-1",
    }  # fmt: skip
    resource = {pair.key: plain(pair.value) for pair in collector.requests[0].resource_spans[0].resource.attributes}
    assert resource["service.name"] == resource["openinference.project.name"] == "toll"
    assert resource["deployment.environment.name"] == "test"
    assert {"service.version", "service.instance.id"} <= set(resource)


async def test_a_stream_tells_when_its_first_chunk_came(collector: Collector, make: Any) -> None:
    _, client = await sent(collector, make.answered(trace=SAMPLED, stream=True))
    assert attributes(client)["gen_ai.response.time_to_first_chunk"] == pytest.approx(0.099)
    assert attributes(client)["gen_ai.request.stream"] is True


async def test_a_fallback_shows_both_attempts_and_usage_on_the_winner_only(collector: Collector, make: Any) -> None:
    x = make.bare(trace=SAMPLED)
    down = UpstreamError("Service unavailable", code="upstream_unavailable", status=503)
    make.attempt(x, error=down, status=503, ended=50, span_id=1, why="first")
    make.attempt(x, error=down, status=503, began=50, ended=90, span_id=2, usage=Usage(9, 9), cost=5)
    make.attempt(x, make.azure, began=91, span_id=3, why="fallback: upstream_unavailable")
    server, first, again, winner = await sent(collector, x)
    assert {first.parent_span_id, again.parent_span_id, winner.parent_span_id} == {server.span_id}
    assert (first.status.code, winner.status.code) == (Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET)
    assert server.status.code == Status.STATUS_CODE_UNSET  # what was mended is no error of the whole
    assert attributes(first)["error.type"] == "503"
    assert attributes(first)["tollkeeper.error.code"] == "upstream_unavailable"
    assert "http.request.resend_count" not in attributes(first)
    assert attributes(again)["http.request.resend_count"] == 1
    assert "http.request.resend_count" not in attributes(winner)  # another provider is no repetition
    assert [
        span.name for span in (server, first, again, winner) if "gen_ai.usage.input_tokens" in attributes(span)
    ] == [winner.name]
    assert attributes(winner)["gen_ai.provider.name"] == "azure.ai.openai"
    assert attributes(winner)["tollkeeper.provider"] == "backup"
    assert attributes(winner)["tollkeeper.attempt.why"] == "fallback: upstream_unavailable"
    assert attributes(server)["tollkeeper.fallback"] is True
    assert attributes(server)["tollkeeper.cost_nano_usd"] == 39_005


async def test_an_answer_from_a_policy_is_an_internal_span_without_usage(collector: Collector, make: Any) -> None:
    server, answer = await sent(collector, make.bare(trace=SAMPLED, cache="hit"))
    assert (answer.name, answer.kind) == ("chat gpt-4o-mini", INTERNAL)
    assert answer.parent_span_id == server.span_id
    assert attributes(answer)["tollkeeper.cache.status"] == attributes(server)["tollkeeper.cache.status"] == "hit"
    assert not [name for name in attributes(answer) if name.startswith("gen_ai.usage")]


async def test_the_server_span_is_not_mistaken_for_a_call_of_a_model(collector: Collector, make: Any) -> None:
    server, _ = await sent(collector, make.answered(trace=SAMPLED))
    assert not [name for name in attributes(server) if name.startswith("gen_ai.") and name != "gen_ai.conversation.id"]


async def test_a_refusal_is_kept_unsampled_and_has_no_client_span(collector: Collector, make: Any) -> None:
    x = make.bare(status=403, error=Denied("not yours", code="model_not_allowed"))
    make.attempt(x, error=x.error, sent=0)  # refused at the last moment: nothing left
    (server,) = await sent(collector, x)
    assert server.status.code == Status.STATUS_CODE_UNSET
    assert attributes(server)["tollkeeper.error.code"] == "model_not_allowed"
    assert attributes(server)["http.response.status_code"] == 403
    assert "error.type" not in attributes(server)


async def test_a_caller_who_hung_up_is_no_error_and_its_usage_is_told(collector: Collector, make: Any) -> None:
    x = make.bare(trace=SAMPLED, stream=True, error=ClientGone("gone"))
    attempt = make.attempt(x, error=x.error, usage=Usage(120, 4, estimated=True), cost=11)
    attempt.first_byte = attempt.started + 1
    server, client = await sent(collector, x)
    assert server.status.code == client.status.code == Status.STATUS_CODE_UNSET
    assert "error.type" not in attributes(server) | attributes(client)
    assert attributes(server)["tollkeeper.error.code"] == "client_gone"
    assert attributes(client)["gen_ai.usage.output_tokens"] == 4
    assert attributes(client)["tollkeeper.usage.estimated"] is True


async def test_a_provider_that_broke_off_is_an_error_of_both_although_the_head_said_200(
    collector: Collector, make: Any
) -> None:
    x = make.bare(stream=True, error=UpstreamError("cut", code="upstream_broke_off"))
    attempt = make.attempt(x, error=x.error, status=200)
    attempt.first_byte = attempt.started + 1
    server, client = await sent(collector, x)
    assert server.status.code == client.status.code == Status.STATUS_CODE_ERROR
    assert attributes(server)["error.type"] == attributes(client)["error.type"] == "upstream_broke_off"
    assert attributes(client)["gen_ai.response.finish_reasons"] == ["error"]


async def test_a_call_that_names_no_model_has_a_span_that_names_none(collector: Collector, make: Any) -> None:
    x = make.bare(trace=SAMPLED, operation="relay", endpoint="relay", model="", alias="")
    make.attempt(x, usage=None).target = type(make.openai)("", make.openai.provider, "")
    _, client = await sent(collector, x)
    assert client.name == "relay"
    assert "gen_ai.request.model" not in attributes(client)


@pytest.mark.parametrize(
    ("facts", "kept"),
    [
        ({}, False),
        ({"trace": SAMPLED}, True),
        ({"error": UpstreamError("down"), "status": 502}, True),
        ({"error": UpstreamError("busy", code="upstream_rate_limited", status=429), "status": 429}, True),
        ({"error": Broken("oh"), "status": 500}, True),
        ({"error": Denied("unsafe", code="blocked_by_safety", status=400), "status": 400}, True),
        ({"error": Denied("too much", code="rate_limited", status=429), "status": 429}, False),
        ({"error": ClientGone("by"), "status": 0}, False),
        ({"error": GatewayError("odd", status=503), "status": 503}, True),
        ({"ended": "slow"}, True),
        ({"cost": 1_000_000_000}, True),
        ({"cost": 999_999_999}, False),
        ({"cost": None}, False),
    ],
)
async def test_what_is_kept_is_failed_slow_dear_or_sampled(
    collector: Collector, make: Any, facts: Any, kept: bool
) -> None:
    x = make.answered(**{name: value for name, value in facts.items() if name not in ("cost", "ended")})
    x.attempts[0].cost = facts.get("cost", 39_000)
    if "ended" in facts:
        x.ended = x.started + 2_000_000_000
    spans = await sent(collector, x, slow_seconds=2, dear_usd=Decimal(1))
    assert bool(spans) is kept


PROMPT, ANSWER = "sentinel-prompt", "sentinel-answer"
BODY = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % PROMPT.encode()


@pytest.mark.parametrize("ours", ["none", "redacted", "full"])
@pytest.mark.parametrize("theirs", ["none", "redacted", "full"])
async def test_content_is_shown_only_as_far_as_both_allow(
    collector: Collector, make: Any, ours: Any, theirs: Any
) -> None:
    x = make.answered(
        trace=SAMPLED, stream=True, body=BODY, output=[ANSWER], caller=Caller("checkout", "web", content=theirs)
    )
    await sent(collector, x, content=ours, redact=lambda text: text.replace("sentinel", "masked"))
    wire = collector.requests[0].SerializeToString()
    least = min(ours, theirs, key=("none", "redacted", "full").index)
    for word in ("prompt", "answer"):
        assert (f"sentinel-{word}".encode() in wire) is (least == "full")
        assert (f"masked-{word}".encode() in wire) is (least == "redacted")


async def test_redacted_content_is_left_out_where_nothing_can_redact_it(collector: Collector, make: Any) -> None:
    caller = Caller("checkout", "web", content="redacted")
    await sent(collector, make.answered(trace=SAMPLED, body=BODY, output=[ANSWER], caller=caller), content="full")
    assert b"sentinel" not in collector.requests[0].SerializeToString()


async def test_prompts_and_secrets_are_absent_from_every_failure_too(collector: Collector, make: Any) -> None:
    headers = {b"authorization": b"Bearer sentinel-key", b"x-api-key": b"sentinel-key"}
    kinds = (UpstreamError, Broken, Denied, ClientGone)  # the error's own words may quote the prompt
    exchanges = []
    for kind in kinds:
        x = make.bare(trace=SAMPLED, body=BODY, output=[ANSWER], headers=headers, error=kind(PROMPT))
        make.attempt(x, error=kind(PROMPT), status=400)
        exchanges.append(x)
    await sent(collector, *exchanges, content="full")
    wire = b"".join(request.SerializeToString() for request in collector.requests)
    assert b"sentinel" not in wire
    assert b"sk-provider-secret" not in wire
    assert len(collector.spans) >= 2 * len(kinds)


async def test_messages_follow_the_schema_of_opentelemetry(collector: Collector, make: Any) -> None:
    body = (
        b'{"messages":[{"role":"system","content":"be brief"},'
        b'{"role":"user","content":[{"type":"text","text":"look"},{"type":"image_url","image_url":{"url":"data:x"}}]},'
        b'{"role":"assistant","content":null,"tool_calls":[{"id":"c1","function":{"name":"f","arguments":"{}"}}]},'
        b'{"role":"tool","tool_call_id":"c1","content":"42"}]}'
    )
    output = ['{"choices":[{"message":{"role":"assistant","content":"done"}}]}']
    x = make.answered(trace=SAMPLED, body=body, output=output, caller=Caller("checkout", "web", content="full"))
    server, client = await sent(collector, x, content="full")
    shown = attributes(client)
    assert json.loads(shown["gen_ai.input.messages"]) == [
        {"role": "system", "parts": [{"type": "text", "content": "be brief"}]},
        {"role": "user", "parts": [{"type": "text", "content": "look"}, {"type": "image_url"}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "f", "arguments": "{}"}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "42"}]},
    ]
    assert json.loads(shown["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "done"}], "finish_reason": "stop"}
    ]
    assert attributes(server)["output.value"] == "done"
    assert attributes(server)["input.value"].startswith('[{"role":"system"')


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"[1]", b'{"messages":7}', b'{"messages":[1,{"content":[3,null]},{"tool_calls":5}]}']
)
async def test_a_body_of_any_shape_makes_a_trace(collector: Collector, make: Any, body: bytes) -> None:
    caller = Caller("checkout", "web", content="full")
    assert len(await sent(collector, make.answered(trace=SAMPLED, body=body, caller=caller), content="full")) == 2


async def test_it_is_sent_compressed_as_protobuf_with_the_operators_headers(collector: Collector, make: Any) -> None:
    await sent(collector, make.answered(trace=SAMPLED), headers={"authorization": "Basic c2VjcmV0"})
    head = collector.heads[0]
    assert collector.paths == ["/v1/traces"]
    assert (head["content-encoding"], head["content-type"]) == ("gzip", "application/x-protobuf")
    assert head["authorization"] == "Basic c2VjcmV0"


async def test_an_endpoint_that_names_the_path_already_is_used_as_it_is(collector: Collector, make: Any) -> None:
    traces = Traces(config(f"{collector.url}/api/otel/v1/traces"))
    traces.finished(make.answered(trace=SAMPLED))
    await traces.aclose()
    assert collector.paths == ["/api/otel/v1/traces"]


def test_opentelemetry_is_loaded_only_where_an_endpoint_is_configured() -> None:
    script = (
        "import sys, gateway.telemetry.traces, gateway.telemetry.w3c; print([m for m in sys.modules if 'opentel' in m])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"
    with pytest.raises(ValueError, match="otlp_endpoint"):
        Traces(Config())


def dead() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"  # closed again: connections are refused


@pytest.mark.parametrize("sick", ["dead", "slow", "refusing"])
async def test_a_sick_collector_costs_requests_nothing_and_losses_are_counted(
    make: Any, cost_of: Callable[[Callable[[], object]], float], sick: str
) -> None:
    collector = Collector(wait=30 if sick == "slow" else 0, status=400 if sick == "refusing" else 200)
    try:
        traces = Traces(config(dead() if sick == "dead" else collector.url, queue=64))
        kept, other = make.answered(trace=SAMPLED), make.answered()
        for _ in range(50):
            traces.finished(kept)
        time.sleep(1.3)  # the first batch is on its way
        cost = {
            "kept": cost_of(lambda: traces.finished(kept), 500),
            "not kept": cost_of(lambda: traces.finished(other)),
        }
        print(sick, {name: f"{value:.2f} us" for name, value in cost.items()})
        assert cost["kept"] < 3
        assert cost["not kept"] < 3
        began = time.perf_counter()
        await traces.aclose()
        assert time.perf_counter() - began < 2
        assert traces.dropped == 50 + 7 * 500
        traces.finished(kept)
        assert traces.dropped == 50 + 7 * 500 + 1  # what comes afterwards is counted too
    finally:
        collector.close()


async def test_a_trace_leaves_on_its_own_within_two_seconds(collector: Collector, make: Any) -> None:
    traces = Traces(config(collector.url))
    traces.finished(make.answered(trace=SAMPLED))
    deadline = time.monotonic() + 2
    while not collector.spans and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(collector.spans) == 2
    await traces.aclose()


@pytest.mark.long
async def test_a_collector_may_take_eight_seconds_for_a_batch(make: Any) -> None:
    collector = Collector(wait=8)
    try:
        traces = Traces(config(collector.url))
        traces.finished(make.answered(trace=SAMPLED))
        deadline = time.monotonic() + 12
        while not collector.spans and time.monotonic() < deadline:
            time.sleep(0.02)
        await traces.aclose()
        assert (len(collector.requests), len(collector.spans), traces.dropped) == (1, 2, 0)
    finally:
        collector.close()


async def test_four_hundred_traces_at_once_all_arrive(collector: Collector, make: Any) -> None:
    spans = await sent(collector, *[make.answered(trace=SAMPLED, id=f"req_{n}") for n in range(400)])
    assert {attributes(span)["tollkeeper.request.id"] for span in spans if span.kind == SERVER} == {
        f"req_{n}" for n in range(400)
    }
