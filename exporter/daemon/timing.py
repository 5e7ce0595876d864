"""How long things may take in a runner's thread, and the runner's sense of time. All in seconds."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

# To connect to a target and ask what it is. A shard does one call at a time, so a user's long prefill may come first.
TARGET_CONNECT_SECONDS = 10.0
BACKOFF_FIRST = 1.0
BACKOFF_LONGEST = 30.0
# How much later than expected a runner may be before it counts as overdue.
GRACE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Clock:
    """A runner's only sense of time; tests bring one that does not pass by itself.

    `wait(event, seconds)` sleeps, but returns early, and True, when `event` is set.
    """

    now: Callable[[], float] = time.perf_counter
    wait: Callable[[threading.Event, float], bool] = threading.Event.wait


class Watchdog:
    """Tells whether a thread is back in time. One that hangs or died is not."""

    def __init__(self, now: float) -> None:
        self._back_by = now

    def expect_back_by(self, instant: float) -> None:
        self._back_by = instant

    def is_overdue(self, now: float) -> bool:
        return now > self._back_by + GRACE_SECONDS
