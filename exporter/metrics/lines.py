"""The lines of a page, byte for byte as prometheus_client writes them of the same samples."""

from itertools import accumulate
from typing import Any

from prometheus_client.samples import Exemplar

from exporter.metrics.families import ChildGroup, Family, go_number, label_pair
from exporter.metrics.formats import Format
from exporter.metrics.histogram import HistogramChild

# Below it, Go prints a number as Python does.
PLAIN_BELOW = 1_000_000


def head(family: Family[Any], form: Format) -> bytes:
    """The lines HELP and TYPE."""
    name = family.name if form.openmetrics else family.sample_name
    text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    if form.openmetrics:
        text = text.replace('"', r"\"")
    return f"# HELP {name} {text}\n# TYPE {name} {family.kind}\n".encode()


def of_numbers(group: ChildGroup[Any]) -> bytes:
    """All lines of a group of counters, gauges or summaries."""
    lines = [line for child in group.children.values() for line in child.lines()]
    return "".join([f"{prefix}{number(value)}\n" for prefix, value in lines]).encode(errors="replace")


def of_histogram(name: str, child: HistogramChild, with_exemplars: bool) -> bytes:
    """All lines of one histogram, made with one `join`."""
    counts = list(accumulate(child.counts))
    values = [f"{count}.0" for count in counts] if counts[-1] < PLAIN_BELOW else [number(count) for count in counts]
    total = values[-1]
    if with_exemplars:
        for place, exemplar in child.exemplars.items():
            values[place] += _exemplar(exemplar)
    before, after = child.bucket_text
    lines = [f"{name}_bucket{before}", "", after, "", "\n"] * len(values)
    lines[1::5] = child.edge_texts
    lines[3::5] = values
    lines.append(f"{name}_count{child.label_text} {total}\n{name}_sum{child.label_text} {number(child.sum)}\n")
    return "".join(lines).encode(errors="replace")


def _exemplar(exemplar: Exemplar) -> str:
    labels = ",".join(map(label_pair, sorted(exemplar.labels.items())))  # not cached: each is another
    return f" # {{{labels}}} {go_number(exemplar.value)} {exemplar.timestamp}"


def number(value: float) -> str:
    """`go_number`, fast where Go prints as Python does."""
    return repr(float(value)) if -PLAIN_BELOW < value < PLAIN_BELOW else go_number(value)
