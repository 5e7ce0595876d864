"""Each rule that our probes keep, broken on purpose: the model must notice what that does to users."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.pb import generate_v3_pb2 as wire
from exporter.plan import shard_prompts
from exporter.probes.shard import uncleared
from exporter.probes.shard.batch import PROTOCOLS, ShardBatch
from exporter.probes.shard.ranks import RankAnswers, Ranks
from exporter.simulator import Config
from tests.faults.live_traffic.shard_probing import LiveShard, padded, paged

RESERVED = {"kv_cache": "reserved_block"}
STEPS = 20_000  # the harm comes far sooner; this only ends a test that would find none
Careless = Callable[[pytest.MonkeyPatch], None]


def harm(folder: Path, patch: pytest.MonkeyPatch, careless: Careless, config: Config, **target: Any) -> set[str]:
    """The kinds of harm that users had until it was noticed."""
    careless(patch)
    live = LiveShard(0, folder, config, target)
    live.run(STEPS)
    return {one.kind for one in live.harm}


def with_prefill(change: Callable[[wire.Batch], None]) -> Careless:
    """Changes each batch before it is sent."""

    def careless(patch: pytest.MonkeyPatch) -> None:
        built = ShardBatch.prefill_request

        def prefill_request(batch: ShardBatch) -> bytes:
            message = wire.PrefillRequest.FromString(built(batch))
            change(message.batch)
            return message.SerializeToString()

        patch.setattr(ShardBatch, "prefill_request", prefill_request)

    return careless


def without_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shard_prompts, "blocks_of_reserved", lambda tokens, block_size: ([], []))


def slots_of_others(batch: wire.Batch) -> None:
    for request in batch.requests:
        request.slots[:] = range(16, 16 + len(request.slots))


def ids_from_zero(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shard_prompts, "batch_id", lambda rng: rng.randrange(3))
    patch.setattr(shard_prompts, "request_ids", lambda count, rng: list(range(count)))


def clear_without_id(patch: pytest.MonkeyPatch) -> None:
    def clear(batch_id: int, ranks: Ranks, timeout: float) -> None:
        ranks.call("ClearCache", PROTOCOLS[ranks.protocol].ClearCacheRequest().SerializeToString(), timeout)

    patch.setattr(uncleared, "clear", clear)


def decode_of_others(patch: pytest.MonkeyPatch) -> None:
    request = wire.DecodeRequest(batches=[wire.CachedBatch(id=number) for number in range(3)])
    patch.setattr(ShardBatch, "decode_request", lambda batch: request.SerializeToString())


def filter_of_others(patch: pytest.MonkeyPatch) -> None:
    request = wire.FilterBatchRequest(batch_id=0, request_ids=[0]).SerializeToString()
    other_call(patch, "Decode", "FilterBatch", request)


def warmup(patch: pytest.MonkeyPatch) -> None:
    other_call(patch, "Info", "Warmup", b"")


def other_call(patch: pytest.MonkeyPatch, instead_of: str, rpc: str, request: bytes) -> None:
    called = Ranks.call

    def call(ranks: Ranks, asked: str, data: bytes, timeout: float, metadata: Any = ()) -> RankAnswers:
        what = (rpc, request) if asked == instead_of else (asked, data)
        return called(ranks, *what, timeout, metadata)

    patch.setattr(Ranks, "call", call)


def wrong_size(batch: wire.Batch) -> None:
    batch.size += 1


def two_chunks(batch: wire.Batch) -> None:
    batch.requests[0].input_chunks.chunks.add(text="more")


def no_chunks(batch: wire.Batch) -> None:
    batch.requests[0].ClearField("input_chunks")


def beyond_the_vocabulary(batch: wire.Batch) -> None:
    batch.requests[0].parameters.top_k = 200_000


def beyond_the_cache(batch: wire.Batch) -> None:
    for request in batch.requests:
        request.slots[:] = range(10_000, 10_000 + len(request.slots))


@pytest.mark.parametrize(
    ("careless", "kinds"),
    [
        (without_blocks, {"written"}),
        (with_prefill(slots_of_others), {"written"}),
        (ids_from_zero, {"replaced", "popped", "cleared"}),
        (clear_without_id, {"cleared"}),
        (decode_of_others, {"popped", "replaced"}),
        (filter_of_others, {"replaced", "popped"}),
        (warmup, {"popped"}),
        (with_prefill(wrong_size), {"fatal"}),
        (with_prefill(two_chunks), {"fatal"}),
        (with_prefill(no_chunks), {"fatal"}),
        (with_prefill(beyond_the_vocabulary), {"fatal"}),
        (with_prefill(beyond_the_cache), {"fatal"}),
    ],
)
def test_a_careless_probe_of_a_paged_shard_is_caught(
    careless: Careless, kinds: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert harm(tmp_path, monkeypatch, careless, paged(), **RESERVED) & kinds


@pytest.mark.parametrize(
    ("careless", "kinds"),
    [
        (ids_from_zero, {"replaced", "popped", "cleared"}),
        (clear_without_id, {"cleared"}),
        (with_prefill(wrong_size), {"fatal"}),
    ],
)
def test_a_careless_probe_of_a_padded_shard_is_caught(
    careless: Careless, kinds: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert harm(tmp_path, monkeypatch, careless, padded(), max_batch_tokens=700) & kinds


def test_a_batch_that_does_not_fit_beside_users_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = padded(max_batch_tokens=500)  # users never need more than 486
    assert harm(tmp_path, monkeypatch, lambda patch: None, small) & {"fatal"}


def test_exclusive_where_users_are_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = {"kv_cache": "exclusive", "max_batch_tokens": 640}
    assert harm(tmp_path, monkeypatch, lambda patch: None, paged(), **target) & {"written"}


def test_users_answers_show_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without looking into the shard: a user notices, by the tokens alone, that someone wrote into the cache."""
    without_blocks(monkeypatch)
    live = LiveShard(0, tmp_path, paged(), RESERVED)
    monkeypatch.setattr(live.shard, "_compare_places", lambda method, before: None)
    live.run(STEPS)
    assert [one.kind for one in live.harm][:1] == ["answer"]
    assert "instead of" in live.harm[0].text
