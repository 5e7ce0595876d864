"""The sockets of one server: connections, instants of arrival, writing.

Each piece of data gets its instant of arrival at once and is parsed later. So when many requests arrive together, the
parsing of the first ones does not make the instants of the others late. Between two pieces the event loop reads the
sockets that have new data.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from exporter.simulator.active_request import RequestHandler
from exporter.simulator.listen_errors import cannot_listen
from exporter.simulator.options import host_and_port
from exporter.simulator.router_options import server_context

_BACKLOG = 4096
# asyncio needs some turns of its loop to accept a client. One whose server closes meanwhile is never closed.
_ACCEPTING_TURNS = 5


class SocketServer:
    """Listens in the running loop; every client is a `connect(server)`. `alpn` are the protocols that TLS offers."""

    def __init__(
        self,
        handler: RequestHandler,
        listen: str,
        connect: "Callable[[SocketServer], ServerConnection]",
        alpn: Sequence[str] = (),
    ) -> None:
        self.handler = handler
        self.connections: set[ServerConnection] = set()
        self._listen = listen
        self._connect = connect
        self._alpn = list(alpn)
        self._server: asyncio.Server | None = None
        self._pieces: deque[tuple[ServerConnection, bytes, int]] = deque()

    async def open(self) -> str:
        """Listen; answers host:port. OSError if the address is taken."""
        host, port = host_and_port(self._listen)
        tls = self.handler.config.tls
        context = server_context(tls) if tls else None
        if context and self._alpn:
            context.set_alpn_protocols(self._alpn)
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: self._connect(self), host, port, backlog=_BACKLOG, ssl=context
            )
        except OSError as error:
            raise cannot_listen(self._listen, error) from None
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        if self._server is None:
            return
        loop = asyncio.get_running_loop()
        for listening in self._server.sockets:
            loop.remove_reader(listening.fileno())
        for _ in range(_ACCEPTING_TURNS):
            await asyncio.sleep(0)
        self._server.close()
        for connection in list(self.connections):
            connection.abort()
        await self._server.wait_closed()

    def received(self, connection: "ServerConnection", data: bytes) -> None:
        """Note the instant, and let the connection read when its turn comes."""
        self._pieces.append((connection, data, time.perf_counter_ns()))
        if len(self._pieces) == 1:
            asyncio.get_running_loop().call_soon(self._read_one)

    def _read_one(self) -> None:
        connection, data, received_ns = self._pieces[0]
        try:
            if connection.connected:
                connection.read(data, received_ns)
        finally:
            self._pieces.popleft()
            if self._pieces:
                asyncio.get_running_loop().call_soon(self._read_one)


class ServerConnection(asyncio.Protocol):
    """One client's socket; the protocol spoken on it is a subclass."""

    def __init__(self, server: SocketServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None

    @property
    def connected(self) -> bool:
        return self._transport is not None

    def read(self, data: bytes, received_ns: int) -> None:
        """These bytes came at that instant, ns of perf_counter."""
        raise NotImplementedError

    def opened(self) -> None:
        """The client is there."""

    def lost(self) -> None:
        """The client is gone."""

    def write(self, data: bytes) -> None:
        if self._transport is None or not data:
            return
        size = self._server.handler.config.fragment or len(data)
        for at in range(0, len(data), size):
            self._transport.write(data[at : at + size])

    def close(self) -> None:
        """Once all is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections.add(self)
        self.opened()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)
        self.lost()

    def data_received(self, data: bytes) -> None:
        self._server.received(self, data)
