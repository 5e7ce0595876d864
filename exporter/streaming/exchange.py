"""What a connection's protocol says and hears, without any I/O: one request at a time, on HTTP/1.1 or HTTP/2.

The parsers are h11 and h2. What is heard comes out as `Head`, `Body` and `End`, the same for both.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h11

from exporter.streaming.mistaken import CLOSED, ENOUGH, HTTP1, HTTP2, answers_in

# HTTP/2: never make the server wait for our leave to send; what was read is still acknowledged.
WIDEST_WINDOW = 2**31 - 1
SMALLEST_WINDOW = 65535


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `headers` without host and content-length, names in lower case."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # may hold a token
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Body:
    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The answer is complete. With HTTP/2 its trailers; `reset` is the error code of a stream that was torn down."""

    trailers: Mapping[str, str] = field(default_factory=dict)
    reset: int | None = None


Heard = Head | Body | End


class Broken(Exception):
    """The other side does not keep to the protocol, or ended the connection in the middle of an answer."""


class Talk(Protocol):
    """One connection's side of the protocol. `usable`: another request may be asked on it."""

    usable: bool

    def opening(self) -> bytes:
        """What a client says first."""

    def opened(self) -> bool:
        """Whether the other side has said what must come before the first request."""

    def ask(self, request: Request) -> bytes:
        """The bytes of one request."""

    def hear(self, data: bytes | None) -> list[Heard]:
        """Take in bytes, perhaps none; None: the connection has ended. Raises Broken."""

    def reply(self) -> bytes:
        """What the protocol itself has to answer, such as acknowledgements."""

    def cancel(self) -> bytes:
        """What tells the server to stop the request, before the connection is closed."""


class Http1:
    """HTTP/1.1, kept alive."""

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._machine = h11.Connection(h11.CLIENT)
        self._first = b""
        self.usable = True

    def opening(self) -> bytes:
        return b""

    def opened(self) -> bool:
        return True

    def ask(self, request: Request) -> bytes:
        headers = [("host", self._authority), *request.headers]
        if request.body or request.method == "POST":
            headers.append(("content-length", str(len(request.body))))
        said = self._machine.send(h11.Request(method=request.method, target=request.path, headers=headers)) or b""
        if request.body:
            said += self._machine.send(h11.Data(data=request.body)) or b""
        return said + (self._machine.send(h11.EndOfMessage()) or b"")

    def hear(self, data: bytes | None) -> list[Heard]:
        heard: list[Heard] = []
        if data == b"":  # TLS alone had something to say; to h11 it would be the end
            return heard
        if data is None and self._machine.their_state is h11.IDLE:
            self.usable = False
            return heard
        if data is None and self._machine.their_state is h11.SEND_RESPONSE:
            self.usable = False
            raise Broken(f"{CLOSED} without an answer")
        if data is not None and len(self._first) < ENOUGH:
            self._first += data[:ENOUGH]
        try:
            self._machine.receive_data(data or b"")
            while True:
                event = self._machine.next_event()
                if isinstance(event, h11.Response):
                    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
                    heard.append(Head(event.status_code, headers))
                elif isinstance(event, h11.Data):
                    heard.append(Body(bytes(event.data)))
                elif isinstance(event, h11.EndOfMessage):
                    heard.append(End())
                    self._next()
                    return heard
                elif not isinstance(event, h11.InformationalResponse):
                    self.usable = self.usable and not isinstance(event, h11.ConnectionClosed)
                    return heard
        except h11.RemoteProtocolError as error:
            self.usable = False
            raise Broken(answers_in(self._first, HTTP1) or str(error)) from None

    def _next(self) -> None:
        if (
            self._machine.our_state is h11.DONE
            and self._machine.their_state is h11.DONE
            and self._machine.trailing_data == (b"", False)  # nothing more, and not the end of the connection
        ):
            self._machine.start_next_cycle()
        else:
            self.usable = False

    def reply(self) -> bytes:
        return b""

    def cancel(self) -> bytes:
        self.usable = False
        return b""  # closing is what tells the server


class Http2:
    """HTTP/2 for gRPC, with one stream at a time: streams that share a connection would share their arrivals too."""

    def __init__(self, authority: str, scheme: str) -> None:
        self._authority, self._scheme = authority, scheme
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self._machine = h2.connection.H2Connection(config)
        self._stream = 0
        self._unsent = b""
        self._first = b""
        self._settled = False
        self.pings = 0
        self.usable = True

    def opening(self) -> bytes:
        self._machine.local_settings.initial_window_size = WIDEST_WINDOW
        self._machine.initiate_connection()
        self._machine.increment_flow_control_window(WIDEST_WINDOW - SMALLEST_WINDOW)
        return self._machine.data_to_send()

    def opened(self) -> bool:
        return self._settled

    def ping(self) -> bytes:
        """A question that costs the server nothing; `pings` counts the answers."""
        self._machine.ping(b"tgiprobe")
        return self._machine.data_to_send()

    def ask(self, request: Request) -> bytes:
        pseudo = (
            (":method", request.method),
            (":scheme", self._scheme),
            (":path", request.path),
            (":authority", self._authority),
        )
        self._stream = self._machine.get_next_available_stream_id()
        self._machine.send_headers(self._stream, [*pseudo, *request.headers])
        self._unsent = request.body
        self._send_on()
        return self._machine.data_to_send()

    def _send_on(self) -> None:
        """As much of the body as the server's windows allow."""
        while self._unsent:
            room = min(self._machine.local_flow_control_window(self._stream), self._machine.max_outbound_frame_size)
            if room <= 0:
                return
            piece, self._unsent = self._unsent[:room], self._unsent[room:]
            self._machine.send_data(self._stream, piece, end_stream=not self._unsent)

    def hear(self, data: bytes | None) -> list[Heard]:
        if data is None:
            self.usable = False
            stranger = answers_in(self._first, HTTP2)
            if stranger or self._stream:
                raise Broken(stranger or f"{CLOSED} in the middle of the answer")
            return []
        if len(self._first) < ENOUGH:
            self._first += data[:ENOUGH]
        try:
            events = self._machine.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self.usable = False
            raise Broken(answers_in(self._first, HTTP2) or str(error) or type(error).__name__) from None
        heard: list[Heard] = []
        trailers: dict[str, str] = {}
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                heard.append(Body(event.data or b""))
                if event.flow_controlled_length:
                    self._machine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.ResponseReceived):
                headers = _text(event.headers)
                heard.append(Head(int(headers[":status"]), headers))
            elif isinstance(event, h2.events.TrailersReceived):
                trailers = _text(event.headers)
            elif isinstance(event, h2.events.StreamEnded) and event.stream_id == self._stream:
                self._stream = 0
                heard.append(End(trailers))
            elif isinstance(event, h2.events.StreamReset) and event.stream_id == self._stream:
                self._stream = 0
                heard.append(End({}, int(event.error_code)))
            elif isinstance(event, h2.events.RemoteSettingsChanged):
                self._settled = True
            elif isinstance(event, h2.events.PingAckReceived):
                self.pings += 1
            elif isinstance(event, h2.events.ConnectionTerminated):
                self._terminated(event)
        if self._unsent and self._stream:
            self._send_on()
        return heard

    def _terminated(self, event: h2.events.ConnectionTerminated) -> None:
        """A server that goes away finishes what it has begun; what it has not seen it never will."""
        self.usable = False
        if self._stream and self._stream > (event.last_stream_id or 0):
            raise Broken(f"the server is going away (HTTP/2 error {int(event.error_code or 0)})")

    def reply(self) -> bytes:
        return self._machine.data_to_send()

    def cancel(self) -> bytes:
        self.usable = False
        try:
            if self._stream:
                self._machine.reset_stream(self._stream, error_code=8)  # CANCEL
            self._machine.close_connection()
        except h2.exceptions.ProtocolError:
            pass  # it is closed already
        return self._machine.data_to_send()


def _text(headers: Iterable[tuple[bytes, bytes]] | None) -> dict[str, str]:
    pairs = headers or ()
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}
