"""What a target's client offers to the daemon. `probes` has one for each kind of target.

A prober blocks its thread: a synchronous call adds less to what it measures than an event loop does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from exporter.config.workload import Workload
from exporter.observation import Observation, Outcome, Series, Setup, Stream
from exporter.plan.targets import Facts


class Abandoned(Exception):
    """The daemon stops or reloads and cut the probe off. It says nothing about the server, so it is never recorded."""


class GiveWay(Exception):
    """The probe is not sent now and counts as skipped: users wait, or may. The text has the details."""


class Occupied(GiveWay):
    """Another prober has the target; the text says which."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one probe saw. `outcome` is that of the whole: some of several streams may have failed.

    `corrections`: see `Observation`.
    """

    streams: tuple[Stream, ...]
    outcome: Outcome = Outcome.OK
    code: str = "OK"
    detail: str = ""
    setups: tuple[Setup, ...] = ()
    corrections: int = 0

    def observation(self, series: Series, due: float, started: float, ended: float, trace_id: str) -> Observation:
        seen = (self.outcome, self.code, self.detail, self.streams, self.setups)
        return Observation(series, due, started, ended, *seen, trace_id=trace_id, corrections=self.corrections)


class OwnRequests:
    """How many of a target's requests are our own, over all threads. The others come from users."""

    def __init__(self) -> None:
        self._counts: dict[object, int] = {}

    def set(self, who: object, requests: int) -> None:
        self._counts[who] = requests

    def total(self) -> int:
        return sum(list(self._counts.values()))


class Prober(Protocol):
    """One target's client. One thread at a time uses it, except `close`."""

    def connect(self, timeout: float) -> Facts:
        """Make sure that the target answers. Returns its facts; cheap when it already did. Raises Failure."""

    def refusal(self, facts: Facts) -> str | None:
        """Why no probe may be sent, and what to change; None when probing is safe."""

    def users_wait(self) -> bool:
        """Whether the target yields to users, and users wait now. Raises Failure where that is not known."""

    def probe(self, workload: Workload, batch_size: int, stopping: Callable[[], bool], trace_id: str = "") -> Result:
        """Send one batch and watch it to its end, within `workload.timeout`. Raises Failure, Abandoned, GiveWay.

        With `trace_id` every call carries it in the W3C header.
        """

    def settle(self, timeout: float) -> None:
        """Free what earlier probes may have left in the server. Raises Failure where something stays."""

    def close(self) -> None:
        """End the connections. Calls in flight in another thread end with a Failure."""


class Background(Protocol):
    """One target's client for single requests. One thread at a time uses it, except `close`."""

    def connect(self, timeout: float) -> Facts:
        """As `Prober.connect`."""

    def users_wait(self) -> bool:
        """As `Prober.users_wait`, but never waits. The answer may be some seconds old; a too old one counts as yes."""

    def warm(self, stopping: Callable[[], bool]) -> None:
        """Send unrecorded requests until prompts have the right length and the cache is filled.

        Raises Failure, Abandoned.
        """

    @property
    def in_flight(self) -> int:
        """How many requests are in flight."""

    def reserve_connections(self, requests: int) -> None:
        """Prepare for this number of requests, in other threads."""

    def prepare(self) -> None:
        """Do as much of the work of `send` as can be done before. Raises Failure."""

    def send(self, intended: float | None) -> bool:
        """Begin one request now; its time counts from `intended`, if given. False where no connection is ready.

        Raises Failure where none can be sent.
        """

    def poll(self, until: float) -> list[Result]:
        """Wait until requests have ended, `until` at the latest. Returns their results, each with one stream.

        Raises Abandoned after `close`.
        """

    def close(self) -> None:
        """As `Prober.close`."""
