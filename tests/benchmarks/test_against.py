"""Which figures of two checkouts are compared, and when one counts as worse."""

from collections.abc import Sequence

import pytest

from benchmarks.against import Figure, figures, row, table
from benchmarks.report import Table

PAGE = """\
### Cost

Notes with 3.5 ms in them.

| what | batch | added p50 | ratio p50 | share | reach | calls |
|---|---|---|---|---|---|---|
| Prefill | 32 | 0.310 ms | 1.050 (≤ 1.15 ✓) | 0.40% | ≤ 2 ms ✓ | 226 |
| 5 ms | 1 |  | – | 2,048.5 MiB |  | 1,226 |
"""


def ms(*values: float) -> list[Figure]:
    return [Figure(value, "ms") for value in values]


def test_figures_are_named_by_the_cells_before_them_and_their_column() -> None:
    assert figures(PAGE) == {
        "Prefill, 32: added p50": Figure(0.31, "ms"),
        "Prefill, 32: ratio p50": Figure(1.05, ""),
        "Prefill, 32: share": Figure(0.4, "%"),
        "5 ms, 1, , –: share": Figure(2048.5, "MiB"),
    }


def test_rows_of_one_name_are_numbered() -> None:
    text = Table("T", ("", "p50"), (("quiet", "1.0 ms"), ("flood", "2.0 ms"), ("quiet", "3.0 ms"))).markdown()
    assert list(figures(text)) == ["quiet: p50", "flood: p50", "quiet: p50 (2)"]


def test_two_tables_are_told_apart_by_the_line_between_them() -> None:
    one, two = Table("A", ("", "x"), (("r", "1.0 s"),)), Table("B", ("", "y"), (("r", "2.0 s"),))
    assert set(figures(f"{one.markdown()}\n\n{two.markdown()}")) == {"r: x", "r: y"}


@pytest.mark.parametrize(
    ("before", "now", "ratio", "spread"),
    [
        pytest.param((1.0, 1.0, 1.0), (1.04, 1.04), "1.040 ✓", "1.000", id="within 1.05"),
        pytest.param((1.0, 1.0, 1.0), (1.06, 1.06), "1.060 ✗", "1.000", id="worse"),
        pytest.param((1.0, 1.1, 1.0), (1.12, 1.12), "1.067 ✓", "1.100", id="before differs as much from itself"),
        pytest.param((1.0, 2.0, 3.0), (1.5, 2.5), "1.000 ✓", "1.750", id="a machine that gets slower takes both along"),
        pytest.param((0.03, 0.03, 0.03), (0.039, 0.039), "1.300 ✓", "1.000", id="a difference too small to measure"),
        pytest.param((2.0, 2.0, 2.0), (1.0, 1.0), "0.500 ✓", "1.000", id="better"),
    ],
)
def test_a_figure_is_worse_beyond_1_05_and_the_spread_of_before(
    before: Sequence[float], now: Sequence[float], ratio: str, spread: str
) -> None:
    assert row("x", ms(*before), ms(*now))[3:] == (ratio, spread)


@pytest.mark.parametrize("name", ["call: bare p50", "64, bare client: TTFT p50", "import time: the libraries alone"])
def test_what_stands_beside_ours_is_shown_and_not_judged(name: str) -> None:
    assert row(name, ms(1.0, 1.0), ms(2.0))[3] == "2.000"


def test_a_figure_of_zero_has_no_ratio() -> None:
    assert row("x", ms(0.0, 0.1), ms(0.2)) == ("x", "0.05 ms", "0.2 ms", "", "")


def test_only_figures_that_every_run_has_are_compared() -> None:
    both, missing = {"a": Figure(1.0, "s"), "b": Figure(1.0, "s")}, {"a": Figure(1.0, "s")}
    assert [cells[0] for cells in table("part", [both, missing], [both]).rows] == ["a"]
