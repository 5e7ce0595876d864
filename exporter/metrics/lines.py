"""The lines of a page in the text formats, byte for byte as prometheus_client writes them of the same samples."""

from itertools import accumulate
from typing import Any

from prometheus_client.samples import Exemplar

from exporter.metrics.families import PLAIN_BELOW, Family, Group, go_number, label_pair, number
from exporter.metrics.histogram import HistogramChild


def head(family: Family[Any], openmetrics: bool) -> bytes:
    """The lines HELP and TYPE."""
    if openmetrics:
        return _head(family.name, _escaped(family.help).replace('"', r"\""), family.kind_in_text)
    return _head(family.sample_name, _escaped(family.help), family.kind_in_text)


def head_of_starts(family: Family[Any]) -> bytes:
    """In the plain format, where the starts of a family's series are a family of their own."""
    return _head(f"{family.name}_created", _escaped(family.help), "gauge")


def _head(name: str, text: str, kind: str) -> bytes:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def of_group(family: Family[Any], group: Group, openmetrics: bool) -> bytes:
    """All lines of a group; in OpenMetrics with exemplars, and with the start of each series after its others."""
    lines: list[str] = []
    for child in group.values():
        if isinstance(child, HistogramChild):
            lines.append(_of_histogram(family.name, child, openmetrics))
        else:
            lines.extend(child.lines(family.name))
        if openmetrics and child.created is not None:
            lines.append(_start(family.name, child))
    return "".join(lines).encode(errors="replace")


def of_starts(family: Family[Any], group: Group) -> bytes:
    """When each series of the group started."""
    return "".join([_start(family.name, child) for child in group.values()]).encode(errors="replace")


def _start(name: str, child: Any) -> str:
    return f"{name}_created{child.label_text} {go_number(child.created)}\n"


def _of_histogram(name: str, child: HistogramChild, with_exemplars: bool) -> str:
    """All lines of one histogram, made with one `join`. One without edges has no buckets."""
    counts = list(accumulate(child.counts))
    values = [f"{count}.0" for count in counts] if counts[-1] < PLAIN_BELOW else [number(count) for count in counts]
    total = values[-1]
    if with_exemplars:
        for place, exemplar in child.exemplars.items():
            values[place] += _exemplar(exemplar)
    before, after = child.bucket_text
    lines = []
    if child.edges:
        lines = [f"{name}_bucket{before}", "", after, "", "\n"] * len(values)
        lines[1::5] = child.edge_texts
        lines[3::5] = values
    lines.append(f"{name}_count{child.label_text} {total}\n{name}_sum{child.label_text} {number(child.sum)}\n")
    return "".join(lines)


def _exemplar(exemplar: Exemplar) -> str:
    labels = ",".join(map(label_pair, sorted(exemplar.labels.items())))  # not cached: each is another
    return f" # {{{labels}}} {go_number(exemplar.value)} {exemplar.timestamp}"
