"""What every part returns: tables of cells that are text already, written as Markdown."""

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
class Ratio:
    """A figure divided by the bare one of the same run, and whether that is at most `limit`.

    A figure of at most `floor` seconds is within reach whatever the ratio: below it, both are noise.
    """

    figure: float
    bare: float
    limit: float
    floor: float = 0.0

    @property
    def value(self) -> float:
        return self.figure / self.bare if self.bare > 0 else float("inf")

    def __str__(self) -> str:
        met = self.value <= self.limit or self.figure <= self.floor
        floor = f" or {self.floor * 1e3:g} ms" if self.floor else ""
        return f"{self.value:.3f} (≤ {self.limit:g}{floor} {'✓' if met else '✗'})"


@dataclass(frozen=True, slots=True)
class Table:
    """A row is named by its cells before the first figure; no two columns have one name. `against.py` relies on both.

    `notes` say how it was measured.
    """

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
    """One program of the suite. `run` gets the seconds it may take; `decision` is what such figures led to."""

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


def spread(values: Sequence[float], unit: str) -> str:
    """`median unit (lowest to highest)`."""
    return f"{median(values):.3f} {unit} ({min(values):.3f} to {max(values):.3f})"


def milliseconds(seconds: float, digits: int = 3) -> str:
    return f"{seconds * 1e3:.{digits}f} ms"


def machine() -> list[str]:
    """Processor, kernel, versions and load, a line each."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("anyio", "grpcio", "prometheus_client", "protobuf"))
    load = os.getloadavg()
    return [
        f"{os.cpu_count()} cores of {cpu}, {platform.system()} {platform.release()}",
        f"Python {platform.python_version()}, {packages}",
        f"load average at the start {load[0]:.2f} (1 min), {load[1]:.2f} (5 min)",
    ]
