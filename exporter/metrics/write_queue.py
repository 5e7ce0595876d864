"""Writes to values that are read together: a reader sees all of them as of one instant. No clock, no I/O.

While one thread reads, writes wait in a queue. The threads that bring them do not wait: they measure.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class WriteQueue:
    """Safe to use from any thread. A write may put another one, which is then done after it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()

    def put(self, write: Callable[[], None]) -> None:
        """Do it now, or leave it to the thread that reads or writes at the moment. In the order of the calls.

        A write must not raise: the exception may reach another thread than the one that put it.
        """
        self._waiting.append(write)
        self._do_all()

    @contextmanager
    def held(self) -> Iterator[None]:
        """For a reader: all writes that were put before are done, and none until the end. Readers take turns."""
        self._lock.acquire()
        try:
            self._do_waiting()
            yield
        finally:
            self._lock.release()
            self._do_all()

    def _do_all(self) -> None:
        # Looked at again after each release: what was put meanwhile was left to the thread that had the lock.
        while self._waiting and self._lock.acquire(blocking=False):
            try:
                self._do_waiting()
            finally:
                self._lock.release()

    def _do_waiting(self) -> None:
        while self._waiting:
            self._waiting.popleft()()
