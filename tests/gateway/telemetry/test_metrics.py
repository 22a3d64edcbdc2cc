"""What Prometheus reads: the right series, bounded, exact, and cheap to keep."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_plain

from gateway.errors import BadCall, Broken, ClientGone, Denied, UpstreamError
from gateway.exchange import Assessment, Caller, Exchange, Trace, Usage
from gateway.telemetry.catalogue import METRICS
from gateway.telemetry.metrics import Metrics

MONEY = ("tollkeeper_budget_", "tollkeeper_ledger_", "tollkeeper_open_holds")  # shown by telemetry/money.py
KEPT = tuple(
    f"tollkeeper_cache_{word}" for word in ("entries", "bytes", "defects", "lost", "semantic")
)  # by telemetry/answers.py
OURS = [metric for metric in METRICS if not metric.name.startswith(MONEY + KEPT)]
OPEN = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"


def metrics(**said: Any) -> Metrics:
    return Metrics(["checkout", "search"], ["gpt-4o-mini"], ["openai", "backup"], **said)


def tell(watch: Metrics, *exchanges: Exchange) -> None:
    for x in exchanges:
        watch.started(x)
        watch.finished(x)


def series(watch: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    body, _ = watch.render("")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in read_plain(body.decode())
        for sample in family.samples
    }


def value(watch: Metrics, name: str, **labels: str) -> float:
    """The sum of the series of that name with these labels among theirs; reads past the cache."""
    watch._rendered.clear()
    wanted = set(labels.items())
    return sum(number for (found, has), number in series(watch).items() if found == name and wanted <= has)


def test_an_answered_request_moves_each_figure_once(make: Any) -> None:
    watch = metrics()
    tell(watch, make.answered())
    common = {"team": "checkout", "model": "gpt-4o-mini"}
    assert value(watch, "tollkeeper_requests_total", **common, provider="openai", endpoint="chat", code="200") == 1
    assert value(watch, "tollkeeper_tokens_total", **common, type="input") == 120
    assert value(watch, "tollkeeper_tokens_total", **common, type="output") == 35
    assert value(watch, "tollkeeper_cost_usd_total", **common) == 0.000039
    assert value(watch, "tollkeeper_upstream_attempts_total", provider="openai", outcome="ok") == 1
    gen_ai = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "gpt-4o-mini", "gen_ai_provider_name": "openai"}
    assert value(watch, "gen_ai_client_operation_duration_seconds_count", **gen_ai, error_type="") == 1
    assert value(watch, "gen_ai_client_operation_duration_seconds_sum", **gen_ai) == pytest.approx(0.202)
    assert value(watch, "gen_ai_client_token_usage_sum", **gen_ai, gen_ai_token_type="output") == 35
    assert value(watch, "tollkeeper_overhead_seconds_sum") == pytest.approx(0.002)
    for quiet in ("unpriced_requests", "usage_missing", "usage_rejected", "client_disconnects", "refused"):
        assert value(watch, f"tollkeeper_{quiet}_total") == 0


def test_only_streams_tell_the_time_to_the_first_token_and_per_token(make: Any) -> None:
    watch = metrics()
    tell(watch, make.answered())
    assert value(watch, "gen_ai_server_time_to_first_token_seconds_count") == 0
    x = make.answered(stream=True)
    x.first_byte, x.ended = x.started + 100_000_000, x.started + 440_000_000
    tell(watch, x)
    assert value(watch, "gen_ai_server_time_to_first_token_seconds_sum") == pytest.approx(0.1)
    assert value(watch, "gen_ai_server_time_per_output_token_seconds_sum") == pytest.approx(0.34 / 34)


def test_a_refused_stream_tells_no_time_to_the_first_token(make: Any) -> None:
    watch = metrics()
    tell(watch, make.bare(stream=True, status=403, error=Denied("no")))
    assert value(watch, "gen_ai_server_time_to_first_token_seconds_count") == 0


def test_the_parts_of_usage_are_told_and_writes_of_both_lengths_are_one(make: Any) -> None:
    watch = metrics()
    x = make.answered()
    x.attempts[0].usage = Usage(1000, 50, cache_read=600, cache_write=100, cache_write_1h=20, reasoning=30)
    tell(watch, x)
    told = {
        part: value(watch, "tollkeeper_tokens_total", type=part) for part in ("cache_read", "cache_write", "reasoning")
    }
    assert told == {"cache_read": 600, "cache_write": 120, "reasoning": 30}


def test_money_is_exact_however_many_small_sums_are_added(make: Any) -> None:
    watch = metrics()
    x = make.answered()
    x.attempts[0].cost = 100_000_001  # a float sum of 0.100000001 would drift
    tell(watch, *[x] * 10_000)
    assert value(watch, "tollkeeper_cost_usd_total") == 1000.00001


def test_tokens_and_cost_of_a_failed_attempt_are_counted_too(make: Any) -> None:
    watch = metrics()
    x = make.bare()
    make.attempt(x, error=UpstreamError("down", code="upstream_broke_off"), usage=Usage(100, 5), cost=7_000)
    make.attempt(x, make.azure)
    tell(watch, x)
    assert value(watch, "tollkeeper_tokens_total", type="input") == 220
    assert value(watch, "tollkeeper_cost_usd_total") == 0.000046
    assert value(watch, "tollkeeper_upstream_attempts_total", provider="openai", outcome="upstream_broke_off") == 1
    assert value(watch, "tollkeeper_upstream_attempts_total", provider="backup", outcome="ok") == 1
    assert value(watch, "tollkeeper_requests_total", provider="backup", code="200") == 1


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (200, UpstreamError("cut", code="upstream_broke_off"), "502"),  # the head had left already
        (0, ClientGone("gone"), "499"),
        (429, Denied("much", code="rate_limited", status=429), "429"),
        (500, Broken("defect"), "500"),
        (418, UpstreamError("tea", status=418), "418"),
        (777, UpstreamError("odd", status=777), "700"),
    ],
)
def test_the_code_says_how_it_ended_not_how_it_began(make: Any, status: int, error: Any, code: str) -> None:
    watch = metrics()
    tell(watch, make.bare(status=status, error=error))
    assert value(watch, "tollkeeper_requests_total", code=code) == 1
    assert value(watch, "gen_ai_client_operation_duration_seconds_count", error_type=error.code) == 1


def test_only_what_the_gateway_itself_refused_counts_as_refused(make: Any) -> None:
    watch = metrics()
    refusals = [Denied("no", code="budget_exhausted"), BadCall("what", code="model_not_found")]
    tell(watch, *[make.bare(error=error, status=error.status) for error in refusals])
    tell(
        watch,
        *[make.bare(error=error, status=502) for error in (UpstreamError("down"), Broken("oh"), ClientGone("by"))],
    )
    assert value(watch, "tollkeeper_refused_total", reason="budget_exhausted") == 1
    assert value(watch, "tollkeeper_refused_total", reason="model_not_found") == 1
    assert value(watch, "tollkeeper_refused_total") == 2
    assert value(watch, "tollkeeper_client_disconnects_total") == 1


def test_missing_refused_and_unpriced_usage_is_counted(make: Any) -> None:
    watch = metrics()
    estimated, rejected, unpriced = make.answered(), make.answered(), make.answered()
    estimated.attempts[0].usage = Usage(10, 5, estimated=True)
    rejected.attempts[0].rejected = "completion_tokens"
    unpriced.attempts[0].cost = None
    tell(watch, estimated, rejected, unpriced)
    for name in ("usage_missing", "usage_rejected", "unpriced_requests"):
        assert value(watch, f"tollkeeper_{name}_total") == 1, name


def test_a_relayed_answer_without_usage_misses_none(make: Any) -> None:
    watch = metrics()
    x = make.answered(operation="relay", endpoint="relay", model="", alias="")
    x.attempts[0].usage = None
    tell(watch, x)
    assert value(watch, "tollkeeper_usage_missing_total") == 0
    assert value(watch, "tollkeeper_requests_total", model="none") == 1


def test_an_attempt_broken_off_by_a_policy_is_not_blamed_on_the_caller(make: Any) -> None:
    watch = metrics()
    x = make.bare(error=Denied("unsafe", code="blocked_by_safety"))
    make.attempt(x, error=ClientGone("stopped"))
    tell(watch, x)
    assert value(watch, "tollkeeper_upstream_attempts_total", outcome="stopped") == 1


def test_cache_results_are_counted_and_unknown_ones_folded(make: Any) -> None:
    watch = metrics()
    tell(watch, make.bare(cache="hit"), make.bare(cache="hit"), make.bare(cache="miss"), make.bare(cache="strange"))
    assert [value(watch, "tollkeeper_cache_total", result=r) for r in ("hit", "miss", "other")] == [2, 1, 1]


def test_ten_thousand_requests_of_random_names_add_one_series_per_metric(make: Any) -> None:
    watch = metrics()
    tell(watch, make.answered(), make.bare(caller=Caller("", ""), status=401))
    names = {metric.name for metric in OURS}
    before = series(watch)
    watch._rendered.clear()
    for n in range(10_000):
        word = f"{random.getrandbits(64):x}"
        error = BadCall("no such model", code=f"custom-{word}", status=404)
        tell(
            watch,
            make.bare(
                caller=Caller(f"team-{word}", f"key-{n}"), model=word, alias="", user=word, error=error, status=404
            ),
        )
    added: dict[str, set[Any]] = {}
    for name, labels in set(series(watch)) - set(before):
        base = name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
        added.setdefault(base, set()).add(frozenset(pair for pair in labels if pair[0] != "le"))
    assert added  # or nothing was tested
    assert set(added) <= names
    assert all(len(found) == 1 for found in added.values()), added
    assert len(watch._requests) <= 3  # nor does memory remember them
    assert value(watch, "tollkeeper_requests_total", team="other", model="other", provider="none", code="404") == 10_000
    assert value(watch, "tollkeeper_requests_total", team="none", code="401") == 1


def test_requests_of_two_teams_are_one_series_where_the_team_is_no_label_with_the_newest_exemplar(make: Any) -> None:
    watch = metrics()
    for number, team in enumerate(("checkout", "search", "checkout"), 1):
        tell(watch, make.answered(caller=Caller(team, "k"), trace=Trace(number, 0, number, True)))
    assert value(watch, "gen_ai_client_operation_duration_seconds_count") == 3
    assert value(watch, "gen_ai_client_token_usage_count", gen_ai_token_type="input") == 3
    assert value(watch, "tollkeeper_requests_total", team="checkout") == 2
    body, _ = watch.render(OPEN)
    found = [s.exemplar.labels for f in read_open(body.decode()) for s in f.samples if s.exemplar]
    assert found == [{"trace_id": f"{3:032x}", "span_id": f"{3:016x}"}]


@pytest.mark.parametrize(("ns", "bound"), [(10_000_000, "0.01"), (10_000_001, "0.02"), (10**15, "+Inf")])
def test_a_duration_counts_in_the_first_bucket_that_is_not_below_it(make: Any, ns: int, bound: str) -> None:
    watch = metrics()
    x = make.answered()
    x.ended = x.started + ns
    tell(watch, x)
    name = "gen_ai_client_operation_duration_seconds_bucket"
    bounds = sorted({float(dict(labels)["le"]) for found, labels in series(watch) if found == name})
    full = [le for le in bounds if value(watch, name, le="+Inf" if le == float("inf") else str(le))]
    assert full == [le for le in bounds if le >= float(bound)]


def test_exemplars_are_shown_for_sampled_traces_only_and_in_openmetrics_only(make: Any) -> None:
    watch = metrics()
    tell(watch, make.answered())
    tell(watch, make.answered(trace=Trace(0xABC, 0, 0x12, True)))
    body, kind = watch.render(OPEN)
    assert kind.startswith("application/openmetrics-text")
    found = [s.exemplar.labels for f in read_open(body.decode()) for s in f.samples if s.exemplar]
    assert found == [{"trace_id": f"{0xABC:032x}", "span_id": f"{0x12:016x}"}]
    body, kind = watch.render("text/html, */*")
    assert kind.startswith("text/plain")
    assert b"trace_id" not in body


@pytest.mark.parametrize("accept", ["", OPEN])
def test_every_metric_that_is_shown_is_in_the_table_and_the_other_way_round(make: Any, accept: str) -> None:
    class Pool:
        active, idle, waiting = 3, 2, 1

    pool = Pool()
    watch = metrics(
        pools={"openai": lambda: {"active": pool.active, "idle": pool.idle, "waiting": pool.waiting}},
        dropped={"traces": lambda: 5},
    )
    x = make.answered(stream=True, cache="miss")
    x.assessments = [Assessment("secrets,urls", "input", took=2_000), Assessment("judge", "output", "blocked", 0.9)]
    tell(watch, x, make.bare(error=Denied("no"), status=403), make.bare(cache="hit", saved=5))
    body, _ = watch.render(accept)
    families = list((read_open if accept else read_plain)(body.decode()))
    shown: dict[str, tuple[str, set[str]]] = {}
    for family in families:
        if family.name.startswith(("process_", "python_")):
            continue
        kind = {"info": "gauge"}.get(family.type, family.type)
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        shown[family.name.removesuffix(suffix) + suffix] = (kind, labels)
    assert shown == {metric.name: (metric.type, set(metric.labels)) for metric in OURS}
    assert any(family.name == "process_cpu_seconds" for family in families) or not accept
    assert value(watch, "tollkeeper_pool_connections", provider="openai", state="idle") == 2
    assert value(watch, "tollkeeper_telemetry_dropped_total", sink="traces") == 5
    for name in ("secrets", "urls"):  # one look that answered for both
        assert value(watch, "tollkeeper_assessments_total", assessor=name, verdict="passed") == 1
    assert value(watch, "tollkeeper_assessments_total", assessor="judge", verdict="blocked") == 1


def test_requests_under_way_are_shown_while_they_are(make: Any) -> None:
    watch = metrics()
    first, second = make.answered(), make.answered()
    watch.started(first)
    watch.started(second)
    assert value(watch, "tollkeeper_in_flight") == 2
    watch.finished(first)
    assert value(watch, "tollkeeper_in_flight") == 1


def test_a_rendering_is_kept_for_a_second_and_shared_by_those_who_ask_at_once(make: Any) -> None:
    watch = metrics()
    first, _ = watch.render("")
    tell(watch, make.answered())
    assert watch.render("")[0] is first
    assert watch.render(OPEN)[0] != first
    watch._rendered = {kind: (made - 1.0, body) for kind, (made, body) in watch._rendered.items()}
    bodies: list[bytes] = []
    threads = [threading.Thread(target=lambda: bodies.append(watch.render("")[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(body) for body in bodies}) == 1
    assert bodies[0] != first


def test_a_hundred_models_are_rendered_in_a_thread_while_the_loop_counts_on(make: Any) -> None:
    names = [f"model-{n}" for n in range(100)]
    watch = Metrics(["checkout"], names, ["openai"])
    for name in names:
        x = make.answered(model=name, alias=name, stream=True)
        tell(watch, x)
    done: list[float] = []

    def render() -> None:
        began = time.perf_counter()
        watch.render("")
        done.append(time.perf_counter() - began)

    thread = threading.Thread(target=render)
    thread.start()
    counted = 0
    while thread.is_alive():
        tell(watch, make.answered())
        counted += 1
    thread.join()
    print(f"100 models, {len(series(watch))} series, rendered in {done[0]:.3f} s beside {counted} requests")
    assert value(watch, "tollkeeper_requests_total") == 100 + counted
    assert counted


async def test_the_loop_that_is_held_up_shows_its_lag() -> None:
    watch = metrics()
    task = asyncio.create_task(watch.watch_loop(every=0.01))
    await asyncio.sleep(0.05)
    time.sleep(0.12)
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    samples, late = "tollkeeper_event_loop_lag_seconds_count", "tollkeeper_event_loop_lag_seconds_bucket"
    assert value(watch, samples) >= 3
    assert value(watch, samples) - value(watch, late, le="0.1") >= 1


def test_a_finished_request_costs_under_twelve_microseconds(
    make: Any, cost_of: Callable[[Callable[[], object]], float]
) -> None:
    watch = metrics()
    kinds = {
        "unary": make.answered(),
        "stream": make.answered(stream=True),
        "sampled": make.answered(trace=Trace(1, 0, 1, True)),
        "refused": make.bare(error=Denied("no"), status=403),
    }
    costs = {name: cost_of(lambda x=x: watch.finished(x)) for name, x in kinds.items()}  # type: ignore[misc]  # a default binds x
    print({name: f"{cost:.1f} us" for name, cost in costs.items()})
    assert costs["unary"] < 12
