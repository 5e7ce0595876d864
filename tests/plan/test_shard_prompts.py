"""What is sent: long enough, new each time, under ids that no router uses."""

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.plan import shard_prompts
from exporter.plan.words import WORDS

SEEDS = st.integers(0, 2**32)


KNOWN = shard_prompts.Vocabulary(WORDS[:8])


@given(st.integers(1, 40), st.integers(1, 300), SEEDS)
def test_every_prompt_has_as_many_words_as_tokens_are_wanted_and_1_percent_more(
    count: int, tokens: int, seed: int
) -> None:
    for vocabulary in (shard_prompts.UNKNOWN, KNOWN):
        texts = shard_prompts.prompts(count, tokens, Random(seed), vocabulary)
        assert [len(text.split()) for text in texts] == [tokens + tokens // 100] * count


@given(st.integers(1, 32), st.integers(40, 300), SEEDS, st.sampled_from([shard_prompts.UNKNOWN, KNOWN]))
def test_prompts_differ_within_a_batch_and_from_probe_to_probe(
    count: int, tokens: int, seed: int, vocabulary: shard_prompts.Vocabulary
) -> None:
    random = Random(seed)
    texts = [text for _ in range(3) for text in shard_prompts.prompts(count, tokens, random, vocabulary)]
    assert len(set(texts)) == len(texts)
    start = 8 if vocabulary is shard_prompts.UNKNOWN else 20
    assert len({" ".join(text.split()[:start]) for text in texts}) == len(texts), "no prefix may be found in a cache"


# --- what the tokens of a text tell


@dataclass(frozen=True)
class Tokenizer:
    """Words of `whole` are one token each, others are cut into pieces of `size` letters; `space` is written in front of
    a word (the first one's only with `first`), as a token of its own with `apart`.
    """

    whole: frozenset[str]
    size: int
    space: str
    first: bool
    apart: bool = False

    def pieces(self, text: str) -> list[str]:
        found = []
        for number, word in enumerate(text.split()):
            cut = [word] if word in self.whole else [word[at : at + self.size] for at in range(0, len(word), self.size)]
            if number or self.first:
                cut = [self.space, *cut] if self.apart else [self.space + cut[0], *cut[1:]]
            found += cut
        return found


TOKENIZERS = st.builds(
    Tokenizer,
    st.sets(st.sampled_from(WORDS), min_size=100).map(frozenset),
    st.integers(1, 3),
    st.sampled_from(["", " ", "\u2581", "\u0120"]),
    st.booleans(),
)
# What stands before and after the pieces of a prompt.
STARTS = st.sampled_from([[], ["<s>"], ["<|begin_of_text|>"], ["<\uff5cbegin\u2581of\u2581sentence\uff5c>"], [""]])
ENDS = st.sampled_from([[], [" the"], ["</s>"], ["\n"], [""], ["zz", "zz"]])


@given(TOKENIZERS, STARTS, ENDS, st.integers(9, 64), SEEDS)
def test_words_that_are_known_to_be_one_token_make_a_prompt_of_the_wanted_length(
    tokenizer: Tokenizer, start: list[str], end: list[str], kept: int, seed: int
) -> None:
    random = Random(seed)
    words = shard_prompts.words_to_ask_for(kept, random)
    pieces = [*start, *tokenizer.pieces(" ".join(words))][-kept:]
    found = shard_prompts.learned(words, [*pieces, *end])
    if found is None:
        assert len(tokenizer.whole & set(words)) < 30, "half of the words may be unlike the others, or cut off"
        return
    for tokens in (1, 10, 99, 100, 512, 1000):
        [text] = shard_prompts.prompts(1, tokens, random, found)
        length = len(tokenizer.pieces(text))
        assert length >= tokens
        if found.tokens == 1:
            # The first word has no space, and may be cut for that; a word at the end may have looked shorter.
            assert length <= tokens * 1.01 + 4


def test_one_token_for_each_word_is_seen_in_whatever_way_spaces_are_shown() -> None:
    words = list(WORDS[:20])
    for space in ("", " ", "\u2581", "\u0120"):
        found = shard_prompts.learned(words, ["<s>", *(space + word for word in words)])
        assert found is not None
        assert (set(found.words), found.tokens) == (set(words[1:-1]), 1)


def test_where_a_space_is_a_token_prompts_have_fewer_words_and_are_still_long_enough() -> None:
    words = list(WORDS[:20])
    apart = Tokenizer(frozenset(WORDS), 1, " ", first=False, apart=True)
    found = shard_prompts.learned(words, apart.pieces(" ".join(words)))
    assert found is not None
    assert found.tokens == 2
    for tokens in (1, 10, 512):
        [text] = shard_prompts.prompts(1, tokens, Random(1), found)
        assert tokens <= len(apart.pieces(text)) <= tokens * 1.01 + 3


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        ["<unk>"] * 20,
        [" " + word for word in WORDS[100:120]],
        [f" {one} {other}" for one, other in zip(WORDS[0:20:2], WORDS[1:20:2], strict=True)],
        [*(f" {word}" for word in WORDS[:18]), f" {WORDS[18]} {WORDS[19]}"],
    ],
    ids=["nothing", "unknown", "another text", "joined words", "one joined pair"],
)
def test_tokens_that_make_no_sense_or_join_words_tell_nothing(pieces: list[str]) -> None:
    assert shard_prompts.learned(WORDS[:20], pieces) is None


@given(st.lists(st.text(max_size=4), max_size=70), SEEDS)
def test_any_pieces_are_taken(pieces: list[str], seed: int) -> None:
    found = shard_prompts.learned(shard_prompts.words_to_ask_for(48, Random(seed)), pieces)
    assert found is None or len(found.words) >= shard_prompts.LEAST_WORDS


@given(st.integers(1, 4096), SEEDS)
def test_ids_are_different_and_in_the_upper_half_of_uint64(count: int, seed: int) -> None:
    random = Random(seed)
    ids = shard_prompts.request_ids(count, random)
    assert len(set(ids)) == count
    assert all(2**63 <= each < 2**64 for each in (*ids, shard_prompts.batch_id(random)))


@given(st.integers(1, 5000), st.sampled_from([1, 16, 32, 256]))
def test_the_reserved_block_gives_each_token_a_slot_in_block_0(tokens: int, block_size: int) -> None:
    blocks, slots = shard_prompts.blocks_of_reserved(tokens, block_size)
    assert set(blocks) == {0}
    assert len(blocks) * block_size >= tokens > (len(blocks) - 1) * block_size
    assert len(slots) == tokens
    assert all(0 <= slot < block_size for slot in slots)
