"""What our series cost a real Prometheus: classic histograms with many edges and with few, and native ones."""

import contextlib
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anyio.from_thread import start_blocking_portal

from benchmarks.pages import observation, probe_each
from benchmarks.report import Part, Ratio, Reach, Table, median, milliseconds
from exporter.config.settings import Settings
from exporter.metrics import pages
from exporter.metrics.catalogue import layout
from exporter.metrics.formats import OPENMETRICS, PROTOBUF
from exporter.metrics.record import Metrics
from exporter.observation import Series
from exporter.plan.targets import plans
from exporter.web.routes import Views
from exporter.web.server import WebServer
from tests.prometheus_server import PrometheusServer, prometheus_scraping

TARGETS = (1, 16, 64)
BATCH_SIZES = [1, 2, 4, 8, 16, 32]
# Name, `histograms.classic`, and whether Prometheus asks for native histograms.
MODES = (("classic fine", "fine", False), ("classic lean", "lean", False), ("native", "lean", True))
WARM_UP_SCRAPES = 3
# At the highest number of targets, native to classic fine; and series for each target, workload and batch size.
MEMORY_LIMIT, PAGE_LIMIT = 1 / 4, 1 / 15
SERIES_LIMITS = {"classic lean": 190, "native": 50}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one mode. `series` of all targets; bytes; seconds of CPU for each scrape, and of a scrape."""

    series: int
    per_batch_size: float
    page: int
    packed: int
    memory: int
    cpu: float
    scrape: float


def run(seconds: float) -> list[Table]:
    rows = []
    for targets in TARGETS:
        costs = {
            name: measure(targets, classic, native, seconds / len(TARGETS) / len(MODES))
            for name, classic, native in MODES
        }
        rows += [row(targets, name, cost, costs["classic fine"]) for name, cost in costs.items()]
    notes = (
        f"Targets (shards) × {len(BATCH_SIZES)} batch sizes, every histogram filled, one SLO. A Prometheus of its own "
        "for each row, a scrape each second, each after one more probe of every target. Memory: resident, at the end. "
        f"Ratios to classic fine; those at {TARGETS[-1]} targets have a reach.",
    )
    columns = (
        *("targets", "scraped as", "series", "for one batch size", "reach", "page", "page ratio", "in gzip"),
        *("Prometheus' memory", "memory ratio", "its CPU for a scrape", "scrape"),
    )
    return [Table("What our series cost a Prometheus", columns, tuple(rows), notes)]


def row(targets: int, name: str, cost: Cost, fine: Cost) -> tuple[str, ...]:
    def ratio(figure: int, bare: int, limit: float) -> str:
        if targets == TARGETS[-1] and name == "native":
            return str(Ratio(figure, bare, limit))
        return f"{figure / bare:.3f}"

    limit = SERIES_LIMITS.get(name)
    return (
        str(targets),
        name,
        f"{cost.series:,}",
        f"{cost.per_batch_size:.0f}",
        str(Reach(cost.per_batch_size, limit)) if limit else "",
        f"{cost.page / 1e6:.3f} MB",
        ratio(cost.page, fine.page, PAGE_LIMIT),
        f"{cost.packed / 1e6:.3f} MB",
        f"{cost.memory / 2**20:.0f} MiB",
        ratio(cost.memory, fine.memory, MEMORY_LIMIT),
        milliseconds(cost.cpu, 1),
        milliseconds(cost.scrape, 1),
    )


def measure(targets: int, classic: str, native: bool, seconds: float) -> Cost:
    """Raises AssertionError when Prometheus does not scrape."""
    rng = random.Random(1)
    metrics, series = filled(targets, classic, rng)
    form = PROTOBUF if native else OPENMETRICS
    with (
        tempfile.TemporaryDirectory(prefix="tgi-probe-bench-") as folder,
        serving(metrics) as port,
        prometheus_scraping(Path(folder), [port], native=native) as prometheus,
    ):
        for _ in range(WARM_UP_SCRAPES):
            probe_each(metrics, series, rng)
            prometheus.await_scrape()
        cpu, scrapes = cpu_seconds(prometheus), 0
        durations: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or not durations:
            probe_each(metrics, series, rng)
            prometheus.await_scrape()
            scrapes += 1
            durations.append(prometheus.value("scrape_duration_seconds"))
        return Cost(
            series=round(prometheus.value('count({target!=""})')),
            per_batch_size=prometheus.value('count({target="t0",batch_size="1"})'),
            page=sum(map(len, pages.page(metrics.registry, form))),
            packed=sum(map(len, pages.gzip_page(metrics.registry, form))),
            memory=resident_bytes(prometheus),
            cpu=(cpu_seconds(prometheus) - cpu) / scrapes,
            scrape=median(durations),
        )


def cpu_seconds(prometheus: PrometheusServer) -> float:
    return time.clock_gettime((~prometheus.process.pid << 3) | 2)


def resident_bytes(prometheus: PrometheusServer) -> int:
    lines = Path(f"/proc/{prometheus.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@contextlib.contextmanager
def serving(metrics: Metrics) -> Iterator[int]:
    """Yields the port."""
    server = WebServer("127.0.0.1:0", Views(lambda: metrics.registry, lambda: None, lambda: None, None, str))
    with start_blocking_portal() as portal:
        task = portal.start_task_soon(server.serve)
        yield server.port
        task.cancel()


def filled(targets: int, classic: str, rng: random.Random) -> tuple[Metrics, list[list[Series]]]:
    settings = Settings.model_validate(
        {
            "targets": [{"name": f"t{number}", "address": f"h:{number + 1}"} for number in range(targets)],
            "workloads": [{"name": "chat", "batch_sizes": BATCH_SIZES}],
            "slos": [{"name": "fast", "workload": "chat", "ttft": "200ms"}],
            "histograms": {"classic": classic},
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


PART = Part(
    "prometheus",
    "What our series cost a Prometheus",
    run,
    "native histograms wherever Prometheus asks for them, and few classic edges by default (`histograms` in the "
    "configuration).",
)
