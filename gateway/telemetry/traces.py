"""Traces for an OpenTelemetry collector: a span for each kept request, and one for each attempt at a provider."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from gateway import __version__, evaluation, settings
from gateway.errors import Broken, ClientGone, Denied, UpstreamError
from gateway.exchange import Attempt, Content, Exchange
from gateway.telemetry import Outbox, log

if TYPE_CHECKING:  # opentelemetry is loaded only where an endpoint is configured
    from opentelemetry.sdk.trace import ReadableSpan

BUILD_SECONDS = 0.1  # an exchange, with its body, waits no longer than this to become spans …
SEND_SECONDS = 1.0  # … and those wait so long to be sent together
SEND_TRACES = 128  # at once
EXPORT_SECONDS = 10.0  # for one batch, with its repetitions; MLflow's first takes it up to 8 s
LONGEST = 256  # characters of a value that a caller chose
PREVIEW = 2048
LARGEST = 1 << 20  # bytes of a body that is still written on a span

# The catalogue's names for providers, where OpenTelemetry has another.
_PROVIDERS = {
    "aws": "aws.bedrock", "azure": "azure.ai.openai", "google": "gcp.gemini", "google-vertex": "gcp.vertex_ai",
    "mistral": "mistral_ai", "moonshotai": "moonshot_ai", "x-ai": "x_ai",
}  # fmt: skip

# What a call asks for: the field of its body, the attribute, and the types that are its values.
_ASKED: tuple[tuple[str, str, type | tuple[type, ...]], ...] = (
    ("max_tokens", "gen_ai.request.max_tokens", int),
    ("max_completion_tokens", "gen_ai.request.max_tokens", int),
    ("temperature", "gen_ai.request.temperature", (int, float)),
    ("top_p", "gen_ai.request.top_p", (int, float)),
    ("frequency_penalty", "gen_ai.request.frequency_penalty", (int, float)),
    ("presence_penalty", "gen_ai.request.presence_penalty", (int, float)),
    ("seed", "gen_ai.request.seed", int),
    ("n", "gen_ai.request.choice.count", int),
    ("reasoning_effort", "gen_ai.request.reasoning.level", str),
    ("service_tier", "openai.request.service_tier", str),
)

_LEVELS: tuple[Content, ...] = ("none", "redacted", "full")


class Span(NamedTuple):
    """A span before it is OpenTelemetry's.  Times are wall clock, ns."""

    name: str
    kind: Literal["server", "client", "internal"]
    span_id: int
    parent_id: int  # 0: none
    started: int
    ended: int
    failed: bool
    attributes: dict[str, Any]
    events: Sequence[dict[str, Any]] = ()  # what assessors said, at the span's end


class Traces:
    """Observer.  Notes the exchange; one thread makes spans of what is kept, another sends them (OTLP/HTTP, gzip).

    Kept is what was sampled up front, failed here or at the provider, was blocked by a policy, slow or dear; a refusal
    with 429 is ordinary traffic.  redact: makes text fit for spans where content is `redacted`; else there is none.
    """

    def __init__(self, config: settings.Traces, redact: Callable[[str], str] | None = None) -> None:
        if config.otlp_endpoint is None:
            raise ValueError("telemetry.traces.otlp_endpoint is not set: without it there is nothing to send traces to")
        self._slow = int(config.slow_seconds * 1e9)
        self._dear = int(config.dear_usd * 10**9)
        self._content = config.content
        self._redact = redact
        self._convert = _converter(config)
        self._export, self._shutdown = _exporter(config)
        self._sending: Outbox[list[ReadableSpan]] = Outbox(
            "traces", self._send, config.queue, SEND_SECONDS, SEND_TRACES
        )
        self._building: Outbox[Exchange] = Outbox("spans", self._build, config.queue, BUILD_SECONDS, SEND_TRACES)

    @property
    def dropped(self) -> int:
        """Kept requests whose trace was lost."""
        return self._building.dropped + self._sending.dropped

    def started(self, x: Exchange) -> None:
        """Nothing yet: the exchange itself is the note."""

    def finished(self, x: Exchange) -> None:
        told = x.trace.sampled or x.ended - x.started >= self._slow or (x.error is not None and _tells(x))
        if told or ((cost := x.cost) is not None and cost >= self._dear):
            x.kept = True
            self._building.put(x)

    async def aclose(self) -> None:
        """Sends what waits; returns within 2 s, and counts what a slow collector did not take as lost."""
        await self._building.aclose(0.5)
        await self._sending.aclose(1.2)
        self._shutdown()

    def _build(self, exchanges: list[Exchange]) -> int:
        lost = 0
        for x in exchanges:
            level = min(self._content, x.caller.content, key=_LEVELS.index)
            redact = str if level == "full" else self._redact if level == "redacted" else None
            try:
                self._sending.put([self._convert(x, span) for span in spans(x, redact)])
            except Exception:  # one request that cannot be told must not take the others along
                log.exception("no trace could be made of request %s", x.id)
                lost += 1
        return lost

    def _send(self, traces: list[list[ReadableSpan]]) -> int:
        taken = self._export([span for trace in traces for span in trace])
        return 0 if taken else len(traces)


def _tells(x: Exchange) -> bool:
    """Is this failure worth a trace in any case?"""
    error = x.error
    if isinstance(error, Denied):
        return error.status != 429  # or whoever sends too much would fill the traces as well
    return isinstance(error, (UpstreamError, Broken)) or x.status >= 500


def spans(x: Exchange, redact: Callable[[str], str] | None = None) -> list[Span]:
    """SERVER, and below it a CLIENT span for each attempt that left, or an INTERNAL one where a policy answered.

    redact: None where no content may be shown.
    """
    made = [_server(x)]
    made += [_attempt(x, n) for n, attempt in enumerate(x.attempts) if not _stayed(attempt)]
    if not x.attempts and x.error is None:
        made.append(_answered(x))
    if x.assessments:
        made[-1] = made[-1]._replace(events=evaluation.events(x))  # on the span of what was judged
    if redact is not None and len(x.body) <= LARGEST:
        _show(x, made[0].attributes, made[-1].attributes, redact)
    return made


def _server(x: Exchange) -> Span:
    attributes = _person(x) | {
        "openinference.span.kind": "CHAIN",
        "http.request.method": x.method,
        "http.route": x.route,
        "url.path": x.path[:LONGEST],
        "url.scheme": "http",
        "tollkeeper.request.id": x.id,
        "tollkeeper.endpoint": x.endpoint,
        "tollkeeper.attempts": len(x.attempts),
        "tollkeeper.fallback": len(x.attempts) > 1 and x.attempts[0].target is not x.attempts[-1].target,
        "tollkeeper.stream": x.stream,
        "tollkeeper.overhead_us": x.overhead // 1000,
    }
    optional = {
        "http.response.status_code": x.status,
        "client.address": x.client,
        "user_agent.original": x.headers.get(b"user-agent", b"").decode("latin-1")[:LONGEST],
        "tollkeeper.team": x.caller.team,
        "tollkeeper.key": x.caller.key,
        "tollkeeper.model.requested": x.model[:LONGEST],
        "tollkeeper.feature": x.feature[:LONGEST],
        "tollkeeper.cache.status": x.cache,
        "tollkeeper.decisions": [f"{d.policy}.{d.hook} {d.outcome} {d.took // 1000}us" for d in x.decisions],
        "tag.tags": [tag[:LONGEST] for tag in x.tags],
    }
    attributes |= {name: value for name, value in optional.items() if value}
    cost = x.cost
    if cost is not None:
        attributes["tollkeeper.cost_nano_usd"] = cost
    failed = x.error is not None and x.error.status >= 500  # 4xx is the caller's, 499 its wish: no error of this server
    if x.error is not None:
        attributes["tollkeeper.error.code"] = x.error.code
    if failed:
        attributes["error.type"] = attributes["tollkeeper.error.code"]
    name, ended = f"{x.method} {x.route}", x.started_at - x.started + x.ended
    return Span(name, "server", x.trace.span_id, x.trace.parent_id, x.started_at, ended, failed, attributes)


def _attempt(x: Exchange, number: int) -> Span:
    attempt = x.attempts[number]
    target, error = attempt.target, attempt.error
    provider = target.provider.catalogue or target.provider.name
    attributes = _person(x) | {
        "gen_ai.operation.name": x.operation,
        "gen_ai.provider.name": _PROVIDERS.get(provider, provider),
        "server.address": target.provider.host,
        "server.port": target.provider.port,
        "tollkeeper.provider": target.provider.name,
        "tollkeeper.model": target.alias,
        "tollkeeper.attempt.why": attempt.why,
    }
    model = target.model or x.model[:LONGEST]  # some calls name none
    optional = {
        "gen_ai.request.model": model,
        "http.request.resend_count": sum(one.target is target and not _stayed(one) for one in x.attempts[:number]),
        "http.response.status_code": attempt.status,
        "tollkeeper.price.revision": attempt.price,
        "tollkeeper.provider.request_id": attempt.provider_request_id[:LONGEST],
    }
    attributes |= {name: value for name, value in optional.items() if value} | _asked(x)
    if attempt.cost is not None:
        attributes["tollkeeper.cost_nano_usd"] = attempt.cost
    failed = error is not None and not isinstance(error, ClientGone)
    if error is not None and failed:
        attributes["error.type"] = str(attempt.status) if attempt.status >= 400 else error.code
        attributes["tollkeeper.error.code"] = error.code
    attributes |= _answer(x, attempt, failed)
    if attempt is next((one for one in reversed(x.attempts) if one.usage is not None), None):
        attributes |= _usage(attempt)  # on one span only: backends add the usage of all spans up
    wall = x.started_at - x.started
    started, ended = wall + (attempt.started or x.started), wall + (attempt.ended or x.ended)
    span_id = attempt.span_id or random.getrandbits(64) or 1
    name = f"{x.operation} {model}".rstrip()
    return Span(name, "client", span_id, x.trace.span_id, started, ended, failed, attributes)


def _answered(x: Exchange) -> Span:
    """A policy answered in the provider's place: no usage, for backends would price it."""
    model = x.model[:LONGEST]
    attributes = _person(x) | _asked(x) | {"gen_ai.operation.name": x.operation, "gen_ai.request.model": model}
    attributes |= {"gen_ai.provider.name": "tollkeeper", "tollkeeper.cache.status": x.cache or "none"}
    if x.saved is not None:
        attributes["tollkeeper.saved_nano_usd"] = x.saved
    name, span_id = f"{x.operation} {model}", random.getrandbits(64) or 1
    ended = x.started_at - x.started + x.ended
    return Span(name, "internal", span_id, x.trace.span_id, x.started_at, ended, False, attributes)


def _stayed(attempt: Attempt) -> bool:
    """A policy refused this attempt: nothing left for the provider."""
    return not attempt.sent and isinstance(attempt.error, Denied)


def _person(x: Exchange) -> dict[str, Any]:
    """Repeated on every span: backends read it span by span."""
    named = {"session.id": x.session, "gen_ai.conversation.id": x.session, "user.id": x.user}
    return {name: value[:LONGEST] for name, value in named.items() if value}


def _asked(x: Exchange) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for field, name, kind in _ASKED:
        value = getattr(x.call, field, None)
        if isinstance(value, kind) and not isinstance(value, bool):
            attributes[name] = value[:LONGEST] if isinstance(value, str) else value
    if attributes.get("gen_ai.request.choice.count") == 1:
        del attributes["gen_ai.request.choice.count"]
    if x.stream:
        attributes["gen_ai.request.stream"] = True
    return attributes


def _answer(x: Exchange, attempt: Attempt, failed: bool) -> dict[str, Any]:
    answer = attempt.answer
    cut = failed and attempt.first_byte and x.stream and not answer.finish
    finish = ["error"] if cut else answer.finish  # a stream that ended without a reason
    optional: dict[str, Any] = {
        "gen_ai.response.id": answer.id[:LONGEST],
        "gen_ai.response.model": answer.model[:LONGEST],
        "gen_ai.response.finish_reasons": finish,
        "openai.response.service_tier": answer.tier[:LONGEST],
        "openai.response.system_fingerprint": answer.fingerprint[:LONGEST],
    }
    if x.stream and attempt.first_byte:
        optional["gen_ai.response.time_to_first_chunk"] = (attempt.first_byte - attempt.started) / 1e9
    return {name: value for name, value in optional.items() if value}


def _usage(attempt: Attempt) -> dict[str, Any]:
    usage = attempt.usage
    if usage is None:
        return {}
    written = usage.cache_write + usage.cache_write_1h
    parts = {"cache_read.input_tokens": usage.cache_read, "cache_write.input_tokens": written}
    parts["cache_creation.input_tokens"] = written  # its older name, the only one that most backends read
    parts["reasoning.output_tokens"] = usage.reasoning
    attributes: dict[str, Any] = {f"gen_ai.usage.{part}": count for part, count in parts.items() if count}
    attributes["gen_ai.usage.input_tokens"] = usage.input
    attributes["gen_ai.usage.output_tokens"] = usage.output
    if usage.estimated:
        attributes["tollkeeper.usage.estimated"] = True
    return attributes


def _show(x: Exchange, server: dict[str, Any], model: dict[str, Any], redact: Callable[[str], str]) -> None:
    """Puts prompt and answer on the spans: for people on SERVER, in OpenTelemetry's JSON on the span of the model."""
    answer = redact(_said(x))
    if answer:
        server["output.value"] = answer[:PREVIEW]
    try:
        call = msgspec.json.decode(x.body)
    except msgspec.DecodeError:
        call = None  # a body that is no JSON (a form, a file) is not shown
    messages = call.get("messages") if isinstance(call, dict) else None
    if isinstance(messages, list):
        shown = [_message(one, redact) for one in messages if isinstance(one, dict)]
        text = msgspec.json.encode(shown).decode()
        server["input.value"] = text[:PREVIEW]
        if model is not server:
            model["gen_ai.input.messages"] = text
    if answer and model is not server:
        parts = [{"type": "text", "content": answer}]
        finish = next(iter(model.get("gen_ai.response.finish_reasons", [])), "stop")
        said = [{"role": "assistant", "parts": parts, "finish_reason": finish}]
        model["gen_ai.output.messages"] = msgspec.json.encode(said).decode()


def _said(x: Exchange) -> str:
    """The answer's text: of one that was not streamed, the provider's JSON is kept."""
    text = "".join(x.output)
    try:
        whole = None if x.stream else msgspec.json.decode(text)
        return str(whole["choices"][0]["message"]["content"]) if whole is not None else text
    except (msgspec.DecodeError, LookupError, TypeError):
        return text  # of another shape than a chat's


def _message(message: dict[str, Any], redact: Callable[[str], str]) -> dict[str, Any]:
    """OpenAI's chat message as OpenTelemetry's: a role and parts.  Text only; media are named, not copied."""
    content = message.get("content")
    found = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    parts: list[dict[str, Any]] = []
    for part in found:
        text = part.get("text") if isinstance(part, dict) else None
        named = str(part.get("type")) if isinstance(part, dict) else "unknown"
        parts.append({"type": "text", "content": redact(text)} if isinstance(text, str) else {"type": named[:LONGEST]})
    if message.get("role") == "tool":
        response = " ".join(part.get("content", "") for part in parts)
        parts = [{"type": "tool_call_response", "id": message.get("tool_call_id"), "response": response}]
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            said = {"name": function.get("name"), "arguments": redact(str(function.get("arguments", "")))}
            parts.append({"type": "tool_call", "id": call.get("id"), **said})
    return {"role": message.get("role"), "parts": parts}


def _converter(config: settings.Traces) -> Callable[[Exchange, Span], ReadableSpan]:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

    resource = Resource.create(
        {
            "service.name": config.service_name,
            "service.version": __version__,
            "service.instance.id": str(uuid.uuid4()),
            "openinference.project.name": config.service_name,
            **config.resource,
        }
    )
    scope = InstrumentationScope("tollkeeper", __version__)
    kinds = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
    sampled = TraceFlags(TraceFlags.SAMPLED)

    def convert(x: Exchange, span: Span) -> ReadableSpan:
        trace_id = x.trace.trace_id
        state = TraceState.from_header([x.trace.state]) if x.trace.state else None
        remote = span.kind == "server"
        return ReadableSpan(
            span.name,
            SpanContext(trace_id, span.span_id, False, sampled, state),
            SpanContext(trace_id, span.parent_id, remote, sampled) if span.parent_id else None,
            resource,
            span.attributes,
            events=[Event(evaluation.EVENT, said, span.ended) for said in span.events],
            kind=kinds[span.kind],
            status=Status(StatusCode.ERROR if span.failed else StatusCode.UNSET),
            start_time=span.started,
            end_time=max(span.ended, span.started),
            instrumentation_scope=scope,
        )

    return convert


def _exporter(config: settings.Traces) -> tuple[Callable[[list[ReadableSpan]], bool], Callable[[], None]]:
    """(send these spans: were they taken?, give up)."""
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    assert config.otlp_endpoint is not None
    endpoint = config.otlp_endpoint.rstrip("/")
    exporter = OTLPSpanExporter(
        endpoint if endpoint.endswith("/v1/traces") else f"{endpoint}/v1/traces",
        headers={name: value.get_secret_value() for name, value in config.headers.items()},
        timeout=EXPORT_SECONDS,
        compression=Compression.Gzip,
    )
    return lambda spans: exporter.export(spans) is SpanExportResult.SUCCESS, exporter.shutdown
