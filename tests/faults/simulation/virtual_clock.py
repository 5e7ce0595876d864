"""The one clock of a simulated world. It moves when something waits; what is planned meanwhile happens in order."""

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

Act = Callable[[], None]


@dataclass
class VirtualClock:
    """Seconds since the start of the world. Two events of the same instant happen in the order of their planning."""

    now: float = 0.0
    on_wait: Act = lambda: None
    _planned: list[tuple[float, int, Act]] = field(default_factory=list)
    _number: int = 0

    def at(self, instant: float, act: Act) -> None:
        self._number += 1
        heapq.heappush(self._planned, (instant, self._number, act))

    def pass_until(self, instant: float, over: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass; early, and True, when `over` says so after an event."""
        while self._planned and self._planned[0][0] <= instant:
            at, _, act = heapq.heappop(self._planned)
            self.now = max(self.now, at)
            act()
            if over():
                return True
        self.now = max(self.now, instant)
        return False

    def read(self) -> float:
        return self.now

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """As `Clock.wait` of the daemon."""
        if seconds < 0:
            raise ValueError(f"a wait of {seconds} s")
        self.on_wait()
        if not event.is_set():
            self.pass_until(self.now + seconds, event.is_set)
        return event.is_set()
