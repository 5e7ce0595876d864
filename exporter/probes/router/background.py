"""Requests of a background load to one target: one by one, many in flight."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome, Setup
from exporter.plan.targets import Facts
from exporter.probes.disturbed import mark_disturbed
from exporter.probes.interface import Abandoned, OwnRequests, Result
from exporter.probes.router.on_demand_thread import OnDemandThread
from exporter.probes.router.prober import StreamProber
from exporter.probes.router.protocol import RouterProtocol
from exporter.probes.router.router_queue import RouterQueue
from exporter.probes.router.warm_connections import WarmConnections
from exporter.wire.delays import PROCESS, DelayWatch
from exporter.wire.exchanges import Exchange, Exchanges

# How often to look for a connection on which to send again what a server has not begun.
RESEND_SECONDS = 0.005
LATE = Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", "the deadline passed")


@dataclass(frozen=True, slots=True)
class BackgroundRequest:
    """One request in flight. `declined`: it is sent for the second time, because the server did not begin it; the
    seconds until the server said that.
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
    ) -> None:
        self._workload = workload
        self._own_requests = own_requests or OwnRequests()
        self._prober = StreamProber(target, protocol, self._own_requests)
        self._exchanges = Exchanges()
        self._in_flight: deque[BackgroundRequest] = deque()
        self._not_begun: deque[BackgroundRequest] = deque()  # to be sent again
        self._next: Exchange | None = None
        # Of warming, until the next result.
        self._setups: tuple[Setup, ...] = ()
        self._corrections = 0
        self._warm = WarmConnections(protocol)
        self._aborts = OnDemandThread("aborts", self._prober.given_up.tell)
        self._queue = RouterQueue(self._prober.users_wait, target.yield_to_users)
        self._user: int | None = None

    def connect(self, timeout: float) -> Facts:
        self._user = threading.get_ident()
        facts = self._prober.connect(timeout)
        self._queue.refresh()
        self._warm.forget_error()
        self._queue.forget_error()
        return facts

    def users_wait(self) -> bool:
        return self._queue.users_wait()

    @property
    def in_flight(self) -> int:
        return len(self._in_flight) + len(self._not_begun)

    def warm(self, stopping: Callable[[], bool]) -> None:
        result = self._prober.probe(self._workload, 1, stopping)
        self._setups += result.setups
        if result.outcome not in (Outcome.OK, Outcome.DISTURBED):
            raise Failure(result.outcome, result.code, result.detail, result.corrections)
        self._corrections += result.corrections
        self._warm.keep(self._prober.pool.take())

    def reserve_connections(self, requests: int) -> None:
        self._queue.refresh_soon()
        self._warm.want(requests + len(self._not_begun))

    def prepare(self) -> None:
        if self._next is not None:
            if not self._next.connection.idle:
                return
            self._next.connection.close()
            self._next = None
        self._prober.check(self._workload)
        connection = self._warm.take()
        if connection is not None:
            text = self._prober.builder.texts(self._workload, 1)[0]
            self._next = self._prober.builder.exchange(connection, text, self._workload)

    def send(self, intended: float | None, declined: float | None = None) -> bool:
        """`declined`: see `BackgroundRequest`."""
        self.prepare()
        if self._next is None:
            return False
        exchange, self._next = self._next, None
        watch = PROCESS.watch()
        self._exchanges.send(exchange)
        deadline = exchange.sent + self._workload.timeout
        self._in_flight.append(BackgroundRequest(exchange, deadline, intended, watch, declined))
        self._own_requests.set(self, len(self._in_flight))
        return True

    def _send_again(self) -> list[Result]:
        """Send again what the server has not begun, with new prompts. Returns the results of what cannot be sent."""
        results = []
        while self._not_begun:
            first = self._not_begun[0]
            exchange, over = first.exchange, first.deadline <= time.perf_counter()
            assert exchange.ended is not None
            try:
                sent = not over and self.send(first.intended, exchange.ended - exchange.sent)
            except Failure:
                sent, over = False, True
            if not sent and not over:
                self._warm.want(len(self._not_begun))
                break
            self._not_begun.popleft()
            if sent:
                first.watch.close()
            else:
                results.append(self._result(first))
        return results

    def poll(self, until: float) -> list[Result]:
        if self._prober.pool.closing.is_set():
            raise Abandoned
        if self._not_begun:
            until = min(until, time.perf_counter() + RESEND_SECONDS)
        # All have the same timeout, so the first one has the first deadline.
        self._exchanges.poll(min(until, self._in_flight[0].deadline) if self._in_flight else until)
        now = time.perf_counter()
        if self._in_flight and self._in_flight[0].deadline <= now:
            self._exchanges.catch_up()
        for request in self._in_flight:
            if request.deadline > now:
                break
            if request.exchange.ended is None:
                self._exchanges.end(request.exchange, LATE)
        ended = [request for request in self._in_flight if request.exchange.ended is not None]
        if ended:
            self._in_flight = deque(request for request in self._in_flight if request.exchange.ended is None)
            self._own_requests.set(self, len(self._in_flight))
        again = [request for request in ended if request.exchange.not_begun and request.declined is None]
        self._not_begun.extend(again)
        return [self._result(request) for request in ended if request not in again] + self._send_again()

    def _result(self, request: BackgroundRequest) -> Result:
        self._warm.keep(request.exchange.connection)
        self._give_up(request.exchange)
        stream, detail, counted = self._prober.builder.result(request.exchange, self._workload, request.intended)
        stream = replace(stream, declined=request.declined or 0.0)
        if counted is not None:
            self._prober.builder.learn(self._workload, counted)
        if stream.outcome is Outcome.UNREACHABLE:
            self._prober.facts_cache.lost()
        result = mark_disturbed(Result((stream,), stream.outcome, stream.code, detail), request.watch)
        request.watch.close()
        setups = self._setups + self._prober.pool.setups() + self._warm.setups()
        corrections = self._corrections + self._prober.builder.corrections()
        self._setups, self._corrections = (), 0
        return replace(result, setups=setups, corrections=corrections)

    def _give_up(self, *exchanges: Exchange) -> None:
        self._prober.given_up.add(exchanges)
        if len(self._prober.given_up):
            self._aborts.wake()

    def close(self) -> None:
        """A thread that sends gets Abandoned from its next `poll`. That thread must then call `close` too."""
        self._prober.pool.closing.set()
        if self._user not in (None, threading.get_ident()):
            return
        self._exchanges.close()
        self._prober.given_up.add(request.exchange for request in self._in_flight)
        for request in (*self._in_flight, *self._not_begun):
            request.exchange.connection.close()
            request.watch.close()
        self._in_flight.clear()
        self._not_begun.clear()
        self._own_requests.set(self, 0)
        if self._next is not None:
            self._next.connection.close()
            self._next = None
        self._warm.close()
        self._queue.close()
        self._aborts.close()
        with contextlib.suppress(Failure):
            self._prober.given_up.tell()
        self._prober.close()
