"""A server that ends during a probe, in virtual time: what is not sent again, and what goes on."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome, SkipReason
from exporter.plan.schedule import CHECK_INTERVAL
from exporter.plan.targets import Facts
from exporter.probes.interface import Result
from exporter.probes.quarantine import Death, Quarantine
from tests.daemon.virtual import FACTS, Script, unreachable, watched

DROPPED = Failure(Outcome.UNREACHABLE, "UNAVAILABLE", "Prefill at h:1: Socket closed", may_have_ended_server=True)
FAILED = Failure(Outcome.REJECTED, "INTERNAL", "Prefill at h:1: CUDA error", may_have_ended_server=True)
TARGET = Target(name="t", address="h:1")


def workload(**keys: Any) -> Workload:
    lengths = {"sequence_length": 10, "decode_length": 8}
    return Workload.model_validate(
        {"name": "chat", "batch_sizes": [4, 1, 2], "interval": "10s", "warmups": 0} | lengths | keys
    )


@dataclass
class Mortal(Script):
    """A server that ends of `too_many` requests at once, and is back `away` seconds later as another one."""

    too_many: int = 4
    away: float = 5.0
    says: Failure = DROPPED
    deaths: int = 0

    def connect(self, timeout: float) -> Facts:
        return replace(super().connect(timeout), connection=(self.deaths,))

    def probe(self, workload: Workload, batch_size: int, stopping: Callable[[], bool], trace_id: str = "") -> Result:
        result = super().probe(workload, batch_size, stopping, trace_id)
        if batch_size < self.too_many:
            return result
        self.deaths += 1
        self.away_until = self.time.now + self.away
        raise self.says


def mortal(seconds: float, *workloads: Workload, **keys: Any) -> tuple[Any, Any]:
    return watched(seconds, *workloads, script=Mortal, **keys)


@pytest.mark.parametrize("says", [DROPPED, FAILED])
@pytest.mark.parametrize("away", [0.0, 0.2, 45.0])
@pytest.mark.parametrize("interval", ["0s", "10s"])
def test_a_server_dies_once_and_its_smaller_batches_are_probed_on(
    says: Failure, away: float, interval: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger, prober = mortal(600, workload(interval=interval), says=says, away=away)
    assert prober.deaths == 1
    outcomes = Counter((made.series.batch_size, made.outcome) for made in ledger.observations)
    assert {size for size, outcome in outcomes if outcome is Outcome.QUARANTINED} == {4}
    assert outcomes[4, says.outcome] >= 1
    assert min(outcomes[1, Outcome.OK], outcomes[2, Outcome.OK]) >= 600 // 10 * 0.8
    [line] = [line for line in caplog.messages if "the server ended at" in line]
    assert "during a probe of workload chat, batch size 4 (72 tokens of KV cache)" in line
    assert says.detail in line


def test_the_first_round_goes_from_small_to_large_so_that_it_ends_at_the_smallest_batch_that_ends_it() -> None:
    sizes = [32, 8, 1, 16, 4, 2]
    for duty in (0.5, 1.0):
        _, prober = mortal(300, workload(batch_sizes=sizes), too_many=8, max_duty_cycle=duty)
        assert [size for _, _, size in prober.sent][:4] == [1, 2, 4, 8]
        assert prober.deaths == 1
        assert {size for _, _, size in prober.sent[4:]} == {1, 2, 4}


def test_another_workload_is_held_where_its_batches_take_as_much() -> None:
    long = workload(name="long", sequence_length=100, batch_sizes=[1], interval="20s")
    ledger, prober = mortal(300, workload(), long)
    assert prober.deaths == 1
    assert {(made.series.workload, made.outcome) for made in ledger.observations[4:]} >= {
        ("long", Outcome.QUARANTINED),
        ("chat", Outcome.OK),
    }


def test_what_is_held_back_to_back_is_due_as_often_as_a_check_and_holds_up_no_other() -> None:
    ledger, _ = mortal(600, workload(interval="0s"))
    outcomes = Counter((made.series.batch_size, made.outcome) for made in ledger.observations)
    assert 600 / CHECK_INTERVAL * 0.8 <= outcomes[4, Outcome.QUARANTINED] <= 600 / CHECK_INTERVAL
    assert outcomes[1, Outcome.OK] > 1000


def test_a_call_that_fails_while_the_server_lives_on_quarantines_nothing() -> None:
    ledger, _ = watched(600, workload(), fates=iter([None, FAILED, None, DROPPED]))
    assert {made.outcome for made in ledger.observations} == {Outcome.OK, FAILED.outcome, DROPPED.outcome}


@pytest.mark.parametrize(
    "harmless",
    [
        Failure(Outcome.UNREACHABLE, "CANCELLED", "a graceful stop"),
        Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", "it hangs"),
        unreachable(),
    ],
)
def test_a_stop_a_hang_and_an_absence_quarantine_nothing(harmless: Failure) -> None:
    ledger, _ = mortal(300, workload(), says=harmless, away=3.0)
    assert Outcome.QUARANTINED not in {made.outcome for made in ledger.observations}


def test_a_server_that_answers_a_probe_after_the_failed_one_and_goes_away_then_did_not_end_of_it() -> None:
    connects = iter([None] * 4 + [unreachable()])  # the first check, two attempts, and a look after the failure
    ledger, _ = watched(30, workload(interval="0s", batch_sizes=[1]), fates=iter([FAILED]), connects=connects)
    outcomes = [observation.outcome for observation in ledger.observations]
    assert outcomes[:3] == [Outcome.REJECTED, Outcome.OK, Outcome.UNREACHABLE]
    assert Outcome.QUARANTINED not in outcomes


def test_a_server_that_hangs_after_a_failed_call_has_not_ended() -> None:
    hangs = Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", "Info: no answer")
    ledger, _ = watched(100, workload(), fates=iter([FAILED]), connects=iter([None, None, hangs, hangs]))
    assert Outcome.QUARANTINED not in {made.outcome for made in ledger.observations}


def test_what_was_quarantined_before_is_not_sent_and_is_said_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    known = Quarantine(TARGET, Death("chat", 2, 36, 0.0, "Socket closed"))
    ledger, prober = watched(100, workload(), target=TARGET, quarantine=known)
    assert {size for _, _, size in prober.sent} == {1}
    held = [made for made in ledger.observations if made.outcome is Outcome.QUARANTINED]
    assert {(made.code, made.streams) for made in held} == {("QUARANTINED", ())}
    assert "1970-01-01T00:00:00Z during a probe of workload chat, batch size 2" in held[0].detail
    assert [line for line in caplog.messages if "the server ended at" in line] == [f"target t: {known.reason()}"]


def test_a_server_without_its_warmup_is_left_alone_for_some_seconds_and_quarantined_for_nothing() -> None:
    cold = Failure(Outcome.NOT_READY, "INTERNAL", "not warmed up yet")
    ledger, prober = watched(60, workload(interval="0s"), fates=iter([cold] * 5), lasts=lambda *_: 0.1)
    times = [at for at, *_ in prober.sent[:6]]
    assert times == pytest.approx([5.1 * number for number in range(6)])
    assert {made.outcome for made in ledger.observations} == {Outcome.NOT_READY, Outcome.OK}


def test_blocks_are_counted_as_soon_as_the_target_has_said_how_large_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limited = Target(name="t", address="h:1", kv_cache="exclusive", max_batch_tokens=200)
    paged = replace(FACTS, requires_padding=False, block_size=64)
    for interval in ("0s", "10s"):
        ledger, prober = watched(
            100, workload(interval=interval), target=limited, facts=paged, connects=iter([unreachable()])
        )
        assert {size for _, _, size in prober.sent} == {1, 2}
        assert {(series.batch_size, reason) for _, series, reason in ledger.skips} >= {(4, SkipReason.UNSAFE)}
        assert 9 <= ledger.reasons()[SkipReason.UNSAFE] <= 11
        assert not [made for made in ledger.observations if made.series.batch_size == 4]
    assert set(caplog.messages) >= {
        "target t, workload chat, batch size 4 is never sent: it needs 4 blocks of KV cache (1 for each request, of "
        "64 tokens), and max_batch_tokens 200 is 3 blocks"
    }
