"""A page shows one instant: what happens while it is made is on the next one, whole, and nobody waits for it."""

import gzip
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from exporter.config.settings import Settings
from exporter.metrics import pages
from exporter.metrics.catalogue import layout
from exporter.metrics.formats import OPENMETRICS, PLAIN_0_0_4, Format
from exporter.metrics.record import Metrics
from exporter.metrics.write_queue import WriteQueue
from exporter.observation import Observation, Outcome, Series, ServerTimings, Setup, SkipReason, Step, Stream
from exporter.plan.targets import Facts, plans

STEPS = 3
SIZES = (1, 2)
TARGETS = ("a", "b")


def configured(*targets: str, sizes: tuple[int, ...] = SIZES) -> Settings:
    return Settings.model_validate(
        {
            "targets": [{"name": name, "address": f"h:{ord(name)}"} for name in targets],
            "workloads": [{"name": "chat", "batch_sizes": list(sizes)}],
            "slos": [
                {"name": "fast", "workload": "chat", "ttft": "200ms"},
                {"name": "up", "workload": "chat", "availability": True},
            ],
        }
    )


SETTINGS = configured(*TARGETS)


def new_metrics() -> Metrics:
    metrics = Metrics(layout(SETTINGS), unix_time=lambda: 1_700_000_000.25)
    metrics.configure(SETTINGS)
    for plan in plans(SETTINGS).values():
        metrics.announce(plan)
    return metrics


def probed(target: str, size: int, outcome: Outcome = Outcome.OK, wait: float = 0.125) -> Observation:
    timings = ServerTimings(forward=wait / 2, total=wait)
    steps = tuple(Step(n * wait, (n + 1) * wait, size, timings) for n in range(STEPS))
    streams = (Stream(size, 10 * size, 0.0, STEPS * wait, steps),) if outcome is Outcome.OK else ()
    setups = (Setup(0.0, 0.5),)
    series = Series(target, "chat", size)
    return Observation(series, 0.0, 0.0, 1.0, outcome, "OK", streams=streams, setups=setups, trace_id="4bf9")


def narrowed(metrics: Metrics) -> None:
    """A reload that leaves target b with other batch sizes."""
    after = plans(configured(*TARGETS, sizes=(2, 4)))["b"]
    metrics.narrow(after, plans(SETTINGS)["b"])
    metrics.announce(after)


def reconfigured(metrics: Metrics) -> None:
    metrics.announce(plans(configured(*TARGETS, "c"))["c"])


Event = Callable[[Metrics], object]
RECORDS = st.builds(
    lambda target, size, outcome, wait: lambda metrics: metrics.record(probed(target, size, outcome, wait)),
    st.sampled_from(TARGETS),
    st.sampled_from(SIZES),
    st.sampled_from([Outcome.OK, Outcome.OK, Outcome.TIMEOUT, Outcome.REFUSED]),
    st.sampled_from([0.0625, 0.125, 0.25]),
)
OTHERS: list[Event] = [
    lambda metrics: metrics.skipped(Series("a", "chat", 1), SkipReason.BUSY),
    lambda metrics: metrics.late("a", 0.25),
    lambda metrics: metrics.inflight("b", 1),
    lambda metrics: metrics.up("b", "shard", Facts("generate.v3", 2)),
    lambda metrics: metrics.up("b", "shard", None),
    lambda metrics: metrics.reloaded(ok=False),
    lambda metrics: metrics.forget("a"),
    lambda metrics: metrics.announce(plans(SETTINGS)["a"]),
    narrowed,
    reconfigured,
]
EVENTS = st.lists(RECORDS | st.sampled_from(OTHERS), max_size=12)


def text_of(metrics: Metrics, form: Format, pause: Callable[[], None] = pages.no_pause) -> str:
    page = gzip.decompress(b"".join(pages.gzip_page(metrics.registry, form, pause))).decode()
    return "\n".join(
        line for line in page.splitlines() if "process_" not in line and "python_" not in line.partition("{")[0]
    )


@given(EVENTS, EVENTS, st.sampled_from([PLAIN_0_0_4, OPENMETRICS]), st.integers(0, 40))
def test_what_happens_while_a_page_is_made_is_wholly_on_the_next_one_and_in_its_order(
    before: list[Event], during: list[Event], form: Format, first: int
) -> None:
    ours, plainly = new_metrics(), new_metrics()
    for event in before:
        event(ours)
        event(plainly)
    pauses = iter(range(1_000_000))
    left: Iterator[Event] = iter(during)

    def pause() -> None:
        if next(pauses) >= first and (event := next(left, None)) is not None:
            event(ours)

    assert text_of(ours, form, pause) == text_of(plainly, form)
    for event in left:  # those for which the page had too few pauses
        event(ours)
    for event in during:
        event(plainly)
    for other in (PLAIN_0_0_4, OPENMETRICS):
        assert text_of(ours, other) == text_of(plainly, other)


def test_a_record_does_not_wait_for_the_page_that_is_being_made() -> None:
    metrics = new_metrics()
    made, going_on = threading.Event(), threading.Event()

    def pause() -> None:
        made.set()
        assert going_on.wait(30)

    pages: list[str] = []
    maker = threading.Thread(target=lambda: pages.append(text_of(metrics, PLAIN_0_0_4, pause)))
    maker.start()
    assert made.wait(30)
    metrics.record(probed("a", 1))  # would wait here for ever
    going_on.set()
    maker.join(30)
    line = 'tgi_probe_attempts_total{batch_size="1",code="OK",outcome="ok",target="a",workload="chat"}'
    assert f"{line} 0.0" in pages[0]
    assert f"{line} 1.0" in text_of(metrics, PLAIN_0_0_4)


def test_a_client_that_takes_its_page_slowly_keeps_no_record_waiting() -> None:
    metrics = new_metrics()
    slow = pages.page(metrics.registry, PLAIN_0_0_4)
    next(slow)
    metrics.record(probed("a", 1))
    labels = {"target": "a", "workload": "chat", "batch_size": "1", "outcome": "ok", "code": "OK"}
    assert metrics.registry.get_sample_value("tgi_probe_attempts_total", labels) == 1
    assert b'outcome="ok",target="a",workload="chat"} 1.0' not in b"".join(slow)


def test_a_bug_in_a_record_is_logged_and_ends_neither_the_thread_nor_the_next_record(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = new_metrics()
    with monkeypatch.context() as broken:
        broken.setattr(metrics, "_record_latency", None)
        metrics.record(probed("a", 1))
    assert "tgi-probe failed in its own metrics (record)" in caplog.text
    metrics.record(probed("a", 1))
    labels = {"target": "a", "workload": "chat", "batch_size": "1"}
    assert metrics.registry.get_sample_value("tgi_probe_time_to_first_token_seconds_count", labels) == 1


# --- with real threads

RECORDERS = 3
PROBES = 150


@pytest.mark.parametrize("form", [PLAIN_0_0_4, OPENMETRICS])
def test_every_page_of_a_busy_daemon_has_all_of_a_probe_or_nothing(form: Format) -> None:
    metrics = new_metrics()
    pauses = threading.Semaphore(0)  # of those who make pages: in each a probe ends
    recorders = [threading.Thread(target=record_all, args=(metrics, number, pauses)) for number in range(RECORDERS)]
    texts: list[str] = []

    def make_pages() -> None:
        while any(thread.is_alive() for thread in recorders):
            texts.append(text_of(metrics, form, pauses.release))

    makers = [threading.Thread(target=make_pages) for _ in range(2)]
    for thread in (*recorders, *makers):
        thread.start()
    for thread in (*recorders, *makers):
        thread.join(120)
    assert len({text for text in texts}) > 2
    pages = [counted(text, form) for text in (*texts, text_of(metrics, form))]
    for page in pages:
        for (_, size), counts in page.items():
            assert_one_instant(int(size), counts)
    assert sum(counts["ok"] + counts["failed"] for counts in pages[-1].values()) == RECORDERS * PROBES


def record_all(metrics: Metrics, number: int, pauses: threading.Semaphore) -> None:
    for probe in range(PROBES):
        assert pauses.acquire(timeout=120)
        outcome = Outcome.TIMEOUT if probe % 5 == number else Outcome.OK
        metrics.record(probed(TARGETS[probe % 2], SIZES[probe // 2 % 2], outcome))


def counted(page: str, form: Format) -> dict[tuple[str, str], dict[str, float]]:
    """By target and batch size: how often each family says that something happened."""
    parse = parse_openmetrics if form is OPENMETRICS else parse_plain
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for family in parse(page + "\n"):
        for sample in family.samples:
            labels = sample.labels
            if "batch_size" not in labels:
                continue
            counts = found[labels["target"], labels["batch_size"]]
            if sample.name == "tgi_probe_attempts_total":
                counts["ok" if labels["outcome"] == "ok" else "failed"] += sample.value
            elif sample.name == "tgi_probe_slo_requests_total":
                counts[f"judged {labels['slo']}"] += sample.value
            elif sample.name.endswith(("_total", "_count")):
                counts[sample.name + labels.get("phase", "") + labels.get("method", "")] += sample.value
    return found


def assert_one_instant(size: int, counts: dict[str, float]) -> None:
    ok = counts["ok"]
    once = (
        "time_to_first_token_seconds",
        "time_per_output_token_seconds",
        "decode_duration_seconds",
        "request_duration_seconds",
        "prefill_throughput_tokens_per_second",
        "decode_throughput_tokens_per_second",
    )
    assert {name: counts[f"tgi_probe_{name}_count"] for name in once} == dict.fromkeys(once, ok)
    assert counts["tgi_probe_inter_token_latency_seconds_count"] == ok * (STEPS - 1)
    assert counts["tgi_probe_server_duration_seconds_counttotaldecode"] == ok * (STEPS - 1)
    assert counts["tgi_probe_overhead_seconds_countprefill"] == ok
    assert counts["tgi_probe_prompt_tokens_total"] == ok * 10 * size
    assert counts["tgi_probe_generated_tokens_total"] == ok * STEPS * size
    assert counts["judged fast"] == counts["judged up"] == (ok + counts["failed"]) * size


def test_of_many_threads_that_write_each_write_is_done_once_and_alone() -> None:
    queue = WriteQueue()
    written: list[tuple[int, int]] = []
    inside = [0]

    def write(one: tuple[int, int]) -> None:
        inside[0] += 1
        assert inside[0] == 1
        written.append(one)
        inside[0] -= 1

    def work(number: int) -> None:
        for at in range(500):
            queue.put(partial(write, (number, at)))
            if at % 50 == 0:
                with queue.held():
                    assert inside[0] == 0

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(written) == [(number, at) for number in range(4) for at in range(500)]
    for number in range(4):
        assert [at for one, at in written if one == number] == list(range(500))
