"""The common way to report: rows with their reach become a Markdown table. A part returns tables, nothing else."""

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Reach:
    """What a figure should be at most, and whether it is."""

    figure: float
    limit: float
    unit: str = ""

    def __str__(self) -> str:
        return f"≤ {self.limit:g}{self.unit} {'✓' if self.figure <= self.limit else '✗'}"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are text already, so that a part decides on digits. `notes` say how it was measured."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        lines = [f"### {self.title}", ""]
        lines += [f"{note}\n" for note in self.notes]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("|" + "---|" * len(self.columns))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Part:
    """One of the suite's programs. `run` gets the seconds it may take; `decision` is what such figures led to."""

    name: str
    title: str
    run: Callable[[float], list[Table]] = field(repr=False)
    decision: str = ""


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that is not less than the share `q` of all."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(q * len(ordered) * 1_000_000) // 1_000_000) - 1))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (lowest to highest)`."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def milliseconds(seconds: float, digits: int = 2) -> str:
    return f"{seconds * 1e3:.{digits}f} ms"


def machine() -> list[str]:
    """What it ran on."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "protobuf", "prometheus_client", "cheroot"))
    load = os.getloadavg()
    return [
        f"{os.cpu_count()} cores of {cpu}, {platform.system()} {platform.release()}",
        f"Python {platform.python_version()}, {packages}",
        f"load average at the start {load[0]:.2f} (1 min), {load[1]:.2f} (5 min)",
    ]
