"""`tgi-probe slo`: asks Prometheus, which evaluates the rules of `tgi-probe rules`, whether the SLOs are met."""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError

from exporter.alerting import promql
from exporter.alerting.prometheus_query import PrometheusError, PrometheusSample, query, read_token
from exporter.config import notation

RATIO = "slo:sli_error:ratio_rate"
OBJECTIVE = "slo:objective:ratio"
# Everything that the rules record of SLOs and this report needs, in one query.
RECORDED = (
    '{__name__=~"slo:(sli_error:ratio_rate.+|objective:ratio|threshold:seconds|time_period:days|period_burn_rate:ratio)",'
    'slo!="",target!=""}'
)
FIRING = 'ALERTS{alertname=~"TgiProbe.+",alertstate="firing"}'
MEASURES = "max by (slo, measure) (tgi_probe_slo_info)"


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
    by_name: dict[str, list[PrometheusSample]] = {}
    for sample in recorded:
        if {"__name__", "slo", "target"} <= sample.labels.keys():
            by_name.setdefault(sample.labels["__name__"], []).append(sample)
    ratios = [one for name, many in by_name.items() if _window(name) is not None for one in many]
    kinds = {sample.labels.get("slo", ""): sample.labels.get("measure", "") for sample in measures}
    alerts = [alert for alert in firing if "alertname" in alert.labels]
    found = []
    objectives = ((one.labels["slo"], one.labels["target"], one.value) for one in by_name.get(OBJECTIVE, []))
    for slo, target, objective in dict.fromkeys(objectives):
        if not 0 < objective < 1:
            continue
        period = _value(by_name.get("slo:time_period:days", []), slo, target)
        threshold = _value(by_name.get("slo:threshold:seconds", []), slo, target)
        blank = (slo, target, objective, (period or 0.0) * 86400, kinds.get(slo, ""))
        series = _select([*by_name.get("slo:period_burn_rate:ratio", []), *ratios], slo, target)
        for key in sorted({_other_labels(one) for one in series}) or [()]:
            status = SloStatus(*blank, threshold, dict(key))
            for one in series:
                if _other_labels(one) == key and math.isfinite(one.value):
                    _set_burn(status, one)
            status.alerts = sorted({_alert_text(alert) for alert in alerts if _concerns(alert, status)})
            found.append(status)
    return sorted(found, key=lambda status: (status.slo, status.target, sorted(status.labels.items())))


def _window(name: str) -> float | None:
    """The window in the name of a recorded error ratio, in seconds; None for any other name."""
    try:
        return notation.parse_duration(name.removeprefix(RATIO)) if name.startswith(RATIO) else None
    except PydanticCustomError:
        return None


def _value(samples: Sequence[PrometheusSample], slo: str, target: str) -> float | None:
    return next((one.value for one in _select(samples, slo, target) if math.isfinite(one.value)), None)


def _select(samples: Sequence[PrometheusSample], slo: str, target: str) -> list[PrometheusSample]:
    return [one for one in samples if one.labels.get("slo") == slo and one.labels.get("target") == target]


def _other_labels(sample: PrometheusSample) -> tuple[tuple[str, str], ...]:
    """The labels by which series of the same SLO and target differ."""
    return tuple(sorted(item for item in sample.labels.items() if item[0] not in ("__name__", "slo", "target")))


def _set_burn(status: SloStatus, sample: PrometheusSample) -> None:
    name = sample.labels["__name__"]
    if not name.startswith(RATIO):
        status.period_burn = sample.value
    elif abs((_window(name) or 0.0) - status.period) > status.period * 1e-6:
        status.burn[name.removeprefix(RATIO)] = sample.value / (1 - status.objective)


def _concerns(alert: PrometheusSample, status: SloStatus) -> bool:
    """Whether it is an alert of this SLO, or of its target and no SLO."""
    labels = alert.labels
    if labels.get("slo", status.slo) != status.slo or labels.get("target") != status.target:
        return False
    return all(labels.get(name, value) == value for name, value in status.labels.items())


def _alert_text(alert: PrometheusSample) -> str:
    return f"{alert.labels['alertname']} ({alert.labels.get('severity', '')})"


def table(found: Sequence[SloStatus]) -> str:
    """A line for each SLO and target. Labels are shown only where targets of one name differ by them."""
    windows = sorted({window for status in found for window in status.burn}, key=notation.parse_duration)
    burns = [f"BURN {window}" for window in windows]
    head = ["SLO", "TARGET", "OBJECTIVE", "THRESHOLD", "PERIOD", "GOOD", "BUDGET LEFT", *burns, "", "ALERTS"]
    rows = [head]
    for status in found:
        rows.append(
            [
                status.slo,
                _target(status, found),
                promql.percent(status.objective),
                _threshold(status),
                promql.duration(status.period),
                _percent(status.good, 3),
                _percent(status.budget_left, 1),
                *(_number(status.burn.get(window)) for window in windows),
                status.verdict,
                ", ".join(status.alerts) or "-",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


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


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def as_json(found: Sequence[SloStatus]) -> str:
    """The same as JSON: ratios, and seconds."""

    def item(status: SloStatus) -> dict[str, Any]:
        return {
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

    return json.dumps([item(status) for status in found], indent=2, ensure_ascii=False, allow_nan=False)
