"""Slow, silent and greedy clients against a server: others still get their page."""

import os
import re
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from exporter.metrics.collector import Registry
from exporter.web import accepted_connection, admission, server
from exporter.web.routes import Views
from exporter.web.server import WebServer
from tests.processes import PATIENCE, ask, wait_until
from tests.web.certificates import Authority
from tests.web.clients import (
    HOST,
    SMALL,
    clients,
    last_request,
    pages,
    request,
    serving,
    status,
    tls_web_file,
    until_closed,
    whole,
)
from tests.web.test_curl import curl


@pytest.fixture
def running() -> Iterator[WebServer]:
    with serving() as found:
        yield found


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
        wait_until(lambda: not running._connections, "the connection is closed")


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


def test_connections_that_wait_for_their_next_request_leave_places_for_new_clients(running: WebServer) -> None:
    with ExitStack() as stack:
        for kept in clients(stack, running, server.MAX_IDLE_CONNECTIONS):
            kept.sendall(request("/-/healthy"))
            assert status(kept) == 200
        early, *_ = clients(stack, running, server.MAX_KEPT_CONNECTIONS // 2)
        early.sendall(last_request())
        assert status(early) == 200


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


def test_a_head_with_a_body_that_is_too_long_gets_the_status_and_no_body_and_is_no_bug() -> None:
    reported: list[tuple[str, str]] = []
    with serving(report=lambda kind, line: reported.append((kind, line))) as found, ExitStack() as stack:
        [client] = clients(stack, found, 1)
        client.sendall(request("/", "Content-Length: 1000000", method="HEAD"))
        answered = until_closed(client)
        wait_until(lambda: not found._connections, "the connection is closed")
    assert answered.startswith(b"HTTP/1.1 413 ")
    assert answered.endswith(b"\r\n\r\n")
    assert not reported


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
        assert not found._connections
        until_closed(silent)


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


def test_a_client_that_never_shakes_hands_keeps_no_one_from_tls(tmp_path: Path) -> None:
    authority = Authority.found(tmp_path)
    with serving(web_file=tls_web_file(authority)) as found, ExitStack() as stack:
        silent, half = clients(stack, found, 2)
        half.sendall(b"\x16\x03\x01")  # the beginning of a handshake
        answer = curl(f"https://{HOST}:{found.port}/", "--cacert", str(authority.own.certificate))
        assert answer.status == 200
        assert silent.fileno() > 0


def test_clients_that_only_begin_to_shake_hands_are_pushed_out(tmp_path: Path) -> None:
    """They wait for the pace, and then for nothing. All together they must not take every place."""
    with serving(web_file=tls_web_file(Authority.found(tmp_path))) as found, ExitStack() as stack:
        first, *others = clients(stack, found, server.MAX_IDLE_CONNECTIONS + 20)
        for client in (first, *others):
            with suppress(OSError):  # it may have been pushed out already
                client.sendall(b"\x16")
        until_closed(first)
        wait_until(lambda: len(found._connections) <= server.MAX_IDLE_CONNECTIONS, "there are no more than that")


def test_a_client_that_had_an_answer_may_wait_longer_with_its_next_request(
    running: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Prometheus waits between two scrapes."""
    monkeypatch.setattr(accepted_connection, "CLIENT_SECONDS", 0.2)
    with ExitStack() as stack:
        scraper, silent = clients(stack, running, 2)
        scraper.sendall(request())
        assert b"200 OK" in whole(scraper, SMALL.encode())
        until_closed(silent)
        until_closed(clients(stack, running, 1)[0])  # a second one that began later is cut off too
        scraper.sendall(request())
        assert b"200 OK" in whole(scraper, SMALL.encode())


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
