"""Slow, silent and greedy clients against a server: others still get their page."""

import os
import re
import resource
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from exporter.config.settings import Settings
from exporter.metrics.catalogue import layout
from exporter.metrics.collector import Registry
from exporter.metrics.record import Metrics
from exporter.plan.targets import plans
from exporter.web import accepted_connection, admission, server
from exporter.web.admission import Admission
from exporter.web.routes import Views
from exporter.web.server import WebServer
from exporter.web.web_file_state import WebFileState
from tests.processes import PATIENCE, ask, wait_until
from tests.web.certificates import Authority
from tests.web.test_curl import curl

HOST = "127.0.0.1"
SMALL, LARGE = "x" * 5, "x" * 16_000_000


def pages(status: Callable[[], str] = lambda: SMALL, **more: Any) -> Views:
    """`/` is a small page, `/config` a large one."""
    return Views(Registry, lambda: None, lambda: None, None, lambda: LARGE, status, **more)


@contextmanager
def serving(
    views: Views | None = None,
    web_file: WebFileState | None = None,
    paced_by: Admission | None = None,
    report: Callable[[str, str], None] = lambda kind, line: None,
) -> Iterator[WebServer]:
    found = WebServer(f"{HOST}:0", views or pages(), web_file, report, paced_by)
    with start_blocking_portal() as portal:
        life = portal.start_task_soon(found.serve)
        try:
            yield found
        finally:
            life.cancel()


@pytest.fixture
def running() -> Iterator[WebServer]:
    with serving() as found:
        yield found


def clients(stack: ExitStack, found: WebServer, number: int) -> list[socket.socket]:
    return [stack.enter_context(socket.create_connection((HOST, found.port), PATIENCE)) for _ in range(number)]


def request(path: str = "/", *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: x", *headers, "\r\n")).encode()


def last_request(path: str = "/") -> bytes:
    return request(path, "Connection: close")


def status(client: socket.socket) -> int:
    return int(client.recv(12).split()[1])


def whole(client: socket.socket, ends_with: bytes) -> bytes:
    answered = bytearray()
    while not answered.endswith(ends_with):
        part = client.recv(65536)
        assert part, f"closed after {len(answered)} bytes"
        answered += part
    return bytes(answered)


def until_closed(client: socket.socket) -> bytes:
    client.settimeout(PATIENCE)
    answered = bytearray()
    with suppress(ConnectionError):
        while part := client.recv(65536):
            answered += part
    return bytes(answered)


def test_clients_that_say_nothing_keep_no_one_from_a_page(running: WebServer) -> None:
    with ExitStack() as stack:
        clients(stack, running, 3 * admission.MAX_PAGES)
        assert ask(f"http://{HOST}:{running.port}/").status == 200


def test_clients_that_never_finish_their_request_keep_no_one_from_a_page(running: WebServer) -> None:
    with ExitStack() as stack:
        for client in clients(stack, running, 3 * admission.MAX_PAGES):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert ask(f"http://{HOST}:{running.port}/", timeout=PATIENCE).status == 200


def test_a_client_that_says_nothing_is_cut_off_in_time(running: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepted_connection, "CLIENT_SECONDS", 0.2)
    with ExitStack() as stack:
        [silent] = clients(stack, running, 1)
        until_closed(silent)


def test_a_request_must_be_over_in_time_however_steadily_it_drips(
    running: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepted_connection, "CLIENT_SECONDS", 0.5)
    with ExitStack() as stack:
        [client] = clients(stack, running, 1)
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
            until_closed(client)
        finally:
            stop.set()
            dripping.join()


def test_an_answer_must_be_taken_in_time(running: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepted_connection, "CLIENT_SECONDS", 0.5)
    with ExitStack() as stack:
        [client] = clients(stack, running, 1)
        client.sendall(request("/config"))
        assert status(client) == 200
        wait_until(lambda: running.open_connections == 0, "the connection is closed")


def test_clients_that_take_no_page_are_cut_off_for_others(running: WebServer) -> None:
    with ExitStack() as stack:
        for client in clients(stack, running, admission.MAX_PAGES):
            client.sendall(request("/config"))
            assert status(client) == 200
        assert ask(f"http://{HOST}:{running.port}/", timeout=PATIENCE).status == 200


def test_more_connections_than_there_are_places_push_out_the_oldest(running: WebServer) -> None:
    with ExitStack() as stack:
        first, *_ = clients(stack, running, server.MAX_IDLE_CONNECTIONS + 20)
        until_closed(first)
        assert ask(f"http://{HOST}:{running.port}/").status == 200


@pytest.mark.parametrize("sent", [b"GET /" + b"a" * 200_000, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000])
def test_a_request_that_is_too_long_is_refused(running: WebServer, sent: bytes) -> None:
    with ExitStack() as stack:
        [client] = clients(stack, running, 1)
        client.sendall(sent + b"\r\n\r\n")
        assert status(client) == 431


@pytest.mark.parametrize(
    "sent",
    [
        request("/", "Content-Length: 1000000", method="POST"),
        request("/", "Content-Length: 1000000", "Expect: 100-continue", method="POST"),
        request("/", "Transfer-Encoding: chunked", method="POST") + b"8000\r\n" + b"a" * 0x8000 + b"\r\n",
    ],
)
def test_a_body_that_is_too_long_is_refused(running: WebServer, sent: bytes) -> None:
    with ExitStack() as stack:
        [client] = clients(stack, running, 1)
        client.sendall(sent)
        assert status(client) == 413


def test_what_is_no_http_is_told_so(running: WebServer) -> None:
    with ExitStack() as stack:
        [client] = clients(stack, running, 1)
        client.sendall(b"\x00hello\r\n\r\n")
        assert status(client) == 400


def test_requests_that_come_together_are_answered_one_after_the_other(running: WebServer) -> None:
    with ExitStack() as stack:
        [client] = clients(stack, running, 1)
        client.sendall(request("/", "Content-Length: 3", method="POST") + b"abc" + request("/") + last_request("/no"))
        answered = whole(client, b'no page at "/no"\n')
        assert re.findall(rb"HTTP/1.1 (\d+)", answered) == [b"405", b"200", b"404"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_that_only_contains_an_address_names_no_other_page(method: str) -> None:
    async def reload() -> list[str]:
        raise AssertionError("not asked for")

    with serving(Views(Registry, lambda: None, lambda: None, reload, str)) as found, ExitStack() as stack:
        for path in ("/metrics://x/config", "/metrics://x/-/reload", "metrics://x/config"):
            [client] = clients(stack, found, 1)
            client.sendall(request(path, method=method))
            assert status(client) == (404 if method == "GET" else 405)


@pytest.mark.parametrize("path", ["http://x/config?a", "HTTPS://x/config", "http://x"])
def test_a_request_may_name_the_whole_address(running: WebServer, path: str) -> None:
    with ExitStack() as stack:
        [client] = clients(stack, running, 1)
        client.sendall(request(path))
        assert status(client) == 200


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
        wait_until(lambda: self.admission.waiting == number, f"{number} requests wait")

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
        assert gate.admission.waiting == 20, "all others still wait"
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
        assert gate.admission.waiting == 20, "all others still wait"
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


@contextmanager
def pages_under_way() -> Iterator[tuple[WebServer, threading.Semaphore]]:
    """A server whose every worker makes a page that does not end before the block does."""
    begun, may_end = threading.Semaphore(0), threading.Event()

    def status() -> str:
        begun.release()
        may_end.wait(PATIENCE)
        return SMALL

    with serving(pages(status)) as found:
        try:
            yield found, begun
        finally:
            may_end.set()


def test_health_is_answered_while_as_many_pages_are_made_as_can_be() -> None:
    with pages_under_way() as (found, begun), ExitStack() as stack:
        for client in clients(stack, found, admission.MAX_PAGES + 5):
            client.sendall(last_request())
        for _ in range(server.WORKERS):
            assert begun.acquire(timeout=PATIENCE)
        assert ask(f"http://{HOST}:{found.port}/-/healthy").status == 200


class HeldCollector(Collector):
    """Holds a page back in its middle until it is released, and remembers which thread makes the page."""

    def __init__(self) -> None:
        self.begun, self.released = threading.Event(), threading.Event()
        self.thread = 0

    def collect(self) -> list[Metric]:
        self.thread = threading.get_ident()
        self.begun.set()
        self.released.wait(PATIENCE)
        return []

    def describe(self) -> list[Metric]:
        return []


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_health_is_answered_while_the_page_of_256_targets_is_made(encoding: str) -> None:
    settings = Settings.model_validate(
        {
            "targets": [{"name": f"t{number}", "address": f"h:{number}"} for number in range(1, 257)],
            "workloads": [{"name": "chat", "batch_sizes": [1, 2, 4, 8]}],
        }
    )
    metrics = Metrics(layout(settings))
    metrics.configure(settings)
    for plan in plans(settings).values():
        metrics.announce(plan)
    held = HeldCollector()
    metrics.registry.process.register(held)
    loop_threads: list[int] = []

    def healthy() -> None:
        loop_threads.append(threading.get_ident())

    with serving(Views(lambda: metrics.registry, healthy, lambda: None, None, str)) as found, ExitStack() as stack:
        stack.callback(held.released.set)
        [scraper] = clients(stack, found, 1)
        scraper.sendall(request("/metrics", f"Accept-Encoding: {encoding}", "Connection: close"))
        assert held.begun.wait(PATIENCE)
        assert ask(f"http://{HOST}:{found.port}/-/healthy").status == 200
        assert held.thread not in loop_threads
        held.released.set()
        assert len(until_closed(scraper)) > 1_000_000


def test_other_pages_are_answered_while_many_metrics_pages_wait_for_each_other() -> None:
    metrics, held = Registry(), HeldCollector()
    metrics.process.register(held)
    asked_for = threading.Semaphore(0)

    def registry() -> Registry:
        asked_for.release()
        return metrics

    views = Views(registry, lambda: None, lambda: None, None, str)
    with serving(views) as found, ExitStack() as stack:
        stack.callback(held.released.set)
        scrapers = clients(stack, found, server.WORKERS + 2)
        for client in scrapers:
            client.sendall(request("/metrics"))
        for _ in scrapers:
            assert asked_for.acquire(timeout=PATIENCE)
        for path in ("/", "/config"):
            assert ask(f"http://{HOST}:{found.port}{path}").status == 200


def test_being_out_of_file_descriptors_is_reported_with_the_mend() -> None:
    reported: list[tuple[str, str]] = []
    with serving(report=lambda kind, line: reported.append((kind, line))) as found, socket.socket() as client:
        with no_more_files():
            client.connect((HOST, found.port))
            wait_until(lambda: reported, "the failed accept is reported")
        client.settimeout(PATIENCE)
        client.sendall(last_request("/-/healthy"))
        assert status(client) == 200, "it accepts again when it can"
    kind, line = reported[0]
    assert kind == "accept"
    assert line.startswith("no connection can be accepted (Too many open files): raise the limit of open files")


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process can open none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_stop_is_bounded_although_clients_take_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.2)
    with ExitStack() as stack:
        with serving() as found:
            silent, slow = clients(stack, found, 2)
            slow.sendall(request("/config"))
            assert status(slow) == 200
        assert found.open_connections == 0
        until_closed(silent)


def test_a_page_under_way_is_sent_whole_after_the_stop() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def page() -> str:
        begun.set()
        may_end.wait(PATIENCE)
        return SMALL

    with start_blocking_portal() as portal, ExitStack() as stack:
        found = WebServer(f"{HOST}:0", pages(page))
        life = portal.start_task_soon(found.serve)
        [client] = clients(stack, found, 1)
        client.sendall(last_request())
        assert begun.wait(PATIENCE)
        life.cancel()
        wait_until(lambda: _refused(found.port), "no one is accepted any more")
        may_end.set()
        assert whole(client, b"xxxxx")


def _refused(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_page_that_fails_by_a_bug_is_an_error_and_the_server_goes_on() -> None:
    def broken() -> str:
        raise ValueError("a bug")

    class BrokenCollector(HeldCollector):
        def collect(self) -> list[Metric]:
            raise ValueError("a bug")

    registry = Registry()
    registry.process.register(BrokenCollector())
    with serving(Views(lambda: registry, lambda: None, lambda: None, None, str, broken)) as found:
        assert ask(f"http://{HOST}:{found.port}/").status == 500
        for encoding in ("gzip", "identity"):
            assert ask(f"http://{HOST}:{found.port}/metrics", headers={"Accept-Encoding": encoding}).status == 500
        assert ask(f"http://{HOST}:{found.port}/-/healthy").status == 200


def test_actions_are_answered_with_what_they_return() -> None:
    async def reload() -> list[str]:
        return []

    async def probe(target: str, workload: str, batch_size: str) -> tuple[str, str]:
        return "200 OK", f"{target} {workload} {batch_size}"

    views = Views(Registry, lambda: None, lambda: None, reload, str, probe=probe)
    with serving(views) as found:
        assert ask(f"http://{HOST}:{found.port}/-/reload", "POST").text == "reloaded\n"
        answer = ask(f"http://{HOST}:{found.port}/probe?target=t&workload=w&batch_size=1")
        assert answer.text == "t w 1\n"


def tls_web_file(authority: Authority) -> WebFileState:
    pair = authority.sign("server", "IP:127.0.0.1")
    web = authority.folder / "web.yml"
    web.write_text(f"tls_server_config: {{cert_file: {pair.certificate}, key_file: {pair.key}}}\n")
    return WebFileState(web)


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
        one_more.sendall(b"\x16\x03\x01")
        gate.wait_for(1)


def test_a_client_that_never_shakes_hands_keeps_no_one_from_tls(tmp_path: Path) -> None:
    authority = Authority.found(tmp_path)
    with serving(web_file=tls_web_file(authority)) as found, ExitStack() as stack:
        silent, half = clients(stack, found, 2)
        half.sendall(b"\x16\x03\x01")  # the beginning of a handshake
        answer = curl(f"https://{HOST}:{found.port}/", "--cacert", str(authority.own.certificate))
        assert answer.status == 200
        assert silent.fileno() > 0


def test_a_port_that_is_taken_is_an_error_with_its_reason(running: WebServer) -> None:
    with pytest.raises(OSError, match="Address already in use"):
        WebServer(f"{HOST}:{running.port}", pages())


@pytest.mark.parametrize(
    ("listen", "shown"),
    [
        ("127.0.0.1:0", "127.0.0.1:{}"),
        ("[::1]:0", "[::1]:{}"),
        (":0", ":{} (every interface)"),
        ("0.0.0.0:0", "0.0.0.0:{} (every interface)"),
        ("[::]:0", "[::]:{} (every interface)"),
    ],
)
def test_its_address_has_the_real_port_and_says_when_it_is_every_interface(listen: str, shown: str) -> None:
    server = WebServer(listen, pages())
    server.close()
    assert server.address == shown.format(server.port)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_without_a_host_it_listens_on_ipv4_and_ipv6(address: str) -> None:
    if address == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    found = WebServer(":0", pages())
    with start_blocking_portal() as portal:
        life = portal.start_task_soon(found.serve)
        with socket.create_connection((address, found.port), PATIENCE) as client:
            client.sendall(last_request("/-/healthy"))
            assert status(client) == 200
        life.cancel()
