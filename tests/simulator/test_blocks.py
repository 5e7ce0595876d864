"""The paged KV cache: whose blocks a Prefill writes."""

import grpc
import pytest

from tests.simulator.caller import fast, prefill, prefill_of, request, served


def test_a_prefill_without_blocks_writes_from_block_zero_up() -> None:
    with served(fast(attention="paged", block_size=16)) as (shard, [caller]):
        caller.call("Prefill", prefill_of(1, size=2, max_new_tokens=8))  # 39 tokens each: 3 blocks
        assert shard.state()["ranks"][0]["blocks_written"] == [0, 1, 2, 3, 4, 5]


def test_a_prefill_that_points_every_block_at_zero_writes_only_there() -> None:
    slots = [at % 16 for at in range(39)]
    with served(fast(attention="paged", block_size=16)) as (shard, [caller]):
        caller.call("Prefill", prefill(1, [request(index, 8, blocks=[0] * 3, slots=slots) for index in range(4)]))
        assert shard.state()["ranks"][0]["blocks_written"] == [0]


def test_the_slots_and_not_the_blocks_say_what_is_written() -> None:
    with served(fast(attention="paged", block_size=16)) as (shard, [caller]):
        caller.call("Prefill", prefill(1, [request(0, 8, blocks=[0] * 3, slots=range(160, 199))]))
        assert shard.state()["ranks"][0]["blocks_written"] == [10, 11, 12]


@pytest.mark.parametrize(("blocks", "slots"), [(2, 39), (3, 38)])
def test_too_few_blocks_or_slots_are_an_error(blocks: int, slots: int) -> None:
    with served(fast(attention="paged", block_size=16)) as (_, [caller]):
        short = request(0, 8, blocks=[0] * blocks, slots=[0] * slots)
        assert caller.failure("Prefill", prefill(1, [short]))[0] is grpc.StatusCode.INTERNAL


def test_speculation_needs_room_for_its_guesses() -> None:
    slots = [at % 16 for at in range(39)]
    with served(fast(attention="paged", block_size=16, speculate=2)) as (_, [caller]):
        short = request(0, 8, blocks=[0] * 3, slots=slots)
        assert "41 tokens" in caller.failure("Prefill", prefill(1, [short]))[1]


def test_a_padded_shard_writes_no_blocks() -> None:
    with served(fast()) as (shard, [caller]):
        caller.call("Prefill", prefill_of(1))
        assert shard.state()["ranks"][0]["blocks_written"] == []
