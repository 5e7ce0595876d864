"""Sockets whose bytes carry the instant of their arrival.

On Linux the kernel stamps a packet when it comes in (SO_TIMESTAMPNS). It merges unread bytes and keeps the newest
stamp: eight messages sent over 146 ms and read at once carry the stamp of the last. So the stamp dates the last byte,
however late it is read. The other bytes came earlier, but after the last instant at which nothing was there to read:
`Instant` says how long that may be, and `certainty` decides what may be recorded. Without a stamp (another system, a
sandbox, a unix socket) the instant is the clock right after reading.

Why own sockets: the error in ms (mean / p99) of a token's instant at 1, 8 and 64 streams, one token each 20 ms, against
the server's record:

    grpcio, a thread for each stream      0.64 / 3.7    0.56 / 3.2    2.55 / 6.7
    grpcio, an event loop (grpc.aio)      0.60 / 3.8    0.61 / 2.6    1.24 / 3.6
    own sockets, clock read after recv    0.27 / 0.4    0.31 / 0.6    1.03 / 2.0
    own sockets, the kernel's stamp       0.11 / 0.2    0.03 / 0.1    0.02 / 0.1
"""

import logging
import selectors
import socket
import ssl
import struct
import sys
import time
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from exporter.config import notation
from exporter.observation import Failure, Instant, Outcome
from exporter.wire import connect_errors
from exporter.wire.addresses import Addresses, Connected
from exporter.wire.detect import ANSWERS_PLAIN, CLOSED, plain

logger = logging.getLogger("tgi_probe")
CHUNK = 65536
SHORTEST = 0.001
# Linux' number, for which Python has no name. It is the same on every architecture that has wheels.
SO_TIMESTAMPNS = 35
TIMESPEC = struct.Struct("@ll")
# Two clocks must be read within CLOSE seconds. MOST_READINGS: the number of tries.
CLOSE = 10e-6
MOST_READINGS = 5
ANCILLARY = socket.CMSG_SPACE(TIMESPEC.size)
# Seconds by which the stamp's clock may differ from ours. More means that the clock was set.
CLOCK_SET = 0.01
LONG_AGO = float("-inf")


class Arrival(NamedTuple):
    """Bytes from the network (with TLS: still encrypted). Empty: the other side has closed.

    `at` dates any of the bytes, `end` the last one. They lay unread for up to `delay` seconds.
    """

    at: Instant
    data: bytes
    end: float
    delay: float


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect: `path` of a unix socket, else `host` and `port`. `tls`: None for plain text.

    `addresses`: those of the host, with a memory of which did not answer lately.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    tls: ssl.SSLContext | None = None
    server_name: str = ""
    addresses: Addresses | None = None

    @property
    def authority(self) -> str:
        """For the Host header: `host:port`, without the scheme's own port (RFC 9112, section 3.2)."""
        if self.path:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (80 if self.tls is None else 443) else f"{host}:{self.port}"

    @property
    def where(self) -> str:
        """For messages: the path, or host and port."""
        return self.path or f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def endpoint_of(address: str) -> Endpoint:
    """Of `unix:/path`, `host:port` or an HTTP URL; without TLS."""
    if address.startswith("unix:"):
        return Endpoint(path=address.removeprefix("unix://").removeprefix("unix:"))
    if "://" in address:
        url = notation.split_url(address)
        host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    else:
        host, _, number = address.rpartition(":")
        host, port = host.strip("[]"), int(number)
    return Endpoint(host, port, addresses=Addresses(host, port))


class TimedSocket:
    """One open connection. Queued bytes are encrypted at once and leave with `flush`, so that `flush` can be timed."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        """Connects and shakes hands, within `timeout` seconds in all. Raises Failure (unreachable).

        `begun` is the instant at which connecting to the answering address began. The look-up of the name and other
        addresses are not the server's time.
        """
        deadline = time.perf_counter() + timeout
        self._secure: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._unsent = memoryview(b"")
        self._where = endpoint.where
        try:
            self._socket, self.begun = _connect(endpoint, deadline)
        except (OSError, ValueError) as error:  # ValueError: a name that DNS cannot ask for
            raise unreachable(self._where, getattr(error, "strerror", None) or str(error)) from None
        try:
            self._stamp_arrivals()
            if endpoint.tls is not None:
                self._shake_hands(endpoint, endpoint.tls, deadline)
        except (OSError, ValueError) as error:  # ValueError: a server name that no certificate can have
            self._socket.close()
            raise unreachable(self._where, f"TLS: {_tls_reason(error)}") from None
        self._socket.setblocking(False)
        self.ready = self._last = time.perf_counter()
        # The last instant at which nothing waited to be read; whether the newest reading left bytes behind.
        self._empty, self._more = self.begun, False
        self.decrypted_to_end = True  # the last `decrypt` returned the last byte that it was given

    def _stamp_arrivals(self) -> None:
        """Ask the kernel for time stamps. Some kernels and sandboxes have none."""
        if self._socket.family == getattr(socket, "AF_UNIX", None):
            return
        _set_option(self._socket, socket.IPPROTO_TCP, socket.TCP_NODELAY, "TCP_NODELAY")
        if sys.platform == "linux":
            _set_option(self._socket, socket.SOL_SOCKET, SO_TIMESTAMPNS, "SO_TIMESTAMPNS")

    def _shake_hands(self, endpoint: Endpoint, context: ssl.SSLContext, deadline: float) -> None:
        name = endpoint.server_name or endpoint.host or None
        self._secure = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        first = True
        while True:
            self._socket.settimeout(max(SHORTEST, deadline - time.perf_counter()))
            try:
                self._secure.do_handshake()
            except ssl.SSLWantReadError:
                self._socket.sendall(self._outgoing.read())
            else:
                self._socket.sendall(self._outgoing.read())
                return
            data = self._socket.recv(CHUNK)
            if not data:
                raise OSError(0, f"{CLOSED} in the handshake")
            if first and plain(data):
                raise OSError(0, ANSWERS_PLAIN)
            first = False
            self._incoming.write(data)

    @property
    def protocol(self) -> str | None:
        """What TLS agreed on, such as h2; None in plain text."""
        return self._secure.selected_alpn_protocol() if self._secure else None

    def fileno(self) -> int:
        return self._socket.fileno()

    # --- sending

    def queue(self, data: bytes) -> None:
        """Queue bytes for `flush`."""
        if self._secure is not None and data:
            self._secure.write(data)
            data = self._outgoing.read()
        if data:
            self._unsent = memoryview(bytes(self._unsent) + data) if self._unsent else memoryview(data)

    @property
    def unsent(self) -> bool:
        """Whether queued bytes have not left yet."""
        return bool(self._unsent)

    def flush(self) -> bool:
        """Send what the network takes now. True when nothing is left. A broken connection shows at the next reading."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return False
        except OSError:
            self._unsent = memoryview(b"")
        return True

    # --- receiving

    def receive(self, since: float = LONG_AGO) -> Arrival | None:
        """What has arrived, in one piece; None when there is nothing. Never waits.

        `since`: an instant at which the caller saw nothing to read.
        """
        asked = time.perf_counter()
        try:
            data, ancillary, _, _ = self._socket.recvmsg(CHUNK, ANCILLARY)
        except BlockingIOError:
            self._empty, self._more = asked, False
            return None
        except OSError:
            data, ancillary = b"", []
        now = time.perf_counter()
        since = self._empty if self._more else max(self._empty, since)
        self._more = len(data) == CHUNK
        at = Instant(now, now - since)
        end: float = at
        empty = asked
        for level, kind, stamp in ancillary:
            if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(stamp) == TIMESPEC.size:
                seconds, nanoseconds = TIMESPEC.unpack(stamp)
                stamped = self._on_our_clock(seconds * 1_000_000_000 + nanoseconds)
                if stamped is not None and since - CLOCK_SET < stamped < now + CLOSE:
                    stamped = min(now, max(self._last, stamped))
                    at = Instant(stamped, max(0.0, stamped - since))
                    end = at if self._more else stamped  # a plain float: the garbage collector ignores it
                    empty = max(asked, stamped)
        self._last = float(at)
        if not self._more:
            self._empty = empty
        return Arrival(at, data, end, now - since)

    def _on_our_clock(self, unix_nanoseconds: int) -> float | None:
        """A recent instant of the wall clock on our clock; None where this thread is held up too long."""
        for _ in range(MOST_READINGS):
            before = time.perf_counter()
            age = (time.clock_gettime_ns(time.CLOCK_REALTIME) - unix_nanoseconds) * 1e-9
            after = time.perf_counter()
            if after - before < CLOSE:
                return (before + after) / 2 - age
        return None

    def decrypt(self, data: bytes) -> bytes | None:
        """The decrypted bytes; None where the connection has ended. Raises Failure where they are no TLS."""
        if self._secure is None:
            return data or None
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        found = []
        try:
            while piece := self._secure.read(CHUNK):
                found.append(piece)
                self.decrypted_to_end = not self._incoming.pending
        except ssl.SSLWantReadError:
            return b"".join(found)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        except ssl.SSLError as error:
            raise unreachable(self._where, f"TLS: {error.reason or error}") from None
        return b"".join(found) or None  # the bytes before the end first; the next call finds only the end

    def close(self) -> None:
        self._socket.close()


def _connect(endpoint: Endpoint, deadline: float) -> Connected:
    if not endpoint.path:
        addresses = endpoint.addresses or Addresses(endpoint.host, endpoint.port)
        return addresses.connect(deadline)
    begun = time.perf_counter()
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(max(SHORTEST, deadline - begun))
    try:
        connection.connect(endpoint.path)
    except OSError:
        connection.close()
        raise
    return Connected(connection, begun)


def _set_option(connection: socket.socket, level: int, option: int, name: str) -> None:
    try:
        connection.setsockopt(level, option, 1)
    except OSError as error:
        _say_once(f"the system refuses the socket option {name} ({error.strerror or error}): measured without it")


@cache
def _say_once(line: str) -> None:
    logger.debug(line)


def _tls_reason(error: Exception) -> str:
    for name in ("verify_message", "reason", "strerror"):
        if text := getattr(error, name, None):
            return str(text)
    return str(error)


def new_selector() -> selectors.BaseSelector:
    """Raises Failure when this process has no file descriptor left for it."""
    try:
        return selectors.DefaultSelector()
    except OSError as error:
        raise unreachable("tgi-probe", f"{error.strerror}; {connect_errors.MORE_FILES}") from None


def unreachable(where: str, what: str) -> Failure:
    return Failure(Outcome.UNREACHABLE, "UNAVAILABLE", f"{where}: {what}")
