"""The seed of a random search."""

import random

import pytest


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The one to replay, or another one each time. It is in the output of a failed test."""
    given: int | None = request.config.getoption("--seed", default=None)
    chosen = random.SystemRandom().getrandbits(32) if given is None else given
    print(f"--seed {chosen}")
    return chosen
