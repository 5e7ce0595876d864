"""The simulator as a command."""

import argparse
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.simulator import Config, add_arguments, config_from, options, router_options, run
from exporter.simulator.batcher import AdmissionLimits
from tests.processes import TGI_PROBE, running, wait_until
from tests.simulator.caller import Caller, prefill, prefill_of, request
from tests.simulator.router.callers import Http

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
        ("--listen here", "--listen here: expected unix:///path, or host:port with a port from 0 to 65535"),
        ("--listen unix:///", "--listen unix:///: expected unix:///path or host:port"),
        ("--router-http here", "--router-http here: expected host:port with a port from 0 to 65535"),
        ("--router-grpc :0 --prefix-caching maybe", "--prefix-caching maybe: expected one of on, off"),
        ("--router-grpc :0 --eos 2", "--eos 2: expected at least 0 and at most 1"),
        ("--router-grpc :0 --tls-cert x", "--tls-cert and --tls-key: expected both or neither"),
        (
            "--router-grpc :0 --tls-cert none.pem --tls-key none.key",
            "--tls-cert, --tls-key, --tls-client-ca none.pem none.key: expected PEM files"
            " ([Errno 2] No such file or directory)",
        ),
        (
            "--router-http :0 --max-batch-tokens 1000 --max-total-tokens 2000",
            "--max-total-tokens 2000: expected at most the KV cache, 1000 tokens",
        ),
        (
            "--router-http :0 --max-total-tokens 2000 --max-input-tokens 2000",
            "--max-input-tokens 2000: expected less than --max-total-tokens, 2000",
        ),
        (
            "--router-http :0 --max-batch-prefill-tokens 100",
            "--max-batch-prefill-tokens 100: expected at least --max-input-tokens, 8191",
        ),
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


@pytest.mark.parametrize("option", ["--listen", "--router-http", "--router-grpc", "--admin-address"])
def test_an_address_in_use_is_one_line_with_the_reason_and_exit_code_1(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert run(parsed(option, address, "--grpc-server", "library")) == 1
        assert capsys.readouterr().err == f"simulate: cannot listen on {address}: Address already in use\n"
        assert run(parsed(option, address)) == 1
        assert capsys.readouterr().err == f"simulate: cannot listen on {address}: Address already in use\n"


def test_a_socket_in_a_folder_that_is_not_there_is_one_line_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(parsed("--listen", f"unix://{tmp_path}/none/shard")) == 1
    line = f"simulate: cannot listen on unix://{tmp_path}/none/shard-0: No such file or directory\n"
    assert capsys.readouterr().err == line


def test_the_help_names_the_unit_or_the_choices_of_every_option() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    shown = parser.format_help()
    shapes = ("--warmed-up on|off", "--overhead SECONDS", "--fragment BYTES", "--gpu h100|a100|l4", "--ranks COUNT")
    assert not [shape for shape in shapes if shape not in shown]
    for option in (*options.OPTIONS, *router_options.OPTIONS):
        text = option.shape.split("|")[-1]
        if "|" in option.shape:
            option.parse(text)  # a choice that is told is taken


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
    assert err == ("simulate: a fatal error ended the shard: Out of memory: 1032 tokens of KV cache wanted, 100 fit\n")
    assert process.returncode == 1


def test_router_options_reach_the_router_and_its_limits() -> None:
    words = (
        "--router-http :8080 --gpu l4 --jitter 0 --block-size 32 --max-batch-tokens 5000 --max-concurrent-requests 7"
        " --prefix-caching off --tokens-per-message 3 --stream-errors status --model-id my/model"
    )
    config = router_options.config_from(parsed(*words.split()))
    assert (config.http, config.grpc, config.model_id, config.jitter) == (":8080", None, "my/model", 0)
    assert (config.tokens_per_message, config.stream_errors, config.roofline.gpu.name) == (3, "status", "l4")
    assert config.limits == AdmissionLimits(
        max_concurrent_requests=7,
        max_input_tokens=4999,
        max_total_tokens=5000,
        max_batch_prefill_tokens=4999,
        max_batch_total_tokens=5000,
        prefix_caching=False,
        block_size=32,
    )


def test_every_door_of_the_router_has_its_line_and_no_shard_runs_unless_told() -> None:
    words = "simulate --router-http 127.0.0.1:0 --router-grpc 127.0.0.1:0 --speed 100000"
    with running([*TGI_PROBE, *words.split()]) as router:
        wait_until(lambda: router.stdout.count("\n") == 2, "two lines", router)
        http, grpc = router.stdout.splitlines()
        assert re.fullmatch(r"router http listens on http://127\.0\.0\.1:\d+", http)
        assert re.fullmatch(r"router grpc listens on 127\.0\.0\.1:\d+", grpc)
        with Http(http.rpartition("/")[2]) as client:
            assert client.ask("GET", "/health")[0] == 200
        router.end()
        assert (router.stdout.splitlines()[2:], router.stderr) == (["requests in flight: 0"], "")


def test_a_shard_and_a_router_run_under_one_command_and_one_admin(tmp_path: Path) -> None:
    words = f"simulate --listen unix://{tmp_path}/shard --router-http 127.0.0.1:0 --admin-address 127.0.0.1:0"
    with running([*TGI_PROBE, *words.split(), "--record", str(tmp_path / "record")]) as both:
        wait_until(lambda: both.stdout.count("\n") == 3, "three lines", both)
        shard, http, admin = (line.rpartition(" ")[2] for line in both.stdout.splitlines())
        caller = Caller(shard)
        caller.call("Info")
        caller.close()
        with Http(http.rpartition("/")[2]) as client:
            client.ask("POST", "/generate", {"inputs": "a", "parameters": {"max_new_tokens": 2}})
        page = Http(admin.rpartition("/")[2])
        assert set(json.loads(page.ask("GET", "/state")[1])) == {"shard", "router"}
        methods = [json.loads(line)["method"] for line in page.ask("GET", "/record")[1].splitlines()]
        assert methods == ["Info", "/generate"]
        page.ask("POST", "/slowdown?factor=2")
        state = json.loads(page.ask("GET", "/state")[1])
        assert (state["shard"]["slowdown"], state["router"]["slowdown"]) == (2, 2)
        assert page.ask("POST", "/restart")[0] == 200
        page.connection.close()
        both.end()
        assert both.stdout.splitlines()[-1] == "batches left: 0; requests in flight: 0"
    assert len((tmp_path / "record").read_text().splitlines()) == 2
