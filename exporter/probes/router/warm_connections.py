"""What the requests of a load need when they are due: connections that are warm, and whether users wait.

Both ask the network, and that can take any time. So each has a thread of its own: the one that reads the answers of the
requests on their way never waits for either.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from exporter.config.target import Target
from exporter.observation import Failure, Setup
from exporter.probes.interface import OwnRequests
from exporter.probes.router.pool import LOOK, Pool
from exporter.probes.router.prober import users_wait
from exporter.probes.router.protocol import RouterProtocol
from exporter.wire.connection import IDLE_SECONDS, ClientConnection

# A connection used so long ago is warmed again before a request that is due soon: it must not go cold until then.
FRESH_SECONDS = IDLE_SECONDS / 2
# After so long an answer of the router's metrics is asked for anew, and after so long it is believed no longer.
CROWD_SECONDS = 1.0
STALE_SECONDS = 3.0
# After a connection that could not be opened, while others still serve.
RETRY_SECONDS = 1.0
LONG_AGO = float("-inf")


class Errand:
    """A thread that does one thing whenever it is asked to. It starts with the first time."""

    def __init__(self, name: str, job: Callable[[], None], end: Callable[[], None]) -> None:
        """`end` is called in the thread once it was closed; without a thread in `close`."""
        self._job, self._end = job, end
        self._asked, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._trouble: Exception | None = None

    def ask(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
        self._asked.set()

    def trouble(self) -> Exception | None:
        """What went wrong since last asked."""
        trouble, self._trouble = self._trouble, None
        return trouble

    def close(self) -> None:
        """It ends within a moment, or when a connection that is being opened has failed."""
        self._closing.set()
        self._asked.set()
        if self._thread.ident is None:
            self._end()
        else:
            self._thread.join(2 * LOOK)

    def _run(self) -> None:
        while self._asked.wait():
            self._asked.clear()
            if self._closing.is_set():
                break
            try:
                self._job()
            except Exception as error:  # a Failure, or a bug: told to the thread that asked
                self._trouble = error
        self._end()


class WarmConnections:
    """Connections that are open and warm. Used by one thread, beside its own."""

    def __init__(self, protocol: RouterProtocol, clock: Callable[[], float] = time.perf_counter) -> None:
        self._pool = Pool(protocol, clock)
        self._clock = clock
        self._lock = threading.Lock()
        self._ready: list[ClientConnection] = []
        self._opened: deque[Setup] = deque()
        self._wanted = 0
        self._failed = LONG_AGO
        self._errand = Errand("standby", self._fill, self._clear)

    def want(self, connections: int) -> None:
        """Have so many ready soon."""
        self._wanted = connections
        with self._lock:
            fresh = sum(map(self._fresh, self._ready))
        if fresh < connections and self._clock() - self._failed >= RETRY_SECONDS:
            self._errand.ask()

    def take(self) -> ClientConnection | None:
        """One on which a request may be sent at once; None where none is ready. Never waits.

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
        trouble = self._errand.trouble()
        if found is None and trouble is not None:
            raise trouble
        return found

    def keep(self, connection: ClientConnection) -> None:
        """Give a connection back."""
        with self._lock:
            if connection.codec.usable and not self._pool.closing.is_set():
                self._ready.append(connection)
            else:
                connection.close()

    def setups(self) -> tuple[Setup, ...]:
        """The connections opened since last asked."""
        return tuple(self._opened.popleft() for _ in range(len(self._opened)))

    def forget(self) -> None:
        """What went wrong before is of no interest any more."""
        self._failed = LONG_AGO
        self._errand.trouble()

    def close(self) -> None:
        self._pool.closing.set()
        self._errand.close()

    def _fresh(self, connection: ClientConnection) -> bool:
        return self._clock() - connection.used < FRESH_SECONDS

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
                self._failed = self._clock()
                raise
            finally:
                self._opened.extend(self._pool.setups())
            self.keep(connection)

    def _clear(self) -> None:
        with self._lock:
            while self._ready:
                self._ready.pop().close()
        self._pool.close()


class RouterQueue:
    """Whether users wait, as the router's metrics said at most seconds ago."""

    def __init__(
        self, target: Target, protocol: RouterProtocol, own_requests: OwnRequests, clock: Callable[[], float]
    ) -> None:
        self._target, self._protocol, self._own_requests, self._clock = target, protocol, own_requests, clock
        self._pool = Pool(protocol, clock)
        self._seen = (LONG_AGO, False)
        self._errand = Errand("crowd", self.look, self._pool.close)

    def look(self) -> None:
        """Ask now. Raises Failure."""
        begun = self._clock()
        self._seen = (begun, users_wait(self._target, self._protocol, self._pool, self._own_requests))

    def ask(self) -> None:
        """Have an answer soon that is no older than a second."""
        if self._target.yield_to_users and self._clock() - self._seen[0] >= CROWD_SECONDS:
            self._errand.ask()

    def waits(self) -> bool:
        """Never waits itself. What is not known any more counts as users that wait. Raises Failure."""
        if not self._target.yield_to_users:
            return False
        trouble = self._errand.trouble()
        if trouble is not None:
            raise trouble
        self.ask()
        since, wait = self._seen
        return wait or self._clock() - since >= STALE_SECONDS

    def forget(self) -> None:
        self._errand.trouble()

    def close(self) -> None:
        self._pool.closing.set()
        self._errand.close()
