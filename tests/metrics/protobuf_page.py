"""Read the protobuf page: its families, and the samples that a Prometheus makes of them."""

from collections.abc import Iterator, Mapping

from google.protobuf.internal.decoder import _DecodeVarint32  # type: ignore[attr-defined]
from google.protobuf.timestamp_pb2 import Timestamp

from exporter.metrics import pages
from exporter.metrics.collector import Registry
from exporter.metrics.formats import PROTOBUF
from exporter.pb import prometheus_pb2 as pb

Labels = frozenset[tuple[str, str]]


def families(registry: Registry) -> dict[str, pb.MetricFamily]:
    return {family.name: family for family in parsed(b"".join(pages.page(registry, PROTOBUF)))}


def parsed(page: bytes) -> Iterator[pb.MetricFamily]:
    at = 0
    while at < len(page):
        length, at = _DecodeVarint32(page, at)
        assert at + length <= len(page)
        yield pb.MetricFamily.FromString(page[at : at + length])
        at += length


def labels_of(metric: pb.Metric) -> dict[str, str]:
    return {pair.name: pair.value for pair in metric.label}


def samples(families: Mapping[str, pb.MetricFamily]) -> dict[tuple[str, Labels], float]:
    """As in the text formats: classic buckets with their `le`, counts, sums and starts."""
    found: dict[tuple[str, Labels], float] = {}

    def add(name: str, value: float, **more: str) -> None:
        key = (name, frozenset((labels | more).items()))
        assert key not in found
        found[key] = value

    for name, family in families.items():
        for metric in family.metric:
            labels = labels_of(metric)
            match metric:
                case pb.Metric() if metric.HasField("gauge"):
                    add(name, metric.gauge.value)
                case pb.Metric() if metric.HasField("counter"):
                    add(name, metric.counter.value)
                    if metric.counter.HasField("created_timestamp"):
                        add(name.removesuffix("_total") + "_created", unix(metric.counter.created_timestamp))
                case pb.Metric() if metric.HasField("summary"):
                    add(f"{name}_count", metric.summary.sample_count)
                    add(f"{name}_sum", metric.summary.sample_sum)
                    add(f"{name}_created", unix(metric.summary.created_timestamp))
                case _:
                    histogram = metric.histogram
                    for bucket in histogram.bucket:
                        if bucket.upper_bound != float("inf"):
                            add(f"{name}_bucket", bucket.cumulative_count, le=repr(bucket.upper_bound))
                    add(f"{name}_bucket", histogram.sample_count, le="inf")
                    add(f"{name}_count", histogram.sample_count)
                    add(f"{name}_sum", histogram.sample_sum)
                    add(f"{name}_created", unix(histogram.created_timestamp))
    return found


def unix(time: Timestamp) -> float:
    return float(time.seconds + time.nanos / 1e9)


def native_counts(histogram: pb.Histogram) -> dict[int, int]:
    """The positive buckets by number."""
    found = {}
    number = count = 0
    deltas = iter(histogram.positive_delta)
    for span in histogram.positive_span:
        number += span.offset
        for _ in range(span.length):
            count += next(deltas)
            found[number] = count
            number += 1
    assert next(deltas, None) is None
    return found
