"""The /metrics page for a fixed list of observations, as text. UPDATE_GOLDENS=1 writes it anew, for the diff."""

import os
import re
import subprocess
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from exporter.config.settings import Settings
from exporter.metrics import pages
from exporter.metrics.catalogue import layout
from exporter.metrics.formats import OPENMETRICS, PLAIN_0_0_4, Format
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Outcome, Series, ServerTimings, SkipReason, Step, Stream
from exporter.plan.targets import Facts, plans
from tests import real_parts

HERE = Path(__file__).parent
SETTINGS = Settings.model_validate(
    {
        "targets": [{"name": "llama", "address": "h:1", "labels": {"zone": 'a "quoted" \\ zone'}}],
        "workloads": [{"name": "chat", "sequence_length": 100, "decode_length": 3, "batch_sizes": [2]}],
        "slos": [
            {"name": "fast", "workload": "chat", "ttft": "123ms", "objective": 0.99},
            {"name": "up", "workload": "chat", "availability": True, "objective": 0.9},
        ],
    }
)
SERIES = Series("llama", "chat", 2)
# What differs from machine to machine and from moment to moment.
OF_THE_PROCESS = re.compile(r"(# \w+ )?(process_|python_|tgi_probe_build_info)")


def probed(start: float, *waits: float, timings: ServerTimings | None = None) -> Observation:
    """A probe that went well; each wait is a step with a token for each of its two requests."""
    now, steps = start, []
    for wait in waits:
        steps.append(Step(now, now + wait, 2, timings))
        now += wait
    stream = Stream(2, 200, start, now, tuple(steps))
    return Observation(SERIES, start, start, now, Outcome.OK, "OK", streams=(stream,))


def failed(outcome: Outcome, code: str) -> Observation:
    return Observation(SERIES, 0.0, 0.0, 1.0, outcome, code, "a line for people")


OBSERVATIONS = (
    probed(0, 0.125, 0.0625, 0.03125, timings=ServerTimings(forward=0.015625, decode=0.0078125, total=0.03125)),
    probed(10, 0.0625, 0.03125, 0.03125),
    failed(Outcome.TIMEOUT, "DEADLINE_EXCEEDED"),
    failed(Outcome.REFUSED, "REFUSED"),
    failed(Outcome.REJECTED, "OUT_OF_RANGE"),
)


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics(layout(SETTINGS), unix_time=lambda: 1_700_000_000.25)
    metrics.configure(SETTINGS)
    [plan] = plans(SETTINGS).values()
    metrics.announce(plan)
    metrics.reloaded(True)
    metrics.up("llama", "shard", Facts("generate.v3", 2, dtype="torch.float16", device="cuda", attention="padded"))
    metrics.late("llama", 0.00025)
    metrics.skipped(SERIES, SkipReason.DUTY_CYCLE)
    metrics.inflight("llama", 1)
    for observation in OBSERVATIONS:
        metrics.record(observation)
    return metrics


def shown(metrics: Metrics, form: Format) -> str:
    return b"".join(pages.page(metrics.registry, form)).decode()


def thinned(page: str) -> Iterator[str]:
    """Without the process's own lines; of buckets with the same count in a row, the first stands for all."""
    lines = [line for line in page.splitlines() if not OF_THE_PROCESS.match(line)]
    for bucket, group in groupby(lines, key=lambda line: re.sub(r'le="[^"]*"', "le", line)):
        same = list(group)
        yield same[0] if "_bucket{" in bucket else "\n".join(same)


@pytest.mark.parametrize(("form", "name"), [(PLAIN_0_0_4, "page.txt"), (OPENMETRICS, "page.openmetrics.txt")])
def test_the_page_is_the_golden_one(metrics: Metrics, form: Format, name: str) -> None:
    text = "\n".join(thinned(shown(metrics, form))) + "\n"
    if os.environ.get("UPDATE_GOLDENS"):
        (HERE / name).write_text(text, "utf-8")
    assert text == (HERE / name).read_text("utf-8")


def test_promtool_finds_nothing_to_say_about_the_page(metrics: Metrics) -> None:
    command = [real_parts.promtool(), "check", "metrics"]
    found = subprocess.run(command, input=shown(metrics, PLAIN_0_0_4), capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_the_openmetrics_page_parses_strictly(metrics: Metrics) -> None:
    families = list(parse_openmetrics(shown(metrics, OPENMETRICS)))  # type: ignore[no-untyped-call]
    assert len(families) > 30


def test_nothing_of_a_target_that_left_stays_on_the_page(metrics: Metrics) -> None:
    metrics.forget("llama")
    metrics.record(OBSERVATIONS[0])
    assert "llama" not in shown(metrics, PLAIN_0_0_4)


def test_a_failure_changes_no_latency_histogram(metrics: Metrics) -> None:
    def latencies() -> list[str]:
        return [
            line for line in shown(metrics, PLAIN_0_0_4).splitlines() if re.match(r"\w+(_count|_sum|_bucket)\{", line)
        ]

    before = latencies()
    for outcome in Outcome:
        if outcome is not Outcome.OK:
            metrics.record(failed(outcome, "X"))
    assert latencies() == before
