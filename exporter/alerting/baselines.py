"""Regressions: each series against its own past week, for latency, throughput and the largest good batch size. Pure.

A baseline is the median of a week of recorded values, so that one bad day does not change it. It needs a day of
history; before, its alerts do not fire. What stays worse for half a week becomes the baseline.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from exporter.alerting import promql
from exporter.alerting.burn_rates import between_probes, rounded_up
from exporter.alerting.observed import Observed
from exporter.alerting.rule_types import BATCH_SIZE, TARGET, WORKLOAD, Options, Rule, group, recording
from exporter.alerting.slo_rules import RuleInputs
from exporter.config.settings import Settings

EVALUATION = 60.0  # seconds between two recorded values
WEEK, LEAST_HISTORY = 7.0, 1.0  # days
ROUNDS = 10
# A smaller difference of latencies is noise, whatever the factor. Seconds.
NOISE = 0.002
# From this many bad probes on, allowing for extrapolation, a batch size does not meet its SLO.
BAD_PROBES = 2.5


@dataclass(frozen=True, slots=True)
class ComparedMetric:
    """A histogram that is compared with its past. `unit` follows the value in the alert's text.

    A latency by its median, which one slow request does not move. A throughput by its average: no slow request moves
    it far, and it does not depend on buckets, which for throughput are wide.
    """

    alert: str
    histogram: str
    what: str
    unit: str
    higher_is_worse: bool


METRICS = (
    ComparedMetric("TgiProbeTtftRegressed", "time_to_first_token_seconds", "time to first token", "s", True),
    ComparedMetric(
        "TgiProbeInterTokenLatencyRegressed", "inter_token_latency_seconds", "inter-token latency", "s", True
    ),
    ComparedMetric(
        "TgiProbeThroughputRegressed", "decode_throughput_tokens_per_second", "decode throughput", " tokens/s", False
    ),
    ComparedMetric(
        "TgiProbeThroughputRegressed", "prefill_throughput_tokens_per_second", "prefill throughput", " tokens/s", False
    ),
)


def rules(settings: Settings, found: list[RuleInputs], options: Options) -> dict[str, Any]:
    interval = max(options.scrape_interval, EVALUATION * options.time_scale)
    longest = max((between_probes(workload) for workload in settings.workloads), default=0.0)
    window = rounded_up(max(options.hours(1), ROUNDS * longest))
    fine = settings.histograms.classic == "fine"
    regressions = (_regression(metric, window, interval, options, fine) for metric in METRICS)
    several = (inputs for inputs in found if len(inputs.schedule.batch_sizes) > 1)
    knees = (_knee(inputs, window, interval, options) for inputs in several)
    return group("tgi-probe-baselines", chain(*regressions, *knees), interval)


def _baseline(record: str, window: float, interval: float, options: Options) -> str:
    """The median of the past week, leaving out the window that is compared with it; nothing without enough history."""
    past = f"{record}[{promql.duration(options.days(WEEK))}] offset {promql.duration(window)}"
    enough = promql.number(int(options.days(LEAST_HISTORY) / interval))
    return f"quantile_over_time(0.5, {past})\nand count_over_time({past}) >= {enough}"


def _regression(metric: ComparedMetric, window: float, interval: float, options: Options, fine: bool) -> Iterator[Rule]:
    """`fine`: whether classic buckets are narrow enough for a median. Between two lean edges it may seem to double when
    it moves by a tenth.
    """
    span, factor = promql.duration(window), promql.number(options.regression_factor)
    short, statistic = ("median", "median") if metric.higher_is_worse else ("mean", "average")
    now, usual = f"tgi_probe:{metric.histogram}:{short}_{span}", f"tgi_probe:{metric.histogram}:baseline_7d"

    def rate(suffix: str = "") -> str:
        rates = f"rate(tgi_probe_{metric.histogram}{suffix}[{span}])"
        return f"sum without ({options.dropped()}) ({rates})" if options.drop_labels else rates

    native, classic = (
        (f"histogram_quantile(0.5, {rate()})", f"histogram_quantile(0.5, {rate('_bucket')})")
        if metric.higher_is_worse
        else (f"histogram_sum({rate()}) / histogram_count({rate()})", f"{rate('_sum')} / {rate('_count')}")
    )
    either = native if metric.higher_is_worse and not fine else f"{native}\nor {classic}"
    yield recording(now, f"({either})\n>= 0")  # no NaN where nothing was measured
    yield recording(usual, _baseline(now, window, interval, options))
    if metric.higher_is_worse:
        expr = f"{now} > {factor} * {usual}\nand {now} - {usual} > {promql.number(NOISE)}"
        moved, limit = "rose to", f"more than {factor} times that"
    else:
        expr = f"{now} < {usual} / {factor}"
        moved, limit = "fell to", f"less than that divided by {factor}"
    write, unit = ("humanizeDuration", "") if metric.unit == "s" else ("humanize", metric.unit)
    past = Observed(options, 0.0, ("target", "workload", "batch_size"))
    median = (
        f"{{{{ with {past.query(past.selector(usual))} }}}}{{{{ . | first | value | {write} }}}}{unit}{{{{ end }}}}"
    )
    yield options.alert(
        metric.alert,
        expr,
        "ticket",
        summary=f"{TARGET}: {metric.what} of batch size {BATCH_SIZE} {moved} {{{{ $value | {write} }}}}{unit}",
        description=(
            f"The {statistic} {metric.what} of workload {WORKLOAD}, batch size {BATCH_SIZE}, on {TARGET} was "
            f"{{{{ $value | {write} }}}}{unit} in the last {span}. The median of its past 7 days was {median}; "
            f"an alert is {limit}."
        ),
        wait=options.minutes(30),
        labels={"measure": metric.what},
    )


def _knee(inputs: RuleInputs, window: float, interval: float, options: Options) -> Iterator[Rule]:
    slo, span = inputs.slo.name, promql.duration(window)
    dropped, matchers = options.dropped("workload", "verdict"), f'slo="{slo}"'
    ratio, knee, usual = (
        f"slo:sli_error:batch_ratio_rate{span}",
        "slo:largest_good_batch_size:now",
        "slo:largest_good_batch_size:baseline_7d",
    )
    own, label = f"{{{matchers}}}", {"slo": slo}
    yield recording(ratio, promql.error_ratio(matchers, window, dropped), label)
    yield recording(f"slo:bad_requests:batch_increase{span}", promql.bad_requests(matchers, window, dropped), label)
    terms = []
    for size in inputs.schedule.batch_sizes:
        one = f'{{{matchers},batch_size="{size}"}}'
        terms.append(
            f"{size} * clamp_max(\n    ({ratio}{one} <= bool {promql.number(inputs.budget)})"
            f" + (slo:bad_requests:batch_increase{span}{one} < bool {promql.number(BAD_PROBES * size)}), 1)"
        )
    every = len(inputs.schedule.batch_sizes)
    yield recording(
        knee,
        "max without (batch_size) (\n  "
        + "\n  or ".join(terms)
        + f"\n)\nand count without (batch_size) ({ratio}{own}) == {every}",
        label,
    )
    yield recording(usual, _baseline(knee + own, window, interval, options), label)
    past = Observed(options, 0.0, ("target",), matchers)
    yield options.alert(
        "TgiProbeKneeMoved",
        f"{knee}{own} < {usual}{own}",
        "ticket",
        summary=f"{TARGET}: the largest batch size that meets SLO {slo} has shrunk",
        description=(
            f"In the last {span} {TARGET} met SLO {slo} up to batch size {{{{ $value }}}} (0: at none). The median of "
            f"its past 7 days was batch size {{{{ with {past.query(past.selector(usual))} }}}}"
            "{{ . | first | value }}{{ end }}."
        ),
        wait=options.minutes(30),
        labels={"slo": slo, "workload": inputs.slo.workload},
    )
