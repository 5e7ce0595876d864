"""A connection to a server: one socket, and the HTTP state on it."""

import selectors
import time
from collections.abc import Callable

from exporter.observation import Failure
from exporter.wire.detect import NO_HTTP2
from exporter.wire.http_codec import BrokenConnection, Http2, HttpCodec
from exporter.wire.sockets import Endpoint, TimedSocket, new_selector, unreachable

# A connection that was unused for this many seconds is checked before use: a proxy may have closed it. It is also
# warmed, because the server's thread may be slow to wake up.
IDLE_SECONDS = 1.0


class ClientConnection:
    """One connection. It carries one request at a time."""

    def __init__(self, endpoint: Endpoint, codec: HttpCodec, timeout: float) -> None:
        """Opens the connection until a request may be sent, within `timeout` seconds. Raises Failure (unreachable)."""
        self.where = endpoint.where
        deadline = time.perf_counter() + timeout
        self.socket = TimedSocket(endpoint, timeout)
        self.codec = codec
        if endpoint.tls is not None and isinstance(codec, Http2) and self.socket.protocol != "h2":
            self.socket.close()
            raise unreachable(self.where, f"TLS: {NO_HTTP2}")
        try:
            self.send_now(codec.first_bytes())
            self._receive_until(codec.accepts_requests, deadline)
        except Failure:
            self.socket.close()
            raise
        self.requests = 0
        self.begun, self.ready = self.socket.begun, time.perf_counter()
        self.used = self.ready

    def send_now(self, data: bytes) -> None:
        self.socket.queue(data)
        self.socket.flush()

    def _receive_until(self, done: Callable[[], bool], deadline: float) -> None:
        with new_selector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            while not done():
                if not selector.select(max(0.0, deadline - time.perf_counter())):
                    raise unreachable(self.where, f"connected, but {self.codec.missing}")
                self._receive_waiting()

    def _receive_waiting(self) -> None:
        """Read what has come between two requests. Raises Failure where the connection cannot be used any more."""
        while (arrival := self.socket.receive()) is not None:
            try:
                self.codec.receive_idle(self.socket.decrypt(arrival.data))
            except BrokenConnection as error:
                raise unreachable(self.where, str(error)) from None
            self.send_now(self.codec.data_to_send())
            if not arrival.data or not self.codec.usable:
                raise unreachable(self.where, self.codec.ending)

    def still_good(self, deadline: float) -> bool:
        """Whether a request may be sent now. An idle HTTP/2 connection is pinged first, which also warms it."""
        try:
            self._receive_waiting()
            if isinstance(self.codec, Http2) and self.idle:
                before = self.codec.pings
                self.send_now(self.codec.ping())
                self._receive_until(lambda: isinstance(self.codec, Http2) and self.codec.pings > before, deadline)
                self.used = time.perf_counter()
        except Failure:
            return False
        return self.codec.usable and self.codec.accepts_requests()

    @property
    def idle(self) -> bool:
        return time.perf_counter() - self.used > IDLE_SECONDS

    def close(self) -> None:
        self.socket.close()
