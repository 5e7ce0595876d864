"""Pauses in long work, so that threads that measure need not wait for its end."""

import time
from collections.abc import Callable

# A thread that wakes up while all processors are busy may wait until the running one has used up its time slice, some
# 3 ms. One that sleeps of its own accord gives way at once. Measured: `python -m benchmarks interpreter`.
WORK_SECONDS = 0.0003
PAUSE_SECONDS = 0.0001


class Pauses:
    """Call it often during one long work: it sleeps PAUSE_SECONDS when the last pause ended WORK_SECONDS ago."""

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._since = clock()

    def __call__(self) -> None:
        if self._clock() - self._since >= WORK_SECONDS:
            self._sleep(PAUSE_SECONDS)
            self._since = self._clock()
