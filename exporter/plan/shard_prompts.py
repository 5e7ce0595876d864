"""Prompts for shards, which no cache has seen, and ids that no router uses. Pure; randomness is an argument.

A shard tokenises the whole text and truncates it afterwards, so a text that is too long makes its Prefill longer. Only
the shard knows how many tokens a word is. One small request asks for that (see `Vocabulary`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from exporter.plan.words import WORDS

UPPER_HALF = 1 << 63
# Some tokenizers write a space in the text of a token as one of these characters.
SPACES = str.maketrans("\u2581\u0120", "  ")
# The request that asks how many tokens a word is. It has at most ASKED_WORDS words, which the server truncates to
# ASKED_TOKENS tokens. Both are small because each token costs the server memory.
ASKED_WORDS = 48
ASKED_TOKENS = 64
# With fewer words to choose from, prompts would soon repeat.
LEAST_WORDS = 8
# After the prompt a server may name tokens that it generated.
MOST_GENERATED = 3


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words of equal length: each is `tokens` tokens, or more where that is not known."""

    words: tuple[str, ...]
    tokens: int = 1

    def count(self, tokens: int) -> int:
        """How many words are at least so many tokens. One per cent more, because a tokenizer may join two words, and
        a prompt must not be too short: the server would not pad it.
        """
        words = -(-tokens // self.tokens)
        # Where a space is a token of its own, the first word has none.
        return words + words // 100 + (self.tokens > 1)


# In any tokenizer that does not merge across spaces, n words are at least n tokens.
UNKNOWN = Vocabulary(tuple(f"{letter}{digit}" for letter in "abcdefghijklmnopqrstuvwxyz" for digit in range(10)))


def prompts(count: int, tokens: int, random: Random, vocabulary: Vocabulary = UNKNOWN) -> list[str]:
    """`count` texts of at least `tokens` tokens each, different in every place of every probe.

    Each request gets the same random text, rotated by another number of words: independent texts for a large batch
    would take longer than the probe. Where there are more requests than words, each has words of its own.
    """
    size = vocabulary.count(tokens)
    if count > size:
        return [" ".join(random.choices(vocabulary.words, k=size)) for _ in range(count)]
    words = random.choices(vocabulary.words, k=size)
    starts = [number * size // count for number in range(count)]
    words += words
    return [" ".join(words[start : start + size]) for start in starts]


def words_to_ask_for(tokens: int, random: Random) -> list[str]:
    """The words of a text whose tokens the server is asked for; it truncates the text to `tokens`."""
    return random.sample(WORDS, min(ASKED_WORDS, tokens))


def learned(words: Sequence[str], pieces: Sequence[str]) -> Vocabulary | None:
    """The tokens per word, learned from the tokens of a text; None where too few words can be recognised.

    `pieces` are the texts of the tokens, with or without their spaces. They may begin in the middle of the text or with
    special tokens, and end with generated tokens.
    """
    bare = [piece.translate(SPACES).strip() for piece in pieces]
    if any(" " in piece and piece.rsplit(" ", 1)[1] in words for piece in bare):
        return None  # the tokenizer joins words, and a prompt could become too short
    ends = range(len(bare), max(0, len(bare) - MOST_GENERATED) - 1, -1)
    # Not the first word, which has no space before it, nor the last one, whose end is not known.
    lengths = max((_lengths(words[1:], bare[:end]) for end in ends), key=len)
    lengths.pop(words[-1], None)
    for tokens in sorted(set(lengths.values())):
        found = tuple(word for word, length in lengths.items() if length == tokens)
        if len(found) >= LEAST_WORDS:
            return Vocabulary(found, tokens)
    return None


def _lengths(words: Sequence[str], pieces: Sequence[str]) -> dict[str, int]:
    """The tokens of each word, from the last one back for as long as the pieces fit."""
    found: dict[str, int] = {}
    at = len(pieces)
    for word in reversed(words):
        text, end = "", at
        while text != word:
            if at == 0 or not word.endswith(text):
                return found
            at -= 1
            text = pieces[at] + text
        found[word] = end - at
    return found


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
