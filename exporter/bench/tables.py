"""The results of a sweep as rows of latency and throughput, and as a table, JSON or CSV."""

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from exporter.analysis.certainty import Measure, Recorded, mean, recorded
from exporter.observation import Observation

# By step: its value, and as which measure that is withheld.
Measures = Mapping[str, tuple[Callable[[Recorded], float | None], Measure]]
# The steps of TGI's benchmark tool. Seconds, and tokens per second.
LATENCY: Measures = {
    "Prefill": (lambda seen: seen.prefill, Measure.PREFILL_RATE),
    "Decode (token)": (lambda seen: mean(seen.per_output_token), Measure.PER_OUTPUT_TOKEN),
    "Decode (total)": (lambda seen: seen.decode, Measure.DECODE),
}
THROUGHPUT: Measures = {
    "Prefill": (lambda seen: seen.prefill_rate, Measure.PREFILL_RATE),
    "Decode": (lambda seen: seen.decode_rate, Measure.DECODE_RATE),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a step at a batch size. Latency in milliseconds, throughput in tokens per second.

    `values` counts those that the numbers are made of; they are None where all were `withheld`.
    """

    step: str
    batch_size: int
    average: float | None
    lowest: float | None
    highest: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    values: int
    withheld: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one sweep found. `stopped` says why it ended before its last batch size, None when it did not."""

    parameters: dict[str, Any]
    latency: list[Row]
    throughput: list[Row]
    stopped: str | None


def latency_rows(batch_size: int, observations: Sequence[Observation]) -> Iterator[Row]:
    """Of the certain values; no decode rows where nothing was decoded."""
    return _rows(batch_size, LATENCY, observations, 1000)


def throughput_rows(batch_size: int, observations: Sequence[Observation]) -> Iterator[Row]:
    return _rows(batch_size, THROUGHPUT, observations)


def _rows(
    batch_size: int, measures: Measures, observations: Sequence[Observation], factor: float = 1.0
) -> Iterator[Row]:
    seen = [recorded(observation) for observation in observations]
    for step, (value_of, measure) in measures.items():
        values = [value * factor for one in seen if (value := value_of(one)) is not None]
        withheld = sum(value_of(one) is None and measure in one.withheld for one in seen)
        if values or withheld:
            yield summary(step, batch_size, values, withheld)


def summary(step: str, batch_size: int, values: Sequence[float], withheld: int = 0) -> Row:
    """Percentiles interpolate between the two nearest values; a single value is all its percentiles."""
    if not values:
        return Row(step, batch_size, None, None, None, None, None, None, 0, withheld)
    ordered = sorted(values)
    cuts = statistics.quantiles(ordered, n=100, method="inclusive") if len(ordered) > 1 else ordered * 99
    average = math.fsum(ordered) / len(ordered)
    found = (average, ordered[0], ordered[-1], cuts[49], cuts[89], cuts[98])
    return Row(step, batch_size, *found, len(ordered), withheld)


def withheld_lines(result: Sweep) -> Iterator[str]:
    """Which values are missing, and why: a line for each row that lacks some."""
    for measure, rows in (("latency", result.latency), ("throughput", result.throughput)):
        for row in rows:
            if row.withheld:
                yield (
                    f"{row.step.lower()} {measure}: {row.withheld} of {row.values + row.withheld} values withheld "
                    f"at batch size {row.batch_size}: this machine was busy"
                )


def as_table(result: Sweep) -> str:
    from tabulate import tabulate

    def table(rows: list[Row], unit: str, columns: Sequence[str]) -> str:
        cells = [[row.step, row.batch_size, *(_cell(getattr(row, column), unit) for column in columns)] for row in rows]
        headers = ["Step", "Batch Size", *(column if column[0] == "p" else column.capitalize() for column in columns)]
        return tabulate(cells, headers, tablefmt="github", stralign="right")

    parameters = [(name.replace("_", " ").capitalize(), value) for name, value in result.parameters.items()]
    parts = [
        tabulate(parameters, ["Parameter", "Value"], tablefmt="github", disable_numparse=True),
        table(result.latency, "ms", ("average", "lowest", "highest", "p50", "p90", "p99")),
        table(result.throughput, "tokens/s", ("average", "lowest", "highest")),
    ]
    if lines := "\n".join(withheld_lines(result)):
        parts.append(lines)
    return "\n\n".join(parts)


def _cell(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.2f} {unit}"


def as_json(result: Sweep) -> str:
    return json.dumps(asdict(result), indent=2)


def as_csv(result: Sweep) -> str:
    out = io.StringIO()
    columns = list(Row.__dataclass_fields__)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["measure", "unit", *columns])
    for measure, unit, rows in (("latency", "ms", result.latency), ("throughput", "tokens/s", result.throughput)):
        writer.writerows([measure, unit, *(getattr(row, column) for column in columns)] for row in rows)
    return out.getvalue().rstrip()


FORMATS = {"table": as_table, "json": as_json, "csv": as_csv}
