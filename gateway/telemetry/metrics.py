"""Figures for Prometheus: requests, speed, tokens and cost, and how the gateway itself fares."""

from __future__ import annotations

import asyncio
import platform
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal, NamedTuple, TypeVar

import prometheus_client
from prometheus_client import Counter, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector, CollectorRegistry

from gateway import __version__
from gateway.errors import CODES, BadCall, ClientGone, Denied, GatewayError, Unavailable, Unidentified
from gateway.exchange import Attempt, Exchange, Usage

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series that no one reads

# OTel's boundaries for generative AI, extended upwards where reasoning models do not fit.
_DURATION = (
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.56,
    5.12,
    10.24,
    20.48,
    40.96,
    81.92,
    163.84,
    327.68,
    655.36,
)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 60, 120)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_TOKENS = tuple(4**power for power in range(14))
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_LAG = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

_GEN_AI = ("gen_ai_operation_name", "gen_ai_request_model", "gen_ai_provider_name")


class Metric(NamedTuple):
    """One line of docs/metrics.md, and what the metric is made from."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()


# fmt: off
METRICS = (
    Metric("gen_ai_client_operation_duration_seconds", "histogram", (*_GEN_AI, "error_type"),
           "Seconds from a request's first byte to its end; `error_type` is empty where the caller got a complete "
           "reply. In OpenMetrics, with exemplars of sampled traces.", _DURATION),
    Metric("gen_ai_client_token_usage", "histogram", (*_GEN_AI, "gen_ai_token_type"),
           "Tokens of one attempt: `input` (cached ones included) or `output` (reasoning included).", _TOKENS),
    Metric("gen_ai_server_time_to_first_token_seconds", "histogram", _GEN_AI,
           "Streams only: seconds from a request's first byte until the answer's first byte left for the caller.",
           _FIRST),
    Metric("gen_ai_server_time_per_output_token_seconds", "histogram", _GEN_AI,
           "Streams only: seconds per output token after the first.", _PER_TOKEN),
    Metric("tollkeeper_requests_total", "counter", ("team", "model", "provider", "endpoint", "code"),
           "Finished requests. `model` as configured, `provider` the last one tried; `code` is the HTTP status, or "
           "where an answer failed after its head had left, the status of that failure (502 broke off, 499 hung up)."),
    Metric("tollkeeper_tokens_total", "counter", ("team", "model", "type"),
           "Tokens of all attempts, by the configured model that served them. `cache_read` and `cache_write` are parts "
           "of `input`, `reasoning` of `output`: do not add them up."),
    Metric("tollkeeper_cost_usd_total", "counter", ("team", "model"),
           "USD of all attempts, by the configured model that served them."),
    Metric("tollkeeper_unpriced_requests_total", "counter", (),
           "Requests a provider billed for, at a price or usage that is not known: they are missing from the cost."),
    Metric("tollkeeper_usage_missing_total", "counter", (),
           "Complete answers whose provider did not say how many tokens they took."),
    Metric("tollkeeper_usage_rejected_total", "counter", (),
           "Usage a provider reported that cannot be true, and was refused."),
    Metric("tollkeeper_overhead_seconds", "histogram", (),
           "The gateway's own share of the time until the answer's first byte left (until the end, where none did).",
           _OVERHEAD),
    Metric("tollkeeper_in_flight", "gauge", (), "Requests under way."),
    Metric("tollkeeper_upstream_attempts_total", "counter", ("provider", "outcome"),
           "Attempts at providers; `outcome` is `ok`, the attempt's error code, or `stopped` where the gateway itself "
           "broke it off."),
    Metric("tollkeeper_refused_total", "counter", ("reason",),
           "Requests the gateway itself refused; `reason` is the error code the caller got."),
    Metric("tollkeeper_cache_total", "counter", ("result",),
           "Requests by what the cache said: hit, semantic, coalesced, miss, bypass."),
    Metric("tollkeeper_client_disconnects_total", "counter", (), "Requests whose caller hung up before the end."),
    Metric("tollkeeper_telemetry_dropped_total", "counter", ("sink",),
           "Requests that are missing from a sink because its queue was full or it could not be written."),
    Metric("tollkeeper_event_loop_lag_seconds", "histogram", (),
           "How much too late the event loop woke a task that sleeps a quarter of a second.", _LAG),
    Metric("tollkeeper_pool_connections", "gauge", ("provider", "state"),
           "Connections to a provider that are `active` or `idle`, and calls `waiting` for one."),
    Metric("tollkeeper_build_info", "gauge", ("version", "python"), "Always 1; its labels say what is running."),
)
# fmt: on
_BY_NAME = {metric.name: metric for metric in METRICS}

_PARTS = ("input", "output", "cache_read", "cache_write", "reasoning")
_CACHE = ("hit", "semantic", "coalesced", "miss", "bypass", "other")
_STATUSES = frozenset({499, 529, *HTTPStatus})
_GENERATES = frozenset({"chat", "text_completion", "generate_content", "embeddings"})
_FRESH_SECONDS = 1.0

Reading = TypeVar("Reading", CounterMetricFamily, GaugeMetricFamily)


@dataclass(slots=True)
class _Request:
    """The series one kind of request moves."""

    requests: Counter
    duration: Histogram
    stream: tuple[Histogram, Histogram] | None  # until the first token, and per token after it


@dataclass(slots=True)
class _Spent:
    nano: int = 0  # money stays an integer until it is shown


@dataclass(slots=True)
class _Try:
    """The series one kind of attempt moves."""

    attempts: Counter
    tokens: list[Counter]  # one for each of _PARTS
    usage: list[Histogram]  # input, output
    spent: _Spent

    def note(self, usage: Usage) -> None:
        write = usage.cache_write + usage.cache_write_1h
        counts = (usage.input, usage.output, usage.cache_read, write, usage.reasoning)
        for tokens, count in zip(self.tokens, counts, strict=True):
            if count:
                tokens.inc(count)
        self.usage[0].observe(usage.input)
        self.usage[1].observe(usage.output)


class Metrics:
    """Observer.  One registry per app; the labels are bounded by the configuration.

    models: as configured, without their aliases.  pools: by provider, a function that
    returns connections by state.  dropped: by sink, a function that returns how many requests it has lost so far.
    """

    def __init__(
        self,
        teams: Collection[str],
        models: Collection[str],
        providers: Collection[str],
        pools: Mapping[str, Callable[[], Mapping[str, int]]] | None = None,
        dropped: Mapping[str, Callable[[], int]] | None = None,
    ) -> None:
        self._known = frozenset(teams), frozenset(models), frozenset(providers)
        self._pools = pools or {}
        self._dropped = dropped or {}
        self._running = 0
        self._requests: dict[tuple[str, str, str, str, str, int, str, bool], _Request] = {}
        self._tries: dict[tuple[str, str, str, str, str], _Try] = {}
        self._spent: dict[tuple[str, str], _Spent] = {}
        self._lock = threading.Lock()
        self._rendered: dict[str, tuple[float, bytes]] = {}
        self.registry = CollectorRegistry()
        self._register()

    def _register(self) -> None:
        self._duration = self._histogram("gen_ai_client_operation_duration_seconds")
        self._usage = self._histogram("gen_ai_client_token_usage")
        self._first = self._histogram("gen_ai_server_time_to_first_token_seconds")
        self._per_token = self._histogram("gen_ai_server_time_per_output_token_seconds")
        self._counted = self._counter("tollkeeper_requests_total")
        self._tokens = self._counter("tollkeeper_tokens_total")
        self._unpriced = self._counter("tollkeeper_unpriced_requests_total")
        self._missing = self._counter("tollkeeper_usage_missing_total")
        self._rejected = self._counter("tollkeeper_usage_rejected_total")
        self._overhead = self._histogram("tollkeeper_overhead_seconds")
        self._attempts = self._counter("tollkeeper_upstream_attempts_total")
        self._refused = self._counter("tollkeeper_refused_total")
        cache = self._counter("tollkeeper_cache_total")
        self._cached = {result: cache.labels(result) for result in _CACHE}
        self._gone = self._counter("tollkeeper_client_disconnects_total")
        self._lag = self._histogram("tollkeeper_event_loop_lag_seconds")
        build = Info("tollkeeper_build", _BY_NAME["tollkeeper_build_info"].meaning, registry=self.registry)
        build.info({"version": __version__, "python": platform.python_version()})
        self.registry.register(_Readings(self))
        prometheus_client.ProcessCollector(registry=self.registry)
        prometheus_client.PlatformCollector(registry=self.registry)

    def _counter(self, name: str) -> Counter:
        return Counter(name, _BY_NAME[name].meaning, _BY_NAME[name].labels, registry=self.registry)

    def _histogram(self, name: str) -> Histogram:
        metric = _BY_NAME[name]
        return Histogram(name, metric.meaning, metric.labels, registry=self.registry, buckets=metric.buckets)

    def started(self, x: Exchange) -> None:
        self._running += 1

    def finished(self, x: Exchange) -> None:
        self._running -= 1
        status, code = x.status, ""
        if x.error is not None:
            status, code = (x.error.status if status < 400 else status), x.error.code
            self._note_error(x.error)
        last = x.attempts[-1].target.provider.name if x.attempts else ""
        key = (x.caller.team, x.alias or x.model, last, x.endpoint, x.operation, status, code, x.stream)
        series = self._requests.get(key) or self._request(key)
        series.requests.inc()
        exemplar = None
        if x.trace.sampled:
            exemplar = {"trace_id": f"{x.trace.trace_id:032x}", "span_id": f"{x.trace.span_id:016x}"}
        series.duration.observe((x.ended - x.started) / 1e9, exemplar)
        self._overhead.observe(x.overhead / 1e9)
        if x.cache:
            (self._cached.get(x.cache) or self._cached["other"]).inc()
        if x.attempts:
            self._note_attempts(x)
        if series.stream is not None and x.first_byte and status < 400:
            _note_stream(x, *series.stream)

    async def aclose(self) -> None:
        """There is nothing to write: what was counted is read by whoever asks."""

    async def watch_loop(self, every: float = 0.25) -> None:
        """Measures how late the event loop is, each so many seconds, until cancelled."""
        while True:
            due = time.perf_counter_ns() + int(every * 1e9)
            await asyncio.sleep(every)
            self._lag.observe(max(0, time.perf_counter_ns() - due) / 1e9)

    def render(self, accept: str) -> tuple[bytes, str]:
        """(body, content type), at most a second old.  Takes milliseconds: call it in a worker thread."""
        is_open = "application/openmetrics-text" in accept
        kind = openmetrics.CONTENT_TYPE_LATEST if is_open else CONTENT_TYPE_PLAIN_0_0_4
        with self._lock:  # several scrapers at once cost one rendering
            made, body = self._rendered.get(kind, (float("-inf"), b""))
            if time.monotonic() - made >= _FRESH_SECONDS:
                write = openmetrics.generate_latest if is_open else prometheus_client.generate_latest
                body = write(self.registry)
                self._rendered[kind] = time.monotonic(), body
        return body, kind

    def _note_error(self, error: GatewayError) -> None:
        if isinstance(error, ClientGone):
            self._gone.inc()
        elif isinstance(error, (BadCall, Unidentified, Denied, Unavailable)):
            self._refused.labels(_word(error.code)).inc()

    def _note_attempts(self, x: Exchange) -> None:
        unpriced = False
        for attempt in x.attempts:
            target, usage = attempt.target, attempt.usage
            key = (x.caller.team, target.alias, target.provider.name, x.operation, _outcome(x, attempt))
            series = self._tries.get(key) or self._try(key)
            series.attempts.inc()
            if usage is not None:
                series.note(usage)
            if attempt.cost is None:
                unpriced = True
            else:
                series.spent.nano += attempt.cost
            if attempt.rejected:
                self._rejected.inc()
            elif attempt.complete and (usage.estimated if usage is not None else x.operation in _GENERATES):
                self._missing.inc()
        if unpriced:
            self._unpriced.inc()

    def _request(self, key: tuple[str, str, str, str, str, int, str, bool]) -> _Request:
        """Off the fast way: names that are not configured are folded first, and never become keys."""
        team, model, provider, endpoint, operation, status, code, stream = key
        team, model, provider = _fold(key[:3], self._known)
        status = status if status in _STATUSES else status // 100 * 100
        key = (team, model, provider, endpoint, operation, status, _word(code), stream)
        series = self._requests.get(key)
        if series is None:
            labels = (operation, model, provider)
            series = self._requests[key] = _Request(
                self._counted.labels(team, model, provider, endpoint, str(status)),
                self._duration.labels(*labels, _word(code)),
                (self._first.labels(*labels), self._per_token.labels(*labels)) if stream else None,
            )
        return series

    def _try(self, key: tuple[str, str, str, str, str]) -> _Try:
        team, model, provider, operation, outcome = key
        team, model, provider = _fold(key[:3], self._known)
        key = (team, model, provider, operation, outcome)
        series = self._tries.get(key)
        if series is None:
            labels = (operation, model, provider)
            tokens = [self._tokens.labels(team, model, part) for part in _PARTS]
            series = self._tries[key] = _Try(
                self._attempts.labels(provider, outcome),
                tokens,
                [self._usage.labels(*labels, kind) for kind in ("input", "output")],
                self._spent.setdefault((team, model), _Spent()),
            )
        return series


class _Readings(Collector):
    """What is read when somebody asks, instead of being counted."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        metrics = self._metrics
        yield GaugeMetricFamily("tollkeeper_in_flight", _BY_NAME["tollkeeper_in_flight"].meaning, metrics._running)
        cost = _family(CounterMetricFamily, "tollkeeper_cost_usd_total")
        for labels, spent in list(metrics._spent.items()):
            cost.add_metric(labels, spent.nano / 1e9)
        yield cost
        dropped = _family(CounterMetricFamily, "tollkeeper_telemetry_dropped_total")
        for sink, losses in metrics._dropped.items():
            dropped.add_metric((sink,), losses())
        yield dropped
        pools = _family(GaugeMetricFamily, "tollkeeper_pool_connections")
        for provider, connections in metrics._pools.items():
            for state, count in connections().items():
                pools.add_metric((provider, state), count)
        yield pools


def _family(make: Callable[..., Reading], name: str) -> Reading:
    return make(name, _BY_NAME[name].meaning, labels=_BY_NAME[name].labels)


def _fold(names: tuple[str, str, str], known: tuple[frozenset[str], ...]) -> list[str]:
    return [name if name in words else "other" if name else "none" for name, words in zip(names, known, strict=True)]


def _word(code: str) -> str:
    """One of our stable codes; a policy of the operator's may use words of its own."""
    return code if not code or code in CODES else "other"


def _note_stream(x: Exchange, first: Histogram, per_token: Histogram) -> None:
    first.observe((x.first_byte - x.started) / 1e9)
    usage = x.attempts[-1].usage if x.attempts else None
    if usage is not None and usage.output > 1:
        per_token.observe((x.ended - x.first_byte) / 1e9 / (usage.output - 1))


def _outcome(x: Exchange, attempt: Attempt) -> str:
    if isinstance(attempt.error, ClientGone) and not isinstance(x.error, ClientGone):
        return "stopped"  # nobody hung up: the answer was not wanted any more
    if attempt.error is not None:
        return _word(attempt.error.code)
    return "ok" if attempt.complete else "incomplete"


def document() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Prometheus reads these at `/metrics`. Names that begin with `gen_ai_` are OpenTelemetry's for generative AI,",
        "as Prometheus spells them. `team`, `model` and `provider` take only names from the configuration: any other",
        "becomes `other`, and a missing one `none`, so that no caller can add series. The process's own figures",
        "(`process_*`, `python_info`) stand beside them. `python -m gateway.telemetry.metrics` prints this page.",
        "",
        "| name | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
        lines.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.meaning} |")
    lines += ["", "Upper bounds of the histograms' buckets:", ""]
    for metric in METRICS:
        if metric.buckets:
            lines.append(f"* `{metric.name}`: {', '.join(map(str, metric.buckets))}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
