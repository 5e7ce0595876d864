"""The arithmetic of windows and bad probes, against counting one by one."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.alerting import promql
from exporter.alerting.already_paged import burn_wait
from exporter.alerting.burn_rates import (
    DAY,
    FILLED,
    HOUR,
    MONTH,
    ProbeSchedule,
    WindowPair,
    bad_probes,
    between_probes,
    budget,
    firing_threshold,
    highest_objective,
    longest_interval,
    window_pairs,
)
from exporter.config.notation import parse_duration
from exporter.config.workload import Workload


def test_thirty_days_have_the_windows_and_factors_that_everybody_knows() -> None:
    found = [
        (p.severity, p.factor, promql.duration(p.short), promql.duration(p.long)) for p in window_pairs(MONTH, 30, 15)
    ]
    assert found == [
        ("page", 14.4, "5m", "1h"),
        ("page", 6.0, "30m", "6h"),
        ("ticket", 3.0, "2h", "1d"),
        ("ticket", 1.0, "6h", "3d"),
    ]


@given(period=st.floats(HOUR, 366 * DAY), interval=st.floats(0, DAY), scrape=st.floats(0.1, 300))
def test_every_window_holds_some_probes_and_scrapes_and_the_long_one_is_longer(
    period: float, interval: float, scrape: float
) -> None:
    for pair in window_pairs(period, interval, scrape):
        assert pair.short >= max(4 * interval, 6 * scrape) - 1e-3
        assert pair.long >= 1.5 * pair.short or pair.long >= 12 * interval
        assert pair.long > pair.short


@given(
    sizes=st.sets(st.integers(1, 9), min_size=1, max_size=3),
    rounds=st.integers(0, 3),
    allowed=st.integers(0, 100),
)
def test_fewer_bad_probes_never_exceed_the_allowed_share_and_that_many_can(
    sizes: set[int], rounds: int, allowed: int
) -> None:
    schedule = ProbeSchedule(60.0, tuple(sorted(sizes)))
    probes = sorted(sizes) * rounds
    found = bad_probes(60.0 * rounds, schedule, allowed / 100)
    able = [
        number
        for number in range(1, len(probes) + 1)
        if any(100 * sum(bad) > allowed * sum(probes) for bad in itertools.combinations(probes, number))
    ]
    assert found == (able[0] if able else None)


@pytest.mark.parametrize(
    ("interval", "objective", "short", "long"),
    [(15, 0.99, 3, 35), (30, 0.99, 2, 18), (15, 0.999, 1, 4), (60, 0.999, 1, 1)],
)
def test_the_bad_probes_of_the_first_page_are_as_counted_by_hand(
    interval: float, objective: float, short: int, long: int
) -> None:
    one = firing_threshold(window_pairs(MONTH, interval, 15)[0], ProbeSchedule(interval, (1,)), objective)
    assert one is not None
    assert (one.short, one.long) == (short, long)


@pytest.mark.parametrize(
    ("workload", "seconds"),
    [
        ({"interval": "30s"}, 30),
        ({"interval": "0s"}, 0),
        ({"load": {"mode": "open", "rate": "4/s"}}, 0.25),
        ({"load": {"mode": "closed", "users": 8}}, 0),
    ],
)
def test_the_time_between_probes_comes_from_the_interval_or_the_rate(
    workload: dict[str, object], seconds: float
) -> None:
    assert between_probes(Workload.model_validate({"name": "w", **workload})) == seconds


def test_a_pair_that_no_outage_can_fire_is_known() -> None:
    assert firing_threshold(window_pairs(MONTH, 30, 15)[0], ProbeSchedule(30, (1,)), 0.9) is None
    assert firing_threshold(window_pairs(MONTH, 30, 15)[1], ProbeSchedule(30, (1,)), 0.9) is not None


@given(
    objective=st.floats(0.5, 0.9999),
    interval=st.floats(1, 900),
    sizes=st.sampled_from([(1,), (1, 2, 4), (1, 32), (8, 16)]),
    number=st.integers(0, 3),
)
def test_after_the_mend_one_bad_probe_no_longer_does_it(
    objective: float, interval: float, sizes: tuple[int, ...], number: int
) -> None:
    schedule = ProbeSchedule(interval, sizes)
    pair = window_pairs(MONTH, interval, 15)[number]
    one = firing_threshold(pair, schedule, objective)
    if one is None or not one.single:
        return
    better = highest_objective(pair, schedule)
    if better > 0:
        mended = firing_threshold(pair, schedule, better)
        assert mended is None or not mended.single
    shorter = int(longest_interval(pair, schedule, objective))
    if shorter >= 1:
        again = firing_threshold(window_pairs(MONTH, shorter, 15)[number], ProbeSchedule(shorter, sizes), objective)
        assert again is None or not again.single


@given(st.floats(0.5, 0.99999))
def test_the_budget_is_the_rest_to_one_without_binary_noise(objective: float) -> None:
    assert budget(objective) == pytest.approx(1 - objective)
    assert len(promql.number(budget(0.99))) == 4


@given(st.integers(1, 366 * 86_400_000))
def test_a_duration_is_read_back_as_it_was_written(milliseconds: int) -> None:
    assert parse_duration(promql.duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


def test_a_single_bad_probe_counts_as_two_so_that_the_rules_and_the_words_agree() -> None:
    one = firing_threshold(WindowPair("page", 14.4, 300, 3600, 3600), ProbeSchedule(60, (1,)), 0.999)
    assert one is not None
    assert (one.single, one.bad_short, one.bad_long) == (True, 2, 2)


@given(
    objective=st.sampled_from([0.9, 0.95, 0.99, 0.995, 0.999, 0.9999]),
    interval=st.sampled_from([1.0, 15.0, 30.0, 60.0, 300.0]),
    earliest=st.floats(60, 3600),
)
def test_no_burn_pages_earlier_than_an_outage_does_and_a_slow_one_does_not_wait(
    objective: float, interval: float, earliest: float
) -> None:
    schedule = ProbeSchedule(interval, (1,))
    pairs = window_pairs(MONTH, interval, 15)
    wait = burn_wait(pairs, schedule, objective, earliest)
    found = [firing_threshold(pair, schedule, objective) for pair in pairs]
    for one in found:
        if one is not None:
            assert FILLED * one.outage + wait >= earliest - 0.01
    pages = [FILLED * one.outage for one in found if one is not None and one.pair.severity == "page"]
    if pages and min(pages) >= earliest:
        assert wait == 0
