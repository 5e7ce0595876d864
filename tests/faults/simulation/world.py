"""One simulated world: a target, its runners one after the other, a server and its network, an operator."""

import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from exporter.config.settings import Settings
from exporter.daemon.ledger import Recorder
from exporter.daemon.runner import Runner
from exporter.daemon.timing import Clock
from exporter.metrics.catalogue import layout
from exporter.metrics.record import Metrics
from exporter.observation import Observation
from exporter.plan.targets import Plan, plans
from exporter.probes.quarantine import Quarantine
from tests.faults.simulation.history import Broken, History
from tests.faults.simulation.properties import Checks
from tests.faults.simulation.replaced import SimulatedDelays, replaced
from tests.faults.simulation.scripted_server import ScriptedProber, ScriptedServer
from tests.faults.simulation.shard_network import SimulatedShard, WatchedShardProber
from tests.faults.simulation.truth import Truth
from tests.faults.simulation.virtual_clock import VirtualClock

HOUR = 3600.0
DRAIN_SECONDS = 15.0
MANUAL_SECONDS, RELOAD_SECONDS, PAUSE_SECONDS = 2 * HOUR, 12 * HOUR, 1 * HOUR
# Of so many worlds one has the real recorder, and another one the real prober of a shard. The others are faster.
RECORDED, SHARDS = 10, 40


@dataclass(frozen=True)
class Summary:
    """What one world has been through. `problem` is the property that was broken, with all that is needed to replay."""

    seed: int
    hours: float
    events: int
    probes: int
    newest: tuple[str, ...]
    problem: str | None = None


def settings_of(rng: random.Random) -> Settings:
    workloads = [
        {
            "name": f"w{number}",
            "batch_sizes": rng.choice([[1], [1, 2, 4], [1, 2, 4, 8, 16, 32]]),
            "interval": rng.choice(["0s", "30s", "60s", "60s", "300s", "300s", "20m", "20m"]),
            "timeout": rng.choice(["5s", "20s", "60s"]),
            "warmups": rng.choice([0, 1, 3]),
        }
        for number in range(rng.choice([1, 1, 2, 3]))
    ]
    target: dict[str, object] = {"name": "t", "address": "localhost:9"}
    if rng.random() < 0.2:
        target["max_batch_tokens"] = 18 * 8
    duty = rng.choice([0.02, 0.05, 0.2, 0.5, 1.0])
    return Settings.model_validate({"targets": [target], "workloads": workloads, "max_duty_cycle": duty})


class World:
    def __init__(self, seed: int, hours: float, show: Callable[[str], None] | None) -> None:
        self.clock = VirtualClock()
        self.history = History(seed, self.clock, hours, show)
        self.probes = 0
        self._end = hours * HOUR
        self._seed = seed
        # Each has its own, so that what one does changes nothing for the others.
        self._random, self._operator = random.Random(f"{seed} world"), random.Random(f"{seed} operator")
        self._truth = Truth()
        self.delays = SimulatedDelays(self.clock)
        behaviour = random.Random(f"{seed} server")
        self.shard: SimulatedShard | None = None
        if seed % SHARDS == 1:
            self.shard = SimulatedShard(self.clock, self.history, behaviour, self._truth)
        self._scripted = ScriptedServer(self.clock, self.history, behaviour)
        self._runner: Runner | None = None
        self._checks: Checks | None = None
        self._answers: list[Future[Observation | str]] = []

    def run(self) -> None:
        (self.shard or self._scripted).begin()
        if self.shard is not None:
            self._plan_pause()
        self._plan_manual_probe()
        settings = settings_of(self._random)
        recorder = self._recorder(settings) if self._seed % RECORDED == 0 else None
        quarantine: Quarantine | None = None
        while self.clock.now < self._end:
            [plan] = plans(settings).values()
            if quarantine is None or not quarantine.applies_to(plan.target):
                quarantine = Quarantine(plan.target)
            self._probe(plan, quarantine, recorder)
            before, settings = plan, settings_of(self._random) if self._operator.random() < 0.8 else settings
            if recorder is not None:
                self._take_over(recorder, settings, before)
            self.clock.pass_until(self.clock.now + self._operator.choice([0.0, 0.0, 1.0, 600.0]))

    def _recorder(self, settings: Settings) -> Recorder:
        recorder = Recorder(Metrics(layout(settings), unix_time=self.clock.read), settings)
        recorder.metrics.configure(settings)
        [plan] = plans(settings).values()
        recorder.metrics.announce(plan)
        return recorder

    def _take_over(self, recorder: Recorder, settings: Settings, before: Plan) -> None:
        """As a reload does."""
        [plan] = plans(settings).values()
        recorder.metrics.narrow(plan, before)
        recorder.forget(plan.target.name)
        recorder.metrics.configure(settings)
        recorder.settings = settings
        recorder.metrics.announce(plan)

    def _probe(self, plan: Plan, quarantine: Quarantine, recorder: Recorder | None) -> None:
        """From the start of a runner to its end."""
        prober = self._open(plan, quarantine)
        checks = self._checks = Checks(plan, self.clock, self.history, self._truth, recorder, lambda: prober.owed)
        runner = self._runner = checks.runner = Runner(
            plan.batches,
            prober,
            checks,
            phase=self._random.random(),
            clock=Clock(self.clock.read, self.clock.wait),
            seed=self._random.getrandbits(32),
            quarantine=quarantine,
        )
        duty, workloads = plan.max_duty_cycle, [(one.name, one.batch_sizes, one.interval) for one in plan.workloads]
        self.history.note("start", f"duty cycle {duty},", *workloads)
        self.clock.on_wait = checks.waiting
        if self._operator.random() < 0.2:
            self.clock.pass_until(self.clock.now + self._operator.expovariate(1 / 20))
            runner.skip_missed()
        stop_at = min(self._end, self.clock.now + self._operator.expovariate(1 / RELOAD_SECONDS))
        self.clock.at(stop_at, lambda: self._stop(runner, checks))
        counted = checks.attempts_counted() if recorder is not None else 0.0
        runner.run()
        self._runner = None
        checks.ended()
        if recorder is not None and checks.attempts_counted() - counted != checks.recorded:
            raise self.history.broken("the metrics count every record", f"{checks.attempts_counted() - counted}")
        self._manual_probes_are_answered()
        left = set((self.shard or self._scripted).batches) - prober.owed
        if left:
            raise self.history.broken("every batch is cleared or owed", f"{left} is forgotten")
        self._scripted.batches.clear()  # the next prober clears what this one owes
        self.probes += checks.started

    def _open(self, plan: Plan, quarantine: Quarantine) -> ScriptedProber | WatchedShardProber:
        if self.shard is None:
            return ScriptedProber(self._scripted, self._truth)
        prober = WatchedShardProber(plan.target, quarantine)
        prober.truth = self._truth
        return prober

    # --- the operator

    def _stop(self, runner: Runner, checks: Checks) -> None:
        self.history.note("stop")
        checks.stopped()
        runner.stop()
        if self._operator.random() < 0.5:
            self._request(runner)
        self.clock.at(self.clock.now + DRAIN_SECONDS, lambda: self._cut(runner))

    def _cut(self, runner: Runner) -> None:
        if runner is self._runner:
            self.history.note("cut")
            runner.cut()

    def _plan_manual_probe(self) -> None:
        self.clock.at(self.clock.now + self._operator.expovariate(1 / MANUAL_SECONDS), self._ask)

    def _plan_pause(self) -> None:
        self.clock.at(self.clock.now + self._operator.expovariate(1 / PAUSE_SECONDS), self._pause)

    def _pause(self) -> None:
        self._plan_pause()
        seconds = self._operator.choice([0.05, 1.0, 10.0])
        self.history.note("this process stands still for", seconds, "s")
        self.delays.stop(seconds, machine=self._operator.random() < 0.5)

    def _ask(self) -> None:
        self._plan_manual_probe()
        if (runner := self._runner) is None:
            return
        for _ in range(self._operator.choice([1, 1, 3])):
            self._request(runner)

    def _request(self, runner: Runner) -> None:
        series = self._operator.choice([series for series, _ in runner.plan.series()])
        self.history.note("asked for", series.workload, series.batch_size)
        answer = runner.manual_probes.request(series)
        answer.add_done_callback(self._answered)
        self._answers.append(answer)
        if self._operator.random() < 0.1:
            answer.cancel()

    def _answered(self, future: "Future[Observation | str]") -> None:
        if not future.cancelled():
            answer = future.result()
            self.history.note("answered", answer if isinstance(answer, str) else answer.outcome)
            assert self._checks is not None
            self._checks.answered(answer)

    def _manual_probes_are_answered(self) -> None:
        if open_ones := [answer for answer in self._answers if not answer.done()]:
            raise self.history.broken("every manual probe is answered", f"{len(open_ones)} are not")
        self._answers.clear()


def simulate(seed: int, hours: float, show: Callable[[str], None] | None = None) -> Summary:
    world = World(seed, hours, show)
    problem = None
    try:
        with replaced(world.clock, world.delays, world.shard, seed):
            world.run()
    except Broken as broken:
        problem = str(broken)
    newest, events = tuple(world.history.newest()), world.history.events
    return Summary(seed, world.clock.now / HOUR, events, world.probes, newest, problem)
