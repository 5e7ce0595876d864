"""How late this process may have been: ready to run but not running, waiting for the interpreter, or stopped.

The kernel counts for each thread how long it was ready to run and did not (the second figure of
/proc/thread-self/schedstat: a CPU quota and busy neighbours are in it), how long it ran, and how often it went to sleep
(getrusage); reading it all takes 3 µs. A thread that waited for the interpreter's lock went to sleep at least once for
each switch interval, so the count bounds that time too. Stops (SIGSTOP, a freezer, a paused machine) have no such
bound: while probes are in flight, one thread of the process wakes up every 2 ms, and what it misses was missed by all.
That costs 1.3 % of a core, however many targets are probed; if each thread that waits woke up as often, it would cost
as much for each target.
"""

import math
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from exporter.observation import Failure, Outcome

SCHEDSTAT = "/proc/thread-self/schedstat"
TASKS = "/proc/self/task"
BEAT_SECONDS = 0.002
# A beat that comes so much later than it should, other than for want of a CPU, was held up.
NOTICED_SECONDS = 0.0005
# How many such gaps are remembered: a process that is stopped all the time has some 20 a second.
KEPT_GAPS = 1024
# Timers fire up to this much later than asked (the kernel's slack, and waking up).
TIMER_SLACK = 0.0001
# A stop is to blame for a timeout when it lasted so long, or this share of the timeout; for a connection that failed
# when it lasted so long and half of the time.
BLAMED_SECONDS, BLAMED_SHARE = 0.5, 0.1
# How long to wait for the heartbeat to tell what held up the thread that asks.
BEAT_PATIENCE = 0.1


T = TypeVar("T")


class Mark(NamedTuple):
    """One thread's counters at one instant: seconds, and how often it went to sleep. `known`: the kernel tells them.

    `others`: how long each other thread of the process has waited, where that was asked for.
    """

    at: float
    waited: float = 0.0
    ran: float = 0.0
    sleeps: int = 0
    known: bool = False
    others: Mapping[str, float] = {}


class Gap(NamedTuple):
    """Between two beats: for `lost` seconds of it at most the process was held up. `machine`: not the process alone.

    `stop` is what of it was no waiting for the interpreter: in that time nothing of this process ran.
    """

    since: float
    until: float
    lost: float
    machine: bool
    stop: float


@dataclass(frozen=True, slots=True)
class HeldUp:
    """What held a thread up while something ran, in seconds: stops of all threads, and waiting for a CPU."""

    stopped: float
    waited: float

    @property
    def total(self) -> float:
        return self.stopped + self.waited

    def __str__(self) -> str:
        if self.total < NOTICED_SECONDS:
            return "tgi-probe did something else meanwhile"
        if self.stopped >= self.waited:
            return f"this process was stopped for {_told(self.stopped)} while the probe ran"
        return f"this process waited {_told(self.waited)} for a CPU while the probe ran"


class PendingCall(NamedTuple):
    """One that is not answered yet: the caller's counters when it was sent, and until when it may take."""

    sent: Mark
    deadline: float


def _within(gap: Gap, since: float, until: float) -> float:
    """How much of a stop lies between the two instants, at most."""
    return min(gap.stop, max(0.0, min(gap.until, until) - max(gap.since, since)))


def _told(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


class Delays:
    """Of one process. `mark` and `between` are for the calling thread, the rest is safe to use from any.

    `path` is where the kernel tells; where it does not, `Mark.known` is False.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, path: str = SCHEDSTAT) -> None:
        self._clock = clock
        self._path = path
        self._own = threading.local()
        self._others = _Others()
        self._lock = threading.Lock()
        self._awake = threading.Event()
        self._watches = 0
        self._beat = 0.0
        # Read as a copy: `tuple` may collect garbage in its midst, which lets the heartbeat append.
        self._gaps: deque[Gap] = deque(maxlen=KEPT_GAPS)
        self._thread: threading.Thread | None = None

    # --- one thread

    def mark(self, of_all: bool = False) -> Mark:
        """`of_all`: with the other threads of the process, for work that they take part in."""
        file = getattr(self._own, "file", None)
        if file is None:
            file = self._own.file = _Counters(self._path)
        waited = file.waited()
        if waited is None:
            return Mark(self._clock())
        others = self._others.waited() if of_all else {}
        sleeps = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        return Mark(self._clock(), waited * 1e-9, time.thread_time(), sleeps, True, others)

    def between(self, before: Mark, after: Mark, sleeps: int) -> float:
        """At most how much of the time between the two was not the waiting for something: seconds.

        `sleeps` is how often that waiting itself puts the thread to sleep; every other time may have been for the
        interpreter's lock. Which sleep was a stop does not show: so stops count by the heartbeat, always. Where the
        kernel does not count, they are all that is known.
        """
        late = self.stopped(before.at, after.at)
        if before.known and after.known:
            late += max(0.0, after.waited - before.waited) + after.ran - before.ran
            # One that has ended meanwhile is missing: what it had waited does not make up for what others wait.
            late += math.fsum(max(0.0, now - before.others.get(who, 0.0)) for who, now in after.others.items())
            late += max(0, after.sleeps - before.sleeps - sleeps) * (sys.getswitchinterval() + TIMER_SLACK)
        return min(late, after.at - before.at)

    # --- the whole process

    def watch(self) -> "DelayWatch":
        return DelayWatch(self)

    def excusing(self, call: Callable[[], T], timeout: float) -> T:
        """What the call answers; its Failure as `DelayWatch.excused` has it."""
        with self.watch() as watch:
            try:
                return call()
            except Failure as failure:
                raise watch.excused(failure, timeout) from None

    def begin(self) -> None:
        with self._lock:
            self._watches += 1
            if self._watches > 1:
                return
            self._beat = self._clock()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
                self._thread.start()
            self._awake.set()

    def end(self) -> None:
        with self._lock:
            self._watches -= 1
            if not self._watches:
                self._awake.clear()

    def _run(self) -> None:
        before = self.mark()
        while self._awake.wait():
            after = self.mark()
            self._beaten(before._replace(at=self._beat), after, 0.0)
            while self._awake.is_set():
                before = after
                time.sleep(BEAT_SECONDS)
                after = self.mark()
                self._beaten(before, after, BEAT_SECONDS)
            before = after

    def _beaten(self, before: Mark, after: Mark, asleep: float) -> None:
        lost = after.at - before.at - asleep - (after.waited - before.waited)
        if lost > NOTICED_SECONDS:
            # A process that was stopped went to sleep a second time; when the machine stood still, nobody noticed.
            sleeps = after.sleeps - before.sleeps
            interpreter = max(0, sleeps - 1) * (sys.getswitchinterval() + TIMER_SLACK)
            gap = Gap(before.at, after.at, lost, after.known and sleeps <= 1, max(0.0, lost - interpreter))
            self._gaps.append(gap)
        self._beat = after.at

    def stopped(self, since: float, until: float) -> float:
        """How long all threads were held up between two instants, seconds; never too little by more than a beat."""
        beat = self._beat
        total = 0.0
        # The next beat may be due, or the thread that asks was simply the first to go on after a stop.
        if self._watches and until - beat > BEAT_SECONDS + NOTICED_SECONDS:
            total += min(until - beat - BEAT_SECONDS, until - since)
        for gap in reversed(self._gaps.copy()):
            if gap.until <= since:
                break
            total += min(gap.lost, max(0.0, min(gap.until, until) - max(gap.since, since)))
        return min(total, until - since)

    def stops(self, since: float) -> tuple[Gap, ...]:
        """Gaps since then, the heartbeat's newest included: it alone tells a stop from waiting for the interpreter."""
        now, given_up = self._clock(), time.monotonic() + BEAT_PATIENCE
        while self._watches and self._beat < now and time.monotonic() < given_up:
            time.sleep(BEAT_SECONDS)
        overdue = now - self._beat - BEAT_SECONDS
        newest = (Gap(self._beat, now, overdue, False, overdue),) if self._watches and overdue > NOTICED_SECONDS else ()
        return (*(gap for gap in self._gaps.copy() if gap.until > since), *newest)

    def machine_stops(self, since: float) -> tuple[Gap, ...]:
        """Those of the whole machine: what the kernel noted in or right after one may have come before it."""
        return tuple(gap for gap in self._gaps.copy() if gap.machine and gap.until > since)


class DelayWatch:
    """Knows what held up the thread that made it, from then on. Use as a context manager, or `close` it."""

    def __init__(self, delays: Delays) -> None:
        self._delays = delays
        delays.begin()
        self._began = delays.mark()
        self._open = True

    def held(self) -> HeldUp:
        now = self._delays.mark()
        return HeldUp(self._delays.stopped(self._began.at, now.at), now.waited - self._began.waited)

    def machine_stops(self) -> tuple[Gap, ...]:
        return self._delays.machine_stops(self._began.at)

    def excused(
        self, failure: Failure, timeout: float, calls: bool = False, unanswered: PendingCall | None = None
    ) -> Failure:
        """The failure, or `disturbed` where it would not have come but for what held us up.

        A server works on while we are stopped. So a timeout is excused for a stop at its very end, during which the
        answer may have come in time; in a chain of `calls` also for what passed before the one that was `unanswered`,
        when the server had nothing to do. A connection is given the benefit of the doubt when we were stopped for most
        of the time that it took.
        """
        if failure.may_have_ended_server or failure.outcome not in (Outcome.TIMEOUT, Outcome.UNREACHABLE):
            return failure
        began, now = self._began, self._delays.mark()
        gaps = self._delays.stops(began.at)
        if failure.outcome is Outcome.UNREACHABLE:
            blamed = max(BLAMED_SECONDS, (now.at - began.at) / 2)
            lost = math.fsum(_within(gap, began.at, now.at) for gap in gaps)
        else:
            blamed = min(BLAMED_SECONDS, BLAMED_SHARE * timeout)
            call = unanswered or PendingCall(now if calls else began, began.at + timeout)
            idle = math.fsum(_within(gap, began.at, call.sent.at) for gap in gaps)
            over = [gap.stop for gap in gaps if gap.since < call.deadline < gap.until and gap.until > call.sent.at]
            lost = max([idle + max(0.0, call.sent.waited - began.waited), *over])
        if lost < blamed:
            return failure
        return Failure(Outcome.DISTURBED, "OK", f"{failure.detail}, but {self.held()}", failure.corrections)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._delays.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Others:
    """The other threads' counters, kept open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, _Counters] = {}

    def waited(self) -> dict[str, float]:
        """Seconds that each was ready to run and did not."""
        own = str(threading.get_native_id())
        with self._lock:
            there = set(os.listdir(TASKS))
            self._counters = {who: counters for who, counters in self._counters.items() if who in there}
            found: dict[str, float] = {}
            for who in there - {own}:
                waited = None if (known := self._counters.get(who)) is None else known.waited()
                if waited is None:  # a new one, perhaps by the number of one that has ended
                    known = self._counters[who] = _Counters(f"{TASKS}/{who}/schedstat")
                    waited = known.waited()
                found[who] = (waited or 0) * 1e-9
        return found


class _Counters:
    """A thread's schedstat, kept open until nobody asks any more."""

    def __init__(self, path: str) -> None:
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = -1

    def waited(self) -> int | None:
        """Nanoseconds that it was ready to run and did not. (How long it ran is not up to date in there.)"""
        if self._file < 0:
            return None
        try:
            _, waited, slices = os.pread(self._file, 64, 0).split()
            # Not one slice: a kernel that does not count.
            return int(waited) if int(slices) else None
        except (OSError, ValueError):
            return None

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


# Stops are a matter of the whole process, and so is its clock: nobody needs another one but tests.
PROCESS = Delays()
