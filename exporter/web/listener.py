"""cheroot's server with limits, so that clients can neither slow the probes down nor keep others from their page.

- A connection costs a thread only once it has sent something, and only for a bounded time.
- Where threads run out, the one that waits longest for its client is cut off.
- Requests are let in at a bounded pace, all connections together: pages are made in the process that measures. Where
  more ask, whoever has asked least lately is first, and a health page does not wait behind its address' other pages.
"""

import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cheroot import wsgi
from cheroot.server import HTTPConnection, HTTPRequest

from exporter.web.access import HEALTH
from exporter.web.current import Current
from exporter.web.fair_queue import Turns
from exporter.web.tls import FreshContext, allowed_name
from exporter.web.token_bucket import Bucket

THREADS = 16
CONNECTIONS = 128
# With those who stand in line: they are not cut off, but beyond this many no one is accepted.
MOST_CONNECTIONS = 2 * CONNECTIONS
# For a request, from its first byte to its last; and for taking an answer.
CLIENT_SECONDS = 10
# When all threads wait for clients, one may be this slow before it is cut off for others.
STARVED_SECONDS = 0.2
LOOK_SECONDS = 0.1
REQUEST_BYTES = 16 * 1024
# Scrapes, health checks and a person's clicks are far below; thousands would take the interpreter from the probes.
PACE = 0.02
PACE_BURST = 25
# Of new connections: to accept one takes the interpreter too. Clients that wait for their answers are far below.
ACCEPT_PACE = 0.005
HEALTH_LINES = tuple(f"{method} {path} ".encode() for method in ("GET", "HEAD") for path in sorted(HEALTH))
PLAIN_ON_TLS = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nthis port speaks HTTPS only; use https://\n"
)


class Request(HTTPRequest):
    """Tells its connection when it is the client that is waited for."""

    def respond(self) -> None:
        self.conn.waiting_since, self.conn.answering = None, True
        try:
            super().respond()
        finally:
            self.conn.answering = False

    def send_headers(self) -> None:
        with self.conn.waits():
            super().send_headers()

    def write(self, chunk: bytes) -> None:
        with self.conn.waits():
            super().write(chunk)


class Connection(HTTPConnection):
    """One client. `waiting_since` is set while a thread is held up by it."""

    RequestHandlerClass = Request

    def __init__(self, server: "Listener", sock: socket.socket, makefile: Any) -> None:
        super().__init__(server, sock, makefile)
        self.spoke = False
        self.in_line = False
        self.had_turn = False
        self.answering = False
        self.waiting_since: float | None = None
        self._hands_shaken = not server.current.speaks_tls
        server.opened(self)

    @contextmanager
    def waits(self) -> Iterator[None]:
        outer, self.waiting_since = self.waiting_since, self.waiting_since or time.monotonic()
        self.server.somebody_waits.set()
        try:
            yield
        finally:
            self.waiting_since = outer

    @property
    def asker(self) -> Hashable:
        """With whom it shares its turns. One that stays open is a client of its own. What a new one is cannot be known;
        but it is no other client's health check that a crowd of them may delay: behind a sidecar's address are many.
        """
        return self if self.had_turn else (self.remote_addr, self._asks_for_health())

    def _asks_for_health(self) -> bool:
        if self.server.current.speaks_tls:
            return False  # not to be seen before the hands are shaken
        with suppress(OSError):
            seen: bytes = self.socket.recv(32, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            return seen.startswith(HEALTH_LINES)
        return False

    def communicate(self) -> bool:
        try:
            with self.waits():
                return (self._hands_shaken or self._shake_hands()) and bool(super().communicate())  # type: ignore[no-untyped-call]
        except OSError:
            return False  # gone, or cut off

    def _shake_hands(self) -> bool:
        try:
            self.socket.do_handshake()
        except ssl.SSLError as error:
            if error.reason == "HTTP_REQUEST":
                with socket.socket(fileno=os.dup(self.socket.fileno())) as plain:
                    plain.sendall(PLAIN_ON_TLS)
            else:
                self.server.refused(self.remote_addr, f"no TLS handshake ({error.reason or error})")
            return False
        tls = self.server.current.config.tls_server_config
        if tls is not None and not allowed_name(tls.client_allowed_sans, self.socket.getpeercert()):
            self.server.refused(self.remote_addr, "its certificate has none of the client_allowed_sans")
            return False
        self._hands_shaken = True
        return True

    def cut(self) -> None:
        """From any thread: whoever waits for this client is told that it is gone."""
        with suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self.server.closed(self)
        # An exception in here would end cheroot's thread, and with it the whole server.
        with suppress(OSError, ValueError):
            super().close()


def _worth(conn: Connection) -> int:
    """The least is cut off first, and of several the oldest: the silent, then those that a thread waits for."""
    return 0 if not conn.had_turn else 1 if conn.waiting_since is not None else 2


class Listener(wsgi.Server):
    """Serves a WSGI application until stopped. Raises OSError from `prepare` when the address cannot be had."""

    ConnectionClass = Connection
    max_request_header_size = REQUEST_BYTES
    max_request_body_size = REQUEST_BYTES
    keep_alive_conn_limit = CONNECTIONS

    def __init__(
        self, address: tuple[str, int], application: Any, current: Current, report: Callable[[str, str], None]
    ) -> None:
        super().__init__(
            address,
            application,
            numthreads=THREADS,
            server_name="tgi-probe",
            request_queue_size=CONNECTIONS,
            timeout=CLIENT_SECONDS,
            shutdown_timeout=2,
        )
        self.current = current
        self._report = report
        self.pause: Callable[[float], None] = time.sleep
        self.clock: Callable[[], float] = time.monotonic
        self._turns: Turns[Connection] = Turns(PACE, PACE_BURST)
        self._accepts = Bucket(ACCEPT_PACE, CONNECTIONS)
        self._somebody_stands = threading.Event()
        self.somebody_waits = threading.Event()
        self._open: dict[Connection, None] = {}
        self._lock = threading.Lock()
        if current.speaks_tls:
            self.ssl_adapter = FreshContext(lambda: current.context)

    def serve(self) -> None:
        threading.Thread(target=self._look_after_threads, name="exposition-limits", daemon=True).start()
        threading.Thread(target=self._let_in, name="exposition-turns", daemon=True).start()
        super().serve()

    def stop(self) -> None:
        super().stop()
        self._somebody_stands.set()
        while (conn := self._turns.next(self.clock())) is not None:
            conn.close()

    def process_conn(self, conn: Connection) -> None:
        """From the accepting thread. A new connection is put aside until it says something."""
        if not conn.spoke:
            conn.spoke = True
            self.pause(self._accepts.wait(self.clock()))
            self.put_conn(conn)
            return
        asker, now = conn.asker, self.clock()
        if self._has_idle_thread() and self._turns.at_once(asker, now):
            self._begin(conn, now)
        else:
            conn.in_line = True
            self._turns.stand(asker, conn, now)
            self._somebody_stands.set()

    def _let_in(self) -> None:
        """Gives those in line their turns. Chosen as late as can be: when there is a turn, and a thread for it."""
        while self.ready:
            if not self._turns.standing:
                self._somebody_stands.wait(timeout=2)
                self._somebody_stands.clear()
            elif not self._has_idle_thread():
                self.pause(PACE)
            else:
                self.pause(self._turns.wait(self.clock()))
                now = self.clock()
                conn = self._turns.next(now)
                if conn is not None:
                    self._begin(conn, now)

    def _begin(self, conn: Connection, now: float) -> None:
        conn.in_line, conn.had_turn = False, True
        self._turns.had_turn(conn, now)
        super().process_conn(conn)

    def _has_idle_thread(self) -> bool:
        return bool(self.requests.idle > self.requests.qsize)

    def opened(self, conn: Connection) -> None:
        with self._lock:
            self._open[conn] = None
            idle = [one for one in self._open if not one.answering and not one.in_line]
            victim = min(idle, key=_worth) if len(idle) > CONNECTIONS else None
        if victim is not None:
            victim.cut()
        while self.ready and len(self._open) > MOST_CONNECTIONS:
            self.pause(PACE)

    def closed(self, conn: Connection) -> None:
        with self._lock:
            self._open.pop(conn, None)
        self._turns.forget(conn)

    def _look_after_threads(self) -> None:
        while self.ready:
            self.somebody_waits.wait(timeout=2)  # between requests it sleeps, but for a look now and then
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            with self._lock:
                waiting = [(conn.waiting_since, conn) for conn in self._open]
            if not any(since is not None for since, _ in waiting):
                self.somebody_waits.clear()
                continue
            held = sorted(((since, conn) for since, conn in waiting if since is not None), key=lambda pair: pair[0])
            starved = self.requests.qsize + self._turns.standing if not self.requests.idle else 0
            for number, (since, conn) in enumerate(held):
                if now - since > (STARVED_SECONDS if number < starved else CLIENT_SECONDS):
                    conn.cut()

    def refused(self, client: str, why: str) -> None:
        self._report("client", f"a client was refused: {client}: {why}")

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        """What clients do wrong is theirs; only a bug of ours is worth a line."""
        error = sys.exception()
        if traceback and error is not None and not isinstance(error, OSError):
            self._report("page", f"a page failed by a bug of tgi-probe: {type(error).__name__}: {error}")
