"""Whether users wait in the router's queue, for a load that must not wait for the answer."""

import time
from collections.abc import Callable

from exporter.probes.router.on_demand_thread import LONG_AGO, OnDemandThread

# Seconds until the metrics are read again, and until an answer is too old.
REFRESH_SECONDS = 1.0
STALE_SECONDS = 3.0


class RouterQueue:
    """A thread of its own asks `users_wait`, which reads the router's metrics. `yields`: whether the target yields."""

    def __init__(self, users_wait: Callable[[], bool], yields: bool) -> None:
        self._ask, self._yields = users_wait, yields
        self._newest = (LONG_AGO, False)
        self._thread = OnDemandThread("router-queue", self.refresh)

    def refresh(self) -> None:
        """Read the metrics now. Raises Failure."""
        begun = time.perf_counter()
        self._newest = (begun, self._ask())

    def refresh_soon(self) -> None:
        """Have the thread read the metrics where the newest answer is older than a second."""
        if self._yields and time.perf_counter() - self._newest[0] >= REFRESH_SECONDS:
            self._thread.wake()

    def users_wait(self) -> bool:
        """Never waits. True where the newest answer is too old. Raises Failure."""
        if not self._yields:
            return False
        if (error := self._thread.error()) is not None:
            raise error
        self.refresh_soon()
        since, wait = self._newest
        return wait or time.perf_counter() - since >= STALE_SECONDS

    def forget_error(self) -> None:
        self._thread.error()

    def close(self) -> None:
        """Its call of `users_wait` may still run."""
        self._thread.close()
