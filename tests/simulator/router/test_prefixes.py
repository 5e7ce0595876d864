from hypothesis import given
from hypothesis import strategies as st

from exporter.simulator.prefix_cache import PrefixCache

prompts = st.lists(st.sampled_from("ab"), max_size=40).map(tuple)


@given(st.lists(prompts, max_size=8), prompts, st.integers(1, 5))
def test_what_is_cached_is_a_prefix_that_was_there_in_whole_blocks(
    known: list[tuple[str, ...]], asked: tuple[str, ...], block: int
) -> None:
    prefixes = PrefixCache(block, 10_000)
    for prompt in known:
        prefixes.add(prompt)
    shared = max(
        (
            next(
                (at for at, (a, b) in enumerate(zip(asked, prompt, strict=False)) if a != b),
                min(len(asked), len(prompt)),
            )
        )
        for prompt in (*known, ())
    )
    assert prefixes.cached_tokens(asked) == min(shared // block * block, max(0, len(asked) - 1))


def test_the_last_token_is_always_computed() -> None:
    prefixes = PrefixCache(4, 100)
    prefixes.add("abcdefgh")
    assert prefixes.cached_tokens("abcdefgh") == 7


def test_what_was_used_longest_ago_is_forgotten_from_its_end() -> None:
    prefixes = PrefixCache(1, 4)
    prefixes.add("abc")
    prefixes.add("xyz")
    assert prefixes.cached_tokens("xyz!") == 3
    assert prefixes.cached_tokens("abc!") == 1
