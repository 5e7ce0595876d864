"""Parts of PromQL expressions, as text."""

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


def native(histogram: str, by: str, window: str = RANGE, where: str = CHOSEN, offset: str = "") -> str:
    """The native histogram of what was observed within the window; none in a Prometheus that has only classic ones."""
    return f"sum by ({by}) (increase({histogram}{{{where}}}[{window}]{offset}))"


def mean(histogram: str, by: str, window: str = RANGE, where: str = CHOSEN, offset: str = "") -> str:
    """Average of a histogram's observations, whether it is native or classic; no sample where there was none."""

    def part(function: str, suffix: str) -> str:
        classic = f"sum by ({by}) (increase({histogram}_{suffix}{{{where}}}[{window}]{offset}))"
        return f"(histogram_{function}({native(histogram, by, window, where, offset)}) or {classic})"

    return f"{part('sum', 'sum')} / ({part('count', 'count')} > 0)"


def mean_of_summary(summary: str, by: str, window: str = RANGE, where: str = CHOSEN) -> str:
    """Average of a summary's observations; no sample where there was none."""
    count = increase(f"{summary}_count", by, window, where)
    return f"{increase(f'{summary}_sum', by, window, where)} / ({count} > 0)"


def quantile(q: float, histogram: str, by: str = "", window: str = RANGE, where: str = CHOSEN) -> str:
    """A quantile of a histogram, native or classic, to a millionth.

    No sample where there was no observation, so that lines bridge gaps. For the lowest value use `LOWEST`: q = 0 would
    be the edge of an empty bucket.
    """
    classic = increase(f"{histogram}_bucket", f"le, {by}" if by else "le", window, where)
    either = (
        f"histogram_quantile({q:.9g}, {native(histogram, by, window, where)}) or histogram_quantile({q:.9g}, {classic})"
    )
    return f"round({either}, 0.000001) >= 0"


LOWEST, HIGHEST = 1e-9, 1.0


def within(value: str, condition: str, on: str) -> str:
    """The samples of `value` whose labels `on` are among those of `condition`."""
    return f"({value}) and on ({on}) ({condition})"


def named(value: str, label: str, text: str) -> str:
    return f'label_replace({value}, "{label}", "{text}", "", "")'


def buckets(histogram: str, window: str, where: str = CHOSEN) -> str:
    """For a heatmap: one native histogram, or the cumulative buckets of a classic one."""
    return f"{native(histogram, '', window, where)} or {increase(f'{histogram}_bucket', 'le', window, where)}"
