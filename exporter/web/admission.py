"""When a request is answered: at a bounded pace, fair between clients, and few pages at a time.

Pages are made in the process that measures, so all clients together must not take much of its time.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import anyio

from exporter.web.fair_queue import FairQueue
from exporter.web.token_bucket import Bucket

# Scrapes, health checks and a person's clicks are far below; thousands a second would take the time of the probes.
PACE_SECONDS = 0.02
PACE_BURST = 25
# Pages being made or sent: each holds its memory until the client has taken it.
MAX_PAGES = 16
# While others wait for a page, a client that takes nothing of its own for this long is cut off.
SLOW_CLIENT_SECONDS = 0.2
CHECK_SECONDS = 0.1


class Client(Hashable, Protocol):
    """`sending_since` is set while the client must take a part of its page: `time.monotonic()`."""

    sending_since: float | None

    def cut(self) -> None:
        """Ends its connection."""


@dataclass(eq=False, slots=True)
class WaitingRequest:
    client: Client
    wants_page: bool
    has_token: bool
    admitted: anyio.Event = field(default_factory=anyio.Event)


class Admission:
    """`run` must run while requests wait. `clock` and `sleep` can be replaced, for virtual time."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._pace = Bucket(PACE_SECONDS, PACE_BURST)
        self._queue: FairQueue[WaitingRequest] = FairQueue()
        self._pages: dict[Client, None] = {}
        self._changed = anyio.Event()

    @asynccontextmanager
    async def admitted(
        self, client: Client, key: Hashable, wants_page: bool, has_token: bool = False
    ) -> AsyncIterator[None]:
        """Waits until the client's request may be answered; the answer is made and sent in the block.

        Clients with the same `key` share their turns. Only a request that wants a page counts for MAX_PAGES.
        One that `has_token` counts in the pace already, with the handshake before it.
        """
        waiting = WaitingRequest(client, wants_page, has_token)
        try:
            if self._passes(waiting, key):
                self._admit(waiting)
            else:
                self._queue.add(key, waiting, self._clock())
                self._changed.set()
                try:
                    await waiting.admitted.wait()
                finally:
                    if not waiting.admitted.is_set():
                        self._queue.remove(key, waiting)
            yield
        finally:
            self._pages.pop(client, None)
            self._changed.set()

    def forget(self, key: Hashable) -> None:
        self._queue.forget(key)

    async def run(self) -> None:
        """Admits waiting requests until cancelled. Each is chosen as late as possible."""
        while True:
            await self._until_one_may_go()
            await self._sleep(self._pace.reserve(self._clock()))
            waiting = self._queue.pop(self._clock(), self._may_go)
            if waiting is not None:
                if waiting.has_token:
                    self._pace.give_back()
                self._admit(waiting)

    def _passes(self, waiting: WaitingRequest, key: Hashable) -> bool:
        """Whether it need not wait; it then counts as served."""
        if waiting.has_token:
            # It takes no place that another one waits for.
            if waiting.wants_page and len(self._pages) + self._queue.count(lambda other: other.wants_page) >= MAX_PAGES:
                return False
        elif self._queue or not self._may_go(waiting) or not self._pace.allows(self._clock()):
            return False
        self._queue.served(key, self._clock())
        return True

    def _may_go(self, waiting: WaitingRequest) -> bool:
        return not waiting.wants_page or len(self._pages) < MAX_PAGES

    def _admit(self, waiting: WaitingRequest) -> None:
        if waiting.wants_page:
            self._pages[waiting.client] = None
        self._queue.served(waiting.client, self._clock())
        waiting.admitted.set()

    async def _until_one_may_go(self) -> None:
        while not self._queue.count(self._may_go):
            seconds = CHECK_SECONDS if self._queue else float("inf")
            with anyio.move_on_after(seconds):
                await self._changed.wait()
            self._changed = anyio.Event()
            self._cut_slow_clients()

    def _cut_slow_clients(self) -> None:
        """At most as many clients as requests wait, the slowest first."""
        now = time.monotonic()
        slow = [(client.sending_since, client) for client in self._pages if client.sending_since is not None]
        slow = [(since, client) for since, client in slow if now - since > SLOW_CLIENT_SECONDS]
        for _, client in sorted(slow, key=lambda pair: pair[0])[: len(self._queue)]:
            client.cut()
