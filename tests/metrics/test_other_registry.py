"""Our families in a registry that is not the daemon's: as docs/metrics.md shows it, and beside other metrics."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from exporter.config.settings import Settings
from exporter.metrics import pages
from exporter.metrics.catalogue import layout
from exporter.metrics.formats import OPENMETRICS, PLAIN_0_0_4, Format
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Outcome, Series, SkipReason, Step, Stream
from exporter.plan.targets import plans
from tests.metrics.test_pages import reference

DOCS = Path(__file__).parents[2] / "docs/metrics.md"
SETTINGS = Settings.model_validate(
    {
        "targets": [{"name": "a", "address": "h:1"}, {"name": "b", "address": "h:2", "labels": {"zone": "x"}}],
        "workloads": [{"name": "chat", "batch_sizes": [1, 2]}],
        "slos": [{"name": "fast", "workload": "chat", "ttft": "200ms"}],
    }
)


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics(layout(SETTINGS), unix_time=lambda: 1_700_000_000.25)
    metrics.configure(SETTINGS)
    for plan in plans(SETTINGS).values():
        metrics.announce(plan)
    return metrics


def probed(trace_id: str = "4bf9") -> Observation:
    steps = (Step(0.0, 0.125, 1), Step(0.125, 0.25, 1))
    streams = (Stream(1, 10, 0.0, 0.25, steps),)
    return Observation(Series("a", "chat", 1), 0.0, 0.0, 1.0, Outcome.OK, "OK", streams=streams, trace_id=trace_id)


def without_process(page: bytes) -> list[bytes]:
    return [line for line in page.splitlines() if b"process_" not in line and not re.match(rb"(# \w+ )?python_", line)]


def other_registry(auto_describe: bool) -> CollectorRegistry:
    """As another program may have it: with the metrics of the process, as the library's global one, and its own."""
    registry = CollectorRegistry(auto_describe=auto_describe)
    for collector in (GCCollector, PlatformCollector, ProcessCollector):
        collector(registry=registry)
    prometheus_client.Counter("jobs", "Jobs done.", registry=registry).inc(7)
    return registry


def test_the_program_in_the_docs_shows_our_families_beside_those_of_the_global_registry() -> None:
    [program] = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    page = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    families = {family.name: family for family in parse_plain(page.rstrip() + "\n")}
    assert [sample.labels for sample in families["tgi_probe_target_up"].samples] == [{"target": "llama"}]
    assert families.keys() >= {"python_info", "python_gc_collections", "tgi_probe_time_to_first_token_seconds"}


@pytest.mark.parametrize("auto_describe", [False, True])
@pytest.mark.parametrize("form", [PLAIN_0_0_4, OPENMETRICS])
def test_another_registry_shows_its_metrics_and_then_the_samples_of_our_page(
    metrics: Metrics, auto_describe: bool, form: Format
) -> None:
    registry = other_registry(auto_describe)
    registry.register(metrics.registry.probes)
    metrics.record(probed())
    metrics.skipped(Series("b", "chat", 2), SkipReason.BUSY)
    page = reference(registry, form)
    ours = without_process(b"".join(pages.page(metrics.registry, form)))
    assert without_process(page)[-len(ours) :] == ours
    assert b"\njobs_total 7.0\n" in page
    parse = parse_openmetrics if form is OPENMETRICS else parse_plain
    names = [family.name for family in parse(page.decode())]
    assert len(names) == len(set(names))


def test_the_daemons_registry_gives_every_sample_of_its_page_once(metrics: Metrics) -> None:
    metrics.record(probed())
    for form in (PLAIN_0_0_4, OPENMETRICS):
        page = b"".join(pages.page(metrics.registry, form))
        assert without_process(reference(metrics.registry, form)) == without_process(page)


def test_one_family_can_be_asked_for(metrics: Metrics) -> None:
    registry = other_registry(True)
    registry.register(metrics.registry.probes)
    page = prometheus_client.generate_latest(registry.restricted_registry(["tgi_probe_target_up"]))
    assert b'tgi_probe_target_up{target="b",zone="x"} 0.0\n' in page
    assert page.count(b"# TYPE") == 1


def test_a_second_collector_and_a_name_that_is_taken_are_refused(metrics: Metrics) -> None:
    registry = other_registry(True)
    registry.register(metrics.registry.probes)
    with pytest.raises(ValueError, match="tgi_probe_target_up"):
        registry.register(Metrics(layout(SETTINGS)).registry.probes)
    with pytest.raises(ValueError, match="tgi_probe_attempts_total"):
        prometheus_client.Gauge("tgi_probe_attempts_total", "Taken.", registry=registry)


def test_our_collector_can_leave_again(metrics: Metrics) -> None:
    registry = other_registry(False)
    before = registry.get_sample_value("jobs_total")
    registry.register(metrics.registry.probes)
    registry.unregister(metrics.registry.probes)
    assert b"tgi_probe" not in prometheus_client.generate_latest(registry)
    assert registry.get_sample_value("jobs_total") == before


def test_a_label_that_utf_8_cannot_write_costs_the_other_program_no_page(metrics: Metrics) -> None:
    registry = other_registry(False)
    registry.register(metrics.registry.probes)
    family = metrics.registry.probes.gauge("tgi_probe_strange", "Strange.", ("label",))
    family.labels("half \ud83d").set(1)
    assert b'tgi_probe_strange{label="half ?"} 1.0\n' in prometheus_client.generate_latest(registry)


PROBES = 300


def test_what_another_registry_collects_has_all_of_a_probe_or_nothing(metrics: Metrics) -> None:
    registry = other_registry(False)
    registry.register(metrics.registry.probes)
    interval = sys.getswitchinterval()
    recorder = threading.Thread(target=lambda: [metrics.record(probed()) for _ in range(PROBES)])
    counts: list[set[float]] = []
    sys.setswitchinterval(1e-5)
    try:
        recorder.start()
        while recorder.is_alive():
            counts.append(counted(registry))
    finally:
        sys.setswitchinterval(interval)
    recorder.join()
    counts.append(counted(registry))
    assert counts[-1] == {PROBES}
    assert {len(numbers) for numbers in counts} == {1}, "one instant"


def counted(registry: CollectorRegistry) -> set[float]:
    """How many probes were recorded, by each family that counts them: from the first to the last one of the page."""
    labels = {"target": "a", "workload": "chat", "batch_size": "1"}
    names = {
        "tgi_probe_time_to_first_token_seconds_count": labels,
        "tgi_probe_request_duration_seconds_count": labels,
        "tgi_probe_attempts_total": labels | {"outcome": "ok", "code": "OK"},
        "tgi_probe_slo_requests_total": labels | {"slo": "fast", "verdict": "good"},
    }
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    return {sample.value for sample in samples if names.get(sample.name) == sample.labels}
