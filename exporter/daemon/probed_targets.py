"""The targets that are probed: starting them, stopping them, and whether they are well.

Each has a task, which waits for one daemon thread per runner. All methods are for the event loop, but for those that
only read: pages may be made in other threads.
"""

import gc
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial

import anyio
from anyio.abc import TaskGroup

from exporter.config.target import Target
from exporter.daemon.ledger import Recorder
from exporter.daemon.load import LoadRunner
from exporter.daemon.runner import Runner
from exporter.daemon.threads import run_in_daemon_thread
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
LONGEST_STOP_SECONDS = DRAIN_SECONDS + CUT_SECONDS


class ProbedTarget:
    """One target's runners: that of its probes, then those of its background loads."""

    def __init__(self, runner: Runner, loads: Sequence[LoadRunner]) -> None:
        self.name = runner.name
        self.runner = runner
        self.runners: tuple[Runner | LoadRunner, ...] = (runner, *loads)
        self.ended = anyio.Event()
        self._began = self._stopped = self._failed = False

    async def run(self, target_lock: anyio.Lock) -> None:
        """Until all runners have ended. The lock belongs to the target's name: its holder alone probes the target.

        A predecessor whose thread hangs still holds it. What was due meanwhile is skipped as busy.
        """
        had_to_wait = target_lock.locked()
        async with target_lock:
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
        """A bug that ends the thread is logged, and makes the daemon unhealthy."""
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
        self._target_locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._quarantines: dict[str, Quarantine] = {}
        self._leaving: list[ProbedTarget] = []
        self._started = 0
        self.reload_failed = False  # by a bug: some targets may not be probed

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
        """In threads, so that the event loop goes on: with hundreds of targets it takes seconds."""
        self._forget_those_gone()
        plans = list(arriving)
        await run_in_daemon_thread(lambda: self._announce(plans), "announce")
        # Only now: the first probes would be late while the series of hundreds of targets are made.
        for plan in plans:
            self._begin(await run_in_daemon_thread(partial(self._open, plan), f"open-{plan.target.name}"))

    def _announce(self, arriving: Sequence[Plan]) -> None:
        for line in (*too_large(arriving), *doubled_paths(self._recorder.settings)):
            logger.warning("%s", line)
        for plan in arriving:
            self._recorder.kinds[plan.target.name] = plan.target.kind
            self._recorder.metrics.announce(plan)
            if not plan.workloads:
                logger.warning("target %s has no workload: it is only checked for being up", plan.target.name)
        spare_collector()

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

    def _forget_those_gone(self) -> None:
        """What is kept by name, of targets that have left. A quarantine that holds something is for their return."""
        for name in [name for name, lock in self._target_locks.items() if not lock.locked()]:
            if name not in self._targets:
                del self._target_locks[name]
                if self._quarantines[name].is_empty:
                    del self._quarantines[name]

    def _begin(self, target: ProbedTarget) -> None:
        self._targets[target.name] = target
        self._tasks.start_soon(target.run, self._target_locks[target.name])

    # --- stop

    def stop(self, names: Iterable[str]) -> None:
        """Tell these targets to stop; `drain` waits for them."""
        for name in names:
            target = self._targets.pop(name)
            target.stop()
            self._leaving.append(target)

    async def drain(self, since: float) -> None:
        """Until all that were told to stop have ended, also those of a drain that was cancelled.

        `since` is when the stop was asked for (`anyio.current_time`). DRAIN_SECONDS after it their calls are ended. A
        thread that hangs even then is left behind.
        """
        with anyio.CancelScope(deadline=since + DRAIN_SECONDS):
            await _all_ended(self._leaving)
        await self._cut([target for target in self._leaving if not target.ended.is_set()])
        self._leaving.clear()

    async def _cut(self, stuck: Sequence[ProbedTarget]) -> None:
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
