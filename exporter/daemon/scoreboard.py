"""The newest result of every series and the sums of every objective, for the status page."""

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from exporter.analysis import slo
from exporter.analysis.certainty import Measure, mean, recorded
from exporter.analysis.newest import (
    MEDIAN_OF,
    Limit,
    NewestResult,
    NewestResults,
    ObjectiveSum,
    TargetSummary,
    Unprobed,
)
from exporter.config.settings import Settings
from exporter.observation import Observation, Outcome, Series, SkipReason
from exporter.plan.targets import Facts

Values = tuple[float | None, float | None, float | None, float | None]
SHOWN = (Measure.TTFT, Measure.INTER_TOKEN, Measure.PREFILL_RATE, Measure.DECODE_RATE)
# The measures of SLOs that the first two of them are held against.
LIMITED = (("ttft",), ("inter_token_latency", "time_per_output_token"))
NOT_YET = "not probed yet"
WHY_SKIPPED = {
    SkipReason.BUSY: "not probed yet: the target was busy",
    SkipReason.DUTY_CYCLE: "not probed yet: the others had used up max_duty_cycle",
    SkipReason.BACKOFF: "not probed yet: probes of the target failed",
    SkipReason.UNSAFE: "not sent: it exceeds the limits of the target",
}


@dataclass(slots=True)
class ObjectiveCounts:
    good: int = 0
    bad: int = 0


@dataclass(slots=True)
class Scoreboard:
    """Safe to use from any thread. `unix_time` says when; durations come from the observations."""

    unix_time: Callable[[], float] = time.time
    _results: dict[Series, NewestResult] = field(default_factory=dict)
    _recent: dict[Series, deque[Values]] = field(default_factory=dict)
    _skips: dict[Series, SkipReason] = field(default_factory=dict)
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
            if ok:
                self._recent.setdefault(series, deque(maxlen=MEDIAN_OF)).append(values)
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

    def skipped(self, series: Series, reason: SkipReason) -> None:
        with self._lock:
            self._skips[series] = reason

    def up(self, target: str, facts: Facts | None) -> None:
        with self._lock:
            self._up[target] = facts

    def forget(self, target: str) -> None:
        with self._lock:
            self._up.pop(target, None)
            for by_series in (self._results, self._recent, self._skips):
                for series in [series for series in by_series if series.target == target]:
                    del by_series[series]
            for key in [key for key in self._sums if key[1] == target]:
                del self._sums[key]

    def _sum(self, objective: str, target: str) -> tuple[int, int]:
        found = self._sums.get((objective, target), ObjectiveCounts())
        return found.good, found.bad

    def status(self, settings: Settings, trouble: str | None, version: str, probe_here: bool) -> NewestResults:
        with self._lock:
            targets = tuple(
                TargetSummary(
                    one.name, one.kind, one.address, _described(self._up.get(one.name, None)), one.name in self._up
                )
                for one in settings.targets
            )
            objectives = tuple(
                ObjectiveSum(one.name, target, one.measure, one.threshold, one.objective, *self._sum(one.name, target))
                for one in settings.slos
                for target in dict.fromkeys(series.target for series in slo.series_of(one, settings))
            )
            limits = _limits(settings)
            results = tuple(
                replace(
                    newest,
                    medians=_medians(self._recent[series] if newest.outcome == Outcome.OK else ()),
                    limits=limits.get(series, (None, None)),
                )
                for series, newest in sorted(self._results.items(), key=lambda item: _labels(item[0]))
            )
            unprobed = tuple(
                Unprobed(*_labels(series), WHY_SKIPPED[self._skips[series]] if series in self._skips else NOT_YET)
                for series in sorted(set(_probed(settings)) - self._results.keys(), key=_labels)
            )
            return NewestResults(self.unix_time(), version, trouble, targets, results, unprobed, objectives, probe_here)


def _labels(series: Series) -> tuple[str, str, int]:
    return series.target, series.workload, series.batch_size


def _probed(settings: Settings) -> Iterator[Series]:
    """Every series that is to be probed. A background load has no probes."""
    for workload in settings.workloads:
        for target in settings.targets:
            if not workload.is_load and (workload.targets is None or target.name in workload.targets):
                yield from (Series(target.name, workload.name, size) for size in workload.batch_sizes)


def _limits(settings: Settings) -> dict[Series, tuple[Limit | None, Limit | None]]:
    """The strictest of each."""
    found: dict[Series, list[Limit | None]] = {}
    for one in settings.slos:
        for place, measures in enumerate(LIMITED):
            if one.threshold is not None and one.measure in measures:
                for series in slo.series_of(one, settings):
                    known = found.setdefault(series, [None, None])
                    before = known[place]
                    if before is None or one.threshold < before.seconds:
                        known[place] = Limit(one.name, one.threshold)
    return {series: (first, token) for series, (first, token) in found.items()}


def _medians(recent: Sequence[Values]) -> tuple[float | None, ...]:
    columns = ([value for values in recent if (value := values[place]) is not None] for place in range(len(SHOWN)))
    return tuple(statistics.median(column) if column else None for column in columns)


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
