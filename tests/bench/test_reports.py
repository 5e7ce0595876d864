"""What a sweep is written as: goldens of the tables, JSON, CSV and Markdown, and the page in a real browser.

UPDATE_GOLDENS=1 writes them anew, for the diff.
"""

import json
import os
import re
import subprocess
from html import escape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.bench import html_report, results, summary, tables
from exporter.bench.advice import Caps
from exporter.bench.command import Answer
from exporter.bench.compare import differences, mismatches
from exporter.bench.results import BatchSize, Results, Run, run_of
from exporter.config.errors import SettingsError
from exporter.observation import Observation, Outcome, Series, ServerTimings, Step, Stream
from tests.bench.samples import run, sweep
from tests.real_parts import real_part

GOLDENS = Path(__file__).parent / "goldens"
SMALL = sweep(lambda size: 0.01 + 0.001 * size, noise=0.03, sizes=(1, 8))


def golden(name: str, text: str) -> None:
    path = GOLDENS / name
    if os.environ.get("UPDATE_GOLDENS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


def answer(found: Results, baseline: Results | None = None) -> Answer:
    return Answer(found, Caps(first_token=0.1, token=0.012), baseline, 0.05)


@pytest.mark.parametrize("form", ["markdown", "json", "csv"])
def test_the_forms_are_the_goldens(form: str) -> None:
    golden(f"small.{form}", getattr(answer(SMALL, SMALL), form)() + "\n")


def test_no_line_of_the_tables_is_over_100_columns() -> None:
    wide = sweep(lambda size: 10.0 * size, noise=0.3, prefill=lambda size: 9.0 * size)  # seconds
    for line in answer(wide, wide).markdown().splitlines():
        assert len(line) <= 100, line


# --- the document


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(tables.as_json(SMALL))
    assert results.read(path) == SMALL


def test_a_file_of_schema_version_1_keeps_loading() -> None:
    """The file is never made anew: a change that cannot read it needs a new schema_version."""
    assert results.read(Path(__file__).parent / "schema-1.json").batch_sizes == SMALL.batch_sizes


def test_a_file_of_tgi_probe_0_1_is_read_as_its_medians() -> None:
    old = results.read(Path(__file__).parent / "old-0.1.json")
    assert [block.batch_size for block in old.batch_sizes] == [1, 4]
    assert old.batch_sizes[0].runs[0].prefill_seconds == pytest.approx(0.0089)
    found = differences(old, sweep(lambda size: 0.02, sizes=(1, 4)), 0.05)
    assert found, "the same batch sizes"
    assert not any(one.regression for one in found), "without its raw values nothing is known about noise"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON; give a file that `tgi-probe bench --output` wrote"),
        ("[]", "schema_version: must be 1, not None"),
        ('{"schema_version": 2}', "schema_version: must be 1, not 2"),
        ('{"latency": 3}', "schema_version: must be 1, not None"),
        ('{"schema_version": 1, "batch_sizes": [{"batch_size": 0}]}', "batch_sizes.0.batch_size: must be ≥ 1"),
    ],
)
def test_a_wrong_file_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(SettingsError) as found:
        results.read(path)
    [line] = found.value.problems
    assert line.startswith(f"{path}: {says}")


def test_a_run_has_every_step_and_what_the_server_says() -> None:
    told = ServerTimings(forward=0.008, decode=0.001, total=0.0095)
    steps = (Step(0.0, 0.1, 2, told), Step(0.1, 0.11, 2, told), Step(0.11, 0.13, 2, told))
    stream = Stream(2, 200, 0.0, 0.13, steps)
    found = run_of(Observation(Series("t", "w", 2), 0, 0, 0.13, Outcome.OK, "OK", streams=(stream,)))
    assert found.step_seconds == (0.01, 0.02)
    assert (found.prefill_seconds, found.decode_seconds) == (0.1, 0.03)
    assert found.server_seconds["prefill_forward"] == found.server_seconds["decode_forward"] == 0.008
    assert found.server_seconds["decode_total"] == 0.0095


# --- tables


def of(runs: list[Run]) -> Results:
    return Results(target={"kind": "shard"}, batch_sizes=(BatchSize(batch_size=2, runs=tuple(runs)),))


def test_warm_up_runs_are_in_no_row_and_slow_first_ones_are_named() -> None:
    runs = [run(2, 9.0, 9.0, warmup=True), run(2, 0.5, 0.1)] + [run(2, 0.1 + 0.001 * n, 0.01) for n in range(9)]
    [prefill, *_] = summary.rows(of(runs), summary.LATENCY)
    assert (prefill.values, prefill.lowest) == (9, 0.1)
    assert next(summary.remarks(of(runs))) == "batch size 2: the first run left out: not yet like the later ones"


def test_drift_is_said() -> None:
    runs = [run(2, 0.1, 0.01 * (1 + n / 30)) for n in range(12)]
    assert list(summary.remarks(of(runs))) == [
        "batch size 2: decode became 25.4% slower from the first to the last third of the runs"
    ]


def test_values_that_are_withheld_are_counted_and_named() -> None:
    gone = run(2, 0.1, 0.01).model_copy(update={"decode_seconds": None, "withheld": ("decode_seconds",)})
    found = of([run(2, 0.1, 0.01), gone, gone])
    total = [row for row in summary.rows(found, summary.LATENCY) if row.step == "Decode (total)"]
    assert [(row.values, row.withheld) for row in total] == [(1, 2)]
    assert list(summary.remarks(found)) == [
        "decode (total) latency: values withheld at batch size 2 (2 of 3): this machine was busy"
    ]
    nothing = of([gone])
    assert "| Decode (total) |            2 |         – |" in tables.as_markdown(nothing)


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=40))
def test_numbers_of_a_row_are_in_order(values: list[float]) -> None:
    row = summary.row("Prefill", 1, [(value,) for value in values])
    assert row.quantiles is not None
    assert row.average is not None
    assert row.lowest is not None
    assert row.highest is not None
    order = [row.lowest, *(one.value for one in row.quantiles), row.highest]
    assert order == pytest.approx(sorted(order))
    assert (row.lowest, row.highest) == (min(values), max(values))


# --- compare


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_regression_and_a_slower_server_is_one(seed: int) -> None:
    before = sweep(lambda size: 0.01, noise=0.03, seed=seed)
    same = sweep(lambda size: 0.01, noise=0.03, seed=seed + 100)
    slower = sweep(lambda size: 0.0115, noise=0.03, seed=seed + 100)
    assert not any(one.regression for one in differences(before, same, 0.05))
    worse = [one for one in differences(before, slower, 0.05) if one.regression]
    assert {one.step for one in worse} == {"Decode (token) latency", "Decode throughput"}
    assert all(one.worse for one in worse)
    better = differences(slower, before, 0.05)
    assert any(one.beyond_noise for one in better)
    assert not any(one.regression for one in better)


def test_a_change_that_is_certain_but_small_is_none() -> None:
    before, after = sweep(lambda size: 0.01, noise=0.001), sweep(lambda size: 0.0102, noise=0.001, seed=2)
    assert not any(one.beyond_noise for one in differences(before, after, 0.05))
    assert any(one.regression for one in differences(before, after, 0.01))


def test_sweeps_of_other_lengths_cannot_be_compared() -> None:
    other = SMALL.model_copy(update={"parameters": {"sequence_length": 10, "decode_length": 8}})
    assert mismatches(other, SMALL) == ["sequence length was 10, now 100"]


# --- the page


def test_the_page_needs_no_network_and_no_script() -> None:
    page = answer(SMALL, SMALL).html()
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "@import" not in page
    assert page.count("<svg") == 2


def test_text_of_the_server_is_escaped() -> None:
    evil = SMALL.model_copy(update={"target": {"model": "<script>alert(1)</script>"}})
    assert "<script" not in html_report.page(evil, [], [], None)


@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_in_a_browser_has_no_error_and_fits_the_window(width: int, tmp_path: Path) -> None:
    page = answer(sweep(lambda size: 0.01 + 0.001 * size, noise=0.03)).html()
    look = "document.title = document.querySelector('iframe').contentDocument.documentElement.scrollWidth"
    frame = f'<iframe srcdoc="{escape(page)}" style="width:{width}px;height:900px;border:0" onload="{look}"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!doctype html><title></title>{frame}")
    command = (real_part("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
    done = subprocess.run(
        (*command, f"--user-data-dir={tmp_path}/profile", "--dump-dom", (tmp_path / "frame.html").as_uri()),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    found = re.search(r"<title>(\d+)</title>", done.stdout)
    assert found
    assert width - 20 <= int(found[1]) <= width  # less the scroll bar


def test_json_has_the_rows_too() -> None:
    document = json.loads(tables.as_json(SMALL))
    assert document["schema_version"] == 1
    row = document["latency"][0]
    assert (row["step"], row["batch_size"], row["values"]) == ("Prefill", 1, 10)
    assert row["p50_low"] < row["p50"] < row["p50_high"]
    assert row["p99_high"] is None
