"""How bytes fall into events: the network may cut them anywhere, and the events stay the same."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.observation import Step
from exporter.streaming.framing import FramingError, GrpcMessages, ServerSentEvents, grpc_message, spread_tokens, steps

TOKENS = (" the", " Straße", " 日本", "🦙", "\n\n")
TGI_EVENTS = [json.dumps({"index": n, "token": {"text": text}}, ensure_ascii=False) for n, text in enumerate(TOKENS)]
STREAMS = {
    "TGI": ("".join(f"data:{event}\n\n" for event in TGI_EVENTS), TGI_EVENTS),
    "OpenAI": ("".join(f"data: {event}\n\n" for event in [*TGI_EVENTS, "[DONE]"]), [*TGI_EVENTS, "[DONE]"]),
    "CRLF": ("".join(f"data: {event}\r\n\r\n" for event in TGI_EVENTS), TGI_EVENTS),
    "CR": ("data: a\r\rdata: b\r\r", ["a", "b"]),
    "comments and keep-alive lines": (": ping\n\ndata: a\n\n:\n\n:keep-alive\n\ndata: b\n\n", ["a", "b"]),
    "other fields": ("event: message\nid: 7\nretry: 10\ndata: a\n\nevent: ping\n\ndata: b\n\n", ["a", "b"]),
    "one event on many lines": ('data: {"a":\ndata: 1}\n\n', ['{"a":\n1}']),
    "only the first space goes": ("data:  a\n\n", [" a"]),
    "empty data": ("data:\n\ndata\n\ndata: b\n\n", ["", "", "b"]),
    "mixed line ends": ("data: a\r\n\ndata: b\n\r\ndata: c\r\n\r\n", ["a", "b", "c"]),
}


def heard(pieces: list[bytes]) -> list[str]:
    split = ServerSentEvents()
    return [event for piece in pieces for event in split.feed(piece)]


@pytest.mark.parametrize(("text", "events"), STREAMS.values(), ids=STREAMS)
def test_a_stream_cut_at_any_place_has_the_same_events(text: str, events: list[str]) -> None:
    data = text.encode()
    assert heard([data]) == events
    for cut in range(len(data) + 1):
        assert heard([data[:cut], data[cut:]]) == events, f"cut at {cut}"
    assert heard([data[at : at + 1] for at in range(len(data))]) == events


@given(st.sampled_from(sorted(STREAMS)), st.lists(st.integers(0, 400), max_size=20))
def test_a_stream_cut_at_many_places_has_the_same_events(name: str, cuts: list[int]) -> None:
    text, events = STREAMS[name]
    data = text.encode()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert heard([data[a:b] for a, b in pairwise(edges)]) == events


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20), max_size=8))
def test_what_a_server_writes_as_events_is_what_is_heard(texts: list[str]) -> None:
    assert heard(["".join(f"data: {text}\n\n" for text in texts).encode()]) == texts


def test_each_event_is_heard_with_the_piece_that_completes_it() -> None:
    split = ServerSentEvents()
    assert split.feed(b"data: a\n") == []
    assert split.feed(b"\ndata: b\n\ndata: c") == ["a", "b"]
    assert split.feed(b"\r\n") == []
    assert split.feed(b"\r\n") == ["c"]


def test_a_last_event_without_its_empty_line_is_heard_at_the_end() -> None:
    split = ServerSentEvents()
    assert split.feed(b"data: a\n\ndata: [DONE]") == ["a"]
    assert split.rest() == ["[DONE]"]


def test_an_event_that_is_not_utf8_is_an_error() -> None:
    with pytest.raises(FramingError, match="not UTF-8"):
        ServerSentEvents().feed(b"data: \xff\n\n")


MESSAGES = [b"", b"a", b"\x00" * 300, "日本".encode()]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 1000])
def test_grpc_messages_cut_at_any_place_are_the_same(size: int) -> None:
    data = b"".join(map(grpc_message, MESSAGES))
    split = GrpcMessages()
    found = [message for at in range(0, len(data), size) for message in split.feed(data[at : at + size])]
    assert found == MESSAGES
    assert split.complete


def test_a_grpc_message_that_is_cut_off_leaves_the_answer_incomplete() -> None:
    split = GrpcMessages()
    assert split.feed(grpc_message(b"abc")[:-1]) == []
    assert not split.complete


def test_a_compressed_grpc_message_is_an_error() -> None:
    with pytest.raises(FramingError, match="compressed"):
        GrpcMessages().feed(b"\x01" + grpc_message(b"a")[1:])


def test_a_length_that_no_message_has_is_an_error() -> None:
    with pytest.raises(FramingError, match="4294967295 bytes"):
        GrpcMessages().feed(b"\x00\xff\xff\xff\xff")


def test_counts_so_far_become_steps_and_an_arrival_without_a_token_is_part_of_the_next_wait() -> None:
    # Before prefill, first token, nothing new, three at once, nothing at the end.
    assert steps(1.0, [(1.1, 0), (1.5, 1), (1.6, 1), (1.8, 4), (1.9, 4)]) == (Step(1.0, 1.5, 1), Step(1.5, 1.8, 3))


def test_tokens_that_came_together_are_one_step() -> None:
    assert steps(1.0, [(2.0, 1), (2.0, 2), (3.0, 3), (3.0, 4)]) == (Step(1.0, 2.0, 2), Step(2.0, 3.0, 2))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50).map(sorted), st.integers(1, 200))
def test_tokens_spread_over_chunks_are_all_there_and_the_first_chunk_has_one(chunks: list[float], total: int) -> None:
    spread = spread_tokens(chunks, total)
    counts = [tokens for _, tokens in spread]
    assert counts[0] >= 1
    assert counts[-1] == total
    assert counts == sorted(counts)
    gains = [after - before for before, after in pairwise([0, *counts])]
    assert max(gains) - min(gains) <= 1 or total < len(chunks)


def test_a_chunk_counts_as_a_token_where_no_one_says_otherwise() -> None:
    assert spread_tokens([1.0, 2.0], None) == [(1.0, 1), (2.0, 2)]
