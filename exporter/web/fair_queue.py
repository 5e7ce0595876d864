"""Which request is served next, fair between clients. Pure: it is told the time.

Every request has a key that says which client sent it. The key that was served longest ago is next. So clients that ask
all the time wait for each other, and a client that asks now and then waits for none of them.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

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
    """For one thread at a time."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, KeyQueue[Item]] = {}
        self._served_at: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return sum(len(queue.items) for queue in self._waiting.values())

    def add(self, key: Hashable, item: Item, now: float) -> None:
        queue = self._waiting.get(key)
        if queue is None:
            queue = self._waiting[key] = KeyQueue(self._served_at.get(key, now - NEW_KEY_SECONDS))
        queue.items.append(item)

    def count(self, wanted: Callable[[Item], bool]) -> int:
        return sum(wanted(item) for queue in self._waiting.values() for item in queue.items)

    def pop(self, now: float, may_go: Callable[[Item], bool] = lambda item: True) -> Item | None:
        """Takes out the next item among those that may go, also from behind those that may not; None: there is none."""
        ready = [
            (queue.served_at, key, item)
            for key, queue in self._waiting.items()
            if (item := next(filter(may_go, queue.items), None)) is not None
        ]
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
