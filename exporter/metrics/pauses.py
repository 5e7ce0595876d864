"""Pauses in long work, so that threads that measure need not wait for its end."""

import time
from collections.abc import Callable

# A thread that wakes up while all processors are busy may wait until the one at work has used up what the kernel's
# scheduler gives it, some 3 ms. One that sleeps on its own accord is behind the others at once.
WORK_SECONDS = 0.0003
PAUSE_SECONDS = 0.0001


class Breath:
    """Call it again and again during one piece of work: it sleeps for a moment when the last pause is some time ago.

    Measured: `python -m benchmarks interpreter`, and what scrapes change in `company`.
    """

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
