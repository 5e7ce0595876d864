"""When `--runs auto` has made enough runs. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from exporter.bench.results import Run
from exporter.bench.statistics import Estimate, estimate, unsettled

FEWEST_RUNS = 10
MOST_RUNS = 1000
# It looks again after half as many runs more: looking after each would stop at intervals that are narrow by chance.
GROWTH = 1.5


@dataclass(frozen=True, slots=True)
class Precision:
    """Runs are enough when the interval of the median, and of `quantile`, reaches at most `share` to either side of
    its value, for prefill and for decode; or when the batch size has taken `seconds`.
    """

    share: float = 0.05
    quantile: float = 0.5
    seconds: float = 60.0

    def reached(self, runs: Sequence[Run], seconds: float) -> bool:
        if seconds >= self.seconds or len(runs) >= MOST_RUNS:
            return len(runs) > 0
        return len(runs) in looks() and self.narrow(runs)

    def narrow(self, runs: Sequence[Run]) -> bool:
        for key in ("prefill_seconds", "token_seconds"):
            values = [value for run in runs if (value := getattr(run, key)) is not None]
            if not values and any(key in run.withheld for run in runs):
                return False
            values = values[unsettled(values) :]
            if values and not all(self._narrow(estimate(values, q)) for q in {0.5, self.quantile}):
                return False
        return True

    def _narrow(self, found: Estimate) -> bool:
        reach = self.share * found.value
        return (
            found.low is not None
            and found.high is not None
            and max(found.high - found.value, found.value - found.low) <= reach
        )


def looks() -> list[int]:
    """After how many runs it looks."""
    found = [FEWEST_RUNS]
    while found[-1] < MOST_RUNS:
        found.append(int(found[-1] * GROWTH))
    return found
