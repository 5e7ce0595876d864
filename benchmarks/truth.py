"""How far the daemon's reported values are from the server's own record, beside the bare client in the same run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.bare import BareCall
from benchmarks.report import Ratio, median, milliseconds, quantile

# Any thread may wait for one slice of the scheduler (3 ms); a few hundred values have an unsteady 99th percentile.
TAIL_FLOOR = 0.003
COLUMNS = ("", "while", "p50", "bare p50", "ratio p50", "p99", "bare p99", "ratio p99", "highest", "values")


@dataclass(frozen=True, slots=True)
class Phase:
    """A span of time (seconds of perf_counter) and what went on in it."""

    name: str
    start: float
    end: float


@dataclass(slots=True)
class Errors:
    """Seconds: reported minus the server's record for first and later tokens, lateness; the same of the bare client."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    bare_late: list[float] = field(default_factory=list)

    def add(self, observation: Mapping[str, Any]) -> None:
        self.late.append(observation["started"] - observation["due"])
        first, *later = [arrived - asked - total for asked, arrived, total in observation["steps"]]
        self.first.append(first)
        self.later.extend(later)

    def add_bare(self, call: BareCall) -> None:
        self.bare.append(call.added)
        self.bare_late.append(call.late)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One kind of value, the bare client's beside it, and the limits of their ratios; `floor` (s) is the median's."""

    name: str
    ours: Callable[[Errors], list[float]]
    bare: Callable[[Errors], list[float]]
    median_limit: float = 1.15
    tail_limit: float = 2.0
    floor: float = 0.0


MEASURES = (
    Comparison("time to first token", lambda errors: errors.first, lambda errors: errors.bare),
    Comparison("inter-token latency", lambda errors: errors.later, lambda errors: errors.bare),
    # A bare thread wakes up within 0.1 ms, and a ratio to so little is noise.
    Comparison("lateness of starts", lambda errors: errors.late, lambda errors: errors.bare_late, 4.0, 3.0, 0.0005),
)


def by_phase(
    observations: Sequence[Mapping[str, Any]], calls: Sequence[BareCall], phases: Sequence[Phase]
) -> dict[str, Errors]:
    """The errors in all phases of one name. What lies across the border of a phase is in none."""
    found = {phase.name: Errors() for phase in phases}

    def of(began: float, ended: float) -> Errors | None:
        return next((found[one.name] for one in phases if one.start <= began and ended < one.end), None)

    for observation in observations:
        errors = of(observation["started"], observation["ended"])
        if errors is not None and observation["outcome"] == "ok":
            errors.add(observation)
    for call in calls:
        if (errors := of(call.asked, call.arrived)) is not None:
            errors.add_bare(call)
    return found


def rows(errors: Mapping[str, Errors]) -> tuple[tuple[str, ...], ...]:
    """For `COLUMNS`: a row for each measure in each phase."""
    return tuple(row(measure, name, of) for measure in MEASURES for name, of in errors.items())


def row(measure: Comparison, name: str, errors: Errors) -> tuple[str, ...]:
    ours, bare = measure.ours(errors), measure.bare(errors)
    middle = Ratio(median(ours), median(bare), measure.median_limit, measure.floor)
    tail = Ratio(quantile(ours, 0.99), quantile(bare, 0.99), measure.tail_limit, TAIL_FLOOR)
    cells = [text for one in (middle, tail) for text in (milliseconds(one.figure), milliseconds(one.bare), str(one))]
    return (measure.name, name, *cells, milliseconds(max(ours)), str(len(ours)))
