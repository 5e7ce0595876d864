"""The only place that makes instruments. One method for each thing that happens; names and labels are the contract.

Only successful probes enter latency and throughput. A failure is counted with its outcome and never shows in a
histogram.
"""

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary
from prometheus_client.metrics import MetricWrapperBase

from exporter import __version__, slo, timeline
from exporter.observation import Method, Observation, Outcome, Series, ServerTimings, SkipReason, Step
from exporter.settings import Settings, Slo
from exporter.targets import Facts, Plan

# Twelve edges for each factor of ten, 1 ms to 160 s: a quantile read off them is off by a tenth at the worst.
DECADE = (1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2)
SECONDS = (*(round(edge * 10.0**power, 6) for power in range(-3, 2) for edge in DECADE), 100.0, 120.0, 160.0)
# Overhead and lateness of a healthy daemon are under a millisecond.
FINE_SECONDS = (0.0001, 0.0002, 0.0005)
TOKENS_PER_SECOND = (*(edge * 10.0**power for power in range(6) for edge in (1.0, 1.5, 2.2, 3.3, 4.7, 6.8)), 1e6)
PHASES = ("forward", "decode", "concat", "total")
SERIES = ("target", "workload", "batch_size")
# The codes that each outcome usually has; they exist from the start, so that a first failure is an increase from 0.
CODES = {
    Outcome.OK: ("OK",),
    Outcome.TIMEOUT: ("DEADLINE_EXCEEDED",),
    Outcome.UNREACHABLE: ("UNAVAILABLE", "CANCELLED"),
    Outcome.REJECTED: ("INTERNAL", "INVALID_ARGUMENT", "UNIMPLEMENTED", "UNKNOWN"),
    Outcome.OVERLOADED: ("RESOURCE_EXHAUSTED",),
    Outcome.MALFORMED: ("OK", "INTERNAL"),
    Outcome.REFUSED: ("REFUSED",),
}


Instrument = TypeVar("Instrument", bound=MetricWrapperBase)


@dataclass(frozen=True, slots=True)
class Layout:
    """What cannot change while instruments live. After a reload with another layout all series start again at 0."""

    extra_labels: tuple[str, ...]
    edges: tuple[float, ...]
    throughput_edges: tuple[float, ...] = TOKENS_PER_SECOND


def layout(settings: Settings) -> Layout:
    """Label names of all targets together, and the edges with every SLO threshold among them."""
    labels = sorted({label for target in settings.targets for label in target.labels})
    return Layout(tuple(labels), tuple(sorted({*SECONDS, *slo.thresholds(settings)})))


class Metrics:
    """Instruments of one daemon. Methods are safe to call from any thread."""

    def __init__(self, layout: Layout, unix_time: Callable[[], float] = time.time) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.layout = layout
        self.registry = CollectorRegistry()
        self._unix_time = unix_time
        self._objectives: dict[Series, list[Slo]] = {}
        # A target that is not in here has left; what its thread still reports is dropped.
        self._labels: dict[str, tuple[str, ...]] = {}
        self._facts: dict[str, Facts] = {}
        self._make_latency()
        self._make_counters()
        self._make_gauges()
        self._make_own()

    # --- the instruments

    def _histogram(self, name: str, text: str, edges: Sequence[float], labels: Sequence[str] = SERIES) -> Histogram:
        return Histogram(name, text, (*labels, *self.layout.extra_labels), registry=self.registry, buckets=edges)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = SERIES) -> Gauge:
        return Gauge(name, text, (*labels, *self.layout.extra_labels), registry=self.registry)

    def _counter(self, name: str, text: str, labels: Sequence[str] = SERIES) -> Counter:
        return Counter(name, text, (*labels, *self.layout.extra_labels), registry=self.registry)

    def _make_latency(self) -> None:
        edges = self.layout.edges
        self.ttft = self._histogram(
            "tgi_probe_time_to_first_token_seconds",
            "Wall time from sending a request to its first token (shard: of Prefill).",
            edges,
        )
        self.inter_token = self._histogram(
            "tgi_probe_inter_token_latency_seconds",
            "Wait for each token after the first (shard: wall time of each Decode).",
            edges,
        )
        self.per_output_token = self._histogram(
            "tgi_probe_time_per_output_token_seconds",
            "Time from the first to the last token, divided by the tokens after the first.",
            edges,
        )
        self.decode = self._histogram(
            "tgi_probe_decode_duration_seconds", "Time of a probe from the first token until all is done.", edges
        )
        self.request = self._histogram(
            "tgi_probe_request_duration_seconds", "Wall time from sending a request until it is done.", edges
        )
        rates = self.layout.throughput_edges
        self.prefill_rate = self._histogram(
            "tgi_probe_prefill_throughput_tokens_per_second",
            "Prompt tokens of a probe's batch divided by its prefill time.",
            rates,
        )
        self.decode_rate = self._histogram(
            "tgi_probe_decode_throughput_tokens_per_second",
            "Tokens of a probe after the first ones divided by its decode time.",
            rates,
        )
        self.overhead = self._histogram(
            "tgi_probe_overhead_seconds",
            "Wall time of a call minus the server's own total: queueing and transport.",
            (*FINE_SECONDS, *edges),
            (*SERIES, "method"),
        )
        self.lateness = self._histogram(
            "tgi_probe_schedule_lateness_seconds",
            "How much later than due a probe was started.",
            (*FINE_SECONDS, *edges),
            ("target",),
        )
        self.server = Summary(
            "tgi_probe_server_duration_seconds",
            "Time of a call as the server reports it, by phase.",
            (*SERIES, "method", "phase", *self.layout.extra_labels),
            registry=self.registry,
        )

    def _make_counters(self) -> None:
        self.attempts = self._counter(
            "tgi_probe_attempts_total", "Probes that were started, by how they ended.", (*SERIES, "outcome", "code")
        )
        self.skips = self._counter(
            "tgi_probe_skipped_total", "Probes that were due but not started, by reason.", (*SERIES, "reason")
        )
        self.prompt_tokens = self._counter("tgi_probe_prompt_tokens_total", "Prompt tokens sent in successful probes.")
        self.generated_tokens = self._counter(
            "tgi_probe_generated_tokens_total", "Tokens received in successful probes."
        )
        self.verdicts = self._counter(
            "tgi_probe_slo_requests_total",
            "Requests judged by an SLO; failed ones are bad.",
            ("slo", *SERIES, "verdict"),
        )

    def _make_gauges(self) -> None:
        self.last = {
            "ttft": self._gauge(
                "tgi_probe_last_time_to_first_token_seconds", "Time to first token of the newest successful probe."
            ),
            "itl": self._gauge(
                "tgi_probe_last_inter_token_latency_seconds", "Mean inter-token latency of the newest successful probe."
            ),
            "prefill": self._gauge(
                "tgi_probe_last_prefill_throughput_tokens_per_second",
                "Prefill throughput of the newest successful probe.",
            ),
            "decode": self._gauge(
                "tgi_probe_last_decode_throughput_tokens_per_second",
                "Decode throughput of the newest successful probe.",
            ),
        }
        self.success = self._gauge("tgi_probe_success", "Whether the newest attempt succeeded.")
        self.last_success = self._gauge(
            "tgi_probe_last_success_timestamp_seconds", "Unix time of the newest success, 0 before the first."
        )
        self.target_up = self._gauge("tgi_probe_target_up", "Whether the target is reachable and answers.", ("target",))
        self.target_info = self._gauge(
            "tgi_probe_target_info",
            "What the target says of itself; always 1.",
            ("target", "kind", "protocol", "model", "dtype", "device", "attention", "ranks"),
        )
        self.in_flight = self._gauge("tgi_probe_inflight", "Probes in flight.", ("target",))
        self.objective = Gauge(
            "tgi_probe_slo_objective_ratio", "Share of requests that must be good.", ("slo",), registry=self.registry
        )
        self.threshold = Gauge(
            "tgi_probe_slo_threshold_seconds", "Longest duration that is still good.", ("slo",), registry=self.registry
        )
        # Which latency a threshold is for: dashboards draw it beside that latency alone.
        self.judged = Gauge(
            "tgi_probe_slo_info",
            "What an SLO judges; always 1.",
            ("slo", "workload", "measure"),
            registry=self.registry,
        )

    def _make_own(self) -> None:
        registry = self.registry
        self.reload_ok = Gauge(
            "tgi_probe_config_last_reload_successful", "Whether the newest reload was taken.", registry=registry
        )
        self.reload_time = Gauge(
            "tgi_probe_config_last_reload_success_timestamp_seconds",
            "Unix time of the newest reload that was taken.",
            registry=registry,
        )
        build = Gauge(
            "tgi_probe_build_info",
            "Version of tgi-probe and Python; always 1.",
            ("version", "python_version"),
            registry=registry,
        )
        build.labels(__version__, platform.python_version()).set(1)
        prometheus_client.ProcessCollector(registry=registry)
        prometheus_client.GCCollector(registry=registry)

    # --- targets come and go

    def configure(self, settings: Settings) -> None:
        """Take over the objectives: their gauges, and which series each judges. `announce` starts their counters."""
        for gone in {objective.name for judged in self._objectives.values() for objective in judged}:
            if gone not in {objective.name for objective in settings.slos}:
                self.verdicts.remove_by_labels({"slo": gone})
        self._objectives = {}
        self.objective.clear()
        self.threshold.clear()
        self.judged.clear()
        for objective in settings.slos:
            self.objective.labels(objective.name).set(objective.objective)
            self.judged.labels(objective.name, objective.workload, objective.measure).set(1)
            if objective.threshold is not None:
                self.threshold.labels(objective.name).set(objective.threshold)
            for series in slo.series_of(objective, settings):
                self._objectives.setdefault(series, []).append(objective)

    def announce(self, plan: Plan) -> None:
        """Make every series of the target exist, so that nothing appears out of nowhere later."""
        name = plan.target.name
        self._labels[name] = tuple(plan.target.labels.get(label, "") for label in self.layout.extra_labels)
        self._child(self.target_up, name).set(0)
        self._child(self.in_flight, name).set(0)
        self._child(self.lateness, name)
        for series, _ in plan.series():
            self._announce_series(series)

    def _announce_series(self, series: Series) -> None:
        of = self._of
        latency = (
            self.ttft,
            self.inter_token,
            self.per_output_token,
            self.decode,
            self.request,
            self.prefill_rate,
            self.decode_rate,
        )
        for instrument in (*latency, self.prompt_tokens, self.generated_tokens, self.success, self.last_success):
            of(instrument, series)
        for gauge in self.last.values():
            of(gauge, series).set(math.nan)
        for method in Method:
            of(self.overhead, series, method)
            for phase in PHASES:
                of(self.server, series, method, phase)
        for outcome, codes in CODES.items():
            for code in codes:
                of(self.attempts, series, outcome, code)
        for reason in SkipReason:
            of(self.skips, series, reason)
        for objective in self._objectives.get(series, ()):
            for verdict in ("good", "bad"):
                self._verdict(objective.name, series, verdict)

    def forget(self, target: str) -> None:
        """Remove every series of a target that leaves."""
        self._labels.pop(target, None)
        for instrument in vars(self).values():
            for metric in instrument.values() if isinstance(instrument, dict) else (instrument,):
                if isinstance(metric, MetricWrapperBase) and "target" in metric._labelnames:
                    metric.remove_by_labels({"target": target})
        self._facts.pop(target, None)

    # --- what happens

    def record(self, observation: Observation) -> None:
        series = observation.series
        if series.target not in self._labels:
            return
        ok = observation.outcome is Outcome.OK
        self._of(self.attempts, series, observation.outcome, observation.code).inc()
        self._of(self.success, series).set(ok)
        for objective in self._objectives.get(series, ()):
            verdicts = slo.judge(objective, observation)
            self._verdict(objective.name, series, "good").inc(verdicts.good)
            self._verdict(objective.name, series, "bad").inc(verdicts.bad)
        if ok:
            self._of(self.last_success, series).set(self._unix_time())
            self._record_latency(observation)

    def _record_latency(self, observation: Observation) -> None:
        series = observation.series
        ttft, inter_token = self._of(self.ttft, series), self._of(self.inter_token, series)
        per_output_token, request = self._of(self.per_output_token, series), self._of(self.request, series)
        first: list[float] = []
        gaps: list[float] = []
        for stream in observation.streams:
            if (seconds := timeline.time_to_first_token(stream)) is not None:
                first.append(seconds)
                ttft.observe(seconds)
            for seconds in timeline.inter_token_latencies(stream):
                gaps.append(seconds)
                inter_token.observe(seconds)
            if (seconds := timeline.time_per_output_token(stream)) is not None:
                per_output_token.observe(seconds)
            request.observe(timeline.request_duration(stream))
            self._of(self.prompt_tokens, series).inc(stream.prompt_tokens)
            self._of(self.generated_tokens, series).inc(timeline.generated_tokens(stream))
            for number, step in enumerate(stream.steps):
                self._record_server(series, Method.DECODE if number else Method.PREFILL, step)
        if (seconds := timeline.decode_duration(observation)) is not None:
            self._of(self.decode, series).observe(seconds)
        for values, gauge in ((first, "ttft"), (gaps, "itl")):
            if values:
                self._of(self.last[gauge], series).set(math.fsum(values) / len(values))
        for rate, histogram, gauge in (
            (timeline.prefill_throughput(observation), self.prefill_rate, "prefill"),
            (timeline.decode_throughput(observation), self.decode_rate, "decode"),
        ):
            if rate is not None:
                self._of(histogram, series).observe(rate)
                self._of(self.last[gauge], series).set(rate)

    def _record_server(self, series: Series, method: Method, step: Step) -> None:
        server: ServerTimings | None = step.server
        if server is None:
            return
        for phase in PHASES:
            seconds = getattr(server, phase)
            if seconds is not None:
                self._of(self.server, series, method, phase).observe(seconds)
        if server.total is not None:
            self._of(self.overhead, series, method).observe(max(0.0, step.arrived - step.asked - server.total))

    def skipped(self, series: Series, reason: SkipReason) -> None:
        if series.target in self._labels:
            self._of(self.skips, series, reason).inc()

    def late(self, target: str, seconds: float) -> None:
        if target in self._labels:
            self._child(self.lateness, target).observe(max(0.0, seconds))

    def inflight(self, target: str, probes: int) -> None:
        if target in self._labels:
            self._child(self.in_flight, target).set(probes)

    def up(self, target: str, kind: str, facts: Facts | None) -> None:
        """None: it does not answer. What it said last time stays in target_info, for the joins of dashboards."""
        if target not in self._labels:
            return
        self._child(self.target_up, target).set(facts is not None)
        if facts is None or self._facts.get(target) == facts:
            return
        self._facts[target] = facts
        said = (kind, facts.protocol, facts.model, facts.dtype, facts.device, facts.attention, str(facts.ranks))
        self.target_info.remove_by_labels({"target": target})
        self._child(self.target_info, target, *said).set(1)

    def reloaded(self, ok: bool) -> None:
        self.reload_ok.set(ok)
        if ok:
            self.reload_time.set(self._unix_time())

    # --- labels

    def _child(self, instrument: Instrument, target: str, *values: str) -> Instrument:
        return instrument.labels(target, *values, *self._labels[target])

    def _of(self, instrument: Instrument, series: Series, *values: str) -> Instrument:
        return instrument.labels(
            series.target, series.workload, str(series.batch_size), *values, *self._labels[series.target]
        )

    def _verdict(self, objective: str, series: Series, verdict: str) -> Counter:
        labels = self._labels[series.target]
        return self.verdicts.labels(objective, series.target, series.workload, str(series.batch_size), verdict, *labels)
