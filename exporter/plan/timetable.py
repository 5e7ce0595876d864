"""When the probes of one target are due, beside the checks whether it is there. Pure."""

from collections.abc import Hashable

from exporter.config.workload import Workload
from exporter.observation import Series
from exporter.plan.schedule import Timetable
from exporter.plan.targets import Plan, excess

CHECK = "check"
CHECK_INTERVAL = 10.0


def timetable(plan: Plan, start: float, phase: float, seed: int, held: frozenset[Series] = frozenset()) -> Timetable:
    """Series with the same interval share its slots, whatever their workload, so that they do not meet. The smallest
    batches come first: a server that is too small for the larger ones then ends at the smallest that ends it.

    A back-to-back series that is too large for the target, or `held` back, is due as often as a check.
    """
    by_interval: dict[float, list[Hashable]] = {}
    for series, workload in sorted(plan.series(), key=_tokens):
        unsafe = series in held or excess(plan.target, workload, series.batch_size) is not None
        interval = workload.interval or (CHECK_INTERVAL if unsafe else 0.0)
        by_interval.setdefault(interval, []).append(series)
    back_to_back = by_interval.pop(0.0, [])
    periodic = sorted(by_interval.items(), key=lambda pair: pair[0])
    check = (CHECK_INTERVAL, CHECK)
    return Timetable(periodic, back_to_back, start, phase, seed, plan.max_duty_cycle, check)


def _tokens(pair: tuple[Series, Workload]) -> int:
    return pair[0].batch_size * (pair[1].sequence_length + pair[1].decode_length)
