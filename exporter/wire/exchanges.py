"""Requests and their answers: one thread watches many connections.

The thread first reads all data that has arrived, and then parses. So no stream waits unread while another is parsed,
and the kernel's time stamps of separate arrivals are not merged (see `sockets`).

The thread also has a bound for how long data may have waited unread. After some work, the bound is the time since its
previous look at the socket. After a sleep in `select`, the bound is how late it may have woken up (see `delays`). Where
the system does not tell that, the thread sleeps in short slices.
"""

import selectors
import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from exporter.observation import Failure, Outcome
from exporter.wire.connection import ClientConnection
from exporter.wire.delays import PROCESS, Delays
from exporter.wire.detect import CLOSED
from exporter.wire.http_codec import Body, BrokenConnection, End, Head, HttpRequest, NoAnswer, NotBegun
from exporter.wire.sockets import Arrival, new_selector, unreachable

# Seconds to wait for the end of a body. It follows the last event in a packet of its own, or never comes.
REST_SECONDS = 0.02
# Where a kept connection ends so soon after a request, the server was closing it when the request came.
CROSSING_SECONDS = 0.1
# A selector rounds up to whole milliseconds. The last one is slept through, to start on time.
TICK = 0.001
# Arrivals parsed although the time is over: else they would pile up.
AT_MOST_LATE = 16
# Bytes that wait to be parsed. A server that sends faster than we read would fill the memory.
MOST_BACKLOG = 16 * 1024 * 1024
ARRIVAL_OVERHEAD = 512  # bytes that Python adds to each arrival
# Seconds of one sleep where the system does not tell how late we wake up.
SLICE = 0.002
# Bytes at the end of an event: two line feeds, or the last of two CRLFs.
EVENT_END = 2
# HTTP/1.1 ends each chunk with it.
CRLF = b"\r\n"


class AnswerReader(Protocol):
    """Reads an answer as it arrives. Each method may raise Failure, which ends the exchange.

    `complete`: the answer is, though its body may go on.
    """

    complete: bool

    def head(self, status: int, headers: Mapping[str, str]) -> None: ...
    def body(self, at: float, data: bytes) -> None: ...
    def end(self, at: float, end: End) -> None: ...


class Exchange:
    """One request on one connection, and its answer.

    `sent`: the instant before its first byte left. Its last byte left up to `sent_late` seconds later than the server
    would have taken it. `last_arrival`: the newest part of the answer. `complete`: when the answer was complete, while
    its body goes on. `not_begun`: the server did not begin the request, as it said or because it was closing a kept
    connection.
    """

    def __init__(self, connection: ClientConnection, request: HttpRequest, reader: AnswerReader) -> None:
        """Encodes and encrypts the request. Raises Failure."""
        self.connection = connection
        self.request_id = request.request_id
        self.reader = reader
        self.sent = self.sent_late = 0.0
        self.ended: float | None = None
        self.read_delay = 0.0
        self.last_arrival: float | None = None
        self.failure: Failure | None = None
        self.complete: float | None = None
        self.not_begun = False
        self._reuses = connection.requests > 0
        connection.requests += 1
        try:
            connection.socket.queue(connection.codec.encode(request))
        except BrokenConnection as error:
            raise unreachable(connection.where, str(error)) from None

    def receive(self, arrival: Arrival) -> None:
        """Parse one arrival. The last one sets `ended`."""
        socket, codec = self.connection.socket, self.connection.codec
        self.read_delay = max(self.read_delay, arrival.delay)
        self.last_arrival = arrival.at
        try:
            plain = socket.decrypt(arrival.data)
            events = codec.receive(plain)
            for number, event in enumerate(events, start=1):
                match event:
                    case Head(status, headers):
                        self.reader.head(status, headers)
                    case Body(data) if number == len(events) and plain is not None and socket.decrypted_to_end:
                        self._receive_last(arrival, data, plain)
                    case Body(data):
                        self.reader.body(arrival.at, data)
                    case End():
                        self.reader.end(arrival.at, event)
                        self.ended = arrival.at if self.complete is None else self.complete
            if self.reader.complete and self.complete is None:
                self.complete = arrival.at
            if plain is None and self.ended is None:
                raise BrokenConnection(f"{CLOSED} in the middle of the answer")
        except BrokenConnection as error:
            crossed = isinstance(error, NoAnswer) and self._reuses and arrival.at - self.sent < CROSSING_SECONDS
            self.not_begun = crossed or isinstance(error, NotBegun)
            self.fail(arrival.at, unreachable(self.connection.where, str(error)))
        except Failure as failure:
            self.fail(arrival.at, failure)
        socket.queue(codec.data_to_send())

    def _receive_last(self, arrival: Arrival, data: bytes, plain: bytes) -> None:
        """The end of what was read together has the better instant, so it is passed on by itself."""
        if data and plain.endswith((data, data + CRLF)):
            self.reader.body(arrival.at, data[:-EVENT_END])
            self.reader.body(arrival.end, data[-EVENT_END:])
        else:
            self.reader.body(arrival.at, data)

    def fail(self, at: float, failure: Failure) -> None:
        if self.ended is None:
            # The rest of this answer must not be taken for the next one.
            self.connection.socket.queue(self.connection.codec.cancel())
        if self.complete is not None:  # a failure after the answer is no part of it
            self.ended = self.complete
            return
        self.ended = at
        self.failure = failure


class Exchanges:
    """The exchanges in flight of one thread."""

    def __init__(self, delays: Delays = PROCESS) -> None:
        self._delays = delays
        # The newest look at what can be read, and since when at most what it found can be read.
        self._looked = self._since = time.perf_counter()
        self._selector = new_selector()
        self._backlog: deque[tuple[Exchange, Arrival]] = deque()
        self._backlog_bytes = 0
        self._in_flight: set[Exchange] = set()
        self._complete: dict[Exchange, float] = {}  # until when to wait for the end of a body

    def __len__(self) -> int:
        return len(self._in_flight)

    def send(self, *exchanges: Exchange) -> None:
        """Send the requests, one right after the other."""
        done = []
        for exchange in exchanges:
            exchange.sent = time.perf_counter()
            done.append(exchange.connection.socket.flush())
            exchange.sent_late = time.perf_counter() - exchange.sent
        for exchange, all_gone in zip(exchanges, done, strict=True):  # answers can wait: they carry their instants
            self._in_flight.add(exchange)
            wanted = selectors.EVENT_READ | (0 if all_gone else selectors.EVENT_WRITE)
            self._selector.register(exchange.connection.socket, wanted, exchange)

    def poll(self, until: float) -> list[Exchange]:
        """Watch until some exchanges have ended, `until` at the latest. Returns those, perhaps none."""
        finished: list[Exchange] = []
        while True:
            left = until - time.perf_counter()
            wait = min(left, REST_SECONDS) if self._complete else left
            ready = self._ready(wait if not (self._backlog or finished) else 0.0)
            for key, events in ready:
                self._serve(key.data, events)
            while self._backlog_bytes > MOST_BACKLOG:
                finished += self._parse_next()
            finished += self._end_complete()
            if left <= 0:
                for _ in range(min(len(self._backlog), AT_MOST_LATE)):
                    finished += self._parse_next()
                return finished
            if self._backlog and not ready:
                finished += self._parse_next()
            elif finished and not ready:
                return finished

    def _ready(self, seconds: float) -> list[tuple[selectors.SelectorKey, int]]:
        """What can be read or written. Waits for it, at most `seconds`."""
        if 0 < seconds < TICK:
            time.sleep(seconds)
            seconds = 0
        self._since, self._looked = self._looked, time.perf_counter()
        ready = self._selector.select(0)
        if ready or seconds <= TICK:
            return ready
        before = self._delays.mark()
        ready = self._selector.select(min(seconds - TICK, float("inf") if before.known else SLICE))
        after = self._delays.mark()
        # At `_looked` nothing was there. What woke us waited at most from there to `before`, and while we woke up.
        if before.known:
            late = before.at - self._looked + self._delays.between(before, after, sleeps=1)
            self._looked = max(self._looked, after.at - late)
        self._since = self._looked
        return ready

    def _parse_next(self) -> list[Exchange]:
        """Parse the oldest arrival. Returns its exchange where that has ended."""
        exchange, arrival = self._backlog.popleft()
        self._backlog_bytes -= len(arrival.data) + ARRIVAL_OVERHEAD
        if exchange not in self._in_flight:
            return []
        held_back = exchange.connection.codec.unsent
        exchange.receive(arrival)
        self._flush(exchange, arrival.at - arrival.at.late if held_back else None)
        if exchange.ended is None:
            if exchange.complete is not None:
                self._complete.setdefault(exchange, time.perf_counter() + REST_SECONDS)
            return []
        self._finish(exchange)
        return [exchange]

    def _end_complete(self) -> list[Exchange]:
        """End those whose answer is complete while the body does not end. Their connections cannot be used again."""
        if self._backlog or not self._complete:  # the backlog may hold the end
            return []
        late = [exchange for exchange, until in self._complete.items() if time.perf_counter() >= until]
        for exchange in late:
            self.end(exchange, unreachable(exchange.connection.where, "the body of the answer does not end"))
        return late

    def _serve(self, exchange: Exchange, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(exchange, self._since)
        if events & selectors.EVENT_READ:
            arrival = exchange.connection.socket.receive(max(self._since, exchange.sent))
            if arrival is not None:
                self._backlog.append((exchange, arrival))
                self._backlog_bytes += len(arrival.data) + ARRIVAL_OVERHEAD
                if not arrival.data:
                    self._selector.unregister(exchange.connection.socket)

    def _flush(self, exchange: Exchange, since: float | None) -> None:
        """`since`: when the bytes could have left, where they are part of the request."""
        socket = exchange.connection.socket
        late = since is not None and socket.unsent
        done = socket.flush()
        if since is not None and late:
            now = time.perf_counter()
            exchange.sent_late = min(exchange.sent_late + now - max(since, exchange.sent), now - exchange.sent)
        wanted = selectors.EVENT_READ | (0 if done else selectors.EVENT_WRITE)
        known = self._selector.get_map().get(socket)
        if known is not None and known.events != wanted:
            self._selector.modify(socket, wanted, exchange)

    def _finish(self, exchange: Exchange) -> None:
        self._in_flight.discard(exchange)
        self._complete.pop(exchange, None)
        exchange.connection.used = time.perf_counter()
        if exchange.connection.socket in self._selector.get_map():
            self._selector.unregister(exchange.connection.socket)
        if not exchange.connection.codec.usable:
            exchange.connection.close()

    def catch_up(self) -> None:
        """Parse all that has arrived by now, before a server is called too late: we may have slept."""
        for _ in range(AT_MOST_LATE if self._in_flight else 0):
            ready = self._ready(0.0)
            for key, events in ready:
                self._serve(key.data, events)
            if not ready:
                break
        while self._backlog:
            self._parse_next()

    def abort(self, failure: Failure | None = None) -> None:
        """End all exchanges in flight with `failure`. The servers are told."""
        failure = failure or Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", "the deadline passed")
        self.catch_up()
        for exchange in list(self._in_flight):
            self.end(exchange, failure)

    def end(self, exchange: Exchange, failure: Failure) -> None:
        """End one exchange early. The server is told."""
        exchange.fail(time.perf_counter(), failure)
        exchange.connection.socket.flush()
        self._finish(exchange)

    def close(self) -> None:
        self.abort()
        self._selector.close()
