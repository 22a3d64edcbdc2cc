"""Budgets as Prometheus sees them: what is allowed, spent and held, and whether the ledger contradicts itself."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.books import Books
from gateway.telemetry.catalogue import BY_NAME

_NANO = 1_000_000_000
_OPEN = ("user ", "feature ")  # budgets of these have names that callers choose: they would be series without end


class Money(Collector):
    """Made when somebody asks, in another thread than the loop that keeps the books."""

    def __init__(self, books: Books | None) -> None:
        self._books = books

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        books = self._books
        limit, spent, reserved = (_gauge(f"tollkeeper_budget_{word}_usd") for word in ("limit", "spent", "reserved"))
        for account in list(books.accounts.values()) if books is not None else ():
            window, id = account.window, account.budget.id
            if window is None or id.startswith(_OPEN):
                continue
            scope, *names = id.split(" ")
            labels = (names[0] if scope in ("team", "key") else "", id)
            limit.add_metric(labels, window.limit / _NANO)
            spent.add_metric(labels, (window.spent + window.overrun) / _NANO)
            reserved.add_metric(labels, window.reserved / _NANO)
        yield from (limit, spent, reserved)
        overrun = BY_NAME["tollkeeper_budget_overrun_total"]
        yield CounterMetricFamily(overrun.name, overrun.meaning, 0 if books is None else books.overruns)
        for name, value in (
            ("tollkeeper_ledger_defects", 0 if books is None else books.defects),
            ("tollkeeper_open_holds", 0 if books is None else len(books.holds)),
        ):
            family = _gauge(name)
            family.add_metric((), value)
            yield family


def _gauge(name: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, BY_NAME[name].meaning, labels=BY_NAME[name].labels)
