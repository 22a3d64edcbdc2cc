"""Figures for Prometheus: requests, speed, tokens and cost, and how the gateway itself fares."""

from __future__ import annotations

import asyncio
import platform
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from http import HTTPStatus
from itertools import accumulate
from operator import add

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from gateway import __version__
from gateway.errors import CODES, BadCall, ClientGone, Denied, GatewayError, Unavailable, Unidentified
from gateway.exchange import Attempt, Exchange, Usage
from gateway.telemetry.catalogue import BY_NAME

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series that no one reads

_PARTS = ("input", "output", "cache_read", "cache_write", "reasoning")
_CACHE = ("hit", "semantic", "coalesced", "miss", "bypass", "other")
_STATUSES = frozenset({499, 529, *HTTPStatus})
_GENERATES = frozenset({"chat", "text_completion", "generate_content", "embeddings"})
_FRESH_SECONDS = 1.0

NS = 1_000_000_000
_Labels = tuple[str, ...]
_Family = CounterMetricFamily | GaugeMetricFamily
_Bucket = tuple[str, float] | tuple[str, float, Exemplar]


class _Histogram:
    """Whole numbers, written by the event loop alone: nanoseconds where the metric shows seconds, or tokens."""

    def __init__(self, name: str) -> None:
        unit = _unit(name)
        self.bounds = [round(bound * unit) for bound in BY_NAME[name].buckets]
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0
        self.exemplars: dict[int, tuple[int, int, int, int]] = {}  # by bucket: time, amount, trace id, span id

    def observe(self, amount: int) -> None:
        self.counts[bisect_left(self.bounds, amount)] += 1
        self.sum += amount

    def add(self, other: _Histogram) -> None:
        self.counts = [*map(add, self.counts, other.counts)]
        self.sum += other.sum
        for place, exemplar in list(other.exemplars.items()):
            self.exemplars[place] = max(exemplar, self.exemplars.get(place, exemplar))


class _Request:
    """What one kind of request moves: how often and how long, and on streams until the first token and per token."""

    def __init__(self, labels: _Labels, outcome: _Labels, stream: bool) -> None:
        self.labels = labels  # team, model, provider, endpoint, status
        self.outcome = outcome  # operation, model, provider, error code
        self.stream = stream
        self.saved = 0  # nano-USD
        self.duration = _Histogram("gen_ai_client_operation_duration_seconds")
        self.first = _Histogram("gen_ai_server_time_to_first_token_seconds")
        self.per_token = _Histogram("gen_ai_server_time_per_output_token_seconds")


class _Try:
    """What one kind of attempt moves."""

    def __init__(self, labels: _Labels, team: str, outcome: str) -> None:
        self.labels = labels  # operation, model, provider
        self.team = team
        self.outcome = outcome
        self.attempts = 0
        self.input = _Histogram("gen_ai_client_token_usage")
        self.output = _Histogram("gen_ai_client_token_usage")
        self.parts = [0, 0, 0]  # the last three of _PARTS
        self.nano = 0  # money stays an integer until it is shown

    def note(self, usage: Usage) -> None:
        self.input.observe(usage.input)
        self.output.observe(usage.output)
        write = usage.cache_write + usage.cache_write_1h
        if usage.cache_read or write or usage.reasoning:
            self.parts = [*map(add, self.parts, (usage.cache_read, write, usage.reasoning))]

    def tokens(self) -> list[int]:
        return [self.input.sum, self.output.sum, *self.parts]


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
        self._known = teams, frozenset(models), frozenset(providers)  # teams come and go
        self._pools = pools or {}
        self._dropped = dropped or {}
        self._running = 0
        self._requests: dict[tuple[str, str, str, str, str, int, str, bool], _Request] = {}
        self._tries: dict[tuple[str, str, str, str, str], _Try] = {}
        self._unpriced = self._missing = self._rejected = self._gone = 0
        self._refused: dict[str, int] = {}
        self._cached = dict.fromkeys(_CACHE, 0)
        self._assessed: dict[tuple[str, str], int] = {}  # by assessor and verdict: the configuration's names, our words
        self._assessors: dict[str, _Histogram] = {}
        self._overhead = _Histogram("tollkeeper_overhead_seconds")
        self._lag = _Histogram("tollkeeper_event_loop_lag_seconds")
        self._lock = threading.Lock()
        self._rendered: dict[str, tuple[float, bytes]] = {}
        self.registry = CollectorRegistry()
        self.registry.register(_Shown(self))
        prometheus_client.ProcessCollector(registry=self.registry)
        prometheus_client.PlatformCollector(registry=self.registry)

    def started(self, x: Exchange) -> None:
        self._running += 1

    def finished(self, x: Exchange) -> None:
        self._running -= 1
        status, code, attempts = x.status, "", x.attempts
        if x.error is not None:
            status, code = (x.error.status if status < 400 else status), x.error.code
            self._note_error(x.error)
        last = attempts[-1].target.provider.name if attempts else "none"
        key = (x.caller.team, x.alias or x.model, last, x.endpoint, x.operation, status, code, x.stream)
        series = self._requests.get(key) or self._request(key)
        took = x.ended - x.started
        series.duration.observe(took)
        if x.trace.sampled:
            bucket = bisect_left(series.duration.bounds, took)
            series.duration.exemplars[bucket] = (time.time_ns(), took, x.trace.trace_id, x.trace.span_id)
        self._overhead.observe(x.overhead)
        if x.cache:
            self._cached[x.cache if x.cache in self._cached else "other"] += 1
            series.saved += x.saved or 0
        for one in x.assessments:
            place = (one.assessor, one.verdict)
            self._assessed[place] = self._assessed.get(place, 0) + 1
            times = self._assessors.get(one.assessor)
            if times is None:
                times = self._assessors[one.assessor] = _Histogram("tollkeeper_assessor_seconds")
            times.observe(one.took)
        if attempts:
            self._note_attempts(x)
        if x.stream and x.first_byte and status < 400:
            series.first.observe(x.first_byte - x.started)
            usage = attempts[-1].usage if attempts else None
            if usage is not None and usage.output > 1:
                series.per_token.observe(round((x.ended - x.first_byte) / (usage.output - 1)))

    async def aclose(self) -> None:
        """There is nothing to write: what was counted is read by whoever asks."""

    async def watch_loop(self, every: float = 0.25) -> None:
        """Measures how late the event loop is, each so many seconds, until cancelled."""
        while True:
            due = time.perf_counter_ns() + int(every * 1e9)
            await asyncio.sleep(every)
            self._lag.observe(max(0, time.perf_counter_ns() - due))

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
            self._gone += 1
        elif isinstance(error, (BadCall, Unidentified, Denied, Unavailable)):
            word = _word(error.code)
            self._refused[word] = self._refused.get(word, 0) + 1

    def _note_attempts(self, x: Exchange) -> None:
        unpriced = False
        for attempt in x.attempts:
            target, usage = attempt.target, attempt.usage
            key = (x.caller.team, target.alias, target.provider.name, x.operation, _outcome(x, attempt))
            series = self._tries.get(key) or self._try(key)
            series.attempts += 1
            if usage is not None:
                series.note(usage)
            if attempt.cost is None:
                unpriced = True
            else:
                series.nano += attempt.cost
            if attempt.rejected:
                self._rejected += 1
            elif attempt.complete and (usage.estimated if usage is not None else x.operation in _GENERATES):
                self._missing += 1
        self._unpriced += unpriced

    def _request(self, key: tuple[str, str, str, str, str, int, str, bool]) -> _Request:
        """Off the fast way: names that are not configured are folded first, and never become keys."""
        (team, model, provider), (endpoint, operation, status, code, stream) = _fold(key[:3], self._known), key[3:]
        status = status if status in _STATUSES else status // 100 * 100
        key = (team, model, provider, endpoint, operation, status, _word(code), stream)
        labels, outcome = (team, model, provider, endpoint, str(status)), (operation, model, provider, _word(code))
        series = self._requests[key] = self._requests.get(key) or _Request(labels, outcome, stream)
        return series

    def _try(self, key: tuple[str, str, str, str, str]) -> _Try:
        (team, model, provider), (operation, outcome) = _fold(key[:3], self._known), key[3:]
        key = (team, model, provider, operation, outcome)
        series = self._tries[key] = self._tries.get(key) or _Try((operation, model, provider), team, outcome)
        return series


class _Shown(Collector):
    """The figures as Prometheus's families, made when somebody asks; in another thread than the loop that counts."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[_Family | HistogramMetricFamily | InfoMetricFamily]:
        metrics = self._metrics
        requests, tries = list(metrics._requests.values()), list(metrics._tries.values())
        streams = [r for r in requests if r.stream]
        yield _histogram("gen_ai_client_operation_duration_seconds", ((r.outcome, r.duration) for r in requests))
        usage = ((t.labels + kind, h) for t in tries for kind, h in ((("input",), t.input), (("output",), t.output)))
        yield _histogram("gen_ai_client_token_usage", usage)
        yield _histogram("gen_ai_server_time_to_first_token_seconds", ((r.outcome[:3], r.first) for r in streams))
        yield _histogram("gen_ai_server_time_per_output_token_seconds", ((r.outcome[:3], r.per_token) for r in streams))
        yield _family("tollkeeper_requests_total", ((r.labels, sum(r.duration.counts)) for r in requests))
        tokens = (((t.team, t.labels[1], part), n) for t in tries for part, n in zip(_PARTS, t.tokens(), strict=True))
        yield _family("tollkeeper_tokens_total", tokens)
        yield _family("tollkeeper_unpriced_requests_total", [((), metrics._unpriced)])
        yield _family("tollkeeper_usage_missing_total", [((), metrics._missing)])
        yield _family("tollkeeper_usage_rejected_total", [((), metrics._rejected)])
        yield _histogram("tollkeeper_overhead_seconds", [((), metrics._overhead)])
        yield _family("tollkeeper_upstream_attempts_total", (((t.labels[2], t.outcome), t.attempts) for t in tries))
        yield _family("tollkeeper_refused_total", (((why,), n) for why, n in list(metrics._refused.items())))
        yield _family("tollkeeper_cache_total", (((result,), n) for result, n in metrics._cached.items()))
        yield _family("tollkeeper_saved_usd_total", ((r.labels[:2], r.saved) for r in requests if r.saved), NS)
        said = (
            (name, verdict, n) for (names, verdict), n in list(metrics._assessed.items()) for name in names.split(",")
        )
        yield _family("tollkeeper_assessments_total", (((name, verdict), n) for name, verdict, n in said))
        times = ((name, h) for names, h in list(metrics._assessors.items()) for name in names.split(","))
        yield _histogram("tollkeeper_assessor_seconds", (((name,), h) for name, h in times))
        yield _family("tollkeeper_client_disconnects_total", [((), metrics._gone)])
        yield _histogram("tollkeeper_event_loop_lag_seconds", [((), metrics._lag)])
        build = {"version": __version__, "python": platform.python_version()}
        yield InfoMetricFamily("tollkeeper_build", BY_NAME["tollkeeper_build_info"].meaning, build)
        yield _family("tollkeeper_in_flight", [((), metrics._running)])
        yield _family("tollkeeper_cost_usd_total", (((t.team, t.labels[1]), t.nano) for t in tries), NS)
        yield _family("tollkeeper_telemetry_dropped_total", (((sink,), n()) for sink, n in metrics._dropped.items()))
        pools = (((name, state), n) for name, read in metrics._pools.items() for state, n in read().items())
        yield _family("tollkeeper_pool_connections", pools)


def _family(name: str, pairs: Iterable[tuple[_Labels, int]], unit: int = 1) -> _Family:
    """Sums what has the same labels.  unit: by how much the sums are divided."""
    make = CounterMetricFamily if BY_NAME[name].type == "counter" else GaugeMetricFamily
    family = make(name, BY_NAME[name].meaning, labels=BY_NAME[name].labels)
    sums: dict[_Labels, int] = {}
    for labels, count in pairs:
        sums[labels] = sums.get(labels, 0) + count
    for labels, total in sums.items():
        family.add_metric(labels, total / unit)
    return family


def _histogram(name: str, pairs: Iterable[tuple[_Labels, _Histogram]]) -> HistogramMetricFamily:
    metric, unit = BY_NAME[name], _unit(name)
    family = HistogramMetricFamily(name, metric.meaning, labels=metric.labels)
    bounds: list[str] = [*map(floatToGoString, (*metric.buckets, float("inf")))]
    sums: dict[_Labels, _Histogram] = {}
    for labels, histogram in pairs:
        sums.setdefault(labels, _Histogram(name)).add(histogram)
    for labels, total in sums.items():
        buckets: list[_Bucket] = [*zip(bounds, map(float, accumulate(total.counts)), strict=True)]
        for place, (at, amount, trace, span) in total.exemplars.items():
            ids = {"trace_id": f"{trace:032x}", "span_id": f"{span:016x}"}
            buckets[place] = (*buckets[place][:2], Exemplar(ids, amount / unit, at / NS))
        family.add_metric(labels, buckets, total.sum / unit)
    return family


def _unit(name: str) -> int:
    return NS if name.endswith("_seconds") else 1


def _fold(names: tuple[str, str, str], known: tuple[Collection[str], ...]) -> list[str]:
    return [
        name if name in words or name == "none" else "other" if name else "none"
        for name, words in zip(names, known, strict=True)
    ]


def _word(code: str) -> str:
    """One of our stable codes; a policy of the operator's may use words of its own."""
    return code if not code or code in CODES else "other"


def _outcome(x: Exchange, attempt: Attempt) -> str:
    if attempt.complete and attempt.error is None:
        return "ok"
    if isinstance(attempt.error, ClientGone) and not isinstance(x.error, ClientGone):
        return "stopped"  # nobody hung up: the answer was not wanted any more
    return _word(attempt.error.code) if attempt.error is not None else "incomplete"
