"""One target's thread: due -> attempt -> record. Keeps the promises of the schedule.

One probe in flight at a time; what is due meanwhile is skipped and counted, never queued. Every attempt that was
started ends in exactly one record, whatever happens, or was abandoned because the daemon stops. Failure is data.
"""

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from exporter.config.workload import Workload
from exporter.observation import Failure, Observation, Outcome, Series, Setup, SkipReason
from exporter.plan.safety import cache_tokens, excess, too_large
from exporter.plan.schedule import CHECK_INTERVAL, Skip, Start, Wait, Window, backoff_after, pause_after, timetable
from exporter.plan.targets import Facts, Plan
from exporter.probes.interface import Abandoned, Asked, GiveWay, Ledger, Occupied, Prober, Result, TooLarge
from exporter.probes.quarantine import Death, Quarantine
from exporter.wire.delays import PROCESS
from exporter.wire.trace_context import new_trace_id

logger = logging.getLogger("tgi_probe")
STOPPING = "the daemon stops"
# A shard is serial: even Info waits behind a user's long prefill.
CONNECT_TIMEOUT = 10.0
SETTLE_TIMEOUT = 10.0
BACKOFF_FIRST = 1.0
BACKOFF_LONGEST = 30.0
# How much longer than promised a turn may take before the runner counts as standing still.
PATIENCE = 30.0
# How long a back-to-back probe stays away when users wait.
GIVE_WAY_SECONDS = 1.0
# How long any probe stays away from another prober's. Long enough that asking does not disturb that one.
OCCUPIED_SECONDS = 0.1
NOT_READY_SECONDS = 5.0  # without its warm-up


@dataclass(frozen=True, slots=True)
class Clock:
    """The runner's only sense of time; tests bring one that does not pass by itself.

    `wait(stop, seconds)` sleeps, but returns early, and True, when `stop` is set.
    """

    now: Callable[[], float] = time.perf_counter
    wait: Callable[[threading.Event, float], bool] = threading.Event.wait


class Runner:
    """Probes one target until told to stop. `run` is the body of its thread."""

    def __init__(
        self,
        plan: Plan,
        prober: Prober,
        ledger: Ledger,
        phase: float = 0.0,
        clock: Clock = Clock(),
        seed: int = 0,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.plan = plan
        self.quarantine = quarantine or Quarantine(plan.target)
        self.name = plan.target.name
        self.attempted = False
        self._prober = prober
        self._ledger = ledger
        self._clock = clock
        self._random = random.Random(seed)
        self._stop = threading.Event()
        # What ends a wait: the stop, or somebody who asks for a probe.
        self._wake = threading.Event()
        self._asked: queue.SimpleQueue[Asked] = queue.SimpleQueue()
        self._window = Window()
        self._failures, self._failed_in_probe = 0, False
        # Why probes gave way, as far as it is said once and not at every turn: to users, and to other probers.
        self._crowd_unknown = ""
        self._occupants: set[str] = set()
        self._connected = self._excused = False  # excused: connecting failed as this process was held up; never twice
        self._checked = float("-inf")
        self._facts: Facts | None = None
        self._workloads: dict[Series, Workload] = dict(plan.series())
        self._warm: set[Series] = set()
        self._said = set(too_large([plan]))  # so the daemon, at its start
        self._held: frozenset[Series] = frozenset()
        self._phase, self._seed, self._promised = phase, seed, clock.now() + PATIENCE
        self._timetable = timetable(plan, clock.now(), phase, seed)

    def stop(self) -> None:
        """Finish the call in flight, clear the batch, end `run`."""
        self._stop.set()
        self._wake.set()

    def cut(self) -> None:
        """The drain time is over: end calls in flight too. What is owed to the server is still paid, in seconds."""
        self.stop()
        self._turn_away()
        self._leave()

    def skip_missed(self) -> None:
        """Before `run`: what was due while a predecessor still held the target is skipped as busy."""
        self._window = Window(busy_until=self._clock.now())

    def probe_now(self, series: Series, patience: float) -> Observation | str:
        """From any thread: one probe out of turn, in the runner's own; else why not. It is shown, never recorded.

        It takes its place among the others: one in flight, no way around a backoff or the duty cycle.
        """
        if self._stop.is_set():
            return STOPPING
        asked = Asked(series, queue.SimpleQueue(), threading.Event())
        self._asked.put(asked)
        self._wake.set()
        try:
            return asked.answer.get(timeout=patience)
        except queue.Empty:
            asked.given_up.set()
            return f"not within {patience:g} s: the target is busy with other probes"

    def stands_still(self, now: float) -> bool:
        """Whether the thread is back later than it promised: it hangs, or it died."""
        return now > self._promised

    def run(self) -> None:
        if self.quarantine.death is not None:
            logger.warning("target %s: %s", self.name, self.quarantine.reason())
        try:
            self._check()
            while not self._stop.is_set():
                self._turn()
        finally:
            self._leave()
            self._ledger.inflight(self.name, 0)
            self._turn_away()

    def _turn_away(self) -> None:
        """Whoever still waits for a probe of his own would keep the HTTP side, and so the daemon, from ending."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._asked.get_nowait().answer.put(STOPPING)

    def _leave(self) -> None:
        try:
            self._prober.close()
        except Failure as failure:
            logger.warning("target %s: something of ours may be left in the server: %s", self.name, failure.detail)

    def _turn(self) -> None:
        if self._answer_one():
            return
        now = self._clock.now()
        match self._timetable.next(now, self._window):
            case Wait(until):
                self._promised = until + PATIENCE
                self._clock.wait(self._wake, min(until - now, threading.TIMEOUT_MAX))
                self._wake.clear()  # who sets it has left a word before
            case Skip(key, _, reason):
                if isinstance(key, Series):
                    self._ledger.skipped(key, reason)
                elif reason is SkipReason.BACKOFF:
                    self._check()
            case Start() as start:
                self._start(start)

    def _answer_one(self) -> bool:
        """Whether somebody had asked for a probe. Whoever gave up meanwhile does not get it any more."""
        try:
            asked = self._asked.get_nowait()
        except queue.Empty:
            return False
        if asked.given_up.is_set():
            return True
        started = self._clock.now()
        workload = self._workloads[asked.series]
        why = excess(self.plan.target, workload, asked.series.batch_size, self._facts)
        if why is None and (reason := self._window.reason_to_skip(started)) is not None:
            why = f"not now ({reason}); again in {self._window.open_from - started:.1f} s"
        if why is not None:
            asked.answer.put(why)
            return True
        self._promise(started, workload)
        self._ledger.inflight(self.name, 1)
        answer: Observation | str = STOPPING
        try:
            answer = observation = self._attempt(asked.series, workload, started, started)
            self._after(asked.series, observation)
        except Abandoned:
            pass
        except (GiveWay, TooLarge) as why_not:
            answer = str(why_not) or "users wait at the target, and it is to give way to them"
        finally:
            self._ledger.inflight(self.name, 0)
        asked.answer.put(answer)
        return True

    def _promise(self, started: float, workload: Workload) -> None:
        """Until when a probe that starts now must be over, or the runner counts as standing still."""
        self._promised = (
            started + 2 * CONNECT_TIMEOUT + SETTLE_TIMEOUT + (workload.warmups + 3) * workload.timeout + PATIENCE
        )

    def _start(self, start: Start) -> None:
        key = start.key
        if not isinstance(key, Series):
            # The very first check is made at the start; the schedule's own first may come right after it.
            if self._clock.now() - self._checked >= CHECK_INTERVAL / 2:
                self._check()
            return
        workload = self._workloads[key]
        if excess(self.plan.target, workload, key.batch_size, self._facts) is not None:
            self._too_large(key)
            return
        started = self._clock.now()
        self._promise(started, workload)
        self._ledger.inflight(self.name, 1)
        try:
            observation = self._attempt(key, workload, start.due, started)
        except Abandoned:
            return
        except TooLarge:
            return self._too_large(key)
        except GiveWay as why:
            return self._give_way(start, why)
        finally:
            self._ledger.inflight(self.name, 0)
        self._ledger.late(self.name, started - start.due)
        self._ledger.record(observation)
        self.attempted = True
        self._after(key, observation)

    def _too_large(self, series: Series) -> None:
        self._ledger.skipped(series, SkipReason.UNSAFE)
        self.attempted = True

    def _give_way(self, start: Start, why: GiveWay) -> None:
        if isinstance(why, Occupied) and str(why) not in self._occupants:
            self._occupants.add(str(why))
            logger.warning("target %s: %s; meanwhile probes are skipped as busy", self.name, why)
        if self._timetable.not_started(start, SkipReason.BUSY) is not None and isinstance(start.key, Series):
            self._ledger.skipped(start.key, SkipReason.BUSY)
        self.attempted = True
        seconds = OCCUPIED_SECONDS if isinstance(why, Occupied) else GIVE_WAY_SECONDS
        self._window = replace(self._window, busy_until=self._clock.now() + seconds)

    def _attempt(self, series: Series, workload: Workload, due: float, started: float) -> Observation:
        """The border: behind it everything that went wrong is an outcome."""
        trace_id = new_trace_id()
        try:
            result = self._probe(series, workload, trace_id)
        except Failure as failure:
            result = Result((), failure.outcome, failure.code, failure.detail, corrections=failure.corrections)
            if failure.may_have_ended_server and self._connected and self._facts is not None:
                death = Death.of(series, workload, self._facts, time.time(), failure.detail)
                self.quarantine.suspect(death, self._facts.connection, self._clock.now())
        except (Abandoned, GiveWay, TooLarge):
            raise
        except Exception as error:  # a bug of ours: it must be seen, but must not end the watching of this target
            logger.exception("tgi-probe failed while probing %s", self.name)
            result = Result((), Outcome.MALFORMED, "INTERNAL", f"tgi-probe failed: {type(error).__name__}: {error}")
        if result.outcome is not Outcome.OK:
            if self._stop.is_set():
                raise Abandoned
            self._pay()
            if self.quarantine.suspected:  # most servers that end are gone at once
                with contextlib.suppress(Failure):
                    self._connect()
        return result.observation(series, due, started, self._clock.now(), trace_id)

    def _probe(self, series: Series, workload: Workload, trace_id: str) -> Result:
        self._connected = False
        facts = self._connect()
        self._connected = True
        self._prober.settle(SETTLE_TIMEOUT)
        why = self._prober.refusal(facts)
        if why is not None:
            return Result((), Outcome.REFUSED, "REFUSED", why)
        why = excess(self.plan.target, workload, series.batch_size, facts)
        if why is not None:
            raise TooLarge(why)
        if self.quarantine.holds(cache_tokens(facts, workload, series.batch_size)):
            return Result((), Outcome.QUARANTINED, "QUARANTINED", self.quarantine.reason())
        self._give_way_to_users()
        setups: list[Setup] = []
        corrections = 0
        if series not in self._warm:
            for _ in range(workload.warmups):
                result = self._prober.probe(workload, series.batch_size, self._stop.is_set)
                setups += result.setups
                corrections += result.corrections
                if result.outcome not in (Outcome.OK, Outcome.DISTURBED):  # a warm-up need not be timed
                    return replace(result, corrections=corrections)
            self._warm.add(series)
        result = self._prober.probe(workload, series.batch_size, self._stop.is_set, trace_id)
        return replace(result, setups=(*setups, *result.setups), corrections=corrections + result.corrections)

    def _give_way_to_users(self) -> None:
        """Also where it cannot be told whether they wait: nothing is sent blindly. Raises GiveWay."""
        try:
            wait = self._prober.users_wait()
        except Failure as failure:
            if self._stop.is_set():
                raise Abandoned from failure
            why = f"probes give way, as if users waited: {failure.detail}"
            if why != self._crowd_unknown:
                logger.warning("target %s: %s", self.name, why)
            self._crowd_unknown = why
            raise GiveWay(why) from failure
        if self._crowd_unknown:
            logger.info("target %s: its queue can be read again", self.name)
        self._crowd_unknown = ""
        if wait:
            raise GiveWay

    def _connect(self) -> Facts:
        """Raises Failure when the target is down. After that, or when it is another one, every series is cold."""
        try:
            connect = partial(self._prober.connect, CONNECT_TIMEOUT)
            facts = connect() if self._excused else PROCESS.excusing(connect, CONNECT_TIMEOUT)
        except Failure as failure:
            if failure.outcome is Outcome.UNREACHABLE and self.quarantine.server_is_gone():
                self._quarantined()
            self._excused = failure.outcome is Outcome.DISTURBED and not self._excused
            if not self._excused:
                self._lost()
            raise
        self._excused = False
        if facts != self._facts:
            self._warm.clear()
            self._facts = facts
            self._hold_back(facts)
        if self.quarantine.server_answers(facts.connection, self._clock.now()):
            self._quarantined()
        self._ledger.up(self.name, facts)
        return facts

    def _quarantined(self) -> None:
        logger.error("target %s: %s", self.name, self.quarantine.reason())
        if self._facts is not None:
            self._hold_back(self._facts)

    def _hold_back(self, facts: Facts) -> None:
        """Say what will never be sent, now that the target has said what it is; of that, none is back to back."""
        for line in too_large([self.plan], facts):
            if line not in self._said:
                self._said.add(line)
                logger.warning("%s", line)
        held = self.quarantine.never_sent(self.plan, facts)
        if held != self._held:
            self._held = held
            self._timetable = timetable(self.plan, self._clock.now(), self._phase, self._seed, held)

    def _lost(self) -> None:
        self._facts = None
        self._warm.clear()
        self._ledger.up(self.name, None)

    def _pay(self) -> None:
        """Free what a failed probe left behind, at once if the server lets us; else before the next probe."""
        with contextlib.suppress(Failure):
            self._prober.settle(SETTLE_TIMEOUT)

    def _after(self, series: Series, observation: Observation) -> None:
        now = self._clock.now()
        busy = now - observation.started
        self._timetable.lasted(series, busy)
        pause_until = now + pause_after(busy, self.plan.max_duty_cycle)
        backoff = 0.0
        if observation.outcome is Outcome.OK or not observation.outcome.judged:
            if observation.outcome is not Outcome.DISTURBED:  # which says nothing of the server
                self._failures, self._failed_in_probe = 0, False
            if observation.outcome is Outcome.REFUSED and self._workloads[series].interval == 0:
                pause_until = max(pause_until, now + CHECK_INTERVAL)
            if observation.outcome is Outcome.NOT_READY:
                pause_until = max(pause_until, now + NOT_READY_SECONDS)
        else:
            self._failures += 1
            self._failed_in_probe |= self._connected
            if observation.outcome is Outcome.UNREACHABLE:
                self._lost()
            backoff = backoff_after(self._failures, BACKOFF_FIRST, BACKOFF_LONGEST, self._random.random())
        self._window = Window(busy_until=now, backoff_until=now + backoff, pause_until=pause_until)

    def _check(self) -> None:
        """Between probes: is it there? So that `tgi_probe_target_up` does not wait for a long interval."""
        self._checked = self._clock.now()
        self._promised = self._checked + 2 * CONNECT_TIMEOUT + PATIENCE
        try:
            with contextlib.suppress(Failure):
                self._connect()
                if self._failures and not self._failed_in_probe:
                    # It was only away, and is back. What failed in a probe gets its full pause: that may be the reason.
                    self._failures = 0
                    self._window = replace(self._window, backoff_until=self._clock.now())
        except Exception:  # as for an attempt: seen, but not the end of watching
            logger.exception("tgi-probe failed while checking %s", self.name)
