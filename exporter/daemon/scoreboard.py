"""The newest result of every series and the sums of every objective, for the status page."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from exporter.analysis import slo
from exporter.analysis.certainty import Measure, mean, recorded
from exporter.analysis.newest import NewestResult, NewestResults, ObjectiveSum, TargetSummary
from exporter.config.settings import Settings
from exporter.observation import Observation, Outcome, Series
from exporter.plan.targets import Facts

Values = tuple[float | None, float | None, float | None, float | None]
SHOWN = (Measure.TTFT, Measure.INTER_TOKEN, Measure.PREFILL_RATE, Measure.DECODE_RATE)


@dataclass(slots=True)
class ObjectiveCounts:
    good: int = 0
    bad: int = 0


@dataclass(slots=True)
class Scoreboard:
    """Safe to use from any thread. `unix_time` says when; durations come from the observations."""

    unix_time: Callable[[], float] = time.time
    _results: dict[Series, NewestResult] = field(default_factory=dict)
    _sums: dict[tuple[str, str], ObjectiveCounts] = field(default_factory=dict)
    _up: dict[str, Facts | None] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, observation: Observation, settings: Settings) -> NewestResult:
        """Answers what is shown of it."""
        series = observation.series
        ok = observation.outcome is Outcome.OK
        with self._lock:
            # A failed probe has no latency, and an older one's beside its age would be taken for it.
            values, withheld = _values(observation) if ok else ((None, None, None, None), ())
            result = self._results[series] = NewestResult(
                series.target,
                series.workload,
                series.batch_size,
                self.unix_time(),
                str(observation.outcome),
                observation.detail,
                observation.trace_id,
                *values,
                withheld,
            )
            for objective in settings.slos:
                if objective.workload == series.workload and series in set(slo.series_of(objective, settings)):
                    verdicts = slo.judge(objective, observation)
                    found = self._sums.setdefault((objective.name, series.target), ObjectiveCounts())
                    found.good, found.bad = found.good + verdicts.good, found.bad + verdicts.bad
            return result

    def up(self, target: str, facts: Facts | None) -> None:
        with self._lock:
            self._up[target] = facts

    def forget(self, target: str) -> None:
        with self._lock:
            self._up.pop(target, None)
            for series in [series for series in self._results if series.target == target]:
                del self._results[series]
            for key in [key for key in self._sums if key[1] == target]:
                del self._sums[key]

    def status(self, settings: Settings, trouble: str | None, version: str, probe_here: bool) -> NewestResults:
        with self._lock:
            targets = tuple(
                TargetSummary(
                    one.name, one.kind, one.address, _described(self._up.get(one.name, None)), one.name in self._up
                )
                for one in settings.targets
            )
            objectives = tuple(
                ObjectiveSum(one.name, target.name, one.measure, one.threshold, one.objective, found.good, found.bad)
                for one in settings.slos
                for target in settings.targets
                if (found := self._sums.get((one.name, target.name))) is not None
            )
            results = tuple(sorted(self._results.values(), key=lambda one: (one.target, one.workload, one.batch_size)))
            return NewestResults(self.unix_time(), version, trouble, targets, results, objectives, probe_here)


def _values(observation: Observation) -> tuple[Values, tuple[str, ...]]:
    """Mean TTFT, mean inter-token latency (seconds), prefill and decode throughput (tokens per second); and those of
    them that were withheld.
    """
    seen = recorded(observation)
    values = mean(seen.first), mean(seen.gaps), seen.prefill_rate, seen.decode_rate
    return values, tuple(
        measure for measure, value in zip(SHOWN, values, strict=True) if value is None and measure in seen.withheld
    )


def _described(facts: Facts | None) -> str | None:
    """What the target is, in a few words; None where it is not there."""
    if facts is None:
        return None
    parts = (facts.model, facts.dtype, facts.device, facts.attention, f"{facts.ranks} ranks" if facts.ranks > 1 else "")
    return ", ".join(part for part in (facts.protocol, *parts) if part)
