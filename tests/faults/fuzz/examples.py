"""How many examples each test of this folder gets, and the bounds that every example keeps.

The same tests run twice: with some hundreds of examples in `make test`, and with 10,000 where the marker `faults` is
asked for (`make faults`). An example that does not end is ended by an alarm. Memory is bounded by its size, never by a
time.
"""

import contextlib
import re
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings

IN_CI, AT_LENGTH = 300, 10_000
# Seconds. Examples take milliseconds, and this machine may be busy: only what hangs takes that long.
HANGS_AFTER = 60
MIB = 1 << 20
Test = TypeVar("Test", bound=Callable[..., Any])
Error = TypeVar("Error", bound=BaseException)
# Set by conftest.py, before the tests are imported.
examples = IN_CI


def chosen(mark_expression: str) -> bool:
    """Whether `pytest -m` asks for the marker `faults`."""
    return re.search(r"(?<!not )\bfaults\b", mark_expression) is not None


def fuzz(test: Test) -> Test:
    """As many examples as were asked for. Write it above `given`."""
    decorate: Callable[[Test], Test] = settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
            HealthCheck.function_scoped_fixture,
        ],
    )
    return decorate(test)


@contextlib.contextmanager
def ends(what: object) -> Iterator[None]:
    """Fails where the block does not end. Only in the main thread."""

    def on_alarm(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"no end after {HANGS_AFTER} s: {what!r:.2000}")

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, HANGS_AFTER)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def takes_at_most(most: int) -> Iterator[None]:
    """Fails where the block's own objects take more than that many bytes at any moment."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before <= most, f"{(peak - before) / MIB:.1f} MiB, and at most {most / MIB:.1f} MiB were allowed"


def in_lines(problems: list[str]) -> bool:
    """Whether these are messages for a person: each one line, and not a Python error."""
    return bool(problems) and all(line and "\n" not in line and "Traceback" not in line for line in problems)


def raised(kind: type[Error], attempt: Callable[[], object]) -> Error | None:
    """The exception of that kind; None where there was none. Any other one goes through."""
    try:
        attempt()
    except kind as error:
        return error
    return None
