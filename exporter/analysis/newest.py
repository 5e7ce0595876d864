"""The newest results of all targets, and the sums of all objectives: what the status page shows. Pure."""

from dataclasses import dataclass

MEDIAN_OF = 11


@dataclass(frozen=True, slots=True)
class TargetSummary:
    """`said`: what the target says of itself, None when it is down. `asked`: whether it has been asked yet."""

    name: str
    kind: str
    address: str
    said: str | None
    asked: bool


@dataclass(frozen=True, slots=True)
class Limit:
    """What an SLO allows, in seconds."""

    slo: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Unprobed:
    """A series without an attempt since the start, and why, in words."""

    target: str
    workload: str
    batch_size: int
    why: str


@dataclass(frozen=True, slots=True)
class NewestResult:
    """A series' newest attempt, at the Unix time `at`. Latencies in seconds, rates in tokens per second; None after a
    failure. `withheld`: the measures among them that have no value because each was uncertain (see `certainty`).
    `medians`: of the last `MEDIAN_OF` successes, in the order of the four measures. `limits`: of the strictest SLOs on
    the time to first token and on the time per token.
    """

    target: str
    workload: str
    batch_size: int
    at: float
    outcome: str
    detail: str
    trace_id: str
    ttft: float | None
    inter_token: float | None
    prefill_rate: float | None
    decode_rate: float | None
    withheld: tuple[str, ...] = ()
    medians: tuple[float | None, ...] = (None, None, None, None)
    limits: tuple[Limit | None, Limit | None] = (None, None)


@dataclass(frozen=True, slots=True)
class ObjectiveSum:
    """What was judged since the start, nothing at first. `threshold` in seconds, None for availability."""

    name: str
    target: str
    measure: str
    threshold: float | None
    objective: float
    good: int
    bad: int


@dataclass(frozen=True, slots=True)
class NewestResults:
    """`now` in Unix time. `trouble`: why the exporter is not healthy. `probe_here`: whether /probe is on."""

    now: float
    version: str
    trouble: str | None
    targets: tuple[TargetSummary, ...]
    results: tuple[NewestResult, ...]
    unprobed: tuple[Unprobed, ...]
    objectives: tuple[ObjectiveSum, ...]
    probe_here: bool
