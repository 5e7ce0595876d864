"""The start of a daemon, in this process."""

import threading
from collections.abc import Callable

import pytest

from exporter.config.settings import Settings
from exporter.daemon import probed_targets
from exporter.metrics.collector import Registry
from exporter.metrics.pages import prepare
from exporter.metrics.pauses import Pauses
from exporter.simulator import Shard
from tests.daemon.beside import run_beside
from tests.simulator.caller import fast


def test_every_line_of_the_first_page_is_made_before_the_first_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    probing: list[list[str]] = []

    def watched(registry: Registry, pause: Callable[[], None]) -> None:
        assert isinstance(pause, Pauses)  # at a reload others are measured meanwhile
        probing.append([thread.name for thread in threading.enumerate() if thread.name.startswith("probe-")])
        prepare(registry, pause)

    monkeypatch.setattr(probed_targets, "prepare", watched)
    with Shard(fast()) as shard:
        settings = Settings.model_validate(
            {
                "targets": [{"name": "start", "address": shard.addresses[0]}],
                "workloads": [{"name": "w", "batch_sizes": [1], "interval": "1s"}],
                "web": {"listen_address": "127.0.0.1:0"},
            }
        )
        assert run_beside(lambda: settings, lambda port: None) == 0
    assert probing == [[]]
