"""The text of a page, compared byte for byte with the one that prometheus_client writes of the same data."""

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client import exposition as plain_text
from prometheus_client.openmetrics import exposition as openmetrics_text
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from exporter.metrics import families, pages
from exporter.metrics.collector import Registry
from exporter.metrics.families import go_number
from exporter.metrics.formats import OPENMETRICS, PLAIN_0_0_4, PLAIN_1_0_0, Format

STARTED = 1_700_000_000.0


@pytest.fixture(autouse=True)
def all_start_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The instruments of prometheus_client too."""
    monkeypatch.setattr(prometheus_client.metrics, "time", SimpleNamespace(time=lambda: STARTED))


def started_registry() -> Registry:
    return Registry(lambda: STARTED)


FORMATS = (PLAIN_0_0_4, OPENMETRICS)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = (
    st.floats() | st.integers(-(2**53), 2**53) | st.sampled_from([1e6 - 1, 1e6, 123456789.0, 1e15, 1e16, 1e-7, -0.0])
)
EDGES = (
    st.lists(
        st.floats(1e-4, 1e9) | st.sampled_from([0.2, 1.0, 999999.0, 1e6, 12345678.0]),
        min_size=1,
        max_size=6,
        unique=True,
    )
    .map(sorted)
    .map(tuple)
)
# What happens, as (series, value): few series, so that things happen to the same ones again.
EVENTS = st.lists(st.tuples(st.integers(0, 4), NUMBERS), max_size=20)


def plain(registry: Registry, form: Format) -> bytes:
    return b"".join(pages.page(registry, form))


def unzipped(registry: Registry, form: Format) -> bytes:
    return gzip.decompress(b"".join(pages.gzip_page(registry, form)))


READ = (plain, unzipped)


def reference(registry: Any, form: Format) -> bytes:
    if form is OPENMETRICS:
        return bytes(openmetrics_text.generate_latest(registry))  # type: ignore[no-untyped-call]
    return plain_text.generate_latest(registry)


def value_of(registry: prometheus_client.CollectorRegistry, name: str) -> float:
    value = registry.get_sample_value(name)
    assert value is not None
    return value


def positive(value: float) -> float:
    return abs(value) if math.isfinite(value) else 1.0


LABELS = ("target", "zone", "a_label")


class Pair:
    """The same instruments twice: ours and prometheus_client's."""

    def __init__(self, text: str, edges: tuple[float, ...]) -> None:
        self.ours, self.theirs = started_registry(), prometheus_client.CollectorRegistry()
        of: dict[str, Any] = {"labelnames": LABELS, "registry": self.theirs}
        self.counters: Any = (
            self.ours.probes.counter("events_total", text, LABELS),
            prometheus_client.Counter("events_total", text, **of),
        )
        self.gauges: Any = self.ours.probes.gauge("level", text, LABELS), prometheus_client.Gauge("level", text, **of)
        self.summaries: Any = (
            self.ours.probes.summary("size", text, LABELS),
            prometheus_client.Summary("size", text, **of),
        )
        self.histograms: Any = (
            self.ours.probes.histogram("wait_seconds", text, edges, LABELS),
            prometheus_client.Histogram("wait_seconds", text, buckets=edges, **of),
        )

    def happens(self, labels: tuple[str, str, str], value: float) -> None:
        for counter in self.counters:
            counter.labels(*labels).inc(positive(value))
        for gauge in self.gauges:
            gauge.labels(*labels).set(value)
        for instrument in (*self.summaries, *self.histograms):
            instrument.labels(*labels).observe(value)


@given(
    TEXTS,
    EDGES,
    st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=5, max_size=5, unique_by=lambda labels: labels[0]),
    EVENTS,
)
@example("", (1.0,), [(name, "", "") for name in "abcde"], [(1, 1), (1, 2**53), (1, 1)])
def test_both_formats_are_what_prometheus_client_writes_after_any_events(
    text: str, edges: tuple[float, ...], series: list[tuple[str, str, str]], events: list[tuple[int, float]]
) -> None:
    pair = Pair(text, edges)
    for form in FORMATS:
        assert plain(pair.ours, form) == reference(pair.theirs, form)
    for number, value in events:
        pair.happens(series[number], value)
        # In between, so that what is kept from one page is seen to be renewed for the next.
        assert unzipped(pair.ours, OPENMETRICS) == reference(pair.theirs, OPENMETRICS)
    for form in FORMATS:
        for read in READ:
            assert read(pair.ours, form) == reference(pair.theirs, form)


@given(TEXTS, EDGES, EVENTS)
def test_the_page_is_what_prometheus_client_writes_of_the_collected_metrics(
    text: str, edges: tuple[float, ...], events: list[tuple[int, float]]
) -> None:
    ours = Registry()
    histogram = ours.probes.histogram("wait_seconds", text, edges, ("target",))
    gauge = ours.probes.gauge("level", text, ("target",), math.nan)
    for number, value in events:
        extra = (("zone", text), ("m", "1"))[: number % 3]
        exemplar = Exemplar({"trace_id": text, "b": '"\\\n'}, value, 1700000000.25)
        histogram.labels(str(number), extra=extra).observe(value, exemplar if number else None)
        gauge.labels(str(number), extra=extra)
    for form in FORMATS:
        for read in READ:
            assert read(ours, form) == reference(ours, form)


def test_an_exemplar_stands_at_its_bucket_in_openmetrics_only() -> None:
    registry = Registry()
    wait = registry.probes.histogram("wait_seconds", "Wait.", (0.1, 0.2)).labels()
    wait.observe(0.15)
    before = plain(registry, PLAIN_0_0_4), unzipped(registry, OPENMETRICS)
    wait.observe(0.15, Exemplar({"trace_id": "4bf9"}, 0.15, 1700000000.5))
    wait.observe(0.15)
    for read in READ:
        assert b'le="0.2"} 3.0 # {trace_id="4bf9"} 0.15 1700000000.5\n' in read(registry, OPENMETRICS)
        assert b'le="0.2"} 3.0\n' in read(registry, PLAIN_0_0_4)
    assert b" # " not in before[0]
    families = list(parse_openmetrics(unzipped(registry, OPENMETRICS).decode()))  # type: ignore[no-untyped-call]
    assert [sample.exemplar.labels for sample in families[0].samples if sample.exemplar] == [{"trace_id": "4bf9"}]


def test_an_exemplar_longer_than_openmetrics_allows_is_left_out_and_the_observation_kept() -> None:
    registry = Registry()
    wait = registry.probes.histogram("wait_seconds", "Wait.", (0.1,)).labels()
    wait.observe(0.05, Exemplar({"trace_id": "x" * 121}, 0.05, 1.0))
    assert b'le="0.1"} 1.0\n' in plain(registry, OPENMETRICS)


def of_process(page: bytes) -> list[str]:
    """All but the values, which differ from moment to moment."""
    return [line if line.startswith("#") else line.rpartition(" ")[0] for line in page.decode().splitlines()]


@pytest.mark.parametrize("form", FORMATS)
def test_the_process_is_described_as_by_every_program_that_uses_prometheus_client(form: Format) -> None:
    ours, theirs = Registry(), prometheus_client.CollectorRegistry()
    ours.register_process()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=theirs)
    assert of_process(plain(ours, form)) == of_process(reference(theirs, form)) == of_process(reference(ours, form))
    for name in ("process_start_time_seconds", "process_max_fds"):
        assert f"{name} {go_number(value_of(theirs, name))}" in plain(ours, form).decode().splitlines()


def test_where_proc_cannot_be_read_the_page_is_still_whole(tmp_path: Path) -> None:
    registry = Registry()
    ProcessCollector(proc=str(tmp_path), registry=registry.process)
    registry.probes.gauge("level", "Level.").labels()
    assert plain(registry, OPENMETRICS) == b"# HELP level Level.\n# TYPE level gauge\nlevel 0.0\n# EOF\n"


@given(NUMBERS)
def test_a_number_is_written_as_prometheus_client_writes_it(value: float) -> None:
    assert families.number(value) == go_number(value) == floatToGoString(value)  # type: ignore[no-untyped-call]


def forget(registry: Registry) -> None:
    registry.probes.families[0].remove("a")


def keep(registry: Registry) -> None:
    registry.probes.families[0].keep(lambda labels: labels["target"] != "a")


@pytest.mark.parametrize("leave", [forget, keep])
def test_a_target_that_leaves_takes_its_series_out_of_the_compressed_page(leave: Callable[[Registry], None]) -> None:
    registry = Registry()
    wait = registry.probes.histogram("wait_seconds", "Wait.", (0.1,), ("target",))
    wait.labels("a").observe(0.05)
    wait.labels("b").observe(0.05)
    assert b'target="a"' in unzipped(registry, PLAIN_0_0_4)
    leave(registry)
    page = unzipped(registry, PLAIN_0_0_4)
    assert b'target="a"' not in page
    assert b'target="b"' in page


def test_at_other_edges_no_series_goes_back() -> None:
    registry = Registry()
    wait = registry.probes.histogram("wait_seconds", "Wait.", (0.1, 0.3), ("target",))
    child = wait.labels("a", extra=(("zone", "x"),))
    for value in (0.05, 0.25, 0.5):
        child.observe(value)
    assert b'le="0.3",target="a",zone="x"} 2.0' in unzipped(registry, PLAIN_0_0_4)
    wait.change_edges((0.1, 0.2, 0.3))
    child.observe(0.15)
    page = unzipped(registry, PLAIN_0_0_4)
    for line in (
        b'{le="0.1",target="a",zone="x"} 1.0',
        b'{le="0.3",target="a",zone="x"} 3.0',
        b'_count{target="a",zone="x"} 4.0',
    ):
        assert line in page
    # The 0.25 of before may have been below 0.2 for all that is known: it counts at 0.3.
    assert b'le="0.2",target="a",zone="x"} 2.0' in page


def test_the_same_edges_again_change_nothing() -> None:
    registry = Registry()
    wait = registry.probes.histogram("wait_seconds", "Wait.", (0.1,), ("target",))
    wait.labels("a").observe(0.05)
    wait.change_edges((0.1,))
    assert b'le="0.1",target="a"} 1.0' in plain(registry, PLAIN_0_0_4)


def test_a_large_page_comes_in_small_parts() -> None:
    registry = Registry()
    wait = registry.probes.histogram(
        "wait_seconds", "Wait.", tuple(edge / 100 for edge in range(1, 60)), ("target", "size")
    )
    for number in range(200):
        wait.labels("one target has them all", str(number))
    parts = list(pages.page(registry, PLAIN_0_0_4))
    assert len(parts) > 5
    assert max(map(len, parts)) < 2 * pages.PART_BYTES


def test_between_two_blocks_the_maker_of_a_page_may_pause() -> None:
    registry = Registry()
    wait = registry.probes.histogram("wait_seconds", "Wait.", (0.1,), ("target",))
    for number in range(10):
        wait.labels(str(number))
    pauses = []
    b"".join(pages.gzip_page(registry, PLAIN_0_0_4, lambda: pauses.append(1)))
    assert len(pauses) >= 10  # one target after the other


def test_what_comes_while_a_page_is_made_is_on_the_next_one() -> None:
    registry = Registry()
    wait = registry.probes.histogram("wait_seconds", "Wait.", (0.1,), ("target",)).labels("a")

    def observe() -> None:
        wait.observe(0.05, Exemplar({"trace_id": "4bf9"}, 0.05, 1.5))

    page = b"".join(pages.page(registry, OPENMETRICS, lambda: registry.probes.writes.put(observe)))
    assert b'wait_seconds_bucket{le="0.1",target="a"} 0.0\n' in page
    assert b"4bf9" in plain(registry, OPENMETRICS)


def test_the_content_types_are_those_of_prometheus_client() -> None:
    assert PLAIN_0_0_4.content_type == prometheus_client.CONTENT_TYPE_PLAIN_0_0_4
    assert PLAIN_1_0_0.content_type == prometheus_client.CONTENT_TYPE_PLAIN_1_0_0 + "; escaping=underscores"
    assert OPENMETRICS.content_type == openmetrics_text.CONTENT_TYPE_LATEST


@pytest.mark.parametrize("form", FORMATS)
def test_a_histogram_without_edges_is_a_summary(form: Format) -> None:
    registry = started_registry()
    histogram = registry.probes.histogram("h_seconds", "Help.", (), ("a",))
    histogram.labels("x").observe(0.5, Exemplar({"trace_id": "1"}, 0.5, STARTED))
    found = plain(registry, form)
    assert found.startswith(b'# HELP h_seconds Help.\n# TYPE h_seconds summary\nh_seconds_count{a="x"} 1.0\n')
    assert b"_bucket" not in found
    assert found == reference(registry, form)
    if form is OPENMETRICS:
        [family] = parse_openmetrics(found.decode())  # type: ignore[no-untyped-call]
        assert family.type == "summary"
