"""Whether a target is up, from what checks and probes have shown; alone, and in the ledger of a runner."""

from collections.abc import Iterator
from itertools import cycle, repeat

import pytest

from exporter.config.settings import Settings
from exporter.daemon.ledger import Recorder
from exporter.daemon.runner import Runner
from exporter.daemon.target_state import REJECTING, TargetState
from exporter.daemon.timing import Clock
from exporter.metrics.catalogue import layout
from exporter.metrics.record import Metrics
from exporter.observation import Failure, Outcome
from exporter.plan.targets import Facts, plans
from tests.daemon.virtual import Script, Time

FACTS = Facts("http/chat", 1)
REJECTED, OK = Outcome.REJECTED, Outcome.OK


def state(*probes: tuple[str, Outcome, float], interval: float = 30.0) -> TargetState:
    found = TargetState()
    found.checked(FACTS)
    for series, outcome, at in probes:
        found.probed(series, outcome, "X", at, interval)
    return found


def up(found: TargetState) -> bool:
    return found.facts is not None


def test_a_target_that_answers_is_up_before_the_first_probe() -> None:
    assert not up(TargetState())
    assert up(state())


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.MALFORMED, Outcome.UNREACHABLE])
def test_a_target_whose_every_probe_is_rejected_is_down_from_the_first_one_on(outcome: Outcome) -> None:
    assert not up(state(("a", outcome, 1)))
    assert not up(state(("a", outcome, 1), ("b", outcome, 2)))


def test_it_stays_down_however_often_a_check_finds_it_until_a_probe_succeeds() -> None:
    found = state(("a", REJECTED, 1))
    for _ in range(3):
        found.checked(FACTS)
        assert not up(found)
    found.probed("b", OK, "OK", 50, 30)
    assert up(found)


def test_one_workload_that_is_rejected_does_not_count_while_others_succeed() -> None:
    probes = [("good", OK, 0.0), *(("bad", REJECTED, float(at)) for at in range(1, 60))]
    assert up(state(*probes, interval=30))


def test_a_success_of_long_ago_does_not_count() -> None:
    assert not up(state(("seldom", OK, 0), ("often", REJECTED, 200), interval=30))
    assert up(state(("seldom", OK, 0), ("often", REJECTED, 200), interval=3600))


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome not in (OK, *REJECTING)])
def test_what_is_slow_or_was_not_sent_does_not_make_a_target_down_nor_up(outcome: Outcome) -> None:
    assert up(state(("a", outcome, 1)))
    assert not up(state(("a", REJECTED, 1), ("a", outcome, 2)))


def test_a_server_that_was_away_and_is_back_has_a_new_start() -> None:
    found = state(("a", Outcome.UNREACHABLE, 1))
    found.checked(None)
    assert not up(found)
    found.checked(FACTS)
    assert up(found)


def test_facts_that_are_not_answered_count_until_a_probe_succeeds() -> None:
    found = TargetState()
    found.checked(Facts("http/chat", 1, page="silent"))
    assert not up(found)
    found.probed("a", OK, "OK", 1, 30)
    assert up(found)
    found = TargetState()
    found.checked(Facts("http/chat", 1, page="refused"))
    assert up(found)


def test_a_bug_of_ours_says_nothing_of_the_target() -> None:
    found = state()
    found.probed("a", Outcome.MALFORMED, "INTERNAL", 1, 30)
    assert up(found)


# --- in the ledger


def watched(seconds: float, fates: Iterator[Exception | None], **workload: object) -> list[float]:
    """`tgi_probe_target_up` at every check and after every probe of so many virtual seconds."""
    sent = {"name": "w", "batch_sizes": [1, 2], "interval": "5s", "warmups": 0, **workload}
    settings = Settings.model_validate({"targets": [{"name": "t", "address": "h:1"}], "workloads": [sent]})
    plan = plans(settings)["t"]
    time = Time(seconds)
    seen: list[float] = []

    class Seeing(Recorder):
        def _show(self, target: str, state: TargetState) -> None:
            super()._show(target, state)
            seen.append(self.metrics.families.target_up.labels("t").value)

    recorder = Seeing(Metrics(layout(settings)), settings)
    recorder.metrics.announce(plan)
    runner = Runner(plan, Script(time, fates=fates), recorder, clock=Clock(lambda: time.now, time.wait))
    time.on_end = runner.stop
    runner.run()
    return seen


def rejected() -> Failure:
    return Failure(Outcome.REJECTED, "UNAUTHORIZED", "no")


def test_target_up_is_0_while_every_probe_is_rejected_and_1_as_soon_as_one_succeeds() -> None:
    seen = watched(300, iter([rejected()] * 5))
    down = seen.index(0)
    assert seen[:down] == [1] * down
    back = seen.index(1, down)
    assert back - down > 5
    assert set(seen[back:]) == {1}


def test_target_up_stays_0_when_no_probe_ever_succeeds() -> None:
    seen = watched(300, repeat(rejected()))
    assert set(seen[seen.index(0) :]) == {0}


def test_target_up_stays_1_while_one_of_two_batch_sizes_is_rejected() -> None:
    seen = watched(300, cycle([None, rejected()]))
    assert 0 not in seen[2:]
