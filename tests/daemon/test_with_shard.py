"""The runner and the real prober against a simulated shard that fails at random: the books balance, nothing is left."""

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.daemon.runner import Runner
from exporter.daemon.timing import Clock
from exporter.observation import Observation, Outcome, Series, SkipReason
from exporter.plan.targets import Facts, Plan
from exporter.probes.opening import open_prober
from exporter.simulator import Fault, Shard
from tests.processes import wait_until
from tests.simulator.caller import fast


@dataclass
class Books:
    """What was started, and what became of it."""

    started: int = 0
    flying: int = 0
    observations: list[Observation] = field(default_factory=list)

    def record(self, observation: Observation) -> None:
        assert self.flying == 0
        self.observations.append(observation)

    def skipped(self, series: Series, reason: SkipReason) -> None: ...

    def late(self, target: str, seconds: float) -> None: ...

    def inflight(self, target: str, probes: int) -> None:
        self.started += probes
        self.flying = probes

    def up(self, target: str, facts: Facts | None) -> None: ...


def hasty(stop: threading.Event, seconds: float) -> bool:
    """A wait that is over at once: backing off is tested elsewhere."""
    return stop.wait(min(seconds, 0.001))


@pytest.mark.parametrize("seed", range(3))
def test_every_started_probe_is_recorded_or_was_given_up_at_the_stop_and_no_batch_stays(seed: int) -> None:
    draw = random.Random(seed)
    workload = Workload.model_validate(
        {"name": "chat", "batch_sizes": [1, 3], "interval": "0s", "timeout": "100ms", "decode_length": 6}
    )
    with Shard(fast(ranks=2, speculate=1, seed=seed)) as shard:
        target = Target(name="t", address=shard.addresses[0])
        books = Books()
        skew = [0.0]
        clock = Clock(lambda: skew[0], hasty)
        runner = Runner(Plan(target, (workload,), 1.0), open_prober(target), books, clock=clock, seed=seed)
        thread = threading.Thread(target=runner.run)
        thread.start()
        try:
            for _ in range(12):
                seen = len(books.observations)
                kind: Any = draw.choice(["unavailable", "internal", "hang", "slow", "restart"])
                if kind == "restart":
                    shard.restart(0.05)  # as long as a call may take from one rank to the next
                elif kind == "slow":
                    shard.slow_down(draw.choice([1.0, 50.0]))
                else:
                    method = draw.choice(["Prefill", "Decode", "FilterBatch", "ClearCache", "Info"])
                    ends = time.monotonic() + 0.15 if kind == "hang" else None
                    shard.fault(Fault(kind, until=ends, count=draw.choice([1, 3]), method=method))
                skew[0] += 60.0  # past every backing off
                wait_until(lambda seen=seen: recorded(books, skew, seen), "an attempt")  # type: ignore[misc]
                shard.fault(None)
            shard.fault(Fault("unavailable", method="Prefill"))  # those above may be over before a probe meets them
            wait_until(lambda: failed(books, skew), "a failed attempt")
        finally:
            runner.stop()
            thread.join(30)
        assert not thread.is_alive()
        assert books.flying == 0
        assert books.started - len(books.observations) in (0, 1)
        assert sum(len(rank["batches"]) for rank in shard.state()["ranks"]) == 0
        assert all(rank["clear_all_calls"] == 0 for rank in shard.state()["ranks"])
        assert shard.died is None
        assert {observation.outcome for observation in books.observations} > {Outcome.OK}


def failed(books: Books, skew: list[float]) -> bool:
    """Whether an attempt has failed; virtual time goes on, so that backing off ends."""
    skew[0] += 1.0
    return any(observation.outcome is not Outcome.OK for observation in books.observations)


def recorded(books: Books, skew: list[float], seen: int) -> bool:
    """Whether a new attempt was recorded; virtual time goes on, so that backing off ends."""
    skew[0] += 1.0
    return len(books.observations) > seen
