"""What must always be true, checked at every report of the runner. A real recorder hears it too."""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from exporter.analysis.certainty import recorded
from exporter.config.workload import Workload
from exporter.daemon.ledger import Recorder
from exporter.daemon.runner import Runner
from exporter.daemon.timing import BACKOFF_LONGEST
from exporter.observation import Observation, Outcome, Series, SkipReason
from exporter.plan.schedule import CHECK_INTERVAL
from exporter.plan.targets import Facts, Plan
from tests.faults.simulation.history import History
from tests.faults.simulation.truth import Truth
from tests.faults.simulation.virtual_clock import VirtualClock

ROUNDING = 1e-6
# How many due times may be neither a start nor a skip: one is pending, and one more at each end of the time looked at.
DUE_OPEN = 3
# How late after its stop a runner may end: draining, a call that is cut, and clearing twice.
LONGEST_STOP = 15.0 + 6.0 + 10.0
LOOK_AT_DUE_SECONDS = 600.0


@dataclass
class Checks:
    """The ledger of one runner, from its start to its end."""

    plan: Plan
    clock: VirtualClock
    history: History
    truth: Truth
    recorder: Recorder | None
    owed: Callable[[], Collection[int]]
    runner: Runner | None = None
    stopped_at: float | None = None
    started: int = 0
    recorded: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    _in_flight: int = 0
    _undecided: bool = False
    _skipped_unsafe: bool = False
    _manual: bool = False
    _began: float = 0.0
    _ended: float = 0.0
    _late: float | None = None
    _open_again: float = float("-inf")
    _failures: int = 0
    _failed_in_probe: bool = False
    _up: bool | None = None
    _lost: bool = False
    _series: dict[Series, Workload] = field(default_factory=dict)
    _counted_from: float = 0.0
    _dealt_with: Counter[Series] = field(default_factory=Counter)
    _never_sent: frozenset[Series] = frozenset()
    _looked_at: float = 0.0
    _newest_start: dict[Series, float] = field(default_factory=dict)
    _others: Counter[Series] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._series = dict(self.plan.series())
        self._counted_from = self._looked_at = self.clock.now
        self._newest_start = dict.fromkeys(self._series, self.clock.now)

    def _hold(self, name: str, holds: bool, what: Callable[[], str] | str) -> None:
        if not holds:
            raise self.history.broken(name, what if isinstance(what, str) else what())

    # --- the ledger's methods

    def inflight(self, target: str, probes: int) -> None:
        self._hold("one probe in flight", probes in (0, 1), f"{probes} are in flight")
        if probes > self._in_flight:
            self._decide()
            self.started += 1
            self._undecided, self._manual, self._skipped_unsafe, self._late = True, False, False, None
            self.truth.attempt_begins()
            self._began = now = self.clock.now
            self._hold("nothing after the stop", self.stopped_at is None, "an attempt begins")
            self._hold(
                "max_duty_cycle and backoff kept",
                now >= self._open_again - ROUNDING,
                lambda: f"a probe starts {self._open_again - now:.6f} s too early",
            )
        elif probes < self._in_flight:
            self._ended = self.clock.now
            self._clears_at_once()
            assert self.runner is not None
            self._hold("the watchdog knows how long it takes", not self.runner.watchdog.is_overdue(self._ended), "late")
        self._in_flight = probes
        if self.recorder is not None:
            self.recorder.inflight(target, probes)

    def late(self, target: str, seconds: float) -> None:
        self._late = seconds
        if self.recorder is not None:
            self.recorder.late(target, seconds)

    def record(self, observation: Observation) -> None:
        series, outcome = observation.series, observation.outcome
        self.history.note("record", series.workload, series.batch_size, outcome)
        self._hold("started = recorded + in flight", self._undecided and not self._in_flight, "recorded, not started")
        self._undecided = False
        self.recorded += 1
        self.outcomes[outcome] += 1
        self._dealt_with[series] += 1
        late = self._began - observation.due
        self._hold(
            "lateness is true",
            self._late is not None and abs(self._late - late) < ROUNDING and late >= -ROUNDING,
            lambda: f"{self._late} s are reported, due {observation.due}, begun {self._began}",
        )
        self._hold("the times are true", observation.started == self._began, f"begun {self._began}: {observation}")
        self._check_latency(observation)
        self._starves_none(series)
        self._finish(observation)
        if self.recorder is not None:
            before = self._recorded_latencies()
            self.recorder.record(observation)
            more = self._recorded_latencies() - before
            expected = len(recorded(observation).first) if outcome is Outcome.OK else 0
            self._hold("no latency of a failed probe", more == expected, f"{outcome}: {more} latencies are recorded")

    def skipped(self, series: Series, reason: SkipReason) -> None:
        self._dealt_with[series] += 1
        self.history.note("skip", series.workload, series.batch_size, reason)
        if reason is SkipReason.UNSAFE:
            self._skipped_unsafe = True
            self._newest_start[series], self._others[series] = self.clock.now, 0
        if self.recorder is not None:
            self.recorder.skipped(series, reason)

    def up(self, target: str, facts: Facts | None) -> None:
        self._up = facts is not None
        self._lost &= not self._up
        self._hold("up is what the newest check saw", not self._up or self.truth.connected, "up, and it is away")
        if self._up and not self._in_flight and not self._failed_in_probe and self._failures:
            self._failures, self._open_again = 0, min(self._open_again, self._pause_until())
        if self.recorder is not None:
            self.recorder.up(target, facts)

    # --- what else is looked at

    def answered(self, answer: Observation | str) -> None:
        """A manual probe's answer."""
        if isinstance(answer, Observation):
            self._hold("a manual probe has one answer", self._undecided and not self._in_flight, "no attempt")
            self._manual, self._undecided = True, False
            self._check_latency(answer)
            self._finish(answer)

    def waiting(self) -> None:
        """The runner waits: what was due until now is dealt with."""
        self._decide()
        if self._up is not None:
            there = self.truth.connected and not self._lost
            self._hold("up is what the newest check saw", self._up or not there, "down, and it is there")
        now = self.clock.now
        assert self.runner is not None
        if self.runner._never_sent != self._never_sent:
            self._never_sent = self.runner._never_sent
            self._counted_from, self._dealt_with = now, Counter()
        if now - self._looked_at >= LOOK_AT_DUE_SECONDS:
            self._looked_at = now
            self._due_is_started_or_skipped(now)

    def stopped(self) -> None:
        if self.stopped_at is None:
            self.stopped_at = self.clock.now

    def ended(self) -> None:
        """After the runner's end."""
        self._decide()
        self._hold("started = recorded + in flight", self._in_flight == 0, "a probe is in flight after the end")
        self._hold("it ends when it is told to", self.stopped_at is not None, "nobody stopped it")
        took = self.clock.now - (self.stopped_at or 0.0)
        self._hold("it ends when it is told to", took <= LONGEST_STOP, f"it took {took:.1f} s")
        if self.recorder is not None:
            self._recorder_agrees(self.recorder)

    def _recorder_agrees(self, recorder: Recorder) -> None:
        families = recorder.metrics.families
        shown = sum(child.value for child in families.in_flight.children())
        self._hold("started = recorded + in flight", shown == 0, f"the metrics say that {shown} are in flight")

    def attempts_counted(self) -> float:
        assert self.recorder is not None
        return sum(child.value for child in self.recorder.metrics.families.attempts.children())

    # --- parts

    def _decide(self) -> None:
        """An attempt that is over was recorded, or shown, gave way, was too large, or was abandoned at the stop."""
        if self._undecided and not self._in_flight:
            excused = self.truth.gave_way or self._skipped_unsafe or self.stopped_at is not None
            self._hold("started = recorded + in flight", excused, "an attempt ended without a record")
            self._undecided = False

    def _clears_at_once(self) -> None:
        tried = self.truth.clear_tried or self.stopped_at is not None or not self.owed()
        self._hold("what a failed probe left is cleared at once", tried, "nothing was done about it")

    def _pause_until(self) -> float:
        return self._ended + (self._ended - self._began) * (1 / self.plan.max_duty_cycle - 1)

    def _finish(self, observation: Observation) -> None:
        """Until when the target is left alone. Probes one after the other that keep this keep it over any time."""
        self._open_again = self._pause_until()
        outcome = observation.outcome
        self._lost = outcome is Outcome.UNREACHABLE
        if outcome is Outcome.OK or not outcome.judged:
            if outcome is not Outcome.DISTURBED or observation.answered:
                self._failures, self._failed_in_probe = 0, False
            return
        self._failures += 1
        self._failed_in_probe |= self.truth.passed_connect
        backoff = min(BACKOFF_LONGEST, 2.0 ** min(self._failures - 1, 10)) / 2
        self._open_again = max(self._open_again, self._ended + backoff)

    def _check_latency(self, observation: Observation) -> None:
        name, true = "no latency of a failed probe", self.truth.success
        if observation.outcome is not Outcome.OK:
            self._hold(name, not recorded(observation).first, lambda: f"{observation}")
            return
        self._hold(name, true is not None, lambda: f"{observation.series} is recorded as ok")
        assert true is not None
        seen = recorded(observation)
        pairs = [*((seconds, true.first) for seconds in seen.first), *((one, true.whole) for one in seen.requests)]
        for seconds, truly in pairs:
            near = abs(seconds - truly) <= self.truth.tolerance(truly)
            self._hold("a latency is the server's", near, f"{seconds} s are recorded, truly {truly} s")

    def _starves_none(self, series: Series) -> None:
        """Once a series is due, each of the others starts a few times at most before it."""
        now, most = self.clock.now, 3 * len(self._series) + 10
        self._newest_start[series], self._others[series] = now, 0
        for other, workload in self._series.items():
            if other != series and now - self._newest_start[other] > 2 * max(workload.interval, CHECK_INTERVAL):
                self._others[other] += 1
                self._hold(
                    "no series starves",
                    self._others[other] <= most,
                    f"{other} waits since {self._newest_start[other]:.1f}, and {most} others were probed",
                )

    def _due_is_started_or_skipped(self, now: float) -> None:
        for series, workload in self._series.items():
            if workload.interval:
                due = (now - self._counted_from) / workload.interval
                found = self._dealt_with[series]
                self._hold(
                    "due = started + skipped",
                    abs(found - due) <= DUE_OPEN,
                    f"{series}: {found} started or skipped of {due:.1f} due",
                )

    def _recorded_latencies(self) -> int:
        assert self.recorder is not None
        return sum(sum(child.counts) for child in self.recorder.metrics.families.ttft.children())
