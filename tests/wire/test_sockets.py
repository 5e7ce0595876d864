"""Connections: what arrives carries the instant of its arrival, whenever it is read."""

import contextlib
import select
import socket
import ssl
import sys
import time
from collections.abc import Iterator

import pytest

from exporter.observation import Failure, Outcome
from exporter.wire.connection import ClientConnection
from exporter.wire.http_codec import Body, BrokenConnection, End, Head, Http1, HttpEvent, HttpRequest
from exporter.wire.sockets import Endpoint, TimedSocket
from tests.processes import free_port, wait_until


@pytest.fixture
def pair() -> Iterator[tuple[TimedSocket, socket.socket]]:
    """A timed socket and its other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        timed = TimedSocket(Endpoint("127.0.0.1", server.getsockname()[1]), 5.0)
        other, _ = server.accept()
        with other:
            other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield timed, other
        timed.close()


def received(timed: TimedSocket) -> tuple[float, bytes]:
    """The next arrival; over the loopback it is there as soon as it was sent, or soon after."""
    deadline = time.monotonic() + 10
    while (arrival := timed.receive()) is None:
        assert time.monotonic() < deadline
    return arrival.at, arrival.data


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's notes are Linux'")
def test_bytes_carry_the_instant_at_which_they_came_and_not_that_of_the_reading(
    pair: tuple[TimedSocket, socket.socket],
) -> None:
    timed, other = pair
    # The kernel begins to note arrivals a moment after it was asked to, so the first ones may go without.
    wait_until(lambda: delay(timed, other) < BUSY / 2, "the kernel notes arrivals")
    assert all(delay(timed, other) < BUSY / 2 for _ in range(10))


BUSY = 0.02


def delay(timed: TimedSocket, other: socket.socket) -> float:
    """From the sending of a byte to the instant it carries, where it is read only after a busy while, as can happen."""
    before = time.perf_counter()
    other.sendall(b"x")
    sent = time.perf_counter()
    while time.perf_counter() < sent + BUSY:
        pass
    at, data = received(timed)
    assert data == b"x"
    assert at > before - 0.0001  # two clocks are read, one after the other
    return at - sent


def test_arrivals_are_in_order_and_never_in_the_future(pair: tuple[TimedSocket, socket.socket]) -> None:
    timed, other = pair
    instants = []
    for _ in range(200):
        other.sendall(b"x")
        at, _ = received(timed)
        assert at <= time.perf_counter()
        instants.append(at)
    assert instants == sorted(instants)
    assert instants[0] >= timed.begun


def test_nothing_there_is_no_arrival_and_the_end_is_an_empty_one(pair: tuple[TimedSocket, socket.socket]) -> None:
    timed, other = pair
    assert timed.receive() is None
    other.close()
    assert received(timed)[1] == b""


def test_what_is_loaded_leaves_only_when_it_is_pushed(pair: tuple[TimedSocket, socket.socket]) -> None:
    timed, other = pair
    timed.queue(b"ab")
    timed.queue(b"cd")
    other.setblocking(False)
    with pytest.raises(BlockingIOError):
        other.recv(10)
    assert timed.flush()
    other.setblocking(True)
    assert other.recv(10) == b"abcd"


def test_more_than_the_network_takes_is_sent_bit_by_bit(pair: tuple[TimedSocket, socket.socket]) -> None:
    timed, other = pair
    size = 16 * 1024 * 1024
    timed.queue(b"x" * size)
    assert not timed.flush()
    got = 0
    while got < size:
        got += len(other.recv(1 << 20))
        timed.flush()
    assert timed.flush()


def test_a_unix_socket_is_a_line_too(tmp_path: pytest.TempPathFactory) -> None:
    path = f"{tmp_path}/socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        timed = TimedSocket(Endpoint(path=path), 5.0)
        other, _ = server.accept()
        with other:
            other.sendall(b"a")
            assert received(timed)[1] == b"a"
        timed.close()


@pytest.mark.parametrize("endpoint", [Endpoint("127.0.0.1", free_port()), Endpoint(path="/no/such/socket")])
def test_nobody_there_is_a_failure_with_the_place(endpoint: Endpoint) -> None:
    with pytest.raises(Failure) as caught:
        TimedSocket(endpoint, 5.0)
    assert caught.value.outcome is Outcome.UNREACHABLE
    assert caught.value.detail.startswith(endpoint.where)


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "." * 3])
def test_a_name_that_cannot_be_asked_for_is_a_failure(host: str) -> None:
    with pytest.raises(Failure) as caught:
        TimedSocket(Endpoint(host, 80), 5.0)
    assert caught.value.outcome is Outcome.UNREACHABLE


@pytest.mark.parametrize("name", ["a..b", "a" * 64, ".a"])
def test_a_server_name_that_no_certificate_can_have_is_a_failure(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        endpoint = Endpoint("127.0.0.1", port, tls=ssl.create_default_context(), server_name=name)
        with pytest.raises(Failure) as caught:
            TimedSocket(endpoint, 5.0)
    assert caught.value.outcome is Outcome.UNREACHABLE


@pytest.mark.parametrize(
    ("endpoint", "authority"),
    [
        (Endpoint("h", 80), "h"),
        (Endpoint("h", 443), "h:443"),
        (Endpoint("h", 443, tls=ssl.create_default_context()), "h"),
        (Endpoint("h", 80, tls=ssl.create_default_context()), "h:80"),
        (Endpoint("::1", 80), "[::1]"),
        (Endpoint("::1", 8080), "[::1]:8080"),
    ],
)
def test_the_host_header_leaves_out_the_port_that_the_scheme_has_anyway(endpoint: Endpoint, authority: str) -> None:
    assert endpoint.authority == authority


# --- HTTP/1.1 without I/O

ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"9\r\ndata: 1\n\n\r\n12;ext=1\r\ndata: 2\n\ndata: 3\n\n\r\n0\r\nTrailer: x\r\n\r\n"
)
REQUEST = HttpRequest("POST", "/generate_stream", (("accept", "*/*"),), b"{}")


def spoken(codec: Http1, pieces: list[bytes | None]) -> tuple[list[HttpEvent], bytes]:
    """What is heard in the pieces, and the whole body."""
    heard = [event for piece in pieces for event in codec.receive(piece)]
    return heard, b"".join(event.data for event in heard if isinstance(event, Body))


def test_an_answer_cut_at_any_place_is_the_same_answer() -> None:
    for cut in range(1, len(ANSWER)):
        codec = Http1("h:1")
        assert codec.encode(REQUEST).startswith(b"POST /generate_stream HTTP/1.1\r\n")
        heard, body = spoken(codec, [ANSWER[:cut], ANSWER[cut:]])
        assert isinstance(heard[0], Head)
        assert heard[0].headers["content-type"] == "text/event-stream"
        assert body == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
        assert isinstance(heard[-1], End)
        assert codec.usable


def test_a_piece_without_bytes_is_not_the_end() -> None:
    codec = Http1("h:1")
    assert codec.receive(b"") == []
    codec.encode(REQUEST)
    _, body = spoken(codec, [ANSWER[:50], b"", ANSWER[50:]])
    assert body.count(b"data") == 3


def test_a_connection_serves_one_request_after_the_other() -> None:
    codec = Http1("h:1")
    for _ in range(3):
        codec.encode(REQUEST)
        _, body = spoken(codec, [ANSWER])
        assert body.count(b"data") == 3


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc", b"HTTP/1.0 200 OK\r\n\r\nabc"])
def test_a_body_up_to_the_end_of_the_connection_ends_with_it_and_the_connection_is_not_used_again(
    answer: bytes,
) -> None:
    codec = Http1("h:1")
    codec.encode(REQUEST)
    heard, body = spoken(codec, [answer, None])
    assert body == b"abc"
    assert isinstance(heard[-1], End)
    assert not codec.usable


@pytest.mark.parametrize("answer", [ANSWER[:-10], ANSWER[:40], b"", b"SSH-2.0-OpenSSH\r\n"])
def test_an_answer_cut_off_by_the_end_of_the_connection_is_broken(answer: bytes) -> None:
    codec = Http1("h:1")
    codec.encode(REQUEST)
    with pytest.raises(BrokenConnection):
        spoken(codec, [answer, None])
    assert not codec.usable


UNASKED = [
    b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 5\r\n\r\n",  # its body still to come
    b"HTTP/1.1 408 Req",
    b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 5\r\n\r\nlater",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"\r\n",
    b"0",
]


@pytest.mark.parametrize("unasked", UNASKED)
def test_a_connection_on_which_anything_comes_between_two_requests_is_not_used_again(unasked: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = ClientConnection(Endpoint("127.0.0.1", server.getsockname()[1]), Http1("h:1"), 5.0)
        other, _ = server.accept()
        with contextlib.closing(connection), other:
            connection.codec.encode(REQUEST)
            connection.codec.receive(ANSWER)
            assert connection.still_good(time.perf_counter() + 5.0)
            other.sendall(unasked)
            assert select.select([connection.socket], [], [], 10.0)[0]
            assert not connection.still_good(time.perf_counter() + 5.0)
            assert not connection.codec.usable


def test_a_connection_that_ends_between_requests_is_no_error_but_not_usable() -> None:
    codec = Http1("h:1")
    assert codec.receive(None) == []
    assert not codec.usable


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "usable"),
    [
        ([b"HTTP/1.1 100 Continue\r\n\r\n", CHUNKED + b"\r\n" + HELLO], True),
        ([b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" * 2 + CHUNKED + b"\r\n" + HELLO], True),
        ([CHUNKED + b"X: " + b"y" * 500_000 + b"\r\n\r\n" + HELLO], True),
        ([CHUNKED + b"X: a\r\n  b\r\n\tc\r\n\r\n" + HELLO], True),
        ([CHUNKED + b"X: a\x01\xff\r\nY:\r\n\r\n" + HELLO], True),
        ([CHUNKED + b'\r\n5;a=b;c="d"\r\nhello\r\n000;x\r\nT: 1\r\nU: ' + b"y" * 30_000 + b"\r\n\r\n"], True),
        ([CHUNKED.replace(b" OK", b"") + b"\r\n" + HELLO], True),
        ([(CHUNKED + b"\r\n").replace(b"\r\n", b"\n") + HELLO], True),
        ([CHUNKED.replace(b"chunked", b"Chunked") + b"\r\n" + HELLO], True),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello"], True),
        ([CHUNKED + b"Connection: close\r\n\r\n" + HELLO], False),
        ([CHUNKED + b"\r\n" + HELLO, None], False),
        ([CHUNKED + b"\r\n" + HELLO + b"HTTP/1.1 408 Request Timeout\r\n\r\n", None], False),
        ([b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello"], False),
    ],
)
def test_what_http1_lets_a_server_send_is_one_answer_and_a_connection_that_ends_is_not_used_again(
    pieces: list[bytes | None], usable: bool
) -> None:
    codec = Http1("h:1")
    codec.encode(REQUEST)
    heard, body = spoken(codec, pieces)
    assert body == b"hello"
    assert [type(event) for event in heard if not isinstance(event, Body)] == [Head, End]
    codec.receive(b"")
    assert codec.usable is usable
