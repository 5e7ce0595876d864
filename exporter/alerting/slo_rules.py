"""The rules of one SLO: recordings of its error ratio and budget, and its burn-rate alerts. Pure.

The recordings have the names that sloth gives them. Their labels are `slo` and those of the target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.alerting import promql, startup_grace
from exporter.alerting.burn_rates import (
    DAY,
    ProbeSchedule,
    WindowPair,
    between_probes,
    budget,
    window_pairs,
)
from exporter.alerting.rule_types import TARGET, Options, Rule, group, recording
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

    @property
    def shortest(self) -> str:
        """The shortest window, as PromQL has it."""
        return promql.duration(min(pair.short for pair in self.pairs))


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


def groups(inputs: RuleInputs, options: Options) -> list[dict[str, Any]]:
    name, label = inputs.slo.name, {"slo": inputs.slo.name}
    own, dropped = f'slo="{name}"', options.dropped("workload", "batch_size", "verdict")
    windows = {window for pair in inputs.pairs for window in (pair.short, pair.long)}
    quick = sorted(window for window in windows if window < options.days(1))
    slow = sorted((windows | {inputs.period}) - set(quick))

    def ratios(windows: Sequence[float]) -> Iterator[Rule]:
        for window in windows:
            expr = promql.error_ratio(own, window, dropped)
            yield recording(f"slo:sli_error:ratio_rate{promql.duration(window)}", expr, label)

    def bad_requests(windows: Sequence[float]) -> Iterator[Rule]:
        for window in windows:
            expr = promql.bad_requests(own, window, dropped)
            yield recording(f"slo:bad_requests:increase{promql.duration(window)}", expr, label)

    rate = f"sum without ({dropped}) (rate({promql.REQUESTS}{{{own}}}[{inputs.shortest}]))"
    return [
        group(
            f"tgi-probe-slo-{name}",
            [
                *ratios(quick),
                *bad_requests(quick),
                recording(f"slo:requests:rate{inputs.shortest}", rate, label),
                *_facts(inputs),
                *_alerts(inputs, options),
            ],
        ),
        group(
            f"tgi-probe-slo-{name}-period",
            [*ratios(slow), *bad_requests([window for window in slow if window in windows]), *_budget(inputs)],
            interval=max(options.scrape_interval, SLOW_INTERVAL * options.time_scale),
        ),
    ]


def _facts(inputs: RuleInputs) -> Iterator[Rule]:
    """Constants for each target, so that `tgi-probe slo` sees a target without data too."""
    values = {
        "slo:objective:ratio": inputs.slo.objective,
        "slo:error_budget:ratio": inputs.budget,
        "slo:time_period:days": inputs.period / DAY,
        "slo:threshold:seconds": inputs.slo.threshold,
    }
    for record, value in values.items():
        if value is not None:
            expr = f"vector({promql.number(value)})"
            yield from (recording(record, expr, {"slo": inputs.slo.name, "target": each}) for each in inputs.targets)


def _budget(inputs: RuleInputs) -> list[Rule]:
    label, own, share = {"slo": inputs.slo.name}, f'{{slo="{inputs.slo.name}"}}', promql.number(inputs.budget)
    period = promql.duration(inputs.period)
    return [
        recording("slo:current_burn_rate:ratio", f"slo:sli_error:ratio_rate{inputs.shortest}{own} / {share}", label),
        recording("slo:period_burn_rate:ratio", f"slo:sli_error:ratio_rate{period}{own} / {share}", label),
        recording("slo:period_error_budget_remaining:ratio", f"1 - slo:period_burn_rate:ratio{own}", label),
    ]


def _alerts(inputs: RuleInputs, options: Options) -> Iterator[Rule]:
    for severity in ("page", "ticket"):
        # Not those that even a total outage would not fire.
        able = [pair for pair in inputs.pairs if pair.severity == severity and pair.factor * inputs.budget < 1]
        if able:
            yield _alert(inputs, severity, able, options)


def _alert(inputs: RuleInputs, severity: str, able: Sequence[WindowPair], options: Options) -> Rule:
    slo = inputs.slo
    own = f'{{slo="{slo.name}"}}'
    spared = promql.number(promql.EXTRAPOLATION * inputs.schedule.largest)
    share = promql.number(inputs.budget)
    terms = []
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
            f"  and slo:bad_requests:increase{long}{own} > {filled} * slo:requests:rate{inputs.shortest}{own}{spare}\n)"
        )
    windows = " or ".join(dict.fromkeys(promql.duration(pair.long) for pair in able))
    factors = " or ".join(f"{promql.number(pair.factor)}×" for pair in able)
    asked = MEASURES[slo.measure] + (f" ≤ {promql.duration(slo.threshold)}" if slo.threshold is not None else "")
    return options.alert(
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
