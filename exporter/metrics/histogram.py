"""Histograms with classic buckets."""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.samples import Exemplar, Sample

from exporter.metrics.blocks import Block
from exporter.metrics.families import Changes, Family, Labels, cached_label_pair, label_dict, label_text

# Prometheus and OpenMetrics: names and values of one exemplar's labels together.
EXEMPLAR_CHARACTERS = 128


class HistogramChild:
    """Counts by bucket, the last one for +Inf; not cumulative here. `blocks` are kept by `pages`: True with exemplars.

    `bucket_text` is what stands before the value of `le` on a bucket's line and after it; `label_text` stands on the
    lines of count and sum.
    """

    __slots__ = (
        "_changes",
        "_edges",
        "blocks",
        "bucket_text",
        "counts",
        "edge_texts",
        "exemplars",
        "label_text",
        "labels",
        "sum",
        "version",
    )

    def __init__(self, family: "Family[HistogramChild]", changes: Changes, labels: Labels) -> None:
        """`labels` come sorted by name."""
        self._changes = changes
        self._edges = family.edges
        self.edge_texts = family.edge_texts
        self.labels = labels
        self.counts = [0] * (len(self._edges) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}
        self.version = 0
        self.blocks: dict[bool, Block] = {}
        self.label_text = label_text(labels)
        before = "".join(f"{cached_label_pair(label)}," for label in labels if label[0] < "le")
        after = "".join(f",{cached_label_pair(label)}" for label in labels if label[0] > "le")
        self.bucket_text = f'{{{before}le="', f'"{after}}} '

    def observe(self, value: float, exemplar: Exemplar | None = None) -> None:
        """Count a value; an edge belongs to the bucket below it. NaN is in no bucket, and makes the sum NaN.

        An exemplar, such as a trace's, replaces that of its bucket. One longer than OpenMetrics allows is left out.
        """
        self.sum += value
        if value == value:
            place = bisect_left(self._edges, value)
            self.counts[place] += 1
            if exemplar is not None and _is_short_enough(exemplar):
                self.exemplars[place] = exemplar
        self.version += 1
        self._changes.count += 1

    def samples(self, name: str) -> Iterator[Sample]:
        labels = label_dict(self.labels)
        counts = list(accumulate(self.counts))
        for place, edge in enumerate(self.edge_texts):
            yield Sample(f"{name}_bucket", labels | {"le": edge}, counts[place], None, self.exemplars.get(place))
        yield Sample(f"{name}_count", labels, counts[-1])
        yield Sample(f"{name}_sum", labels, self.sum)


def _is_short_enough(exemplar: Exemplar) -> bool:
    return sum(len(name) + len(value) for name, value in exemplar.labels.items()) <= EXEMPLAR_CHARACTERS
