"""How bytes fall into events: the network may cut them anywhere, and the events stay the same."""

import json
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.observation import Failure
from exporter.wire.message_framing import Event, GrpcMessages, ServerSentEvents, grpc_message

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
    "empty data keeps a connection open": ("data:\n\ndata\n\ndata: \n\ndata: b\n\ndata:\ndata\n\n", ["b"]),
    "empty data after the name of an event": ("event: ping\ndata:\n\ndata: b\n\n", ["b"]),
    "a byte order mark": ("\ufeffdata: a\n\ndata: \ufeffb\n\n", ["a", "\ufeffb"]),
    "only one byte order mark goes": ("\ufeff\ufeffdata: a\n\ndata: b\n\n", ["b"]),
    "a byte order mark before a comment": ("\ufeff: ping\r\n\r\ndata: a\r\n\r\n", ["a"]),
    "a field that nobody knows": ("data: a\nfoo: 1\nerror: 1\nDATA: b\n data: c\ndata : d\n\n", ["a"]),
    "a colon without a space": ("data:a\n\ndata::b\n\n", ["a", ":b"]),
    "zero characters": ("data: a\0b\n\n", ["a\0b"]),
    "mixed line ends": ("data: a\r\n\ndata: b\n\r\ndata: c\r\n\r\n", ["a", "b", "c"]),
}


def heard(pieces: list[bytes]) -> list[str]:
    split = ServerSentEvents()
    return [event.data for piece in pieces for event in split.feed(piece)]


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
    written = "".join(f"data: {text}\n\n" for text in texts).encode()
    assert heard([written]) == [text for text in texts if not text.isascii() or text.strip(" \t\n\r\x0b\x0c")]


def test_each_event_is_heard_with_the_piece_that_completes_it() -> None:
    split = ServerSentEvents()
    assert split.feed(b"data: a\n") == []
    assert split.feed(b"\ndata: b\n\ndata: c") == [Event("a"), Event("b")]
    assert split.feed(b"\r\n") == []
    assert split.feed(b"\r\n") == [Event("c")]


def test_a_last_event_without_its_empty_line_is_heard_at_the_end() -> None:
    split = ServerSentEvents()
    assert split.feed(b"data: a\n\ndata: [DONE]") == [Event("a")]
    assert split.rest() == [Event("[DONE]")]


def test_what_is_not_utf8_is_replaced_in_the_event_that_has_it() -> None:
    assert heard([b"data: a\xffb\n\ndata: \xe6\x97\n\ndata: c\n\n"]) == ["a\ufffdb", "\ufffd", "c"]


def test_the_name_of_an_event_is_its_own_alone() -> None:
    events = ServerSentEvents().feed(b"event: error\ndata: a\n\ndata: b\n\nevent: error\n\ndata: c\n\n")
    assert events == [Event("a", "error"), Event("b"), Event("c")]


def test_an_object_in_a_field_called_error_is_an_event_of_that_name() -> None:
    assert ServerSentEvents().feed(b'error: {"code":400}\n\n') == [Event('{"code":400}', "error")]


def test_an_event_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.wire.message_framing.LONGEST_EVENT", 1000)
    for piece in (b"x" * 100, b"data: x\n"):
        split = ServerSentEvents()
        for _ in range(10):
            split.feed(piece)
        with pytest.raises(Failure, match="an event without end"):
            split.feed(piece * 1000)


def fed() -> list[tuple[Callable[[bytes], object], bytes]]:
    """What is in the middle of a large event, and a further piece of it."""
    line, lines, message = ServerSentEvents(), ServerSentEvents(), GrpcMessages()
    line.feed(b"data: " + b"x" * 4_000_000)
    lines.feed(b"data: " + b"x" * 4_000_000 + b"\n")
    message.feed(grpc_message(b"x" * 8_000_000)[:4_000_000])
    return [(line.feed, b"x" * 64), (lines.feed, b"data: " + b"x" * 57 + b"\n"), (message.feed, b"x" * 64)]


@pytest.mark.parametrize("number", range(3))
def test_the_work_for_a_piece_does_not_grow_with_what_came_before(number: int) -> None:
    """Told by the memory that a piece takes for a moment: it is its own size, not that of the event so far."""
    feed, piece = fed()[number]
    large = 0
    tracemalloc.start()
    try:
        for _ in range(200):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            feed(piece)
            large += tracemalloc.get_traced_memory()[1] - before > 100_000
    finally:
        tracemalloc.stop()
    assert large <= 2  # a buffer that grows is moved now and then


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
    with pytest.raises(Failure, match="compressed"):
        GrpcMessages().feed(b"\x01" + grpc_message(b"a")[1:])


def test_a_length_that_no_message_has_is_an_error() -> None:
    with pytest.raises(Failure, match="4294967295 bytes"):
        GrpcMessages().feed(b"\x00\xff\xff\xff\xff")
