"""Every metric of the daemon: its name, help, labels and bucket edges. Names and labels are the contract.

Only `record` records to them.
"""

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from exporter import __version__
from exporter.analysis import slo
from exporter.config.settings import ClassicBuckets, Settings
from exporter.metrics import bucket_edges
from exporter.metrics.bucket_edges import Scale
from exporter.metrics.collector import ProbeCollector
from exporter.metrics.families import Family, NumberChild
from exporter.metrics.histogram import HistogramChild
from exporter.observation import Outcome

# What tgi_probe_token_counts_estimated tells apart.
COUNTS = ("prompt", "generated")
PHASES = ("forward", "decode", "concat", "total")
SERIES = ("target", "workload", "batch_size")
# The code that each outcome has most often. These series exist from the start, so that a first failure is an increase
# from 0. Other codes of an outcome come when they are seen: each series costs a Prometheus memory, also at 0.
CODES = {
    Outcome.OK: "OK",
    Outcome.TIMEOUT: "DEADLINE_EXCEEDED",
    Outcome.UNREACHABLE: "UNAVAILABLE",
    Outcome.REJECTED: "INTERNAL",
    Outcome.OVERLOADED: "RESOURCE_EXHAUSTED",
    Outcome.MALFORMED: "OK",
    Outcome.REFUSED: "REFUSED",
    Outcome.QUARANTINED: "QUARANTINED",
    Outcome.NOT_READY: "INTERNAL",
    Outcome.DISTURBED: "OK",
}
# What differs over HTTP.
HTTP_CODES = CODES | {
    Outcome.REJECTED: "INTERNAL_SERVER_ERROR",
    Outcome.OVERLOADED: "TOO_MANY_REQUESTS",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """What the classic buckets depend on. `thresholds` are seconds, by the measure that an SLO judges."""

    classic: ClassicBuckets = "lean"
    thresholds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def edges(self, scale: Scale, measure: str = "") -> tuple[float, ...]:
        """The edges of a histogram; `measure` is the one that SLOs may set a threshold for."""
        if self.classic == "off":
            return ()
        edges = scale.lean if self.classic == "lean" else scale.fine
        return tuple(sorted({*edges, *self.thresholds.get(measure, ())}))


def layout(settings: Settings) -> Layout:
    return Layout(settings.histograms.classic, slo.thresholds(settings))


class Catalogue:
    """All families, made in the order in which the page shows them."""

    def __init__(self, collector: ProbeCollector, layout: Layout) -> None:
        self.collector = collector
        self.layout = layout
        self._scales: list[tuple[Family[HistogramChild], Scale, str]] = []
        self._make_latency()
        self._make_delays()
        self._make_counters()
        self._make_gauges()
        self._make_own()
        # What every target, workload and batch size has, of whatever kind the target is.
        self.of_every_series: tuple[Family[Any], ...] = (
            *(self.ttft, self.inter_token, self.per_output_token, self.decode, self.request),
            *(self.prefill_rate, self.decode_rate, self.prompt_tokens, self.generated_tokens),
            *(self.success, self.last_success, *self.last.values()),
        )

    def change_layout(self, layout: Layout) -> None:
        """Counts go on where only thresholds have changed.

        Between lean and fine edges they cannot: what fell between two edges cannot be divided among others. After `off`
        every old value would be counted above the last edge.
        """
        restart = layout.classic != self.layout.classic
        self.layout = layout
        for family, scale, measure in self._scales:
            change = family.restart if restart else family.change_edges
            change(layout.edges(scale, measure))

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = SERIES) -> Family[NumberChild]:
        return self.collector.gauge(name, text, labels)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = SERIES) -> Family[NumberChild]:
        return self.collector.counter(name, text, labels)

    def _histogram(
        self, name: str, text: str, scale: Scale, labels: tuple[str, ...] = SERIES, *, measure: str = ""
    ) -> Family[HistogramChild]:
        family = self.collector.histogram(name, text, self.layout.edges(scale, measure), labels)
        self._scales.append((family, scale, measure))
        return family

    def _make_latency(self) -> None:
        self.ttft = self._histogram(
            "tgi_probe_time_to_first_token_seconds",
            "Wall time from sending a request to its first token (shard: of Prefill).",
            bucket_edges.FIRST_TOKEN,
            measure="ttft",
        )
        self.inter_token = self._histogram(
            "tgi_probe_inter_token_latency_seconds",
            "Wait for each token after the first (shard: wall time of each Decode).",
            bucket_edges.NEXT_TOKENS,
            measure="inter_token_latency",
        )
        self.per_output_token = self._histogram(
            "tgi_probe_time_per_output_token_seconds",
            "Time from the first to the last token (shard: sum of the Decodes), divided by the tokens after the first.",
            bucket_edges.NEXT_TOKENS,
            measure="time_per_output_token",
        )
        self.decode = self._histogram(
            "tgi_probe_decode_duration_seconds",
            "Time of a probe from the first token until all is done (shard: sum of the Decodes).",
            bucket_edges.DURATIONS,
        )
        self.request = self._histogram(
            "tgi_probe_request_duration_seconds",
            "Wall time from sending a request until it is done (shard: sum of Prefill and Decodes).",
            bucket_edges.DURATIONS,
            measure="request_duration",
        )
        self.prefill_rate = self._histogram(
            "tgi_probe_prefill_throughput_tokens_per_second",
            "Prompt tokens of a probe's batch divided by its prefill time.",
            bucket_edges.THROUGHPUT,
        )
        self.decode_rate = self._histogram(
            "tgi_probe_decode_throughput_tokens_per_second",
            "Tokens of a probe after the first ones divided by its decode time.",
            bucket_edges.THROUGHPUT,
        )

    def _make_delays(self) -> None:
        """What is in no latency, or only a part of one."""
        self.overhead = self._histogram(
            "tgi_probe_overhead_seconds",
            "Wall time of a call minus the server's own total: queueing and transport.",
            bucket_edges.OVERHEAD,
            (*SERIES, "method"),
        )
        self.setup = self._histogram(
            "tgi_probe_connection_setup_seconds",
            "Time to open a connection, TLS included; never part of any other latency.",
            bucket_edges.DELAYS,
            ("target",),
        )
        self.spread = self._histogram(
            "tgi_probe_start_spread_seconds",
            "From the first to the last request sent of a batch that goes through a router.",
            bucket_edges.SPREAD,
        )
        self.lateness = self._histogram(
            "tgi_probe_schedule_lateness_seconds",
            "How much later than due a probe was started.",
            bucket_edges.DELAYS,
            ("target",),
        )
        self.read_delay = self._histogram(
            "tgi_probe_read_delay_seconds",
            "How long an answer may have waited for the exporter to read it, at most: of each request the longest.",
            bucket_edges.READ_DELAY,
            ("target",),
        )
        self.server = self.collector.summary(
            "tgi_probe_server_duration_seconds",
            "Time of a call as the server reports it, by phase.",
            (*SERIES, "method", "phase"),
        )

    def _make_counters(self) -> None:
        self.attempts = self._counter(
            "tgi_probe_attempts_total", "Probes that were started, by how they ended.", (*SERIES, "outcome", "code")
        )
        self.skips = self._counter(
            "tgi_probe_skipped_total",
            "Probes that were due and not started before they were due again, by reason.",
            (*SERIES, "reason"),
        )
        self.withheld = self._counter(
            "tgi_probe_withheld_values_total",
            "Values that were not recorded, because the exporter was held up and they may be wrong, by measure.",
            (*SERIES, "measure"),
        )
        self.prompt_tokens = self._counter("tgi_probe_prompt_tokens_total", "Prompt tokens sent in successful probes.")
        self.cached_prompt_tokens = self._counter(
            "tgi_probe_cached_prompt_tokens_total",
            "Those of tgi_probe_prompt_tokens_total that the server's prefix cache held, of servers that tell it.",
        )
        self.generated_tokens = self._counter(
            "tgi_probe_generated_tokens_total", "Tokens received in successful probes."
        )
        self.corrections = self._counter(
            "tgi_probe_correction_requests_total",
            "Requests that only found out, or put right, how many tokens a prompt has.",
            ("target", "workload"),
        )
        self.verdicts = self._counter(
            "tgi_probe_slo_requests_total",
            "Requests judged by an SLO; failed ones are bad.",
            ("slo", *SERIES, "verdict"),
        )

    def _make_gauges(self) -> None:
        self.last = {
            measure: self.collector.gauge(
                f"tgi_probe_last_{name}", f"{text} of the newest successful probe.", SERIES, math.nan
            )
            for measure, name, text in (
                ("ttft", "time_to_first_token_seconds", "Time to first token"),
                ("itl", "inter_token_latency_seconds", "Mean inter-token latency"),
                ("prefill", "prefill_throughput_tokens_per_second", "Prefill throughput"),
                ("decode", "decode_throughput_tokens_per_second", "Decode throughput"),
            )
        }
        self.success = self.collector.gauge(
            "tgi_probe_success", "Whether the newest attempt succeeded; NaN before the first.", SERIES, math.nan
        )
        self.last_success = self._gauge(
            "tgi_probe_last_success_timestamp_seconds", "Unix time of the newest success, 0 before the first."
        )
        self.quarantined = self._gauge(
            "tgi_probe_quarantined",
            "Whether the newest probe was not sent, since such a batch ended the server (shards).",
        )
        self.target_up = self._gauge(
            "tgi_probe_target_up",
            "Whether the target is reachable, answers, and does not reject every probe.",
            ("target",),
        )
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
        self.estimated = self._gauge(
            "tgi_probe_token_counts_estimated",
            "Whether token counts are estimated, because the server tells none that can be true.",
            ("target", "workload", "count"),
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
