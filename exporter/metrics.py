"""The only place that makes instruments. One method for each thing that happens; names and labels are the contract.

Only successful probes enter latency and throughput. A failure is counted with its outcome and never shows in a
histogram.
"""

import math
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from exporter import __version__, scales, slo, timeline
from exporter.instruments import ChildType, Exemplar, Family, Histogram, Labels, Registry, Value
from exporter.observation import Method, Observation, Outcome, Series, ServerTimings, SkipReason, Step
from exporter.process import Process
from exporter.settings import Kind, Settings, Slo
from exporter.targets import Facts, Plan

P = ParamSpec("P")
R = TypeVar("R")
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
# What differs over HTTP.
HTTP_CODES = CODES | {
    Outcome.REJECTED: (
        "BAD_REQUEST",
        "INTERNAL_SERVER_ERROR",
        "NOT_FOUND",
        "SERVICE_UNAVAILABLE",
        "UNAUTHORIZED",
        "UNPROCESSABLE_ENTITY",
    ),
    Outcome.OVERLOADED: ("TOO_MANY_REQUESTS",),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """What decides on bucket edges. Histograms in seconds start again at 0 after a reload with another one."""

    thresholds: tuple[float, ...] = ()

    def edges(self, scale: Sequence[float]) -> tuple[float, ...]:
        """A scale with every SLO threshold among its edges."""
        return tuple(sorted({*scale, *self.thresholds}))


def layout(settings: Settings) -> Layout:
    return Layout(slo.thresholds(settings))


def guarded(method: Callable[Concatenate["Metrics", P], R]) -> Callable[Concatenate["Metrics", P], R]:
    """One at a time: a reload must not exchange what a record is half through."""

    @wraps(method)
    def alone(metrics: "Metrics", /, *values: P.args, **keys: P.kwargs) -> R:
        with metrics._lock:
            return method(metrics, *values, **keys)

    return alone


class Metrics:
    """Instruments of one daemon. Methods are safe to call from any thread."""

    def __init__(self, layout: Layout, unix_time: Callable[[], float] = time.time) -> None:
        self.layout = layout
        self._lock = threading.RLock()
        self.registry = Registry()
        # The histograms in seconds, with their scale: they take on the thresholds.
        self._scales: list[tuple[Family[Histogram], tuple[float, ...]]] = []
        self._unix_time = unix_time
        self._objectives: dict[Series, list[Slo]] = {}
        # A target that is not in here has left; what its thread still reports is dropped.
        self._labels: dict[str, Labels] = {}
        self._facts: dict[str, Facts] = {}
        self._make_latency()
        self._make_counters()
        self._make_gauges()
        self._make_own()

    # --- the instruments

    def _gauge(self, name: str, text: str, labels: Sequence[str] = SERIES) -> Family[Value]:
        return self.registry.gauge(name, text, labels)

    def _counter(self, name: str, text: str, labels: Sequence[str] = SERIES) -> Family[Value]:
        return self.registry.counter(name, text, labels)

    def _seconds(
        self, name: str, text: str, labels: Sequence[str] = SERIES, scale: tuple[float, ...] = scales.FINE
    ) -> Family[Histogram]:
        family = self.registry.histogram(name, text, self.layout.edges(scale), labels)
        self._scales.append((family, scale))
        return family

    def _make_latency(self) -> None:
        self.ttft = self._seconds(
            "tgi_probe_time_to_first_token_seconds",
            "Wall time from sending a request to its first token (shard: of Prefill).",
        )
        self.inter_token = self._seconds(
            "tgi_probe_inter_token_latency_seconds",
            "Wait for each token after the first (shard: wall time of each Decode).",
        )
        self.per_output_token = self._seconds(
            "tgi_probe_time_per_output_token_seconds",
            "Time from the first to the last token, divided by the tokens after the first.",
        )
        self.decode = self._seconds(
            "tgi_probe_decode_duration_seconds",
            "Time of a probe from the first token until all is done.",
            scale=scales.COARSE,
        )
        self.request = self._seconds(
            "tgi_probe_request_duration_seconds",
            "Wall time from sending a request until it is done.",
            scale=scales.COARSE,
        )
        self.prefill_rate = self.registry.histogram(
            "tgi_probe_prefill_throughput_tokens_per_second",
            "Prompt tokens of a probe's batch divided by its prefill time.",
            scales.RATES,
            SERIES,
        )
        self.decode_rate = self.registry.histogram(
            "tgi_probe_decode_throughput_tokens_per_second",
            "Tokens of a probe after the first ones divided by its decode time.",
            scales.RATES,
            SERIES,
        )
        self.overhead = self._seconds(
            "tgi_probe_overhead_seconds",
            "Wall time of a call minus the server's own total: queueing and transport.",
            (*SERIES, "method"),
            scales.OWN,
        )
        self.setup = self._seconds(
            "tgi_probe_connection_setup_seconds",
            "Time to open a connection, TLS included; never part of any other latency.",
            ("target",),
            scales.OWN,
        )
        self.spread = self.registry.histogram(
            "tgi_probe_start_spread_seconds",
            "From the first to the last request sent of a batch that goes through a router.",
            scales.SPREAD,
            SERIES,
        )
        self.lateness = self._seconds(
            "tgi_probe_schedule_lateness_seconds",
            "How much later than due a probe was started.",
            ("target",),
            scales.OWN,
        )
        self.server = self.registry.summary(
            "tgi_probe_server_duration_seconds",
            "Time of a call as the server reports it, by phase.",
            (*SERIES, "method", "phase"),
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
            measure: self.registry.gauge(
                f"tgi_probe_last_{name}", f"{text} of the newest successful probe.", SERIES, math.nan
            )
            for measure, name, text in (
                ("ttft", "time_to_first_token_seconds", "Time to first token"),
                ("itl", "inter_token_latency_seconds", "Mean inter-token latency"),
                ("prefill", "prefill_throughput_tokens_per_second", "Prefill throughput"),
                ("decode", "decode_throughput_tokens_per_second", "Decode throughput"),
            )
        }
        self.success = self.registry.gauge(
            "tgi_probe_success", "Whether the newest attempt succeeded; NaN before the first.", SERIES, math.nan
        )
        self.last_success = self._gauge(
            "tgi_probe_last_success_timestamp_seconds", "Unix time of the newest success, 0 before the first."
        )
        self.target_up = self._gauge("tgi_probe_target_up", "Whether the target is reachable and answers.", ("target",))
        self.target_info = self._gauge(
            "tgi_probe_target_info",
            "What the target says of itself; always 1.",
            ("target", "kind", "protocol", "model", "dtype", "device", "attention", "ranks"),
        )
        self.workload_info = self._gauge(
            "tgi_probe_workload_info",
            "What a workload sends; always 1.",
            ("workload", "mode", "prompt_cache", "sequence_length", "decode_length"),
        )
        self.in_flight = self._gauge("tgi_probe_inflight", "Probes in flight.", ("target",))
        self.objective = self._gauge("tgi_probe_slo_objective_ratio", "Share of requests that must be good.", ("slo",))
        self.threshold = self._gauge(
            "tgi_probe_slo_threshold_seconds", "Longest duration that is still good.", ("slo",)
        )
        # Which latency a threshold is for: dashboards draw it beside that latency alone.
        self.judged = self._gauge("tgi_probe_slo_info", "What an SLO judges; always 1.", ("slo", "workload", "measure"))

    def _make_own(self) -> None:
        self.reload_ok = self._gauge(
            "tgi_probe_config_last_reload_successful", "Whether the newest reload was taken.", ()
        ).labels()
        self.reload_time = self._gauge(
            "tgi_probe_config_last_reload_success_timestamp_seconds",
            "Unix time of the newest reload that was taken.",
            (),
        ).labels()
        build = self._gauge(
            "tgi_probe_build_info", "Version of tgi-probe and Python; always 1.", ("version", "python_version")
        )
        build.labels(__version__, platform.python_version()).set(1)
        Process(self.registry)

    # --- targets come and go

    def configure(self, settings: Settings) -> bool:
        """Take over the objectives: their gauges, and which series each judges. `announce` starts their counters.

        True when the thresholds are others than before: the histograms in seconds then start again at 0.
        """
        objectives: dict[Series, list[Slo]] = {}
        for objective in settings.slos:
            for series in slo.series_of(objective, settings):
                objectives.setdefault(series, []).append(objective)
        with self._lock:
            self._objectives = objectives
            self._describe(settings)
            self.verdicts.keep(self._is_judged)
            return self._reshape(layout(settings))

    def _describe(self, settings: Settings) -> None:
        """What the configuration says of workloads and objectives. First set, then clear: a scrape finds no gap."""
        wanted: set[tuple[str, ...]] = set()
        for workload in settings.workloads:
            lengths = (str(workload.sequence_length), str(workload.decode_length))
            values: tuple[str, ...] = (workload.name, workload.load.mode, workload.prompt_cache, *lengths)
            wanted.add(values)
            self.workload_info.labels(*values).set(1)
        for objective in settings.slos:
            values = (objective.name, objective.workload, objective.measure)
            wanted |= {values, (objective.name,)}
            self.objective.labels(objective.name).set(objective.objective)
            self.judged.labels(*values).set(1)
            if objective.threshold is not None:
                self.threshold.labels(objective.name).set(objective.threshold)
        without = {objective.name for objective in settings.slos if objective.threshold is None}
        for family in (self.workload_info, self.objective, self.judged):
            family.keep(lambda labels: tuple(labels.values()) in wanted)
        self.threshold.keep(lambda labels: (labels["slo"],) in wanted and labels["slo"] not in without)

    def _is_judged(self, labels: Mapping[str, str]) -> bool:
        series = Series(labels["target"], labels["workload"], int(labels["batch_size"]))
        return any(objective.name == labels["slo"] for objective in self._objectives.get(series, ()))

    def _reshape(self, layout: Layout) -> bool:
        before, self.layout = self.layout, layout
        for family, scale in self._scales:
            family.reshape(layout.edges(scale))
        return before != layout

    @guarded
    def announce(self, plan: Plan) -> None:
        """Make every series of the target exist, so that nothing appears out of nowhere later. What exists stays."""
        name = plan.target.name
        self._labels[name] = tuple(plan.target.labels.items())
        self._child(self.target_up, name)
        self._child(self.in_flight, name)
        self._child(self.lateness, name)
        if plan.target.kind != "shard":
            self._child(self.setup, name)
        for series, _ in plan.series():
            self._announce_series(series, plan.target.kind)
            if plan.target.kind != "shard" and series.batch_size > 1:
                self._of(self.spread, series)

    def _announce_series(self, series: Series, kind: Kind) -> None:
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
        for histogram in latency:
            of(histogram, series)
        for value in (self.prompt_tokens, self.generated_tokens, self.success, self.last_success, *self.last.values()):
            of(value, series)
        for method in Method if kind == "shard" else ():  # a router does not tell its own times
            of(self.overhead, series, method)
            for phase in PHASES:
                of(self.server, series, method, phase)
        for outcome, codes in (HTTP_CODES if kind == "http" else CODES).items():
            for code in codes:
                of(self.attempts, series, outcome, code)
        for reason in SkipReason:
            of(self.skips, series, reason)
        self._announce_verdicts(series)

    def announce_objectives(self, plan: Plan) -> None:
        """For a target that stays: the counters of objectives that a reload brought."""
        for series, _ in plan.series():
            self._announce_verdicts(series)

    def _announce_verdicts(self, series: Series) -> None:
        for objective in self._objectives.get(series, ()):
            for verdict in ("good", "bad"):
                self._verdict(objective.name, series, verdict)

    def forget(self, target: str) -> None:
        """Remove every series of a target that leaves."""
        self._labels.pop(target, None)
        for family in self.registry.families:
            family.remove(target)
        self._facts.pop(target, None)

    @guarded
    def narrow(self, plan: Plan, before: Plan) -> None:
        """A reload changed this target: remove the series that it has no more; the others go on counting.

        A target that is another server now, or has other labels, starts again.
        """
        name = plan.target.name
        if any(getattr(plan.target, key) != getattr(before.target, key) for key in ("kind", "address", "labels")):
            self.forget(name)
            return
        planned = {(series.workload, str(series.batch_size)) for series, _ in plan.series()}
        for family in self.registry.families:
            if "batch_size" in family.label_names:
                family.keep(
                    lambda labels: labels["target"] != name or (labels["workload"], labels["batch_size"]) in planned
                )

    # --- what happens

    @guarded
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
        for opened in observation.setups:
            self._child(self.setup, series.target).observe(opened.ready - opened.begun)
        if ok:
            self._of(self.last_success, series).set(self._unix_time())
            self._record_latency(observation)
            if (seconds := timeline.start_spread(observation)) is not None:
                self._of(self.spread, series).observe(seconds)

    def _record_latency(self, observation: Observation) -> None:
        series = observation.series
        trace = observation.trace_id
        exemplar = Exemplar({"trace_id": trace}, 0.0, self._unix_time()) if trace else None
        ttft, inter_token = self._of(self.ttft, series), self._of(self.inter_token, series)
        per_output_token, request = self._of(self.per_output_token, series), self._of(self.request, series)
        first: list[float] = []
        gaps: list[float] = []
        for stream in observation.streams:
            if (seconds := timeline.time_to_first_token(stream)) is not None:
                first.append(seconds)
                ttft.observe(seconds, exemplar and replace(exemplar, value=seconds))
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

    @guarded
    def skipped(self, series: Series, reason: SkipReason) -> None:
        if series.target in self._labels:
            self._of(self.skips, series, reason).inc()

    @guarded
    def late(self, target: str, seconds: float) -> None:
        if target in self._labels:
            self._child(self.lateness, target).observe(max(0.0, seconds))

    @guarded
    def inflight(self, target: str, probes: int) -> None:
        if target in self._labels:
            self._child(self.in_flight, target).set(probes)

    @guarded
    def up(self, target: str, kind: str, facts: Facts | None) -> None:
        """None: it does not answer. What it said last time stays in target_info, for the joins of dashboards."""
        if target not in self._labels:
            return
        self._child(self.target_up, target).set(facts is not None)
        if facts is None or self._facts.get(target) == facts:
            return
        self._facts[target] = facts
        said = (kind, facts.protocol, facts.model, facts.dtype, facts.device, facts.attention, str(facts.ranks))
        self.target_info.remove(target)
        self._child(self.target_info, target, *said).set(1)

    @guarded
    def reloaded(self, ok: bool) -> None:
        self.reload_ok.set(ok)
        if ok:
            self.reload_time.set(self._unix_time())

    # --- labels

    def _child(self, family: Family[ChildType], target: str, *values: str) -> ChildType:
        return family.labels(target, *values, extra=self._labels[target])

    def _of(self, family: Family[ChildType], series: Series, *values: str) -> ChildType:
        return self._child(family, series.target, series.workload, str(series.batch_size), *values)

    def _verdict(self, objective: str, series: Series, verdict: str) -> Value:
        values = (objective, series.target, series.workload, str(series.batch_size), verdict)
        return self.verdicts.labels(*values, extra=self._labels[series.target])
