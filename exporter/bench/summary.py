"""From the raw values of a sweep to the rows of its tables, each quantile with its interval. Pure."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from exporter.bench.results import BatchSize, Results, Run
from exporter.bench.statistics import Estimate, drift, estimate, estimate_of_groups, quantile, unsettled

QUANTILES = (0.5, 0.9, 0.99)
# By step: its values of one run. The steps of TGI's benchmark tool; it has one value of a run, however many steps that
# run had, so "Decode (step)" has each of them, and "First token" that of each request.
Values = Callable[[Run], Sequence[float]]


def single(key: str) -> Values:
    return lambda run: () if (value := getattr(run, key)) is None else (value,)


LATENCY: dict[str, tuple[Values, str]] = {
    "Prefill": (single("prefill_seconds"), "prefill_seconds"),
    "First token": (lambda run: run.first_seconds, ""),
    "Decode (token)": (single("token_seconds"), "token_seconds"),
    "Decode (step)": (lambda run: run.step_seconds, ""),
    "Decode (total)": (single("decode_seconds"), "decode_seconds"),
}
THROUGHPUT: dict[str, tuple[Values, str]] = {
    "Prefill": (single("prefill_tokens_per_second"), "prefill_tokens_per_second"),
    "Decode": (single("decode_tokens_per_second"), "decode_tokens_per_second"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """A step at a batch size: seconds, or tokens per second. `values` counts those that are not `withheld`.

    `average` and the others are None where there is no value; `quantiles` are those of QUANTILES.
    """

    step: str
    batch_size: int
    average: float | None
    lowest: float | None
    highest: float | None
    quantiles: tuple[Estimate, ...] | None
    values: int
    withheld: int


def steady(block: BatchSize) -> tuple[Run, ...]:
    """The counted runs without those at the beginning that still belong to the warm-up."""
    runs = block.counted
    return runs[max((unsettled(values) for values in _all_run_by_run(runs)), default=0) :]


def _all_run_by_run(runs: Sequence[Run]) -> Iterator[list[float]]:
    """Prefill and decode durations over the runs, where no run lacks its own."""
    for key in ("prefill_seconds", "decode_seconds"):
        values = [value for run in runs if (value := getattr(run, key)) is not None]
        if len(values) == len(runs):
            yield values


def rows(results: Results, steps: dict[str, tuple[Values, str]]) -> Iterator[Row]:
    """A row for each step of each batch size that has values, or withheld ones."""
    for block in results.batch_sizes:
        runs = steady(block)
        for step, (values_of, key) in steps.items():
            groups = [values for run in runs if (values := values_of(run))]
            withheld = sum(key in run.withheld for run in runs)
            if step == "First token" and results.target.get("kind") == "shard":
                continue  # a shard answers all requests of a batch at once
            if groups or withheld:
                yield row(step, block.batch_size, groups, withheld)


def row(step: str, batch_size: int, groups: Sequence[Sequence[float]], withheld: int = 0) -> Row:
    """Of the values of each run. Where a run has several, they are not taken for independent."""
    values = [value for group in groups for value in group]
    if not values:
        return Row(step, batch_size, None, None, None, None, 0, withheld)
    several = any(len(group) > 1 for group in groups)
    quantiles = tuple(estimate_of_groups(groups, q) if several else estimate(values, q) for q in QUANTILES)
    average = math.fsum(values) / len(values)
    return Row(step, batch_size, average, min(values), max(values), quantiles, len(values), withheld)


@dataclass(frozen=True, slots=True)
class ServerRow:
    """The median of what the server says a call took in all, and in its parts; seconds. None: it does not say."""

    method: str
    batch_size: int
    parts: dict[str, float | None]


def server_rows(results: Results) -> Iterator[ServerRow]:
    for block in results.batch_sizes:
        for method in ("prefill", "decode"):
            parts: dict[str, float | None] = {}
            for part in ("forward", "decode", "concat", "total"):
                values = [
                    told for run in steady(block) if (told := run.server_seconds.get(f"{method}_{part}")) is not None
                ]
                parts[part] = estimate(values, 0.5).value if values else None
            if any(value is not None for value in parts.values()):
                yield ServerRow(method.capitalize(), block.batch_size, parts)


def curve(results: Results, phase: str) -> Iterator[tuple[int, float, float]]:
    """Batch size, seconds and tokens per second of prefill or decode: the medians, where there are both."""
    wait = {"prefill": "prefill_seconds", "decode": "token_seconds"}[phase]
    for block in sorted(results.batch_sizes, key=lambda block: block.batch_size):
        runs = steady(block)
        seconds, rates = (
            sorted(value for run in runs if (value := getattr(run, key)) is not None)
            for key in (wait, f"{phase}_tokens_per_second")
        )
        if seconds and rates:
            yield block.batch_size, quantile(seconds, 0.5), quantile(rates, 0.5)


def remarks(results: Results) -> Iterator[str]:
    """What the tables do not show: values that are missing, runs that were left out, drift."""
    for block in results.batch_sizes:
        where = f"batch size {block.batch_size}"
        runs = steady(block)
        if left_out := len(block.counted) - len(runs):
            first = "the first run" if left_out == 1 else f"the first {left_out} runs"
            yield f"{where}: {first} left out: not yet like the later ones"
        for step, key in (("Prefill", "prefill_seconds"), ("Decode", "decode_seconds")):
            values = [value for run in runs if (value := getattr(run, key)) is not None]
            if (share := drift(values)) is not None:
                how = f"{abs(share):.1%} {'slower' if share > 0 else 'faster'}"
                yield f"{where}: {step.lower()} became {how} from the first to the last third of the runs"
    for name, steps in (("latency", LATENCY), ("throughput", THROUGHPUT)):
        for step in steps:
            lacking = [one for one in rows(results, {step: steps[step]}) if one.withheld]
            if lacking:
                where = ", ".join(
                    f"batch size {one.batch_size} ({one.withheld} of {one.values + one.withheld})" for one in lacking
                )
                yield f"{step.lower()} {name}: values withheld at {where}: this machine was busy"
    if results.stopped:
        yield f"ended early: {results.stopped}"
