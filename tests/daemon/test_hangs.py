"""A shard that hangs beside a busy thread of ours has timed out: nothing that this process does excuses it."""

import threading
from dataclasses import dataclass, field

import pytest

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.daemon import attempt
from exporter.daemon.runner import Runner
from exporter.observation import Observation, Outcome, Series, SkipReason
from exporter.plan.targets import Facts, Plan
from exporter.probes.opening import open_prober
from exporter.simulator import Fault, Shard
from tests.processes import wait_until
from tests.simulator.caller import fast

pytestmark = [pytest.mark.alone, pytest.mark.timed]
WORKLOAD = Workload.model_validate(
    {"name": "w", "batch_sizes": [1], "interval": "0s", "timeout": "1s", "decode_length": 4, "warmups": 0}
)


@dataclass
class Books:
    observations: list[Observation] = field(default_factory=list)
    skips: list[SkipReason] = field(default_factory=list)
    is_up: bool = False

    def record(self, observation: Observation) -> None:
        self.observations.append(observation)

    def skipped(self, series: Series, reason: SkipReason) -> None:
        self.skips.append(reason)

    def late(self, target: str, seconds: float) -> None: ...

    def inflight(self, target: str, probes: int) -> None: ...

    def up(self, target: str, facts: Facts | None) -> None:
        self.is_up = facts is not None


def test_a_shard_that_hangs_beside_a_busy_thread_is_a_timeout_and_then_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "TARGET_CONNECT_SECONDS", 1.0)
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.02):
            for _ in range(500):
                sum(range(200))

    with Shard(fast()) as shard:
        target = Target(name="t", address=shard.addresses[0])
        books = Books()
        runner = Runner(Plan(target, (WORKLOAD,), 1.0), open_prober(target), books)
        threads = [threading.Thread(target=work), threading.Thread(target=runner.run)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: Outcome.OK in {seen.outcome for seen in books.observations}, "a success")
            assert books.is_up
            shard.fault(Fault("hang"))
            wait_until(lambda: Outcome.TIMEOUT in {seen.outcome for seen in books.observations}, "a timeout")
            wait_until(lambda: not books.is_up, "it is down")
        finally:
            shard.fault(None)
            runner.stop()
            over.set()
            for thread in threads:
                thread.join()
