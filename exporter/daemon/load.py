"""A background load on one target: requests one by one, at a rate (open) or from a number of users (closed).

In open mode the due times do not depend on how long answers take. Latency counts from the due time, so the delay of a
request that was sent late is part of its latency. A request that is due while too many are in flight is skipped and
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
from exporter.daemon.attempt import failed, failed_by_bug
from exporter.daemon.timing import BACKOFF_FIRST, BACKOFF_LONGEST, TARGET_CONNECT_SECONDS, Clock, Watchdog
from exporter.observation import Failure, Observation, Outcome, Series, SkipReason
from exporter.plan.arrivals import constant, poisson
from exporter.plan.schedule import backoff_after
from exporter.plan.targets import Plan
from exporter.probes.interface import Abandoned, Background, Result

logger = logging.getLogger("tgi_probe")
# How long before its due time a request is prepared: its connection checked and warm, its text and bytes made.
PREPARE_SECONDS = 0.05
# How long before its due time a connection is reserved for it.
RESERVE_SECONDS = 0.5
# How long before its due time the target is asked whether users wait.
ASK_QUEUE_SECONDS = 2.0
# How long the client is polled at most before the due times and the stop are looked at again.
POLL_SECONDS = 0.1
# In closed mode: how soon to try again when no connection is ready.
RETRY_SECONDS = 0.01
# In closed mode: how long to stay away while users wait.
GIVE_WAY_SECONDS = 1.0
# How often a bug of ours is logged at most.
LOG_SECONDS = 60.0


class LoadLedger(Protocol):
    """Where a background load reports to."""

    def record(self, observation: Observation) -> None: ...
    def skipped(self, series: Series, reason: SkipReason) -> None: ...
    def late(self, target: str, seconds: float) -> None: ...
    def load_inflight(self, target: str, workload: str, requests: int) -> None: ...


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
        self._schedule: Iterator[float] | None = None
        self._due_times: deque[float] = deque()  # the next ones of the schedule
        self.watchdog = Watchdog(self._clock.now())

    def stop(self) -> None:
        """Cancel the requests in flight, end `run`."""
        self._stop.set()

    def cut(self) -> None:
        """Stop, and close the connections from this thread."""
        self._stop.set()
        with contextlib.suppress(Failure):
            self._background.close()

    def run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._session()
                except Exception as error:  # a bug of ours is logged, and does not end the load
                    self._record_bug(error)
        finally:
            with contextlib.suppress(Failure):
                self._background.close()
            self._ledger.load_inflight(self.name, self._workload.name, 0)

    def _record_bug(self, error: Exception) -> None:
        now = self._clock.now()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            logger.exception("tgi-probe failed in the load %s on %s", self._workload.name, self.name)
        with contextlib.suppress(Exception):  # it may be the recording itself that fails
            self._record(failed_by_bug(error), now)
        self._backoff_until = self._clock.now() + BACKOFF_LONGEST
        self.watchdog.expect_back_by(self._backoff_until)
        self._clock.wait(self._stop, BACKOFF_LONGEST)

    def _session(self) -> None:
        """From connecting to the first request that could not even be sent."""
        started = self._clock.now()
        try:
            self._wait_to_connect()
            if self._stop.is_set():
                return
            started = self._clock.now()
            self._expect_back_in(2 * TARGET_CONNECT_SECONDS + 3 * self._workload.timeout)
            self._background.connect(TARGET_CONNECT_SECONDS)
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
            self._record(failed(failure), started)
            self._start_schedule()

    def _wait_to_connect(self) -> None:
        """Until the backoff is over, and no request is in flight any more: connecting blocks, and meanwhile nothing
        would read their answers or check their deadlines.
        """
        while not self._stop.is_set():
            self._skip_missed()
            now = self._clock.now()
            if now >= self._backoff_until and not self._background.in_flight:
                return
            until = now + POLL_SECONDS
            if now < self._backoff_until:
                until = min(until, self._backoff_until)
            self._expect_back_in(POLL_SECONDS)
            self._record_all(self._background.poll(until))

    # --- open

    def _start_schedule(self) -> None:
        """Once: the due times go on from the first session, or the first that failed, through all later ones."""
        if self._schedule is None and self._workload.load.mode == "open":
            self._schedule = self._due_from_now()

    def _due_until(self, until: float) -> int:
        """How many requests are due until then."""
        assert self._schedule is not None
        while not self._due_times or self._due_times[-1] <= until:
            self._due_times.append(next(self._schedule))
        return bisect_right(self._due_times, until)

    def _skip_missed(self) -> None:
        """What was due while there was no connection, or a backoff, is skipped and counted."""
        now = self._clock.now()
        if self._schedule is not None:
            for _ in range(self._due_until(now)):
                self._due_times.popleft()
                self._ledger.skipped(self._series, SkipReason.BACKOFF)

    def _due_from_now(self) -> Iterator[float]:
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
        self._start_schedule()
        self._skip_missed()
        while not self._stop.is_set():
            self._reserve_connections()
            due = self._due_times[0]
            self._poll_until(due - PREPARE_SECONDS)
            if self._stop.is_set():
                return
            reason = self._reason_to_skip(due)
            if reason is None:
                self._background.prepare()
            results = self._background.poll(due)  # also when it is late already: what has ended must be seen
            while self._clock.now() < due:
                results += self._background.poll(due)
            if reason is None and self._background.in_flight >= self._workload.load.max_in_flight:
                reason = SkipReason.BUSY
            self._due_times.popleft()
            if reason is None and not self._send(due):
                reason = SkipReason.BUSY  # with connecting: no connection is ready
            if reason is not None:
                self._ledger.skipped(self._series, reason)
            self._record_all(results)

    def _reason_to_skip(self, due: float) -> SkipReason | None:
        if due < self._backoff_until:
            return SkipReason.BACKOFF
        return SkipReason.BUSY if self._background.users_wait() else None

    def _reserve_connections(self) -> None:
        """For the next requests of an open load."""
        now = self._clock.now()
        if self._due_until(now + ASK_QUEUE_SECONDS) and now + RESERVE_SECONDS >= self._backoff_until:
            room = self._workload.load.max_in_flight - self._background.in_flight
            self._background.reserve_connections(min(self._due_until(now + RESERVE_SECONDS), room))

    def _send(self, due: float | None) -> bool:
        if not self._background.send(due):
            return False
        if due is not None:
            self._ledger.late(self.name, self._clock.now() - due)
        self._ledger.load_inflight(self.name, self._workload.name, self._background.in_flight)
        return True

    def _poll_until(self, until: float) -> None:
        while (now := self._clock.now()) < until and not self._stop.is_set():
            self._expect_back_in(POLL_SECONDS)
            if self._schedule is not None:
                self._reserve_connections()
            self._record_all(self._background.poll(min(until, now + POLL_SECONDS)))

    # --- closed

    def _closed(self) -> None:
        """Raises Failure when a request cannot even be sent."""
        users = self._workload.load.users
        assert users is not None
        while not self._stop.is_set():
            now = self._clock.now()
            if now < self._backoff_until:
                self._poll_until(self._backoff_until)
            elif self._background.in_flight >= users:
                self._expect_back_in(POLL_SECONDS)
                self._background.reserve_connections(0)
                self._record_all(self._background.poll(now + POLL_SECONDS))
            elif self._background.users_wait():
                self._ledger.skipped(self._series, SkipReason.BUSY)
                self._poll_until(now + GIVE_WAY_SECONDS)
            else:
                self._expect_back_in(POLL_SECONDS)
                self._background.reserve_connections(users - self._background.in_flight)
                pause = 0.0 if self._send(None) else RETRY_SECONDS
                self._record_all(self._background.poll(self._clock.now() + pause))

    # --- results

    def _record_all(self, results: list[Result]) -> None:
        for result in results:
            self._record(result, self._clock.now())
        if results:
            self._ledger.load_inflight(self.name, self._workload.name, self._background.in_flight)

    def _record(self, result: Result, started: float) -> None:
        if result.outcome is not Outcome.OK and self._stop.is_set():
            return
        ended = self._clock.now()
        due = started
        for stream in result.streams:
            started, ended = stream.sent, stream.ended
            due = started if stream.intended is None else stream.intended
        self._ledger.record(result.observation(self._series, due, started, ended, trace_id=""))
        self.attempted = True
        if result.outcome is Outcome.OK:
            self._failures = 0
            return
        if result.outcome is Outcome.DISTURBED:  # by us, so there is no reason to leave the server alone
            return
        self._failures += 1
        pause = backoff_after(self._failures, BACKOFF_FIRST, BACKOFF_LONGEST, self._random.random())
        self._backoff_until = self._clock.now() + pause

    def _expect_back_in(self, seconds: float) -> None:
        self.watchdog.expect_back_by(self._clock.now() + seconds)
