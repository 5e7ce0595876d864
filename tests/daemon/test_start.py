"""The start of a daemon, in this process."""

import threading

import pytest

from exporter.config.settings import Settings
from exporter.metrics.record import Metrics
from exporter.plan.targets import Plan
from exporter.simulator import Shard
from tests.daemon.beside import run_beside
from tests.simulator.caller import fast


def test_every_series_is_made_before_the_first_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    probing: list[list[str]] = []
    announce = Metrics.announce

    def watched(metrics: Metrics, plan: Plan) -> None:
        announce(metrics, plan)
        probing.append([thread.name for thread in threading.enumerate() if thread.name.startswith("probe-")])

    monkeypatch.setattr(Metrics, "announce", watched)
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
