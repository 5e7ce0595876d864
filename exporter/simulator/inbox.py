"""What has come in over the sockets of a door, stamped at once and read later, piece by piece.

Of many requests that come together none is stamped late because those before it are still being understood: between
two pieces the event loop looks which sockets have something new.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

Read = Callable[[bytes, int], None]  # the bytes, and when they came, ns of perf_counter


class Inbox:
    """Belongs to the loop it is used in."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[Read, bytes, int]] = deque()

    def put(self, read: Read, data: bytes) -> None:
        """Note the instant, and let `read` have the bytes when their turn comes."""
        self._pieces.append((read, data, time.perf_counter_ns()))
        if len(self._pieces) == 1:
            asyncio.get_running_loop().call_soon(self._read_one)

    def _read_one(self) -> None:
        read, data, received_ns = self._pieces[0]
        try:
            read(data, received_ns)
        finally:
            self._pieces.popleft()
            if self._pieces:
                asyncio.get_running_loop().call_soon(self._read_one)
