"""The arithmetic of burn rates with few probes: the windows, and how many bad probes fire. Pure; all times in seconds.

A burn rate of 1 spends the error budget exactly in its period. The pairs of windows are those of the SRE workbook,
chapter 5, for 30 days: the long window keeps short errors from firing, the short one ends the alert soon after.
"""

import math
from dataclasses import dataclass
from typing import Literal

from exporter.config.workload import Workload

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
MONTH = 30 * DAY
Severity = Literal["page", "ticket"]
PAIRS: tuple[tuple[Severity, float, float, float], ...] = (
    ("page", 14.4, 5 * MINUTE, HOUR),
    ("page", 6.0, 30 * MINUTE, 6 * HOUR),
    ("ticket", 3.0, 2 * HOUR, DAY),
    ("ticket", 1.0, 6 * HOUR, 3 * DAY),
)
# A window must hold a few probes, or its ratio jumps between 0 and 1; and a rate needs a few scrapes.
SHORT_ROUNDS, LONG_ROUNDS, SCRAPES = 4, 12, 6
# A new series has few probes in its long window, so that one bad probe is a large share. Bad probes must therefore also
# be enough for a full window at the present rate, less a fifth, because that rate comes from a few probes.
FILLED = 0.8


@dataclass(frozen=True, slots=True)
class WindowPair:
    """Fires when the budget burns `factor` times too fast, in the last `short` and in the last `long` seconds.

    `unwidened_long`: what `long` was before it was widened to hold LONG_ROUNDS rounds of probes.
    """

    severity: Severity
    factor: float
    short: float
    long: float
    unwidened_long: float


@dataclass(frozen=True, slots=True)
class ProbeSchedule:
    """The probes that one SLO judges at one target: each batch size once in `interval` seconds."""

    interval: float
    batch_sizes: tuple[int, ...]

    @property
    def largest(self) -> int:
        """The most requests that one bad probe can spoil."""
        return max(self.batch_sizes)

    @property
    def requests(self) -> int:
        return sum(self.batch_sizes)


def between_probes(workload: Workload) -> float:
    """Seconds from one probe of a batch size to its next, on average; 0 where only the server decides."""
    match workload.load.mode:
        case "batch":
            return workload.interval
        case "open":
            return 1 / workload.load.rate if workload.load.rate else 0.0
        case "closed":
            return 0.0


def window_pairs(
    period: float, interval: float, scrape_interval: float, time_scale: float = 1.0
) -> tuple[WindowPair, ...]:
    """The four pairs for a period, with windows wide enough for the interval between probes and between scrapes.

    The windows scale with the period and the factors stay, so that an alert always stands for the same share of the
    budget, and never for a burn that would not spend it.
    """
    scale = period / MONTH * time_scale
    return tuple(
        WindowPair(
            severity,
            factor,
            rounded_up(max(short * scale, SHORT_ROUNDS * interval, SCRAPES * scrape_interval)),
            rounded_up(max(long * scale, LONG_ROUNDS * interval, 2 * SCRAPES * scrape_interval)),
            rounded_up(max(long * scale, 2 * SCRAPES * scrape_interval)),
        )
        for severity, factor, short, long in PAIRS
    )


def rounded_up(seconds: float) -> float:
    """Rounded up to whole seconds, below ten seconds to tenths."""
    digits = 1 if seconds < 10 else 0
    return math.ceil(round(seconds * float(10**digits), 6)) / float(10**digits)


def budget(objective: float) -> float:
    """Share of requests that may be bad. Rounded, because 1 - 0.99 is not the float 0.01."""
    return round(1 - objective, 12)


def rounds(window: float, schedule: ProbeSchedule) -> int:
    """How often each batch size is probed in a window; a huge number for back-to-back probes."""
    return math.floor(round(window / schedule.interval, 6)) if schedule.interval else 10**9


def bad_probes(window: float, schedule: ProbeSchedule, allowed: float) -> int | None:
    """The fewest bad probes whose requests are more than `allowed` (a ratio) of the window's. None: not even all."""
    left = allowed * rounds(window, schedule) * schedule.requests
    probes = 0
    for size in sorted(schedule.batch_sizes, reverse=True):
        needed = math.floor(round(left / size, 9)) + 1
        if needed <= rounds(window, schedule):
            return probes + needed
        probes += rounds(window, schedule)
        left -= rounds(window, schedule) * size
    return None


@dataclass(frozen=True, slots=True)
class FiringThreshold:
    """The bad probes in each window that fire one pair, and the seconds after which a total outage does."""

    pair: WindowPair
    short: int
    long: int
    outage: float

    @property
    def single(self) -> bool:
        """Whether one bad probe would fire by the ratios alone. The rules then wait for a second one."""
        return max(self.short, self.long) == 1

    @property
    def bad_short(self) -> int:
        """Bad probes in the short window from which the rules fire."""
        return max(self.short, 2)

    @property
    def bad_long(self) -> int:
        return max(self.long, 2)


def firing_threshold(pair: WindowPair, schedule: ProbeSchedule, objective: float) -> FiringThreshold | None:
    """None for a pair that cannot fire, because its factor times the budget is more than all requests."""
    allowed = pair.factor * budget(objective)
    short, long = bad_probes(pair.short, schedule, allowed), bad_probes(pair.long, schedule, allowed)
    if short is None or long is None or allowed >= 1:
        return None
    return FiringThreshold(pair, short, long, max(allowed * pair.long, 2 * schedule.interval))


def longest_interval(pair: WindowPair, schedule: ProbeSchedule, objective: float) -> float:
    """The interval up to which one bad probe alone does not fire the pair."""
    needed = math.ceil(round(schedule.largest / (pair.factor * budget(objective) * schedule.requests), 6))
    return pair.unwidened_long / needed


def highest_objective(pair: WindowPair, schedule: ProbeSchedule) -> float:
    """The objective up to which one bad probe alone does not fire the pair; rounded down to four digits."""
    share = schedule.largest / (rounds(pair.long, schedule) * schedule.requests)
    return math.floor(round((1 - share / pair.factor) * 10_000, 6)) / 10_000
