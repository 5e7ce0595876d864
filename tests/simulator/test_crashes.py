"""What ends a shard without an answer, and what a shard says that has not been warmed up."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from exporter.pb import generate_v2_pb2 as v2
from exporter.pb import generate_v3_pb2 as v3
from exporter.simulator import Config
from tests.simulator.caller import decode, fast, prefill, prefill_of, request, served


def likely(**parameters: Any) -> v3.PrefillRequest:
    """One request that asks for likely tokens."""
    wanted = request(0, top_n_tokens=parameters.pop("top_n_tokens", 0))
    wanted.parameters.top_k = parameters.pop("top_k", 0)
    return prefill(1, [wanted])


def of_v2(size: int) -> v2.PrefillRequest:
    requests = [
        v2.Request(
            id=index,
            inputs="word " * 40,
            truncate=32,
            parameters=v2.NextTokenChooserParameters(temperature=1),
            stopping_parameters=v2.StoppingCriteriaParameters(max_new_tokens=8),
        )
        for index in range(size)
    ]
    return v2.PrefillRequest(batch=v2.Batch(id=1, requests=requests, size=size))


# 32 + 8 - 1 tokens are 3 blocks of 16, and 9 blocks there are.
CRASHES = [
    (fast(attention="paged", max_batch_tokens=9 * 16), prefill_of(1, size=4)),
    (fast(attention="paged", max_batch_tokens=9 * 16 + 15), prefill_of(1, size=4)),
    (fast(attention="paged", protocol="v2", max_batch_tokens=9 * 16), of_v2(4)),
    (fast(attention="paged", vocabulary=300), likely(top_k=301)),
    (fast(vocabulary=300), likely(top_n_tokens=301)),
]


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix"])
@pytest.mark.parametrize(("config", "message"), CRASHES)
def test_a_crash_drops_the_connection_without_an_answer(
    config: Config, message: Any, listen: str, tmp_path: Path
) -> None:
    place = f"unix://{tmp_path}/shard" if listen == "unix" else listen
    with served(fast(**{**vars(config), "roofline": config.roofline, "listen": place})) as (shard, [caller]):
        code, details = caller.failure("Prefill", message)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "Socket closed" in details
        assert shard.wait_until_dead(10)
        assert "failed to connect" in caller.failure("Health")[1]


SURVIVED = [
    (fast(attention="paged", max_batch_tokens=9 * 16), prefill_of(1, size=3)),
    (fast(attention="paged", protocol="v2", max_batch_tokens=9 * 16), of_v2(3)),
    (fast(attention="paged", vocabulary=300), likely(top_k=300)),
    (fast(attention="paged", vocabulary=300), likely(top_n_tokens=301)),
    (fast(vocabulary=300), likely(top_k=301, top_n_tokens=300)),
]


@pytest.mark.parametrize(("config", "message"), SURVIVED)
def test_what_just_fits_is_survived(config: Config, message: Any) -> None:
    with served(config) as (shard, [caller]):
        caller.call("Prefill", message)
        caller.call("Health")
        assert shard.died is None


@pytest.mark.parametrize("first", ["other batch", "other size", "other call"])
def test_ranks_that_compute_for_different_calls_abort(first: str) -> None:
    with served(fast(ranks=2)) as (shard, callers):
        for future in [caller.send("Prefill", prefill_of(7)) for caller in callers]:
            future.result()
        other = {"other batch": prefill_of(2), "other size": prefill_of(1, size=3), "other call": prefill_of(1)}[first]
        calls = [
            callers[0].send("Decode", decode(7))
            if first == "other call"
            else callers[0].send("Prefill", prefill_of(1)),
            callers[1].send("Prefill", other),
        ]
        assert {call.exception().code() for call in calls} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert shard.wait_until_dead(10)
        assert "different batches" in str(shard.died)


def test_a_paged_shard_that_was_not_warmed_up_has_no_cache_and_says_so_in_pythons_words() -> None:
    with served(fast(attention="paged", warmed_up=False)) as (shard, [caller]):
        assert caller.failure("Prefill", prefill_of(1)) == (grpc.StatusCode.INTERNAL, "list index out of range")
        caller.call("Warmup", v3.WarmupRequest(max_prefill_tokens=64))
        caller.call("Prefill", prefill_of(1))
        assert shard.died is None


def test_a_padded_shard_needs_no_warmup() -> None:
    with served(fast(warmed_up=False)) as (_, [caller]):
        caller.call("Prefill", prefill_of(1))
