"""Parts of PromQL expressions, as text."""

from exporter.observation import NOT_JUDGED, Outcome

RATE = "$__rate_interval"
RANGE = "$__range"
# Outcomes that are no failure of a target: it was good, or nothing was learned about it.
NO_FAILURES = "|".join([Outcome.OK, *sorted(NOT_JUDGED)])
# What the variables at the top of a dashboard choose.
CHOSEN = 'target=~"$target", workload=~"$workload", batch_size=~"$batch_size"'
FAILED = f'{CHOSEN}, outcome!~"{NO_FAILURES}"'
JUDGED = f'{CHOSEN}, outcome!~"{"|".join(sorted(NOT_JUDGED))}"'


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


def newest_quantile(q: float, what: str, by: str) -> str:
    """A quantile of the newest probes' values, as they were scraped within the time range.

    These are values that were measured. A quantile of a classic histogram would be a place within a bucket.
    """
    return f"max by ({by}) (quantile_over_time({q:g}, (tgi_probe_last_{what}{{{CHOSEN}}} >= 0)[{RANGE}:$__interval]))"


def share_above(edge: float, histogram: str, by: str, window: str, where: str) -> str:
    """The share of a histogram's observations above an edge of its classic buckets, native or classic."""
    observed = native(histogram, by, window, where)
    edges = (f'{{{where}, le="{le}"}}' for le in (f"{edge:g}", "+Inf"))
    below, all_of_them = (f"sum by ({by}) (increase({histogram}_bucket{edge}[{window}]))" for edge in edges)
    return f"(histogram_fraction({edge:g}, +Inf, {observed}) or 1 - {below} / ({all_of_them} > 0))"


def within(value: str, condition: str, on: str) -> str:
    """The samples of `value` whose labels `on` are among those of `condition`."""
    return f"({value}) and on ({on}) ({condition})"


def named(value: str, label: str, text: str) -> str:
    return f'label_replace({value}, "{label}", "{text}", "", "")'


def buckets(histogram: str, window: str, where: str = CHOSEN) -> str:
    """For a heatmap: one native histogram, or the cumulative buckets of a classic one."""
    return f"{native(histogram, '', window, where)} or {increase(f'{histogram}_bucket', 'le', window, where)}"
