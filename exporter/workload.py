"""What is sent: prompts that no cache has seen, and ids that no router uses. Pure; randomness comes in as an
argument.
"""

from random import Random

# Every word is at least one token in any tokenizer that does not merge across spaces, so n words are at least n tokens.
WORDS = tuple(f"{letter}{digit}" for letter in "abcdefghijklmnopqrstuvwxyz" for digit in range(10))
UPPER_HALF = 1 << 63


def prompts(count: int, tokens: int, random: Random) -> list[str]:
    """`count` texts of `tokens` words each (at least as many tokens), different in every place of every probe.

    One random text is made and each request gets it turned round by another share: a long prompt for a large batch
    would otherwise cost more time than the probe. Where there are more requests than turns, each has words of its own.
    """
    if count > tokens:
        return [" ".join(random.choices(WORDS, k=tokens)) for _ in range(count)]
    words = random.choices(WORDS, k=tokens)
    twice = words + words
    turns = [number * tokens // count for number in range(count)]
    return [" ".join(twice[turn : turn + tokens]) for turn in turns]


def batch_id(random: Random) -> int:
    """An id in the upper half of uint64: a router counts its own up from 0."""
    return UPPER_HALF | random.getrandbits(63)


def request_ids(count: int, random: Random) -> list[int]:
    """`count` different ids in the upper half of uint64."""
    first = UPPER_HALF | random.getrandbits(62)
    return list(range(first, first + count))


def blocks_of_reserved(tokens: int, block_size: int) -> tuple[list[int], list[int]]:
    """Blocks and slots that keep a sequence of `tokens` inside block 0, which a router reserves for its health
    checks.
    """
    count = -(-tokens // block_size)
    return [0] * count, [slot % block_size for slot in range(tokens)]
