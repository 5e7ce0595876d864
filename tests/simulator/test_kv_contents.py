"""Answers that depend on what the KV cache holds: a client that writes into another's places changes them."""

from typing import Any

import pytest

from exporter.simulator.kv_contents import KvContents, extended, undisturbed
from exporter.simulator.tokenizer import prompt_tokens
from tests.simulator.caller import WORDS, Caller, decode, fast, prefill, request, served

TOKENS = 32
ANSWER = undisturbed(prompt_tokens(WORDS, TOKENS), 8)


def mine(first_block: int, **fields: Any) -> Any:
    """A user's request of 3 blocks, from this one on."""
    blocks, slots = range(first_block, first_block + 3), range(16 * first_block, 16 * first_block + 39)
    return request(0, 8, blocks=blocks, slots=slots, **fields)


def answered(caller: Caller, *between: Any) -> list[str]:
    """The user's whole answer, with Prefills of another client after the first token."""
    words = list(caller.call("Prefill", prefill(0, [mine(1)])).generations[0].tokens.texts)
    for number, other in enumerate(between):
        caller.call("Prefill", prefill(100 + number, [other]))
    while len(words) < 8:
        words += caller.call("Decode", decode(0)).generations[0].tokens.texts
    return words


def test_an_answer_in_a_cache_of_ones_own_is_always_the_same() -> None:
    with served(fast(attention="paged", kv_contents=True)) as (_, [caller]):
        assert answered(caller) == list(ANSWER)
        assert answered(caller, mine(4)) == list(ANSWER)  # blocks behind it
    with served(fast(kv_contents=True)) as (_, [caller]):  # padded: each request has a cache of its own
        assert answered(caller, request(9, 60)) == list(ANSWER)


@pytest.mark.parametrize("other", [mine(0), mine(2), request(9, 60)], ids=["before", "behind", "without blocks"])
def test_it_changes_when_another_client_writes_into_its_places(other: Any) -> None:
    """With blocks that reach into it, or, as the last one, from block 0 up."""
    with served(fast(attention="paged", kv_contents=True)) as (_, [caller]):
        words = answered(caller, other)
        assert words[0] == ANSWER[0]
        assert words[1] != ANSWER[1]


def test_a_prefix_that_is_in_the_cache_gives_the_same_answer_and_a_wrong_one_another() -> None:
    with served(fast(attention="paged", kv_contents=True)) as (_, [caller]):
        answered(caller)
        again = caller.call("Prefill", prefill(1, [mine(1, cache_len=16)])).generations[0].tokens.texts
        assert list(again) == [ANSWER[0]]
        other = caller.call("Prefill", prefill(2, [mine(20, cache_len=16)])).generations[0].tokens.texts
        assert list(other) != [ANSWER[0]]


def test_it_does_not_depend_on_how_many_tokens_a_step_brings() -> None:
    contents, slots = KvContents(48), range(48)
    prompt = prompt_tokens(WORDS, TOKENS)
    words = extended(contents, slots, prompt, 0, (), 1)
    for tokens in (3, 1, 2, 1):
        words = extended(contents, slots, prompt, 0, words, tokens)
    assert words == ANSWER


def test_without_it_answers_are_the_words_of_before() -> None:
    with served(fast(attention="paged")) as (_, [caller]):
        assert answered(caller) == answered(caller, mine(2)) != list(ANSWER)
