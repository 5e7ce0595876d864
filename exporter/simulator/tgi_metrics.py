"""The router's own /metrics, under TGI's names: no unit suffix, no model label, counters without _total.

It does not use prometheus_client, which would add _total to the counters.
"""

import bisect
import threading
from collections import Counter
from collections.abc import Iterator, Sequence

from exporter.simulator.batcher import AdmissionLimits, BatchedRequest, Pass
from exporter.simulator.record import AnsweredRequest

SECONDS = tuple(0.00015 * 1.5**step for step in range(35))  # 0.15 ms to 146 s
BATCH_SIZES = tuple(float(size) for size in range(1, 1025))

Labels = tuple[tuple[str, str], ...]


class _Histogram:
    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.edges, value)] += 1
        self.total += value

    def lines(self, name: str, labels: Labels) -> Iterator[str]:
        below = 0
        for edge, count in zip((*self.edges, float("inf")), self.counts, strict=True):
            below += count
            yield f"{name}_bucket{_braces((*labels, ('le', _edge(edge))))} {below}"
        yield f"{name}_sum{_braces(labels)} {self.total!r}"
        yield f"{name}_count{_braces(labels)} {below}"


class TgiMetrics:
    """Counts what happens, from any thread."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self._input_lengths = _hundredths(limits.max_input_tokens)
        self._total_lengths = _hundredths(limits.max_total_tokens)
        self._lock = threading.Lock()
        self._counters: dict[str, Counter[Labels]] = {}
        self._histograms: dict[str, dict[Labels, _Histogram]] = {}

    def admitted(self, request: BatchedRequest) -> None:
        with self._lock:
            self._count("tgi_request_count")
            self._observe("tgi_request_input_length", len(request.prompt), self._input_lengths)
            self._observe("tgi_request_max_new_tokens", request.max_new_tokens, self._total_lengths)

    def refused(self, kind: str) -> None:
        with self._lock:
            self._count("tgi_request_count")
            self._count("tgi_request_failure", (("err", kind),))

    def passed(self, done: Pass, seconds: float) -> None:
        """A prefill or decode of the batch has been computed."""
        method = (("method", done.method),)
        with self._lock:
            self._count("tgi_batch_inference_count", method)
            self._count("tgi_batch_inference_success", method)
            for name in ("tgi_batch_inference_duration", "tgi_batch_forward_duration"):
                self._observe(name, seconds, SECONDS, method)
            if done.method == "prefill":
                self._observe("tgi_batch_next_size", len(done.requests), BATCH_SIZES)

    def left(self, answered: AnsweredRequest, complete: bool) -> None:
        """A request came to its end, or (not `complete`) was dropped before."""
        with self._lock:
            if not complete:
                self._count("tgi_request_failure", (("err", "dropped"),))
                return
            self._count("tgi_request_success")
            inference = (answered.finished_ns - answered.started_ns) / 1e9
            tokens = max(1, len(answered.token_ns))
            for name, seconds in (
                ("tgi_request_duration", (answered.finished_ns - answered.received_ns) / 1e9),
                ("tgi_request_validation_duration", (answered.queued_ns - answered.received_ns) / 1e9),
                ("tgi_request_queue_duration", (answered.started_ns - answered.queued_ns) / 1e9),
                ("tgi_request_inference_duration", inference),
                ("tgi_request_mean_time_per_token_duration", inference / tokens),
            ):
                self._observe(name, seconds, SECONDS)
            self._observe("tgi_request_generated_tokens", len(answered.token_ns), self._total_lengths)

    def page(self, load: dict[str, int]) -> str:
        """The text format; `load` is how much waits and runs now."""
        gauges = {
            "tgi_queue_size": load["queue_size"],
            "tgi_batch_current_size": load["batch_size"],
            "tgi_batch_current_max_tokens": load["batch_tokens"],
            "tgi_batch_max_total_tokens": self._limits.max_batch_total_tokens,
        }
        with self._lock:
            lines = [line for name, value in gauges.items() for line in (f"# TYPE {name} gauge", f"{name} {value}")]
            for name, counter in self._counters.items():
                lines.append(f"# TYPE {name} counter")
                lines += [f"{name}{_braces(labels)} {value}" for labels, value in counter.items()]
            for name, histograms in self._histograms.items():
                lines.append(f"# TYPE {name} histogram")
                for labels, histogram in histograms.items():
                    lines += histogram.lines(name, labels)
        return "\n".join(lines) + "\n"

    def _count(self, name: str, labels: Labels = ()) -> None:
        self._counters.setdefault(name, Counter())[labels] += 1

    def _observe(self, name: str, value: float, edges: Sequence[float], labels: Labels = ()) -> None:
        histograms = self._histograms.setdefault(name, {})
        if labels not in histograms:
            histograms[labels] = _Histogram(edges)
        histograms[labels].observe(value)


def _hundredths(most: int) -> tuple[float, ...]:
    return tuple(most / 100 * (step + 1) for step in range(100))


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}" if labels else ""


def _edge(edge: float) -> str:
    return "+Inf" if edge == float("inf") else repr(edge)
