"""Whether users wait in the router's queue."""

import time

from exporter.config.target import Target
from exporter.observation import Failure, Outcome
from exporter.probes.interface import OwnRequests
from exporter.probes.router.on_demand_thread import LONG_AGO, OnDemandThread
from exporter.probes.router.pool import Pool
from exporter.probes.router.protocol import PageReader, RouterProtocol
from exporter.probes.router.queue_metrics import users_waiting
from exporter.probes.router.server_errors import refused

# Seconds until the metrics are read again, and until an answer is too old.
REFRESH_SECONDS = 1.0
STALE_SECONDS = 3.0


def users_wait(target: Target, protocol: RouterProtocol, pool: Pool, own_requests: OwnRequests) -> bool:
    """See `Prober.users_wait`."""
    page = protocol.metrics_page() if target.yield_to_users else None
    if page is None:
        return False
    text = pool.read(page, PageReader(refused)).decode("utf-8", "replace")
    waiting = users_waiting(text, own_requests.total())
    if waiting is None:
        where = f"{page.endpoint.where}{page.request.path}"
        what = f"{where} names no queue (such as tgi_queue_size), which yield_to_users goes by; check metrics_url"
        raise Failure(Outcome.MALFORMED, "OK", what)
    return waiting > 0


class RouterQueue:
    """Whether users wait, for a load that must not wait for the answer: a thread of its own reads the metrics."""

    def __init__(self, target: Target, protocol: RouterProtocol, own_requests: OwnRequests) -> None:
        self._target, self._protocol, self._own_requests = target, protocol, own_requests
        self._pool = Pool(protocol)
        self._newest = (LONG_AGO, False)
        self._thread = OnDemandThread("router-queue", self.refresh, self._pool.close)

    def refresh(self) -> None:
        """Read the metrics now. Raises Failure."""
        begun = time.perf_counter()
        self._newest = (begun, users_wait(self._target, self._protocol, self._pool, self._own_requests))

    def refresh_soon(self) -> None:
        """Have the thread read the metrics where the newest answer is older than a second."""
        if self._target.yield_to_users and time.perf_counter() - self._newest[0] >= REFRESH_SECONDS:
            self._thread.wake()

    def users_wait(self) -> bool:
        """Never waits. True where the newest answer is too old. Raises Failure."""
        if not self._target.yield_to_users:
            return False
        self._thread.raise_error()
        self.refresh_soon()
        since, wait = self._newest
        return wait or time.perf_counter() - since >= STALE_SECONDS

    def forget_error(self) -> None:
        self._thread.error()

    def close(self) -> None:
        self._pool.closing.set()
        self._thread.close()
