"""The edges of the classic buckets, and why they are these. Pure.

Quantiles are read off the native buckets (`native`). The classic ones are for a Prometheus that does not take those.
Each edge of each histogram is a series in Prometheus, for every target, workload and batch size. So there are two sets:

- lean: few edges at round values, enough to see how times are spread. Prometheus computes a quantile from the bucket
  that holds it, as if the values were spread evenly in that bucket: it may be wrong by the bucket's width, which is
  2 to 4 times, for whole requests up to 6 and for our own delays up to 10 times. Averages do not depend on edges.
- fine: FINE has 25 edges in each factor of ten, each at most 10 % above the one before. So the error of p50, p90 and
  p99 is at most 10 %, from 1 ms to 100 s. It is for time to first token, inter-token latency and time per output token.
  COARSE has 6, for durations of whole probes and requests. RATES has 4, for throughput. OWN has 1, 2 and 5 in each
  factor of ten, for the daemon's overhead and lateness.

`python -m benchmarks buckets` measures the errors; its figures are in benchmarks/RESULTS.md. Every SLO threshold is one
more edge of the histogram that it is for, so that shares at a threshold are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

FINE_DECADE = (
    *(1.0, 1.1, 1.2, 1.32, 1.45, 1.59, 1.74, 1.91, 2.1, 2.3, 2.52, 2.76, 3.03),
    *(3.33, 3.65, 4.0, 4.39, 4.81, 5.27, 5.78, 6.34, 6.95, 7.62, 8.35, 9.15),
)
COARSE_DECADE = (1.0, 1.5, 2.2, 3.3, 4.7, 6.8)
RATE_DECADE = (1.0, 1.8, 3.2, 5.6)
OWN_DECADE = (1.0, 2.0, 5.0)


def scale(decade: Sequence[float], first: int, last: int, *more: float) -> tuple[float, ...]:
    """The edges of a factor of ten, repeated from 10^first up to, and with, 10^last; then `more`."""
    edges = [round(edge * 10.0**power, 6) for power in range(first, last) for edge in decade]
    return (*edges, 10.0**last, *more)


FINE = scale(FINE_DECADE, -3, 2, 110.0, 121.0, 133.0, 146.0, 160.0)
COARSE = scale(COARSE_DECADE, -3, 2, 160.0)
RATES = scale(RATE_DECADE, 0, 6)
OWN = scale(OWN_DECADE, -4, 2, 160.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """The two sets of edges of a histogram."""

    lean: tuple[float, ...]
    fine: tuple[float, ...]


FIRST_TOKEN = Scale((0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0), FINE)
NEXT_TOKENS = Scale((0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0), FINE)
DURATIONS = Scale((0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0), COARSE)
THROUGHPUT = Scale((10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5), RATES)
OVERHEAD = Scale((0.001, 0.005, 0.01, 0.1, 1.0), OWN)
# One for each target.
DELAYS = Scale(OWN, OWN)
# How late answers are read; 2.5 ms is the tolerance of `certainty`.
READ_DELAY = Scale((0.001, 0.0025, 0.01, 0.1, 1.0), (0.001, 0.0025, 0.01, 0.1, 1.0))
# Requests that are to start at once.
SPREAD = Scale((0.001, 0.01, 0.1, 1.0), (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0))
