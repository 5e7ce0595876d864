"""What is sent: prompts that no cache has seen, and ids that no router uses. Pure; randomness comes in as an
argument.

A shard tokenises all the text that it gets and truncates afterwards, so text that is too long makes its Prefill longer.
How many tokens a word is, only the shard knows: it is asked once, with one small request (see `Vocabulary`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from exporter.plan import prompts as texts

UPPER_HALF = 1 << 63
# What stands for a space in the text of a token, where it is shown at all.
SPACES = str.maketrans("\u2581\u0120", "  ")
# The request that asks: at most so many words, of which at most so many tokens are kept. Its answer costs the server
# memory for each of them.
ASKED_WORDS = 48
ASKED_TOKENS = 64
# With fewer words to choose from, prompts would soon repeat themselves.
LEAST_WORDS = 8
# After the prompt a server may name tokens that it generated.
MOST_GENERATED = 3


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words of equal length: each is `tokens` tokens, or more where that is not known."""

    words: tuple[str, ...]
    tokens: int = 1

    def count(self, tokens: int) -> int:
        """How many words are at least so many tokens. 1 % more than that, so that a server which joins two words now
        and then still gets enough: it never pads.
        """
        words = -(-tokens // self.tokens)
        # Where a space is a token of its own, the first word has none.
        return words + words // 100 + (self.tokens > 1)


# Every word is at least one token in any tokenizer that does not merge across spaces, so n words are at least n tokens.
UNKNOWN = Vocabulary(tuple(f"{letter}{digit}" for letter in "abcdefghijklmnopqrstuvwxyz" for digit in range(10)))


def prompts(count: int, tokens: int, random: Random, vocabulary: Vocabulary = UNKNOWN) -> list[str]:
    """`count` texts of at least `tokens` tokens each, different in every place of every probe.

    One random text is made and each request gets it turned round by another share: a long prompt for a large batch
    would otherwise cost more time than the probe. Where there are more requests than turns, each has words of its own.
    """
    size = vocabulary.count(tokens)
    if count > size:
        return [" ".join(random.choices(vocabulary.words, k=size)) for _ in range(count)]
    words = random.choices(vocabulary.words, k=size)
    twice = words + words
    turns = [number * size // count for number in range(count)]
    return [" ".join(twice[turn : turn + size]) for turn in turns]


def words_to_ask_for(tokens: int, random: Random) -> list[str]:
    """Words of a text, in their order, whose tokens a server shall name; it keeps so many tokens of it."""
    return random.sample(texts.WORDS, min(ASKED_WORDS, tokens))


def learned(words: Sequence[str], pieces: Sequence[str]) -> Vocabulary | None:
    """What the tokens of a text say of its words; None where too few of them can be understood.

    `pieces` are the texts of the tokens, with or without their spaces. They may begin in the middle of the text, or
    with special tokens, and end with tokens that were generated.
    """
    bare = [piece.translate(SPACES).strip() for piece in pieces]
    if any(" " in piece and piece.rsplit(" ", 1)[1] in words for piece in bare):
        return None  # it joins words, and a prompt of them could become too short
    ends = range(len(bare), max(0, len(bare) - MOST_GENERATED) - 1, -1)
    # The first word has no space before it, and the last one's end is uncertain.
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
