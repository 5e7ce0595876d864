"""The bucket edges of the histograms, and why they are these. Pure.

Prometheus computes a quantile from the bucket that holds it, as if the values were spread evenly in that bucket. Where
times hardly vary, as those of decode steps, all values are in one bucket. They may all be at its lower edge, and
Prometheus still computes a 99th percentile near its upper edge. So the error is up to the width of the bucket.

- FINE: 25 edges in each factor of ten, each at most 10 % above the one before. So the error of p50, p90 and p99 is at
  most 10 %, from 1 ms to 100 s. For time to first token, inter-token latency and time per output token.
- COARSE: 6 edges in each factor of ten. Where times hardly vary, the error is up to 50 %. For durations of whole probes
  and requests, which follow from the others.
- RATES: 4 edges in each factor of ten. For throughput, which is tokens divided by such a duration; a gauge holds the
  newest value.
- OWN: 1, 2 and 5 in each factor of ten, from 0.1 ms. For the daemon's overhead and lateness: enough to tell healthy
  from not.

Twelve edges in each factor of ten for all histograms would be as many series, with errors of up to 20 % where it
matters. `python -m benchmarks buckets` measures this; its figures are in benchmarks/RESULTS.md. Every SLO threshold
is one more edge of every histogram in seconds, so that shares at a threshold are exact.
"""

from collections.abc import Sequence

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
# How late answers are read: well, within the tolerance of `certainty`, and beyond it.
READ_DELAY = (0.001, 0.0025, 0.01, 0.1, 1.0)
# Requests that are to start at once.
SPREAD = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0)
