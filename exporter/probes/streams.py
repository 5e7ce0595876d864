"""Probes through a router: n requests, each a stream on a connection of its own, started together.

What must hold in here, always: nothing that happens before the start is inside a measured duration; a request that is
given up is cancelled, so that the server stops working on it; a connection with an unfinished answer is never used
again.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from exporter.observation import NOT_JUDGED, Failure, Outcome, Setup, Stream
from exporter.prober import Abandoned, Census, Result
from exporter.probes.composer import Composer
from exporter.probes.front import Front, Page
from exporter.probes.pool import LOOK, Pool
from exporter.settings import Target, Workload
from exporter.streaming.crowd import users_waiting
from exporter.streaming.dialects import refused
from exporter.streaming.flights import Connection, Flight, Flights
from exporter.targets import Facts

# How often prompts of the wrong length are corrected before we give up, and once more for a cache to be filled.
TRIES = 5
# For a batch that ends in several ways: which one speaks for it.
GRAVITY = (
    Outcome.UNREACHABLE,
    Outcome.TIMEOUT,
    Outcome.MALFORMED,
    Outcome.REJECTED,
    Outcome.OVERLOADED,
    *sorted(NOT_JUDGED),
)


class StreamProber:
    """See `Prober`."""

    def __init__(
        self,
        target: Target,
        front: Front,
        census: Census | None = None,
        clock: Callable[[], float] = time.perf_counter,
        seed: int | None = None,
    ) -> None:
        self._target = target
        self._front = front
        self._census = census or Census()
        self._clock = clock
        self._pool = Pool(front, clock)
        self._composer = Composer(target, front, seed)
        self._flights = Flights(clock)
        self._facts: Facts | None = None
        self._in_use = threading.Lock()

    def connect(self, timeout: float) -> Facts:
        with self._in_use:
            self._facts = self._front.facts(lambda request: self._pool.ask(request, timeout))
            self._composer.measure(lambda request: self._pool.ask(request, timeout))
            return self._facts

    def refusal(self, facts: Facts) -> str | None:
        """A router protects its shard itself: there is no prompt that could do harm."""
        return None

    def users_wait(self) -> bool:
        return users_wait(self._target, self._front, self._pool, self._census)

    def probe(self, workload: Workload, batch_size: int, stopping: Callable[[], bool], trace_id: str = "") -> Result:
        with self._in_use:
            return self._corrected(workload, batch_size, stopping, trace_id)

    def _corrected(self, workload: Workload, batch_size: int, stopping: Callable[[], bool], trace_id: str) -> Result:
        """Probe until the prompts had the right length, and a cache what it shall hold; nearly always at once."""
        self._composer.check_limits(self._facts, workload)
        counted: float | None = None
        begun = self._clock()
        setups: tuple[Setup, ...] = ()
        for _ in range(TRIES):
            texts = self._composer.texts(workload, batch_size)
            cold = self._composer.cold(workload, texts[0])
            result, counted = self._begun(workload, texts, stopping, trace_id)
            if result.outcome is not Outcome.OK:
                return result
            setups += result.setups
            if not self._composer.corrected(workload, counted) and not cold:
                return replace(result, setups=setups)
            if self._clock() - begun > workload.timeout:
                break
        raise self._composer.wrong_length(workload, counted)

    def _begun(
        self, workload: Workload, texts: Sequence[str], stopping: Callable[[], bool], trace_id: str
    ) -> tuple[Result, float | None]:
        """As `_fly`, and once more, all together, where the server was going away and had not begun what failed."""
        result, counted, failed = self._fly(workload, texts, stopping, trace_id)
        if failed and all(flight.not_begun for flight in failed):
            setups = result.setups
            result, counted, _ = self._fly(workload, texts, stopping, trace_id)
            result = replace(result, setups=setups + result.setups)
        return result, counted

    def _fly(
        self, workload: Workload, texts: Sequence[str], stopping: Callable[[], bool], trace_id: str
    ) -> tuple[Result, float | None, list[Flight]]:
        """Release all at once and watch them to their end. Also the mean length of the prompts, where it was told, and
        which of them failed on their way.
        """
        connections = self._connections(len(texts), stopping)
        flights = [
            self._composer.flight(connection, text, workload, trace_id)
            for connection, text in zip(connections, texts, strict=True)
        ]
        self._census.set(self, len(flights))
        self._flights.launch(*flights)
        deadline = flights[0].sent + workload.timeout
        try:
            while len(self._flights) and self._clock() < deadline:
                self._flights.turn(min(deadline, self._clock() + LOOK))
                if stopping() or self._pool.closing.is_set():
                    raise Abandoned
        finally:
            self._end(flights)
        streams: list[Stream] = []
        details: list[str] = []
        counts: list[int] = []
        for flight in flights:
            stream, detail, counted = self._composer.stream(flight, workload)
            streams.append(stream)
            details.append(detail)
            if counted is not None:
                counts.append(counted)
        result = summed_up(streams, details, self._pool)
        failed = [flight for flight in flights if flight.failure is not None]
        return result, sum(counts) / len(counts) if counts else None, failed

    def _end(self, flights: Sequence[Flight]) -> None:
        """Give up what still flies, keep the connections that can be used again."""
        self._flights.abort()
        self._census.set(self, 0)
        for flight in flights:
            if flight.reusable:
                self._pool.keep(flight.connection)

    def _connections(self, count: int, stopping: Callable[[], bool]) -> list[Connection]:
        connections: list[Connection] = []
        try:
            while len(connections) < count:
                if stopping() or self._pool.closing.is_set():
                    raise Abandoned
                connections.append(self._pool.take())
        except (Abandoned, Failure):
            for connection in connections:
                self._pool.keep(connection)
            raise
        return connections

    def settle(self, timeout: float) -> None:
        """Nothing is ever owed: a router forgets a request that was cancelled."""

    def close(self) -> None:
        """While a probe runs in another thread, that ends within a moment; whose it is closes again afterwards."""
        self._pool.closing.set()
        if self._in_use.acquire(blocking=False):
            with contextlib.closing(self._flights):
                self._pool.close()
            self._in_use.release()


def users_wait(target: Target, front: Front, pool: Pool, census: Census) -> bool:
    """See `Prober.users_wait`."""
    place = front.metrics() if target.yield_to_users else None
    if place is None:
        return False
    page = pool.visit(place, Page(refused))
    waiting = users_waiting(page.decode("utf-8", "replace"), census.total())
    if waiting is None:
        where = f"{place.endpoint.where}{place.request.path}"
        what = f"{where} names no queue (such as tgi_queue_size), which yield_to_users goes by; check metrics_url"
        raise Failure(Outcome.MALFORMED, "OK", what)
    return waiting > 0


def summed_up(streams: Sequence[Stream], details: Sequence[str], pool: Pool) -> Result:
    """One result of all streams: that of the gravest failure, or OK when there is none."""
    failed = [pair for pair in zip(streams, details, strict=True) if pair[0].outcome is not Outcome.OK]
    if not failed:
        return Result(tuple(streams), setups=pool.setups())
    worst, detail = min(failed, key=lambda pair: GRAVITY.index(pair[0].outcome))
    if len(streams) > 1:
        endings = Counter(stream.outcome for stream, _ in failed)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in endings.items())
        detail = f"{len(failed)} of {len(streams)} requests ({counts}): {detail}"
    return Result(tuple(streams), worst.outcome, worst.code, detail, pool.setups())
