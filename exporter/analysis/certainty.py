"""Which of a probe's numbers are certain enough to be recorded, and which are withheld. Pure.

A process that is stopped, or waits for a CPU, reads late, and then an arrival may be older than it looks (see
`Instant`). Each number here comes with how much too long or too short it may be; what may be wrong by more than
TOLERANCE is no measurement. Withholding is for what is uncertain, never for what is slow: nothing here depends on how
long the server took, but for the share.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from exporter.analysis import timeline
from exporter.observation import Observation, Outcome, Step, Stream

# A number is recorded when it is wrong by no more than both together.
TOLERANCE_SECONDS = 0.0025
TOLERANCE_SHARE = 0.015
# Beside that, what each further call of a sum of calls may have added: as much as the thinnest client adds to one
# (`python -m benchmarks added-delay`).
TOLERANCE_PER_CALL = 0.0003


class Measure(StrEnum):
    """The label values of `tgi_probe_withheld_values_total`."""

    TTFT = "ttft"
    INTER_TOKEN = "inter_token_latency"
    PER_OUTPUT_TOKEN = "time_per_output_token"
    REQUEST = "request_duration"
    DECODE = "decode_duration"
    PREFILL_RATE = "prefill_throughput"
    DECODE_RATE = "decode_throughput"
    OVERHEAD = "overhead"
    SPREAD = "start_spread"
    SETUP = "connection_setup"


# What only a shard has, and what only a router has.
OF_SHARDS = frozenset({Measure.OVERHEAD})
OF_ROUTERS = frozenset({Measure.SPREAD, Measure.SETUP})


@dataclass(frozen=True, slots=True)
class Value:
    """Seconds. The true ones may be up to `less` fewer or up to `more` more. A sum of several `calls` to a shard adds
    up what is uncertain about each.
    """

    seconds: float
    less: float = 0.0
    more: float = 0.0
    calls: int = 1

    @property
    def certain(self) -> bool:
        fixed = TOLERANCE_SECONDS + TOLERANCE_PER_CALL * (self.calls - 1)
        return max(self.less, self.more) <= fixed + TOLERANCE_SHARE * max(0.0, self.seconds)

    def within(self, threshold: float) -> bool | None:
        """Whether it is at most the threshold; None where that is not certain."""
        if self.certain or self.seconds - self.less > threshold or self.seconds + self.more <= threshold:
            return self.seconds <= threshold
        return None


# --- one stream


def time_to_first_token(stream: Stream) -> Value | None:
    seconds = timeline.time_to_first_token(stream)
    return None if seconds is None else Value(seconds, stream.steps[0].late + _begun_late(stream))


def inter_token_latencies(stream: Stream) -> Iterator[Value]:
    steps = (step for step in stream.steps[1:] if step.tokens)
    for seconds, step in zip(timeline.inter_token_latencies(stream), steps, strict=True):
        yield Value(seconds, step.late, step.asked_late)


def time_per_output_token(stream: Stream) -> Value | None:
    """Where the first arrival had several tokens, when it began also decides how many came after the first."""
    seconds = timeline.time_per_output_token(stream)
    if seconds is None:
        return None
    less, more = _decoding_late(stream.steps)
    tokens = sum(step.tokens for step in stream.steps[1:]) / stream.requests
    return Value(seconds, less / tokens, more / tokens if stream.steps[0].tokens <= stream.requests else more)


def request_duration(stream: Stream) -> Value:
    before = [step.late for step, _ in _breaks(stream.steps)]
    last = stream.steps[-1].late if stream.steps and stream.steps[-1].arrived == stream.ended else stream.ended_late
    less = last + sum(before) + _begun_late(stream)
    return Value(timeline.request_duration(stream), less, calls=1 + len(before))


def _begun_late(stream: Stream) -> float:
    """How much later than the instant that its waiting counts from a request may have left, but for the time that a
    server took which then did not begin it.
    """
    ours = stream.sent - stream.declined if stream.intended is not None else stream.sent
    return ours + stream.sent_late - timeline.counted_from(stream)


def _breaks(steps: Sequence[Step]) -> Iterator[tuple[Step, Step]]:
    """Steps whose next one was asked for later: calls to a shard. A stream has none: its waits follow each other."""
    return ((step, after) for step, after in pairwise(steps) if after.asked != step.arrived)


def _decoding_late(steps: Sequence[Step]) -> tuple[float, float]:
    """How much less and how much more the time of the steps after the first may be. There are two at least."""
    less = steps[-1].late + sum(step.late for step, _ in _breaks(steps[1:]))
    return less, steps[0].late if steps[1].asked == steps[0].arrived else 0.0


# --- one probe


def prefill_duration(observation: Observation) -> Value | None:
    seconds = timeline.prefill_duration(observation)
    if seconds is None:
        return None
    streams = [stream for stream in observation.streams if stream.steps]
    late = max(stream.steps[0].late for stream in streams) + max(map(_begun_late, streams))
    return Value(seconds, late + _apart(observation.streams))


def decode_duration(observation: Observation) -> Value | None:
    seconds = timeline.decode_duration(observation)
    if seconds is None:
        return None
    streams = [stream for stream in observation.streams if len(stream.steps) > 1]
    late = [_decoding_late(stream.steps) for stream in streams]
    less = max(less for less, _ in late) + _apart(observation.streams)
    calls = max(1 + sum(1 for _ in _breaks(stream.steps[1:])) for stream in streams)
    return Value(seconds, less, max(more for _, more in late), calls)


def _apart(streams: Sequence[Stream]) -> float:
    """How far what was meant to be sent together was sent apart: of the batch's durations, so much is ours."""
    sent = [stream.sent for stream in streams]
    return max(sent) - min(sent) if sent else 0.0


def start_spread(observation: Observation) -> Value | None:
    seconds = timeline.start_spread(observation)
    if seconds is None:
        return None
    late = max(stream.sent_late for stream in observation.streams)
    return Value(seconds, late, late)


def overhead(step: Step) -> Value | None:
    """Wall time of a call minus the server's own total; None where the server does not tell."""
    if step.server is None or step.server.total is None:
        return None
    return Value(max(0.0, step.arrived - step.asked - step.server.total), step.late)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What of one probe is certain: seconds, rates in tokens per second. `withheld` counts what is not."""

    first: tuple[float, ...]
    gaps: tuple[float, ...]
    per_output_token: tuple[float, ...]
    requests: tuple[float, ...]
    prefill: float | None
    decode: float | None
    prefill_rate: float | None
    decode_rate: float | None
    spread: float | None
    overheads: tuple[tuple[int, float], ...]
    setups: tuple[float, ...]
    withheld: Mapping[Measure, int]


def recorded(observation: Observation) -> Recorded:
    """Of a probe that was disturbed everything is withheld, of one that failed there is nothing."""
    withheld: Counter[Measure] = Counter()
    whole = observation.outcome in (Outcome.OK, Outcome.DISTURBED)
    streams = observation.streams if whole else ()
    observation = replace(observation, streams=streams)

    def kept(measure: Measure, value: Value | None, ok: bool = observation.outcome is Outcome.OK) -> float | None:
        if value is None:
            return None
        if ok and value.certain:
            return value.seconds
        withheld[measure] += 1
        return None

    def all_kept(measure: Measure, values: Iterator[Value | None]) -> tuple[float, ...]:
        return tuple(seconds for value in values if (seconds := kept(measure, value)) is not None)

    prefill, decode = prefill_duration(observation), decode_duration(observation)
    calls = [(number, overhead(step)) for stream in streams for number, step in enumerate(stream.steps)]
    setups = (Value(setup.ready - setup.begun, setup.late) for setup in observation.setups)
    return Recorded(
        all_kept(Measure.TTFT, map(time_to_first_token, streams)),
        all_kept(Measure.INTER_TOKEN, (gap for stream in streams for gap in inter_token_latencies(stream))),
        all_kept(Measure.PER_OUTPUT_TOKEN, map(time_per_output_token, streams)),
        all_kept(Measure.REQUEST, map(request_duration, streams)),
        prefill.seconds if prefill is not None and prefill.certain else None,  # no measure of its own: see its rate
        kept(Measure.DECODE, decode),
        timeline.prefill_throughput(observation) if kept(Measure.PREFILL_RATE, prefill) is not None else None,
        timeline.decode_throughput(observation) if kept(Measure.DECODE_RATE, decode) is not None else None,
        kept(Measure.SPREAD, start_spread(observation)),
        tuple((number, s) for number, value in calls if (s := kept(Measure.OVERHEAD, value)) is not None),
        tuple(s for value in setups if (s := kept(Measure.SETUP, value, True)) is not None),
        withheld,
    )


def mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def doubt(stream: Stream) -> float:
    """By how much it is uncertain when the first token came, where that leaves nothing to record; else 0.

    A request that merely left late is none of this: it has no time to first token, but its gaps are as good as any.
    """
    first = time_to_first_token(stream)
    if first is None or first.certain:
        return 0.0
    arrived = Value(first.seconds, stream.steps[0].late)
    return 0.0 if arrived.certain and any(gap.certain for gap in inter_token_latencies(stream)) else first.less


def disturbed(streams: Sequence[Stream]) -> float:
    """The doubt about a probe's first tokens, in seconds; 0 where one of its requests leaves something to record, and
    the requests left together: else it is no batch of that size.
    """
    apart = _apart(streams)
    if apart > TOLERANCE_SECONDS + TOLERANCE_SHARE * max((stream.ended - stream.sent for stream in streams), default=0):
        return apart
    return min((doubt(stream) for stream in streams if stream.steps), default=0.0)
