"""What probing costs users, in virtual time: the figures are those of the scheduler, and the same each time."""

import pytest

from benchmarks.users import (
    DECODE_LENGTH,
    NONE,
    PRIORITY,
    SEQUENCE_LENGTH,
    Setting,
    VirtualRouter,
    simulated,
)
from exporter.simulator.batcher import BatchedRequest
from exporter.simulator.roofline import Roofline

BUSY = 14.0  # users per second
SECONDS = 15.0


def test_a_user_alone_waits_for_the_prefill_and_then_for_each_step() -> None:
    times = VirtualRouter(NONE, 10.0, iter([(1.0, BatchedRequest(0, ("a",) * 100, 3))]), 0).run()
    roofline = Roofline()
    assert times.ttft == pytest.approx([roofline.prefill_seconds(1, 100)])
    assert times.gaps == pytest.approx([roofline.decode_seconds(1, 101), roofline.decode_seconds(1, 102)])


def test_the_same_users_come_with_every_setting_and_each_time() -> None:
    bare, probed = simulated(NONE, BUSY, SECONDS, 1), simulated(Setting((1, 4), 0.2), BUSY, SECONDS, 1)
    assert len(bare.ttft) == len(probed.ttft) > 100
    assert len(bare.gaps) == len(probed.gaps)
    assert bare.ttft == simulated(NONE, BUSY, SECONDS, 1).ttft
    assert bare.ttft != simulated(NONE, BUSY, SECONDS, 2).ttft


@pytest.mark.parametrize("duty", [0.05, 0.2])
def test_probes_take_no_more_than_their_duty_cycle(duty: float) -> None:
    """Of a router without users, whose probes always take the same time."""
    times = VirtualRouter(Setting((4,), duty), 60.0, iter(()), 0).run()
    roofline = Roofline()
    steps = [roofline.decode_seconds(4, 4 * (SEQUENCE_LENGTH + step)) for step in range(1, DECODE_LENGTH)]
    busy = roofline.prefill_seconds(4, SEQUENCE_LENGTH) + sum(steps)
    assert times.probes * busy / 60.0 == pytest.approx(duty, rel=0.2)


def test_no_probe_starts_while_users_wait_and_probes_with_a_priority_wait_longer_than_users() -> None:
    plain = simulated(Setting((32,), 0.2), BUSY, SECONDS, 1)
    yielding = simulated(Setting((32,), 0.2, yields=True), BUSY, SECONDS, 1)
    last = simulated(Setting((32,), 0.2, priority=PRIORITY), BUSY, SECONDS, 1)
    assert plain.given_way == 0 < yielding.given_way
    assert yielding.probes <= plain.probes
    assert max(last.probe_ttft) > max(plain.probe_ttft)
    assert sum(last.ttft) < sum(plain.ttft)
