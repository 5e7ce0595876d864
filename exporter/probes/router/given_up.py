"""Requests whose stream ended early, and which the server is to be told about by their ids."""

import time
from collections import deque
from collections.abc import Iterable

from exporter.observation import Failure, Outcome
from exporter.probes.router.protocol import RouterProtocol
from exporter.wire.connection import ClientConnection
from exporter.wire.exchanges import Exchange, Exchanges

# Seconds for all the calls. A server that hangs is told at the next connecting.
TELL_SECONDS = 2.0
# A server that stays away for long has none of the older requests any more.
MOST_KEPT = 4096
AT_ONCE = 256


class GivenUp:
    """One thread adds, one tells."""

    def __init__(self, protocol: RouterProtocol) -> None:
        self._protocol = protocol
        self._ids: deque[str] = deque(maxlen=MOST_KEPT)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, exchanges: Iterable[Exchange]) -> None:
        """Those of the exchanges, which have ended, whose request the server may still work on."""
        for exchange in exchanges:
            if exchange.request_id and exchange.failure is not None and exchange.sent and not exchange.not_begun:
                self._ids.append(exchange.request_id)

    def tell(self, timeout: float = TELL_SECONDS) -> None:
        """Tell the server, on a connection of its own: those of the requests may be full. Raises Failure."""
        until = time.perf_counter() + timeout
        while self._ids:
            ids = [self._ids[number] for number in range(min(AT_ONCE, len(self._ids)))]
            try:
                self._call(ids, until)
            except Failure as failure:
                if failure.outcome not in (Outcome.UNREACHABLE, Outcome.TIMEOUT):
                    self._drop(ids)  # it will refuse them again
                raise
            self._drop(ids)

    def _drop(self, ids: list[str]) -> None:
        for _ in ids:
            self._ids.popleft()

    def _call(self, ids: list[str], until: float) -> None:
        requests = self._protocol.abort(ids)
        if not requests:
            return
        endpoint = self._protocol.endpoint()
        connection = ClientConnection(endpoint, self._protocol.codec(endpoint), max(0.001, until - time.perf_counter()))
        exchanges = Exchanges()
        try:
            for request in requests:
                exchange = Exchange(connection, request, self._protocol.body_reader())
                exchanges.send(exchange)
                while len(exchanges) and time.perf_counter() < until:
                    exchanges.poll(until)
                exchanges.abort(Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", f"no answer to {request.path}"))
                if exchange.failure is not None:
                    raise exchange.failure
        finally:
            exchanges.close()
            connection.close()
