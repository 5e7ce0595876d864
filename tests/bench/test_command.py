"""The command: its options, its exit codes, what it prints, and what it leaves behind."""

import csv
import io
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter import cli
from exporter.analysis import certainty
from exporter.simulator import Shard
from tests.end_to_end.parts import simulated_shard
from tests.processes import TGI_PROBE, running, wait_until
from tests.simulator.caller import fast


@pytest.fixture
def shard() -> Iterator[Shard]:
    with Shard(fast(ranks=2)) as shard:
        yield shard


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
        "decode (total) latency: values withheld at batch size 1 (3 of 3): this machine was busy",
        "decode throughput: values withheld at batch size 1 (3 of 3): this machine was busy",
    ]
    assert "this machine was busy" not in said.out


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
        (step, size) for size in (1, 3) for step in ("Prefill", "Decode (token)", "Decode (step)", "Decode (total)")
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
        (["--runs", "0"], "--runs: must be a whole number ≥ 1, or auto, not '0'"),
        (["--target", "x:y"], "--target: must be unix:///absolute/path of the socket, or host:port, not 'x:y'"),
        (["--kind", "tgi"], "--kind: must be 'shard', 'fmaas', 'http', 'vllm' or 'sglang', not 'tgi'"),
        (
            ["--model", "m"],
            "--model: is a key of kind http, vllm and sglang only, and this target is of kind shard; remove it",
        ),
        (["--workload", "chat"], "--workload: works together with --config only"),
        (["--precision", "x"], "--precision: must be a share such as 5%, not 'x'"),
        (["--max-ttft", "3"], "--max-ttft: must be a duration with a unit, such as 250ms, 15s or 2m, not '3'"),
        (["--output", "a.txt"], "--output: must end in .json, .csv, .md, .html, not 'a.txt'"),
        (["--output", "/nowhere/a.md"], "--output: /nowhere/a.md cannot be written; choose another file"),
        (["--baseline", "/nowhere.json"], "/nowhere.json: cannot be read: No such file or directory"),
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
            wait_until(lambda: "batch size 1:" in sweep.stderr, "the first batch size is finished", sweep)
            sweep.send(signal.SIGINT)
            assert sweep.wait() == 130, sweep.output
        assert shard.batches() == 0
    assert "1" in {row["batch_size"] for row in csv.DictReader(io.StringIO(sweep.stdout))}
    warned, finished, *said = sweep.stderr.splitlines()
    assert warned.startswith("target bench computes on 2 ranks: never probe it beside a router.")
    assert "set --kv-cache exclusive if no router serves users here" in warned
    assert finished.startswith("batch size 1: 5 runs, prefill ")
    assert said[0] == "waiting for the call in flight; once more ends it"
    assert said[-1] == "ended early: batch size 1024: interrupted"


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


def test_a_configuration_file_gives_the_target_and_the_workload(
    shard: Shard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tgi-probe.yaml"
    config.write_text(
        f"""
targets:
  - {{name: a, address: "{shard.addresses[0]}", kv_cache: exclusive}}
  - {{name: b, address: "h:1"}}
workloads:
  - {{name: chat, sequence_length: 20, decode_length: 4, batch_sizes: [2], parameters: {{top_k: 3}}}}
  - {{name: rag, sequence_length: 300, targets: [b]}}
"""
    )
    command = ["bench", "--config", str(config), "--runs", "2", "--format", "json"]
    assert cli.main([*command, "--target", "a", "--decode-length", "3"]) == 0
    sent = json.loads(capsys.readouterr().out)["parameters"]
    assert (sent["sequence_length"], sent["decode_length"], sent["top_k"]) == (20, 3, 3)
    for words, says in (
        ([], f"--target: {config} has a, b; say which"),
        (["--target", "c"], f"--target: must be one of {config} (a, b), not 'c'"),
        (["--target", "b"], f"--workload: {config} has chat, rag; say which"),
        (["--target", "a", "--kv-cache", "exclusive"], f"--kv-cache: cannot stand beside --config; set it in {config}"),
    ):
        assert cli.main([*command, *words]) == 2
        assert capsys.readouterr().err.splitlines() == [says]


def test_a_shape_sets_the_lengths_and_options_go_before_it(shard: Shard, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", shard.addresses[0], "-b", "1", "-r", "1", "-w", "0", "--shape", "code", "-d", "2"]
    assert cli.main(["bench", *words, "--format", "json"]) == 0
    sent = json.loads(capsys.readouterr().out)["parameters"]
    assert (sent["sequence_length"], sent["decode_length"]) == (1024, 2)


def test_every_output_is_written_and_a_baseline_that_was_faster_is_exit_code_3(
    shard: Shard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"results.{suffix}" for suffix in ("json", "csv", "md", "html")]
    words = ["bench", "-m", shard.addresses[0], "-b", "1", "-b", "2", "--runs", "8"]
    assert cli.main([*words, *(word for file in files for word in ("--output", str(file)))]) == 0
    assert all(file.stat().st_size > 500 for file in files)
    assert capsys.readouterr().out == files[2].read_text()
    baseline = json.loads(files[0].read_text())
    for block in baseline["batch_sizes"]:
        for run in block["runs"]:
            run["token_seconds"] /= 1000
    files[0].write_text(json.dumps(baseline))
    assert cli.main([*words, "--baseline", str(files[0])]) == 3
    assert re.search(r"^\d regressions\.$", capsys.readouterr().out, re.MULTILINE)  # this machine may be slower too
    assert cli.main([*words, "--baseline", str(files[0]), "--decode-length", "3"]) == 2
    assert "decode length was 8, now 3; send the same to compare" in capsys.readouterr().err


def test_runs_auto_makes_at_least_ten_and_ends(shard: Shard, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", shard.addresses[0], "-b", "1", "--runs", "auto", "--precision", "90%", "--format", "json"]
    assert cli.main(["bench", *words]) == 0
    runs = json.loads(capsys.readouterr().out)["batch_sizes"][0]["runs"]
    assert sum(not run["warmup"] for run in runs) >= 10
