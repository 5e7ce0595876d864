"""A runner in virtual time: a clock that only the prober and the waiting move, and a ledger that remembers."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.daemon.runner import Runner
from exporter.daemon.timing import Clock
from exporter.observation import Failure, Observation, Outcome, Series, SkipReason, Step, Stream
from exporter.plan.targets import Facts, Plan
from exporter.probes.interface import Result
from exporter.probes.quarantine import Quarantine

FACTS = Facts(protocol="generate.v3", ranks=1)


@dataclass
class Time:
    """Seconds since the start. It stops the runner when `end` is reached."""

    end: float
    now: float = 0.0
    on_end: Callable[[], None] = lambda: None

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self.end:
            self.on_end()

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        assert seconds >= 0
        self.pass_by(seconds)
        return stop.is_set()


@dataclass
class Remembered:
    """A ledger."""

    time: Time
    observations: list[Observation] = field(default_factory=list)
    skips: list[tuple[float, Series, SkipReason]] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    ups: list[bool] = field(default_factory=list)
    flying: int = 0
    started: int = 0

    def record(self, observation: Observation) -> None:
        self.observations.append(observation)

    def skipped(self, series: Series, reason: SkipReason) -> None:
        self.skips.append((self.time.now, series, reason))

    def late(self, target: str, seconds: float) -> None:
        self.lateness.append(seconds)

    def inflight(self, target: str, probes: int) -> None:
        assert probes in (0, 1)
        self.started += probes > self.flying
        self.flying = probes

    def up(self, target: str, facts: Facts | None) -> None:
        self.ups.append(facts is not None)

    def reasons(self) -> Counter[SkipReason]:
        return Counter(reason for _, _, reason in self.skips)


@dataclass
class Script:
    """A prober whose every probe takes `lasts` seconds of virtual time and ends as `fates` says; then always well.

    A fate is a failure, or the outcome of an answer.
    """

    time: Time
    lasts: Callable[[Workload, int], float] = lambda workload, batch_size: 0.1
    fates: Iterator[Exception | Outcome | None] = field(default_factory=lambda: iter(()))
    connects: Iterator[Exception | None] = field(default_factory=lambda: iter(()))
    crowds: Iterator[bool | Failure] = field(default_factory=lambda: iter(()))
    check_lasts: float = 0.0
    away_until: float = 0.0
    facts: Facts = FACTS
    owed: int = 0
    sent: list[tuple[float, str, int]] = field(default_factory=list)
    closed: bool = False

    def connect(self, timeout: float) -> Facts:
        self.time.pass_by(self.check_lasts)
        if trouble := next(self.connects, None):
            raise trouble
        if self.time.now < self.away_until:
            raise unreachable()
        return self.facts

    def refusal(self, facts: Facts) -> str | None:
        return None

    def users_wait(self) -> bool:
        crowd = next(self.crowds, False)
        if isinstance(crowd, Failure):
            raise crowd
        return crowd

    def probe(self, workload: Workload, batch_size: int, stopping: Callable[[], bool], trace_id: str = "") -> Result:
        began = self.time.now
        self.sent.append((began, workload.name, batch_size))
        self.owed += 1
        self.time.pass_by(self.lasts(workload, batch_size))
        trouble = next(self.fates, None)
        if isinstance(trouble, Exception):
            raise trouble
        self.owed -= 1
        steps = (Step(began, self.time.now, batch_size),)
        return Result((Stream(batch_size, batch_size, began, self.time.now, steps),), trouble or Outcome.OK)

    def settle(self, timeout: float) -> None:
        self.owed = 0

    def close(self) -> None:
        self.owed = 0
        self.closed = True


def unreachable() -> Failure:
    return Failure(Outcome.UNREACHABLE, "UNAVAILABLE", "gone")


def watched(
    seconds: float,
    *workloads: Workload,
    max_duty_cycle: float = 1.0,
    target: Target | None = None,
    quarantine: Quarantine | None = None,
    script: "type[Script] | None" = None,
    **keys: object,
) -> tuple[Remembered, Script]:
    """Run a runner for so many virtual seconds, in this thread."""
    time = Time(seconds)
    ledger = Remembered(time)
    prober = (script or Script)(time, **keys)  # type: ignore[arg-type]
    plan = Plan(target or Target(name="t", address="h:1"), workloads, max_duty_cycle)
    runner = Runner(plan, prober, ledger, clock=Clock(lambda: time.now, time.wait), quarantine=quarantine)
    time.on_end = runner.stop
    runner.run()
    assert prober.closed
    return ledger, prober
