"""The measurements.  Subjects take turns, so that a noisy machine disturbs all of them and the ratios survive."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from bench import load, peers, subjects
from bench.figures import Figure, middle, percentile
from bench.subjects import KEY, Subject

ONE: Final = load.work(KEY)
UNARY: Final = load.work(KEY, 32)
DIFFERS: Final = load.work(KEY, 32, differs=True)
NUMBERED: Final = load.work(KEY, 32, mark=b"order 4711000815")
DECODED: Final = load.work(KEY, 32, mark=b"order 546480206")  # as many digits as a number that counts behind its word
STREAM: Final = load.work(KEY, 200, stream=True)
DISTURBED: Final = 0.85  # of its core that a busy server must have had, or other programs took part of it


@dataclass(frozen=True)
class Plan:
    """How long to look."""

    rounds: int = 5
    seconds: float = 2.5  # of one subject's turn
    latency_rounds: int = 10
    stream_rounds: int = 3
    requests: int = 200_000  # between the two looks at memory
    starts: int = 3


QUICK: Final = Plan(3, 0.7, 6, 1, 20_000, 1)


@dataclass
class Bench:
    """What all measurements share: where files are, the server's core, the provider."""

    plan: Plan
    folder: Path
    server_core: int
    provider: Subject
    tell: Callable[[str], None]
    runner: asyncio.Runner = field(default_factory=lambda: asyncio.Runner(loop_factory=uvloop.new_event_loop))
    sent: dict[str, int] = field(default_factory=dict)  # calls answered, by the subject's folder
    gateways: int = 0

    def drive(
        self, subject: Subject, job: load.Work, seconds: float, *, warm: float = 0.3, limit: int | None = None
    ) -> load.Result:
        if subject.process.poll() is not None:
            raise load.Failed(f"{subject.name} has ended; it said: {subject.said()}")
        run = load.run(subject.port, job, seconds, warm=min(warm, seconds), limit=limit, cpu=subject.cpu_ns)
        try:
            result = self.runner.run(run)
        except load.Failed as error:
            raise load.Failed(f"{subject.name}: {error}") from error
        self.sent[subject.name] = self.sent.get(subject.name, 0) + result.answers
        return result

    def cost(self, subject: Subject, job: load.Work, seconds: float, *, warm: float = 0.3) -> tuple[load.Result, float]:
        """The run, and CPU microseconds of the server for each answer (or chunk): also what it does afterwards."""
        before = subject.cpu_ns()
        result = self.drive(subject, job, seconds, warm=warm)
        subject.rest()
        return result, (subject.cpu_ns() - before) / (result.chunks or result.answers) / 1000

    def hits(self, gateway: Subject, differed: int) -> None:
        """Raises Failed where calls that repeat were not answered from the cache, or some that differed were."""
        import httpx2

        found = {"hit": 0.0, "miss": 0.0}
        for line in httpx2.get(f"{gateway.url}/metrics").text.splitlines():
            for word in found:
                if line.startswith(f'tollkeeper_cache_total{{result="{word}"}}'):
                    found[word] = float(line.split()[-1])
        total = self.sent[gateway.name]
        if found["hit"] < total / 5 or found["miss"] < differed:
            raise load.Failed(f"of {total:,} calls the cache answered {found['hit']:,.0f}: not what was measured")

    def noted(self, share: float) -> None:
        """Tells that figures are less exact, where a server that had enough to do did not have its core."""
        if share < DISTURBED:
            self.tell(f"  other programs took part of the core: the server had {share:.0%} of it")

    @contextmanager
    def relay(self, *by: str) -> Iterator[Subject]:
        with subjects.relay(self.folder, self.server_core, self.provider.url, *by) as relay:
            relay.ready(ONE)
            yield relay

    @contextmanager
    def gateway(
        self, *, catalogue: bool = False, money: bool = False, cache: bool = False, safety: bool = False
    ) -> Iterator[tuple[Subject, float]]:
        """A gateway with everything on, and its seconds from start to first answer."""
        self.gateways += 1
        name = f"gateway-{self.gateways}"
        gateway = subjects.gateway(
            self.folder,
            self.server_core,
            self.provider.url,
            catalogue=catalogue,
            money=money,
            cache=cache,
            safety=safety,
            name=name,
        )
        with gateway:
            took = gateway.ready(ONE)
            self.sent[name] = 1
            yield gateway, took


def starts(bench: Bench) -> list[Figure]:
    figures = []
    for name, catalogue in (("with prices in the configuration", False), ("with catalogue prices", True)):
        took = []
        for _ in range(bench.plan.starts):
            with bench.gateway(catalogue=catalogue) as (_, seconds):
                took.append(seconds)
        bench.tell(f"start to first answer, {name}: " + ", ".join(f"{seconds:.2f} s" for seconds in took))
        figures.append(middle(f"start to first answer, {name}", "s", took, must=2.0, aim=1.0))
    return figures


def throughput(bench: Bench) -> list[Figure]:
    """Requests per second of the server's own CPU time: on an undisturbed machine, per second."""
    rates: dict[str, list[float]] = {"relay": [], "relay by httpx2's interface": [], "gateway": []}
    costs: dict[str, list[float]] = {name: [] for name in rates}
    shares, direct = [], []
    with bench.relay() as relay, bench.relay("httpx2") as other, bench.gateway() as (gateway, _):
        for subject in (relay, other, gateway):
            bench.drive(subject, UNARY, min(1.0, bench.plan.seconds))
        for number in range(1, bench.plan.rounds + 1):
            direct.append(bench.drive(bench.provider, UNARY, bench.plan.seconds / 4).rate)
            for name, subject in zip(rates, (relay, other, gateway), strict=True):
                result, cost = bench.cost(subject, UNARY, bench.plan.seconds)
                rates[name].append(result.rate / result.share)
                costs[name].append(cost)
                shares.append(result.share)
            last = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in rates.items())
            bench.tell(f"throughput {number}/{bench.plan.rounds}, req/s: direct {direct[-1]:,.0f}, {last}")
            bench.noted(min(shares[-len(rates) :]))
    told = everything_on(bench, gateway)
    ratios, others = (
        [ours / bare for ours, bare in zip(rates["gateway"], rates[name], strict=True)] for name in list(rates)[:2]
    )
    return [
        middle("throughput, c=32: direct, load and provider on one core", "req/s", direct),
        *(middle(f"throughput, c=32: {name}, per core", "req/s", values) for name, values in rates.items()),
        middle("throughput, gateway / bare relay", "", ratios, must=0.5, aim=0.65, more_is_better=True),
        middle("throughput, gateway / relay by httpx2's interface", "", others),
        *(middle(f"CPU per request: {name}, with what follows it", "us", values) for name, values in costs.items()),
        middle("share of its core that the server had", "", shares),
        *told,
    ]


def budgets(bench: Bench) -> list[Figure]:
    """What a hard budget and limits of a team cost."""
    ratios, costs = [], []
    with bench.gateway() as (without, _), bench.gateway(money=True) as (gateway, _):
        for subject in (without, gateway):
            bench.drive(subject, UNARY, min(1.0, bench.plan.seconds))
        for number in range(1, bench.plan.rounds + 1):
            plain, spared = bench.cost(without, UNARY, bench.plan.seconds)
            held, cost = bench.cost(gateway, UNARY, bench.plan.seconds)
            ratios.append((held.rate / held.share) / (plain.rate / plain.share))
            costs.append(cost - spared)
            bench.tell(f"budgets {number}/{bench.plan.rounds}: {held.rate:,.0f} against {plain.rate:,.0f} req/s")
            bench.noted(min(plain.share, held.share))
    return [
        middle("throughput, budgets and limits on / off", "", ratios, must=0.85, more_is_better=True),
        middle("CPU per request for budgets and limits", "us", costs),
    ]


def cache(bench: Bench) -> list[Figure]:
    """What a hit takes, beside a relay that answers by itself, and what a look-up costs those who find nothing."""
    hits, misses, costs, spent, relays, differed = [], [], [], [], [], 0
    with (
        bench.relay("itself") as relay,
        bench.gateway() as (without, _),
        bench.gateway(cache=True) as (gateway, _),
    ):
        for subject in (relay, without, gateway):
            bench.drive(subject, UNARY, min(1.0, bench.plan.seconds))
        for number in range(1, bench.plan.rounds + 1):
            bare, cost = bench.cost(relay, UNARY, bench.plan.seconds)
            relays.append(cost)
            hit, cost = bench.cost(gateway, UNARY, bench.plan.seconds)
            spent.append(cost)
            hits.append((hit.rate / hit.share) / (bare.rate / bare.share))
            plain, spared = bench.cost(without, DIFFERS, bench.plan.seconds)
            miss, cost = bench.cost(gateway, DIFFERS, bench.plan.seconds)
            costs.append(cost - spared)
            differed += miss.answers
            misses.append((miss.rate / miss.share) / (plain.rate / plain.share))
            told = f"hits {hit.rate:,.0f} against {bare.rate:,.0f} req/s"
            bench.tell(f"cache {number}/{bench.plan.rounds}: {told}; misses {miss.rate:,.0f} against {plain.rate:,.0f}")
            bench.noted(min(one.share for one in (bare, hit, plain, miss)))
        bench.hits(gateway, differed)
    return [
        middle(
            "throughput, exact hits / bare relay without upstream", "", hits, must=0.6, aim=0.8, more_is_better=True
        ),
        middle("CPU per request: bare relay without upstream", "us", relays),
        middle("CPU per request: exact hit, with what follows it", "us", spent),
        middle("throughput, cache look-up on / off, all misses", "", misses, must=0.9, more_is_better=True),
        middle("CPU per request for a look-up that finds nothing, and keeping the answer", "us", costs),
    ]


def safety(bench: Bench) -> list[Figure]:
    """What the pattern assessors cost, all on, both ways; on streams for each chunk; and with the cache besides."""
    cases = (("prose", UNARY, "safety"), ("prose with a long number", NUMBERED, "safety"))
    cases += (("prose that is decoded", DECODED, "safety"), ("cache too, all misses", DIFFERS, "both"))
    ratios: dict[str, list[float]] = {name: [] for name, *_ in cases}
    costs: dict[str, list[float]] = {name: [] for name, *_ in cases}
    chunks = []
    with (
        bench.gateway() as (without, _),
        bench.gateway(safety=True) as (judging, _),
        bench.gateway(safety=True, cache=True) as (both, _),
    ):
        for subject in (without, judging, both):
            bench.drive(subject, DIFFERS, min(1.0, bench.plan.seconds))
        for number in range(1, bench.plan.rounds + 1):
            for name, job, which in cases:
                plain, spared = bench.cost(without, job, bench.plan.seconds)
                judged, cost = bench.cost(judging if which == "safety" else both, job, bench.plan.seconds)
                ratios[name].append((judged.rate / judged.share) / (plain.rate / plain.share))
                costs[name].append(cost - spared)
                bench.noted(min(plain.share, judged.share))
            told = ", ".join(f"{name} {values[-1]:.2f}" for name, values in ratios.items())
            bench.tell(f"safety {number}/{bench.plan.rounds}, on / off: {told}")
        for _ in range(bench.plan.stream_rounds):
            spared = bench.cost(without, STREAM, bench.plan.seconds, warm=0.5)[1]
            chunks.append(bench.cost(judging, STREAM, bench.plan.seconds, warm=0.5)[1] - spared)
    return [
        *(
            middle(
                f"throughput, pattern assessors on / off: {name}", "", values, must=0.8, aim=0.9, more_is_better=True
            )
            for name, values in ratios.items()
        ),
        *(middle(f"CPU per request: {name}", "us", values) for name, values in costs.items()),
        middle("CPU per streamed chunk for pattern assessors", "us", chunks),
    ]


def everything_on(bench: Bench, gateway: Subject) -> list[Figure]:
    """Once the gateway has ended: was each request it answered recorded, logged, and a share of them traced?"""
    answered = bench.sent[gateway.name]
    store = sqlite3.connect(gateway.folder / "tollkeeper.db")
    (recorded,) = store.execute("SELECT count(*) FROM exchange").fetchone()
    store.close()
    with open(gateway.folder / "stdout", "rb") as log:
        logged = sum(1 for line in log if b'"status":200' in line)
    bench.runner.run(asyncio.sleep(0.1))
    if not _counts(bench)["trace_batches"]:
        raise load.Failed("the gateway sent no traces: not everything was on")
    return [
        Figure("requests missing from the records", answered - recorded, f"of {answered:,}", must=0),
        Figure("requests missing from the access log", answered - logged, f"of {answered:,}", must=0),
    ]


def latency(bench: Bench) -> list[Figure]:
    """One call at a time, the subjects by short turns."""
    took: dict[str, list[int]] = {"direct": [], "relay": [], "gateway": []}
    p50s: dict[str, list[float]] = {"direct": [], "relay": [], "gateway": []}
    turn = min(0.3, bench.plan.seconds / 2)
    with bench.relay() as relay, bench.gateway() as (gateway, _):
        who = (("direct", bench.provider), ("relay", relay), ("gateway", gateway))
        for number in range(bench.plan.latency_rounds + 1):
            for name, subject in who:
                heard = bench.drive(subject, ONE, turn, warm=0.05).latencies
                if number:  # the first turn warms up
                    took[name] += heard
                    p50s[name].append(statistics.median(heard) / 1e6)
    bench.tell(
        "latency, c=1, p50 ms: " + ", ".join(f"{name} {statistics.median(values):.3f}" for name, values in p50s.items())
    )
    figures = []
    for name in ("relay", "gateway"):
        added = [one - direct for one, direct in zip(p50s[name], p50s["direct"], strict=True)]
        must, aim = (0.6, 0.3) if name == "gateway" else (None, None)
        figures.append(middle(f"latency added at c=1, p50: {name}", "ms", added, must=must, aim=aim))
        p99 = percentile(sorted(took[name]), 0.99) - percentile(sorted(took["direct"]), 0.99)
        figures.append(Figure(f"latency added at c=1, p99: {name}", p99 / 1e6, "ms"))
    return figures


def streams(bench: Bench) -> list[Figure]:
    costs: dict[str, list[float]] = {"relay": [], "gateway": []}
    with bench.relay() as relay, bench.gateway() as (gateway, _):
        for number in range(1, bench.plan.stream_rounds + 1):
            for name, subject in (("relay", relay), ("gateway", gateway)):
                result, cost = bench.cost(subject, STREAM, bench.plan.seconds, warm=0.5)
                costs[name].append(cost)
                said = f"{cost:.1f} us per chunk, {result.rate:,.0f} chunks/s"
                bench.tell(f"streams {number}/{bench.plan.stream_rounds}: {name} {said}")
    return [
        middle("CPU per chunk, 200 streams: relay", "us", costs["relay"]),
        middle("CPU per chunk, 200 streams: gateway", "us", costs["gateway"], must=50, aim=30),
    ]


def memory(bench: Bench) -> list[Figure]:
    total = bench.plan.requests
    with bench.gateway() as (gateway, _):
        gateway.rest()
        before = gateway.rss()
        bench.tell(f"memory after start: {before / 1e6:.1f} MB; now {total:,} requests")
        done = 0
        while done < total:
            done += bench.drive(gateway, UNARY, 60, limit=min(total - done, 50_000)).answers
            gateway.rest()
            bench.tell(f"memory after {done:,} requests: {gateway.rss() / 1e6:.1f} MB")
        after = gateway.rss()
    return [
        Figure("resident memory after start", before / 1e6, "MB", must=120, aim=80),
        Figure(f"resident memory after {total:,} requests", after / 1e6, "MB"),
        Figure("growth of resident memory", (after / before - 1) * 100, "%", must=10, aim=5),
    ]


def others(bench: Bench) -> list[Figure]:
    """The same work through the LiteLLM proxy."""
    rates: dict[str, list[float]] = {"litellm": [], "gateway": []}
    costs = []
    began = time.monotonic()
    with peers.litellm(bench.folder, bench.server_core, bench.provider.url) as litellm:
        litellm.ready(ONE, peers.START_SECONDS)
        bench.tell(f"LiteLLM is up after {time.monotonic() - began:.0f} s")
        with bench.gateway() as (gateway, _):
            bench.drive(gateway, UNARY, 0.5)
            bench.drive(litellm, UNARY, 2.0)
            for number in range(1, min(3, bench.plan.rounds) + 1):
                result, cost = bench.cost(litellm, UNARY, max(2.0, bench.plan.seconds))
                ours = bench.cost(gateway, UNARY, bench.plan.seconds)[0]
                costs.append(cost)
                rates["litellm"].append(result.rate / result.share)
                rates["gateway"].append(ours.rate / ours.share)
                bench.tell(f"LiteLLM {number}: {rates['litellm'][-1]:,.1f} req/s, gateway {rates['gateway'][-1]:,.0f}")
                bench.noted(min(result.share, ours.share))
        rss = litellm.rss()
    ratios = [ours / theirs for ours, theirs in zip(rates["gateway"], rates["litellm"], strict=True)]
    return [
        middle("throughput, c=32: LiteLLM proxy, per core", "req/s", rates["litellm"]),
        middle("throughput, gateway / LiteLLM proxy", "x", ratios, must=30, aim=60, more_is_better=True),
        middle("CPU per request: LiteLLM proxy", "us", costs),
        Figure("resident memory: LiteLLM proxy", rss / 1e6, "MB"),
    ]


def _counts(bench: Bench) -> dict[str, int]:
    import httpx2

    counts: dict[str, int] = msgspec.json.decode(httpx2.get(f"{bench.provider.url}/counts").content)
    return {"trace_batches": 0, **counts}


MEASUREMENTS: Final[dict[str, Callable[[Bench], Sequence[Figure]]]] = {
    "start": starts,
    "throughput": throughput,
    "budgets": budgets,
    "cache": cache,
    "safety": safety,
    "latency": latency,
    "streams": streams,
    "memory": memory,
    "litellm": others,
}
