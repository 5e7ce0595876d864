"""The connections to one target: opened, warmed and checked before they are needed, kept alive between probes."""

import threading
import time
from collections.abc import Callable
from http import HTTPStatus

from exporter.observation import Failure, Outcome, Setup
from exporter.probes.deadline import DEADLINE_EXCEEDED
from exporter.probes.router.protocol import BodyReader, MetricsPage, PageReader, RouterProtocol
from exporter.wire.connection import ClientConnection
from exporter.wire.delays import PROCESS, Delays
from exporter.wire.exchanges import Exchange, Exchanges
from exporter.wire.http_codec import HttpRequest

CONNECT_TIMEOUT = 5.0
# How often an exchange looks whether the daemon wants to stop. It costs no accuracy: arrivals carry their instants.
LOOK = 0.1
SHORTEST = 0.001
# A warming request that takes longer keeps the probe waiting for nothing; it is not tried again for a while.
WARM_TIMEOUT = 1.0
UNWARMED_SECONDS = 60.0


class Pool:
    """Used by one thread; only `closing` may be set by another."""

    def __init__(
        self, protocol: RouterProtocol, clock: Callable[[], float] = time.perf_counter, delays: Delays = PROCESS
    ) -> None:
        self._delays = delays
        self.closing = threading.Event()
        self._protocol = protocol
        self._clock = clock
        self._free: list[ClientConnection] = []
        self._setups: list[Setup] = []
        self._unwarmed_until = float("-inf")

    def setups(self) -> tuple[Setup, ...]:
        """The connections opened since last asked."""
        found = tuple(self._setups)
        self._setups.clear()
        return found

    def take(self, timeout: float = CONNECT_TIMEOUT) -> ClientConnection:
        """A connection on which a request may be sent at once: a kept one that is still good, warmed, or a new one.

        Raises Failure (unreachable).
        """
        deadline = self._clock() + timeout
        warming = self._protocol.warming()
        while (connection := self._kept(deadline)) is not None:
            if not connection.idle or warming is None or self._clock() < self._unwarmed_until:
                return connection
            page = PageReader()
            try:
                self.fetch(connection, warming, page, min(WARM_TIMEOUT, max(SHORTEST, deadline - self._clock())))
            except Failure as failure:
                if failure.outcome is Outcome.TIMEOUT:
                    self._unwarmed_until = self._clock() + UNWARMED_SECONDS
                continue
            # After an error of its own a server may close the connection, and not say so in the answer.
            if connection.codec.usable and page.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                return connection
            connection.close()
        return self._open(max(SHORTEST, deadline - self._clock()))

    def _kept(self, deadline: float) -> ClientConnection | None:
        while self._free:
            connection = self._free.pop()
            if connection.still_good(deadline):
                return connection
            connection.close()
        return None

    def _open(self, timeout: float) -> ClientConnection:
        endpoint = self._protocol.endpoint()
        with self._delays.watch() as watch:
            connection = ClientConnection(endpoint, self._protocol.codec(endpoint), timeout, self._clock)
            self._setups.append(Setup(connection.begun, connection.ready, watch.held().total))
        return connection

    def keep(self, connection: ClientConnection) -> None:
        """Give a connection back."""
        if connection.codec.usable and not self.closing.is_set():
            self._free.append(connection)
        else:
            connection.close()

    def ask(self, request: HttpRequest, timeout: float) -> bytes:
        """One request that is no stream, on whatever connection. Raises Failure."""
        deadline = self._clock() + timeout
        connection = self._kept(deadline) or self._open(timeout)
        body = self.fetch(connection, request, self._protocol.whole(), max(SHORTEST, deadline - self._clock()))
        self.keep(connection)
        return body

    def visit(self, place: MetricsPage, answer: BodyReader, timeout: float = CONNECT_TIMEOUT) -> bytes:
        """One request on a connection of its own. Raises Failure."""
        connection = ClientConnection(place.endpoint, place.codec, timeout, self._clock)
        try:
            return self.fetch(connection, place.request, answer, timeout)
        finally:
            connection.close()

    def fetch(self, connection: ClientConnection, request: HttpRequest, answer: BodyReader, timeout: float) -> bytes:
        """Send on this connection and wait for the whole answer. Raises Failure; the connection is closed then."""
        exchanges = Exchanges(self._clock)
        exchange = Exchange(connection, request, answer)
        exchanges.send(exchange)
        deadline = self._clock() + timeout
        while len(exchanges) and self._clock() < deadline and not self.closing.is_set():
            exchanges.poll(min(deadline, self._clock() + LOOK))
        exchanges.abort(Failure(Outcome.TIMEOUT, DEADLINE_EXCEEDED, f"no answer within {timeout:.3g} s"))
        exchanges.close()
        if exchange.failure is not None:
            connection.close()
            failure = self._protocol.discreet(exchange.failure)
            said = failure.detail.removeprefix(f"{connection.where}: ")
            raise Failure(failure.outcome, failure.code, f"{connection.where}{request.path}: {said}")
        return answer.content

    def drop_kept(self) -> None:
        """Close the connections that are kept: the next ones are new."""
        while self._free:
            self._free.pop().close()

    def close(self) -> None:
        """From the thread that uses the pool."""
        self.closing.set()
        self.drop_kept()
