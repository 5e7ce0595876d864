"""The protobuf page: the same samples as in the text formats, and native buckets as a real Prometheus reads them."""

import math
import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from prometheus_client.samples import Exemplar

from exporter.config.settings import Settings
from exporter.metrics import pages
from exporter.metrics.collector import Registry
from exporter.metrics.formats import OPENMETRICS, PLAIN_0_0_4, Format
from exporter.metrics.native import SCHEMA, bucket_number
from exporter.metrics.record import Metrics
from exporter.observation import Series
from tests.metrics import protobuf_page
from tests.metrics.served import announced, probe, serving
from tests.prometheus_server import PrometheusServer, prometheus_scraping

LABEL_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, 0.2, 1e6, 1e-200, math.inf])
TTFT = "tgi_probe_time_to_first_token_seconds"


def of_text(registry: Registry, form: Format) -> dict[tuple[str, protobuf_page.Labels], float]:
    page = b"".join(pages.page(registry, form)).decode()
    found = {}
    for family in (parse_openmetrics if form is OPENMETRICS else parse_plain)(page):
        for sample in family.samples:
            labels = {name: repr(float(text)) if name == "le" else text for name, text in sample.labels.items()}
            found[sample.name, frozenset(labels.items())] = sample.value
    return found


def same(
    one: dict[tuple[str, protobuf_page.Labels], float], other: dict[tuple[str, protobuf_page.Labels], float]
) -> bool:
    return one.keys() == other.keys() and all(
        value == other[key] or (math.isnan(value) and math.isnan(other[key])) for key, value in one.items()
    )


@given(LABEL_TEXTS, st.lists(st.tuples(st.integers(0, 3), VALUES), max_size=30))
def test_all_three_formats_hold_the_same_samples(text: str, events: list[tuple[int, float]]) -> None:
    registry = Registry(lambda: 1_700_000_000.25)
    probes, labels = registry.probes, ("target", "zone")
    counter = probes.counter("events_total", text, labels)
    gauge = probes.gauge("level", text, labels, math.nan)
    summary, histogram = (
        probes.summary("size", text, labels),
        probes.histogram("wait_seconds", text, (0.2, 1.0), labels),
    )
    for number, value in events:
        of, value = (str(number), text), abs(value)
        counter.labels(*of).inc(min(value, 2.0**53))
        gauge.labels(*of).set(value)
        summary.labels(*of).observe(value)
        histogram.labels(*of).observe(value, Exemplar({"trace_id": "4bf9"}, value, 1.5))
    found = protobuf_page.samples(protobuf_page.families(registry))
    assert same(found, of_text(registry, PLAIN_0_0_4))
    assert same(found, of_text(registry, OPENMETRICS))


@given(st.lists(st.floats(1e-6, 1e6), max_size=200))
def test_native_buckets_hold_every_value_in_the_bucket_of_its_schema(values: list[float]) -> None:
    registry = Registry()
    wait = registry.probes.histogram("wait_seconds", "Wait.", (0.2,)).labels()
    for value in values:
        wait.observe(value)
    histogram = protobuf_page.families(registry)["wait_seconds"].metric[0].histogram
    expected: dict[int, int] = {}
    for value in values:
        number = bucket_number(value, histogram.schema)
        expected[number] = expected.get(number, 0) + 1
    assert protobuf_page.native_counts(histogram) == expected
    assert histogram.sample_count == len(values)


def test_an_empty_histogram_is_native_too() -> None:
    registry = Registry()
    registry.probes.histogram("wait_seconds", "Wait.", (0.2,)).labels()
    histogram = protobuf_page.families(registry)["wait_seconds"].metric[0].histogram
    assert [(span.offset, span.length) for span in histogram.positive_span] == [(0, 0)]


@pytest.mark.parametrize("edges", [(), (0.1,), (0.1, 0.5)])
def test_an_exemplar_is_at_the_native_histogram_and_at_its_classic_bucket(edges: tuple[float, ...]) -> None:
    registry = Registry()
    wait = registry.probes.histogram("wait_seconds", "Wait.", edges).labels()
    wait.observe(0.25, Exemplar({"trace_id": "4bf9"}, 0.25, 1700000000.5))
    histogram = protobuf_page.families(registry)["wait_seconds"].metric[0].histogram
    [exemplar] = histogram.exemplars
    assert (exemplar.value, exemplar.timestamp.seconds, exemplar.timestamp.nanos) == (0.25, 1700000000, 500_000_000)
    assert [(pair.name, pair.value) for pair in exemplar.label] == [("trace_id", "4bf9")]
    at_buckets = [bucket.exemplar for bucket in histogram.bucket if bucket.HasField("exemplar")]
    assert at_buckets == ([exemplar] if edges else [])


def test_without_native_histograms_there_are_classic_buckets_alone_until_a_reload() -> None:
    registry = Registry()
    wait = registry.probes.histogram("wait_seconds", "Wait.", (0.2,)).labels()
    wait.observe(0.1)
    for native in (False, True):
        registry.probes.native = native
        histogram = protobuf_page.families(registry)["wait_seconds"].metric[0].histogram
        assert bool(histogram.positive_span) is native
        assert histogram.bucket[0].cumulative_count == 1


def test_the_metrics_of_the_process_are_on_the_page() -> None:
    registry = Registry()
    registry.register_process()
    found = protobuf_page.families(registry)
    assert found["process_start_time_seconds"].metric[0].gauge.value > 1e9
    assert [
        labels["generation"] for labels in map(protobuf_page.labels_of, found["python_gc_collections_total"].metric)
    ]
    assert found["python_info"].metric[0].gauge.value == 1


# --- a real Prometheus


SETTINGS = Settings.model_validate(
    {
        "targets": [{"name": "llama", "address": "unix:///run/shard"}],
        "workloads": [{"name": "chat", "batch_sizes": [1, 2, 4, 8, 16, 32]}],
        "slos": [
            {"name": "fast", "workload": "chat", "ttft": "200ms"},
            {"name": "smooth", "workload": "chat", "inter_token_latency": "50ms"},
        ],
    }
)
# Most series of one target, workload and batch size in Prometheus, by what it scrapes.
MOST_SERIES = {"native": 50, "classic": 190}


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return announced(SETTINGS)


@pytest.fixture(scope="module")
def servers(metrics: Metrics, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, PrometheusServer]]:
    """One that takes native histograms and one that does not, before and after 1,000 probes."""
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        serving(metrics) as port,
        prometheus_scraping(folder / "native", [port], native=True) as native,
        prometheus_scraping(folder / "classic", [port]) as classic,
    ):
        servers = {"native": native, "classic": classic}
        for server in servers.values():
            server.await_scrape()
        rng = random.Random(1)
        for _ in range(1000):
            for size in (1, 32):
                metrics.record(probe(Series("llama", "chat", size), rng.lognormvariate(-2, 0.3) * (1 + size / 32), rng))
        for server in servers.values():
            server.await_scrape()
        yield servers


def test_quantiles_of_native_histograms_are_those_of_the_values(servers: dict[str, PrometheusServer]) -> None:
    rng = random.Random(1)
    values: dict[int, list[float]] = {1: [], 32: []}
    for _ in range(1000):
        for size, of in values.items():
            of.append(rng.lognormvariate(-2, 0.3) * (1 + size / 32))
            for _ in range(7):
                rng.uniform(0.9, 1.1)
    for size, of in values.items():
        of.sort()
        for q in (0.5, 0.9, 0.99):
            found = servers["native"].value(f'histogram_quantile({q}, {TTFT}{{batch_size="{size}"}})')
            assert found == pytest.approx(of[int(q * len(of))], rel=2 ** (1 / 2**SCHEMA) - 1)
    counted = servers["native"].value(f'histogram_count(increase({TTFT}{{batch_size="1"}}[1h]))')
    assert counted >= 1000  # the increase is extrapolated


def test_where_native_histograms_are_not_taken_the_classic_ones_are(servers: dict[str, PrometheusServer]) -> None:
    assert servers["classic"].query(TTFT) == []
    assert servers["native"].query(f"{TTFT}_bucket") == []
    assert servers["classic"].value(f'{TTFT}_count{{batch_size="32"}}') == 1000
    fast = f'{TTFT}_bucket{{batch_size="32", le="0.2"}} / on (batch_size) {TTFT}_count'
    share = servers["classic"].value(fast)
    read = servers["native"].value(f'histogram_fraction(0, 0.2, {TTFT}{{batch_size="32"}})')
    assert read == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("scraped", ["native", "classic"])
def test_a_batch_size_costs_few_series(servers: dict[str, PrometheusServer], scraped: str) -> None:
    for size in (1, 32):
        assert servers[scraped].value(f'count({{batch_size="{size}"}})') <= MOST_SERIES[scraped]


@pytest.mark.parametrize(("scraped", "name"), [("native", TTFT), ("classic", f"{TTFT}_bucket")])
def test_exemplars_reach_prometheus(servers: dict[str, PrometheusServer], scraped: str, name: str) -> None:
    found = servers[scraped].exemplars(name, time.time() - 600)
    assert {exemplar["labels"]["trace_id"] for exemplar in found} == {"4bf9"}
