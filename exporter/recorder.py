"""The one ledger of all runners: what happens goes to the instruments, the log and the status page."""

from exporter.journal import Journal, logger
from exporter.metrics import Metrics
from exporter.observation import Observation, Series, SkipReason
from exporter.scoreboard import Scoreboard
from exporter.settings import Settings
from exporter.targets import Facts, deadlock


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
        self._warned: set[str] = set()

    def record(self, observation: Observation) -> None:
        self.metrics.record(observation)
        self.journal.attempt(observation)
        self.scoreboard.record(observation, self.settings)

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
        known = next((known for known in self.settings.targets if known.name == target), None)
        danger = deadlock(known, facts) if known is not None and facts is not None else None
        if danger is not None and target not in self._warned:
            self._warned.add(target)
            logger.warning("%s", danger)
        self.metrics.up(target, self.kinds.get(target, ""), facts)
        self.scoreboard.up(target, facts)
