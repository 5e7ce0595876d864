"""How late this process was: the kernel's counters of a thread, and stops of the whole process."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from exporter.observation import Failure, Outcome
from exporter.wire.delays import (
    BEAT_SECONDS,
    NOTICED_SECONDS,
    TIMER_SLACK,
    Delays,
    DelayWatch,
    HeldUp,
    Mark,
    PendingCall,
    worked,
)
from tests.processes import wait_until

LINUX = pytest.mark.skipif(not os.path.exists("/proc/thread-self/schedstat"), reason="this kernel does not count")
pytestmark = [pytest.mark.alone, pytest.mark.timed]
TIMEOUT = Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", "the deadline passed")
UNREACHABLE = Failure(Outcome.UNREACHABLE, "UNAVAILABLE", "h:1: timed out")


def mark(at: float, waited: float = 0.0, ran: float = 0.0, sleeps: int = 0) -> Mark:
    return Mark(at, waited, ran, sleeps, True)


def test_what_a_thread_waited_and_ran_is_how_late_it_may_be_and_never_more_than_the_time_itself() -> None:
    delays = Delays()
    assert delays.between(mark(1.0), mark(1.5, 0.002, 0.0001, 1), 1) == pytest.approx(0.0021)
    assert delays.between(mark(1.0), mark(1.001, 5.0, 0.0, 1), 1) == pytest.approx(0.001)


def test_the_work_of_a_thread_is_its_running_time_where_the_kernel_counts() -> None:
    assert worked(mark(1.0, 0.1, 0.2), mark(1.5, 0.9, 0.2005)) == pytest.approx(0.0005)
    assert worked(Mark(1.0), Mark(1.5)) == 0.0


def test_each_further_sleep_may_have_been_for_the_interpreters_lock() -> None:
    delays = Delays()
    one = delays.between(mark(1.0), mark(1.5, 0.0, 0.0, 2), 1)
    three = delays.between(mark(1.0), mark(1.5, 0.0, 0.0, 4), 1)
    assert sys.getswitchinterval() < one == pytest.approx(sys.getswitchinterval() + TIMER_SLACK)
    assert three == pytest.approx(3 * one)


def test_a_stop_counts_even_where_no_sleep_is_left_over_for_it() -> None:
    """The thread was stopped right before it wanted to wait, and then had not to: it slept once all the same."""
    beating = Beating()
    beating.beat(0.07, sleeps=2)
    assert beating.delays.between(mark(100.0), mark(100.07, sleeps=1), 1) == pytest.approx(0.068)


def test_where_the_kernel_does_not_count_stops_are_all_that_is_known() -> None:
    beating = Beating()
    beating.beat(1.0, sleeps=2)
    assert beating.delays.between(Mark(100.0), Mark(101.0), 1) == pytest.approx(1.0 - BEAT_SECONDS)
    assert beating.delays.between(Mark(102.0), Mark(102.0), 1) == 0.0


def test_a_missing_counter_is_no_error(tmp_path: Path) -> None:
    zero = tmp_path / "zero"
    zero.write_text("0 0 0\n")
    odd = tmp_path / "odd"
    odd.write_text("what?\n")
    for path in (tmp_path / "none", zero, odd):
        delays = Delays(path=str(path))
        assert not delays.mark().known
        with delays.watch() as watch:
            assert watch.held_up().waited == 0.0


@LINUX
def test_the_kernel_counts_for_each_thread() -> None:
    delays = Delays()
    before = delays.mark()
    while delays.mark().ran - before.ran < 0.02:
        pass
    marks: list[Mark] = []
    thread = threading.Thread(target=lambda: marks.append(delays.mark()))
    thread.start()
    thread.join()
    after = delays.mark()
    assert marks[0].known
    assert marks[0].ran < after.ran
    assert after.sleeps >= before.sleeps


class Beating:
    """Delays whose heart beats when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.delays = Delays(lambda: self.now)
        self.delays._run = lambda: None  # type: ignore[method-assign]
        self.delays.begin()

    def beat(self, seconds: float = BEAT_SECONDS, waited: float = 0.0, sleeps: int = 1) -> None:
        before = mark(self.now)
        self.now += seconds
        self.delays._beaten(before, mark(self.now, waited, 0.0, sleeps), BEAT_SECONDS)


def test_a_beat_that_comes_late_was_a_stop_of_all_threads() -> None:
    beating = Beating()
    beating.beat()
    beating.beat(2.0, sleeps=2)
    beating.beat()
    delays = beating.delays
    assert delays.stopped(100.0, beating.now) == pytest.approx(2.0 - BEAT_SECONDS)
    assert delays.stopped(101.0, 101.5) == pytest.approx(0.5)
    assert delays.stopped(beating.now - BEAT_SECONDS, beating.now) == 0.0
    assert delays.machine_stops(100.0) == ()


def test_a_beat_that_waited_for_a_processor_says_nothing_of_other_threads() -> None:
    beating = Beating()
    beating.beat(0.05, waited=0.048)
    assert beating.delays.stopped(100.0, beating.now) == 0.0


def test_a_beat_that_is_overdue_counts_from_when_it_was_due() -> None:
    beating = Beating()
    beating.beat()
    beating.now += 1.0  # the thread that asks was simply the first to go on
    assert beating.delays.stopped(100.0, beating.now) == pytest.approx(1.0 - BEAT_SECONDS)
    beating.now -= 1.0 - BEAT_SECONDS - NOTICED_SECONDS / 2
    assert beating.delays.stopped(100.0, beating.now) == 0.0


def test_a_machine_that_stood_still_is_told_from_a_process_that_was_stopped() -> None:
    beating = Beating()
    beating.beat(1.0, sleeps=1)  # it slept once, too long: not even the timer came in time
    [gap] = beating.delays.machine_stops(100.0)
    assert (gap.since, gap.until) == (100.0, 101.0)
    assert beating.delays.machine_stops(101.0) == ()


def test_without_a_probe_in_flight_the_heart_rests_and_with_one_it_beats() -> None:
    delays = Delays()
    with delays.watch():
        first = delays._beat
        wait_until(lambda: delays._beat > first, "it beats", every=0.001)
    thread = delays._thread
    assert thread is not None
    rested = [delays._beat]

    def rests() -> bool:
        rested.append(delays._beat)
        return len(rested) > 5 and len(set(rested[-5:])) == 1

    wait_until(rests, "it rests", every=3 * BEAT_SECONDS)
    with delays.watch():
        last = delays._beat
        wait_until(lambda: delays._beat > last, "it beats again", every=0.001)
        assert delays._thread is thread


STOPPED = """
import sys, time
from exporter.wire.delays import Delays, TIMER_SLACK
delays = Delays()
with delays.watch() as watch:
    print("watching", flush=True)
    while watch.held_up().stopped < 0.2:
        time.sleep(0.001)
    print(watch.held_up(), flush=True)
"""


def test_a_process_that_is_stopped_knows_for_how_long() -> None:
    with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "watching\n"
            os.kill(process.pid, signal.SIGSTOP)
            until = time.monotonic() + 0.4
            wait_until(lambda: time.monotonic() > until, "it stood still for a while")
            os.kill(process.pid, signal.SIGCONT)
            said = process.stdout.readline()
        finally:
            process.kill()
    assert said.startswith("this process was stopped for ")
    assert said.endswith(" ms while the probe ran\n")
    assert 300 < int(said.split()[5]) < 20_000


def test_what_is_said_of_it_is_what_weighed_most() -> None:
    assert str(HeldUp(2.04, 0.1)) == "this process was stopped for 2.0 s while the probe ran"
    assert str(HeldUp(0.01, 0.08)) == "this process waited 80 ms for a CPU while the probe ran"
    assert str(HeldUp(0.0, 0.0)) == "tgi-probe did something else meanwhile"


@pytest.mark.parametrize(
    ("failure", "stopped", "took", "excused"),
    [
        (TIMEOUT, 2.0, 10.001, False),  # the server's time ran on, and we were awake at its end
        (TIMEOUT, 10.5, 10.51, True),  # we slept when the time ran out, and for long: the answer may have been there
        (TIMEOUT, 0.0, 10.001, False),
        (TIMEOUT, 2.0, 13.0, False),
        (UNREACHABLE, 4.0, 5.0, True),
        (UNREACHABLE, 1.0, 5.0, False),
        (UNREACHABLE, 0.01, 0.011, False),  # refused, while we were held up a little
        (Failure(Outcome.OVERLOADED, "TOO_MANY_REQUESTS", "full"), 2.0, 2.1, False),  # that is what it said
    ],
)
def test_a_timeout_that_is_our_own_doing_is_not_held_against_the_server(
    failure: Failure, stopped: float, took: float, excused: bool
) -> None:
    beating = Beating()
    watch = DelayWatch(beating.delays)
    if stopped:
        beating.beat(stopped + BEAT_SECONDS, sleeps=2)
    while beating.now < 100.0 + took - BEAT_SECONDS:
        beating.beat(min(BEAT_SECONDS, 100.0 + took - beating.now))
    found = watch.excused(failure, 10.0)
    assert (found.outcome is Outcome.DISTURBED) is excused
    assert found.detail.startswith(failure.detail)
    if excused:
        assert "this process was stopped for" in found.detail
    else:
        assert found is failure


def asleep(beating: Beating, until: float, sleeps: int = 2) -> None:
    beating.beat(until - beating.now, sleeps=sleeps)


def awake(beating: Beating, until: float) -> None:
    while beating.now < until:
        beating.beat()


def test_waiting_for_the_interpreter_is_no_stop_and_excuses_nothing() -> None:
    """A thread in a call waits without the lock, however busy the others are."""
    beating = Beating()
    watch = DelayWatch(beating.delays)
    awake(beating, 102.8)
    asleep(beating, 103.1, sleeps=60)
    assert watch.excused(TIMEOUT, 3.0) is TIMEOUT


def test_many_short_stops_do_not_add_up_to_an_excuse() -> None:
    beating = Beating()
    watch = DelayWatch(beating.delays)
    while beating.now < 103.0:
        asleep(beating, beating.now + 0.02)
    assert watch.excused(TIMEOUT, 3.0) is TIMEOUT


@pytest.mark.parametrize(
    ("asked", "excused"),
    [
        (100.0, False),  # stopped while the server worked: its time ran on
        (101.0, True),  # stopped before the last call, when nothing was asked of it
        (None, True),  # the last call was answered, and no time was left for another
    ],
)
def test_of_a_chain_of_calls_what_passed_before_the_last_one_was_not_the_servers_time(
    asked: float | None, excused: bool
) -> None:
    beating = Beating()
    watch = DelayWatch(beating.delays)
    asleep(beating, 100.8)
    awake(beating, 103.01)
    unanswered = None if asked is None else PendingCall(mark(asked), 103.0)
    assert (watch.excused(TIMEOUT, 3.0, True, unanswered).outcome is Outcome.DISTURBED) is excused


def test_waiting_for_a_cpu_between_the_calls_of_a_chain_was_not_the_servers_time_either() -> None:
    beating = Beating()
    watch = DelayWatch(beating.delays)
    awake(beating, 103.01)
    late = PendingCall(mark(102.0, watch._began.waited + 0.4), 103.0)
    assert watch.excused(TIMEOUT, 3.0, True, late).outcome is Outcome.DISTURBED
    assert watch.excused(TIMEOUT, 10.0, True, late) is TIMEOUT


def test_a_busy_thread_of_ours_excuses_no_server() -> None:
    """The real counters, with the interpreter busy all the time."""
    delays, over = Delays(), threading.Event()

    def work() -> None:
        while not over.is_set():
            sum(range(200))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with delays.watch() as watch:
            threading.Event().wait(0.5)
            kept = watch.excused(TIMEOUT, 0.1)
            stops = [gap for gap in delays.stops(0.0) if gap.stop >= 0.01]
    finally:
        over.set()
        thread.join()
    assert kept is TIMEOUT or stops
