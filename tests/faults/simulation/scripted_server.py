"""A server and the network to it, as a prober that takes virtual time and misbehaves at random."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome, Step, Stream
from exporter.plan.targets import Facts
from exporter.probes.interface import Abandoned, GiveWay, Occupied, Result
from tests.faults.simulation.history import History
from tests.faults.simulation.truth import TrueTimes, Truth
from tests.faults.simulation.virtual_clock import VirtualClock

PHASES = ("healthy", "slow", "failing", "hanging", "away", "silent", "unclearable", "occupied", "users")
WEIGHTS = (40, 10, 8, 5, 8, 3, 6, 3, 3)
CODES = {Outcome.TIMEOUT: "DEADLINE_EXCEEDED", Outcome.UNREACHABLE: "UNAVAILABLE"}
ENDED = Failure(Outcome.UNREACHABLE, "CANCELLED", "we closed the connection")


@dataclass
class ScriptedServer:
    """It goes from phase to phase. `batches`: what it keeps until it is cleared, by id. A restart forgets them."""

    clock: VirtualClock
    history: History
    random: random.Random
    phase: str = "healthy"
    incarnation: int = 0
    batches: set[int] = field(default_factory=set)
    batches_sent: int = 0

    def begin(self) -> None:
        self.clock.at(self.clock.now + self.random.expovariate(1 / 900), self._change)

    def _change(self) -> None:
        if self.random.random() < 0.15 or self.phase == "away":
            self.restart()
        [self.phase] = self.random.choices(PHASES, WEIGHTS)
        self.history.note("the server is", self.phase)
        self.begin()

    def take_batch(self) -> int:
        """A new batch's number."""
        self.batches_sent += 1
        self.batches.add(self.batches_sent)
        return self.batches_sent

    def restart(self) -> None:
        self.incarnation += 1
        self.batches.clear()
        self.history.note("the server restarts")


class ScriptedProber:
    """See `Prober`. `owed`: batches that it sent and that neither ended nor were cleared."""

    def __init__(self, server: ScriptedServer, truth: Truth) -> None:
        self.server = server
        self.owed: set[int] = set()
        self.closed = False
        self._truth = truth
        self._clock, self._random, self._history = server.clock, server.random, server.history

    def _pass(self, seconds: float) -> None:
        """Raises Failure when the connection is closed meanwhile."""
        if self.closed or self._clock.pass_until(self._clock.now + seconds, lambda: self.closed):
            raise ENDED

    def connect(self, timeout: float) -> Facts:
        self._truth.connected = False
        facts = self._connect(timeout)
        self._truth.connected = self._truth.passed_connect = True
        return facts

    def _connect(self, timeout: float) -> Facts:
        if self.server.phase == "away":
            self._pass(0.0005)
            raise Failure(Outcome.UNREACHABLE, "UNAVAILABLE", "connection refused")
        if self.server.phase == "silent":
            self._pass(timeout)
            raise Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", f"no answer within {timeout:g} s")
        self._pass(0.001)
        return Facts(protocol="generate.v3", ranks=1, connection=(self.server.incarnation,))

    def refusal(self, facts: Facts) -> str | None:
        return None

    def users_wait(self) -> bool:
        self._truth.gave_way = self.server.phase == "users" and self._random.random() < 0.7
        return self._truth.gave_way

    def probe(self, workload: Workload, batch_size: int, stopping: Callable[[], bool], trace_id: str = "") -> Result:
        self._truth.success, self._truth.clear_tried = None, False
        if self.owed:
            raise self._history.broken("cleared before the next", f"a batch is sent while {self.owed} is owed")
        if stopping():
            raise self._history.broken("nothing after the stop", "a batch is sent after the stop")
        phase = self.server.phase
        if phase == "occupied" and self._random.random() < 0.5:
            self._truth.gave_way = True
            raise Occupied("another prober uses the shard")
        if phase == "users" and self._random.random() < 0.1:
            self._truth.gave_way = True
            raise GiveWay("users wait")
        number = self.server.take_batch()
        self.owed.add(number)
        self._history.note("send", workload.name, batch_size, f"batch {number}", phase)
        return self._watch(workload, batch_size, stopping, number)

    def _watch(self, workload: Workload, batch_size: int, stopping: Callable[[], bool], number: int) -> Result:
        began, phase = self._clock.now, self.server.phase
        lasts = self._random.lognormvariate(-1.5 + 0.1 * batch_size, 0.8) * (10 if phase == "slow" else 1)
        fate = self._random.random()
        if phase == "hanging" or fate < 0.002:
            lasts = float("inf")
        first = began + min(lasts, workload.timeout) * 0.4
        self._pass(first - began)
        if stopping():
            raise Abandoned
        end = began + lasts
        if end > began + workload.timeout:
            self._pass(began + workload.timeout - self._clock.now)
            raise Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", "no answer in time")
        self._pass(end - self._clock.now)
        if phase == "failing" or fate > 0.995:
            outcome = self._random.choice([each for each in Outcome if each is not Outcome.OK])
            if outcome is Outcome.DISTURBED:
                self._end(number)
                return Result(self._streams(batch_size, began, first), outcome, "OK", "disturbed")
            if self._random.random() < 0.05:
                raise ValueError("a bug of the prober")
            raise Failure(
                outcome, CODES.get(outcome, "INTERNAL"), "by chance", may_have_ended_server=self._random.random() < 0.1
            )
        if fate > 0.99:  # the server has done the work, and the answer is lost
            self._pass(began + workload.timeout - self._clock.now)
            raise Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", "the answer was lost")
        self._end(number)
        self._truth.success = TrueTimes(first - began, self._clock.now - began)
        return Result(self._streams(batch_size, began, first))

    def _streams(self, batch_size: int, began: float, first: float) -> tuple[Stream, ...]:
        steps = (Step(began, first, batch_size), Step(first, self._clock.now, batch_size))
        return (Stream(batch_size, 10 * batch_size, began, self._clock.now, steps),)

    def _end(self, number: int) -> None:
        self.owed.discard(number)
        self.server.batches.discard(number)

    def settle(self, timeout: float) -> None:
        self._truth.clear_tried = True
        until = self._clock.now + timeout
        for number in sorted(self.owed):
            self._clear(number, until)

    def _clear(self, number: int, until: float) -> None:
        phase = self.server.phase
        if phase in ("away", "unclearable"):
            raise Failure(Outcome.REJECTED, "INTERNAL", f"batch {number} not cleared")
        if phase == "silent":
            self._clock.pass_until(until)
            raise Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", f"batch {number} not cleared")
        self._clock.pass_until(self._clock.now + 0.001)
        self._history.note("clear", f"batch {number}")
        self._end(number)

    def close(self) -> None:
        self.closed = True
        self.settle(5.0)
