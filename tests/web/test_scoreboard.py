"""What the status page says of a target that fails."""

import re

from exporter.config.settings import Settings
from exporter.daemon.scoreboard import Scoreboard
from exporter.observation import Observation, Outcome, Series, SkipReason, Step, Stream
from exporter.web.status_page import page

SETTINGS = Settings.model_validate(
    {
        "targets": [{"name": "a", "address": "h:1"}, {"name": "b", "address": "h:2"}],
        "workloads": [{"name": "chat", "batch_sizes": [1, 2], "targets": ["a"]}],
        "slos": [
            {"name": "lax", "workload": "chat", "ttft": "2s"},
            {"name": "first", "workload": "chat", "ttft": "200ms", "batch_sizes": [1]},
            {"name": "tokens", "workload": "chat", "inter_token_latency": "50ms"},
        ],
    }
)


def observed(outcome: Outcome, ttft: float = 0.1234) -> Observation:
    stream = Stream(1, 10, 0.0, 0.3, (Step(0.0, ttft, 1), Step(0.2, 0.3, 1)))
    streams = (stream,) if outcome is Outcome.OK else ()
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
    assert "1 of 2 targets down" in text(board)


def cells(board: Scoreboard, size: int) -> list[str]:
    """The cells of the row of a batch size, from the outcome on."""
    [row] = re.findall(
        rf"<tr[^>]*><td class=name>a</td><td class=name>chat</td><td class=n>{size}</td>(.*?)</tr>", text(board)
    )
    return re.findall(r"<td.*?</td>", row)


def test_values_are_coloured_by_the_strictest_slo_and_say_it_without_the_colour_too() -> None:
    board = Scoreboard()
    board.record(observed(Outcome.OK), SETTINGS)
    _, _, ttft, _, token, *_ = cells(board, 1)
    assert ttft == '<td class="n good" title="within 200 ms of SLO first">123.4</td>'
    assert token == '<td class="n bad" title="over 50 ms of SLO tokens">100.0 ▲</td>'


def test_beside_the_newest_value_stands_the_median_of_the_last_11() -> None:
    board = Scoreboard()
    for number in range(20):
        board.record(observed(Outcome.OK, 0.01 * (number + 1)), SETTINGS)
    _, _, newest, median, *_ = cells(board, 1)
    assert (">200.0<" in newest, ">150.0<" in median) == (True, True)
    board.forget("a")
    board.record(observed(Outcome.OK, 0.01), SETTINGS)
    assert ">10.0<" in cells(board, 1)[3]


def test_a_series_without_a_probe_says_why() -> None:
    board = Scoreboard()
    board.record(observed(Outcome.OK), SETTINGS)
    assert ">not probed yet<" in cells(board, 2)[0]
    board.skipped(Series("a", "chat", 2), SkipReason.UNSAFE)
    assert ">not sent: it exceeds the limits of the target<" in cells(board, 2)[0]
    assert ">b<" not in text(board).partition("Newest results")[2]  # no workload goes there


def test_an_slo_that_has_judged_nothing_is_there() -> None:
    board = Scoreboard()
    assert text(board).count('<td class="dim">not judged yet</td>') == 3
    board.record(observed(Outcome.OK), SETTINGS)
    assert text(board).count("not judged yet") == 0
