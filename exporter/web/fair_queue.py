"""Which request is served next: at a bounded pace, and fair between clients. Pure: it is told the time.

Every request has a key that says which client sent it. The key that was served longest ago is next. So clients that ask
all the time wait for each other, and a client that asks now and then waits for none of them.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from exporter.web.token_bucket import Bucket

# A new key counts as served this long ago: many new clients must not all come before those that are known.
NEW_KEY_SECONDS = 5.0
REMEMBERED_KEYS = 1024

Item = TypeVar("Item")


@dataclass(slots=True)
class KeyQueue(Generic[Item]):
    """The waiting requests of one key, oldest first."""

    served_at: float
    items: deque[Item] = field(default_factory=deque)


class FairQueue(Generic[Item]):
    """For one thread at a time. `interval` seconds lie between two requests, after a first `burst` of them."""

    def __init__(self, interval: float, burst: int) -> None:
        self._pace = Bucket(interval, burst)
        self._waiting: dict[Hashable, KeyQueue[Item]] = {}
        self._served_at: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return sum(len(queue.items) for queue in self._waiting.values())

    def serve_now(self, key: Hashable, now: float) -> bool:
        """Whether nothing waits and the pace allows one more: it then counts as served."""
        if self._waiting or not self._pace.allows(now):
            return False
        self.served(key, now)
        return True

    def add(self, key: Hashable, item: Item, now: float) -> None:
        queue = self._waiting.get(key)
        if queue is None:
            queue = self._waiting[key] = KeyQueue(self._served_at.get(key, now - NEW_KEY_SECONDS))
        queue.items.append(item)

    def reserve(self, now: float) -> float:
        """Reserves the next place in the pace, and returns in how many seconds `pop` is due."""
        return self._pace.reserve(now)

    def give_back(self) -> None:
        """The place that was reserved last was not needed."""
        self._pace.give_back()

    def count(self, wanted: Callable[[Item], bool]) -> int:
        return sum(wanted(item) for queue in self._waiting.values() for item in queue.items)

    def has(self, may_go: Callable[[Item], bool]) -> bool:
        return any(_first(queue, may_go) is not None for queue in self._waiting.values())

    def pop(self, now: float, may_go: Callable[[Item], bool] = lambda item: True) -> Item | None:
        """Takes out the next item among those that may go, also from behind those that may not; None: there is none."""
        found = ((queue, key, _first(queue, may_go)) for key, queue in self._waiting.items())
        ready = [(queue.served_at, key, item) for queue, key, item in found if item is not None]
        if not ready:
            return None
        _, key, item = min(ready, key=lambda one: one[0])
        self._waiting[key].served_at = now
        self.remove(key, item)
        self.served(key, now)
        return item

    def remove(self, key: Hashable, item: Item) -> None:
        """Raises KeyError or ValueError where it does not wait."""
        items = self._waiting[key].items
        items.remove(item)
        if not items:
            del self._waiting[key]

    def served(self, key: Hashable, now: float) -> None:
        """Remembers when this key was served last."""
        self._served_at.pop(key, None)
        while len(self._served_at) >= REMEMBERED_KEYS:
            del self._served_at[next(iter(self._served_at))]
        self._served_at[key] = now

    def forget(self, key: Hashable) -> None:
        self._served_at.pop(key, None)


def _first(queue: KeyQueue[Item], may_go: Callable[[Item], bool]) -> Item | None:
    return next((item for item in queue.items if may_go(item)), None)
