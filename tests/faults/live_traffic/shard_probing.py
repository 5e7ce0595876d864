"""Our daemon beside users on one shard: the real prober and the real attempts, without schedule and sockets."""

import random
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.daemon.attempt import Attempts
from exporter.daemon.timing import Clock
from exporter.observation import Failure, Observation, Series, SkipReason
from exporter.plan.targets import Facts, Plan
from exporter.probes import crash_check
from exporter.probes.interface import Abandoned, GiveWay
from exporter.probes.quarantine import Quarantine
from exporter.probes.shard import ranks
from exporter.probes.shard.prober import ShardProber
from exporter.simulator import Config, Roofline
from tests.faults.live_traffic.shared_shard import Harm, SharedShard
from tests.faults.live_traffic.unreliable_channel import Killed, UnreliableChannel
from tests.faults.live_traffic.users_router import UsersRouter

BLOCKS = 40
SHAPES = ((8, 4, (1, 2, 5)), (33, 9, (1, 3)), (70, 2, (2,)))  # sequence length, decode length, batch sizes
MOST_CALLS_BETWEEN = 2
# A daemon lives for this number of probes: a server that failed them may not be probed again under the same limits.
MOST_PROBES = 60


class NoLedger:
    """Nobody reads what a probe has measured here."""

    def record(self, observation: Observation) -> None: ...
    def skipped(self, series: Series, reason: SkipReason) -> None: ...
    def late(self, target: str, seconds: float) -> None: ...
    def inflight(self, target: str, probes: int) -> None: ...
    def up(self, target: str, facts: Facts | None) -> None: ...


@dataclass
class LiveShard:
    """A shard with users, and probes beside them. Everything random comes from one seed."""

    seed: int
    folder: Path
    config: Config
    target: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.seen: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.shard = SharedShard(self.config, self.folder / "shard", self.random)
        self.router = UsersRouter(self.config, self.shard.call, self.random, self.harm)
        self.shard.users_batches, self.shard.blocks_of_users = self.router.batch_ids, self.router.blocks
        self.shard.died = self.router.restarted
        self.now = 0.0
        self.faults = True
        self._address = f"unix://{self.shard.socket}"
        self._stopping = threading.Event()
        self._prober: ShardProber | None = None

    @property
    def harm(self) -> list[Harm]:
        return self.shard.harm

    def users(self) -> None:
        """They go on while a call of ours waits."""
        for _ in range(self.random.randint(0, MOST_CALLS_BETWEEN)):
            self.router.step()

    def channel(self, address: str) -> UnreliableChannel:
        return UnreliableChannel(self.shard, self.users, self.random, self.seen, lambda: self.faults)

    def run(self, steps: int) -> None:
        """Until the shard has answered so many calls, or until the first harm. Our last daemon ends politely."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranks, "open_channel", self.channel)
            patch.setattr(crash_check, "END_SECONDS", 0.0)  # how long to wait for a server's end
            while self.shard.steps < steps and not self.harm:
                with suppress(Killed):
                    self._one_daemon(steps)
                self.seen["daemons"] += 1
                self._release_locks()
            self._settle()

    def _settle(self) -> None:
        """One more prober, whom nothing fails: what others left is cleared now."""
        self.faults = False
        prober = self._prober = ShardProber(Target.model_validate({"name": "live", "address": self._address}))
        prober.connect(1.0)
        prober.close()

    def _one_daemon(self, steps: int) -> None:
        """One life of our daemon: probes until it is stopped, killed, or through. Raises Killed."""
        sequence, decode, sizes = self.random.choice(SHAPES)
        workload = Workload.model_validate(
            {
                "name": "chat",
                "sequence_length": sequence,
                "decode_length": decode,
                "batch_sizes": list(sizes),
                "warmups": self.random.randint(0, 1),
                "timeout": "1h",  # faults decide, not this machine
                "interval": "1s",
            }
        )
        # An operator who changes a limit lets quarantined batches be sent again.
        limit = {"max_total_tokens": self.random.randint(1000, 9000)}
        target = Target.model_validate({"name": "live", "address": self._address, **limit, **self.target})
        quarantine = Quarantine(target)
        prober = self._prober = ShardProber(target, quarantine)
        prober._random.seed(self.random.getrandbits(64))  # or a seed would not replay a run
        plan = Plan(target, (workload,), 1.0)
        self._stopping = threading.Event()
        clock = Clock(lambda: self.now)
        attempts = Attempts(plan, prober, quarantine, NoLedger(), clock, self._stopping)
        for _ in range(self.random.randint(1, MOST_PROBES)):
            if self.shard.steps >= steps or self.harm or self._stopping.is_set():
                break
            self.now += 1.0
            self.users()
            series, _ = self.random.choice(list(plan.series()))
            if self.random.random() < 0.01:
                self._stopping.set()  # SIGTERM, which is noticed within the probe
            with suppress(Abandoned, GiveWay):
                made = attempts.make(series, self.now, self.now)
                self.outcomes[made.outcome] += 1
        self._end(prober)

    def _end(self, prober: ShardProber) -> None:
        with suppress(Failure):  # what is not cleared is named in the lock file, for the next prober
            prober.close()

    def _release_locks(self) -> None:
        """As the kernel does when a process ends."""
        if self._prober is not None:
            for lock in self._prober._uncleared._locks.values():
                lock.release()


def paged(**changes: Any) -> Config:
    config = Config(roofline=Roofline(speed=1e9), attention="paged", kv_contents=True, jitter=0.0, tokenizer_seconds=0)
    return replace(config, **{"block_size": 16, "max_batch_tokens": BLOCKS * 16} | changes)


def padded(**changes: Any) -> Config:
    config = Config(roofline=Roofline(speed=1e9), kv_contents=True, jitter=0.0, tokenizer_seconds=0)
    return replace(config, **{"max_batch_tokens": 4000} | changes)
