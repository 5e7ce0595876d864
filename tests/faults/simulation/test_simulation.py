"""Simulated hours of probing, in which nothing that must always be true is ever false."""

import pytest

from tests.faults.simulation.world import simulate

# Worlds of so many hours each. 2000 of them are 100,000 hours.
HOURS = 50.0
WORLDS, AT_ONCE = 2000, 50
SHORT_HOURS, SHORT_WORLDS = 6.0, 12


def hold(seed: int, hours: float) -> None:
    if (problem := simulate(seed, hours).problem) is not None:
        pytest.fail(problem, pytrace=False)


def test_what_must_always_be_true_is_true_in_some_short_worlds(seed: int | None) -> None:
    for each in range(SHORT_WORLDS) if seed is None else [seed]:
        hold(each, SHORT_HOURS)


def test_the_same_seed_gives_the_same_events() -> None:
    assert simulate(17, SHORT_HOURS) == simulate(17, SHORT_HOURS)


@pytest.mark.faults
@pytest.mark.parametrize("first", range(0, WORLDS, AT_ONCE))
def test_what_must_always_be_true_is_true_for_100000_hours(first: int, seed: int | None) -> None:
    if seed is None:
        for each in range(first, first + AT_ONCE):
            hold(each, HOURS)
    elif first <= seed < first + AT_ONCE:
        hold(seed, HOURS)
