"""cheroot's server with limits, so that clients can neither slow the probes down nor keep others from their page.

- A connection costs a thread only once it has sent something, and only for a bounded time.
- Where threads run out, the one that waits longest for its client is cut off.
- Requests are let in at a bounded pace, all connections together: pages are made in the process that measures.
"""

import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cheroot import wsgi
from cheroot.server import HTTPConnection, HTTPRequest

from exporter.web.bucket import Bucket
from exporter.web.current import Current
from exporter.web.tls import FreshContext, allowed_name

THREADS = 16
CONNECTIONS = 128
# For a request, from its first byte to its last; and for taking an answer.
CLIENT_SECONDS = 10
# When all threads wait for clients, one may be this slow before it is cut off for others.
STARVED_SECONDS = 0.2
LOOK_SECONDS = 0.1
REQUEST_BYTES = 16 * 1024
# Scrapes, health checks and a person's clicks are far below; thousands would take the interpreter from the probes.
PACE = 0.02
PACE_BURST = 25
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
        self._pace = Bucket(PACE, PACE_BURST)
        self.somebody_waits = threading.Event()
        self._open: dict[Connection, None] = {}
        self._lock = threading.Lock()
        if current.speaks_tls:
            self.ssl_adapter = FreshContext(lambda: current.context)

    def serve(self) -> None:
        threading.Thread(target=self._look_after_threads, name="exposition-limits", daemon=True).start()
        super().serve()

    def process_conn(self, conn: Connection) -> None:
        """From the accepting thread. A new connection is put aside until it says something."""
        if not conn.spoke:
            conn.spoke = True
            self.put_conn(conn)
            return
        self.pause(self._pace.wait(time.monotonic()))
        super().process_conn(conn)

    def opened(self, conn: Connection) -> None:
        with self._lock:
            self._open[conn] = None
            idle = (one for one in self._open if not one.answering)
            oldest = next(idle, None) if len(self._open) > CONNECTIONS else None
        if oldest is not None:
            oldest.cut()

    def closed(self, conn: Connection) -> None:
        with self._lock:
            self._open.pop(conn, None)

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
            starved = self.requests.qsize if not self.requests.idle else 0
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
