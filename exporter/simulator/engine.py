"""The GPU of the router: a thread that waits for as long as each pass takes, then delivers its tokens."""

import threading
import time
from collections.abc import Callable

from exporter.simulator.batcher import BatchedRequest, Batcher, Pass, Token
from exporter.simulator.faults import Fault, Faults
from exporter.simulator.roofline import Jitter

_WAKE_EARLY = 0.001  # seconds: an Event wakes up late by less than this, time.sleep by much less
_POLL_SECONDS = 0.01  # how soon a hanging engine notices that it may go on


class Engine:
    """Runs the batcher. `deliver` gets the tokens of every pass and how long it took (seconds), in the engine's thread.

    The other methods may be called from any thread.
    """

    def __init__(self, batcher: Batcher, jitter: Jitter, deliver: Callable[[Pass, list[Token], float], None]) -> None:
        self._batcher = batcher
        self._jitter = jitter
        self._deliver = deliver
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._stopping = threading.Event()
        self._faults = Faults()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        with self._lock:
            self._work.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, request: BatchedRequest) -> None:
        """Queue a request; raises TooLong or Overloaded."""
        with self._lock:
            self._batcher.submit(request, time.perf_counter())
            self._work.notify()

    def cancel(self, request: BatchedRequest) -> None:
        with self._lock:
            self._batcher.cancel(request)

    def slow_down(self, factor: float) -> None:
        with self._lock:
            self._batcher.roofline = self._batcher.roofline.slowed(factor)

    def fault(self, fault: Fault | None) -> None:
        """`hang` lets no pass begin while it lasts. The servers simulate the other kinds."""
        self._faults.set(fault if fault and fault.kind == "hang" else None)

    def load(self) -> dict[str, int]:
        """Requests that wait and run, and the tokens which the running ones have reserved."""
        with self._lock:
            return {
                "queue_size": sum(not request.cancelled for request in self._batcher.waiting),
                "batch_size": sum(not request.cancelled for request in self._batcher.running),
                "batch_tokens": self._batcher.reserved_tokens,
            }

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wait_out_fault()
            with self._lock:
                now = self._batcher.next_pass(time.perf_counter())
                if now is None:
                    if not self._stopping.is_set():
                        self._work.wait()
                    continue
            began = time.perf_counter()
            self._hold(began + now.seconds * self._jitter.factor())
            ended = time.perf_counter()
            with self._lock:
                tokens = self._batcher.finish(now, ended)
            self._deliver(now, tokens, ended - began)

    def _wait_out_fault(self) -> None:
        fault = self._faults.meet("", time.monotonic())
        while fault and self._faults.holds(fault, time.monotonic()) and not self._stopping.wait(_POLL_SECONDS):
            pass

    def _hold(self, deadline: float) -> None:
        """Wait until the instant `deadline` of perf_counter, or until `stop`."""
        if self._stopping.wait(max(0.0, deadline - time.perf_counter() - _WAKE_EARLY)):
            return
        time.sleep(max(0.0, deadline - time.perf_counter()))
