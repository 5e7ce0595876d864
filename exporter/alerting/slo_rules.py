"""The rules of one SLO: recordings of its error ratio and budget, and its burn-rate alerts. Pure.

The recordings have the names that sloth gives them. Their labels are `slo` and those of the target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.alerting import already_paged, promql, startup_grace
from exporter.alerting.burn_rates import (
    DAY,
    FILLED,
    ProbeSchedule,
    WindowPair,
    between_probes,
    budget,
    window_pairs,
)
from exporter.alerting.observed import Observed, slow_requests
from exporter.alerting.probing_alerts import stale_after, stale_wait
from exporter.alerting.rule_types import TARGET, Options, Rule, group, recording
from exporter.analysis import slo as judging
from exporter.config.settings import Settings
from exporter.config.slo import Slo

BURN = "TgiProbeErrorBudgetBurn"
SLOW = "slo:slow_requests:increase"
MEASURES = {
    "ttft": "time to first token",
    "inter_token_latency": "inter-token latency",
    "time_per_output_token": "time per output token",
    "request_duration": "request duration",
    "availability": "success",
}
# What the newest success measured of it: the words and the gauge.
NEWEST = {
    "ttft": ("newest", "tgi_probe_last_time_to_first_token_seconds"),
    "inter_token_latency": ("newest mean", "tgi_probe_last_inter_token_latency_seconds"),
    "time_per_output_token": ("newest", "tgi_probe_last_inter_token_latency_seconds"),
}
# Recordings over days change slowly and are expensive. Not longer: Prometheus drops a series after 5 minutes.
SLOW_INTERVAL = 150.0


@dataclass(frozen=True, slots=True)
class RuleInputs:
    """One SLO, and what its rules are computed from. Seconds.

    `earliest_page`: no burn pages sooner, so that a target that answers nothing has been paged as stale by then.
    """

    slo: Slo
    targets: tuple[str, ...]
    schedule: ProbeSchedule
    pairs: tuple[WindowPair, ...]
    period: float
    earliest_page: float

    @property
    def budget(self) -> float:
        return budget(self.slo.objective)

    @property
    def wait(self) -> float:
        """Seconds for which its burn alerts wait."""
        return already_paged.burn_wait(self.pairs, self.schedule, self.slo.objective, self.earliest_page)

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
        stale = stale_after(workloads[slo.workload], settings, options) + stale_wait(options)
        found.append(
            RuleInputs(
                slo,
                tuple(dict.fromkeys(one.target for one in series)),
                schedule,
                window_pairs(slo.period, schedule.interval, options.scrape_interval, options.time_scale),
                slo.period * options.time_scale,
                stale + already_paged.LAG_SCRAPES * options.scrape_interval,
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


def _able(inputs: RuleInputs, severity: str) -> list[WindowPair]:
    """Not those that even a total outage would not fire."""
    return [pair for pair in inputs.pairs if pair.severity == severity and pair.factor * inputs.budget < 1]


def _alerts(inputs: RuleInputs, options: Options) -> Iterator[Rule]:
    able = {severity: pairs for severity in ("page", "ticket") if (pairs := _able(inputs, severity))}
    if inputs.slo.threshold is not None:
        for window in dict.fromkeys(map(_recent, able.values())):
            expr = slow_requests(inputs.slo.name, inputs.slo.workload, window, options)
            yield recording(f"{SLOW}{promql.duration(window)}", expr, {"slo": inputs.slo.name})
    for severity, pairs in able.items():
        yield _alert(inputs, severity, pairs, options)


def _spared(inputs: RuleInputs) -> str:
    """Requests that one bad probe may seem to spoil."""
    return promql.number(promql.EXTRAPOLATION * inputs.schedule.largest)


def _alert(inputs: RuleInputs, severity: str, able: Sequence[WindowPair], options: Options) -> Rule:
    slo = inputs.slo
    own = f'{{slo="{slo.name}"}}'
    spared = _spared(inputs)
    share = promql.number(inputs.budget)
    terms = []
    for pair in able:
        # Until the short window holds nothing of the start any more.
        spare = _unless_known(inputs, pair, options).replace("\n", "\n  ") if severity == "page" else ""
        short, long = promql.duration(pair.short), promql.duration(pair.long)
        factor = promql.number(pair.factor)
        filled = promql.number(FILLED * pair.factor * inputs.budget * pair.long)
        terms.append(
            f"(\n  slo:sli_error:ratio_rate{long}{own} / {share} > {factor}\n"
            f"  and slo:sli_error:ratio_rate{short}{own} / {share} > {factor}\n"
            f"  and slo:bad_requests:increase{short}{own} > {spared}\n"
            f"  and slo:bad_requests:increase{long}{own} > {filled} * slo:requests:rate{inputs.shortest}{own}{spare}\n)"
        )
    summary, description = _texts(inputs, severity, able, options)
    return options.alert(
        BURN,
        "\nor\n".join(terms),
        severity,
        summary=summary,
        description=description,
        wait=inputs.wait,
        labels={"slo": slo.name, "workload": slo.workload},
    )


def _unless_known(inputs: RuleInputs, pair: WindowPair, options: Options) -> str:
    """No page for failures that are no news: in a start, or in an outage that is paged as such."""
    stale = f'alertname="{already_paged.STALE}",workload="{inputs.slo.workload}"'
    return (
        startup_grace.unless_starting(options, pair.short)
        + already_paged.unless_paged(options, pair.short, f'alertname="{already_paged.DOWN}"')
        + already_paged.unless_paged(options, pair.short, stale)
    )


def _texts(inputs: RuleInputs, severity: str, able: Sequence[WindowPair], options: Options) -> tuple[str, str]:
    """Summary and description: what was observed lately, slow or failed, and then what it means for the budget."""
    slo = inputs.slo
    sizes = "|".join(map(str, inputs.schedule.batch_sizes))
    lately = Observed(options, _recent(able), ("target",), f'workload="{slo.workload}",batch_size=~"{sizes}"')
    own = Observed(options, _recent(able), ("target",), f'slo="{slo.name}"')
    judged, bad = (own.number(f"sum({own.increase(promql.REQUESTS, matchers)})") for matchers in ("", 'verdict="bad"'))
    said, asked, slower = "failing", MEASURES[slo.measure], ""
    if slo.threshold is not None:
        slow, all_bad = own.selector(f"{SLOW}{own.span}"), own.selector(f"slo:bad_requests:increase{own.span}")
        most, some = (own.query(f"{slow} > {share} * {all_bad}") for share in (0.75, 0.25))
        said = (
            f"{{{{ with {most} }}}}too slow{{{{ else }}}}{{{{ with {some} }}}}too slow or failing{{{{ else }}}}failing"
            "{{ end }}{{ end }}"
        )
        asked = f"{asked} ≤ {promql.duration(slo.threshold)}"
        slower = (
            f"{{{{ with {own.query(f'{slow} > {_spared(inputs)}')} }}}} "
            f'{{{{ . | first | value | printf "%.0f" }}}} were slower than {promql.duration(slo.threshold)}'
            f"{_newest(slo.measure, lately)}.{{{{ end }}}}"
        )
    windows = " or ".join(dict.fromkeys(promql.duration(pair.long) for pair in able))
    factors = " or ".join(f"{promql.number(pair.factor)}×" for pair in able)
    return f"{TARGET}: probes of {slo.workload} are {said} (SLO {slo.name})", (
        f"In the last {own.span}, {bad} of {judged} requests of workload {slo.workload} to {TARGET} did not meet SLO "
        f"{slo.name} ({asked}).{slower} The probes:{lately.probes()}. In the last {windows}, the share of requests "
        f"that did not was {{{{ $value | humanize }}}} times the {promql.percent(inputs.budget)} that it allows in "
        f"{promql.duration(inputs.period)} ({severity}: above {factors})."
    )


def _recent(able: Sequence[WindowPair]) -> float:
    """The time that the texts tell of: the last window that any of the pairs looks at."""
    return max(pair.short for pair in able)


def _newest(measure: str, observed: Observed) -> str:
    """`; newest 8s at batch size 1`, from the newest success; nothing for a measure without such a gauge."""
    if measure not in NEWEST:
        return ""
    what, gauge = NEWEST[measure]
    values = observed.query(f"sort_desc(max by (batch_size) ({observed.selector(gauge)} >= 0))")
    return (
        f"{{{{ range $i, $_ := {values} }}}}{{{{ if $i }}}},{{{{ else }}}}; {what}{{{{ end }}}} "
        "{{ .Value | humanizeDuration }} at batch size {{ .Labels.batch_size }}{{ end }}"
    )
