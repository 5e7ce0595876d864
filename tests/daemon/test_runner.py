"""One target's runner in virtual time: what is started, skipped, rested, backed off, warmed up, and recorded."""

import logging
from collections import Counter
from itertools import pairwise, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.daemon.timing import BACKOFF_LONGEST
from exporter.observation import Failure, Outcome, SkipReason
from exporter.plan.schedule import CHECK_INTERVAL
from exporter.probes.interface import Abandoned
from tests.daemon.virtual import unreachable, watched


def workload(**keys: object) -> Workload:
    return Workload.model_validate({"name": "chat", "batch_sizes": [1, 2, 4], "interval": "10s", "warmups": 0} | keys)


FATES = st.sampled_from(
    [
        None,
        *(Failure(outcome, "X", "by chance") for outcome in Outcome if outcome not in (Outcome.OK, Outcome.REFUSED)),
        ValueError("a bug"),
        Abandoned(),
    ]
)


@given(
    st.lists(FATES, max_size=40),
    st.lists(st.sampled_from([None, None, unreachable(), ValueError("a bug")]), max_size=40),
    st.sampled_from(["0s", "1s", "10s"]),
    st.floats(0.05, 30),
    st.integers(0, 2),
)
def test_every_started_attempt_is_recorded_once_or_was_abandoned(
    fates: list[Exception | None], connects: list[Exception | None], interval: str, lasts: float, warmups: int
) -> None:
    abandoned = iter(fates)
    seen: list[Exception | None] = []

    def noted() -> Exception | None:
        fate = next(abandoned, None)
        seen.append(fate)
        return fate

    # A check between probes meets the same connects; a bug in it must not end the watching.
    ledger, prober = watched(
        60,
        workload(interval=interval, warmups=warmups),
        lasts=lambda *_: lasts,
        fates=iter(noted, object()),
        connects=iter(connects),
    )
    given_up = sum(isinstance(fate, Abandoned) for fate in seen)
    stopped_in = ledger.started - len(ledger.observations) - given_up
    assert stopped_in in (0, 1)  # one may have failed after the stop: no fact about the server
    assert ledger.flying == 0
    assert prober.owed == 0
    assert len(ledger.lateness) == len(ledger.observations)


def test_each_series_is_probed_once_per_interval() -> None:
    ledger, prober = watched(100, workload())
    per_interval = Counter((int(at // 10), size) for at, _, size in prober.sent)
    assert per_interval == {(number, size): 1 for number in range(10) for size in (1, 2, 4)}
    assert not ledger.skips


def test_starts_are_spread_over_the_interval() -> None:
    _, prober = watched(100, workload())
    gaps = [round(later - earlier, 6) for (earlier, *_), (later, *_) in pairwise(prober.sent)]
    assert gaps == [round(10 / 3, 6)] * (len(prober.sent) - 1)


def test_a_probe_that_outlasts_its_slot_makes_the_next_ones_skips_not_a_queue() -> None:
    ledger, prober = watched(1000, workload(batch_sizes=[1], interval="10s"), lasts=lambda *_: 25.0)
    assert set(ledger.reasons()) == {SkipReason.BUSY}
    assert len(prober.sent) + len(ledger.skips) in (100, 101)
    assert max(ledger.lateness) == 0


def test_the_share_of_time_spent_probing_stays_under_the_duty_cycle() -> None:
    for share in (0.1, 0.5, 0.9):
        ledger, _ = watched(1000, workload(interval="0s"), max_duty_cycle=share, lasts=lambda *_: 0.7)
        busy = sum(observation.ended - observation.started for observation in ledger.observations)
        assert 0.7 * share < busy / 1000 <= share * 1.01


def test_periodic_probes_over_the_duty_cycle_are_skipped_for_that_reason() -> None:
    ledger, _ = watched(100, workload(interval="3s"), max_duty_cycle=0.1, lasts=lambda *_: 0.5)
    assert set(ledger.reasons()) == {SkipReason.DUTY_CYCLE}


def test_no_series_starves_behind_a_slow_one() -> None:
    slow = {1: 0.1, 2: 0.1, 4: 6.0}
    _, prober = watched(1000, workload(), lasts=lambda _, size: slow[size])
    counts = Counter(size for _, _, size in prober.sent)
    assert min(counts.values()) > 30, counts


def test_on_a_slow_server_every_batch_size_is_probed_as_often_as_the_others() -> None:
    six = workload(batch_sizes=[1, 2, 4, 8, 16, 32], interval="30s")
    ledger, prober = watched(14 * 60, six, max_duty_cycle=0.5, lasts=lambda *_: 10.0)
    counts = Counter(size for _, _, size in prober.sent)
    assert len(counts) == 6
    assert max(counts.values()) - min(counts.values()) <= 1, counts
    assert max(ledger.lateness) == 0


def test_back_to_back_and_periodic_probes_leave_each_other_room() -> None:
    often, seldom = workload(name="often", interval="0s"), workload(name="seldom", interval="10s")
    ledger, prober = watched(300, often, seldom, lasts=lambda *_: 0.5)
    counts = Counter(name for _, name, _ in prober.sent)
    assert counts["seldom"] == 90
    assert counts["often"] > 300
    assert not ledger.skips


def test_back_to_back_probes_longer_than_every_gap_still_run() -> None:
    often, seldom = workload(name="often", interval="0s"), workload(name="seldom", interval="3s", batch_sizes=[1])
    _, prober = watched(300, often, seldom, lasts=lambda work, _: 5.0 if work.name == "often" else 0.1)
    counts = Counter(name for _, name, _ in prober.sent)
    assert counts["often"] > 20, counts
    assert counts["seldom"] > 20, counts


def test_a_target_that_fails_is_left_alone_longer_and_longer_up_to_a_bound() -> None:
    ledger, _ = watched(600, workload(interval="0s"), fates=repeat(unreachable()))
    starts = [observation.started for observation in ledger.observations]
    gaps = [later - earlier - 0.1 for earlier, later in pairwise(starts)]
    assert gaps[0] <= 1
    assert all(0.5 <= gap <= BACKOFF_LONGEST for gap in gaps)
    assert min(gaps[6:]) >= BACKOFF_LONGEST / 2
    assert {observation.outcome for observation in ledger.observations} == {Outcome.UNREACHABLE}


def test_a_success_ends_the_backing_off() -> None:
    fates = iter([unreachable()] * 5)
    ledger, _ = watched(600, workload(interval="0s"), fates=fates)
    starts = [observation.started for observation in ledger.observations]
    assert [observation.outcome for observation in ledger.observations[:6]] == [Outcome.UNREACHABLE] * 5 + [Outcome.OK]
    assert starts[7] - starts[6] == pytest.approx(0.1)


def test_a_target_that_was_away_is_probed_again_as_soon_as_a_check_finds_it() -> None:
    ledger, _ = watched(200, workload(interval="0s"), away_until=65.0)
    back = next(observation.started for observation in ledger.observations if observation.outcome is Outcome.OK)
    assert 65.0 <= back <= 65.0 + CHECK_INTERVAL


def test_a_target_that_answers_checks_but_fails_in_probes_gets_its_full_pause() -> None:
    ledger, prober = watched(600, workload(interval="0s"), fates=repeat(unreachable()))
    assert len(prober.sent) == len(ledger.observations) < 600 / (BACKOFF_LONGEST / 2) + 8


def test_periodic_probes_skipped_while_backing_off_say_so() -> None:
    ledger, _ = watched(100, workload(interval="1s"), fates=repeat(unreachable()))
    assert set(ledger.reasons()) == {SkipReason.BACKOFF}


def test_a_series_is_warmed_up_once_and_again_after_the_target_was_away() -> None:
    fates = iter([None] * 6 + [unreachable()])
    ledger, prober = watched(100, workload(batch_sizes=[1], warmups=2), fates=fates)
    # 2 warm-ups + 1, then 3 more, the failure, 2 warm-ups + 1, and so on
    assert [at for at, *_ in prober.sent[:4]] == pytest.approx([0.0, 0.1, 0.2, 10.0])
    assert len(prober.sent) == len(ledger.observations) + 4
    assert [observation.outcome for observation in ledger.observations].count(Outcome.OK) == 9


def test_warm_ups_are_in_no_observation_but_in_the_time_it_took() -> None:
    ledger, _ = watched(9, workload(batch_sizes=[1], warmups=3))
    [observation] = ledger.observations
    [stream] = observation.streams
    assert stream.sent == pytest.approx(observation.started + 0.3)


def test_a_warm_up_that_fails_is_the_failure_of_its_attempt() -> None:
    ledger, _ = watched(9, workload(batch_sizes=[1], warmups=1), fates=iter([unreachable()]))
    assert [observation.outcome for observation in ledger.observations] == [Outcome.UNREACHABLE]


def test_a_batch_too_large_for_the_target_is_never_sent_and_holds_up_no_other() -> None:
    limited = Target(name="t", address="h:1", max_batch_tokens=40)
    for interval in ("0s", "10s"):
        ledger, prober = watched(100, workload(interval=interval), target=limited)
        assert {size for _, _, size in prober.sent} == {1, 2}
        assert {series.batch_size for _, series, _ in ledger.skips} == {4}
        assert set(ledger.reasons()) == {SkipReason.UNSAFE}
        assert len(ledger.skips) == 10, "once per interval; back to back: once per check"
        assert len(prober.sent) >= (900 if interval == "0s" else 20)


def test_the_delay_by_a_slow_check_shows_as_lateness() -> None:
    slow = workload(batch_sizes=[1])
    ledger, prober = watched(100, slow, check_lasts=4.0)
    assert max(ledger.lateness) == pytest.approx(4.0)
    assert len(prober.sent) == 10


def test_a_bug_in_a_check_does_not_end_the_watching() -> None:
    ledger, _ = watched(100, workload(), connects=iter([ValueError("a bug")] * 5))
    assert len(ledger.observations) > 20


def test_a_probe_gives_way_to_users_and_that_is_a_skip_and_no_attempt() -> None:
    ledger, prober = watched(39, workload(interval="10s"), crowds=iter([True, False, True, False]))
    assert len(ledger.observations) == len(prober.sent) == 12 - 2
    assert set(ledger.reasons()) <= {SkipReason.BUSY}


def test_a_back_to_back_probe_that_gives_way_leaves_the_users_alone_for_a_second() -> None:
    ledger, _ = watched(9.5, workload(interval="0s"), crowds=iter([True] * 1000))
    assert not ledger.observations
    assert 8 <= ledger.reasons()[SkipReason.BUSY] <= 10


def test_a_queue_that_cannot_be_read_is_a_skip_and_no_failure_and_is_said_once_and_its_end_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tgi_probe")
    unknown = [Failure(Outcome.REJECTED, "X", "no page")] * 2
    ledger, prober = watched(39, workload(interval="10s"), crowds=iter([*unknown, False, unknown[0]]))
    assert len(ledger.observations) == len(prober.sent) == 12 - 3
    assert set(ledger.reasons()) <= {SkipReason.BUSY}
    assert {observation.outcome for observation in ledger.observations} == {Outcome.OK}
    told = "target t: probes give way, as if users waited: no page"
    assert [line for line in caplog.messages if "target t: " in line] == [
        told,
        "target t: its queue can be read again",
    ] * 2


def test_a_series_with_a_longer_interval_does_not_starve_beside_one_with_a_shorter_interval() -> None:
    often = workload(name="often", interval="1s", batch_sizes=[1])
    seldom = workload(name="seldom", interval="2s", batch_sizes=[1])
    _, prober = watched(400, often, seldom, lasts=lambda workload, batch_size: 0.3)
    sent = Counter(name for _, name, _ in prober.sent)
    assert sent["often"] > 250
    assert sent["seldom"] > 100
