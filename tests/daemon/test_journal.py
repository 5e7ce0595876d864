"""The log: it hides nothing, and what repeats is told once a minute, with how often."""

import logging
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.daemon.journal import LINE_SECONDS, MOST_LINES, Journal, alike
from exporter.observation import Observation, Outcome, Series


def attempt(
    batch_size: int, outcome: Outcome, detail: str = "why", workload: str = "w", code: str = "C"
) -> Observation:
    return Observation(Series("t", workload, batch_size), 0.0, 0.0, 1.0, outcome, code, detail)


class Log:
    """A journal whose time passes when it is told to, and its lines."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 0.0
        self.journal = Journal(lambda: self.now)
        self._caplog = caplog

    def __call__(self, *attempts: Observation, seconds: float = 1.0) -> list[str]:
        """The lines of these attempts, one each so many seconds."""
        before = len(self._caplog.records)
        for observation in attempts:
            self.journal.attempt(observation)
            self.now += seconds
        return [record.message for record in self._caplog.records[before:]]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    caplog.set_level(logging.INFO, "tgi_probe")
    return Log(caplog)


OK, TIMEOUT, OVERLOADED = Outcome.OK, Outcome.TIMEOUT, Outcome.OVERLOADED
FAILED = "probe failed: t w batch_size=1: timeout: why"


def test_batch_sizes_that_fail_beside_others_that_succeed_do_not_fill_the_log(log: Log) -> None:
    said = [log(attempt(1, OK), attempt(32, OVERLOADED), attempt(32, TIMEOUT), seconds=1 / 3) for _ in range(50)]
    assert said[0] == [
        "probe failed: t w batch_size=32: overloaded: why",
        "probe failed: t w batch_size=32: timeout: why",
    ]
    assert not any(said[1:])
    log.now += 60.0
    [line] = log(attempt(32, OVERLOADED))
    assert line.endswith("why (49 more like it since the last such line)")
    assert log(attempt(32, OK)) == ["probes of t w succeed again: 101 probes failed in 1m51s"]


def test_a_second_outage_within_a_minute_has_its_line_and_so_has_each_recovery(log: Log) -> None:
    again = "probes of t w succeed again: 2 probes failed in 10s"
    for _ in range(3):
        assert log(attempt(1, TIMEOUT), attempt(1, TIMEOUT), attempt(1, OK), seconds=5.0) == [FAILED, again]


def test_a_second_outage_has_its_line_also_where_a_batch_size_was_not_probed_in_between(log: Log) -> None:
    again = f"{FAILED} (1 more like it since the last such line)"
    assert log(attempt(1, TIMEOUT), attempt(2, TIMEOUT), attempt(1, OK), attempt(1, TIMEOUT)) == [FAILED, again]


def test_two_workloads_that_fail_are_both_named_and_so_is_the_recovery_of_each(log: Log) -> None:
    both = [attempt(1, TIMEOUT, workload=name) for name in ("a", "b")]
    assert log(*both, *both) == [
        "probe failed: t a batch_size=1: timeout: why",
        "probe failed: t b batch_size=1: timeout: why",
    ]
    assert log(attempt(1, OK, workload="a")) == ["probes of t a succeed again: 2 probes failed in 4s"]
    assert log(attempt(1, TIMEOUT, workload="b")) == []


@pytest.mark.parametrize(
    "other",
    [
        attempt(1, TIMEOUT, "something else"),
        attempt(1, OVERLOADED),
        attempt(1, TIMEOUT, code="OTHER"),
        attempt(1, TIMEOUT, workload="other"),
    ],
)
def test_what_is_counted_as_like_it_is_like_it(log: Log, other: Observation) -> None:
    same = attempt(1, TIMEOUT)
    assert len(log(same, other, same, other, other)) == 2
    log.now += 60.0
    assert log(same)[0].endswith("(1 more like it since the last such line)")
    assert log(other)[0].endswith("(2 more like it since the last such line)")


def test_messages_that_differ_in_their_numbers_are_alike() -> None:
    one = "127.0.0.1:43210: 3 of 32 requests: request 0x1f9b not done after 60.1 s"
    other = "127.0.0.1:50000: 12 of 32 requests: request 0x22aa not done after 9.25 s"
    assert alike(one) == alike(other) != alike("h: 3 of 32 requests: refused")


def test_a_server_that_says_something_else_each_time_does_not_fill_the_log(log: Log) -> None:
    words = [chr(97 + number // 26) + chr(97 + number % 26) for number in range(200)]
    said = log(*(attempt(1, TIMEOUT, word) for word in words), seconds=0.1)
    assert len(said) <= MOST_LINES
    log.now += 60.0
    assert log(attempt(1, TIMEOUT, "last"))[0].endswith("(191 more of other kinds since the last such line)")


def test_a_target_that_fails_and_recovers_all_the_time_does_not_fill_the_log_and_every_failure_is_counted(
    log: Log,
) -> None:
    said = log(*[attempt(1, outcome) for _ in range(300) for outcome in (TIMEOUT, OK)], seconds=1.0)
    assert len(said) <= MOST_LINES + 600 / LINE_SECONDS
    log.now += 60.0
    said += log(attempt(1, OK))
    assert "succeed again" in said[-1]
    assert sum(int(number) for line in said for number in re.findall(r"(\d+) probes? failed in", line)) == 300


def test_a_recovery_that_comes_too_soon_after_others_is_told_later(log: Log) -> None:
    said = log(*[attempt(1, outcome) for _ in range(MOST_LINES) for outcome in (TIMEOUT, OK)], seconds=0.5)
    assert len(said) == MOST_LINES
    later = log(*[attempt(1, OK)] * 100)
    assert [line.partition(":")[0] for line in later] == ["probes of t w succeed again"]


def test_a_target_that_left_and_came_back_begins_anew(log: Log) -> None:
    assert log(attempt(1, TIMEOUT)) == [FAILED]
    log.journal.forget("t")
    assert log(attempt(1, TIMEOUT)) == [FAILED]


steps = st.tuples(st.sampled_from([1, 2]), st.sampled_from(["a", "b"]), st.sampled_from([OK, TIMEOUT, OVERLOADED]))


@given(st.lists(st.tuples(steps, st.sampled_from([0.1, 5.0, 61.0])), max_size=60))
def test_whatever_happens_every_workload_that_fails_is_named_and_no_trouble_that_is_over_is_the_last_word(
    happened: list[tuple[tuple[int, str, Outcome], float]],
) -> None:
    lines: list[str] = []
    log, now = _collecting(lines.append), [0.0]
    try:
        journal = Journal(lambda: now[0])
        for (batch_size, workload, outcome), seconds in happened:
            journal.attempt(attempt(batch_size, outcome, workload=workload))
            now[0] += seconds
        failed = {workload for (_, workload, outcome), _ in happened if outcome is not OK}
        assert failed == {line.split()[3] for line in lines if line.startswith("probe failed")}
        now[0] += 600.0
        for workload in failed:
            for batch_size in (1, 2):
                journal.attempt(attempt(batch_size, OK, workload=workload))
            assert [line for line in lines if f"t {workload} " in line][-1].startswith("probes of")
    finally:
        logging.getLogger("tgi_probe").removeHandler(log)


def _collecting(take: Callable[[str], object]) -> logging.Handler:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            take(record.getMessage())

    handler = Handler()
    logger = logging.getLogger("tgi_probe")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    return handler


def test_a_probe_that_is_quarantined_has_no_line_and_keeps_no_recovery_from_being_told(log: Log) -> None:
    lines = log(attempt(1, Outcome.UNREACHABLE), attempt(4, Outcome.UNREACHABLE), seconds=100.0)
    assert log(*[attempt(4, Outcome.QUARANTINED)] * 3, seconds=100.0) == []
    assert len(lines) == 2
    [line] = log(attempt(1, Outcome.OK), seconds=100.0)
    assert "succeed again" in line


def test_a_disturbed_probe_is_not_said_to_have_failed_and_is_told_once_a_minute(log: Log) -> None:
    lines = log(*[attempt(1, Outcome.DISTURBED)] * 10)
    assert [line for line in lines if "failed" in line] == []
    assert lines[0].startswith("probe neither judged nor measured: ")
    assert len(lines) == 1
    assert log(attempt(1, Outcome.OK)) == []  # nothing to recover from
