"""What is sent: long enough, new each time, under ids that no router uses."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from exporter import workload

SEEDS = st.integers(0, 2**32)


@given(st.integers(1, 40), st.integers(1, 300), SEEDS)
def test_every_prompt_has_at_least_as_many_words_as_tokens_are_wanted(count: int, tokens: int, seed: int) -> None:
    texts = workload.prompts(count, tokens, Random(seed))
    assert [len(text.split()) for text in texts] == [tokens] * count


@given(st.integers(1, 32), st.integers(40, 300), SEEDS)
def test_prompts_differ_within_a_batch_and_from_probe_to_probe(count: int, tokens: int, seed: int) -> None:
    random = Random(seed)
    texts = [text for _ in range(3) for text in workload.prompts(count, tokens, random)]
    assert len(set(texts)) == len(texts)
    assert len({" ".join(text.split()[:8]) for text in texts}) == len(texts), "no prefix may be found in a cache"


@given(st.integers(1, 4096), SEEDS)
def test_ids_are_different_and_in_the_upper_half_of_uint64(count: int, seed: int) -> None:
    random = Random(seed)
    ids = workload.request_ids(count, random)
    assert len(set(ids)) == count
    assert all(2**63 <= each < 2**64 for each in (*ids, workload.batch_id(random)))


@given(st.integers(1, 5000), st.sampled_from([1, 16, 32, 256]))
def test_the_reserved_block_gives_each_token_a_slot_in_block_0(tokens: int, block_size: int) -> None:
    blocks, slots = workload.blocks_of_reserved(tokens, block_size)
    assert set(blocks) == {0}
    assert len(blocks) * block_size >= tokens > (len(blocks) - 1) * block_size
    assert len(slots) == tokens
    assert all(0 <= slot < block_size for slot in slots)
