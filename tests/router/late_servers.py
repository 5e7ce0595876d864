"""Servers that wait with their answers until a test tells them to send, and say when each token left."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import h2.config
import h2.connection
import h2.events

from exporter.pb import fmaas_pb2 as pb
from exporter.wire.message_framing import grpc_message
from tests.processes import wait_until

TOKENS = 8
GAP = 0.006  # well beyond what a recorded value may be off


class Left(NamedTuple):
    """Between these instants a token left: this thread may be held up at any point between them."""

    earliest: float
    latest: float


def pause(seconds: float = GAP) -> None:
    """A server's: it does not sleep, for that could take any time."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def event(document: Any) -> bytes:
    data = document if isinstance(document, str) else json.dumps(document)
    text = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(text), text)


def events(api: str) -> list[bytes]:
    """One for each token, then what ends the answer."""
    usage = {"usage": {"prompt_tokens": 32, "completion_tokens": TOKENS}, "choices": []}
    if api == "tgi":
        details = {"finish_reason": "length", "generated_tokens": TOKENS, "input_length": 32}
        tokens = [{"token": {"id": n, "text": " a"}, "generated_text": None} for n in range(TOKENS - 1)]
        last = {"token": {"id": 9, "text": " a"}, "generated_text": "a", "details": details}
        return [*map(event, [*tokens, last]), b"0\r\n\r\n"]
    key: dict[str, Any] = {"text": " a"} if api == "completions" else {"delta": {"content": " a"}}
    said = [
        event({"choices": [{**key, "finish_reason": "length" if n == TOKENS - 1 else None}]}) for n in range(TOKENS)
    ]
    return [*said, event(usage) + event("[DONE]") + b"0\r\n\r\n"]


class HttpServer:
    """Answers what is asked before a probe at once; for a probe's request it waits for `answer`."""

    def __init__(self, api: str) -> None:
        self._api = api
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            data = b""
            while piece := client.recv(65536):
                data += piece
                head, _, body = data.partition(b"\r\n\r\n")
                if data.startswith(b"GET") and data.endswith(b"\r\n\r\n"):
                    client.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 23\r\n\r\n{"data": [{"id": "m"}]}')
                    data = b""
                elif data.startswith(b"POST") and f"content-length: {len(body)}".encode() in head:
                    self.asked.append(client)
                    data = b""

    def answer(self, pause: Callable[[], None]) -> list[Left]:
        """When each token left."""
        wait_until(lambda: self.asked, "the request is there", every=0.001)
        client = self.asked.pop()
        client.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        left = []
        for piece in events(self._api):
            pause()
            began = time.perf_counter()
            with contextlib.suppress(OSError):  # an answer that is complete need not be heard to its end
                client.sendall(piece)
            left.append(Left(began, time.perf_counter()))
        return left[:TOKENS]

    def close(self) -> None:
        self._listener.close()


class GrpcServer:
    """The same for `fmaas`, over TCP or a unix socket."""

    def __init__(self, path: str = "") -> None:
        if path:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen()
        else:
            self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"unix://{path}" if path else f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[tuple[socket.socket, h2.connection.H2Connection, int]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self._talk(client)

    def _talk(self, client: socket.socket) -> None:
        machine = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        machine.initiate_connection()
        client.sendall(machine.data_to_send())
        paths: dict[int, str] = {}
        while data := client.recv(65536):
            for seen in machine.receive_data(data):
                if isinstance(seen, h2.events.RequestReceived):
                    paths[seen.stream_id] = str(dict(seen.headers)[b":path"])
                elif isinstance(seen, h2.events.StreamEnded):
                    self._heard(client, machine, seen.stream_id, paths[seen.stream_id])
            client.sendall(machine.data_to_send())

    def _heard(self, client: socket.socket, machine: h2.connection.H2Connection, stream: int, path: str) -> None:
        if "GenerateStream" in path:
            self.asked.append((client, machine, stream))
            return
        machine.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        status = "0" if "ModelInfo" in path else "12"
        if status == "0":
            machine.send_data(stream, grpc_message(pb.ModelInfoResponse(max_sequence_length=4096).SerializeToString()))
        machine.send_headers(stream, [("grpc-status", status)], end_stream=True)

    def answer(self, pause: Callable[[], None]) -> list[Left]:
        wait_until(lambda: self.asked, "the request is there", every=0.001)
        client, machine, stream = self.asked.pop()
        machine.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        left = []
        for number in range(1, TOKENS + 1):
            pause()
            message = pb.GenerationResponse(input_token_count=32, generated_token_count=number, text=" a")
            message.stop_reason = pb.MAX_TOKENS if number == TOKENS else pb.NOT_FINISHED
            machine.send_data(stream, grpc_message(message.SerializeToString()))
            began = time.perf_counter()
            client.sendall(machine.data_to_send())
            left.append(Left(began, time.perf_counter()))
        pause()
        machine.send_headers(stream, [("grpc-status", "0")], end_stream=True)
        with contextlib.suppress(OSError):
            client.sendall(machine.data_to_send())
        return left

    def close(self) -> None:
        self._listener.close()
