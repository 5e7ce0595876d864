"""The targets that are probed: starting them, stopping them, and whether they are well.

Each has a task, which waits for one daemon thread per runner. All methods are for the event loop, but for those that
only read: pages may be made in other threads.
"""

import gc
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

import anyio
from anyio import from_thread, to_thread
from anyio.abc import TaskGroup

from exporter.config.target import Target
from exporter.daemon.ledger import Recorder
from exporter.daemon.load import LoadRunner
from exporter.daemon.runner import Runner
from exporter.daemon.threads import run_in_daemon_thread
from exporter.metrics.pages import prepare
from exporter.metrics.pauses import Pauses
from exporter.plan.safety import too_large
from exporter.plan.schedule import phase
from exporter.plan.targets import Plan
from exporter.probes.interface import OwnRequests
from exporter.probes.opening import open_background, open_prober
from exporter.probes.quarantine import Quarantine
from exporter.probes.router.hints import doubled_paths

logger = logging.getLogger("tgi_probe")
# Calls in flight get this long to end by themselves, and then, ended by us, this long to clear their batches. Both
# must fit into the 30 s that Kubernetes gives.
DRAIN_SECONDS = 15.0
CUT_SECONDS = 6.0
# A reload's drain may be under way when the stop comes: what hangs in it is cut first.
LONGEST_STOP_SECONDS = DRAIN_SECONDS + 2 * CUT_SECONDS


class ProbedTarget:
    """One target's runners: that of its probes, then those of its background loads."""

    def __init__(self, runner: Runner, loads: Sequence[LoadRunner]) -> None:
        self.name = runner.name
        self.runner = runner
        self.runners: tuple[Runner | LoadRunner, ...] = (runner, *loads)
        self.ended = anyio.Event()
        self._began = self._stopped = self._failed = False

    async def run(self, alone: anyio.Lock) -> None:
        """Until all runners have ended. They run while it holds `alone`; a predecessor whose thread hangs has it still.

        What was due while a predecessor had the target is skipped as busy.
        """
        had_to_wait = alone.locked()
        async with alone:
            if self._stopped:
                return
            self._began = True
            if had_to_wait:
                self.runner.skip_missed()
            async with anyio.create_task_group() as threads:
                for runner in self.runners:
                    threads.start_soon(self._run_thread, runner)
        self.ended.set()

    async def _run_thread(self, runner: Runner | LoadRunner) -> None:
        """A thread must never end unseen."""
        try:
            await run_in_daemon_thread(runner.run, f"probe-{self.name}")
        except Exception:
            self._failed = True
            logger.critical(
                "the probing of %s ended by a bug of tgi-probe; /-/healthy fails from now on", self.name, exc_info=True
            )

    def stop(self) -> None:
        self._stopped = True
        for runner in self.runners:
            runner.stop()
        if not self._began:
            self.runner.manual_probes.close()
            self.ended.set()

    async def cut(self) -> None:
        """End the calls in flight, then wait for the end. Closing can hang too."""
        async with anyio.create_task_group() as closing:
            for runner in self.runners:
                closing.start_soon(self._cut, runner)
        await self.ended.wait()

    async def _cut(self, runner: Runner | LoadRunner) -> None:
        try:
            await run_in_daemon_thread(runner.cut, f"cut-{self.name}")
        except Exception:
            logger.exception("tgi-probe failed while ending the calls of %s", self.name)

    def is_stuck(self, now: float) -> bool:
        return self._failed or any(runner.watchdog.is_overdue(now) for runner in self.runners)

    def is_ready(self) -> bool:
        """Whether every runner that has something to send has made its first attempt."""
        return all(runner.attempted or not runner.plan.workloads for runner in self.runners)


class ProbedTargets:
    """All targets, by name; one that was stopped is not among them. Their tasks run in `tasks`."""

    def __init__(self, recorder: Recorder, tasks: TaskGroup) -> None:
        self._recorder = recorder
        self._tasks = tasks
        self._targets: dict[str, ProbedTarget] = {}
        # Only one at a time probes a target of this name.
        self._alone: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._quarantines: dict[str, Quarantine] = {}
        self._started = 0

    @property
    def names(self) -> list[str]:
        return list(self._targets)

    def runner(self, name: str) -> Runner | None:
        target = self._targets.get(name)
        return target.runner if target is not None else None

    def stuck(self) -> list[str]:
        """The names of those with a thread that is overdue or dead."""
        now = time.perf_counter()
        return [target.name for target in list(self._targets.values()) if target.is_stuck(now)]

    def not_attempted(self) -> list[str]:
        """The names of those that have not had their first attempt."""
        return [target.name for target in list(self._targets.values()) if not target.is_ready()]

    # --- start

    async def start(self, arriving: Iterable[Plan]) -> None:
        """In a worker thread, so that the event loop goes on: with hundreds of targets it takes seconds."""
        await to_thread.run_sync(self._start, list(arriving))

    def _start(self, arriving: Sequence[Plan]) -> None:
        for line in (*too_large(arriving), *doubled_paths(self._recorder.settings)):
            logger.warning("%s", line)
        for plan in arriving:
            self._recorder.kinds[plan.target.name] = plan.target.kind
            self._recorder.metrics.announce(plan)
            if not plan.workloads:
                logger.warning("target %s has no workload: it is only checked for being up", plan.target.name)
        prepare(self._recorder.metrics.registry, Pauses())
        spare_collector()
        # Only now: the first probes would be late while the series and lines of hundreds of targets are made.
        for plan in arriving:
            from_thread.run_sync(self._begin, self._open(plan))

    def _open(self, plan: Plan) -> ProbedTarget:
        own_requests = OwnRequests()
        quarantine = self._quarantine(plan.target)
        prober = open_prober(plan.target, own_requests, quarantine)
        seed = self._started
        self._started += 1
        runner = Runner(plan.batches, prober, self._recorder, phase(seed), seed=seed, quarantine=quarantine)
        loads = []
        for workload in plan.loads:
            background = open_background(plan.target, workload, own_requests)
            loads.append(LoadRunner(plan.only(workload), background, self._recorder, seed=seed))
        return ProbedTarget(runner, loads)

    def _quarantine(self, target: Target) -> Quarantine:
        """A reload leaves it in force."""
        known = self._quarantines.get(target.name)
        if known is None or not known.applies_to(target):
            known = self._quarantines[target.name] = Quarantine(target)
        return known

    def _begin(self, target: ProbedTarget) -> None:
        self._targets[target.name] = target
        self._tasks.start_soon(target.run, self._alone[target.name])

    # --- stop

    async def drain(self, names: Iterable[str], since: float) -> None:
        """Stop these targets: all are told first, so that it takes as long as the slowest.

        `since` is when the stop was asked for (`anyio.current_time`). DRAIN_SECONDS after it their calls are ended. A
        thread that hangs even then is left behind.
        """
        leaving = [self._targets.pop(name) for name in names]
        for target in leaving:
            target.stop()
        with anyio.CancelScope(deadline=since + DRAIN_SECONDS):
            await _all_ended(leaving)
        stuck = [target for target in leaving if not target.ended.is_set()]
        if not stuck:
            return
        stuck_names = ", ".join(target.name for target in stuck)
        logger.warning("a call outlasts the %g s of draining; ending it: %s", DRAIN_SECONDS, stuck_names)
        with anyio.move_on_after(CUT_SECONDS):
            async with anyio.create_task_group() as cuts:
                for target in stuck:
                    cuts.start_soon(target.cut)


async def _all_ended(targets: Iterable[ProbedTarget]) -> None:
    for target in targets:
        await target.ended.wait()


def spare_collector() -> None:
    """Keep what lives long out of the garbage collector's reach: with hundreds of targets a full collection holds every
    thread up for most of a second. What leaves later is freed all the same: it is in no reference cycle.
    """
    gc.collect(1)
    gc.freeze()
