"""Servers that never stop sending: each answer is ended by its size, long before its timeout."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.pb import generate_v3_pb2 as pb
from exporter.probes.opening import open_prober
from exporter.probes.router.queue_metrics import users_waiting
from exporter.probes.shard import channel
from exporter.probes.shard.ranks import reachable
from exporter.wire import exchanges, http2_frames, message_framing
from exporter.wire.message_framing import ServerSentEvents, grpc_message
from tests.faults.fuzz.examples import MIB, ends, takes_at_most
from tests.router.parts import DOORS
from tests.shard.test_malformed import Liar, malformed
from tests.shard.test_malformed import liar as liar

WORKLOAD = Workload.model_validate({"name": "w", "sequence_length": 4, "decode_length": 4, "timeout": "300s"})
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def frame(kind: int, body: bytes, flags: int = 0, stream: int = 0) -> bytes:
    return len(body).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + body


SETTINGS = frame(4, b"")
# The first bytes of an answer to the first request, with the literal headers `:status: 200` and `content-type`.
GRPC = frame(1, b"\x88\x0f\x10\x10application/grpc", 4, 1)
FLOODS: dict[str, tuple[str, bytes, bytes]] = {
    "a body": ("tgi", STREAM, b"data: x" * 9000),
    "small events": ("tgi", STREAM, b'data: {"token":1}\n\n' * 3000),
    "lines of one event": ("tgi", STREAM, b"data: x\n" * 8000),
    "errors of llama.cpp": ("tgi", STREAM, b"error: {\n" * 8000),
    "comments": ("tgi", STREAM, b": " + b"x" * 65000),
    "a head": ("tgi", b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 10000),
    "one header": ("tgi", b"HTTP/1.1 200 OK\r\nx: ", b"y" * 65000),
    "a chunk's head": ("tgi", STREAM[:-2] + b"transfer-encoding: chunked\r\n\r\n", b"0" * 65000),
    "an error page": ("tgi", b"HTTP/1.1 500 No\r\ncontent-length: 99999999999\r\n\r\n", b"x" * 65000),
    "messages of gRPC": ("fmaas", SETTINGS + GRPC, frame(0, grpc_message(b"") * 3000, 0, 1) * 4),
    "one message of gRPC": (
        "fmaas",
        SETTINGS + GRPC + frame(0, b"\0\x03\xff\xff\xff", 0, 1),
        frame(0, b"x" * 16000, 0, 1) * 4,
    ),
    "pings": ("fmaas", SETTINGS, frame(6, b"x" * 8) * 3000),
    "settings": ("fmaas", SETTINGS, SETTINGS * 5000),
    "frames that we drop": ("fmaas", SETTINGS, frame(200, b"") * 5000),
    "windows": ("fmaas", SETTINGS, frame(8, b"\0\0\0\1") * 5000),
    "parts of headers": ("fmaas", SETTINGS + frame(1, b"", 0, 1), frame(9, b"x" * 16000, 0, 1) * 4),
}


@contextlib.contextmanager
def flooding(first: bytes, then: bytes) -> Iterator[str]:
    """Sends `first` to each client, and `then` for as long as it is connected. It answers what is asked before."""

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if first.startswith(b"HTTP"):
                while client.recv(65536).startswith(b"GET "):
                    client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            client.sendall(first)
            while not ended.is_set():
                client.sendall(then)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(client,)))
                threads[-1].start()

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = [threading.Thread(target=accept)]
        threads[0].start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()


@pytest.fixture
def _smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bounds, a tenth as large: the tests are done sooner."""
    monkeypatch.setattr(exchanges, "MOST_BACKLOG", exchanges.MOST_BACKLOG // 10)
    monkeypatch.setattr(http2_frames, "MOST_CONTROL_FRAMES", http2_frames.MOST_CONTROL_FRAMES // 10)
    for name in ("LONGEST_EVENT", "LONGEST_ANSWER", "ANSWER_BYTES"):
        monkeypatch.setattr(message_framing, name, getattr(message_framing, name) // 10)


@pytest.mark.usefixtures("_smaller")
@pytest.mark.parametrize("flood", FLOODS)
def test_an_answer_without_end_is_ended_by_its_size(flood: str) -> None:
    door, first, then = FLOODS[flood]
    with flooding(first, then) as address, ends(flood), takes_at_most(60 * MIB):
        where = address if door == "fmaas" else f"http://{address}"
        prober = open_prober(Target.model_validate({"name": "t", "address": where, **DOORS[door]}))
        try:
            prober.connect(300.0)
            result = prober.probe(WORKLOAD, 1, lambda: False)
            outcome, detail = result.outcome, result.detail
        except Failure as failure:
            outcome, detail = failure.outcome, failure.detail
        finally:
            prober.close()
    assert outcome in (Outcome.MALFORMED, Outcome.UNREACHABLE, Outcome.REJECTED), detail
    assert detail.isprintable()


def test_an_answer_of_a_shard_that_is_too_large_is_malformed(
    liar: tuple[Liar, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = tuple((name, 1 * MIB if "receive" in name else value) for name, value in channel.OPTIONS)
    monkeypatch.setattr(channel, "OPTIONS", options)
    handler, address = liar
    handler.prefill = lambda ids: b"\0" * 2 * MIB
    assert "an answer of more than" in malformed(address)
    assert handler.cleared == handler.sent
    assert channel.LARGEST_ANSWER == 64 * MIB


def test_a_shard_sends_us_nowhere_else() -> None:
    assert reachable("h:1", ["elsewhere:7", "[::1]:8"]) == ("h:7", "h:8")
    assert reachable("unix:///run/a-0", ["unix:///etc/x", "unix:///../y"]) == ("unix:///run/x", "unix:///run/y")
    for port in ("", "0", "65536", "x", "²", "9" * 5000):
        with pytest.raises(Failure, match="a rank without a port"):
            reachable("h:1", ["h:1", f"h:{port}"])


def test_a_shard_of_too_many_ranks_is_malformed_and_costs_no_channels(liar: tuple[Liar, str]) -> None:
    handler, address = liar
    urls = pb.ServiceDiscoveryResponse(urls=[f"{address}"] * 100_000).SerializeToString()
    usual = handler.answer
    handler.answer = lambda rpc, request: urls if rpc == "ServiceDiscovery" else usual(rpc, request)  # type: ignore[method-assign]
    threads = threading.active_count()
    prober = open_prober(Target(name="t", address=address))
    with pytest.raises(Failure, match="100000 ranks") as caught:
        prober.connect(60.0)
    prober.close()
    assert caught.value.outcome is Outcome.MALFORMED
    assert threading.active_count() <= threads + 8, "a server of the test has threads of its own"


def test_a_metrics_page_of_short_lines_takes_no_more_than_its_size() -> None:
    page = "a\n" * (4 * MIB)
    with takes_at_most(MIB):
        assert users_waiting(page, 0) is None


def test_an_error_of_many_lines_is_ended_too() -> None:
    split = ServerSentEvents()

    def feed() -> None:
        for _ in range(2000):
            split.feed(b'error: {"a"\n' * 5000)

    with pytest.raises(Failure, match="an event without end"):
        feed()
