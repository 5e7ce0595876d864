"""The rules of one objective: recordings of its error ratio and its budget, and the burn-rate alerts. Pure.

Names of recordings as sloth has them, so that its users find their way; the labels are `slo` and those of the target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from exporter.alerting import promql, startup
from exporter.alerting.burn import DAY, Firing, Load, Pair, alive, between_probes, budget, firing, pairs
from exporter.alerting.rule import TARGET, Alert, Group, Options, Recording
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
# A young series has little in its long window, where few bad probes are a large share: they must also be enough for a
# window filled at the present rate. Less a fifth, since that rate is known from a few probes only.
FILLED = 0.8
# Recordings over days move slowly, and are dear. Not longer: a series counts as gone 5 minutes after its newest value.
SLOW_INTERVAL = 150.0


@dataclass(frozen=True, slots=True)
class Objective:
    """An SLO with all that its rules need to know."""

    slo: Slo
    targets: tuple[str, ...]
    load: Load
    pairs: tuple[Pair, ...]
    period: float

    @property
    def budget(self) -> float:
        return budget(self.slo.objective)

    def firings(self, severity: str) -> list[Firing]:
        found = (firing(pair, self.load, self.slo.objective) for pair in self.pairs if pair.severity == severity)
        return [one for one in found if one is not None]


def objectives(settings: Settings, options: Options) -> list[Objective]:
    workloads = {workload.name: workload for workload in settings.workloads}
    found = []
    for slo in settings.slos:
        series = list(judging.series_of(slo, settings))
        if not series:
            continue
        load = Load(between_probes(workloads[slo.workload]), tuple(sorted({one.batch_size for one in series})))
        found.append(
            Objective(
                slo,
                tuple(dict.fromkeys(one.target for one in series)),
                load,
                pairs(slo.period, load.interval, options.scrape_interval, options.time_scale),
                slo.period * options.time_scale,
            )
        )
    return found


def groups(objective: Objective, options: Options) -> list[Group]:
    name = objective.slo.name
    windows = {window for pair in objective.pairs for window in (pair.short, pair.long)}
    quick = sorted(window for window in windows if window < options.days(1))
    slow = sorted((windows | {objective.period}) - set(quick))
    recordings = [_ratio(objective, window, options) for window in quick]
    recordings += [_bad(objective, window, options) for window in quick]
    recordings.append(_rate(objective, _shortest(objective), options))
    return [
        Group(f"tgi-probe-slo-{name}", (*recordings, *_facts(objective), *_alerts(objective, options))),
        Group(
            f"tgi-probe-slo-{name}-period",
            (
                *(_ratio(objective, window, options) for window in slow),
                *(_bad(objective, window, options) for window in slow if window in windows),
                *_budget(objective),
            ),
            interval=max(options.scrape_interval, SLOW_INTERVAL * options.time_scale),
        ),
    ]


def _ratio(objective: Objective, window: float, options: Options) -> Recording:
    expr = promql.error_ratio(
        f'slo="{objective.slo.name}"', window, options.dropped("workload", "batch_size", "verdict")
    )
    return Recording(f"slo:sli_error:ratio_rate{promql.duration(window)}", expr, {"slo": objective.slo.name})


def _bad(objective: Objective, window: float, options: Options) -> Recording:
    expr = promql.bad_requests(
        f'slo="{objective.slo.name}"', window, options.dropped("workload", "batch_size", "verdict")
    )
    return Recording(f"slo:bad_requests:increase{promql.duration(window)}", expr, {"slo": objective.slo.name})


def _shortest(objective: Objective) -> float:
    return min(pair.short for pair in objective.pairs)


def _rate(objective: Objective, window: float, options: Options) -> Recording:
    every = f'{promql.REQUESTS}{{slo="{objective.slo.name}"}}[{promql.duration(window)}]'
    expr = f"sum without ({options.dropped('workload', 'batch_size', 'verdict')}) (rate({every}))"
    return Recording(f"slo:requests:rate{promql.duration(window)}", expr, {"slo": objective.slo.name})


def _facts(objective: Objective) -> list[Recording]:
    """One of each per target, so that a target without data is seen to be without."""
    values = [
        ("slo:objective:ratio", promql.number(objective.slo.objective)),
        ("slo:error_budget:ratio", promql.number(objective.budget)),
        ("slo:time_period:days", promql.number(objective.period / DAY)),
    ]
    if objective.slo.threshold is not None:
        values.append(("slo:threshold:seconds", promql.number(objective.slo.threshold)))
    return [
        Recording(record, f"vector({value})", {"slo": objective.slo.name, "target": target})
        for record, value in values
        for target in objective.targets
    ]


def _budget(objective: Objective) -> list[Recording]:
    label = {"slo": objective.slo.name}
    own, share = f'{{slo="{objective.slo.name}"}}', promql.number(objective.budget)
    now = f"slo:sli_error:ratio_rate{promql.duration(_shortest(objective))}{own}"
    whole = f"slo:sli_error:ratio_rate{promql.duration(objective.period)}{own}"
    return [
        Recording("slo:current_burn_rate:ratio", f"{now} / {share}", label),
        Recording("slo:period_burn_rate:ratio", f"{whole} / {share}", label),
        Recording("slo:period_error_budget_remaining:ratio", f"1 - slo:period_burn_rate:ratio{own}", label),
    ]


def _alerts(objective: Objective, options: Options) -> list[Alert]:
    found = []
    for severity in ("page", "ticket"):
        able = alive([pair for pair in objective.pairs if pair.severity == severity], objective.slo.objective)
        if able:
            found.append(_alert(objective, severity, able, options))
    return found


def _alert(objective: Objective, severity: str, able: Sequence[Pair], options: Options) -> Alert:
    slo = objective.slo
    own = f'{{slo="{slo.name}"}}'
    spared = promql.number(promql.EXTRAPOLATION * objective.load.largest)
    share = promql.number(objective.budget)
    terms, now = [], promql.duration(_shortest(objective))
    for pair in able:
        # Until the short window holds nothing of the start any more.
        spare = startup.spared(options, pair.short).replace("\n", "\n  ") if severity == "page" else ""
        short, long = promql.duration(pair.short), promql.duration(pair.long)
        factor = promql.number(pair.factor)
        filled = promql.number(FILLED * pair.factor * objective.budget * pair.long)
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
            f"{{{{ $value | humanize }}}} times as often as the {promql.percent(objective.budget)} that it allows "
            f"in {promql.duration(objective.period)} ({severity}: above {factors})."
        ),
        labels={"slo": slo.name, "workload": slo.workload},
    )
