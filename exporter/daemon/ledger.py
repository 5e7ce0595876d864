"""The one ledger of all runners: what happens goes to the instruments, the log and the status page."""

from exporter.config.settings import Settings
from exporter.daemon.journal import Journal, logger
from exporter.daemon.scoreboard import Scoreboard
from exporter.daemon.target_state import Standing
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Series, SkipReason
from exporter.plan.safety import deadlock
from exporter.plan.targets import Facts


class Recorder:
    """A runner's ledger: what happens goes to the instruments and to the journal. A reload may exchange the
    instruments.
    """

    def __init__(self, metrics: Metrics, settings: Settings) -> None:
        self.metrics = metrics
        self.settings = settings
        self.journal = Journal()
        self.scoreboard = Scoreboard()
        self.kinds: dict[str, str] = {}
        self._inflight: dict[str, dict[str, int]] = {}
        self._warned: set[tuple[str, str]] = set()
        self._standings: dict[str, Standing] = {}

    def record(self, observation: Observation) -> None:
        self.metrics.record(observation)
        self.journal.attempt(observation)
        self.scoreboard.record(observation, self.settings)
        series = observation.series
        intervals = (one.interval for one in self.settings.workloads if one.name == series.workload)
        standing = self._standing(series.target)
        standing.probed(series, observation.outcome, observation.code, observation.ended, next(intervals, 0.0))
        self._show(series.target, standing)

    def skipped(self, series: Series, reason: SkipReason) -> None:
        self.metrics.skipped(series, reason)

    def late(self, target: str, seconds: float) -> None:
        self.metrics.late(target, seconds)

    def inflight(self, target: str, probes: int) -> None:
        self.underway(target, "", probes)

    def underway(self, target: str, workload: str, requests: int) -> None:
        """The requests of a background load; the batch probe, if one is in flight, has no name."""
        parts = self._inflight.setdefault(target, {})
        parts[workload] = requests
        self.metrics.inflight(target, sum(list(parts.values())))

    def up(self, target: str, facts: Facts | None) -> None:
        """A check: what the target says of itself, None where it is not reachable."""
        known = next((known for known in self.settings.targets if known.name == target), None)
        if known is not None and facts is not None:
            self._warn(target, "ranks", deadlock(known, facts) or "")
            self._warn(target, "advice", f"target {target}: {facts.advice}" if facts.advice else "")
        standing = self._standing(target)
        standing.checked(facts)
        self._show(target, standing)

    def forget(self, target: str) -> None:
        """It leaves, or is another one from now on."""
        self.journal.forget(target)
        self.scoreboard.forget(target)
        self._standings.pop(target, None)
        self._warned.discard((target, "advice"))

    def _standing(self, target: str) -> Standing:
        return self._standings.setdefault(target, Standing())

    def _show(self, target: str, standing: Standing) -> None:
        self.metrics.up(target, self.kinds.get(target, ""), standing.facts)
        self.scoreboard.up(target, standing.facts)

    def _warn(self, target: str, kind: str, line: str) -> None:
        """Once of each kind."""
        if line and (target, kind) not in self._warned:
            self._warned.add((target, kind))
            logger.warning("%s", line)
