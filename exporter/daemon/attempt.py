"""One attempt at a target: connect, settle, warm up, probe. Whatever goes wrong becomes an outcome."""

import logging
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

from exporter.config.workload import Workload
from exporter.daemon.timing import TARGET_CONNECT_SECONDS, Clock
from exporter.observation import Failure, Observation, Outcome, Series, Setup, SkipReason
from exporter.plan.safety import cache_tokens, excess, too_large
from exporter.plan.targets import Facts, Plan
from exporter.probes.interface import Abandoned, GiveWay, Prober, Result
from exporter.probes.quarantine import Death, Quarantine
from exporter.wire.delays import PROCESS
from exporter.wire.trace_context import new_trace_id

logger = logging.getLogger("tgi_probe")
SETTLE_TIMEOUT = 10.0


class TooLarge(Exception):
    """The batch is over the limits that the target has just reported; the text says which."""


class Ledger(Protocol):
    """Where a runner reports to."""

    def record(self, observation: Observation) -> None: ...
    def skipped(self, series: Series, reason: SkipReason) -> None: ...
    def late(self, target: str, seconds: float) -> None: ...
    def inflight(self, target: str, probes: int) -> None: ...
    def up(self, target: str, facts: Facts | None) -> None: ...


class Attempts:
    """Makes the attempts at one target, in its runner's thread, and remembers what they have shown.

    `facts`: what the target reported at the newest connection, None while it is away. `connected`: whether the
    newest attempt got past connecting. `never_sent`: the series that the target's limits or its quarantine forbid.
    """

    def __init__(
        self,
        plan: Plan,
        prober: Prober,
        quarantine: Quarantine,
        ledger: Ledger,
        clock: Clock,
        stopping: threading.Event,
    ) -> None:
        self.facts: Facts | None = None
        self.connected = False
        self.never_sent: frozenset[Series] = frozenset()
        self._plan, self._target = plan, plan.target
        self._workloads: dict[Series, Workload] = dict(plan.series())
        self._prober = prober
        self._quarantine = quarantine
        self._ledger = ledger
        self._clock = clock
        self._stopping = stopping
        self._warm: set[Series] = set()
        # Connecting failed while this process was held up. It is excused once, not twice in a row.
        self._excused = False
        self._queue_trouble = ""
        self._logged_limits = set(too_large([plan]))  # the daemon logs them at its start

    def too_large(self, series: Series) -> str | None:
        """Why a batch is over the target's limits, None where it is not."""
        return excess(self._target, self._workloads[series], series.batch_size, self.facts)

    def longest(self, series: Series) -> float:
        """How many seconds an attempt may take."""
        workload = self._workloads[series]
        return 2 * TARGET_CONNECT_SECONDS + SETTLE_TIMEOUT + (workload.warmups + 3) * workload.timeout

    def make(self, series: Series, due: float, started: float) -> Observation:
        """Raises Abandoned when the daemon stops meanwhile; GiveWay or TooLarge when nothing was sent."""
        trace_id = new_trace_id()
        result = self._result(series, trace_id)
        if result.outcome is not Outcome.OK:
            if self._stopping.is_set():
                raise Abandoned
            with suppress(Failure):  # what is left in the server now is freed before the next probe
                self._prober.settle(SETTLE_TIMEOUT)
            if self._quarantine.suspected:
                with suppress(Failure):  # most servers that end are gone at once
                    self.connect()
        observation = result.observation(series, due, started, self._clock.now(), trace_id)
        if observation.answered:
            self._quarantine.server_served()
        return observation

    def _result(self, series: Series, trace_id: str) -> Result:
        try:
            return self._probe(series, trace_id)
        except Failure as failure:
            if failure.may_have_ended_server and self.connected and self.facts is not None:
                death = Death.of(series, self._workloads[series], self.facts, time.time(), failure.detail)
                self._quarantine.suspect(death, self.facts.connection, self._clock.now())
            return failed(failure)
        except (Abandoned, GiveWay, TooLarge):
            raise
        except Exception as error:  # a bug of ours is logged, and does not end the probing of this target
            logger.exception("tgi-probe failed while probing %s", self._target.name)
            return failed_by_bug(error)

    def _probe(self, series: Series, trace_id: str) -> Result:
        workload = self._workloads[series]
        self.connected = False
        facts = self.connect()
        self.connected = True
        self._prober.settle(SETTLE_TIMEOUT)
        if (why := self._prober.refusal(facts)) is not None:
            return Result((), Outcome.REFUSED, "REFUSED", why)
        if (why := self.too_large(series)) is not None:
            raise TooLarge(why)
        if self._quarantine.holds(cache_tokens(facts, workload, series.batch_size)):
            return Result((), Outcome.QUARANTINED, "QUARANTINED", self._quarantine.reason())
        self._give_way_to_users()
        setups: list[Setup] = []
        corrections = 0
        if series not in self._warm:
            for _ in range(workload.warmups):
                result = self._prober.probe(workload, series.batch_size, self._stopping.is_set)
                setups += result.setups
                corrections += result.corrections
                if result.outcome not in (Outcome.OK, Outcome.DISTURBED):  # a warm-up need not be timed
                    return replace(result, corrections=corrections)
            self._warm.add(series)
        result = self._prober.probe(workload, series.batch_size, self._stopping.is_set, trace_id)
        return replace(result, setups=(*setups, *result.setups), corrections=corrections + result.corrections)

    def _give_way_to_users(self) -> None:
        """Raises GiveWay when users wait, and also when the target does not tell whether they do."""
        try:
            wait = self._prober.users_wait()
        except Failure as failure:
            if self._stopping.is_set():
                raise Abandoned from failure
            why = f"probes give way, as if users waited: {failure.detail}"
            if why != self._queue_trouble:
                logger.warning("target %s: %s", self._target.name, why)
            self._queue_trouble = why
            raise GiveWay(why) from failure
        if self._queue_trouble:
            logger.info("target %s: its queue can be read again", self._target.name)
        self._queue_trouble = ""
        if wait:
            raise GiveWay

    def connect(self) -> Facts:
        """Raises Failure when the target is down. After that, or when it is another server, every series is cold."""
        try:
            connect = partial(self._prober.connect, TARGET_CONNECT_SECONDS)
            facts = connect() if self._excused else PROCESS.excusing(connect, TARGET_CONNECT_SECONDS)
        except Failure as failure:
            if failure.outcome is Outcome.UNREACHABLE and self._quarantine.server_is_gone():
                self._log_quarantine()
            self._excused = failure.outcome is Outcome.DISTURBED and not self._excused
            if not self._excused:
                self.lost()
            raise
        self._excused = False
        if facts != self.facts:
            self._warm.clear()
            self.facts = facts
            self._apply_limits(facts)
        if self._quarantine.server_answers(facts.connection, self._clock.now()):
            self._log_quarantine()
        self._ledger.up(self._target.name, facts)
        return facts

    def lost(self) -> None:
        """The target is away."""
        self.facts = None
        self._warm.clear()
        self._ledger.up(self._target.name, None)

    def _log_quarantine(self) -> None:
        logger.error("target %s: %s", self._target.name, self._quarantine.reason())
        if self.facts is not None:
            self._apply_limits(self.facts)

    def _apply_limits(self, facts: Facts) -> None:
        """Now that the target has reported what it is: which series are never sent."""
        for line in too_large([self._plan], facts):
            if line not in self._logged_limits:
                self._logged_limits.add(line)
                logger.warning("%s", line)
        self.never_sent = self._quarantine.never_sent(self._plan, facts)


def failed(failure: Failure) -> Result:
    return Result((), failure.outcome, failure.code, failure.detail, corrections=failure.corrections)


def failed_by_bug(error: Exception) -> Result:
    return Result((), Outcome.MALFORMED, "INTERNAL", f"tgi-probe failed: {type(error).__name__}: {error}")
