"""What a live shard does, asked over real gRPC."""

import json
from pathlib import Path

import grpc
import pytest

from exporter.pb import generate_v2_pb2 as v2
from exporter.pb import generate_v3_pb2 as v3
from exporter.simulator import Config, Shard
from exporter.simulator.faults import Fault
from tests.simulator.caller import Caller, await_count, decode, fast, prefill, prefill_of, request, served

INTERNAL = grpc.StatusCode.INTERNAL
OWN_ID = 2**64 - 5


def test_eight_new_tokens_are_one_prefill_and_seven_decodes() -> None:
    with served(fast()) as (shard, [caller]):
        first = caller.call("Prefill", prefill_of(OWN_ID, size=3, max_new_tokens=8))
        assert [g.request_id for g in first.generations] == [0, 1, 2]
        assert [len(g.tokens.ids) for g in first.generations] == [1, 1, 1]
        assert list(first.batch.request_ids) == [0, 1, 2]
        for _ in range(6):
            step = caller.call("Decode", decode(OWN_ID))
            assert step.HasField("batch")
            assert not any(g.HasField("generated_text") for g in step.generations)
        last = caller.call("Decode", decode(OWN_ID))
        assert not last.HasField("batch")
        assert [g.generated_text.generated_tokens for g in last.generations] == [8, 8, 8]
        assert shard.state()["ranks"][0]["batches"] == []


def test_one_new_token_leaves_nothing_to_decode() -> None:
    with served(fast()) as (shard, [caller]):
        answer = caller.call("Prefill", prefill_of(1, max_new_tokens=1))
        assert not answer.HasField("batch")
        assert all(g.HasField("generated_text") for g in answer.generations)
        assert shard.state()["ranks"][0]["batches"] == []


def test_a_prefill_with_an_id_in_use_replaces_that_batch() -> None:
    with served(fast()) as (shard, [caller]):
        caller.call("Prefill", prefill_of(0, size=3))
        caller.call("Prefill", prefill_of(0, size=1))
        assert [batch["size"] for batch in shard.state()["ranks"][0]["batches"]] == [1]


def test_an_unknown_batch_is_an_internal_error_with_the_pythons_words() -> None:
    with served(fast()) as (shard, [caller]):
        assert caller.failure("Decode", decode(999)) == (INTERNAL, "Batch ID 999 not found in cache.")
        assert shard.state()["alive"]


def test_a_failing_decode_has_already_taken_its_batches_out() -> None:
    with served(fast()) as (_, [caller]):
        caller.call("Prefill", prefill_of(1))
        caller.failure("Decode", decode(1, 999))
        assert caller.failure("Decode", decode(1))[1] == "Batch ID 1 not found in cache."


def test_decode_joins_several_batches_under_the_first_id() -> None:
    with served(fast()) as (_, [caller]):
        caller.call("Prefill", prefill(1, [request(10)]))
        caller.call("Prefill", prefill(2, [request(20)]))
        joined = caller.call("Decode", decode(1, 2))
        assert (joined.batch.id, list(joined.batch.request_ids)) == (1, [10, 20])
        assert joined.HasField("concat_ns")


def test_a_paged_prefill_joins_the_cached_batch_it_names() -> None:
    with served(fast(attention="paged")) as (_, [caller]):
        caller.call("Prefill", prefill(1, [request(10)]))
        joined = caller.call("Prefill", prefill(2, [request(20)], cached_batch=v3.CachedBatch(id=1)))
        assert (joined.batch.id, list(joined.batch.request_ids)) == (1, [10, 20])


def test_filter_batch_keeps_only_the_named_requests() -> None:
    with served(fast()) as (_, [caller]):
        caller.call("Prefill", prefill_of(5, size=4))
        kept = caller.call("FilterBatch", v3.FilterBatchRequest(batch_id=5, request_ids=[3, 1])).batch
        assert (kept.size, list(kept.request_ids)) == (2, [3, 1])
        assert [g.request_id for g in caller.call("Decode", decode(5)).generations] == [3, 1]


def test_clear_cache_frees_one_batch_by_id_and_all_without() -> None:
    with served(fast()) as (shard, [caller]):
        for batch_id in (0, 1, 2):
            caller.call("Prefill", prefill_of(batch_id))
        caller.call("ClearCache", v3.ClearCacheRequest(id=0))
        assert [batch["id"] for batch in shard.state()["ranks"][0]["batches"]] == [1, 2]
        assert shard.state()["ranks"][0]["clear_all_calls"] == 0
        caller.call("ClearCache")
        assert shard.state()["ranks"][0]["batches"] == []
        assert shard.state()["ranks"][0]["clear_all_calls"] == 1


def test_warmup_throws_every_batch_away() -> None:
    with served(fast()) as (shard, [caller]):
        caller.call("Prefill", prefill_of(1))
        caller.call("Warmup", v3.WarmupRequest(max_prefill_tokens=64))
        assert shard.state()["ranks"][0]["batches"] == []


def test_a_batch_stays_after_its_channel_is_closed() -> None:
    with served(fast()) as (shard, [caller]):
        caller.call("Prefill", prefill_of(OWN_ID))
        caller.close()
        assert [batch["id"] for batch in shard.state()["ranks"][0]["batches"]] == [OWN_ID]


def test_a_running_prefill_whose_caller_gave_up_still_leaves_its_batch() -> None:
    with served(fast()) as (shard, [caller]):
        caller.call("Health")
        shard.fault(Fault("hang", method="Prefill"))
        running = caller.send("Prefill", prefill_of(1))
        await_count(shard, "calls", "Prefill")
        running.cancel()
        shard.fault(None)
        caller.call("Health")  # ServedCall after the Prefill: there is one thread.
        assert [batch["id"] for batch in shard.state()["ranks"][0]["batches"]] == [1]


def test_a_call_that_expires_in_the_queue_never_runs() -> None:
    with served(fast()) as (shard, [caller]):
        caller.call("Health")
        shard.fault(Fault("hang", method="Prefill"))
        running = caller.send("Prefill", prefill_of(1))
        await_count(shard, "calls", "Prefill")
        queued = caller.send("Info", timeout=0.5)
        await_count(shard, "received", "Info")
        assert queued.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
        shard.fault(None)
        running.result()
        caller.call("Health")
        assert "Info" not in shard.state()["ranks"][0]["calls"]


def test_the_record_tells_waiting_in_the_queue_from_running() -> None:
    with served(fast()) as (shard, [caller]):
        caller.call("Health")
        shard.fault(Fault("hang", method="Prefill"))
        running = caller.send("Prefill", prefill_of(1))
        await_count(shard, "calls", "Prefill")
        waiting = caller.send("Info")
        await_count(shard, "received", "Info")
        shard.fault(None)
        running.result(), waiting.result()
        _, prefilled, info = shard.record()
        assert prefilled.started_ns < info.received_ns < prefilled.finished_ns <= info.started_ns


def test_calls_in_flight_when_it_is_stopped_are_cancelled() -> None:
    with served(fast()) as (shard, [caller]):
        caller.call("Health")
        shard.fault(Fault("hang"))
        calls = [caller.send("Health") for _ in range(3)]
        await_count(shard, "received", "Health", 4)
        shard.stop()
        assert {call.exception().code() for call in calls} == {grpc.StatusCode.CANCELLED}


def test_speculation_carries_several_tokens_per_step_and_stops_at_the_limit() -> None:
    with served(fast(speculate=3)) as (_, [caller]):
        answer = caller.call("Prefill", prefill_of(1, size=1, max_new_tokens=40))
        steps = []
        while answer.HasField("batch"):
            answer = caller.call("Decode", decode(1))
            steps.append(len(answer.generations[0].tokens.ids))
        assert sum(steps) == 39
        assert set(steps) == {1, 2, 3, 4}
        assert answer.generations[0].generated_text.generated_tokens == 40


def test_a_prompt_is_cut_to_truncate_and_never_padded() -> None:
    with served(fast()) as (shard, [caller]):
        caller.call("Prefill", prefill(1, [request(0, truncate=10), request(1, truncate=500)]))
        assert shard.record()[-1].tokens == 10 + 64


def test_the_record_holds_the_timings_the_caller_was_told() -> None:
    with served(fast()) as (shard, [caller]):
        answer = caller.call("Prefill", prefill_of(3))
        [entry] = shard.record()
        assert (entry.method, entry.code, entry.batch_id, entry.size) == ("Prefill", "OK", 3, 2)
        assert (entry.forward_ns, entry.decode_ns) == (answer.forward_ns, answer.decode_ns)
        assert entry.total_ns == answer.total_ns >= answer.forward_ns + answer.decode_ns > 0
        assert entry.received_ns <= entry.started_ns < entry.finished_ns


def test_the_record_file_is_json_lines(tmp_path: Path) -> None:
    with served(fast(record=tmp_path / "calls")) as (_, [caller]):
        caller.call("Info")
        caller.failure("Decode", decode(7))
    lines = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert [(line["method"], line["code"]) for line in lines] == [("Info", "OK"), ("Decode", "INTERNAL")]


def test_a_neuron_shard_reports_no_time() -> None:
    with served(fast(neuron=True)) as (_, [caller]):
        answer = caller.call("Prefill", prefill_of(1))
        assert (answer.forward_ns, answer.decode_ns, answer.total_ns) == (0, 0, 0)


@pytest.mark.parametrize("attention", ["padded", "paged"])
def test_info_tells_how_the_kv_cache_is_kept(attention: str) -> None:
    with served(fast(attention=attention, speculate=2, block_size=32)) as (_, [caller]):
        info = caller.call("Info")
        assert info.requires_padding == (attention == "padded")
        assert (info.speculate, info.attention_impl, info.block_size) == (2, "paged", 32)


def test_an_answer_may_be_larger_than_a_default_client_takes() -> None:
    with served(fast()) as (_, [caller]):
        big = [request(index, text="word " * 4000, truncate=4000, prefill_logprobs=True) for index in range(80)]
        assert caller.call("Prefill", prefill(1, big)).ByteSize() > 4 * 2**20


@pytest.mark.parametrize(("speaks", "asked"), [("v3", "v2"), ("v2", "v3")])
def test_the_other_protocol_is_unimplemented(speaks: str, asked: str) -> None:
    with served(fast(protocol=speaks)) as (shard, _):
        other = Caller(shard.addresses[0], asked)
        assert other.failure("Info")[0] is grpc.StatusCode.UNIMPLEMENTED
        other.close()


def test_a_v2_shard_takes_its_text_from_inputs() -> None:
    with served(fast(protocol="v2", attention="paged")) as (shard, [caller]):
        one = v2.Request(
            id=4,
            inputs="word " * 30,
            truncate=20,
            parameters=v2.NextTokenChooserParameters(temperature=1),
            stopping_parameters=v2.StoppingCriteriaParameters(max_new_tokens=2),
        )
        answer = caller.call("Prefill", v2.PrefillRequest(batch=v2.Batch(id=9, requests=[one], size=1)))
        assert list(answer.batch.request_ids) == [4]
        assert shard.record()[-1].tokens == 20
        last = caller.call("Decode", v2.DecodeRequest(batches=[v2.CachedBatch(id=9)]))
        assert last.generations[0].generated_text.generated_tokens == 2
        assert shard.state()["ranks"][0]["blocks_written"] == []


def test_unix_sockets_are_numbered_by_rank_and_removed_at_the_end(tmp_path: Path) -> None:
    with served(fast(listen=f"unix://{tmp_path}/shard", ranks=2)) as (shard, callers):
        assert shard.addresses == [f"unix://{tmp_path}/shard-0", f"unix://{tmp_path}/shard-1"]
        for caller in callers:
            assert list(caller.call("ServiceDiscovery").urls) == shard.addresses
    assert list(tmp_path.iterdir()) == []


def test_a_socket_another_server_listens_on_is_refused(tmp_path: Path) -> None:
    config = fast(listen=f"unix://{tmp_path}/shard")
    with Shard(config), pytest.raises(OSError, match="another server does"):
        Shard(config).start()


def test_a_port_another_server_listens_on_is_refused() -> None:
    with (
        Shard(fast()) as shard,
        pytest.raises(OSError, match=r"^cannot listen on 127\.0\.0\.1:\d+: Address already in use$"),
    ):
        Shard(fast(listen=shard.addresses[0])).start()


def test_all_the_text_is_tokenised_and_takes_its_time_also_what_is_then_cut_off() -> None:
    with served(Config(tokenizer_seconds=0.001)) as (shard, [caller]):
        answer = caller.call("Prefill", prefill(1, [request(1, truncate=4, max_new_tokens=1)]))
        [entry] = shard.record()
        assert (entry.tokens, entry.text_tokens) == (4, 64)
        assert answer.total_ns - answer.forward_ns >= 64_000_000
