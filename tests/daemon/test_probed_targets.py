"""The life of a target's threads: one that hangs, one that must wait for it, one that dies."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import pytest
from anyio import to_thread
from anyio.lowlevel import checkpoint

from exporter.config.settings import Settings
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.daemon.ledger import Recorder
from exporter.daemon.probed_targets import ProbedTarget, ProbedTargets
from exporter.daemon.runner import Runner
from exporter.daemon.timing import Clock
from exporter.metrics.catalogue import layout
from exporter.metrics.record import Metrics
from exporter.observation import SkipReason
from exporter.plan.targets import Plan, plans
from exporter.probes.interface import Result
from exporter.simulator import Shard
from tests.daemon.beside import run_beside
from tests.daemon.virtual import Remembered, Script, Time
from tests.processes import PATIENCE, ask, wait_until
from tests.simulator.caller import fast

PLAN = Plan(
    Target(name="t", address="h:1"),
    (Workload.model_validate({"name": "w", "batch_sizes": [1], "interval": "10s", "warmups": 0}),),
    1.0,
)


@dataclass
class Hanging(Script):
    """A prober whose first probe hangs until it is told to go on, whatever is closed."""

    hangs: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def probe(self, workload: Workload, batch_size: int, stopping: Callable[[], bool], trace_id: str = "") -> Result:
        self.hangs.set()
        self.go_on.wait(PATIENCE)
        return super().probe(workload, batch_size, stopping, trace_id)


class Probed:
    """A target in virtual time, which stops when `seconds` are over."""

    def __init__(self, prober: type[Script] = Script, seconds: float = 60.0) -> None:
        self.time = Time(seconds)
        self.ledger = Remembered(self.time)
        self.prober = prober(self.time)
        runner = Runner(PLAN, self.prober, self.ledger, clock=Clock(lambda: self.time.now, self.time.wait))
        self.time.on_end = runner.stop
        self.target = ProbedTarget(runner, ())


def test_a_successor_waits_for_a_thread_that_hangs_and_skips_as_busy_what_was_due_meanwhile() -> None:
    async def main() -> None:
        first, second, alone = Probed(Hanging), Probed(), anyio.Lock()
        assert isinstance(first.prober, Hanging)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.target.run, alone)
            await to_thread.run_sync(first.prober.hangs.wait, PATIENCE)
            first.target.stop()
            tasks.start_soon(second.target.run, alone)
            await anyio.wait_all_tasks_blocked()
            second.time.now = 35.0
            assert not second.prober.sent
            first.prober.go_on.set()
            with anyio.fail_after(PATIENCE):
                await second.target.ended.wait()
        assert [reason for _, _, reason in second.ledger.skips] == [SkipReason.BUSY] * 4  # due at 0, 10, 20, 30
        assert [at for at, *_ in second.prober.sent] == [40.0, 50.0]

    anyio.run(main)


def test_a_target_that_still_waits_for_a_thread_that_hangs_is_stopped_at_once_and_never_probed() -> None:
    async def main() -> None:
        first, second, alone = Probed(Hanging), Probed(), anyio.Lock()
        assert isinstance(first.prober, Hanging)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.target.run, alone)
            tasks.start_soon(second.target.run, alone)
            await to_thread.run_sync(first.prober.hangs.wait, PATIENCE)
            second.target.stop()
            assert second.target.ended.is_set()
            first.target.stop()
            first.prober.go_on.set()
        await checkpoint()
        assert not second.prober.sent
        assert not second.ledger.ups

    anyio.run(main)


def test_a_thread_that_dies_by_a_bug_makes_the_daemon_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "late", lambda *_: 1 / 0)
    with Shard(fast()) as shard:
        settings = Settings.model_validate(
            {
                "targets": [{"name": "a", "address": shard.addresses[0]}],
                "workloads": [{"name": "w", "batch_sizes": [1], "interval": "0s"}],
                "web": {"listen_address": "127.0.0.1:0"},
            }
        )

        def body(port: int) -> None:
            wait_until(lambda: ask(f"http://127.0.0.1:{port}/-/healthy").status == 503, "unhealthy")
            assert ask(f"http://127.0.0.1:{port}/-/healthy").text == "standing still: a\n"

        assert run_beside(lambda: settings, body) == 0


def test_what_is_kept_by_name_goes_with_targets_that_have_left() -> None:
    def settings(name: str) -> Settings:
        return Settings.model_validate(
            {
                "targets": [{"name": name, "address": "127.0.0.1:1"}],
                "workloads": [{"name": "w", "batch_sizes": [1], "interval": "1h"}],
            }
        )

    async def main() -> None:
        first = settings("left")
        async with anyio.create_task_group() as tasks:
            targets = ProbedTargets(Recorder(Metrics(layout(first)), first), tasks)
            for name in ("left", "held", "stays"):
                await targets.start(plans(settings(name)).values())
                await anyio.wait_all_tasks_blocked()
                if name == "held":
                    targets._quarantines[name].calibration_ended_server = True
                targets.stop(targets.names)
                await targets.drain(anyio.current_time())
            await targets.start([])
            assert set(targets._target_locks) == set()
            assert set(targets._quarantines) == {"held"}

    anyio.run(main)
