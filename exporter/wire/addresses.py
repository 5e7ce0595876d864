"""Connects to the first address of a name that answers ("Happy Eyeballs", RFC 8305).

Some addresses of a name may be dead: IPv6 without a route, a replica that is gone. IPv6 and IPv4 alternate. Each
address is tried a quarter of a second after the one before, or as soon as that has failed.
"""

import errno
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import zip_longest
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

# Seconds until the next address is tried too (RFC 8305, section 5).
HEAD_START = 0.25
# Seconds for which an address that did not answer is tried after the others.
LAST_FOR = 600.0
# How many addresses a message names.
MOST_NAMED = 3
CONNECTING = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)


class Address(NamedTuple):
    family: int
    to: tuple[Any, ...]  # host and port; with IPv6 also its flow and scope


class Connected(NamedTuple):
    """A non-blocking connection. `begun`: when connecting to this address began."""

    socket: socket.socket
    begun: float


class Addresses:
    """One name and port. An address that did not answer is tried last for a while, so that it costs time only once."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._silent: dict[Address, float] = {}  # until when each is tried last

    def connect(self, deadline: float) -> Connected:
        """Raises OSError or ValueError, with what became of each address."""
        found = alternating(resolved(self.host, self.port, deadline - time.perf_counter()))
        now = time.perf_counter()
        self._silent = {address: until for address, until in self._silent.items() if until > now}
        found.sort(key=self._silent.__contains__)
        race = _Race(found, deadline)
        try:
            connected = race.run()
            self._silent |= dict.fromkeys(race.beaten(connected.begun), time.perf_counter() + LAST_FOR)
        finally:
            race.close()
        return connected


def resolved(host: str, port: int, seconds: float) -> list[Address]:
    """The addresses of the name. A resolver that hangs stays behind in its thread: nothing can stop it."""
    try:
        return _look_up(host, port, socket.AI_NUMERICHOST)
    except socket.gaierror:  # a name, not an address
        pass
    answer: SimpleQueue[list[Address] | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answer.put(_look_up(host, port))
        except (OSError, ValueError) as error:  # UnicodeError is a ValueError
            answer.put(error)

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    try:
        found = answer.get(timeout=max(0.0, seconds))
    except Empty:
        raise TimeoutError(errno.ETIMEDOUT, "the name was not resolved in time") from None
    if isinstance(found, Exception):
        raise found
    return found


def _look_up(host: str, port: int, flags: int = 0) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys(Address(family, to) for family, _, _, _, to in found))


def alternating(found: Sequence[Address]) -> list[Address]:
    """The same addresses, the families in turn. Each family keeps its order."""
    families = dict.fromkeys(address.family for address in found)
    by_family = ([address for address in found if address.family == family] for family in families)
    return [address for row in zip_longest(*by_family) for address in row if address is not None]


class _Race:
    """Opens connections to the addresses of one name. The first one wins."""

    def __init__(self, waiting: Sequence[Address], deadline: float) -> None:
        self._waiting = deque(waiting)
        self._deadline = deadline
        self._selector = selectors.DefaultSelector()
        self._open: dict[socket.socket, tuple[Address, float]] = {}
        self._errors: dict[Address, str] = {}

    def run(self) -> Connected:
        next_start = time.perf_counter()
        while self._waiting or self._open:
            now = time.perf_counter()
            if now >= self._deadline:
                break
            if self._waiting and (now >= next_start or not self._open):
                self._start(self._waiting.popleft(), now)
                next_start = now + HEAD_START
            until = min(self._deadline, next_start) if self._waiting and self._open else self._deadline
            for key, _ in self._selector.select(max(0.0, until - time.perf_counter()) if self._open else 0.0):
                connection = key.data
                address, begun = self._open.pop(connection)
                self._selector.unregister(connection)
                failed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not failed:
                    return Connected(connection, begun)
                connection.close()
                self._errors[address] = os.strerror(failed)
                next_start = now
        raise self._no_answer()

    def _start(self, address: Address, now: float) -> None:
        try:
            connection = socket.socket(address.family, socket.SOCK_STREAM)
        except OSError as error:  # a family that this machine does not have
            self._errors[address] = error.strerror or str(error)
            return
        connection.setblocking(False)
        failed = connection.connect_ex(address.to)
        if failed in CONNECTING:
            self._open[connection] = (address, now)
            self._selector.register(connection, selectors.EVENT_WRITE, connection)
        else:
            connection.close()
            self._errors[address] = os.strerror(failed)

    def beaten(self, begun: float) -> list[Address]:
        """The addresses that failed, and those tried before `begun` that have not answered."""
        return [*self._errors, *(address for address, since in self._open.values() if since < begun)]

    def _no_answer(self) -> OSError:
        for address, _ in self._open.values():
            self._errors[address] = "timed out"
        for address in self._waiting:
            self._errors[address] = "not tried, no time was left"
        if len(self._errors) == 1:
            return OSError(0, *self._errors.values())
        named = [f"{address.to[0]} ({why})" for address, why in self._errors.items()]
        more = [f"{len(named) - MOST_NAMED} more"] if len(named) > MOST_NAMED else []
        return OSError(0, f"none of its addresses answers: {', '.join([*named[:MOST_NAMED], *more])}")

    def close(self) -> None:
        for connection in self._open:
            connection.close()
        self._selector.close()
