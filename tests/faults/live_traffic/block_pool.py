"""The block allocator of a router, with its prefix cache: the router owns every block but 0."""

import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

RESERVED = 0


@dataclass
class PrefixBlock:
    """A full block of a prompt. `users` are the requests that need it now."""

    block: int
    users: int = 0


class BlockPool:
    """Blocks 1 to `blocks` - 1, of `size` tokens."""

    def __init__(self, blocks: int, size: int) -> None:
        self.size = size
        self._free = list(range(1, blocks))[::-1]
        self._prefixes: OrderedDict[int, PrefixBlock] = OrderedDict()
        self._live: set[int] = set()

    def in_use(self) -> set[int]:
        """Those of live requests and of the prefix cache."""
        return self._live | {one.block for one in self._prefixes.values()}

    def allocate(self, prompt: Sequence[str], tokens: int) -> "Allocation | None":
        """Blocks for a prompt with its answer, `tokens` in all; None while too few are free."""
        # The last token of a prompt is always computed.
        keys = _keys(prompt, self.size)
        shared: list[int] = []
        for key in keys[: (len(prompt) - 1) // self.size]:
            if key not in self._prefixes:
                break
            shared.append(key)
        needed = -(-tokens // self.size) - len(shared)
        for key in shared:
            self._prefixes[key].users += 1
            self._prefixes.move_to_end(key)
        self._evict(needed)
        if len(self._free) < needed:
            for key in shared:
                self._prefixes[key].users -= 1
            return None
        own = [self._free.pop() for _ in range(needed)]
        self._live.update(own)
        blocks = [self._prefixes[key].block for key in shared] + own
        return Allocation(blocks, len(shared) * self.size, keys, shared, own)

    def computed(self, allocation: "Allocation") -> None:
        """The prompt is in the cache: its full blocks can be shared from now on."""
        for number, key in enumerate(allocation.keys):
            block = allocation.blocks[number]
            if key not in self._prefixes and block in allocation.own:
                self._prefixes[key] = PrefixBlock(block, users=1)
                allocation.shared.append(key)
                allocation.own.remove(block)
                self._live.discard(block)

    def free(self, allocation: "Allocation") -> None:
        for key in allocation.shared:
            self._prefixes[key].users -= 1
        self._live.difference_update(allocation.own)
        self._free += allocation.own

    def _evict(self, needed: int) -> None:
        for key, one in list(self._prefixes.items()):
            if len(self._free) >= needed:
                return
            if not one.users:
                del self._prefixes[key]
                self._free.append(one.block)


@dataclass
class Allocation:
    """The blocks of one request in order; the first `cached` tokens of its prompt are computed already."""

    blocks: list[int]
    cached: int
    keys: list[int]
    shared: list[int]
    own: list[int]

    def slots(self, tokens: int, size: int) -> list[int]:
        return [self.blocks[at // size] * size + at % size for at in range(tokens)]


def _keys(prompt: Sequence[str], size: int) -> list[int]:
    """One for each full block, which stands for all tokens up to its end."""
    keys: list[int] = []
    key = 0
    for at in range(0, len(prompt) - size + 1, size):
        key = zlib.crc32(" ".join(prompt[at : at + size]).encode(), key)
        keys.append(key)
    return keys
