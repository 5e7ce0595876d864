"""Requests of a background load to one target, one by one, many at a time. The connections are as for probes."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome, Stream
from exporter.plan.targets import Facts
from exporter.probes.disturbed import mark_disturbed
from exporter.probes.interface import Abandoned, OwnRequests, Result
from exporter.probes.router.facts_cache import FactsCache
from exporter.probes.router.pool import LOOK, Pool
from exporter.probes.router.prober import summed_up
from exporter.probes.router.protocol import RouterProtocol
from exporter.probes.router.request_builder import RequestBuilder
from exporter.probes.router.warm_connections import RouterQueue, WarmConnections
from exporter.wire.delays import PROCESS, Delays, DelayWatch
from exporter.wire.exchanges import Exchange, Exchanges
from exporter.wire.http_codec import HttpRequest

# How often it is looked for a connection on which to send once more what a server has not begun.
RESEND_SECONDS = 0.005
LATE = Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", "the deadline passed")


@dataclass(frozen=True, slots=True)
class BackgroundRequest:
    """One request on its way, until `deadline`. `declined`: it is sent for the second time, and so many seconds passed
    from the first time until the server said that it had not begun.
    """

    exchange: Exchange
    deadline: float
    intended: float | None
    watch: DelayWatch
    declined: float | None = None


class StreamBackground:
    """See `Background`. Sends the requests of one workload."""

    def __init__(
        self,
        target: Target,
        workload: Workload,
        protocol: RouterProtocol,
        own_requests: OwnRequests | None = None,
        clock: Callable[[], float] = time.perf_counter,
        seed: int | None = None,
        delays: Delays = PROCESS,
    ) -> None:
        self._delays = delays
        self._target, self._workload, self._protocol = target, workload, protocol
        self._own_requests = own_requests or OwnRequests()
        self._clock = clock
        self._pool = Pool(protocol, clock, delays)
        self._builder = RequestBuilder(target, protocol, seed)
        self._facts_cache = FactsCache(protocol, self._pool, clock)
        self._exchanges = Exchanges(clock, delays)
        self._in_flight: deque[BackgroundRequest] = deque()
        self._not_begun: deque[BackgroundRequest] = deque()  # to be sent once more
        self._next: Exchange | None = None
        self._facts: Facts | None = None
        self._warm = WarmConnections(protocol, clock)
        self._queue = RouterQueue(target, protocol, self._own_requests, clock)
        self._user: int | None = None

    def connect(self, timeout: float) -> Facts:
        self._user = threading.get_ident()
        self._facts = self._facts_cache.facts(timeout)
        if self._facts_cache.changed():
            self._builder.forget()
        self._queue.look()
        self._warm.forget()
        self._queue.forget()
        return self._facts

    def users_wait(self) -> bool:
        return self._queue.waits()

    @property
    def in_flight(self) -> int:
        return len(self._in_flight) + len(self._not_begun)

    def warm(self, stopping: Callable[[], bool]) -> None:
        self._builder.check_limits(self._facts, self._workload)
        self._builder.check_length(self._workload)

        def single(workload: Workload, text: str) -> tuple[Stream, str, int | None]:
            return self._alone(workload, text, stopping)

        late = self._clock() + self._workload.timeout
        try:
            self._builder.fit(self._workload, single, self._ask, lambda: self._clock() > late)
            while True:
                self._builder.fill_cache(self._workload, 1, single)
                text = self._builder.texts(self._workload, 1)[0]
                stream, detail, counted = single(self._workload, text)
                if stream.outcome is not Outcome.OK:
                    raise Failure(stream.outcome, stream.code, detail)
                if counted is None or not self._builder.off(self._workload, [counted]):
                    break
        except Failure as failure:
            if failure.outcome is Outcome.UNREACHABLE:
                self._facts_cache.lost()
            corrections = self._builder.corrections()
            raise Failure(failure.outcome, failure.code, failure.detail, corrections) from None
        self._warm.keep(self._pool.take())

    def _ask(self, request: HttpRequest) -> bytes:
        return self._pool.ask(request, self._workload.timeout)

    def _alone(
        self, workload: Workload, text: str, stopping: Callable[[], bool], again: bool = False
    ) -> tuple[Stream, str, int | None]:
        """One request, watched to its end. Nothing of it is recorded, so the same text may be sent once more."""
        exchange = self._builder.exchange(self._pool.take(), text, workload)
        self._exchanges.send(exchange)
        deadline = exchange.sent + self._workload.timeout
        while exchange.ended is None and self._clock() < deadline:
            self._exchanges.poll(min(deadline, self._clock() + LOOK))
            if stopping() or self._pool.closing.is_set():
                self._exchanges.abort()
                raise Abandoned
        if exchange.ended is None:
            self._exchanges.end(exchange, LATE)
        if exchange.reusable:
            self._pool.keep(exchange.connection)
        if exchange.not_begun and not again:
            self._pool.drop_kept()  # others may be about to end too
            return self._alone(workload, text, stopping, again=True)
        stream, detail, counted = self._builder.stream(exchange, workload)
        if self._protocol.asks_less([(stream.outcome, stream.code, detail)]):
            return self._alone(workload, text, stopping)
        return stream, detail, counted

    def reserve_connections(self, requests: int) -> None:
        self._queue.ask()
        self._warm.want(requests + len(self._not_begun))

    def prepare(self) -> None:
        if self._next is not None:
            if not self._next.connection.idle:
                return
            self._next.connection.close()
            self._next = None
        self._builder.check_limits(self._facts, self._workload)
        self._builder.check_length(self._workload)
        connection = self._warm.take()
        if connection is not None:
            text = self._builder.texts(self._workload, 1)[0]
            self._next = self._builder.exchange(connection, text, self._workload)

    def send(self, intended: float | None) -> bool:
        return self._send(intended)

    def _send(self, intended: float | None, declined: float | None = None) -> bool:
        self.prepare()
        if self._next is None:
            return False
        exchange, self._next = self._next, None
        watch = self._delays.watch()
        self._exchanges.send(exchange)
        self._in_flight.append(
            BackgroundRequest(exchange, exchange.sent + self._workload.timeout, intended, watch, declined)
        )
        self._own_requests.set(self, len(self._in_flight))
        return True

    def _send_again(self) -> list[Result]:
        """Send what the server has not begun once more, with new prompts; answers what cannot be sent."""
        results = []
        while self._not_begun:
            first = self._not_begun[0]
            exchange, over = first.exchange, first.deadline <= self._clock()
            assert exchange.ended is not None
            try:
                sent = not over and self._send(first.intended, exchange.ended - exchange.sent)
            except Failure:
                sent, over = False, True
            if not sent and not over:
                self._warm.want(len(self._not_begun))
                break
            self._not_begun.popleft()
            if sent:
                first.watch.close()
            else:
                results.append(self._landed(first))
        return results

    def poll(self, until: float) -> list[Result]:
        if self._pool.closing.is_set():
            raise Abandoned
        if self._not_begun:
            until = min(until, self._clock() + RESEND_SECONDS)
        # All have the same timeout, so the first is the first to be late.
        self._exchanges.poll(min(until, self._in_flight[0].deadline) if self._in_flight else until)
        now = self._clock()
        if self._in_flight and self._in_flight[0].deadline <= now:
            self._exchanges.catch_up()
        for one in self._in_flight:
            if one.deadline > now:
                break
            if one.exchange.ended is None:
                self._exchanges.end(one.exchange, LATE)
        ended = [one for one in self._in_flight if one.exchange.ended is not None]
        if ended:
            self._in_flight = deque(one for one in self._in_flight if one.exchange.ended is None)
            self._own_requests.set(self, len(self._in_flight))
        again = [one for one in ended if one.exchange.not_begun and one.declined is None]
        self._not_begun.extend(again)
        return [self._landed(one) for one in ended if one not in again] + self._send_again()

    def _landed(self, one: BackgroundRequest) -> Result:
        if one.exchange.reusable:
            self._warm.keep(one.exchange.connection)
        stream, detail, counted = self._builder.stream(one.exchange, self._workload, one.intended)
        stream = replace(stream, declined=one.declined or 0.0)
        if counted is not None:
            self._builder.learn(self._workload, counted)
        if stream.outcome is Outcome.UNREACHABLE:
            self._facts_cache.lost()
        result = mark_disturbed(summed_up([stream], [detail], self._pool), one.watch)
        one.watch.close()
        setups = result.setups + self._warm.setups()
        return replace(result, setups=setups, corrections=self._builder.corrections())

    def close(self) -> None:
        """While another thread sends, it ends at its next `turn`; whose it is closes again afterwards."""
        self._pool.closing.set()
        if self._user not in (None, threading.get_ident()):
            return
        self._exchanges.close()
        for one in (*self._in_flight, *self._not_begun):
            one.exchange.connection.close()
            one.watch.close()
        self._in_flight.clear()
        self._not_begun.clear()
        self._own_requests.set(self, 0)
        if self._next is not None:
            self._next.connection.close()
            self._next = None
        self._warm.close()
        self._queue.close()
        self._pool.close()
