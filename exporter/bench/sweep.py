"""The probes of one sweep over batch sizes, from the same probers as the daemon's."""

import datetime
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from exporter import __version__
from exporter.bench.precision import Precision
from exporter.bench.results import BatchSize, Results, Run, run_of
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Observation, Outcome, Series
from exporter.plan.safety import deadlock, excess, over_limits
from exporter.plan.targets import Facts
from exporter.probes.crash_check import ended_by
from exporter.probes.interface import Abandoned, GiveWay, Prober, Result
from exporter.probes.opening import open_prober
from exporter.probes.quarantine import Quarantine
from exporter.probes.shard.prober import ShardProber

# How often a probe is sent whose values are uncertain, because this process was stopped or lacked CPU.
TRIES = 10
# How often to look whether users still wait, and how long before the sweep ends for it.
USERS_WAIT_SECONDS = 1.0
USERS_WAIT_AT_MOST = 120.0


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What to send. `runs`: of each batch size; None: until `precision` is reached."""

    target: Target
    workload: Workload
    runs: int | None
    precision: Precision


class SweepListener(Protocol):
    """Who is told what happens while it happens, in the thread that probes, between two probes."""

    def begun(self, batch_size: int) -> None: ...

    def ran(self, batch_size: int, run: Run) -> None: ...

    def finished(self, block: BatchSize) -> None: ...

    def said(self, line: str) -> None: ...


class Sweep:
    """Probes every batch size in turn. A daemon pauses until `close`."""

    def __init__(self, plan: SweepPlan, stopping: Callable[[], bool], report: SweepListener) -> None:
        self._plan, self._target, self._workload = plan, plan.target, plan.workload
        self._stopping = stopping
        self._report = report
        self._quarantine = Quarantine(plan.target)
        self._prober: Prober = open_prober(plan.target, quarantine=self._quarantine)
        self._facts: Facts | None = None  # those of the newest connection
        self.results = Results(tgi_probe=__version__)

    def run(self) -> None:
        """Into `results`. The first failure ends the sweep, because the next batch would be larger. What there is until
        then stays. Raises Abandoned where a signal interrupts us between two probes.
        """
        workload = self._workload
        parameters = {"target": self._target.address, "kind": self._target.kind, "runs": self._plan.runs or "auto"}
        parameters |= workload.model_dump(include={"sequence_length", "decode_length", "prompt_cache", "warmups"})
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        parameters |= workload.parameters.model_dump()
        self.results = self.results.model_copy(update={"started": started, "parameters": parameters})
        for batch_size in workload.batch_sizes:
            self._report.begun(batch_size)
            try:
                for run in self._runs(batch_size):
                    self.results = self.results.with_run(batch_size, run)
                    self._report.ran(batch_size, run)
            except (Failure, Abandoned) as end:
                why = end if isinstance(end, Failure) else "interrupted"
                self.results = self.results.model_copy(update={"stopped": f"batch size {batch_size}: {why}"})
                break
            finally:
                self.results = self.results.model_copy(update={"target": self._about()})
            self._report.finished(self.results.batch_sizes[-1])

    def close(self) -> None:
        """Free what is left in the server. Raises Failure, Abandoned where something may stay."""
        self._prober.close()

    def _about(self) -> dict[str, object]:
        """What is known about the server, for the document."""
        facts = self._facts
        names = ("protocol", "ranks", "model", "dtype", "device", "attention", "max_input_tokens", "max_total_tokens")
        said = {} if facts is None else {name: getattr(facts, name) for name in names}
        api = {"api": self._target.api} if self._target.kind == "http" else {}
        return {"kind": self._target.kind} | api | {name: value for name, value in said.items() if value}

    def _runs(self, batch_size: int) -> Iterator[Run]:
        """Raises Failure, Abandoned."""
        for _ in range(self._workload.warmups):
            yield run_of(self._observe(batch_size), warmup=True)
        counted: list[Run] = []
        begun = time.perf_counter()
        while not self._enough(counted, time.perf_counter() - begun):
            counted.append(run_of(self._observe(batch_size)))
            yield counted[-1]

    def _enough(self, runs: list[Run], seconds: float) -> bool:
        if self._plan.runs is not None:
            return len(runs) >= self._plan.runs
        return self._plan.precision.reached(runs, seconds)

    def _observe(self, batch_size: int) -> Observation:
        """One probe, when it is safe, nobody else probes the shard and no user waits; repeated where it was disturbed.

        Raises Failure, Abandoned.
        """
        if self._stopping():
            raise Abandoned
        target, workload = self._target, self._workload
        facts = self._prober.connect(workload.timeout)
        if self._facts is None and (danger := deadlock(target, facts)):
            self._report.said(as_flags(danger))
        self._facts = facts
        why = self._prober.refusal(facts) or excess(target, workload, batch_size, facts) or over_limits(facts, workload)
        if why is not None:
            raise Failure(Outcome.REFUSED, "REFUSED", as_flags(why))
        self._wait_for_others()
        series = Series(target.name, workload.name, batch_size)
        try:
            started, result = self._probed(batch_size)
        except Failure as failure:
            if ended_by(failure, self._prober, self._quarantine, series, workload, facts):
                detail = f"the server ended during this probe: {failure.detail}"
                raise Failure(failure.outcome, failure.code, detail) from None
            raise
        if result.outcome is not Outcome.OK:
            raise Failure(result.outcome, result.code, result.detail)
        return result.observation(series, started, started, time.perf_counter(), "")

    def _wait_for_others(self) -> None:
        """Until no other prober has the shard, and no user waits in the router's queue."""
        if isinstance(self._prober, ShardProber):
            self._prober.reserve(self._stopping, self._report.said)
        until = time.perf_counter() + USERS_WAIT_AT_MOST
        said = False
        while self._prober.users_wait():
            if not said:
                self._report.said("users wait in the queue: waiting until none does")
            said = True
            if self._stopping():
                raise Abandoned
            if time.perf_counter() > until:
                raise Failure(Outcome.OVERLOADED, "BUSY", f"users have been waiting for {USERS_WAIT_AT_MOST:g} s")
            time.sleep(USERS_WAIT_SECONDS)

    def _probed(self, batch_size: int) -> tuple[float, Result]:
        """When the last try began, and its result. Raises Failure, Abandoned."""
        for tries_left in reversed(range(TRIES)):
            started = time.perf_counter()
            try:
                result = self._prober.probe(self._workload, batch_size, self._stopping)
            except GiveWay as occupied:
                raise Failure(Outcome.OVERLOADED, "BUSY", str(occupied)) from None
            if result.outcome is not Outcome.DISTURBED or not tries_left:
                return started, result
            if self._stopping():
                break
        raise Abandoned


def as_flags(text: str) -> str:
    """A message about keys of a target, with the names of this command's options."""
    text = text.replace("kv_cache: ", "--kv-cache ")
    for key in Target.LIMITS:
        text = re.sub(rf"(?<!tgi_)\b{key}\b", f"--{key.replace('_', '-')}", text)
    return text
