"""The simulator as a command."""

import argparse
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.simulator import Config, add_arguments, config_from, run
from tests.simulator.caller import Caller, prefill, prefill_of, request

COMMAND = (
    "import argparse, exporter.simulator as s; p = argparse.ArgumentParser(); s.add_arguments(p);"
    "raise SystemExit(s.run(p.parse_args()))"
)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def started(*words: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "--speed", "100000", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_no_options_give_the_default_config() -> None:
    assert config_from(parsed()) == Config()


def test_presets_and_single_numbers_combine() -> None:
    words = "--gpu l4 --model llama-3-70b --ranks 8 --bytes-per-parameter 1 --memory-bandwidth 400"
    roofline = config_from(parsed(*words.split())).roofline
    assert (roofline.gpu.name, roofline.gpu.memory_bandwidth, roofline.ranks) == ("l4", 400e9, 8)
    assert (roofline.model.parameters, roofline.model.bytes_per_parameter) == (70.6e9, 1)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--ranks 0", "--ranks 0: expected a whole number from 1 to 64"),
        ("--ranks two", "--ranks two: expected a number"),
        ("--speed 0", "--speed 0: expected above 0"),
        ("--compute-efficiency 1.5", "--compute-efficiency 1.5: expected above 0 and at most 1"),
        ("--gpu b52", "--gpu b52: expected one of h100, a100, l4"),
        ("--protocol v1", "--protocol v1: expected one of v3, v2"),
        ("--listen here", "--listen here: expected host:port with a port from 0 to 65535"),
        ("--listen unix:///", "--listen unix:///: expected unix:///path or host:port"),
        (
            "--model llama-3-70b",
            "llama-3-70b needs 141 GB for its weights, 1 x h100 has 72 GB each:"
            " give more --ranks or fewer --bytes-per-parameter",
        ),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(parsed(*words.split())) == 2
    assert capsys.readouterr().err == f"simulate: {line}\n"


def test_the_command_says_where_it_listens_and_what_is_left_when_stopped() -> None:
    process, line = started()
    assert line.startswith("shard rank 0 listens on 127.0.0.1:")
    caller = Caller(line.rpartition(" ")[2])
    caller.call("Prefill", prefill_of(1))
    caller.close()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20) == ("batches left: 1\n", "")
    assert process.returncode == 0


def test_the_command_ends_with_1_after_a_fatal_mistake() -> None:
    process, line = started("--max-batch-tokens", "100")
    caller = Caller(line.rpartition(" ")[2])
    caller.failure("Prefill", prefill(1, [request(0, max_new_tokens=1000)]))
    caller.close()
    _, err = process.communicate(timeout=20)
    assert err == (
        "simulate: a fatal mistake ended the shard: Out of memory: 1032 tokens of KV cache wanted, 100 fit\n"
    )
    assert process.returncode == 1
