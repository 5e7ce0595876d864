"""Dashboards and rules say the same in a Prometheus that takes native histograms and in one that does not."""

import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from exporter.alerting.rule_file import rule_groups
from exporter.alerting.rule_types import Options
from exporter.config.settings import Settings
from exporter.metrics.native import SCHEMA
from exporter.metrics.record import Metrics
from exporter.observation import Series
from tests.dashboards.asked import Asked, everything
from tests.metrics.served import announced, probe, serving
from tests.prometheus_server import PrometheusServer, prometheus_scraping

SETTINGS = Settings.model_validate(
    {
        "targets": [
            {"name": "fast", "address": "unix:///run/fast"},
            {"name": "slow", "address": "unix:///run/slow", "labels": {"zone": "b"}},
        ],
        "workloads": [{"name": "chat", "batch_sizes": [1, 8]}, {"name": "code", "batch_sizes": [2]}],
        "slos": [
            {"name": "ttft", "workload": "chat", "ttft": "200ms", "objective": 0.9},
            {"name": "tokens", "workload": "chat", "inter_token_latency": "50ms"},
        ],
        "histograms": {"classic": "fine"},
    }
)
VALUES = dict.fromkeys(("target", "workload", "batch_size", "slo", "instance"), ".*") | {
    "__rate_interval": "10m",
    "__range": "10m",
    "__interval": "1s",
    "compare": "1ms",
}
# How much higher the upper edge of a classic bucket is than its lower one: a quantile may be wrong by that factor.
CLASSIC_WIDTHS = {
    r"throughput_tokens_per_second": 1.81,
    r"(decode|request)_duration_seconds": 1.55,
    r"(overhead|lateness|setup|spread)_seconds": 2.5,
    r"first_token_seconds|latency_seconds|output_token_seconds": 1.1,
}
NATIVE_WIDTH: float = 2.0 ** (1 / 2**SCHEMA)
NATIVE = re.compile(r"histogram_(quantile|fraction|count|sum)\(")


@dataclass(frozen=True, slots=True)
class Servers:
    native: PrometheusServer
    classic: PrometheusServer
    at: float


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("prometheus")
    metrics = announced(SETTINGS)
    with (
        serving(metrics) as port,
        prometheus_scraping(folder / "native", [port], native=True) as native,
        prometheus_scraping(folder / "classic", [port]) as classic,
    ):
        rng = random.Random(3)
        # Some families have no series before their first value. And `increase` looks back to a counter's zero, which
        # it does for floats only, unless the counter is far above its growth.
        for probes in (450, 150):
            record(metrics, probes, rng)
            for server in (native, classic):
                server.await_scrape()
        yield Servers(native, classic, time.time())


def record(metrics: Metrics, probes: int, rng: random.Random) -> None:
    """So many of each series."""
    for _ in range(probes):
        for target, seconds in (("fast", 0.1), ("slow", 0.3)):
            for workload, size in (("chat", 1), ("chat", 8), ("code", 2)):
                series = Series(target, workload, size)
                metrics.record(probe(series, seconds * rng.lognormvariate(0, 0.3) * size**0.3, rng))
            metrics.late(target, 0.2 if rng.random() < 0.3 else 0.0002)


def same(servers: Servers, expr: str, tolerance: float) -> int:
    """Compare, and return the number of samples."""
    ours, theirs = (
        {json.dumps(sorted(sample.labels.items())): sample.value for sample in server.query(expr, servers.at)}
        for server in (servers.native, servers.classic)
    )
    ours, theirs = ({without_instance(key): value for key, value in found.items()} for found in (ours, theirs))
    assert ours.keys() == theirs.keys(), expr
    for labels, value in ours.items():
        assert value == pytest.approx(theirs[labels], rel=tolerance, abs=1e-6, nan_ok=True), f"{labels}: {expr}"
    return len(ours)


def without_instance(labels: str) -> str:
    return re.sub(r'\["instance", "[^"]*"\], ', "", labels)


def widths(expr: str) -> float:
    """By which share two quantiles may differ."""
    return max(width for name, width in CLASSIC_WIDTHS.items() if re.search(name, expr)) * NATIVE_WIDTH - 1


def read_from_histograms() -> list[Asked]:
    """Those with a number for each series: a heatmap is a histogram itself."""
    return [one for one in everything() if NATIVE.search(one.expr) and "tgi_probe_" in one.expr]


def test_every_panel_shows_the_same_numbers(servers: Servers) -> None:
    answered = sum(same(servers, one.filled(VALUES), widths(one.expr)) > 0 for one in read_from_histograms())
    assert answered > 30


def test_means_are_exactly_the_same(servers: Servers) -> None:
    means = [one for one in read_from_histograms() if not re.search(r"histogram_(quantile|fraction)\(", one.expr)]
    assert sum(same(servers, one.filled(VALUES), 1e-9) > 0 for one in means) > 15


def expressions_of_rules() -> Iterator[str]:
    for group in rule_groups(SETTINGS, Options()):
        yield from (rule["expr"] for rule in group["rules"] if NATIVE.search(rule["expr"]))


def test_every_rule_that_reads_histograms_finds_the_same(servers: Servers) -> None:
    found = [same(servers, expr, widths(expr)) for expr in expressions_of_rules()]
    assert len(found) == 5  # four medians, and how many probes start late
    assert all(found)
