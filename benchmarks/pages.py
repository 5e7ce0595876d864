"""How long a page takes to write, beside `generate_latest` of prometheus_client for the same registry."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import prometheus_client

from benchmarks.report import Part, Ratio, Table, median, milliseconds, quantile
from exporter.config.settings import Settings
from exporter.metrics import pages
from exporter.metrics.catalogue import layout
from exporter.metrics.formats import OPENMETRICS, PLAIN_0_0_4, PROTOBUF, Format
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Outcome, Series, ServerTimings, Step, Stream
from exporter.plan.targets import plans

SIZES = (1, 4, 16, 64, 256)
REFERENCE_UP_TO = 16
# Our medians divided by prometheus_client's: a packed page after a probe of each target, and a plain one.
PACKED_LIMIT, PROTOBUF_LIMIT, PLAIN_LIMIT = 0.25, 0.35, 0.3


def run(seconds: float) -> list[Table]:
    rng = random.Random(1)
    rows = []
    per_target = 0.0
    for targets in SIZES:
        costs = measure(targets, rng, seconds / len(SIZES))
        if costs.reference:
            per_target = median(costs.reference) / targets
        rows.append(row(costs, per_target * targets))
    notes = (
        "Targets × 6 batch sizes × 2 workloads, every histogram filled. Packed: OpenMetrics in gzip, as Prometheus "
        "asks for it; protobuf: the same, with native histograms. Plain: the whole text. Each after one more probe of "
        "every target. prometheus_client: its `generate_latest` of the same registry, plain, in turns "
        f"with ours up to {REFERENCE_UP_TO} targets; beyond, as much per target as with {REFERENCE_UP_TO}.",
    )
    columns = (
        *("targets", "page", "packed page", "packed p50", "packed p99", "protobuf p50", "protobuf p99", "plain p50"),
        *("prometheus_client p50", "ratio packed p50", "ratio protobuf p50", "ratio plain p50"),
    )
    return [Table("Rendering a page", columns, tuple(rows), notes)]


@dataclass(frozen=True, slots=True)
class PageCost:
    """Seconds of each page and bytes of one, for a number of targets. `reference` is empty where it takes too long."""

    targets: int
    plain_bytes: int
    packed_bytes: int
    packed: list[float]
    protobuf: list[float]
    plain: list[float]
    reference: list[float]


def measure(targets: int, rng: random.Random, seconds: float) -> PageCost:
    metrics, series = filled(targets, rng)
    packed: list[float] = []
    protobuf: list[float] = []
    plain: list[float] = []
    other: list[float] = []
    plain_bytes = packed_bytes = 0
    end = time.perf_counter() + seconds
    while len(packed) < 3 or time.perf_counter() < end:
        probe_each(metrics, series, rng)
        took, packed_bytes = timed(lambda: gzip_bytes(metrics, OPENMETRICS))
        packed.append(took)
        probe_each(metrics, series, rng)
        protobuf.append(timed(lambda: gzip_bytes(metrics, PROTOBUF))[0])
        probe_each(metrics, series, rng)
        took, plain_bytes = timed(lambda: sum(map(len, pages.page(metrics.registry, PLAIN_0_0_4))))
        plain.append(took)
        if targets <= REFERENCE_UP_TO:
            other.append(timed(lambda: len(prometheus_client.generate_latest(metrics.registry)))[0])
    return PageCost(targets, plain_bytes, packed_bytes, packed, protobuf, plain, other)


def timed(write: Callable[[], int]) -> tuple[float, int]:
    """Seconds that writing took, and the bytes written."""
    began = time.perf_counter()
    size = write()
    return time.perf_counter() - began, size


def gzip_bytes(metrics: Metrics, form: Format) -> int:
    return sum(map(len, pages.gzip_page(metrics.registry, form)))


def probe_each(metrics: Metrics, series: Sequence[Sequence[Series]], rng: random.Random) -> None:
    for of_target in series:
        metrics.record(observation(rng.choice(of_target), rng))


def row(cost: PageCost, reference_seconds: float) -> tuple[str, ...]:
    return (
        str(cost.targets),
        f"{cost.plain_bytes / 1e6:.2f} MB",
        f"{cost.packed_bytes / 1e6:.2f} MB",
        milliseconds(median(cost.packed), 1),
        milliseconds(quantile(cost.packed, 0.99), 1),
        milliseconds(median(cost.protobuf), 1),
        milliseconds(quantile(cost.protobuf, 0.99), 1),
        milliseconds(median(cost.plain), 1),
        milliseconds(median(cost.reference), 0) if cost.reference else "",
        str(Ratio(median(cost.packed), reference_seconds, PACKED_LIMIT)),
        str(Ratio(median(cost.protobuf), reference_seconds, PROTOBUF_LIMIT)),
        str(Ratio(median(cost.plain), reference_seconds, PLAIN_LIMIT)),
    )


def filled(targets: int, rng: random.Random) -> tuple[Metrics, list[list[Series]]]:
    settings = Settings.model_validate(
        {
            "targets": [{"name": f"target-{number}", "address": f"h:{number + 1}"} for number in range(targets)],
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


PART = Part(
    "pages",
    "Rendering a page",
    run,
    "families and page writing of our own (`exporter/metrics/`), which take a tenth to a quarter of the time and can "
    "pause for threads that measure. The text of labels is made once, the lines of a histogram are one `join`, and "
    "protobuf messages are encoded by hand. Each page is made anew: to keep what one page and the next have in common "
    "saved no CPU where every target is probed between two scrapes.",
)
