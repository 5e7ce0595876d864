"""How far quantiles read off our buckets are from the exact ones of the same values."""

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from benchmarks.report import Part, Reach, Table, median, quantile
from exporter.metrics import bucket_edges, native

QUANTILES = (0.5, 0.9, 0.99)
FASTEST, SLOWEST = 0.001, 100.0
SERVICES_PER_SECOND = 4
VALUES = 1000

Draw = Callable[[random.Random], float]
# Times of a service in units of its median.
SERVICES: dict[str, Draw] = {
    "constant": lambda rng: 1.0,
    "varies by 0.5 %": lambda rng: rng.gauss(1, 0.005),
    "varies by 2 %": lambda rng: rng.gauss(1, 0.02),
    "varies by 10 %": lambda rng: rng.lognormvariate(0, 0.1),
    "varies by 30 %": lambda rng: rng.lognormvariate(0, 0.3),
    "varies by 80 %": lambda rng: rng.lognormvariate(0, 0.7),
    "two speeds (15 % take 3 times as long)": lambda rng: rng.gauss(1, 0.03) * (3 if rng.random() < 0.15 else 1),
}
TWELVE = bucket_edges.scale((1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2), -3, 2, 120.0, 160.0)
SCALES = {"FINE": bucket_edges.FINE, "twelve per decade": TWELVE, "COARSE": bucket_edges.COARSE}


# Those of native histograms are compared over a wider range: they have no last edge.
SCHEMAS = (3, native.SCHEMA, 5)
NATIVE_FASTEST, NATIVE_SLOWEST = 0.0001, 1000.0
NATIVE_LIMIT_PERCENT = 5


def run(seconds: float) -> list[Table]:
    return [native_errors(seconds / 2), errors(seconds / 2), series()]


def native_errors(seconds: float) -> Table:
    rng = random.Random(7)
    count = max(60, int(seconds * SERVICES_PER_SECOND))
    rows = []
    for name, draw in SERVICES.items():
        found: dict[int, list[list[float]]] = {schema: [[] for _ in QUANTILES] for schema in SCHEMAS}
        buckets: dict[int, list[float]] = {schema: [] for schema in SCHEMAS}
        for number in range(count):
            center = NATIVE_FASTEST * (NATIVE_SLOWEST / NATIVE_FASTEST) ** ((number + rng.random()) / count)
            values = sorted(center * draw(rng) for _ in range(VALUES))
            for schema in SCHEMAS:
                edges, cumulative = exponential(values, schema)
                buckets[schema].append(sum(one < other for one, other in pairwise(cumulative)))
                for place, q in enumerate(QUANTILES):
                    read = histogram_quantile(q, edges, cumulative)
                    found[schema][place].append(abs(read / quantile(values, q) - 1))
        chosen = [max(of) for of in found[native.SCHEMA]]
        rows.append(
            (
                name,
                *(f"{error:.1%}" for error in chosen),
                str(Reach(max(chosen) * 100, NATIVE_LIMIT_PERCENT, " %")),
                f"{median(buckets[native.SCHEMA]):.0f}",
                *(
                    text
                    for schema in SCHEMAS
                    if schema != native.SCHEMA
                    for text in (f"{max(map(max, found[schema])):.1%}", f"{median(buckets[schema]):.0f}")
                ),
            )
        )
    notes = (
        f"As below, for native histograms, from {NATIVE_FASTEST * 1e3:g} ms to {NATIVE_SLOWEST:g} s: the largest error "
        f"of each quantile with schema {native.SCHEMA}, which is used, and of all three with others. Buckets: how many "
        f"hold a value, in the median. Linear inside a bucket, as Prometheus 2 computes it.",
    )
    others = [(f"schema {schema}", f"buckets of schema {schema}") for schema in SCHEMAS if schema != native.SCHEMA]
    columns = ("service", "native p50", "p90", "p99", "reach", "buckets", *(text for pair in others for text in pair))
    return Table("Quantiles read off native buckets", columns, tuple(rows), notes)


def exponential(values: Sequence[float], schema: int) -> tuple[list[float], list[int]]:
    """The edges of the buckets that hold the sorted values, with those between them, and how many are below each."""
    counts = Counter(native.bucket_number(value, schema) for value in values)
    numbers = range(min(counts) - 1, max(counts) + 1)
    edges = [2.0 ** (number / 2**schema) for number in numbers]
    return edges, list(accumulate(counts[number] for number in numbers))


def errors(seconds: float) -> Table:
    rng = random.Random(6)
    count = max(60, int(seconds * SERVICES_PER_SECOND))
    rows = []
    for name, draw in SERVICES.items():
        found: dict[str, list[list[float]]] = {scale: [[] for _ in QUANTILES] for scale in SCALES}
        for number in range(count):
            center = FASTEST * (SLOWEST / FASTEST) ** ((number + rng.random()) / count)
            values = sorted(center * draw(rng) for _ in range(VALUES))
            for scale, edges in SCALES.items():
                for place, error in enumerate(relative_errors(values, edges)):
                    if error is not None:
                        found[scale][place].append(error)
        fine = [max(of) for of in found["FINE"]]
        others = [f"{max(max(of) for of in found[scale]):.1%}" for scale in SCALES if scale != "FINE"]
        typical = median([error for of in found["FINE"] for error in of])
        rows.append(
            (
                name,
                *(f"{error:.1%}" for error in fine),
                str(Reach(max(fine) * 100, 10, " %")),
                f"{typical:.1%}",
                *others,
            )
        )
    notes = (
        f"Largest relative error of `histogram_quantile` over {count} services of each kind, their medians spread "
        f"evenly from {FASTEST * 1e3:g} ms to {SLOWEST:g} s, {VALUES} values each, against the exact quantile of the "
        f"same values. Quantiles above the last edge ({bucket_edges.FINE[-1]:g} s) are left out, read as that edge.",
    )
    columns = ("service", "FINE p50", "p90", "p99", "reach", "typical", *(name for name in SCALES if name != "FINE"))
    return Table("Quantiles read off the buckets", columns, tuple(rows), notes)


def relative_errors(values: Sequence[float], edges: Sequence[float]) -> list[float | None]:
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[bisect_left(edges, value)] += 1
    cumulative = list(accumulate(counts))
    found: list[float | None] = []
    for q in QUANTILES:
        exact = quantile(values, q)
        found.append(abs(histogram_quantile(q, edges, cumulative) / exact - 1) if exact <= edges[-1] else None)
    return found


def histogram_quantile(q: float, edges: Sequence[float], cumulative: Sequence[int]) -> float:
    """As Prometheus computes it: linear inside the bucket, from 0 in the first one, never beyond the last edge."""
    rank = q * cumulative[-1]
    place = bisect_left(cumulative, rank)
    if place >= len(edges):
        return edges[-1]
    start = edges[place - 1] if place else 0.0
    before = cumulative[place - 1] if place else 0
    return start + (edges[place] - start) * (rank - before) / (cumulative[place] - before)


def series() -> Table:
    """What the choice costs: lines on the page for one target, workload and batch size."""
    extra = 4  # +Inf, _count, _sum, _created
    rows = []
    total_fine = total_lean = 0
    for what, histograms, scale in (
        ("time to first token", 1, bucket_edges.FIRST_TOKEN),
        ("inter-token latency, time per output token", 2, bucket_edges.NEXT_TOKENS),
        ("decode and request duration", 2, bucket_edges.DURATIONS),
        ("prefill and decode throughput", 2, bucket_edges.THROUGHPUT),
        ("overhead of prefill and decode", 2, bucket_edges.OVERHEAD),
    ):
        fine, lean = (histograms * (len(edges) + extra) for edges in (scale.fine, scale.lean))
        total_fine, total_lean = total_fine + fine, total_lean + lean
        rows.append((what, str(len(scale.fine)), str(fine), str(len(scale.lean)), str(lean), str(histograms)))
    rows.append(("all", "", str(total_fine), "", str(total_lean), "9"))
    columns = ("histograms", "fine edges", "fine series", "lean edges", "lean series", "native series")
    return Table("Series of histograms for one target, workload and batch size", columns, tuple(rows))


PART = Part(
    "buckets",
    "The measuring instrument itself",
    run,
    "native buckets of schema 4: below 5 % everywhere, and few buckets where times hardly vary. Classic edges are few "
    "by default, since each is a series. See `exporter/metrics/bucket_edges.py`.",
)
