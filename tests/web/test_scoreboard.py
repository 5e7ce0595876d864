"""What the status page says of a target that fails."""

from exporter.config.settings import Settings
from exporter.daemon.scoreboard import Scoreboard
from exporter.observation import Observation, Outcome, Series, Step, Stream
from exporter.web.status_page import page

SETTINGS = Settings.model_validate(
    {"targets": [{"name": "a", "address": "h:1"}], "workloads": [{"name": "chat", "batch_sizes": [1]}]}
)
STREAM = Stream(1, 10, 0.0, 0.3, (Step(0.0, 0.1234, 1), Step(0.2, 0.3, 1)))


def observed(outcome: Outcome) -> Observation:
    streams = (STREAM,) if outcome is Outcome.OK else ()
    return Observation(Series("a", "chat", 1), 0.0, 0.0, 1.0, outcome, "CODE", "why", streams)


def text(board: Scoreboard) -> str:
    return page(board.status(SETTINGS, None, "1", False))


def test_a_failed_probe_has_no_latency_not_even_an_older_one() -> None:
    board = Scoreboard()
    board.record(observed(Outcome.OK), SETTINGS)
    assert "123.4" in text(board)
    board.record(observed(Outcome.TIMEOUT), SETTINGS)
    assert "123.4" not in text(board)


def test_the_first_line_says_how_many_targets_are_down() -> None:
    board = Scoreboard()
    assert "targets down" not in text(board)
    board.up("a", None)
    assert "1 of 1 targets down" in text(board)
