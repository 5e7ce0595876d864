"""A server over HTTP that answers with the bytes that it is told to send, and keeps what it was asked."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Sends the answer to one request; `None` for the bytes of a piece ends the connection.
Script = Callable[[dict[str, Any]], list[bytes | None]]
EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def events(*data: object) -> bytes:
    return b"".join(f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n".encode() for one in data)


def answer(*data: object) -> list[bytes | None]:
    """A whole event stream, the end of its body in a packet of its own."""
    return [EVENT_STREAM, chunk(events(*data)), b"0\r\n\r\n"]


def refusal(status: int, body: object) -> list[bytes | None]:
    said = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} No\r\ncontent-type: application/json\r\ncontent-length: {len(said)}\r\n\r\n"
    return [head.encode() + said]


@dataclass(slots=True)
class Scripted:
    """`script` makes the pieces of an answer from the request's JSON. `asked`: those requests, in order."""

    authority: str
    script: Script
    asked: list[dict[str, Any]] = field(default_factory=list)


@contextlib.contextmanager
def scripted(script: Script) -> Iterator[Scripted]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found.asked.append(body)
            for piece in found.script(body):
                if piece is None:
                    self.close_connection = True
                    return
                self.wfile.write(piece)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        found = Scripted(f"127.0.0.1:{server.server_port}", script)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
