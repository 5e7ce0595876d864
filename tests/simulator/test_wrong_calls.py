"""Mistakes of a caller: which ones the shard survives, and which ones end it."""

from dataclasses import replace

import grpc
import pytest

from exporter.pb import generate_v3_pb2 as v3
from exporter.simulator import Fault
from tests.simulator.caller import await_count, decode, fast, prefill, prefill_of, request, served


def _without(field: str) -> v3.Request:
    changed = request(0)
    changed.ClearField(field)
    return changed


def _with_second_chunk() -> v3.Request:
    changed = request(0)
    changed.input_chunks.chunks.add(text="more")
    return changed


def _with_image() -> v3.Request:
    changed = request(0)
    changed.input_chunks.chunks[0].image.mimetype = "image/png"
    return changed


FATAL = {
    "size larger than the number of requests": prefill(1, [request(0)], size=2),
    "size smaller than the number of requests": prefill(1, [request(0), request(1)], size=1),
    "no input chunks": prefill(1, [_without("input_chunks")]),
    "two text chunks": prefill(1, [_with_second_chunk()]),
    "an image": prefill(1, [_with_image()]),
}
SURVIVED = {
    "no parameters on a padded model": ("Prefill", prefill(1, [_without("parameters")])),
    "no requests": ("Prefill", prefill(1, [])),
    "a prompt beyond the positions": ("Prefill", prefill(1, [request(0, text="word " * 101, truncate=101)])),
    "a decode of nothing": ("Decode", decode()),
    "an unknown batch": ("Decode", decode(999)),
    "a filter on an unknown batch": ("FilterBatch", v3.FilterBatchRequest(batch_id=999, request_ids=[1])),
}


@pytest.mark.parametrize("attention", ["padded", "paged"])
@pytest.mark.parametrize("mistake", FATAL)
def test_a_fatal_mistake_is_answered_and_then_the_server_is_gone(mistake: str, attention: str) -> None:
    with served(fast(attention=attention, max_batch_tokens=4000)) as (shard, [caller]):
        code, details = caller.failure("Prefill", FATAL[mistake])
        assert code is grpc.StatusCode.INTERNAL
        assert shard.wait_until_dead(10)
        assert shard.died == details != ""
        assert caller.failure("Health")[0] is grpc.StatusCode.UNAVAILABLE


def test_a_padded_shard_that_runs_out_of_memory_answers_and_is_gone() -> None:
    with served(fast(max_batch_tokens=4000)) as (shard, [caller]):
        large = prefill(1, [request(index, max_new_tokens=2000) for index in range(4)])
        code, details = caller.failure("Prefill", large)
        assert code is grpc.StatusCode.INTERNAL
        assert shard.wait_until_dead(10)
        assert shard.died == details != ""


def test_calls_in_flight_when_the_server_ends_are_cancelled() -> None:
    with served(fast()) as (shard, [caller]):
        caller.call("Health")
        shard.fault(Fault("hang", method="Info"))
        first = caller.send("Info")
        await_count(shard, "calls", "Info")
        fatal = caller.send("Prefill", FATAL["no input chunks"])
        await_count(shard, "received", "Prefill")
        queued = [caller.send("Health") for _ in range(3)]
        await_count(shard, "received", "Health", 4)
        shard.fault(None)
        assert first.exception() is None
        assert fatal.exception().code() is grpc.StatusCode.INTERNAL
        assert {call.exception().code() for call in queued} == {grpc.StatusCode.CANCELLED}


@pytest.mark.parametrize("mistake", SURVIVED)
def test_a_survivable_mistake_is_an_internal_error_and_the_next_call_works(mistake: str) -> None:
    config = fast()
    model = config.roofline.model

    config = replace(config, roofline=replace(config.roofline, model=replace(model, max_positions=100)))
    with served(config) as (shard, [caller]):
        method, message = SURVIVED[mistake]
        assert caller.failure(method, message)[0] is grpc.StatusCode.INTERNAL
        assert caller.call("Prefill", prefill_of(1)).batch.size == 2
        assert shard.died is None


def test_no_parameters_are_silently_accepted_on_a_paged_model() -> None:
    with served(fast(attention="paged")) as (_, [caller]):
        assert caller.call("Prefill", prefill(1, [_without("parameters")])).batch.size == 1


def test_a_decode_beyond_the_positions_fails_and_its_batch_is_gone() -> None:

    config = fast()
    model = replace(config.roofline.model, max_positions=32)
    with served(replace(config, roofline=replace(config.roofline, model=model))) as (shard, [caller]):
        caller.call("Prefill", prefill_of(1))
        assert caller.failure("Decode", decode(1))[0] is grpc.StatusCode.INTERNAL
        assert shard.state()["ranks"][0]["batches"] == []


def test_abandoned_batches_fill_a_padded_shards_memory_until_it_dies() -> None:
    with served(fast(max_batch_tokens=200)) as (shard, [caller]):
        for batch_id in (1, 2):
            caller.call("Prefill", prefill_of(batch_id))
        assert caller.failure("Prefill", prefill_of(3))[0] is grpc.StatusCode.INTERNAL
        assert shard.wait_until_dead(10)
