"""The router's gRPC server: the gRPC protocol over HTTP/2 by h2, over asyncio's sockets.

gRPC's own server (see grpc_library_server.py) does not tell when a request arrived, and takes more than half a
millisecond of Python for each request. Here every request gets its instant of arrival, and a token goes to the socket
in the call that brings it from the engine. Simplified: no compression; the client keeps the deadline and resets the
stream.
"""

from collections import deque
from collections.abc import Callable
from urllib.parse import quote

import grpc
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from exporter.simulator.active_request import RequestHandler
from exporter.simulator.fmaas import METHODS, SERVICE, FmaasCall
from exporter.simulator.socket_server import ServerConnection, SocketServer

_STREAMS = 10_000  # at once on one connection
_PREFIX = 5  # bytes before each message: compressed or not, and its length
_PATHS = {f"/{SERVICE}/{method}": method for method in METHODS}
_CONFIG = h2.config.H2Configuration(client_side=False, header_encoding="utf-8", validate_inbound_headers=False)


def grpc_server(handler: RequestHandler, listen: str) -> SocketServer:
    return SocketServer(handler, listen, GrpcConnection, alpn=["h2"])


class GrpcConnection(ServerConnection):
    """One client, with any number of calls at the same time."""

    def __init__(self, server: SocketServer) -> None:
        super().__init__(server)
        self._machine = h2.connection.H2Connection(_CONFIG)
        self._streams: dict[int, _GrpcReply] = {}

    def opened(self) -> None:
        self._machine.local_settings = h2.settings.Settings(
            client=False, initial_values={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: _STREAMS}
        )
        self._machine.initiate_connection()
        self.flush()

    def lost(self) -> None:
        for stream in list(self._streams.values()):
            stream.give_up()
        self._streams.clear()

    def read(self, data: bytes, received_ns: int) -> None:
        try:
            for event in self._machine.receive_data(data):
                self._handle(event, received_ns)
        except h2.exceptions.ProtocolError:
            self.flush()
            self.close()
        else:
            self.flush()

    def flush(self) -> None:
        self.write(self._machine.data_to_send())

    def _handle(self, event: h2.events.Event, received_ns: int) -> None:
        match event:
            case h2.events.RequestReceived():
                headers = {str(name): str(value) for name, value in event.headers}
                self._streams[event.stream_id] = _GrpcReply(self, self._machine, event.stream_id, headers)
            case h2.events.DataReceived():
                self._machine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if event.stream_id in self._streams:
                    self._streams[event.stream_id].body += event.data
            case h2.events.StreamEnded() if event.stream_id in self._streams:
                self._streams[event.stream_id].begin(self._server.handler, received_ns)
            case h2.events.StreamReset() if event.stream_id in self._streams:
                self._streams[event.stream_id].give_up()
                self.forget(event.stream_id)
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                for stream in list(self._streams.values()):
                    stream.push()
            case h2.events.ConnectionTerminated():
                self.close()
            case _:
                pass

    def forget(self, number: int) -> None:
        """That stream is over."""
        self._streams.pop(number, None)


class _GrpcReply:
    """One call's two directions. It is the `fmaas.FmaasReply` of its FmaasCall."""

    def __init__(
        self, connection: GrpcConnection, machine: h2.connection.H2Connection, number: int, headers: dict[str, str]
    ) -> None:
        self.body = b""
        self.over = False
        self._machine = machine
        self._number = number
        self._headers = headers
        self._connection = connection
        self._call: FmaasCall | None = None
        self._opened = False
        self._waiting: deque[tuple[bytes, Callable[[], None] | None]] = deque()
        self._trailers: list[tuple[str, str]] | None = None
        self._code = grpc.StatusCode.OK

    def begin(self, handler: RequestHandler, received_ns: int) -> None:
        method = _PATHS.get(self._headers.get(":path", ""))
        message = self.body[_PREFIX:]
        if method is None:
            self.end(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        elif len(self.body) < _PREFIX or self.body[0] or int.from_bytes(self.body[1:_PREFIX]) != len(message):
            self.end(grpc.StatusCode.INTERNAL, "expected one message, not compressed")
        else:
            self._call = FmaasCall(handler, self, method, received_ns, self._headers.get("x-correlation-id", ""))
            self._call.begin(message)

    def give_up(self) -> None:
        """The client went away."""
        self.over = True
        if self._call is not None:
            self._call.leave()

    def send(self, message: bytes, about_to: Callable[[], None]) -> None:
        if self.over:
            return
        if not self._opened:
            self._open()
        self._waiting.append((b"\0" + len(message).to_bytes(4) + message, about_to))
        self.push()

    def end(self, code: grpc.StatusCode, details: str = "") -> None:
        if self.over:
            return
        number: int = code.value[0]
        self._code = code
        self._trailers = [("grpc-status", str(number))]
        if details:
            self._trailers.append(("grpc-message", quote(details, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")))
        self.push()

    def push(self) -> None:
        """Send what the client's window takes, then the trailers."""
        if self.over:
            return
        while self._waiting:
            window = self._machine.local_flow_control_window(self._number)
            size = min(window, self._machine.max_outbound_frame_size)
            if size < 1:
                break
            data, about_to = self._waiting.popleft()
            self._machine.send_data(self._number, data[:size])
            if data[size:]:
                self._waiting.appendleft((data[size:], None))
            if about_to is not None:
                about_to()
        self._connection.flush()
        if self._trailers is not None and not self._waiting:
            # Written down before the client can know that it is over, and look.
            self._leave()
            head = [] if self._opened else _HEAD
            self._machine.send_headers(self._number, [*head, *self._trailers], end_stream=True)
            self._connection.flush()

    def _leave(self) -> None:
        self.over = True
        self._connection.forget(self._number)
        if self._call is not None:
            self._call.leave(self._code.name)

    def _open(self) -> None:
        self._opened = True
        self._machine.send_headers(self._number, _HEAD)


_HEAD = [(":status", "200"), ("content-type", "application/grpc")]
