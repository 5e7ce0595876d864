"""docs/reliability.md has every case of the table with an outcome that is right, and the report reads what was kept."""

import pytest

from tests.faults.cases import Case
from tests.faults.report import PAGE, cell, every_case, read, rows

CASES = every_case()


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.key for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.key))
def test_the_page_has_the_case_with_a_right_outcome_for_each_kind(case: Case) -> None:
    found = rows(PAGE.read_text("utf-8"), case)
    assert found.keys() == set(case.kinds)
    for kind, shown in found.items():
        outcomes = set(shown.partition(":")[0].split(", ")) - {"quarantined"}
        assert outcomes <= case.right(kind), (kind, shown)
        assert "left" not in shown


def test_of_several_runs_the_newest_counts() -> None:
    old = '{"case": "server hang-any", "kind": "tgi", "outcomes": {"ok": 1}, "recovery": 9}'
    new = '{"case": "server hang-any", "kind": "tgi", "outcomes": {"timeout": 1}, "recovery": 1}'
    assert read([old, new])["server hang-any", "tgi"]["recovery"] == 1


def test_a_cell_names_outcome_recovery_waiting_and_what_was_left() -> None:
    row = {"outcomes": {"quarantined": 3, "unreachable": 1}, "recovery": 1, "pause": 2, "busy": 1, "left": 0}
    assert cell(row) == "unreachable, quarantined: 1 (+3)"
    assert cell({**row, "pause": 0, "busy": 0, "left": 2}) == "unreachable, quarantined: 1, left: 2"
    assert cell(None) == ""
