"""Stopping and reloading while a target hangs for ever: in this process, with the times shortened."""

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from exporter.config.settings import Settings, Web
from exporter.daemon import app
from exporter.probes.shard import prober as shard_prober
from exporter.simulator import Fault, Shard
from tests.processes import wait_until
from tests.simulator.caller import fast


def settings(shard: Shard, interval: str = "0s") -> Settings:
    return Settings.model_validate(
        {
            "targets": [{"name": "a", "address": shard.addresses[0]}, {"name": "b", "address": "127.0.0.1:1"}],
            "workloads": [{"name": "w", "batch_sizes": [1], "interval": interval, "timeout": "1h"}],
            "web": {"listen_address": "127.0.0.1:0"},
        }
    )


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "DRAIN_SECONDS", 0.2)
    monkeypatch.setattr(app, "CUT_SECONDS", 2.0)
    monkeypatch.setattr(shard_prober, "CLOSE_SECONDS", 0.2)


@contextmanager
def hanging(shard: Shard, read: list[Settings]) -> Iterator[tuple[app.Daemon, threading.Thread, list[int]]]:
    """A daemon that runs, with every Prefill of its targets hanging. The last of `read` is what a reload reads."""
    daemon = app.Daemon(lambda: read[-1])
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(daemon.run()), daemon=True)
    shard.fault(Fault("hang", method="Prefill"))
    thread.start()
    try:
        wait_until(lambda: shard.state()["ranks"][0]["received"].get("Prefill", 0) >= 1, "a Prefill to hang")
        yield daemon, thread, codes
    finally:
        daemon.stop()
        thread.join(30)
        shard.fault(None)


def test_a_hang_that_outlasts_draining_does_not_keep_the_daemon_from_stopping() -> None:
    with Shard(fast()) as shard, hanging(shard, [settings(shard)]) as (daemon, thread, codes):
        daemon.stop()
        thread.join(30)
        assert codes == [0]


def test_a_reload_while_a_target_hangs_is_taken_and_the_daemon_still_stops() -> None:
    with Shard(fast()) as shard:
        read = [settings(shard)]
        with hanging(shard, read) as (daemon, thread, codes):
            read.append(settings(shard, interval="1s"))
            assert daemon.reload() == []
            daemon.stop()
            thread.join(30)
            assert codes == [0]


def test_a_bug_in_a_reload_is_told_and_does_not_end_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    with Shard(fast()) as shard:
        read = [settings(shard)]
        with hanging(shard, read) as (daemon, thread, codes):
            monkeypatch.setattr(app, "change", lambda old, new: 1 / 0)
            assert "bug of tgi-probe" in daemon.reload()[0]
            daemon.stop()
            thread.join(30)
            assert codes == [0]


def test_whoever_waits_for_a_probe_of_his_own_does_not_keep_the_daemon_from_stopping() -> None:
    with Shard(fast()) as shard:
        with_probe = settings(shard).model_copy(update={"web": Web(listen_address="127.0.0.1:0", enable_probe=True)})
        ports: list[int] = []
        daemon = app.Daemon(lambda: with_probe, ports.append)
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(daemon.run()), daemon=True)
        shard.fault(Fault("hang", method="Prefill"))
        thread.start()
        answers: list[str] = []

        def ask() -> None:
            url = f"http://127.0.0.1:{ports[0]}/probe?target=a&workload=w&batch_size=1"
            try:
                with urllib.request.urlopen(url, timeout=30) as reply:
                    answers.append(reply.read().decode())
            except OSError as error:
                answers.append(str(error))

        asking = threading.Thread(target=ask, daemon=True)
        try:
            wait_until(lambda: shard.state()["ranks"][0]["received"].get("Prefill", 0) >= 1, "a Prefill to hang")
            wait_until(lambda: ports, "the page to be served")
            asking.start()
        finally:
            daemon.stop()
            thread.join(30)
            shard.fault(None)
        asking.join(30)
        assert codes == [0]
        assert answers
