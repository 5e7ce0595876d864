"""From raw instants to latencies and throughput. Pure: no clock, no I/O.

All durations are seconds, all rates tokens per second. A missing number is None or left out, never 0.
"""

from collections.abc import Iterator
from itertools import pairwise

from exporter.observation import Observation, Step, Stream


def counted_from(stream: Stream) -> float:
    """The instant from which durations count: when the schedule wanted the request sent, else when it was sent.

    In a background load, counting from the sending would leave out the delay that a slow server has caused.
    """
    return stream.sent if stream.intended is None else stream.intended


def time_to_first_token(stream: Stream) -> float | None:
    """Sent to first token. For a shard: the wall time of Prefill."""
    return stream.steps[0].arrived - counted_from(stream) if stream.steps else None


def inter_token_latency(step: Step, requests: int) -> float:
    """The wait for one step, divided by the tokens each request in it got (more than one with speculation).

    `requests` counts those of the stream, for a step that does not say how many were left in it.
    """
    return (step.arrived - step.asked) * (step.requests or requests) / step.tokens


def inter_token_latencies(stream: Stream) -> Iterator[float]:
    """One value per step after the first. A step without tokens has no value; its wait is part of the next arrival."""
    return (inter_token_latency(step, stream.requests) for step in stream.steps[1:] if step.tokens)


def generated_tokens(stream: Stream) -> int:
    return sum(step.tokens for step in stream.steps)


def between_calls(stream: Stream) -> float:
    """The time between two Decodes of a shard: our own work, and FilterBatch. For a stream it is exactly 0."""
    return sum(step.asked - before.arrived for before, step in pairwise(stream.steps))


def time_per_output_token(stream: Stream) -> float | None:
    """(last token - first token) / (tokens - 1), tokens counted per request; None with fewer than two tokens.

    For a shard it is the sum of its Decode calls / (tokens - 1), until the last request of the batch has ended. With
    speculation the requests end at different steps: it is the time per token of the batch as a whole.
    """
    if len(stream.steps) < 2:
        return None
    tokens_after_first = sum(step.tokens for step in stream.steps[1:]) / stream.requests
    waited = stream.steps[-1].arrived - stream.steps[0].arrived - between_calls(stream)
    return waited / tokens_after_first if tokens_after_first else None


def request_duration(stream: Stream) -> float:
    """Sent to done. For a shard: the sum of its Prefill and Decode calls."""
    return stream.ended - counted_from(stream) - between_calls(stream)


def start_spread(observation: Observation) -> float | None:
    """From the first stream sent to the last; None where there is only one."""
    sent = [stream.sent for stream in observation.streams]
    return max(sent) - min(sent) if len(sent) > 1 else None


def prefill_duration(observation: Observation) -> float | None:
    """First sent to the moment when every request has its first token."""
    streams = [stream for stream in observation.streams if stream.steps]
    if not streams:
        return None
    return max(stream.steps[0].arrived for stream in streams) - min(counted_from(stream) for stream in streams)


def decode_duration(observation: Observation) -> float | None:
    """First token to all done; None where nothing was decoded after the first tokens.

    For a shard, whose batch is one stream: the sum of its Decode calls.
    """
    streams = [stream for stream in observation.streams if len(stream.steps) > 1]
    if not streams:
        return None
    first = min(stream.steps[0].arrived for stream in streams)
    span = max(stream.steps[-1].arrived for stream in streams) - first
    return span - between_calls(streams[0]) if len(streams) == 1 else span


def prefill_throughput(observation: Observation) -> float | None:
    """Prompt tokens of the batch / prefill duration."""
    return _rate(sum(stream.prompt_tokens for stream in observation.streams), prefill_duration(observation))


def decode_throughput(observation: Observation) -> float | None:
    """Tokens after the first of each request / decode duration."""
    tokens = sum(step.tokens for stream in observation.streams for step in stream.steps[1:])
    return _rate(tokens, decode_duration(observation))


def _rate(tokens: int, seconds: float | None) -> float | None:
    return tokens / seconds if tokens and seconds is not None and seconds > 0 else None
