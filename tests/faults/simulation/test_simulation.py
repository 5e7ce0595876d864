"""Simulated hours of probing, in which nothing that must always be true is ever false."""

import pytest

from tests.faults.simulation.world import simulate

# The simulated process is held up only where the simulation says so.
pytestmark = pytest.mark.timed
# 2000 worlds of 50 hours are 100,000 hours.
WORLDS, HOURS, AT_ONCE = 2000, 50.0, 20
SHORT_WORLDS, SHORT_HOURS = 8, 3.0


def hold(seed: int, hours: float) -> None:
    if (problem := simulate(seed, hours).problem) is not None:
        pytest.fail(problem, pytrace=False)


def test_what_must_always_be_true_is_true_in_some_short_worlds() -> None:
    for each in range(SHORT_WORLDS):
        hold(each, SHORT_HOURS)


@pytest.mark.parametrize("seed", [1, 17], ids=["a-real-prober", "a-scripted-prober"])
def test_the_same_seed_gives_the_same_events(seed: int) -> None:
    assert simulate(seed, 1.0) == simulate(seed, 1.0)


@pytest.mark.faults
@pytest.mark.parametrize("first", range(0, WORLDS, AT_ONCE))
def test_what_must_always_be_true_is_true_for_100000_hours(first: int, asked_seed: int | None) -> None:
    if asked_seed is None:
        for each in range(first, first + AT_ONCE):
            hold(each, HOURS)
    elif first <= asked_seed % WORLDS < first + AT_ONCE:
        hold(asked_seed, SHORT_HOURS)
        hold(asked_seed, HOURS)
