"""What the places of a KV cache hold, and answers that depend on all of it: state only, no clock, no I/O.

The entry of a token depends on the entry before it, as keys and values do in a transformer, and the next token on
every entry of its sequence. So an answer changes when anyone else writes into one of its places.
"""

import zlib
from array import array
from collections.abc import Sequence


class KvContents:
    """A cache of that many places, each of one token."""

    def __init__(self, places: int) -> None:
        self.places = array("L", bytes(array("L").itemsize * places))

    def write(self, slots: Sequence[int], at: int, tokens: Sequence[str]) -> None:
        """Enter tokens of one sequence, the first of them at its position `at`. `slots` are the sequence's places."""
        entry = self.places[slots[at - 1]] if at else 0
        for slot, token in zip(slots[at : at + len(tokens)], tokens, strict=True):
            self.places[slot] = entry = zlib.crc32(token.encode(), entry)

    def next_word(self, slots: Sequence[int], context: int) -> str:
        """The token after the first `context` ones of a sequence."""
        return f" {sum(map(self.places.__getitem__, slots[:context])) & 0xFFFFFFFF:08x}"


def extended(
    contents: KvContents, slots: Sequence[int], prompt: Sequence[str], cached: int, words: tuple[str, ...], tokens: int
) -> tuple[str, ...]:
    """The words of an answer after `tokens` more of them. Without words the prompt is entered first, but for its first
    `cached` tokens, which are there.
    """
    if not words:
        contents.write(slots, cached, prompt[cached:])
        words, tokens = (contents.next_word(slots, len(prompt)),), tokens - 1
    for _ in range(tokens):
        at = len(prompt) + len(words) - 1
        contents.write(slots, at, words[-1:])
        words = (*words, contents.next_word(slots, at + 1))
    return words


def undisturbed(prompt: Sequence[str], tokens: int) -> tuple[str, ...]:
    """The answer to a prompt in a cache that nobody else uses."""
    places = len(prompt) + tokens
    return extended(KvContents(places), range(places), prompt, 0, (), tokens)
