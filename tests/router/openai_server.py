"""A server of the chat form whose every answer a test chooses; it counts what it is asked."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.router.parts import Probing, target

MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()


@dataclass
class ChatServer:
    """`page` answers GET with a status and a body, not before `slow_page` is set. `prompt` says what `usage` counts,
    None: nothing; `refuse` may answer a request with a status and a body instead.
    """

    prompt: Callable[[dict[str, Any]], object] = lambda body: words(body)
    page: Callable[[], tuple[int, bytes]] = lambda: (200, MODELS)
    refuse: Callable[[dict[str, Any]], tuple[int, bytes] | None] = lambda body: None
    slow_page: threading.Event | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    pages: int = 0
    address: str = ""

    def client(self, **keys: Any) -> Probing:
        return Probing(target(keys.pop("door", "chat"), self.address, None, **keys))

    def answer(self, body: dict[str, Any]) -> tuple[int, str, bytes]:
        self.bodies.append(body)
        if (refused := self.refuse(body)) is not None:
            return refused[0], "application/json", refused[1]
        tokens = body["max_tokens"]
        counted = self.prompt(body)
        usage = {"usage": {"prompt_tokens": counted, "completion_tokens": tokens}} if counted is not None else {}
        if not body["stream"]:
            message: dict[str, Any] = {"message": {"content": "a" * tokens}, "finish_reason": "length"}
            return 200, "application/json", json.dumps({"choices": [message], **usage}).encode()
        chunks: list[dict[str, Any]] = [
            {"choices": [{"delta": {"content": "a"}, "finish_reason": None}]} for _ in range(tokens)
        ]
        chunks.append({"choices": [{"delta": {}, "finish_reason": "length"}]})
        if usage:
            chunks.append({"choices": [], **usage})
        events = [*map(json.dumps, chunks), "[DONE]"]
        return 200, "text/event-stream", "".join(f"data: {event}\n\n" for event in events).encode()


def words(body: dict[str, Any]) -> int:
    return len(text(body).split())


def text(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


@contextlib.contextmanager
def chat_server(**answers: Any) -> Iterator[ChatServer]:
    server = ChatServer(**answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.pages += 1
            if server.slow_page is not None:
                server.slow_page.wait()
            status, body = server.page()
            self.reply(status, "application/json", body)

        def do_POST(self) -> None:
            self.reply(*server.answer(json.loads(self.rfile.read(int(self.headers["content-length"])))))

        def reply(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        server.address = f"127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            if server.slow_page is not None:
                server.slow_page.set()
            listening.shutdown()
            thread.join()
