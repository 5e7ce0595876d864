"""The rules of one SLO: recordings of its error ratio and budget, and its burn-rate alerts. Pure.

The recordings have the names that sloth gives them. Their labels are `slo` and those of the target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from exporter.alerting import promql, startup_grace
from exporter.alerting.burn_rates import (
    DAY,
    FiringThreshold,
    ProbeSchedule,
    WindowPair,
    between_probes,
    budget,
    firing_threshold,
    window_pairs,
)
from exporter.alerting.rule_types import TARGET, Alert, Options, Recording, RuleGroup
from exporter.analysis import slo as judging
from exporter.config.settings import Settings
from exporter.config.slo import Slo

BURN = "TgiProbeErrorBudgetBurn"
MEASURES = {
    "ttft": "time to first token",
    "inter_token_latency": "inter-token latency",
    "time_per_output_token": "time per output token",
    "request_duration": "request duration",
    "availability": "success",
}
# A new series has few probes in its long window, so that one bad probe is a large share. Bad probes must therefore also
# be enough for a full window at the present rate, less a fifth, because that rate comes from a few probes.
FILLED = 0.8
# Recordings over days change slowly and are expensive. Not longer: Prometheus drops a series after 5 minutes.
SLOW_INTERVAL = 150.0


@dataclass(frozen=True, slots=True)
class RuleInputs:
    """One SLO, and what its rules are computed from. Seconds."""

    slo: Slo
    targets: tuple[str, ...]
    schedule: ProbeSchedule
    pairs: tuple[WindowPair, ...]
    period: float

    @property
    def budget(self) -> float:
        return budget(self.slo.objective)

    def firing_thresholds(self, severity: str) -> list[FiringThreshold]:
        found = (
            firing_threshold(pair, self.schedule, self.slo.objective)
            for pair in self.pairs
            if pair.severity == severity
        )
        return [one for one in found if one is not None]


def rule_inputs(settings: Settings, options: Options) -> list[RuleInputs]:
    workloads = {workload.name: workload for workload in settings.workloads}
    found = []
    for slo in settings.slos:
        series = list(judging.series_of(slo, settings))
        if not series:
            continue
        schedule = ProbeSchedule(
            between_probes(workloads[slo.workload]), tuple(sorted({one.batch_size for one in series}))
        )
        found.append(
            RuleInputs(
                slo,
                tuple(dict.fromkeys(one.target for one in series)),
                schedule,
                window_pairs(slo.period, schedule.interval, options.scrape_interval, options.time_scale),
                slo.period * options.time_scale,
            )
        )
    return found


def groups(inputs: RuleInputs, options: Options) -> list[RuleGroup]:
    name = inputs.slo.name
    windows = {window for pair in inputs.pairs for window in (pair.short, pair.long)}
    quick = sorted(window for window in windows if window < options.days(1))
    slow = sorted((windows | {inputs.period}) - set(quick))
    recordings = [_ratio(inputs, window, options) for window in quick]
    recordings += [_bad(inputs, window, options) for window in quick]
    recordings.append(_rate(inputs, _shortest(inputs), options))
    return [
        RuleGroup(f"tgi-probe-slo-{name}", (*recordings, *_facts(inputs), *_alerts(inputs, options))),
        RuleGroup(
            f"tgi-probe-slo-{name}-period",
            (
                *(_ratio(inputs, window, options) for window in slow),
                *(_bad(inputs, window, options) for window in slow if window in windows),
                *_budget(inputs),
            ),
            interval=max(options.scrape_interval, SLOW_INTERVAL * options.time_scale),
        ),
    ]


def _ratio(inputs: RuleInputs, window: float, options: Options) -> Recording:
    expr = promql.error_ratio(f'slo="{inputs.slo.name}"', window, options.dropped("workload", "batch_size", "verdict"))
    return Recording(f"slo:sli_error:ratio_rate{promql.duration(window)}", expr, {"slo": inputs.slo.name})


def _bad(inputs: RuleInputs, window: float, options: Options) -> Recording:
    expr = promql.bad_requests(f'slo="{inputs.slo.name}"', window, options.dropped("workload", "batch_size", "verdict"))
    return Recording(f"slo:bad_requests:increase{promql.duration(window)}", expr, {"slo": inputs.slo.name})


def _shortest(inputs: RuleInputs) -> float:
    return min(pair.short for pair in inputs.pairs)


def _rate(inputs: RuleInputs, window: float, options: Options) -> Recording:
    every = f'{promql.REQUESTS}{{slo="{inputs.slo.name}"}}[{promql.duration(window)}]'
    expr = f"sum without ({options.dropped('workload', 'batch_size', 'verdict')}) (rate({every}))"
    return Recording(f"slo:requests:rate{promql.duration(window)}", expr, {"slo": inputs.slo.name})


def _facts(inputs: RuleInputs) -> list[Recording]:
    """Constants for each target, so that `tgi-probe slo` sees a target without data too."""
    values = [
        ("slo:objective:ratio", promql.number(inputs.slo.objective)),
        ("slo:error_budget:ratio", promql.number(inputs.budget)),
        ("slo:time_period:days", promql.number(inputs.period / DAY)),
    ]
    if inputs.slo.threshold is not None:
        values.append(("slo:threshold:seconds", promql.number(inputs.slo.threshold)))
    return [
        Recording(record, f"vector({value})", {"slo": inputs.slo.name, "target": target})
        for record, value in values
        for target in inputs.targets
    ]


def _budget(inputs: RuleInputs) -> list[Recording]:
    label = {"slo": inputs.slo.name}
    own, share = f'{{slo="{inputs.slo.name}"}}', promql.number(inputs.budget)
    now = f"slo:sli_error:ratio_rate{promql.duration(_shortest(inputs))}{own}"
    whole = f"slo:sli_error:ratio_rate{promql.duration(inputs.period)}{own}"
    return [
        Recording("slo:current_burn_rate:ratio", f"{now} / {share}", label),
        Recording("slo:period_burn_rate:ratio", f"{whole} / {share}", label),
        Recording("slo:period_error_budget_remaining:ratio", f"1 - slo:period_burn_rate:ratio{own}", label),
    ]


def _alerts(inputs: RuleInputs, options: Options) -> list[Alert]:
    found = []
    for severity in ("page", "ticket"):
        # Not those that even a total outage would not fire.
        able = [pair for pair in inputs.pairs if pair.severity == severity and pair.factor * inputs.budget < 1]
        if able:
            found.append(_alert(inputs, severity, able, options))
    return found


def _alert(inputs: RuleInputs, severity: str, able: Sequence[WindowPair], options: Options) -> Alert:
    slo = inputs.slo
    own = f'{{slo="{slo.name}"}}'
    spared = promql.number(promql.EXTRAPOLATION * inputs.schedule.largest)
    share = promql.number(inputs.budget)
    terms, now = [], promql.duration(_shortest(inputs))
    for pair in able:
        # Until the short window holds nothing of the start any more.
        spare = startup_grace.unless_starting(options, pair.short).replace("\n", "\n  ") if severity == "page" else ""
        short, long = promql.duration(pair.short), promql.duration(pair.long)
        factor = promql.number(pair.factor)
        filled = promql.number(FILLED * pair.factor * inputs.budget * pair.long)
        terms.append(
            f"(\n  slo:sli_error:ratio_rate{long}{own} / {share} > {factor}\n"
            f"  and slo:sli_error:ratio_rate{short}{own} / {share} > {factor}\n"
            f"  and slo:bad_requests:increase{short}{own} > {spared}\n"
            f"  and slo:bad_requests:increase{long}{own} > {filled} * slo:requests:rate{now}{own}{spare}\n)"
        )
    windows = " or ".join(dict.fromkeys(promql.duration(pair.long) for pair in able))
    factors = " or ".join(f"{promql.number(pair.factor)}×" for pair in able)
    asked = MEASURES[slo.measure] + (f" ≤ {promql.duration(slo.threshold)}" if slo.threshold is not None else "")
    return Alert(
        BURN,
        "\nor\n".join(terms),
        severity,
        summary=f"{TARGET} burns the error budget of SLO {slo.name} too fast",
        description=(
            f"In the last {windows}, requests of workload {slo.workload} to {TARGET} missed the objective ({asked}) "
            f"{{{{ $value | humanize }}}} times as often as the {promql.percent(inputs.budget)} that it allows "
            f"in {promql.duration(inputs.period)} ({severity}: above {factors})."
        ),
        labels={"slo": slo.name, "workload": slo.workload},
    )
