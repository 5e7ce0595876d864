"""A reload beside the event loop: while it works on the metrics of a fleet, health checks are answered."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from exporter.config.errors import SettingsError
from exporter.config.settings import Settings
from exporter.daemon import reload
from exporter.daemon.ledger import Recorder
from exporter.metrics.record import Metrics
from tests.daemon.beside import run_beside
from tests.processes import PATIENCE, ask, wait_until


def settings(*names: str, batch_size: int = 1) -> Settings:
    """Targets that nobody answers for."""
    return Settings.model_validate(
        {
            "targets": [{"name": name, "address": f"127.0.0.1:{ord(name[0])}"} for name in names],
            "workloads": [{"name": "w", "batch_sizes": [batch_size], "interval": "1h", "targets": names[:1]}],
            "web": {"listen_address": "127.0.0.1:0", "enable_reload": True},
        }
    )


def test_a_reload_does_nothing_to_metrics_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, bool]] = []
    reloading = threading.Event()

    def watch(owner: type[Any], method: str) -> None:
        real = getattr(owner, method)

        def watched(*values: Any) -> Any:
            if reloading.is_set():
                called.append((method, threading.current_thread() is threading.main_thread()))
            return real(*values)

        monkeypatch.setattr(owner, method, watched)

    for method in ("configure", "narrow", "forget", "reloaded", "announce_objectives"):
        watch(Metrics, method)
    watch(Recorder, "forget")
    found = [settings("changed", "gone", "kept")]

    def read() -> Settings:
        if not found:
            raise SettingsError(["bad"])
        return found[-1]

    def body(port: int) -> None:
        reloading.set()
        found[:] = [settings("changed", "kept", batch_size=2)]
        assert ask(f"http://127.0.0.1:{port}/-/reload", "POST").text == "reloaded\n"
        found.clear()
        assert ask(f"http://127.0.0.1:{port}/-/reload", "POST").status == 500
        reloading.clear()

    assert run_beside(read, body) == 0
    assert {method for method, _ in called} == {"configure", "narrow", "forget", "reloaded", "announce_objectives"}
    assert [method for method, in_event_loop in called if in_event_loop] == []


def test_a_configuration_that_cannot_be_read_to_its_end_does_not_keep_the_daemon_from_stopping() -> None:
    hangs, go_on = threading.Event(), threading.Event()
    reads = 0

    def read() -> Settings:
        nonlocal reads
        reads += 1
        if reads > 1:
            hangs.set()
            go_on.wait(3 * PATIENCE)
        return settings("a")

    def body(port: int) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        assert hangs.wait(PATIENCE)

    killer = threading.Timer(PATIENCE / 3, go_on.set)  # so that a failing test ends
    killer.start()
    try:
        assert run_beside(read, body) == 0
        assert not go_on.is_set()
    finally:
        killer.cancel()
        go_on.set()


def test_a_failure_to_look_at_the_file_does_not_end_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = [threading.Event(), threading.Event()]

    def changed(file: reload.ConfigurationFile) -> bool:
        looked[looked[0].is_set()].set()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(reload, "LOOK_AT_FILE_SECONDS", 0.01)
    monkeypatch.setattr(reload.ConfigurationFile, "changed", changed)
    watched = settings("a").model_copy(update={"reload_on_change": True})

    def body(port: int) -> None:
        assert all(event.wait(PATIENCE) for event in looked)

    assert run_beside(lambda: watched, body) == 0


def test_reloads_that_are_asked_for_while_one_waits_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()
    reads = 0
    asked: list[object] = []
    real = reload.Reloads.reload

    async def counted(self: reload.Reloads) -> list[str]:
        if reading.is_set():
            asked.append(self)
        return await real(self)

    def read() -> Settings:
        nonlocal reads
        reads += 1
        if reads == 2:
            reading.set()
            go_on.wait(PATIENCE)
        return settings("a")

    def body(port: int) -> None:
        url = f"http://127.0.0.1:{port}/-/reload"
        with ThreadPoolExecutor(6) as pool:
            first = pool.submit(ask, url, "POST")
            assert reading.wait(PATIENCE)
            others = [pool.submit(ask, url, "POST") for _ in range(5)]
            wait_until(lambda: len(asked) == 5, "all others wait", every=0.01)
            go_on.set()
            assert {one.result().text for one in (first, *others)} == {"reloaded\n"}

    monkeypatch.setattr(reload.Reloads, "reload", counted)
    assert run_beside(read, body) == 0
    assert reads == 3, "at the start, the first reload, and one for the five others"


def test_after_a_reload_that_ended_by_a_bug_the_daemon_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Recorder, target: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Recorder, "forget", fail)
    found = [settings("a", "b"), settings("b")]

    def body(port: int) -> None:
        assert ask(f"http://127.0.0.1:{port}/-/healthy").status == 200
        assert ask(f"http://127.0.0.1:{port}/-/reload", "POST").status == 500
        healthy = ask(f"http://127.0.0.1:{port}/-/healthy")
        assert (healthy.status, healthy.text) == (503, "a reload ended by a bug of tgi-probe; restart it\n")

    assert run_beside(lambda: found.pop(0), body) == 0
