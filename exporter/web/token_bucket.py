"""A token bucket: how often something may happen. Pure: it is told the time."""

import threading
from dataclasses import dataclass, field


@dataclass(slots=True)
class Bucket:
    """Lets `burst` events through at once and one for each `interval` seconds after that. Safe from any thread."""

    interval: float
    burst: int
    _full_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self, now: float) -> float:
        """Takes the next turn, and says how many seconds off it is."""
        with self._lock:
            self._full_at = max(self._full_at, now) + self.interval
            return max(0.0, self._full_at - now - self.interval * max(1, self.burst))

    def allows(self, now: float) -> bool:
        """Takes a turn if there is one now."""
        with self._lock:
            full_at = max(self._full_at, now) + self.interval
            if full_at - now > self.interval * max(1, self.burst) + 1e-9:
                return False
            self._full_at = full_at
            return True
