"""What several ranks and a lost connection ask of the shard prober."""

import random
from pathlib import Path

import pytest

from exporter.observation import Failure, Outcome
from exporter.prober import Prober
from exporter.probes import open_prober
from exporter.settings import Target, Workload
from exporter.simulator import Fault, Shard
from exporter.timeline import inter_token_latencies
from tests.simulator.caller import fast


def workload(**keys: object) -> Workload:
    return Workload.model_validate({"name": "chat", "sequence_length": 32, "decode_length": 8, "timeout": "20s"} | keys)


def prober_of(shard: Shard) -> Prober:
    return open_prober(Target(name="t", address=shard.addresses[0]))


def batches(shard: Shard) -> list[int]:
    return [len(rank["batches"]) for rank in shard.state()["ranks"]]


def test_a_timeout_never_leaves_one_rank_waiting_for_another() -> None:
    """A call that one rank computes and another still had queued when it ran out would end the model."""
    chance = random.Random(1)
    with Shard(fast(ranks=2, rank_timeout=1.0)) as shard:
        prober = prober_of(shard)
        ends = set()
        for _ in range(150):
            prober.connect(5.0)
            prober.settle(5.0)
            timeout = f"{chance.uniform(1, 25):.3f}ms"
            try:
                prober.probe(workload(timeout=timeout), 2, lambda: False)
                ends.add(Outcome.OK)
            except Failure as failure:
                ends.add(failure.outcome)
        prober.close()
        assert shard.died is None
        assert batches(shard) == [0, 0]
        assert Outcome.TIMEOUT in ends


def test_with_speculation_no_token_waits_longer_than_its_step() -> None:
    with Shard(fast(speculate=3, seed=3)) as shard:
        prober = prober_of(shard)
        prober.connect(5.0)
        (stream,) = prober.probe(workload(decode_length=40), 16, lambda: False).streams
        prober.close()
        steps = [step for step in stream.steps[1:] if step.tokens]
        assert {step.requests for step in steps} != {16}, "all requests ended together: nothing is shown"
        for step, latency in zip(steps, inter_token_latencies(stream), strict=True):
            assert latency <= step.arrived - step.asked


def test_a_debt_is_paid_on_every_rank_however_often_connecting_failed_meanwhile() -> None:
    with Shard(fast(ranks=2)) as shard:
        prober = prober_of(shard)
        prober.connect(5.0)
        shard.fault(Fault("hang", method="Decode"))
        with pytest.raises(Failure):
            prober.probe(workload(timeout="100ms"), 1, lambda: False)
        for _ in range(2):
            with pytest.raises(Failure):
                prober.connect(0.1)
            with pytest.raises(Failure):
                prober.settle(0.1)
        shard.fault(None)
        prober.close()
        assert batches(shard) == [0, 0]


def test_a_restart_between_two_calls_is_noticed(tmp_path: Path) -> None:
    with Shard(fast(listen=f"unix://{tmp_path}/shard")) as shard:
        prober = prober_of(shard)
        before = prober.connect(5.0)
        assert prober.connect(5.0) == before
        shard.restart()
        assert prober.connect(5.0) != before
        prober.close()
