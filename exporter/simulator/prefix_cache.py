"""The prompt prefixes that are in the KV cache, in whole blocks: state only, no clock, no I/O."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence


class PrefixCache:
    """The `capacity` most recently used blocks of `block_size` tokens. A block counts only after all before it."""

    def __init__(self, block_size: int, capacity: int) -> None:
        self._block_size = block_size
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def cached_tokens(self, prompt: Sequence[str]) -> int:
        """How many of the prompt's first tokens need no computing; never all, since the last one gives the answer."""
        found = 0
        for key in self._keys(prompt):
            if key not in self._blocks:
                break
            found += 1
        return min(found * self._block_size, max(0, len(prompt) - 1))

    def add(self, prompt: Sequence[str]) -> None:
        """Remember a prompt that has been computed, and forget what was used longest ago."""
        # The first block last, so that it is not forgotten before the blocks that need it.
        for key in reversed(list(self._keys(prompt))):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)

    def _keys(self, prompt: Sequence[str]) -> Iterator[int]:
        key = 0
        for at in range(0, len(prompt) - self._block_size + 1, self._block_size):
            key = hash((key, tuple(prompt[at : at + self._block_size])))
            yield key
