"""The page in Prometheus' protobuf format: each family as a message `MetricFamily`, with its length before it.

proto/prometheus/metrics.proto has the fields. What every page has thousands of is encoded here by hand, which takes a
quarter of the time that the message objects take (`python -m benchmarks pages`); tests read it with the generated code.
"""

import struct
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client.metrics_core import Metric as CollectedMetric
from prometheus_client.samples import Exemplar

from exporter.metrics.families import Family, Group, NumberChild, SummaryChild, label_dict
from exporter.metrics.histogram import HistogramChild
from exporter.metrics.native import ZERO_THRESHOLD, NativeBuckets, spans
from exporter.pb import prometheus_pb2 as pb

TYPES = {
    "counter": pb.MetricType.COUNTER,
    "gauge": pb.MetricType.GAUGE,
    "histogram": pb.MetricType.HISTOGRAM,
    "summary": pb.MetricType.SUMMARY,
}
_double = struct.Struct("<d").pack


def head(family: Family[Any], metrics_bytes: int) -> bytes:
    """What stands before the metrics of a family: the length of the whole message, and the other fields.

    `metrics_bytes` is the length of the metrics.
    """
    text = pb.MetricFamily(name=family.sample_name, help=family.help, type=TYPES[family.kind]).SerializeToString()
    return _varint(len(text) + metrics_bytes) + text


def of_group(group: Group, native: bool) -> bytes:
    """The metrics of a group, as the part of a `MetricFamily` that holds them."""
    return b"".join([_field(4, _metric(child, native)) for child in group.values()])


# --- encoding (protobuf's wire format: a field's number and its kind, then its value)


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _BYTES[value]
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _signed(value: int) -> bytes:
    """Of a field of type sint: small numbers are short, whatever their sign."""
    return _varint(value << 1 if value >= 0 else -(value << 1) - 1)


def _field(number: int, data: bytes) -> bytes:
    """A message, or packed numbers."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _integer(number: int, value: int) -> bytes:
    return _BYTES[number << 3] + _varint(value)


def _real(number: int, value: float) -> bytes:
    return _BYTES[number << 3 | 1] + _double(value)


_BYTES = [bytes((value,)) for value in range(128)]


# --- metrics


def _metric(child: Any, native: bool) -> bytes:
    labels = b"".join(map(_label, child.labels))
    match child:
        case NumberChild(created=None):
            return labels + _field(2, _real(1, child.value))
        case NumberChild():
            return labels + _field(3, _real(1, child.value) + _start(3, child.created))
        case SummaryChild():
            return labels + _field(4, _integer(1, child.count) + _real(2, child.sum) + _start(4, child.created))
        case HistogramChild():
            return labels + _field(7, _histogram(child, native))
        case _:
            raise TypeError(f"not the metrics of a family: {child!r}")


# Series share most of their labels, and many their start.
@lru_cache(maxsize=4096)
def _label(label: tuple[str, str]) -> bytes:
    [(name, value)] = label_dict((label,)).items()
    return _field(1, pb.LabelPair(name=name, value=value).SerializeToString())


@lru_cache(maxsize=4096)
def _start(number: int, unix: float) -> bytes:
    return _field(number, Timestamp(seconds=int(unix)).SerializeToString())


@lru_cache(maxsize=256)
def _upper_bounds(edges: tuple[float, ...]) -> tuple[bytes, ...]:
    return tuple(_real(2, edge) for edge in edges)


def _histogram(child: HistogramChild, native: bool) -> bytes:
    *cumulative, total = accumulate(child.counts)
    exemplars = {place: _exemplar(exemplar) for place, exemplar in child.exemplars.items()}
    parts = [_integer(1, total), _real(2, child.sum)]
    for place, (count, upper_bound) in enumerate(zip(cumulative, _upper_bounds(child.edges), strict=True)):
        bucket = _integer(1, count) + upper_bound
        if place in exemplars:
            bucket += _field(3, exemplars[place])
        parts.append(_field(3, bucket))
    above = len(child.edges)
    if above and above in exemplars:
        parts.append(_field(3, _integer(1, total) + _real(2, float("inf")) + _field(3, exemplars[above])))
    if native:
        parts.append(_native(child.native))
    parts.append(_start(15, child.created))
    if native:
        parts.extend(_field(16, exemplar) for exemplar in exemplars.values())
    return b"".join(parts)


def _native(buckets: NativeBuckets) -> bytes:
    parts = [_BYTES[5 << 3] + _signed(buckets.schema), _real(6, ZERO_THRESHOLD), _integer(7, buckets.zero)]
    for found, span_field, delta_field in ((buckets.negative, 9, 10), (buckets.positive, 12, 13)):
        deltas = []
        before = 0
        for offset, counts in spans(found):
            parts.append(_field(span_field, _BYTES[1 << 3] + _signed(offset) + _integer(2, len(counts))))
            for count in counts:
                deltas.append(_signed(count - before))
                before = count
        if deltas:
            parts.append(_field(delta_field, b"".join(deltas)))
    if not buckets.positive:
        parts.append(_field(12, b""))  # an empty span, as Prometheus' own client marks an empty native histogram
    return b"".join(parts)


def _exemplar(exemplar: Exemplar) -> bytes:
    seconds, fraction = divmod(float(exemplar.timestamp or 0), 1)
    time = Timestamp(seconds=int(seconds), nanos=int(fraction * 1e9))
    labels = [pb.LabelPair(name=name, value=value) for name, value in sorted(exemplar.labels.items())]
    return pb.Exemplar(label=labels, value=exemplar.value, timestamp=time).SerializeToString()


# --- metrics that prometheus_client collects


def of_others(metrics: Iterable[CollectedMetric]) -> bytes:
    """The counters and gauges of a process as whole families."""
    texts = [_family(metric).SerializeToString() for metric in metrics]
    return b"".join(_varint(len(text)) + text for text in texts)


def _family(metric: CollectedMetric) -> pb.MetricFamily:
    counter = metric.type == "counter"
    family = pb.MetricFamily(
        name=f"{metric.name}_total" if counter else metric.name,
        help=metric.documentation,
        type=TYPES["counter" if counter else "gauge"],
    )
    for sample in metric.samples:
        labels = [pb.LabelPair(name=name, value=value) for name, value in sorted(sample.labels.items())]
        if counter:
            family.metric.add(label=labels, counter=pb.Counter(value=sample.value))
        else:
            family.metric.add(label=labels, gauge=pb.Gauge(value=sample.value))
    return family
