"""Which of a probe's durations are certain enough to be recorded, and which are withheld. Pure.

A process that is stopped, or waits for a CPU, reads its data late. The instant that it notes is then later than the
arrival (see `Instant`). So each duration has two bounds: how much too long and how much too short it may be. A duration
that may be wrong by more than the tolerance is withheld. A slow answer alone is never a reason to withhold.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from exporter.analysis import timeline
from exporter.observation import Observation, Outcome, Step, Stream

# A duration is recorded when it is wrong by at most the sum of both.
TOLERANCE_SECONDS = 0.0025
TOLERANCE_SHARE = 0.015
# A sum of several calls may be wrong by this much more for each call after the first, beside the time that a CPU worked
# on that call: every client works, and is woken up twice. The second figure is for each further rank of such a call.
# (`python -m benchmarks added-delay` measures both.)
TOLERANCE_PER_CALL = 0.0005
TOLERANCE_PER_RANK = 0.00025
# The work of a call takes about that long on a small machine. What is more counts as a delay.
MOST_WORK_SECONDS = 0.0005


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


@dataclass(frozen=True, slots=True)
class UncertainDuration:
    """Seconds. The true duration may be up to `less` shorter or `more` longer.

    A sum of calls may be wrong by `allowed` more than a single duration.
    """

    seconds: float
    less: float = 0.0
    more: float = 0.0
    allowed: float = 0.0

    @property
    def certain(self) -> bool:
        tolerance = TOLERANCE_SECONDS + TOLERANCE_SHARE * max(0.0, self.seconds) + self.allowed
        return max(self.less, self.more) <= tolerance

    def within(self, threshold: float) -> bool | None:
        """Whether it is at most the threshold; None where that is not certain."""
        if self.certain or self.seconds - self.less > threshold or self.seconds + self.more <= threshold:
            return self.seconds <= threshold
        return None


# --- one stream


def time_to_first_token(stream: Stream) -> UncertainDuration | None:
    seconds = timeline.time_to_first_token(stream)
    return None if seconds is None else UncertainDuration(seconds, stream.steps[0].late + _begun_late(stream))


def inter_token_latencies(stream: Stream) -> Iterator[UncertainDuration]:
    steps = (step for step in stream.steps[1:] if step.tokens)
    for seconds, step in zip(timeline.inter_token_latencies(stream), steps, strict=True):
        yield UncertainDuration(seconds, step.late, step.asked_late)


def time_per_output_token(stream: Stream) -> UncertainDuration | None:
    """If the first arrival had several tokens, its instant also decides how many tokens came after the first one."""
    seconds = timeline.time_per_output_token(stream)
    if seconds is None:
        return None
    less, more = _decoding_late(stream.steps)
    tokens = sum(step.tokens for step in stream.steps[1:]) / stream.requests
    return UncertainDuration(
        seconds, less / tokens, more / tokens if stream.steps[0].tokens <= stream.requests else more
    )


def request_duration(stream: Stream) -> UncertainDuration:
    before = [step.late for step, _ in _pauses(stream.steps)]
    last = stream.steps[-1].late if stream.steps and stream.steps[-1].arrived == stream.ended else stream.ended_late
    less = last + sum(before) + _begun_late(stream)
    return UncertainDuration(timeline.request_duration(stream), less, allowed=_allowed(stream.steps))


def _begun_late(stream: Stream) -> float:
    """How much later than the instant that its waiting counts from a request may have been sent. The time that a
    server held a request before it declined it does not count.
    """
    ours = stream.sent - stream.declined if stream.intended is not None else stream.sent
    return ours + stream.sent_late - timeline.counted_from(stream)


def _pauses(steps: Sequence[Step]) -> Iterator[tuple[Step, Step]]:
    """Pairs of steps with a pause in between, as between calls to a shard. A stream has no such pauses."""
    return ((step, after) for step, after in pairwise(steps) if after.asked != step.arrived)


def _allowed(steps: Sequence[Step]) -> float:
    """By how much more the sum of these steps may be wrong than one of them."""
    return math.fsum(
        TOLERANCE_PER_CALL + TOLERANCE_PER_RANK * (after.ranks - 1) + min(after.worked, MOST_WORK_SECONDS)
        for _, after in _pauses(steps)
    )


def _decoding_late(steps: Sequence[Step]) -> tuple[float, float]:
    """How much shorter and longer the time of the steps after the first may be. There are at least two steps."""
    less = steps[-1].late + sum(step.late for step, _ in _pauses(steps[1:]))
    return less, steps[0].late if steps[1].asked == steps[0].arrived else 0.0


# --- one probe


def prefill_duration(observation: Observation) -> UncertainDuration | None:
    seconds = timeline.prefill_duration(observation)
    if seconds is None:
        return None
    streams = [stream for stream in observation.streams if stream.steps]
    late = max(stream.steps[0].late for stream in streams) + max(map(_begun_late, streams))
    return UncertainDuration(seconds, late + _send_spread(observation.streams))


def decode_duration(observation: Observation) -> UncertainDuration | None:
    seconds = timeline.decode_duration(observation)
    if seconds is None:
        return None
    streams = [stream for stream in observation.streams if len(stream.steps) > 1]
    late = [_decoding_late(stream.steps) for stream in streams]
    less = max(less for less, _ in late) + _send_spread(observation.streams)
    allowed = max(_allowed(stream.steps[1:]) for stream in streams)
    return UncertainDuration(seconds, less, max(more for _, more in late), allowed)


def _send_spread(streams: Sequence[Stream]) -> float:
    """From the first request sent to the last: that part of the batch's durations is our own."""
    sent = [stream.sent for stream in streams]
    return max(sent) - min(sent) if sent else 0.0


def start_spread(observation: Observation) -> UncertainDuration | None:
    seconds = timeline.start_spread(observation)
    if seconds is None:
        return None
    late = max(stream.sent_late for stream in observation.streams)
    return UncertainDuration(seconds, late, late)


def overhead(step: Step) -> UncertainDuration | None:
    """Wall time of a call minus the server's own total; None where the server does not tell."""
    if step.server is None or step.server.total is None:
        return None
    return UncertainDuration(max(0.0, step.arrived - step.asked - step.server.total), step.late)


@dataclass(frozen=True, slots=True)
class Recorded:
    """The certain values of one probe: seconds, rates in tokens per second. `withheld` counts the uncertain ones."""

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
    """A failed probe has no values but its connection setups. Those of a disturbed probe are withheld."""
    withheld: Counter[Measure] = Counter()
    whole = observation.outcome in (Outcome.OK, Outcome.DISTURBED)
    streams = observation.streams if whole else ()
    observation = replace(observation, streams=streams)

    def kept(
        measure: Measure, value: UncertainDuration | None, ok: bool = observation.outcome is Outcome.OK
    ) -> float | None:
        if value is None:
            return None
        if ok and value.certain:
            return value.seconds
        withheld[measure] += 1
        return None

    def all_kept(measure: Measure, values: Iterator[UncertainDuration | None]) -> tuple[float, ...]:
        return tuple(seconds for value in values if (seconds := kept(measure, value)) is not None)

    prefill, decode = prefill_duration(observation), decode_duration(observation)
    calls = [(number, overhead(step)) for stream in streams for number, step in enumerate(stream.steps)]
    setups = (UncertainDuration(setup.ready - setup.begun, setup.late) for setup in observation.setups)
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
    """How uncertain the instant of the first token is, in seconds, where nothing can be recorded; else 0.

    A request that was only sent late has no time to first token, but its other durations can be recorded.
    """
    first = time_to_first_token(stream)
    if first is None or first.certain:
        return 0.0
    arrived = UncertainDuration(first.seconds, stream.steps[0].late)
    return 0.0 if arrived.certain and any(gap.certain for gap in inter_token_latencies(stream)) else first.less


def disturbed(streams: Sequence[Stream]) -> float:
    """By how many seconds a probe is uncertain as a whole; 0 where the requests were sent together and at least one of
    them can be recorded.
    """
    spread = _send_spread(streams)
    if spread > TOLERANCE_SECONDS + TOLERANCE_SHARE * max(
        (stream.ended - stream.sent for stream in streams), default=0
    ):
        return spread
    return min((doubt(stream) for stream in streams if stream.steps), default=0.0)
