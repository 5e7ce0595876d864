"""Whatever bytes a server sends over HTTP/1.1 or HTTP/2: an answer, or a Failure in one line; and in bounded memory."""

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import h2.config
import h2.connection
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.alerting import prometheus_query
from exporter.alerting.prometheus_query import PrometheusError
from exporter.config.secrets import Secret
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure
from exporter.pb import fmaas_pb2
from exporter.probes.identify import _AnyReader
from exporter.probes.opening import open_prober
from exporter.probes.router.fmaas_protocol import GenerationReader
from exporter.probes.router.grpc_calls import UnaryReader
from exporter.probes.router.http_protocol import EventStreamReader
from exporter.probes.router.protocol import PageReader
from exporter.probes.router.queue_metrics import users_waiting
from exporter.web import health
from exporter.wire.http_codec import Body, BrokenConnection, End, Head, Http1, Http2, HttpCodec, HttpRequest
from exporter.wire.message_framing import grpc_message
from tests.faults.fuzz.documents import mutated
from tests.faults.fuzz.examples import MIB, ends, fuzz, raised, takes_at_most
from tests.processes import PATIENCE

REQUEST = HttpRequest("POST", "/", (), b"{}")
TGI: list[Any] = [
    {"token": {"id": 1, "text": " a", "logprob": -0.1, "special": False}, "generated_text": None, "details": None},
    {
        "token": {"id": 2, "text": " b", "logprob": -0.1, "special": False},
        "generated_text": " a b",
        "details": {"finish_reason": "length", "generated_tokens": 2, "input_length": 4},
    },
]
CHAT: list[Any] = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    {"choices": [{"delta": {"content": "a"}, "finish_reason": None}], "usage": {"completion_tokens": 1}},
    {"choices": [{"delta": {"content": "b"}, "finish_reason": "length"}]},
    {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}},
]
COMPLETIONS: list[Any] = [
    {"choices": [{"text": "a", "token_ids": [1], "finish_reason": None}]},
    {"choices": [{"text": "b", "token_ids": [2], "finish_reason": "stop"}], "usage": {"prompt_tokens": 4}},
]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
PIECES_1 = [
    *(
        b"data: ",
        b"data: [DONE]\n\n",
        b"event: error\n",
        b"\n\n",
        b"\r\n",
        b"\r",
        b": c\n",
        b"\xef\xbb\xbf",
        b"\xff",
        b"\0",
    ),
    *(
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 500 No\r\n\r\n",
        b"0\r\n\r\n",
        b"ffffffff\r\n",
        b"-1\r\n",
        b"content-length: 9\r\n",
    ),
    *(
        b"transfer-encoding: chunked\r\n",
        b"connection: close\r\n",
        b"content-encoding: gzip\r\n",
        b"retry-after: 9\r\n",
        b"[" * 3000,
    ),
    *(
        b'"error"',
        b'{"error": {"message": "so"}}',
        b"1e999",
        b"9" * 5000,
        b"null",
        b"true",
        b"\\ud800",
        b'"usage"',
        b'{"',
        b'"}',
    ),
]
GRPC_HEADERS = [(":status", "200"), ("content-type", "application/grpc")]


def events(documents: Sequence[Any], ending: bytes) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in documents) + ending


def http1(body: bytes) -> list[bytes]:
    """With a length, in chunks, and until the end of the connection."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:40], body[40:]) if part)
    return [
        HEAD + b"content-length: %d\r\n\r\n" % len(body) + body,
        HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n",
        HEAD + b"connection: close\r\n\r\n" + body,
    ]


def http2(messages: Sequence[bytes], trailers: Sequence[tuple[str, str]]) -> bytes:
    """What a server sends after its SETTINGS, to the first request."""
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.send_headers(1, [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "h")], True)
    server.initiate_connection()
    server.data_to_send()
    server.receive_data(client.data_to_send())
    server.send_headers(1, GRPC_HEADERS)
    for message in messages:
        server.send_data(1, grpc_message(message))
    server.send_headers(1, trailers, end_stream=True)
    return server.data_to_send()


GENERATED = [
    fmaas_pb2.GenerationResponse(input_token_count=4).SerializeToString(),
    fmaas_pb2.GenerationResponse(generated_token_count=1, text="a").SerializeToString(),
    fmaas_pb2.GenerationResponse(
        generated_token_count=2, text="b", stop_reason=fmaas_pb2.MAX_TOKENS
    ).SerializeToString(),
]
OVER_HTTP1 = [
    *(
        answer
        for body in (events(TGI, b""), events(CHAT, b"data: [DONE]\n\n"), events(COMPLETIONS, b"data: [DONE]\n\n"))
        for answer in http1(body)
    ),
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 45\r\n\r\n"
    b'{"model_id": "m", "max_total_tokens": 4096}  ',
    b'HTTP/1.1 429 Too Many\r\nretry-after: 1\r\ncontent-length: 38\r\n\r\n{"error": {"message": "overloaded"}}  ',
]
OVER_HTTP2 = [
    http2(GENERATED, [("grpc-status", "0")]),
    http2([], [("grpc-status", "8"), ("grpc-message", "so%0Ait is")]),
    http2([fmaas_pb2.ModelInfoResponse(max_sequence_length=9).SerializeToString()], [("grpc-status", "0")]),
]
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + body


FRAMES = st.builds(
    frame,
    st.integers(0, 10) | st.just(200),
    st.sampled_from([0, 1, 4, 5, 8, 32, 255]),
    st.sampled_from([0, 1, 2, 3, 2**31 - 1]),
    st.binary(max_size=20) | st.sampled_from([b"", b"\0" * 4, b"\0" * 8, b"\xff" * 8, b"\x88", b"\0\3\0\0\0\0"]),
)
PIECES_2 = [
    *(
        SETTINGS,
        frame(7, 0, 0, b"\0" * 8),
        frame(3, 0, 1, b"\0\0\0\7"),
        frame(6, 0, 0, b"x" * 8),
        frame(5, 4, 1, b"\0\0\0\2\x88"),
    ),
    *(
        frame(0, 1, 1, b""),
        frame(0, 8, 1, b"\xff"),
        frame(9, 4, 1, b"\x88"),
        frame(8, 0, 0, b"\x7f\xff\xff\xff"),
        b"HTTP/1.1 200 OK\r\n",
    ),
    frame(4, 0, 0, b"\0\4\xff\xff\xff\xff"),
    frame(4, 0, 0, b"\0\3\0\0\0\0"),
]
ANY_1 = st.deferred(lambda: mutated(OVER_HTTP1, PIECES_1) | st.binary(max_size=100))
ANY_2 = st.deferred(
    lambda: mutated(OVER_HTTP2, PIECES_2) | st.lists(FRAMES, max_size=6).map(b"".join) | st.binary(max_size=100)
)
READERS: list[Callable[[], Any]] = [
    lambda: EventStreamReader("tgi", Secret("secret"), 4),
    lambda: EventStreamReader("chat", Secret("secret")),
    lambda: EventStreamReader("completions", Secret(""), 4),
    lambda: GenerationReader(4),
    UnaryReader,
    PageReader,
    _AnyReader,
]


def read(codec: HttpCodec, data: bytes, size: int, reader: Any) -> None:
    """As an `Exchange` reads: the answer or its Failure."""
    codec.first_bytes()
    if isinstance(codec, Http2):
        codec.receive_idle(SETTINGS)
    codec.encode(REQUEST)
    pieces: list[bytes | None] = [data[start : start + size] for start in range(0, len(data), size)]
    ended = False
    with suppress(BrokenConnection):
        for at, piece in enumerate([*pieces, None]):
            for event in codec.receive(piece) if not ended else []:
                match event:
                    case Head(status, headers):
                        reader.head(status, headers)
                    case Body(body):
                        reader.body(float(at), body)
                    case End():
                        reader.end(float(at), event)
                        ended = True
            codec.data_to_send()
    codec.cancel()
    if ended:
        if isinstance(reader, EventStreamReader | GenerationReader):
            assert reader.tokens().arrivals
        else:
            assert isinstance(reader.content, bytes)
    if isinstance(reader, EventStreamReader | GenerationReader):
        assert reader.tokens_so_far() >= 0


def check(codec: HttpCodec, data: bytes, size: int, number: int) -> None:
    with ends((data, size, number)):
        failure = raised(Failure, lambda: read(codec, data, size, READERS[number]()))
    if failure is not None:
        assert failure.detail
        assert failure.detail.isprintable()


@fuzz
@given(data=ANY_1, size=st.sampled_from([1, 7, 65536]), number=st.integers(0, len(READERS) - 1))
def test_any_bytes_over_http_1(data: bytes, size: int, number: int) -> None:
    check(Http1("h"), data, size, number)


@fuzz
@given(data=ANY_2, size=st.sampled_from([1, 7, 65536]), number=st.integers(3, len(READERS) - 1))
def test_any_bytes_over_http_2(data: bytes, size: int, number: int) -> None:
    check(Http2("h", "http"), data, size, number)


class Player:
    """A server that answers each connection with the same bytes once it is asked, and closes."""

    def __init__(self, listener: socket.socket) -> None:
        self.data = b""
        self.port = listener.getsockname()[1]
        self._listener = listener
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client, suppress(OSError):
                    client.settimeout(PATIENCE)
                    client.recv(65536)
                    client.sendall(self.data)


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = Player(listener)
        yield found
        listener.shutdown(socket.SHUT_RDWR)
    found.thread.join()


@fuzz
@given(
    data=ANY_1 | ANY_2.map(lambda data: SETTINGS + data), api=st.sampled_from(["tgi", "completions", "chat", "fmaas"])
)
def test_any_bytes_of_a_router(player: Player, data: bytes, api: str) -> None:
    """Over a real connection, with the whole prober."""
    player.data = data
    keys = {"kind": "fmaas"} if api == "fmaas" else {"kind": "http", "api": api}
    address = f"127.0.0.1:{player.port}" if api == "fmaas" else f"http://127.0.0.1:{player.port}"
    prober = open_prober(Target.model_validate({"name": "t", "address": address, **keys}))
    workload = Workload.model_validate({"name": "w", "sequence_length": 4, "decode_length": 2, "timeout": "5s"})

    def probe() -> None:
        prober.connect(5.0)
        result = prober.probe(workload, 1, lambda: False)
        assert result.detail.isprintable()

    with ends((data, api)):
        try:
            failure = raised(Failure, probe)
        finally:
            prober.close()
    assert failure is None or failure.detail.isprintable()


METRICS = [
    b"# HELP tgi_queue_size x\n# TYPE tgi_queue_size gauge\ntgi_queue_size 3\ntgi_batch_current_size 2\n",
    b'vllm:num_requests_waiting{model="a",x="}"} 1.0 1700000000\nvllm:num_requests_running{model="a"} 4.0\n',
]
IN_METRICS = [
    b"tgi_queue_size ",
    b"sglang:num_queue_reqs{",
    b"}",
    b" " * 500,
    b"1e308",
    b"-1e308",
    b"NaN",
    b"\n",
    b"\r",
    b"\x85",
    b"_",
    b"\xd9\xa1",
]


@fuzz
@given(page=mutated(METRICS, IN_METRICS), own=st.integers(0, 9))
def test_any_metrics_page(page: bytes, own: int) -> None:
    text = page.decode("utf-8", "replace")
    found: list[int | None] = []
    with ends(page):
        failure = raised(Failure, lambda: found.append(users_waiting(text, own)))
    assert failure.detail.isprintable() if failure is not None else (found[0] or 0) >= 0


PROMETHEUS = [
    b'{"status": "success", "data": {"resultType": "vector", "result": [{"metric": {"a": "b"}, "value": [1, "2"]}]}}',
    b'{"status": "success", "data": {"groups": [{"name": "g", "interval": 60, "lastEvaluation": '
    b'"2026-01-01T00:00:00.123456789Z"}]}}',
    b'{"status": "error", "error": "so\\nit is"}',
]
IN_PROMETHEUS = [
    b"null",
    b"[]",
    b"{}",
    b"1e999",
    b"NaN",
    b"9" * 400,
    b"9" * 5000,
    b'"',
    b"0001-",
    b"[" * 3000,
    b'"error": 7, ',
    b"\\ud800",
]


@fuzz
@given(
    body=mutated(PROMETHEUS, IN_PROMETHEUS),
    status=st.sampled_from([b"200 OK", b"302 x", b"401 \xff", b"500 No"]),
    whole=st.booleans(),
)
def test_any_answer_of_prometheus_and_of_a_daemon(player: Player, body: bytes, status: bytes, whole: bool) -> None:
    """`tgi-probe slo` and `tgi-probe health` read them with Python's own client."""
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
    player.data = head + body if whole else body
    url = f"http://127.0.0.1:{player.port}"
    with ends(player.data):
        error = raised(PrometheusError, lambda: prometheus_query.query(url, "up"))
        assert error is None or str(error).isprintable()
        prometheus_query.rule_groups(url)
    with pytest.MonkeyPatch.context() as patch, ends(player.data):
        patch.setenv("TGI_PROBE_WEB__LISTEN_ADDRESS", f"127.0.0.1:{player.port}")
        trouble = health.healthy(None, timeout=5.0)
        assert trouble is None or trouble.isprintable()


def test_headers_without_end_take_bounded_memory() -> None:
    with takes_at_most(8 * MIB):
        for codec, piece in ((Http1("h"), b"HTTP/1.1 200 OK\r\nx: " + b"y" * 65000), (Http2("h", "http"), b"")):
            codec.first_bytes()
            codec.encode(REQUEST)
            with suppress(BrokenConnection):
                for number in range(200):
                    codec.receive(piece or frame(9 if number else 1, 0, 1, b"y" * 16000))
                raise AssertionError("3 MiB of headers were taken")
