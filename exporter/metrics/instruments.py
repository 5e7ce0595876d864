"""Counters, gauges, histograms and summaries: what is counted, by family, target and series. No clock, no I/O.

Our own, because a page of a fleet prober is tens of megabytes and prometheus_client makes all of it anew in each
scrape, with the interpreter locked. Here every change is noted where it happens (`version`), so that `rendering` makes
only changed lines anew. Words and meaning are prometheus_client's, and a property test compares the text of both.

A family holds a `Group` for each target, a group holds the target's children. Series of one family may have different
label names: a target's own labels are part of its children only.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar

from exporter.metrics.write_queue import WriteQueue

# Prometheus and OpenMetrics: names and values of one exemplar together.
EXEMPLAR_CHARACTERS = 128
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One observation that stands for others in its bucket, such as a trace. `timestamp` is Unix time."""

    labels: Mapping[str, str]
    value: float
    timestamp: float


@dataclass(frozen=True, slots=True)
class Piece:
    """Lines as they go out compressed, made when the owner had this `version`; see `rendering`."""

    version: int
    data: bytes
    checksum: int
    length: int


class Changes:
    """Counts the changes of a group, under its lock. Apart from the group, so that no circle of references forms:
    what leaves is gone at once, also when the garbage collector does not look (see `app`)."""

    __slots__ = ("count", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0


class Child(Protocol):
    """One series of a family (a histogram's many lines count as one)."""

    labels: Labels

    def samples(self) -> Iterator[tuple[str, Labels, float, Exemplar | None]]:
        """Name suffix, further labels, value, exemplar."""


ChildType = TypeVar("ChildType", bound=Child)


class Group(Generic[ChildType]):
    """One target's children of one family. `pieces` belongs to `rendering`."""

    __slots__ = ("changes", "children", "pieces")

    def __init__(self) -> None:
        self.changes = Changes()
        self.children: dict[tuple[str, ...], ChildType] = {}
        self.pieces: dict[bool, Piece] = {}


class Value:
    """A counter or a gauge."""

    __slots__ = ("_changes", "_prefix", "labels", "value")

    def __init__(self, family: "Family[Value]", changes: Changes, labels: Labels) -> None:
        self._changes = changes
        self.labels = labels
        self.value = family.initial
        self._prefix = f"{family.sample_name}{braced(labels)} "

    def inc(self, amount: float = 1) -> None:
        with self._changes.lock:
            self.value += amount
            self._changes.count += 1

    def set(self, value: float) -> None:
        with self._changes.lock:
            self.value = float(value)
            self._changes.count += 1

    def readings(self) -> tuple[tuple[str, float], ...]:
        """Lines: what stands before the value, and the value."""
        return ((self._prefix, self.value),)

    def samples(self) -> Iterator[tuple[str, Labels, float, Exemplar | None]]:
        yield "", (), self.value, None


class Summary:
    """Count and sum, no quantiles."""

    __slots__ = ("_changes", "_count_prefix", "_sum_prefix", "count", "labels", "sum")

    def __init__(self, family: "Family[Summary]", changes: Changes, labels: Labels) -> None:
        self._changes = changes
        self.labels = labels
        self.count = 0
        self.sum = 0.0
        text = braced(labels)
        self._count_prefix = f"{family.name}_count{text} "
        self._sum_prefix = f"{family.name}_sum{text} "

    def observe(self, value: float) -> None:
        with self._changes.lock:
            self.count += 1
            self.sum += value
            self._changes.count += 1

    def readings(self) -> tuple[tuple[str, float], ...]:
        """Lines: what stands before the value, and the value."""
        return ((self._count_prefix, self.count), (self._sum_prefix, self.sum))

    def samples(self) -> Iterator[tuple[str, Labels, float, Exemplar | None]]:
        yield "_count", (), self.count, None
        yield "_sum", (), self.sum, None


class Histogram:
    """Counts by bucket (not cumulative here; the last one is +Inf), and the sum. `pieces` belongs to `rendering`."""

    __slots__ = (
        "_changes",
        "_edges",
        "counts",
        "edge_texts",
        "exemplars",
        "labels",
        "pieces",
        "sum",
        "surround",
        "version",
    )

    def __init__(self, family: "Family[Histogram]", changes: Changes, labels: Labels) -> None:
        self.version = 0
        self.pieces: dict[bool, Piece] = {}
        self._edges = family.edges
        # The child's own, as its counts are: a scrape may come while a reload gives the family other edges.
        self.edge_texts = family.edge_texts
        self._changes = changes
        self.labels = labels
        self.counts = [0] * (len(self._edges) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}
        self.surround = surround(labels)

    def observe(self, value: float, exemplar: Exemplar | None = None) -> None:
        """Count a value in its bucket; an edge belongs to the bucket below it. NaN is in none, and spoils the sum."""
        place = bisect_left(self._edges, value)
        with self._changes.lock:
            self.sum += value
            if value == value:
                self.counts[place] += 1
                if exemplar is not None and _short_enough(exemplar):
                    self.exemplars[place] = exemplar
            self.version += 1
            self._changes.count += 1

    def samples(self) -> Iterator[tuple[str, Labels, float, Exemplar | None]]:
        with self._changes.lock:
            counts, total = list(self.counts), self.sum
            exemplars = dict(self.exemplars)
        count = 0
        for place, edge in enumerate((*self._edges, float("inf"))):
            count += counts[place]
            yield "_bucket", (("le", go_number(edge)),), count, exemplars.get(place)
        yield "_count", (), count, None
        yield "_sum", (), total, None


@dataclass(slots=True)
class Family(Generic[ChildType]):
    """All series of one name. `name` is OpenMetrics': a counter's lacks the `_total` that its samples have.

    `label_names` are those of every series; `target` among them says whose group a series belongs to. `edges` come
    without +Inf.
    """

    kind: str
    name: str
    help: str
    label_names: tuple[str, ...]
    child: type[Any]
    edges: tuple[float, ...] = ()
    initial: float = 0
    groups: dict[str, Group[ChildType]] = field(default_factory=dict)
    edge_texts: tuple[str, ...] = ()
    _target_at: int | None = None

    def __post_init__(self) -> None:
        self._target_at = self.label_names.index("target") if "target" in self.label_names else None
        if self.kind == "histogram":
            self.edge_texts = edge_texts(self.edges)

    @property
    def sample_name(self) -> str:
        return f"{self.name}_total" if self.kind == "counter" else self.name

    def labels(self, *values: str, extra: Labels = ()) -> ChildType:
        """The series with these values, in the order of `label_names`; made at first use, with the extra labels."""
        group = self.groups.get(self._owner(values))
        if group is not None:
            child = group.children.get(values)
            if child is not None:
                return child
        return self._add(values, extra)

    def _owner(self, values: tuple[str, ...]) -> str:
        return "" if self._target_at is None else values[self._target_at]

    def _add(self, values: tuple[str, ...], extra: Labels) -> ChildType:
        # setdefault is one step for the interpreter: of two threads that come at once, both get the same one.
        group: Group[ChildType] = self.groups.setdefault(self._owner(values), Group())
        labels = tuple(sorted((*zip(self.label_names, values, strict=True), *extra)))
        with group.changes.lock:
            child: ChildType = group.children.setdefault(values, self.child(self, group.changes, labels))
            group.changes.count += 1
        return child

    def remove(self, target: str) -> None:
        """Every series of a target; nothing happens where there is none."""
        self.groups.pop(target, None)

    def clear(self) -> None:
        self.groups.clear()

    def keep(self, wanted: Callable[[Mapping[str, str]], bool]) -> None:
        """Remove every series whose labels are not wanted."""
        for group in list(self.groups.values()):
            for values in list(group.children):
                if not wanted(dict(zip(self.label_names, values, strict=True))):
                    with group.changes.lock:
                        group.children.pop(values, None)
                        group.changes.count += 1

    def reshape(self, edges: Sequence[float]) -> None:
        """Other edges for a histogram. Its series start again at 0: what fell between two edges cannot be divided."""
        if self.edges == tuple(edges):
            return
        self.edges = tuple(edges)
        self.edge_texts = edge_texts(self.edges)
        for group in list(self.groups.values()):
            with group.changes.lock:
                for values, child in list(group.children.items()):
                    group.children[values] = self.child(self, group.changes, child.labels)
                group.changes.count += 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of a page."""

    family: Family[Any]
    name: str
    labels: dict[str, str]
    value: float
    exemplar: Exemplar | None


class Registry:
    """All families, in the order in which they were made. Values that belong together change in one of `writes`."""

    def __init__(self) -> None:
        self.families: list[Family[Any]] = []
        self._before_page: list[Callable[[], None]] = []
        self.writes = WriteQueue()

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Family[Value]:
        return self._take(Family("counter", name.removesuffix("_total"), text, tuple(labels), Value))

    def gauge(self, name: str, text: str, labels: Sequence[str] = (), initial: float = 0) -> Family[Value]:
        return self._take(Family("gauge", name, text, tuple(labels), Value, initial=initial))

    def summary(self, name: str, text: str, labels: Sequence[str] = ()) -> Family[Summary]:
        return self._take(Family("summary", name, text, tuple(labels), Summary))

    def histogram(self, name: str, text: str, edges: Sequence[float], labels: Sequence[str] = ()) -> Family[Histogram]:
        return self._take(Family("histogram", name, text, tuple(labels), Histogram, tuple(edges)))

    def _take(self, family: Family[ChildType]) -> Family[ChildType]:
        self.families.append(family)
        return family

    def before_page(self, read: Callable[[], None]) -> None:
        """Call this at the start of every page: for values that someone else counts."""
        self._before_page.append(read)

    def refresh(self) -> None:
        for read in self._before_page:
            read()

    def samples(self) -> Iterator[Sample]:
        """Every sample: slow, for tests and tools. A page comes from `rendering`."""
        self.refresh()
        for family in self.families:
            for child in children(family):
                for suffix, labels, value, exemplar in child.samples():
                    yield Sample(
                        family, f"{family.sample_name}{suffix}", dict((*child.labels, *labels)), value, exemplar
                    )

    def get_sample_value(self, name: str, labels: Mapping[str, str] | None = None) -> float | None:
        """The value of one sample, None where it does not exist."""
        wanted = dict(labels or {})
        return next((one.value for one in self.samples() if one.name == name and one.labels == wanted), None)


def children(family: Family[ChildType]) -> Iterator[ChildType]:
    for group in list(family.groups.values()):
        yield from list(group.children.values())


def go_number(value: float) -> str:
    """As Go would print a float64, which is what both formats want: with an exponent from seven digits on."""
    value = float(value)
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    whole, point, fraction = repr(value).partition(".")
    if value < 0 or not point or len(whole) < 7:
        return repr(value)
    mantissa = f"{whole[0]}.{whole[1:]}{fraction}".rstrip("0").rstrip(".")
    return f"{mantissa}e+{len(whole) - 1:02d}"


# --- text that is made once


def edge_texts(edges: Iterable[float]) -> tuple[str, ...]:
    return tuple(go_number(edge) for edge in (*edges, float("inf")))


def pair(label: tuple[str, str]) -> str:
    value = label[1].replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{label[0]}="{value}"'


# Series share most of their labels.
_kept_pair = lru_cache(maxsize=4096)(pair)


def surround(labels: Labels) -> tuple[str, str, str]:
    """What stands before a bucket's edge, after it, and at the lines without one. Labels come sorted by name."""
    before = "".join(f"{_kept_pair(label)}," for label in labels if label[0] < "le")
    after = "".join(f",{_kept_pair(label)}" for label in labels if label[0] > "le")
    return f'{{{before}le="', f'"{after}}} ', braced(labels)


def braced(labels: Labels) -> str:
    return "{" + ",".join(map(_kept_pair, labels)) + "}" if labels else ""


def _short_enough(exemplar: Exemplar) -> bool:
    return sum(len(name) + len(value) for name, value in exemplar.labels.items()) <= EXEMPLAR_CHARACTERS
