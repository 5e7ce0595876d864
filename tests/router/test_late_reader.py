"""Answers that come while nobody reads: the kernel puts them together, and no time is made up from that."""

import concurrent.futures
import contextlib
import selectors
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter.analysis import certainty
from exporter.analysis.certainty import TOLERANCE_SECONDS, TOLERANCE_SHARE
from exporter.analysis.slo import Verdicts, judge
from exporter.config.slo import Slo
from exporter.config.target import Target
from exporter.observation import Observation, Outcome, Series, Stream, lateness
from exporter.probes.router.prober import StreamProber
from exporter.wire import exchanges
from exporter.wire.connection import ClientConnection
from exporter.wire.delays import Delays
from exporter.wire.exchanges import Exchange, Exchanges
from exporter.wire.http_codec import Http1, HttpRequest
from exporter.wire.sockets import Endpoint, TimedSocket
from tests.processes import wait_until
from tests.router.late_servers import GAP, TOKENS, GrpcServer, HttpServer, Left, pause
from tests.router.parts import DOORS, protocol, workload
from tests.web.certificates import Authority

pytestmark = [pytest.mark.alone, pytest.mark.timed]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's notes are Linux'")


@pytest.fixture(params=[*sorted(DOORS), "fmaas, unix socket"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, HttpServer | GrpcServer]]:
    door, _, unix = str(request.param).partition(", ")
    made: HttpServer | GrpcServer = HttpServer(DOORS[door]["api"]) if door != "fmaas" else GrpcServer()
    if unix:
        made.close()
        made = GrpcServer(f"{tmp_path}/s")
    yield door, made
    made.close()


def probed(door: str, server: HttpServer | GrpcServer, stopping: Callable[[], bool]) -> Observation:
    probed_target = Target.model_validate({"name": "r", "address": server.address, **DOORS[door]})
    prober = StreamProber(probed_target, protocol(probed_target))
    prober.connect(5.0)
    result = prober.probe(workload(decode_length=TOKENS), 1, stopping)
    prober.close()
    return Observation(
        Series("r", "w", 1), 0.0, 0.0, 0.0, result.outcome, result.code, result.detail, result.streams, result.setups
    )


def while_nobody_reads(server: HttpServer | GrpcServer, gap: float, left: list[Left]) -> Callable[[], bool]:
    """What the prober calls now and then, in the thread that reads: the answer is sent meanwhile."""

    def stopping() -> bool:
        if server.asked:  # the measured one is the last: those before it are to find out the length of prompts
            left[:] = server.answer(lambda: pause(gap))
        return False

    return stopping


def true_within(seconds: float, shortest: float, longest: float) -> bool:
    allowed = TOLERANCE_SECONDS + TOLERANCE_SHARE * seconds + 0.0005  # of the test's own clock
    return shortest - allowed <= seconds <= longest + allowed


def recorded_is_true(stream: Stream, observation: Observation, left: list[Left]) -> None:
    """Each value beside when the server's bytes left."""
    values = certainty.recorded(observation)
    earliest, latest = left[0].earliest - stream.sent, left[0].latest - stream.sent
    assert all(true_within(seconds, earliest, latest) for seconds in values.first)
    last = stream.steps[0].tokens - 1
    for step, gap in zip(stream.steps[1:], certainty.inter_token_latencies(stream), strict=True):
        before, last = last, last + step.tokens
        if gap.certain and observation.outcome is Outcome.OK:
            shortest, longest = left[last].earliest - left[before].latest, left[last].latest - left[before].earliest
            assert true_within(gap.seconds, shortest / step.tokens, longest / step.tokens)
            together = left[last].earliest - left[before + 1].latest
            assert together <= TOLERANCE_SECONDS + TOLERANCE_SHARE * gap.seconds


def test_an_answer_that_came_while_nobody_read_is_no_measurement_but_a_disturbed_probe(
    server: tuple[str, HttpServer | GrpcServer],
) -> None:
    door, where = server
    left: list[Left] = []
    observation = probed(door, where, while_nobody_reads(where, GAP, left))
    assert observation.outcome is Outcome.DISTURBED
    assert observation.detail.startswith("when the first token came is uncertain by ")
    [stream] = observation.streams
    assert stream.read_delay > (TOKENS - 1) * GAP
    recorded_is_true(stream, observation, left)
    values = certainty.recorded(observation)
    assert (values.first, values.gaps, values.per_output_token, values.requests) == ((), (), (), ())
    assert judge(Slo.model_validate({"name": "s", "workload": "w", "ttft": "1ms"}), observation) == Verdicts(0, 0)


def test_an_answer_that_is_read_as_it_comes_is_recorded_and_true(server: tuple[str, HttpServer | GrpcServer]) -> None:
    """However busy this machine is: what is recorded is true, and what is not is counted."""
    door, where = server
    left: list[Left] = []
    done = threading.Event()

    def send() -> None:
        while not done.is_set():
            if where.asked:
                left[:] = where.answer(lambda: pause(0.02))

    sender = threading.Thread(target=send)
    sender.start()
    observation = probed(door, where, lambda: False)
    done.set()
    sender.join()
    assert observation.outcome in (Outcome.OK, Outcome.DISTURBED), observation.detail
    [stream] = observation.streams
    assert sum(step.tokens for step in stream.steps) == TOKENS
    recorded_is_true(stream, observation, left)
    values = certainty.recorded(observation)
    assert len(values.first) + values.withheld[certainty.Measure.TTFT] == 1
    assert len(values.gaps) + values.withheld[certainty.Measure.INTER_TOKEN] == len(stream.steps) - 1


def test_what_comes_too_late_only_because_we_slept_is_an_answer_and_no_timeout(
    server: tuple[str, HttpServer | GrpcServer],
) -> None:
    door, where = server

    def stopping() -> bool:
        if where.asked:
            where.answer(lambda: None)
            pause(0.25)  # beyond the deadline
        return False

    probed_target = Target.model_validate({"name": "r", "address": where.address, **DOORS[door]})
    prober = StreamProber(probed_target, protocol(probed_target))
    prober.connect(5.0)
    result = prober.probe(workload(decode_length=TOKENS, timeout="300ms"), 1, stopping)
    prober.close()
    assert result.outcome in (Outcome.OK, Outcome.DISTURBED), result.detail
    assert sum(step.tokens for step in result.streams[0].steps) == TOKENS


# --- one connection


@pytest.fixture
def pair() -> Iterator[tuple[TimedSocket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        timed = TimedSocket(Endpoint("127.0.0.1", listener.getsockname()[1]), 5.0)
        other, _ = listener.accept()
        with other:
            other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield timed, other
        timed.close()


def warmed(timed: TimedSocket, other: socket.socket) -> None:
    """The kernel begins to note arrivals a moment after it was asked to."""

    def noted() -> bool:
        other.sendall(b"x")
        pause(0.002)
        arrival = timed.receive()
        return arrival is not None and arrival.delay - arrival.at.late > 0.0015

    wait_until(noted, "the kernel notes arrivals", every=0.001)
    assert timed.receive() is None


@LINUX
def test_what_was_read_at_once_says_since_when_it_may_have_been_there_and_when_the_last_of_it_came(
    pair: tuple[TimedSocket, socket.socket],
) -> None:
    timed, other = pair
    warmed(timed, other)
    left = []
    for _ in range(8):
        began = time.perf_counter()
        other.sendall(b"x")
        left.append(Left(began, time.perf_counter()))
        pause()
    read = time.perf_counter()
    arrival = timed.receive()
    assert arrival is not None
    assert arrival.data == b"x" * 8
    assert arrival.at - arrival.at.late <= left[0].latest + 0.0001  # two clocks are read, one after the other
    assert left[7].earliest - 0.0001 <= arrival.end <= left[7].latest + GAP / 2
    assert lateness(arrival.end) == 0.0
    assert arrival.delay >= read - left[0].latest - 0.001


@LINUX
def test_what_the_caller_knows_of_when_there_was_nothing_makes_it_more_certain(
    pair: tuple[TimedSocket, socket.socket],
) -> None:
    timed, other = pair
    warmed(timed, other)
    pause(0.05)
    known = time.perf_counter()
    other.sendall(b"x")
    left = time.perf_counter()
    pause(0.001)
    arrival = timed.receive(known)
    assert arrival is not None
    assert arrival.at.late <= arrival.at - known + 0.0001 < left - known + 0.01


@LINUX
def test_of_what_is_left_for_the_next_reading_the_note_may_be_another_ones(
    pair: tuple[TimedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, other = pair
    warmed(timed, other)
    monkeypatch.setattr("exporter.wire.sockets.CHUNK", 3)
    before = time.perf_counter()
    for _ in range(4):
        other.sendall(b"x")
        pause()
    for size in (3, 1):
        arrival = timed.receive(before if size == 3 else time.perf_counter())  # a selector does not know of the rest
        assert arrival is not None
        assert len(arrival.data) == size
        assert arrival.at - arrival.at.late <= before + 0.0001
        assert (lateness(arrival.end) == 0.0) is (size == 1)


@LINUX
def test_when_the_clock_is_set_meanwhile_the_note_is_not_believed(
    pair: tuple[TimedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, other = pair
    warmed(timed, other)
    before = time.perf_counter()
    other.sendall(b"x")
    pause()
    real = time.clock_gettime_ns
    for hours in (-1, 1):
        monkeypatch.setattr(time, "clock_gettime_ns", lambda clock, hours=hours: real(clock) + hours * 3600 * 10**9)
        arrival = timed.receive()
        assert arrival is not None
        assert arrival.at - arrival.at.late <= before + 0.0001
        assert lateness(arrival.end) > 0.0
        before = time.perf_counter()
        other.sendall(b"x")


def test_the_end_of_what_was_deciphered_is_the_end_of_what_was_read_unless_a_record_follows(
    tmp_path: Path,
) -> None:
    authority = Authority.found(tmp_path)
    signed = authority.sign("localhost", "IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(signed.certificate, signed.key)
    context.num_tickets = 0
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secure = context.wrap_bio(incoming, outgoing, server_side=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        trusted = ssl.create_default_context(cafile=str(authority.own.certificate))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            opening = pool.submit(TimedSocket, Endpoint("127.0.0.1", listener.getsockname()[1], tls=trusted), 5.0)
            other, _ = listener.accept()
            while True:
                try:
                    secure.do_handshake()
                except ssl.SSLWantReadError:
                    other.sendall(outgoing.read())
                    incoming.write(other.recv(65536))
                else:
                    break
            other.sendall(outgoing.read())
            timed = opening.result()
    with other, contextlib.closing(timed):

        def record(letter: bytes) -> bytes:
            secure.write(letter)
            return outgoing.read()

        first, second, third = record(b"a"), record(b"b"), record(b"c")
        for sent, heard, ends in ((first, b"a", True), (second + third[:-1], b"b", False), (third[-1:], b"c", True)):
            other.sendall(sent)
            arrival = wait_until(timed.receive, "it is there", every=0.001)
            assert arrival is not None
            assert timed.decrypt(arrival.data) == heard
            assert timed.decrypted_to_end is ends


# --- one thread and many connections


def test_where_nobody_tells_how_late_we_wake_up_the_waiting_is_done_in_short_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    watched = Exchanges(delays=Delays(path="/no/such/file"))
    select = watched._selector.select

    def noted(seconds: float | None = None) -> Any:
        slept.append(seconds or 0.0)
        return select(seconds)

    monkeypatch.setattr(watched._selector, "select", noted)
    watched.poll(time.perf_counter() + 0.02)
    assert max(slept) == exchanges.SLICE
    assert len(slept) > 4
    watched.close()


@LINUX
def test_what_came_between_the_last_look_and_the_falling_asleep_was_not_there_since_we_woke_up(
    pair: tuple[TimedSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, other = pair
    warmed(timed, other)
    watched = Exchanges()
    select = watched._selector.select
    watched._selector.register(timed, selectors.EVENT_READ)
    left: list[float] = []

    def held_up(seconds: float | None = None) -> Any:
        if seconds and not left:
            for _ in range(2):
                other.sendall(b"x")
                left.append(time.perf_counter())
                pause()
        return select(seconds)

    monkeypatch.setattr(watched._selector, "select", held_up)
    assert watched._ready(1.0)
    arrival = timed.receive(watched._since)
    assert arrival is not None
    assert arrival.at - arrival.at.late <= left[0] + 0.0001
    watched.close()


class Kept:
    """Keeps what it is told."""

    complete = False

    def __init__(self) -> None:
        self.heard: list[tuple[float, bytes]] = []

    def head(self, status: int, headers: Any) -> None: ...

    def body(self, at: float, data: bytes) -> None:
        self.heard.append((at, data))

    def end(self, at: float, end: Any) -> None: ...


@LINUX
@pytest.mark.parametrize("more", [b"", b"3\r\nx\n\n", b"5", b"0\r\n\r\n"])
def test_only_what_came_last_is_dated_by_the_note(more: bytes) -> None:
    """Also where what follows is not even an event, but the beginning of one, or the end of the answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = Endpoint("127.0.0.1", listener.getsockname()[1])
        connection = ClientConnection(endpoint, Http1(endpoint.authority), 5.0)
        other, _ = listener.accept()
        with other:
            other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            warmed(connection.socket, other)
            kept = Kept()
            exchange = Exchange(connection, HttpRequest("GET", "/"), kept)
            watched = Exchanges()
            watched.send(exchange)
            other.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            other.sendall(b"3\r\na\n\n\r\n3\r\nb\n\n\r\n")
            pause()
            if more:
                other.sendall(more)
                pause()
            watched.poll(time.perf_counter())
            late = [lateness(at) for at, data in kept.heard if data]
            assert b"".join(data for _, data in kept.heard).startswith(b"a\n\nb\n\n")
            assert all(seconds > 0 for seconds in late[:-1])
            ends_with_an_event = more in (b"", b"3\r\nx\n\n")
            assert (late[-1] == 0.0) is ends_with_an_event
            watched.close()
            connection.close()
