"""Which values belong to which phase, and what stands beside them."""

from typing import Any

import pytest

from benchmarks.bare import BareCall
from benchmarks.truth import COLUMNS, Errors, Phase, by_phase, rows

PHASES = (Phase("quiet", 0.0, 10.0), Phase("flood", 10.0, 20.0), Phase("quiet", 20.0, 30.0))


def observation(started: float, outcome: str = "ok") -> dict[str, Any]:
    """A probe of two steps of 5 ms, each 1 ms longer at the client, which began 0.25 s late."""
    steps = [(started, started + 0.006, 0.005), (started + 0.01, started + 0.016, 0.005)]
    return {"due": started - 0.25, "started": started, "ended": started + 0.02, "outcome": outcome, "steps": steps}


def test_phases_of_one_name_are_put_together() -> None:
    found = by_phase([observation(1.0), observation(11.0), observation(21.0)], [], PHASES)
    assert [(name, len(errors.first)) for name, errors in found.items()] == [("quiet", 2), ("flood", 1)]


def test_errors_are_what_the_client_saw_beyond_the_server() -> None:
    errors = by_phase([observation(1.0)], [BareCall(2.0, 2.007, 0.005, late=0.1)], PHASES)["quiet"]
    assert errors.first == [pytest.approx(0.001)]
    assert errors.later == [pytest.approx(0.001)]
    assert errors.late == [0.25]
    assert errors.bare == [pytest.approx(0.002)]
    assert errors.bare_late == [0.1]


def test_a_probe_across_the_border_of_two_phases_belongs_to_neither() -> None:
    found = by_phase([observation(9.99)], [BareCall(9.999, 10.001, 0.001)], PHASES)
    assert all(not errors.first and not errors.bare for errors in found.values())


def test_a_probe_that_failed_has_no_errors() -> None:
    assert not by_phase([observation(1.0, "error")], [], PHASES)["quiet"].first


def test_every_row_has_a_cell_for_every_column() -> None:
    errors = Errors(first=[0.001], later=[0.001], late=[0.001], bare=[0.001], bare_late=[0.001])
    assert [(row[0], row[4], len(row)) for row in rows({"quiet": errors})] == [
        ("time to first token", "1.000 (≤ 1.15 ✓)", len(COLUMNS)),
        ("inter-token latency", "1.000 (≤ 1.15 ✓)", len(COLUMNS)),
        ("lateness of starts", "1.000 (≤ 4 or 0.5 ms ✓)", len(COLUMNS)),
    ]
