"""Requests on their way: many connections watched by one thread, which reads first and understands later.

Whatever the network has is taken at once; only when nothing more waits is one piece understood (decrypted, parsed).
So the reading of one stream never waits for the parsing of another, and the kernel's notes stay apart (see `line`).

It also knows since when at most something waits to be read. While it works, it looks again and again, and what is there
now was not there the last time. After it has slept in `select`, it goes by how late it can have woken up (`delays`);
where the system does not tell, it sleeps in short pieces.
"""

import selectors
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from exporter.observation import Failure, Outcome
from exporter.wire.delays import PROCESS, Delays
from exporter.wire.detect import CLOSED, NO_HTTP2
from exporter.wire.http_codec import (
    Body,
    BrokenConnection,
    End,
    Head,
    Http2,
    HttpCodec,
    HttpRequest,
    NoAnswer,
    NotBegun,
)
from exporter.wire.sockets import Arrival, Endpoint, TimedSocket, unreachable

# A connection that was not used for so long may have been closed by a proxy, and its server's thread gone cold.
IDLE_SECONDS = 1.0
# The end of a body comes right after the last event, in a packet of its own. After so long it may not come at all.
REST_SECONDS = 0.02
# A connection kept alive that ends so soon after a request was sent on it was being closed when that came.
CROSSING_SECONDS = 0.1
# A selector rounds its waiting up to whole milliseconds; the last one is slept through, to start on time.
TICK = 0.001
# When the time is over, some of what waits is still understood: else it would pile up where each turn is late.
AT_MOST_LATE = 16
# How long to sleep at a time where nobody tells how late we wake up.
SLICE = 0.002
# The end of an event: two line feeds, or the last of two CRLFs.
EVENT_END = 2
# After each chunk of HTTP/1.1.
CRLF = b"\r\n"


class AnswerReader(Protocol):
    """Takes in an answer as it arrives. Each method may raise Failure, which ends the exchange.

    `complete`: nothing that still comes is part of it, though its body may go on.
    """

    @property
    def complete(self) -> bool: ...
    def head(self, status: int, headers: Mapping[str, str]) -> None: ...
    def body(self, at: float, data: bytes) -> None: ...
    def end(self, at: float, end: End) -> None: ...


class ClientConnection:
    """A line and what is spoken on it. One request at a time."""

    def __init__(
        self, endpoint: Endpoint, codec: HttpCodec, timeout: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Opens it, up to the instant at which a request may be sent. Raises Failure (unreachable)."""
        self.where = endpoint.where
        deadline = clock() + timeout
        self.socket = TimedSocket(endpoint, timeout, clock)
        self.codec = codec
        self._clock = clock
        if endpoint.tls is not None and isinstance(codec, Http2) and self.socket.protocol != "h2":
            self.socket.close()
            raise unreachable(self.where, f"TLS: {NO_HTTP2}")
        try:
            self.socket.queue(codec.first_bytes())
            self.socket.flush()
            self._receive_until(codec.accepts_requests, deadline)
        except Failure:
            self.socket.close()
            raise
        self.requests = 0
        self.begun, self.ready = self.socket.begun, clock()
        self.used = self.ready

    def _receive_until(self, done: Callable[[], bool], deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            while not done():
                if not selector.select(max(0.0, deadline - self._clock())):
                    raise unreachable(self.where, f"connected, but {self.codec.missing}")
                self._receive_waiting()

    def _receive_waiting(self) -> None:
        """Take in what is there between requests. Raises Failure when the connection is of no more use."""
        while (arrival := self.socket.receive()) is not None:
            try:
                self.codec.receive_idle(self.socket.decrypt(arrival.data))
            except BrokenConnection as error:
                raise unreachable(self.where, str(error)) from None
            self.socket.queue(self.codec.data_to_send())
            self.socket.flush()
            if not arrival.data or not self.codec.usable:
                raise unreachable(self.where, self.codec.ending)

    def still_good(self, deadline: float) -> bool:
        """Whether a request may be sent now. HTTP/2 after an idle while: a ping there and back, which also warms it."""
        try:
            self._receive_waiting()
            if isinstance(self.codec, Http2) and self.idle:
                before = self.codec.pings
                self.socket.queue(self.codec.ping())
                self.socket.flush()
                self._receive_until(lambda: isinstance(self.codec, Http2) and self.codec.pings > before, deadline)
                self.used = self._clock()
        except Failure:
            return False
        return self.codec.usable and self.codec.accepts_requests()

    @property
    def idle(self) -> bool:
        return self._clock() - self.used > IDLE_SECONDS

    def close(self) -> None:
        self.socket.close()


class Exchange:
    """One request on one connection, and what came back. `failure` is None while all goes well; `not_begun`: the server
    did not even begin the request, as it said itself, or because it was just closing a connection kept alive.
    """

    def __init__(self, connection: ClientConnection, request: HttpRequest, answer: AnswerReader) -> None:
        """Everything that can be done before the start is done here: encoding, encrypting. Raises Failure."""
        self.connection = connection
        self.answer = answer
        self.sent = self.sent_late = 0.0  # its last byte left at most so long after the server would have taken it
        self.ended: float | None = None
        self.read_delay = 0.0
        self.heard: float | None = None  # when something of the answer came last
        self.failure: Failure | None = None
        self.complete: float | None = None  # since when the answer is, while its body has not ended
        self.not_begun = False
        self._reuses = connection.requests > 0
        connection.requests += 1
        try:
            connection.socket.queue(connection.codec.encode(request))
        except BrokenConnection as error:
            raise unreachable(connection.where, str(error)) from None

    def receive(self, arrival: Arrival) -> None:
        """Understand one arrival. Sets `ended` with the last."""
        line, codec = self.connection.socket, self.connection.codec
        self.read_delay = max(self.read_delay, arrival.delay)
        self.heard = arrival.at
        try:
            plain = line.decrypt(arrival.data)
            pieces = codec.receive(plain)
            for number, heard in enumerate(pieces, start=1):
                match heard:
                    case Head(status, headers):
                        self.answer.head(status, headers)
                    case Body(data) if number == len(pieces) and plain is not None and line.decrypted_to_end:
                        self._receive_last(arrival, data, plain)
                    case Body(data):
                        self.answer.body(arrival.at, data)
                    case End():
                        self.answer.end(arrival.at, heard)
                        self.ended = arrival.at if self.complete is None else self.complete
            if self.answer.complete and self.complete is None:
                self.complete = arrival.at
            if plain is None and self.ended is None:
                raise BrokenConnection(f"{CLOSED} in the middle of the answer")
        except BrokenConnection as error:
            crossed = isinstance(error, NoAnswer) and self._reuses and arrival.at - self.sent < CROSSING_SECONDS
            self.not_begun = crossed or isinstance(error, NotBegun)
            self.fail(arrival.at, unreachable(self.connection.where, str(error)))
        except Failure as failure:
            self.fail(arrival.at, failure)
        line.queue(codec.data_to_send())

    def _receive_last(self, arrival: Arrival, data: bytes, plain: bytes) -> None:
        """What came last is dated better than what was read together with it: so it is given on by itself."""
        if data and plain.endswith((data, data + CRLF)):
            self.answer.body(arrival.at, data[:-EVENT_END])
            self.answer.body(arrival.end, data[-EVENT_END:])
        else:
            self.answer.body(arrival.at, data)

    def fail(self, at: float, failure: Failure) -> None:
        if self.ended is None:
            # What still comes of this answer must not be taken for the next one's.
            self.connection.socket.queue(self.connection.codec.cancel())
        if self.complete is not None:  # what comes after an answer is no part of it
            self.ended = self.complete
            return
        self.ended = at
        self.failure = failure

    @property
    def reusable(self) -> bool:
        return self.ended is not None and self.connection.codec.usable


class Exchanges:
    """All exchanges of one thread."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, delays: Delays = PROCESS) -> None:
        self._clock = clock
        self._delays = delays
        # When it was last looked what can be read, and since when at most that can be read which was found.
        self._looked = self._since = clock()
        self._selector = selectors.DefaultSelector()
        self._backlog: deque[tuple[Exchange, Arrival]] = deque()
        self._in_flight: set[Exchange] = set()
        self._complete: dict[Exchange, float] = {}  # until when to wait for the end of a body

    def __len__(self) -> int:
        return len(self._in_flight)

    def send(self, *exchanges: Exchange) -> None:
        """Send, one right after the other. `sent` is the instant just before the first byte goes to the network."""
        done = []
        for exchange in exchanges:
            exchange.sent = self._clock()
            done.append(exchange.connection.socket.flush())
            exchange.sent_late = self._clock() - exchange.sent
        for exchange, all_gone in zip(exchanges, done, strict=True):  # answers can wait: they carry their instants
            self._in_flight.add(exchange)
            wanted = selectors.EVENT_READ | (0 if all_gone else selectors.EVENT_WRITE)
            self._selector.register(exchange.connection.socket, wanted, exchange)

    def poll(self, until: float) -> list[Exchange]:
        """Watch until some exchanges have ended, `until` at the latest; answers those, perhaps none."""
        finished: list[Exchange] = []
        while True:
            left = until - self._clock()
            wait = min(left, REST_SECONDS) if self._complete else left
            ready = self._ready(wait if not (self._backlog or finished) else 0.0)
            for key, events in ready:
                self._serve(key.data, events)
            finished += self._end_complete()
            if left <= 0:
                for _ in range(min(len(self._backlog), AT_MOST_LATE)):
                    finished += self._understand()
                return finished
            if self._backlog and not ready:
                finished += self._understand()
            elif finished and not ready:
                return finished

    def _ready(self, seconds: float) -> list[tuple[selectors.SelectorKey, int]]:
        """What can be read or written, waiting so long at most."""
        if 0 < seconds < TICK:
            time.sleep(seconds)
            seconds = 0
        self._since, self._looked = self._looked, self._clock()
        ready = self._selector.select(0)
        if ready or seconds <= TICK:
            return ready
        before = self._delays.mark()
        ready = self._selector.select(min(seconds - TICK, float("inf") if before.known else SLICE))
        after = self._delays.mark()
        # There was nothing a moment ago, and what woke us up cannot have waited longer than that moment and than we
        # took to wake up.
        if before.known:
            late = before.at - self._looked + self._delays.between(before, after, sleeps=1)
            self._looked = max(self._looked, after.at - late)
        self._since = self._looked
        return ready

    def _understand(self) -> list[Exchange]:
        """Take one arrival off the backlog; answers its exchange when that has ended with it."""
        exchange, arrival = self._backlog.popleft()
        if exchange not in self._in_flight:
            return []
        held_back = exchange.connection.codec.unsent
        exchange.receive(arrival)
        self._flush(exchange, arrival.at - arrival.at.late if held_back else None)
        if exchange.ended is None:
            if exchange.complete is not None:
                self._complete.setdefault(exchange, self._clock() + REST_SECONDS)
            return []
        self._finish(exchange)
        return [exchange]

    def _end_complete(self) -> list[Exchange]:
        """End those whose answer is complete, but whose body does not end: their connections are of no more use."""
        if self._backlog or not self._complete:  # what has arrived may hold the end
            return []
        late = [exchange for exchange, until in self._complete.items() if self._clock() >= until]
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
                if not arrival.data:
                    self._selector.unregister(exchange.connection.socket)

    def _flush(self, exchange: Exchange, since: float | None) -> None:
        """`since`: from when on it could have left, where it is part of the request."""
        late = since is not None and exchange.connection.socket.unsent
        done = exchange.connection.socket.flush()
        if since is not None and late:
            now = self._clock()
            exchange.sent_late = min(exchange.sent_late + now - max(since, exchange.sent), now - exchange.sent)
        wanted = selectors.EVENT_READ | (0 if done else selectors.EVENT_WRITE)
        known = self._selector.get_map().get(exchange.connection.socket)
        if known is not None and known.events != wanted:
            self._selector.modify(exchange.connection.socket, wanted, exchange)

    def _finish(self, exchange: Exchange) -> None:
        self._in_flight.discard(exchange)
        self._complete.pop(exchange, None)
        exchange.connection.used = self._clock()
        if exchange.connection.socket in self._selector.get_map():
            self._selector.unregister(exchange.connection.socket)
        if not exchange.reusable:
            exchange.connection.close()

    def catch_up(self) -> None:
        """Understand all that has arrived by now, also if nobody was awake to read it: before it is said of a server
        that it took too long.
        """
        for _ in range(AT_MOST_LATE if self._in_flight else 0):
            ready = self._ready(0.0)
            for key, events in ready:
                self._serve(key.data, events)
            if not ready:
                break
        while self._backlog:
            self._understand()

    def abort(self, failure: Failure | None = None) -> list[Exchange]:
        """End everything that still flies; the servers are told. Answers the exchanges, each failed with `failure`."""
        failure = failure or Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", "the deadline passed")
        self.catch_up()
        ended = list(self._in_flight)
        for exchange in ended:
            self.end(exchange, failure)
        return ended

    def end(self, exchange: Exchange, failure: Failure) -> None:
        """End one exchange early; the server is told."""
        exchange.fail(self._clock(), failure)
        exchange.connection.socket.flush()
        self._finish(exchange)

    def close(self) -> None:
        self.abort()
        self._selector.close()
