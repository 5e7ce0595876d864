"""How far quantiles read off our buckets are from the exact ones of the same values."""

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate

from benchmarks.report import Part, Reach, Table, median, quantile
from exporter.metrics import bucket_edges

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


def run(seconds: float) -> list[Table]:
    return [errors(seconds), series()]


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
    extra = 3  # +Inf, _count, _sum
    rows = []
    total = 0
    for what, histograms, edges in (
        ("FINE: time to first token, inter-token latency, time per output token", 3, bucket_edges.FINE),
        ("COARSE: decode and request duration", 2, bucket_edges.COARSE),
        ("RATES: prefill and decode throughput", 2, bucket_edges.RATES),
        ("OWN: overhead of prefill and decode", 2, bucket_edges.OWN),
    ):
        lines = histograms * (len(edges) + extra)
        total += lines
        rows.append((what, str(len(edges)), str(lines)))
    rows.append(("all", "", str(total)))
    rows.append(("twelve per decade for all of them", str(len(TWELVE)), str(9 * (len(TWELVE) + extra))))
    return Table("Series for one target, workload and batch size", ("scale", "edges", "series"), tuple(rows))


PART = Part(
    "buckets",
    "The measuring instrument itself",
    run,
    "FINE edges where times hardly vary and people look at quantiles, fewer for the other histograms; in sum fewer "
    "series than twelve edges per decade for all. See `exporter/metrics/bucket_edges.py`.",
)
