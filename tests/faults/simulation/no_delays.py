"""This process is never held up: what measures that runs in real time and has a thread of its own."""

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

from exporter.daemon import attempt
from exporter.wire.delays import Delays, Gap, Mark
from tests.faults.simulation.virtual_clock import VirtualClock


class NoDelays(Delays):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock.read)

    def mark(self) -> Mark:
        return Mark(self._clock())

    def begin(self) -> None:
        pass

    def end(self) -> None:
        pass

    def stopped(self, since: float, until: float) -> float:
        return 0.0

    def stops(self, since: float) -> tuple[Gap, ...]:
        return ()

    def machine_stops(self, since: float) -> tuple[Gap, ...]:
        return ()


@contextlib.contextmanager
def without_delays(clock: VirtualClock) -> Iterator[None]:
    with patch.object(attempt, "PROCESS", NoDelays(clock)):
        yield
