"""A network between the daemon and a server that cuts, resets, holds back, delays, drips, lies or leads elsewhere.

Links are proxies for TCP and unix sockets in a thread with an event loop. They understand just enough of HTTP/1.1 and
HTTP/2 to know which call passes, so that a fault can wait for its moment.
"""

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Literal

import hpack

NetworkFault = Literal[
    "reset", "close", "hold", "delay", "drip", "garbage", "http", "goaway", "goaway_late", "truncate", "elsewhere"
]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS = 0, 1
NOISE = bytes(range(7, 256, 3)) * 4
DELAY_SECONDS = 0.001
DRIP_SECONDS = 0.05  # for each byte
PATIENCE = 20.0
_REQUEST_LINE = re.compile(rb"^(?:GET|POST) (\S+) HTTP/1\.1\r\n")


@dataclass(frozen=True, slots=True)
class Trouble:
    """What happens to the connections of a link: to all of them at once, or (with `method`) before a call of that
    name passes, or after `after` messages of its answer have passed.
    """

    kind: NetworkFault
    method: str = ""
    after: int = 0


class Network:
    """All links, in one thread. `with Network() as network: link = network.link(listen, to)`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._links: list[Link] = []

    def __enter__(self) -> "Network":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links:
            self.do(link.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def link(self, listen: str, to: str) -> "Link":
        """From `listen` (unix:///path or host:port, where port 0 is any) to a server's address."""
        link = Link(self, listen, to)
        self.do(link.open())
        self._links.append(link)
        return link

    def do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)


class Link:
    """One address. Its trouble is set from any thread with `trouble` and `mend`."""

    def __init__(self, network: Network, listen: str, to: str) -> None:
        self.network = network
        self.address = listen
        self.to = to
        self.now: Trouble | None = None
        self._home = to
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()

    async def open(self) -> None:
        if self.address.startswith("unix:"):
            path = self.address.removeprefix("unix://")
            self._server = await asyncio.start_unix_server(self._accepted, path)
            return
        host, _, port = self.address.rpartition(":")
        self._server = await asyncio.start_server(self._accepted, host, int(port))
        self.address = f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.abort()

    def trouble(self, trouble: Trouble, elsewhere: str = "") -> None:
        self.network.do(self._set(trouble, elsewhere or self._home))

    def mend(self) -> None:
        self.network.do(self._set(None, self._home))

    async def _set(self, trouble: Trouble | None, to: str) -> None:
        moved = to != self.to
        self.now, self.to = trouble, to
        for connection in list(self._connections):
            if moved or (trouble is None and connection.lost_bytes):
                connection.abort()  # TCP never loses bytes in between
            elif trouble is None:
                connection.mended.set()
            elif not trouble.method:
                connection.strike(trouble)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            connection.abort()
            self._connections.discard(connection)


class Connection:
    """One client's connection, and ours to the server. Passes whole frames of HTTP/2, other bytes as they come."""

    def __init__(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.mended = asyncio.Event()
        self._link = link
        self._client = (reader, writer)
        self._to_server: asyncio.StreamWriter | None = None
        self.lost_bytes = False
        self._struck: Trouble | None = None
        self._waiting: Trouble | None = None  # its call has passed, and it waits for messages of the answer
        self._messages = 0
        self._http2 = False
        self._headers = hpack.Decoder()

    async def run(self) -> None:
        now = self._link.now
        if now is not None and not now.method and now.kind != "goaway_late":
            self.strike(now)
        try:
            from_server, self._to_server = await connected(self._link.to)
        except OSError:
            return
        down = asyncio.create_task(self._down(from_server))
        try:
            with contextlib.suppress(OSError):
                await self._up()
        finally:
            down.cancel()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await down

    async def _up(self) -> None:
        """From the client to the server."""
        data = b""
        while piece := await self._client[0].read(65536):
            data += piece
            if data.startswith(PREFACE):
                self._http2 = True
                await self._pass_up(PREFACE)
                data = data[len(PREFACE) :]
            if self._http2:
                frames, data = whole_frames(data)
                for frame in frames:
                    path = self._path(frame)
                    if path:
                        self._call(path)
                    await self._pass_up(frame)
            elif not PREFACE.startswith(data):
                found = _REQUEST_LINE.match(data)
                if found:
                    self._call(found[1].decode())
                await self._pass_up(data)
                data = b""

    async def _down(self, reader: asyncio.StreamReader) -> None:
        """From the server to the client."""
        data = b""
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                data += piece
                framed = self._http2 and not data.startswith(b"HTTP/")
                pieces, data = whole_frames(data) if framed else ([data], b"")
                for one in pieces:
                    await self._pass_down(one)
                    self._count(one)
        if self._struck is None or self._struck.kind != "hold":
            self._client[1].close()

    def _path(self, frame: bytes) -> str:
        """The path of a call that begins with this frame."""
        if frame[3] != HEADERS:
            return ""
        flags, block = frame[4], frame[9:]
        if flags & 0x8:  # padded
            block = block[1 : len(block) - block[0]]
        if flags & 0x20:  # with a priority
            block = block[5:]
        fields = dict(self._headers.decode(block, raw=True))
        return bytes(fields.get(b":path", b"")).decode()

    def _call(self, path: str) -> None:
        trouble = self._link.now
        if trouble is None or not trouble.method or path.rpartition("/")[2] != trouble.method.rpartition("/")[2]:
            return
        if trouble.after:
            self._waiting, self._messages = trouble, 0
        else:
            self.strike(trouble)

    def _count(self, piece: bytes) -> None:
        """Of an answer: data frames, or events."""
        if self._waiting is None:
            return
        self._messages += (piece[3:4] == bytes((DATA,))) if self._http2 else piece.count(b"data:")
        if self._messages >= self._waiting.after:
            trouble, self._waiting = self._waiting, None
            self.strike(trouble)

    def strike(self, trouble: Trouble) -> None:
        """The trouble begins on this connection."""
        self._struck = trouble
        self.mended.clear()
        writer = self._client[1]
        match trouble.kind:
            case "reset":
                self.abort(reset=True)
            case "close":
                self.abort()
            case "garbage":
                self.lost_bytes = True
                writer.write(NOISE)
            case "http":
                writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                writer.close()
            case "goaway":  # nothing was processed
                writer.write(goaway(0))
                writer.close()
            case "goaway_late":  # what is under way may end
                writer.write(goaway(2**31 - 1))
            case "hold" | "delay" | "drip" | "truncate" | "elsewhere":
                pass

    async def _pass_up(self, data: bytes) -> None:
        await self._held()
        if self._is("garbage", "http", "goaway", "reset", "close"):
            self.lost_bytes = True
        elif self._to_server is not None:
            self._to_server.write(data)
            await self._to_server.drain()

    async def _pass_down(self, data: bytes) -> None:
        await self._held()
        writer = self._client[1]
        if self._is("garbage", "http", "goaway", "reset", "close"):
            self.lost_bytes = True
            return
        if self._is("truncate"):
            writer.write(data[: len(data) // 2])
            await writer.drain()
            self.abort()
            return
        step = 1 if self._is("drip") else max(1, len(data))
        for at in range(0, len(data), step):
            writer.write(data[at : at + step])
            await writer.drain()
            if self._is("drip"):
                await asyncio.sleep(DRIP_SECONDS)

    async def _held(self) -> None:
        """Lost packets come again when the network is well."""
        if self._is("hold"):
            await self.mended.wait()
        if self._is("delay"):
            await asyncio.sleep(DELAY_SECONDS)

    def _is(self, *kinds: NetworkFault) -> bool:
        return self._struck is not None and not self.mended.is_set() and self._struck.kind in kinds

    def abort(self, reset: bool = False) -> None:
        """At once, both sides; `reset`: as TCP's RST."""
        for writer in (self._client[1], self._to_server):
            if writer is None:
                continue
            sock = writer.get_extra_info("socket")
            if reset and sock is not None and sock.family != socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


async def connected(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(address.removeprefix("unix://"))
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


def whole_frames(data: bytes) -> tuple[list[bytes], bytes]:
    """The complete frames of HTTP/2, and the rest."""
    frames = []
    while len(data) >= 9 and len(data) >= (size := 9 + int.from_bytes(data[:3])):
        frames.append(data[:size])
        data = data[size:]
    return frames, data


def goaway(last_stream: int) -> bytes:
    return struct.pack(">I", 8)[1:] + bytes((7, 0)) + struct.pack(">III", 0, last_stream, 0)
