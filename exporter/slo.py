"""Which requests met an objective. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from exporter import timeline
from exporter.observation import Observation, Outcome, Series, Stream
from exporter.settings import Settings, Slo


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Requests of one observation that met the objective, and that did not."""

    good: int
    bad: int


def series_of(slo: Slo, settings: Settings) -> Iterator[Series]:
    """Every series that the objective judges."""
    workload = next(workload for workload in settings.workloads if workload.name == slo.workload)
    for target in settings.targets:
        if workload.targets is not None and target.name not in workload.targets:
            continue
        if slo.targets is not None and target.name not in slo.targets:
            continue
        for batch_size in slo.batch_sizes or workload.batch_sizes:
            yield Series(target.name, workload.name, batch_size)


def thresholds(settings: Settings) -> tuple[float, ...]:
    """Seconds at which a histogram must have an edge, so that a judged share can be read off it exactly."""
    return tuple(sorted({slo.threshold for slo in settings.slos if slo.threshold is not None}))


def judge(slo: Slo, observation: Observation) -> Verdicts:
    """Count the requests. A failed or timed-out request is bad; see `Outcome.judged` for what is not judged at all."""
    if not observation.outcome.judged:
        return Verdicts(0, 0)
    good = sum(stream.requests for stream in observation.streams if meets(slo, stream))
    if observation.outcome is not Outcome.OK and len(observation.streams) <= 1:
        good = 0
    return Verdicts(good, observation.series.batch_size - good)


def meets(slo: Slo, stream: Stream) -> bool:
    """Whether the requests of this stream met the threshold; like a bucket, a threshold includes its own value.

    `inter_token_latency` asks for every wait of the request, since one stall is what a reader notices;
    `time_per_output_token` is the mean.
    """
    if stream.outcome is not Outcome.OK:
        return False
    threshold = slo.threshold
    if threshold is None:
        return True
    match slo.measure:
        case "ttft":
            value = timeline.time_to_first_token(stream)
        case "inter_token_latency":
            value = max(timeline.inter_token_latencies(stream), default=0.0)
        case "time_per_output_token":
            value = timeline.time_per_output_token(stream) or 0.0
        case _:
            value = timeline.request_duration(stream)
    return value is not None and value <= threshold
