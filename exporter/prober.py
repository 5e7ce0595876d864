"""What the runner asks of a target's client, whatever its protocol. `probes` has one for each kind.

Probers block the thread they run in: measured, a synchronous stub adds less to a call than an event loop does, and
with a thread for each target the interpreter, not a queue of callbacks, decides who runs next.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from exporter.observation import Outcome, Stream
from exporter.settings import Workload
from exporter.targets import Facts


class Abandoned(Exception):
    """The daemon stops or reloads and the probe was cut off half-way: no fact about the server, so never recorded."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one probe saw. With several streams some may have ended badly; `outcome` speaks for the whole."""

    streams: tuple[Stream, ...]
    outcome: Outcome = Outcome.OK
    code: str = "OK"
    detail: str = ""


class Prober(Protocol):
    """One target's client, used by one thread at a time, except `close`."""

    def connect(self, timeout: float) -> Facts:
        """Make sure the target answers and say what it is; cheap when it already did. Raises Failure."""

    def refusal(self, facts: Facts) -> str | None:
        """Why not one probe may be sent, with the mend; None when probing is safe."""

    def probe(self, workload: Workload, batch_size: int, stopping: Callable[[], bool]) -> Result:
        """Send one batch and watch it to its end, within `workload.timeout`. Raises Failure, Abandoned."""

    def settle(self, timeout: float) -> None:
        """Free what earlier probes may have left in the server. Raises Failure when it is still owed afterwards."""

    def close(self) -> None:
        """End the connections; calls in flight in another thread end with a Failure."""
