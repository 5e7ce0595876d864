"""Intervals that hold what they promise, against simulated sweeps and brute force."""

import itertools
import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.bench import statistics as ours
from exporter.bench.precision import Precision, looks
from tests.bench.samples import run

NORMAL = statistics.NormalDist()
SWEEPS = 2000
DISTRIBUTIONS: dict[str, tuple[Callable[[random.Random], float], Callable[[float], float]]] = {
    "normal": (lambda chance: chance.gauss(0, 1), NORMAL.inv_cdf),
    "exponential": (lambda chance: chance.expovariate(1), lambda q: -math.log(1 - q)),
    "lognormal": (lambda chance: math.exp(chance.gauss(0, 0.5)), lambda q: math.exp(0.5 * NORMAL.inv_cdf(q))),
}


def holds(found: ours.Estimate, truth: float) -> bool:
    return (found.low is None or found.low <= truth) and (found.high is None or truth <= found.high)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("runs", "q"), [(10, 0.5), (30, 0.5), (10, 0.9), (100, 0.9), (100, 0.99)])
def test_of_2000_sweeps_95_percent_have_the_true_quantile_in_their_interval(name: str, runs: int, q: float) -> None:
    chance = random.Random(f"{name} {runs} {q}")
    draw, truth = DISTRIBUTIONS[name]
    held = sum(holds(ours.estimate([draw(chance) for _ in range(runs)], q), truth(q)) for _ in range(SWEEPS))
    assert held / SWEEPS == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("runs", "between"), [(10, 0.0), (10, 0.5), (10, 1.0), (30, 1.0)])
def test_steps_of_one_run_are_not_taken_for_independent(runs: int, between: float) -> None:
    """A tenth of the runs are slow as a whole: the naive interval would hold the truth far too seldom."""
    chance = random.Random(runs + between)
    held = 0
    for _ in range(SWEEPS):
        means = [chance.gauss(0, between) for _ in range(runs)]
        groups = [[chance.gauss(mean, 1) for _ in range(7)] for mean in means]
        held += holds(ours.estimate_of_groups(groups, 0.5), 0.0)
    assert 0.935 <= held / SWEEPS <= 0.985


def test_ten_runs_do_not_bound_a_99th_percentile_from_above() -> None:
    values = [float(n) for n in range(1, 11)]
    assert ours.estimate(values, 0.99).high is None
    assert 9.0 < (ours.estimate(values, 0.99).low or 0.0) < 10.0
    few = ours.estimate([1.0], 0.5)
    assert (few.value, few.low, few.high) == (1.0, None, None)
    assert ours.estimate_of_groups([[1.0, 2.0]], 0.5).high is None


@given(st.lists(st.floats(0.001, 1000), min_size=2), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_is_that_of_the_standard_library_and_within_its_interval(values: list[float], q: float) -> None:
    found = ours.estimate(values, q)
    assert found.value == pytest.approx(statistics.quantiles(values, n=100, method="inclusive")[round(q * 100) - 1])
    assert found.low is None or min(values) <= found.low
    assert found.high is None or found.high <= max(values)
    assert found.low is None or found.high is None or found.low <= found.high


def test_students_t_is_that_of_the_tables() -> None:
    for freedom, table in ((2, 4.303), (4, 2.776), (9, 2.262), (29, 2.045)):
        assert ours.students_t(freedom) == pytest.approx(table, rel=0.01)


# --- warm-up and drift


def test_slow_first_runs_are_left_out_and_steady_ones_are_not() -> None:
    steady = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01]
    assert ours.unsettled([3.0, 1.5, *steady]) == 2
    assert ours.unsettled(steady) == 0
    assert ours.unsettled([5.0, 4.0, 3.0]) == 0  # too few to tell


def test_of_steady_sweeps_few_lose_a_run() -> None:
    chance = random.Random(3)
    lost = sum(ours.unsettled([chance.lognormvariate(0, 0.05) for _ in range(10)]) > 0 for _ in range(SWEEPS))
    assert lost / SWEEPS < 0.08


def test_a_server_that_slows_down_drifts_and_noise_does_not() -> None:
    chance = random.Random(4)
    assert ours.drift([1 + 0.02 * n + chance.gauss(0, 0.01) for n in range(12)]) == pytest.approx(0.16, abs=0.04)
    said = sum(ours.drift([chance.gauss(1, 0.1) for _ in range(10)]) is not None for _ in range(SWEEPS))
    assert said / SWEEPS < 0.02


# --- change


def test_the_mann_whitney_distribution_is_that_of_all_orders() -> None:
    """By brute force: every way to deal 4 + 3 places."""
    found = [0] * 13
    for places in itertools.combinations(range(7), 4):
        others = [place for place in range(7) if place not in places]
        found[sum(a < b for a in places for b in others)] += 1
    for most in range(13):
        assert ours._mann_whitney(4, 3, most) == pytest.approx(sum(found[: most + 1]) / math.comb(7, 4))


def test_for_many_pairs_the_normal_distribution_is_close() -> None:
    counted = ours._orders(40, 40)
    for most in (600, 700, 800):
        exact = sum(counted[: most + 1]) / math.comb(80, 40)
        normal = ours.NORMAL.cdf((most + 0.5 - 800) / math.sqrt(40 * 40 * 81 / 12))
        assert normal == pytest.approx(exact, abs=0.002)


@pytest.mark.parametrize("runs", [10, 50])
def test_the_interval_of_a_change_holds_the_true_ratio_and_no_change_is_seldom_one(runs: int) -> None:
    chance = random.Random(runs)
    held = alarms = 0
    for _ in range(SWEEPS // 4):
        before = [chance.lognormvariate(0, 0.1) for _ in range(runs)]
        after = [1.2 * chance.lognormvariate(0, 0.1) for _ in range(runs)]
        found = ours.shift(before, after)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.2 <= found.high
        alarms += ours.shift(before, [value / 1.2 for value in after]).chance <= 0.05
    assert held / (SWEEPS // 4) >= 0.93
    assert alarms / (SWEEPS // 4) <= 0.07


def test_a_single_value_changes_nothing_for_sure() -> None:
    found = ours.shift([1.0], [5.0, 5.1, 5.2])
    assert found.low is None
    assert found.chance > 0.05
    assert ours.shift([1.0] * 10, [1.0] * 10).chance == 1.0


def test_holm_judges_all_together() -> None:
    assert ours.holm([0.04, 0.001, 0.03]) == [False, True, False]
    assert ours.holm([0.01, 0.02, 0.03]) == [True, True, True]
    assert ours.holm([]) == []


# --- runs until precise


def test_runs_auto_ends_when_the_interval_is_narrow_or_the_time_is_over() -> None:
    chance = random.Random(5)

    def runs(noise: float, count: int) -> list[object]:
        return [run(1, chance.lognormvariate(0, noise), chance.lognormvariate(0, noise)) for _ in range(count)]

    quiet, loud = runs(0.01, 10), runs(0.5, 10)
    assert Precision().reached(quiet, 1.0)  # type: ignore[arg-type]
    assert not Precision().reached(loud, 1.0)  # type: ignore[arg-type]
    assert Precision().reached(loud, 60.0)  # type: ignore[arg-type]
    assert not Precision().reached([], 60.0), "at least one run"
    assert not Precision(quantile=0.99).reached(quiet, 1.0)  # type: ignore[arg-type]
    assert looks()[:4] == [10, 15, 22, 33]
