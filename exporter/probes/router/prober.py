"""Probes through a router: n requests, each a stream on a connection of its own, sent together.

These rules always hold. Nothing before the start is part of a measured duration. A request that is given up is
cancelled, so that the server stops working on it. A connection with an unfinished answer is never used again.
"""

import threading
from collections.abc import Callable

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.plan.targets import Facts
from exporter.probes.interface import OwnRequests, Result
from exporter.probes.router.protocol import RouterProtocol
from exporter.probes.router.router_queue import users_wait
from exporter.probes.router.stream_client import StreamClient


class StreamProber:
    """See `Prober`."""

    def __init__(self, target: Target, protocol: RouterProtocol, own_requests: OwnRequests | None = None) -> None:
        self._target, self._protocol = target, protocol
        self._own_requests = own_requests or OwnRequests()
        self._client = StreamClient(target, protocol, self._own_requests)
        self._in_use = threading.Lock()

    def connect(self, timeout: float) -> Facts:
        with self._in_use:
            return self._client.connect(timeout)

    def refusal(self, facts: Facts) -> str | None:
        """Never: a router protects its shard, so no prompt can do harm."""
        return None

    def users_wait(self) -> bool:
        return users_wait(self._target, self._protocol, self._client.pool, self._own_requests)

    def probe(self, workload: Workload, batch_size: int, stopping: Callable[[], bool], trace_id: str = "") -> Result:
        with self._in_use:
            return self._client.send_batch(workload, batch_size, stopping, trace_id)

    def settle(self, timeout: float) -> None:
        """Nothing is left behind: a router forgets a request that was cancelled."""

    def close(self) -> None:
        """A probe in another thread ends within a moment. That thread must then call `close` too."""
        self._client.pool.closing.set()
        if self._in_use.acquire(blocking=False):
            self._client.close()
            self._in_use.release()
