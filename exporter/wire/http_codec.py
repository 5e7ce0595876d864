"""HTTP/1.1 and HTTP/2 without I/O: requests to bytes, bytes to `Head`, `Body` and `End`. One request at a time.

The parsers are h11 and h2.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import h11

from exporter.wire.detect import CLOSED, ENOUGH, HTTP1, HTTP2, answers_in
from exporter.wire.http2_frames import Frames, GoAway

# HTTP/2 flow control must never make the server wait for us.
WIDEST_WINDOW = 2**31 - 1
SMALLEST_WINDOW = 65535
# Bytes of a head or of trailers: an error may bring a whole traceback.
LONGEST_HEADERS = 2**20
NO_ANSWER = "no answer in time"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request. `headers` have lower-case names; host and content-length are added.

    `request_id`: by what the server knows it, where the body has such an id.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # may hold a token
    body: bytes = b""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Body:
    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The answer is complete. HTTP/2 has `trailers`, and in `reset` the error code of a stream that was reset."""

    trailers: Mapping[str, str] = field(default_factory=dict)
    reset: int | None = None


HttpEvent = Head | Body | End


class BrokenConnection(Exception):
    """The server broke the protocol, or ended the connection in the middle of an answer."""


class NotBegun(BrokenConnection):
    """The server did not begin the request, so the request may be sent again at once."""


class NoAnswer(BrokenConnection):
    """The connection ended before the first byte of an answer."""


class HttpCodec(Protocol):
    """The state of HTTP on one connection. `usable`: another request may be sent."""

    usable: bool

    @property
    def unsent(self) -> bool:
        """Whether a part of the request waits until the server takes it."""
        return False

    @property
    def ending(self) -> str:
        """Why the connection is not usable, in words."""
        return CLOSED

    @property
    def missing(self) -> str:
        """What `accepts_requests` waits for, in words."""
        return NO_ANSWER

    def first_bytes(self) -> bytes:
        """What a client sends first."""
        return b""

    def accepts_requests(self) -> bool:
        """Whether the server has sent what must come before the first request, and takes a request now."""
        return True

    def encode(self, request: HttpRequest) -> bytes:
        """The bytes of one request. Raises BrokenConnection."""

    def receive(self, data: bytes | None) -> list[HttpEvent]:
        """Parse bytes, perhaps none. None: the connection has ended. Raises BrokenConnection."""

    def receive_idle(self, data: bytes | None) -> None:
        """As `receive`, between two requests: an answer that comes then makes the connection unusable."""

    def data_to_send(self) -> bytes:
        """What the protocol itself has to send, such as acknowledgements."""
        return b""

    def cancel(self) -> bytes:
        """What tells the server to stop the request. The connection is closed afterwards."""


class Http1(HttpCodec):
    """HTTP/1.1, kept alive."""

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=LONGEST_HEADERS)
        self._first = b""
        self.usable = True

    def encode(self, request: HttpRequest) -> bytes:
        headers = [("host", self._authority), *request.headers]
        if request.body or request.method == "POST":
            headers.append(("content-length", str(len(request.body))))
        data = self._parser.send(h11.Request(method=request.method, target=request.path, headers=headers)) or b""
        if request.body:
            data += self._parser.send(h11.Data(data=request.body)) or b""
        return data + (self._parser.send(h11.EndOfMessage()) or b"")

    def receive(self, data: bytes | None) -> list[HttpEvent]:
        events: list[HttpEvent] = []
        if data == b"":  # a TLS record without data; to h11 it would be the end
            return events
        if data is None and self._parser.their_state is h11.IDLE:
            self.usable = False
            return events
        if data is None and self._parser.their_state is h11.SEND_RESPONSE:
            self.usable = False
            raise NoAnswer(f"{CLOSED} without an answer")
        if data is not None and len(self._first) < ENOUGH:
            self._first += data[:ENOUGH]
        try:
            self._parser.receive_data(data or b"")
            while True:
                event = self._parser.next_event()
                if isinstance(event, h11.Response):
                    events.append(Head(event.status_code, _text(event.headers)))
                elif isinstance(event, h11.Data):
                    events.append(Body(bytes(event.data)))
                elif isinstance(event, h11.EndOfMessage):
                    events.append(End())
                    self._next()
                    return events
                elif not isinstance(event, h11.InformationalResponse):
                    self.usable = self.usable and not isinstance(event, h11.ConnectionClosed)
                    return events
        except h11.RemoteProtocolError as error:
            self.usable = False
            raise BrokenConnection(answers_in(self._first, HTTP1) or str(error)) from None

    def receive_idle(self, data: bytes | None) -> None:
        """Any data would be taken for the answer to the next request."""
        self.usable = self.usable and data == b""  # a TLS record without data

    def _next(self) -> None:
        if (
            self._parser.our_state is h11.DONE
            and self._parser.their_state is h11.DONE
            and self._parser.trailing_data == (b"", False)  # nothing more, and not the end of the connection
        ):
            self._parser.start_next_cycle()
        else:
            self.usable = False

    def cancel(self) -> bytes:
        self.usable = False
        return b""  # closing is what tells the server


class Http2(HttpCodec):
    """HTTP/2 for gRPC, with one stream at a time: streams on one connection would share their arrivals."""

    def __init__(self, authority: str, scheme: str) -> None:
        self._authority, self._scheme = authority, scheme
        # Some proxies leave in headers that HTTP/2 forbids. The probe goes on.
        config = h2.config.H2Configuration(client_side=True, header_encoding=None, validate_inbound_headers=False)
        self._parser = h2.connection.H2Connection(config)
        self._frames = Frames()
        self._stream = 0
        self._unsent = b""
        self._first = b""
        self._settings_seen = False
        self._goaway: GoAway | None = None
        self._trailers: Mapping[str, str] = {}
        self.pings = 0
        self.usable = True

    @property
    def unsent(self) -> bool:
        return bool(self._unsent)

    @property
    def ending(self) -> str:
        return CLOSED if self._goaway is None else f"the server is going away ({self._goaway})"

    def first_bytes(self) -> bytes:
        codes = h2.settings.SettingCodes
        # h2 sends only these initial values in its first SETTINGS, not what is assigned later.
        self._parser.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                codes.ENABLE_PUSH: 0,
                codes.INITIAL_WINDOW_SIZE: WIDEST_WINDOW,
                codes.MAX_HEADER_LIST_SIZE: LONGEST_HEADERS,
            },
        )
        self._parser.decoder.max_header_list_size = LONGEST_HEADERS
        self._parser.initiate_connection()
        self._parser.increment_flow_control_window(WIDEST_WINDOW - SMALLEST_WINDOW)
        return self._parser.data_to_send()

    def accepts_requests(self) -> bool:
        return self._settings_seen and self._parser.remote_settings.max_concurrent_streams > 0

    @property
    def missing(self) -> str:
        return "the server takes no requests (SETTINGS_MAX_CONCURRENT_STREAMS 0)" if self._settings_seen else NO_ANSWER

    def ping(self) -> bytes:
        """A PING frame. `pings` counts the answers."""
        self._parser.ping(b"tgiprobe")
        return self._parser.data_to_send()

    def encode(self, request: HttpRequest) -> bytes:
        pseudo = (
            (":method", request.method),
            (":scheme", self._scheme),
            (":path", request.path),
            (":authority", self._authority),
        )
        try:
            stream = self._parser.get_next_available_stream_id()
            self._parser.send_headers(stream, [*pseudo, *request.headers], end_stream=not request.body)
        except h2.exceptions.ProtocolError as error:
            self.usable = False
            raise BrokenConnection(str(error) or type(error).__name__) from None
        self._stream, self._unsent, self._trailers = stream, request.body, {}
        self._frames.begin_request()
        self._send_body()
        return self._parser.data_to_send()

    def _send_body(self) -> None:
        """Send as much of the body as the server's windows allow."""
        while self._unsent:
            room = min(self._parser.local_flow_control_window(self._stream), self._parser.max_outbound_frame_size)
            if room <= 0:
                return
            piece, self._unsent = self._unsent[:room], self._unsent[room:]
            self._parser.send_data(self._stream, piece, end_stream=not self._unsent)

    def receive(self, data: bytes | None) -> list[HttpEvent]:
        if data is None:
            self.usable = False
            stranger = answers_in(self._first, HTTP2)
            if stranger or self._stream:
                after = "" if self._goaway is None else f", after {self._goaway}"
                raise BrokenConnection(stranger or f"{CLOSED} in the middle of the answer{after}")
            return []
        if len(self._first) < ENOUGH:
            self._first += data[:ENOUGH]
        events: list[HttpEvent] = []
        try:
            for frame in self._frames.feed(data):
                if isinstance(frame, GoAway):
                    self._receive_goaway(frame)
                else:
                    for event in self._parser.receive_data(frame):
                        self._handle(event, events)
            if self._unsent and self._stream:
                self._send_body()
        except h2.exceptions.ProtocolError as error:
            self.usable = False
            if not any(isinstance(item, End) for item in events):  # else the answer was complete before
                raise BrokenConnection(answers_in(self._first, HTTP2) or str(error) or type(error).__name__) from None
        return events

    def receive_idle(self, data: bytes | None) -> None:
        self.receive(data)

    def _handle(self, event: h2.events.Event, events: list[HttpEvent]) -> None:
        if isinstance(event, h2.events.DataReceived):  # first, because nearly all are
            if event.flow_controlled_length:
                self._parser.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            events.append(Body(event.data or b""))
        elif isinstance(event, h2.events.ResponseReceived):
            headers = _text(event.headers)
            status = headers.get(":status", "")
            if not (status.isascii() and status.isdecimal() and len(status) == 3):
                self.usable = False
                raise BrokenConnection(f"an answer with the HTTP status {status!r}")
            events.append(Head(int(status), headers))
        elif isinstance(event, h2.events.TrailersReceived):
            self._trailers = _text(event.headers)
        elif isinstance(event, h2.events.StreamEnded) and event.stream_id == self._stream:
            events.append(self._ended(End(self._trailers)))
        elif isinstance(event, h2.events.StreamReset) and event.stream_id == self._stream:
            if event.error_code == h2.errors.ErrorCodes.REFUSED_STREAM:
                raise NotBegun("the server refused the request before it began it (RST_STREAM REFUSED_STREAM)")
            self._unsent = b""
            events.append(self._ended(End({}, int(event.error_code))))
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self._settings_seen = True
        elif isinstance(event, h2.events.PingAckReceived):
            self.pings += 1

    def _ended(self, end: End) -> End:
        if self._unsent:  # the server has answered before it had the whole request
            self._parser.reset_stream(self._stream, error_code=8)  # CANCEL
        self._stream, self._unsent = 0, b""
        return end

    def _receive_goaway(self, goaway: GoAway) -> None:
        """The server finishes the streams up to the last one that it names, and begins no other."""
        self.usable = False
        self._goaway = goaway
        if self._stream > goaway.last_stream:
            raise NotBegun(f"{self.ending} and has not begun the request")

    def data_to_send(self) -> bytes:
        return self._parser.data_to_send()

    def cancel(self) -> bytes:
        self.usable = False
        try:
            if self._stream:
                self._parser.reset_stream(self._stream, error_code=8)  # CANCEL
            self._parser.close_connection()
        except h2.exceptions.ProtocolError:
            pass  # it is closed already
        return self._parser.data_to_send()


def _text(headers: Iterable[tuple[bytes, bytes]] | None) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers or ()}
