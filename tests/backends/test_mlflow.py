"""A real MLflow takes the gateway's traces and shows them right: tree, models, errors, every token once."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.exchange import Exchange
from tests.shown import Shown, Tokens, Told, billed, expected, trace_id

pytestmark = pytest.mark.backends

KINDS = {"CHAIN": "request", "CHAT_MODEL": "call"}


@pytest.fixture(scope="module")
def mlflow(
    backends: Any, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    commands = backends.installed("mlflow", "mlflow==3.17.2")
    home, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [commands / "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", home / "artifacts"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with backends.serving(command, home, port, "/health", **quiet) as client:
        _wake(client)
        yield client


def _wake(client: httpx2.Client) -> None:
    """Its first trace makes it import for seconds, on a busy machine for longer than an exporter waits."""
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = bytes(15) + b"\1", bytes(7) + b"\1", "wake"
    span.start_time_unix_nano = span.end_time_unix_nano = 1
    headers = {"content-type": "application/x-protobuf", "x-mlflow-experiment-id": "0"}
    client.post("/v1/traces", content=request.SerializeToString(), headers=headers).raise_for_status()


@pytest.fixture(scope="module")
def experiment(mlflow: httpx2.Client) -> str:
    made = mlflow.post("/api/2.0/mlflow/experiments/create", json={"name": "gateway"}).raise_for_status()
    return str(made.json()["experiment_id"])


@pytest.fixture(scope="module")
def destination(mlflow: httpx2.Client, experiment: str) -> dict[str, Any]:
    """As docs/config.md says."""
    return {"otlp_endpoint": str(mlflow.base_url).rstrip("/"), "headers": {"x-mlflow-experiment-id": experiment}}


@pytest.fixture(scope="module")
def trace(mlflow: httpx2.Client) -> Callable[[str], dict[str, Any]]:
    """What it knows of a trace; empty where there is none."""

    def ask(of: str) -> dict[str, Any]:
        answer = mlflow.get("/api/3.0/mlflow/traces/get", params={"trace_id": f"tr-{of}"})
        return dict(answer.json()["trace"]) if answer.status_code == 200 else {}

    return ask


@pytest.fixture(scope="module")
def fetch(trace: Callable[[str], dict[str, Any]]) -> Callable[[str], list[Shown]]:
    def spans(of: str) -> list[Shown]:
        return [_shown(span) for span in trace(of).get("spans", [])]

    return spans


def _shown(span: dict[str, Any]) -> Shown:
    said = {pair["key"]: _plain(pair["value"]) for pair in span["attributes"]}
    used = said.get("mlflow.chat.tokenUsage")
    if used is not None:
        assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"]
        used = Tokens(used["input_tokens"], used["output_tokens"], used.get("cache_read_input_tokens", 0))
    return Shown(
        span["name"],
        base64.b64decode(span["span_id"]).hex(),
        base64.b64decode(span.get("parent_span_id", "")).hex(),
        KINDS[said["mlflow.spanType"]],
        span["status"].get("code") == "STATUS_CODE_ERROR",
        said.get("mlflow.llm.model", ""),
        used,
    )


def _plain(value: dict[str, Any]) -> Any:
    """OTLP's JSON, as MLflow writes it."""
    ((kind, held),) = value.items()
    if kind == "array_value":
        return [_plain(one) for one in held["values"]]
    return {pair["key"]: _plain(pair["value"]) for pair in held["values"]} if kind == "kvlist_value" else held


def test_traces_that_name_no_experiment_are_refused(mlflow: httpx2.Client) -> None:
    headers = {"content-type": "application/x-protobuf"}
    assert mlflow.post("/v1/traces", content=b"", headers=headers).status_code == 422


@pytest.mark.parametrize("name", Told._fields)
def test_a_request_is_shown_with_each_of_its_attempts(
    told: Told, shown: Callable[[Exchange], list[Shown]], name: str
) -> None:
    x = getattr(told, name)
    assert shown(x) == expected(x)


def test_a_failed_attempt_is_an_error_and_the_fallback_that_answered_is_none(
    told: Told, shown: Callable[[Exchange], list[Shown]], trace: Callable[[str], dict[str, Any]]
) -> None:
    assert [(span.model, span.failed, span.tokens is not None) for span in shown(told.fallback)] == [
        ("", False, False),
        ("sim-large", True, False),
        ("sim-small", False, True),
    ]
    assert [(span.model, span.failed) for span in shown(told.error)] == [("", True), ("sim-large", True)]
    assert [trace(trace_id(x))["trace_info"]["state"] for x in told] == ["OK", "OK", "OK", "ERROR"]


@pytest.mark.usefixtures("shown")
def test_its_own_sums_count_every_token_once(told: Told, mlflow: httpx2.Client, experiment: str, trace: Any) -> None:
    found = trace(trace_id(told.unary))["trace_info"]["trace_metadata"]["mlflow.trace.tokenUsage"]
    assert json.loads(found) == {
        "input_tokens": 120, "output_tokens": 35, "total_tokens": 155, "cache_read_input_tokens": 20,
    }  # fmt: skip
    sums = {}
    for metric in ("input_tokens", "output_tokens", "total_tokens", "cache_read_input_tokens"):
        asked = {"experiment_ids": [experiment], "view_type": "TRACES", "metric_name": metric}
        asked["aggregations"] = [{"aggregation_type": "SUM"}]
        (point,) = mlflow.post("/api/3.0/mlflow/traces/metrics", json=asked).raise_for_status().json()["data_points"]
        (sums[metric],) = point["values"].values()
    all_of_them = billed(told)
    assert sums == {
        "input_tokens": all_of_them.input,
        "output_tokens": all_of_them.output,
        "total_tokens": all_of_them.total,
        "cache_read_input_tokens": all_of_them.cached,
    }


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize("name", ["unary", "stream", "fallback"])
def test_who_asked_what_and_what_was_answered_is_shown(told: Told, trace: Any, name: str) -> None:
    info = trace(trace_id(getattr(told, name)))["trace_info"]
    assert info["trace_metadata"]["mlflow.trace.session"] == "session-7"
    assert info["trace_metadata"]["mlflow.trace.user"] == "user-7"
    assert "say: a few words of an answer" in info["request_preview"]
    assert json.loads(info["response_preview"]) == "a few words of an answer"
