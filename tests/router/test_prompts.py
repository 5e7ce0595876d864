"""Prompts: as long as wanted, and never the beginning of an earlier one."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.prompts import WORDS, Prompts, Ruler, off


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


def uneven(text: str) -> int:
    """A tokenizer that has two tokens for some words."""
    return sum(2 if "q" in word or "z" in word or word < "b" else 1 for word in text.split())


def template(text: str) -> int:
    return 33 + uneven(text)


def long_words(text: str) -> int:
    return sum(-(-len(word) // 2) for word in text.split()) + 1


SERVERS: dict[str, Callable[[str], int]] = {
    "one to one": lambda text: len(text.split()),
    "a first token": lambda text: 1 + len(text.split()),
}
SERVERS |= {"two tokens for some words": uneven, "chat template": template, "short pieces": long_words}


@pytest.mark.parametrize("count", SERVERS.values(), ids=SERVERS)
@pytest.mark.parametrize("wanted", [100, 512, 4000])
def test_after_a_few_corrections_the_length_is_right_to_one_percent_and_stays(
    count: Callable[[str], int], wanted: int
) -> None:
    prompts, ruler = Prompts(random.Random(2)), Ruler()
    for _ in range(4):
        words = ruler.words(wanted)
        mean = sum(map(count, prompts.texts(8, words))) / 8
        if off(mean, wanted):
            ruler.learn(words, mean)
    lengths = [count(text) for _ in range(20) for text in prompts.texts(8, ruler.words(wanted))]
    assert all(abs(length - wanted) <= max(1.5, wanted / 100) for length in lengths)


def test_two_measured_lengths_tell_what_a_word_counts_and_what_the_server_adds() -> None:
    ruler = Ruler()
    ruler.learn(8, 8 * 1.5 + 5)
    ruler.learn(256, 256 * 1.5 + 5)
    assert ruler.words(305) == 200


def test_a_prompt_has_at_least_one_word_however_much_the_server_adds() -> None:
    ruler = Ruler()
    ruler.learn(10, 50)
    assert ruler.words(10) == 1


def test_the_same_length_seen_again_changes_nothing() -> None:
    ruler = Ruler()
    ruler.learn(10, 13)
    first = ruler.words(100)
    ruler.learn(10, 13)
    assert ruler.words(100) == first
