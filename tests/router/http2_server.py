"""A gRPC server written frame by frame, so that it can do whatever HTTP/2 lets a server do."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import hpack
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from exporter.pb import fmaas_pb2 as pb

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TOKENS = 4
OK = [("grpc-status", "0")]


class Gone(Exception):
    """The client has closed the connection."""


@dataclass
class Peer:
    """The server's side of one connection. Reads only when asked to; settings and pings are acknowledged."""

    connection: socket.socket
    seen: list[Frame] = field(default_factory=list)
    encoder: hpack.Encoder = field(default_factory=hpack.Encoder)
    decoder: hpack.Decoder = field(default_factory=hpack.Decoder)

    # --- reading

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.connection.recv(count - len(data))
            if not piece:
                raise Gone
            data += piece
        return data

    def read(self) -> Frame:
        """The next frame."""
        frame, length = Frame.parse_frame_header(memoryview(self._exactly(9)))
        frame.parse_body(memoryview(self._exactly(length)))
        self.seen.append(frame)
        if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self.send(SettingsFrame(0, flags=["ACK"]))
        if isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            self.send(PingFrame(0, frame.opaque_data, flags=["ACK"]))
        return frame

    def read_until(self, right: Callable[[Frame], bool]) -> Frame:
        while not right(frame := self.read()):
            pass
        return frame

    def request(self) -> tuple[int, str]:
        """The stream and the path of the next request, which has begun: its body may still be on its way."""
        frame = self.read_until(lambda frame: isinstance(frame, HeadersFrame))
        assert isinstance(frame, HeadersFrame)
        return frame.stream_id, dict(self.decoder.decode(frame.data, raw=True))[b":path"].decode()

    def body(self, stream: int) -> bytes:
        """Read to the end of the request; its message."""
        self.read_until(lambda frame: frame.stream_id == stream and "END_STREAM" in frame.flags)
        frames = (frame for frame in self.seen if isinstance(frame, DataFrame) and frame.stream_id == stream)
        return b"".join(frame.data for frame in frames)[5:]

    # --- sending

    def send(self, *frames: Frame | bytes) -> None:
        """All in one piece."""
        self.connection.sendall(b"".join(f if isinstance(f, bytes) else f.serialize() for f in frames))

    def settings(self, **values: int) -> None:
        codes = {name: getattr(SettingsFrame, name) for name in values}
        self.send(SettingsFrame(0, settings={codes[name]: value for name, value in values.items()}))

    def headers(self, stream: int, pairs: Sequence[tuple[str, str]], *, end: bool = False, **more: Any) -> HeadersFrame:
        flags = ["END_HEADERS", *(["END_STREAM"] if end else []), *more.pop("flags", [])]
        return HeadersFrame(stream, self.encoder.encode(pairs), flags=flags, **more)

    def head(self, stream: int) -> HeadersFrame:
        return self.headers(stream, [(":status", "200"), ("content-type", "application/grpc")])

    def trailers(self, stream: int) -> HeadersFrame:
        return self.headers(stream, OK, end=True)

    def tokens(self, stream: int, first: int = 1, last: int = TOKENS) -> list[DataFrame]:
        return [DataFrame(stream, message(generation(count))) for count in range(first, last + 1)]

    def answer(self, stream: int) -> list[Frame]:
        """All of a good answer."""
        return [self.head(stream), *self.tokens(stream), self.trailers(stream)]

    def go_away(self, last_stream: int, code: int = 0, debug: bytes = b"") -> GoAwayFrame:
        return GoAwayFrame(0, last_stream, code, debug)

    def reset(self, stream: int, code: int) -> RstStreamFrame:
        return RstStreamFrame(stream, code)

    def window(self, stream: int, by: int) -> WindowUpdateFrame:
        return WindowUpdateFrame(stream, by)


def generation(count: int, text: str = "a") -> pb.GenerationResponse:
    reason = pb.MAX_TOKENS if count == TOKENS else pb.NOT_FINISHED
    return pb.GenerationResponse(generated_token_count=count, text=text, stop_reason=reason)


def message(payload: Any) -> bytes:
    data: bytes = payload.SerializeToString()
    return b"\0" + len(data).to_bytes(4) + data


def model_info(_: bytes = b"") -> pb.ModelInfoResponse:
    return pb.ModelInfoResponse(max_sequence_length=10_000_000)


def tokenize(body: bytes) -> pb.BatchedTokenizeResponse:
    """A word is a token."""
    texts = (request.text for request in pb.BatchedTokenizeRequest.FromString(body).requests)
    return pb.BatchedTokenizeResponse(responses=[pb.TokenizeResponse(token_count=len(text.split())) for text in texts])


FACTS: dict[str, Callable[[bytes], Any]] = {"ModelInfo": model_info, "Tokenize": tokenize}


# Called with each request for a stream of tokens, before its body was read.
Script = Callable[[Peer, int], None]


@dataclass
class Http2Server:
    port: int
    peers: list[Peer] = field(default_factory=list)


@contextlib.contextmanager
def http2_server(script: Script, opening: Callable[[Peer], None] = Peer.settings) -> Iterator[Http2Server]:
    """Answers ModelInfo and Tokenize, and leaves GenerateStream to the script. `opening` is what it says first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Http2Server(listener.getsockname()[1])

        def serve(connection: socket.socket) -> None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = Peer(connection)
            server.peers.append(peer)
            with connection, contextlib.suppress(Gone, OSError):
                assert peer._exactly(len(PREFACE)) == PREFACE
                opening(peer)
                while True:
                    stream, path = peer.request()
                    if path.endswith("/GenerateStream"):
                        script(peer, stream)
                        continue
                    peer.send(peer.window(stream, 100_000))
                    told = FACTS[path.rpartition("/")[2]](peer.body(stream))
                    peer.send(peer.head(stream), DataFrame(stream, message(told)), peer.trailers(stream))

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield server
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for peer in server.peers:
                with contextlib.suppress(OSError):
                    peer.connection.shutdown(socket.SHUT_RDWR)
