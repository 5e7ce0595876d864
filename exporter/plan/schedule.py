"""When a probe is due, and whether it may start. Pure: instants come in as arguments, no clock is read.

All instants and durations are seconds of the caller's clock.
"""

import heapq
import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from exporter.config.workload import Workload
from exporter.observation import Series, SkipReason
from exporter.plan.safety import excess
from exporter.plan.targets import Plan

CHECK = "check"
CHECK_INTERVAL = 10.0  # seconds
GOLDEN_RATIO = 0.6180339887498949


def phase(index: int) -> float:
    """Where in its slot the index-th target starts, in [0, 1): well spread for any number of targets."""
    return index * GOLDEN_RATIO % 1.0


def spread(
    members: int, interval: float, start: float, phase: float, seed: int, random_phase: bool = False
) -> Iterator[tuple[float, int]]:
    """Due times without end, as (due, member): each member exactly once in every interval.

    Each interval has as many equal slots as there are members. In the first interval the slots follow the order of the
    members, later a random order (from `seed`, so that it can be repeated): in a fixed order the same member would
    always follow the longest probe. With `random_phase` the place in the slot is random too, instead of `phase`.
    """
    order = random.Random(seed)
    slot = interval / members
    cycle = 0
    while True:
        shuffled = list(range(members))
        if cycle:
            order.shuffle(shuffled)
        for place, member in enumerate(shuffled):
            yield start + cycle * interval + (place + (order.random() if random_phase else phase)) * slot, member
        cycle += 1


@dataclass(frozen=True, slots=True)
class Window:
    """Until when a target must not be probed, for each reason."""

    busy_until: float = float("-inf")
    backoff_until: float = float("-inf")
    pause_until: float = float("-inf")

    def reason_to_skip(self, due: float) -> SkipReason | None:
        if due < self.busy_until:
            return SkipReason.BUSY
        if due < self.backoff_until:
            return SkipReason.BACKOFF
        if due < self.pause_until:
            return SkipReason.DUTY_CYCLE
        return None

    @property
    def open_from(self) -> float:
        return max(self.busy_until, self.backoff_until, self.pause_until)


def pause_after(seconds_busy: float, max_duty_cycle: float) -> float:
    """How long to pause after a probe, so that probes take at most `max_duty_cycle` of the target's time."""
    return seconds_busy * (1 / max_duty_cycle - 1)


def backoff_after(failures: int, first: float, longest: float, draw: float) -> float:
    """Doubling with each failure in a row, bounded, and shortened by up to a half with `draw` in [0, 1)."""
    if failures <= 0:
        return 0.0
    return float(min(longest, first * 2.0 ** min(failures - 1, 60)) * (1 - draw / 2))


@dataclass(frozen=True, slots=True)
class Start:
    """Start this probe now. It uses the due time `due`, which may be that of another member."""

    key: Hashable
    due: float


@dataclass(frozen=True, slots=True)
class Skip:
    """This probe was due at `due` and is not started, now or later."""

    key: Hashable
    due: float
    reason: SkipReason


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until` (infinity: nothing at all)."""

    until: float


@dataclass(slots=True)
class Timetable:
    """Decides what one target is probed with next: `check` and `periodic` members at their due times, `back_to_back`
    members in between.

    When a periodic member is due and the target may be probed, the member starts that was started longest ago, among
    this one and those that are pending: so all members are probed even when not all of them fit. When the target may
    not be probed, the member becomes pending. If it is still pending at its own next due time, it is a Skip. So each
    due time is a Start or a Skip in the end.

    Back-to-back members have no due times. They start in turn when the target may be probed, unless the next periodic
    member would then be late, judged by the member's last duration. A member waits for a periodic one only once, so
    that both kinds are probed. Every other turn is a pending member's, if there is one: durations vary, and a periodic
    member could find the target busy at every one of its due times.
    """

    periodic: Sequence[tuple[float, Sequence[Hashable]]]
    back_to_back: Sequence[Hashable]
    start: float
    phase: float = 0.0
    seed: int = 0
    max_duty_cycle: float = 1.0
    check: tuple[float, Hashable] | None = None
    _upcoming: list[tuple[float, int, Hashable]] = field(default_factory=list)
    _sources: list[tuple[Iterator[tuple[float, int]], Sequence[Hashable]]] = field(default_factory=list)
    _pending: dict[Hashable, Skip] = field(default_factory=dict)
    # (True, newest start), or (False, first due time) for a member that never started, which sorts first.
    _unprobed_since: dict[Hashable, tuple[bool, float]] = field(default_factory=dict)
    _before_newest_start: tuple[bool, float] = (False, 0.0)
    _next_back_to_back: int = 0
    _turn_of_pending: bool = False
    _waited_for: float | None = None
    _lasted: dict[Hashable, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks = [(self.check[0], [self.check[1]])] if self.check else []
        for number, (interval, members) in enumerate([*checks, *self.periodic]):
            # Where one interval is a multiple of another, the same two members would always be due together. So all
            # but the check and the shortest interval have random phases.
            random_phase = number > len(checks)
            source = spread(len(members), interval, self.start, self.phase, self.seed + number, random_phase)
            self._sources.append((source, members))
            self._refill(number)

    def _refill(self, number: int) -> None:
        source, members = self._sources[number]
        due, member = next(source)
        heapq.heappush(self._upcoming, (due, number, members[member]))

    def lasted(self, key: Hashable, seconds: float) -> None:
        """Note how long a probe took, so that back-to-back probes do not delay periodic ones."""
        self._lasted[key] = seconds

    def not_started(self, start: Start, reason: SkipReason) -> Skip | None:
        """Take back the newest Start. Returns a Skip where the probe is not tried again before its next due time."""
        skip = Skip(start.key, start.due, reason)
        if start.key in self.back_to_back:
            self._next_back_to_back -= 1
            return skip
        self._unprobed_since[start.key] = self._before_newest_start
        self._pending[start.key] = skip
        return None

    def next(self, now: float, window: Window) -> Start | Skip | Wait:
        """What to do at `now`. After a Wait ask again at `until`, else at once."""
        while self._upcoming and self._upcoming[0][0] <= now:
            due, number, key = self._upcoming[0]
            if key in self._pending:
                return self._pending.pop(key)  # for its previous due time; this one comes at the next call
            heapq.heappop(self._upcoming)
            self._refill(number)
            reason = window.reason_to_skip(due)
            if self.check is not None and key == self.check[1]:
                return Start(key, due) if reason is None else Skip(key, due, reason)
            self._unprobed_since.setdefault(key, (False, due))
            self._pending[key] = Skip(key, due, reason or SkipReason.BUSY)
            if reason is None:
                return self._longest_unprobed(key, due)
        return self._back_to_back(now, window)

    def _longest_unprobed(self, key: Hashable, due: float) -> Start:
        """The pending member that was started longest ago uses the due time of `key`. If `key` is not the one, it stays
        pending, with the other's reason.
        """
        first = self._start_pending(due)
        if first.key != key:
            self._pending[key] = Skip(key, due, first.reason)
        return Start(first.key, due)

    def _start_pending(self, due: float) -> Skip:
        """The member that starts now, no longer pending."""
        first = self._pending.pop(min(self._pending, key=self._unprobed_since.__getitem__))
        self._before_newest_start = self._unprobed_since[first.key]
        self._unprobed_since[first.key] = (True, due)
        return first

    def _back_to_back(self, now: float, window: Window) -> Start | Wait:
        next_due = self._upcoming[0][0] if self._upcoming else float("inf")
        if not self.back_to_back:
            return Wait(next_due)
        due = max(window.open_from, self.start)
        key = self.back_to_back[self._next_back_to_back % len(self.back_to_back)]
        over_by = max(due, now) + self._lasted.get(key, 0.0) / self.max_duty_cycle
        if next_due < over_by and self._waited_for in (None, next_due):
            self._waited_for = next_due
            return Wait(next_due)
        if due > now:
            return Wait(min(due, next_due))
        self._turn_of_pending = not self._turn_of_pending
        if self._pending and self._turn_of_pending:
            return Start(self._start_pending(due).key, due)
        self._next_back_to_back += 1
        self._waited_for = None
        return Start(key, due)


def timetable(plan: Plan, start: float, phase: float, seed: int, held: frozenset[Series] = frozenset()) -> Timetable:
    """The timetable of one target. `held`: series that must not be sent now.

    Series with the same interval share its slots, so that they are not due together. The smallest batches come first:
    if the server is too small for a batch, the smallest such batch shows it. A back-to-back series that is too large
    for the target, or held, is due as often as the check.
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
