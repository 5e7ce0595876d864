"""A process that was held up holds nothing against the server."""

from itertools import pairwise

from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome, SkipReason
from tests.daemon.virtual import watched

DISTURBED = Failure(Outcome.DISTURBED, "OK", "timed out, but this process was stopped for 2.0 s while the probe ran")
OFTEN = Workload.model_validate({"name": "w", "batch_sizes": [1], "interval": "1s", "warmups": 0})


def test_a_disturbed_probe_is_recorded_once_and_followed_by_no_backoff() -> None:
    ledger, _ = watched(10, OFTEN, fates=iter([DISTURBED] * 3))
    outcomes = [observation.outcome for observation in ledger.observations]
    assert outcomes[:3] == [Outcome.DISTURBED] * 3
    assert set(outcomes[3:]) == {Outcome.OK}
    assert not ledger.reasons()[SkipReason.BACKOFF]


def test_a_target_that_could_not_be_asked_while_we_were_stopped_is_not_down() -> None:
    ledger, _ = watched(10, OFTEN, connects=iter([None, None, DISTURBED, None]))
    assert DISTURBED.outcome in {observation.outcome for observation in ledger.observations}
    assert False not in ledger.ups


def test_a_target_that_cannot_be_reached_twice_in_a_row_is_down_whatever_held_us_up() -> None:
    ledger, _ = watched(10, OFTEN, connects=iter([None, None, DISTURBED, DISTURBED, None]))
    assert False in ledger.ups


def test_a_disturbed_probe_that_was_answered_begins_the_backoff_anew() -> None:
    """Else the pauses after single failures would grow to half a minute while this machine is busy."""
    timeout = Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", "slow")
    mixed, _ = watched(60, OFTEN, fates=iter([fate for _ in range(8) for fate in (timeout, Outcome.DISTURBED)]))
    failed = [observation.started for observation in mixed.observations if observation.outcome is Outcome.TIMEOUT]
    assert len(failed) == 8
    assert max(later - earlier for earlier, later in pairwise(failed)) < 3


def test_a_disturbed_probe_between_two_failures_does_not_begin_the_backoff_anew() -> None:
    timeout = Failure(Outcome.TIMEOUT, "DEADLINE_EXCEEDED", "over")
    plain, _ = watched(300, OFTEN, fates=iter([timeout] * 8))
    mixed, _ = watched(300, OFTEN, fates=iter([failure for _ in range(8) for failure in (timeout, DISTURBED)]))
    pauses = [ledger.reasons()[SkipReason.BACKOFF] for ledger in (plain, mixed)]
    assert pauses[1] >= 0.8 * pauses[0] > 10
