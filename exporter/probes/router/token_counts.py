"""How many tokens an answer's messages carry. Pure.

A server's counts are used where they can be true. What the stream itself shows goes before what is said of it: text is
a token at least, and no answer has more tokens than were asked for.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple


class Chunk(NamedTuple):
    """One message of an answer.

    `text`: it has generated text. `silent`: it has none, but may carry a token that makes no text (a special one, half
    a character). `so_far`: the tokens up to it, as it says itself. `last`: it says that the answer is over.
    """

    at: float
    text: bool
    silent: bool = False
    so_far: int | None = None
    last: bool = False


@dataclass(frozen=True, slots=True)
class Counted:
    """(instant, tokens so far). `estimated`: the server gave no count that can be true. Then an answer that ended
    because it was long enough has as many tokens as were asked for, another one for each chunk with text.
    """

    arrivals: Sequence[tuple[float, int]]
    estimated: bool = False


def counted(chunks: Sequence[Chunk], totals: Sequence[int], most: int | None, full: bool = False) -> Counted:
    """`totals`: every count that the server told anywhere, in order; the last one that can be true is the sum. `most`:
    how many tokens were asked for, None where there is no bound. `full`: the server says that so many came.
    """
    told = [chunk.so_far for chunk in chunks if chunk.so_far]
    if full and most is not None and told and told[-1] < most:
        # All that was asked for came, so the last count is not the sum: perhaps each counts its own chunk.
        if gains := _counted_by_chunk(chunks, told, totals, most):
            return Counted(gains)
        others = Counter(totals) - Counter(told)
        one_by_one = list(told) == list(range(1, len(told) + 1))  # a server may have a limit of its own
        if not one_by_one and not any(told[-1] <= count <= most for count in others):
            chunks, totals = [chunk._replace(so_far=None) for chunk in chunks], list(others.elements())
    shown = [chunk for chunk in chunks if chunk.text]
    bound = None if most is None else max(most, len(shown))
    # Where more pieces of text came than tokens were asked for, pieces are no tokens: a gateway cuts the text anew.
    least = 1 if most is not None and len(shown) > most else max(1, len(shown))
    possible = [count for count in totals if least <= count and (bound is None or count <= bound)]
    total = possible[-1] if possible else None
    arrivals = _counted_in_each(chunks, shown, bound)
    if arrivals:
        return Counted(_completed(arrivals, total, chunks))
    if total is not None:
        return Counted(spread_tokens([chunk.at for chunk in _carriers(chunks, shown, total)], total))
    guess = most if full and most is not None and len(shown) <= most else None
    return Counted(spread_tokens([chunk.at for chunk in shown], guess) if shown else [], estimated=True)


def _all_tell(chunks: Sequence[Chunk]) -> bool:
    must_tell = [chunk for chunk in chunks if chunk.text]
    must_tell = must_tell or [chunk for chunk in chunks if chunk.silent and not chunk.last]
    return all(chunk.so_far for chunk in must_tell)


def _counted_by_chunk(
    chunks: Sequence[Chunk], told: Sequence[int], totals: Sequence[int], most: int
) -> list[tuple[float, int]]:
    """The running sum of the counts, where that comes to all that were asked for."""
    one_is_left = told[-1] + 1 in totals  # a last token without text
    if sum(told) != most or one_is_left or not _all_tell(chunks):
        return []
    instants = [chunk.at for chunk in chunks if chunk.so_far]
    return list(zip(instants, accumulate(told), strict=True))


def _counted_in_each(chunks: Sequence[Chunk], shown: Sequence[Chunk], bound: int | None) -> list[tuple[float, int]]:
    """The counts that the messages themselves carry; empty where the stream disproves them."""
    if not _all_tell(chunks):
        return []
    arrivals = [(chunk.at, chunk.so_far) for chunk in chunks if chunk.so_far]
    counts = [count for _, count in arrivals]
    if not counts or counts != sorted(counts) or (bound is not None and counts[-1] > bound):
        return []
    told = [chunk.so_far or 0 for chunk in shown]
    fewer_than_shown = any(count < number for number, count in enumerate(told, start=1))
    # The same number in every chunk is no count of what has come so far. Now and then two chunks share a token.
    standing_still = len(shown) > 1 and 2 * len(set(told)) <= len(told)
    return [] if fewer_than_shown or standing_still else arrivals


def _completed(
    arrivals: list[tuple[float, int]], total: int | None, chunks: Sequence[Chunk]
) -> list[tuple[float, int]]:
    """With the tokens that only the sum has: they came with the message that ended the answer, at the latest."""
    at, count = arrivals[-1]
    if total is None or total <= count:
        return arrivals
    return [*arrivals, (max([at, *(chunk.at for chunk in chunks if chunk.last)]), total)]


def _carriers(chunks: Sequence[Chunk], shown: Sequence[Chunk], total: int) -> Sequence[Chunk]:
    """The chunks that carry these tokens."""
    every = [chunk for chunk in chunks if chunk.text or chunk.silent]
    without_end = [chunk for chunk in every if chunk.text or not chunk.last]
    for candidates in (every, without_end):
        if len(candidates) == total:  # one token each, whatever the text
            return candidates
    if shown:
        return shown
    return every if 0 < len(every) <= total else [chunk for chunk in chunks if chunk.last][-1:] or chunks[-1:]


def spread_tokens(chunks: Sequence[float], total: int | None) -> list[tuple[float, int]]:
    """The instants of chunks as (instant, tokens so far), where only the sum of their tokens is known.

    A chunk is not a token: speculation, or a server that sends at intervals, puts several into one. The tokens are
    spread evenly over the chunks, the first chunk has at least one. None: each is one.
    """
    count = len(chunks)
    if total is None or total == count:
        return [(instant, number + 1) for number, instant in enumerate(chunks)]
    return [(instant, max(1, (number + 1) * total // count)) for number, instant in enumerate(chunks)] if total else []
