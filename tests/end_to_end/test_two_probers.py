"""Several probers at one shard of two ranks, each a process of its own, and one that is killed."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.simulator.record import ServedCall
from tests.end_to_end.parts import Daemon, SimulatedShard, daemon_running, simulated_shard, write_config
from tests.processes import TGI_PROBE, Process, running, wait_until
from tests.shard.interleaving import interleaved

ATTEMPTS, SKIPPED = "tgi_probe_attempts_total", "tgi_probe_skipped_total"
CONSENT = {"kv_cache": "exclusive"}


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[SimulatedShard]:
    words = ("--speed", "100", "--ranks", "2", "--rank-timeout", "2")
    with simulated_shard(f"unix://{tmp_path}/shard", *words) as shard:
        yield shard
        assert shard.state()["died"] is None
        assert not interleaved(ServedCall(**served) for served in shard.record())


def config(tmp_path: Path, shard: SimulatedShard, name: str = "config", **workload: object) -> Path:
    return write_config(tmp_path / f"{name}.yaml", shard.address, CONSENT, **workload)


@contextlib.contextmanager
def bench(shard: SimulatedShard, *words: str) -> Iterator[Process]:
    command = (*TGI_PROBE, "bench", "--target", shard.address, "--kv-cache", "exclusive", "--format", "csv", *words)
    with running(command) as process:
        yield process


def outcomes(daemon: Daemon) -> set[str]:
    return {dict(labels)["outcome"] for labels, count in daemon.by_labels(ATTEMPTS).items() if count}


def test_two_daemons_take_turns_and_say_once_who_has_the_shard(tmp_path: Path, shard: SimulatedShard) -> None:
    with (
        daemon_running(config(tmp_path, shard, "one", interval="50ms")) as one,
        daemon_running(config(tmp_path, shard, "two", interval="50ms")) as two,
    ):
        for daemon in (one, two):
            daemon.await_sum(ATTEMPTS, 10, outcome="ok")
            assert outcomes(daemon) - {"disturbed"} == {"ok"}  # on a busy machine some are disturbed
        wait_until(lambda: "another prober" in one.process.stderr + two.process.stderr, "they have met")
    for daemon, other in ((one, two), (two, one)):
        lines = [line for line in daemon.process.stderr.splitlines() if "another prober" in line]
        said = (
            f"another prober (process {other.process.pid}) uses {shard.address}; meanwhile probes are skipped as busy"
        )
        assert all(said in line for line in lines)
        assert len(lines) <= 1


def test_a_daemon_makes_room_for_bench_and_goes_on_afterwards(tmp_path: Path, shard: SimulatedShard) -> None:
    with daemon_running(config(tmp_path, shard)) as daemon:
        daemon.await_sum(ATTEMPTS, 3, outcome="ok")
        with bench(shard, "--batch-size", "1", "--batch-size", "32", "--runs", "20") as sweep:
            assert sweep.wait() == 0, sweep.output
        daemon.await_sum(SKIPPED, 1, reason="busy")
        daemon.await_sum(ATTEMPTS, daemon.sum_of(ATTEMPTS) + 3, outcome="ok")
        assert outcomes(daemon) <= {"ok", "disturbed"}


def test_a_second_bench_waits_for_the_first_and_says_so(shard: SimulatedShard) -> None:
    with bench(shard, "--batch-size", "1", "--runs", "1000") as first:
        wait_until(lambda: shard.calls("Decode") > 0, "the first sweep", first)
        with bench(shard, "--batch-size", "1", "--runs", "2") as second:
            wait_until(lambda: "waiting: " in second.stderr, "the second waits", second)
            first.send(signal.SIGINT)
            assert first.wait() == 130, first.output
            assert second.wait() == 0, second.output
    assert second.stderr.count(f"waiting: another prober (process {first.pid}) uses {shard.address}") == 1


def test_a_bench_that_waits_ends_at_the_first_ctrl_c(tmp_path: Path, shard: SimulatedShard) -> None:
    with bench(shard, "--batch-size", "1", "--runs", "100000") as first:
        wait_until(lambda: shard.calls("Decode") > 0, "the first sweep", first)
        with bench(shard) as second:
            wait_until(lambda: "waiting: " in second.stderr, "the second waits", second)
            second.send(signal.SIGINT)
            assert second.wait() == 130, second.output
        first.send(signal.SIGINT)
        assert first.wait() == 130, first.output


@pytest.mark.parametrize("killed", ["daemon", "bench"])
def test_the_next_daemon_clears_the_batch_of_a_prober_that_was_killed(
    killed: str, tmp_path: Path, shard: SimulatedShard
) -> None:
    shard.command("fault?kind=hang&method=Decode")
    with contextlib.ExitStack() as stack:
        if killed == "bench":
            first = stack.enter_context(bench(shard, "--batch-size", "2"))
        else:
            first = stack.enter_context(daemon_running(config(tmp_path, shard))).process
        wait_until(lambda: all(shard.calls("Decode", rank=rank) for rank in (0, 1)), "it is amid a batch", first)
        first.send(signal.SIGKILL)
        first.wait()
    [[left], _] = [[batch["id"] for batch in rank["batches"]] for rank in shard.state()["ranks"]]
    shard.command("fault?kind=none")
    with daemon_running(config(tmp_path, shard)) as daemon:
        daemon.await_sum(ATTEMPTS, outcome="ok")
        said = f"cleared what a prober that was killed had left in {shard.address}: batch {left}"
        assert said in daemon.process.stderr
    assert shard.batches() == 0
