"""`tgi-probe slo`: asks Prometheus, which evaluates the rules of `tgi-probe rules`, whether the SLOs are met."""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from pydantic_core import PydanticCustomError
from tabulate import tabulate

from exporter.alerting import promql
from exporter.alerting.prometheus_query import PrometheusError, PrometheusSample, query, read_token
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
Labels = tuple[tuple[str, str], ...]


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

    @property
    def good(self) -> float | None:
        return None if self.period_burn is None else 1 - self.period_burn * (1 - self.objective)

    @property
    def budget_left(self) -> float | None:
        return None if self.period_burn is None else 1 - self.period_burn

    @property
    def verdict(self) -> str:
        if self.budget_left is None:
            return "no data"
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
        token = read_token(arguments.bearer_token_file)
        samples = {expr: query(arguments.prometheus, expr, token) for expr in (RECORDED, FIRING, MEASURES)}
        found = slo_statuses(samples[RECORDED], samples[FIRING], samples[MEASURES])
        if not found:
            raise PrometheusError(
                f"{arguments.prometheus}: has no recordings of SLOs; "
                "load the file of `tgi-probe rules` into it and wait a minute"
            )
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
    print(table(found) if arguments.format == "table" else as_json(found))
    without_data = [status for status in found if status.verdict == "no data"]
    if without_data:
        print(explain_no_data(without_data), file=sys.stderr)
    verdicts = {status.verdict for status in found}
    return 1 if "MISSED" in verdicts else 2 if "no data" in verdicts else 0


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


def table(found: Sequence[SloStatus]) -> str:
    """A line for each SLO and target. Labels are shown only where targets of one name differ by them."""
    windows = sorted({window for status in found for window in status.burn}, key=notation.parse_duration)
    burns = [f"BURN {window}" for window in windows]
    head = ["SLO", "TARGET", "OBJECTIVE", "THRESHOLD", "PERIOD", "GOOD", "BUDGET LEFT", *burns, "", "ALERTS"]
    rows = [
        [
            status.slo,
            _target(status, found),
            promql.percent(status.objective),
            _threshold(status),
            promql.duration(status.period),
            _percent(status.good, 3),
            _percent(status.budget_left, 1),
            *(f"{status.burn[window]:.3g}" if window in status.burn else "-" for window in windows),
            status.verdict,
            ", ".join(status.alerts) or "-",
        ]
        for status in found
    ]
    lines = tabulate([head, *rows], tablefmt="plain", disable_numparse=True).splitlines()
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


def _threshold(status: SloStatus) -> str:
    if status.threshold is None:
        return "success"
    return f"{status.measure} ≤ {promql.duration(status.threshold)}".removeprefix(" ≤ ")


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
        }
        for status in found
    ]
    return json.dumps(items, indent=2, ensure_ascii=False, allow_nan=False)
