"""Probes one target by its schedule: due -> attempt -> record.

One probe at a time; what is due meanwhile is skipped and counted, never queued. Every attempt ends in exactly one
record, whatever happens, or is abandoned because the daemon stops.
"""

import logging
import random
import threading
from contextlib import suppress
from dataclasses import replace

from exporter.daemon.attempt import Attempts, Ledger, TooLarge
from exporter.daemon.manual_probe import STOPPING, ManualProbes
from exporter.daemon.timing import BACKOFF_FIRST, BACKOFF_LONGEST, TARGET_CONNECT_SECONDS, Clock, Watchdog
from exporter.observation import Failure, Observation, Outcome, Series, SkipReason
from exporter.plan.schedule import CHECK_INTERVAL, Skip, Start, Wait, Window, backoff_after, pause_after, timetable
from exporter.plan.targets import Plan
from exporter.probes.interface import Abandoned, GiveWay, Occupied, Prober
from exporter.probes.quarantine import Quarantine

logger = logging.getLogger("tgi_probe")
# How long a back-to-back probe stays away when users wait.
GIVE_WAY_SECONDS = 1.0
# How long any probe stays away while another prober has the target. Asking that often does not disturb the other one.
OCCUPIED_SECONDS = 0.1
# How long a server is left alone that has not had its warm-up.
NOT_READY_SECONDS = 5.0


class Runner:
    """Probes one target until it is stopped. `run` blocks its thread; `stop`, `cut` and the rest are for any thread.

    `attempted`: whether the first attempt is over.
    """

    def __init__(
        self,
        plan: Plan,
        prober: Prober,
        ledger: Ledger,
        phase: float = 0.0,
        clock: Clock | None = None,
        seed: int = 0,
        quarantine: Quarantine | None = None,
    ) -> None:
        clock = clock or Clock()
        self.plan, self.name = plan, plan.target.name
        self.attempted = False
        self.watchdog = Watchdog(clock.now())
        self._quarantine = quarantine or Quarantine(plan.target)
        self._prober = prober
        self._ledger = ledger
        self._clock = clock
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._wake = threading.Event()  # ends a wait: the stop, or a manual probe
        self.manual_probes = ManualProbes(self._wake)
        self._attempts = Attempts(plan, prober, self._quarantine, ledger, clock, self._stop)
        self._window = Window()
        self._failures, self._failed_in_probe = 0, False
        self._known_occupants: set[str] = set()
        self._checked_at = float("-inf")
        self._phase, self._seed = phase, seed
        self._never_sent: frozenset[Series] = frozenset()
        self._timetable = timetable(plan, clock.now(), phase, seed)

    def stop(self) -> None:
        """Finish the call in flight, clear the batch, end `run`."""
        self._stop.set()
        self._wake.set()

    def cut(self) -> None:
        """Stop, and end the calls in flight too. What is left in the server is still cleared, within seconds."""
        self.stop()
        self.manual_probes.close()
        self._close()

    def skip_missed(self) -> None:
        """Before `run`: what was due until now is skipped as busy, because a predecessor still had the target."""
        self._window = Window(busy_until=self._clock.now())

    def run(self) -> None:
        if self._quarantine.death is not None:
            logger.warning("target %s: %s", self.name, self._quarantine.reason())
        try:
            self._check()
            while not self._stop.is_set():
                self._step()
        finally:
            self._close()
            self._ledger.inflight(self.name, 0)
            self.manual_probes.close()

    def _close(self) -> None:
        try:
            self._prober.close()
        except Failure as failure:
            logger.warning("target %s: something of ours may be left in the server: %s", self.name, failure.detail)

    def _step(self) -> None:
        """Do what comes next, or wait for it."""
        if (asked := self.manual_probes.take()) is not None:
            asked.answer.set_result(self._probe_for_person(asked.series))
            return
        now = self._clock.now()
        if self._never_sent != self._attempts.never_sent:
            self._never_sent = self._attempts.never_sent
            self._timetable = timetable(self.plan, now, self._phase, self._seed, self._never_sent)
        match self._timetable.next(now, self._window):
            case Wait(until):
                self.watchdog.expect_back_by(until)
                self._clock.wait(self._wake, min(until - now, threading.TIMEOUT_MAX))
                self._wake.clear()
            case Skip(Series() as series, _, reason):
                self._ledger.skipped(series, reason)
            case Skip(_, _, reason):
                if reason is SkipReason.BACKOFF:
                    self._check()
            case Start(Series() as series) as start:
                self._probe(series, start)
            case Start():
                # The first check is made at the start; the schedule's own first one may come right after it.
                if now - self._checked_at >= CHECK_INTERVAL / 2:
                    self._check()

    def _probe(self, series: Series, start: Start) -> None:
        if self._attempts.too_large(series) is not None:
            return self._skip_too_large(series)
        started = self._clock.now()
        try:
            observation = self._attempt(series, start.due, started)
        except Abandoned:
            return
        except TooLarge:
            return self._skip_too_large(series)
        except GiveWay as why:
            return self._give_way(series, start, why)
        self._ledger.late(self.name, started - start.due)
        self._ledger.record(observation)
        self.attempted = True
        self._choose_pauses(series, observation)

    def _probe_for_person(self, series: Series) -> Observation | str:
        """A probe that is shown, never recorded; else why not. It waits for a backoff and the duty cycle as others."""
        started = self._clock.now()
        why = self._attempts.too_large(series)
        if why is None and (reason := self._window.reason_to_skip(started)) is not None:
            why = f"not now ({reason}); again in {self._window.open_from - started:.1f} s"
        if why is not None:
            return why
        try:
            observation = self._attempt(series, started, started)
        except Abandoned:
            return STOPPING
        except (GiveWay, TooLarge) as why_not:
            return str(why_not) or "users wait at the target, and it is to give way to them"
        self._choose_pauses(series, observation)
        return observation

    def _attempt(self, series: Series, due: float, started: float) -> Observation:
        """Raises Abandoned, GiveWay, TooLarge."""
        self.watchdog.expect_back_by(started + self._attempts.longest(series))
        self._ledger.inflight(self.name, 1)
        try:
            return self._attempts.make(series, due, started)
        finally:
            self._ledger.inflight(self.name, 0)

    def _skip_too_large(self, series: Series) -> None:
        self._ledger.skipped(series, SkipReason.UNSAFE)
        self.attempted = True

    def _give_way(self, series: Series, start: Start, why: GiveWay) -> None:
        if isinstance(why, Occupied) and str(why) not in self._known_occupants:
            self._known_occupants.add(str(why))
            logger.warning("target %s: %s; meanwhile probes are skipped as busy", self.name, why)
        if self._timetable.not_started(start, SkipReason.BUSY) is not None:
            self._ledger.skipped(series, SkipReason.BUSY)
        self.attempted = True
        seconds = OCCUPIED_SECONDS if isinstance(why, Occupied) else GIVE_WAY_SECONDS
        self._window = replace(self._window, busy_until=self._clock.now() + seconds)

    def _choose_pauses(self, series: Series, observation: Observation) -> None:
        """How long the target is left alone: in proportion to the probe, and longer with each failure in a row."""
        now = self._clock.now()
        busy = now - observation.started
        self._timetable.lasted(series, busy)
        pause_until = now + pause_after(busy, self.plan.max_duty_cycle)
        backoff = 0.0
        if observation.outcome is Outcome.OK or not observation.outcome.judged:
            # A probe that was disturbed says nothing of the server, unless it was answered.
            if observation.outcome is not Outcome.DISTURBED or observation.answered:
                self._failures, self._failed_in_probe = 0, False
            if observation.outcome is Outcome.REFUSED and series in self._timetable.back_to_back:
                pause_until = max(pause_until, now + CHECK_INTERVAL)
            if observation.outcome is Outcome.NOT_READY:
                pause_until = max(pause_until, now + NOT_READY_SECONDS)
        else:
            self._failures += 1
            self._failed_in_probe |= self._attempts.connected
            if observation.outcome is Outcome.UNREACHABLE:
                self._attempts.lost()
            backoff = backoff_after(self._failures, BACKOFF_FIRST, BACKOFF_LONGEST, self._random.random())
        self._window = Window(busy_until=now, backoff_until=now + backoff, pause_until=pause_until)

    def _check(self) -> None:
        """Is it there? Asked between probes, so that `tgi_probe_target_up` does not wait for a long interval."""
        self._checked_at = self._clock.now()
        self.watchdog.expect_back_by(self._checked_at + 2 * TARGET_CONNECT_SECONDS)
        try:
            with suppress(Failure):
                self._attempts.connect()
                if self._failures and not self._failed_in_probe:
                    # It was only away, and is back. A failure in a probe keeps its pause: the probe may be the reason.
                    self._failures = 0
                    self._window = replace(self._window, backoff_until=self._clock.now())
        except Exception:  # a bug of ours is logged, and does not end the probing of this target
            logger.exception("tgi-probe failed while checking %s", self.name)
