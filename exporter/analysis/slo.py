"""Which requests met an objective. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from exporter.analysis import certainty
from exporter.config.settings import Settings
from exporter.config.slo import Slo
from exporter.observation import Observation, Outcome, Series, Stream


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


def thresholds(settings: Settings) -> dict[str, tuple[float, ...]]:
    """By measure: seconds at which its histogram must have an edge, so that a judged share can be read off exactly."""
    found: dict[str, set[float]] = {}
    for slo in settings.slos:
        if slo.threshold is not None:
            found.setdefault(slo.measure, set()).add(slo.threshold)
    return {measure: tuple(sorted(seconds)) for measure, seconds in found.items()}


def judge(slo: Slo, observation: Observation) -> Verdicts:
    """Count the requests. A failed or timed-out request is bad; see `Outcome.judged` for probes that are not judged.

    A request that may be on either side of the threshold is not judged either.
    """
    if not observation.outcome.judged:
        return Verdicts(0, 0)
    size = observation.series.batch_size
    if observation.outcome is not Outcome.OK and len(observation.streams) <= 1:
        return Verdicts(0, size)
    met = [(stream.requests, meets(slo, stream)) for stream in observation.streams]
    good = sum(requests for requests, verdict in met if verdict)
    unknown = sum(requests for requests, verdict in met if verdict is None)
    return Verdicts(good, size - good - unknown)


def meets(slo: Slo, stream: Stream) -> bool | None:
    """Whether the requests of this stream met the threshold; like a bucket, a threshold includes its own value. None
    where that is not certain.

    `inter_token_latency` asks for every wait of the request, since one stall is what a reader notices;
    `time_per_output_token` is the mean.
    """
    if not stream.outcome.judged:
        return None
    if stream.outcome is not Outcome.OK:
        return False
    threshold = slo.threshold
    if threshold is None:
        return True
    match slo.measure:
        case "ttft":
            value = certainty.time_to_first_token(stream)
            return value is not None and value.within(threshold)
        case "inter_token_latency":
            verdicts = {gap.within(threshold) for gap in certainty.inter_token_latencies(stream)}
            return False if False in verdicts else None if None in verdicts else True
        case "time_per_output_token":
            value = certainty.time_per_output_token(stream)
            return value is None or value.within(threshold)
        case _:
            return certainty.request_duration(stream).within(threshold)
