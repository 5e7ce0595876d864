"""One sweep, its tables, and what it leaves behind."""

import csv
import io
import json
import re
import signal
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter import cli
from exporter.analysis import certainty
from exporter.bench import tables
from exporter.observation import Observation, Outcome, Series, Step, Stream
from exporter.simulator import Shard
from tests.end_to_end.parts import simulated_shard
from tests.processes import TGI_PROBE, running, wait_until
from tests.simulator.caller import fast


@pytest.fixture
def shard() -> Iterator[Shard]:
    with Shard(fast(ranks=2)) as shard:
        yield shard


def observation(prefill: float, decodes: list[float], requests: int = 2) -> Observation:
    instants = [prefill]
    for wait in decodes:
        instants.append(instants[-1] + wait)
    asked = [0.0, *instants[:-1]]
    steps = tuple(Step(a, b, requests) for a, b in zip(asked, instants, strict=True))
    stream = Stream(requests, 100 * requests, 0.0, instants[-1], steps)
    return Observation(Series("t", "w", requests), 0, 0, instants[-1], Outcome.OK, "OK", streams=(stream,))


def test_the_tables_read_as_those_of_the_tgi_benchmark() -> None:
    seen = [observation(0.1, [0.010, 0.020]), observation(0.3, [0.030, 0.040])]
    result = tables.Sweep(
        {"target": "unix:///x", "decode_length": 3},
        list(tables.latency_rows(2, seen)),
        list(tables.throughput_rows(2, seen)),
        None,
    )
    assert (
        tables.as_table(result)
        == """\
| Parameter     | Value     |
|---------------|-----------|
| Target        | unix:///x |
| Decode length | 3         |

|           Step |   Batch Size |   Average |    Lowest |   Highest |       p50 |       p90 |       p99 |
|----------------|--------------|-----------|-----------|-----------|-----------|-----------|-----------|
|        Prefill |            2 | 200.00 ms | 100.00 ms | 300.00 ms | 200.00 ms | 280.00 ms | 298.00 ms |
| Decode (token) |            2 |  25.00 ms |  15.00 ms |  35.00 ms |  25.00 ms |  33.00 ms |  34.80 ms |
| Decode (total) |            2 |  50.00 ms |  30.00 ms |  70.00 ms |  50.00 ms |  66.00 ms |  69.60 ms |

|    Step |   Batch Size |          Average |          Lowest |          Highest |
|---------|--------------|------------------|-----------------|------------------|
| Prefill |            2 | 1333.33 tokens/s | 666.67 tokens/s | 2000.00 tokens/s |
|  Decode |            2 |   95.24 tokens/s |  57.14 tokens/s |  133.33 tokens/s |"""
    )


def late(observation: Observation) -> Observation:
    """The same, but each of its arrivals may be half a second older."""
    [stream] = observation.streams
    steps = tuple(replace(step, late=0.5) for step in stream.steps)
    return replace(observation, streams=(replace(stream, steps=steps, ended_late=0.5),))


def swept(*observations: Observation) -> tables.Sweep:
    latency, throughput = (list(rows(2, observations)) for rows in (tables.latency_rows, tables.throughput_rows))
    return tables.Sweep({"target": "unix:///x"}, latency, throughput, None)


@pytest.mark.timed
def test_a_row_whose_values_are_all_withheld_stands_in_the_table_and_a_line_says_why() -> None:
    result = swept(late(observation(0.1, [0.01])), late(observation(0.1, [0.01])))
    lines = tables.as_table(result).splitlines()
    assert [re.sub(r"[\s|]+", " ", line).strip() for line in lines if "–" in line] == [
        "Prefill 2 – – – – – –",
        "Decode (token) 2 – – – – – –",
        "Decode (total) 2 – – – – – –",
        "Prefill 2 – – –",
        "Decode 2 – – –",
    ]
    assert lines[-2:] == [
        "prefill throughput: 2 of 2 values withheld at batch size 2: this machine was busy",
        "decode throughput: 2 of 2 values withheld at batch size 2: this machine was busy",
    ]
    row = json.loads(tables.as_json(result))["throughput"][1]
    assert (row["average"], row["values"], row["withheld"]) == (None, 0, 2)
    assert list(csv.DictReader(io.StringIO(tables.as_csv(result))))[-1]["average"] == ""


@pytest.mark.timed
def test_a_row_of_some_values_says_how_many_were_withheld() -> None:
    result = swept(observation(0.1, [0.02]), late(observation(0.1, [0.01])), observation(0.1, [0.02]))
    decode = result.latency[-1]
    assert decode.step == "Decode (total)"
    assert decode.average == pytest.approx(20.0)
    assert list(tables.withheld_lines(result))[-1] == (
        "decode throughput: 1 of 3 values withheld at batch size 2: this machine was busy"
    )
    assert list(tables.withheld_lines(swept(observation(0.1, [])))) == []  # there is no decode to withhold


@pytest.mark.parametrize("form", ["json", "csv"])
def test_beside_json_and_csv_what_was_withheld_is_said_on_standard_error(
    form: str, shard: Shard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(certainty, "TOLERANCE_PER_CALL", -3600.0)  # so no sum of calls is certain
    assert (
        cli.main(["bench", "--target", shard.addresses[0], "--batch-size", "1", "--runs", "3", "--format", form]) == 0
    )
    said = capsys.readouterr()
    assert said.err.splitlines()[-2:] == [
        "decode (total) latency: 3 of 3 values withheld at batch size 1: this machine was busy",
        "decode throughput: 3 of 3 values withheld at batch size 1: this machine was busy",
    ]
    assert "this machine was busy" not in said.out


@given(st.lists(st.floats(0.001, 1000), min_size=1))
def test_percentiles_are_of_sorted_values_and_in_order(values: list[float]) -> None:
    row = tables.summary("Prefill", 1, values)
    assert row.p50 == pytest.approx(statistics.median(values))
    order = [number for number in (row.lowest, row.p50, row.p90, row.p99, row.highest) if number is not None]
    assert (row.lowest, row.highest) == (min(values), max(values))
    assert order == pytest.approx(sorted(order))


def test_a_sweep_prints_every_batch_size_and_leaves_no_batch(shard: Shard, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--target",
        shard.addresses[0],
        "--batch-size",
        "1",
        "--batch-size",
        "3",
        "--runs",
        "2",
        "--format",
        "json",
    ]
    assert cli.main(["bench", *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["step"], row["batch_size"]) for row in result["latency"]] == [
        (step, size) for size in (1, 3) for step in ("Prefill", "Decode (token)", "Decode (total)")
    ]
    assert [rank["batches"] for rank in shard.state()["ranks"]] == [[], []]


def test_a_decode_length_of_one_has_a_prefill_and_no_decode(shard: Shard, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--target",
        shard.addresses[0],
        "--batch-size",
        "2",
        "--decode-length",
        "1",
        "--runs",
        "1",
        "--format",
        "csv",
    ]
    assert cli.main(["bench", *flags]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["measure"], row["step"]) for row in rows] == [("latency", "Prefill"), ("throughput", "Prefill")]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--batch-size", "0"], "--batch-size: must be ≥ 1, not '0'"),
        (["--top-p", "3"], "--top-p: must be ≤ 1, not '3'"),
        (["--runs", "0"], "--runs: must be ≥ 1, not 0"),
        (["--target", "x:y"], "--target: must be unix:///absolute/path of the socket, or host:port, not 'x:y'"),
        (
            ["--target", "http://h:80"],
            "--target: must be a shard, unix:///path or host:port; bench knows no router's URL",
        ),
        (["--timeout", "5"], "--timeout: must be a duration with a unit, such as 250ms, 15s or 2m, not '5'"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(
    flags: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *flags]) == 2
    assert capsys.readouterr().err.splitlines() == [line]


def test_a_refusal_names_the_option_of_this_command(capsys: pytest.CaptureFixture[str]) -> None:
    with Shard(fast(attention="paged")) as shard:
        assert cli.main(["bench", "--target", shard.addresses[0], "--runs", "1"]) == 1
    said = capsys.readouterr().err
    assert "set --kv-cache reserved_block" in said
    assert "set --kv-cache exclusive and --max-batch-tokens if no router serves users here" in said
    assert "kv_cache" not in said


def test_ctrl_c_prints_the_batch_sizes_that_were_finished_and_exits_with_130(tmp_path: Path) -> None:
    with simulated_shard(f"unix://{tmp_path}/shard", "--ranks", "2") as shard:
        sizes = ("--batch-size", "1", "--batch-size", "1024")
        command = (*TGI_PROBE, "bench", "--target", shard.address, *sizes, "--runs", "5", "--format", "csv")
        with running(command) as sweep:
            wait_until(lambda: "batch size 1024" in sweep.stderr, "the first batch size is finished", sweep)
            sweep.send(signal.SIGINT)
            assert sweep.wait() == 130, sweep.output
        assert shard.batches() == 0
    assert {row["batch_size"] for row in csv.DictReader(io.StringIO(sweep.stdout))} == {"1"}
    said = sweep.stderr.splitlines()
    assert said[1].startswith("target bench computes on 2 ranks: never probe it beside a router.")
    assert "set --kv-cache exclusive if no router serves users here" in said[1]
    assert [line for line in said[3:] if "withheld at batch size" not in line] == [  # this machine may be busy
        "waiting for the call in flight; once more ends it",
        "ended early: batch size 1024: interrupted",
    ]


def test_a_second_ctrl_c_does_not_wait_for_the_call_and_is_no_traceback(tmp_path: Path) -> None:
    with simulated_shard(f"unix://{tmp_path}/shard", "--ranks", "2") as shard:
        shard.command("fault?kind=hang&method=Decode")
        with running((*TGI_PROBE, "bench", "--target", shard.address, "--batch-size", "1")) as sweep:
            wait_until(lambda: shard.calls("Decode", "received") > 0, "a call that hangs", sweep)
            sweep.send(signal.SIGINT)
            wait_until(lambda: "once more ends it" in sweep.stderr, "the first Ctrl-C is answered", sweep)
            sweep.send(signal.SIGINT)
            assert sweep.wait() == 130, sweep.output
    assert sweep.stdout == ""
    assert "Traceback" not in sweep.stderr
    assert sweep.stderr.splitlines()[-1] == "ended early: batch size 1: interrupted"


def test_a_shard_that_is_not_there_ends_the_sweep_with_exit_code_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--target", "unix:///nowhere/socket", "--runs", "1"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "ended early: batch size 1: unreachable" in said.err
