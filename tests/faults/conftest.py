"""When these tests run, and the seed of a random search."""

import random
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What `make faults` does not keep for itself is `slow`: CI runs it, and `make test` stays short."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("faults") is None:
            item.add_marker("slow")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The one to replay, or another one each time. It is in the output of a failed test."""
    given: int | None = request.config.getoption("--seed", default=None)
    chosen = random.SystemRandom().getrandbits(32) if given is None else given
    print(f"--seed {chosen}")
    return chosen
