"""The start of a daemon, in this process."""

import threading
from collections.abc import Callable

import pytest

from exporter.config.settings import Settings
from exporter.daemon import app
from exporter.metrics.collector import Registry
from exporter.metrics.pages import prepare
from exporter.metrics.pauses import Pauses
from exporter.simulator import Shard
from tests.processes import wait_until
from tests.simulator.caller import fast


def test_every_line_of_the_first_page_is_made_before_the_first_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    probing: list[list[str]] = []

    def watched(registry: Registry, pause: Callable[[], None]) -> None:
        assert isinstance(pause, Pauses)  # at a reload others are measured meanwhile
        probing.append([thread.name for thread in threading.enumerate() if thread.name.startswith("probe-")])
        prepare(registry, pause)

    monkeypatch.setattr(app, "prepare", watched)
    with Shard(fast()) as shard:
        settings = Settings.model_validate(
            {
                "targets": [{"name": "start", "address": shard.addresses[0]}],
                "workloads": [{"name": "w", "batch_sizes": [1], "interval": "1s"}],
                "web": {"listen_address": "127.0.0.1:0"},
            }
        )
        ready = threading.Event()
        daemon = app.Daemon(lambda: settings, on_ready=lambda port: ready.set())
        thread = threading.Thread(target=daemon.run, daemon=True)
        thread.start()
        try:
            wait_until(ready.is_set, "the daemon")
        finally:
            daemon.stop()
            thread.join(30)
    assert probing == [[]]
