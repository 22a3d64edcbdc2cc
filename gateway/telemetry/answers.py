"""The cache as Prometheus sees it: how much it keeps, what it could not keep, and entries that are not what was put."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.answers import Answers
from gateway.telemetry.catalogue import BY_NAME


class Kept(Collector):
    """Made when somebody asks."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        stores = list(self._answers.stores)
        figures = {
            "tollkeeper_cache_entries": sum(store.entries for store in stores),
            "tollkeeper_cache_bytes": sum(store.size for store in stores),
            "tollkeeper_cache_defects_total": sum(store.defects for store in stores),
            "tollkeeper_cache_lost_total": sum(store.lost for store in stores),
        }
        for name, figure in figures.items():
            kind = CounterMetricFamily if BY_NAME[name].type == "counter" else GaugeMetricFamily
            yield kind(name, BY_NAME[name].meaning, figure)
        near = BY_NAME["tollkeeper_cache_semantic_total"]
        family = CounterMetricFamily(near.name, near.meaning, labels=near.labels)
        for result, count in self._answers.near.items():
            family.add_metric((result,), count)
        yield family
