"""Where all runners report to: what happens goes to the metrics, the log and the status page."""

from exporter.config.settings import Settings
from exporter.config.target import Target
from exporter.daemon.journal import Journal, logger
from exporter.daemon.scoreboard import Scoreboard
from exporter.daemon.target_state import TargetState
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Outcome, Series, SkipReason
from exporter.plan.safety import deadlock
from exporter.plan.targets import Facts


class Recorder:
    """The ledger of all runners. `settings` are those in force: a reload replaces them."""

    def __init__(self, metrics: Metrics, settings: Settings) -> None:
        self.metrics = metrics
        self.settings = settings
        self.journal = Journal()
        self.scoreboard = Scoreboard()
        self.kinds: dict[str, str] = {}
        self._inflight: dict[str, dict[str, int]] = {}
        self._warned: set[tuple[str, str]] = set()
        self._states: dict[str, TargetState] = {}

    def record(self, observation: Observation) -> None:
        if self._has_left(observation.series.target):
            return
        self.metrics.record(observation)
        self.journal.attempt(observation)
        series = observation.series
        shown = self.scoreboard.record(observation, self.settings)
        if observation.outcome is Outcome.OK:
            self.journal.withheld(series, shown.withheld)
        intervals = (one.interval for one in self.settings.workloads if one.name == series.workload)
        state = self._state(series.target)
        state.probed(series, observation.outcome, observation.code, observation.ended, next(intervals, 0.0))
        self._show(series.target, state)

    def skipped(self, series: Series, reason: SkipReason) -> None:
        self.metrics.skipped(series, reason)
        if not self._has_left(series.target):
            self.scoreboard.skipped(series, reason)

    def late(self, target: str, seconds: float) -> None:
        self.metrics.late(target, seconds)

    def inflight(self, target: str, probes: int) -> None:
        self.load_inflight(target, "", probes)

    def load_inflight(self, target: str, workload: str, requests: int) -> None:
        """How many requests of a background load are in flight. The target's batch probe has the workload ""."""
        if self._has_left(target):
            return
        parts = self._inflight.setdefault(target, {})
        parts[workload] = requests
        self.metrics.inflight(target, sum(list(parts.values())))

    def up(self, target: str, facts: Facts | None) -> None:
        """What the target says of itself at a check, None where it is not reachable."""
        known = self._target(target)
        if known is None:
            return
        if facts is not None:
            self._warn(target, "ranks", deadlock(known, facts) or "")
            self._warn(target, "advice", f"target {target}: {facts.advice}" if facts.advice else "")
        state = self._state(target)
        state.checked(facts)
        self._show(target, state)

    def forget(self, target: str) -> None:
        """The target leaves, or changes."""
        self.journal.forget(target)
        self.scoreboard.forget(target)
        for known in (self._states, self._inflight, self.kinds):
            known.pop(target, None)
        self._warned = {key for key in self._warned if key[0] != target}

    def _target(self, name: str) -> Target | None:
        return next((known for known in self.settings.targets if known.name == name), None)

    def _has_left(self, target: str) -> bool:
        """The thread of a target that hung may outlive it, and report when its call ends."""
        return self._target(target) is None

    def _state(self, target: str) -> TargetState:
        return self._states.setdefault(target, TargetState())

    def _show(self, target: str, state: TargetState) -> None:
        self.metrics.up(target, self.kinds.get(target, ""), state.facts)
        self.scoreboard.up(target, state.facts)

    def _warn(self, target: str, kind: str, line: str) -> None:
        """Log the line, once of each kind."""
        if line and (target, kind) not in self._warned:
            self._warned.add((target, kind))
            logger.warning("%s", line)
