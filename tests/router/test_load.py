"""A background load keeps its promises; in virtual time."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from exporter.analysis import timeline
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.daemon.load import LoadRunner
from exporter.daemon.timing import Clock
from exporter.observation import Failure, Observation, Outcome, Series, SkipReason, Step, Stream
from exporter.plan.targets import Facts, Plan
from exporter.probes.interface import Result
from tests.daemon.virtual import Time

ROUTER = Target(name="r", kind="fmaas", address="h:1")


@dataclass
class Ledger:
    time: Time
    observations: list[Observation] = field(default_factory=list)
    instants: list[float] = field(default_factory=list)
    skips: Counter[SkipReason] = field(default_factory=Counter)
    lateness: list[float] = field(default_factory=list)
    flying: list[int] = field(default_factory=list)

    def record(self, observation: Observation) -> None:
        self.observations.append(observation)
        self.instants.append(self.time.now)

    def skipped(self, series: Series, reason: SkipReason) -> None:
        assert series == Series("r", "w", 1)
        self.skips[reason] += 1

    def late(self, target: str, seconds: float) -> None:
        self.lateness.append(seconds)

    def load_inflight(self, target: str, workload: str, requests: int) -> None:
        self.flying.append(requests)


@dataclass
class Server:
    """Answers each request after `lasts` seconds of virtual time, with its first token after half of them."""

    time: Time
    lasts: Callable[[float], float] = lambda sent: 0.2
    preparing: float = 0.0
    fates: Callable[[float], Outcome] = lambda sent: Outcome.OK
    connects: Iterator[Exception | None] = field(default_factory=lambda: iter(()))
    crowd: Callable[[float], bool] = lambda now: False
    unsendable: Callable[[float], bool] = lambda now: False
    connected: list[tuple[float, int]] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    flying: list[tuple[float, float, float | None]] = field(default_factory=list)
    warmed: int = 0
    reserved: int = 0
    ready: Callable[[float], bool] = lambda now: True
    closed: bool = False

    def connect(self, timeout: float) -> Facts:
        self.connected.append((self.time.now, len(self.flying)))
        if trouble := next(self.connects, None):
            raise trouble
        return Facts("fmaas", 1)

    def warm(self, stopping: Callable[[], bool]) -> None:
        self.warmed += 1

    def users_wait(self) -> bool:
        return self.crowd(self.time.now)

    @property
    def in_flight(self) -> int:
        return len(self.flying)

    def reserve_connections(self, requests: int) -> None:
        self.reserved = requests

    def prepare(self) -> None:
        self.time.pass_by(self.preparing)

    def send(self, intended: float | None) -> bool:
        now = self.time.now
        if not (self.reserved and self.ready(now)):
            return False
        if self.unsendable(now):
            raise Failure(Outcome.UNREACHABLE, "UNAVAILABLE", "gone")
        self.sent.append(now)
        self.flying.append((now + self.lasts(now), now, intended))
        self.flying.sort(key=lambda flight: flight[0])
        return True

    def poll(self, until: float) -> list[Result]:
        end = min([until, *(flight[0] for flight in self.flying)])
        self.time.pass_by(max(0.0, end - self.time.now))
        landed = [flight for flight in self.flying if flight[0] <= self.time.now]
        self.flying = [flight for flight in self.flying if flight[0] > self.time.now]
        return [self._result(*flight) for flight in landed]

    def _result(self, ended: float, sent: float, intended: float | None) -> Result:
        outcome = self.fates(sent)
        steps = (Step(sent, (sent + ended) / 2, 1),) if outcome is Outcome.OK else ()
        return Result((Stream(1, 10, sent, ended, steps, outcome, "X", intended),), outcome, "X")

    def close(self) -> None:
        self.closed = True


def loaded(seconds: float, load: dict[str, Any], **script: Any) -> tuple[Ledger, Server]:
    """Run a load for so many virtual seconds, in this thread."""
    time = Time(seconds)
    workload = Workload.model_validate({"name": "w", "load": load})
    ledger, server = Ledger(time), Server(time, **script)
    runner = LoadRunner(Plan(ROUTER, (workload,), 1.0), server, ledger, Clock(lambda: time.now, time.wait), seed=3)
    time.on_end = runner.stop
    runner.run()
    assert server.closed
    return ledger, server


def steady(rate: str = "10/s", **keys: Any) -> dict[str, Any]:
    return {"mode": "open", "rate": rate, "arrivals": "constant", **keys}


def test_an_open_load_sends_exactly_at_its_due_times_however_long_the_answers_take() -> None:
    ledger, server = loaded(10, steady(), lasts=lambda sent: 3.0)
    start = server.sent[0]
    assert [sent - start for sent in server.sent] == pytest.approx([n / 10 for n in range(len(server.sent))])
    assert len(server.sent) in (99, 100)
    assert ledger.lateness == pytest.approx([0.0] * len(server.sent), abs=1e-9)


def test_poisson_arrivals_have_the_rate_on_average_and_no_rhythm() -> None:
    _, server = loaded(100, {"mode": "open", "rate": "20/s", "max_in_flight": 4096})
    gaps = [after - before for before, after in pairwise(server.sent)]
    assert len(server.sent) == pytest.approx(2000, rel=0.1)
    assert min(gaps) < 0.005
    assert max(gaps) > 0.2


def test_a_request_that_is_sent_late_counts_from_when_it_was_due() -> None:
    # Making a request ready takes longer than the time between two: the client itself is the bottleneck.
    ledger, server = loaded(10, steady("10/s", max_in_flight=4096), preparing=0.2)
    streams = [observation.streams[0] for observation in ledger.observations]
    assert len(server.sent) < 60
    dues = [stream.intended for stream in streams if stream.intended is not None]
    assert [after - before for before, after in pairwise(dues)] == pytest.approx([0.1] * (len(dues) - 1))
    waits = [timeline.time_to_first_token(stream) for stream in streams]
    for stream, wait, observation in zip(streams, waits, ledger.observations, strict=True):
        assert observation.due == stream.intended
        assert observation.started == stream.sent
        assert wait == pytest.approx(stream.sent - (stream.intended or 0) + 0.1)
    assert waits[-1] > 2.0  # type: ignore[operator]  # a clock that started with the sending would say 0.1
    assert ledger.lateness[-1] == pytest.approx(streams[-1].sent - dues[-1], abs=0.5)


def test_what_is_due_while_too_many_are_on_their_way_is_skipped_and_counted() -> None:
    ledger, server = loaded(10, steady(max_in_flight=3), lasts=lambda sent: 1.0)
    assert max(ledger.flying) == 3
    assert ledger.skips.keys() == {SkipReason.BUSY}
    assert len(server.sent) + ledger.skips[SkipReason.BUSY] in (99, 100)
    assert len(server.sent) == pytest.approx(30, abs=2)


def test_a_closed_load_has_as_many_in_flight_as_it_has_users_and_each_waits_for_its_answer() -> None:
    ledger, server = loaded(10, {"mode": "closed", "users": 4}, lasts=lambda sent: 0.5)
    assert len(server.sent) == pytest.approx(4 * 20, abs=4)
    assert max(ledger.flying) == 4
    assert all(observation.streams[0].intended is None for observation in ledger.observations)


def test_a_load_is_warmed_up_before_its_first_request() -> None:
    _, server = loaded(1, steady())
    assert server.warmed == 1


@pytest.mark.parametrize("load", [steady("10/s"), {"mode": "closed", "users": 3}], ids=["open", "closed"])
def test_a_load_on_a_server_that_fails_backs_off(load: dict[str, Any]) -> None:
    ledger, server = loaded(60, load, fates=lambda sent: Outcome.OVERLOADED)
    assert 5 < len(server.sent) < 60
    assert {observation.outcome for observation in ledger.observations} == {Outcome.OVERLOADED}
    if load["mode"] == "open":
        assert ledger.skips[SkipReason.BACKOFF] > 400


def test_a_success_ends_the_backing_off() -> None:
    _, server = loaded(60, steady(), fates=lambda sent: Outcome.OVERLOADED if sent < 10 else Outcome.OK)
    assert len([sent for sent in server.sent if sent > 50]) == pytest.approx(100, abs=2)


def test_a_server_that_cannot_be_reached_is_one_attempt_each_time_with_growing_pauses() -> None:
    gone = Failure(Outcome.UNREACHABLE, "UNAVAILABLE", "gone")
    ledger, server = loaded(120, steady(), connects=iter([gone] * 6))
    failed = [observation for observation in ledger.observations if observation.outcome is Outcome.UNREACHABLE]
    assert len(failed) == 6
    assert failed[-1].due - failed[-2].due > 5 * (failed[1].due - failed[0].due)
    assert server.sent


def test_every_due_time_is_a_request_a_failure_or_a_skip_also_while_there_is_no_connection() -> None:
    gone = Failure(Outcome.UNREACHABLE, "UNAVAILABLE", "gone")
    ledger, server = loaded(
        120,
        steady(),
        connects=iter([None, gone, gone, gone]),
        unsendable=lambda now: 20 < now < 21,
        lasts=lambda _: 0.05,
    )
    unsent = [observation for observation in ledger.observations if observation.outcome is Outcome.UNREACHABLE]
    assert len(unsent) == 4  # the one that could not be sent, and three that could not connect
    assert ledger.skips[SkipReason.BACKOFF] > 30
    assert len(server.sent) + 1 + ledger.skips.total() in (1198, 1199, 1200)


@pytest.mark.parametrize("load", [steady("10/s"), {"mode": "closed", "users": 3}], ids=["open", "closed"])
def test_without_a_connection_nothing_is_sent_nor_made_up_for(load: dict[str, Any]) -> None:
    ledger, server = loaded(30, load, ready=lambda now: not 10.05 < now < 20.05)
    assert not [sent for sent in server.sent if 10.05 < sent < 20.05]
    assert max(server.sent) > 29
    if load["mode"] == "open":
        assert ledger.skips == {SkipReason.BUSY: 100}
        assert len(server.sent) + 100 in (299, 300)
        assert ledger.lateness == pytest.approx([0.0] * len(server.sent), abs=1e-9)


def test_while_a_load_backs_off_what_is_on_its_way_is_still_read_and_nothing_connects() -> None:
    gone = Failure(Outcome.UNREACHABLE, "UNAVAILABLE", "gone")
    ledger, server = loaded(
        60,
        steady(max_in_flight=4096),
        connects=iter([None, gone]),
        unsendable=lambda now: 20 < now < 21,
        lasts=lambda _: 5.0,
    )
    answered = [observation for observation in ledger.observations if observation.outcome is Outcome.OK]
    assert len(answered) > 300
    # Read as soon as they end; and the next session began only when nobody needed to read any more.
    assert all(flying == 0 for _, flying in server.connected)
    assert all(
        now - observation.ended < 0.001 for now, observation in zip(ledger.instants, ledger.observations, strict=True)
    )


@pytest.mark.parametrize("load", [steady("10/s"), {"mode": "closed", "users": 3}], ids=["open", "closed"])
def test_a_bug_of_ours_is_logged_once_a_minute_and_never_ends_a_load(
    load: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(now: float) -> bool:
        if now < 300:
            raise KeyError("a bug")
        return False

    ledger, server = loaded(400, load, crowd=broken)
    assert 2 <= len(caplog.records) <= 5
    failed = [observation for observation in ledger.observations if observation.code == "INTERNAL"]
    assert 5 < len(failed) < 50
    assert all(observation.outcome is Outcome.MALFORMED for observation in failed)
    assert max(server.sent) > 330


@pytest.mark.parametrize("load", [steady("10/s"), {"mode": "closed", "users": 3}], ids=["open", "closed"])
def test_a_load_gives_way_to_users(load: dict[str, Any]) -> None:
    ledger, server = loaded(20, load, crowd=lambda now: 5 <= now < 15)
    start = min(server.sent)
    assert not [sent for sent in server.sent if 5.1 < sent < 15]
    assert start < 5 < 15 < max(server.sent)
    assert ledger.skips[SkipReason.BUSY] >= 9
