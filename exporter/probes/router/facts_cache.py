"""What a target says of itself. It is asked at each connecting, but less often where that takes long."""

import time
from dataclasses import replace

from exporter.observation import Failure
from exporter.plan.targets import Facts
from exporter.probes.router.pool import Pool
from exporter.probes.router.protocol import RouterProtocol

# A request for facts that fails, or takes longer, is slow. (The daemon connects every 10 s.)
SLOW_SECONDS = 1.0
# The timeout where requests do not need the facts.
OPTIONAL_SECONDS = 3.0
# Seconds until a slow request is repeated. It takes no more than this share of the time.
AGAIN_SECONDS = 9.0
SHARE = 0.05


class FactsCache:
    """Asks for facts and keeps the newest, `known`."""

    def __init__(self, protocol: RouterProtocol, pool: Pool) -> None:
        self._protocol, self._pool = protocol, pool
        self.known: Facts | None = None
        self._again = float("-inf")
        self._changed = False

    def facts(self, timeout: float) -> Facts:
        """Raises Failure where the target is not reachable."""
        begun = time.perf_counter()
        try:
            if self.known is not None and begun < self._again:
                self._pool.keep(self._pool.take(timeout))  # only look whether it is still there
                return self.known
            if not self._protocol.needs_facts():
                silent = self.known is not None and self.known.page == "silent"
                timeout = min(timeout, SLOW_SECONDS if silent else OPTIONAL_SECONDS)
            facts = self._protocol.facts(lambda request: self._pool.ask(request, timeout))
        except Failure:
            self.lost()
            raise
        took = time.perf_counter() - begun
        fine = facts.page == "read" and took <= SLOW_SECONDS
        self._again = float("-inf") if fine else begun + took + max(AGAIN_SECONDS, took / SHARE)
        self._changed |= facts != self.known
        self.known = facts
        return facts

    def lost(self) -> None:
        """The connection broke: the next one may lead to another server."""
        self._again = float("-inf")
        self._changed = True
        if self.known is not None:
            self.known = replace(self.known, page="read")

    def changed(self) -> bool:
        """Whether it may be another server or model since the last call."""
        changed, self._changed = self._changed, False
        return changed
