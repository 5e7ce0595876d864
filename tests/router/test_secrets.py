"""A server that repeats the token it was sent cannot make us write it down."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from exporter.observation import Failure, Outcome
from tests.router.parts import Probing, target, workload

TOKEN = "s3cret-t0ken"


class Echo(BaseHTTPRequestHandler):
    """Lets everyone in but refuses each request, and says with which token it came."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._say(200 if self.path in self.server.open else 401)  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._say(401)

    def _say(self, status: int) -> None:
        body = f'{{"error": "bad token {self.headers["authorization"]}"}}'.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        server.open = set()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Probing]:
    monkeypatch.setenv("ROUTER_TOKEN", TOKEN)
    keys = {"bearer_token_env": "ROUTER_TOKEN", "yield_to_users": True}
    with Probing(target("tgi", f"127.0.0.1:{server.server_port}", None, **keys)) as client:
        yield client


def test_what_a_refused_connect_says_is_without_the_token(client: Probing) -> None:
    client.prober.connect(5.0)  # facts are optional
    result = client.prober.probe(workload(), 1, lambda: False)
    assert result.outcome is Outcome.REJECTED
    assert "bad token Bearer …" in result.detail
    assert TOKEN not in result.detail


def test_what_a_refused_request_says_is_without_the_token(client: Probing, server: ThreadingHTTPServer) -> None:
    server.open.add("/info")  # type: ignore[attr-defined]
    result = client.probe(workload(), 2)
    assert (result.outcome, result.code) == (Outcome.REJECTED, "UNAUTHORIZED")
    assert "bad token Bearer …" in result.detail
    assert TOKEN not in result.detail


def test_what_a_refused_metrics_page_says_is_without_the_token(client: Probing, server: ThreadingHTTPServer) -> None:
    server.open.add("/info")  # type: ignore[attr-defined]
    client.prober.connect(5.0)
    with pytest.raises(Failure) as caught:
        client.prober.users_wait()
    assert "bad token Bearer …" in caught.value.detail
    assert TOKEN not in caught.value.detail


def test_a_metrics_page_of_another_server_is_asked_without_the_token(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTER_TOKEN", TOKEN)
    server.open.add("/info")  # type: ignore[attr-defined]
    address = f"127.0.0.1:{server.server_port}"
    elsewhere = f"http://localhost:{server.server_port}/metrics"
    keys = {"bearer_token_env": "ROUTER_TOKEN", "yield_to_users": True, "metrics_url": elsewhere}
    with Probing(target("tgi", address, None, **keys)) as client:
        client.prober.connect(5.0)
        with pytest.raises(Failure) as caught:
            client.prober.users_wait()
    assert "bad token None" in caught.value.detail
