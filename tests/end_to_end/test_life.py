"""The daemon's life: start, health, reload, a target that comes later, the stop; with real signals."""

import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.parts import SimulatedShard, daemon_running, simulated_shard, write_config
from tests.processes import TGI_PROBE, running, wait_until

RELOADED = "tgi_probe_config_last_reload_successful"
QUICK = ("--speed", "1000")


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[SimulatedShard]:
    with simulated_shard(f"unix://{tmp_path}/shard", *QUICK) as shard:
        yield shard


def rewrite(config: Path, **changes: Any) -> None:
    """The same configuration with other workload keys."""
    document = json.loads(config.read_text())
    document["workloads"][0] |= changes
    config.write_text(json.dumps(document))


def test_it_is_ready_after_the_first_attempt_and_healthy_all_along(tmp_path: Path, shard: SimulatedShard) -> None:
    shard.command("fault?kind=hang&method=Prefill")
    with daemon_running(write_config(tmp_path / "config.yaml", shard.address)) as daemon:
        wait_until(lambda: shard.calls("Prefill", "received") > 0, "a first Prefill", daemon.process)
        assert (daemon.get("/-/ready").status, daemon.get("/-/ready").text) == (503, "no first attempt yet: shard\n")
        assert daemon.get("/-/healthy").status == 200
        shard.command("fault?kind=none")
        wait_until(lambda: daemon.get("/-/ready").status == 200, "ready", daemon.process)
        assert daemon.get("/-/healthy").status == 200


@pytest.mark.parametrize("way", ["SIGHUP", "POST"])
def test_a_good_file_is_taken_and_a_bad_one_leaves_the_old_in_force(
    tmp_path: Path, shard: SimulatedShard, way: str
) -> None:
    config = write_config(tmp_path / "config.yaml", shard.address)
    with daemon_running(config) as daemon:
        daemon.await_sum("tgi_probe_attempts_total", batch_size="1", outcome="ok")
        time_of_start = daemon.sum_of("tgi_probe_config_last_reload_success_timestamp_seconds")
        assert daemon.sum_of(RELOADED) == 1

        rewrite(config, batch_sizes=[0])
        if way == "POST":
            reply = daemon.get("/-/reload", "POST")
            assert reply.status == 500
            assert reply.text == f"{config}: workloads.0.batch_sizes.0: must be ≥ 1, not 0\n"
        else:
            daemon.process.send(signal.SIGHUP)
            wait_until(lambda: daemon.sum_of(RELOADED) == 0, "a refused reload", daemon.process)
        assert daemon.sum_of(RELOADED) == 0
        assert daemon.sum_of("tgi_probe_config_last_reload_success_timestamp_seconds") == time_of_start
        wait_until(lambda: "must be ≥ 1, not 0" in daemon.process.stderr, "the log says why", daemon.process)
        assert "- 1\n" in daemon.get("/config").text
        before = daemon.sum_of("tgi_probe_attempts_total", batch_size="1", outcome="ok")
        daemon.await_sum("tgi_probe_attempts_total", before + 1, batch_size="1", outcome="ok")

        rewrite(config, batch_sizes=[3])
        if way == "POST":
            assert daemon.get("/-/reload", "POST").text == "reloaded\n"
        else:
            daemon.process.send(signal.SIGHUP)
        daemon.await_sum("tgi_probe_attempts_total", batch_size="3", outcome="ok")
        assert daemon.sum_of(RELOADED) == 1
        assert daemon.sum_of("tgi_probe_config_last_reload_success_timestamp_seconds") > time_of_start
        assert not [labels for (_, labels) in daemon.samples() if ("batch_size", "1") in labels]
    wait_until(lambda: shard.batches() == 0, "no batch left", shard.process)


def test_a_reload_that_changes_nothing_keeps_every_count(tmp_path: Path, shard: SimulatedShard) -> None:
    config = write_config(tmp_path / "config.yaml", shard.address)
    with daemon_running(config) as daemon:
        daemon.await_sum("tgi_probe_attempts_total", 5, outcome="ok")
        before = daemon.sum_of("tgi_probe_attempts_total", outcome="ok")
        assert daemon.get("/-/reload", "POST").status == 200
        assert daemon.sum_of("tgi_probe_attempts_total", outcome="ok") >= before


def test_a_target_that_is_down_at_start_is_told_so_and_picked_up_when_it_comes(tmp_path: Path) -> None:
    socket = f"unix://{tmp_path}/shard"
    config = write_config(tmp_path / "config.yaml", f"{socket}-0", interval="1s", batch_sizes=[1, 2])
    with daemon_running(config) as daemon:
        daemon.await_sum("tgi_probe_attempts_total", outcome="unreachable")
        assert daemon.sum_of("tgi_probe_target_up") == 0
        assert daemon.sum_of("tgi_probe_time_to_first_token_seconds_count") == 0
        assert daemon.get("/-/healthy").status == 200
        assert f"{socket}-0: no such socket; is the server up" in daemon.process.stderr
        with simulated_shard(socket, *QUICK):
            for size in ("1", "2"):
                daemon.await_sum("tgi_probe_attempts_total", outcome="ok", batch_size=size)
            assert daemon.sum_of("tgi_probe_target_up") == 1
            assert "probes of shard chat succeed again" in daemon.process.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_in_the_midst_of_a_long_probe_exits_with_0_and_leaves_no_batch(
    tmp_path: Path, number: signal.Signals
) -> None:
    with simulated_shard(f"unix://{tmp_path}/shard", "--ranks", "2") as shard:
        config = write_config(tmp_path / "config.yaml", shard.address, decode_length=100_000, timeout="1h", warmups=0)
        with daemon_running(config) as daemon:
            wait_until(lambda: shard.calls("Decode") > 3, "a few steps", daemon.process)
            daemon.process.send(number)
            assert daemon.process.wait() == 0, daemon.process.output
            assert "Traceback" not in daemon.process.output
        assert [rank["clear_all_calls"] for rank in shard.state()["ranks"]] == [0, 0]
        shard.process.terminate()
        assert shard.process.wait() == 0
        assert shard.process.stdout.endswith("batches left: 0\n"), shard.process.output


def test_a_second_signal_during_the_stop_does_no_harm(tmp_path: Path, shard: SimulatedShard) -> None:
    config = write_config(tmp_path / "config.yaml", shard.address)
    with daemon_running(config) as daemon:
        daemon.await_sum("tgi_probe_attempts_total", outcome="ok")
        shard.command("fault?kind=hang&method=Decode")
        wait_until(lambda: shard.batches() == 1 and shard.holds_a_call(), "a Decode that hangs")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            daemon.process.send(number)
        said = "stopping: waiting for the calls in flight, clearing our batches; this takes at most 21 s\n"
        wait_until(lambda: said in daemon.process.stderr, "the stop has begun", daemon.process)
        shard.command("fault?kind=none")
        assert daemon.process.wait() == 0, daemon.process.output
    assert shard.batches() == 0


def test_signals_after_the_stop_until_the_process_is_gone_do_not_change_its_exit_code(tmp_path: Path) -> None:
    with daemon_running(write_config(tmp_path / "config.yaml", "127.0.0.1:1")) as daemon:
        daemon.process.terminate()
        wait_until(lambda: "INFO stopped" in daemon.process.stderr, "the stop", every=0.001)
        numbers = itertools.cycle((signal.SIGTERM, signal.SIGHUP))

        def is_gone() -> bool:
            daemon.process.send(next(numbers))
            return daemon.process.returncode is not None

        wait_until(is_gone, "the end", every=0.001)
        assert daemon.process.wait() == 0, daemon.process.output


def test_a_port_in_use_is_one_line_and_exit_code_2(tmp_path: Path, shard: SimulatedShard) -> None:
    config = write_config(tmp_path / "config.yaml", shard.address)
    with daemon_running(config) as daemon:
        document = json.loads(config.read_text())
        document["web"]["listen_address"] = f"127.0.0.1:{daemon.port}"
        config.write_text(json.dumps(document))
        with running([*TGI_PROBE, "run", "--config", str(config)]) as second:
            assert second.wait() == 2
            assert second.output.count("\n") == 4, second.output
            reason = "cannot be used (Address already in use); choose another"
            assert f"web.listen_address: 127.0.0.1:{daemon.port}: {reason}" in second.stderr
