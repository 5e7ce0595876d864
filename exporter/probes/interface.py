"""What the runner asks of a target's client, whatever its protocol. `probes` has one for each kind.

Probers block the thread they run in: measured, a synchronous stub adds less to a call than an event loop does, and
with a thread for each target the interpreter, not a queue of callbacks, decides who runs next.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from exporter.config.workload import Workload
from exporter.observation import Observation, Outcome, Series, Setup, SkipReason, Stream
from exporter.plan.targets import Facts


class Abandoned(Exception):
    """The daemon stops or reloads and the probe was cut off half-way: no fact about the server, so never recorded."""


class GiveWay(Exception):
    """The probe is not sent now and counts as skipped: users wait, or may. The text says what else there is to know."""


class Occupied(GiveWay):
    """Another prober has the target; the text says which."""


class TooLarge(Exception):
    """The batch is over the target's limits, as the target itself has just shown; the text says which."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one probe saw. With several streams some may have ended badly; `outcome` speaks for the whole.

    `corrections`: see `Observation`.
    """

    streams: tuple[Stream, ...]
    outcome: Outcome = Outcome.OK
    code: str = "OK"
    detail: str = ""
    setups: tuple[Setup, ...] = ()
    corrections: int = 0

    def observation(self, series: Series, due: float, started: float, ended: float, trace_id: str) -> Observation:
        told = (self.outcome, self.code, self.detail, self.streams, self.setups)
        return Observation(series, due, started, ended, *told, trace_id=trace_id, corrections=self.corrections)


@dataclass(frozen=True, slots=True)
class Asked:
    """A probe that somebody asked for, and where the answer goes."""

    series: Series
    answer: "queue.SimpleQueue[Observation | str]"
    given_up: threading.Event


class OwnRequests:
    """Our own requests on their way at one target, over all the threads that send some: users are the others."""

    def __init__(self) -> None:
        self._counts: dict[object, int] = {}

    def set(self, who: object, requests: int) -> None:
        self._counts[who] = requests

    def total(self) -> int:
        return sum(list(self._counts.values()))


class Prober(Protocol):
    """One target's client, used by one thread at a time, except `close`."""

    def connect(self, timeout: float) -> Facts:
        """Make sure the target answers and say what it is; cheap when it already did. Raises Failure."""

    def refusal(self, facts: Facts) -> str | None:
        """Why not one probe may be sent, with the mend; None when probing is safe."""

    def users_wait(self) -> bool:
        """Whether the target asks us to give way, and users wait now. Raises Failure where that cannot be told."""

    def probe(self, workload: Workload, batch_size: int, stopping: Callable[[], bool], trace_id: str = "") -> Result:
        """Send one batch and watch it to its end, within `workload.timeout`. Raises Failure, Abandoned, GiveWay.

        With `trace_id` every call carries it in the W3C header.
        """

    def settle(self, timeout: float) -> None:
        """Free what earlier probes may have left in the server. Raises Failure when it is still owed afterwards."""

    def close(self) -> None:
        """End the connections; calls in flight in another thread end with a Failure."""


class Background(Protocol):
    """One target's client for requests that come one by one. Used by one thread at a time, except `close`."""

    def connect(self, timeout: float) -> Facts:
        """As `Prober.connect`."""

    def users_wait(self) -> bool:
        """As `Prober.users_wait`, but never waits: what it says may be some seconds old, and what it does not know any
        more counts as yes.
        """

    def warm(self, stopping: Callable[[], bool]) -> None:
        """Requests one after the other, unrecorded, until prompts have the right length and a cache what it shall hold.

        Raises Failure, Abandoned.
        """

    @property
    def in_flight(self) -> int:
        """Requests on their way."""

    def reserve_connections(self, requests: int) -> None:
        """So many may be sent soon: what they need is made ready, in other threads."""

    def prepare(self) -> None:
        """Do all that `send` would otherwise lose time with, as far as it can be done now. Raises Failure."""

    def send(self, intended: float | None) -> bool:
        """Begin one request now; it counts from `intended`, if given. False where no connection is ready for it.

        Raises Failure where none can be sent.
        """

    def poll(self, until: float) -> list[Result]:
        """Watch until requests have ended, `until` at the latest; answers them, each with its one stream.

        Raises Abandoned once it was closed.
        """

    def close(self) -> None:
        """As `Prober.close`."""


class Ledger(Protocol):
    """Where a runner reports to."""

    def record(self, observation: Observation) -> None: ...
    def skipped(self, series: Series, reason: SkipReason) -> None: ...
    def late(self, target: str, seconds: float) -> None: ...
    def inflight(self, target: str, probes: int) -> None: ...
    def up(self, target: str, facts: Facts | None) -> None: ...
