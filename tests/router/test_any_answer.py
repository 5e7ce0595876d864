"""Whatever a server sends: tokens, or a Failure in one line; never another exception."""

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.secrets import Secret
from exporter.config.target import Api
from exporter.observation import Failure
from exporter.pb import fmaas_pb2 as pb
from exporter.probes.router.fmaas_protocol import GenerationReader
from exporter.probes.router.http_apis import facts, read
from exporter.probes.router.http_protocol import EventStreamReader
from exporter.probes.router.server_errors import refused
from exporter.probes.router.token_counts import AnswerTokens, steps
from exporter.wire.http_codec import BrokenConnection, End, Http1, Http2, HttpCodec, HttpRequest
from exporter.wire.message_framing import grpc_message

Value = TypeVar("Value")
WORDS = """token generated_text details input_length generated_tokens choices delta content text usage prompt_tokens
completion_tokens finish_reason error error_type object message code type data id max_model_len model_id errors detail
status status_code role reasoning tool_calls token_ids input_tokens output_tokens x_groq loc index"""
KEYS = st.sampled_from(WORDS.split())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
EVENTS = st.lists(VALUES.map(json.dumps) | st.just("[DONE]") | st.text(max_size=10), max_size=6)
APIS = st.sampled_from(["tgi", "completions", "chat"])


def in_one_line(failure: Failure) -> bool:
    return "\n" not in failure.detail and len(failure.detail) < 400 and bool(failure.code)


def outcome(attempt: Callable[[], Value]) -> Value | Failure:
    """What came of it; any other exception goes through."""
    try:
        return attempt()
    except Failure as failure:
        return failure


@given(APIS, EVENTS)
def test_any_events_are_tokens_or_a_failure(api: Api, events: list[str]) -> None:
    reading = outcome(lambda: read(api, list(enumerate(map(str, events)))))
    if isinstance(reading, Failure):
        assert in_one_line(reading)
    else:
        assert reading.arrivals


@given(APIS, EVENTS, st.sampled_from(["", "event: error\n", "event: x\nid: 1\n", ": c\n"]), st.integers(1, 50))
def test_any_event_stream_is_tokens_or_a_failure(api: Api, events: list[str], before: str, size: int) -> None:
    data = "".join(f"{before}data: {event}\n\n" for event in events).encode("utf-8", "surrogatepass")

    def attempt() -> AnswerTokens:
        answer = EventStreamReader(api, Secret(""), 4)
        answer.head(200, {"content-type": "text/event-stream"})
        for number, at in enumerate(range(0, len(data), size)):
            answer.body(float(number), data[at : at + size])
        answer.end(1e6, End())
        return answer.tokens()

    tokens = outcome(attempt)
    assert in_one_line(tokens) if isinstance(tokens, Failure) else tokens.arrivals


@given(APIS, st.integers(100, 599), st.dictionaries(st.just("content-type"), st.text(max_size=20)), st.binary())
def test_any_body_is_an_answer_or_a_failure(api: Api, status: int, headers: dict[str, str], body: bytes) -> None:
    def attempt() -> AnswerTokens:
        answer = EventStreamReader(api, Secret(""))
        answer.head(status, headers)
        answer.body(1.0, body)
        answer.end(2.0, End())
        return answer.tokens()

    tokens = outcome(attempt)
    assert in_one_line(tokens) if isinstance(tokens, Failure) else tokens.arrivals


@given(st.integers(300, 599), st.binary() | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_error_page_is_a_failure(status: int, body: bytes) -> None:
    assert in_one_line(refused(status, body))


@given(APIS, st.dictionaries(KEYS, VALUES, max_size=4), st.sampled_from(["", "m"]))
def test_anything_a_server_says_of_itself_is_facts(api: Api, document: dict[str, object], model: str) -> None:
    assert isinstance(facts(api, document, model).model, str)


def generation(messages: Sequence[bytes], trailers: dict[str, str]) -> AnswerTokens | Failure:
    def attempt() -> AnswerTokens:
        answer = GenerationReader()
        answer.head(200, {})
        for at, message in enumerate(messages, start=1):
            answer.body(float(at), grpc_message(message))
        answer.end(99.0, End(trailers))
        return answer.tokens()

    return outcome(attempt)


@given(st.lists(st.binary(max_size=30), max_size=5), st.dictionaries(st.just("grpc-status"), st.text(max_size=3)))
def test_any_messages_and_trailers_are_tokens_or_a_failure(messages: list[bytes], trailers: dict[str, str]) -> None:
    tokens = generation(messages, trailers)
    assert not isinstance(tokens, Failure) or in_one_line(tokens)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=6))
def test_any_counts_and_reasons_are_tokens_or_a_failure(parts: list[tuple[int, int]]) -> None:
    messages = [
        pb.GenerationResponse(generated_token_count=count, stop_reason=reason)  # type: ignore[arg-type]  # any number
        for count, reason in parts
    ]
    tokens = generation([message.SerializeToString() for message in messages], {"grpc-status": "0"})
    if isinstance(tokens, Failure):
        assert in_one_line(tokens)
    else:
        assert 1 <= sum(step.tokens for step in steps(0.0, tokens.arrivals)) <= max(count for count, _ in parts)


def http1() -> HttpCodec:
    return Http1("h:1")


def http2() -> HttpCodec:
    return Http2("h:1", "http")


SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
PIECES = st.lists(st.binary(max_size=40) | st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"\r\n", SETTINGS]))


@pytest.mark.parametrize("make", [http1, http2])
@given(pieces=PIECES)
def test_any_bytes_are_heard_or_the_connection_is_broken(make: Callable[[], HttpCodec], pieces: list[bytes]) -> None:
    codec = make()
    codec.first_bytes()
    codec.encode(HttpRequest("POST", "/", (), b"{}"))
    with contextlib.suppress(BrokenConnection):
        for piece in pieces:
            codec.receive(piece)
        codec.receive(None)
    assert not codec.usable
    codec.data_to_send()
    codec.cancel()
