"""The option that replays a run: `make faults ARGS="--seed 17"`."""

import random

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="the seed of random faults; another one each time without")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The one to replay, or another one each time. It is in the output of a failed test."""
    given: int | None = request.config.getoption("--seed", default=None)
    chosen = random.SystemRandom().getrandbits(32) if given is None else given
    print(f"--seed {chosen}")
    return chosen
