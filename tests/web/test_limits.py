"""Slow, silent and greedy clients against a listener: others still get their page."""

import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from exporter.web.current import Current
from exporter.web.listener import Listener

from exporter.web import listener
from exporter.web.token_bucket import Bucket
from tests.processes import PATIENCE, ask, wait_until
from tests.web.certificates import Authority
from tests.web.test_curl import curl

HOST = "127.0.0.1"


def page(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    body = b"x" * int(environ["QUERY_STRING"] or 5)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


@contextmanager
def listening(current: Current | None = None) -> Iterator[Listener]:
    server = Listener((HOST, 0), page, current or Current(None), lambda kind, line: None)
    server.prepare()
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


@pytest.fixture
def server() -> Iterator[Listener]:
    with listening() as server:
        yield server


def port(server: Listener) -> int:
    return int(server.bind_addr[1])


def clients(stack: ExitStack, server: Listener, number: int) -> list[socket.socket]:
    return [stack.enter_context(socket.create_connection((HOST, port(server)), PATIENCE)) for _ in range(number)]


def test_clients_that_say_nothing_hold_no_thread(server: Listener) -> None:
    with ExitStack() as stack:
        clients(stack, server, 3 * listener.THREADS)
        assert ask(f"http://{HOST}:{port(server)}/").status == 200


def test_clients_that_never_finish_their_request_are_cut_off_for_others(server: Listener) -> None:
    with ExitStack() as stack:
        for client in clients(stack, server, 3 * listener.THREADS):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert ask(f"http://{HOST}:{port(server)}/", timeout=PATIENCE).status == 200


def test_a_request_must_be_over_in_time_however_steadily_it_drips(
    server: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "CLIENT_SECONDS", 0.5)
    with ExitStack() as stack:
        [client] = clients(stack, server, 1)
        client.sendall(b"GET / HTTP/1.1\r\n")
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.05):
                try:
                    client.sendall(b"X: y\r\n")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            _until_closed(client)
        finally:
            stop.set()
            dripping.join()


def test_an_answer_must_be_taken_in_time(server: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "CLIENT_SECONDS", 0.5)
    with ExitStack() as stack:
        [client] = clients(stack, server, 1)
        client.sendall(b"GET /?80000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: _all_threads_idle(server) and not server._open, "the thread is free again")


def test_more_connections_than_there_are_places_push_out_the_oldest(server: Listener) -> None:
    with ExitStack() as stack:
        first, *_ = clients(stack, server, listener.CONNECTIONS + 20)
        _until_closed(first)
        assert ask(f"http://{HOST}:{port(server)}/").status == 200


@pytest.mark.parametrize("request_bytes", [b"GET /" + b"a" * 20_000, b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000])
def test_a_request_that_is_too_long_is_refused(server: Listener, request_bytes: bytes) -> None:
    with ExitStack() as stack:
        [client] = clients(stack, server, 1)
        client.sendall(request_bytes + b"\r\n\r\n")
        assert client.recv(12).split()[1] in (b"413", b"414")


def test_a_body_that_is_too_long_is_refused(server: Listener) -> None:
    with ExitStack() as stack:
        [client] = clients(stack, server, 1)
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert client.recv(12).split()[1] == b"413"


class Gate:
    """A listener's door where time stands still: after the burst each turn waits until it is opened."""

    def __init__(self, server: Listener) -> None:
        self._turns = threading.Semaphore(0)
        self._open = False
        server.clock = lambda: 100.0
        server.pause = self._pause
        server._accepts = Bucket(0.0, 1)
        for _ in range(listener.PACE_BURST):
            assert ask(f"http://{HOST}:{port(server)}/").status == 200

    def _pause(self, seconds: float) -> None:
        if seconds > 0 and not self._open:
            self._turns.acquire(timeout=PATIENCE)

    def let_one_in(self) -> None:
        self._turns.release()

    def open(self) -> None:
        self._open = True
        self._turns.release()


def rude_and_polite(server: Listener, stack: ExitStack, polite: socket.socket, request: bytes) -> None:
    """Many new connections ask, and after them a polite client."""
    rude = clients(stack, server, 20)
    for client in rude:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    wait_until(lambda: server._turns.standing == len(rude), "all rude ones stand in line")
    polite.sendall(request)
    wait_until(lambda: server._turns.standing == len(rude) + 1, "the polite one stands in line")


def test_a_flood_is_let_in_at_the_pace_only(server: Listener) -> None:
    gate = Gate(server)
    with ExitStack() as stack:
        [client] = clients(stack, server, 1)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: server._turns.standing == 1, "it stands in line")
        gate.open()
        assert client.recv(12).split()[1] == b"200"


def test_a_health_check_is_let_in_before_a_crowd_from_the_same_address(server: Listener) -> None:
    gate = Gate(server)
    with ExitStack() as stack:
        [polite] = clients(stack, server, 1)
        rude_and_polite(server, stack, polite, b"GET /-/healthy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        gate.let_one_in()
        assert polite.recv(12).split()[1] == b"200"
        assert server._turns.standing == 20, "all others still stand in line"
        gate.open()


def test_a_connection_that_stayed_open_is_let_in_before_a_crowd_of_new_ones(server: Listener) -> None:
    with ExitStack() as stack:
        [polite] = clients(stack, server, 1)
        scrape = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        server.clock = lambda: 50.0
        polite.sendall(scrape)
        answered = polite.recv(4096)
        while not answered.endswith(b"xxxxx"):
            answered += polite.recv(4096)
        gate = Gate(server)
        rude_and_polite(server, stack, polite, scrape)
        gate.let_one_in()
        assert polite.recv(12).split()[1] == b"200"
        assert server._turns.standing == 20, "all others still stand in line"
        gate.open()


def test_those_who_stand_in_line_are_not_pushed_out_but_the_silent_are(server: Listener) -> None:
    gate = Gate(server)
    with ExitStack() as stack:
        standing = clients(stack, server, listener.CONNECTIONS)
        for client in standing:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        wait_until(lambda: server._turns.standing == len(standing), "all stand in line")
        silent, *_ = clients(stack, server, listener.CONNECTIONS + 1)
        _until_closed(silent)
        gate.open()
        assert all(client.recv(12).split()[1] == b"200" for client in standing)


def test_a_client_that_never_shakes_hands_keeps_no_one_from_tls(tmp_path: Path) -> None:
    authority = Authority.found(tmp_path)
    pair = authority.sign("server", "IP:127.0.0.1")
    web = tmp_path / "web.yml"
    web.write_text(f"tls_server_config: {{cert_file: {pair.certificate}, key_file: {pair.key}}}\n")
    with listening(Current(web)) as server, ExitStack() as stack:
        silent, half = clients(stack, server, 2)
        half.sendall(b"\x16\x03\x01")  # the beginning of a handshake
        answer = curl(f"https://{HOST}:{port(server)}/", "--cacert", str(authority.own.certificate))
        assert answer.status == 200
        assert silent.fileno() > 0


def _until_closed(client: socket.socket) -> None:
    client.settimeout(PATIENCE)
    try:
        while client.recv(4096):
            pass
    except ConnectionError:
        pass


def _all_threads_idle(server: Listener) -> bool:
    return bool(server.requests.idle == listener.THREADS)
