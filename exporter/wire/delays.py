"""How long this process was held up: waiting for a CPU or for the interpreter's lock, or stopped.

The kernel counts for each thread how long it waited for a CPU (the second figure of /proc/thread-self/schedstat, with
CPU quotas and busy neighbours), how long it ran, and how often it slept (getrusage). Reading it all takes 3 µs. A
thread that waits for the interpreter's lock sleeps once or more in each switch interval, so the count of sleeps bounds
that time.

Stops (SIGSTOP, a freezer, a paused machine) are in none of these counts. So one heartbeat thread wakes up every 2 ms
while probes are in flight: what it misses, all threads missed. It costs 1.3 % of a core, however many targets there
are.
"""

import math
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeVar

from exporter.observation import Failure, Outcome

SCHEDSTAT = "/proc/thread-self/schedstat"
BEAT_SECONDS = 0.002
# A beat that is so much later, not counting the wait for a CPU, was held up.
NOTICED_SECONDS = 0.0005
# A process that is stopped again and again has some 20 gaps a second.
KEPT_GAPS = 1024
# Timers fire up to so much later than asked.
TIMER_SLACK = 0.0001
# A stop explains a timeout when it lasted so long, or this share of the timeout. It explains a failed connection when
# it lasted so long and half of the time.
BLAMED_SECONDS, BLAMED_SHARE = 0.5, 0.1
# How long to wait for the next beat.
BEAT_PATIENCE = 0.1


T = TypeVar("T")


class Mark(NamedTuple):
    """A thread's counters at one instant, in seconds, and its number of sleeps. `known`: the kernel has them."""

    at: float
    waited: float = 0.0
    ran: float = 0.0
    sleeps: int = 0
    known: bool = False


def worked(before: Mark, after: Mark) -> float:
    """How many seconds this thread ran between the two marks; 0 where the kernel does not count."""
    return after.ran - before.ran if before.known and after.known else 0.0


class Gap(NamedTuple):
    """The process was held up between two beats, for at most `lost` seconds. `machine`: the whole machine was.

    `stop`: the part of `lost` in which nothing of this process ran.
    """

    since: float
    until: float
    lost: float
    machine: bool
    stop: float


@dataclass(frozen=True, slots=True)
class HeldUp:
    """How long a thread was held up, in seconds: stops of the process, and waiting for a CPU."""

    stopped: float
    waited: float

    @property
    def total(self) -> float:
        return self.stopped + self.waited

    def __str__(self) -> str:
        if self.total < NOTICED_SECONDS:
            return "tgi-probe did something else meanwhile"
        if self.stopped >= self.waited:
            return f"this process was stopped for {_written(self.stopped)} while the probe ran"
        return f"this process waited {_written(self.waited)} for a CPU while the probe ran"


class PendingCall(NamedTuple):
    """A call without an answer: the caller's counters when it was sent, and its deadline."""

    sent: Mark
    deadline: float


def _within(gap: Gap, since: float, until: float) -> float:
    """At most how much of a stop lies between the two instants."""
    return min(gap.stop, max(0.0, min(gap.until, until) - max(gap.since, since)))


def _written(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


class Delays:
    """Measures the delays of this process. `mark` and `between` are about the calling thread.

    `path`: the kernel's file. Where it is missing, `Mark.known` is False.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, path: str = SCHEDSTAT) -> None:
        self._clock = clock
        self._path = path
        self._own = threading.local()
        self._lock = threading.Lock()
        self._awake = threading.Event()
        self._watches = 0
        self._beat = 0.0
        # Read as a copy: during `tuple` a garbage collection may let the heartbeat append.
        self._gaps: deque[Gap] = deque(maxlen=KEPT_GAPS)
        self._thread: threading.Thread | None = None

    # --- one thread

    def mark(self) -> Mark:
        file = getattr(self._own, "file", None)
        if file is None:
            file = self._own.file = _Counters(self._path)
        waited = file.waited()
        if waited is None:
            return Mark(self._clock())
        sleeps = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        return Mark(self._clock(), waited * 1e-9, time.thread_time(), sleeps, True)

    def between(self, before: Mark, after: Mark, sleeps: int) -> float:
        """At most how many seconds between the two marks this thread was held up.

        `sleeps`: how often the wait itself puts the thread to sleep. Each further sleep may have been for the
        interpreter's lock. Where the kernel does not count, only stops are known.
        """
        late = self.stopped(before.at, after.at)
        if before.known and after.known:
            late += max(0.0, after.waited - before.waited) + after.ran - before.ran
            late += max(0, after.sleeps - before.sleeps - sleeps) * (sys.getswitchinterval() + TIMER_SLACK)
        return min(late, after.at - before.at)

    # --- the whole process

    def watch(self) -> "DelayWatch":
        return DelayWatch(self)

    def excusing(self, call: Callable[[], T], timeout: float) -> T:
        """The result of the call. Raises its Failure, as `DelayWatch.excused` returns it."""
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
            # A process that was stopped slept a second time. When the whole machine was stopped, it did not.
            sleeps = after.sleeps - before.sleeps
            interpreter = max(0, sleeps - 1) * (sys.getswitchinterval() + TIMER_SLACK)
            gap = Gap(before.at, after.at, lost, after.known and sleeps <= 1, max(0.0, lost - interpreter))
            self._gaps.append(gap)
        self._beat = after.at

    def stopped(self, since: float, until: float) -> float:
        """How many seconds all threads were held up between two instants. Too low by one beat at most."""
        beat = self._beat
        total = 0.0
        # After a stop the calling thread may go on before the heartbeat does.
        if self._watches and until - beat > BEAT_SECONDS + NOTICED_SECONDS:
            total += min(until - beat - BEAT_SECONDS, until - since)
        for gap in reversed(self._gaps.copy()):
            if gap.until <= since:
                break
            total += min(gap.lost, max(0.0, min(gap.until, until) - max(gap.since, since)))
        return min(total, until - since)

    def stops(self, since: float) -> tuple[Gap, ...]:
        """The gaps since then. Waits for the next beat, which tells a stop from waiting for the interpreter."""
        now, given_up = self._clock(), time.monotonic() + BEAT_PATIENCE
        while self._watches and self._beat < now and time.monotonic() < given_up:
            time.sleep(BEAT_SECONDS)
        overdue = now - self._beat - BEAT_SECONDS
        newest = (Gap(self._beat, now, overdue, False, overdue),) if self._watches and overdue > NOTICED_SECONDS else ()
        return (*(gap for gap in self._gaps.copy() if gap.until > since), *newest)

    def machine_stops(self, since: float) -> tuple[Gap, ...]:
        """The gaps of the whole machine. A packet stamped in one or right after it may have come before it."""
        return tuple(gap for gap in self._gaps.copy() if gap.machine and gap.until > since)


class DelayWatch:
    """Measures how long the thread that made it was held up since. Use it as a context manager, or `close` it."""

    def __init__(self, delays: Delays) -> None:
        self._delays = delays
        delays.begin()
        self._began = delays.mark()
        self._open = True

    def held_up(self) -> HeldUp:
        now = self._delays.mark()
        return HeldUp(self._delays.stopped(self._began.at, now.at), now.waited - self._began.waited)

    def machine_stops(self) -> tuple[Gap, ...]:
        return self._delays.machine_stops(self._began.at)

    def excused(
        self, failure: Failure, timeout: float, calls: bool = False, unanswered: PendingCall | None = None
    ) -> Failure:
        """The failure, or a `disturbed` one where our own delay explains it.

        A server works on while we are stopped. So a stop explains a timeout only at its end, when the answer may have
        come in time. In a chain of `calls` a delay before the `unanswered` one counts too: the server had nothing to
        do. A stop explains a failed connection when it lasted for most of the time.
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
        return Failure(Outcome.DISTURBED, "OK", f"{failure.detail}, but {self.held_up()}", failure.corrections)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._delays.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Counters:
    """A thread's schedstat, kept open."""

    def __init__(self, path: str) -> None:
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = -1

    def waited(self) -> int | None:
        """Nanoseconds that the thread waited for a CPU. (The file's running time is not up to date.)"""
        if self._file < 0:
            return None
        try:
            _, waited, slices = os.pread(self._file, 64, 0).split()
            # A kernel that does not count has no slices.
            return int(waited) if int(slices) else None
        except (OSError, ValueError):
            return None

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


# Stops concern the whole process, so all probers share it.
PROCESS = Delays()
