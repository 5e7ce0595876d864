"""Chooses the number of examples by the marker that was asked for, see `examples`."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.fuzz import examples

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    if examples.chosen(config.option.markexpr):
        examples.examples = examples.AT_LENGTH


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Each test belongs to both kinds of run."""
    if examples.chosen(config.option.markexpr):
        for item in items:
            if HERE in item.path.parents:
                item.add_marker("faults")
