"""`python -m benchmarks PART … --against FOLDER`: whether this checkout is worse than another one.

Both run their own benchmarks in turns, each run of this checkout between two of the other. Figures are read off the
tables that a run prints, and compared where both have a figure of that name.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.report import Table, median

# A figure may be this many times as high as before, or as many times as two runs of before differ.
LIMIT = 1.05
# In milliseconds: a smaller difference is noise of the clock and of rounding.
FLOOR_MS = 0.01
# Rows of clients and libraries that are not ours: shown, not judged.
BESIDE = ("bare ", "the libraries alone", "prometheus_client")
# A number with a point or a unit. Counts have neither, and are no figures.
FIGURE = re.compile(r"(-?[\d,]+(?:\.\d+)?) ?(ms|s|MiB|MB|%|threads|times)?(?![\w.])")


@dataclass(frozen=True, slots=True)
class Figure:
    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.value:.4g}{'' if self.unit == '%' else ' '}{self.unit}".rstrip()


def compare(part: str, seconds: float, other: Path, rounds: int) -> Table:
    """Runs `part` in `other` and here, `rounds` times here and once more there."""
    here = Path.cwd()
    before, now = [run(other, part, seconds)], []
    for _ in range(rounds):
        now.append(run(here, part, seconds))
        before.append(run(other, part, seconds))
    return table(part, before, now)


def run(root: Path, part: str, seconds: float) -> dict[str, Figure]:
    """One run of a part by a checkout's own interpreter and benchmarks. Raises RuntimeError when it fails."""
    print(f"{part} in {root} …", file=sys.stderr, flush=True)
    python = root / ".venv" / "bin" / "python"
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [str(python), "-m", "benchmarks", part, "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{part} in {root} ended with {done.returncode}: {done.stderr[-2000:]}")
    return figures(done.stdout)


def figures(text: str) -> dict[str, Figure]:
    """The figures of all tables in a Markdown text, by the cells before them in the row, and their column."""
    found: dict[str, Figure] = {}
    seen: Counter[str] = Counter()
    columns: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = _cells(line)
        elif not line.startswith("|---"):
            for name, figure in _of_row(columns, _cells(line)):
                seen[name] += 1
                found[name if seen[name] == 1 else f"{name} ({seen[name]})"] = figure
    return found


def _of_row(columns: Sequence[str], cells: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    """The first column names the row, whatever is in it."""
    parsed = [_figure(cell) if at and columns[at] != "reach" else None for at, cell in enumerate(cells)]
    first = next((at for at, figure in enumerate(parsed) if figure), len(cells))
    row = ", ".join(cells[:first])
    for column, figure in zip(columns[first:], parsed[first:], strict=True):
        if figure:
            yield f"{row}: {column}", figure


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _figure(cell: str) -> Figure | None:
    found = FIGURE.match(cell)
    if found is None or not (found[2] or "." in found[1]):
        return None
    return Figure(float(found[1].replace(",", "")), found[2] or "")


def table(part: str, before: Sequence[Mapping[str, Figure]], now: Sequence[Mapping[str, Figure]]) -> Table:
    """One row for each figure that every run has. `now[i]` was measured between `before[i]` and `before[i + 1]`."""
    names = [name for name in now[0] if all(name in one for one in (*before, *now))]
    rows = tuple(row(name, [one[name] for one in before], [one[name] for one in now]) for name in names)
    notes = (
        f"{len(now)} runs of this checkout, each between two of the other. Before and now: medians. Ratio: now to the "
        "mean of the two runs around it. Before against before: of two successive runs, the worse to the better. Both: "
        f"median of all. ✗: the ratio is above {LIMIT:g} and above before against before. Rows of clients "
        "and libraries that are not ours have no mark: they show what the machine did.",
    )
    return Table(f"{part}: before and now", ("figure", "before", "now", "ratio", "before against before"), rows, notes)


def row(name: str, before: Sequence[Figure], now: Sequence[Figure]) -> tuple[str, ...]:
    middle, ours = (Figure(median([one.value for one in of]), of[0].unit) for of in (before, now))
    if min(one.value for one in (*before, *now)) <= 0:
        return (name, str(middle), str(ours), "", "")
    around = [(one.value + other.value) / 2 for one, other in pairwise(before)]
    ratio = median([one.value / beside for one, beside in zip(now, around, strict=True)])
    spread = median([max(one.value, two.value) / min(one.value, two.value) for one, two in pairwise(before)])
    met = ratio <= max(LIMIT, spread) or (ours.unit == "ms" and ours.value - middle.value < FLOOR_MS)
    mark = "" if any(word in name for word in BESIDE) else " ✓" if met else " ✗"
    return (name, str(middle), str(ours), f"{ratio:.3f}{mark}", f"{spread:.3f}")
