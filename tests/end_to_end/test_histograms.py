"""The main job, all parts in processes of their own: shard, daemon, and a real Prometheus which is asked in PromQL."""

import json
import signal
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.parts import Daemon, SimulatedShard, daemon_running, simulated_shard, write_config
from tests.processes import wait_until
from tests.prometheus_server import PrometheusServer, prometheus_scraping

pytestmark = pytest.mark.alone
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
PROMPT_TOKENS = 64
PROBES = 10  # of each batch size, at least
Served = dict[str, Any]
DECODES = 7  # for decode_length 8
OK = 'tgi_probe_attempts_total{outcome="ok",code="OK"}'
# On a busy machine some probes are disturbed, and some values withheld.
MADE = 'sum by (batch_size) (tgi_probe_attempts_total{outcome=~"ok|disturbed",code="OK"})'


# PromQL, and the same of all values.
QUANTILES: dict[str, Callable[[Sequence[float]], float]] = {
    "histogram_quantile(0.5, {})": statistics.median,
    "histogram_quantile(0.9, {})": lambda values: sorted(values)[-(-len(values) * 9 // 10) - 1],
    "histogram_sum({0}) / histogram_count({0})": statistics.mean,
}


def seen(metric: str, measure: str) -> str:
    """How many values there were of a histogram, with those that were withheld."""
    recorded = f"sum by (batch_size) (histogram_count({metric}))"
    withheld = f'sum by (batch_size) (tgi_probe_withheld_values_total{{measure="{measure}"}})'
    return f"{recorded} + ({withheld} or 0 * {recorded})"


@dataclass(frozen=True)
class Run:
    """A run that stands still: the shard holds a Prefill, so that no number moves while it is looked at."""

    shard: SimulatedShard
    daemon: Daemon
    prometheus: PrometheusServer
    record: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("run")
    config: Any = {"interval": "0s", "sequence_length": PROMPT_TOKENS, "batch_sizes": BATCH_SIZES, "warmups": 1}
    with (
        simulated_shard(f"unix://{folder}/shard", "--ranks", "2", "--record", str(folder / "record")) as shard,
        daemon_running(write_config(folder / "config.yaml", shard.address, **config)) as daemon,
        prometheus_scraping(folder / "prometheus", [daemon.port], native=True) as prometheus,
    ):
        # Asking Prometheus and not the daemon, and seldom: the asking must not disturb what is measured.
        wait_until(lambda: prometheus.value(f"min({OK})") >= PROBES, f"{PROBES} probes", daemon.process, every=0.5)
        shard.command("fault?kind=hang&method=Prefill")
        wait_until(shard.holds_a_call, "a Prefill that hangs", daemon.process)
        prometheus.await_scrape()
        yield Run(shard, daemon, prometheus, folder / "record")


def prefills(record: Path) -> set[int]:
    """The batches that were begun and answered."""
    return {served["batch_id"] for served in served_by(record) if served["method"] == "Prefill"}


def served_by(record: Path) -> list[Served]:
    """The calls of probes that the shard has answered; the last line may be half written.

    The first Prefill is none: it asks for the tokens of words.
    """
    calls = [json.loads(line) for line in record.read_text().splitlines(keepends=True) if line.endswith("\n")]
    asked = next(call["batch_id"] for call in calls if call["method"] == "Prefill")
    return [call for call in calls if call["batch_id"] != asked]


def service_seconds(record: Path, method: str) -> dict[str, list[float]]:
    """How long the shard was at each call, from the first rank's receipt to the last rank's answer, by batch size.

    Without the first batch of each size, the warm-up.
    """
    size: dict[int, int] = {}
    calls: dict[int, dict[int, list[Served]]] = defaultdict(lambda: defaultdict(list))
    for served in served_by(record):
        if served["method"] == "Prefill":
            size[served["batch_id"]] = served["size"]
        if served["method"] == method:
            calls[served["batch_id"]][served["rank"]].append(served)
    warmed: set[int] = set()
    seconds: dict[str, list[float]] = defaultdict(list)
    for batch, of_size in size.items():
        if of_size in warmed:
            for ranks in zip(*calls[batch].values(), strict=True):
                began = min(served["received_ns"] for served in ranks)
                seconds[str(of_size)].append((max(served["finished_ns"] for served in ranks) - began) / 1e9)
        warmed.add(of_size)
    return dict(seconds)


@pytest.mark.parametrize(
    ("metric", "method"),
    [("tgi_probe_time_to_first_token_seconds", "Prefill"), ("tgi_probe_inter_token_latency_seconds", "Decode")],
)
def test_quantiles_and_means_in_promql_are_those_of_the_shards_own_record(run: Run, metric: str, method: str) -> None:
    truth = service_seconds(run.record, method)
    for name, of in QUANTILES.items():
        found = run.prometheus.by("batch_size", name.format(metric))
        assert set(found) == set(truth) == {str(size) for size in BATCH_SIZES}
        for size, seconds in truth.items():
            exact = of(seconds)
            assert found[size] == pytest.approx(exact, abs=0.05 * exact + 0.002), (
                f"{name}, batch size {size}: {seconds}"
            )


def test_every_attempt_is_in_the_histograms_once_and_every_decode_step_too(run: Run) -> None:
    attempts = run.prometheus.by("batch_size", MADE)
    assert min(run.prometheus.by("batch_size", OK).values()) >= PROBES
    assert run.prometheus.by("batch_size", seen("tgi_probe_time_to_first_token_seconds", "ttft")) == attempts
    assert run.prometheus.by("batch_size", seen("tgi_probe_request_duration_seconds", "request_duration")) == attempts
    gaps = seen("tgi_probe_inter_token_latency_seconds", "inter_token_latency")
    assert run.prometheus.by("batch_size", gaps) == {size: count * DECODES for size, count in attempts.items()}
    assert run.prometheus.value("sum(tgi_probe_attempts_total)") == sum(attempts.values())


def test_tokens_are_counted_exactly(run: Run) -> None:
    attempts = run.prometheus.by("batch_size", OK)
    assert run.prometheus.by("batch_size", "tgi_probe_prompt_tokens_total") == {
        size: count * PROMPT_TOKENS * int(size) for size, count in attempts.items()
    }
    assert run.prometheus.by("batch_size", "tgi_probe_generated_tokens_total") == {
        size: count * (DECODES + 1) * int(size) for size, count in attempts.items()
    }


def test_the_shard_saw_as_many_batches_as_attempts_and_warm_ups(run: Run) -> None:
    attempts = run.prometheus.value(f"sum({MADE})")
    assert len(prefills(run.record)) == attempts + len(BATCH_SIZES)


def test_the_shards_timings_and_the_overhead_arrive_with_the_same_counts(run: Run) -> None:
    attempts = run.prometheus.by("batch_size", OK)
    for method, steps in (("prefill", 1), ("decode", DECODES)):
        counts = {size: count * steps for size, count in attempts.items()}
        total = f'tgi_probe_server_duration_seconds_count{{method="{method}",phase="total"}}'
        assert run.prometheus.by("batch_size", total) == counts
    made = {size: count * (1 + DECODES) for size, count in run.prometheus.by("batch_size", MADE).items()}
    assert run.prometheus.by("batch_size", seen("tgi_probe_overhead_seconds", "overhead")) == made


def test_the_probe_in_flight_and_the_target_are_seen(run: Run) -> None:
    assert run.prometheus.value("tgi_probe_inflight") == 1
    assert run.prometheus.value("tgi_probe_target_up") == 1
    assert run.prometheus.query("tgi_probe_target_info")[0].labels.items() >= {
        ("target", "shard"),
        ("kind", "shard"),
        ("protocol", "generate.v3"),
        ("ranks", "2"),
        ("device", "cuda"),
    }


def test_sigterm_in_the_midst_of_a_probe_leaves_no_batch_and_exits_with_0(run: Run) -> None:
    """The last test of the run, since it ends it."""
    run.daemon.process.terminate()
    run.shard.command("fault?kind=none")
    assert run.daemon.process.wait() == 0, run.daemon.process.output
    run.shard.process.send(signal.SIGTERM)
    assert run.shard.process.wait() == 0
    assert run.shard.process.stdout.endswith("batches left: 0\n"), run.shard.process.output
