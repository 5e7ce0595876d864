"""From instants to numbers: every derived number against the plain definition, spelt out token by token."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from exporter.analysis import timeline
from exporter.observation import Observation, Outcome, Series, Step, Stream

# Of sums of instants near 1e6 s.
TOLERANCE = 1e-8


@st.composite
def streams(draw: st.DrawFn, requests: st.SearchStrategy[int] = st.integers(1, 8), least: int = 0) -> Stream:  # noqa: B008
    """Instants in order; a step asks when the one before it has arrived, or a little later."""
    count = draw(requests)
    now = sent = draw(st.floats(0, 1e6))
    steps: list[Step] = []
    for _ in range(draw(st.integers(least, 12))):
        asked = now + draw(st.floats(0, 0.1))
        now = asked + draw(st.floats(1e-6, 10))
        steps.append(Step(asked if steps else sent, now, draw(st.integers(0, 4)) * count))
    if steps and not steps[0].tokens:
        steps[0] = Step(steps[0].asked, steps[0].arrived, count)
    return Stream(count, count * draw(st.integers(1, 1000)), sent, now, tuple(steps))


@st.composite
def watched(draw: st.DrawFn) -> Stream:
    """A stream that is waited for all the time, as a router's: a step asks when the one before it has arrived."""
    stream = draw(streams(least=1))
    before = (stream.sent, *(step.arrived for step in stream.steps))
    steps = tuple(replace(step, asked=asked) for step, asked in zip(stream.steps, before, strict=False))
    return replace(stream, steps=steps, ended=stream.ended + draw(st.floats(0, 1)))


def observed(*seen: Stream) -> Observation:
    return Observation(Series("t", "w", 1), 0.0, 0.0, 0.0, Outcome.OK, "OK", streams=seen)


def arrivals(stream: Stream) -> list[float]:
    """When each token of one of the requests arrived."""
    return [step.arrived for step in stream.steps for _ in range(step.tokens // stream.requests)]


@given(streams())
def test_time_to_first_token_is_the_wait_for_the_first_arrival(stream: Stream) -> None:
    expected = arrivals(stream)[0] - stream.sent if stream.steps else None
    assert timeline.time_to_first_token(stream) == expected


@given(streams())
def test_each_step_with_tokens_gives_one_wait_per_token_of_a_request(stream: Stream) -> None:
    expected = [
        (step.arrived - step.asked) / (step.tokens / stream.requests) for step in stream.steps[1:] if step.tokens
    ]
    found = list(timeline.inter_token_latencies(stream))
    assert len(found) == len(expected)
    assert all(math.isclose(one, other) for one, other in zip(found, expected, strict=True))
    assert all(value > 0 for value in found)


@given(streams(least=1))
def test_time_per_output_token_is_the_mean_wait_of_one_request(stream: Stream) -> None:
    after_first = len(arrivals(stream)) - stream.steps[0].tokens // stream.requests
    found = timeline.time_per_output_token(stream)
    if after_first < 1:
        assert found is None
    else:
        assert found is not None
        waits = math.fsum(step.arrived - step.asked for step in stream.steps[1:])
        assert math.isclose(found, waits / after_first, abs_tol=TOLERANCE)


@given(streams(least=1))
def test_our_own_time_between_two_calls_of_a_shard_is_in_no_duration(stream: Stream) -> None:
    waits = [step.arrived - step.asked for step in stream.steps]
    assert math.isclose(timeline.request_duration(stream), math.fsum(waits), abs_tol=TOLERANCE)
    decode = timeline.decode_duration(observed(stream))
    if len(waits) == 1:
        assert decode is None
    else:
        assert decode is not None
        assert math.isclose(decode, math.fsum(waits[1:]), abs_tol=TOLERANCE)


@given(st.lists(watched(), min_size=1, max_size=5))
def test_a_streaming_server_is_waited_for_from_the_first_token_to_the_last(seen: list[Stream]) -> None:
    for stream in seen:
        first, last = stream.steps[0].arrived, stream.steps[-1].arrived
        assert timeline.request_duration(stream) == stream.ended - stream.sent
        each = timeline.time_per_output_token(stream)
        tokens = sum(step.tokens for step in stream.steps[1:]) / stream.requests
        assert each == ((last - first) / tokens if tokens else None)
    longer = [stream for stream in seen if len(stream.steps) > 1]
    spans = [max(s.steps[-1].arrived for s in longer) - min(s.steps[0].arrived for s in longer)] if longer else [None]
    assert timeline.decode_duration(observed(*seen)) == spans[0]


@given(streams())
def test_generated_tokens_are_those_of_every_request(stream: Stream) -> None:
    assert timeline.generated_tokens(stream) == len(arrivals(stream)) * stream.requests


@given(st.lists(streams(least=1), min_size=1, max_size=5))
def test_a_probes_prefill_lasts_from_the_first_sent_to_the_last_first_token(seen: list[Stream]) -> None:
    expected = max(arrivals(stream)[0] for stream in seen) - min(stream.sent for stream in seen)
    assert timeline.prefill_duration(observed(*seen)) == expected
    rate = timeline.prefill_throughput(observed(*seen))
    assert rate is not None
    assert math.isclose(rate, sum(stream.prompt_tokens for stream in seen) / expected)


@given(st.lists(streams(), max_size=5))
def test_decode_throughput_times_its_duration_are_the_tokens_after_the_first_ones(seen: list[Stream]) -> None:
    observation = observed(*seen)
    duration, rate = timeline.decode_duration(observation), timeline.decode_throughput(observation)
    tokens = sum(step.tokens for stream in seen for step in stream.steps[1:])
    assert (rate is None) == (tokens == 0 or not duration)
    if rate is not None and duration is not None:
        assert math.isclose(rate * duration, tokens)


def test_numbers_that_the_facts_cannot_give_are_none() -> None:
    empty = Stream(1, 1, 0.0, 1.0, ())
    alone = Stream(1, 1, 0.0, 1.0, (Step(0.0, 1.0, 1),))
    assert timeline.time_to_first_token(empty) is None
    assert timeline.prefill_duration(observed(empty)) is None
    assert timeline.prefill_throughput(observed()) is None
    assert timeline.time_per_output_token(alone) is None
    assert timeline.decode_duration(observed(alone)) is None
    assert timeline.decode_throughput(observed(alone)) is None
