"""The daemon's families as a `Collector` of prometheus_client, and the daemon's registry, which holds it."""

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from exporter.metrics.families import ChildType, Family, NumberChild, SummaryChild, UnixTime
from exporter.metrics.histogram import HistogramChild
from exporter.metrics.write_queue import WriteQueue

METRICS: dict[str, Callable[[str, str], Metric]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
    "summary": SummaryMetricFamily,
}


class ProbeCollector:
    """All families, in the order in which they were made. It can be registered in any registry of prometheus_client.

    Values change inside `writes`, so that all that is collected, or stands on a page, is of one instant.
    """

    def __init__(self, unix_time: UnixTime = time.time) -> None:
        self.families: list[Family[Any]] = []
        self.writes = WriteQueue()
        # Whether histograms in the protobuf format have native buckets. They are counted in any case.
        self.native = True
        self._unix_time = unix_time

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Family[NumberChild]:
        return self._add(Family("counter", name.removesuffix("_total"), text, labels, NumberChild, self._unix_time))

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = (), initial: float = 0) -> Family[NumberChild]:
        return self._add(Family("gauge", name, text, labels, NumberChild, self._unix_time, initial=initial))

    def summary(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Family[SummaryChild]:
        return self._add(Family("summary", name, text, labels, SummaryChild, self._unix_time))

    def histogram(
        self, name: str, text: str, edges: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> Family[HistogramChild]:
        return self._add(Family("histogram", name, text, labels, HistogramChild, self._unix_time, edges))

    def _add(self, family: Family[ChildType]) -> Family[ChildType]:
        self.families.append(family)
        return family

    def describe(self) -> list[Metric]:
        """The families without their samples: a registry asks for them to refuse a name that it has already."""
        return [METRICS[family.kind_in_text](family.name, family.help) for family in self.families]

    def collect(self) -> list[Metric]:
        """Every sample: slow where there are many targets. The daemon's own page is written by `pages`."""
        metrics = self.describe()
        with self.writes.held():
            for metric, family in zip(metrics, self.families, strict=True):
                for child in family.children():
                    # Not with `add_metric`: that wants the same label names for all.
                    metric.samples.extend(child.samples(family.name))
        return metrics


class Registry(CollectorRegistry):
    """All that a daemon's page shows: `probes`, which `pages` writes, and `process`, which prometheus_client writes."""

    def __init__(self, unix_time: UnixTime = time.time) -> None:
        super().__init__()
        self.probes = ProbeCollector(unix_time)
        self.process = CollectorRegistry()
        self.register(self.probes)

    def register_process(self) -> None:
        """The metrics that prometheus_client has of every program: the process, Python, its garbage collector."""
        for collector in (
            ProcessCollector(registry=self),
            PlatformCollector(registry=self),
            GCCollector(registry=self),
        ):
            self.process.register(collector)
