"""Requests of a background load to one target, one by one, many at a time. The connections are as for probes."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from exporter.observation import Failure, Outcome, Stream
from exporter.prober import Abandoned, Census, Result
from exporter.probes.composer import Composer
from exporter.probes.front import Front
from exporter.probes.pool import LOOK, Pool
from exporter.probes.standby import Crowd, Standby
from exporter.probes.streams import TRIES, summed_up
from exporter.settings import Target, Workload
from exporter.streaming.flights import Flight, Flights
from exporter.targets import Facts

LATE = Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", "the deadline passed")


@dataclass(frozen=True, slots=True)
class Underway:
    """One request on its way, until `deadline`."""

    flight: Flight
    deadline: float
    intended: float | None


class StreamBackground:
    """See `Background`. Sends the requests of one workload."""

    def __init__(
        self,
        target: Target,
        workload: Workload,
        front: Front,
        census: Census | None = None,
        clock: Callable[[], float] = time.perf_counter,
        seed: int | None = None,
    ) -> None:
        self._target, self._workload, self._front = target, workload, front
        self._census = census or Census()
        self._clock = clock
        self._pool = Pool(front, clock)
        self._composer = Composer(target, front, seed)
        self._flights = Flights(clock)
        self._underway: deque[Underway] = deque()
        self._next: Flight | None = None
        self._facts: Facts | None = None
        self._standby = Standby(front, clock)
        self._crowd = Crowd(target, front, self._census, clock)
        self._user: int | None = None

    def connect(self, timeout: float) -> Facts:
        self._user = threading.get_ident()
        self._facts = self._front.facts(lambda request: self._pool.ask(request, timeout))
        self._composer.measure(lambda request: self._pool.ask(request, timeout))
        self._crowd.look()
        self._standby.forget()
        self._crowd.forget()
        return self._facts

    def users_wait(self) -> bool:
        return self._crowd.waits()

    @property
    def in_flight(self) -> int:
        return len(self._underway)

    def warm(self, stopping: Callable[[], bool]) -> None:
        counted = None
        for _ in range(TRIES):
            text = self._composer.texts(self._workload, 1)[0]
            cold = self._composer.cold(self._workload, text)
            stream, detail, counted = self._alone(text, stopping)
            if stream.outcome is not Outcome.OK:
                raise Failure(stream.outcome, stream.code, detail)
            if not self._composer.corrected(self._workload, counted) and not cold:
                self._standby.keep(self._pool.take())
                return
        raise self._composer.wrong_length(self._workload, counted)

    def _alone(self, text: str, stopping: Callable[[], bool]) -> tuple[Stream, str, int | None]:
        """One request, watched to its end."""
        self._composer.check_limits(self._facts, self._workload)
        flight = self._composer.flight(self._pool.take(), text, self._workload)
        self._flights.launch(flight)
        deadline = flight.sent + self._workload.timeout
        while flight.ended is None and self._clock() < deadline:
            self._flights.turn(min(deadline, self._clock() + LOOK))
            if stopping() or self._pool.closing.is_set():
                self._flights.abort()
                raise Abandoned
        if flight.ended is None:
            self._flights.end(flight, LATE)
        if flight.reusable:
            self._pool.keep(flight.connection)
        return self._composer.stream(flight, self._workload)

    def foresee(self, requests: int) -> None:
        self._crowd.ask()
        self._standby.want(requests)

    def prepare(self) -> None:
        if self._next is not None:
            if not self._next.connection.idle:
                return
            self._next.connection.close()
            self._next = None
        self._composer.check_limits(self._facts, self._workload)
        connection = self._standby.take()
        if connection is not None:
            text = self._composer.texts(self._workload, 1)[0]
            self._next = self._composer.flight(connection, text, self._workload)

    def send(self, intended: float | None) -> bool:
        self.prepare()
        if self._next is None:
            return False
        flight, self._next = self._next, None
        self._flights.launch(flight)
        self._underway.append(Underway(flight, flight.sent + self._workload.timeout, intended))
        self._census.set(self, len(self._underway))
        return True

    def turn(self, until: float) -> list[Result]:
        if self._pool.closing.is_set():
            raise Abandoned
        # All have the same timeout, so the first is the first to be late.
        self._flights.turn(min(until, self._underway[0].deadline) if self._underway else until)
        now = self._clock()
        for one in self._underway:
            if one.deadline > now:
                break
            if one.flight.ended is None:
                self._flights.end(one.flight, LATE)
        ended = [one for one in self._underway if one.flight.ended is not None]
        if ended:
            self._underway = deque(one for one in self._underway if one.flight.ended is None)
            self._census.set(self, len(self._underway))
        return [self._landed(one) for one in ended]

    def _landed(self, one: Underway) -> Result:
        if one.flight.reusable:
            self._standby.keep(one.flight.connection)
        stream, detail, counted = self._composer.stream(one.flight, self._workload, one.intended)
        self._composer.corrected(self._workload, counted)
        result = summed_up([stream], [detail], self._pool)
        return replace(result, setups=result.setups + self._standby.setups())

    def close(self) -> None:
        """While another thread sends, it ends at its next `turn`; whose it is closes again afterwards."""
        self._pool.closing.set()
        if self._user not in (None, threading.get_ident()):
            return
        self._flights.close()
        for one in self._underway:
            one.flight.connection.close()
        self._underway.clear()
        self._census.set(self, 0)
        if self._next is not None:
            self._next.connection.close()
            self._next = None
        self._standby.close()
        self._crowd.close()
        self._pool.close()
