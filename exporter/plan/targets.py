"""What one target is probed with, what it says about itself, and what a reload changes. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from exporter.config.settings import Settings
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import LONGEST_DETAIL, LONGEST_FACT, Series, legible


@dataclass(frozen=True, slots=True)
class Plan:
    """What one target's runner needs to know. A reload restarts the runner only when its plan has changed."""

    target: Target
    workloads: tuple[Workload, ...]
    max_duty_cycle: float

    @property
    def batches(self) -> "Plan":
        """The part that is probed in batches, one after the other."""
        return replace(self, workloads=tuple(workload for workload in self.workloads if not workload.is_load))

    def only(self, workload: Workload) -> "Plan":
        return replace(self, workloads=(workload,))

    @property
    def loads(self) -> tuple[Workload, ...]:
        """The background loads, which run beside the batches, request by request."""
        return tuple(workload for workload in self.workloads if workload.is_load)

    def series(self) -> Iterator[tuple[Series, Workload]]:
        for workload in self.workloads:
            for batch_size in workload.batch_sizes:
                yield Series(self.target.name, workload.name, batch_size), workload


@dataclass(frozen=True, slots=True)
class Facts:
    """What a target says about itself. Empty text or None where it does not say; `ranks` counts the model's shards.

    A new value of `connection` means that the server was away in between. Texts are made `legible`, since they become
    label values.

    `page` is the result of the request for these facts, which servers need not answer: read, refused (no such page),
    or silent (no answer in time, or a gateway's error). `advice` is what a person should do about that, if anything.
    """

    protocol: str
    ranks: int
    model: str = ""
    dtype: str = ""
    device: str = ""
    attention: str = ""
    requires_padding: bool = True
    block_size: int = 0
    speculate: int = 0
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    max_new_tokens: int | None = None
    connection: tuple[int, ...] = ()
    page: Literal["read", "refused", "silent"] = field(default="read", compare=False)
    advice: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("model", "dtype", "device", "attention"):
            object.__setattr__(self, name, legible(getattr(self, name), LONGEST_FACT))
        object.__setattr__(self, "advice", legible(self.advice, LONGEST_DETAIL))


def plans(settings: Settings) -> dict[str, Plan]:
    """One plan for each target, by name, in the order of the file."""
    found = {}
    for target in settings.targets:
        workloads = tuple(w for w in settings.workloads if w.targets is None or target.name in w.targets)
        found[target.name] = Plan(target, workloads, settings.max_duty_cycle)
    return found


@dataclass(frozen=True, slots=True)
class Change:
    """What a reload does, by target name: stop those `leaving`, start those `arriving`. A changed target is in both."""

    leaving: tuple[str, ...]
    arriving: tuple[str, ...]


def change(old: Mapping[str, Plan], new: Mapping[str, Plan]) -> Change:
    return Change(
        leaving=tuple(name for name, plan in old.items() if new.get(name) != plan),
        arriving=tuple(name for name, plan in new.items() if old.get(name) != plan),
    )
