"""The only module that records. One method for each thing that happens.

Only successful probes enter latency and throughput. A failure is counted with its outcome, and is in no histogram.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Concatenate, ParamSpec

from prometheus_client.samples import Exemplar

from exporter.analysis import slo, timeline
from exporter.analysis.certainty import Recorded, mean, recorded
from exporter.config.settings import Settings
from exporter.config.slo import Slo
from exporter.config.target import Kind
from exporter.metrics.catalogue import CODES, COUNTS, HTTP_CODES, PHASES, Catalogue, Layout, layout
from exporter.metrics.collector import Registry
from exporter.metrics.families import ChildType, Family, Labels, NumberChild
from exporter.observation import Method, Observation, Outcome, Series, ServerTimings, SkipReason
from exporter.plan.targets import Facts, Plan

P = ParamSpec("P")
logger = logging.getLogger("tgi_probe")


def queued(method: Callable[Concatenate["Metrics", P], None]) -> Callable[Concatenate["Metrics", P], None]:
    """A method that is done as one write: now, or in its order after the page that is being made.

    Another thread may do it then, so what it raises is logged and goes no further.
    """

    @wraps(method)
    def put(metrics: "Metrics", /, *values: P.args, **keys: P.kwargs) -> None:
        def write() -> None:
            try:
                method(metrics, *values, **keys)
            except Exception:
                logger.exception("tgi-probe failed in its own metrics (%s)", method.__name__)

        metrics.registry.probes.writes.put(write)

    return put


class Metrics:
    """The metrics of one daemon. Methods may be called from any thread; none but `configure` waits for a page."""

    def __init__(self, layout: Layout, unix_time: Callable[[], float] = time.time) -> None:
        self.registry = Registry(unix_time)
        self.families = Catalogue(self.registry.probes, layout)
        self.registry.register_process()
        self._unix_time = unix_time
        self._objectives: dict[Series, list[Slo]] = {}
        # By target. One that is in none of these has left; what its thread still reports is dropped.
        self._labels: dict[str, Labels] = {}
        self._kinds: dict[str, Kind] = {}
        self._facts: dict[str, Facts] = {}

    # --- targets come and go

    def configure(self, settings: Settings) -> None:
        """Take over the objectives: their gauges, and which series each judges. `announce` starts their counters."""
        objectives: dict[Series, list[Slo]] = {}
        for objective in settings.slos:
            for series in slo.series_of(objective, settings):
                objectives.setdefault(series, []).append(objective)
        with self.registry.probes.writes.held():
            self._objectives = objectives
            self._describe(settings)
            self.families.verdicts.keep(self._is_judged)
            self.families.change_layout(layout(settings))
            self.registry.probes.native = settings.histograms.native

    def _describe(self, settings: Settings) -> None:
        """What the configuration says of workloads and objectives."""
        families = self.families
        for family in (families.workload_info, families.objective, families.judged, families.threshold):
            family.clear()
        for workload in settings.workloads:
            lengths = (str(workload.sequence_length), str(workload.decode_length))
            families.workload_info.labels(workload.name, workload.load.mode, workload.prompt_cache, *lengths).set(1)
        for objective in settings.slos:
            families.objective.labels(objective.name).set(objective.objective)
            families.judged.labels(objective.name, objective.workload, objective.measure).set(1)
            if objective.threshold is not None:
                families.threshold.labels(objective.name).set(objective.threshold)

    def _is_judged(self, labels: Mapping[str, str]) -> bool:
        series = Series(labels["target"], labels["workload"], int(labels["batch_size"]))
        return any(objective.name == labels["slo"] for objective in self._objectives.get(series, ()))

    @queued
    def announce(self, plan: Plan) -> None:
        """Make every series of the target exist, so that its first increase is one from 0. What exists stays."""
        name = plan.target.name
        self._labels[name] = tuple(plan.target.labels.items())
        self._kinds[name] = plan.target.kind
        self._child(self.families.target_up, name)
        self._child(self.families.in_flight, name)
        self._child(self.families.lateness, name)
        self._child(self.families.read_delay, name)
        if plan.target.kind != "shard":
            self._child(self.families.setup, name)
        for workload in plan.workloads:
            self._child(self.families.corrections, name, workload.name)
            for count in COUNTS:
                self._child(self.families.estimated, name, workload.name, count)
        for series, _ in plan.series():
            self._announce_series(series, plan.target.kind)
            if plan.target.kind != "shard" and series.batch_size > 1:
                self._of(self.families.spread, series)

    def _announce_series(self, series: Series, kind: Kind) -> None:
        of, families = self._of, self.families
        for family in families.of_every_series:
            of(family, series)
        if kind == "shard":
            of(families.quarantined, series)
        for method in Method if kind == "shard" else ():  # a router does not tell its own times
            of(families.overhead, series, method)
        for outcome in Outcome:
            of(families.attempts, series, outcome, (HTTP_CODES if kind == "http" else CODES)[outcome])
        for reason in SkipReason:
            of(families.skips, series, reason)
        self._announce_verdicts(series)

    @queued
    def announce_objectives(self, plan: Plan) -> None:
        """For a target that stays: the counters of objectives that a reload brought."""
        for series, _ in plan.series():
            self._announce_verdicts(series)

    def _announce_verdicts(self, series: Series) -> None:
        for objective in self._objectives.get(series, ()):
            for verdict in ("good", "bad"):
                self._verdict(objective.name, series, verdict)

    @queued
    def forget(self, target: str) -> None:
        """Remove every series of a target that leaves."""
        self._forget(target)

    def _forget(self, target: str) -> None:
        for known in (self._labels, self._kinds, self._facts):
            known.pop(target, None)
        for family in self.registry.probes.families:
            family.remove(target)

    @queued
    def narrow(self, plan: Plan, before: Plan) -> None:
        """A reload changed this target: remove the series that it no longer has; the others go on counting.

        A target with another address, kind or labels starts again.
        """
        name = plan.target.name
        if any(getattr(plan.target, key) != getattr(before.target, key) for key in ("kind", "address", "labels")):
            self._forget(name)
            return
        planned = {(series.workload, str(series.batch_size)) for series, _ in plan.series()}
        workloads = {workload.name for workload in plan.workloads}
        for family in self.registry.probes.families:
            if "batch_size" in family.label_names:
                family.keep(lambda labels: (labels["workload"], labels["batch_size"]) in planned, name)
        for family in (self.families.corrections, self.families.estimated):
            family.keep(lambda labels: labels["workload"] in workloads, name)

    # --- what happens

    @queued
    def record(self, observation: Observation) -> None:
        series = observation.series
        if series.target not in self._labels:
            return
        ok = observation.outcome is Outcome.OK
        self._of(self.families.attempts, series, observation.outcome, observation.code).inc()
        self._of(self.families.success, series).set(ok)
        if self._kinds[series.target] == "shard" and observation.outcome is not Outcome.UNREACHABLE:
            self._of(self.families.quarantined, series).set(observation.outcome is Outcome.QUARANTINED)
        for objective in self._objectives.get(series, ()):
            verdicts = slo.judge(objective, observation)
            self._verdict(objective.name, series, "good").inc(verdicts.good)
            self._verdict(objective.name, series, "bad").inc(verdicts.bad)
        self._child(self.families.corrections, series.target, series.workload).inc(observation.corrections)
        for stream in observation.streams:
            if stream.steps:
                self._child(self.families.read_delay, series.target).observe(stream.read_delay)
        values = recorded(observation)
        for measure, number in values.withheld.items():
            self._of(self.families.withheld, series, measure).inc(number)
        for seconds in values.setups:
            self._child(self.families.setup, series.target).observe(seconds)
        if ok:
            self._of(self.families.last_success, series).set(self._unix_time())
            for count in COUNTS:
                estimated = any(getattr(stream, f"{count}_estimated") for stream in observation.streams)
                self._child(self.families.estimated, series.target, series.workload, count).set(estimated)
            self._record_latency(observation, values)

    def _record_latency(self, observation: Observation, values: Recorded) -> None:
        series = observation.series
        trace = observation.trace_id
        now = self._unix_time()
        ttft = self._of(self.families.ttft, series)
        for seconds in values.first:
            ttft.observe(seconds, Exemplar({"trace_id": trace}, seconds, now) if trace else None)
        for family, many in (
            (self.families.inter_token, values.gaps),
            (self.families.per_output_token, values.per_output_token),
            (self.families.request, values.requests),
        ):
            histogram = self._of(family, series)
            for seconds in many:
                histogram.observe(seconds)
        for stream in observation.streams:
            self._of(self.families.prompt_tokens, series).inc(stream.prompt_tokens)
            if stream.cached_tokens is not None:
                self._of(self.families.cached_prompt_tokens, series).inc(stream.cached_tokens)
            self._of(self.families.generated_tokens, series).inc(timeline.generated_tokens(stream))
            for number, step in enumerate(stream.steps):
                self._record_server(series, method_of(number), step.server)
        for number, seconds in values.overheads:
            self._of(self.families.overhead, series, method_of(number)).observe(seconds)
        for family, value in (
            (self.families.decode, values.decode),
            (self.families.prefill_rate, values.prefill_rate),
            (self.families.decode_rate, values.decode_rate),
            (self.families.spread, values.spread),
        ):
            if value is not None:
                self._of(family, series).observe(value)
        for gauge, value in (
            ("ttft", mean(values.first)),
            ("itl", mean(values.gaps)),
            ("prefill", values.prefill_rate),
            ("decode", values.decode_rate),
        ):
            if value is not None:
                self._of(self.families.last[gauge], series).set(value)

    def _record_server(self, series: Series, method: Method, server: ServerTimings | None) -> None:
        if server is None:
            return
        for phase in PHASES:
            seconds = getattr(server, phase)
            if seconds is not None:
                self._of(self.families.server, series, method, phase).observe(seconds)

    @queued
    def skipped(self, series: Series, reason: SkipReason) -> None:
        if series.target not in self._labels:
            return
        self._of(self.families.skips, series, reason).inc()
        if reason is SkipReason.UNSAFE and self._kinds[series.target] == "shard":
            self._of(self.families.quarantined, series).set(0)  # a limit keeps it from being sent, no quarantine

    @queued
    def late(self, target: str, seconds: float) -> None:
        if target in self._labels:
            self._child(self.families.lateness, target).observe(max(0.0, seconds))

    @queued
    def inflight(self, target: str, probes: int) -> None:
        if target in self._labels:
            self._child(self.families.in_flight, target).set(probes)

    @queued
    def up(self, target: str, kind: str, facts: Facts | None) -> None:
        """None: it does not answer. What it reported last stays in target_info, for the joins of dashboards."""
        if target not in self._labels:
            return
        self._child(self.families.target_up, target).set(facts is not None)
        if facts is None or self._facts.get(target) == facts:
            return
        self._facts[target] = facts
        values = (kind, facts.protocol, facts.model, facts.dtype, facts.device, facts.attention, str(facts.ranks))
        self.families.target_info.remove(target)
        self._child(self.families.target_info, target, *values).set(1)

    @queued
    def reloaded(self, ok: bool) -> None:
        self.families.reload_ok.set(ok)
        if ok:
            self.families.reload_time.set(self._unix_time())

    # --- children

    def _child(self, family: Family[ChildType], target: str, *values: str) -> ChildType:
        return family.labels(target, *values, extra=self._labels[target])

    def _of(self, family: Family[ChildType], series: Series, *values: str) -> ChildType:
        return self._child(family, series.target, series.workload, str(series.batch_size), *values)

    def _verdict(self, objective: str, series: Series, verdict: str) -> NumberChild:
        values = (objective, series.target, series.workload, str(series.batch_size), verdict)
        return self.families.verdicts.labels(*values, extra=self._labels[series.target])


def method_of(number: int) -> Method:
    """Of a batch's calls to a shard, in their order."""
    return Method.DECODE if number else Method.PREFILL
