"""What must always be true, checked at every report of the runner. The real recorder gets the reports too."""

from collections import Counter
from dataclasses import dataclass, field

from exporter.daemon.ledger import Recorder
from exporter.observation import Observation, Outcome, Series, SkipReason
from exporter.plan.targets import Facts, Plan
from tests.faults.simulation.history import History
from tests.faults.simulation.scripted_server import ScriptedProber
from tests.faults.simulation.virtual_clock import VirtualClock

ROUNDING = 1e-6


@dataclass
class Checks:
    """The ledger of one runner."""

    plan: Plan
    clock: VirtualClock
    history: History
    recorder: Recorder
    prober: ScriptedProber
    began: float
    started: int = 0
    recorded: int = 0
    skipped_instead: int = 0
    in_flight: int = 0
    late_reports: int = 0
    starts: Counter[Series] = field(default_factory=Counter)
    skips: Counter[Series] = field(default_factory=Counter)
    _attempt_began: float = 0.0
    _open_again: float = float("-inf")

    # --- the ledger's methods

    def inflight(self, target: str, probes: int) -> None:
        if probes == self.in_flight:
            return
        if probes not in (0, 1):
            raise self.history.broken("one probe in flight", f"{probes} are in flight")
        self.in_flight = probes
        if probes:
            self.started += 1
            self._attempt_began = self.clock.now
            if self.clock.now < self._open_again - ROUNDING:
                early = self._open_again - self.clock.now
                raise self.history.broken("max_duty_cycle kept", f"a probe starts {early:.6f} s too early")
        self.recorder.inflight(target, probes)

    def record(self, observation: Observation) -> None:
        self.recorded += 1
        self.starts[observation.series] += 1
        self.history.note("record", observation.series.workload, observation.series.batch_size, observation.outcome)
        if observation.outcome is Outcome.OK and self.prober.succeeded is None:
            raise self.history.broken("no latency of a failed probe", f"{observation.series} is recorded as ok")
        busy = self.clock.now - observation.started
        self._open_again = self.clock.now + busy * (1 / self.plan.max_duty_cycle - 1)
        self.recorder.record(observation)

    def skipped(self, series: Series, reason: SkipReason) -> None:
        self.skips[series] += 1
        self.recorder.skipped(series, reason)

    def late(self, target: str, seconds: float) -> None:
        self.late_reports += 1
        self.recorder.late(target, seconds)

    def up(self, target: str, facts: Facts | None) -> None:
        self.recorder.up(target, facts)
