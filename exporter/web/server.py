"""The HTTP server: accepts connections at a bounded pace, keeps their number bounded, and makes pages in a few threads.

Pages are made, passwords checked and the web file read in other threads; the rest runs on the event loop. So a health
check is answered meanwhile, and a slow or silent client costs no thread.
"""

import errno
import socket
import time
from collections.abc import Callable
from functools import partial

import anyio
from anyio.abc import SocketStream, TaskGroup

from exporter.config.notation import ANY_INTERFACE, split_listen_address
from exporter.web.accepted_connection import AcceptedConnection
from exporter.web.access import Guard
from exporter.web.admission import Admission
from exporter.web.routes import Views, answer
from exporter.web.token_bucket import Bucket
from exporter.web.web_file_state import WebFileState
from exporter.wire.connect_errors import MORE_FILES

# Connections whose request is not there yet. Beyond this many the oldest is cut off, first those that never had one.
MAX_IDLE_CONNECTIONS = 128
# Of these, those that had one. Beyond this many the oldest of them is cut off first: new clients need places too.
MAX_KEPT_CONNECTIONS = MAX_IDLE_CONNECTIONS // 2
# Beyond this many connections none is accepted.
MAX_CONNECTIONS = 2 * MAX_IDLE_CONNECTIONS
# The pace of new connections: accepting takes time from the probes too. Scrapers are far below.
ACCEPT_SECONDS = 0.005
BACKLOG = 128
# Threads that make the pages /, /config and the like.
WORKERS = 3
# Threads that make the parts of /metrics, of which only one could work at a time; others wait without a thread.
PART_MAKERS = 1
# After a stop, for responses that were begun.
GRACE_SECONDS = 2.0
# After a failed accept: out of file descriptors, or the client has left again.
ACCEPT_AGAIN_SECONDS = 0.1
OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class WebServer:
    """Listens at once, and answers while `serve` runs. Raises OSError when the address cannot be had.

    `port` and `address` have the real port where port 0 was asked for; `address` is for people.
    `report` gets a kind and a line for what a person should know.
    """

    def __init__(
        self,
        listen_address: str,
        views: Views,
        web_file: WebFileState | None = None,
        report: Callable[[str, str], None] = lambda kind, line: None,
        admission: Admission | None = None,
    ) -> None:
        host, port = split_listen_address(listen_address)
        self._socket = listening_socket(host, port)
        self._socket.setblocking(False)
        self.port = int(self._socket.getsockname()[1])
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self.port}" + (" (every interface)" if host in ANY_INTERFACE else "")
        self._web_file = web_file or WebFileState(None)
        self._guard = Guard(partial(answer, views=views, workers=anyio.CapacityLimiter(WORKERS)), self._web_file)
        self._report = report
        self._admission = admission or Admission()
        self._part_maker = anyio.CapacityLimiter(PART_MAKERS)
        self._pace = Bucket(ACCEPT_SECONDS, MAX_IDLE_CONNECTIONS)
        self._connections: dict[AcceptedConnection, None] = {}

    def close(self) -> None:
        """Only where `serve` never ran: it closes by itself."""
        self._socket.close()

    async def serve(self) -> None:
        """Until cancelled; then it ends within GRACE_SECONDS, whatever its clients do."""
        async with anyio.create_task_group() as tasks:
            with self._socket, self._web_file.followed():
                tasks.start_soon(self._admission.run)
                try:
                    while True:
                        await self._accept(tasks)
                finally:
                    for connection in self._connections:
                        connection.finish_by(anyio.current_time() + GRACE_SECONDS)

    async def _accept(self, tasks: TaskGroup) -> None:
        """One connection. asyncio's own `sock_accept` (3.11) loses one that comes just when it is cancelled."""
        while len(self._connections) >= MAX_CONNECTIONS:
            self._push_out()
            await anyio.sleep(ACCEPT_SECONDS)
        await anyio.wait_readable(self._socket)
        try:
            client, address = self._socket.accept()
        except OSError as error:
            if error.errno in OUT_OF_RESOURCES:
                self._report("accept", f"no connection can be accepted ({error.strerror}): {MORE_FILES}")
            await anyio.sleep(ACCEPT_AGAIN_SECONDS)
            return
        tasks.start_soon(self._serve_client, client, address[0])
        await anyio.sleep(self._pace.reserve(time.monotonic()))

    async def _serve_client(self, client: socket.socket, address: str) -> None:
        with client:
            try:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                stream = await SocketStream.from_socket(client)
            except (OSError, ValueError):
                return  # it has left again
            connection = AcceptedConnection(
                stream, address, self._admission, self._web_file, self._guard, self._part_maker, self._report
            )
            self._connections[connection] = None
            self._push_out()
            try:
                await connection.run()
            finally:
                del self._connections[connection]
                self._admission.forget(connection)

    def _push_out(self) -> None:
        """Cuts off one idle connection if there are too many."""
        idle = [connection for connection in self._connections if connection.is_idle]
        if len(idle) > MAX_IDLE_CONNECTIONS:
            too_many_kept = sum(connection.was_admitted for connection in idle) > MAX_KEPT_CONNECTIONS
            next(connection for connection in idle if connection.was_admitted == too_many_kept).cut()


def listening_socket(host: str, port: int) -> socket.socket:
    """Without a host on every interface, IPv6 and IPv4. Raises OSError."""
    if host in ("", "::") and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    family = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=BACKLOG)
