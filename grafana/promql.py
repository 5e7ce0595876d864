"""Parts of PromQL expressions, as text."""

from collections.abc import Sequence

from exporter.metrics.bucket_edges import FINE_DECADE

RATE = "$__rate_interval"
RANGE = "$__range"
# What the variables at the top of a dashboard choose.
CHOSEN = 'target=~"$target", workload=~"$workload", batch_size=~"$batch_size"'


def increase(metric: str, by: str, window: str = RANGE, where: str = CHOSEN) -> str:
    """How much a counter grew within the window, summed up by labels."""
    return f"sum by ({by}) (increase({metric}{{{where}}}[{window}]))"


def rate(metric: str, by: str, window: str = RATE, where: str = CHOSEN) -> str:
    """Per second."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[{window}]))"


def mean(histogram: str, by: str, window: str = RANGE, where: str = CHOSEN) -> str:
    """Average of a histogram's or a summary's observations; no sample where there was none."""
    count = increase(f"{histogram}_count", by, window, where)
    return f"{increase(f'{histogram}_sum', by, window, where)} / ({count} > 0)"


def quantile(q: float, histogram: str, by: str = "", window: str = RANGE, where: str = CHOSEN) -> str:
    """A quantile of a histogram, to a millionth; no sample where there was no observation, so that lines bridge gaps.

    For the lowest value use `LOWEST`: q = 0 would be the edge of an empty bucket.
    """
    edges = increase(f"{histogram}_bucket", f"le, {by}" if by else "le", window, where)
    return f"round(histogram_quantile({q:.9g}, {edges}), 0.000001) >= 0"


LOWEST, HIGHEST = 1e-9, 1.0


def within(value: str, condition: str, on: str) -> str:
    """The samples of `value` whose labels `on` are among those of `condition`."""
    return f"({value}) and on ({on}) ({condition})"


def named(value: str, label: str, text: str) -> str:
    return f'label_replace({value}, "{label}", "{text}", "", "")'


def whole(value: str) -> str:
    """Writes whole bucket edges as Prometheus 2 stores them: "1.0", where count_values gives "1"."""
    return f'label_replace({value}, "le", "$1.0", "le", "([0-9]+)")'


def edges(per_decade: int, decade: Sequence[float] = FINE_DECADE) -> str:
    """A matcher for fewer bucket edges, `per_decade` in each factor of ten, for panels without room for all."""
    step = round(len(decade) / per_decade)
    # Not the last ones, which would be too close to the 1 of the next decade.
    digits = [f"{edge:g}".replace(".", "") for edge in decade[: len(decade) - step // 2 : step]]
    written = "|".join("[.]?".join(digit) for digit in digits)
    return f'le=~"[0.]*({written})[0.]*|[+]Inf"'


def zoomed_buckets(histogram: str, window: str, where: str = CHOSEN) -> str:
    """Cumulative buckets of a heatmap, without the empty ones below the lowest and above the highest of the time range.

    histogram_quantile gives the highest edge as a value, and count_values makes it a label again. Rounding removes what
    the interpolation adds.
    """
    name = f"{histogram}_bucket"
    seen = f"sum by (le) (increase({name}{{{where}}}[{RANGE}] @ end()))"
    total = f'scalar(sum(increase({name}{{{where}, le="+Inf"}}[{RANGE}] @ end())))'
    top = whole(f'count_values("le", round(histogram_quantile(1, {seen}), 0.000001))')
    below = f'scalar(max(sum by (le) (increase({name}{{{where}, le!="+Inf"}}[{RANGE}] @ end()))))'
    above = f'sum by (le) (increase({name}{{{where}, le="+Inf"}}[{RANGE}] @ end())) > {below} * 1.000000001'
    used = f"({seen} > 0 < {total} * 0.999999999) or {top} or {above}"
    return f"{increase(name, 'le', window, where)} and on (le) ({used})"
