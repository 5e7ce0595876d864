"""A reload beside the event loop: while it works on the metrics of a fleet, health checks are answered."""

import threading
from typing import Any

import pytest

from exporter.config.errors import SettingsError
from exporter.config.settings import Settings
from exporter.daemon.ledger import Recorder
from exporter.metrics.record import Metrics
from tests.daemon.beside import run_beside
from tests.processes import ask


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
