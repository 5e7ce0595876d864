"""Whose request is next: at a bounded pace, and first whoever has had no turn for longest. Pure: it is told the time.

So those who ask again and again wait for each other, and whoever asks now and then waits for none of them.
"""

import threading
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from exporter.web.token_bucket import Bucket

# Whoever was never seen stands where somebody would whose last turn was so long ago: not before everybody, or a crowd
# of new ones would keep out those who are known.
STRANGER_SECONDS = 5.0
REMEMBERED = 1024

One = TypeVar("One", bound=Hashable)


@dataclass(slots=True)
class Line(Generic[One]):
    """Those with the same key, in the order in which they came."""

    last_turn: float
    ones: deque[One] = field(default_factory=deque)


class Turns(Generic[One]):
    """Safe from any thread. A key says who asks; whoever shares a key shares its turns."""

    def __init__(self, pace: float, burst: int) -> None:
        self._pace = Bucket(pace, burst)
        self._lines: dict[Hashable, Line[One]] = {}
        self._last_turns: dict[Hashable, float] = {}
        self._lock = threading.Lock()

    @property
    def standing(self) -> int:
        """How many stand in line."""
        with self._lock:
            return sum(len(line.ones) for line in self._lines.values())

    def at_once(self, key: Hashable, now: float) -> bool:
        """Whether nobody stands in line and there is a turn now, which is then taken."""
        with self._lock:
            if self._lines or not self._pace.allows(now):
                return False
            self._note(key, now)
            return True

    def stand(self, key: Hashable, one: One, now: float) -> None:
        """Puts it in line."""
        with self._lock:
            line = self._lines.get(key)
            if line is None:
                line = self._lines[key] = Line(self._last_turns.get(key, now - STRANGER_SECONDS))
            line.ones.append(one)

    def wait(self, now: float) -> float:
        """Takes the next turn, for whoever is next when it has come: so many seconds from now."""
        return self._pace.wait(now)

    def next(self, now: float) -> One | None:
        """Whose turn it is; None where nobody stands in line any more."""
        with self._lock:
            if not self._lines:
                return None
            key, line = min(self._lines.items(), key=lambda item: item[1].last_turn)
            one, line.last_turn = line.ones.popleft(), now
            if not line.ones:
                del self._lines[key]
            self._note(key, now)
            return one

    def had_turn(self, key: Hashable, now: float) -> None:
        """Counts the turn for this key as well."""
        with self._lock:
            self._note(key, now)

    def forget(self, key: Hashable) -> None:
        with self._lock:
            self._last_turns.pop(key, None)

    def _note(self, key: Hashable, now: float) -> None:
        self._last_turns.pop(key, None)
        while len(self._last_turns) >= REMEMBERED:
            del self._last_turns[next(iter(self._last_turns))]
        self._last_turns[key] = now
