"""What a connection's protocol says and hears, without any I/O: one request at a time, on HTTP/1.1 or HTTP/2.

The parsers are h11 and h2. What is heard comes out as `Head`, `Body` and `End`, the same for both.
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
from exporter.wire.http2_frames import FrameError, Frames, GoAway

# HTTP/2: never make the server wait for our leave to send; what was read is still acknowledged.
WIDEST_WINDOW = 2**31 - 1
SMALLEST_WINDOW = 65535
# The longest head or trailers: an error may bring a whole traceback.
LONGEST_HEADERS = 2**20
NO_ANSWER = "no answer in time"


@dataclass(frozen=True, slots=True)
class HttpRequest:
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


HttpEvent = Head | Body | End


class BrokenConnection(Exception):
    """The other side does not keep to the protocol, or ended the connection in the middle of an answer."""


class NotBegun(BrokenConnection):
    """The server has said that it did not begin the request: another connection may be asked the same at once."""


class NoAnswer(BrokenConnection):
    """The connection ended before the first byte of an answer."""


class HttpCodec(Protocol):
    """One connection's side of the protocol. `usable`: another request may be asked on it; `ending`: why not.

    `unsent`: part of the request waits until the other side takes it.
    """

    usable: bool

    @property
    def unsent(self) -> bool: ...

    @property
    def ending(self) -> str: ...

    def first_bytes(self) -> bytes:
        """What a client says first."""

    def accepts_requests(self) -> bool:
        """Whether the other side has said what must come before the first request, and takes a request now."""

    @property
    def missing(self) -> str:
        """What is missing until then, for people."""

    def encode(self, request: HttpRequest) -> bytes:
        """The bytes of one request. Raises BrokenConnection."""

    def receive(self, data: bytes | None) -> list[HttpEvent]:
        """Take in bytes, perhaps none; None: the connection has ended. Raises BrokenConnection."""

    def receive_idle(self, data: bytes | None) -> None:
        """As `hear`, while no request is under way: what must not come then makes the connection unusable."""

    def data_to_send(self) -> bytes:
        """What the protocol itself has to answer, such as acknowledgements."""

    def cancel(self) -> bytes:
        """What tells the server to stop the request, before the connection is closed."""


class Http1:
    """HTTP/1.1, kept alive."""

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=LONGEST_HEADERS)
        self._first = b""
        self.usable = True
        self.unsent = False

    @property
    def ending(self) -> str:
        return CLOSED

    def first_bytes(self) -> bytes:
        return b""

    def accepts_requests(self) -> bool:
        return True

    @property
    def missing(self) -> str:
        return NO_ANSWER

    def encode(self, request: HttpRequest) -> bytes:
        headers = [("host", self._authority), *request.headers]
        if request.body or request.method == "POST":
            headers.append(("content-length", str(len(request.body))))
        said = self._machine.send(h11.Request(method=request.method, target=request.path, headers=headers)) or b""
        if request.body:
            said += self._machine.send(h11.Data(data=request.body)) or b""
        return said + (self._machine.send(h11.EndOfMessage()) or b"")

    def receive(self, data: bytes | None) -> list[HttpEvent]:
        heard: list[HttpEvent] = []
        if data == b"":  # TLS alone had something to say; to h11 it would be the end
            return heard
        if data is None and self._machine.their_state is h11.IDLE:
            self.usable = False
            return heard
        if data is None and self._machine.their_state is h11.SEND_RESPONSE:
            self.usable = False
            raise NoAnswer(f"{CLOSED} without an answer")
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
            raise BrokenConnection(answers_in(self._first, HTTP1) or str(error)) from None

    def receive_idle(self, data: bytes | None) -> None:
        """Whatever it is would be taken for the answer to the next request, or for a part of it."""
        self.usable = self.usable and data == b""  # TLS alone had something to say

    def _next(self) -> None:
        if (
            self._machine.our_state is h11.DONE
            and self._machine.their_state is h11.DONE
            and self._machine.trailing_data == (b"", False)  # nothing more, and not the end of the connection
        ):
            self._machine.start_next_cycle()
        else:
            self.usable = False

    def data_to_send(self) -> bytes:
        return b""

    def cancel(self) -> bytes:
        self.usable = False
        return b""  # closing is what tells the server


class Http2:
    """HTTP/2 for gRPC, with one stream at a time: streams that share a connection would share their arrivals too."""

    def __init__(self, authority: str, scheme: str) -> None:
        self._authority, self._scheme = authority, scheme
        # Headers that HTTP/2 forbids, and that some proxies leave in, are no reason not to measure.
        config = h2.config.H2Configuration(client_side=True, header_encoding=None, validate_inbound_headers=False)
        self._machine = h2.connection.H2Connection(config)
        self._frames = Frames()
        self._stream = 0
        self._unsent = b""
        self._first = b""
        self._settled = False
        self._going: GoAway | None = None
        self._trailers: Mapping[str, str] = {}
        self.pings = 0
        self.usable = True

    @property
    def unsent(self) -> bool:
        return bool(self._unsent)

    @property
    def ending(self) -> str:
        return CLOSED if self._going is None else f"the server is going away ({self._going})"

    def first_bytes(self) -> bytes:
        codes = h2.settings.SettingCodes
        # Given at once: what is assigned later counts for h2, but is not in the first SETTINGS that it sends.
        self._machine.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                codes.ENABLE_PUSH: 0,
                codes.INITIAL_WINDOW_SIZE: WIDEST_WINDOW,
                codes.MAX_HEADER_LIST_SIZE: LONGEST_HEADERS,
            },
        )
        self._machine.decoder.max_header_list_size = LONGEST_HEADERS
        self._machine.initiate_connection()
        self._machine.increment_flow_control_window(WIDEST_WINDOW - SMALLEST_WINDOW)
        return self._machine.data_to_send()

    def accepts_requests(self) -> bool:
        return self._settled and self._machine.remote_settings.max_concurrent_streams > 0

    @property
    def missing(self) -> str:
        return "the server takes no requests (SETTINGS_MAX_CONCURRENT_STREAMS 0)" if self._settled else NO_ANSWER

    def ping(self) -> bytes:
        """A question that costs the server nothing; `pings` counts the answers."""
        self._machine.ping(b"tgiprobe")
        return self._machine.data_to_send()

    def encode(self, request: HttpRequest) -> bytes:
        pseudo = (
            (":method", request.method),
            (":scheme", self._scheme),
            (":path", request.path),
            (":authority", self._authority),
        )
        try:
            stream = self._machine.get_next_available_stream_id()
            self._machine.send_headers(stream, [*pseudo, *request.headers], end_stream=not request.body)
        except h2.exceptions.ProtocolError as error:
            self.usable = False
            raise BrokenConnection(str(error) or type(error).__name__) from None
        self._stream, self._unsent, self._trailers = stream, request.body, {}
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

    def receive(self, data: bytes | None) -> list[HttpEvent]:
        if data is None:
            self.usable = False
            stranger = answers_in(self._first, HTTP2)
            if stranger or self._stream:
                raise BrokenConnection(stranger or self._cut_off())
            return []
        if len(self._first) < ENOUGH:
            self._first += data[:ENOUGH]
        heard: list[HttpEvent] = []
        try:
            for frame in self._frames.feed(data):
                if isinstance(frame, GoAway):
                    self._goes_away(frame)
                else:
                    for event in self._machine.receive_data(frame):
                        self._understand(event, heard)
            if self._unsent and self._stream:
                self._send_on()
        except (h2.exceptions.ProtocolError, FrameError) as error:
            self.usable = False
            if not any(isinstance(item, End) for item in heard):  # else the answer was complete before
                raise BrokenConnection(answers_in(self._first, HTTP2) or str(error) or type(error).__name__) from None
        return heard

    def receive_idle(self, data: bytes | None) -> None:
        self.receive(data)

    def _cut_off(self) -> str:
        after = "" if self._going is None else f", after {self._going}"
        return f"{CLOSED} in the middle of the answer{after}"

    def _understand(self, event: h2.events.Event, heard: list[HttpEvent]) -> None:
        if isinstance(event, h2.events.DataReceived):  # first, because nearly all are
            if event.flow_controlled_length:
                self._machine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            heard.append(Body(event.data or b""))
        elif isinstance(event, h2.events.ResponseReceived):
            headers = _text(event.headers)
            status = headers.get(":status", "")
            if not (status.isascii() and status.isdecimal() and len(status) == 3):
                self.usable = False
                raise BrokenConnection(f"an answer with the HTTP status {status!r}")
            heard.append(Head(int(status), headers))
        elif isinstance(event, h2.events.TrailersReceived):
            self._trailers = _text(event.headers)
        elif isinstance(event, h2.events.StreamEnded) and event.stream_id == self._stream:
            heard.append(self._ended(End(self._trailers)))
        elif isinstance(event, h2.events.StreamReset) and event.stream_id == self._stream:
            if event.error_code == h2.errors.ErrorCodes.REFUSED_STREAM:
                raise NotBegun("the server refused the request before it began it (RST_STREAM REFUSED_STREAM)")
            self._unsent = b""
            heard.append(self._ended(End({}, int(event.error_code))))
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self._settled = True
        elif isinstance(event, h2.events.PingAckReceived):
            self.pings += 1

    def _ended(self, end: End) -> End:
        if self._unsent:  # answered before it had heard us out: the rest is of no use
            self._machine.reset_stream(self._stream, error_code=8)  # CANCEL
        self._stream, self._unsent = 0, b""
        return end

    def _goes_away(self, going: GoAway) -> None:
        """A server that goes away finishes what it has begun; what it has not seen it never will."""
        self.usable = False
        self._going = going
        if self._stream > going.last_stream:
            raise NotBegun(f"{self.ending} and has not begun the request")

    def data_to_send(self) -> bytes:
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
