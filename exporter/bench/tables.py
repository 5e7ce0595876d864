"""The results of a sweep as Markdown tables, JSON and CSV."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tabulate import tabulate

from exporter.bench.compare import Difference, verdict
from exporter.bench.results import Results
from exporter.bench.statistics import Estimate, Shift
from exporter.bench.summary import LATENCY, QUANTILES, THROUGHPUT, Row, ServerRow, rows, server_rows

MISSING = "–"


def parameters_table(results: Results) -> str:
    cells = [(name.replace("_", " ").capitalize(), value) for name, value in results.parameters.items()]
    return tabulate(cells, ["Parameter", "Value"], tablefmt="github", disable_numparse=True)


def as_markdown(results: Results) -> str:
    """The tables of TGI's benchmark tool, and those that say how sure the numbers are; at most 100 columns."""
    latency, throughput = list(rows(results, LATENCY)), list(rows(results, THROUGHPUT))
    parts = [
        parameters_table(results),
        "Latency in milliseconds:",
        _values_table(latency),
        "Latency, 95 % intervals of the percentiles:",
        _interval_table(latency),
        "Throughput in tokens per second:",
        _throughput_table(throughput),
    ]
    if told := list(server_rows(results)):
        parts += ["What the server says one call took, medians in milliseconds:", _server_table(told)]
    return "\n\n".join(parts)


def _values_table(found: Sequence[Row]) -> str:
    cells = [
        [
            *(row.step, row.batch_size),
            *(cell(value, 1e3) for value in (row.average, row.lowest, row.highest)),
            *(cell(value.value, 1e3) for value in row.quantiles or ()),
            *(MISSING for _ in QUANTILES if row.quantiles is None),
        ]
        for row in found
    ]
    return _table(cells, ["Step", "Batch Size", "Average", "Lowest", "Highest", "p50", "p90", "p99"])


def _interval_table(found: Sequence[Row]) -> str:
    cells = [
        [row.step, row.batch_size, row.values, *(interval(one, 1e3) for one in row.quantiles)]
        for row in found
        if row.quantiles is not None
    ]
    return _table(cells, ["Step", "Batch Size", "Values", "p50", "p90", "p99"])


def _throughput_table(found: Sequence[Row]) -> str:
    cells = [
        [
            *(row.step, row.batch_size, row.values),
            *(cell(value) for value in (row.average, row.lowest, row.highest)),
            *((cell(row.quantiles[0].value), interval(row.quantiles[0])) if row.quantiles else (MISSING, MISSING)),
        ]
        for row in found
    ]
    return _table(cells, ["Step", "Batch Size", "Values", "Average", "Lowest", "Highest", "p50", "p50, 95 %"])


def _server_table(found: Sequence[ServerRow]) -> str:
    parts = [part for part in found[0].parts if any(row.parts[part] is not None for row in found)]
    cells = [[row.method, row.batch_size, *(cell(row.parts[part], 1e3) for part in parts)] for row in found]
    return _table(cells, ["Call", "Batch Size", *(part.capitalize() for part in parts)])


def comparison_table(found: Sequence[Difference]) -> str:
    cells = [
        [one.step, one.batch_size, f"{one.change.ratio - 1:+.1%}", reach(one.change), verdict(one)] for one in found
    ]
    return _table(cells, ["What", "Batch Size", "Change", "95 % interval", "Verdict"])


def reach(one: Shift) -> str:
    if one.low is None or one.high is None:
        return MISSING
    return f"{one.low - 1:+.1%} to {one.high - 1:+.1%}"


def _table(cells: list[list[Any]], headers: Sequence[str]) -> str:
    alignment = ("left", *("right" for _ in headers[1:]))
    return tabulate(cells, headers, tablefmt="github", disable_numparse=True, colalign=alignment if cells else None)


def cell(value: float | None, factor: float = 1.0) -> str:
    if value is None:
        return MISSING
    return f"{value * factor:.2f}" if abs(value * factor) < 10_000 else f"{value * factor:.0f}"


def interval(found: Estimate, factor: float = 1.0, written: Callable[[float | None, float], str] = cell) -> str:
    """`1.00 to 2.00`, or the one bound there is."""
    low, high = (written(bound, factor) for bound in (found.low, found.high))
    if found.high is None:
        return MISSING if found.low is None else f"over {low}"
    return f"under {high}" if found.low is None else f"{low} to {high}"


def as_json(results: Results) -> str:
    """The document, and for readers in a hurry the rows of the tables."""
    document = results.model_dump(mode="json")
    for name, steps, factor in (("latency", LATENCY, 1e3), ("throughput", THROUGHPUT, 1.0)):
        document[name] = [dict(_flat(row, factor)) for row in rows(results, steps)]
    return json.dumps(document, indent=2)


def as_csv(results: Results) -> str:
    """A line for each row of the tables."""
    out = io.StringIO()
    found = [
        {"measure": name, "unit": unit} | dict(_flat(row, factor))
        for name, unit, steps, factor in (("latency", "ms", LATENCY, 1e3), ("throughput", "tokens/s", THROUGHPUT, 1.0))
        for row in rows(results, steps)
    ]
    columns = ["measure", "unit", *dict(_flat(Row("", 0, None, None, None, None, 0, 0), 1.0))]
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue()


def _flat(row: Row, factor: float) -> Iterator[tuple[str, object]]:
    def scaled(value: float | None) -> float | None:
        return None if value is None else round(value * factor, 6)

    yield from (("step", row.step), ("batch_size", row.batch_size))
    for name in ("average", "lowest", "highest"):
        yield name, scaled(getattr(row, name))
    for number, q in enumerate(QUANTILES):
        found = row.quantiles[number] if row.quantiles else Estimate(0.0, None, None)
        yield f"p{q * 100:g}", scaled(found.value) if row.quantiles else None
        yield from ((f"p{q * 100:g}_low", scaled(found.low)), (f"p{q * 100:g}_high", scaled(found.high)))
    yield from (("values", row.values), ("withheld", row.withheld))
