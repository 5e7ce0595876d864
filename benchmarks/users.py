"""What probing through a router costs its users, by the settings that keep probes gentle.

The simulated router's own scheduler and our own schedule, in virtual time: no clock and no other process changes a
figure. The same users come in every setting of a repetition.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.report import Part, Table, median, quantile
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.daemon.runner import GIVE_WAY_SECONDS
from exporter.observation import Series, SkipReason
from exporter.plan.schedule import Start, Timetable, Wait, Window, pause_after, timetable
from exporter.plan.targets import Plan
from exporter.probes.router.queue_metrics import users_waiting
from exporter.simulator.batcher import AdmissionLimits, BatchedRequest, Batcher, Pass
from exporter.simulator.roofline import Roofline

# Virtual seconds for each second that the part may take, and how often everything is repeated with other users.
VIRTUAL_SECONDS = 4.0
REPETITIONS = 5
# Users come at random. The router serves at most MOST_AT_ONCE requests at once, so that others wait.
MOST_AT_ONCE = 32
LOADS = {"calm": 4.0, "busy": 12.0, "nearly full": 15.0}  # users per second; from about 16 on they pile up
PROMPT_TOKENS, ANSWER_TOKENS = (600, 0.6), (120, 0.5)  # median and sigma, lognormal
LONGEST_PROMPT, LONGEST_ANSWER = 3000, 800
SEQUENCE_LENGTH, DECODE_LENGTH = 512, 64  # of probes
PRIORITY = 10
QUANTILES = (0.5, 0.99)


@dataclass(frozen=True, slots=True)
class Setting:
    """How a target is probed; without batch sizes it is not."""

    batch_sizes: tuple[int, ...] = ()
    duty_cycle: float = 1.0
    yields: bool = False
    priority: int | None = None

    @property
    def name(self) -> str:
        if not self.batch_sizes:
            return "no probes"
        sizes = ", ".join(map(str, self.batch_sizes))
        gentle = ", yield_to_users" if self.yields else ", priority" if self.priority is not None else ""
        return f"[{sizes}], {self.duty_cycle:.0%}{gentle}"


NONE = Setting()
SMALL, LARGE = (1, 4), (32,)
SETTINGS = (
    *(Setting(SMALL, duty) for duty in (0.01, 0.05, 0.2)),
    *(Setting(SMALL, duty, yields=True) for duty in (0.01, 0.05, 0.2)),
    *(Setting(SMALL, duty, priority=PRIORITY) for duty in (0.01, 0.05, 0.2)),
    Setting(LARGE, 0.05),
    Setting(LARGE, 0.05, yields=True),
    Setting(LARGE, 0.05, priority=PRIORITY),
)


@dataclass(slots=True)
class Times:
    """Seconds: of users to their first token, and between their tokens; of probes to theirs. `probes` were sent."""

    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    probe_ttft: list[float] = field(default_factory=list)
    probes: int = 0
    given_way: int = 0


def run(seconds: float) -> list[Table]:
    return [table(load, rate, seconds * VIRTUAL_SECONDS) for load, rate in LOADS.items()]


def table(load: str, rate: float, seconds: float) -> Table:
    found = {
        setting: [simulated(setting, rate, seconds, seed) for seed in range(REPETITIONS)]
        for setting in (NONE, *SETTINGS)
    }
    rows = [row(setting, times, found[NONE], seconds) for setting, times in found.items()]
    waited = sum(len(times.ttft) for times in found[NONE])
    notes = (
        f"{rate:g} users per second at a router that serves {MOST_AT_ONCE} requests at once, by the roofline of one "
        f"H100 with a model of 8 billion parameters; prompts of {PROMPT_TOKENS[0]} tokens and answers of "
        f"{ANSWER_TOKENS[0]} (medians). Probes of {SEQUENCE_LENGTH} + {DECODE_LENGTH} tokens, back to back at the duty "
        f"cycle. {REPETITIONS} repetitions of {seconds:g} virtual seconds, {waited:,} users in all.",
        "Users' times: the median of the repetitions, as seconds without probes and as ratios to the same users "
        "without probes, with the lowest and the highest repetition.",
    )
    columns = (
        *("batch sizes, max_duty_cycle", "users' TTFT p50", "users' TTFT p99", "users' token p50", "users' token p99"),
        *("probes per minute", "probes' TTFT p50"),
    )
    return Table(f"What users wait: {load}", columns, tuple(rows), notes)


def row(setting: Setting, times: Sequence[Times], without: Sequence[Times], seconds: float) -> tuple[str, ...]:
    cells = []
    for of in ("ttft", "gaps"):
        for q in QUANTILES:
            figures = [quantile(getattr(one, of), q) for one in times]
            bare = [quantile(getattr(one, of), q) for one in without]
            ratios = [figure / other for figure, other in zip(figures, bare, strict=True)]
            cells.append(milliseconds(median(bare)) if setting == NONE else spread(ratios))
    probes = sum(one.probes for one in times)
    waited = [value for one in times for value in one.probe_ttft]
    per_minute = f"{probes / len(times) / seconds * 60:.1f}" if setting != NONE else ""
    return (setting.name, *cells, per_minute, milliseconds(median(waited)) if waited else "")


def spread(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def simulated(setting: Setting, rate: float, seconds: float, seed: int) -> Times:
    """Users who come for so long, until the last one is served, and probes beside them."""
    return VirtualRouter(setting, seconds, users(rate, seconds, seed), seed).run()


def users(rate: float, seconds: float, seed: int) -> Iterator[tuple[float, BatchedRequest]]:
    """When each one comes, with the request."""
    rng = random.Random(seed)
    number, now = 0, rng.expovariate(rate)
    while now < seconds:
        prompt = min(LONGEST_PROMPT, max(1, round(PROMPT_TOKENS[0] * rng.lognormvariate(0, PROMPT_TOKENS[1]))))
        answer = min(LONGEST_ANSWER, max(2, round(ANSWER_TOKENS[0] * rng.lognormvariate(0, ANSWER_TOKENS[1]))))
        yield now, BatchedRequest(number, (str(number),) * prompt, answer)
        number, now = number + 1, now + rng.expovariate(rate)


class VirtualRouter:
    """The router's scheduler with its users, and our schedule, each with the same virtual time."""

    def __init__(
        self, setting: Setting, seconds: float, arrivals: Iterator[tuple[float, BatchedRequest]], seed: int
    ) -> None:
        roofline = Roofline()
        limits = AdmissionLimits(
            max_concurrent_requests=1000,
            max_batch_size=MOST_AT_ONCE,
            max_batch_total_tokens=roofline.kv_capacity,
            prefix_caching=False,  # every prompt is another
            scheduling_policy="fcfs" if setting.priority is None else "priority",
        )
        self.batcher = Batcher(limits, roofline)
        self.times = Times()
        self._arrivals = arrivals
        self._next_user = next(arrivals, None)
        self._newest: dict[int, float] = {}  # of each request: when it came, or its newest token
        self._prober = VirtualProber(setting, seconds, self, seed) if setting.batch_sizes else None

    def run(self) -> Times:
        now = 0.0
        while True:
            self._events(now)
            computing = self.batcher.next_pass(now)
            if computing is not None:
                ended = now + computing.seconds
                self._events(ended)
                self._tokens(computing, ended)
                now = ended
            elif (upcoming := self._upcoming()) < math.inf:
                now = upcoming
            else:
                return self.times

    def submit(self, request: BatchedRequest, now: float) -> None:
        self._newest[request.id] = now
        self.batcher.submit(request, now)

    def _upcoming(self) -> float:
        user = self._next_user[0] if self._next_user is not None else math.inf
        return min(user, self._prober.wakes if self._prober is not None else math.inf)

    def _events(self, until: float) -> None:
        """What happens outside of the GPU until then, in order."""
        while (at := self._upcoming()) <= until:
            if self._next_user is not None and self._next_user[0] == at:
                self.submit(self._next_user[1], at)
                self._next_user = next(self._arrivals, None)
            elif self._prober is not None:
                self._prober.wake(at)

    def _tokens(self, computed: Pass, now: float) -> None:
        for token in self.batcher.finish(computed, now):
            since = self._newest[token.request.id]
            self._newest[token.request.id] = now
            if token.request.id >= 0:
                (self.times.gaps if token.index else self.times.ttft).append(now - since)
                continue
            assert self._prober is not None
            if not token.index:
                self.times.probe_ttft.append(now - since)
            if token.end is not None:
                self._prober.ended(token.request, now)


class VirtualProber:
    """One target's schedule, as the runner follows it. Ids of its requests are negative."""

    def __init__(self, setting: Setting, seconds: float, router: VirtualRouter, seed: int) -> None:
        values = {"batch_sizes": setting.batch_sizes, "interval": "0s", "warmups": 0}
        lengths = {"sequence_length": SEQUENCE_LENGTH, "decode_length": DECODE_LENGTH}
        workload = Workload.model_validate({"name": "probe"} | values | lengths)
        target = Target(name="router", kind="http", api="completions", address="http://router:80")
        plan = Plan(target, (workload,), setting.duty_cycle)
        self.wakes = 0.0
        self._setting, self._seconds, self._router = setting, seconds, router
        self._timetable: Timetable = timetable(plan, 0.0, random.Random(seed).random(), seed)
        self._window = Window()
        self._series: Series | None = None
        self._in_flight: set[int] = set()
        self._started = 0.0
        self._requests = 0

    def wake(self, now: float) -> None:
        if now >= self._seconds:
            self.wakes = math.inf
            return
        match self._timetable.next(now, self._window):
            case Wait(until):
                self.wakes = until
            case Start(Series() as series) as start:
                if self._setting.yields and self._users_wait():
                    self._router.times.given_way += 1
                    self._timetable.not_started(start, SkipReason.BUSY)
                    self._window = replace(self._window, busy_until=now + GIVE_WAY_SECONDS)
                else:
                    self._send(series, now)
            case _:  # a skip, or a check whether the target is there
                pass

    def _users_wait(self) -> bool:
        """By what the router's /metrics would say."""
        waiting, running = len(self._router.batcher.waiting), len(self._router.batcher.running)
        page = f"tgi_queue_size {waiting}\ntgi_batch_current_size {running}\n"
        return (users_waiting(page, 0) or 0) > 0

    def _send(self, series: Series, now: float) -> None:
        for _ in range(series.batch_size):
            self._requests -= 1
            request = BatchedRequest(self._requests, (str(self._requests),) * SEQUENCE_LENGTH, DECODE_LENGTH)
            request.priority = self._setting.priority or 0
            self._router.submit(request, now)
            self._in_flight.add(request.id)
        self._router.times.probes += 1
        self._series, self._started, self.wakes = series, now, math.inf

    def ended(self, request: BatchedRequest, now: float) -> None:
        self._in_flight.remove(request.id)
        if self._in_flight or self._series is None:
            return
        busy = now - self._started
        self._timetable.lasted(self._series, busy)
        self._window = Window(busy_until=now, pause_until=now + pause_after(busy, self._setting.duty_cycle))
        self.wakes = now


PART = Part("users", "What probing costs users", run)
