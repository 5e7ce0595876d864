"""When a probe is due, and whether it may start. Pure: instants come in as arguments, no clock is read.

All instants and durations are seconds of the caller's clock.
"""

import heapq
import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from exporter.observation import SkipReason

GOLDEN_RATIO = 0.6180339887498949


def phase(index: int) -> float:
    """Where in its slot the index-th target starts, in [0, 1): well spread for any number of targets."""
    return index * GOLDEN_RATIO % 1.0


def spread(
    members: int, interval: float, start: float, phase: float, seed: int, wanders: bool = False
) -> Iterator[tuple[float, int]]:
    """Due times without end, as (due, member): each member exactly once in every interval.

    The interval is cut into as many equal slots as there are members. In the first interval they come in their order;
    after it, which member gets which slot is drawn anew in each interval (from `seed`, so it can be repeated): with a
    fixed order the same member would always follow the longest probe. For the same reason `wanders`: where in its slot
    each is due is drawn too.
    """
    order = random.Random(seed)
    slot = interval / members
    cycle = 0
    while True:
        turns = list(range(members))
        if cycle:
            order.shuffle(turns)
        for place, member in enumerate(turns):
            yield start + cycle * interval + (place + (order.random() if wanders else phase)) * slot, member
        cycle += 1


@dataclass(frozen=True, slots=True)
class Window:
    """The times at which a target may not be probed, each until the instant given."""

    busy_until: float = float("-inf")
    backoff_until: float = float("-inf")
    rest_until: float = float("-inf")

    def reason_to_skip(self, due: float) -> SkipReason | None:
        if due < self.busy_until:
            return SkipReason.BUSY
        if due < self.backoff_until:
            return SkipReason.BACKOFF
        if due < self.rest_until:
            return SkipReason.DUTY_CYCLE
        return None

    @property
    def open_from(self) -> float:
        return max(self.busy_until, self.backoff_until, self.rest_until)


def rest_after(seconds_busy: float, max_duty_cycle: float) -> float:
    """How long to leave a target alone after it was busy with us, so that our share stays at `max_duty_cycle`."""
    return seconds_busy * (1 / max_duty_cycle - 1)


def backoff_after(failures: int, first: float, longest: float, draw: float) -> float:
    """Doubling with each failure in a row, bounded, and shortened by up to a half with `draw` in [0, 1)."""
    if failures <= 0:
        return 0.0
    return float(min(longest, first * 2.0 ** min(failures - 1, 60)) * (1 - draw / 2))


@dataclass(frozen=True, slots=True)
class Start:
    """Begin this probe now; `due` is the due time that it uses, which may have been another one's."""

    key: Hashable
    due: float


@dataclass(frozen=True, slots=True)
class Skip:
    """This probe was due at `due` and will not be made up for any more."""

    key: Hashable
    due: float
    reason: SkipReason


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until` (infinity: nothing at all)."""

    until: float


@dataclass(slots=True)
class Timetable:
    """Decides for one target what comes next: `check` and `periodic` members by their due times, `back_to_back` ones
    in between.

    At the due time of a periodic member the target is open or closed. Open: of that member and those that were passed
    over since their last start, the one with the oldest start begins, so that no member starves when not all fit.
    Closed: the member is passed over. One that is still passed over at its own next due time is a Skip: every due time
    is a Start or a Skip in the end, and nothing is made up for outside the due times.

    A back-to-back member has no due time to miss: it starts when the target is open, in turn, unless that would make
    the next periodic member late (as far as the last duration of that member tells). It gives way once, so that
    neither can starve the other.
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
    _passed_over: dict[Hashable, Skip] = field(default_factory=dict)
    # Its newest start; of one that was never started, which is before all others, its first due time.
    _unprobed_since: dict[Hashable, tuple[bool, float]] = field(default_factory=dict)
    _before_newest_start: tuple[bool, float] = (False, 0.0)
    _turn: int = 0
    _gave_way_to: float | None = None
    _lasted: dict[Hashable, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks = [(self.check[0], [self.check[1]])] if self.check else []
        for number, (interval, members) in enumerate([*checks, *self.periodic]):
            # Two intervals of which one is a multiple of the other would meet for ever, and the same one give way: all
            # but the check and the shortest one wander.
            wanders = number > len(checks)
            source = spread(len(members), interval, self.start, self.phase, self.seed + number, wanders)
            self._sources.append((source, members))
            self._refill(number)

    def _refill(self, number: int) -> None:
        source, members = self._sources[number]
        due, member = next(source)
        heapq.heappush(self._upcoming, (due, number, members[member]))

    def lasted(self, key: Hashable, seconds: float) -> None:
        """Tell how long a probe took: what keeps back-to-back probes out of the way of periodic ones."""
        self._lasted[key] = seconds

    def not_started(self, start: Start, reason: SkipReason) -> Skip | None:
        """Take back the newest Start, which could not be. A Skip comes back where it will not be made up for."""
        skip = Skip(start.key, start.due, reason)
        if start.key in self.back_to_back:
            self._turn -= 1
            return skip
        self._unprobed_since[start.key] = self._before_newest_start
        self._passed_over[start.key] = skip
        return None

    def next(self, now: float, window: Window) -> Start | Skip | Wait:
        """What to do at `now`. After a Wait ask again at `until`, else at once."""
        while self._upcoming and self._upcoming[0][0] <= now:
            due, number, key = self._upcoming[0]
            if key in self._passed_over:
                return self._passed_over.pop(key)  # its due time before this one, which comes next
            heapq.heappop(self._upcoming)
            self._refill(number)
            reason = window.reason_to_skip(due)
            if self.check is not None and key == self.check[1]:
                return Start(key, due) if reason is None else Skip(key, due, reason)
            self._unprobed_since.setdefault(key, (False, due))
            self._passed_over[key] = Skip(key, due, reason or SkipReason.BUSY)
            if reason is None:
                return self._longest_unprobed(key, due)
        return self._back_to_back(now, window)

    def _longest_unprobed(self, key: Hashable, due: float) -> Start:
        """Of those that are passed over, the one with the oldest start uses the due time of `key`, which inherits why
        that one was passed over.
        """
        first = self._passed_over.pop(min(self._passed_over, key=self._unprobed_since.__getitem__))
        if first.key != key:
            self._passed_over[key] = Skip(key, due, first.reason)
        self._before_newest_start = self._unprobed_since[first.key]
        self._unprobed_since[first.key] = (True, due)
        return Start(first.key, due)

    def _back_to_back(self, now: float, window: Window) -> Start | Wait:
        next_due = self._upcoming[0][0] if self._upcoming else float("inf")
        if not self.back_to_back:
            return Wait(next_due)
        due = max(window.open_from, self.start)
        key = self.back_to_back[self._turn % len(self.back_to_back)]
        over_by = max(due, now) + self._lasted.get(key, 0.0) / self.max_duty_cycle
        if next_due < over_by and self._gave_way_to in (None, next_due):
            self._gave_way_to = next_due
            return Wait(next_due)
        if due > now:
            return Wait(min(due, next_due))
        self._turn += 1
        self._gave_way_to = None
        return Start(key, due)
