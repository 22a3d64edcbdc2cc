"""Every metric there is: its name, its labels, what it means.  Run as a program, it prints docs/metrics.md."""

from __future__ import annotations

import sys
from typing import Final, Literal, NamedTuple

# OTel's boundaries for generative AI, extended upwards where reasoning models do not fit.
_DURATION = tuple(round(0.01 * 2**power, 2) for power in range(17))
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 60, 120)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_TOKENS = tuple(4**power for power in range(14))
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_ASSESSOR = (0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30)
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
    Metric("tollkeeper_saved_usd_total", "counter", ("team", "model"),
           "USD that answers from the cache would have cost: what each cost when it was given first."),
    Metric("tollkeeper_cache_entries", "gauge", (), "Answers kept in this process; in a shared store, those that wait "
           "to be written to it."),
    Metric("tollkeeper_cache_bytes", "gauge", (), "Bytes that they take."),
    Metric("tollkeeper_cache_defects_total", "counter", (),
           "Entries of a shared store that are not what their tenant put there: altered, or put in another's place. "
           "Each was a miss; anything but 0 is an alarm."),
    Metric("tollkeeper_cache_semantic_total", "counter", ("result",),
           "Questions that were not asked word for word before: `hit` a near one's answer was served, `shadow` it "
           "would have been, `refused` the check found a difference, `far` none was near, `gone` its answer is kept no "
           "more, `failed` there was no embedding."),
    Metric("tollkeeper_cache_lost_total", "counter", (),
           "Answers that could not be kept: the store was away, full, or too small."),
    Metric("tollkeeper_assessments_total", "counter", ("assessor", "verdict"),
           "What safety assessors said, once for each request and kind of text: passed, flagged, masked, redacted, "
           "blocked; failed or failed_open (by `on_error`), not_judged (media and files)."),
    Metric("tollkeeper_assessor_seconds", "histogram", ("assessor",),
           "Seconds that one assessor took for one kind of text of a request, all pieces of a stream together. Where "
           "one look told that no pattern of several can match, its time is shown for each of them.",
           _ASSESSOR),
    Metric("tollkeeper_client_disconnects_total", "counter", (), "Requests whose caller hung up before the end."),
    Metric("tollkeeper_telemetry_dropped_total", "counter", ("sink",),
           "Requests that are missing from a sink because its queue was full or it could not be written."),
    Metric("tollkeeper_event_loop_lag_seconds", "histogram", (),
           "How much too late the event loop woke a task that sleeps a quarter of a second.", _LAG),
    Metric("tollkeeper_pool_connections", "gauge", ("provider", "state"),
           "Connections to a provider that are `active` or `idle`, and calls `waiting` for one."),
    Metric("tollkeeper_budget_limit_usd", "gauge", ("team", "budget"),
           "Limit of each budget of a team, a key, a model or the organisation that was used since the start, in its "
           "running window. `team` is empty where the budget is not one team's."),
    Metric("tollkeeper_budget_spent_usd", "gauge", ("team", "budget"),
           "What was spent of it, by all gateways; at most a few seconds old."),
    Metric("tollkeeper_budget_reserved_usd", "gauge", ("team", "budget"),
           "What is held of it by calls under way, or leased to gateways for their next ones."),
    Metric("tollkeeper_budget_overrun_total", "counter", (),
           "Calls that a provider billed above what had been held for them: a price or a bound is wrong."),
    Metric("tollkeeper_ledger_defects", "gauge", (),
           "Contradictions that the last audit of the ledger found, each minute; anything but 0 is an alarm."),
    Metric("tollkeeper_open_holds", "gauge", (), "Holds of calls under way in this process."),
    Metric("tollkeeper_build_info", "gauge", ("version", "python"), "Always 1; its labels say what is running."),
)
# fmt: on
BY_NAME: Final = {metric.name: metric for metric in METRICS}


def document() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics\n",
        "Prometheus reads these at `/metrics`. Names that begin with `gen_ai_` are OpenTelemetry's for generative AI,",
        "as Prometheus spells them. `team`, `model` and `provider` take only names from the configuration: any other",
        "becomes `other`, and a missing one `none`, so that no caller can add series. The process's own figures",
        "(`process_*`, `python_info`) stand beside them. `python -m gateway.telemetry.catalogue` prints this page.\n",
        "| name | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
        lines.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.meaning} |")
    lines.append("\nUpper bounds of the histograms' buckets:\n")
    lines += [f"* `{metric.name}`: {', '.join(map(str, metric.buckets))}" for metric in METRICS if metric.buckets]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
