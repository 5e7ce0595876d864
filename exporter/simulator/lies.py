"""Answers that cannot be true, told by command, to test that probes do not believe them.

other_ids      generations for requests that nobody sent (shards)
missing        one generation too few (shards)
extra          one generation or token too many
absurd_times   durations of centuries, parts that are longer than their sum (shards)
no_tokens      an answer without a token
endless        a batch or stream that goes on after its last token
huge           one token of 100 MB
garbage        bytes that are no message
"""

from typing import Any

from exporter.simulator.faults import FaultKind

HUGE_BYTES = 100_000_000
ENDLESS_TOKENS = 1_000_000
_MORE_TOKENS = 1_000
_GARBAGE = b"\xff\xfe\x00 this is no message \x80" * 3
_LONGEST_NS = 2**64 - 1


def of_shard(kind: FaultKind, answer: Any) -> Any:
    """What a shard sends instead of its answer to Prefill or Decode: a message, or bytes."""
    if kind == "garbage":
        return _GARBAGE
    if not hasattr(answer, "generations") or not answer.generations:
        return answer
    first = answer.generations[0]
    match kind:
        case "other_ids":
            for generation in answer.generations:
                generation.request_id += 1 << 32
        case "missing":
            del answer.generations[0]
        case "extra":
            answer.generations.add().CopyFrom(first)
        case "no_tokens":
            for generation in answer.generations:
                generation.ClearField("tokens")
        case "absurd_times":
            answer.forward_ns = answer.decode_ns = _LONGEST_NS
            answer.total_ns = _LONGEST_NS - 1
        case "huge":
            first.tokens.texts[0] = "a" * HUGE_BYTES
        case _:
            pass
    return answer


def of_fmaas(kind: FaultKind | None, message: Any) -> bytes:
    """What a router sends instead of a message of a stream."""
    if kind == "garbage":
        return _GARBAGE
    if message.DESCRIPTOR.name == "GenerationResponse" and message.generated_token_count:
        if kind == "no_tokens":
            message.generated_token_count, message.text = 0, ""
        elif kind == "extra":
            message.generated_token_count += _MORE_TOKENS
        elif kind == "huge":
            message.text = "a" * HUGE_BYTES
    data: bytes = message.SerializeToString()
    return data


def of_http(kind: FaultKind | None, events: bytes) -> bytes:
    """What a router sends instead of these events."""
    match kind:
        case "garbage":
            return b"data: " + _GARBAGE + b"\n\n"
        case "no_tokens":
            return b""
        case "extra":
            return events * _MORE_TOKENS
        case "huge":
            return b'data: {"token": {"text": "' + b"a" * HUGE_BYTES + b'"}}\n\n'
        case _:
            return events
