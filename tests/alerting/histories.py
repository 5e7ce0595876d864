"""Made-up histories of watched targets, minute by minute, as promtool's rule tests take them."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.metrics import bucket_edges


@dataclass(frozen=True)
class Phase:
    """Some minutes in which nothing changes. Probes per minute; seconds; `restart`: counters begin again at 0.

    `bad`: the share of `probes`, which all succeed, that is too slow. `failed` probes are bad too.
    """

    minutes: int
    probes: int = 2
    bad: float = 0.0
    ok: bool = True
    target_up: bool = True
    exporter_up: bool = True
    restart: bool = False
    refused: int = 0
    disturbed: int = 0
    quarantined: int = 0
    failed: int = 0
    failed_as: str = "timeout"
    skipped: int = 0
    late: int = 0
    reload_ok: bool = True
    ttft: float = 0.1
    itl: float = 0.02
    throughput: float = 100.0


Value = float | None


def timeline(phases: Sequence[Phase]) -> Iterator[tuple[int, Phase, bool]]:
    """Every minute with its phase, and whether the daemon restarts at it."""
    minute = itertools.count()
    for phase in phases:
        for number in range(phase.minutes):
            yield next(minute), phase, phase.restart and number == 0


class History:
    """Values of many series over the minutes; None = not scraped. Counters go on, and start at 0 at a restart."""

    def __init__(self) -> None:
        self.values: dict[str, list[Value]] = {}
        self._counts: dict[str, float] = {}

    def count(self, series: str, more: float, there: bool, reset: bool) -> None:
        self._counts[series] = (0 if reset else self._counts.get(series, 0)) + more
        self.gauge(series, self._counts[series], there)

    def gauge(self, series: str, value: float, there: bool) -> None:
        self.values.setdefault(series, []).append(value if there else None)

    def histogram(
        self,
        name: str,
        labels: str,
        edges: Sequence[float],
        seen: Sequence[tuple[float, int]],
        there: bool,
        reset: bool,
    ) -> None:
        for edge in (*edges, float("inf")):
            le = "+Inf" if edge == float("inf") else f"{edge:g}"
            self.count(
                f'{name}_bucket{{{labels},le="{le}"}}', sum(n for value, n in seen if value <= edge), there, reset
            )
        self.count(f"{name}_count{{{labels}}}", sum(n for _, n in seen), there, reset)
        self.count(f"{name}_sum{{{labels}}}", sum(n * value for value, n in seen), there, reset)


def history(phases: Sequence[Phase], name: str = "llama", instance: str = "probe:9477") -> dict[str, list[Value]]:
    """What Prometheus would have scraped in these phases from the daemon of the target of this name."""
    exporter = f'job="tgi-probe",instance="{instance}"'
    target = f'target="{name}",{exporter}'
    probes = f'{target},workload="chat",batch_size="1"'
    seen = History()
    judged_bad = 0.0
    last_success = started = 0.0
    last_ttft = float("nan")
    for minute, phase, restart in timeline(phases):
        there = phase.exporter_up
        judged_bad += phase.probes * phase.bad
        bad = int(judged_bad + 1e-9)
        judged_bad -= bad
        good = phase.probes - bad
        if restart:
            last_success, started, last_ttft = 0.0, minute * 60.0, float("nan")
        if phase.probes and phase.ok:
            last_success = minute * 60.0
        seen.gauge(f"up{{{exporter}}}", float(there), True)
        seen.gauge(f'tgi_probe_build_info{{{exporter},version="1"}}', 1, there)
        seen.gauge(f"process_start_time_seconds{{{exporter}}}", started, there)
        seen.gauge(f"tgi_probe_config_last_reload_successful{{{exporter}}}", float(phase.reload_ok), there)
        seen.gauge(f"tgi_probe_config_last_reload_success_timestamp_seconds{{{exporter}}}", 0, there)
        seen.gauge(f"tgi_probe_target_up{{{target}}}", float(phase.target_up), there)
        seen.gauge(f"tgi_probe_last_success_timestamp_seconds{{{probes}}}", last_success, there)
        for verdict, number in (("good", good), ("bad", bad + phase.failed)):
            series = f'tgi_probe_slo_requests_total{{slo="chat-ttft",{probes},verdict="{verdict}"}}'
            seen.count(series, number, there, restart)
        seen.gauge(f"tgi_probe_quarantined{{{probes}}}", float(phase.quarantined > 0), there)
        outcomes = {"ok": phase.probes, "refused": phase.refused, "timeout": 0, "unreachable": 0}
        outcomes[phase.failed_as] = phase.failed
        for outcome, number in (outcomes | {"quarantined": phase.quarantined, "disturbed": phase.disturbed}).items():
            series = f'tgi_probe_attempts_total{{{probes},outcome="{outcome}",code="X"}}'
            seen.count(series, number, there, restart)
        seen.count(f'tgi_probe_skipped_total{{{probes},reason="busy"}}', phase.skipped, there, restart)
        if phase.probes:
            last_ttft = phase.ttft
        seen.gauge(f"tgi_probe_last_time_to_first_token_seconds{{{probes}}}", last_ttft, there)
        late = [(0.0001, phase.probes - phase.late), (0.5, phase.late)]
        seen.histogram("tgi_probe_schedule_lateness_seconds", target, (0.001, 0.1, 1), late, there, restart)
        for name, value in (("time_to_first_token", phase.ttft), ("inter_token_latency", phase.itl)):
            edges = (0.01, 0.012, 0.015, 0.018, 0.022, 0.027, 0.033, 0.039, 0.082, 0.1, 0.12, 0.15, 0.18, 0.2, 0.22)
            seen.histogram(f"tgi_probe_{name}_seconds", probes, edges, [(value, phase.probes)], there, restart)
        for name in ("decode", "prefill"):
            series, rates = f"tgi_probe_{name}_throughput_tokens_per_second", bucket_edges.THROUGHPUT.lean
            seen.histogram(series, probes, rates, [(phase.throughput, phase.probes)], there, restart)
    return seen.values


def written(values: Sequence[Value]) -> str:
    """promtool's notation; a scrape that failed ends the series, as Prometheus' staleness markers do."""
    words = []
    for before, value in zip((None, *values), values, strict=False):
        words.append(f"{value:g}" if value is not None else "stale" if before is not None else "_")
        if value is not None and value >= 1e5:
            words[-1] = f"{value:.0f}"
    return " ".join(words)


def series(phases: Sequence[Phase], name: str = "llama", instance: str = "probe:9477") -> list[dict[str, str]]:
    """The history as promtool takes it."""
    return [{"series": series, "values": written(values)} for series, values in history(phases, name, instance).items()]


def firing(minute: int, expected: set[tuple[str, str]], *selectors: str) -> dict[str, Any]:
    """At this minute exactly these alerts (name, severity) fire, of those that one of the selectors finds."""
    alerts = " or ".join(f'ALERTS{{alertstate="firing",{selector}}}' for selector in selectors)
    return {
        "expr": f"group by (alertname, severity) ({alerts})",
        "eval_time": f"{minute}m",
        "exp_samples": [
            {"labels": f'{{alertname="{alert}", severity="{severity}"}}', "value": 1}
            for alert, severity in sorted(expected)
        ],
    }
