"""What a server may do to an HTTP/2 connection by right: the probe goes well, and grpcio's own client agrees."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import grpc
import pytest
from hyperframe.frame import (
    AltSvcFrame,
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    SettingsFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.pb import fmaas_pb2 as pb
from exporter.probes.interface import Result
from exporter.wire.connection import ClientConnection
from exporter.wire.http2_frames import Frames, GoAway
from exporter.wire.http_codec import BrokenConnection, Http2, HttpRequest
from exporter.wire.sockets import Endpoint
from tests.router import parts
from tests.router.http2_server import (
    PREFACE,
    TOKENS,
    Http2Server,
    Peer,
    Script,
    generation,
    http2_server,
    message,
    model_info,
    tokenize,
)

LAST = 2**31 - 1
ORIGIN, PRIORITY_UPDATE = 0x0C, 0x10


def probing(port: int) -> parts.Probing:
    return parts.Probing(parts.target("fmaas", None, f"127.0.0.1:{port}"))


def probe(port: int, **keys: object) -> Result:
    with probing(port) as prober:
        return prober.probe(workload(**keys), 1)


def workload(**keys: object) -> Workload:
    return parts.workload(decode_length=TOKENS, timeout="10s", **keys)


def grpcio_messages(server: Http2Server) -> int:
    """How many messages grpcio's own client gets of the same server."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call: Callable[..., Iterator[bytes]] = channel.unary_stream("/fmaas.GenerationService/GenerateStream")
        return len(list(call(b"", timeout=10)))


def tokens(result: Result) -> int:
    return sum(step.tokens for stream in result.streams for step in stream.steps)


# --- while a request is under way


def going_away(peer: Peer, stream: int) -> None:
    """As nginx retires a connection: the last request is answered as if nothing were."""
    peer.body(stream)
    peer.send(peer.go_away(stream))
    peer.send(*peer.answer(stream))


def going_away_twice(peer: Peer, stream: int) -> None:
    """As gRPC servers do at their maximum age: announced, a ping to know that it was heard, then the real one."""
    peer.body(stream)
    peer.send(peer.head(stream), *peer.tokens(stream, 1, 2))
    peer.send(peer.go_away(LAST), PingFrame(0, b"graceful"))
    peer.read_until(lambda frame: isinstance(frame, PingFrame) and frame.opaque_data == b"graceful")
    peer.send(*peer.tokens(stream, 3), peer.go_away(stream))
    peer.send(SettingsFrame(0, settings={4: 70000}), peer.window(0, 1000), peer.trailers(stream))


def going_away_in_one_piece(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(peer.go_away(LAST), *peer.answer(stream), peer.go_away(stream))


def going_away_in_anger_but_after_the_answer(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(*peer.answer(stream), peer.go_away(stream, 11, b"too_many_pings"))


def going_away_before_the_whole_request_was_read(peer: Peer, stream: int) -> None:
    peer.send(peer.go_away(stream))
    peer.body(stream)
    peer.send(*peer.answer(stream))


LEAVING = [
    going_away,
    going_away_twice,
    going_away_in_one_piece,
    going_away_in_anger_but_after_the_answer,
    going_away_before_the_whole_request_was_read,
]


@pytest.mark.parametrize("script", LEAVING)
def test_a_server_that_goes_away_finishes_the_answer_and_is_asked_on_a_new_connection_next(script: Script) -> None:
    with http2_server(script) as server:
        assert grpcio_messages(server) == TOKENS
        with probing(server.port) as prober:
            for _ in range(3):
                result = prober.probe(workload(), 1)
                assert (result.outcome, tokens(result)) == (Outcome.OK, TOKENS), result.detail
        assert len(server.peers) == 4  # grpcio's, and one for each probe


def settings_of_every_kind(peer: Peer, stream: int) -> None:
    peer.settings(MAX_FRAME_SIZE=2**24 - 1, HEADER_TABLE_SIZE=0, MAX_HEADER_LIST_SIZE=1, ENABLE_CONNECT_PROTOCOL=1)
    peer.send(SettingsFrame(0, settings={0x0: 5, 0x9: 1, 0xFE03: 1, 0xFFFF: 2**32 - 1}))
    peer.settings(MAX_CONCURRENT_STREAMS=0)
    peer.settings(MAX_CONCURRENT_STREAMS=1)
    peer.body(stream)
    # Only now, and all before the answer's end: without a window no request could be sent.
    peer.settings(INITIAL_WINDOW_SIZE=LAST)
    peer.settings(INITIAL_WINDOW_SIZE=0)
    peer.settings(INITIAL_WINDOW_SIZE=65535)
    peer.send(*peer.answer(stream))


def pings_and_priorities(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(peer.head(stream))
    for frame in peer.tokens(stream):
        peer.send(PingFrame(0, b"12345678"), PriorityFrame(stream, depends_on=stream, stream_weight=3))
        peer.send(PriorityFrame(stream + 100), frame, PingFrame(0, b"nobody's", flags=["ACK"]))
    peer.send(peer.trailers(stream))


def raw(kind: int, stream: int, body: bytes, flags: int = 0) -> bytes:
    return len(body).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + body


def frames_of_unknown_kinds(peer: Peer, stream: int) -> None:
    peer.body(stream)
    strange: list[Frame | bytes] = [
        raw(0xBE, stream, b"grease" * 100, flags=0xFF),
        raw(ORIGIN, 0, b"\0\x0ehttps://a.test"),
        raw(PRIORITY_UPDATE, 0, b"\0\0\0\1u=1"),
        AltSvcFrame(0, b"a.test", b'h3=":443"'),
        AltSvcFrame(stream, b"", b"clear"),
    ]
    for frame in [*strange, peer.head(stream), *strange, *peer.tokens(stream), *strange, peer.trailers(stream)]:
        peer.send(frame)
    peer.send(*strange)


def in_pieces(headers: HeadersFrame, size: int) -> list[Frame]:
    """The same headers in frames of so many bytes."""
    first = HeadersFrame(headers.stream_id, headers.data[:size], flags=[f for f in headers.flags if f == "END_STREAM"])
    pieces = (headers.data[at : at + size] for at in range(size, len(headers.data), size))
    rest: list[Frame] = [ContinuationFrame(headers.stream_id, piece) for piece in pieces]
    rest[-1].flags.add("END_HEADERS")
    return [first, *rest]


def continued_headers(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(*in_pieces(peer.head(stream), 1), *peer.tokens(stream))
    peer.send(*in_pieces(peer.headers(stream, [("grpc-status", "0"), ("x-long", "y" * 20000)], end=True), 900))


def padding(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(peer.headers(stream, [(":status", "200")], flags=["PADDED"], pad_length=200))
    for frame in peer.tokens(stream):
        peer.send(DataFrame(stream, frame.data, pad_length=255, flags=["PADDED"]))
    peer.send(DataFrame(stream, b"", pad_length=0, flags=["PADDED"]))
    peer.send(peer.headers(stream, [("grpc-status", "0")], end=True, flags=["PADDED", "PRIORITY"], pad_length=9))


def early_hints(peer: Peer, stream: int) -> None:
    for status in ("100", "103", "199"):
        peer.send(peer.headers(stream, [(":status", status), ("link", "<a>; rel=preload")]))
    peer.body(stream)
    peer.send(*peer.answer(stream))


def empty_data(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(peer.head(stream))
    for frame in peer.tokens(stream):
        peer.send(DataFrame(stream, b""), frame, DataFrame(stream, b""))
    peer.send(peer.trailers(stream))


def messages_cut_anywhere(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(peer.head(stream))
    whole = b"".join(frame.data for frame in peer.tokens(stream))
    for byte in whole:
        peer.send(DataFrame(stream, bytes([byte])))
    peer.send(peer.trailers(stream))


def frames_as_long_as_we_allow(peer: Peer, stream: int) -> None:
    """Also many times what a connection's window is without our saying so."""
    peer.body(stream)
    whole = b"".join(message(generation(count, "x" * 300_000)) for count in range(1, TOKENS + 1))
    peer.send(peer.head(stream))
    peer.send(*(DataFrame(stream, whole[at : at + 16384]) for at in range(0, len(whole), 16384)))
    peer.send(peer.trailers(stream))


def frames_after_the_end(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(*peer.answer(stream))
    peer.send(peer.reset(stream, 0), peer.window(stream, 10), PriorityFrame(stream), peer.window(0, 10))


def a_reset_in_one_piece_with_the_answer(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(*peer.answer(stream), peer.reset(stream, 0), peer.window(stream, 10))


def large_trailers(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(peer.head(stream), *peer.tokens(stream))
    trailers = peer.headers(stream, [("grpc-status", "0"), *((f"x-{n}", "y" * 1000) for n in range(100))], end=True)
    peer.send(*in_pieces(trailers, 16000))


def a_small_dynamic_table(peer: Peer, stream: int) -> None:
    """The server changes the size of its own compression table, within what we allow."""
    peer.body(stream)
    peer.encoder.header_table_size = 0
    peer.send(peer.head(stream), *peer.tokens(stream))
    peer.encoder.header_table_size = 4096
    peer.send(peer.trailers(stream))


BY_RIGHT = [
    settings_of_every_kind,
    pings_and_priorities,
    frames_of_unknown_kinds,
    continued_headers,
    padding,
    early_hints,
    empty_data,
    messages_cut_anywhere,
    frames_as_long_as_we_allow,
    frames_after_the_end,
    a_reset_in_one_piece_with_the_answer,
    large_trailers,
    a_small_dynamic_table,
]


@pytest.mark.parametrize("script", BY_RIGHT)
def test_what_a_server_may_send_by_right_disturbs_no_probe(script: Script) -> None:
    with (
        http2_server(script) as server,
        probing(server.port) as prober,
    ):
        for _ in range(2):
            result = prober.probe(workload(), 1)
            assert (result.outcome, tokens(result)) == (Outcome.OK, TOKENS), result.detail
        assert len(server.peers) == 1  # the connection is as good as before


def test_an_answer_longer_than_any_window_goes_on_where_the_server_keeps_to_what_it_was_told() -> None:
    def generate(_: pb.SingleGenerationRequest, __: object) -> Iterator[pb.GenerationResponse]:
        yield from (generation(count, "x" * 100_000) for count in range(1, TOKENS + 1))

    calls: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "ModelInfo": grpc.unary_unary_rpc_method_handler(lambda _, __: message(model_info())[5:]),
        "Tokenize": grpc.unary_unary_rpc_method_handler(lambda body, _: tokenize(body).SerializeToString()),
        "GenerateStream": grpc.unary_stream_rpc_method_handler(
            generate, response_serializer=pb.GenerationResponse.SerializeToString
        ),
    }
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("fmaas.GenerationService", calls),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        result = probe(port)
    finally:
        server.stop(None).wait()
    assert (result.outcome, tokens(result)) == (Outcome.OK, TOKENS), result.detail


# --- windows smaller than the request


def opened_bit_by_bit(peer: Peer, stream: int) -> None:
    """Also taken back in between, so that it is below zero for a while."""
    peer.send(peer.window(stream, 300))
    done = False
    while not done:
        frame = peer.read()
        if isinstance(frame, DataFrame):
            done = "END_STREAM" in frame.flags
            peer.settings(INITIAL_WINDOW_SIZE=0)
            peer.settings(INITIAL_WINDOW_SIZE=200)
            peer.send(peer.window(stream, 300), peer.window(0, len(frame.data) or 1))
    peer.send(*peer.answer(stream))


def opened_by_settings(peer: Peer, stream: int) -> None:
    peer.send(peer.window(0, 1_000_000))
    peer.settings(INITIAL_WINDOW_SIZE=1_000_000)
    peer.body(stream)
    peer.send(*peer.answer(stream))
    peer.settings(INITIAL_WINDOW_SIZE=200)


def opened_for_the_connection_only_later(peer: Peer, stream: int) -> None:
    peer.send(peer.window(stream, 1_000_000))
    received = 0
    while received < 60_000:
        frame = peer.read()
        received += len(frame.data) if isinstance(frame, DataFrame) else 0
    peer.send(peer.window(0, 1_000_000))
    peer.body(stream)
    peer.send(*peer.answer(stream))


@pytest.mark.parametrize(
    ("script", "words"),
    [(opened_bit_by_bit, 1000), (opened_by_settings, 1000), (opened_for_the_connection_only_later, 20000)],
)
def test_a_request_larger_than_the_servers_windows_is_sent_as_they_open(script: Script, words: int) -> None:
    with http2_server(script, lambda peer: peer.settings(INITIAL_WINDOW_SIZE=200)) as server:
        result = probe(server.port, sequence_length=words)
    assert (result.outcome, tokens(result)) == (Outcome.OK, TOKENS), result.detail


def test_an_answer_before_the_request_was_read_counts_and_the_rest_is_not_sent() -> None:
    def script(peer: Peer, stream: int) -> None:
        peer.send(*peer.answer(stream), peer.reset(stream, 0))

    with http2_server(script, lambda peer: peer.settings(INITIAL_WINDOW_SIZE=200)) as server:
        with probing(server.port) as prober:
            for _ in range(2):
                result = prober.probe(workload(sequence_length=1000), 1)
                assert (result.outcome, tokens(result)) == (Outcome.OK, TOKENS), result.detail
        assert len(server.peers) == 1


# --- what the server has not begun: asked once more, on another connection


def stale(peer: Peer, stream: int) -> None:
    """The server went away just before it got the request."""
    peer.send(peer.go_away(max(0, stream - 2)))


def refusing(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(peer.reset(stream, 7))


@pytest.mark.parametrize("first", [stale, refusing])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_request_that_the_server_did_not_begin_is_sent_once_more_with_its_whole_batch(
    first: Script, batch_size: int
) -> None:
    turns, requests, read = count(), list[int](), list[str]()

    def script(peer: Peer, stream: int) -> None:
        requests.append(stream)
        if next(turns) == 0:
            first(peer, stream)
        else:
            read.append(pb.SingleGenerationRequest.FromString(peer.body(stream)).request.text)
            peer.send(*peer.answer(stream))

    with http2_server(script) as server, probing(server.port) as prober:
        before = time.perf_counter()
        result = prober.probe(workload(), batch_size)
        assert (result.outcome, tokens(result)) == (Outcome.OK, batch_size * TOKENS), result.detail
        assert len(requests) == 2 * batch_size
        assert len(set(read)) == len(read) == 2 * batch_size - 1  # no cache holds what is sent the second time
        assert len(result.setups) == 2 * batch_size  # the others of the first try may be about to end too
        assert all(stream.sent > before for stream in result.streams)


@pytest.mark.parametrize("script", [stale, refusing])
def test_a_server_that_never_begins_is_unreachable_after_two_requests(script: Script) -> None:
    requests: list[int] = []

    def counting(peer: Peer, stream: int) -> None:
        requests.append(stream)
        script(peer, stream)

    with http2_server(counting) as server:
        result = probe(server.port)
    assert (result.outcome, len(requests)) == (Outcome.UNREACHABLE, 2)
    assert "beg" in result.detail


# --- what is no answer: unreachable, and the server's reason


def abandoned(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(peer.go_away(max(0, stream - 2)))


def enhance_your_calm(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(peer.head(stream), peer.go_away(stream, 11, b"too_many_pings"))
    peer.connection.close()


def closed_in_the_middle(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(peer.head(stream), *peer.tokens(stream, 1, 2), peer.go_away(LAST))
    peer.connection.close()


def pushing(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(PushPromiseFrame(stream, 2, peer.encoder.encode([(":path", "/")]), flags=["END_HEADERS"]))


def status_that_is_none(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(peer.headers(stream, [(":status", "two hundred")]))


def no_status(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(peer.headers(stream, [("content-type", "application/grpc")]))


def too_long_a_frame(peer: Peer, stream: int) -> None:
    peer.body(stream)
    peer.send(peer.head(stream), DataFrame(stream, bytes(16385)))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (abandoned, "the server is going away (GOAWAY NO_ERROR) and has not begun the request"),
        (enhance_your_calm, "in the middle of the answer, after GOAWAY ENHANCE_YOUR_CALM: too_many_pings"),
        (closed_in_the_middle, "in the middle of the answer, after GOAWAY NO_ERROR"),
        (pushing, "pushed"),
        (status_that_is_none, "HTTP status 'two hundred'"),
        (no_status, "HTTP status ''"),
        (too_long_a_frame, "a frame of 16385 bytes, over the agreed 16384"),
    ],
)
def test_a_connection_that_ends_before_the_answer_is_unreachable_with_the_servers_reason(
    script: Script, said: str
) -> None:
    with http2_server(script) as server:
        result = probe(server.port)
    assert result.outcome is Outcome.UNREACHABLE
    assert said in result.detail


@pytest.mark.parametrize(
    ("code", "outcome"),
    [(0, Outcome.REJECTED), (2, Outcome.REJECTED), (11, Outcome.OVERLOADED)],
)
def test_a_stream_that_is_torn_down_fails_by_its_error_code_and_the_next_goes_well(code: int, outcome: Outcome) -> None:
    requests: list[int] = []

    def script(peer: Peer, stream: int) -> None:
        peer.body(stream)
        requests.append(stream)
        peer.send(*([peer.head(stream), peer.reset(stream, code)] if len(requests) == 1 else peer.answer(stream)))

    with http2_server(script) as server, probing(server.port) as prober:
        assert prober.probe(workload(), 1).outcome is outcome
        assert prober.probe(workload(), 1).outcome is Outcome.OK


def test_a_server_that_takes_no_streams_yet_is_waited_for() -> None:
    def opening(peer: Peer) -> None:
        peer.settings(MAX_CONCURRENT_STREAMS=0)
        peer.settings(MAX_CONCURRENT_STREAMS=1)

    with http2_server(lambda peer, stream: peer.send(*peer.answer(stream)), opening) as server:
        assert probe(server.port).outcome is Outcome.OK


def test_a_server_that_takes_no_streams_at_all_is_unreachable_in_time_and_says_why() -> None:
    with (
        http2_server(lambda peer, stream: None, lambda peer: peer.settings(MAX_CONCURRENT_STREAMS=0)) as server,
        pytest.raises(Failure, match="takes no requests"),
    ):
        ClientConnection(Endpoint("127.0.0.1", server.port), Http2("h", "http"), 0.2)


def test_a_kept_connection_that_takes_no_streams_any_more_is_left_for_a_new_one() -> None:
    def script(peer: Peer, stream: int) -> None:
        peer.body(stream)
        no_more_streams = SettingsFrame(0, settings={SettingsFrame.MAX_CONCURRENT_STREAMS: 0})
        # Before the answer, so that whoever has read the answer has read this too.
        peer.send(no_more_streams, *peer.answer(stream))

    with http2_server(script) as server:
        with probing(server.port) as prober:
            assert [prober.probe(workload(), 1).outcome for _ in range(2)] == [Outcome.OK, Outcome.OK]
        assert len(server.peers) == 2


def test_a_server_that_is_going_away_already_says_so_at_the_start() -> None:
    def opening(peer: Peer) -> None:
        peer.send(peer.go_away(0, 0, b"draining"), SettingsFrame(0))

    with (
        http2_server(lambda peer, stream: None, opening) as server,
        pytest.raises(Failure, match=r"going away \(GOAWAY NO_ERROR: draining\)"),
    ):
        ClientConnection(Endpoint("127.0.0.1", server.port), Http2("h", "http"), 5.0)


# --- the first SETTINGS, and anything at all


def test_the_server_is_told_at_once_of_the_widest_windows_and_that_nothing_may_be_pushed() -> None:
    said = Http2("h", "http").first_bytes().removeprefix(PREFACE)
    first = SettingsFrame(0)
    first.parse_body(memoryview(said[9 : 9 + int.from_bytes(said[:3])]))
    assert first.settings[SettingsFrame.INITIAL_WINDOW_SIZE] == LAST
    assert first.settings[SettingsFrame.ENABLE_PUSH] == 0


FRAMES = st.builds(
    raw, st.integers(0, 20), st.sampled_from([0, 1, 1, 1, 2, 3]), st.binary(max_size=40), st.integers(0, 255)
)


@given(st.lists(FRAMES | st.binary(max_size=30), max_size=20))
def test_whatever_a_server_sends_is_understood_or_broken_and_nothing_else(pieces: list[bytes]) -> None:
    codec = Http2("h", "http")
    codec.first_bytes()
    codec.receive(raw(4, 0, b""))
    codec.encode(HttpRequest("POST", "/x", (), b"x" * 100_000))
    try:
        for piece in [*pieces, None]:
            codec.receive(piece)
            codec.data_to_send()
    except BrokenConnection:
        assert not codec.usable
    codec.cancel()


@given(st.data())
def test_frames_are_the_same_wherever_the_network_cuts_them(data: st.DataObject) -> None:
    pieces = [raw(7, 0, b"\0\0\0\1\0\0\0\2why"), raw(0, 1, b"abc"), raw(99, 5, b"?"), raw(6, 0, b"12345678")]
    whole = b"".join(pieces)
    frames, found, at = Frames(), list[object](), 0
    while at < len(whole):
        size = data.draw(st.integers(1, len(whole)))
        found += frames.feed(whole[at : at + size])
        at += size
    assert found == [GoAway(1, 2, b"why"), pieces[1], pieces[3]]
