"""Probes through a router: n requests, each a stream on a connection of its own, sent together.

These rules always hold. Nothing before the start is part of a measured duration. A request that is given up is
cancelled, so that the server stops working on it. A connection with an unfinished answer is never used again.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import NOT_JUDGED, Failure, Outcome
from exporter.plan.targets import Facts
from exporter.probes.disturbed import mark_disturbed
from exporter.probes.interface import Abandoned, OwnRequests, Result
from exporter.probes.router.facts_cache import FactsCache
from exporter.probes.router.given_up import GivenUp
from exporter.probes.router.pool import STOP_CHECK_SECONDS, Pool
from exporter.probes.router.protocol import RouterProtocol
from exporter.probes.router.queue_metrics import users_waiting
from exporter.probes.router.request_builder import RequestBuilder, RequestResult
from exporter.wire.connection import ClientConnection
from exporter.wire.delays import PROCESS
from exporter.wire.exchanges import Exchange, Exchanges

# A batch whose requests fail in several ways has the outcome that comes first here.
WORST_FIRST = (
    Outcome.UNREACHABLE,
    Outcome.TIMEOUT,
    Outcome.MALFORMED,
    Outcome.REJECTED,
    Outcome.OVERLOADED,
    *sorted(NOT_JUDGED),
)
Stopping = Callable[[], bool]


class StreamProber:
    """See `Prober`."""

    def __init__(self, target: Target, protocol: RouterProtocol, own_requests: OwnRequests | None = None) -> None:
        self._target, self._protocol = target, protocol
        self._own_requests = own_requests or OwnRequests()
        self.pool = Pool(protocol)
        self.builder = RequestBuilder(target, protocol)
        self.facts_cache = FactsCache(protocol, self.pool)
        self.given_up = GivenUp(protocol)
        self._exchanges = Exchanges()
        self._in_use = threading.Lock()

    def connect(self, timeout: float) -> Facts:
        with self._in_use:
            facts = self.facts_cache.facts(timeout)
            if self.facts_cache.changed():
                self.builder.forget()
            self._abort_given_up()
            return facts

    def refusal(self, facts: Facts) -> str | None:
        """Never: a router protects its shard, so no prompt can do harm."""
        return None

    def users_wait(self) -> bool:
        if not self._target.yield_to_users:
            return False
        page = self._protocol.metrics_page()
        if page is None:
            return self._users_wait_in_engine()
        waiting = users_waiting(self.pool.read(page).decode("utf-8", "replace"), self._own_requests.total())
        if waiting is None:
            where = f"{page.endpoint.where}{page.request.path}"
            what = f"{where} names no queue (such as tgi_queue_size), which yield_to_users goes by; check metrics_url"
            raise Failure(Outcome.MALFORMED, "OK", what)
        return waiting > 0

    def _users_wait_in_engine(self) -> bool:
        own = self._own_requests.total()
        waiting = self._protocol.users_waiting(lambda request: self.pool.fetch(request), own)
        if waiting is None:
            where = f"{self._target.address}: this server does not tell its load, which yield_to_users goes by"
            raise Failure(Outcome.MALFORMED, "OK", f"{where}; set metrics_url to its /metrics")
        return waiting > 0

    def check(self, workload: Workload) -> None:
        """Raises Failure where the server would reject such requests, or where no prompt is that short."""
        self.builder.check_limits(self.facts_cache.known, workload)

    def probe(self, workload: Workload, batch_size: int, stopping: Stopping, trace_id: str = "") -> Result:
        """The first time, find out the length of its prompts before. Raises Failure as `check`, and Abandoned."""
        with self._in_use:
            self.check(workload)
            try:
                result = self._fitted_batch(workload, batch_size, stopping, trace_id)
            except Failure as failure:
                result = Result((), failure.outcome, failure.code, failure.detail)
            if result.outcome is Outcome.UNREACHABLE:
                self.facts_cache.lost()
            return replace(result, corrections=self.builder.corrections())

    def _fitted_batch(self, workload: Workload, batch_size: int, stopping: Stopping, trace_id: str) -> Result:
        """A batch whose prompts have the right length. Raises Failure, Abandoned."""

        def send_one(workload: Workload, text: str) -> RequestResult:
            [result] = self._send(workload, lambda: [text], stopping, "")
            return result

        late = time.perf_counter() + workload.timeout
        ask = partial(self.pool.ask, timeout=workload.timeout)
        self.builder.fit(workload, send_one, ask, lambda: time.perf_counter() > late)
        while True:
            self.builder.fill_cache(workload, batch_size, send_one)
            with PROCESS.watch() as watch:
                results = self._send(workload, partial(self.builder.texts, workload, batch_size), stopping, trace_id)
                batch = mark_disturbed(self._batch_result(results), watch)
            counts = [result.prompt_tokens for result in results if result.prompt_tokens is not None]
            if batch.outcome is not Outcome.OK or not self.builder.wrong_length(workload, counts):
                return batch

    def _send(
        self, workload: Workload, texts: Callable[[], list[str]], stopping: Stopping, trace_id: str
    ) -> list[RequestResult]:
        """Send requests. Send all of them again where the server began none that failed, or refused an option of ours.

        `texts` makes new prompts for each try: those that were answered may be in the server's cache.
        """
        exchanges = self._send_once(workload, texts(), stopping, trace_id)
        failed = [exchange for exchange in exchanges if exchange.failure is not None]
        if failed and all(exchange.not_begun for exchange in failed):
            self.pool.drop_kept()  # the server may be about to close the others too
            exchanges = self._send_once(workload, texts(), stopping, trace_id)
        results = [self.builder.result(exchange, workload) for exchange in exchanges]
        if self._protocol.drop_option([(one.stream.outcome, one.stream.code, one.detail) for one in results]):
            return self._send(workload, texts, stopping, trace_id)
        return results

    def _send_once(self, workload: Workload, texts: Sequence[str], stopping: Stopping, trace_id: str) -> list[Exchange]:
        connections = self._connections(len(texts), stopping)
        try:
            exchanges = [
                self.builder.exchange(connection, text, workload, trace_id)
                for connection, text in zip(connections, texts, strict=True)
            ]
        except Failure:  # some of them may hold a request that was not sent
            for connection in connections:
                connection.close()
            raise
        self._own_requests.set(self, len(exchanges))
        self._exchanges.send(*exchanges)
        deadline = exchanges[-1].sent + workload.timeout
        try:
            while len(self._exchanges) and time.perf_counter() < deadline:
                self._exchanges.poll(min(deadline, time.perf_counter() + STOP_CHECK_SECONDS))
                if stopping() or self.pool.closing.is_set():
                    raise Abandoned
        finally:
            self._exchanges.abort()
            self._own_requests.set(self, 0)
            for exchange in exchanges:
                self.pool.keep(exchange.connection)
            self.given_up.add(exchanges)
            self._abort_given_up()
        return exchanges

    def _abort_given_up(self) -> None:
        with contextlib.suppress(Failure):  # then they stay, for the next time
            self.given_up.tell()

    def _connections(self, count: int, stopping: Stopping) -> list[ClientConnection]:
        connections: list[ClientConnection] = []
        try:
            while len(connections) < count:
                if stopping() or self.pool.closing.is_set():
                    raise Abandoned
                connections.append(self.pool.take())
        except (Abandoned, Failure):
            for connection in connections:
                self.pool.keep(connection)
            raise
        return connections

    def _batch_result(self, results: Sequence[RequestResult]) -> Result:
        """One result of all requests: that of the worst failure, or OK."""
        streams, setups = tuple(result.stream for result in results), self.pool.setups()
        failed = [result for result in results if result.stream.outcome is not Outcome.OK]
        if not failed:
            return Result(streams, setups=setups)
        worst, detail, _ = min(failed, key=lambda result: WORST_FIRST.index(result.stream.outcome))
        if len(streams) > 1:
            endings = Counter(result.stream.outcome for result in failed)
            counts = ", ".join(f"{count} {outcome}" for outcome, count in endings.items())
            detail = f"{len(failed)} of {len(streams)} requests ({counts}): {detail}"
        return Result(streams, worst.outcome, worst.code, detail, setups)

    def settle(self, timeout: float) -> None:
        """Most routers forget a request whose stream has ended; the others are told."""
        self.given_up.tell(timeout)

    def close(self) -> None:
        """A probe in another thread ends within a moment. That thread must then call `close` too."""
        self.pool.closing.set()
        if self._in_use.acquire(blocking=False):
            self._exchanges.close()
            self.pool.close()
            self._in_use.release()
