"""Which requests a server lets in first when there are too many."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio
import pytest

from exporter.web import admission, server, tls_stream
from exporter.web.admission import Admission
from exporter.web.server import WebServer
from tests.processes import PATIENCE, ask, wait_until
from tests.web.certificates import Authority
from tests.web.clients import HOST, clients, last_request, request, serving, status, tls_web_file, until_closed, whole


class Gate:
    """Time stands still at the server's admission: after the burst each turn waits until it is opened."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now
        self.admission = Admission(lambda: self.now, self._sleep)
        self._turns = threading.Semaphore(0)
        self._open = False

    async def _sleep(self, seconds: float) -> None:
        if seconds > 0 and not self._open:
            await anyio.to_thread.run_sync(self._turns.acquire, True, PATIENCE)

    def use_up_the_burst(self, found: WebServer) -> None:
        for _ in range(admission.PACE_BURST):
            assert ask(f"http://{HOST}:{found.port}/").status == 200

    def wait_for(self, number: int) -> None:
        wait_until(lambda: len(self.admission._queue) == number, f"{number} requests wait")

    def let_one_in(self) -> None:
        self._turns.release()

    def open(self) -> None:
        self._open = True
        self._turns.release()

    def rude_and_polite(self, found: WebServer, stack: ExitStack, polite: socket.socket, sent: bytes) -> None:
        """Many new connections ask, and after them a polite client."""
        rude = clients(stack, found, 20)
        for client in rude:
            client.sendall(last_request())
        self.wait_for(len(rude))
        polite.sendall(sent)
        self.wait_for(len(rude) + 1)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def gated(gate: Gate) -> Iterator[WebServer]:
    with serving(paced_by=gate.admission) as found:
        yield found
        gate.open()


def test_a_flood_is_let_in_at_the_pace_only(gate: Gate, gated: WebServer) -> None:
    gate.use_up_the_burst(gated)
    with ExitStack() as stack:
        [client] = clients(stack, gated, 1)
        client.sendall(request())
        gate.wait_for(1)
        gate.open()
        assert status(client) == 200


def test_a_health_check_is_let_in_before_a_crowd_from_the_same_address(gate: Gate, gated: WebServer) -> None:
    gate.use_up_the_burst(gated)
    with ExitStack() as stack:
        [polite] = clients(stack, gated, 1)
        gate.rude_and_polite(gated, stack, polite, last_request("/-/healthy"))
        gate.let_one_in()
        assert status(polite) == 200
        assert len(gate.admission._queue) == 20, "all others still wait"
        gate.open()


def test_a_connection_that_stayed_open_is_let_in_before_a_crowd_of_new_ones(gate: Gate, gated: WebServer) -> None:
    with ExitStack() as stack:
        [polite] = clients(stack, gated, 1)
        gate.now = 50.0
        polite.sendall(request())
        whole(polite, b"xxxxx")
        gate.now = 100.0
        gate.use_up_the_burst(gated)
        gate.rude_and_polite(gated, stack, polite, request())
        gate.let_one_in()
        assert status(polite) == 200
        assert len(gate.admission._queue) == 20, "all others still wait"
        gate.open()


def test_those_who_wait_for_their_turn_are_not_pushed_out_but_the_silent_are(gate: Gate, gated: WebServer) -> None:
    gate.use_up_the_burst(gated)
    with ExitStack() as stack:
        waiting = clients(stack, gated, server.MAX_IDLE_CONNECTIONS)
        for client in waiting:
            client.sendall(last_request())
        gate.wait_for(len(waiting))
        silent, *_ = clients(stack, gated, server.MAX_IDLE_CONNECTIONS + 1)
        until_closed(silent)
        gate.open()
        assert all(status(client) == 200 for client in waiting)


def test_when_every_place_is_taken_by_clients_that_had_an_answer_a_new_one_gets_one(
    gate: Gate, gated: WebServer
) -> None:
    gate.use_up_the_burst(gated)
    with ExitStack() as stack:
        for _ in range(server.MAX_CONNECTIONS + 1):  # the server may accept one too many
            [kept] = clients(stack, gated, 1)
            kept.sendall(request("/-/healthy"))
        wait_until(lambda: len(gate.admission._queue) >= server.MAX_CONNECTIONS, "no place is left")
        gate.open()
        assert ask(f"http://{HOST}:{gated.port}/", timeout=PATIENCE).status == 200


def test_over_tls_a_new_connection_counts_once_in_the_pace(tmp_path: Path, gate: Gate) -> None:
    authority = Authority.found(tmp_path)
    trusting = ssl.create_default_context(cafile=authority.own.certificate)
    with serving(web_file=tls_web_file(authority), paced_by=gate.admission) as found, ExitStack() as stack:
        stack.callback(gate.open)
        for client in clients(stack, found, admission.PACE_BURST):
            secure = stack.enter_context(trusting.wrap_socket(client, server_hostname=HOST))
            secure.sendall(last_request())
            assert status(secure) == 200
        [one_more] = clients(stack, found, 1)
        one_more.sendall(client_hello())
        gate.wait_for(1)


def test_over_tls_clients_that_send_a_part_of_their_first_message_are_in_nobodys_way(
    tmp_path: Path, gate: Gate
) -> None:
    hello = client_hello()
    web_file = tls_web_file(Authority.found(tmp_path))
    with serving(web_file=web_file, paced_by=gate.admission) as found, ExitStack() as stack:
        stack.callback(gate.open)
        many = clients(stack, found, 2 * admission.PACE_BURST)
        for length, client in enumerate(many, start=1):
            client.sendall(hello[:length])
        many[-1].sendall(hello[len(many) :])
        assert many[-1].recv(1)[0] == tls_stream.HANDSHAKE_RECORD, "answered at once: the burst is not used up"


def client_hello() -> bytes:
    """The first message of a handshake."""
    sent = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname=HOST).do_handshake()
    return sent.read()
