"""From instants to numbers: every derived number against the plain definition, spelt out token by token."""

import math

from hypothesis import given
from hypothesis import strategies as st

from exporter import timeline
from exporter.observation import Observation, Outcome, Series, Step, Stream


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


@given(streams())
def test_time_per_output_token_is_the_mean_gap_of_one_request(stream: Stream) -> None:
    tokens = arrivals(stream)
    found = timeline.time_per_output_token(stream)
    if len(tokens) - stream.steps[0].tokens // stream.requests < 1 if stream.steps else True:
        assert found is None
    else:
        after_first = len(tokens) - stream.steps[0].tokens // stream.requests
        assert found is not None
        assert math.isclose(found, (stream.steps[-1].arrived - stream.steps[0].arrived) / after_first)


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
