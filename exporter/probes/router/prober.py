"""Probes through a router: n requests, each a stream on a connection of its own, started together.

What must hold in here, always: nothing that happens before the start is inside a measured duration; a request that is
given up is cancelled, so that the server stops working on it; a connection with an unfinished answer is never used
again.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import NOT_JUDGED, Failure, Outcome, Stream
from exporter.plan.targets import Facts
from exporter.probes.disturbed import mark_disturbed
from exporter.probes.interface import Abandoned, OwnRequests, Result
from exporter.probes.router.facts_cache import FactsCache
from exporter.probes.router.pool import LOOK, Pool
from exporter.probes.router.protocol import Ask, PageReader, RouterProtocol
from exporter.probes.router.queue_metrics import users_waiting
from exporter.probes.router.request_builder import RequestBuilder
from exporter.probes.router.server_errors import refused
from exporter.wire.connection import ClientConnection
from exporter.wire.delays import PROCESS, Delays
from exporter.wire.exchanges import Exchange, Exchanges

# For a batch that ends in several ways: which one speaks for it.
WORST_FIRST = (
    Outcome.UNREACHABLE,
    Outcome.TIMEOUT,
    Outcome.MALFORMED,
    Outcome.REJECTED,
    Outcome.OVERLOADED,
    *sorted(NOT_JUDGED),
)


class StreamProber:
    """See `Prober`."""

    def __init__(
        self,
        target: Target,
        protocol: RouterProtocol,
        own_requests: OwnRequests | None = None,
        clock: Callable[[], float] = time.perf_counter,
        seed: int | None = None,
        delays: Delays = PROCESS,
    ) -> None:
        self._target = target
        self._delays = delays
        self._protocol = protocol
        self._own_requests = own_requests or OwnRequests()
        self._clock = clock
        self._pool = Pool(protocol, clock, delays)
        self._builder = RequestBuilder(target, protocol, seed)
        self._facts_cache = FactsCache(protocol, self._pool, clock)
        self._exchanges = Exchanges(clock, delays)
        self._facts: Facts | None = None
        self._in_use = threading.Lock()

    def connect(self, timeout: float) -> Facts:
        with self._in_use:
            self._facts = self._facts_cache.facts(timeout)
            if self._facts_cache.changed():
                self._builder.forget()
            return self._facts

    def refusal(self, facts: Facts) -> str | None:
        """A router protects its shard itself: there is no prompt that could do harm."""
        return None

    def users_wait(self) -> bool:
        return users_wait(self._target, self._protocol, self._pool, self._own_requests)

    def probe(self, workload: Workload, batch_size: int, stopping: Callable[[], bool], trace_id: str = "") -> Result:
        with self._in_use:
            self._builder.check_limits(self._facts, workload)
            self._builder.check_length(workload)
            try:
                result = self._measured(workload, batch_size, stopping, trace_id)
            except Failure as failure:
                result = Result((), failure.outcome, failure.code, failure.detail)
            if result.outcome is Outcome.UNREACHABLE:
                self._facts_cache.lost()
            return replace(result, corrections=self._builder.corrections())

    def _measured(self, workload: Workload, batch_size: int, stopping: Callable[[], bool], trace_id: str) -> Result:
        """The first time the length of prompts is found out. Raises Failure."""

        def single(workload: Workload, text: str) -> tuple[Stream, str, int | None]:
            [alone] = self._begun(workload, lambda: [text], stopping, "")
            return alone

        def new_texts() -> list[str]:
            return self._builder.texts(workload, batch_size)

        late = self._clock() + workload.timeout
        ask = self._asking(workload.timeout)
        self._builder.fit(workload, single, ask, lambda: self._clock() > late)
        while True:
            self._builder.fill_cache(workload, batch_size, single)
            with self._delays.watch() as watch:
                flown = self._begun(workload, new_texts, stopping, trace_id)
                result = summed_up([stream for stream, _, _ in flown], [detail for _, detail, _ in flown], self._pool)
                result = mark_disturbed(result, watch)
            counts = [counted for _, _, counted in flown if counted is not None]
            if result.outcome is not Outcome.OK or not self._builder.off(workload, counts):
                return result

    def _asking(self, timeout: float) -> Ask:
        return lambda request: self._pool.ask(request, timeout)

    def _begun(
        self, workload: Workload, texts: Callable[[], list[str]], stopping: Callable[[], bool], trace_id: str
    ) -> list[tuple[Stream, str, int | None]]:
        """As `_fly`, and once more, all together, where the server was going away and had not begun what failed, or
        refused an option that it need not know. Each with its prompt's length, where that was told.

        `texts` makes the prompts of each try: those that were answered the first time may be in the server's cache.
        """
        exchanges = self._fly(workload, texts(), stopping, trace_id)
        failed = [exchange for exchange in exchanges if exchange.failure is not None]
        if failed and all(exchange.not_begun for exchange in failed):
            self._pool.drop_kept()  # others may be about to end too
            exchanges = self._fly(workload, texts(), stopping, trace_id)
        flown = [self._builder.stream(exchange, workload) for exchange in exchanges]
        if self._protocol.asks_less([(stream.outcome, stream.code, detail) for stream, detail, _ in flown]):
            return self._begun(workload, texts, stopping, trace_id)
        return flown

    def _fly(
        self, workload: Workload, texts: Sequence[str], stopping: Callable[[], bool], trace_id: str
    ) -> list[Exchange]:
        """Release all at once and watch them to their end."""
        connections = self._connections(len(texts), stopping)
        try:
            exchanges = [
                self._builder.exchange(connection, text, workload, trace_id)
                for connection, text in zip(connections, texts, strict=True)
            ]
        except Failure:  # a request may be on some of them, ready to be sent
            for connection in connections:
                connection.close()
            raise
        self._own_requests.set(self, len(exchanges))
        self._exchanges.send(*exchanges)
        deadline = exchanges[-1].sent + workload.timeout
        try:
            while len(self._exchanges) and self._clock() < deadline:
                self._exchanges.poll(min(deadline, self._clock() + LOOK))
                if stopping() or self._pool.closing.is_set():
                    raise Abandoned
        finally:
            self._end(exchanges)
        return exchanges

    def _end(self, exchanges: Sequence[Exchange]) -> None:
        """Give up what still flies, keep the connections that can be used again."""
        self._exchanges.abort()
        self._own_requests.set(self, 0)
        for exchange in exchanges:
            if exchange.reusable:
                self._pool.keep(exchange.connection)

    def _connections(self, count: int, stopping: Callable[[], bool]) -> list[ClientConnection]:
        connections: list[ClientConnection] = []
        try:
            while len(connections) < count:
                if stopping() or self._pool.closing.is_set():
                    raise Abandoned
                connections.append(self._pool.take())
        except (Abandoned, Failure):
            for connection in connections:
                self._pool.keep(connection)
            raise
        return connections

    def settle(self, timeout: float) -> None:
        """Nothing is ever owed: a router forgets a request that was cancelled."""

    def close(self) -> None:
        """While a probe runs in another thread, that ends within a moment; whose it is closes again afterwards."""
        self._pool.closing.set()
        if self._in_use.acquire(blocking=False):
            with contextlib.closing(self._exchanges):
                self._pool.close()
            self._in_use.release()


def users_wait(target: Target, protocol: RouterProtocol, pool: Pool, own_requests: OwnRequests) -> bool:
    """See `Prober.users_wait`."""
    place = protocol.metrics() if target.yield_to_users else None
    if place is None:
        return False
    page = pool.visit(place, PageReader(refused))
    waiting = users_waiting(page.decode("utf-8", "replace"), own_requests.total())
    if waiting is None:
        where = f"{place.endpoint.where}{place.request.path}"
        what = f"{where} names no queue (such as tgi_queue_size), which yield_to_users goes by; check metrics_url"
        raise Failure(Outcome.MALFORMED, "OK", what)
    return waiting > 0


def summed_up(streams: Sequence[Stream], details: Sequence[str], pool: Pool) -> Result:
    """One result of all streams: that of the worst failure, or OK when there is none."""
    failed = [pair for pair in zip(streams, details, strict=True) if pair[0].outcome is not Outcome.OK]
    if not failed:
        return Result(tuple(streams), setups=pool.setups())
    worst, detail = min(failed, key=lambda pair: WORST_FIRST.index(pair[0].outcome))
    if len(streams) > 1:
        endings = Counter(stream.outcome for stream, _ in failed)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in endings.items())
        detail = f"{len(failed)} of {len(streams)} requests ({counts}): {detail}"
    return Result(tuple(streams), worst.outcome, worst.code, detail, pool.setups())
