"""Names with several addresses: a dead one costs a quarter of a second at most, and once."""

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.observation import Failure, Outcome
from exporter.wire import addresses, sockets
from exporter.wire.addresses import HEAD_START, LAST_FOR, Address, Addresses, alternating
from exporter.wire.connection import ClientConnection
from exporter.wire.http_codec import Http2
from exporter.wire.sockets import Endpoint, TimedSocket
from tests.processes import free_port
from tests.router.http2_server import http2_server

NAME = "several.test"
LOOK_UP = socket.getaddrinfo


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that listens at 127.0.0.1, and of one at 127.0.0.2 that lets everybody wait: its queue is full."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield from full_queue(server.getsockname()[1])


def full_queue(port: int) -> Iterator[int]:
    with ExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        silent.bind(("127.0.0.2", port))
        silent.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.2", port))
        yield port


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the name stand for these addresses."""

    def stand_for(*hosts: str) -> None:
        def look_up(host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
            if host != NAME:
                return LOOK_UP(host, port, *rest, **more)
            if more.get("flags"):
                raise socket.gaierror(socket.EAI_NONAME, "not a number")
            return [found for one in hosts for found in LOOK_UP(one, port, *rest, **more)]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    return stand_for


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses to which a connection was begun."""
    found: list[str] = []

    class Watched(socket.socket):
        def connect_ex(self, address: Any) -> int:
            found.append(address[0])
            return super().connect_ex(address)

    monkeypatch.setattr(socket, "socket", Watched)
    return found


def test_a_silent_address_costs_its_time_once_and_that_is_no_setup_time(
    port: int, names: Callable[..., None], tried: list[str]
) -> None:
    names("127.0.0.2", "127.0.0.1")
    known, before = Addresses(NAME, port), time.perf_counter()
    opened = TimedSocket(Endpoint(NAME, port, addresses=known), 30.0)
    assert opened.begun - before >= HEAD_START
    opened.close()
    for _ in range(2):
        TimedSocket(Endpoint(NAME, port, addresses=known), 30.0).close()
    assert tried == ["127.0.0.2", *["127.0.0.1"] * 3]


def test_an_address_that_was_silent_is_tried_first_again_after_a_while(
    port: int, names: Callable[..., None], tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names("127.0.0.2", "127.0.0.1")
    known = Addresses(NAME, port)
    TimedSocket(Endpoint(NAME, port, addresses=known), 30.0).close()
    now = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: now() + 2 * LAST_FOR)
    TimedSocket(Endpoint(NAME, port, addresses=known), 30.0).close()
    assert tried == ["127.0.0.2", "127.0.0.1"] * 2


def test_an_address_that_refuses_is_followed_by_the_next_at_once(
    port: int, names: Callable[..., None], tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "HEAD_START", 1000.0)
    names("127.0.0.3", "127.0.0.3", "127.0.0.4", "127.0.0.1")
    TimedSocket(Endpoint(NAME, port), 30.0).close()
    assert tried == ["127.0.0.3", "127.0.0.4", "127.0.0.1"]


def test_the_handshake_has_the_time_that_is_left(names: Callable[..., None]) -> None:
    with http2_server(lambda peer, stream: None) as server:
        for port in full_queue(server.port):
            names("127.0.0.2", "127.0.0.1")
            ClientConnection(Endpoint(NAME, port), Http2("h", "http"), 30.0).close()


def test_a_failure_tells_what_became_of_each_address(port: int, names: Callable[..., None]) -> None:
    names("127.0.0.2", "127.0.0.3")
    with pytest.raises(Failure) as caught:
        TimedSocket(Endpoint(NAME, port), 2 * HEAD_START)
    assert caught.value.outcome is Outcome.UNREACHABLE
    assert caught.value.detail == (
        f"{NAME}:{port}: none of its addresses answers: 127.0.0.3 (Connection refused), 127.0.0.2 (timed out)"
    )


def test_a_failure_tells_of_some_addresses_where_there_are_many(names: Callable[..., None]) -> None:
    port = free_port()
    names(*(f"127.0.0.{last}" for last in range(3, 9)))
    with pytest.raises(Failure, match=r"127\.0\.0\.5 \(Connection refused\), 3 more$"):
        TimedSocket(Endpoint(NAME, port), 5.0)


def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def look_up(host: str, port: int, *rest: Any, flags: int = 0, **more: Any) -> list[Any]:
        if not flags:
            done.wait(60)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(Failure, match="the name was not resolved in time"):
        TimedSocket(Endpoint(NAME, 1), 0.2)
    done.set()


def test_a_name_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(Failure, match=r"several\.test:1: Name or service not known"):
        TimedSocket(Endpoint(NAME, 1), 5.0)


def test_a_family_that_the_machine_lacks_is_passed_over(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Address(10_000, ("::1", port, 0, 0))
    found = [lacking, Address(socket.AF_INET, ("127.0.0.1", port))]
    monkeypatch.setattr(addresses, "resolved", lambda *_: found)
    TimedSocket(Endpoint(NAME, port), 5.0).close()
    monkeypatch.setattr(addresses, "resolved", lambda *_: [lacking])
    with pytest.raises(Failure, match=os.strerror(errno.EAFNOSUPPORT)):
        TimedSocket(Endpoint(NAME, port), 5.0)


@given(st.lists(st.tuples(st.sampled_from([2, 10]), st.integers()).map(lambda pair: Address(pair[0], (pair[1],)))))
def test_families_alternate_as_long_as_there_are_both_and_no_address_is_lost(found: list[Address]) -> None:
    order = alternating(found)
    assert sorted(order) == sorted(found)
    for family in (2, 10):
        assert [one for one in order if one.family == family] == [one for one in found if one.family == family]
    both = 2 * min(sum(one.family == family for one in found) for family in (2, 10))
    assert all(a.family != b.family for a, b in pairwise(order[:both]))
    assert order[:1] == found[:1]


# --- a system that lacks a socket option


@pytest.mark.parametrize("number", [errno.ENOPROTOOPT, errno.EPERM, errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("option", [socket.TCP_NODELAY, sockets.SO_TIMESTAMPNS])
def test_without_a_socket_option_the_clock_is_read_after_reading(
    number: int, option: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Lacking(socket.socket):
        def setsockopt(self, level: int, name: int, *rest: Any) -> None:
            if name == option:
                raise OSError(number, os.strerror(number))
            super().setsockopt(level, name, *rest)

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(socket, "socket", Lacking)
        sockets._say_once.cache_clear()
        with caplog.at_level("DEBUG", "tgi_probe"):
            opened = [TimedSocket(Endpoint("127.0.0.1", server.getsockname()[1]), 5.0) for _ in range(3)]
        other, _ = server.accept()
        other.sendall(b"x")
        before = time.perf_counter()
        while (arrival := opened[0].receive()) is None:
            pass
        assert arrival.data == b"x"
        assert before - 1 < arrival.at <= time.perf_counter()
        for one in opened:
            one.close()
        other.close()
    assert len(caplog.messages) == 1
    assert "TCP_NODELAY" in caplog.text or "SO_TIMESTAMPNS" in caplog.text
