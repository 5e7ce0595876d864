"""What reads the real clock, opens connections, or draws random numbers without a seed, replaced for one world."""

import contextlib
import random
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from exporter.daemon import attempt
from exporter.probes import crash_check
from exporter.probes.shard import lock, prober, ranks, uncleared
from exporter.wire.delays import Delays, Gap, Mark
from tests.faults.simulation.shard_network import SimulatedShard
from tests.faults.simulation.virtual_clock import VirtualClock


class SimulatedDelays(Delays):
    """This process is held up by `stop` alone. The real one has a thread, which measures real time."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock.read)
        self._virtual = clock

    def mark(self) -> Mark:
        return Mark(self._clock())

    def begin(self) -> None:
        pass

    def end(self) -> None:
        pass

    def stop(self, seconds: float, machine: bool) -> None:
        """The process, or its whole machine, stands still."""
        now = self._virtual.now
        self._virtual.now = now + seconds
        self._gaps.append(Gap(now, now + seconds, seconds, machine, seconds))


@contextlib.contextmanager
def replaced(clock: VirtualClock, delays: SimulatedDelays, shard: SimulatedShard | None, seed: int) -> Iterator[None]:
    def sleep(seconds: float) -> None:
        clock.pass_until(clock.now + seconds)

    time = SimpleNamespace(perf_counter=clock.read, monotonic=clock.read, time=clock.read, sleep=sleep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "PROCESS", delays)
        patch.setattr(attempt, "time", time)
        if shard is None:
            yield
            return
        for module in (crash_check, prober, ranks, uncleared):
            patch.setattr(module, "time", time)
        for module in (prober, ranks):
            patch.setattr(module, "PROCESS", delays)
        patch.setattr(prober, "random", SimpleNamespace(Random=lambda: random.Random(f"{seed} ids")))
        patch.setattr(ranks, "open_channel", shard.channel)
        with tempfile.TemporaryDirectory(prefix="locks-") as folder:
            patch.setattr(lock, "TEMPORARY", folder)
            yield
