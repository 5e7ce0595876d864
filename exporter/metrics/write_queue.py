"""Writes to values that are read together, one after the other, so that a reader sees them as of one instant.

While somebody reads, writes wait. The threads that bring them do not: they measure. No clock, no I/O.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class WriteQueue:
    """Safe to use from any thread; a write may ask for another one, which then comes after it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()

    def put(self, write: Callable[[], None]) -> None:
        """Do it now, or leave it to the thread that reads or writes at the moment. In the order of the calls.

        Writes must not raise: what one raises may reach another thread than its own.
        """
        self._waiting.append(write)
        self._write_all()

    @contextmanager
    def held(self) -> Iterator[None]:
        """For a reader: what was put before is done, and nothing more until the end. Readers wait for each other."""
        self._lock.acquire()
        try:
            self._empty()
            yield
        finally:
            self._lock.release()
            self._write_all()

    def _write_all(self) -> None:
        # Looked at again after each release: what was put meanwhile was left to the thread that had the lock.
        while self._waiting and self._lock.acquire(blocking=False):
            try:
                self._empty()
            finally:
                self._lock.release()

    def _empty(self) -> None:
        while self._waiting:
            self._waiting.popleft()()
