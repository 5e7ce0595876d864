"""Point 3, the page: our rendering beside prometheus_client's, of the same instruments with the same values."""

import random
import time
from typing import Any

import prometheus_client

from benchmarks.report import Part, Reach, Table, median, milliseconds, quantile
from exporter.config.settings import Settings
from exporter.metrics import pages
from exporter.metrics.catalogue import layout
from exporter.metrics.instruments import Registry
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Outcome, Series, ServerTimings, Step, Stream
from exporter.plan.targets import plans

SIZES = (1, 4, 16, 64, 256)
REFERENCE_UP_TO = 16
LIMITS = {16: 60.0, 256: 1000.0}


def run(seconds: float) -> list[Table]:
    rng = random.Random(1)
    rows = [measure(targets, rng, seconds / len(SIZES)) for targets in SIZES]
    notes = (
        "Targets × 6 batch sizes × 2 workloads, every histogram filled. Packed: gzip as Prometheus asks "
        "for it, after one more probe of every target, which is what one scrape interval brings. Plain: the whole "
        "text, after another probe of every target. prometheus_client: its own instruments with the same values, "
        f"plain, in turns with ours up to {REFERENCE_UP_TO} targets.",
    )
    columns = (
        *("targets", "page", "packed", "packed scrape p50", "p99", "reach", "first packed", "plain p50"),
        *("prometheus_client p50", "ratio plain", "ratio packed"),
    )
    return [Table("Rendering a page", columns, tuple(rows), notes)]


def measure(targets: int, rng: random.Random, seconds: float) -> tuple[str, ...]:
    metrics, series = filled(targets, rng)
    began = time.perf_counter()
    packed_size = sum(map(len, pages.gzip_page(metrics.registry, pages.OPENMETRICS)))
    first = time.perf_counter() - began
    theirs = reference(metrics.registry) if targets <= REFERENCE_UP_TO else None
    plain: list[float] = []
    packed: list[float] = []
    other: list[float] = []
    size = 0
    end = time.perf_counter() + seconds
    while len(packed) < 3 or time.perf_counter() < end:
        for of_target in series:
            metrics.record(observation(rng.choice(of_target), rng))
        began = time.perf_counter()
        for _ in pages.gzip_page(metrics.registry, pages.OPENMETRICS):
            pass
        packed.append(time.perf_counter() - began)
        for of_target in series:
            metrics.record(observation(rng.choice(of_target), rng))
        began = time.perf_counter()
        size = sum(map(len, pages.page(metrics.registry, pages.PLAIN_0_0_4)))
        plain.append(time.perf_counter() - began)
        if theirs is not None:
            began = time.perf_counter()
            prometheus_client.generate_latest(theirs)
            other.append(time.perf_counter() - began)
    tail = quantile(packed, 0.99)
    return (
        str(targets),
        f"{size / 1e6:.2f} MB",
        f"{packed_size / 1e6:.2f} MB",
        milliseconds(median(packed), 1),
        milliseconds(tail, 1),
        str(Reach(tail * 1e3, LIMITS[targets], " ms")) if targets in LIMITS else "",
        milliseconds(first, 1),
        milliseconds(median(plain), 1),
        milliseconds(median(other), 0) if other else "",
        f"{median(other) / median(plain):.0f}" if other else "",
        f"{median(other) / median(packed):.0f}" if other else "",
    )


def filled(targets: int, rng: random.Random) -> tuple[Metrics, list[list[Series]]]:
    settings = Settings.model_validate(
        {
            # Names of different length, as people give them: else few pieces of a page have a length of their own.
            "targets": [
                {"name": f"target-{'x' * (number * 7 % 40)}{number}", "address": f"h:{number + 1}"}
                for number in range(targets)
            ],
            "workloads": [{"name": "chat"}, {"name": "retrieval"}],
            "slos": [{"name": "fast", "workload": "chat", "ttft": "200ms"}],
        }
    )
    metrics = Metrics(layout(settings))
    metrics.configure(settings)
    series = []
    for plan in plans(settings).values():
        metrics.announce(plan)
        series.append([one for one, _ in plan.series()])
        for one in series[-1]:
            metrics.record(observation(one, rng))
    return metrics, series


def observation(series: Series, rng: random.Random) -> Observation:
    """One probe of 32 tokens."""
    arrived = rng.lognormvariate(-2, 0.3)
    server = ServerTimings(0.01, 0.001, None, 0.011)
    steps = [Step(0.0, arrived, series.batch_size, server)]
    for _ in range(31):
        asked, arrived = arrived, arrived + rng.lognormvariate(-4, 0.1)
        steps.append(Step(asked, arrived, series.batch_size, server))
    stream = Stream(series.batch_size, 512 * series.batch_size, 0.0, arrived, tuple(steps))
    return Observation(series, 0.0, 0.0, arrived, Outcome.OK, "OK", "", (stream,))


def reference(registry: Registry) -> prometheus_client.CollectorRegistry:
    """The same families, series and values in prometheus_client's instruments."""
    theirs = prometheus_client.CollectorRegistry()
    kinds: dict[str, Any] = {
        "counter": prometheus_client.Counter,
        "gauge": prometheus_client.Gauge,
        "summary": prometheus_client.Summary,
        "histogram": prometheus_client.Histogram,
    }
    for family in registry.families:
        more = {"buckets": family.edges} if family.kind == "histogram" else {}
        instrument = kinds[family.kind](family.name, family.help, family.label_names, registry=theirs, **more)
        for group in family.groups.values():
            for values, child in group.children.items():
                copy = instrument.labels(*values) if values else instrument
                if family.kind == "histogram":
                    for bucket, count in zip(copy._buckets, child.counts, strict=True):
                        bucket.set(count)
                    copy._sum.set(child.sum)
                elif family.kind == "summary":
                    copy._count.set(child.count)
                    copy._sum.set(child.sum)
                else:
                    copy._value.set(child.value)
    return theirs


PART = Part(
    "pages",
    "Rendering a page",
    run,
    "instruments and rendering of our own (`exporter/metrics/`): label text made once, "
    "one `join` for each histogram, and its lines kept compressed until it changes, as blocks that are put together to "
    "one gzip stream; a plain page is unpacked from them. The first page is made before the first probe.",
)
