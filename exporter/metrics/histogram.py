"""Histograms, with classic and with native buckets of the same values."""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.samples import Exemplar, Sample

from exporter.metrics.families import Family, Labels, cached_label_pair, label_dict, label_text
from exporter.metrics.native import NativeBuckets

# Prometheus and OpenMetrics: names and values of one exemplar's labels together.
EXEMPLAR_CHARACTERS = 128


class HistogramChild:
    """`counts` are those of the classic buckets, the last one for +Inf; not cumulative here.

    `bucket_text` is what stands before the value of `le` on a bucket's line and after it; `label_text` stands on the
    lines of count and sum.
    """

    __slots__ = (
        "bucket_text",
        "counts",
        "created",
        "edge_texts",
        "edges",
        "exemplars",
        "label_text",
        "labels",
        "native",
        "sum",
    )

    def __init__(self, family: "Family[HistogramChild]", labels: Labels) -> None:
        """`labels` come sorted by name."""
        self.edges = family.edges
        self.edge_texts = family.edge_texts
        self.labels = labels
        self.counts = [0] * (len(self.edges) + 1)
        self.native = NativeBuckets()
        self.sum = 0.0
        self.created = family.start()
        self.exemplars: dict[int, Exemplar] = {}
        self.label_text = label_text(labels)
        before = "".join(f"{cached_label_pair(label)}," for label in labels if label[0] < "le")
        after = "".join(f",{cached_label_pair(label)}" for label in labels if label[0] > "le")
        self.bucket_text = f'{{{before}le="', f'"{after}}} '

    def observe(self, value: float, exemplar: Exemplar | None = None) -> None:
        """Count a value; an edge belongs to the bucket below it. NaN is in no bucket, and makes the sum NaN.

        An exemplar, such as a trace's, replaces that of its classic bucket. One longer than OpenMetrics allows is left
        out.
        """
        self.sum += value
        if value == value:
            place = bisect_left(self.edges, value)
            self.counts[place] += 1
            self.native.observe(value)
            if exemplar is not None and _is_short_enough(exemplar):
                self.exemplars[place] = exemplar

    def change_edges(self, family: "Family[HistogramChild]") -> None:
        """Take over the family's edges, of which some are new and some gone. No series goes back.

        What fell between two old edges cannot be divided. At a new edge between them the series starts at the count of
        the lower one, and rises with each value that comes from now on.
        """
        counts = [0] * (len(family.edges) + 1)
        for edge, count in zip((*self.edges, float("inf")), self.counts, strict=True):
            counts[bisect_left(family.edges, edge)] += count
        self.counts = counts
        self.exemplars = {bisect_left(family.edges, one.value): one for one in self.exemplars.values()}
        self.edges, self.edge_texts = family.edges, family.edge_texts

    def samples(self, name: str) -> Iterator[Sample]:
        """Without edges also none for +Inf: as of a summary."""
        labels = label_dict(self.labels)
        counts = list(accumulate(self.counts))
        for place, edge in enumerate(self.edge_texts if self.edges else ()):
            yield Sample(f"{name}_bucket", labels | {"le": edge}, counts[place], None, self.exemplars.get(place))
        yield Sample(f"{name}_count", labels, counts[-1])
        yield Sample(f"{name}_sum", labels, self.sum)
        yield Sample(f"{name}_created", labels, self.created)


def _is_short_enough(exemplar: Exemplar) -> bool:
    return sum(len(name) + len(value) for name, value in exemplar.labels.items()) <= EXEMPLAR_CHARACTERS
