"""Faults by command: every status, at a moment of a batch, on one rank; and answers that cannot be true."""

from typing import Any

import pytest

from exporter.pb import generate_v3_pb2 as pb
from exporter.simulator import Fault, lies
from exporter.simulator.faults import STATUS_KINDS, StatusKind
from tests.simulator.caller import decode, fast, prefill_of, served


@pytest.mark.parametrize("kind", STATUS_KINDS)
def test_each_status_is_answered_until_the_fault_is_taken_back(kind: StatusKind) -> None:
    with served(fast()) as (shard, [caller]):
        shard.fault(Fault(kind, method="Info"))
        assert caller.failure("Info")[0].name == kind.upper()
        caller.call("Health")
        shard.fault(None)
        caller.call("Info")


def test_a_fault_can_wait_for_the_second_decode_of_each_batch() -> None:
    with served(fast()) as (shard, [caller]):
        shard.fault(Fault("internal", method="Decode", at=2))
        for batch in (1, 2):
            caller.call("Prefill", prefill_of(batch))
            caller.call("Decode", decode(batch))
            assert caller.failure("Decode", decode(batch))[0].name == "INTERNAL"


def test_a_fault_can_name_several_methods_and_one_rank() -> None:
    with served(fast(ranks=2)) as (shard, [first, second]):
        shard.fault(Fault("internal", method="Info,Health", rank=1))
        for method in ("Info", "Health"):
            first.call(method)
            assert second.failure(method)[0].name == "INTERNAL"
        second.call("ServiceDiscovery")


def test_an_endless_batch_goes_on_after_its_last_token() -> None:
    with served(fast()) as (shard, [caller]):
        shard.fault(Fault("endless", method="Decode"))
        answer = caller.call("Prefill", prefill_of(1, max_new_tokens=2))
        for _ in range(5):
            answer = caller.call("Decode", decode(1))
            assert answer.HasField("batch")


def answered() -> Any:
    answer = pb.DecodeResponse(forward_ns=5, decode_ns=1, total_ns=7)
    for request in (4, 5):
        generation = answer.generations.add(request_id=request)
        generation.tokens.ids.append(7)
        generation.tokens.texts.append(" a")
    return answer


def test_each_lie_changes_what_it_says() -> None:
    told = {kind: lies.of_shard(kind, answered()) for kind in ("other_ids", "missing", "extra", "no_tokens")}
    ids = {kind: [generation.request_id for generation in answer.generations] for kind, answer in told.items()}
    assert ids == {
        "other_ids": [(1 << 32) + 4, (1 << 32) + 5],
        "missing": [5],
        "extra": [4, 5, 4],
        "no_tokens": [4, 5],
    }
    assert not any(generation.tokens.ids for generation in told["no_tokens"].generations)
    absurd = lies.of_shard("absurd_times", answered())
    assert absurd.forward_ns > absurd.total_ns > 10**19
    assert len(lies.of_shard("huge", answered()).SerializeToString()) > lies.HUGE_BYTES
    with pytest.raises(Exception, match="parsing message"):
        pb.DecodeResponse.FromString(lies.of_shard("garbage", answered()))
