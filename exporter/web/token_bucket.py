"""A token bucket: how often something may happen. Pure: it is told the time."""

from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """Lets `burst` events through at once, and after that one each `interval` seconds. For one thread at a time."""

    interval: float
    burst: int
    _full_at: float = 0.0

    def reserve(self, now: float) -> float:
        """Takes the next token, and returns in how many seconds it is there."""
        self._full_at = max(self._full_at, now) + self.interval
        return max(0.0, self._full_at - now - self.interval * max(1, self.burst))

    def give_back(self) -> None:
        """The token that was reserved last was not needed."""
        self._full_at -= self.interval

    def allows(self, now: float) -> bool:
        """Takes a token if there is one now."""
        full_at = max(self._full_at, now) + self.interval
        if full_at - now > self.interval * max(1, self.burst) + 1e-9:
            return False
        self._full_at = full_at
        return True
