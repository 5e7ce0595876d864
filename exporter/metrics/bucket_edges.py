"""The bucket edges of the histograms, and why they are these. Pure.

Prometheus reads a quantile off a histogram by drawing a straight line through the bucket that holds it. A service whose
times hardly vary, as a decode step's do, has them all in one bucket, so its 99th percentile may be read as the bucket's
upper edge when all values were at its lower one: the error is the width of the bucket. Hence:

- FINE: 25 edges in each factor of ten, each at most a tenth above the last: p50, p90 and p99 of any service from 1 ms
  to 100 s are read with at most 10 % error. Time to first token, inter-token latency, time per output token.
- COARSE: 6 in each factor of ten, off by up to a half where times hardly vary. Durations of whole probes and requests,
  which follow from the others.
- RATES: 4 in each factor of ten; throughput is tokens divided by such a duration, and a gauge holds the newest.
- OWN: the daemon's overhead and lateness, from 0.1 ms: 1, 2, 5 tell healthy from not.

Twelve edges in each factor of ten for everything, the obvious choice, are as many series but off by a fifth where it
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
