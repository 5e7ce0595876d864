"""Notes and warnings about SLOs for `check` and `rules`: how many bad probes fire, and what to change. Pure."""

import math
from collections.abc import Iterator

from exporter.alerting import promql
from exporter.alerting.burn_rates import (
    DAY,
    ProbeSchedule,
    WindowPair,
    firing_threshold,
    highest_objective,
    longest_interval,
    window_pairs,
)
from exporter.alerting.slo_rules import RuleInputs
from exporter.config.settings import Settings

# The grid of `tgi-probe rules --arithmetic`.
OBJECTIVES = (0.9, 0.95, 0.99, 0.995, 0.999)
INTERVALS = (5.0, 15.0, 30.0, 60.0, 300.0)
SHORTEST_INTERVAL = 1.0


def notes(inputs: RuleInputs) -> Iterator[str]:
    """One line for each pair of windows that can fire."""
    name, schedule = inputs.slo.name, inputs.schedule
    if not schedule.interval:
        yield f"slo {name}: probed as fast as the server answers, so how many bad probes it takes is not known before"
        return
    for pair in inputs.pairs:
        one = firing_threshold(pair, schedule, inputs.slo.objective)
        if one is not None:
            every = round(pair.long / schedule.interval * len(schedule.batch_sizes))
            yield (
                f"slo {name}: {pair.severity}s when at least {one.bad_long} of {every} probes in "
                f"{promql.duration(pair.long)} are bad and {one.bad_short} in the last {promql.duration(pair.short)}; "
                f"if all are bad, after {promql.duration(_rough(one.outage + inputs.wait))}"
            )


def _rough(seconds: float) -> float:
    """To the second, from an hour on to the minute."""
    return round(seconds / 60) * 60 if seconds >= 3600 else round(seconds)


def warnings(inputs: RuleInputs) -> Iterator[str]:
    slo, schedule = inputs.slo, inputs.schedule
    for pair in inputs.pairs:
        one = firing_threshold(pair, schedule, slo.objective)
        factor, long = promql.number(pair.factor), promql.duration(pair.long)
        if one is None:
            yield (
                f"slo {slo.name}: objective {promql.number(slo.objective)} is too low for the {pair.severity} "
                f"at {factor}×: a total outage does not burn so fast. Mend: more than {_above(1 - 1 / pair.factor)}"
            )
        elif one.single:
            yield (
                f"slo {slo.name}: one bad probe alone burns {factor}× its budget in {long} and would {pair.severity}; "
                f"the rules wait for a second one. Mend: {_mend(pair, schedule, slo.objective)}"
            )


def _above(ratio: float) -> str:
    """Rounded up to four digits."""
    return promql.number(math.ceil(round(ratio * 10_000, 6)) / 10_000)


def _mend(pair: WindowPair, schedule: ProbeSchedule, objective: float) -> str:
    changes = []
    if (interval := longest_interval(pair, schedule, objective)) >= SHORTEST_INTERVAL:
        changes.append(f"an interval of at most {promql.duration(int(interval))}")
    if (highest := highest_objective(pair, schedule)) > 0:
        changes.append(f"an objective of at most {promql.number(highest)}")
    return " or ".join(changes) or "fewer batch sizes or a longer period"


def blind_objectives(settings: Settings, found: list[RuleInputs]) -> Iterator[str]:
    """SLOs that judge nothing, since none of their targets is probed with their workload."""
    judged = {inputs.slo.name for inputs in found}
    for slo in settings.slos:
        if slo.name not in judged:
            yield (
                f"slo {slo.name}: judges nothing and has no rules. "
                f"Mend: give workload {slo.workload} one of the SLO's targets, or the SLO one of the workload's"
            )


def arithmetic() -> str:
    """How many bad probes page, for objectives and intervals, as a Markdown table: one batch size, 30 days."""
    head = "| objective | " + " | ".join(f"every {promql.duration(interval)}" for interval in INTERVALS) + " |"
    lines = [head, "|---" * (len(INTERVALS) + 1) + "|"]
    for objective in OBJECTIVES:
        cells = (_cell(objective, ProbeSchedule(interval, (1,))) for interval in INTERVALS)
        lines.append(f"| {promql.percent(objective)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(objective: float, schedule: ProbeSchedule) -> str:
    """The quickest page: bad of all probes in the long window, and how long a total outage takes."""
    candidates = (
        firing_threshold(pair, schedule, objective)
        for pair in window_pairs(30 * DAY, schedule.interval, 15.0)
        if pair.severity == "page"
    )
    found = [one for one in candidates if one is not None]
    if not found:
        return "never"
    quickest = min(found, key=lambda one: one.outage)
    every = round(quickest.pair.long / schedule.interval)
    lonely = " \\*" if any(one.single for one in found) else ""
    long, outage = promql.duration(quickest.pair.long), promql.duration(_rough(quickest.outage))
    return f"{quickest.bad_long} of {every} in {long}; {outage}{lonely}"
