"""Warm connections for the requests of a load. A thread of its own opens them, so that sending never waits."""

import threading
import time
from collections import deque

from exporter.observation import Failure, Setup
from exporter.probes.router.on_demand_thread import LONG_AGO, OnDemandThread
from exporter.probes.router.pool import Pool
from exporter.probes.router.protocol import RouterProtocol
from exporter.wire.connection import IDLE_SECONDS, ClientConnection

# Seconds after its last use a connection is warmed again, so that it is not idle when it is needed.
FRESH_SECONDS = IDLE_SECONDS / 2
# Seconds until the next try, after a connection could not be opened.
RETRY_SECONDS = 1.0


class WarmConnections:
    """Open, warm connections. One thread uses it, beside its own thread."""

    def __init__(self, protocol: RouterProtocol) -> None:
        self._pool = Pool(protocol)
        self._lock = threading.Lock()
        self._ready: list[ClientConnection] = []
        self._opened: deque[Setup] = deque()
        self._wanted = 0
        self._failed = LONG_AGO
        self._thread = OnDemandThread("warm-connections", self._fill, self._clear)

    def want(self, connections: int) -> None:
        """Have this number of connections ready soon."""
        self._wanted = connections
        with self._lock:
            fresh = sum(map(self._fresh, self._ready))
        if fresh < connections and time.perf_counter() - self._failed >= RETRY_SECONDS:
            self._thread.wake()

    def take(self) -> ClientConnection | None:
        """A connection for a request that is sent at once; None where none is ready. Never waits.

        Raises Failure where none is ready because none could be opened.
        """
        idle: list[ClientConnection] = []
        found = None
        with self._lock:
            while self._ready and found is None:
                connection = self._ready.pop()
                if connection.idle:
                    idle.append(connection)
                elif connection.still_good(LONG_AGO):
                    found = connection
                else:
                    connection.close()
            self._ready[:0] = idle
        error = self._thread.error()
        if found is None and error is not None:
            raise error
        return found

    def keep(self, connection: ClientConnection) -> None:
        """Give a connection back. It is closed where it cannot be used any more."""
        with self._lock:
            if connection.codec.usable and not self._pool.closing.is_set():
                self._ready.append(connection)
            else:
                connection.close()

    def setups(self) -> tuple[Setup, ...]:
        """The connections opened since the last call."""
        return tuple(self._opened.popleft() for _ in range(len(self._opened)))

    def forget_error(self) -> None:
        self._failed = LONG_AGO
        self._thread.error()

    def close(self) -> None:
        self._pool.closing.set()
        self._thread.close()

    def _fresh(self, connection: ClientConnection) -> bool:
        return time.perf_counter() - connection.used < FRESH_SECONDS

    def _fill(self) -> None:
        while not self._pool.closing.is_set():
            with self._lock:
                fresh = [connection for connection in self._ready if self._fresh(connection)]
                if len(fresh) >= self._wanted:
                    return
                stale = [connection for connection in self._ready if connection not in fresh]
                self._ready = fresh
            for connection in stale:
                connection.used = LONG_AGO  # so that the pool warms it
                self._pool.keep(connection)
            try:
                connection = self._pool.take()
            except Failure:
                self._failed = time.perf_counter()
                raise
            finally:
                self._opened.extend(self._pool.setups())
            self.keep(connection)

    def _clear(self) -> None:
        with self._lock:
            while self._ready:
                self._ready.pop().close()
        self._pool.close()
