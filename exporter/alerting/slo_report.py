"""`tgi-probe slo`: asks Prometheus, which evaluates the rules of `tgi-probe rules`, whether the SLOs are met."""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from pydantic_core import PydanticCustomError
from tabulate import tabulate

from exporter.alerting import promql
from exporter.alerting.prometheus_query import (
    PrometheusError,
    PrometheusSample,
    RuleGroup,
    query,
    read_token,
    rule_groups,
)
from exporter.config import notation

RATIO = "slo:sli_error:ratio_rate"
OBJECTIVE = "slo:objective:ratio"
PERIOD_BURN = "slo:period_burn_rate:ratio"
# Everything that the rules record of SLOs and this report needs, in one query.
RECORDED = (
    '{__name__=~"slo:(sli_error:ratio_rate.+|objective:ratio|threshold:seconds|time_period:days|period_burn_rate:ratio)",'
    'slo!="",target!=""}'
)
FIRING = 'ALERTS{alertname=~"TgiProbe.+",alertstate="firing"}'
MEASURES = "max by (slo, measure) (tgi_probe_slo_info)"
JUDGED = "sum by (slo, target) (tgi_probe_slo_requests_total) > 0"
NOW = "vector(time())"
# The groups of `slo_rules`: the first one evaluates as often as Prometheus does, the second one the whole period.
GROUP, PERIOD_GROUP = "tgi-probe-slo-{}", "tgi-probe-slo-{}-period"
# Spaces between columns, and the fewest characters of a wrapped one.
GAP, NARROWEST = 2, 8
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class FirstVerdict:
    """When Prometheus will evaluate the period of an SLO whose requests are judged already: Unix time, or None where
    it does not tell. `latest`: it may be sooner.
    """

    at: float | None = None
    latest: bool = False

    def __str__(self) -> str:
        if self.at is None:
            return "first verdict in a few minutes"
        return f"first verdict {'by' if self.latest else 'at'} {time.strftime('%H:%M:%S %Z', time.localtime(self.at))}"


@dataclass(slots=True)
class SloStatus:
    """One SLO of one target. Ratios, seconds; None where Prometheus has no data."""

    slo: str
    target: str
    objective: float
    period: float
    measure: str = ""
    threshold: float | None = None
    labels: dict[str, str] = field(default_factory=dict)
    period_burn: float | None = None
    burn: dict[str, float] = field(default_factory=dict)
    alerts: list[str] = field(default_factory=list)
    first_verdict: "FirstVerdict | None" = None

    @property
    def good(self) -> float | None:
        return None if self.period_burn is None else 1 - self.period_burn * (1 - self.objective)

    @property
    def budget_left(self) -> float | None:
        return None if self.period_burn is None else 1 - self.period_burn

    @property
    def verdict(self) -> str:
        if self.budget_left is None:
            return "no data" if self.first_verdict is None else "too early"
        return "met" if self.budget_left >= -1e-9 else "MISSED"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prometheus", required=True, metavar="URL", help="such as http://localhost:9090")
    parser.add_argument("--slo", action="append", default=[], metavar="NAME", help="only this one; may be given again")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument(
        "--bearer-token-file", type=Path, metavar="FILE", help="a token that Prometheus, or what is before it, asks for"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the state of each SLO, and on standard error which have no data.

    The exit code is 0 when all are met, 1 when one is missed, 2 when Prometheus cannot tell.
    """
    try:
        found = _ask(arguments.prometheus, read_token(arguments.bearer_token_file))
        known = {status.slo for status in found}
        unknown, names = sorted(set(arguments.slo) - known), ", ".join(sorted(known))
        if unknown:
            raise PrometheusError(
                f"--slo {unknown[0]}: {arguments.prometheus} knows no SLO of that name; there is: {names}"
            )
        found = [status for status in found if not arguments.slo or status.slo in arguments.slo]
    except PrometheusError as error:
        print(error, file=sys.stderr)
        return 2
    verdicts = {status.verdict for status in found}
    if arguments.format == "json":
        print(as_json(found))
    elif verdicts != {"too early"}:  # a table without a number says nothing
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(table(found, width))
    if without_data := [status for status in found if status.verdict == "no data"]:
        print(explain_no_data(without_data), file=sys.stderr)
    if early := [status for status in found if status.verdict == "too early"]:
        print(explain_too_early(early), file=sys.stderr)
    return 1 if "MISSED" in verdicts else 2 if verdicts - {"met"} else 0


def _ask(url: str, token: str | None) -> list[SloStatus]:
    """What Prometheus knows of every SLO. Raises PrometheusError."""
    samples = {expr: query(url, expr, token) for expr in (RECORDED, FIRING, MEASURES)}
    found = slo_statuses(samples[RECORDED], samples[FIRING], samples[MEASURES])
    without = [status for status in found if status.period_burn is None]
    groups = {group.name: group for group in rule_groups(url, token)} if without or not found else {}
    if not found:
        if any(name.startswith(GROUP.format("")) for name in groups):
            raise PrometheusError(f"too early: {url} has not evaluated the rules of the SLOs yet; wait a minute")
        raise PrometheusError(
            f"{url}: has no recordings of SLOs; load the file of `tgi-probe rules` into it and wait a minute"
        )
    if without:
        judged = {(one.labels.get("slo"), one.labels.get("target")) for one in query(url, JUDGED, token)}
        now = next((one.value for one in query(url, NOW, token)), time.time())
        for status in without:
            if (status.slo, status.target) in judged:
                status.first_verdict = first_verdict(status, groups, now)
    return found


def first_verdict(status: SloStatus, groups: Mapping[str, RuleGroup], now: float) -> FirstVerdict:
    """The next evaluation of the period. A rate needs two scrapes: until the short windows have one, two more are
    awaited.
    """
    period, quick = groups.get(PERIOD_GROUP.format(status.slo)), groups.get(GROUP.format(status.slo))
    if period is None or period.interval <= 0:
        return FirstVerdict()
    ready = now + (2 * quick.interval if quick and not status.burn else 0.0)
    if period.evaluated is None:
        return FirstVerdict(ready + period.interval, latest=True)
    missing = max(1, math.ceil((ready - period.evaluated) / period.interval))
    return FirstVerdict(period.evaluated + missing * period.interval)


def slo_statuses(
    recorded: Iterable[PrometheusSample], firing: Iterable[PrometheusSample], measures: Iterable[PrometheusSample]
) -> list[SloStatus]:
    """One for each SLO and target, and for each daemon where several probe a target of the same name.

    Series of the same names that other programs recorded are ignored.
    """
    by_slo: dict[tuple[str, str], list[PrometheusSample]] = {}
    for sample in recorded:
        if {"__name__", "slo", "target"} <= sample.labels.keys():
            by_slo.setdefault((sample.labels["slo"], sample.labels["target"]), []).append(sample)
    measured = {sample.labels.get("slo", ""): sample.labels.get("measure", "") for sample in measures}
    alerts = [alert for alert in firing if "alertname" in alert.labels]
    found = []
    for (slo, target), samples in by_slo.items():
        finite = {one.labels["__name__"]: one.value for one in reversed(samples) if math.isfinite(one.value)}
        period, threshold = finite.get("slo:time_period:days", 0.0) * 86400, finite.get("slo:threshold:seconds")
        objectives = (one.value for one in samples if one.labels["__name__"] == OBJECTIVE and 0 < one.value < 1)
        burns = _burns(samples) or {(): {}}
        for objective, labels in product(dict.fromkeys(objectives), sorted(burns)):
            status = SloStatus(slo, target, objective, period, measured.get(slo, ""), threshold, dict(labels))
            status.period_burn = burns[labels].get(PERIOD_BURN)
            status.burn = {
                name.removeprefix(RATIO): ratio / (1 - objective)
                for name, ratio in burns[labels].items()
                if name != PERIOD_BURN and abs((_window(name) or 0.0) - period) > period * 1e-6
            }
            concerning = (alert.labels for alert in alerts if _concerns(alert, status))
            status.alerts = sorted({f"{one['alertname']} ({one.get('severity', '')})" for one in concerning})
            found.append(status)
    return sorted(found, key=lambda status: (status.slo, status.target, sorted(status.labels.items())))


def _burns(samples: Sequence[PrometheusSample]) -> dict[Labels, dict[str, float]]:
    """The ratios and the burn rate of the period by name, for the other labels by which series differ."""
    found: dict[Labels, dict[str, float]] = {}
    for sample in samples:
        name = sample.labels["__name__"]
        if name == PERIOD_BURN or _window(name) is not None:
            others = {key: text for key, text in sample.labels.items() if key not in ("__name__", "slo", "target")}
            values = found.setdefault(tuple(sorted(others.items())), {})
            if math.isfinite(sample.value):
                values[name] = sample.value
    return found


def _window(name: str) -> float | None:
    """The window in the name of a recorded error ratio, in seconds; None for any other name."""
    try:
        return notation.parse_duration(name.removeprefix(RATIO)) if name.startswith(RATIO) else None
    except PydanticCustomError:
        return None


def _concerns(alert: PrometheusSample, status: SloStatus) -> bool:
    """Whether it is an alert of this SLO, or of its target and no SLO."""
    labels = alert.labels
    if labels.get("slo", status.slo) != status.slo or labels.get("target") != status.target:
        return False
    return all(labels.get(name, value) == value for name, value in status.labels.items())


def table(found: Sequence[SloStatus], width: int | None = None) -> str:
    """The verdict on each SLO and target, the alerts, how fast the budgets burn, and what the SLOs ask, below one
    another. Labels are shown only where targets of one name differ by them. Names are wrapped where a line would be
    longer than `width`; None: never.
    """
    names = {id(status): [status.slo, _target(status, found)] for status in found}
    verdicts = [
        [*names[id(status)], status.verdict, _percent(status.good, 3), _percent(status.budget_left, 1)]
        for status in found
    ]
    parts = [_columns(["SLO", "TARGET", "VERDICT", "GOOD", "BUDGET LEFT"], verdicts, width)]
    firing: dict[tuple[str, str], list[str]] = {}
    for status in found:
        for alert in status.alerts:
            firing.setdefault((names[id(status)][1], alert), []).append(status.slo)
    if firing:
        rows = [[target, alert, ", ".join(slos)] for (target, alert), slos in firing.items()]
        parts.append(_columns(["TARGET", "FIRING ALERT", "CONCERNS SLO"], rows, width, wrapped=(0, 2)))
    else:
        parts.append("No alert fires.")
    windows = sorted({window for status in found for window in status.burn}, key=notation.parse_duration)
    if windows:
        rows = [
            [*names[id(status)], *(_burn(status.burn.get(window)) for window in windows)]
            for status in found
            if status.burn
        ]
        heading = "Burn rate in the last … (1 spends the budget exactly in its period)"
        parts.append(heading + "\n" + _columns(["SLO", "TARGET", *windows], rows, width))
    asked = {
        (status.slo, _asked(status), promql.percent(status.objective), promql.duration(status.period)): None
        for status in found
    }
    parts.append(_columns(["SLO", "A REQUEST IS GOOD WHEN", "OBJECTIVE", "PERIOD"], [*map(list, asked)], width, (0, 1)))
    return "\n\n".join(parts)


def _columns(head: list[str], rows: list[list[str]], width: int | None, wrapped: tuple[int, ...] = (0, 1)) -> str:
    """Aligned columns with heads. Those of the `wrapped` numbers share what the others leave of the width."""
    limits: list[int | None] = [None] * len(head)
    longest = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    if width is not None and sum(longest) + GAP * (len(head) - 1) > width:
        left = width - GAP * (len(head) - 1) - sum(longest[at] for at in range(len(head)) if at not in wrapped)
        for number, at in enumerate(sorted(wrapped, key=lambda at: longest[at])):
            limits[at] = max(NARROWEST, min(longest[at], left // (len(wrapped) - number)))
            left -= limits[at] or 0
    lines = tabulate([head, *rows], tablefmt="plain", disable_numparse=True, maxcolwidths=limits).splitlines()
    return "\n".join(line.rstrip() for line in lines)


def explain_no_data(without_data: Sequence[SloStatus]) -> str:
    """One line: which SLOs have no data, and where to look."""
    which = ", ".join(dict.fromkeys(f"{status.slo} of target {status.target}" for status in without_data))
    if not any(status.measure for status in without_data):  # an SLO of a daemon that is scraped has a measure
        look = "Prometheus has no metrics of the daemon that probes them; look at its Status > Targets page"
    else:
        look = (
            "nothing was judged yet; look at the daemon's own page (/) whether the target is up, and wait two scrapes"
        )
    return f"no data: {which}: {look}"


def _target(status: SloStatus, found: Sequence[SloStatus]) -> str:
    same = [other.labels for other in found if (other.slo, other.target) == (status.slo, status.target)]
    different = [
        f"{name}={value}" for name, value in status.labels.items() if any(labels.get(name) != value for labels in same)
    ]
    return f"{status.target} ({', '.join(different)})" if different else status.target


def explain_too_early(early: Sequence[SloStatus]) -> str:
    """One line: when there will be a verdict, on which SLOs."""
    verdicts = {status.first_verdict: None for status in early}
    parts = []
    for verdict in verdicts:
        which = ", ".join(f"{one.slo} of target {one.target}" for one in early if one.first_verdict == verdict)
        parts.append(f"{verdict} ({which})")
    return f"too early: {'; '.join(parts)}"


def _asked(status: SloStatus) -> str:
    if status.threshold is None:
        return "it succeeds"
    return f"{status.measure} ≤ {promql.duration(status.threshold)}".removeprefix(" ≤ ")


def _burn(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:.3g}" if rate < 999 else f"{rate:.0f}"  # not 1e+03


def _percent(ratio: float | None, digits: int) -> str:
    return "-" if ratio is None else f"{ratio * 100:.{digits}f} %"


def as_json(found: Sequence[SloStatus]) -> str:
    """The same as JSON: ratios, and seconds."""
    items = [
        {
            "slo": status.slo,
            "target": status.target,
            "labels": status.labels,
            "objective": status.objective,
            "measure": status.measure or None,
            "threshold_seconds": status.threshold,
            "period_seconds": status.period,
            "good_ratio": status.good,
            "budget_left_ratio": status.budget_left,
            "burn": status.burn,
            "alerts": status.alerts,
            "verdict": status.verdict.lower(),
            "first_verdict_timestamp_seconds": status.first_verdict.at if status.first_verdict else None,
        }
        for status in found
    ]
    return json.dumps(items, indent=2, ensure_ascii=False, allow_nan=False)
