"""The log: a trouble that repeats is told once a minute, whatever else happens beside it."""

import logging

import pytest

from exporter.journal import Journal
from exporter.observation import Observation, Outcome, Series


def attempt(batch_size: int, outcome: Outcome) -> Observation:
    return Observation(Series("t", "w", batch_size), 0.0, 0.0, 1.0, outcome, "CODE", "why")


def test_batch_sizes_that_fail_beside_others_that_succeed_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    journal = Journal(lambda: now[0])
    with caplog.at_level(logging.INFO, "tgi_probe"):
        for _ in range(50):
            journal.attempt(attempt(1, Outcome.OK))
            journal.attempt(attempt(32, Outcome.OVERLOADED))
            journal.attempt(attempt(32, Outcome.TIMEOUT))
            now[0] += 1.0
        assert [record.message for record in caplog.records] == [
            "probe failed: t w batch_size=32: overloaded: why",
            "probe failed: t w batch_size=32: timeout: why",
        ]
        now[0] += 60.0
        journal.attempt(attempt(32, Outcome.OVERLOADED))
        assert caplog.records[-1].message.endswith("why (49 more like it since the last such line)")
        journal.attempt(attempt(32, Outcome.OK))
        assert caplog.records[-1].message == "probes of t succeed again"


def test_a_recovery_that_comes_too_soon_after_another_is_told_later(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    journal = Journal(lambda: now[0])
    with caplog.at_level(logging.INFO, "tgi_probe"):
        for outcome in (Outcome.TIMEOUT, Outcome.OK, Outcome.TIMEOUT, Outcome.OK):
            journal.attempt(attempt(1, outcome))
            now[0] += 5.0
        assert [record.message for record in caplog.records][1:] == ["probes of t succeed again"]
        for _ in range(30):
            journal.attempt(attempt(1, Outcome.OK))
            now[0] += 5.0
        assert [record.message for record in caplog.records][1:] == ["probes of t succeed again"] * 2
