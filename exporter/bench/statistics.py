"""Quantiles with confidence intervals, warm-up, drift, and whether two samples differ. Pure.

No distribution is assumed, and no random numbers are drawn. Sources: quantiles are type 7 of Hyndman and Fan (1996);
their intervals interpolate between order statistics (Nyblom 1992); those of values in groups are Woodruff's (1952);
drift is the Mann-Kendall test; a change is the Hodges-Lehmann estimate with the Mann-Whitney test.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from statistics import NormalDist, fmean, stdev

CONFIDENCE = 0.95
# A trend is said to be one when it is rarer than this by chance.
TREND_LEVEL = 0.01
# The first runs are left out while each is further from the settled ones than this many times their middle half.
FENCE = 3.0
# Up to this many pairs the distribution of the Mann-Whitney statistic is counted, beyond it is taken as normal.
COUNTED_PAIRS = 1600
NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A quantile, and the interval that has the true one with 95 %. None: there are too few values for a bound."""

    value: float
    low: float | None
    high: float | None

    def below(self, limit: float) -> bool | None:
        """Whether the true one is at most the limit; None where the interval contains it."""
        if self.high is not None and self.high <= limit:
            return True
        return False if self.low is not None and self.low > limit else None


def quantile(ordered: Sequence[float], q: float) -> float:
    """Linear between the two nearest of the sorted values: numpy's default."""
    place = (len(ordered) - 1) * q
    lower = math.floor(place)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (ordered[upper] - ordered[lower]) * (place - lower)


def estimate(values: Sequence[float], q: float) -> Estimate:
    """Of independent values, at least one."""
    ordered = sorted(values)
    sides = [_reachable(len(ordered), side, (1 + CONFIDENCE) / 2) for side in (1 - q, q)]
    if all(sides):
        level = (1 + CONFIDENCE) / 2
    else:  # too few values for one of the bounds: the other one has all of the error
        sides, level = [q > 0.5, q <= 0.5], CONFIDENCE
    between = _nyblom if all(sides) else _tail
    low = _upper_bound([-value for value in reversed(ordered)], 1 - q, level, between) if sides[0] else None
    high = _upper_bound(ordered, q, level, between) if sides[1] else None
    return Estimate(quantile(ordered, q), None if low is None else -low, high)


def _reachable(n: int, q: float, level: float) -> bool:
    """Whether even the highest of n values is above the quantile that surely."""
    return _chance(n, q, n - 1) >= level


def _chance(n: int, p: float, most: int) -> float:
    """That at most so many of n values are below the true quantile p."""
    return math.fsum(_chance_of(n, p, k) for k in range(most + 1))


# How far between the values of two ranks the bound lies, from 0 to 1. Of n values, for the quantile q; `rank` is the
# higher one, and the two values are above the true quantile with the chances `before` and `chance`.
Between = Callable[[int, float, int, float, float, float], float]


def _upper_bound(ordered: Sequence[float], q: float, level: float, between: Between) -> float | None:
    """Between the two neighbours of which one is above the true quantile less surely than that level, one more so."""
    n = len(ordered)
    before = 0.0
    for rank in range(1, n + 1):
        chance = before + _chance_of(n, q, rank - 1)
        if chance >= level:
            if rank == 1:
                return ordered[0]
            share = between(n, q, rank, level, before, chance)
            return ordered[rank - 2] + (ordered[rank - 1] - ordered[rank - 2]) * share
        before = chance
    return None


def _nyblom(n: int, q: float, rank: int, level: float, before: float, chance: float) -> float:
    return 1 / (1 + (rank - 1) * (1 - q) * (chance - level) / ((n - rank + 1) * q * (level - before)))


def _tail(_n: int, _q: float, _rank: int, level: float, before: float, chance: float) -> float:
    """Values far out lie apart in proportion to the logarithm of the chance that is left."""
    return math.log((1 - before) / (1 - level)) / math.log((1 - before) / max(1 - chance, 1e-12))


@cache
def _chance_of(n: int, p: float, k: int) -> float:
    logarithm = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(logarithm + k * math.log(p) + (n - k) * math.log1p(-p))


def estimate_of_groups(groups: Sequence[Sequence[float]], q: float) -> Estimate:
    """Of values that belong together by group, such as the steps of each run; at least one group has values.

    How far the share of values below the quantile differs from group to group gives the interval.
    """
    groups = [group for group in groups if group]
    ordered = sorted(value for group in groups for value in group)
    value = quantile(ordered, q)
    if len(groups) < 3:
        return Estimate(value, None, None)
    size = len(ordered) / len(groups)
    deviations = [(sum(one <= value for one in group) - q * len(group)) / size for group in groups]
    error = students_t(len(groups) - 1) * stdev(deviations) / math.sqrt(len(groups))
    # At least as uncertain as independent values would be.
    error = max(error, NORMAL.inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(q * (1 - q) / len(ordered)))
    low, high = q - error, q + error
    within = (None if low <= 0 else quantile(ordered, low), None if high >= 1 else quantile(ordered, high))
    return Estimate(value, *within)


def students_t(freedom: int) -> float:
    """Its quantile for a two-sided 95 % (Abramowitz and Stegun 26.7.5); within 1 % from 2 degrees of freedom on."""
    z = NORMAL.inv_cdf((1 + CONFIDENCE) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / float(freedom**power) for power, term in enumerate(terms))


def unsettled(values: Sequence[float]) -> int:
    """How many of the first runs belong to the warm-up: those before the first one that is like the second half.

    Like: within three times their middle half around it, or within 3 %. At most half of the runs are left out.
    """
    settled = sorted(values[len(values) // 2 :])
    if len(values) < 6:
        return 0
    lower, middle, upper = (quantile(settled, q) for q in (0.25, 0.5, 0.75))
    reach = FENCE * max(upper - lower, abs(middle) / 100)
    first = values[: len(values) // 2]
    return next((n for n, value in enumerate(first) if lower - reach <= value <= upper + reach), len(first))


def drift(values: Sequence[float]) -> float | None:
    """By what share the last third differs from the first one, where the values rise or fall all along; else None."""
    if len(values) < 6:
        return None
    ups = sum((after > before) - (after < before) for before, after in combinations(values, 2))
    n = len(values)
    score = max(0, abs(ups) - 1) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    first, last = fmean(values[: n // 3]), fmean(values[-(n // 3) :])
    return None if 2 * (1 - NORMAL.cdf(score)) > TREND_LEVEL or not first else last / first - 1


@dataclass(frozen=True, slots=True)
class Shift:
    """`ratio` of the values after to those before, and its 95 % interval; `chance` is the p-value of no change."""

    ratio: float
    low: float | None
    high: float | None
    chance: float


def shift(before: Sequence[float], after: Sequence[float]) -> Shift:
    """Of two samples of independent positive values, each with at least one."""
    ratios = sorted(b / a for a in before for b in after)
    greater = bisect_right(ratios, 1.0)
    ties = greater - next((n for n, ratio in enumerate(ratios) if ratio >= 1.0), len(ratios))
    lower = min(greater, len(ratios) - greater + ties) - ties / 2
    chance = min(1.0, 2 * _mann_whitney(len(before), len(after), math.ceil(lower)))
    cut = 0
    while 2 * _mann_whitney(len(before), len(after), cut) <= 1 - CONFIDENCE:
        cut += 1
    low, high = (ratios[cut - 1], ratios[-cut]) if cut else (None, None)
    return Shift(quantile(ratios, 0.5), low, high, chance)


def _mann_whitney(m: int, n: int, most: int) -> float:
    """The chance that at most so many of the m x n pairs are in one order, where there is no change."""
    if m * n > COUNTED_PAIRS:
        return NORMAL.cdf((most + 0.5 - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12))
    counts = _orders(m, n)
    return sum(counts[: most + 1]) / math.comb(m + n, m)


@cache
def _orders(m: int, n: int) -> tuple[int, ...]:
    """In how many of all orders of m and n values that many pairs are in one order: a Gaussian binomial."""
    counts = [1] + [0] * (m * n)
    for factor in range(1, m + 1):
        for place in range(m * n, n + factor - 1, -1):
            counts[place] -= counts[place - n - factor]
        for place in range(factor, m * n + 1):
            counts[place] += counts[place - factor]
    return tuple(counts)


def holm(chances: Sequence[float], level: float = 1 - CONFIDENCE) -> list[bool]:
    """Which of several p-values are significant together (Holm 1979)."""
    order = sorted(range(len(chances)), key=lambda number: chances[number])
    found = [False] * len(chances)
    for passed, number in enumerate(order):
        if chances[number] > level / (len(chances) - passed):
            break
        found[number] = True
    return found
