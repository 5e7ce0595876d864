"""What a timetable starts and skips when not everything that is due fits: in virtual time."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from exporter.observation import SkipReason
from exporter.plan.schedule import Skip, Start, Timetable, Wait, Window, pause_after, spread

INTERVAL = 30.0


@dataclass
class Seen:
    starts: list[tuple[float, Start]] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)

    def counts(self, members: int) -> list[int]:
        counts = Counter(start.key for _, start in self.starts)
        return [counts[member] for member in range(members)]


def run(
    table: Timetable, until: float, lasts: Callable[[Any], float], gives_way: Callable[[], bool] = lambda: False
) -> Seen:
    """Probes that take so long, one after the other; nobody rests longer than the duty cycle asks."""
    seen, now, window = Seen(), 0.0, Window()
    while now < until:
        match table.next(now, window):
            case Wait(later):
                now = later
            case Skip() as skip:
                seen.skips.append(skip)
            case Start() as start if gives_way():
                assert table.not_started(start, SkipReason.BUSY) is None
            case Start() as start:
                seen.starts.append((now, start))
                busy = lasts(start.key)
                now += busy
                window = Window(busy_until=now, pause_until=now + pause_after(busy, table.max_duty_cycle))
    return seen


def table(members: int, seed: int = 0, duty: float = 1.0, phase: float = 0.0) -> Timetable:
    return Timetable([(INTERVAL, range(members))], [], 0.0, phase, seed, duty)


def most_between_two(starts: list[Any], members: int) -> int:
    """How often one member started at most while another one was not started."""
    since = {member: Counter[Any]() for member in range(members)}
    most = 0
    for key in starts:
        since[key].clear()
        for member, others in since.items():
            if member != key:
                others[key] += 1
                most = max(most, others[key])
    return most


DURATIONS = st.lists(st.floats(0.01, 4 * INTERVAL), min_size=2, max_size=12)


@given(DURATIONS, st.integers(0, 1000), st.sampled_from([0.1, 0.5, 1.0]), st.floats(0, 0.99), st.floats(0, 0.9))
def test_no_member_waits_while_another_one_starts_more_than_three_times(
    durations: list[float], seed: int, duty: float, phase: float, yielding: float
) -> None:
    chance, members = random.Random(seed), len(durations)
    plan = table(members, seed, duty, phase)
    end = 8 * members * (max(durations) / duty + INTERVAL)
    seen = run(plan, end, durations.__getitem__, lambda: chance.random() < yielding)
    assert min(seen.counts(members)) > 0
    assert most_between_two([start.key for _, start in seen.starts], members) <= 3


@given(DURATIONS, st.integers(0, 1000), st.floats(0, 0.99), st.floats(0, 0.9))
def test_every_due_time_is_one_start_or_one_skip_and_no_start_is_late(
    durations: list[float], seed: int, phase: float, yielding: float
) -> None:
    chance, members, cycles = random.Random(seed), len(durations), 40
    plan = table(members, seed, 1.0, phase)
    end = cycles * INTERVAL
    seen = run(plan, end, durations.__getitem__, lambda: chance.random() < yielding)
    due = set()
    for instant, _ in spread(members, INTERVAL, 0.0, phase, seed):
        if instant >= end:
            break
        due.add(instant)
    assert all(now == start.due and now in due for now, start in seen.starts)
    assert len({start.due for _, start in seen.starts}) == len(seen.starts)
    used = Counter(start.key for _, start in seen.starts) + Counter(skip.key for skip in seen.skips)
    # The last due time of each may be open still, and those after the last probe have not come up yet.
    left = cycles - min((end, *(start.due for _, start in seen.starts[-1:]))) // INTERVAL
    assert all(cycles - 2 - left <= used[member] <= cycles for member in range(members)), used


def test_with_probes_of_ten_seconds_in_a_timetable_of_thirty_all_six_batch_sizes_are_probed_alike() -> None:
    for seed in range(20):
        seen = run(table(6, seed, duty=0.5), 14 * 60, lambda _: 10.0)
        counts = seen.counts(6)
        assert sum(counts) >= 14 * 60 / 25
        assert max(counts) - min(counts) <= 1, counts


def test_the_first_interval_goes_from_the_first_member_to_the_last() -> None:
    for seed in range(5):
        for lasts in (0.1, 10.0, 40.0):
            durations = [lasts] * 6
            seen = run(table(6, seed), 600, durations.__getitem__)
            assert [start.key for _, start in seen.starts][:6] == list(range(6))


def test_when_all_fit_each_member_uses_its_own_due_times() -> None:
    seen = run(table(6), 20 * INTERVAL, lambda _: 1.0)
    expected = spread(6, INTERVAL, 0.0, 0.0, 0)
    assert not seen.skips
    assert [(start.due, start.key) for _, start in seen.starts] == [next(expected) for _ in range(120)]


def test_the_skip_that_makes_room_says_what_the_one_that_starts_had_to_wait_for() -> None:
    plan = Timetable([(10.0, ["a", "b"])], [], 0.0, max_duty_cycle=0.5)
    closed = Window(pause_until=1.0)
    assert plan.next(0.0, closed) == Wait(5.0)
    assert plan.next(5.0, closed) == Start("a", 5.0), "b is due, but a was passed over before"
    seen = [plan.next(20.0, Window(busy_until=100.0)) for _ in range(2)]
    assert Skip("b", 5.0, SkipReason.DUTY_CYCLE) in seen


def test_a_member_with_a_long_interval_takes_the_next_open_due_time_of_one_with_a_short_interval() -> None:
    plan = Timetable([(1.0, ["often"]), (3600.0, ["seldom"])], [], 0.0, seed=1)
    seen = run(plan, 4 * 3600, lambda key: 0.9 if key == "often" else 0.1)
    assert [start.key for _, start in seen.starts].count("seldom") in (3, 4, 5)


def test_a_check_is_never_exchanged_and_its_skip_is_told_at_once() -> None:
    plan = Timetable([(10.0, ["a"])], [], 0.0, check=(10.0, "check"))
    closed = Window(backoff_until=5.0)
    assert plan.next(0.0, closed) == Skip("check", 0.0, SkipReason.BACKOFF)
    assert plan.next(0.0, closed) == Wait(10.0)
    assert plan.next(10.0, closed) == Start("check", 10.0)
    assert plan.next(10.0, closed) == Skip("a", 0.0, SkipReason.BACKOFF)
    assert plan.next(10.0, closed) == Start("a", 10.0)


def test_a_back_to_back_member_that_gave_way_is_the_next_one_again_and_its_skip_is_told_at_once() -> None:
    plan = Timetable([], ["a", "b"], 0.0)
    first = plan.next(0.0, Window())
    assert isinstance(first, Start)
    assert plan.not_started(first, SkipReason.BUSY) == Skip("a", 0.0, SkipReason.BUSY)
    assert plan.next(1.0, Window(busy_until=1.0)) == Start("a", 1.0)


def test_a_periodic_member_that_finds_the_target_busy_at_every_due_time_starts_between_back_to_back_ones() -> None:
    table = Timetable([(10.0, ["periodic"])], ["first", "second"], start=0.0)
    now, window, started = 0.0, Window(), Counter[object]()
    while now < 3600:
        match table.next(now, window):
            case Wait(until):
                now = until
            case Start(key):
                started[key] += 1
                now += 12.0  # it is not noted, so each one is a surprise
                window = Window(busy_until=now)
            case _:
                pass
    assert started["periodic"] > 100, started
    assert started["first"] > 50, started
    assert started["second"] > 50, started
