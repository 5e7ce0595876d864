"""A background load on one target: requests one by one, at a rate (open) or from so many users (closed).

In open mode the due times do not care how long an answer takes, and each request counts from its due time: a server
that is slow makes its own requests late, and they say so. What is due while too many are on their way is skipped and
counted.
"""

import contextlib
import logging
import random
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from typing import Protocol, assert_never

from exporter.config.workload import Workload
from exporter.daemon.runner import BACKOFF_FIRST, BACKOFF_LONGEST, CONNECT_TIMEOUT, PATIENCE, Clock
from exporter.observation import Failure, Observation, Outcome, Series, SkipReason
from exporter.plan.arrivals import constant, poisson
from exporter.plan.schedule import backoff_after
from exporter.plan.targets import Plan
from exporter.probes.interface import Abandoned, Background, Result

logger = logging.getLogger("tgi_probe")
# How long before its due time a request is made ready: connection checked and warm, text and bytes done.
LEAD = 0.05
LOOK = 0.1
# How long before its due time a connection for it is asked for.
AHEAD = 0.5
# How long before its due time it is asked whether users wait.
FAR_AHEAD = 2.0
# In closed mode: how soon to look again whether a connection is ready.
SOON = 0.01
# In closed mode: how long to stay away while users wait.
GIVE_WAY = 1.0
# How often a bug of ours is logged at most.
LOG_SECONDS = 60.0


class LoadLedger(Protocol):
    """Where a load reports to."""

    def record(self, observation: Observation) -> None: ...
    def skipped(self, series: Series, reason: SkipReason) -> None: ...
    def late(self, target: str, seconds: float) -> None: ...
    def underway(self, target: str, workload: str, requests: int) -> None: ...


class LoadRunner:
    """Sends one workload's requests to one target until told to stop. `run` is the body of its thread.

    `plan` has this one workload. `name` is the target's. Loads with the same `seed` still arrive independently of each
    other: their names count too.
    """

    def __init__(
        self,
        plan: Plan,
        background: Background,
        ledger: LoadLedger,
        clock: Clock | None = None,
        seed: int = 0,
    ) -> None:
        self.plan = plan
        self.name = plan.target.name
        self.attempted = False
        self._workload: Workload = plan.workloads[0]
        self._series = Series(self.name, self._workload.name, 1)
        self._background = background
        self._ledger = ledger
        self._clock = clock or Clock()
        self._random = random.Random(f"{seed} {self._series}")
        self._stop = threading.Event()
        self._failures = 0
        self._backoff_until = float("-inf")
        self._logged = float("-inf")
        self._dues: Iterator[float] | None = None
        self._coming: deque[float] = deque()
        self._promised = self._clock.now() + PATIENCE

    def stop(self) -> None:
        """Cancel what is on its way, end `run`."""
        self._stop.set()

    def cut(self) -> None:
        self._stop.set()
        with contextlib.suppress(Failure):
            self._background.close()

    def stands_still(self, now: float) -> bool:
        """Whether the thread is back later than it promised: it hangs, or it died."""
        return now > self._promised

    def run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._session()
                except Exception as error:  # a bug of ours: it must be seen, but must not end the load
                    self._broken(error)
        finally:
            with contextlib.suppress(Failure):
                self._background.close()
            self._ledger.underway(self.name, self._workload.name, 0)

    def _broken(self, error: Exception) -> None:
        now = self._clock.now()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            logger.exception("tgi-probe failed in the load %s on %s", self._workload.name, self.name)
        result = Result((), Outcome.MALFORMED, "INTERNAL", f"tgi-probe failed: {type(error).__name__}: {error}")
        with contextlib.suppress(Exception):  # it may be the recording itself that fails
            self._record(result, now)
        self._backoff_until = self._clock.now() + BACKOFF_LONGEST
        self._promised = self._backoff_until + PATIENCE
        self._clock.wait(self._stop, BACKOFF_LONGEST)

    def _session(self) -> None:
        """From connecting to the first request that could not even be sent."""
        started = self._clock.now()
        try:
            self._watch_out()
            if self._stop.is_set():
                return
            started = self._clock.now()
            self._promise(2 * CONNECT_TIMEOUT + 3 * self._workload.timeout)
            self._background.connect(CONNECT_TIMEOUT)
            self._background.warm(self._stop.is_set)
            self._failures = 0
            match self._workload.load.mode:
                case "open":
                    self._open()
                case "closed":
                    self._closed()
                case "batch":
                    raise ValueError("a batch is no load")
                case _:
                    assert_never(self._workload.load.mode)
        except Abandoned:
            return
        except Failure as failure:
            result = Result((), failure.outcome, failure.code, failure.detail, corrections=failure.corrections)
            self._record(result, started)
            self._begin()

    def _watch_out(self) -> None:
        """Stay away as long as backing off says. Also until nothing is on its way any more: connecting blocks, and
        nobody would read the answers meanwhile nor hold them to their deadline.
        """
        while not self._stop.is_set():
            self._skip_missed()
            now = self._clock.now()
            if now >= self._backoff_until and not self._background.in_flight:
                return
            until = now + LOOK if now >= self._backoff_until else min(now + LOOK, self._backoff_until)
            self._promise(LOOK)
            self._landed(self._background.poll(until))

    # --- open

    def _begin(self) -> None:
        """The due times run on from the first session, or the first that failed, whatever becomes of the next ones."""
        if self._dues is None and self._workload.load.mode == "open":
            self._dues = self._from_now()

    def _due_until(self, until: float) -> int:
        """How many requests are due until then."""
        assert self._dues is not None
        while not self._coming or self._coming[-1] <= until:
            self._coming.append(next(self._dues))
        return bisect_right(self._coming, until)

    def _skip_missed(self) -> None:
        """What was due while there was no connection, or none was to be made, is skipped and counted."""
        now = self._clock.now()
        if self._dues is not None:
            for _ in range(self._due_until(now)):
                self._coming.popleft()
                self._ledger.skipped(self._series, SkipReason.BACKOFF)

    def _from_now(self) -> Iterator[float]:
        load, now = self._workload.load, self._clock.now()
        assert load.rate is not None
        match load.arrivals:
            case "constant":
                return constant(load.rate, now)
            case "poisson":
                return poisson(load.rate, now, self._random)
            case _:
                assert_never(load.arrivals)

    def _open(self) -> None:
        """Raises Failure when a request cannot even be sent."""
        self._begin()
        self._skip_missed()
        while not self._stop.is_set():
            self._look_ahead()
            due = self._coming[0]
            self._watch_until(due - LEAD)
            if self._stop.is_set():
                return
            reason = self._reason_to_skip(due)
            if reason is None:
                self._background.prepare()
            landed = self._background.poll(due)  # also when it is late already: what has ended must be seen
            while self._clock.now() < due:
                landed += self._background.poll(due)
            if reason is None and self._background.in_flight >= self._workload.load.max_in_flight:
                reason = SkipReason.BUSY
            self._coming.popleft()
            if reason is None and not self._send(due):
                reason = SkipReason.BUSY  # with connecting: no connection is ready
            if reason is not None:
                self._ledger.skipped(self._series, reason)
            self._landed(landed)

    def _reason_to_skip(self, due: float) -> SkipReason | None:
        if due < self._backoff_until:
            return SkipReason.BACKOFF
        return SkipReason.BUSY if self._background.users_wait() else None

    def _look_ahead(self) -> None:
        """Have ready what the next requests of an open load need."""
        now = self._clock.now()
        if self._due_until(now + FAR_AHEAD) and now + AHEAD >= self._backoff_until:
            room = self._workload.load.max_in_flight - self._background.in_flight
            self._background.reserve_connections(min(self._due_until(now + AHEAD), room))

    def _send(self, due: float | None) -> bool:
        if not self._background.send(due):
            return False
        if due is not None:
            self._ledger.late(self.name, self._clock.now() - due)
        self._ledger.underway(self.name, self._workload.name, self._background.in_flight)
        return True

    def _watch_until(self, until: float) -> None:
        while (now := self._clock.now()) < until and not self._stop.is_set():
            self._promise(LOOK)
            if self._dues is not None:
                self._look_ahead()
            self._landed(self._background.poll(min(until, now + LOOK)))

    # --- closed

    def _closed(self) -> None:
        """Raises Failure when a request cannot even be sent."""
        users = self._workload.load.users
        assert users is not None
        while not self._stop.is_set():
            now = self._clock.now()
            if now < self._backoff_until:
                self._watch_until(self._backoff_until)
            elif self._background.in_flight >= users:
                self._promise(LOOK)
                self._background.reserve_connections(0)
                self._landed(self._background.poll(now + LOOK))
            elif self._background.users_wait():
                self._ledger.skipped(self._series, SkipReason.BUSY)
                self._watch_until(now + GIVE_WAY)
            else:
                self._promise(LOOK)
                self._background.reserve_connections(users - self._background.in_flight)
                pause = 0.0 if self._send(None) else SOON
                self._landed(self._background.poll(self._clock.now() + pause))

    # --- what came of it

    def _landed(self, results: list[Result]) -> None:
        for result in results:
            self._record(result, self._clock.now())
        if results:
            self._ledger.underway(self.name, self._workload.name, self._background.in_flight)

    def _record(self, result: Result, started: float) -> None:
        if result.outcome is not Outcome.OK and self._stop.is_set():
            return
        ended = self._clock.now()
        due = started
        for stream in result.streams:
            started, ended = stream.sent, stream.ended
            due = started if stream.intended is None else stream.intended
        observation = Observation(
            self._series,
            due,
            started,
            ended,
            result.outcome,
            result.code,
            result.detail,
            result.streams,
            result.setups,
            corrections=result.corrections,
        )
        self._ledger.record(observation)
        self.attempted = True
        if result.outcome is Outcome.OK:
            self._failures = 0
            return
        if result.outcome is Outcome.DISTURBED:  # by us: the server has done nothing to be left alone for
            return
        self._failures += 1
        pause = backoff_after(self._failures, BACKOFF_FIRST, BACKOFF_LONGEST, self._random.random())
        self._backoff_until = self._clock.now() + pause

    def _promise(self, seconds: float) -> None:
        self._promised = self._clock.now() + seconds + PATIENCE
