"""The page in Prometheus' protobuf format: each family as a message `MetricFamily`, with its length before it.

A message may be put together from the bytes of its parts. So the bytes of each target's metrics are made on their own,
and a family is its name, help and type followed by those of all targets.
"""

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client.metrics_core import Metric as CollectedMetric
from prometheus_client.samples import Exemplar

from exporter.metrics.families import ChildGroup, Family, Labels, NumberChild, SummaryChild, label_dict
from exporter.metrics.histogram import HistogramChild
from exporter.metrics.native import ZERO_THRESHOLD, NativeBuckets, spans
from exporter.pb import prometheus_pb2 as pb

TYPES = {
    "counter": pb.MetricType.COUNTER,
    "gauge": pb.MetricType.GAUGE,
    "histogram": pb.MetricType.HISTOGRAM,
    "summary": pb.MetricType.SUMMARY,
}


def head(family: Family[Any], metrics_bytes: int) -> bytes:
    """What stands before the metrics of a family: the length of the whole message, and the other fields.

    `metrics_bytes` is the length of the metrics.
    """
    return _with_length(
        pb.MetricFamily(name=family.sample_name, help=family.help, type=TYPES[family.kind]), metrics_bytes
    )


def _with_length(family: pb.MetricFamily, more: int = 0) -> bytes:
    text = family.SerializeToString()
    return _varint(len(text) + more) + text


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def of_group(group: ChildGroup[Any], native: bool) -> bytes:
    """The metrics of a group, as the part of a `MetricFamily` that holds them."""
    return pb.MetricFamily(metric=[_metric(child, native) for child in group.children.values()]).SerializeToString()


def _metric(child: Any, native: bool) -> pb.Metric:
    labels = _labels(child.labels)
    match child:
        case NumberChild(created=None):
            return pb.Metric(label=labels, gauge=pb.Gauge(value=child.value))
        case NumberChild(created=float(start)):
            return pb.Metric(label=labels, counter=pb.Counter(value=child.value, created_timestamp=_time(start)))
        case SummaryChild():
            summary = pb.Summary(sample_count=child.count, sample_sum=child.sum, created_timestamp=_time(child.created))
            return pb.Metric(label=labels, summary=summary)
        case HistogramChild():
            return pb.Metric(label=labels, histogram=_histogram(child, native))
        case _:
            raise TypeError(f"not the metrics of a family: {child!r}")


def _labels(labels: Labels) -> list[pb.LabelPair]:
    return [pb.LabelPair(name=name, value=value) for name, value in label_dict(labels).items()]


def _time(unix: float) -> Timestamp:
    seconds, fraction = divmod(unix, 1)
    return Timestamp(seconds=int(seconds), nanos=round(fraction * 1e9) % 10**9)


def _histogram(child: HistogramChild, native: bool) -> pb.Histogram:
    *cumulative, total = accumulate(child.counts)
    message = pb.Histogram(
        sample_count=total,
        sample_sum=child.sum,
        bucket=[
            pb.Bucket(cumulative_count=count, upper_bound=edge)
            for edge, count in zip(child.edges, cumulative, strict=True)
        ],
        created_timestamp=_time(child.created),
    )
    for place, exemplar in child.exemplars.items():
        if place < len(message.bucket):
            message.bucket[place].exemplar.CopyFrom(_exemplar(exemplar))
        elif message.bucket:
            message.bucket.add(cumulative_count=total, upper_bound=float("inf"), exemplar=_exemplar(exemplar))
    if native:
        _add_native(message, child.native)
        message.exemplars.extend(_exemplar(one) for one in child.exemplars.values())
    return message


def _add_native(message: pb.Histogram, buckets: NativeBuckets) -> None:
    message.schema = buckets.schema
    message.zero_threshold = ZERO_THRESHOLD
    message.zero_count = buckets.zero
    for found, into, deltas in (
        (buckets.positive, message.positive_span, message.positive_delta),
        (buckets.negative, message.negative_span, message.negative_delta),
    ):
        before = 0
        for offset, counts in spans(found):
            into.add(offset=offset, length=len(counts))
            for count in counts:
                deltas.append(count - before)
                before = count
    if not message.positive_span:
        message.positive_span.add()  # an empty one tells Prometheus that the histogram is native


def _exemplar(exemplar: Exemplar) -> pb.Exemplar:
    labels = _labels(tuple(sorted(exemplar.labels.items())))
    return pb.Exemplar(label=labels, value=exemplar.value, timestamp=_time(float(exemplar.timestamp or 0)))


# --- metrics that prometheus_client collects


def of_others(metrics: Iterable[CollectedMetric]) -> bytes:
    """The counters and gauges of a process as whole families."""
    return b"".join(_with_length(_family(metric)) for metric in metrics)


def _family(metric: CollectedMetric) -> pb.MetricFamily:
    counter = metric.type == "counter"
    family = pb.MetricFamily(
        name=f"{metric.name}_total" if counter else metric.name,
        help=metric.documentation,
        type=TYPES["counter" if counter else "gauge"],
    )
    for sample in metric.samples:
        if sample.name != family.name:
            continue  # `_created`: the process' own start is in no metric of ours
        labels = _pairs(sample.labels)
        if counter:
            family.metric.add(label=labels, counter=pb.Counter(value=sample.value))
        else:
            family.metric.add(label=labels, gauge=pb.Gauge(value=sample.value))
    return family


def _pairs(labels: Mapping[str, str]) -> list[pb.LabelPair]:
    return _labels(tuple(sorted(labels.items())))
