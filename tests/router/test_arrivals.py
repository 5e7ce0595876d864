"""The arrival processes are what their names say."""

import math
import random
import statistics
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.plan.arrivals import constant, poisson

DRAWS = 5000
# Kolmogorov-Smirnov: with a true distribution a sample of this size exceeds it once in a thousand seeds.
CRITICAL = 1.95 / math.sqrt(DRAWS)


def gaps(seed: int, rate: float) -> list[float]:
    return [b - a for a, b in pairwise([10.0, *islice(poisson(rate, 10.0, random.Random(seed)), DRAWS)])]


@given(st.floats(0.001, 10_000), st.floats(0, 1e6))
def test_constant_is_exactly_periodic_however_long_it_runs(rate: float, start: float) -> None:
    dues = list(islice(constant(rate, start), 1000))
    for number, due in enumerate(dues, start=1):
        assert due == start + number / rate


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate", [0.5, 40.0])
def test_gaps_of_poisson_are_exponentially_distributed(seed: int, rate: float) -> None:
    ordered = sorted(gaps(seed, rate))
    distance = max(abs((n + 0.5) / DRAWS - (1 - math.exp(-rate * gap))) for n, gap in enumerate(ordered))
    assert distance < CRITICAL


@pytest.mark.parametrize("seed", range(5))
def test_gaps_of_poisson_do_not_depend_on_the_gap_before(seed: int) -> None:
    found = gaps(seed, 1.0)
    assert abs(statistics.correlation(found, [*found[1:], found[0]])) < 4 / math.sqrt(DRAWS)


@pytest.mark.parametrize("seed", range(5))
def test_requests_of_poisson_in_a_second_vary_as_much_as_their_mean(seed: int) -> None:
    dues = islice(poisson(20.0, 0.0, random.Random(seed)), DRAWS)
    counts: dict[int, int] = {}
    for due in dues:
        counts[int(due)] = counts.get(int(due), 0) + 1
    full = [counts.get(second, 0) for second in range(max(counts))]
    assert statistics.variance(full) / statistics.fmean(full) == pytest.approx(1.0, abs=0.4)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    first, second = (list(islice(poisson(2.0, 0.0, random.Random(7)), 10)) for _ in range(2))
    assert first == second


def test_an_even_spacing_would_not_pass_for_poisson() -> None:
    found = [b - a for a, b in pairwise([0.0, *islice(constant(1.0, 0.0), DRAWS)])]
    ordered = sorted(found)
    assert max(abs((n + 0.5) / DRAWS - (1 - math.exp(-gap))) for n, gap in enumerate(ordered)) > CRITICAL
