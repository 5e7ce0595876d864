"""One simulated world: a target with its runner, a server, a network and an operator, all from one seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from exporter.config.settings import Settings
from exporter.daemon.ledger import Recorder
from exporter.daemon.runner import Runner
from exporter.daemon.timing import Clock
from exporter.metrics.catalogue import layout
from exporter.metrics.record import Metrics
from exporter.plan.targets import plans
from exporter.probes.quarantine import Quarantine
from tests.faults.simulation.history import Broken, History
from tests.faults.simulation.no_delays import without_delays
from tests.faults.simulation.properties import Checks
from tests.faults.simulation.scripted_server import ScriptedProber, ScriptedServer
from tests.faults.simulation.virtual_clock import VirtualClock

HOUR = 3600.0


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
    sizes = rng.choice([[1], [1, 2, 4], [1, 2, 4, 8, 16, 32]])
    workloads = [
        {
            "name": f"w{number}",
            "batch_sizes": sizes,
            "interval": rng.choice(["30s", "60s", "300s", "20m"]),
            "timeout": rng.choice(["5s", "60s"]),
            "warmups": rng.choice([0, 1, 3]),
        }
        for number in range(rng.choice([1, 1, 2]))
    ]
    target = {"name": "t", "address": "localhost:9"}
    duty = rng.choice([0.05, 0.2, 0.5, 1.0])
    return Settings.model_validate({"targets": [target], "workloads": workloads, "max_duty_cycle": duty})


def simulate(seed: int, hours: float, show: Callable[[str], None] | None = None) -> Summary:
    clock = VirtualClock()
    history = History(seed, clock, show)
    rng = random.Random(seed)
    settings = settings_of(rng)
    [plan] = plans(settings).values()
    recorder = Recorder(Metrics(layout(settings), unix_time=clock.read), settings)
    recorder.metrics.configure(settings)
    recorder.metrics.announce(plan)
    server = ScriptedServer(clock, history, rng)
    server.begin()
    prober = ScriptedProber(server)
    checks = Checks(plan, clock, history, recorder, prober, clock.now)
    runner = Runner(
        plan.batches,
        prober,
        checks,
        phase=rng.random(),
        clock=Clock(clock.read, clock.wait),
        seed=seed,
        quarantine=Quarantine(plan.target),
    )
    clock.at(hours * HOUR, runner.stop)
    problem = None
    try:
        with without_delays(clock):
            runner.run()
    except Broken as broken:
        problem = str(broken)
    return Summary(seed, clock.now / HOUR, history.events, checks.started, tuple(history.newest()), problem)
