"""Prompts for routers, which no prefix cache has seen. Pure; randomness is an argument.

Prompts of one length are the same words in another order, each with its own first word. So they differ from the start,
and have about as many tokens where some words are more than one token.
"""

from collections.abc import Sequence
from random import Random

from exporter.plan.words import WORDS


class Prompts:
    """Texts with different first words, until after hundreds of them the first word comes again.

    `hit` repeats one text for ever, to measure a prefix cache. Prompts with the same `order` use the same words for the
    same length.
    """

    def __init__(self, random: Random, hit: bool = False, order: Sequence[str] | None = None) -> None:
        self._random = random
        self._order = random.sample(WORDS, len(WORDS)) if order is None else list(order)
        self._next = random.randrange(len(WORDS)) if hit else 0
        self._hit = hit
        self._kept: dict[int, str] = {}

    def texts(self, count: int, words: int) -> list[str]:
        """`count` texts of `words` words each."""
        if not self._hit:
            return self._new(count, words)
        if words not in self._kept:
            [self._kept[words]] = self._new(1, words)
        return [self._kept[words]] * count

    def _new(self, count: int, words: int) -> list[str]:
        size = words - 1
        others = (self._order * (size // len(WORDS) + 1))[:size]
        self._random.shuffle(others)
        others *= 2  # each text begins at another place in them: a shuffle for each text would take too long
        texts = []
        for number in range(count):
            first = self._order[self._next % len(WORDS)]
            self._next += 1
            at = number * size // count
            texts.append(" ".join([first, *others[at : at + size]]))
        return texts
