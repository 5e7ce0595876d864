"""Prompts: as long as wanted, and never the beginning of an earlier one."""

import random
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.plan.prompt_lengths import PromptLengths
from exporter.plan.prompts import Prompts
from exporter.plan.words import WORDS
from exporter.probes.router.request_builder import TRIES


@given(st.integers(1, 2000), st.integers(1, 40), st.integers(0, 10))
def test_every_text_has_as_many_words_as_asked_for(words: int, count: int, seed: int) -> None:
    texts = Prompts(random.Random(seed)).texts(count, words)
    assert [len(text.split()) for text in texts] == [words] * count


def test_no_prompt_begins_with_the_word_of_another_for_hundreds_in_a_row() -> None:
    prompts = Prompts(random.Random(1))
    texts = [text for _ in range(len(WORDS) // 32) for text in prompts.texts(32, 512)]
    assert len({text.split()[0] for text in texts}) == len(texts)


def test_prompts_that_share_their_first_word_go_different_ways_after_it() -> None:
    prompts = Prompts(random.Random(1))
    texts = [prompts.texts(1, 256)[0].split() for _ in range(2 * len(WORDS))]
    pairs = zip(texts, texts[len(WORDS) :], strict=False)
    common = [next(n for n, (a, b) in enumerate(zip(x, y, strict=True)) if a != b) for x, y in pairs]
    assert max(common) <= 4


def test_a_hit_repeats_one_prompt_for_ever() -> None:
    prompts = Prompts(random.Random(1), hit=True)
    assert len({text for _ in range(5) for text in prompts.texts(4, 100)}) == 1


def test_words_are_short_and_different() -> None:
    assert len(set(WORDS)) == len(WORDS) > 300
    assert all(word.isalpha() and word.islower() and len(word) <= 4 for word in WORDS)


# --- how many words make a length


def varying(most: int) -> Callable[[str], int]:
    """Words of one to `most` tokens, each always the same."""
    return lambda text: sum(1 + zlib.crc32(word.encode()) % most for word in text.split())


TOKENIZERS: dict[str, Callable[[str], int]] = {
    "one to one": lambda text: len(text.split()),
    "two tokens for some words": lambda text: sum(2 if word < "f" else 1 for word in text.split()),
    "one to three tokens": varying(3),
    "pieces of two letters": lambda text: sum(-(-len(word) // 2) for word in text.split()),
    "single letters": len,
}


def found(lengths: PromptLengths, prompts: Prompts, wanted: int, count: Callable[[str], int | None]) -> int:
    """Finds a length out; answers how many texts that took."""
    asked = 0
    while not lengths.settled(wanted):
        words = lengths.next_words(wanted)
        lengths.learn(wanted, words, count(prompts.texts(1, words)[0]))
        asked += 1
        assert asked <= TRIES
    return asked


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("added", [0, 1, 12, 36, 200])
@pytest.mark.parametrize("wanted", [10, 32, 64, 128, 512, 4000])
@pytest.mark.parametrize("truncates", [False, True])
def test_a_few_texts_tell_how_many_words_make_a_length_or_that_none_do(
    tokenizer: Callable[[str], int], added: int, wanted: int, truncates: bool
) -> None:
    prompts, lengths = Prompts(random.Random(5)), PromptLengths(truncates)

    def count(text: str) -> int:
        return min(wanted, tokenizer(text) + added) if truncates else tokenizer(text) + added

    found(lengths, prompts, wanted, count)
    if (least := lengths.least(wanted)) is not None:
        assert not truncates
        assert added + 4 >= least[0] - 1 >= wanted
        return
    assert truncates or added <= wanted
    for _ in range(20):
        counts = [count(text) for text in prompts.texts(8, lengths.words(wanted))]
        assert not lengths.check(wanted, sum(counts) / 8)
        assert max(abs(tokens - wanted) for tokens in counts) <= (1 if truncates else max(6, wanted / 66))


def test_no_text_that_is_counted_is_much_longer_than_wanted() -> None:
    """It could be over the server's limits."""
    for wanted in (10, 64, 4000):
        prompts, lengths = Prompts(random.Random(5)), PromptLengths()
        seen: list[int] = []

        def count(text: str, seen: list[int] = seen) -> int:
            seen.append(36 + sum(1 + (word < "f") for word in text.split()))
            return seen[-1]

        found(lengths, prompts, wanted, count)
        assert max(seen) <= max(1.1 * wanted, 36 + 16)


def test_the_fewest_tokens_of_a_prompt_are_told_with_what_the_server_adds() -> None:
    lengths = PromptLengths()
    assert found(lengths, Prompts(random.Random(1)), 10, lambda text: 36 + len(text.split())) <= 3
    assert lengths.least(10) == (37, 36)
    assert lengths.least(64) is None


NO_COUNTS: dict[str, Callable[[str], int | None]] = {
    "nothing": lambda text: None,
    "zero": lambda text: 0,
    "always one": lambda text: 1,
    "always a hundred": lambda text: 100,
    "what a cache did not hold": lambda text: len(text.split()) - 1,
}


@pytest.mark.parametrize("count", NO_COUNTS.values(), ids=NO_COUNTS)
def test_what_cannot_be_a_count_is_none_and_the_length_is_estimated(count: Callable[[str], int | None]) -> None:
    lengths = PromptLengths()
    assert found(lengths, Prompts(random.Random(1)), 64, count) <= 3
    assert lengths.estimated
    assert (lengths.words(64), lengths.tokens(64, 64)) == (64, 64)


def test_a_server_that_cuts_to_the_length_needs_no_count() -> None:
    lengths = PromptLengths(truncates=True)
    assert found(lengths, Prompts(random.Random(1)), 64, lambda text: None) == 1
    assert not lengths.estimated
    assert (lengths.words(64), lengths.tokens(64, 64)) == (64, 64)


def test_another_length_at_the_same_server_takes_one_text_more() -> None:
    lengths, prompts = PromptLengths(), Prompts(random.Random(1))
    found(lengths, prompts, 512, lambda text: 36 + len(text.split()))
    assert found(lengths, prompts, 100, lambda text: 36 + len(text.split())) == 1
    assert lengths.words(100) == 64


@pytest.mark.parametrize("added", [36, 40, 136])
def test_a_server_that_came_back_is_asked_again_and_one_that_is_another_is_learned_anew(added: int) -> None:
    lengths, prompts = PromptLengths(), Prompts(random.Random(1))
    found(lengths, prompts, 512, lambda text: 36 + len(text.split()))
    lengths.forget()
    asked = found(lengths, prompts, 512, lambda text: added + len(text.split()))
    assert lengths.words(512) == pytest.approx(512 - added, abs=1)
    assert asked == 1 or added != 36


@given(st.integers(1, 400), st.lists(st.none() | st.integers(0, 10**12), min_size=TRIES, max_size=20), st.booleans())
def test_whatever_is_counted_there_is_a_length_to_send(wanted: int, counts: list[int | None], truncates: bool) -> None:
    lengths = PromptLengths(truncates)
    for tokens in counts:
        words = lengths.next_words(wanted)
        assert 1 <= words <= 20 * wanted + 256
        lengths.learn(wanted, words, tokens)
        if tokens is not None and lengths.plausible(words, wanted, tokens):
            lengths.check(wanted, tokens)
        assert lengths.words(wanted) >= 1
        assert lengths.tokens(words, wanted) >= 1
