"""What is recorded is true, however late it was read: streams whose true arrivals are drawn, and a reader that wakes up
when it likes, through a kernel that keeps the newest note of what it has put together.
"""

from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.analysis import certainty, slo
from exporter.analysis.certainty import TOLERANCE_SECONDS, TOLERANCE_SHARE, Measure, UncertainDuration
from exporter.config.slo import Slo
from exporter.observation import Instant, Observation, Outcome, Series, ServerTimings, Setup, Step, Stream
from exporter.probes.disturbed import after_stops
from exporter.probes.router.token_counts import steps
from exporter.wire.delays import Gap

pytestmark = pytest.mark.timed
ROUNDING = 1e-9


class Read(NamedTuple):
    """A stream as it was read, and when its tokens really came."""

    stream: Stream
    came: list[float]


@st.composite
def reads(draw: st.DrawFn) -> Read:
    """One token in each message. The reader knows, more or less well, when there was nothing to read yet."""
    noted = draw(st.booleans())
    sent_late = draw(st.sampled_from([0.0, 0.0001, 0.004]))
    sent = 100.0
    waits = draw(st.lists(st.floats(0.0002, 0.2), min_size=1, max_size=12))
    came = [sent + draw(st.floats(0, sent_late)) + waits[0]]
    for wait in waits[1:]:
        came.append(came[-1] + wait)
    arrivals: list[tuple[float, int]] = []
    looked, unread = sent, 0
    while unread < len(came):
        read = max(looked, came[unread]) + draw(st.sampled_from([0.0, 0.0001, 0.002, 0.07, 2.0]))
        taken = [at for at in came[unread:] if at <= read]
        since = looked + (taken[0] - looked) * draw(st.floats(0, 1))
        at = taken[-1] if noted else read
        dated = [Instant(at, at - since)] * len(taken)
        if noted:  # the note is that of the last one
            dated[-1] = Instant(at)
        arrivals += [(instant, unread + number) for number, instant in enumerate(dated, start=1)]
        unread += len(taken)
        looked = read
    seen = steps(sent, arrivals)
    return Read(Stream(1, 10, sent, looked, seen, sent_late=sent_late, ended_late=looked - came[-1]), came)


def allowed(seconds: float) -> float:
    return TOLERANCE_SECONDS + TOLERANCE_SHARE * seconds + ROUNDING


def observed(*streams: Stream, outcome: Outcome = Outcome.OK) -> Observation:
    return Observation(Series("t", "w", len(streams)), 0.0, 0.0, 0.0, outcome, "OK", streams=streams)


def truth(read: Read) -> tuple[float, float]:
    """The shortest and the longest that the first token can have taken: the request left at some instant."""
    waited = read.came[0] - read.stream.sent
    return waited - read.stream.sent_late, waited


@given(reads())
def test_a_recorded_time_to_first_token_is_true(read: Read) -> None:
    for seconds in certainty.recorded(observed(read.stream)).first:
        shortest, longest = truth(read)
        assert abs(seconds - shortest) <= allowed(seconds)
        assert abs(seconds - longest) <= allowed(seconds)


@given(reads())
def test_a_recorded_gap_is_true_and_so_is_that_its_tokens_came_together(read: Read) -> None:
    last = read.stream.steps[0].tokens - 1
    for step, value in zip(read.stream.steps[1:], certainty.inter_token_latencies(read.stream), strict=True):
        first, before, last = read.came[last + 1], read.came[last], last + step.tokens
        if value.certain:
            assert abs(value.seconds - (read.came[last] - before) / step.tokens) <= allowed(value.seconds)
            assert read.came[last] - first <= allowed(value.seconds)


@given(reads())
def test_a_true_value_is_between_the_bounds_that_a_measured_one_tells(read: Read) -> None:
    value = certainty.time_to_first_token(read.stream)
    assert value is not None
    shortest, longest = truth(read)
    assert value.seconds - value.less - ROUNDING <= shortest <= longest <= value.seconds + value.more + ROUNDING
    whole = certainty.request_duration(read.stream)
    took = read.came[-1] - read.stream.sent
    assert whole.seconds - whole.less - ROUNDING <= took <= whole.seconds + whole.more + ROUNDING


@given(reads(), st.floats(0.0001, 3.0), st.sampled_from(["ttft", "inter_token_latency", "request_duration"]))
def test_a_verdict_is_that_of_the_truth_unless_that_is_as_close_to_the_threshold_as_we_measure(
    read: Read, threshold: float, measure: str
) -> None:
    objective = Slo.model_validate({"name": "s", "workload": "w", measure: f"{round(threshold * 1000, 1)}ms"})
    assert objective.threshold is not None
    threshold = objective.threshold
    met = slo.meets(objective, read.stream)
    true = {
        "ttft": read.came[0] - read.stream.sent,
        "inter_token_latency": max((b - a for a, b in pairwise(read.came)), default=0.0),
        "request_duration": read.came[-1] - read.stream.sent,
    }[measure]
    if met is True and measure != "inter_token_latency":  # tokens that came together share a wait: the mean of them
        assert true - threshold <= allowed(threshold)
    if met is False:
        assert threshold - true <= allowed(true) + read.stream.sent_late


@given(reads())
def test_a_reader_that_is_awake_withholds_nothing(read: Read) -> None:
    awake = steps(read.stream.sent, [(Instant(at, 0.0003), number) for number, at in enumerate(read.came, start=1)])
    stream = replace(read.stream, steps=awake, sent_late=0.0, ended=read.came[-1], ended_late=0.0003)
    assert not certainty.recorded(observed(stream)).withheld


def test_withholding_is_for_what_is_uncertain_and_not_for_what_is_slow() -> None:
    for seconds in (0.001, 1.0, 100.0, 10_000.0):
        assert UncertainDuration(seconds, 0.002, 0.002).certain
        assert not UncertainDuration(seconds, 0.01 + 0.02 * seconds).certain
        assert not UncertainDuration(seconds, 0.0, 0.01 + 0.02 * seconds).certain


def test_a_shards_calls_are_each_as_certain_as_they_are() -> None:
    told = ServerTimings(total=0.02)
    calls = (
        Step(0.0, 0.021, 4, told, late=0.001),
        Step(0.03, 0.1, 4, told, late=0.05),
        Step(0.11, 0.131, 4, told, late=0.001),
    )
    seen = certainty.recorded(observed(Stream(4, 40, 0.0, 0.131, calls)))
    assert seen.first == (0.021,)
    assert seen.gaps == pytest.approx([0.021])
    assert [number for number, _ in seen.overheads] == [0, 2]
    assert seen.decode is None
    assert seen.withheld[Measure.INTER_TOKEN] == seen.withheld[Measure.OVERHEAD] == 1
    assert seen.withheld[Measure.REQUEST] == seen.withheld[Measure.DECODE_RATE] == 1
    assert seen.withheld[Measure.TTFT] == seen.withheld[Measure.PREFILL_RATE] == 0


def test_a_stop_of_ours_between_two_calls_of_a_shard_is_in_none_of_its_durations() -> None:
    calls = (Step(0.0, 0.02, 1), Step(2.02, 2.04, 1))
    seen = certainty.recorded(observed(Stream(1, 10, 0.0, 2.04, calls)))
    assert seen.first == (0.02,)
    assert [*seen.gaps, *seen.requests, seen.decode] == pytest.approx([0.02, 0.04, 0.02])
    assert not seen.withheld


def test_of_a_disturbed_probe_everything_is_withheld_and_of_a_failed_one_there_is_nothing() -> None:
    stream = Stream(1, 10, 0.0, 0.3, (Step(0.0, 0.1, 1), Step(0.1, 0.2, 1), Step(0.2, 0.3, 1)))
    disturbed = certainty.recorded(observed(stream, outcome=Outcome.DISTURBED))
    assert (disturbed.first, disturbed.gaps, disturbed.requests, disturbed.decode) == ((), (), (), None)
    assert disturbed.withheld[Measure.TTFT] == 1
    assert disturbed.withheld[Measure.INTER_TOKEN] == 2
    failed = certainty.recorded(observed(stream, outcome=Outcome.TIMEOUT))
    assert (failed.first, failed.withheld) == ((), {})


def test_a_slow_connection_setup_of_ours_is_withheld() -> None:
    seen = certainty.recorded(replace(observed(), setups=(Setup(0.0, 0.001), Setup(0.0, 2.001, 2.0))))
    assert seen.setups == (0.001,)
    assert seen.withheld == {Measure.SETUP: 1}


def test_a_probe_is_disturbed_when_of_none_of_its_requests_anything_is_certain() -> None:
    doubtful = Stream(1, 1, 0.0, 0.2, (Step(0.0, 0.1, 3, late=0.07), Step(0.1, 0.2, 1)))
    certain = Stream(1, 1, 0.0, 0.2, (Step(0.0, 0.1, 1), Step(0.1, 0.2, 1)))
    sent_late = replace(certain, sent_late=0.05)
    assert certainty.disturbed([doubtful]) == pytest.approx(0.07)
    assert certainty.disturbed([replace(sent_late, steps=sent_late.steps[:1])]) == pytest.approx(0.05)
    for streams in ([certain], [doubtful, certain], [sent_late], []):
        assert not certainty.disturbed(streams)


def test_where_the_first_arrival_had_several_tokens_its_doubt_is_not_spread_over_the_others() -> None:
    more = tuple(Step(0.1 + n / 50, 0.12 + n / 50, 1) for n in range(5))
    alone = certainty.time_per_output_token(Stream(1, 1, 0.0, 0.2, (Step(0.0, 0.1, 1, late=0.005), *more)))
    together = certainty.time_per_output_token(Stream(1, 1, 0.0, 0.2, (Step(0.0, 0.1, 4, late=0.005), *more)))
    assert alone is not None
    assert together is not None
    assert alone.more == pytest.approx(0.001)
    assert together.more == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("value", "threshold", "verdict"),
    [
        (UncertainDuration(1.0, 0.5), 0.4, False),  # whatever it was, it was more
        (UncertainDuration(1.0, 0.5), 0.7, None),
        (UncertainDuration(1.0, 0.5), 1.0, True),
        (UncertainDuration(1.0, 0.0, 0.5), 1.2, None),
        (UncertainDuration(1.0, 0.0, 0.5), 1.5, True),
        (UncertainDuration(1.0, 0.001), 0.9995, False),  # as certain as we measure: as the histogram counts it
    ],
)
def test_an_uncertain_value_is_judged_where_both_ends_are_on_one_side(
    value: UncertainDuration, threshold: float, verdict: bool | None
) -> None:
    assert value.within(threshold) is verdict


def started(sent: float) -> Stream:
    arrivals = [sent + 0.03 + n / 100 for n in range(8)]
    waits = pairwise([sent, *arrivals])
    return Stream(1, 100, sent, arrivals[-1], tuple(Step(asked, arrived, 1) for asked, arrived in waits))


@pytest.mark.parametrize("apart", [0.0005, 2.0])
def test_a_batch_whose_requests_were_sent_apart_is_none(apart: float) -> None:
    streams = (started(0.0), started(apart))
    seen = certainty.recorded(observed(*streams))
    together = apart < TOLERANCE_SECONDS
    assert (seen.prefill_rate is not None) is together
    assert (seen.decode is not None) is together
    assert (seen.decode_rate is not None) is together
    assert (certainty.disturbed(streams) == 0) is together


@given(reads(), st.floats(0.001, 0.3))
def test_a_recorded_gap_around_a_stop_of_the_whole_machine_is_true(read: Read, length: float) -> None:
    """What came during the stop was noted at its end."""
    first = read.came[0]
    gap = Gap(first - length / 2, first + length / 2, length, True, length)
    noted = [gap.until if gap.since < at <= gap.until else at for at in read.came]
    stamped = steps(read.stream.sent, [(Instant(at), number) for number, at in enumerate(noted, start=1)])
    stream = replace(read.stream, steps=stamped, ended=noted[-1], ended_late=0.0)
    values = list(certainty.inter_token_latencies(after_stops(stream, [gap])))
    if len(values) == len(read.came) - 1:
        for value, (before, after) in zip(values, pairwise(read.came), strict=True):
            if value.certain:
                assert abs(value.seconds - (after - before)) <= allowed(value.seconds)


@pytest.mark.parametrize(
    ("late", "worked", "ranks", "recorded"),
    [
        (0.0004, 0.0, 1, True),
        (0.001, 0.0, 1, False),
        (0.001, 0.0, 4, True),
        (0.002, 0.0, 4, False),
        (0.001, 0.0005, 1, True),  # half of it was the work of the call itself
        (0.0012, 0.0012, 1, False),
        (0.0025, 0.0025, 1, False),  # so much work is none: the CPU was taken away
    ],
)
def test_what_each_call_to_a_shard_adds_does_not_withhold_their_sum_but_what_holds_each_up_does(
    late: float, worked: float, ranks: int, recorded: bool
) -> None:
    calls = [
        Step(number * 0.0081, number * 0.0081 + 0.008, 1, late=late, ranks=ranks, worked=worked) for number in range(64)
    ]
    stream = Stream(1, 10, 0.0, calls[-1].arrived, tuple(calls))
    seen = certainty.recorded(Observation(Series("t", "w", 1), 0.0, 0.0, 1.0, Outcome.OK, "OK", streams=(stream,)))
    assert len(seen.gaps) == 63
    assert (seen.decode_rate is not None) == (seen.decode is not None) == bool(seen.requests) == recorded
