"""Connections that are kept alive, and servers that close them without a word."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from exporter.observation import Outcome
from exporter.wire import connection, exchanges
from tests.router.parts import Probing, target, workload
from tests.router.scripted import answer


@dataclass
class Closing:
    """A server that closes kept connections: after a page of models that fails, or where a second answer is due, in so
    many seconds.
    """

    after_an_error: bool = False
    second_answer: bool = True
    seconds: float = 0.0
    address: str = ""
    connections: int = 0
    answers: int = 0


@contextlib.contextmanager
def closing(**how: Any) -> Iterator[Closing]:
    server = Closing(**how)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        posts = 0

        def setup(self) -> None:
            super().setup()
            server.connections += 1

        def do_GET(self) -> None:
            self.wfile.write(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 5\r\n\r\nerror")
            self.close_connection = server.after_an_error

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.posts += 1
            if self.posts > 1 and not server.second_answer:
                time.sleep(server.seconds)
                self.close_connection = True
                return
            server.answers += 1
            tokens = [{"choices": [{"text": "a", "finish_reason": None}]} for _ in range(body["max_tokens"])]
            usage = {"prompt_tokens": len(body["prompt"].split()), "completion_tokens": body["max_tokens"]}
            end = {"choices": [{"text": "", "finish_reason": "length"}], "usage": usage}
            for piece in answer(*tokens, end, "[DONE]"):
                self.wfile.write(piece or b"")

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        server.address = f"127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()


def probing(server: Closing) -> Probing:
    return Probing(target("completions", server.address, None, model="m"))


def test_a_connection_whose_warming_failed_is_not_used_for_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.0)  # each kept connection is warmed before it is used again
    with closing(after_an_error=True) as server, probing(server) as prober:
        assert [prober.probe(workload(), 3).outcome for _ in range(4)] == [Outcome.OK] * 4


def test_a_request_that_crosses_the_end_of_a_kept_connection_is_sent_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "CROSSING_SECONDS", 10.0)
    with closing(second_answer=False) as server, probing(server) as prober:
        results = [prober.probe(workload(), 2) for _ in range(3)]
        assert [result.outcome for result in results] == [Outcome.OK] * 3
        assert server.connections >= server.answers  # each answered on a connection of its own


def test_a_server_that_had_time_to_begin_and_closes_without_an_answer_has_failed() -> None:
    with closing(second_answer=False, seconds=0.3) as server, probing(server) as client:
        assert client.probe(workload(), 1).outcome is Outcome.UNREACHABLE
        assert server.answers == 1


def test_a_new_connection_that_ends_without_an_answer_is_a_failure() -> None:
    with closing(second_answer=False) as server, probing(server) as client:
        assert client.probe(workload(), 1).outcome is Outcome.OK
        before = server.answers
        server.second_answer = True
        assert client.probe(workload(), 1).outcome is Outcome.OK
        assert server.answers == before + 1
