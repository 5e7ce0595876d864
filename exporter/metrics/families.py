"""Metric families and their series: the values that the daemon counts. No I/O.

prometheus_client's own instruments write the whole page at once and hold Python's lock meanwhile. `pages` takes a tenth
to a quarter of that time, and can pause (`python -m benchmarks pages`). Terms and meaning are prometheus_client's;
tests compare the text of both.

A family holds a group for each target, and a group holds that target's children. A child is what one combination of
label values has: one series, or all series of a histogram. The labels that a target is given in the configuration stand
on its own children only, so children of one family may have different label names.

No locks: code that may run in several threads reads and writes inside the collector's `WriteQueue`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar

from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

Labels = tuple[tuple[str, str], ...]
# Unix seconds.
UnixTime = Callable[[], float]


class Child(Protocol):
    """The series of a family that have the same label values. `created`: Unix time of their start at 0."""

    labels: Labels
    label_text: str

    @property
    def created(self) -> float | None: ...

    def samples(self, name: str) -> Iterator[Sample]:
        """As prometheus_client wants them. `name` is the family's."""


ChildType = TypeVar("ChildType", bound=Child)
# One target's children of one family, by their label values.
Group = dict[tuple[str, ...], Any]


class NumberChild:
    """A counter or a gauge. A gauge has no start: its `created` is None."""

    __slots__ = ("created", "label_text", "labels", "value")

    def __init__(self, family: "Family[NumberChild]", labels: Labels) -> None:
        self.labels = labels
        self.label_text = label_text(labels)
        self.value = float(family.initial)  # as Prometheus counts, also beyond 2^53
        self.created = family.start() if family.has_start else None

    def inc(self, amount: float = 1) -> None:
        self.value += amount

    def set(self, value: float) -> None:
        self.value = float(value)

    def lines(self, name: str) -> tuple[str, ...]:
        """Its lines on a page, less those of the start. `name` is the family's, without `_total`."""
        suffix = "" if self.created is None else "_total"
        return (f"{name}{suffix}{self.label_text} {number(self.value)}\n",)

    def samples(self, name: str) -> Iterator[Sample]:
        labels = label_dict(self.labels)
        if self.created is None:
            yield Sample(name, labels, self.value)
        else:
            yield Sample(f"{name}_total", labels, self.value)
            yield Sample(f"{name}_created", labels, self.created)


class SummaryChild:
    """A count and a sum, without quantiles."""

    __slots__ = ("count", "created", "label_text", "labels", "sum")

    def __init__(self, family: "Family[SummaryChild]", labels: Labels) -> None:
        self.labels = labels
        self.label_text = label_text(labels)
        self.count = 0
        self.sum = 0.0
        self.created = family.start()

    def observe(self, value: float) -> None:
        self.count += 1
        self.sum += value

    def lines(self, name: str) -> tuple[str, ...]:
        text = self.label_text
        return (f"{name}_count{text} {number(self.count)}\n", f"{name}_sum{text} {number(self.sum)}\n")

    def samples(self, name: str) -> Iterator[Sample]:
        labels = label_dict(self.labels)
        yield Sample(f"{name}_count", labels, self.count)
        yield Sample(f"{name}_sum", labels, self.sum)
        yield Sample(f"{name}_created", labels, self.created)


@dataclass(slots=True)
class Family(Generic[ChildType]):
    """All series of one name. `name` is OpenMetrics': a counter's lacks the `_total` that its samples have.

    `label_names` are those that every child has; `target` among them says whose group a child belongs to. `edges` are
    the upper bounds of a histogram's buckets, without +Inf.
    """

    kind: str
    name: str
    help: str
    label_names: tuple[str, ...]
    child: type[Any]
    unix_time: UnixTime
    edges: tuple[float, ...] = ()
    initial: float = 0
    groups: dict[str, dict[tuple[str, ...], ChildType]] = field(default_factory=dict)
    edge_texts: tuple[str, ...] = ()
    _target_at: int | None = None

    def __post_init__(self) -> None:
        self._target_at = self.label_names.index("target") if "target" in self.label_names else None
        self.edge_texts = edge_texts(self.edges)

    @property
    def sample_name(self) -> str:
        return f"{self.name}_total" if self.kind == "counter" else self.name

    @property
    def kind_in_text(self) -> str:
        """A histogram without classic edges is a summary there: in OpenMetrics it would lack its bucket +Inf."""
        return "summary" if self.kind == "histogram" and not self.edges else self.kind

    @property
    def has_start(self) -> bool:
        return self.kind != "gauge"

    def start(self) -> float:
        """When a series starts that is made now. In whole seconds, to save bytes: a fraction earlier does no harm."""
        return float(int(self.unix_time()))

    def labels(self, *values: str, extra: Labels = ()) -> ChildType:
        """The child with these values, in the order of `label_names`; made at first use, with the extra labels."""
        target = "" if self._target_at is None else values[self._target_at]
        group = self.groups.setdefault(target, {})
        child = group.get(values)
        if child is None:
            labels = tuple(sorted((*zip(self.label_names, values, strict=True), *extra)))
            child = group[values] = self.child(self, labels)
        return child

    def children(self) -> Iterator[ChildType]:
        for group in self.groups.values():
            yield from group.values()

    def remove(self, target: str) -> None:
        """Every series of a target; nothing happens where there is none."""
        self.groups.pop(target, None)

    def clear(self) -> None:
        self.groups.clear()

    def keep(self, wanted: Callable[[Mapping[str, str]], bool], target: str | None = None) -> None:
        """Remove every child whose labels are not wanted; with `target`, only among that target's children."""
        for name in self.groups if target is None else self.groups.keys() & {target}:
            group = self.groups[name]
            for values in list(group):
                if not wanted(dict(zip(self.label_names, values, strict=True))):
                    del group[values]

    def change_edges(self, edges: Sequence[float]) -> None:
        """Only for histograms, which keep what they have counted: see `HistogramChild.change_edges`."""
        if self._take_edges(edges):
            for child in self.children():
                child.change_edges(self)  # type: ignore[attr-defined]

    def restart(self, edges: Sequence[float]) -> None:
        """Only for histograms: with these edges, and every count from 0."""
        if self._take_edges(edges):
            for group in self.groups.values():
                for values, child in group.items():
                    group[values] = self.child(self, child.labels)

    def _take_edges(self, edges: Sequence[float]) -> bool:
        """Whether they are others than before."""
        if self.edges == tuple(edges):
            return False
        self.edges = tuple(edges)
        self.edge_texts = edge_texts(self.edges)
        return True


# --- text and labels


# Below it, Go prints a number as Python does.
PLAIN_BELOW = 1_000_000


def go_number(value: float) -> str:
    """As Go prints a float64, which is what both text formats want: with an exponent from seven digits on."""
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def number(value: float) -> str:
    """`go_number`, fast where Go prints as Python does."""
    return repr(float(value)) if -PLAIN_BELOW < value < PLAIN_BELOW else go_number(value)


def edge_texts(edges: Sequence[float]) -> tuple[str, ...]:
    """The values of the label `le`."""
    return tuple(go_number(edge) for edge in (*edges, float("inf")))


def label_pair(label: tuple[str, str]) -> str:
    value = label[1].replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{label[0]}="{value}"'


# Series share most of their labels.
cached_label_pair = lru_cache(maxsize=4096)(label_pair)


def label_text(labels: Labels) -> str:
    """Labels as they stand on a line, with their braces."""
    return "{" + ",".join(map(cached_label_pair, labels)) + "}" if labels else ""


def label_dict(labels: Labels) -> dict[str, str]:
    """For prometheus_client, which cannot write half a surrogate pair: one such label would cost the whole page."""
    return {name: value.encode(errors="replace").decode() for name, value in labels}
