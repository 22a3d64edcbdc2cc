"""A real Phoenix takes the gateway's traces and shows them right: tree, models, errors, every token once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from gateway.exchange import Exchange
from tests.shown import Shown, Tokens, Told, billed, expected, trace_id

pytestmark = pytest.mark.backends

PROJECT = "gateway-under-test"
KINDS = {"CHAIN": "request", "LLM": "call"}
SUMS = """{ projects { edges { node {
    name traceCount tokenCountPrompt tokenCountCompletion tokenCountTotal
    sessions(first: 10) { edges { node { sessionId numTraces tokenUsage { total } } } }
} } } }"""


@pytest.fixture(scope="module")
def phoenix(
    backends: Any, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    commands = backends.installed("phoenix", "arize-phoenix==20.26.1")
    home, port = tmp_path_factory.mktemp("phoenix"), free_port()
    said = {
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_WORKING_DIR": str(home),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    }
    with backends.serving([commands / "phoenix", "serve"], home, port, "/healthz", **said) as client:
        yield client


@pytest.fixture(scope="module")
def destination(phoenix: httpx2.Client) -> dict[str, Any]:
    """Nothing but its address; the service's name is the project's."""
    return {"otlp_endpoint": str(phoenix.base_url).rstrip("/"), "service_name": PROJECT}


@pytest.fixture(scope="module")
def spans(phoenix: httpx2.Client) -> Callable[[str], list[dict[str, Any]]]:
    """What it knows of a trace, parents first."""

    def ask(of: str) -> list[dict[str, Any]]:
        query = {"trace_id": of, "sort": "start_time", "order": "asc"}
        answer = phoenix.get(f"/v1/projects/{PROJECT}/spans", params=query)
        return list(answer.json()["data"]) if answer.status_code == 200 else []

    return ask


@pytest.fixture(scope="module")
def fetch(spans: Callable[[str], list[dict[str, Any]]]) -> Callable[[str], list[Shown]]:
    def all_of(of: str) -> list[Shown]:
        return [_shown(span) for span in spans(of)]

    return all_of


def _shown(span: dict[str, Any]) -> Shown:
    said = span["attributes"]
    used = None
    if "llm.token_count.total" in said:
        cached = said.get("llm.token_count.prompt_details.cache_read", 0)
        used = Tokens(said["llm.token_count.prompt"], said["llm.token_count.completion"], cached)
        assert said["llm.token_count.total"] == used.total
    return Shown(
        span["name"],
        span["context"]["span_id"],
        span["parent_id"] or "",
        KINDS[span["span_kind"]],
        span["status_code"] == "ERROR",
        said.get("llm.model_name", ""),
        used,
    )


@pytest.mark.parametrize("name", Told._fields)
def test_a_request_is_shown_with_each_of_its_attempts(
    told: Told, shown: Callable[[Exchange], list[Shown]], name: str
) -> None:
    x = getattr(told, name)
    assert shown(x) == expected(x)


def test_a_failed_attempt_is_an_error_and_the_fallback_that_answered_is_none(
    told: Told, shown: Callable[[Exchange], list[Shown]], spans: Callable[[str], list[dict[str, Any]]]
) -> None:
    assert [(span.model, span.failed, span.tokens is not None) for span in shown(told.fallback)] == [
        ("", False, False),
        ("sim-large", True, False),
        ("sim-small", False, True),
    ]
    assert [(span.model, span.failed) for span in shown(told.error)] == [("", True), ("sim-large", True)]
    assert [span["attributes"].get("error.type") for span in spans(trace_id(told.fallback))] == [None, "503", None]


@pytest.mark.usefixtures("shown")
def test_its_own_sums_count_every_token_once(told: Told, phoenix: httpx2.Client) -> None:
    answer = phoenix.post("/graphql", json={"query": SUMS}).raise_for_status().json()
    assert "errors" not in answer
    (project,) = [e["node"] for e in answer["data"]["projects"]["edges"] if e["node"]["name"] == PROJECT]
    all_of_them = billed(told)
    assert project["traceCount"] == len(told)
    assert (project["tokenCountPrompt"], project["tokenCountCompletion"]) == (all_of_them.input, all_of_them.output)
    assert project["tokenCountTotal"] == all_of_them.total
    (session,) = [edge["node"] for edge in project["sessions"]["edges"]]
    assert (session["sessionId"], session["numTraces"]) == ("session-7", len(told))
    assert session["tokenUsage"]["total"] == all_of_them.total
    listed = phoenix.get(f"/v1/projects/{PROJECT}/traces").raise_for_status().json()["data"]
    found = {trace["trace_id"]: (trace["token_count_prompt"], trace["token_count_completion"]) for trace in listed}
    assert found[trace_id(told.unary)] == (120, 35)
    assert found[trace_id(told.error)] == (0, 0)


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize("name", ["unary", "stream", "fallback"])
def test_who_asked_what_and_what_was_answered_is_shown(told: Told, spans: Any, name: str) -> None:
    root, *_, call = [span["attributes"] for span in spans(trace_id(getattr(told, name)))]
    assert {(one["session.id"], one["user.id"]) for one in (root, call)} == {("session-7", "user-7")}
    assert "say: a few words of an answer" in root["input.value"]
    assert root["output.value"] == "a few words of an answer"
    assert call["llm.input_messages.0.message.role"] == "user"
    assert call["llm.input_messages.0.message.content"] == "say: a few words of an answer"
    assert call["llm.output_messages.0.message.content"] == "a few words of an answer"
    assert call["llm.finish_reason"] == "stop"
    asked = json.loads(call.get("llm.invocation_parameters", "{}"))
    assert asked == {"unary": {"temperature": 0.5}, "stream": {"stream": True}, "fallback": {}}[name]
