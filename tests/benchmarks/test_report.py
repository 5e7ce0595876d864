"""How figures, ratios and tables become text."""

from benchmarks.report import Ratio, Reach, Table, quantile


def test_a_figure_within_its_reach_has_a_check_mark_and_one_beyond_a_cross() -> None:
    assert str(Reach(61.5, 62, " MiB")) == "≤ 62 MiB ✓"
    assert str(Reach(62.1, 62, " MiB")) == "≤ 62 MiB ✗"


def test_a_ratio_is_judged_beside_the_bare_figure_of_the_same_run() -> None:
    assert str(Ratio(0.0011, 0.001, 1.15)) == "1.100 (≤ 1.15 ✓)"
    assert str(Ratio(0.0012, 0.001, 1.15)) == "1.200 (≤ 1.15 ✗)"


def test_a_slower_day_changes_no_verdict() -> None:
    quiet, slow = Ratio(0.00055, 0.0005, 1.15), Ratio(0.00110, 0.0010, 1.15)
    assert str(quiet) == str(slow)


def test_below_the_floor_every_ratio_is_within_reach() -> None:
    assert str(Ratio(0.0029, 0.0001, 2, floor=0.003)) == "29.000 (≤ 2 or 3 ms ✓)"
    assert str(Ratio(0.0031, 0.0001, 2, floor=0.003)) == "31.000 (≤ 2 or 3 ms ✗)"


def test_a_bare_figure_of_zero_makes_an_infinite_ratio() -> None:
    assert str(Ratio(0.001, 0.0, 2)) == "inf (≤ 2 ✗)"


def test_a_table_is_markdown_with_its_notes_above() -> None:
    table = Table("Title", ("", "p50"), (("Prefill", "0.310 ms"),), ("How it was measured.",))
    assert table.markdown().splitlines() == [
        *("### Title", "", "How it was measured.", ""),
        *("|  | p50 |", "|---|---|", "| Prefill | 0.310 ms |"),
    ]


def test_a_quantile_is_the_smallest_value_not_below_its_share() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [quantile(values, q) for q in (0.0, 0.2, 0.5, 0.8, 0.99, 1.0)] == [1, 1, 3, 4, 5, 5]
