"""Stopping and reloading while a target hangs for ever: in this process, with the times shortened."""

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from exporter.config.settings import Settings
from exporter.daemon import probed_targets, reload
from exporter.daemon.probed_targets import ProbedTarget
from exporter.probes.shard import prober as shard_prober
from exporter.simulator import Fault, Shard
from tests.daemon.beside import run_beside
from tests.processes import PATIENCE, Reply, ask, wait_until
from tests.simulator.caller import fast


def settings(*shards: Shard, interval: str = "0s") -> Settings:
    """The first shard's target is called a; `interval` is that of its workload alone."""
    hanging = [{"name": name, "address": shard.addresses[0]} for name, shard in zip("ac", shards, strict=False)]
    workload = {"batch_sizes": [1], "timeout": "1h"}
    return Settings.model_validate(
        {
            "targets": [*hanging, {"name": "b", "address": "127.0.0.1:1"}],
            "workloads": [
                {"name": "w", "interval": interval, "targets": ["a", "b"], **workload},
                {"name": "other", "interval": "0s", "targets": ["c"], **workload},
            ][: len(shards)],
            "web": {"listen_address": "127.0.0.1:0", "enable_reload": True, "enable_probe": True},
        }
    )


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probed_targets, "DRAIN_SECONDS", 0.2)
    monkeypatch.setattr(probed_targets, "CUT_SECONDS", 2.0)
    monkeypatch.setattr(shard_prober, "CLOSE_SECONDS", 0.2)


def run_while_hanging(shard: Shard, read: list[Settings], body: Callable[[int], None]) -> int:
    """The exit code of a daemon whose target hangs in its Prefill. The last of `read` is what a reload reads."""

    def run_body(port: int) -> None:
        wait_until(lambda: shard.state()["ranks"][0]["received"].get("Prefill", 0) >= 1, "a Prefill to hang")
        body(port)

    shard.fault(Fault("hang", method="Prefill"))
    try:
        return run_beside(lambda: read[-1], run_body)
    finally:
        shard.fault(None)


def post_reload(port: int) -> Reply:
    return ask(f"http://127.0.0.1:{port}/-/reload", "POST")


def test_a_hang_that_outlasts_draining_does_not_keep_the_daemon_from_stopping() -> None:
    with Shard(fast()) as shard:
        assert run_while_hanging(shard, [settings(shard)], lambda port: None) == 0


def test_a_reload_while_a_target_hangs_is_taken_and_the_daemon_still_stops() -> None:
    with Shard(fast()) as shard:
        read = [settings(shard)]

        def body(port: int) -> None:
            read.append(settings(shard, interval="1s"))
            assert post_reload(port).text == "reloaded\n"

        assert run_while_hanging(shard, read, body) == 0


def test_a_bug_in_a_reload_is_told_and_does_not_end_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(port: int) -> None:
        monkeypatch.setattr(reload, "change", lambda old, new: 1 / 0)
        reply = post_reload(port)
        assert reply.status == 500
        assert "bug of tgi-probe" in reply.text

    with Shard(fast()) as shard:
        assert run_while_hanging(shard, [settings(shard)], body) == 0


def test_a_stop_during_a_reloads_drain_is_not_followed_by_another_whole_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probed_targets, "DRAIN_SECONDS", 3.0)
    asked = []
    with Shard(fast()) as shard, Shard(fast()) as other:
        read = [settings(shard, other)]
        other.fault(Fault("hang", method="Prefill"))

        def body(port: int) -> None:
            wait_until(lambda: other.state()["ranks"][0]["received"].get("Prefill", 0) >= 1, "the other one to hang")
            read.append(settings(shard, other, interval="1s"))
            asked.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGHUP)

        try:
            assert run_while_hanging(shard, read, body) == 0
        finally:
            other.fault(None)
    assert time.monotonic() - asked[0] < 2 * 3.0


def test_a_stop_during_a_reloads_drain_gives_the_other_targets_their_time_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probed_targets, "DRAIN_SECONDS", 2.0)
    stopped = threading.Event()
    stop = ProbedTarget.stop

    def watched(target: ProbedTarget) -> None:
        stop(target)
        stopped.set()

    monkeypatch.setattr(ProbedTarget, "stop", watched)
    with Shard(fast()) as shard, Shard(fast()) as healthy:
        read = [settings(shard, healthy)]

        def body(port: int) -> None:
            read.append(settings(shard, healthy, interval="1s"))
            os.kill(os.getpid(), signal.SIGHUP)
            assert stopped.wait(PATIENCE)

        assert run_while_hanging(shard, read, body) == 0
    [warning] = [line for line in capsys.readouterr().err.splitlines() if "outlasts" in line]
    assert warning.endswith("ending it: a")


@pytest.mark.parametrize("path", ["/probe?target=a&workload=w&batch_size=1", "/-/reload"])
def test_whoever_waits_for_an_answer_does_not_keep_the_daemon_from_stopping(path: str) -> None:
    answers: list[Reply] = []
    asking: list[threading.Thread] = []

    def body(port: int) -> None:
        method = "POST" if "reload" in path else "GET"
        asked = threading.Thread(target=lambda: answers.append(ask(f"http://127.0.0.1:{port}{path}", method)))
        asking.append(asked)
        asked.start()

    with Shard(fast()) as shard:
        read = [settings(shard), settings(shard, interval="1s")]
        assert run_while_hanging(shard, read[:1] if "probe" in path else read, body) == 0
    asking[0].join()
    assert answers
