"""The connections to one target: opened, warmed and checked before they are needed, kept alive between probes."""

import threading
import time
from http import HTTPStatus

from exporter.observation import Failure, Outcome, Setup
from exporter.probes.router.protocol import BodyReader, MetricsPage, PageReader, RouterProtocol
from exporter.probes.router.server_errors import refused
from exporter.wire.connection import ClientConnection
from exporter.wire.delays import PROCESS
from exporter.wire.exchanges import Exchange, Exchanges
from exporter.wire.http_codec import Http1, HttpRequest

# To open one connection.
OPEN_CONNECTION_SECONDS = 5.0
# How often to look whether the daemon stops. It costs no accuracy: arrivals carry their instants.
STOP_CHECK_SECONDS = 0.1
SHORTEST = 0.001
# A warming request that takes longer only delays the probe, so there is none for a while afterwards.
WARM_TIMEOUT = 1.0
UNWARMED_SECONDS = 60.0


class Pool:
    """One thread uses it. Others may only call `read` and set `closing`."""

    def __init__(self, protocol: RouterProtocol) -> None:
        self._protocol = protocol
        self.closing = threading.Event()
        self._free: list[ClientConnection] = []
        self._setups: list[Setup] = []
        self._unwarmed_until = float("-inf")

    def setups(self) -> tuple[Setup, ...]:
        """The connections opened since the last call."""
        found = tuple(self._setups)
        self._setups.clear()
        return found

    def take(self, timeout: float = OPEN_CONNECTION_SECONDS) -> ClientConnection:
        """A connection for a request that is sent at once: a kept one, checked and warmed, or a new one.

        Raises Failure (unreachable).
        """
        deadline = time.perf_counter() + timeout
        warming = self._protocol.warming()
        while (connection := self._kept(deadline)) is not None:
            if not connection.idle or warming is None or time.perf_counter() < self._unwarmed_until:
                return connection
            page = PageReader()
            try:
                self._fetch(connection, warming, page, min(WARM_TIMEOUT, max(SHORTEST, deadline - time.perf_counter())))
            except Failure as failure:
                if failure.outcome is Outcome.TIMEOUT:
                    self._unwarmed_until = time.perf_counter() + UNWARMED_SECONDS
                continue
            # After a 5xx a server may close the connection without saying so in the answer.
            if connection.codec.usable and page.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                return connection
            connection.close()
        return self._open(max(SHORTEST, deadline - time.perf_counter()))

    def _kept(self, deadline: float) -> ClientConnection | None:
        while self._free:
            connection = self._free.pop()
            if connection.still_good(deadline):
                return connection
            connection.close()
        return None

    def _open(self, timeout: float) -> ClientConnection:
        endpoint = self._protocol.endpoint()
        with PROCESS.watch() as watch:
            connection = ClientConnection(endpoint, self._protocol.codec(endpoint), timeout)
            self._setups.append(Setup(connection.begun, connection.ready, watch.held_up().total))
        return connection

    def keep(self, connection: ClientConnection) -> None:
        """Give a connection back. It is closed where it cannot be used any more."""
        if connection.codec.usable and not self.closing.is_set():
            self._free.append(connection)
        else:
            connection.close()

    def ask(self, request: HttpRequest, timeout: float) -> bytes:
        """The answer to a request that is no stream, on any connection. Raises Failure."""
        deadline = time.perf_counter() + timeout
        connection = self._kept(deadline) or self._open(timeout)
        reader = self._protocol.body_reader()
        body = self._fetch(connection, request, reader, max(SHORTEST, deadline - time.perf_counter()))
        self.keep(connection)
        return body

    def read(self, page: MetricsPage) -> bytes:
        """The page, on a connection of its own. Any thread may call it. Raises Failure."""
        connection = ClientConnection(page.endpoint, Http1(page.endpoint.authority), OPEN_CONNECTION_SECONDS)
        try:
            return self._fetch(connection, page.request, PageReader(refused), OPEN_CONNECTION_SECONDS)
        finally:
            connection.close()

    def fetch(self, request: HttpRequest) -> bytes:
        """As `ask`, on a connection of its own. Any thread may call it."""
        endpoint = self._protocol.endpoint()
        connection = ClientConnection(endpoint, self._protocol.codec(endpoint), OPEN_CONNECTION_SECONDS)
        try:
            return self._fetch(connection, request, self._protocol.body_reader(), OPEN_CONNECTION_SECONDS)
        finally:
            connection.close()

    def _fetch(self, connection: ClientConnection, request: HttpRequest, reader: BodyReader, timeout: float) -> bytes:
        """The whole answer. Raises Failure, after closing the connection."""
        exchanges, exchange = Exchanges(), Exchange(connection, request, reader)
        exchanges.send(exchange)
        deadline = time.perf_counter() + timeout
        while len(exchanges) and time.perf_counter() < deadline and not self.closing.is_set():
            exchanges.poll(min(deadline, time.perf_counter() + STOP_CHECK_SECONDS))
        exchanges.abort(Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", f"no answer within {timeout:.3g} s"))
        exchanges.close()
        if exchange.failure is not None:
            connection.close()
            failure = self._protocol.without_secrets(exchange.failure)
            detail = failure.detail.removeprefix(f"{connection.where}: ")
            raise Failure(failure.outcome, failure.code, f"{connection.where}{request.path}: {detail}")
        return reader.content

    def drop_kept(self) -> None:
        """Close the kept connections. The next ones are new."""
        while self._free:
            self._free.pop().close()

    def close(self) -> None:
        """Call it from the thread that uses the pool."""
        self.closing.set()
        self.drop_kept()
